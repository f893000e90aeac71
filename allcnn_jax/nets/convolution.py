"""JAX's convolution, and other ways to the same sums where they are faster.

On a CPU, layers with many features go by minimal filtering (`winograd`), and the gradient of a
kernel that sees few numbers, such as an image's channels or a single pixel, is a product of
matrices. On a GPU a layer that sees an image is such a product, forward and with its bias, and a pixel's
few classes send back a plain sum. All else is JAX's own.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from allcnn_jax.nets import winograd
from allcnn_jax.nets.winograd import Pairs

# Patches at a time, in bytes, with the errors that they are multiplied with. Measured: twice as
# many are a third slower.
_CACHE = 8 << 20
# Numbers of a patch. Measured on a CPU: of larger patches, or for fewer features, copying costs what
# the product saves. A GPU's is a 5x5 window of an image.
_LARGEST_PATCH, _LEAST_FEATURES = {"cpu": 32, "cuda": 75}, 32
_ALIGNED = 8  # numbers of a row: what a GPU's products of 16-bit numbers need to be fast
_FEW = 16  # features of a pixel whose errors a GPU adds up where it masks the sum


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

  plain = functools.partial(direct, strides=strides, padding=padding)
  if winograd.suits(x, kernel, strides):
    return jax.lax.platform_dependent(x, kernel, cpu=filtered, default=plain)
  return plain(x, kernel)


def direct(
  x: Float[Array, "n h w i"],
  kernel: Float[Array, "k l i o"],
  strides: tuple[int, int],
  padding: Pairs,
) -> Float[Array, "n u v o"]:
  """The same by JAX alone."""
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def _forward(x, kernel, strides, padding):
  return convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, kept, d):
  x, kernel = kept

  def plain(x, kernel, d):
    _, pull = jax.vjp(lambda x, kernel: direct(x, kernel, strides, padding), x, kernel)
    return pull(d)

  def filtered(x, kernel, d):
    back = winograd.input_gradient(d, kernel, strides[0], padding, x.shape[1:3])
    return back, winograd.weight_gradient(x, d, len(kernel), strides[0], padding)

  def multiplied(x, kernel, d):
    _, pull = jax.vjp(lambda x: direct(x, kernel, strides, padding), x)
    return *pull(d), weight_gradient_in_parts(x, d, kernel.shape[:2], strides, padding)

  def added(x, kernel, d):
    _, pull = jax.vjp(lambda kernel: direct(x, kernel, strides, padding), kernel)
    return input_gradient_of_pixels(d, kernel), *pull(d)

  ways = {}
  if winograd.suits(x, kernel, strides):
    ways["cpu"] = filtered
  elif _sees_little(x, kernel):
    ways["cpu"] = multiplied
  if _makes_few(kernel, strides, padding):
    ways["cuda"] = added
  if not ways:
    return plain(x, kernel, d)
  return jax.lax.platform_dependent(x, kernel, d, default=plain, **ways)


convolve.defvjp(_forward, _backward)


def makes_many(kernel: Array, platform: str) -> bool:
  """Whether a kernel makes many features of few numbers, few for "cpu" or "cuda"."""
  *window, channels, features = kernel.shape
  return math.prod(window) * channels <= _LARGEST_PATCH[platform] and features >= _LEAST_FEATURES


def _sees_little(x: Array, kernel: Array) -> bool:
  """Whether a kernel sees a single pixel, or makes many features of few numbers; full precision."""
  single = kernel.shape[:2] == (1, 1)
  return (single or makes_many(kernel, "cpu")) and x.dtype in (jnp.float32, jnp.float64)


def _makes_few(kernel: Array, strides: tuple[int, int], padding: Pairs) -> bool:
  """Whether a kernel makes few features of each pixel by itself."""
  single = kernel.shape[:2] == strides == (1, 1) and not np.any(padding)
  return single and kernel.shape[3] <= _FEW


def input_gradient_of_pixels(
  d: Float[Array, "n u v o"], kernel: Float[Array, "1 1 i o"]
) -> Float[Array, "n u v i"]:
  """The gradient of what a 1x1 convolution is given, for the error of its output, summed in float32.

  It is no product, so that a GPU's compiler can make it part of the kernel that needs it.
  """
  wide = jnp.promote_types(d.dtype, jnp.float32)
  terms = d[..., None, :].astype(wide) * kernel[None].astype(wide)
  return terms.sum(-1).astype(d.dtype)


def _patches(
  x: Float[Array, "n h w i"], window: Sequence[int], strides: tuple[int, int], padding: Pairs
) -> Float[Array, "n u v p"]:
  """What each output sees, as (k, l, i)."""
  x = winograd.pad(x, padding)
  return jnp.concatenate([x[:, i, j] for i, j in taps(window, strides, x.shape[1:3])], axis=-1)


def taps(
  window: Sequence[int], strides: Sequence[int], sides: Sequence[int]
) -> Iterator[tuple[slice, slice]]:
  """What each place of a window sees of a padded map of these sides: (rows, columns)."""
  rows, columns = (
    [slice(i, i + n - r + 1, s) for i in range(r)] for r, s, n in zip(window, strides, sides)
  )
  return itertools.product(rows, columns)


def weight_gradient(
  x: Float[Array, "n h w i"],
  d: Float[Array, "n u v o"],
  window: Sequence[int],
  strides: tuple[int, int],
  padding: Pairs,
) -> Float[Array, "k l i o"]:
  """The gradient of a kernel of `window`, for the error of its output: patches times errors."""
  channels, features = x.shape[3], d.shape[3]
  patches = _patches(x, window, strides, padding)
  summed = patches.reshape(-1, patches.shape[-1]).T @ d.reshape(-1, features)
  return summed.reshape(*window, channels, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def product(
  x: Float[Array, "n h w i"],
  kernel: Float[Array, "k l i o"],
  bias: Float[Array, " o"],
  strides: tuple[int, int],
  padding: Pairs,
  shared: bool = False,
) -> Float[Array, "n u v o"]:
  """The convolution and its bias as one product: of patches, each with a one, and of weights.

  So the bias's gradient is another row of the weights' own product, and costs no look at the errors.

  Args:
    x: images or maps.
    kernel: the weights.
    bias: of the features.
    strides: down and across.
    padding: zeros (before, after), down and across.
    shared: whether several devices have the images among them.
  """
  patches = _with_one(x, kernel.shape[:2], strides, padding, shared)
  weights = jnp.concatenate([kernel.reshape(-1, len(bias)), bias[None].astype(kernel.dtype)])
  return patches @ jnp.pad(weights, ((0, patches.shape[-1] - len(weights)), (0, 0)))


def _with_one(x, window, strides, padding, shared):
  """`_patches`, each with a one behind it, and zeros up to a multiple of `_ALIGNED` numbers.

  The padded images are written first: augmented, they are made once and not for each patch that sees
  them.
  """
  x = winograd.pad(x, padding)
  filling = -(math.prod(window) * x.shape[-1] + 1) % _ALIGNED
  make = _side_by_side if shared else _looked_up
  return make(x, window, strides, filling)


def _side_by_side(x, window, strides, filling):
  """For GPUs: each device has its images' patches."""
  patches = _patches(jax.lax.optimization_barrier(x), window, strides, ((0, 0), (0, 0)))
  one = jnp.ones((*patches.shape[:3], 1), x.dtype)
  return jnp.pad(jnp.concatenate([patches, one], axis=-1), ((0, 0), (0, 0), (0, 0), (0, filling)))


def _looked_up(x, window, strides, filling):
  """For one GPU: each number by its place in its image.

  Set side by side, the threads that make a patch go one after the other through all that it may be
  made of. But several devices would send one another their images for this.
  """
  n, *image = x.shape
  numbers = math.prod(image)
  place = np.arange(numbers, dtype=np.int32).reshape(image)
  places = np.concatenate([place[tap] for tap in taps(window, strides, image)], axis=-1)
  for where, count in ((numbers, 1), (numbers + 1, filling)):
    places = np.pad(places, ((0, 0), (0, 0), (0, count)), constant_values=where)
  one, zero = jnp.ones((n, 1), x.dtype), jnp.zeros((n, 1), x.dtype)
  rows = jax.lax.optimization_barrier(jnp.concatenate([x.reshape(n, -1), one, zero], axis=1))
  starts = rows.shape[1] * jnp.arange(n)[:, None, None, None]
  return rows.ravel().at[starts + places[None]].get(mode="promise_in_bounds")


def _product_forward(x, kernel, bias, strides, padding, shared):
  return product(x, kernel, bias, strides, padding, shared), (x, kernel, bias)


def _product_backward(strides, padding, shared, kept, d):
  x, kernel, bias = kept
  _, pull = jax.vjp(lambda x: direct(x, kernel, strides, padding), x)
  patches = _with_one(x, kernel.shape[:2], strides, padding, shared)
  summed = jnp.matmul(
    patches.reshape(-1, patches.shape[-1]).T,
    d.reshape(-1, len(bias)),
    preferred_element_type=bias.dtype,
  )
  own = math.prod(kernel.shape[:-1])
  return *pull(d), summed[:own].reshape(kernel.shape).astype(kernel.dtype), summed[own]


product.defvjp(_product_forward, _product_backward)


def weight_gradient_in_parts(
  x: Float[Array, "n h w i"],
  d: Float[Array, "n u v o"],
  window: Sequence[int],
  strides: tuple[int, int],
  padding: Pairs,
) -> Float[Array, "k l i o"]:
  """`weight_gradient`, as many images at a time as stay in a CPU's cache."""
  channels, features = x.shape[3], d.shape[3]

  def add(total, some):
    return total + weight_gradient(*some, window, strides, padding), None

  each = (math.prod(window) * channels + features) * math.prod(d.shape[1:3]) * x.dtype.itemsize
  batches = winograd.batches((x, d), max(1, _CACHE // each))
  total, _ = jax.lax.scan(add, jnp.zeros((*window, channels, features), x.dtype), batches)
  return total


def for_linen() -> Callable[..., Array]:
  """`convolve`, called by `nn.Conv` as it calls `lax.conv_general_dilated`."""

  def conv(x, kernel, strides, padding, **rest):
    return convolve(x, kernel, tuple(strides), tuple(padding))

  return conv
