"""One Flax module that runs any table of `architectures.py`.

The way back is a choice, so `conv`, `dense` and `act` are fields: `net.clone(act=...)` gives a
trained network another way back through its ReLUs, `net.clone(conv=..., dense=...)` through its
weights, and its variables fit unchanged because every layer has a name.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from allcnn_jax.errors import unknown
from allcnn_jax.nets import architectures
from allcnn_jax.nets.dropout import Dropout
from allcnn_jax.nets.pooling import pool as pool_layer
from allcnn_jax.nets.relu import rectify

# Which one the All-CNN paper used is not stated. The first three scale the variance of a weight
# by its fan-in: 1, 1 (uniform, Caffe's "xavier") and 2. Biases start at zero.
INITIALIZERS: dict[str, Callable] = {
  "lecun_normal": nn.initializers.lecun_normal(),
  "lecun_uniform": nn.initializers.lecun_uniform(),
  "he_normal": nn.initializers.he_normal(),
  "gaussian_0.05": nn.initializers.normal(0.05),
}


class ConvNet(nn.Module):
  """The network of a resolved table.

  Attributes:
    table: the layers, from `architectures.resolve`.
    conv: the convolution, a Linen module with the interface of `nn.Conv`.
    dense: the fully connected layer, a Linen module with the interface of `nn.Dense`.
    act: the activation, a function of one array.
    kernel_init: initializer of every kernel.
    dtype: type of the computation; parameters and logits are at least float32.
  """

  table: architectures.Table
  conv: Callable[..., Any] = nn.Conv
  dense: Callable[..., Any] = nn.Dense
  act: Callable[[jax.Array], jax.Array] = rectify
  kernel_init: Callable[..., Any] = INITIALIZERS["he_normal"]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    images: Float[Array | np.ndarray, "n h w c"],
    train: bool = False,
    return_activations: bool = False,
  ) -> Any:
    """Logits (N, classes) of preprocessed images (N, H, W, C).

    Args:
      images: NHWC.
      train: draw dropout masks from the "dropout" stream.
      return_activations: also return a dict from the name of each convolution, pool and dense
        layer to its output after the activation, (N, h, w, c) or (N, features).

    Returns:
      logits, or (logits, activations).
    """
    wide = jnp.promote_types(self.dtype, jnp.float32)
    make = {"dtype": self.dtype, "param_dtype": wide, "kernel_init": self.kernel_init}
    activations = {}
    x = images.astype(self.dtype)
    for name, layer in architectures.named(self.table):
      match layer:
        case architectures.Conv(k, features, stride, padding, relu):
          x = self.conv(
            features, (k, k), strides=stride, padding=(padding,) * 2, name=name, **make
          )(x)
          x = activations[name] = self.act(x) if relu else x
        case architectures.Dense(features, relu):
          x = self.dense(features, name=name, **make)(x.reshape(len(x), -1))
          x = activations[name] = self.act(x) if relu else x
        case architectures.Pool("depthwise"):
          x = activations[name] = _depthwise(layer, x.shape[-1], self.dtype, name)(x)
        case architectures.Pool():
          x = activations[name] = pool_layer(x, layer)
        case architectures.Dropout(rate=rate):
          x = Dropout(rate, deterministic=not train, name=name)(x)
        case architectures.GlobalAverage():
          if x.dtype != wide:
            # On a CPU, jaxlib 0.11 and 0.12 make one loop of the mean and the 1x1 convolutions
            # before it, whose result in bfloat16 is memory that was never written.
            apart = jax.lax.optimization_barrier
            x = jax.lax.platform_dependent(x, cpu=apart, default=lambda x: x)
          x = x.astype(wide).mean(axis=(1, 2))
    logits = x.astype(wide)
    return (logits, activations) if return_activations else logits


def _depthwise(layer: architectures.Pool, features: int, dtype: Any, name: str) -> nn.Module:
  """A convolution whose weights cross no channels; it starts as average pooling (our choice)."""
  return nn.Conv(
    features,
    (layer.window,) * 2,
    strides=layer.stride,
    padding=(layer.padding,) * 2,
    feature_group_count=features,
    use_bias=False,
    kernel_init=nn.initializers.constant(1 / layer.window**2),
    dtype=dtype,
    param_dtype=jnp.promote_types(dtype, jnp.float32),
    name=name,
  )


def create(
  name: str,
  num_classes: int,
  *,
  init: str = "he_normal",
  dtype: Any = jnp.float32,
  **choices: Any,
) -> ConvNet:
  """A network by its name.

  Args:
    name: one of `architectures.NAMES`.
    num_classes: outputs of the last layer.
    init: one of `INITIALIZERS`.
    dtype: type of the computation.
    **choices: `width`, `head`, `pool`, `dropout`, `dropout_after`, `stride_padding` and
      `final_relu`, as `architectures.resolve` takes them.

  Raises:
    UsageError: an unknown name, or a choice that the table cannot take.
  """
  architecture = architectures.resolve(name, num_classes, **choices)
  if init not in INITIALIZERS:
    raise unknown("initializer", init, INITIALIZERS)
  act = functools.partial(rectify, leak=architecture.leak) if architecture.leak else rectify
  return ConvNet(architecture.table, act=act, kernel_init=INITIALIZERS[init], dtype=dtype)
