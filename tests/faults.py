"""Breaks runs in every way that machines do, and looks whether they survive it.

  python tests/faults.py --kills=50 --seed=0 [--output=FILE]

Kills a run with -9 at random moments and starts it again, until it has come to its end, and
compares its weights bit by bit with those of a run that nobody disturbed; damages each file of
the newest checkpoint; fills the disk while saving; starts a second run in the same folder.
"""

import argparse
import collections
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import jax
import numpy as np

import launch
from allcnn_jax.errors import UsageError
from allcnn_jax.training import restore
from tests import processes, runs

STEPS = 40
TRAIN = [
  *processes.TRAIN,
  "--config.dataset.augment=shift_flip",
  f"--config.train.steps={STEPS}",
  "--config.checkpoint.every_steps=2",
  "--config.checkpoint.keep=3",
  "--config.log.every_steps=5",
]
MOMENTS = ("at any moment", "while it trains", "while it saves")


def train(workdir, *words):
  return processes.start(*TRAIN, *words, f"--workdir={workdir}")


def whole(workdir, *words):
  """A run that nobody disturbs."""
  statuses, _, errors = processes.finish(train(workdir, *words))
  assert statuses == [0], errors


def same(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def saved(workdir):
  """The names in the folder of checkpoints, those half written included."""
  place = workdir / "checkpoints"
  return {p.name for p in place.iterdir()} if place.exists() else set()


def wait(process, came):
  """Until something has come, or the process has ended."""
  while process.poll() is None and not came():
    time.sleep(0.002)


def kill(workdir, moment, draw, seconds):
  """Starts a run and kills it; False if it came to its end before."""
  process, before = train(workdir), saved(workdir)
  if moment == "at any moment":
    time.sleep(draw.uniform(0, seconds))
  elif moment == "while it trains":
    wait(process, lambda: {x for x in saved(workdir) - before if x.isdecimal()})
    time.sleep(draw.uniform(0, 0.3))
  else:
    wait(process, lambda: {x for x in saved(workdir) - before if not x.isdecimal()})
    time.sleep(draw.uniform(0, 0.03))
  process.kill()
  _, errors = process.communicate()
  assert process.returncode in (0, -signal.SIGKILL), errors
  return process.returncode != 0


def kills(folder, count, seed):
  """Kills so many times; the runs that this disturbed must end with the undisturbed one's weights."""
  draw, found = random.Random(seed), collections.Counter()
  start = time.monotonic()
  whole(folder / "whole")
  seconds = time.monotonic() - start
  expected, begun, equal, done = runs.weights(folder / "whole"), 0, 0, 0
  while done < count:
    workdir = folder / f"killed{begun}"
    for _ in range(min(10, count - done)):
      moment = draw.choice(MOMENTS)
      if not kill(workdir, moment, draw, seconds):
        break
      done += 1
      found[moment] += 1
      found["left a half written checkpoint"] += any(not x.isdecimal() for x in saved(workdir))
    whole(workdir)
    begun += 1
    equal += same(runs.weights(workdir), expected)
  return {"kills": done, **found, "runs": begun, "runs with the very same weights": equal}


def damage(folder):
  """Truncates, then flips a byte of, each file of the newest checkpoint, then of all of them."""
  workdir = folder / "damaged"
  whole(workdir)
  steps = sorted(map(int, saved(workdir)))
  newest, intact = workdir / "checkpoints" / str(steps[-1]), folder / "intact"
  shutil.copytree(newest, intact)
  files = sorted(p.relative_to(intact) for p in intact.rglob("*") if p.is_file())
  used_older = 0
  for file in files:
    for how in ("truncated", "flipped"):
      runs.damage(newest / file, how)
      launch.run(["evaluate", f"--workdir={workdir}"])
      used = runs.evaluation(workdir)["step"]
      used_older += used == steps[-2]
      shutil.copy(intact / file, newest / file)
  for step in steps:
    runs.damage(workdir / "checkpoints" / str(step) / files[-1], "flipped")
  try:
    launch.run(["evaluate", f"--workdir={workdir}"])
    refused = False
  except UsageError as error:
    refused = "no other" in str(error)
  shutil.rmtree(intact)
  return {
    "files": len(files),
    "damages": 2 * len(files),
    "damages after which the checkpoint before was used": used_older,
    "refused with none left": refused,
  }


def full_disk(folder, megabytes=2):
  """Trains on a disk that is too small for all its checkpoints; None where none can be made."""
  disk = folder / "disk"
  disk.mkdir()
  options = f"size={megabytes}m"
  made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True)
  if made.returncode:
    return None
  try:
    statuses, _, errors = processes.finish(
      train(disk / "run", "--config.checkpoint.keep=1000", "--config.train.steps=1000")
    )
    kept = sorted(int(x) for x in saved(disk / "run") if x.isdecimal())
    for step in kept:
      restore.trained(disk / "run", step)
    return {
      "megabytes": megabytes,
      "status": statuses[0],
      "says": errors[0].strip(),
      "checkpoints that stayed whole": len(kept),
    }
  finally:
    subprocess.run(["umount", disk], check=True)


def second_run(folder):
  """Starts a run where one trains already."""
  workdir = folder / "taken"
  first = train(workdir, "--config.train.steps=100000")
  wait(first, lambda: saved(workdir))
  second = train(workdir, "--config.train.steps=100000")
  statuses, _, errors = processes.finish(second)
  goes_on = first.poll() is None
  first.terminate()
  first_status = processes.finish(first)[0]
  return {
    "status": statuses[0],
    "says": errors[0].strip(),
    "the first goes on": goes_on and first_status == [0],
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--output", type=pathlib.Path)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    found = {
      "seed": args.seed,
      "kill": kills(folder, args.kills, args.seed),
      "damage": damage(folder),
      "full disk": full_disk(folder),
      "second run": second_run(folder),
    }
  text = json.dumps(found, indent=2).replace(name, "DIR")
  print(text)
  if args.output:
    args.output.write_text(text + "\n")


if __name__ == "__main__":
  main()
