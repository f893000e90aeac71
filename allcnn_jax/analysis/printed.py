"""What the papers' tables print, as data.

A figure stands here only if a source confirms it; a cell without one is empty.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from allcnn_jax.errors import unknown

Keys = Mapping[str, Any]


class Row(NamedTuple):
  """A row as a paper prints it.

  Attributes:
    name: of the network or method.
    data: what it was trained on.
    error: percent; None where the paper prints none.
    keys: what a run's config says if the run stands in this row; None: others' work.
    like: what it says beside that if the run repeats the paper's experiment; of a frozenset,
      any of its values.
    parameters: as printed.
  """

  name: str
  data: str
  error: float | None
  keys: Keys | None = None
  like: Keys = {}  # noqa: RUF012, nobody writes to it
  parameters: str = ""


class Table(NamedTuple):
  """A paper's table; `whole`: rows without runs are shown too."""

  title: str
  rows: tuple[Row, ...]
  whole: bool
  remark: str = ""


# Springenberg et al. 2015, [S15].
_PLAIN = {
  "rule.name": "bp",
  "optimizer.name": "sgd",
  "model.pool": "max",
  "model.head": "conv",
  "model.dropout_after": "printed",
}
# Section 3.2, with the whole network and all images; of the rates the paper took the best.
_PROTOCOL = {
  "optimizer.learning_rate": frozenset((0.25, 0.1, 0.05, 0.01)),
  "model.width": 1.0,
  "dataset.validation": 0,
  "train.epochs": 350,
  "train.steps": 0,
  "optimizer.schedule": "drops",
  "optimizer.warmup": 0.0,
  "optimizer.drops": (200, 250, 300),
  "optimizer.drop_factor": 10.0,
  "optimizer.momentum": 0.9,
  "optimizer.nesterov": False,
  "optimizer.weight_decay": 0.001,
  "rule.start_from": "",
}
_WHOLE = _PROTOCOL | {
  "model.dropout": (0.2, 0.5),
  "model.final_relu": True,
  "dataset.preprocessing": "gcn_zca",
  "dataset.plain_epochs": 0,
}
_C10 = {"dataset.name": "cifar10", "dataset.augment": "none"}
_C10_AUGMENTED = {"dataset.name": "cifar10", "dataset.augment": "shift_flip"}
_C100 = {"dataset.name": "cifar100", "dataset.augment": "shift_flip"}


def _three(name: str, net: str, error: float, parameters: str) -> Row:
  return Row(name, "CIFAR-10", error, _PLAIN | {"model.name": net}, _WHOLE | _C10, parameters)


_MODEL_C = _three("Model C", "model_c", 9.74, "1.3 M")
_STRIDED_CNN_C = _three("Strided-CNN-C", "strided_cnn_c", 10.19, "1.3 M")
_CONVPOOL_CNN_C = _three("ConvPool-CNN-C", "conv_pool_cnn_c", 9.31, "1.4 M")
_ALL_CNN_C = _three("All-CNN-C", "all_cnn_c", 9.08, "1.4 M")
_TABLE3 = (
  _three("Model A", "model_a", 12.47, "0.9 M"),
  _three("Strided-CNN-A", "strided_cnn_a", 13.46, "0.9 M"),
  _three("ConvPool-CNN-A", "conv_pool_cnn_a", 10.21, "1.28 M"),
  _three("All-CNN-A", "all_cnn_a", 10.30, "1.28 M"),
  _three("Model B", "model_b", 10.20, "1 M"),
  _three("Strided-CNN-B", "strided_cnn_b", 10.98, "1 M"),
  _three("ConvPool-CNN-B", "conv_pool_cnn_b", 9.33, "1.35 M"),
  _three("All-CNN-B", "all_cnn_b", 9.10, "1.35 M"),
  _MODEL_C,
  _STRIDED_CNN_C,
  _CONVPOOL_CNN_C,
  _ALL_CNN_C,
)
_ALL_CNN = _PLAIN | {"model.name": "all_cnn_c"}
_SGD = {"rule.name": "bp", "optimizer.name": "sgd"}
_LARGE = _SGD | {"model.name": "large_all_cnn", "dataset.name": "cifar10"}
_IMAGENET = _SGD | {"model.name": "all_cnn_imagenet", "dataset.name": "imagenet2012"}
# Section 3.3; a drop after every 200,000 steps of 64 images, in epochs.
_IMAGENET_PROTOCOL = _PROTOCOL | {
  "model.dropout": (0.5,),
  "model.final_relu": True,
  "train.epochs": 22,
  "train.steps": 450_000,
  "train.batch_size": 64,
  "optimizer.learning_rate": 0.01,
  "optimizer.drops": tuple(n / (1_281_167 // 64) for n in (200_000, 400_000)),
  "optimizer.weight_decay": 0.0005,
}
_AUGMENTED = "CIFAR-10, flips and shifts"
_CLIPPED = (
  "The paper says nothing of a batch's size or of clipping gradients: `configs/cifar10.py` takes 128 "
  "images, and clips at a norm of 1."
)
# In this order in the README too.
OURS = (
  Row("All-CNN-C", "CIFAR-10", 9.08, _ALL_CNN | _C10, _WHOLE),
  Row("All-CNN-C", _AUGMENTED, 7.25, _ALL_CNN | _C10_AUGMENTED, _WHOLE),
  Row("All-CNN-C", "CIFAR-100, flips and shifts", 33.71, _ALL_CNN | _C100, _WHOLE),
  Row(
    "Large All-CNN",
    "CIFAR-10, its own augmentation",
    4.41,
    _LARGE,
    _PROTOCOL | {"model.dropout": (0.1, 0.2, 0.3, 0.4, 0.5), "dataset.augment": "graham"},
  ),
)
COMPARED = "rates were compared by test error, on seed 0"  # of FAST


def _fast(printed: Row, data: Keys) -> Row:
  """Of `configs/cifar10_fast.py`, beside what the paper has there after 350 epochs."""
  keys = {"rule.name": "bp", "optimizer.name": "muon", "model.name": "all_cnn_c"}
  keys |= {"model.width": 1.0, "model.head": "conv"}
  return Row("All-CNN-C by Muon", printed.data, printed.error, keys | data, _WHOLE)


FAST, FAST_100 = _fast(OURS[1], _C10_AUGMENTED), _fast(OURS[2], _C100)
# dasNet's figures, Maxout's on CIFAR-100 and Graham's are not at hand from a second source, and stay out.
_TABLE4 = (
  Row("Maxout", "CIFAR-10", 11.68),
  Row("Network in Network", "CIFAR-10", 10.41),
  Row("Deeply Supervised", "CIFAR-10", 9.69),
  OURS[0],
  Row("Maxout", _AUGMENTED, 9.38),
  Row("DropConnect", _AUGMENTED, 9.32),
  Row("dasNet", _AUGMENTED, None),
  Row("Network in Network", _AUGMENTED, 8.81),
  Row("Deeply Supervised", _AUGMENTED, 7.97),
  OURS[1],
  OURS[3],
  Row("Maxout", "CIFAR-100", None),
  Row("CNN + tree prior", "CIFAR-100", 36.85),
  Row("Network in Network", "CIFAR-100", 35.68),
  Row("Deeply Supervised", "CIFAR-100", 34.57),
  Row("dasNet", "CIFAR-100", None),
  OURS[2],
  Row("Krizhevsky et al. 2012", "ImageNet, top-1", 40.7),  # their average over ten crops
  Row(
    "All-CNN-B",
    "ImageNet, top-1, centre crop",
    41.2,
    _IMAGENET,
    _IMAGENET_PROTOCOL,
  ),
)


def _pooled(name: str, pool: str) -> Row:
  keys = _PLAIN | {"model.name": "model_c", "model.pool": pool}
  return Row(name, "CIFAR-10", None, keys, _WHOLE | _C10)


def check(table: str) -> None:
  """Raises UsageError if there is no such table; "" is that of runs which fit none."""
  if table not in TABLES:
    raise unknown("table", table, filter(None, TABLES))


TABLES: dict[str, Table] = {
  "table3": Table("Springenberg et al. 2015, Table 3", _TABLE3, True, _CLIPPED),
  "table4": Table(
    "Springenberg et al. 2015, Table 4, and its figures for Large All-CNN and ImageNet",
    _TABLE4,
    True,
    f"Rows marked † are others' work, as the paper prints it. {_CLIPPED}",
  ),
  "cifar10_fast": Table(
    "All-CNN-C's layers in the least time",
    (FAST, FAST_100),
    False,
    f"The aim is the paper's {OURS[0].error:.2f} % on CIFAR-10, which it has without flips and shifts; "
    f"{COMPARED}: the other seeds had no part in the choice.",
  ),
  "fa_table1": Table(
    "Moskovitz et al. 2018, Table 1",
    (),
    False,
    "The paper's figures are not at hand, and their column stays empty. It trains `fa_mnist` for "
    "25 epochs, `fa_cifar10_1` for 154 and `fa_cifar10_2` for 256.",
  ),
  "pooling": Table(
    "Pool or stride?",
    (
      _MODEL_C,
      _pooled("Model C, average", "average"),
      _pooled("Model C, p = 2", "2"),
      _STRIDED_CNN_C,
      _CONVPOOL_CNN_C,
      _ALL_CNN_C,
    ),
    False,
  ),
  "side_experiments": Table(
    "Springenberg et al. 2015, side experiments: dense heads, and other dropout",
    (_MODEL_C, _ALL_CNN_C),
    False,
    "What the paper says of them is not at hand.",
  ),
  "": Table("Runs", (), False),
}
