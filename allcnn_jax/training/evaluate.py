"""Exact error over a whole split, every image counted once; also from a run's folder alone."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Array, PyTree

from allcnn_jax import files, terminal
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import model
from allcnn_jax.training import layout, parts, reporting, restore, sharding, sources, weights
from allcnn_jax.training import step as step_lib

# What `evaluation.json` has at least, of which types.
NEEDED = {"dataset": str, "split": str, "error": int | float | None, "step": int, "status": str}
# A loss this little below or above ln(classes) is that of a network that gives the same answer
# for every image: by guessing, or by how frequent the classes were in training.
_DEAD = (-0.003, 0.03)
_GUESSED = 80  # percent of the errors of guessing


class Scores(NamedTuple):
  """What a network scores.

  Attributes:
    loss: mean over the images, nats.
    error: percent of the images that it classifies wrongly.
    error_top5: percent whose class is not among its first five.
    examples: the number of images.
  """

  loss: float
  error: float
  error_top5: float
  examples: int


def batch_size(config: ml_collections.ConfigDict) -> int:
  """Images at a time: twice training's, whose way back takes more room, so that a GPU waits half as often."""
  return 2 * config.train.batch_size


def evaluate(
  net: model.ConvNet,
  size: tuple[int, int],
  variables: PyTree,
  batches: Iterable[sources.Batch],
) -> Scores:
  """The network's scores on all the images of some batches.

  Args:
    net: the network.
    size: height and width of its input; larger images are cut to their centre.
    variables: its parameters.
    batches: of preprocessed images, as `Source.evaluation` gives them. Where there are several
      views of the images, their probabilities are averaged.
  """
  sums = np.zeros(4)
  waiting: list[Array] = []
  for batch in batches:
    waiting.append(step_lib.evaluate(net, size, variables, *batch))
    if len(waiting) > 2:  # the batches of a stream do not pile up on the device
      sums += np.array(waiting.pop(0), float)
  for last in waiting:
    sums += np.array(last, float)
  loss, wrong, wrong_top5, n = sums
  return Scores(loss / n, 100 * wrong / n, 100 * wrong_top5 / n, int(n))


def status(loss: float, error: float, num_classes: int) -> str:
  """ "ok"; "diverged": the loss is not finite; "dead": loss and error are those of guessing.

  A bad start of a network with a ReLU on its last layer ends there, at the same answer for every
  image, for good. Such a loss may also be that of few mistakes, made in all certainty: so about as
  many must be wrong as by guessing.
  """
  if not math.isfinite(loss):
    return "diverged"
  guesses = error > _GUESSED * (1 - 1 / num_classes)
  return "dead" if guesses and _DEAD[0] < loss - math.log(num_classes) < _DEAD[1] else "ok"


def _path(workdir: epath.PathLike) -> epath.Path:
  return epath.Path(workdir) / layout.EVALUATION


def write(workdir: epath.PathLike, values: dict[str, Any]) -> None:
  """Writes `evaluation.json`, for all processes; a loss that is no number becomes null."""
  if not sharding.is_first():
    return
  files.write_json(_path(workdir), files.json_values(values), str(_path(workdir)))


def read(workdir: epath.PathLike) -> dict[str, Any]:
  """What `write` wrote; empty if nothing has been evaluated.

  Raises:
    UsageError: it is damaged.
  """
  path = _path(workdir)
  return files.read_json(path, NEEDED) if path.exists() else {}


def of_training(
  workdir: epath.PathLike, config: ml_collections.ConfigDict, steps: int
) -> dict[str, Any] | None:
  """What a run of so many steps came to; None if it has not ended.

  Nor if `evaluate` has been here since, with another split or set, or views.
  """
  found = read(workdir)
  own = {"dataset": config.dataset.name, "split": parts.eval_split(config)}
  ended = found.get("step") == steps or found.get("status") == "diverged"
  return found if ended and own.items() <= found.items() and not found.get("views") else None


def from_workdir(
  workdir: epath.PathLike,
  *,
  step: int | None = None,
  split: str | None = None,
  dataset: str | None = None,
  views: int = 0,
) -> dict[str, Any]:
  """Evaluates a run's checkpoint and writes `evaluation.json`, but for a published network's.

  Args:
    workdir: the run's folder; nothing else is needed.
    step: of the checkpoint; the newest by default.
    split: as `datasets.load` takes it; by default the one that training on that set evaluates on.
    dataset: another set with the same number of classes.
    views: if not 0, over how many augmented views of each image probabilities are averaged.

  Returns:
    What `summary` says, and `views` if they were asked for.

  Raises:
    UsageError: something is missing, damaged, or does not fit the network.
  """
  trained = restore.trained(workdir, step)
  keeps = not weights.published(workdir)
  if keeps:
    files.check_file(_path(workdir), str(_path(workdir)))
  split = split or parts.eval_split(trained.config, dataset)
  if views and trained.config.dataset.augment == "none":
    raise UsageError(
      f"--views={views}: the run in {workdir} has no augmentation, so that all views are the same."
    )
  name = dataset or trained.config.dataset.name
  source = sources.open(trained.config, split, dataset)
  if len(source.classes) != len(trained.classes):
    raise UsageError(
      f"{name} has {len(source.classes)} classes, the network in {workdir} {len(trained.classes)}."
    )
  source.prepare(trained.preprocessor)
  batches = source.evaluation(batch_size(trained.config), views)
  net = parts.fast(trained.net)
  scores = evaluate(net, trained.image[:2], trained.variables, batches)
  damaged = source.damaged()
  assert scores.examples + len(damaged) == source.examples, f"{scores.examples=} {damaged=}"
  for record in damaged:
    terminal.note(reporting.left_out(split, record))
  values = summary(scores, trained.step, split, name, len(trained.classes))
  values |= {"views": views} if views else {}
  if keeps:
    write(workdir, values)
  return values


def summary(
  scores: Scores, step: int, split: str, dataset: str, num_classes: int
) -> dict[str, Any]:
  """What `evaluation.json` says; `error_top5` where there are more than ten classes."""
  top5 = {"error_top5": scores.error_top5} if num_classes > 10 else {}
  return {
    "dataset": dataset,
    "split": split,
    "examples": scores.examples,
    "error": scores.error,
    **top5,
    "loss": scores.loss,
    "step": step,
    "status": status(scores.loss, scores.error, num_classes),
  }
