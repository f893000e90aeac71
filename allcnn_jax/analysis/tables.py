"""Runs -> the papers' tables, measured beside printed.

Runs that differ in their seed alone stand in one line, and no other run slips into it. Only runs
that came to their end alive are averaged; a cell that nobody measured is empty.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections

from allcnn_jax import config as config_lib
from allcnn_jax.analysis import printed, records
from allcnn_jax.analysis.printed import TABLES, Row
from allcnn_jax.analysis.records import Group, Record
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures
from allcnn_jax.training import parts


class Line(NamedTuple):
  """A line of a made table: a printed row, the runs of one config, or both.

  Attributes:
    name: of the row or of the runs.
    data: what they are on.
    printed: the paper's error, percent.
    theirs: whether the row is others' work.
    error: the mean over the n runs that count, percent.
    deviation: the standard deviation over them.
    n: how many count.
    dead: runs whose loss is close to ln(classes).
    diverged: runs whose loss stopped being finite.
    not_ended: runs that have not come to their end.
    otherwise: runs whose last evaluation was on other images than training's own.
    epoch: the last one, at which the error was taken.
    difference: error - printed, where the runs repeat the paper's experiment.
    parameters: of the network.
    printed_parameters: the paper's.
    multiply_adds: of a forward pass over one image.
    optimizer: its name.
    rate: learning rate at the start.
    rates: those that it was chosen from.
    dtype: the type of the computation.
    epoch_seconds: time of an epoch's training steps, the median speed; the mean over runs.
    seconds: time of a run's training steps, the mean over runs.
    measured_with: hardware, versions and commit of the runs, each once.
    unlike: in which keys the runs are not the paper's experiment, with their values; None where
      they stand in no printed row.
    seeds: of the runs that count.
  """

  name: str
  data: str
  printed: float | None = None
  theirs: bool = False
  error: float | None = None
  deviation: float | None = None
  n: int = 0
  dead: int = 0
  diverged: int = 0
  not_ended: int = 0
  otherwise: int = 0
  epoch: float | None = None
  difference: float | None = None
  parameters: int | None = None
  printed_parameters: str = ""
  multiply_adds: int | None = None
  optimizer: str = ""
  rate: float | None = None
  rates: tuple[float, ...] = ()
  dtype: str = ""
  epoch_seconds: float | None = None
  seconds: float | None = None
  measured_with: tuple[str, ...] = ()
  unlike: tuple[str, ...] | None = ()
  seeds: tuple[int, ...] = ()


class Made(NamedTuple):
  """A table with what was measured in it.

  Attributes:
    title: the paper's table.
    lines: as printed, with our columns; runs that fit no printed row stand at the end.
    trials: runs on held-out training images, by which rates are chosen.
    remark: a sentence below.
    broken: the runs of a sweep that broke, each with its error.
  """

  title: str
  lines: list[Line]
  trials: list[Line]
  remark: str
  broken: Sequence[str] = ()

  @property
  def machines(self) -> list[str]:
    """What was measured with, in the order of the lines."""
    told = [text for line in (*self.lines, *self.trials) for text in line.measured_with]
    return list(dict.fromkeys(told))


# Keys that say how many weights a network has.
_SHAPING = ("model.name", "model.width", "model.head", "model.pool", "dataset.name")
# What columns of their own say.
IN_COLUMNS = (
  "dataset.name",
  "dataset.augment",
  "optimizer.learning_rate",
  "train.epochs",
  "train.steps",
)


def make(runs: Sequence[Record], table: str | None = None) -> Made:
  """The table of some runs.

  Args:
    runs: of any configs; those that differ in their seed alone stand in one line.
    table: one of `printed.TABLES`; None: the one that fits.

  Raises:
    UsageError: there is no such table.
  """
  if table is not None:
    printed.check(table)
  shown = TABLES[fitting(runs) if table is None else table]
  finals = [r for r in runs if not r.config.dataset.validation]
  held_out = groups([r for r in runs if r.config.dataset.validation])
  lines, left = _fill(shown.rows, groups(finals), held_out, shown.whole)
  lines += [_line(members, held_out, name) for name, members in left]
  trials = [_line(members, [], name) for name, members in held_out]
  trials.sort(key=lambda x: (x.name, x.data, -x.rate))
  return Made(shown.title, lines, trials, shown.remark)


def fill(
  rows: Sequence[Row], runs: Sequence[Record], without: Sequence[str] = IN_COLUMNS
) -> list[Line]:
  """Printed rows with the runs that stand in them, all training images used, named as `groups` does."""
  finals = [r for r in runs if not r.config.dataset.validation]
  return _fill(rows, groups(finals, without), [], whole=True)[0]


def _fill(
  rows: Sequence[Row], left: list[Group], held_out: list[Group], whole: bool
) -> tuple[list[Line], list[Group]]:
  """The lines of printed rows, and the runs that stand in none."""
  lines = []
  for row in rows:
    mine = [g for g in left if _fits(row, g[1][0].config)]
    left = [g for g in left if g not in mine]
    for name, members in mine:
      # Brackets tell several configs in one row apart.
      brackets = name[name.index(" (") :] if len(mine) > 1 and " (" in name else ""
      lines.append(_line(members, held_out, row.name + brackets, row))
    if not mine and whole:
      lines.append(_empty(row))
  return lines, left


def _empty(row: Row) -> Line:
  """A row that nobody has measured."""
  if row.keys is None:
    return Line(row.name, row.data, row.error, theirs=True)
  config = config_lib.complete(ml_collections.ConfigDict())
  told = {k: v for k, v in {**row.like, **row.keys}.items() if k in _SHAPING}
  config.update_from_flattened_dict(told)
  parameters, multiply_adds = _cost(config)
  return Line(
    row.name,
    row.data,
    row.error,
    parameters=parameters,
    printed_parameters=row.parameters,
    multiply_adds=multiply_adds,
  )


def groups(runs: Sequence[Record], without: Sequence[str] = IN_COLUMNS) -> list[Group]:
  """Runs of one config, but for the seed, named by what no column says, or by all but `without`."""
  by = ["model.name"]
  if any(r.config.rule.name != "bp" for r in runs):
    by.append("rule.name")
  return records.groups(runs, by, without)


def fitting(runs: Sequence[Record]) -> str:
  """The table that some runs belong to."""

  def some(table: str) -> bool:
    return any(
      _fits(row, run.config) and not _unlike(row, run.config, ("dataset.name",))
      for row in TABLES[table].rows
      for run in runs
    )

  if any(r.config.rule.name != "bp" or r.config.model.name.startswith("fa_") for r in runs):
    return "fa_table1"
  if some("cifar10_fast"):
    return "cifar10_fast"
  nets = {r.config.model.name for r in runs}
  if some("table4") and nets <= {"all_cnn_c", "large_all_cnn", "all_cnn_imagenet"}:
    return "table4"
  if any(r.config.model.name == "small_convnet" or r.config.model.pool != "max" for r in runs):
    return "pooling"
  return "table3" if some("table3") else ""


def _fits(row: Row, config: ml_collections.ConfigDict) -> bool:
  values = dict(config_lib.leaves(config))
  return row.keys is not None and all(values[k] == v for k, v in row.keys.items())


def _unlike(
  row: Row, config: ml_collections.ConfigDict, keys: Sequence[str] | None = None
) -> tuple[str, ...]:
  values = dict(config_lib.leaves(config))
  if not values["model.dropout"] and "model.dropout" in row.like:
    values["model.dropout"] = architectures.ARCHITECTURES[config.model.name].dropout  # the paper's
  asked = {k: v for k, v in row.like.items() if keys is None or k in keys}
  allowed = {k: v if isinstance(v, frozenset) else (v,) for k, v in asked.items()}
  return tuple(f"{k} {values[k]}" for k, v in allowed.items() if values[k] not in v)


def _line(members: list[Record], held_out: list[Group], name: str, row: Row | None = None) -> Line:
  config = members[0].config
  status = [r.status for r in members]
  good = [r for r in members if r.status == "ok"]
  errors = [r.evaluation["error"] for r in good]
  error = statistics.mean(errors) if errors else None
  unlike = _unlike(row, config) if row else None
  theirs = row.error if row and not _unlike(row, config, ("dataset.name",)) else None
  parameters, multiply_adds = _cost(config)
  timed = [r for r in good if r.seconds]
  data = ", ".join(x for x in (config.dataset.name, config.dataset.augment) if x != "none")
  if row and not _unlike(row, config, ("dataset.name", "dataset.augment")):
    data = row.data  # the same in the paper's words
  return Line(
    name,
    data,
    theirs,
    error=error,
    deviation=statistics.stdev(errors) if len(errors) > 1 else None,
    n=len(good),
    dead=status.count("dead"),
    diverged=status.count("diverged"),
    not_ended=status.count("not ended"),
    otherwise=status.count("evaluated otherwise"),
    epoch=max((r.epochs for r in good), default=None),
    difference=None if unlike or None in (error, theirs) else error - theirs,
    parameters=parameters,
    printed_parameters=row.parameters if row else "",
    multiply_adds=multiply_adds,
    optimizer=config.optimizer.name,
    rate=config.optimizer.learning_rate,
    rates=_tried(config, held_out),
    dtype=config.train.dtype,
    epoch_seconds=statistics.mean(map(_epoch_seconds, timed)) if timed else None,
    seconds=statistics.mean(r.seconds for r in timed) if timed else None,
    measured_with=tuple(dict.fromkeys(map(_machine, members))),
    unlike=unlike,
    seeds=tuple(r.config.seed for r in good),
  )


def _tried(config: ml_collections.ConfigDict, held_out: list[Group]) -> tuple[float, ...]:
  """The rates of the runs on held-out images that are like this one in all else."""
  free = (*config_lib.QUIET, "seed", "optimizer.learning_rate", "dataset.validation")

  def rest(config):
    return {k: v for k, v in config_lib.leaves(config) if k not in free}

  found = {
    g[0].config.optimizer.learning_rate for _, g in held_out if rest(g[0].config) == rest(config)
  }
  return tuple(sorted(found, reverse=True))


def _epoch_seconds(run: Record) -> float:
  _, speeds = run.series("images_per_second")
  return run.steps_per_epoch * run.config.train.batch_size / statistics.median(speeds)


def _cost(config: ml_collections.ConfigDict) -> tuple[int | None, int | None]:
  """Parameters and multiply-adds of a config's network; None if its set is not at hand."""
  try:
    rows = parts.layers(config)
  except UsageError:
    return None, None
  return sum(r.parameters for r in rows), sum(r.multiply_adds for r in rows)


def _machine(run: Record) -> str:
  kept = run.machine
  if "hardware" not in kept:
    return "not kept"
  hardware, versions = kept["hardware"], kept["versions"]
  count = f"{hardware['devices']} x " if hardware["devices"] > 1 else ""
  said = [f"{count}{hardware['device']}, {hardware['cores']} cores", run.config.train.dtype]
  said += [f"{name} {version}" for name, version in versions.items()]
  said += [f"{name}={value}" for name, value in kept.get("environment", {}).items()]
  commit = f"; commit {kept['commit']}" if kept.get("commit") else ""
  return ", ".join(said) + commit
