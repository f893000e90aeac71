"""TFDS sets whose images vary in size, such as ImageNet: decoded crops, a batch at a time.

A crop is a function of the seed and its position in the stream, and a batch one of its step. So
the step is all that a checkpoint needs to know of a stream, each process decodes its own rows of a
batch that is the same for any number of them, and how many workers there are changes nothing.
Reading and decoding go through Grain; TensorFlow is not imported.
"""

import contextlib
import dataclasses
import functools
import gc
import io
import multiprocessing.resource_tracker
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np
import simplejpeg
from absl import flags
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from allcnn_jax.data import datasets
from allcnn_jax.errors import UsageError, unknown

RANDOM = {"none": False, "crop_flip": True, "imagenet": True}  # of `augmentation.KINDS`
_CROP, _SHUFFLE = 0, 1  # streams of random numbers
_ENDLESS = 2**31 - 1  # steps of training
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TRIES = 100  # records after a damaged one that may take its place
cv2.setNumThreads(1)  # Grain's workers are as many as there should be


class Batch(NamedTuple):
  """One process's rows of a batch.

  Attributes:
    images: (views, rows, H, W, 3).
    labels: of each row.
    mask: whether there is an image in the row.
    damaged: which records could not be read, and why.
  """

  images: UInt8[np.ndarray, "v n h w 3"]
  labels: Int[np.ndarray, " n"]
  mask: Bool[np.ndarray, " n"]
  damaged: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Crops:
  """How an image becomes one of the network's size.

  Attributes:
    size: height and width of the crop.
    side: the image's shorter side is brought to it first.
    random: any place and a flip of half of them, or the central place.
    seed: of the places and flips.
  """

  size: tuple[int, int]
  side: int
  random: bool = False
  seed: int = 0

  def cut(
    self,
    image: UInt8[np.ndarray, "h w 3"],
    into: UInt8[np.ndarray, "h2 w2 3"],
    position: int,
    view: int = 0,
  ) -> None:
    """Writes the crop of an image that stands at a position of the stream."""
    top = left = 0.5
    flip = False
    if self.random:
      top, left, coin = np.random.default_rng((self.seed, _CROP, position, view)).random(3)
      flip = coin < 0.5
    scale = min(image.shape[:2]) / self.side
    cut = image
    for axis, (share, pixels) in enumerate(zip((top, left), self.size)):
      length = min(max(round(pixels * scale), 1), cut.shape[axis])
      first = int(share * (cut.shape[axis] - length + 1))
      cut = cut[first : first + length] if axis == 0 else cut[:, first : first + length]
    cv2.resize(cut, self.size[::-1], dst=into, interpolation=cv2.INTER_LINEAR)
    if flip:
      cv2.flip(into, 1, dst=into)


def decode(content: bytes, least: int) -> UInt8[np.ndarray, "h w 3"]:
  """An image in three colours, its shorter side at least `least` if it has as many pixels.

  A JPEG of twice that size or more is decoded at a half, a quarter or an eighth. What
  libjpeg-turbo does not take, such as a PNG under a JPEG's name, Pillow may.

  Raises:
    Exception: of several kinds, for what is damaged.
  """
  try:
    return simplejpeg.decode_jpeg(content, "RGB", min_height=least, min_width=least, min_factor=2)
  except ValueError:
    with Image.open(io.BytesIO(content)) as image:
      return np.asarray(datasets.in_256_levels(image).convert("RGB"))


@dataclasses.dataclass(frozen=True)
class _Training:
  """Step -> batch, without end: the whole set in an order of its own in each epoch.

  The next record that can be read takes the place of one that is damaged.
  """

  source: datasets.Records
  rows: np.ndarray
  crops: Crops
  batch_size: int
  shard: tuple[int, int]
  plain_from: int | None

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, step: int) -> Batch:
    n = len(self.rows)
    plain = self.plain_from is not None and step >= self.plain_from
    crops = dataclasses.replace(self.crops, random=self.crops.random and not plain)
    positions = _positions(step, self.batch_size, self.shard)
    images = np.zeros((1, len(positions), *crops.size, 3), np.uint8)
    labels, mask = np.zeros(len(positions), np.int32), np.zeros(len(positions), bool)
    damaged = []
    for i, position in enumerate(positions):
      first = _order(self.crops.seed, position // n, n)[position % n]
      for k in range(min(n, _TRIES)):
        row = int(self.rows[(first + k) % n])
        try:
          image, labels[i] = _read(self.source, row, crops.side)
        except Exception as error:
          damaged.append(_name(self.source, row, error))
          continue
        crops.cut(image, images[0, i], position)
        mask[i] = True
        break
    return Batch(images, labels, mask, tuple(damaged))


@dataclasses.dataclass(frozen=True)
class _Evaluation:
  """Step -> batch: each record once, in the set's own order; what is damaged is masked."""

  source: datasets.Records
  rows: np.ndarray
  crops: Crops
  batch_size: int
  shard: tuple[int, int]
  views: int

  def __len__(self) -> int:
    return -(-len(self.rows) // self.batch_size)

  def __getitem__(self, step: int) -> Batch:
    positions = _positions(step, self.batch_size, self.shard)
    images = np.zeros((self.views, len(positions), *self.crops.size, 3), np.uint8)
    labels, mask = np.zeros(len(positions), np.int32), np.zeros(len(positions), bool)
    damaged = []
    for i, position in enumerate(positions):
      if position >= len(self.rows):
        continue
      row = int(self.rows[position])
      try:
        image, labels[i] = _read(self.source, row, self.crops.side)
      except Exception as error:
        damaged.append(_name(self.source, row, error))
        continue
      mask[i] = True
      for view in range(self.views):
        self.crops.cut(image, images[view, i], position, view)
    return Batch(images, labels, mask, tuple(damaged))


@functools.lru_cache(2)  # a batch may stand in two epochs
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
  return np.random.default_rng((seed, _SHUFFLE, epoch)).permutation(n)


def _positions(step: int, batch_size: int, shard: tuple[int, int]) -> range:
  """The positions of a process's rows of the batch."""
  index, count = shard
  rows = batch_size // count
  first = step * batch_size + index * rows
  return range(first, first + rows)


def _read(source: datasets.Records, row: int, least: int) -> tuple[np.ndarray, int]:
  record = source[row]
  return decode(record.content, least), record.label


def _name(source: datasets.Records, row: int, error: Exception) -> str:
  """What to call a damaged record."""
  try:
    name = source[row].file_name
  except Exception:  # it cannot even be read
    name = ""
  why = re.sub(r"\s*<.*?>|\s+", " ", str(error)).strip()[:100] or type(error).__name__
  return f"record {row}{f' ({name})' if name else ''}: {why}"


class Stream:
  """One split of a set; opening it reads no image."""

  def __init__(self, name: str, split: str, *, validation: int = 0, data_dir: str = ""):
    """Opens a split.

    Args:
      name: of the TFDS set.
      split: as `datasets.load` takes it.
      validation: how many training images are held out.
      data_dir: where TFDS sets are.

    Raises:
      UsageError: as `datasets.load`.
    """
    self._source = datasets.Records(name, split, validation, data_dir)
    self.classes = self._source.classes
    self.rows = datasets.kept(name, len(self._source), split, validation)
    self.name, self.split = name, split

  def __len__(self) -> int:
    return len(self.rows)

  def training(
    self,
    crops: Crops,
    batch_size: int,
    start: int,
    *,
    shard: tuple[int, int] = (0, 1),
    plain_from: int | None = None,
    workers: int = 0,
  ) -> Iterator[Batch]:
    """The batches of steps `start`, `start` + 1, ... without end.

    Args:
      crops: how images are cut.
      batch_size: images a step, over all processes.
      start: the first step.
      shard: this process's number, and how many there are.
      plain_from: the step from which on crops are central.
      workers: processes that decode; 0: threads of this one.
    """
    steps = _Training(self._source, self.rows, crops, batch_size, shard, plain_from)
    return _iterate(steps, start, workers)

  def evaluation(
    self,
    crops: Crops,
    batch_size: int,
    *,
    views: int = 1,
    shard: tuple[int, int] = (0, 1),
    workers: int = 0,
  ) -> Iterator[Batch]:
    """Every record once, `views` crops of each; the last batch is filled up and masked."""
    steps = _Evaluation(self._source, self.rows, crops, batch_size, shard, views)
    return _iterate(steps, 0, workers)

  def sample(self, size: tuple[int, int], count: int = 256) -> UInt8[np.ndarray, "n h w 3"]:
    """Up to `count` images that are spread evenly over the split, central crops."""
    places = np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)
    batches = list(_iterate(self._central(size, 32, self.rows[places]), 0, workers=0))
    if not any(batch.mask.any() for batch in batches):
      raise UsageError(
        f"{self.name} {self.split}: no image can be read, not even {batches[0].damaged[0]}."
      )
    return np.concatenate([batch.images[0][batch.mask] for batch in batches])

  def central(
    self,
    size: tuple[int, int],
    batch_size: int = 32,
    rows: Int[np.ndarray, " n"] | None = None,
  ) -> Iterator[tuple[UInt8[np.ndarray, "m h w 3"], Int[np.ndarray, " m"]]]:
    """Central crops whose shorter side was `size`'s, a batch at a time, and which rows they are.

    Args:
      size: height and width of a crop.
      batch_size: how many records are read at a time; those that are damaged are left out.
      rows: of the set; by default all of the split.
    """
    rows = self.rows if rows is None else rows
    batches = _iterate(self._central(size, batch_size, rows), 0, workers=0)
    for step, batch in enumerate(batches):
      own = rows[step * batch_size : (step + 1) * batch_size]
      yield batch.images[0][batch.mask], own[batch.mask[: len(own)]]

  def _central(self, size: tuple[int, int], batch_size: int, rows: np.ndarray) -> _Evaluation:
    return _Evaluation(self._source, rows, Crops(size, min(size)), batch_size, (0, 1), 1)


def _iterate(steps: Any, start: int, workers: int) -> Iterator[Batch]:
  threads = 1 if workers else min(_cores(), 4)
  batches = grain.MapDataset.source(steps)[start : len(steps)].to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
  )
  if workers:
    if not flags.FLAGS.is_parsed():  # Grain asks for flags of its own, which we do not offer.
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    return _Owned(iter(batches.mp_prefetch(options, _begin_worker)))
  return iter(batches)


def _begin_worker(index: int, count: int) -> None:
  """Signals to the whole group are the run's to answer; but without the run a worker ends."""
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # what came before is forgotten
  run = multiprocessing.parent_process().pid

  def watch():
    while os.getppid() == run:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
  """Signals wait, in this thread and in those that it starts, and in their processes."""
  multiprocessing.resource_tracker.ensure_running()  # as it starts it lets signals through again
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Owned:
  """Batches copied out of the memory that Grain's workers share, all of which is freed in time.

  Python warns at its end of shared memory that nobody has freed.
  """

  def __init__(self, shared: Any):
    self._shared = shared
    self._begun = False

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    # With the first batch the workers begin, which would die of a signal until `_begin_worker`.
    with contextlib.nullcontext() if self._begun else _signals_held():
      batch = next(self._shared)
    self._begun = True
    return Batch(*(x.copy() if isinstance(x, np.ndarray) else x for x in batch))

  def close(self) -> None:
    if self._shared is not None:
      self._shared.close()
      self._shared = None
      gc.collect()


def _cores() -> int:
  """How many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def check_augmentation(kind: str) -> None:
  """Raises UsageError if a stream cannot do what a config asks for."""
  if kind not in RANDOM:
    raise unknown("dataset.augment of a set of images that vary in size", kind, RANDOM)
