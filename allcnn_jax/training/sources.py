"""A split as training and evaluation take it, behind one door; and one held on the device."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from allcnn_jax.data import augmentation, datasets, preprocessing
from allcnn_jax.training import graphs, parts, randomness, sharding
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
  """One split; `prepare` comes before all but `sample`, and `start` before `advance`.

  Attributes:
    classes: their names.
    examples: how many images there are.
  """

  classes: tuple[str, ...]
  examples: int

  def sample(self) -> UInt8[np.ndarray, "n h w c"]:
    """Raw images to fit a preprocessor to: all, or of a stream some."""

  def prepare(self, preprocessor: preprocessing.Preprocessor) -> None:
    """Takes the preprocessor of all images from here on."""

  def start(
    self,
    recipe: step_lib.Recipe,
    state: step_lib.TrainState,
    totals: step_lib.Totals,
    steps_a_call: int = 1,
  ) -> None:
    """Makes ready for training from a state on, at most so many steps a call.

    It compiles: what comes after is the steps' own time.
    """

  def advance(
    self, state: step_lib.TrainState, totals: step_lib.Totals, step: int
  ) -> tuple[step_lib.TrainState, step_lib.Totals, int]:
    """Trains from `step` on: the state, the sums so far, and the step that was reached."""

  def first(self, n: int) -> step_lib.Examples:
    """The first n images with their labels, preprocessed and unaugmented.

    Of a stream one that cannot be read is black, and of the first class.
    """

  def evaluation(self, batch_size: int, views: int = 0) -> Iterator[Batch]:
    """Each image once; as so many augmented views, or where that is 0 as itself."""

  def damaged(self) -> list[str]:
    """The names of the records that this process could not read since it was last asked."""

  def check(self, evaluated: int) -> None:
    """Told how many images an evaluation had, in all processes.

    Raises:
      UsageError: of a stream, if too many are missing.
    """

  def close(self) -> None:
    """Ends what reads ahead."""


def open(config: ml_collections.ConfigDict, split: str, name: str | None = None) -> Source:
  """A split of a config's data set, or of another one.

  Raises:
    UsageError: it cannot be had, or a stream cannot do what the config asks for.
  """
  if datasets.varies(name or config.dataset.name, config.dataset.data_dir):
    from allcnn_jax.training import streamed  # a set that is held in memory needs no Grain

    return streamed.Streamed(config, split, name)
  return Resident(config, split, name)


class Steps(NamedTuple):
  """What trains on a set on the device.

  Attributes:
    calls: take (recipe, state, totals, data, order).
    count: how many steps one call does.
  """

  calls: graphs.Calls
  count: int


def steps_of_stored(steps_a_call: int, *given: Any) -> Steps:
  """Compiles as many steps a call, or as few, as are fast here.

  XLA's CPU backend runs a convolution inside a loop many times slower than outside it: one step.

  Args:
    steps_a_call: at most.
    *given: what the first call will be given, or the like.
  """
  if jax.default_backend() == "cpu":
    return Steps(graphs.compile(step_lib.train_step.lower(*given)), 1)
  lowered = step_lib.train_steps.lower(*given, steps_a_call)
  return Steps(graphs.compile(lowered), steps_a_call)


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

  return jax.jit(cut, out_shardings=sharding.batch_sharding(mesh))


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

  def start(
    self,
    recipe: step_lib.Recipe,
    state: step_lib.TrainState,
    totals: step_lib.Totals,
    steps_a_call: int = 1,
  ) -> None:
    self._recipe = recipe
    n = self.examples  # with `self` in the function, the images would outlive their run
    self._order = functools.lru_cache(1)(
      lambda epoch: step_lib.epoch_order(recipe.seed, jax.device_put(epoch), n)
    )
    self._steps = steps_of_stored(steps_a_call, *self._given(state, totals, epoch=0))
    self._step = self._steps.calls.first

  def _given(self, state: step_lib.TrainState, totals: step_lib.Totals, epoch: int) -> tuple:
    return self._recipe, state, totals, self._data, self._order(epoch)

  def advance(
    self, state: step_lib.TrainState, totals: step_lib.Totals, step: int
  ) -> tuple[step_lib.TrainState, step_lib.Totals, int]:
    """One step, or on an accelerator as many as a call has; none goes beyond its epoch."""
    epoch = step // (self.examples // self._recipe.batch_size)
    state, totals = self._step(*self._given(state, totals, epoch))
    self._step = self._steps.calls.later
    if jax.default_backend() == "cpu":
      jax.block_until_ready(totals)  # a queue would delay a stop
    return state, totals, step + self._steps.count

  def first(self, n: int) -> step_lib.Examples:
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
