"""What the program of many steps does, and what it leaves alone, before any device compiles it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax import config as config_lib
from allcnn_jax.training import parts, sharding
from allcnn_jax.training import step as step_lib
from configs import cifar10

BATCH = 8
# Programs are looked at as they are for a GPU and a TPU; a CPU's weight gradients are its own.
PLATFORMS = ("cuda", "tpu")


def arguments(config):
  """The arguments of `train_steps` for two steps."""
  recipe = sharding.replicate(parts.recipe(config, 10, 96))
  images = np.zeros((96, 32, 32, 3), np.float32)
  data = jax.device_put(step_lib.Stored.of(images, np.zeros(96, np.int32)))
  state = jax.jit(step_lib.init, static_argnums=1)(recipe, 3)
  return recipe, state, step_lib.Totals.zero(), data, jnp.arange(96), 2


@functools.cache
def program(platform):
  """All-CNN-C in bfloat16, augmented, as it is handed to a platform's compiler."""
  config = config_lib.complete(cifar10.get_config("all_cnn_c,augment"))
  config.model.width, config.train.batch_size, config.train.dtype = 0.1, BATCH, "bfloat16"
  traced = step_lib.train_steps.trace(*arguments(config))
  return traced.lower(lowering_platforms=(platform,)).as_text().splitlines()


def _shapes(line):
  """((dimensions), type) of each tensor named in a line."""
  for text in re.findall(r"tensor<([^>]*)>", line):
    *sides, kind = text.split("x")
    yield tuple(map(int, sides)), kind


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_convolution_is_in_the_compute_type(platform):
  lines = [x for x in program(platform) if "stablehlo.convolution" in x]
  step = 3 * 9 - 1  # forward, weights' gradients, and inputs' but the images'
  step -= platform == "cuda"  # whose last layer sends back a sum
  assert len(lines) in (step, 2 * step)  # of the two steps, which JAX writes once or one by one
  assert {kind for x in lines for _, kind in _shapes(x)} == {"bf16"}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_no_activation_is_transposed(platform):
  for line in program(platform):
    if "stablehlo.transpose" in line:
      assert all(BATCH not in sides for sides, _ in _shapes(line)), line  # weights are


@pytest.mark.parametrize("platform", PLATFORMS)
def test_nothing_calls_back_to_the_host(platform):
  text = "\n".join(program(platform))
  assert not re.search(r"callback|infeed|outfeed|stablehlo\.(send|recv)", text)
  assert set(re.findall(r"custom_call @(\w+)", text)) <= {"Sharding"}


def test_the_state_is_donated_and_nothing_else(tiny):
  """Or weights and velocities would stand on the device twice."""
  *given, data, order, count = arguments(tiny)
  images = data.take(slice(BATCH))
  for step, rest in (
    (step_lib.train_step, (data, order)),
    (step_lib.train_steps, (data, order, count)),
    (step_lib.train_batch, (images,)),
  ):
    (recipe, state, totals, *others), _ = step.lower(*given, *rest).args_info
    assert all(x.donated for x in jax.tree.leaves((state, totals)))
    assert not any(x.donated for x in jax.tree.leaves((recipe, others)))


def test_an_epoch_moves_nothing_between_host_and_device(tiny):
  recipe, state, totals, *rest = arguments(tiny)
  state, totals = step_lib.train_steps(recipe, state, totals, *rest)  # compiles
  with jax.transfer_guard("disallow"):
    state, totals = step_lib.train_steps(recipe, state, totals, *rest)
  assert int(state.step) == 4
  assert int(totals.count) == 4 * BATCH
