"""A config's optimizer as an optax chain that reads like the paper's sentence."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import optax
import optax.contrib
from jaxtyping import Array, Float, PyTree

from allcnn_jax.errors import unknown

NAMES = ("sgd", "adam", "muon")
SCHEDULES = ("drops", "triangle")
VELOCITIES = ("caffe", "optax")
_NEVER = 2**31 - 1  # no run has so many steps
_FEW = 1 << 14  # numbers of an array that may lie as it comes
_TILE = 128  # numbers that a matrix unit takes at once


def create(
  config: ml_collections.ConfigDict, steps_per_epoch: int, epochs: int
) -> optax.GradientTransformation:
  """The optimizer of `config.optimizer`.

  Springenberg et al. 2015, 3.2: stochastic gradient descent with a momentum of 0.9, a learning
  rate that is multiplied by 0.1 after 200, 250 and 300 epochs, and a weight decay of 0.001, which
  is coupled: it is added to the gradient before momentum.

  With g the decayed gradient and r the rate, SGD's velocity v is, by `velocity`:
    "caffe": v <- m v + r g,  w <- w - v: after a drop of the rate the weights coast on.
    "optax": v <- m v + g,    w <- w - r v.
  With `nesterov` the weights move by the velocity that the same gradient would make next.

  "muon" (Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a layer's weights and bias as
  one matrix, (h w c_in + 1, c_out), along its velocity with all singular values made about 1, or
  sqrt(columns / rows) where it is wider than tall. Its decay is decoupled: w <- w - r (step + decay w).

  A gradient whose norm over all weights is above `clip_norm` is scaled down to it, with its coupled
  decay: a lower rate for that step. Scaled down alone, it would leave the decay too large beside it.

  Args:
    config: the section `optimizer` of a config.
    steps_per_epoch: turns epochs into steps.
    epochs: of the run.

  Raises:
    UsageError: an unknown optimizer, schedule or velocity.
  """
  for what, known in (("name", NAMES), ("velocity", VELOCITIES)):
    if config[what] not in known:
      raise unknown(f"optimizer.{what}", config[what], known)
  rate = schedule(config, steps_per_epoch, epochs)
  decay = optax.add_decayed_weights(
    config.weight_decay, mask=None if config.decay_bias else _are_kernels
  )
  clip = _clip(config.clip_norm) if config.clip_norm else optax.identity()
  momentum = optax.trace(config.momentum, nesterov=config.nesterov)
  descend = optax.scale_by_learning_rate(rate)
  if config.name == "muon":
    return optax.chain(clip, _muon(config), decay, descend)
  if config.name == "adam":
    return optax.chain(decay, clip, optax.scale_by_adam(b1=config.momentum), descend)
  if config.velocity == "caffe":
    return optax.chain(decay, clip, descend, momentum)
  return optax.chain(decay, clip, momentum, descend)


def schedule(
  config: ml_collections.ConfigDict, steps_per_epoch: int, epochs: int
) -> optax.Schedule:
  """The learning rate at each step: up from 0 in a straight line over the share `warmup` of all.

  From there on by `config.schedule`:
    "drops": constant, divided by `drop_factor` after each of `drops`, counted from the start.
    "triangle": down to 0 in a straight line.

  Raises:
    UsageError: an unknown schedule.
  """
  if config.schedule not in SCHEDULES:
    raise unknown("optimizer.schedule", config.schedule, SCHEDULES)
  total = epochs * steps_per_epoch
  top = round(config.warmup * total)
  if config.schedule == "triangle":
    after = optax.linear_schedule(config.learning_rate, 0.0, total - top)
  else:
    steps = [round(min(epoch * steps_per_epoch, _NEVER)) - top for epoch in config.drops]
    drops = {step: config.drop_factor ** -steps.count(step) for step in steps}
    after = optax.piecewise_constant_schedule(config.learning_rate, drops)
  up = optax.linear_schedule(0.0, config.learning_rate, top)
  return optax.join_schedules([up, after], [top])


def _muon(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
  """`optax.contrib.scale_by_muon` of all layers at once: 15 products a step, not 15 for each layer.

  Rows and columns of zeros, which fill matrices up, stay zeros and change no other.
  """
  muon = optax.contrib.scale_by_muon(
    beta=config.momentum,
    nesterov=config.nesterov,
    weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(2, 1),
  )

  def update(gradient, state, params=None):
    moves, state = muon.update(_stack(gradient), state)
    return _unstack(moves, gradient), state

  return optax.GradientTransformation(lambda params: muon.init(_stack(params)), update)


def _stack(layers: PyTree) -> Float[Array, "layers features inputs"]:
  """Each layer as a matrix of a row for each feature: its weights and, if it has one, its bias last.

  Features come first because a GPU's convolutions give gradients so. Zeros fill rows up to whole
  tiles: All-CNN-C's longest has 1,729 numbers, so that the next would start on no boundary.
  """

  def matrix(layer):
    parts = [layer[part] for part in ("kernel", "bias") if part in layer]
    return jnp.concatenate([jnp.moveaxis(x, -1, 0).reshape(x.shape[-1], -1) for x in parts], axis=1)

  matrices = [matrix(layer) for layer in layers.values()]
  features, inputs = (max(sizes) for sizes in zip(*(m.shape for m in matrices)))
  inputs += -inputs % _TILE
  return jnp.stack(
    [jnp.pad(m, ((0, features - m.shape[0]), (0, inputs - m.shape[1]))) for m in matrices]
  )


def _unstack(stack: Float[Array, "layers features inputs"], like: PyTree) -> PyTree:
  """The layers again, each times sqrt(features / inputs) where it has more features than inputs."""
  layers = {}
  for (name, layer), matrix in zip(like.items(), stack):
    *window, features = layer["kernel"].shape
    weights = math.prod(window)
    inputs = weights + ("bias" in layer)
    matrix = max(1, features / inputs) ** 0.5 * matrix[:features, :inputs]
    kernel = jnp.moveaxis(matrix[:, :weights].reshape(features, *window), 0, -1)
    moves = {"kernel": kernel, "bias": matrix[:, -1]}
    layers[name] = {part: moves[part] for part in layer}
  return layers


def _clip(largest: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm`, whose norm takes a GPU two kernels, not one or two for each array."""

  def scale(gradient):
    norm = jnp.linalg.norm(jnp.concatenate([_in_a_row(x) for x in jax.tree.leaves(gradient)]))
    factor = jnp.minimum(1, largest / norm)
    return jax.tree.map(lambda x: x * factor, gradient)

  return optax.stateless(lambda gradient, _: scale(gradient))


def _in_a_row(x: Float[Array, "*shape"]) -> Float[Array, " n"]:
  """All numbers of an array, features first, as a GPU's convolutions give them; or a few as they are.

  The first layer's weights come last, from a product that has no such order: to turn them would be a
  kernel for which the whole step waits.
  """
  return (x if x.size < _FEW else jnp.moveaxis(x, -1, 0)).ravel()


def _are_kernels(params):
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
