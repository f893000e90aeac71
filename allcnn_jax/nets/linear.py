"""The layers of training: Flax's own, but that the gradients of biases are summed in full precision.

A bias's gradient is a sum over all places of all images of a batch, which nearly cancel. Summed in
bfloat16, as XLA would, they lose what is small beside the sum so far.
"""

import functools
from typing import Any, no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from allcnn_jax.nets import convolution

# Numbers of a row whose sums a GPU reads four at a time, and of others one: rows are taken in pairs.
_WORDS = 64


@jax.custom_vjp
def add_bias(y: Float[Array, "*places c"], bias: Float[Array, " c"]) -> Float[Array, "*places c"]:
  """`y + bias` in the type of `y`; the bias's gradient is summed in its own type."""
  return y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)


def _add_bias_forward(y, bias):
  return add_bias(y, bias), bias


def _add_bias_backward(bias, d):
  whole, pairs = (functools.partial(f, kind=bias.dtype) for f in (_sum, sum_of_pairs))
  if len(bias) % _WORDS == 0 or d.size // len(bias) % 2:
    return d, whole(d)
  return d, jax.lax.platform_dependent(d, cuda=pairs, default=whole)


def _sum(d, kind):
  return d.sum(range(d.ndim - 1), dtype=kind)


def sum_of_pairs(d: Float[Array, "*places c"], kind: Any) -> Float[Array, " c"]:
  """The sum over all places, an even number of them, in a type: first of every other one."""
  pairs = d.reshape(-1, 2, d.shape[-1]).sum(0, dtype=kind)
  return jax.lax.optimization_barrier(pairs).sum(0)  # or XLA would make one sum of the two


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


# Flax gives its layers fields of types that cannot be checked at run time.
@no_type_check
class Conv(nn.Conv):
  """`nn.Conv` with `add_bias`; NHWC, without dilation or groups.

  Attributes:
    shared: whether several devices have the batch among them.
  """

  shared: bool = False

  @nn.compact
  def __call__(self, inputs: Float[Array, "n h w i"]) -> Float[Array, "n u v o"]:
    """As `nn.Conv`."""
    x, kernel, bias = _weights(self, inputs, (*self.kernel_size, inputs.shape[-1], self.features))
    strides, fast = (self.strides,) * 2, self.conv_general_dilated_cls
    conv = fast() if fast else convolution.direct

    def apart(x, kernel, bias):
      return add_bias(conv(x, kernel, strides, self.padding), bias)

    def together(x, kernel, bias):
      return convolution.product(x, kernel, bias, strides, self.padding, self.shared)

    if fast and convolution.makes_many(kernel, "cuda"):
      return jax.lax.platform_dependent(x, kernel, bias, cuda=together, default=apart)
    return apart(x, kernel, bias)


@no_type_check
class Dense(nn.Dense):
  """`nn.Dense` with `add_bias`."""

  @nn.compact
  def __call__(self, inputs: Float[Array, "n i"]) -> Float[Array, "n o"]:
    """As `nn.Dense`."""
    x, kernel, bias = _weights(self, inputs, (inputs.shape[-1], self.features))
    return add_bias(x @ kernel, bias)


def _weights(layer, inputs, shape):
  """The input and the layer's kernel in the type of the computation, and its bias."""
  kernel = layer.param("kernel", layer.kernel_init, shape, layer.param_dtype)
  bias = layer.param("bias", layer.bias_init, (layer.features,), layer.param_dtype)
  return *layer.promote_dtype(inputs, kernel, dtype=layer.dtype), bias


# The convolution in the ways that are faster: on one CPU or GPU, and on several GPUs.
Fast = functools.partial(Conv, conv_general_dilated_cls=convolution.for_linen)
FastShared = functools.partial(Fast, shared=True)
