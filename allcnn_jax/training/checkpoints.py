"""Checkpoints of the whole training state; the only importer of Orbax.

A checkpoint is written beside its place and renamed, so that one that can be seen is whole. It
holds arrays and JSON, nothing that could run when it is read.
"""

import logging
from typing import NoReturn

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from allcnn_jax.errors import UsageError, unknown
from allcnn_jax.training import sharding
from allcnn_jax.training.step import TrainState

# Orbax tells of every save on the terminal.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
  """The checkpoints of one run, `workdir/checkpoints/STEP`."""

  def __init__(self, workdir: epath.PathLike, keep: int = 1):
    """Opens the folder, without making it.

    Args:
      workdir: the run's folder.
      keep: how many of the newest are kept at a save.
    """
    place = epath.Path(workdir)
    if "://" not in str(workdir):
      place = place.resolve()  # Orbax takes absolute paths only
    self._path = place / "checkpoints"
    self._keep = keep
    self._orbax: ocp.training.Checkpointer | None = None

  def steps(self) -> list[int]:
    """The steps that have a whole checkpoint, oldest first."""
    if not self._path.exists():
      return []
    return sorted(int(p.name) for p in self._path.iterdir() if p.name.isdecimal())

  def save(self, state: TrainState) -> None:
    """Writes the state and returns when it is safe; older checkpoints than `keep` go."""
    if self._orbax is None:
      self._orbax = ocp.training.Checkpointer(
        self._path,
        save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
        cleanup_tmp_directories=True,
      )
    self._orbax.save(int(state.step), state)

  def restore(self, like: TrainState, step: int | None = None) -> TrainState:
    """The state at a step, by default the newest.

    Args:
      like: a state with the shapes, types and shardings to restore, as `jax.eval_shape` gives it.
      step: of the checkpoint.

    Raises:
      UsageError: there is none, it is damaged, or it holds another network.
    """
    steps = self.steps()
    if not steps:
      raise UsageError(f"There is no checkpoint in {self._path}: train first.")
    if step is not None and step not in steps:
      raise UsageError(
        f"There is no checkpoint of step {step} in {self._path}. There are: {', '.join(map(str, steps))}."
      )
    place = self._path / str(steps[-1] if step is None else step)
    replicated = sharding.replicated(sharding.mesh())
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), like
    )
    try:
      return ocp.load(place, abstract)
    except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files.
      if "feedback" in like.variables and _lacks_feedback(place):
        raise UsageError(
          f"The checkpoint {place} holds no feedback weights: it is of a run under another rule. "
          "Begin a new run with its weights: --config.rule.start_from=DIR."
        ) from None
      first = " ".join(str(error).split())[:160]
      others = ", ".join(str(s) for s in steps if s != int(place.name))
      raise UsageError(
        f"The checkpoint {place} is damaged or of another network ({first} ...). "
        + (f"Remove it to use an older one: {others}." if others else "There is no other one.")
      ) from None

  def close(self) -> None:
    """Ends what runs in the background."""
    if self._orbax is not None:
      self._orbax.close()


# Trained here, by name. None is published yet.
PRETRAINED = ("all_cnn_c_cifar10",)


def load_pretrained(name: str) -> NoReturn:
  """Would load a network that was trained here.

  Raises:
    UsageError: none is published yet, or there will be none of this name.
  """
  if name not in PRETRAINED:
    raise unknown("pretrained network", name, PRETRAINED)
  raise UsageError(
    f"No weights of {name} are published yet. Train it: "
    "python launch.py train --config=configs/cifar10.py:all_cnn_c --workdir=DIR."
  )


def _lacks_feedback(place: epath.Path) -> bool:
  try:
    return "feedback" not in ocp.metadata(place).metadata["variables"]
  except Exception:  # As above: then it is damaged.
    return False
