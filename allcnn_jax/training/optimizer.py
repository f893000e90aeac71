"""A config's optimizer as an optax chain that reads like the paper's sentence."""

import jax
import jax.numpy as jnp
import ml_collections
import optax


def create(
  config: ml_collections.ConfigDict, steps_per_epoch: int, epochs: int
) -> optax.GradientTransformation:
  """The optimizer of `config.optimizer`.

  Springenberg et al. 2015, 3.2: "stochastic gradient descent with fixed momentum of 0.9 ... the
  learning rate multiplied by a fixed factor of 0.1 [after 200, 250 and 300 epochs] ... weight
  decay 0.001", which is coupled: it is added to the gradient before anything else.

  With g the decayed gradient and r the rate, SGD's velocity v is, by `velocity`:
    "caffe": v <- m v + r g,  w <- w - v: after a drop of the rate the weights coast on.
    "optax": v <- m v + g,    w <- w - r v.
  With `nesterov` the weights move by the velocity that the same gradient would make next.

  Before all this, a gradient whose norm over all weights is above `clip_norm` is scaled down to it.

  Args:
    config: the section `optimizer` of a config.
    steps_per_epoch: turns epochs into steps.
    epochs: of the run.
  """
  rate = schedule(config, steps_per_epoch, epochs)
  decay = optax.add_decayed_weights(
    config.weight_decay, mask=None if config.decay_bias else _kernels
  )
  clip = _clip(config.clip_norm) if config.clip_norm else optax.identity()
  momentum = optax.trace(config.momentum, nesterov=config.nesterov)
  descend = optax.scale_by_learning_rate(rate)
  if config.name == "adam":
    return optax.chain(clip, decay, optax.scale_by_adam(b1=config.momentum), descend)
  if config.velocity == "caffe":
    return optax.chain(clip, decay, descend, momentum)
  return optax.chain(clip, decay, momentum, descend)


def schedule(
  config: ml_collections.ConfigDict, steps_per_epoch: int, epochs: int
) -> optax.Schedule:
  """The learning rate at each step, by `config.schedule`.

  "drops": constant, divided by `drop_factor` after each of `drops`.
  "triangle": up from 0 in a straight line over the share `warmup` of all steps, then down to 0.
  """
  if config.schedule == "triangle":
    total = epochs * steps_per_epoch
    top = round(config.warmup * total)
    up = optax.linear_schedule(0.0, config.learning_rate, top)
    down = optax.linear_schedule(config.learning_rate, 0.0, total - top)
    return optax.join_schedules([up, down], [top])
  drops = {round(epoch * steps_per_epoch): 1 / config.drop_factor for epoch in config.drops}
  return optax.piecewise_constant_schedule(config.learning_rate, drops)


def _clip(largest: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm`, whose norm takes a GPU two kernels, not one or two for each array.

  The arrays stand behind one another, their features first, as a GPU's convolutions give them.
  """

  def scale(gradient):
    arrays = [jnp.moveaxis(jnp.atleast_1d(x), -1, 0).ravel() for x in jax.tree.leaves(gradient)]
    norm = jnp.linalg.norm(jnp.concatenate(arrays))
    return jax.tree.map(lambda x: jnp.where(norm > largest, x * (largest / norm), x), gradient)

  return optax.stateless(lambda gradient, _: scale(gradient))


def _kernels(params):
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
