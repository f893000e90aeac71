"""JAX's convolution; on a CPU there are other ways to the same sums, where they are faster.

Layers with many features go by minimal filtering (`winograd`). Where a kernel sees few numbers,
such as an image's channels or a single pixel, its gradient is a product of matrices. All else, and
everything on another back end, is JAX's own.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from allcnn_jax.nets import winograd
from allcnn_jax.nets.winograd import Pairs

# Patches at a time, in bytes, with the errors that they are multiplied with. Measured: twice as
# many are a third slower.
_CACHE = 8 << 20
# Measured: of larger patches, or for fewer features, copying costs what the product saves.
_LARGEST_PATCH, _LEAST_FEATURES = 32, 32


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
  x: Float[Array, "n h w i"],
  kernel: Float[Array, "k l i o"],
  strides: tuple[int, int],
  padding: Pairs,
) -> Float[Array, "n u v o"]:
  """A convolution as `lax.conv_general_dilated` has it.

  Args:
    x: images or maps.
    kernel: the weights.
    strides: down and across.
    padding: zeros (before, after), down and across.
  """

  def filtered(x, kernel):
    return winograd.forward(x, kernel, strides[0], padding)

  plain = functools.partial(direct, strides=strides, padding=padding)
  if not winograd.suits(x, kernel, strides):
    return plain(x, kernel)
  return jax.lax.platform_dependent(x, kernel, cpu=filtered, default=plain)


def direct(
  x: Float[Array, "n h w i"],
  kernel: Float[Array, "k l i o"],
  strides: tuple[int, int],
  padding: Pairs,
) -> Float[Array, "n u v o"]:
  """The same by JAX alone."""
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def _forward(x, kernel, strides, padding):
  return convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, kept, d):
  x, kernel = kept

  def plain(x, kernel, d):
    _, pull = jax.vjp(lambda x, kernel: direct(x, kernel, strides, padding), x, kernel)
    return pull(d)

  def filtered(x, kernel, d):
    back = winograd.input_gradient(d, kernel, strides[0], padding, x.shape[1:3])
    return back, winograd.weight_gradient(x, d, len(kernel), strides[0], padding)

  def multiplied(x, kernel, d):
    _, pull = jax.vjp(lambda x: direct(x, kernel, strides, padding), x)
    return *pull(d), weight_gradient(x, d, kernel.shape[:2], strides, padding)

  if winograd.suits(x, kernel, strides):
    on_cpu = filtered
  elif _sees_little(x, kernel):
    on_cpu = multiplied
  else:
    return plain(x, kernel, d)
  return jax.lax.platform_dependent(x, kernel, d, cpu=on_cpu, default=plain)


convolve.defvjp(_forward, _backward)


def _sees_little(x: Array, kernel: Array) -> bool:
  """Whether a kernel sees a single pixel, or makes many features of few numbers; full precision."""
  *window, channels, features = kernel.shape
  few = math.prod(window) * channels <= _LARGEST_PATCH and features >= _LEAST_FEATURES
  return (few or window == [1, 1]) and x.dtype in (jnp.float32, jnp.float64)


def weight_gradient(
  x: Float[Array, "n h w i"],
  d: Float[Array, "n u v o"],
  window: Sequence[int],
  strides: tuple[int, int],
  padding: Pairs,
) -> Float[Array, "k l i o"]:
  """The gradient of a kernel of `window`, for the error of its output: patches times errors.

  As many images at a time as stay in the cache.
  """
  size, features = d.shape[1:3], d.shape[3]
  numbers = math.prod(window) * x.shape[3]
  rows, columns = (
    [slice(i, i + s * (n - 1) + 1, s) for i in range(r)] for r, s, n in zip(window, strides, size)
  )

  def add(total, some):
    x, d = some
    x = winograd.pad(x, padding)
    patches = jnp.concatenate([x[:, i, j] for i in rows for j in columns], axis=-1)
    return total + patches.reshape(-1, numbers).T @ d.reshape(-1, features), None

  each = (numbers + features) * math.prod(size) * x.dtype.itemsize
  batches = winograd.batches((x, d), max(1, _CACHE // each))
  total, _ = jax.lax.scan(add, jnp.zeros((numbers, features), x.dtype), batches)
  return total.reshape(*window, x.shape[3], features)


def for_linen() -> Callable[..., Array]:
  """`convolve`, called by `nn.Conv` as it calls `lax.conv_general_dilated`."""

  def conv(x, kernel, strides, padding, **rest):
    return convolve(x, kernel, tuple(strides), tuple(padding))

  return conv
