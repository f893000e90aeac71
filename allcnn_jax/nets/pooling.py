"""Pooling as Springenberg et al. 2015 write it, a p-norm over a window (Eq. 1), and its limit, the maximum."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from allcnn_jax.nets import architectures, convolution


def pool(x: Float[Array, "n h w c"], layer: architectures.Pool) -> Float[Array, "n h2 w2 c"]:
  """Max, average or p-norm pooling, by the layer's kind; (N, h, w, c) -> (N, h2, w2, c).

  An average is over the pixels of the image only, as in Caffe: padding does not count.
  """
  match layer.kind:
    case "max":
      return max_pool(x, layer)
    case "average":
      return nn.avg_pool(x, *_shape(layer), count_include_pad=False)
  return p_norm_pool(x, float(layer.kind), layer)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_pool(x: Float[Array, "n h w c"], layer: architectures.Pool) -> Float[Array, "n h2 w2 c"]:
  """The largest number of each window; on the way back the first of equals has all of the error.

  XLA's way back does the same, but goes through the windows one by one on a CPU, and scatters on a
  GPU. There a window keeps which of its places was chosen, and what comes back is a sum over places.
  """
  return nn.max_pool(x, *_shape(layer))


@max_pool.defjvp
def _max_pool_jvp(layer, primals, tangents):
  def by_places(x, tangent):
    largest, *others = _views(x, layer, outside=-jnp.inf)
    chosen = jnp.zeros(largest.shape, np.min_scalar_type(len(others)))
    for place, other in enumerate(others, 1):
      chosen = jnp.where(other > largest, place, chosen)
      largest = jnp.maximum(largest, other)
    moved = enumerate(_views(tangent, layer, outside=0))
    return largest, sum(jnp.where(chosen == place, t, 0) for place, t in moved)

  def plain(x, tangent):
    return jax.jvp(lambda x: nn.max_pool(x, *_shape(layer)), (x,), (tangent,))

  return jax.lax.platform_dependent(*primals, *tangents, tpu=plain, default=by_places)


def _shape(layer):
  """Window, strides and padding, down and across."""
  return (layer.window,) * 2, (layer.stride,) * 2, (layer.padding,) * 2


def _views(x, layer, outside):
  """What stands at each place of the windows: window * window arrays (N, h2, w2, c)."""
  window, strides, padding = _shape(layer)
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=outside)
  return [x[:, row, column] for row, column in convolution.taps(window, strides, x.shape[1:3])]


def p_norm_pool(
  x: Float[Array, "n h w c"], p: float, layer: architectures.Pool
) -> Float[Array, "n h2 w2 c"]:
  """s(f) = (sum over the window of |f|^p)^(1/p), Springenberg et al. 2015, Eq. 1.

  Written as m (sum (|f| / m)^p)^(1/p) with the window's maximum m, which cannot overflow; a
  window of zeros gives zero, and the gradient there is zero too. The norm is homogeneous, so
  that m may be held constant on the way back.
  """
  f = jnp.stack(_views(jnp.abs(x), layer, outside=0))  # (window * window, N, h2, w2, c)
  m = jax.lax.stop_gradient(f.max(axis=0, keepdims=True))
  alive = m != 0  # where it is no number, the norm is none
  total = jnp.sum((f / jnp.where(alive, m, 1)) ** p, axis=0, keepdims=True)
  return jnp.where(alive, m * jnp.where(alive, total, 1) ** (1 / p), 0)[0]
