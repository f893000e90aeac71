"""Convolutions by minimal filtering, for XLA's CPU back end: fewer products for the same sums.

Winograd 1980; Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks". The m
outputs of a row that r taps make of m + r - 1 inputs are found from as many products, not from m r,
and a tile of m x m outputs from the square of that, for each pair of features. With a tile x of the
input, a kernel g and errors d of the outputs, and with B, G and A of `minimal`,

  y = A^T [(G g G^T) * (B^T x B)] A        dg = G^T [(B^T x B) * (A d A^T)] G

where * sums over features, or over tiles: so many products of matrices. The input's gradient is a sum
like the first, of d. A stride is a convolution for each remainder of the taps.

As many images at a time as stay in the cache go through all stages.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

# Transformed tiles at a time, in bytes.
_CACHE = 16 << 20
# Measured: half the rounding error that 0, 1, -1, 2, -2 make in tiles of 4 for 3 taps. More points
# would cost digits.
_POINTS = (0, 0.75, -0.75, 1.5, -1.5)
# Outputs a side of a tile, by stride. Measured: beyond stride 1 larger tiles save products, no time.
_TILES = {1: (2, 3, 4), 2: (2,)}
# Measured: of 16 features the sums before and after the products cost what the products save.
_LEAST_FEATURES = 32

Pairs = tuple[tuple[int, int], tuple[int, int]]
Grid = Sequence[Sequence[Any]]


def suits(x: Array, kernel: Array, strides: tuple[int, int]) -> bool:
  """Whether a convolution is faster this way: a square kernel, many features, full precision."""
  r, stride = kernel.shape[0], strides[0]
  return (
    kernel.shape[1] == r
    and strides[1] == stride
    and stride in _TILES
    and stride < r <= len(_POINTS)  # of a larger kernel no tile has points enough
    and min(kernel.shape[2:]) >= _LEAST_FEATURES
    and x.dtype in (jnp.float32, jnp.float64)
  )


def forward(
  x: Float[Array, "n h w i"], kernel: Float[Array, "r r i o"], stride: int, padding: Pairs
) -> Float[Array, "n u v o"]:
  """A convolution.

  Args:
    x: maps.
    kernel: as wide as it is high.
    stride: down and across.
    padding: zeros (before, after), down and across.
  """
  r = kernel.shape[0]
  size = [(s + sum(p) - r) // stride + 1 for s, p in zip(x.shape[1:3], padding)]
  return _apply(x, kernel, _of_outputs(_tile(size, r, stride), r, stride), padding, (0, 0), size)


def input_gradient(
  d: Float[Array, "n u v o"],
  kernel: Float[Array, "r r i o"],
  stride: int,
  padding: Pairs,
  size: Sequence[int],
) -> Float[Array, "n h w i"]:
  """The gradient of `forward`'s input, of height and width `size`, for the error of its output."""
  r = kernel.shape[0]
  tile = _tile([-(-s // stride) for s in size], r, stride)
  zeros = ((-(-r // stride) - 1, 0),) * 2
  start = [before for before, _ in padding]
  return _apply(d, kernel.swapaxes(2, 3), _of_inputs(tile, r, stride), zeros, start, size)


def weight_gradient(
  x: Float[Array, "n h w i"], d: Float[Array, "n u v o"], r: int, stride: int, padding: Pairs
) -> Float[Array, "r r i o"]:
  """The gradient of `forward`'s kernel, r x r, for the error of its output."""
  tile = _tile(d.shape[1:3], r, stride)
  way = _of_outputs(tile, r, stride)
  count = [-(-s // tile) for s in d.shape[1:3]]
  features = x.shape[3], d.shape[3]

  def add(total, some):
    x, d = some
    seen = _both(way.bt, _tiles(pad(x, padding), way.bt.shape[1], way.step, count))
    errors = _both(way.at.T, _tiles(d, tile, tile, count))
    return [
      [t + _rows(v).T @ _rows(e) for t, v, e in zip(*three)] for three in zip(total, seen, errors)
    ], None

  zeros = [[jnp.zeros(features, x.dtype)] * len(way.bt)] * len(way.bt)
  total, _ = jax.lax.scan(add, zeros, batches((x, d), _fit(x, way, count, sum(features))))
  return jnp.stack([jnp.stack(row) for row in _both(way.g.T, total)])


class _Way(NamedTuple):
  """Along one side of a map: outputs = at @ ((g @ kernel) * (bt @ inputs)).

  The inputs of the next outputs begin `step` further on.
  """

  bt: np.ndarray
  g: np.ndarray
  at: np.ndarray
  step: int


def minimal(m: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """B^T (n, n), G (n, r) and A^T (m, n) of Toom and Cook for m outputs of r taps, n = m + r - 1.

  Polynomials are multiplied by their values at n - 1 points and at infinity.
  """
  points = _POINTS[: m + r - 2]
  others = [[q for q in points if q != p] for p in points]
  product = np.polynomial.polynomial.polyfromroots
  bt = np.stack([*(np.append(product(o), 0) for o in others), product(points)])
  scale = [math.prod(p - q for q in o) for p, o in zip(points, others)]

  def powers(k):
    return np.array([[p**i for i in range(k)] for p in points] + [[0] * (k - 1) + [1]])

  return bt, powers(r) / np.array([*scale, 1])[:, None], powers(m).T


@functools.cache
def _of_outputs(m: int, r: int, stride: int) -> _Way:
  """y[t] = sum_k x[stride t + k] g[k]: the taps k of each remainder by `stride` among themselves."""
  bts, gs, ats = [], [], []
  for first in range(min(stride, r)):
    bt, g, at = minimal(m, len(range(first, r, stride)))
    bts.append(np.zeros((len(bt), stride * (m - 1) + r)))
    bts[-1][:, first::stride] = bt
    gs.append(np.zeros((len(g), r)))
    gs[-1][:, first::stride] = g
    ats.append(at)
  return _Way(np.concatenate(bts), np.concatenate(gs), np.concatenate(ats, 1), stride * m)


@functools.cache
def _of_inputs(m: int, r: int, stride: int) -> _Way:
  """dx[stride t + q] = sum_l d[t - l] g[stride l + q], after ceil(r / stride) - 1 zeros of d."""
  longest = -(-r // stride)
  bts, gs, ats = [], [], []
  for q in range(min(stride, r)):
    taps = len(range(q, r, stride))
    bt, g, at = minimal(m, taps)
    bts.append(np.pad(bt, ((0, 0), (longest - taps, 0))))
    gs.append(np.zeros((len(g), r)))
    gs[-1][:, q::stride] = g[:, ::-1]
    ats.append(np.zeros((stride * m, at.shape[1])))
    ats[-1][q::stride] = at
  return _Way(np.concatenate(bts), np.concatenate(gs), np.concatenate(ats, 1), m)


def _tile(size: Sequence[int], r: int, stride: int) -> int:
  """The side of the tiles that take the fewest products for outputs of this size."""
  taps = -(-r // stride)

  def products(m):
    return len(_of_outputs(m, r, stride).bt) ** 2 * math.prod(-(-s // m) for s in size)

  return min((m for m in _TILES[stride] if m + taps - 2 <= len(_POINTS)), key=products)


def _apply(
  x: Array, kernel: Array, way: _Way, padding: Pairs, start: Sequence[int], size: Sequence[int]
) -> Array:
  """The outputs from `start` on: (n h w i), (r r i o) -> (n *size o)."""
  side = len(way.at)
  count = down, across = [-(-(s + t) // side) for s, t in zip(start, size)]
  features = kernel.shape[3]
  weights = _both(way.g, [list(row) for row in kernel])

  @_by_itself
  def columns(products):
    return [_spread(way.at, column, 2) for column in zip(*products)]

  def some(x):
    seen = _both(way.bt, _tiles(pad(x, padding), way.bt.shape[1], way.step, count))
    products = [
      [(_rows(v) @ u).reshape(-1, *count, features) for v, u in zip(*two)]
      for two in zip(seen, weights)
    ]
    y = _spread(way.at, columns(products), 4)  # image, tile down, row, tile across, column, feature
    y = y.reshape(-1, down * side, across * side, features)
    return y[:, start[0] : start[0] + size[0], start[1] : start[1] + size[1]]

  some_at_a_time = batches(x, _fit(x, way, count, sum(kernel.shape[2:])))
  return jax.lax.map(some, some_at_a_time).reshape(len(x), *size, features)


def _by_itself(function: Callable) -> Callable:
  """Keeps XLA from fusing a function with all that use its results, where it is computed anew.

  An optimization barrier is gone before anything is fused; a call that is not inlined stays.
  """
  function = jax.jit(function)

  def call(*args):
    with set_xla_metadata(inlineable="false"):
      return function(*args)

  return call


def _combine(matrix: np.ndarray, parts: Sequence[Any]) -> list[Any]:
  """Sums of arrays: one for each row of the matrix."""

  def total(row):
    terms = [p if c == 1 else jax.lax.mul(p, float(c)) for c, p in zip(row, parts) if c]
    return functools.reduce(jax.lax.add, terms)

  return [total(row) for row in matrix]


def _both(matrix: np.ndarray, parts: Grid) -> list[list[Any]]:
  """matrix parts matrix^T, for rows and columns of arrays."""
  down = [_combine(matrix, column) for column in zip(*parts)]
  return [_combine(matrix, row) for row in zip(*down)]


def _spread(matrix: np.ndarray, parts: Sequence[Array], axis: int) -> Array:
  """As `_combine`, the sums together in one array along a new axis."""
  shape = [-1 if a == axis else 1 for a in range(parts[0].ndim + 1)]
  columns = [jnp.asarray(c, parts[0].dtype).reshape(shape) for c in matrix.T]
  return functools.reduce(jnp.add, (jnp.expand_dims(p, axis) * c for c, p in zip(columns, parts)))


def _tiles(x: Array, side: int, step: int, count: Sequence[int]) -> list[list[Array]]:
  """Entry (i, j) of all tiles, which zeros complete: (n h w c) -> [i][j] (n *count c)."""
  ends = [(k - 1) * step + side for k in count]
  x = jnp.pad(x, ((0, 0), *((0, max(0, e - s)) for e, s in zip(ends, x.shape[1:3])), (0, 0)))
  down, across = ([slice(i, i + (k - 1) * step + 1, step) for i in range(side)] for k in count)
  return [[x[:, i, j] for j in across] for i in down]


def pad(x: Array, padding: Pairs) -> Array:
  """Zeros around maps, or, where they are negative, fewer rows and columns."""
  return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)])


def _rows(a: Array) -> Array:
  return a.reshape(-1, a.shape[-1])


def _fit(x: Array, way: _Way, count: Sequence[int], features: int) -> int:
  """How many images fit into the cache, with all that is made of them."""
  return max(1, _CACHE // (len(way.bt) ** 2 * math.prod(count) * features * x.dtype.itemsize))


def batches(arrays: Any, most: int) -> Any:
  """Arrays (n, ...) as (batches, few, ...), with the largest `few` up to `most` that divides n."""
  images = len(jax.tree.leaves(arrays)[0])
  few = next(k for k in range(min(most, images), 0, -1) if images % k == 0)
  return jax.tree.map(lambda a: a.reshape(images // few, few, *a.shape[1:]), arrays)
