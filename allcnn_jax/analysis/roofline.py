"""What the machine's arithmetic and memory allow each layer, beside what each layer takes.

A layer of a training step takes at least its floating-point operations over the rate of a large
matrix product, and at least the bytes that it must move over the bandwidth of memory, both
ceilings measured in the same process (Williams et al. 2009).
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from allcnn_jax.nets import architectures, model
from allcnn_jax.training import step as step_lib


class Ceilings(NamedTuple):
  """Rates that the machine reaches: floating-point operations and bytes, a second."""

  flops: float
  bytes: float


class Layer(NamedTuple):
  """A layer's part of a training step, forward and back.

  Attributes:
    name: the layer's.
    flops: two for each multiply-add, in three products: output, input's and weights' gradient.
    bytes: input and output thrice (written once, read back twice, for the errors likewise),
      weights thrice.
    bound: the seconds that the ceilings allow.
    seconds: what the layer takes by itself.
  """

  name: str
  flops: float
  bytes: float
  bound: float
  seconds: float


def ceilings(dtype: Any) -> Ceilings:
  """Measures the rates, best of ten, with arrays too large for any cache.

  Args:
    dtype: of the matrices.
  """
  side = 2048 if jax.default_backend() == "cpu" else 8192
  a = jax.random.normal(jax.random.key(0), (side, side), dtype)
  product = best(jax.jit(jnp.dot), a, a)
  many = jax.random.normal(jax.random.key(1), (1 << 26,))
  copy = best(jax.jit(lambda x: x + 1), many)
  return Ceilings(2 * side**3 / product, 2 * many.nbytes / copy)


def best(f: Callable[..., Any], *inputs: Any, calls: int = 10) -> float:
  """The shortest of several calls of a jitted function, in seconds, compiled before."""
  jax.block_until_ready(f(*inputs))
  found = []
  for _ in range(calls):
    start = time.perf_counter()
    jax.block_until_ready(f(*inputs))
    found.append(time.perf_counter() - start)
  return min(found)


def layers(recipe: step_lib.Recipe, channels: int, limits: Ceilings) -> list[Layer]:
  """Times every layer with weights by itself, on random numbers.

  Args:
    recipe: of the run.
    channels: of the images.
    limits: as `ceilings` measured them.
  """
  size = (*recipe.size, channels)
  found: list[Layer] = []
  for row in architectures.trace(recipe.net.table, size):
    if row.multiply_adds:
      flops, moved = cost(row, size, recipe.batch_size, jnp.dtype(recipe.net.dtype).itemsize)
      bound = max(flops / limits.flops, moved / limits.bytes)
      shape = (recipe.batch_size, *size)
      seconds = best(*_alone(recipe.net, row.layer, shape, onward=bool(found)), calls=5)
      found.append(Layer(row.name, flops, moved, bound, seconds))
    size = row.size
  return found


def cost(
  row: architectures.Row, size: tuple[int, int, int], batch_size: int, itemsize: int
) -> tuple[float, float]:
  """(floating-point operations, bytes) of a layer in one training step.

  Args:
    row: of `architectures.trace`.
    size: of the layer's input.
    batch_size: images a step.
    itemsize: bytes of a number.
  """
  numbers = batch_size * (math.prod(size) + math.prod(row.size)) + row.parameters
  return 6.0 * batch_size * row.multiply_adds, 3.0 * itemsize * numbers


def _alone(
  net: model.ConvNet, layer: architectures.Layer, shape: tuple[int, ...], onward: bool
) -> tuple[Any, ...]:
  """(a step of the layer, its inputs); `onward` if it sends an error to a layer before it."""
  alone = net.clone(table=(layer,))
  x = jax.random.normal(jax.random.key(0), shape, net.dtype)
  variables = alone.init(jax.random.key(1), x[:1])

  @jax.jit
  def there_and_back(variables, x):
    if onward:
      y, pull = jax.vjp(alone.apply, variables, x)
    else:
      y, pull = jax.vjp(lambda variables: alone.apply(variables, x), variables)
    return pull(y)

  return there_and_back, variables, x
