"""The image patches that activate each channel of a layer most, found in one pass over a set."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from allcnn_jax.analysis import saliency
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures
from allcnn_jax.nets.model import ConvNet


class Top(NamedTuple):
  """The k strongest images of each of C channels, strongest first, each at its best position.

  Attributes:
    value: (C, k), the activations; -inf where the set has fewer than k images.
    image: (C, k), the image's number in the order of the pass.
    position: (C, k, 2), row and column in the layer's map.
  """

  value: Float[Array, "c k"]
  image: Int[Array, "c k"]
  position: Int[Array, "c k 2"]


def top(
  net: ConvNet,
  variables: Any,
  batches: Iterable[Float[np.ndarray, "n h w c"]],
  *,
  layer: str,
  k: int = 10,
) -> Top:
  """Springenberg et al. 2015, Fig. 3: the patches that activate each filter of a layer most.

  One forward pass up to the layer, whatever the number of channels. Of each image only its best
  position counts, so that the k patches are of k images. What is kept on the device is the k
  best so far, whatever the number of images.

  Args:
    net, variables: the network.
    batches: preprocessed images, all batches of one size but perhaps the last.
    layer: one of `saliency.layer_names(net)`.
    k: patches for each channel.

  Raises:
    UsageError: an unknown layer, or no image at all.
  """
  best, start, size = None, 0, 0
  for images in batches:
    if best is None:
      size = len(images)
      _, width, channels = saliency.locate(net, layer, images.shape[1:]).size
      none = np.zeros((channels, k), np.int32)
      best = np.full((channels, k), -np.inf, np.float32), none, none
      net = saliency.up_to(net, layer)
    count = len(images)
    if count < size:
      images = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), images.dtype)])
    best = _merge(net, variables, best, images, start, count)
    start += count
  if best is None:
    raise UsageError("The set has no images: there is nothing to look for.")
  value, image, flat = best
  return Top(value, image, jnp.stack([flat // width, flat % width], axis=-1))


@functools.partial(jax.jit, static_argnames="net")
def _merge(net, variables, best, images, start, count):
  """The best of `best` and the first `count` of a batch whose first image has number `start`.

  They are value, image and flat position, (C, k) each.
  """
  outputs = net.apply(variables, images)
  n, (channels, k) = len(images), best[0].shape
  maps = outputs.reshape(n, -1, channels)
  number = jnp.arange(n, dtype=jnp.int32)[:, None]
  value = jnp.where(number < count, maps.max(axis=1), -jnp.inf)  # (N, C)
  batch = value, jnp.broadcast_to(start + number, value.shape), maps.argmax(axis=1)
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b.T.astype(a.dtype)], axis=1), best, batch)
  _, index = jax.lax.top_k(both[0], k)
  return jax.tree.map(lambda x: jnp.take_along_axis(x, index, axis=1), both)


def field(
  row: architectures.Row, position: Int[np.ndarray, "n 2"], image: tuple[int, ...]
) -> tuple[Int[np.ndarray, "n 2"], tuple[int, int]]:
  """The patch of an (h, w, c) image that each unit of a layer sees.

  Returns:
    its first row and column, negative in a padding, and its height and width: the receptive
    field's, or the image's along an axis on which the field is not smaller.
  """
  start = row.offset + np.asarray(position) * row.stride
  inside = np.array([row.field < side for side in image[:2]])
  sides = tuple(int(min(row.field, side)) for side in image[:2])
  return np.where(inside, start, 0), sides


def crop(
  pictures: Shaped[np.ndarray, "n h w c"],
  row: architectures.Row,
  position: Int[np.ndarray, "n 2"],
  outside: int = 0,
) -> Shaped[np.ndarray, "n h2 w2 c"]:
  """The patch that unit n sees cut out of picture n; `outside` beyond the picture's border."""
  start, (height, width) = field(row, position, pictures.shape[1:])
  padded = np.pad(
    pictures, ((0, 0), (height, height), (width, width), (0, 0)), constant_values=outside
  )
  corners = start + np.array([height, width])
  return np.stack([x[i : i + height, j : j + width] for x, (i, j) in zip(padded, corners)])


def visible(
  row: architectures.Row, position: Int[np.ndarray, "n 2"], image: tuple[int, ...]
) -> Bool[np.ndarray, "n h w 1"]:
  """Where image n is seen by unit n."""
  start, sides = field(row, position, image)
  seen = [
    (np.arange(side) >= start[:, axis, None])
    & (np.arange(side) < start[:, axis, None] + sides[axis])
    for axis, side in enumerate(image[:2])
  ]
  return (seen[0][:, :, None] & seen[1][:, None, :])[..., None]


def replay(
  net: ConvNet,
  variables: Any,
  images: Float[np.ndarray, "n h w c"],
  units: saliency.Units,
  *,
  layer: str,
) -> Float[np.ndarray, " n"]:
  """The units' activations when all of the image but the patch that each sees is blanked.

  They must be the activations that were recorded: then the patch is the right one, and all that
  the unit answers to.
  """
  row = saliency.locate(net, layer, images.shape[1:])
  images = np.where(visible(row, np.asarray(units.position), images.shape[1:]), images, 0)
  again = saliency.strongest(
    net, variables, images, layer=layer, channel=units.channel, position=units.position
  )
  return np.asarray(again.value)
