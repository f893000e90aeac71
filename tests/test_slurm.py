"""The README's Slurm command, on a real one: trained, killed, preempted, and gone on with."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests import processes, runs, slurm

pytestmark = [
  pytest.mark.slurm,
  pytest.mark.timeout(900),
  pytest.mark.skipif(bool(slurm.why_not()), reason=slurm.why_not()),
]
TRAIN = [*processes.TRAIN, "--config.checkpoint.every_steps=5"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  with slurm.cluster(tmp_path_factory.mktemp("slurm")) as environment:
    yield {**processes.environment(), "SLURM_CONF": environment["SLURM_CONF"]}


def srun(cluster, workdir, steps):
  words = ["srun", "--ntasks=2", "--overcommit", sys.executable, *TRAIN]
  words += [f"--config.train.steps={steps}", f"--workdir={workdir}"]
  return subprocess.Popen(
    words, cwd=processes.ROOT, env=cluster, stdout=-1, stderr=subprocess.STDOUT, text=True
  )


def task(number, workdir):
  """The process id of a job's task."""
  for place in pathlib.Path("/proc").iterdir():
    try:
      words = (place / "cmdline").read_bytes().split(b"\0")
      variables = (place / "environ").read_bytes().split(b"\0")
    except (OSError, ValueError):
      continue
    if (
      f"--workdir={workdir}".encode() in words
      and f"SLURM_PROCID={number}".encode() in variables
      and b"srun" not in words[0]
    ):
      return int(place.name)
  raise RuntimeError(f"no task {number}")


def test_two_tasks_train_die_are_preempted_and_go_on(cluster, tmp_path):
  disturbed, whole = tmp_path / "disturbed", tmp_path / "whole"

  job = srun(cluster, disturbed, 100_000)
  processes.wait_for_a_checkpoint(disturbed, job)
  os.kill(task(1, disturbed), signal.SIGKILL)
  said, _ = job.communicate(timeout=120)
  assert job.returncode not in (0, 2)
  assert "Start again" in said or "another task died" in said

  job = srun(cluster, disturbed, 100_000)
  processes.wait_for_a_checkpoint(disturbed, job)
  jobs = subprocess.run(
    ["squeue", "-h", "-o", "%i"], env=cluster, stdout=-1, text=True, check=True
  ).stdout.split()
  subprocess.run(["scancel", "--signal=TERM", *jobs], env=cluster, check=True)
  said, _ = job.communicate(timeout=120)
  assert job.returncode == 0, said
  assert "The same command goes on from there" in said

  steps = max(runs.saved(disturbed)) + 7
  for workdir in (disturbed, whole):
    job = srun(cluster, workdir, steps)
    said, _ = job.communicate(timeout=280)
    assert job.returncode == 0, said
    assert said.count("Done:") == 1
  runs.same(runs.weights(disturbed), runs.weights(whole))
