"""A split as training and evaluation take it, behind one door: whole on the device, or streamed."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from allcnn_jax.data import augmentation, datasets, preprocessing, stream
from allcnn_jax.errors import UsageError
from allcnn_jax.training import parts, randomness, sharding
from allcnn_jax.training import step as step_lib


class Batch(NamedTuple):
  """A batch to evaluate.

  Attributes:
    views: preprocessed images (N, H, W, C), as often as each is looked at.
    labels: of the images.
    mask: false where a row is filling.
  """

  views: Sequence[Float[Array, "n h w c"]]
  labels: Int[Array, " n"]
  mask: Bool[Array, " n"]


@runtime_checkable
class Source(Protocol):
  """One split.

  `sample` gives raw images to fit a preprocessor to, and `prepare` takes it; then come the rest.
  `start` makes ready for training from a step on, so many steps a call at most; `advance` trains,
  `first` gives the first images, unaugmented, `evaluation` each image once, `damaged` the names of
  the records that this process could not read since it was last asked. `check` is told how many
  images an evaluation had, in all processes, and raises UsageError if too many are missing.

  Attributes:
    classes: their names.
    examples: how many images there are.
  """

  classes: tuple[str, ...]
  examples: int

  def sample(self) -> UInt8[np.ndarray, "n h w c"]: ...
  def prepare(self, preprocessor: preprocessing.Preprocessor) -> None: ...
  def start(self, recipe: step_lib.Recipe, step: int, steps_a_call: int = 1) -> None: ...
  def advance(
    self, state: step_lib.TrainState, totals: step_lib.Totals, step: int
  ) -> tuple[step_lib.TrainState, step_lib.Totals, int]: ...
  def first(self, n: int) -> step_lib.Images: ...
  def evaluation(self, batch_size: int, views: int = 0) -> Iterator[Batch]: ...
  def damaged(self) -> list[str]: ...
  def check(self, evaluated: int) -> None: ...
  def close(self) -> None: ...


def open(config: ml_collections.ConfigDict, split: str, name: str | None = None) -> Source:
  """A split of a config's data set, or of another one.

  Raises:
    UsageError: it cannot be had, or a stream cannot do what the config asks for.
  """
  if datasets.varies(name or config.dataset.name, config.dataset.data_dir):
    return Streamed(config, split, name)
  return Resident(config, split, name)


def batches(data: step_lib.Stored, batch_size: int) -> Iterator[Batch]:
  """Each image once; the last batch is filled up and the filling masked."""
  n = len(data.labels)
  size = sharding.round_up(min(batch_size, n))
  cut = _cutter(sharding.mesh(), size)
  for start in range(0, n, size):
    (images, labels), mask = cut(data, np.int32(start))
    yield Batch([images], labels, mask)


@functools.cache
def _cutter(mesh: Mesh, size: int) -> Callable[..., Any]:
  """Takes `size` images from a row on, in one call: a GPU has done a batch before ten have begun."""

  def cut(data, start):
    rows, n = start + jnp.arange(size), len(data.labels)
    return data.take(jnp.minimum(rows, n - 1)), rows < n

  return jax.jit(cut, out_shardings=sharding.split(mesh))


class Resident:
  """A whole split on the device."""

  def __init__(self, config: ml_collections.ConfigDict, split: str, name: str | None = None):
    self._config, self._raw = config, parts.read_images(config, split, name)
    self.classes, self.examples = self._raw.classes, len(self._raw.labels)

  def sample(self) -> UInt8[np.ndarray, "n h w c"]:
    return self._raw.images

  def prepare(self, preprocessor: preprocessing.Preprocessor) -> None:
    self._preprocessor = preprocessor

  @functools.cached_property
  def _data(self) -> step_lib.Stored:
    """Made when first asked for: training does not wait for what is evaluated later."""
    images = self._preprocessor.apply(self._raw.images)
    images = images.astype(parts.stored_type(self._config), copy=False)
    data = sharding.replicate(step_lib.Stored.of(images, self._raw.labels))
    self._raw = None
    return data

  def start(self, recipe: step_lib.Recipe, step: int, steps_a_call: int = 1) -> None:
    self._recipe, self._steps_a_call = recipe, steps_a_call
    n = self.examples  # with `self` in the function, the images would outlive their run
    self._order = functools.lru_cache(1)(
      lambda epoch: step_lib.epoch_order(recipe.seed, jax.device_put(epoch), n)
    )

  def advance(
    self, state: step_lib.TrainState, totals: step_lib.Totals, step: int
  ) -> tuple[step_lib.TrainState, step_lib.Totals, int]:
    """One step, or on an accelerator as many as a call has; none goes beyond its epoch.

    XLA's CPU backend runs a convolution inside a loop many times slower than outside it.
    """
    epoch = step // (self.examples // self._recipe.batch_size)
    given = (self._recipe, state, totals, self._data, self._order(epoch))
    if jax.default_backend() == "cpu":
      state, totals = step_lib.train_step(*given)
      return state, jax.block_until_ready(totals), step + 1  # a queue would delay a stop
    state, totals = step_lib.train_steps(*given, self._steps_a_call)
    return state, totals, step + self._steps_a_call

  def first(self, n: int) -> step_lib.Images:
    batch = self._data.take(slice(n))
    size = parts.image(self._config)[:2]
    return batch._replace(images=augmentation.center(batch.images, size))

  def evaluation(self, batch_size: int, views: int = 0) -> Iterator[Batch]:
    size = parts.image(self._config)[:2]
    augment = jax.jit(parts.augment(self._config).apply, static_argnums=2)
    for n, batch in enumerate(batches(self._data, batch_size)):
      keys = [randomness.key(self._config.seed, f"view {i}", n) for i in range(views)]
      augmented = [augment(key, *batch.views, size) for key in keys]
      yield batch._replace(views=augmented or batch.views)

  def damaged(self) -> list[str]:
    return []

  def check(self, evaluated: int) -> None:
    assert evaluated == self.examples, f"{evaluated} of {self.examples} images were evaluated"

  def close(self) -> None:
    """There is nothing to end."""


class Streamed:
  """A split that is read and decoded while it is used, one batch ahead of the device."""

  def __init__(self, config: ml_collections.ConfigDict, split: str, name: str | None = None):
    c = config.dataset
    stream.check_augmentation(c.augment)
    if c.preprocessing == "gcn_zca":
      raise UsageError(
        "dataset.preprocessing='gcn_zca' needs all images in memory: a set of images that vary in "
        "size takes standardize, grey or none."
      )
    name, held_out, data_dir = parts.data_set(config, name)
    self._stream = stream.Stream(name, split, validation=held_out, data_dir=data_dir)
    self._config = config
    self._size, channels = parts.image(config)[:2], parts.image(config)[2]
    if channels != 3:
      raise UsageError(f"{config.model.name} takes {channels} channel, not colour.")
    side = min(augmentation.stored_size(c.augment, (*self._size, 3))[:2])
    self._central = stream.Crops(self._size, side)
    self._random = stream.Crops(self._size, side, stream.RANDOM[c.augment], config.seed)
    self.classes, self.examples = self._stream.classes, len(self._stream)
    self._met: dict[str, None] = {}
    self._told = 0
    self._batches = self._ahead = None

  def sample(self) -> UInt8[np.ndarray, "n h w c"]:
    return self._stream.sample(self._size)

  def prepare(self, preprocessor: preprocessing.Preprocessor) -> None:
    self._apply = jax.jit(preprocessor.apply)

  def start(self, recipe: step_lib.Recipe, step: int, steps_a_call: int = 1) -> None:
    self._recipe = recipe
    self._batches = self._stream.training(
      self._random,
      recipe.batch_size,
      step,
      shard=sharding.process(),
      plain_from=recipe.plain_from,
      workers=self._config.stream.workers,
    )

  def advance(
    self, state: step_lib.TrainState, totals: step_lib.Totals, step: int
  ) -> tuple[step_lib.TrainState, step_lib.Totals, int]:
    """One step; the next batch travels to the device meanwhile."""
    batch = self._ahead or self._next()
    state, totals = step_lib.train_batch(self._recipe, state, totals, batch)
    self._ahead = self._next()
    return state, jax.block_until_ready(totals), step + 1

  def _next(self) -> step_lib.Images:
    batch = next(self._batches)
    self._meet(batch.damaged)
    if not batch.mask.all():
      raise UsageError(f"Too many records in a row are damaged; the last: {batch.damaged[-1]}.")
    images, labels = sharding.from_process((batch.images[0], batch.labels))
    return step_lib.Images(self._apply(images), labels)

  def first(self, n: int) -> step_lib.Images:
    batch = next(iter(self.evaluation(n)))
    return step_lib.Images(batch.views[0], batch.labels)

  def evaluation(self, batch_size: int, views: int = 0) -> Iterator[Batch]:
    batches = self._stream.evaluation(
      self._random if views else self._central,
      sharding.round_up(batch_size),
      views=views or 1,
      shard=sharding.process(),
      workers=self._config.stream.workers,
    )
    try:
      for batch in batches:
        self._meet(batch.damaged)
        images, labels, mask = sharding.from_process((list(batch.images), batch.labels, batch.mask))
        yield Batch([self._apply(x) for x in images], labels, mask)
    finally:
      batches.close()

  def _meet(self, damaged: Sequence[str]) -> None:
    """Remembers damaged records. Raises UsageError if there are too many."""
    self._met |= dict.fromkeys(damaged)
    self._allow(len(self._met))

  def check(self, evaluated: int) -> None:
    self._allow(self.examples - evaluated)

  def _allow(self, damaged: int) -> None:
    allowed = self._config.stream.damaged
    if damaged > allowed * self.examples:
      last = f" The last: {list(self._met)[-1]}." if self._met else ""
      raise UsageError(
        f"{damaged} of the {self.examples} records of {self._stream.name} {self._stream.split} "
        f"are damaged, more than the share stream.damaged={allowed:g}.{last}"
      )

  def damaged(self) -> list[str]:
    names = list(self._met)[self._told :]
    self._told += len(names)
    return names

  def close(self) -> None:
    if self._batches is not None:
      self._batches.close()
