"""What runs leave in their folders."""

import json

import jax
import numpy as np

from allcnn_jax.training import restore


def saved(workdir):
  """The steps of a run's checkpoints."""
  place = workdir / "checkpoints"
  return {int(p.name) for p in place.iterdir() if p.name.isdecimal()} if place.exists() else set()


def weights(workdir, step=None):
  """The variables of a run's newest checkpoint, or of another one."""
  return jax.tree.map(np.asarray, restore.trained(workdir, step).variables)


def same(a, b):
  """Asserts that two trees are equal bit by bit."""
  jax.tree.map(np.testing.assert_array_equal, a, b)


def metrics(workdir):
  """The lines of the log."""
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def evaluation(workdir):
  """What the run came to."""
  return json.loads((workdir / "evaluation.json").read_text())


def contents(folder):
  """Each file in a folder, with what is in it."""
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(path, how):
  """Cuts a file in half ("truncated"), or flips a bit in its middle ("flipped")."""
  content = bytearray(path.read_bytes())
  middle = len(content) // 2
  if how == "flipped":
    content[middle] ^= 1
  path.write_bytes(content[:middle] if how == "truncated" else content)
