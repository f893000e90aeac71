"""Starts programs as a user would, on so many virtual devices or in so many processes."""

import os
import pathlib
import socket
import subprocess
import sys
import time

from tests.runs import saved

ROOT = pathlib.Path(__file__).parents[1]
# A run on digits whose steps take milliseconds, in words.
TINY = [
  "--config=configs/quickstart.py",
  "--config.model.width=0.04",
  "--config.train.batch_size=8",
  "--config.evaluate.every_steps=100000",
]
TRAIN = ["launch.py", "train", *TINY]


def environment(devices=1, **more):
  """Variables for a program on virtual CPU devices."""
  kept = [x for x in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in x]
  flags = " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"])
  ours = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
  return {**os.environ, **ours, **{k: str(v) for k, v in more.items()}}


def start(*words, env=None):
  """A program of this Python, its output to be read."""
  return subprocess.Popen(
    [sys.executable, *map(str, words)],
    cwd=ROOT,
    env=env or environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def start_together(count, *words, devices=1, **more):
  """The same program in several processes that find each other."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count, **more}
  return [start(*words, env=environment(devices, JAX_PROCESS_ID=i, **shared)) for i in range(count)]


def finish(*running):
  """(exit statuses, outputs, errors) of programs, when all have ended."""
  ended = [process.communicate(timeout=800) for process in running]
  outs, errors = zip(*ended)
  return [process.returncode for process in running], outs, errors


def wait_for_a_checkpoint(workdir, *running):
  """Returns when there is one more."""
  before = saved(workdir)
  while not saved(workdir) - before:
    assert all(process.poll() is None for process in running), finish(*running)
    time.sleep(0.05)
