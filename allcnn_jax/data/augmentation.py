"""Random flips, shifts, crops and warps of preprocessed images: pure functions of (key, images).

They run on the device, inside the training step. Springenberg et al. 2015, 3.2.1: images are
mirrored, and moved by up to 5 pixels in each dimension; here, whitened ones, where the zeros that
come in from outside are the mean. `Graham` is the augmentation of 3.2.3, on a canvas larger than
the image.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from allcnn_jax.errors import unknown

Images = Float[Array, "n h w c"]
Cut = Float[Array, "n h2 w2 c"]


def flip(key: Key[Array, ""], images: Images) -> Images:
  """Mirrors each image left to right with probability one half."""
  mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  return jnp.where(mirrored, images[:, :, ::-1], images)


def crop(key: Key[Array, ""], images: Images, size: tuple[int, int]) -> Cut:
  """A window of `size` (height, width) at a random place of each image, all places alike."""
  n, h, w, c = images.shape
  down, across = jax.random.split(key)
  top = jax.random.randint(down, (n,), 0, h - size[0] + 1)
  left = jax.random.randint(across, (n,), 0, w - size[1] + 1)
  cut = jax.vmap(lambda x, i, j: jax.lax.dynamic_slice(x, (i, j, 0), (*size, c)))
  return cut(images, top, left)


def shift(key: Key[Array, ""], images: Images, pixels: int = 5) -> Images:
  """Moves each image by up to `pixels` in each dimension; zeros come in from outside."""
  border = (pixels, pixels)
  return crop(key, jnp.pad(images, ((0, 0), border, border, (0, 0))), images.shape[1:3])


def center(images: Images, size: tuple[int, int]) -> Cut:
  """The central window of `size` (height, width); zeros surround an image that is smaller."""
  margins = [m - n for n, m in zip(images.shape[1:3], size)]
  border = [(max(m, 0) // 2, (max(m, 0) + 1) // 2) for m in margins]
  if any(m > 0 for m in margins):
    images = jnp.pad(images, ((0, 0), *border, (0, 0)))
  top, left = ((n - m) // 2 for n, m in zip(images.shape[1:3], size))
  return images[:, top : top + size[0], left : left + size[1]]


def warp(
  images: Images,
  matrix: Float[Array, "n 2 2"],
  shift: Float[Array, "n 2"],
  size: tuple[int, int],
) -> Cut:
  """Bilinear samples of each image under an affine map, on a canvas of `size`, zeros around it.

  The pixel at q of the canvas, (row, column) from the canvas's centre, shows the image at
  matrix (q - shift), from the image's centre.

  Args:
    images: (N, h, w, C).
    matrix: from the canvas to the image.
    shift: pixels of the canvas.
    size: (H, W) of the canvas.

  Returns:
    (N, H, W, C).
  """
  rows, columns = (jnp.arange(n, dtype=jnp.float32) - (n - 1) / 2 for n in size)
  canvas = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(1, -1, 2)
  q = canvas - shift[:, None]
  # Written out: a product of matrices may be computed in 16 bits, too few for a position.
  places = (q[:, :, None] * matrix[:, None]).sum(-1)
  middle = jnp.array([(n - 1) / 2 for n in images.shape[1:3]], jnp.float32)
  sampled = jax.lax.platform_dependent(
    images, places + middle[None, None], tpu=sample_by_products, default=sample_by_neighbours
  )
  return sampled.reshape(len(images), *size, images.shape[-1])


def sample_by_neighbours(images: Images, places: Float[Array, "n p 2"]) -> Float[Array, "n p c"]:
  """Bilinear samples at (row, column), zeros outside: four pixels looked up for each."""
  n, h, w, c = images.shape
  around = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(n, -1, c)
  places = jnp.clip(places + 1, 0, jnp.array([h + 1, w + 1], jnp.float32)[None, None])
  first = jnp.minimum(places.astype(jnp.int32), jnp.array([h, w], jnp.int32)[None, None])
  down, right = jnp.split(places - first.astype(jnp.float32), 2, axis=-1)
  index = first[..., 0] * (w + 2) + first[..., 1]

  def pixel(offset):
    take = jax.vmap(lambda image, i: image.at[i].get(mode="promise_in_bounds"))
    return take(around, index + offset)

  above = (1 - right) * pixel(0) + right * pixel(1)
  below = (1 - right) * pixel(w + 2) + right * pixel(w + 3)
  return (1 - down) * above + down * below


def sample_by_products(images: Images, places: Float[Array, "n p 2"]) -> Float[Array, "n p c"]:
  """The same without looking anything up, which is slow on a TPU.

  The weights of a sample in the rows and in the columns of its image are tents,
  max(0, 1 - distance); a product with each does the rest.
  """
  n, h, w, c = images.shape

  def tents(place, side):
    distance = place[..., None] - jnp.arange(side, dtype=jnp.float32)[None, None]
    return jnp.maximum(1 - jnp.abs(distance), 0)  # (N, P, side)

  by_column = images.transpose(0, 2, 1, 3).reshape(n, w, h * c)
  rows = jnp.matmul(tents(places[..., 1], w), by_column, precision="highest")
  return (rows.reshape(n, -1, h, c) * tents(places[..., 0], h)[..., None]).sum(2)


@dataclasses.dataclass(frozen=True)
class Graham:
  """Graham's augmentation of small images on a large grey canvas, as one warp.

  Springenberg et al. 2015, 3.2.3, name Graham 2014, "Fractional max-pooling", for it; the text
  gives no numbers. The defaults are those of his program for CIFAR-10 (SparseConvNet,
  cifar10big.cpp). Each image is flipped with probability one half, stretched along both axes,
  then sheared along one of them or rotated, then moved by whole pixels. Last, each channel's
  values x, from -1 to 1 around grey, become

    x + (a + c i + d j) / 128 + b x

  at (row i, column j) of the canvas from the image's centre, with normal a, b, c and d drawn for
  each channel; pixels within two levels of grey in all channels stay.

  Attributes:
    stretch: the largest change of a side's length, as a share.
    skew: the largest shear, or rotation in radians.
    shift: the most pixels moved in each dimension.
    colour: deviations of a (levels of 256), b, c and d (levels a pixel).
  """

  stretch: float = 0.2
  skew: float = 0.2
  shift: int = 16
  colour: tuple[float, float, float, float] = (25.5, 0.15, 2.4, 2.4)

  def __call__(self, key: Key[Array, ""], images: Images, size: tuple[int, int]) -> Cut:
    """Images of `size` from smaller, square ones of (raw - 128) / 128, zeros around them."""
    colours, shapes, shifts = jax.random.split(key, 3)
    moved = jax.random.randint(shifts, (len(images), 2), -self.shift, self.shift + 1)
    moved = moved.astype(jnp.float32)
    window = tuple(map(self._window, images.shape[1:3], size))  # all beyond it is grey
    warped = warp(images, self.inverse(shapes, len(images)), moved, window)
    return center(self._recolour(colours, warped, moved), size)

  def _window(self, side: int, size: int) -> int:
    """How much of the canvas an image of `side` can reach; the canvas's centre is also its."""
    reach = side / 2 * (1 + self.stretch) * (1 + self.skew) + 1 + self.shift
    window = min(2 * math.ceil(reach), size)
    return window + (size - window) % 2

  def _recolour(self, key: Key[Array, ""], images: Images, moved: Float[Array, "n 2"]) -> Images:
    n, h, w, c = images.shape
    deviations = jnp.array(self.colour, jnp.float32)[:, None, None, None, None]
    a, b, by_row, by_column = deviations * jax.random.normal(key, (4, n, 1, 1, c), jnp.float32)
    rows, columns = (jnp.arange(side, dtype=jnp.float32) - (side - 1) / 2 for side in (h, w))
    i = (rows[None] - moved[:, :1])[:, :, None, None]
    j = (columns[None] - moved[:, 1:])[:, None, :, None]
    colour = (a + by_row * i + by_column * j) / 128 + b * images
    grey = (jnp.abs(images) <= 2 / 128).all(axis=-1, keepdims=True)
    return images + jnp.where(grey, 0, colour)

  def inverse(self, key: Key[Array, ""], n: int) -> Float[Array, "n 2 2"]:
    """n random maps from the canvas back to the image: the inverses of the skew, then of the stretch."""
    keys = jax.random.split(key, 4)

    def draw(key, shape, largest):
      return jax.random.uniform(key, shape, jnp.float32, -largest, largest)

    sides = 1 + draw(keys[0], (n, 2), self.stretch)
    mirror = 1 - 2 * jax.random.bernoulli(keys[1], shape=(n,)).astype(jnp.float32)
    one, zero = jnp.ones(n, jnp.float32), jnp.zeros(n, jnp.float32)
    sides = sides * jnp.stack([one, mirror], axis=1)
    angle = draw(keys[2], (n,), self.skew)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    kinds = jnp.array(
      [[[one, -angle], [zero, one]], [[one, zero], [-angle, one]], [[cos, sin], [-sin, cos]]]
    )  # (3, 2, 2, N)
    chosen = jax.random.randint(keys[3], (n,), 0, 3)
    one_hot = jax.nn.one_hot(chosen, 3, axis=0, dtype=jnp.float32)[:, None, None]
    return (kinds * one_hot).sum(0).transpose(2, 0, 1) / sides[:, :, None]


class Augmentation(NamedTuple):
  """What is done to a training batch, and how large its images are before.

  Attributes:
    apply: (key, images, size) -> images of `size` (height, width).
    margin: how much larger than the network's input the stored images are.
    moves: whether it only moves values: each that comes out was there before, or is zero.
  """

  apply: Callable[[Key[Array, ""], Images, tuple[int, int]], Cut]
  margin: float = 1.0
  moves: bool = True


def _shift_flip(key: Key[Array, ""], images: Images, size: tuple[int, int]) -> Images:
  keys = jax.random.split(key, 2)
  return flip(keys[0], shift(keys[1], images))


def _crop_flip(key: Key[Array, ""], images: Images, size: tuple[int, int]) -> Cut:
  keys = jax.random.split(key, 2)
  return flip(keys[0], crop(keys[1], images, size))


KINDS: dict[str, Augmentation] = {
  "none": Augmentation(lambda key, images, size: images),
  "shift": Augmentation(lambda key, images, size: shift(key, images)),
  "shift_flip": Augmentation(_shift_flip),
  # Moskovitz et al. 2018, CIFAR-10 1: crops of 24 from images of 32.
  "crop_flip": Augmentation(_crop_flip, margin=32 / 24),
  # Krizhevsky et al. 2012: crops of 224 from images whose shorter side is 256.
  "imagenet": Augmentation(_crop_flip, margin=256 / 224),
  # Springenberg et al. 2015, 3.2.3: images of 32 on a canvas of 126.
  "graham": Augmentation(Graham(), margin=32 / 126, moves=False),
}


def create(kind: str, graham: Graham) -> Augmentation:
  """One of `KINDS`; "graham" with the parameters given.

  Raises:
    UsageError: an unknown kind.
  """
  if kind not in KINDS:
    raise unknown("augmentation", kind, KINDS)
  return KINDS[kind]._replace(apply=graham) if kind == "graham" else KINDS[kind]


def stored_size(kind: str, image: tuple[int, int, int]) -> tuple[int, int, int]:
  """Height, width and channels of the images to keep, for a network that takes `image`."""
  h, w, c = image
  margin = KINDS[kind].margin
  return round(h * margin), round(w * margin), c
