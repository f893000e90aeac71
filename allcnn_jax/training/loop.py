"""The clock of a run: when to log, evaluate, save and stop."""

import contextlib
import functools
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from jaxtyping import PyTree

from allcnn_jax import config as config_lib
from allcnn_jax import files
from allcnn_jax.data import preprocessing
from allcnn_jax.errors import Busy, DiskFull, UsageError, is_full, unwritable
from allcnn_jax.training import (
  checkpoints,
  evaluate,
  layout,
  machine,
  measurements,
  optimizer,
  parts,
  reporting,
  restore,
  sharding,
  sources,
  weights,
)
from allcnn_jax.training import lock as lock_lib
from allcnn_jax.training import step as step_lib


class Outcome(NamedTuple):
  """How a call of `train` ended.

  Attributes:
    status: "ok", "dead" or "diverged" for a run that came to its end, "stopped" for one that was
      asked to stop and can go on.
    step: the last step done.
  """

  status: str
  step: int


def train(
  config: ml_collections.ConfigDict,
  workdir: epath.PathLike,
  shared: epath.PathLike | None = None,
  asked_to_stop: Callable[[], bool] | None = None,
) -> Outcome:
  """Trains from the start, or from the newest checkpoint in `workdir`, to the end.

  Args:
    config: complete, as `config.complete` returns it.
    workdir: the run's folder; made if it is not there.
    shared: a folder where runs on the same images share what is fitted to them; by default one in
      the user's cache.
    asked_to_stop: what `on_signal` gives, of a caller who hears signals itself.

  Raises:
    UsageError: before anything is written, if the config, the data or the folder will not do.
    DiskFull: later; what was saved stays whole.
  """
  workdir = epath.Path(workdir)
  try:
    heard = contextlib.nullcontext(asked_to_stop) if asked_to_stop else on_signal()
    with heard as asked, lock_lib.Lock(workdir) as lock:
      return _Run(config, workdir, asked, lock, shared).go()
  except OSError as error:
    if not is_full(error):
      raise
    raise DiskFull(f"No space left in {workdir}. The checkpoints there stay whole.") from None


class _Run:
  """All of one run: made by `__init__`, which writes nothing until it knows that it can go."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    asked_to_stop: Callable[[], bool],
    lock: lock_lib.Lock,
    shared: epath.PathLike | None,
  ):
    config_lib.check(config)
    sharding.check_batch_size(config.train.batch_size)
    new = _check_workdir(config, workdir, lock)
    self.config, self.asked_to_stop, self.workdir = config, asked_to_stop, workdir

    self.train_images = sources.open(config, "train")
    self.split = parts.eval_split(config)
    self.eval_images = sources.open(config, self.split)
    self.examples = self.train_images.examples
    self.num_classes = len(self.train_images.classes)
    self.steps_per_epoch, self.total = parts.steps(config, self.examples)
    if preprocessing.saved(layout.preprocessing_of(workdir)):
      self._fitted()
    self.recipe = sharding.replicate(parts.recipe(config, self.num_classes, self.examples))

    self.zero = sharding.everywhere(step_lib.Totals.zero)
    self.checkpoints = checkpoints.Checkpoints(workdir, config.checkpoint.keep)
    start = sharding.everywhere(step_lib.init, static_argnums=1)
    channels = parts.image(config)[2]
    if self.checkpoints.steps():
      self.state = self.checkpoints.restore(jax.eval_shape(lambda: start(self.recipe, channels)))
      if self.step > self.total:
        raise UsageError(f"{workdir} is at step {self.step}, beyond the {self.total} asked for.")
    else:
      if not new and evaluate.read(workdir).get("status") in ("ok", "dead"):
        raise UsageError(
          f"{workdir} is a run's that has ended, and its checkpoints are gone: choose another --workdir."
        )
      self.state = start(self.recipe, channels, _given(config, self.recipe, channels))

    reporting.read(workdir)  # damaged files are found while nothing has been changed
    sharding.wait_for_all("the folder has been looked at")
    if sharding.is_first():
      _make_workdir(config, workdir, lock, new=new, trains=self.step < self.total)
      self.checkpoints.set_aside_after(self.step)
    preprocessor = self._preprocessor(shared)
    self.train_images.prepare(preprocessor)
    self.eval_images.prepare(preprocessor)

  @property
  def step(self) -> int:
    return int(self.state.step)

  def _preprocessor(self, shared: epath.PathLike | None) -> preprocessing.Preprocessor:
    place, kind = layout.preprocessing_of(self.workdir), self.config.dataset.preprocessing
    if sharding.is_first() and not preprocessing.saved(place):
      images, classes = self.train_images.sample(), self.train_images.classes
      preprocessing.fit_into(place, kind, images, classes, self.examples, shared)
    sharding.wait_for_all("the folder is ready")
    return self._fitted()

  def _fitted(self) -> preprocessing.Preprocessor:
    """What the folder has. Raises UsageError if it is of other images, as far as their number and classes tell."""
    place, kind = layout.preprocessing_of(self.workdir), self.config.dataset.preprocessing
    found = preprocessing.load(kind, place)
    if (found.examples, found.classes) != (self.examples, self.train_images.classes):
      raise UsageError(
        f"{place} was fitted to {found.examples} images of {len(found.classes)} classes; {self.config.dataset.name} "
        f"now has {self.examples} of {self.num_classes}, or classes by other names: choose another --workdir."
      )
    return found.preprocessor

  def go(self) -> Outcome:
    """Runs to the end, or until asked to stop."""
    totals = self.zero()
    with contextlib.closing(self.checkpoints), contextlib.closing(self.train_images):
      if self.step < self.total:
        steps = parts.steps_a_call(self.config, self.examples, self.step)
        self.train_images.start(self.recipe, self.state, totals, steps)
      with contextlib.closing(self._reporter(self.step)) as report:
        return self._train(report, totals)

  def _train(self, report: reporting.Reporter | reporting.Silent, totals: PyTree) -> Outcome:
    step, scores, saved = self.step, None, -math.inf
    rate = jax.jit(
      optimizer.schedule(self.config.optimizer, self.steps_per_epoch, self.config.train.epochs)
    )
    periods = parts.periods(self.config, self.examples)
    plain, epochs = self.config.dataset.plain_epochs, self.config.train.epochs
    if plain >= epochs and self.config.dataset.augment != "none":
      report.note(f"No image is augmented: dataset.plain_epochs={plain} of train.epochs={epochs}.")
    measures = self.config.alignment.every_steps > 0
    if measures and step == 0:
      self._measure(report, step)
      report.restart_clock(step)
    unread = None  # a line of the log, until the next call has been given
    while step < self.total:
      self.state, totals, step = self.train_images.advance(self.state, totals, step)
      report.advance(step)
      report.damaged(step, "train", self.train_images.damaged())
      if unread and (bad := self._read(report, *unread)):
        return self._diverged(report, bad)
      unread = None

      stop = self.asked_to_stop()
      log, look, save, measure = (step % every == 0 or step == self.total for every in periods)
      measure = measure and measures
      save = save and (step == self.total or self._has_waited(saved))
      log = log or stop  # what stands in no checkpoint
      waits = look or save or measure or stop
      if log or waits:
        sums = step, totals, rate(step - 1) if log else None
        totals = self.zero() if log else totals
        if runs_ahead() and not waits:
          unread = sums
        elif bad := self._read(report, *sums):
          return self._diverged(report, bad)
      if look:
        scores = self._evaluate(report, step)
      if measure:
        self._measure(report, step)
      if save or stop:
        if not step_lib.all_finite(self.state.variables):
          return self._diverged(report, step)
        self.checkpoints.save(self.state)
        saved = time.monotonic()
      if look or save or measure:
        report.restart_clock(step)
      if stop and step < self.total:
        report.note(
          f"Stopped at step {step} of {self.total}, which is saved. The same command goes on from there."
        )
        return Outcome("stopped", step)

    scores = scores or self._evaluate(report, step)
    return self._finish(report, step, scores)

  def _read(
    self, report: reporting.Reporter, step: int, totals: PyTree, rate: jax.Array | None
  ) -> int:
    """Reads the sums up to a step and, with the rate of that step, tells of them in the log.

    Returns:
      The first step whose loss was not finite, counted from 1; 0 if there is none.
    """
    seen, rate = jax.device_get((totals, rate))
    bad = int(seen.bad_step) + 1  # which counts from 0
    if rate is not None and not bad:
      loss, error = float(seen.loss) / int(seen.count), 100 * int(seen.wrong) / int(seen.count)
      report.training(step, loss, error, float(rate))
    return bad

  def _has_waited(self, saved: float) -> bool:
    """Whether the last checkpoint is old enough for another, by the first process's clock."""
    waits = self.config.checkpoint.least_seconds
    return sharding.first_says(time.monotonic() - saved >= waits)

  def _reporter(self, step: int) -> reporting.Reporter | reporting.Silent:
    """Of the first process, which writes for all."""
    if not sharding.is_first():
      return reporting.Silent()
    return reporting.Reporter(
      self.workdir, step, self.total, self.steps_per_epoch, self.config.train.batch_size
    )

  def _evaluate(self, report: reporting.Reporter, step: int) -> evaluate.Scores:
    scores = evaluate.evaluate(
      self.recipe.net,
      self.recipe.size,
      self.state.variables,
      self.eval_images.evaluation(evaluate.batch_size(self.config)),
    )
    report.damaged(step, self.split, self.eval_images.damaged())
    self.eval_images.check(scores.examples)
    report.evaluation(step, self.split, scores.loss, scores.error)
    return scores

  @functools.cached_property
  def _first(self) -> step_lib.Examples:
    return self.train_images.first(self.config.train.batch_size)

  def _measure(self, report: reporting.Reporter, step: int) -> None:
    """Measures how errors align, on the same images each time: the first ones, unaugmented."""
    found = measurements.measure(self.recipe, self.state.variables, self._first)
    found = jax.device_get(found)
    report.alignment(step, {name: float(x) for name, x in found.items() if math.isfinite(x)})

  def _finish(self, report: reporting.Reporter, step: int, scores: evaluate.Scores) -> Outcome:
    status = self._write(step, scores)
    if status == "dead":
      ways = "another seed or a lower rate"
      if self.config.model.final_relu:
        ways += " or model.final_relu=False"
      report.note(
        f"The network is dead: at epoch {step / self.steps_per_epoch:.3g} its loss is {scores.loss:.4f}, "
        f"close to ln({self.num_classes}) = {math.log(self.num_classes):.4f}, as of one answer for all images. Good runs may sit there for six epochs; "
        f"otherwise {ways} may start."
      )
    report.note(
      f"Done: {self.split} error {scores.error:.2f} % over {scores.examples} images. In {self.workdir}."
    )
    return Outcome(status, step)

  def _diverged(self, report: reporting.Reporter, step: int) -> Outcome:
    kept = self.checkpoints.steps()
    report.note(
      f"The loss is not finite at step {step}: the run has diverged. "
      + (f"The checkpoint of step {kept[-1]} is kept." if kept else "There is no checkpoint yet.")
    )
    return Outcome(self._write(step, evaluate.Scores(math.nan, math.nan, math.nan, 0)), step)

  def _write(self, step: int, scores: evaluate.Scores) -> str:
    """Writes what the run came to; returns its status."""
    values = evaluate.summary(scores, step, self.split, self.config.dataset.name, self.num_classes)
    evaluate.write(self.workdir, values)
    return values["status"]


def runs_ahead() -> bool:
  """Whether a call returns before it is done, so that the next can be given before its sums are read."""
  return jax.default_backend() != "cpu"


def _check_workdir(
  config: ml_collections.ConfigDict, workdir: epath.Path, lock: lock_lib.Lock
) -> bool:
  """Whether the folder is no run's yet.

  Raises:
    UsageError: it belongs to a run of another config, or to one that runs now.
  """
  if workdir.exists() and not workdir.is_dir():
    raise UsageError(f"--workdir={workdir} is a file.")
  if weights.published(workdir):
    raise UsageError(
      f"{workdir} holds a network without its optimizer: choose another --workdir, and begin there "
      f"with its weights, --config.rule.start_from={workdir}."
    )
  if layout.holds_run(workdir):
    theirs = dict(config_lib.leaves(layout.read_config(workdir)))
    for path, value in config_lib.leaves(config):
      if path not in config_lib.MAY_CHANGE and value != theirs[path]:
        raise UsageError(
          f"{workdir} belongs to a run with {path}={theirs[path]!r}, not {value!r}: choose another --workdir."
        )
    if sharding.is_first():
      lock.take()
    return False
  if not all(map(_may_be_ours, files.inside(workdir))):
    raise UsageError(f"{workdir} is not empty and holds no run of ours: choose another --workdir.")
  return True


def _may_be_ours(path: epath.Path) -> bool:
  """Whether a run that was killed before it wrote its config may have left this; or it is figures."""
  return path.name in (lock_lib.NAME, layout.FIGURES) or path.name.endswith(".writing")


def _given(
  config: ml_collections.ConfigDict, recipe: step_lib.Recipe, channels: int
) -> PyTree | None:
  """The variables of the run that this one begins with, if there is one.

  Raises:
    UsageError: there are none, or they are of another network, or of images preprocessed otherwise.
  """
  if not config.rule.start_from:
    return None
  other = restore.trained(os.path.expanduser(config.rule.start_from))
  theirs, ours = (x.dataset.preprocessing for x in (other.config, config))
  if theirs != ours:
    raise UsageError(
      f"rule.start_from={config.rule.start_from}: its images were preprocessed by {theirs!r}, "
      f"here they are by {ours!r}: dataset.preprocessing must be the same."
    )
  own = jax.eval_shape(lambda: step_lib.init(recipe, channels)).variables["params"]
  if jax.tree.map(jnp.shape, other.variables["params"]) != jax.tree.map(jnp.shape, own):
    raise UsageError(
      f"rule.start_from={config.rule.start_from}: its network is another one than {config.model.name} as it is here."
    )
  return other.variables


def _make_workdir(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  lock: lock_lib.Lock,
  *,
  new: bool,
  trains: bool,
) -> None:
  """Makes the folder the run's; the machine is told if it trains there.

  Raises:
    Busy: it was `new` when it was looked at, and another run has begun there since.
    UsageError: it cannot be written to.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock.take()
    if new and layout.holds_run(workdir):
      raise Busy(f"Another run has begun in {workdir} meanwhile: choose another --workdir.")
    layout.write_config(workdir, config)
    if trains:
      files.write(workdir / layout.MACHINE, json.dumps(machine.machine(), indent=2).encode())
  except OSError as error:
    raise unwritable(f"--workdir={workdir}", error) from None


@contextlib.contextmanager
def on_signal() -> Iterator[Callable[[], bool]]:
  """Whether SIGTERM or SIGINT has come since; a second one ends the program at once.

  JAX listens for SIGTERM itself where there are several processes, which must agree on a step.
  """
  if sharding.joined():
    yield sharding.agreement()
    return
  came = []

  def note(number, frame):
    came.append(number)
    signal.signal(number, before[number])

  before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield lambda: bool(came)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
