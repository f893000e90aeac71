"""Pooling as Springenberg et al. 2015 write it: a p-norm over a window (Eq. 1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from allcnn_jax.nets import architectures


def pool(x: Float[Array, "n h w c"], layer: architectures.Pool) -> Float[Array, "n h2 w2 c"]:
  """Max, average or p-norm pooling, by the layer's kind; (N, h, w, c) -> (N, h2, w2, c).

  An average is over the pixels of the image only, as in Caffe: padding does not count.
  """
  window, strides, padding = (layer.window,) * 2, (layer.stride,) * 2, (layer.padding,) * 2
  match layer.kind:
    case "max":
      return nn.max_pool(x, window, strides, padding)
    case "average":
      return nn.avg_pool(x, window, strides, padding, count_include_pad=False)
  return p_norm_pool(x, float(layer.kind), layer)


def p_norm_pool(
  x: Float[Array, "n h w c"], p: float, layer: architectures.Pool
) -> Float[Array, "n h2 w2 c"]:
  """s(f) = (sum over the window of |f|^p)^(1/p), Springenberg et al. 2015, Eq. 1.

  Written as m (sum (|f| / m)^p)^(1/p) with the window's maximum m, which cannot overflow; a
  window of zeros gives zero, and the gradient there is zero too. The norm is homogeneous, so
  that m may be held constant on the way back.
  """
  before, after = layer.padding
  x = jnp.pad(jnp.abs(x), ((0, 0), (before, after), (before, after), (0, 0)))
  h, w = ((n - layer.window) // layer.stride + 1 for n in x.shape[1:3])
  views = [
    x[
      :,
      dy : dy + layer.stride * (h - 1) + 1 : layer.stride,
      dx : dx + layer.stride * (w - 1) + 1 : layer.stride,
    ]
    for dy in range(layer.window)
    for dx in range(layer.window)
  ]
  f = jnp.stack(views)  # (window * window, N, h2, w2, c)
  m = jax.lax.stop_gradient(f.max(axis=0, keepdims=True))
  alive = m > 0
  total = jnp.sum((f / jnp.where(alive, m, 1)) ** p, axis=0, keepdims=True)
  return jnp.where(alive, m * jnp.where(alive, total, 1) ** (1 / p), 0)[0]
