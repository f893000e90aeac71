"""A convolution whose weight gradient is made of cache-sized matrix products on a CPU.

XLA's CPU back end finds a weight gradient by a convolution with a window as large as the map,
over patches that fill hundreds of megabytes. Here the patches of a few images at a time, as many
as stay in the cache, are multiplied with the errors of their outputs, and the products summed.
The value, the inputs' gradient, and every gradient on another back end are JAX's own.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Patches at a time, in bytes.
_CACHE = 16 << 20
# Measured: with fewer features than this for each tap of the window, copying patches costs more
# than the products save.
_FEATURES_PER_TAP = 8 / 3

Pairs = tuple[tuple[int, int], tuple[int, int]]


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
  return _plain(x, kernel, strides, padding)


def _plain(x, kernel, strides, padding):
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def _forward(x, kernel, strides, padding):
  return _plain(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, kept, d):
  x, kernel = kept
  (to_x,) = jax.linear_transpose(lambda x: _plain(x, kernel, strides, padding), x)(d)

  def usual(x, d):
    return jax.linear_transpose(lambda kernel: _plain(x, kernel, strides, padding), kernel)(d)[0]

  def products(x, d):
    return weight_gradient(x, d, kernel.shape[:2], strides, padding).astype(kernel.dtype)

  if kernel.shape[3] < _FEATURES_PER_TAP * math.prod(kernel.shape[:2]):
    return to_x, usual(x, d)
  return to_x, jax.lax.platform_dependent(x, d, cpu=products, default=usual)


convolve.defvjp(_forward, _backward)


def weight_gradient(
  x: Float[Array, "n h w i"],
  d: Float[Array, "n u v o"],
  window: tuple[int, int],
  strides: tuple[int, int],
  padding: Pairs,
) -> Float[Array, "k l i o"]:
  """The gradient of a convolution's kernel, summed over a few images at a time.

  Args:
    x: the convolution's input.
    d: the error of its output.
    window: height and width of the kernel.
    strides: as `convolve` takes them.
    padding: likewise.

  Returns:
    At least float32.
  """
  n, *size, features = d.shape
  columns = math.prod(window) * x.shape[3]
  fit = _CACHE // (math.prod(size) * columns * x.dtype.itemsize)
  few = next(m for m in range(max(1, min(n, fit)), 0, -1) if n % m == 0)
  kind = jnp.promote_types(x.dtype, jnp.float32)

  def add(total, batch):
    x, d = batch
    rows = patches(x, window, strides, padding).reshape(-1, columns)
    errors = d.reshape(-1, features)
    return total + jnp.einsum("rc,rf->cf", rows, errors, preferred_element_type=kind), None

  batches = tuple(a.reshape(n // few, few, *a.shape[1:]) for a in (x, d))
  total, _ = jax.lax.scan(add, jnp.zeros((columns, features), kind), batches)
  return total.reshape(*window, x.shape[3], features)


def patches(
  x: Float[Array, "n h w i"], window: tuple[int, int], strides: tuple[int, int], padding: Pairs
) -> Float[Array, "n u v kli"]:
  """What each output of a convolution sees: its taps row by row, the features of each together."""
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  down, across = (
    [slice(i, n - k + 1 + i, s) for i in range(k)] for n, k, s in zip(x.shape[1:3], window, strides)
  )
  return jnp.concatenate([x[:, i, j] for i in down for j in across], axis=3)


def _for_linen() -> Callable[..., Array]:
  """Called by `nn.Conv` as it calls `lax.conv_general_dilated`."""

  def conv(x, kernel, strides, padding, **rest):
    return convolve(x, kernel, tuple(strides), tuple(padding))

  return conv


# `nn.Conv` with this way to its weight gradient; NHWC, without dilation or groups.
Conv = functools.partial(nn.Conv, conv_general_dilated_cls=_for_linen)
