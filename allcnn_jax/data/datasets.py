"""A name -> images and labels in memory.

  digits     scikit-learn's 1,797 handwritten digits: inside its package, no network
  npz:PATH   the user's own: train_images, train_labels, test_images, test_labels
  any other  a TFDS image set of one size, prepared as array_record

Nothing is downloaded here and TensorFlow is not imported: TFDS sets are read through their
random-access files. A set that is not prepared is refused with the command that prepares it.
"""

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from etils import epath
from jaxtyping import Int, UInt8
from tqdm import tqdm

from allcnn_jax import files
from allcnn_jax.errors import UsageError, hint, in_a_line, is_denied, unknown

_MOST_CLASSES = 1_000_000  # of arrays of the user's own: more are labels of another kind
_SPLIT_SEED = 0  # Which images are held out never depends on a run's seed.


class Dataset(NamedTuple):
  """A split in memory.

  Attributes:
    images: uint8 (N, H, W, C).
    labels: int32 (N,).
    classes: the name of each class.
  """

  images: UInt8[np.ndarray, "n h w c"]
  labels: Int[np.ndarray, " n"]
  classes: tuple[str, ...]


def load(
  name: str,
  split: str,
  image: tuple[int, int, int],
  *,
  validation: int = 0,
  data_dir: str = "",
) -> Dataset:
  """Reads one split and brings its images to the size and channels that a network takes.

  Args:
    name: "digits", "npz:PATH" or the name of a TFDS set.
    split: "train" (less the validation images), "validation", "test", or for a TFDS set any
      split of its own, slices included ("test[:100]").
    image: height, width and channels to bring the images to. Other sizes are resized
      (bilinear), grey images are repeated over three channels.
    validation: how many training images are held out, the same ones in every run.
    data_dir: where TFDS sets are; "" is TFDS's default.

  Raises:
    UsageError: the set, its form, the split or the size cannot be had.
  """
  data = _read(name, _stored_split(name, split, validation, data_dir), data_dir)
  rows = kept(name, len(data.labels), split, validation)
  if len(rows) < len(data.labels):
    data = data._replace(images=data.images[rows], labels=data.labels[rows])
  return data._replace(images=_fit(name, data.images, image))


class Record(NamedTuple):
  """A stored image with its label and, if the set has them, the name of its file."""

  content: bytes
  label: int
  file_name: str


class Records:
  """Random access to the records of a TFDS split, their images undecoded.

  Those of a split that is held out are among the records of "train": `kept` says which.
  """

  def __init__(self, name: str, split: str, validation: int, data_dir: str):
    if not _in_tfds(name):
      raise UsageError(f"{name} is held in memory: only sets of TFDS are streamed.")
    builder = _prepared(name, data_dir)
    self.classes = tuple(_label(name, builder).names)
    stored = _stored_split(name, split, validation, data_dir)
    self._serialized = _open(name, builder, stored).data_source
    first = 0
    with contextlib.suppress(Exception):  # one that is damaged is met later, and named
      first = self[0].label
    _check_labels(name, split, first)

  def __len__(self) -> int:
    return len(self._serialized)

  def __getitem__(self, row: int) -> Record:
    from tensorflow_datasets.proto import tf_example_pb2  # slow to import

    # TFDS's own parser does the same, and takes a tenth of the time that decoding a JPEG does.
    feature = tf_example_pb2.Example.FromString(self._serialized[row]).features.feature
    names = feature["file_name"].bytes_list.value
    return Record(
      feature["image"].bytes_list.value[0],
      feature["label"].int64_list.value[0],
      names[0].decode() if names else "",
    )


def varies(name: str, data_dir: str = "") -> bool:
  """Whether a set's images vary in size, so that it cannot be read into memory as one array."""
  if not _in_tfds(name):
    return False
  builder = _prepared(name, data_dir)
  _label(name, builder)
  return None in builder.info.features["image"].shape


def has_split(name: str, split: str, data_dir: str = "") -> bool:
  """Whether a TFDS set has a split of that name."""
  return _in_tfds(name) and split in _prepared(name, data_dir).info.splits


def eval_split(name: str, validation: int = 0, data_dir: str = "") -> str:
  """What a run is evaluated on: the held-out images if there are any, else the test set.

  ImageNet and its like keep the labels of their test set: there it is the validation set.
  """
  own = varies(name, data_dir) and has_split(name, "validation", data_dir)
  return "validation" if validation or own else "test"


def _in_tfds(name: str) -> bool:
  return name != "digits" and not name.startswith("npz:")


def _stored_split(name: str, split: str, validation: int, data_dir: str) -> str:
  """The split that the images of `split` are read from."""
  if validation and split in ("train", "validation"):
    return "train"
  if split == "validation" and not has_split(name, split, data_dir):
    raise UsageError(
      f"{name} has no validation images: set dataset.validation to how many of the training "
      "images to hold out."
    )
  return split


def kept(name: str, n: int, split: str, validation: int) -> Int[np.ndarray, " m"]:
  """Which of the n stored images belong to a split: all, or those (not) held out.

  Raises:
    UsageError: the split is empty, or too many are to be held out.
  """
  rows = np.arange(n)
  if validation and split in ("train", "validation"):
    left_to_train(name, validation, n)
    order = np.random.default_rng(_SPLIT_SEED).permutation(n)
    rows = np.sort(order[:-validation] if split == "train" else order[-validation:])
  if not n:
    raise UsageError(f"The split {split!r} of {name} is empty.")
  return rows


def num_classes(name: str, data_dir: str = "") -> int:
  """How many classes a set has, without reading its images.

  Raises:
    UsageError: the set is unknown or has no classes.
  """
  if name in _SIZES:
    return _SIZES[name].classes
  if not _in_tfds(name):
    return len(_read(name, "test", data_dir).classes)
  return _label(name, _builder(name, data_dir)).num_classes


class Sizes(NamedTuple):
  """How many images there are to train on, and of how many classes.

  Where they vary in size they are streamed, and never all on a device.
  """

  train: int
  classes: int
  varies: bool = False


# Sets that need not be here to be counted.
_SIZES = {
  "cifar10": Sizes(50_000, 10),
  "cifar100": Sizes(50_000, 100),
  "mnist": Sizes(60_000, 10),
  "imagenet2012": Sizes(1_281_167, 1000, varies=True),
}


def sizes(name: str, data_dir: str = "") -> Sizes:
  """The sizes of a set; of the papers' ones without looking at any file.

  Raises:
    UsageError: it is another set of TFDS, and not prepared, or without such images.
  """
  if name in _SIZES:
    return _SIZES[name]
  if not _in_tfds(name):
    train = _read(name, "train", data_dir)
    return Sizes(len(train.labels), len(train.classes))
  builder = _prepared(name, data_dir)
  splits = builder.info.splits
  if "train" not in splits:
    raise unknown(f"split of {name}", "train", splits)
  count = splits["train"].num_examples
  return Sizes(count, _label(name, builder).num_classes, varies(name, data_dir))


def training_images(name: str, validation: int = 0, data_dir: str = "") -> int:
  """How many images `load` would give to train on, without reading those of a TFDS set.

  Raises:
    UsageError: the set is not at hand, or too many of its images are to be held out.
  """
  if _in_tfds(name):
    _prepared(name, data_dir)
  return left_to_train(name, validation, sizes(name, data_dir).train)


def left_to_train(name: str, validation: int, n: int) -> int:
  """How many of a set's `n` training images are left where so many are held out.

  Raises:
    UsageError: none is.
  """
  if validation >= n:
    raise UsageError(
      f"dataset.validation={validation} leaves none of {name}'s {n} images to train on."
    )
  return n - validation


def _label(name: str, builder: Any) -> Any:
  """The set's class label."""
  features = dict(builder.info.features)
  if "image" not in features or not hasattr(features.get("label"), "num_classes"):
    raise UsageError(f"{name} has no 'image' and class 'label': it is no set of classified images.")
  if features["image"].np_dtype != np.uint8:
    raise UsageError(f"{name}'s images are {features['image'].np_dtype.__name__}, and not uint8.")
  return features["label"]


def _read(name: str, split: str, data_dir: str) -> Dataset:
  if name == "digits":
    return _one_of(name, split, _digits())
  if name.startswith("npz:"):
    return _one_of(name, split, _npz(os.path.expanduser(name.removeprefix("npz:"))))
  return _tfds(name, split, data_dir)


def _one_of(name: str, split: str, splits: dict[str, Dataset]) -> Dataset:
  if split not in splits:
    raise unknown(f"split of {name}", split, splits)
  return splits[split]


def _digits() -> dict[str, Dataset]:
  """8x8 digits of 17 grey levels, four fifths to train on and one to test."""
  from sklearn.datasets import load_digits  # slow to import, and needed here alone

  bunch = load_digits()
  images = np.round(bunch.images[..., None] * (255 / 16)).astype(np.uint8)
  labels = bunch.target.astype(np.int32)
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
  cut = len(labels) - len(labels) // 5
  classes = tuple(str(i) for i in range(10))
  return {
    "train": Dataset(images[order[:cut]], labels[order[:cut]], classes),
    "test": Dataset(images[order[cut:]], labels[order[cut:]], classes),
  }


def _npz(path: str) -> dict[str, Dataset]:
  keys = [f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels")]
  try:
    with np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False) as archive:
      arrays = {key: archive[key] for key in keys if key in archive}
  except FileNotFoundError:
    raise UsageError(f"npz:{path}: there is no such file.") from None
  except Exception as error:
    raise UsageError(f"npz:{path} is no readable npz of plain arrays: {error}") from None
  if len(arrays) < len(keys):
    raise UsageError(
      f"npz:{path} must hold {', '.join(keys)}; it lacks {', '.join(set(keys) - set(arrays))}."
    )
  splits = {}
  for split in ("train", "test"):
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    if images.ndim == 3:
      images = images[..., None]
    kind, form = images.dtype, images.shape
    if kind != np.uint8 or len(form) != 4 or form[-1] not in (1, 3) or 0 in form[1:]:
      raise UsageError(
        f"npz:{path}: {split}_images must be uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), "
        f"not {kind} {form}."
      )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
      raise UsageError(
        f"npz:{path}: {split}_labels must be integers of shape ({len(images)},), "
        f"not {labels.dtype} {labels.shape}."
      )
    least, most = labels.min(initial=0), labels.max(initial=0)
    if least < 0 or most >= _MOST_CLASSES:
      raise UsageError(
        f"npz:{path}: {split}_labels must be from 0, below {_MOST_CLASSES}, not {least if least < 0 else most}."
      )
    splits[split] = Dataset(images, labels.astype(np.int32), ())
  count = 1 + max(int(data.labels.max(initial=0)) for data in splits.values())
  classes = tuple(str(i) for i in range(count))
  return {split: data._replace(classes=classes) for split, data in splits.items()}


def _builder(name: str, data_dir: str) -> Any:
  """The TFDS builder of a set, prepared or not."""
  import tensorflow_datasets as tfds  # slow to import, and not needed for arrays
  from google.protobuf import json_format

  try:
    if ":" in name:
      raise ValueError("TFDS would ask others for it, over a network")
    if not (_place(data_dir) / name).exists():
      # Unlike `tfds.builder` it asks no network for an unknown name. It takes none of a config.
      tfds.builder_cls(name.partition("/")[0])
    return tfds.builder(name, data_dir=str(_place(data_dir)))
  except (json_format.ParseError, json.JSONDecodeError) as error:
    raise _unreadable(_place(data_dir) / name, name, data_dir, error) from None
  except (tfds.core.DatasetNotFoundError, ValueError, AttributeError, OSError) as error:
    known = ["digits", *re.findall(r"- (\w+)", str(error))]
    raise UsageError(
      f"Unknown dataset {name!r}.{hint(name, known)} Known: digits, npz:PATH and the image sets of TFDS."
    ) from None


def _place(data_dir: str) -> epath.Path:
  import tensorflow_datasets as tfds

  return epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()


def _prepared(name: str, data_dir: str) -> Any:
  """The TFDS builder of a set that is prepared as array_record."""
  builder = _builder(name, data_dir)
  if not builder.info.splits or not epath.Path(builder.data_dir).exists():
    _label(name, builder)  # what could not be used is not worth preparing
    raise UsageError(
      f"TFDS has not prepared {name} in {_place(data_dir)}. Prepare it once with: {_command(name, data_dir)}"
    )
  form = builder.info.file_format.value
  if form != "array_record":
    raise UsageError(
      f"{builder.data_dir} is in {form} form, which cannot be read without TensorFlow. "
      f"Remove it, then prepare it with: {_command(name, data_dir)}"
    )
  return builder


def _command(name: str, data_dir: str) -> str:
  """What prepares a set."""
  place = f"data_dir='{_place(data_dir)}', " if data_dir else ""
  return (
    f'python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', {place}file_format='array_record').download_and_prepare()\""
  )


def _unreadable(folder: epath.PathLike, name: str, data_dir: str, error: Exception) -> UsageError:
  why = in_a_line(error)[:100]
  return UsageError(
    f"{folder} cannot be read ({why}). If it is damaged, remove it, then prepare it with: "
    f"{_command(name, data_dir)}"
  )


def _open(name: str, builder: Any, split: str) -> Any:
  try:
    source = builder.as_data_source(split=split)
    len(source)  # refuses a part that ends before it begins
    return source
  except ValueError:
    own = split.partition("[")[0]
    if own in builder.info.splits:
      n = builder.info.splits[own].num_examples
      raise UsageError(
        f"The split {split!r} of {name} is empty, not understood, or goes beyond its {n} images."
      ) from None
    raise unknown(f"split of {name}", split, builder.info.splits) from None


def _tfds(name: str, split: str, data_dir: str) -> Dataset:
  builder = _prepared(name, data_dir)
  names = tuple(_label(name, builder).names)
  shape = builder.info.features["image"].shape
  if None in shape:
    raise UsageError(f"{name}'s images vary in size, {shape}: they are streamed (`stream.py`).")
  source = _open(name, builder, split)
  place = _decoded(builder, split)
  with contextlib.suppress(FileNotFoundError, safetensors.SafetensorError):  # none, or damaged
    arrays = safetensors.numpy.load_file(place)
    return Dataset(arrays["images"], arrays["labels"], names)
  n, step = len(source), 1000
  images = np.empty((n, *shape), np.uint8)
  labels = np.empty(n, np.int32)
  for start in tqdm(
    range(0, n, step), f"reading {name} {split}", unit="k", leave=False, disable=None
  ):
    stop = min(start + step, n)
    try:
      for i, record in enumerate(source.__getitems__(list(range(start, stop))), start):
        images[i], labels[i] = record["image"], record["label"]
    except Exception as error:  # of many kinds
      if is_denied(error):
        raise
      raise _unreadable(builder.data_dir, name, data_dir, error) from None
  _check_labels(name, split, int(labels.min(initial=0)))
  with contextlib.suppress(OSError):  # without a cache the next start takes longer
    place.parent.mkdir(parents=True, exist_ok=True)
    files.write(place, safetensors.numpy.save({"images": images, "labels": labels}))
  return Dataset(images, labels, names)


def _check_labels(name: str, split: str, least: int) -> None:
  """Raises UsageError where TFDS has no labels, as of ImageNet's test images: it stores -1."""
  if least < 0:
    raise UsageError(f"The images of the split {split!r} of {name} have no labels.")


def _decoded(builder: Any, split: str) -> epath.Path:
  """Where a split's decoded images are kept: another place for a set that is prepared anew."""
  made = (epath.Path(builder.data_dir) / "dataset_info.json").stat().mtime
  key = hashlib.sha256(f"{builder.data_dir} {made} {split}".encode()).hexdigest()[:16]
  return files.cache() / "images" / f"{builder.info.name}_{key}.safetensors"


def _fit(name: str, images: np.ndarray, image: tuple[int, int, int]) -> np.ndarray:
  """(N, h, w, c) -> (N, H, W, C), uint8."""
  import jax

  h, w, channels = image
  if images.shape[-1] != channels:
    if images.shape[-1] != 1:
      raise UsageError(f"{name} has {images.shape[-1]} channels and the network takes {channels}.")
    images = np.repeat(images, channels, axis=-1)
  if images.shape[1:3] == (h, w):
    return images
  resize: Callable = jax.jit(
    lambda x: jax.image.resize(x.astype("float32"), (len(x), h, w, channels), "bilinear").round()
  )
  parts = [np.asarray(resize(x)) for x in np.array_split(images, -(-len(images) // 1000))]
  return np.concatenate(parts).astype(np.uint8)


def in_256_levels(image: Any) -> Any:
  """A picture of Pillow's with 65,536 levels in 256, where its own conversion would cut them off."""
  from PIL import Image  # not needed for arrays

  if not image.mode.startswith("I"):
    return image
  return Image.fromarray((np.asarray(image) / 257).clip(0, 255).round().astype(np.uint8))
