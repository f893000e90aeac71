"""What a figure is about: a trained network, and images as it sees them and as people do."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, Int, PyTree, UInt8
from PIL import Image, ImageOps

from allcnn_jax.analysis import saliency
from allcnn_jax.data import augmentation, datasets, preprocessing
from allcnn_jax.errors import UsageError, is_denied
from allcnn_jax.nets import architectures, model
from allcnn_jax.training import parts, restore

_LARGEST = 512  # pixels of a photo's longer side: a convolution's memory grows with their square


@dataclasses.dataclass(frozen=True)
class Subject:
  """A trained network with its preprocessing; `stored` is the size of its data set's images."""

  trained: restore.Trained
  stored: tuple[int, int, int]

  @property
  def net(self) -> model.ConvNet:
    return self.trained.net

  @property
  def variables(self) -> PyTree:
    return self.trained.variables

  def inputs(self, images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h2 w2 c"]:
    """What the network sees of raw images: preprocessed, and cut where it takes smaller ones."""
    return _center(self.trained.preprocessor.apply(images), self._cut(images.shape))

  def seen(self, images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h2 w2 c"]:
    """The part of raw images that the network sees, for people."""
    around_grey = images.astype(np.float32) - 128
    return (_center(around_grey, self._cut(images.shape)) + 128).astype(np.uint8)

  def unwhiten(self, gradients: saliency.Images) -> Float[np.ndarray, "n h w c"]:
    """Gradients with the linear part of the preprocessing undone, and no mean added."""
    gradients = np.asarray(gradients, np.float32)
    size = gradients.shape[1:3]
    if size != self.trained.image[:2] or size[0] > self.stored[0]:
      return self.trained.preprocessor.undo(gradients)
    margins = [n - m for n, m in zip(self.stored[:2], size)]
    padding = [(m // 2, m - m // 2) for m in margins]
    whole = self.trained.preprocessor.undo(np.pad(gradients, ((0, 0), *padding, (0, 0))))
    return _center(whole, size)

  def predicted(
    self, net: model.ConvNet, inputs: Float[np.ndarray, "n h w c"], best: int = 1
  ) -> list[str]:
    """The classes that the network, or one with its weights, sees in each image, surest first."""
    logits = jax.jit(net.apply)(self.variables, jnp.asarray(inputs))
    names = self.trained.classes
    return [
      ", ".join(f"{names[c]} {shares[c]:.0%}" for c in np.argsort(-shares)[:best])
      for shares in np.asarray(jax.nn.softmax(logits))
    ]

  def data(self, split: str | None) -> "InMemory | FromStream":
    """The images of a split of its data set; by default the one that it was evaluated on."""
    config = self.trained.config
    split = split or parts.eval_split(config)
    name, held_out, data_dir = parts.data_set(config)
    if not datasets.varies(name, data_dir):
      return InMemory(parts.read_images(config, split).images)
    from allcnn_jax.data import stream  # a set that is held in memory needs no Grain

    streamed = stream.Stream(name, split, validation=held_out, data_dir=data_dir)
    return FromStream(functools.partial(streamed.central, self.stored[:2]))

  def photo(self, path: epath.PathLike) -> UInt8[np.ndarray, "1 h w c"]:
    """A user's picture. Where whitening or a dense layer fixes a size, it is resized to that.

    Raises:
      UsageError: it is no picture, or too small for the network.
    """
    image = _opened(path)
    if image.mode == "F":
      raise UsageError(f"--input={path}: its pixels are no integers.")
    image = _opaque(datasets.in_256_levels(image))
    image = image.convert("RGB" if self.stored[2] == 3 else "L")
    dense = any(isinstance(x, architectures.Dense) for x in self.net.table)
    if dense or isinstance(self.trained.preprocessor, preprocessing.Zca):
      image = image.resize((self.stored[1], self.stored[0]), Image.Resampling.BICUBIC)
    image.thumbnail((_LARGEST, _LARGEST))
    raw = np.asarray(image, np.uint8).reshape(1, image.height, image.width, self.stored[2])
    try:
      architectures.trace(self.net.table, (*self._cut(raw.shape), self.stored[2]))
    except UsageError as error:
      raise UsageError(f"--input={path}: {error}") from None
    return raw

  def _cut(self, shape: tuple[int, ...]) -> tuple[int, int]:
    return self.trained.image[:2] if shape[1:3] == self.stored[:2] else shape[1:3]


class Request(NamedTuple):
  """What a user asked for.

  Attributes:
    load: reads the trained network; Figure 1 needs none.
    layer, channels, inputs, split: as on the command line, None or empty where not given.
  """

  load: Callable[[], Subject]
  layer: str | None = None
  channels: Sequence[int] = ()
  inputs: Sequence[str] = ()
  split: str | None = None


class InMemory:
  """Images in memory."""

  def __init__(self, images: UInt8[np.ndarray, "n h w c"]):
    self._images = images

  def __len__(self) -> int:
    return len(self._images)

  def batches(self, n: int) -> Iterator[UInt8[np.ndarray, "m h w c"]]:
    """All of them, up to `n` at a time."""
    return (self._images[i : i + n] for i in range(0, len(self), n))

  def take(self, numbers: Int[np.ndarray, " m"]) -> UInt8[np.ndarray, "m h w c"]:
    """Some by their numbers in the order of `batches`."""
    return self._images[numbers]


class FromStream:
  """The same of images that vary in size: read when they are looked at, and read again.

  What cannot be read is left out. How many there are, and which number is which, is known once
  `batches` has been gone through.

  Args:
    central: `stream.Stream.central` of one size.
  """

  def __init__(self, central: Callable[..., Iterator[tuple[np.ndarray, np.ndarray]]]):
    self._central, self._rows = central, []

  def __len__(self) -> int:
    return len(self._rows)

  def batches(self, n: int) -> Iterator[UInt8[np.ndarray, "m h w c"]]:
    self._rows = []
    for images, rows in self._central(n):
      self._rows.extend(rows)
      if len(rows):
        yield images

  def take(self, numbers: Int[np.ndarray, " m"]) -> UInt8[np.ndarray, "m h w c"]:
    rows, places = np.unique(np.array(self._rows)[numbers], return_inverse=True)
    return np.concatenate([x for x, _ in self._central(rows=rows)])[places]


def load(workdir: epath.PathLike, step: int | None = None) -> Subject:
  """The network in a run's folder.

  Raises:
    UsageError: something is missing or damaged.
  """
  trained = restore.trained(workdir, step)
  return Subject(trained, augmentation.stored_size(trained.config.dataset.augment, trained.image))


def default_layer(net: model.ConvNet) -> str:
  """The last convolution that looks further than one pixel; 3x3 in the paper's tables."""
  convolutions = [(n, x) for n, x in architectures.named(net.table) if _is_conv(x)]
  wide = [name for name, x in convolutions if x.kernel == 3]
  return (wide or [name for name, x in convolutions if x.kernel > 1])[-1]


def last_convolution(net: model.ConvNet) -> str:
  """The name of the convolution nearest to the output."""
  return [name for name, x in architectures.named(net.table) if _is_conv(x)][-1]


def _center(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  return np.asarray(augmentation.center(jnp.asarray(images, jnp.float32), size))


def _is_conv(layer: architectures.Layer) -> bool:
  return isinstance(layer, architectures.Conv)


def _opaque(image: Image.Image) -> Image.Image:
  """The picture on white, if any of it is transparent: what is stored there was not meant to be seen."""
  if not image.has_transparency_data:
    return image
  return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def _opened(path: epath.PathLike) -> Image.Image:
  try:
    with epath.Path(path).open("rb") as file:
      return ImageOps.exif_transpose(Image.open(file))
  except (FileNotFoundError, IsADirectoryError):
    raise UsageError(f"--input={path}: there is no such file.") from None
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    if is_denied(error):
      raise
    raise UsageError(f"--input={path}: it is no picture that can be read.") from None
