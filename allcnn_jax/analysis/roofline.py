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
from allcnn_jax.training import graphs
from allcnn_jax.training import step as step_lib

# A layer's steps in one call of an accelerator, which takes tens of microseconds by itself.
_REPEATS = 50


class Ceilings(NamedTuple):
  """Rates that the machine reaches: floating-point operations and bytes, a second."""

  flops: float
  bytes: float


class Layer(NamedTuple):
  """A layer's part of a training step, forward and back.

  Attributes:
    name: the layer's.
    flops: two for each multiply-add, in three products: output, input's and weights' gradient; in
      two of them where the layer sends no error to one before it.
    bytes: input and output thrice (written once, read back twice, for the errors likewise),
      weights thrice; the input twice where no error goes before it.
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
  on_cpu = jax.default_backend() == "cpu"
  side, count = (2048, 1 << 26) if on_cpu else (8192, 1 << 28)
  repeats = 1 if on_cpu else _REPEATS
  # So scaled, the products of products stay as large as they are.
  a = (jax.random.normal(jax.random.key(0), (side, side)) / side**0.5).astype(dtype)
  # In pairs: one product alone cannot be written over what it is made of, and is copied there.
  product = best(_repeated(jnp.dot, repeats, unroll=2), a, a) / repeats
  many = jnp.ones((count,))
  copy = best(_repeated(lambda x: x + 1, repeats), many) / repeats
  return Ceilings(2 * side**3 / product, 2 * many.nbytes / copy)


def _repeated(f: Callable[..., Any], repeats: int, unroll: int = 1) -> Callable[..., Any]:
  """`f` so many times in one call, `unroll` a round, each time of what came out the last time."""
  if repeats == 1:
    return jax.jit(f)

  def again(x, *rest):
    return jax.lax.fori_loop(0, repeats, lambda _, x: f(x, *rest), x, unroll=unroll)

  return jax.jit(again)


def best(f: Callable[..., Any], *inputs: Any, calls: int = 10) -> float:
  """The shortest of several calls of a jitted function, in seconds, compiled before.

  A call by itself takes an accelerator tens of microseconds, which are in the result: what takes
  no longer is to be repeated within the call.
  """
  jax.block_until_ready(f(*inputs))
  found = []
  for _ in range(calls):
    start = time.perf_counter()
    jax.block_until_ready(f(*inputs))
    found.append(time.perf_counter() - start)
  return min(found)


def layers(recipe: step_lib.Recipe, channels: int, limits: Ceilings) -> list[Layer]:
  """Times every layer with weights by itself, on random numbers, for one device's share of a batch.

  On a GPU its steps are one graph, as training's are: a small layer waits for no launch of a kernel.

  Args:
    recipe: of the run.
    channels: of the images.
    limits: as `ceilings` measured them.
  """
  size = (*recipe.size, channels)
  batch_size = recipe.batch_size // recipe.batch_sharding.mesh.size
  repeats = 1 if jax.default_backend() == "cpu" else _REPEATS
  found: list[Layer] = []
  for row in architectures.trace(recipe.net.table, size):
    if row.multiply_adds:
      onward = bool(found) and recipe.rule.direct != "output"
      itemsize = jnp.dtype(recipe.net.dtype).itemsize
      flops, moved = cost(row, size, batch_size, itemsize, onward)
      bound = max(flops / limits.flops, moved / limits.bytes)
      alone, *inputs = _alone(recipe.net, row.layer, (batch_size, *size), onward, repeats)
      calls = graphs.compile(alone.lower(*inputs))
      jax.block_until_ready(calls.first(*inputs))
      seconds = best(calls.later, *inputs, calls=5) / repeats
      found.append(Layer(row.name, flops, moved, bound, seconds))
    size = row.size
  return found


def cost(
  row: architectures.Row,
  size: tuple[int, int, int],
  batch_size: int,
  itemsize: int,
  onward: bool = True,
) -> tuple[float, float]:
  """(floating-point operations, bytes) of a layer in one training step.

  Args:
    row: of `architectures.trace`.
    size: of the layer's input.
    batch_size: images a step.
    itemsize: bytes of a number.
    onward: whether the layer sends an error to one before it.
  """
  inputs, outputs = (batch_size * math.prod(s) for s in (size, row.size))
  numbers = (2 + onward) * inputs + 3 * outputs + 3 * row.parameters
  return 2.0 * (2 + onward) * batch_size * row.multiply_adds, float(itemsize * numbers)


def _alone(
  net: model.ConvNet,
  layer: architectures.Layer,
  shape: tuple[int, ...],
  onward: bool,
  repeats: int,
) -> tuple[Any, ...]:
  """(so many steps of the layer in one call, its inputs); `onward` as in `cost`."""
  alone = net.clone(table=(layer,))
  x = jax.random.normal(jax.random.key(0), shape, net.dtype)
  variables = jax.jit(alone.init)(jax.random.key(1), x[:1])

  def there_and_back(variables, x):
    if onward:
      y, pull = jax.vjp(alone.apply, variables, x)
    else:
      y, pull = jax.vjp(lambda variables: alone.apply(variables, x), variables)
    return pull(y)

  def again(variables, x):
    # Zero times a step's gradients in the weights: the next cannot begin before it has ended. Of the
    # input's gradient one number, or the sum would take as long as the layer.
    gradients, *back = there_and_back(variables, x)
    end = sum(0 * g.ravel()[0].astype(jnp.float32) for g in back)
    return jax.tree.map(lambda w, g: w + 0 * g + end, variables, gradients)

  @jax.jit
  def steps(variables, x):
    if repeats > 1:  # two a round: one alone would copy the weights to where it began
      variables = jax.lax.fori_loop(1, repeats, lambda _, v: again(v, x), variables, unroll=2)
    return there_and_back(variables, x)

  return steps, variables, x
