"""The convolution of training: on a CPU by minimal filtering (`winograd`), where that is faster.

All else, and everything on another back end, is JAX's own.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from allcnn_jax.nets import winograd
from allcnn_jax.nets.winograd import Pairs


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

  plain = functools.partial(_plain, strides=strides, padding=padding)
  if not winograd.suits(x, kernel, strides):
    return plain(x, kernel)
  return jax.lax.platform_dependent(x, kernel, cpu=filtered, default=plain)


def _plain(x, kernel, strides, padding):
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def _forward(x, kernel, strides, padding):
  return convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, kept, d):
  def plain(x, kernel, d):
    _, pull = jax.vjp(lambda x, kernel: _plain(x, kernel, strides, padding), x, kernel)
    return pull(d)

  def filtered(x, kernel, d):
    back = winograd.input_gradient(d, kernel, strides[0], padding, x.shape[1:3])
    return back, winograd.weight_gradient(x, d, len(kernel), strides[0], padding)

  if not winograd.suits(*kept, strides):
    return plain(*kept, d)
  return jax.lax.platform_dependent(*kept, d, cpu=filtered, default=plain)


convolve.defvjp(_forward, _backward)


def _for_linen() -> Callable[..., Array]:
  """Called by `nn.Conv` as it calls `lax.conv_general_dilated`."""

  def conv(x, kernel, strides, padding, **rest):
    return convolve(x, kernel, tuple(strides), tuple(padding))

  return conv


# `nn.Conv` by `convolve`; NHWC, without dilation or groups.
Conv = functools.partial(nn.Conv, conv_general_dilated_cls=_for_linen)
