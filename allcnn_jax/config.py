"""The keys of a config: their defaults, the values that they may have, and what they mean.

This is the one place. `complete` fills in what a config leaves out, `check` refuses a value that is
not allowed, before anything is done; the README's table is made from `KEYS`.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import ml_collections

from allcnn_jax import files
from allcnn_jax.data import augmentation, preprocessing
from allcnn_jax.errors import Parser, UsageError, one_line, unknown
from allcnn_jax.nets import architectures, feedback, model
from allcnn_jax.training import learning_rules, optimizer


class Key(NamedTuple):
  """One key of a config.

  Attributes:
    default: its value where a config says nothing.
    allowed: the values that it may have, in words.
    check: whether a value of the default's type is one of them.
    meaning: what it decides.
    names: the values, where they are a list of names; or empty.
    read_where: another key, and those of its names under which this one is read; None: under all.
  """

  default: Any
  allowed: str
  check: Callable[[Any], bool]
  meaning: str
  names: tuple[str, ...] = ()
  read_where: tuple[str, tuple[str, ...]] | None = None

  def where(self, path: str, *names: str) -> "Key":
    """The same key, read only where the one at `path` is one of `names`."""
    return self._replace(read_where=(path, names))


def _one_of(default: str, names: Iterable[str], meaning: str) -> Key:
  names = tuple(names)
  return Key(default, " ".join(f"`{n}`" for n in names), lambda v: v in names, meaning, names)


def _integer(default: int, least: int, meaning: str, most: int | float = math.inf) -> Key:
  allowed = f"an integer, at least {least}" + (f", at most {most}" if most < math.inf else "")
  return Key(default, allowed, lambda v: least <= v <= most, meaning)


def _number(default: float, meaning: str, least: float = 0.0, below: float = math.inf) -> Key:
  allowed = f"a number from {least:g}" + (f", below {below:g}" if below < math.inf else "")
  return Key(default, allowed, lambda v: least <= v < below, meaning)


def _flag(default: bool, meaning: str) -> Key:
  return Key(default, "`True` `False`", lambda v: True, meaning)


def _rates(values: tuple) -> bool:
  return all(isinstance(v, int | float) and 0 <= v < 1 for v in values)


def _epochs(values: tuple) -> bool:
  positive = all(isinstance(v, int | float) and 0 < v < math.inf for v in values)
  return positive and all(a < b for a, b in itertools.pairwise(values))


def _rules(which: Callable[[learning_rules.Rule], Any]) -> tuple[str, ...]:
  return tuple(name for name, rule in learning_rules.RULES.items() if which(rule))


_GRAHAM = augmentation.Graham()
_GRAHAM_SIDE = 32  # of the images that his numbers are for

KEYS: dict[str, Key] = {
  "seed": Key(
    0,
    "an integer from 0, below 2^32",
    lambda v: 0 <= v < 2**32,
    "decides every random number of the run",
  ),
  "model.name": _one_of("all_cnn_c", architectures.NAMES, "the network"),
  "model.width": Key(
    1.0,
    "a number above 0, at most 100",
    lambda v: 0 < v <= 100,
    "factor on the features of every layer but the last",
  ),
  "model.head": _one_of(
    "conv", architectures.HEADS, "1x1 convolutions and a global average, or dense layers"
  ),
  "model.pool": Key(
    "max",
    " ".join(f"`{p}`" for p in architectures.POOLS) + ", or a number p >= 1: a p-norm",
    lambda v: v in architectures.POOLS or architectures.is_norm(v),
    "what stands where the table has pooling; `none` removes every stride too",
  ),
  "model.init": _one_of("he_normal", model.INITIALIZERS, "initializer of the kernels"),
  "model.dropout": Key(
    (),
    "one rate from [0, 1) a level, or `()`: the paper's",
    _rates,
    "dropout rates: on the input, then after each pool or what replaces it",
  ),
  "model.dropout_after": _one_of(
    "printed",
    architectures.DROPOUTS,
    "where the second rate drops: as in the table; `all`: after every inner layer too; `1x1`: after the inner 1x1 ones too",
  ),
  "model.stride_padding": _one_of(
    "caffe", architectures.STRIDE_PADDINGS, "3x3 at stride 2 pads (1, 1), or (0, 1) as XLA's SAME"
  ),
  "model.final_relu": _flag(
    True, "`True`: the last layer has a ReLU where the paper's table has one; `False`: it has none"
  ),
  "dataset.name": Key(
    "digits",
    "`digits`, `npz:PATH`, or a TFDS image set such as `cifar10` `cifar100` `mnist`",
    bool,
    "where the images come from",
  ),
  "dataset.data_dir": Key(
    "", "a folder, or empty: TFDS's default", files.is_place, "where TFDS sets are"
  ),
  "dataset.validation": _integer(0, 0, "how many training images are held out to choose by"),
  "dataset.preprocessing": _one_of(
    "standardize",
    preprocessing.KINDS,
    "contrast normalisation and ZCA; by channel; (x - 128) / 128; or values from 0 to 1",
  ),
  "dataset.augment": _one_of(
    "none", augmentation.KINDS, "random shifts of up to 5 pixels, flips, crops, Graham's warps"
  ),
  "dataset.plain_epochs": _integer(
    0, 0, "how many of the last of `train.epochs` are without augmentation"
  ).where("dataset.augment", *(kind for kind in augmentation.KINDS if kind != "none")),
  "graham.stretch": _number(_GRAHAM.stretch, "largest change of a side's length", below=1.0).where(
    "dataset.augment", "graham"
  ),
  "graham.skew": _number(_GRAHAM.skew, "largest shear, or rotation in radians", below=1.0).where(
    "dataset.augment", "graham"
  ),
  "graham.shift": _integer(
    _GRAHAM.shift, 0, "the most pixels that an image is moved by", most=1000
  ).where("dataset.augment", "graham"),
  "graham.colour": Key(
    _GRAHAM.colour,
    "four numbers from 0",
    lambda v: len(v) == 4 and all(isinstance(x, int | float) and 0 <= x < math.inf for x in v),
    "deviations of a channel's offset (of 256 levels), gain, and slopes by row and column",
  ).where("dataset.augment", "graham"),
  "stream.workers": _integer(
    0, 0, "processes that decode images that vary in size; 0: up to four threads of the run itself"
  ),
  "stream.damaged": _number(
    0.01, "the share of damaged records of a split above which a run stops", below=1.0
  ),
  "train.epochs": _integer(1, 1, "passes over the training images"),
  "train.steps": _integer(0, 0, "if not 0, the number of steps, whatever `train.epochs` says"),
  "train.batch_size": _integer(128, 1, "images a step, over all devices"),
  "train.dtype": _one_of(
    "float32", ("float32", "bfloat16"), "type of the computation; weights are float32"
  ),
  "optimizer.name": _one_of("sgd", optimizer.NAMES, "SGD with momentum, Adam, or Muon"),
  "optimizer.learning_rate": _number(0.05, "the highest rate"),
  "optimizer.schedule": _one_of(
    "drops",
    optimizer.SCHEDULES,
    "from the highest rate down by `drops`; or in a straight line to 0 at the end of `train.epochs`",
  ),
  "optimizer.warmup": _number(
    0.0, "over which share of `train.epochs` the rate first rises from 0", below=1.0
  ),
  "optimizer.drops": Key(
    (), "a tuple of rising epochs", _epochs, "after which epochs the rate is divided"
  ).where("optimizer.schedule", "drops"),
  "optimizer.drop_factor": _number(10.0, "by how much it is divided", least=1.0).where(
    "optimizer.schedule", "drops"
  ),
  "optimizer.momentum": _number(
    0.9, "momentum of SGD and Muon, the first decay rate of Adam", below=1.0
  ),
  "optimizer.nesterov": _flag(False, "whether it looks one step of its velocity ahead").where(
    "optimizer.name", "sgd", "muon"
  ),
  "optimizer.clip_norm": _number(
    0.0, "gradients, with their coupled decay, are clipped to this norm over all weights; 0: not"
  ),
  "optimizer.weight_decay": _number(
    0.0,
    "coupled: gradient + decay x weight; decoupled for Muon: weight - rate x decay x weight",
  ),
  "optimizer.decay_bias": _flag(True, "whether biases decay too, as in Caffe"),
  "optimizer.velocity": _one_of(
    "caffe",
    optimizer.VELOCITIES,
    "SGD's rate is inside the velocity (it coasts after a drop), or outside",
  ).where("optimizer.name", "sgd"),
  "rule.name": _one_of("bp", learning_rules.RULES, "how errors find their way back"),
  "rule.feedback_init": _one_of(
    "fan_out",
    feedback.INITIALIZERS,
    "feedback weights of variance 1/n_out, of variance 1/n_in, or 0.05^2",
  ).where("rule.name", *_rules(lambda rule: rule.draws or rule.direct)),
  "rule.freeze_at": _number(
    0.05, "after which share of `train.epochs` the rule freezes the signs", below=1.0
  ).where("rule.name", *_rules(lambda rule: rule.keeps_signs)),
  "rule.penalty": _number(0.001, "lambda of BP + alignment").where(
    "rule.name", *_rules(lambda rule: rule.aligns)
  ),
  "rule.start_from": Key(
    "",
    "a run's folder, or empty",
    files.is_place,
    "the run, under any rule, whose newest weights this one begins with",
  ),
  "alignment.every_steps": _integer(
    0, 0, "steps between measurements of how errors and weights align with BP's; 0: none"
  ),
  "evaluate.every_steps": _integer(0, 0, "steps between evaluations; 0: at the end of each epoch"),
  "checkpoint.every_steps": _integer(
    0, 0, "steps between checkpoints; 0: at the end of each epoch"
  ),
  "checkpoint.least_seconds": _number(
    0.0, "a checkpoint due within so many seconds of the last one is left out, but for the end's"
  ),
  "checkpoint.keep": _integer(2, 1, "how many of the newest checkpoints are kept"),
  "log.every_steps": _integer(100, 1, "steps between lines of `metrics.jsonl`"),
}

# Keys that change no number.
QUIET = (
  "log.every_steps",
  "checkpoint.every_steps",
  "checkpoint.least_seconds",
  "checkpoint.keep",
  "stream.workers",
  "stream.damaged",
  "dataset.data_dir",
)
# A run may be gone on with under other values of these keys, and of no others.
MAY_CHANGE = ("train.steps", "train.epochs", *QUIET)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """("a.b", value) for every key of a nested mapping."""
  for name, value in config.items():
    if hasattr(value, "items"):
      yield from leaves(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config with the default of every key that it leaves out.

  Raises:
    UsageError: a key that nothing reads, or a value of another type than the default's.
  """
  full = ml_collections.ConfigDict()
  for path, key in KEYS.items():
    _set(full, path, key.default)
  for path, value in leaves(config):
    if path not in KEYS:
      raise unknown("config key", path, KEYS)
    _set(full, path, _as_type(path, value))
  return full


def refused(path: str, value: Any) -> UsageError:
  """What is said of a value that a key may not have: those that it may."""
  key = KEYS[path]
  if key.names:
    return unknown(path, value, key.names)
  allowed = key.allowed.replace("` `", ", ").replace("`", "")
  return UsageError(f"{path}={value!r}: must be {allowed}.")


def check(config: ml_collections.ConfigDict) -> None:
  """Checks every value.

  Raises:
    UsageError: naming the first value that is not allowed, and those that are.
  """
  for path, value in leaves(config):
    value = _as_type(path, value)
    if not KEYS[path].check(value):
      raise refused(path, value)
  if config.dataset.augment == "graham" and config.dataset.preprocessing != "grey":
    raise UsageError(
      f"dataset.preprocessing={config.dataset.preprocessing!r}: dataset.augment='graham' changes "
      "colours on the scale of 'grey' and surrounds images with it."
    )
  rule, clip_norm = config.rule.name, config.optimizer.clip_norm
  if learning_rules.RULES[rule].manhattan and clip_norm:
    raise UsageError(
      f"optimizer.clip_norm={clip_norm}: rule.name={rule!r} takes the sign of every gradient, which "
      "clipping would only make smaller, all alike: 0 leaves it out."
    )
  stored = augmentation.stored_size(
    config.dataset.augment, architectures.ARCHITECTURES[config.model.name].image
  )
  if config.dataset.augment == "graham" and min(stored[:2]) < _GRAHAM_SIDE:
    raise UsageError(
      f"model.name={config.model.name!r}: dataset.augment='graham' puts images on a canvas four times "
      "as wide, and this network takes too small a one: large_all_cnn takes 126x126."
    )
  if config.dataset.preprocessing == "gcn_zca" and math.prod(stored) > preprocessing.LARGEST_ZCA:
    raise UsageError(
      f"dataset.preprocessing='gcn_zca' whitens images of up to {preprocessing.LARGEST_ZCA} values, not of "
      f"{'x'.join(map(str, stored))}: standardize, grey and none take larger ones."
    )
  choices = {k: v for k, v in config.model.items() if k not in ("name", "init")}
  choices["dropout"] = tuple(choices["dropout"]) or None
  # The table must be able to take the choices; how many classes there are does not matter.
  architectures.resolve(config.model.name, 1, **choices)


def unread(config: ml_collections.ConfigDict, path: str) -> str:
  """Why nothing reads a key of this config, in a sentence; empty if something does."""
  if KEYS[path].read_where is None:
    return ""
  decides, names = KEYS[path].read_where
  values = dict(leaves(config))
  if values[decides] in names:
    return ""
  return (
    f"{path}={values[path]!r} changes nothing: {decides}={values[decides]!r} does not read it; "
    f"{', '.join(names)} would."
  )


def _as_type(path: str, value: Any) -> Any:
  default = KEYS[path].default
  if isinstance(default, float) and type(value) is int:
    try:
      return float(value)
    except OverflowError:
      raise refused(path, value) from None
  if isinstance(default, tuple) and isinstance(value, list):
    return tuple(value)
  if type(value) is not type(default):
    raise UsageError(
      f"{path}={value!r}: must be of type {type(default).__name__}: {KEYS[path].allowed.replace('`', '')}."
    )
  return value


def _set(config: ml_collections.ConfigDict, path: str, value: Any) -> None:
  *groups, name = path.split(".")
  for group in groups:
    if group not in config:
      config[group] = ml_collections.ConfigDict()
    config = config[group]
  config[name] = value


def to_json(config: ml_collections.ConfigDict) -> str:
  """The config as indented JSON."""
  return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
  """The config that `to_json` wrote, completed and checked.

  Raises:
    UsageError: it is no such config.
  """
  try:
    values = json.loads(text)
    if not isinstance(values, dict):
      raise TypeError(f"a {type(values).__name__} in the place of an object")
    config = ml_collections.ConfigDict(values)
  except (ValueError, TypeError, RecursionError) as error:
    raise UsageError(f"it is not the JSON of a config: {error}") from None
  config = complete(config)
  check(config)
  return config


def markdown() -> str:
  """The table of all keys that stands in the README; `python -m allcnn_jax.config` prints it."""
  rows = ["| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
  for path, key in KEYS.items():
    meaning = key.meaning
    if key.read_where:
      decides, names = key.read_where
      meaning += f"; read where `{decides}` is {' '.join(f'`{n}`' for n in names)}"
    rows.append(f"| `{path}` | `{key.default!r}` | {key.allowed} | {meaning} |")
  return "\n".join(rows)


if __name__ == "__main__":
  with one_line("config"):
    Parser(description=markdown.__doc__).parse_args()
    print(markdown())
