"""A run's folder -> its network, without its data set."""

from typing import NamedTuple

import jax
import ml_collections
from etils import epath
from jaxtyping import PyTree

from allcnn_jax.data import preprocessing
from allcnn_jax.nets import model
from allcnn_jax.training import checkpoints, layout, parts
from allcnn_jax.training import step as step_lib


class Trained(NamedTuple):
  """A run as its folder holds it.

  Attributes:
    config: the run's.
    net: the network.
    variables: {"params": ...} at `step`.
    preprocessor: what is done to raw images first.
    image: height, width and channels of the network's input.
    classes: their names.
    examples: how many images it was trained on.
    step: of the checkpoint.
  """

  config: ml_collections.ConfigDict
  net: model.ConvNet
  variables: PyTree
  preprocessor: preprocessing.Preprocessor
  image: tuple[int, int, int]
  classes: tuple[str, ...]
  examples: int
  step: int


def trained(workdir: epath.PathLike, step: int | None = None) -> Trained:
  """A trained network from its folder alone, without its data set.

  Args:
    workdir: the run's folder.
    step: of the checkpoint; the newest by default.

  Raises:
    UsageError: something is missing or damaged.
  """
  config = layout.read_config(workdir)
  fitted = preprocessing.load(config.dataset.preprocessing, layout.preprocessing_of(workdir))
  num_classes, image = len(fitted.classes), parts.image(config)
  recipe = parts.recipe(config, num_classes, fitted.examples)
  like = jax.eval_shape(lambda: step_lib.init(recipe, image[2])).replace(opt_state=None)
  state = checkpoints.Checkpoints(workdir).restore(like, step)
  net = parts.network(config, num_classes)
  known = (fitted.preprocessor, image, fitted.classes, fitted.examples)
  return Trained(config, net, state.variables, *known, int(state.step))
