"""Exact error over a whole split, every image counted once; also from a run's folder alone."""

import json
import math
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath
from jaxtyping import PyTree

from allcnn_jax import config as config_lib
from allcnn_jax import files
from allcnn_jax.data import preprocessing
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import model
from allcnn_jax.training import checkpoints, parts, sharding
from allcnn_jax.training import step as step_lib

# A loss this little below or above ln(classes) is that of a network that gives the same answer
# for every image: by guessing, or by how frequent the classes were in training.
_DEAD = (-0.01, 0.03)


class Scores(NamedTuple):
  """Mean loss (nats), error (percent) and the number of images that they are over."""

  loss: float
  error: float
  examples: int


def evaluate(
  net: model.ConvNet,
  size: tuple[int, int],
  variables: PyTree,
  data: step_lib.Stored,
  batch_size: int,
) -> Scores:
  """The network's scores on all the images; `batch_size` need not divide their number.

  Args:
    net: the network.
    size: height and width of its input; larger images are cut to their centre.
    variables: its parameters.
    data: preprocessed images and their classes.
    batch_size: images at a time. The last batch is filled up and the filling masked.
  """
  n, loss, wrong, counted = len(data.labels), 0.0, 0, 0
  batch_size = sharding.round_up(batch_size)
  sums = []
  for start in range(0, n, batch_size):
    rows = np.arange(start, start + batch_size)
    mask = rows < n
    rows = np.minimum(rows, n - 1)
    batch, weighed = sharding.spread((data.take(rows), mask))
    sums.append(step_lib.eval_step(net, size, variables, batch, weighed))
    counted += int(mask.sum())
  for batch_loss, batch_wrong in sums:
    loss, wrong = loss + float(batch_loss), wrong + int(batch_wrong)
  assert counted == n, f"counted {counted=} of {n=} images"
  return Scores(loss / n, 100 * wrong / n, n)


def status(loss: float, num_classes: int) -> str:
  """ "ok"; "diverged": the loss is not finite; "dead": it stays at ln(classes).

  A bad start of a network with a ReLU on its last layer ends there, at the same answer for every
  image, for good.
  """
  if not math.isfinite(loss):
    return "diverged"
  return "dead" if _DEAD[0] < loss - math.log(num_classes) < _DEAD[1] else "ok"


def write(workdir: epath.PathLike, values: dict[str, Any]) -> None:
  """Writes `evaluation.json`; a loss that is no number becomes null."""
  plain = {
    k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
  }
  path = epath.Path(workdir) / "evaluation.json"
  try:
    files.write(path, (json.dumps(plain, indent=2) + "\n").encode())
  except OSError as error:
    raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from None


def read_config(workdir: epath.PathLike) -> ml_collections.ConfigDict:
  """The config of the run in a folder.

  Raises:
    UsageError: the folder holds no run.
  """
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    raise UsageError(f"{workdir} is no run's folder: it has no config.json.")
  try:
    return config_lib.from_json(path.read_text())
  except UsageError as error:
    raise UsageError(f"{path}: {error}") from None


class Trained(NamedTuple):
  """A run as its folder holds it.

  Attributes:
    config: the run's.
    net: the network.
    variables: {"params": ...} at `step`.
    preprocessor: what is done to raw images first.
    image: height, width and channels of the network's input.
    classes: their names.
    step: of the checkpoint.
  """

  config: ml_collections.ConfigDict
  net: model.ConvNet
  variables: PyTree
  preprocessor: preprocessing.Preprocessor
  image: tuple[int, int, int]
  classes: tuple[str, ...]
  step: int


def restore(workdir: epath.PathLike, step: int | None = None) -> Trained:
  """A trained network from its folder alone, without its data set.

  Args:
    workdir: the run's folder.
    step: of the checkpoint; the newest by default.

  Raises:
    UsageError: something is missing or damaged.
  """
  config = read_config(workdir)
  fitted = preprocessing.load(config.dataset.preprocessing, parts.preprocessing_of(workdir))
  num_classes, image = len(fitted.classes), parts.image(config)
  recipe = parts.recipe(config, num_classes, fitted.examples)
  like = jax.eval_shape(lambda: step_lib.init(recipe, image[2]))
  state = checkpoints.Checkpoints(workdir).restore(like, step)
  net = parts.network(config, num_classes)
  return Trained(
    config, net, state.variables, fitted.preprocessor, image, fitted.classes, int(state.step)
  )


def from_workdir(
  workdir: epath.PathLike,
  *,
  step: int | None = None,
  split: str | None = None,
  dataset: str | None = None,
) -> dict[str, Any]:
  """Evaluates a run's checkpoint and writes `evaluation.json`.

  Args:
    workdir: the run's folder; nothing else is needed.
    step: of the checkpoint; the newest by default.
    split: as `datasets.load` takes it; by default the one that training evaluated on.
    dataset: another set with the same number of classes.

  Returns:
    What was written: `split`, `examples`, `error` (percent), `loss`, `step`, `status`, `dataset`.

  Raises:
    UsageError: something is missing, damaged, or does not fit the network.
  """
  trained = restore(workdir, step)
  split = split or parts.eval_split(trained.config)
  data = parts.read_images(trained.config, split, dataset)
  if len(data.classes) != len(trained.classes):
    raise UsageError(
      f"{dataset} has {len(data.classes)} classes, the network in {workdir} {len(trained.classes)}."
    )
  scores = evaluate(
    trained.net,
    trained.image[:2],
    trained.variables,
    step_lib.Stored.of(trained.preprocessor.apply(data.images), data.labels),
    min(trained.config.train.batch_size, len(data.labels)),
  )
  values = summary(
    scores, trained.step, split, dataset or trained.config.dataset.name, len(data.classes)
  )
  write(workdir, values)
  return values


def summary(
  scores: Scores, step: int, split: str, dataset: str, num_classes: int
) -> dict[str, Any]:
  """What `evaluation.json` says."""
  return {
    "dataset": dataset,
    "split": split,
    "examples": scores.examples,
    "error": scores.error,
    "loss": scores.loss,
    "step": step,
    "status": status(scores.loss, num_classes),
  }
