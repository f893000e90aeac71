"""The papers' tables as data: what each network is, layer by layer.

Two papers print the tables:

  [S15] Springenberg et al. 2015, "Striving for Simplicity: The All Convolutional Net",
        Tables 1, 2, 5 and 6.
  [M18] Moskovitz et al. 2018, "Feedback alignment in deep convolutional networks", supplement.

A table is a tuple of layers and can be held beside the page. The derived networks of [S15] are
derived here as the paper derives them: `strided`, `conv_pool` and `all_conv` take a base table
and return another. Nothing here touches an array; `model.py` runs a table, `trace` measures one.
"""

import dataclasses
from typing import NamedTuple

from allcnn_jax.errors import UsageError, unknown

CLASSES = -1  # A layer's `features` before the number of classes is known.


@dataclasses.dataclass(frozen=True)
class Conv:
  """A square convolution with bias; `padding` is (before, after) on each side."""

  kernel: int
  features: int
  stride: int
  padding: tuple[int, int]
  relu: bool = True


@dataclasses.dataclass(frozen=True)
class Pool:
  """Pooling; `kind` is "max", "average", "depthwise", or the p of a p-norm ([S15] Eq. 1)."""

  kind: str
  window: int
  stride: int
  padding: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Dropout:
  """Elementwise inverted dropout; `resolve` looks up the rate of its level."""

  level: int
  rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class GlobalAverage:
  """The mean over all positions: (N, h, w, c) -> (N, c)."""


@dataclasses.dataclass(frozen=True)
class Dense:
  """A fully connected layer with bias; what comes in is flattened first."""

  features: int
  relu: bool = True


Layer = Conv | Pool | Dropout | GlobalAverage | Dense
Table = tuple[Layer, ...]


@dataclasses.dataclass(frozen=True)
class Architecture:
  """A table, the image that it expects and the rates of its dropout levels.

  Attributes:
    image: height, width and channels of the input.
    table: the layers.
    dropout: the rate of each dropout level, as the paper gives it.
    leak: slope of the activation below zero; 0 is the ordinary ReLU.
  """

  image: tuple[int, int, int]
  table: Table
  dropout: tuple[float, ...] = ()
  leak: float = 0.0


def _conv(kernel: int, features: int, *, stride: int = 1, pad: int) -> Conv:
  return Conv(kernel, features, stride, (pad, pad))


# Caffe rounds a pool's output size up: 32 -> 16 -> 8. A 3x3 window of stride 2 then reaches one
# pixel over the far edge.
_POOL3 = Pool("max", 3, 2, (0, 1))
_POOL2 = Pool("max", 2, 2, (0, 0))
_AVERAGE = GlobalAverage()
_IN, _MID = Dropout(0), Dropout(1)  # [S15] 3.2: 20 % on the input, 50 % after each pool.

# [S15] Table 1. The last 3x3 convolution is unpadded, so that the average is over 6 x 6.
_HEAD = (
  _conv(3, 192, pad=0),
  _conv(1, 192, pad=0),
  _conv(1, CLASSES, pad=0),
  _AVERAGE,
)
_MODEL_A = (
  _IN,
  _conv(5, 96, pad=2),
  _POOL3,
  _MID,
  _conv(5, 192, pad=2),
  _POOL3,
  _MID,
  *_HEAD,
)
_MODEL_B = (
  _IN,
  _conv(5, 96, pad=2),
  _conv(1, 96, pad=0),
  _POOL3,
  _MID,
  _conv(5, 192, pad=2),
  _conv(1, 192, pad=0),
  _POOL3,
  _MID,
  *_HEAD,
)
_MODEL_C = (
  _IN,
  _conv(3, 96, pad=1),
  _conv(3, 96, pad=1),
  _POOL3,
  _MID,
  _conv(3, 192, pad=1),
  _conv(3, 192, pad=1),
  _POOL3,
  _MID,
  *_HEAD,
)

# [S15] Table 5: 126 -> 125, 124, 62, 61, 60, 30, 29, 28, 14, 13, 12, 6, 5, 4, 2, 1. The table
# ends at 1920 features and a softmax; the 10-way layer that this needs is a 1x1 convolution.
_LARGE = (
  _conv(2, 320, pad=0),
  _conv(2, 320, pad=0),
  _conv(2, 320, stride=2, pad=0),
  _conv(2, 640, pad=0),
  Dropout(0),
  _conv(2, 640, pad=0),
  Dropout(0),
  _conv(2, 640, stride=2, pad=0),
  _conv(2, 960, pad=0),
  Dropout(1),
  _conv(2, 960, pad=0),
  Dropout(1),
  _conv(2, 960, stride=2, pad=0),
  _conv(2, 1280, pad=0),
  Dropout(2),
  _conv(2, 1280, pad=0),
  Dropout(2),
  _conv(2, 1280, stride=2, pad=0),
  _conv(2, 1600, pad=0),
  Dropout(3),
  _conv(2, 1600, pad=0),
  Dropout(3),
  _conv(2, 1600, stride=2, pad=0),
  _conv(2, 1920, pad=0),
  Dropout(4),
  _conv(1, 1920, pad=0),
  Dropout(4),
  Conv(1, CLASSES, 1, (0, 0), relu=False),
  _AVERAGE,
)

# [S15] Table 6: 224 -> 54, 54, 27, 27, 27, 13, 13, 13, 6, 6, 6, 6. The sizes are those of
# Network in Network; the paddings are the ones that give them.
_IMAGENET = (
  _conv(11, 96, stride=4, pad=0),
  _conv(1, 96, pad=0),
  _conv(3, 96, stride=2, pad=1),
  _conv(5, 256, pad=2),
  _conv(1, 256, pad=0),
  _conv(3, 256, stride=2, pad=0),
  _conv(3, 384, pad=1),
  _conv(1, 384, pad=0),
  _conv(3, 384, stride=2, pad=0),
  Dropout(0),
  _conv(3, 1024, pad=1),
  _conv(1, 1024, pad=0),
  _conv(1, CLASSES, pad=0),
  _AVERAGE,
)

_LOGITS = Dense(CLASSES, relu=False)

# [M18] MNIST: 28 -> 14 -> 7.
_FA_MNIST = (
  _conv(5, 32, pad=2),
  _POOL2,
  _conv(5, 64, pad=2),
  _POOL2,
  Dense(1024),
  _LOGITS,
)
# [M18] CIFAR-10 1, on 24 x 24 crops: 24 -> 12 -> 6.
_FA_CIFAR10_1 = (
  _conv(5, 64, pad=2),
  _POOL3,
  _conv(5, 64, pad=2),
  _POOL3,
  Dense(384),
  Dense(192),
  _LOGITS,
)
# [M18] CIFAR-10 2: All-CNN-C with its last 3x3 convolution padded, 8 x 8 to the end.
_FA_CIFAR10_2 = (
  _conv(3, 96, pad=1),
  _conv(3, 96, pad=1),
  _conv(3, 96, stride=2, pad=1),
  _conv(3, 192, pad=1),
  _conv(3, 192, pad=1),
  _conv(3, 192, stride=2, pad=1),
  _conv(3, 192, pad=1),
  _conv(1, 192, pad=0),
  Conv(1, CLASSES, 1, (0, 0), relu=False),
  _AVERAGE,
)
# [M18] ImageNet 1, on 299 x 299. Our reading: the five convolutions and three dense layers of
# Krizhevsky et al. 2012 in one column, padding k // 2: 75, 37, 37, 18, 18, 18, 18, 9.
_FA_IMAGENET_1 = (
  _conv(11, 96, stride=4, pad=5),
  Pool("max", 3, 2, (0, 0)),
  _conv(5, 256, pad=2),
  Pool("max", 3, 2, (0, 0)),
  _conv(3, 384, pad=1),
  _conv(3, 384, pad=1),
  _conv(3, 256, pad=1),
  Pool("max", 3, 2, (0, 1)),
  Dense(4096),
  Dense(4096),
  _LOGITS,
)
# [M18] ImageNet 2, on 299 x 299, padding k // 2: 75, 38, 13, 7, 7, 4, 4, 4, 4. The sizes are as
# printed; features and kernels are our reading, those of [S15] Table 6 less its inner 1x1 layers.
_FA_IMAGENET_2 = (
  _conv(11, 96, stride=4, pad=5),
  _conv(3, 96, stride=2, pad=1),
  _conv(5, 256, stride=3, pad=2),
  _conv(3, 256, stride=2, pad=1),
  _conv(3, 384, pad=1),
  _conv(3, 384, stride=2, pad=1),
  _conv(3, 1024, pad=1),
  _conv(1, 1024, pad=0),
  Conv(1, CLASSES, 1, (0, 0), relu=False),
  _AVERAGE,
)
# The textbook form of "pool or stride?": unpadded 3x3 convolutions and a dense head.
_SMALL = (
  _conv(3, 32, pad=0),
  _POOL2,
  _conv(3, 64, pad=0),
  _POOL2,
  _conv(3, 64, pad=0),
  Dense(512),
  _LOGITS,
)


def strided(table: Table) -> Table:
  """[S15] Strided-CNN: each pool goes, its stride multiplies the convolution's just before it."""
  layers: list[Layer] = []
  for layer in table:
    if isinstance(layer, Pool):
      layers[-1] = dataclasses.replace(layers[-1], stride=layers[-1].stride * layer.stride)
    else:
      layers.append(layer)
  return tuple(layers)


def _replace_pools(table: Table, replacement) -> Table:
  """Replaces each pool by `replacement(pool, features of the layer before it)`."""
  layers: list[Layer] = []
  for layer in table:
    layers.extend(replacement(layer, layers[-1].features) if isinstance(layer, Pool) else (layer,))
  return tuple(layers)


def conv_pool(table: Table) -> Table:
  """[S15] ConvPool-CNN: another 3x3 convolution before each pool."""
  return _replace_pools(table, lambda pool, n: (_conv(3, n, pad=1), pool))


def all_conv(table: Table) -> Table:
  """[S15] All-CNN: a 3x3 convolution with the pool's stride instead of each pool."""
  return _replace_pools(table, lambda pool, n: (_conv(3, n, stride=pool.stride, pad=1),))


def pooled(table: Table) -> Table:
  """[S15] 3.4: each strided convolution runs at stride 1, then max-pooling takes the stride.

  The windows are as large as the stride, 2x2 in the paper's words, our reading of its 4 in conv1.
  The weights of a trained strided network fit the result unchanged. Max-pooling has switches,
  which the deconvnet's way back needs. A window that may reach over the far edge keeps the size
  of every map: n dense positions give floor((n - 1) / stride) + 1, with and without the pool.
  """
  layers: list[Layer] = []
  for layer in table:
    if isinstance(layer, Conv) and layer.stride > 1:
      s = layer.stride
      layers += [dataclasses.replace(layer, stride=1), Pool("max", s, s, (0, s - 1))]
    else:
      layers.append(layer)
  return tuple(layers)


def dense_head(table: Table) -> Table:
  """[S15] 3.1's side experiment: fully connected layers instead of the 1x1 convolutions."""
  if isinstance(table[-1], Dense):
    return table
  end = len(table) - 1  # of what stays, before the global average
  while isinstance(table[end - 1], Dropout) or getattr(table[end - 1], "kernel", 0) == 1:
    end -= 1
  head = [Dense(x.features) if isinstance(x, Conv) else x for x in table[end:-1]]
  return (*table[:end], *head[:-1], _LOGITS)


def dropped_after(table: Table, only_1x1: bool) -> Table:
  """[S15] footnote 4's side experiment: dropout after all inner layers with weights, or 1x1 ones.

  It comes beside the dropout that the table has.
  """
  layers: list[Layer] = []
  for layer, after in zip(table, (*table[1:], None)):
    layers.append(layer)
    inner = getattr(layer, "features", CLASSES) != CLASSES  # has weights, and is not the last
    dropped = isinstance(after, Dropout)
    if inner and not dropped and (not only_1x1 or getattr(layer, "kernel", 0) == 1):
      layers.append(_MID)
  return tuple(layers)


def _family(letter: str, base: Table) -> dict[str, Architecture]:
  tables = {
    f"model_{letter}": base,
    f"strided_cnn_{letter}": strided(base),
    f"conv_pool_cnn_{letter}": conv_pool(base),
    f"all_cnn_{letter}": all_conv(base),
  }
  return {name: Architecture((32, 32, 3), t, (0.2, 0.5)) for name, t in tables.items()}


ARCHITECTURES: dict[str, Architecture] = {
  **_family("a", _MODEL_A),
  **_family("b", _MODEL_B),
  **_family("c", _MODEL_C),
  # The leak is not stated in [S15]; 1/3 is Graham's (2014), to whom the paper refers.
  "large_all_cnn": Architecture((126, 126, 3), _LARGE, (0.1, 0.2, 0.3, 0.4, 0.5), leak=1 / 3),
  "all_cnn_imagenet": Architecture((224, 224, 3), _IMAGENET, (0.5,)),
  "fa_mnist": Architecture((28, 28, 1), _FA_MNIST),
  "fa_cifar10_1": Architecture((24, 24, 3), _FA_CIFAR10_1),
  "fa_cifar10_2": Architecture((32, 32, 3), _FA_CIFAR10_2),
  "fa_imagenet_1": Architecture((299, 299, 3), _FA_IMAGENET_1),
  "fa_imagenet_2": Architecture((299, 299, 3), _FA_IMAGENET_2),
  "small_convnet": Architecture((28, 28, 1), _SMALL),
}
NAMES: tuple[str, ...] = tuple(ARCHITECTURES)


HEADS = ("conv", "dense")
# Of a larger p the norm is the maximum, to the last digit of float32; p-th powers would say otherwise.
_LARGEST_NORM = 1e8
DROPOUTS = ("printed", "all", "1x1")
STRIDE_PADDINGS = ("caffe", "same")
POOLS = ("max", "average", "depthwise", "stride", "none")


def resolve(
  name: str,
  num_classes: int,
  *,
  width: float = 1.0,
  head: str | None = None,
  pool: str = "max",
  dropout: tuple[float, ...] | None = None,
  dropout_after: str = "printed",
  stride_padding: str = "caffe",
  final_relu: bool = True,
) -> Architecture:
  """The table `name` with every choice made: ready to be run by `model.ConvNet`.

  Args:
    name: one of `NAMES`.
    num_classes: outputs of the last layer.
    width: factor on the features of every layer but the last.
    head: "conv" (1x1 convolutions and a global average) or "dense"; None: as in the table.
    pool: what stands where the table has max-pooling: "max", "average", "depthwise" (a
      convolution whose weights cross no channels, [S15] footnote 1), "stride" (`strided`),
      "none" (no downsampling at all, strides included), or the p >= 1 of a p-norm, as text: "2".
    dropout: a rate for each of the table's dropout levels; None: the paper's.
    dropout_after: where the table has dropout ("printed"), and beside that after every other layer
      with weights but the last ("all"), or after 1x1 convolutions but the last ("1x1").
    stride_padding: a strided convolution pads both sides alike ("caffe"), or as little as its
      output size needs, the odd pixel at the far edge ("same").
    final_relu: True: the last layer has a ReLU where the table has one; False: it has none.

  Raises:
    UsageError: a choice that is unknown or that the table cannot take.
  """
  if name not in ARCHITECTURES:
    raise unknown("architecture", name, NAMES)
  base = ARCHITECTURES[name]
  table = base.table

  if head not in (None, *HEADS):
    raise unknown("head", head, HEADS)
  if head == "conv" and isinstance(table[-1], Dense):
    raise UsageError(f"{name} ends in dense layers: model.head must be 'dense', not {head!r}.")
  if head == "dense":
    table = dense_head(table)

  table = _with_pool(name, table, pool)
  if dropout_after not in DROPOUTS:
    raise unknown("place of dropout", dropout_after, DROPOUTS)
  if dropout_after != "printed":
    if len(base.dropout) != 2:
      raise UsageError(
        f"{name} has {len(base.dropout)} dropout levels and not two, one of them on the input: model.dropout_after must be 'printed', not {dropout_after!r}."
      )
    table = dropped_after(table, only_1x1=dropout_after == "1x1")
  if stride_padding not in STRIDE_PADDINGS:
    raise unknown("stride padding", stride_padding, STRIDE_PADDINGS)
  if stride_padding == "same":
    table = _least_padding(table, base.image)

  rates = base.dropout if dropout is None else tuple(dropout)
  if len(rates) != len(base.dropout) or not all(0 <= r < 1 for r in rates):
    raise UsageError(
      f"model.dropout={rates}: {name} takes {len(base.dropout)} rates from [0, 1), by default {base.dropout}."
    )
  if not width > 0:
    raise UsageError(f"model.width={width}: a factor on the number of features, above 0.")

  def fill(layer: Layer) -> Layer:
    match layer:
      case Dropout(level):
        return Dropout(level, rates[level])
      case Conv() | Dense() if layer.features == CLASSES:
        return dataclasses.replace(layer, features=num_classes, relu=layer.relu and final_relu)
      case Conv() | Dense():
        return dataclasses.replace(layer, features=max(1, round(width * layer.features)))
    return layer

  dropped = (x for x in table if not (isinstance(x, Dropout) and rates[x.level] == 0))
  table = tuple(fill(x) for x in dropped)
  return dataclasses.replace(base, table=table, dropout=rates)


def _with_pool(name: str, table: Table, pool: str) -> Table:
  if pool == "none":
    kept = (x for x in table if not isinstance(x, Pool))
    return tuple(dataclasses.replace(x, stride=1) if isinstance(x, Conv) else x for x in kept)
  if pool == "max" or (is_norm(pool) and float(pool) > _LARGEST_NORM):
    return table
  if pool not in POOLS and not is_norm(pool):
    raise UsageError(
      f"Unknown pool {pool!r}. Known: {', '.join(POOLS)}, or the p >= 1 of a p-norm."
    )
  if not any(isinstance(x, Pool) for x in table):
    raise UsageError(
      f"{name} has no pooling layer: model.pool must be 'max' or 'none', not {pool!r}."
    )
  if pool == "stride":
    return strided(table)
  return tuple(dataclasses.replace(x, kind=pool) if isinstance(x, Pool) else x for x in table)


def is_norm(pool: str) -> bool:
  """Whether it is the p of a p-norm: a number from 1, or infinity, which is max (Eq. 1)."""
  try:
    return float(pool) >= 1
  except ValueError:
    return False


def _least_padding(table: Table, image: tuple[int, int, int]) -> Table:
  """XLA's "SAME" at a stride, for images of a size."""
  padded = []
  for layer in table:
    if isinstance(layer, Conv) and layer.stride > 1 and layer.padding != (0, 0):
      total = (-(-image[0] // layer.stride) - 1) * layer.stride + layer.kernel - image[0]
      total = max(total, 0)
      layer = dataclasses.replace(layer, padding=(total // 2, total - total // 2))
    padded.append(layer)
    image = trace((layer,), image)[0].size
  return tuple(padded)


def named(table: Table) -> list[tuple[str, Layer]]:
  """Each layer with its name: conv1, conv2, ..., pool1, ..., dense1, ..., in table order."""
  counts: dict[str, int] = {}
  pairs = []
  for layer in table:
    kind = type(layer).__name__.lower()
    counts[kind] = counts.get(kind, 0) + 1
    pairs.append((f"{kind}{counts[kind]}", layer))
  return pairs


class Row(NamedTuple):
  """What `trace` says of one layer.

  Attributes:
    name: the layer's name.
    layer: its entry in the table.
    size: height, width and features of its output.
    field: side of the patch of the image that one output sees, in pixels.
    stride: pixels of the image from one output to the next.
    offset: first image row of the patch seen by the first output; negative inside a padding.
    parameters: weights and biases.
    multiply_adds: multiplications of a forward pass over one image.
  """

  name: str
  layer: Layer
  size: tuple[int, int, int]
  field: int
  stride: int
  offset: int
  parameters: int
  multiply_adds: int


def trace(table: Table, image: tuple[int, int, int]) -> list[Row]:
  """Sizes, receptive fields and costs of a resolved table on images of `image` (h, w, c).

  Raises:
    UsageError: the image is too small for the table.
  """
  (h, w, c), field, jump, offset = image, 1, 1, 0
  rows = []
  for name, layer in named(table):
    parameters = multiply_adds = 0
    match layer:
      case Conv() | Pool():
        is_conv = isinstance(layer, Conv)
        k, s, (before, after) = (
          layer.kernel if is_conv else layer.window,
          layer.stride,
          layer.padding,
        )
        h, w = ((n + before + after - k) // s + 1 for n in (h, w))
        if min(h, w) < 1:
          raise UsageError(
            f"Images of {image[0]}x{image[1]} are too small: nothing is left at {name}."
          )
        field, offset, jump = field + (k - 1) * jump, offset - before * jump, jump * s
        if is_conv:
          parameters = (k * k * c + 1) * layer.features
          multiply_adds = h * w * k * k * c * layer.features
          c = layer.features
        elif layer.kind == "depthwise":
          parameters, multiply_adds = k * k * c, h * w * k * k * c
      case GlobalAverage() | Dense():
        field, jump = field + (max(h, w) - 1) * jump, jump * max(h, w)
        if isinstance(layer, Dense):
          parameters, multiply_adds = (h * w * c + 1) * layer.features, h * w * c * layer.features
          c = layer.features
        h = w = 1
    rows.append(Row(name, layer, (h, w, c), field, jump, offset, parameters, multiply_adds))
  return rows
