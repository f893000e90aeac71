"""Which pixels a unit answers to: gradients with respect to the images under the three ReLUs.

Springenberg et al. 2015, Section 3.4. Everything here is an array in the network's input space,
raw and signed; `sheet` and `drawing` make pictures of them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from allcnn_jax.errors import UsageError, unknown
from allcnn_jax.nets import architectures, relu, rewrite
from allcnn_jax.nets.model import ConvNet

LOGITS = "logits"
Images = Float[Array, "n h w c"] | Float[np.ndarray, "n h w c"]
Channel = int | Int[Array, " n"] | Int[np.ndarray, " n"]
Position = tuple[int, int] | Int[Array, "n 2"] | Int[np.ndarray, "n 2"]


class Units(NamedTuple):
  """One unit for each of N images.

  Attributes:
    channel: (N,).
    position: (N, 2), row and column in the layer's map.
    value: (N,), the activation, after the unit's own ReLU.
  """

  channel: Int[Array, " n"]
  position: Int[Array, "n 2"]
  value: Float[Array, " n"]


def layer_names(net: ConvNet) -> tuple[str, ...]:
  """The layers whose units can be asked about, in the order of the table; last the logits."""
  silent = (architectures.Dropout, architectures.GlobalAverage)
  names = (n for n, x in architectures.named(net.table) if not isinstance(x, silent))
  return (*names, LOGITS)


def locate(net: ConvNet, layer: str, image: tuple[int, ...]) -> architectures.Row:
  """Map size and receptive field of a layer on images of (h, w, c).

  Raises:
    UsageError: no such layer.
  """
  names = layer_names(net)
  if layer not in names:
    raise unknown("layer", layer, names)
  rows = architectures.trace(net.table, tuple(image))
  return rows[-1] if layer == LOGITS else next(r for r in rows if r.name == layer)


def check_channels(channels: Channel | Sequence[int], layer: str, count: int) -> None:
  """Checks one channel or (M,), perhaps none, of a layer that has `count`.

  Raises:
    UsageError: it has no such channel.
  """
  channels = np.atleast_1d(channels)
  for wrong in channels[(channels < 0) | (channels >= count)]:
    raise UsageError(f"Channel {wrong} of {layer}: it has {count}, 0 to {count - 1}.")


def up_to(net: ConvNet, layer: str) -> ConvNet:
  """The net that ends at `layer`: its output is that layer's, (N, h, w, c) or (N, features).

  Names are given in table order, so that the same variables fit.
  """
  if layer == LOGITS:
    return net
  names = [name for name, _ in architectures.named(net.table)]
  return net.clone(table=net.table[: names.index(layer) + 1])


def attribute(
  net: ConvNet,
  variables: Any,
  images: Images,
  *,
  layer: str,
  channel: Channel | None = None,
  position: Position | None = None,
  rule: str = "guided",
) -> Float[Array, "n h w c"]:
  """The gradient of one unit's activation with respect to each image, under a ReLU rule.

  The unit's value is after its own ReLU, and that ReLU follows the rule too. Max-pooling sends
  back through its switches, as its ordinary gradient does. Nothing is rescaled.

  Args:
    net: from `model.create`; `variables` are its own.
    images: preprocessed, (N, H, W, C).
    layer: a name of `layer_names`; "logits" asks about class scores.
    channel: of the unit, one for all images or one each; None: the channel in which the layer's
      largest activation in each image lies.
    position: row and column of the unit, one for all images or one each; None: where the
      channel is largest in each image.
    rule: "backprop", "deconvnet" or "guided".

  Raises:
    UsageError: an unknown layer or rule, a channel or position outside the layer.
  """
  back = net.clone(act=relu.under(net.act, rule))
  channel, position = _checked(net, images, layer, channel, position)
  return _attribute(up_to(back, layer), variables, images, channel, position)


def strongest(
  net: ConvNet,
  variables: Any,
  images: Images,
  *,
  layer: str,
  channel: Channel | None = None,
  position: Position | None = None,
) -> Units:
  """The unit that `attribute` would ask about, with the same arguments, and its activation."""
  channel, position = _checked(net, images, layer, channel, position)
  return _strongest(up_to(net, layer), variables, images, channel, position)


def input_gradient(
  fn: Callable, images: Float[Array, "n ..."], rule: str = "guided", *, strict: bool = False
) -> Float[Array, "n ..."]:
  """The same for any JAX function: the gradient of fn(images) with its ReLUs under a rule.

  Args:
    fn: images (N, ...) to one number for each, (N,), such as a class score.
    images: (N, ...).
    rule: "backprop", "deconvnet" or "guided".
    strict: as in `rewrite.with_relu_rule`, which says which ReLUs are found.

  Raises:
    UsageError: an unknown rule, or an output that is not (N,).
  """
  ruled = rewrite.with_relu_rule(fn, rule, strict=strict)

  def total(images):
    values = ruled(images)
    if jnp.shape(values) != images.shape[:1]:
      raise UsageError(
        f"The function gives {jnp.shape(values)}, not one number for each of {len(images)} images:"
        " choose one output of the network, as in lambda x: net(x)[:, 7]."
      )
    return values.sum()

  return jax.grad(total)(images)


def _checked(net, images, layer, channel, position):
  """Channel (N,) and flat position (N,), or None where the strongest is to be taken."""
  height, width, channels = locate(net, layer, images.shape[1:]).size
  if channel is not None:
    check_channels(channel, layer, channels)
    channel = np.broadcast_to(channel, len(images)).astype(np.int32)
  if position is not None:
    position = np.asarray(position)
    if (position < 0).any() or (position >= (height, width)).any():
      raise UsageError(f"Position {position.tolist()} of {layer}: its map is {height}x{width}.")
    row, column = np.moveaxis(np.broadcast_to(position, (len(images), 2)), -1, 0)
    position = (row * width + column).astype(np.int32)
  return channel, position


def _units(outputs, channel, position):
  """Channel, flat position and value, (N,) each, of the unit asked about in each image."""
  n, channels = len(outputs), outputs.shape[-1]
  maps = outputs.reshape(n, -1, channels)  # (N, positions, channels)
  if channel is None and position is None:
    channel = maps.max(axis=1).argmax(axis=1)
  elif channel is None:
    channel = maps[jnp.arange(n), position].argmax(axis=1)
  if position is None:
    position = maps[jnp.arange(n), :, channel].argmax(axis=1)
  return channel, position, maps[jnp.arange(n), position, channel]


@functools.partial(jax.jit, static_argnames="net")
def _attribute(net, variables, images, channel, position):
  def total(images):
    return _units(net.apply(variables, images), channel, position)[2].sum()

  return jax.grad(total)(images)


@functools.partial(jax.jit, static_argnames="net")
def _strongest(net, variables, images, channel, position):
  outputs = net.apply(variables, images)
  width = outputs.shape[2] if outputs.ndim == 4 else 1
  channel, position, value = _units(outputs, channel, position)
  position = jnp.stack([position // width, position % width], axis=1)
  return Units(channel.astype(jnp.int32), position.astype(jnp.int32), value)
