"""Checkpoints of the whole training state; the only importer of Orbax.

A checkpoint is written beside its place and renamed, so that one that can be seen is whole; in a
bucket, which cannot rename, it is whole when Orbax has put its mark into it. What happens to its
files later is found out by their checksums, which stand beside them. It holds arrays and JSON,
nothing that could run when it is read. A network that is published has one file of weights instead.
"""

import contextlib
import errno
import json
import logging
import pathlib
import shutil
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from allcnn_jax import files, terminal
from allcnn_jax.data import preprocessing
from allcnn_jax.errors import (
  DiskFull,
  UsageError,
  is_denied,
  is_full,
  is_memory,
  is_passing,
  unknown,
)
from allcnn_jax.nets import model
from allcnn_jax.training import layout, parts, sharding, weights
from allcnn_jax.training.step import TrainState

_SUMS = "checksums.json"
_DISK_BLOCK = 512  # bytes, the unit of `st_blocks`
_ROOM = 1.25  # of what the newest checkpoint takes: another may be packed less well
_WHOLE = "commit_success.txt"  # Orbax's mark in a bucket
# Of networks that were trained here: inside of an installed package, beside it in a clone.
_PACKAGE = pathlib.Path(__file__).parents[1]
_PRETRAINED = (_PACKAGE / "pretrained", _PACKAGE.with_name("pretrained"))


class _Unreadable(UsageError):
  """Orbax cannot read a checkpoint."""


class Checkpoints:
  """The checkpoints of one run, `workdir/checkpoints/STEP`."""

  def __init__(self, workdir: epath.PathLike, keep: int = 1):
    """Opens the folder, without making it.

    Args:
      workdir: the run's folder.
      keep: how many of the newest are kept at a save.
    """
    place = epath.Path(workdir)
    if not files.is_bucket(workdir):
      place = place.resolve()  # Orbax takes absolute paths only
    self._path = place / "checkpoints"
    self._weights = place / weights.NAME
    self._keep = keep
    self._orbax: ocp.training.Checkpointer | None = None

  def steps(self) -> list[int]:
    """The steps that have a whole checkpoint, oldest first; of a published network its one."""
    if self._weights.exists():
      return [weights.load(self._weights)[1]]
    if not self._path.exists():
      return []
    found = [p for p in self._path.iterdir() if p.name.isdecimal() and p.is_dir()]
    if files.is_bucket(self._path):
      found = [p for p in found if (p / _WHOLE).exists()]
    return sorted(int(p.name) for p in found)

  def save(self, state: TrainState) -> None:
    """Writes the state and returns when it is safe; older checkpoints than `keep` go.

    Raises:
      DiskFull: there is no room for it. The older ones stay.
    """
    step = int(state.step)
    try:
      self._check_room()
      self._save(step, state)
    except Exception as error:
      if not is_full(error):
        raise
      with contextlib.suppress(Exception):  # it would tell of the same once more
        self.close()
      self._orbax = None
      kept = ", ".join(str(s) for s in self.steps() if s != step)
      raise DiskFull(
        f"No space left for the checkpoint of step {step} in {self._path}. "
        + (f"Whole ones are there: {kept}." if kept else "There is no other one.")
      ) from None

  def _check_room(self) -> None:
    """Raises OSError where another checkpoint like the newest has no room, before any is written.

    TensorStore prints a page of tracebacks when a write fails.
    """
    steps = self.steps()
    if steps and not files.is_bucket(self._path):
      newest = pathlib.Path(self._path / str(steps[-1]))
      used = sum(x.stat().st_blocks * _DISK_BLOCK for x in newest.rglob("*"))
      if shutil.disk_usage(self._path).free < _ROOM * used:
        raise OSError(errno.ENOSPC, "No space left")

  def _save(self, step: int, state: TrainState) -> None:
    with _quiet():
      if self._orbax is None:
        self._orbax = ocp.training.Checkpointer(
          self._path,
          save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
          preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
          cleanup_tmp_directories=True,
        )
      self._orbax.save(step, state)
    if sharding.is_first():
      place = self._path / str(step)
      sums = _checksums(place)
      content = json.dumps({"files": sums, "own": _own(sums)}, indent=2)
      files.write(place / _SUMS, content.encode())

  def set_aside_after(self, step: int) -> None:
    """Moves damaged checkpoints of later steps out of the way, to `workdir/damaged/`."""
    for later in self.steps():
      if later > step:
        aside = self._path.parent / "damaged"
        aside.mkdir(exist_ok=True)
        if (aside / str(later)).exists():
          (aside / str(later)).rmtree()
        (self._path / str(later)).rename(aside / str(later))

  def restore(self, like: TrainState, step: int | None = None) -> TrainState:
    """The state at a step, by default the newest that is whole.

    Args:
      like: a state with the shapes and types to restore, as `jax.eval_shape` gives it. Where its
        `opt_state` is None, the checkpoint's stays on the disk, whatever the optimizer was.
      step: of the checkpoint. Without it, a damaged one is named and the one before it is used.

    Raises:
      UsageError: there is none, it is damaged, or it holds another network.
    """
    steps = self.steps()
    if not steps:
      raise UsageError(
        f"There is no checkpoint in {self._path}: train first. (A run that diverges early has none.)"
      )
    if step is not None and step not in steps:
      raise UsageError(
        f"There is no checkpoint of step {step} in {self._path}. There are: {', '.join(map(str, steps))}."
      )
    if self._weights.exists():
      return self._published(like)
    damage = []
    for candidate in [step] if step is not None else reversed(steps):
      place = self._path / str(candidate)
      found = _damage(place)
      if not found:
        try:
          state = _load(place, like)
        except _Unreadable as error:
          if (place / _SUMS).exists() or step is not None:
            raise  # its files are as they were written
          damage.append(str(error))
          continue
        if damage and sharding.is_first():
          terminal.warn(f"{' '.join(damage)} That of step {candidate} is used.")
        return state
      damage.append(f"The checkpoint {place} is damaged: {found}.")
    others = ", ".join(str(s) for s in steps if s != step and step is not None)
    raise UsageError(
      " ".join(damage) + (f" Others are: {others}." if others else " There is no other one.")
    )

  def _published(self, like: TrainState) -> TrainState:
    variables, step = weights.load(self._weights)
    state = TrainState(np.int32(step), variables, None)
    _refuse_another(self._weights, _shapes(state), _shapes(like))
    state = jax.tree.map(lambda x, asked: x.astype(asked.dtype), state, like)
    return jax.device_put(state, sharding.replicated(sharding.mesh()))

  def close(self) -> None:
    """Ends what runs in the background."""
    if self._orbax is not None:
      with _quiet():
        self._orbax.close()


class Pretrained(NamedTuple):
  """A network that was trained here.

  Attributes:
    net: the network.
    variables: {"params": ...}.
    preprocessing: its `apply` makes the network's input of raw images, uint8 (N, H, W, C).
  """

  net: model.ConvNet
  variables: PyTree
  preprocessing: preprocessing.Preprocessor


def load_pretrained(name: str) -> Pretrained:
  """A network that was trained here, by its name: that of its folder in `pretrained/`.

  Raises:
    UsageError: there is none of this name.
  """
  home = next((x for x in _PRETRAINED if x.is_dir()), _PACKAGE)
  names = sorted(x.parent.name for x in home.glob(f"*/{weights.NAME}"))
  if name not in names:
    raise unknown("pretrained network", name, names)
  place = home / name
  config = layout.read_config(place)
  fitted = preprocessing.load(config.dataset.preprocessing, layout.preprocessing_of(place))
  variables, _ = weights.load(place / weights.NAME)
  net = parts.network(config, len(fitted.classes))
  return Pretrained(net, variables, fitted.preprocessor)


def _load(place: epath.Path, like: TrainState) -> TrainState:
  replicated = sharding.replicated(sharding.mesh())
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), like
  )
  with _reading(place):
    held = ocp.metadata(place).metadata
    if like.opt_state is None:
      unread = jax.tree.map(lambda _: ocp.PLACEHOLDER, held.pop("opt_state"))
      abstract = abstract.replace(opt_state=unread)
  _refuse_another(place, _shapes(held), _shapes(like))
  with _reading(place):
    state = ocp.load(place, abstract)
  return state.replace(opt_state=None) if like.opt_state is None else state


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Orbax tells of every save on the terminal, and of what fails before it raises it."""
  logger = logging.getLogger("absl")
  before = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(before)


@contextlib.contextmanager
def _reading(place: epath.Path) -> Iterator[None]:
  """One line for whatever Orbax and TensorStore raise meanwhile, which is of many kinds."""
  try:
    with _quiet():
      yield
  except Exception as error:
    if is_passing(error) or (
      isinstance(error, jax.errors.JaxRuntimeError) and not is_memory(error)
    ):
      raise  # it is not the checkpoint that is at fault
    first = " ".join(str(error).split())[:160]
    raise _Unreadable(f"The checkpoint {place} cannot be read ({first} ...).") from None


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
  """The shape of each array of a state, or of a checkpoint's metadata, by its path there."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


def _refuse_another(
  place: epath.Path, held: dict[str, tuple[int, ...]], asked: dict[str, tuple[int, ...]]
) -> None:
  """Raises UsageError where a checkpoint's arrays are others than those asked for.

  It is found out before any is read: of a read that fails, Orbax leaves coroutines behind.
  """
  differ = {x for x in held.keys() | asked.keys() if held.get(x) != asked.get(x)}
  if not differ:
    return
  if all(x.startswith("variables/feedback/") and x not in held for x in differ):
    raise UsageError(
      f"The checkpoint {place} holds no feedback weights: it is of a run under another rule. "
      "Begin a new run with its weights: --config.rule.start_from=DIR."
    )
  first = min(differ, key=lambda x: (x.startswith("opt_state"), x))
  there, here = (f"shape {x[first]}" if first in x else "none" for x in (held, asked))
  raise UsageError(
    f"The checkpoint {place} is of another network, optimizer or rule: "
    f"of {first} it holds {there}, here there is {here}."
  )


def _checksums(place: epath.Path) -> dict[str, int]:
  """The checksum of each file of a checkpoint, by its path there."""
  ours = sorted(p for p in _files(place) if not p.name.startswith(_SUMS))
  return {str(p.relative_to(place)): zlib.crc32(p.read_bytes()) for p in ours}


def _own(sums: dict[str, int]) -> int:
  """The checksum of the checksums."""
  return zlib.crc32(json.dumps(sums, sort_keys=True).encode())


def _files(place: epath.Path) -> Iterator[epath.Path]:
  for path in place.iterdir():
    yield from _files(path) if path.is_dir() else (path,)


def _damage(place: epath.Path) -> str:
  """What is wrong with the files of a checkpoint, or ""."""
  try:
    return _changed(place)
  except OSError as error:  # as of a bad block, or of a run that deletes it meanwhile
    if is_denied(error):
      raise
    return f"its files cannot be read ({error.strerror or error})"


def _changed(place: epath.Path) -> str:
  """Which file of a checkpoint is not as its checksum says, or "".

  A run that was killed between the last file and the checksums left none: then what Orbax has
  renamed counts as whole.
  """
  if not (place / _SUMS).exists():
    return ""
  try:
    content = json.loads((place / _SUMS).read_text())
    noted, own = content["files"], content["own"]
    genuine = own == _own(noted)
  except (ValueError, TypeError, KeyError):
    genuine = False
  if not genuine:
    return f"{_SUMS} is not as it was written"
  there = _checksums(place)
  for name in sorted(noted.keys() | there.keys()):
    if name not in there:
      return f"{name} is gone"
    if there[name] != noted.get(name):
      return f"{name} is not as it was written"
  return ""
