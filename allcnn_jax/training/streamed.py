"""A split that is read and decoded while it is used. Grain is imported for such a split alone."""

from collections.abc import Iterator, Sequence

import jax
import ml_collections
import numpy as np
from jaxtyping import UInt8

from allcnn_jax.data import augmentation, preprocessing, stream
from allcnn_jax.errors import UsageError
from allcnn_jax.training import parts, sharding
from allcnn_jax.training import step as step_lib
from allcnn_jax.training.sources import Batch


class Streamed:
  """Reads one batch ahead of the device."""

  def __init__(self, config: ml_collections.ConfigDict, split: str, name: str | None = None):
    c = config.dataset
    if name is None:  # another set is evaluated, which may ask for no augmentation
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
    self._random = stream.Crops(self._size, side, stream.RANDOM.get(c.augment, False), config.seed)
    self.classes, self.examples = self._stream.classes, len(self._stream)
    self._met: dict[str, None] = {}
    self._told = 0
    self._batches = self._ahead = None

  def sample(self) -> UInt8[np.ndarray, "n h w c"]:
    return self._stream.sample(self._size)

  def prepare(self, preprocessor: preprocessing.Preprocessor) -> None:
    self._apply = jax.jit(preprocessor.apply)

  def start(
    self,
    recipe: step_lib.Recipe,
    state: step_lib.TrainState,
    totals: step_lib.Totals,
    steps_a_call: int = 1,
  ) -> None:
    self._recipe = recipe
    self._batches = self._stream.training(
      self._random,
      recipe.batch_size,
      int(state.step),
      shard=sharding.process(),
      plain_from=recipe.plain_from,
      workers=self._config.stream.workers,
    )
    self._ahead = self._next()
    step_lib.train_batch.lower(recipe, state, totals, self._ahead).compile()

  def advance(
    self, state: step_lib.TrainState, totals: step_lib.Totals, step: int
  ) -> tuple[step_lib.TrainState, step_lib.Totals, int]:
    """One step; the next batch travels to the device meanwhile."""
    batch = self._ahead
    state, totals = step_lib.train_batch(self._recipe, state, totals, batch)
    self._ahead = self._next()
    # A batch is ready once the step before its own is done: an accelerator has one in its queue.
    jax.block_until_ready(totals if jax.default_backend() == "cpu" else batch)
    return state, totals, step + 1

  def _next(self) -> step_lib.Examples:
    batch = next(self._batches)
    self._meet(batch.damaged)
    if not batch.mask.all():
      raise UsageError(f"Too many records in a row are damaged; the last: {batch.damaged[-1]}.")
    images, labels = sharding.from_process((batch.images[0], batch.labels))
    return step_lib.Examples(self._apply(images), labels)

  def first(self, n: int) -> step_lib.Examples:
    batch = next(iter(self.evaluation(n)))
    return step_lib.Examples(batch.views[0], batch.labels)

  def evaluation(self, batch_size: int, views: int = 0) -> Iterator[Batch]:
    if views:
      stream.check_augmentation(self._config.dataset.augment)
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
