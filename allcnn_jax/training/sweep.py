"""A list of runs: done, broken, next.

A sweep is a file of configs/ that declares its units: configs that are compared. For each unit it
may name learning rates; they are tried on held-out training images, then the best one trains on
all of them with several seeds. All that is known of a sweep stands in its folder, so that it can
be ended at any moment, and units depend on nothing but themselves, so that each may be a job.
"""

import json
import re
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
from etils import epath

from allcnn_jax import config as config_lib
from allcnn_jax import files, terminal
from allcnn_jax.data import datasets
from allcnn_jax.errors import Hindered, UsageError, is_memory, is_passing, unknown
from allcnn_jax.training import evaluate, loop, parts, reporting, sharding

FILE = "sweep.json"
# What a file of configs/ may say of its sweep, in values of which types.
_DECLARED = {
  "units": list | tuple,
  "names": list | tuple,
  "rates": list | tuple,
  "held_out": float | int,
  "seeds": int,
  "table": str,
}
_DEFAULTS = {"units": (), "names": (), "rates": (), "held_out": 0.2, "seeds": 3, "table": ""}


class Run(NamedTuple):
  """One run of a sweep; its name is that of its folder."""

  name: str
  config: ml_collections.ConfigDict


class Plan(NamedTuple):
  """What a sweep will do.

  Attributes:
    units: the configs that are compared, complete, by name.
    rates: the learning rates to choose from on held-out images; () if each unit has its own.
    held_out: how many training images they are chosen on, for each unit.
    seeds: runs of each unit, at the seeds from its config's on.
    table: the paper's table that the sweep fills, for the report.
  """

  units: dict[str, ml_collections.ConfigDict]
  rates: tuple[float, ...]
  held_out: dict[str, int]
  seeds: int
  table: str

  def trials(self, unit: str) -> list[Run]:
    """The runs that choose the unit's rate."""
    return [
      self._run(unit, rate, 0, {"dataset.validation": self.held_out[unit]}, "-held_out")
      for rate in self.rates
    ]

  def finals(self, unit: str, rate: float) -> list[Run]:
    """The unit's runs at the rate that was chosen, on all training images if one was."""
    keys = {"dataset.validation": 0} if self.rates else {}
    return [self._run(unit, rate, i, keys) for i in range(self.seeds)]

  def _run(self, unit: str, rate: float, i: int, keys: dict[str, Any], note: str = "") -> Run:
    config = self.units[unit].copy_and_resolve_references()
    seed = config.seed + i
    config.update_from_flattened_dict({"optimizer.learning_rate": rate, "seed": seed, **keys})
    return Run(f"{unit}-rate{rate:g}{note}-seed{seed}", config)


def plan(declared: Any, overrides: Mapping[str, Any], seeds: int | None = None) -> Plan:
  """What a sweep file declares, with the keys set on the command line.

  Args:
    declared: `units`, a list of configs; and where they are not as in `_DEFAULTS`: `names`, the keys
      whose values name a unit beside its network and data set, `rates`, `held_out`, the share of
      the training images that they are chosen on, `seeds`, `table`.
    overrides: values of config keys for every unit. `optimizer.learning_rate` is then the only
      rate and none is chosen; `dataset.validation` is how many images rates are chosen on.
    seeds: instead of those declared.

  Raises:
    UsageError: a value that is not allowed, or a data set whose size is not known.
  """
  declared = _complete(declared)
  names = ("model.name", "dataset.name", *declared["names"])
  units = {}
  for unit in declared["units"]:
    config = config_lib.complete(unit)
    config.update_from_flattened_dict(overrides)
    config_lib.check(config)
    flat = dict(config_lib.leaves(config))
    # Of the path of a set its last part.
    told = [str(flat[key]).rpartition("/")[2].removesuffix(".npz") for key in names]
    name = "-".join(map(_file_name, told))
    # An override can make two units the same: then there is one.
    if units.setdefault(name, config).to_dict() != config.to_dict():
      raise UsageError(f"Two units of the sweep are called {name!r}: name what tells them apart.")
  given = () if "optimizer.learning_rate" in overrides else declared["rates"]
  rates = tuple(map(float, given))
  held_out = {}
  for name, config in units.items() if rates else ():
    n = datasets.sizes(config.dataset.name, config.dataset.data_dir).train
    share = round(declared["held_out"] * n)
    held_out[name] = overrides.get("dataset.validation", share)
    if not held_out[name]:
      raise UsageError("dataset.validation=0: rates are chosen on held-out images; hold some out.")
  count = declared["seeds"] if seeds is None else seeds
  made = Plan(units, rates, held_out, count, declared["table"])
  runs: dict[str, ml_collections.ConfigDict] = {}
  for name, config in units.items():
    for run in made.trials(name) + made.finals(name, config.optimizer.learning_rate):
      config_lib.check(run.config)
      if runs.setdefault(run.name, run.config).to_dict() != run.config.to_dict():
        raise UsageError(f"Two runs of the sweep are called {run.name!r}: two rates are too near.")
  return made


def _complete(declared: Any) -> dict[str, Any]:
  """What a sweep file declares, with the defaults of what it leaves out.

  Raises:
    UsageError: it is nothing that a sweep can be made of.
  """
  if not isinstance(declared, Mapping):
    raise UsageError(f"A sweep is a dict of {', '.join(_DECLARED)}.")
  declared = _DEFAULTS | dict(declared)
  for key, value in declared.items():
    if key not in _DECLARED:
      raise unknown("part of a sweep", key, _DECLARED)
    if not isinstance(value, _DECLARED[key]):
      kind = getattr(_DECLARED[key], "__name__", str(_DECLARED[key]).replace(" | ", " or "))
      raise UsageError(f"{key} of a sweep must be {kind}, not {value!r}.")
  if not declared["units"]:
    raise UsageError("A sweep needs `units`, a list of configs.")
  for unit in declared["units"]:
    if not isinstance(unit, ml_collections.ConfigDict):
      raise UsageError(f"units of a sweep must be configs, not {unit!r}.")
  for rate in declared["rates"]:
    if not isinstance(rate, int | float):
      raise UsageError(f"rates of a sweep must be numbers, not {rate!r}.")
  if not 0 <= declared["held_out"] < 1:
    raise UsageError(f"held_out of a sweep is a share below 1, not {declared['held_out']!r}.")
  if declared["seeds"] < 1:
    raise UsageError(f"seeds of a sweep must be at least 1, not {declared['seeds']!r}.")
  for key in declared["names"]:
    if not isinstance(key, str) or key not in config_lib.KEYS:
      raise unknown("config key in names", key, config_lib.KEYS)
  return declared


def _file_name(value: Any) -> str:
  """A config's value as part of a file's name."""
  return re.sub(r"[^\w.]+", "_", str(value)).strip("_")


def sweep(plan: Plan, workdir: epath.PathLike, *, index: int | None = None) -> tuple[str, int]:
  """Does what is left of a sweep, or of one of its units.

  Args:
    plan: the runs.
    workdir: the sweep's folder; each run has its own in it.
    index: of the only unit to do: one job of an array.

  Returns:
    "done", or "stopped" after SIGTERM or SIGINT; and how many of the runs are broken.

  Raises:
    UsageError: before anything is written, if the config, the data or the folder will not do.
    Hindered: the disk is full, or another process trains in a run's folder. No run is broken.
  """
  units = list(plan.units)
  if index is not None and not 0 <= index < len(units):
    numbered = ", ".join(f"{i} {name}" for i, name in enumerate(units))
    raise UsageError(f"--index={index}: the sweep's units are {numbered}.")
  todo = _Sweep(plan, units if index is None else [units[index]], epath.Path(workdir))
  _claim(plan, epath.Path(workdir))
  return todo.go()


class _Sweep:
  """One call of `sweep`; made by `__init__`, which writes nothing."""

  def __init__(self, plan: Plan, units: list[str], workdir: epath.Path):
    self.plan, self.units, self.workdir = plan, units, workdir
    self.costs = {unit: _Cost(plan, unit) for unit in units}

  def go(self) -> tuple[str, int]:
    terminal.note(self._forecast())
    runs = len(self.units) * (len(self.plan.rates) + self.plan.seeds)
    with reporting.bar(0, runs, "run") as bar, loop.on_signal() as asked_to_stop:
      for unit in self.units:
        for run in self._runs(unit):
          bar.set_description_str(run.name, refresh=True)
          self._do(run, unit, asked_to_stop)
          if asked_to_stop():
            return "stopped", self._broken()
          bar.update()
        jax.clear_caches()  # what was compiled for one unit serves no other
    return "done", self._broken()

  def _runs(self, unit: str) -> Iterator[Run]:
    """The unit's runs, each when it is known."""
    trials = self.plan.trials(unit)
    yield from trials
    rate = self._chosen(unit)
    if rate is None:
      terminal.note(f"{unit}: no rate of {list(self.plan.rates)} can be chosen; passed.")
    else:
      yield from self.plan.finals(unit, rate)

  def _chosen(self, unit: str) -> float | None:
    """The unit's rate: the one with the least error on held-out images, the first of equals.

    A dead run's counts only where all are dead: another seed may start. None if none has ended
    well enough, or some have not ended yet.
    """
    if not self.plan.rates:
      return self.plan.units[unit].optimizer.learning_rate
    trials = self.plan.trials(unit)
    results = [self._result(run, unit) for run in trials]
    if any(r is None and not self._mark(run).exists() for run, r in zip(trials, results)):
      return None
    finite = [
      (r["status"] == "dead", r["error"], i)
      for i, r in enumerate(results)
      if r and r["status"] != "diverged"
    ]
    return self.plan.rates[min(finite)[2]] if finite else None

  def _result(self, run: Run, unit: str) -> dict[str, Any] | None:
    """What a run came to; None if it has not ended."""
    steps = self.costs[unit].steps(run)
    return evaluate.of_training(self.workdir / run.name, run.config, steps)

  def _mark(self, run: Run) -> epath.Path:
    return self.workdir / f"{run.name}.broken"

  def _do(self, run: Run, unit: str, asked_to_stop: Callable[[], bool]) -> None:
    """Brings a run to its end, unless it has one or is broken, or until asked to stop."""
    if self._mark(run).exists() or self._result(run, unit) is not None:
      return
    terminal.note(f"-- {run.name}")
    try:
      shared = self.workdir / _shared(run.config)
      loop.train(run.config, self.workdir / run.name, shared, asked_to_stop)
    except Hindered:
      raise  # it is not the run that is broken
    except Exception as error:
      device = isinstance(error, jax.errors.JaxRuntimeError) and not is_memory(error)
      if device or is_passing(error):
        what, said = "device" if device else "store", str(error).partition("\n")[0]
        raise Hindered(
          f"{run.name}: the {what} failed ({said}). The same command goes on."
        ) from error
      if not isinstance(error, UsageError):
        traceback.print_exc()
      line = " ".join(f"{type(error).__name__}: {error}".split())[:500]
      files.write(self._mark(run), f"{line}\n".encode())
      terminal.note(f"Broken: {line}\nIt is passed until {self._mark(run)} is removed.")

  def _broken(self) -> int:
    marks = [path.name for path in self.workdir.glob("*.broken")]
    return sum(mark.startswith(f"{unit}-rate") for mark in marks for unit in self.units)

  def _forecast(self) -> str:
    """What the sweep costs, what of it is done, and how long the rest will take."""
    runs = list(self._planned())
    ended = [(run, cost, found) for run, cost, found in runs if found is not None]
    epochs = sum(cost.epochs(run) for run, cost, _ in runs)
    work = sum(cost.flop(run) for run, cost, _ in runs)
    done = sum(
      (cost.flop(run) * found["step"] / cost.steps(run) for run, cost, found in ended), start=0.0
    )
    text = (
      f"Units: {len(self.units)}. Runs: {len(runs)}, {epochs:,.4g} epochs, {_peta(work)} PFLOP. "
      f"Done: {len(ended)}, {_peta(done)} PFLOP. Broken: {self._broken()}."
    )
    seconds = sum(
      reporting.seconds(reporting.read(self.workdir / run.name), run.config.train.batch_size)
      for run, _, _ in ended
    )
    if seconds:
      left = (
        cost.flop(run)
        for run, cost, found in runs
        if found is None and not self._mark(run).exists()
      )
      wait = int(sum(left) / done * seconds)
      text += f" About {wait // 3600}:{wait // 60 % 60:02}:{wait % 60:02} left, at their speed."
    return text

  def _planned(self) -> Iterator[tuple[Run, "_Cost", dict[str, Any] | None]]:
    """(a run, what it costs, what it came to), of all; a rate still to be chosen changes no cost."""
    for unit in self.units:
      rate = self._chosen(unit)
      for run in self.plan.trials(unit) + self.plan.finals(unit, 0.0 if rate is None else rate):
        yield run, self.costs[unit], self._result(run, unit)


def _peta(flop: float) -> str:
  return f"{flop / 1e15:,.3g}" if flop < 1e18 else f"{flop / 1e15:,.0f}"


class _Cost:
  """What the runs of a unit cost."""

  def __init__(self, plan: Plan, unit: str):
    config = plan.units[unit]
    sharding.check_batch_size(config.train.batch_size)
    data = (config.dataset.name, config.dataset.data_dir)
    self._multiply_adds = sum(row.multiply_adds for row in parts.layers(config))
    self._examples = {
      n: datasets.training_images(data[0], n, data[1])
      for n in {plan.held_out.get(unit, 0), config.dataset.validation, 0}
    }
    for n in self._examples.values():
      parts.steps(config, n)  # a batch of more is refused

  def _of(self, run: Run) -> tuple[int, int]:
    return parts.steps(run.config, self._examples[run.config.dataset.validation])

  def steps(self, run: Run) -> int:
    return self._of(run)[1]

  def epochs(self, run: Run) -> float:
    an_epoch, steps = self._of(run)
    return steps / an_epoch

  def flop(self, run: Run) -> float:
    """Two operations for each multiply-add, forward and twice as many back."""
    return 6.0 * self._multiply_adds * self.steps(run) * run.config.train.batch_size


def _shared(config: ml_collections.ConfigDict) -> str:
  """Where what is fitted to a run's images is kept once for all runs on the same images."""
  c = config.dataset
  size = "x".join(map(str, parts.stored(config)))
  # A file's name alone may be that of two sets.
  name = f"{_file_name(c.name)}_{zlib.crc32(f'{c.name} {c.data_dir}'.encode()):08x}"
  return f"preprocessing/{name}-{size}-held_out{c.validation}-{c.preprocessing}"


def _claim(plan: Plan, workdir: epath.Path) -> None:
  """Writes the sweep's file, or makes sure that the folder is this sweep's.

  Raises:
    UsageError: it is another's.
  """
  values = {
    "table": plan.table,
    "rates": list(plan.rates),
    "held_out": plan.held_out,
    "seeds": plan.seeds,
    "units": {name: config.to_dict() for name, config in plan.units.items()},
  }
  values = json.loads(json.dumps(values))
  if workdir.exists() and not workdir.is_dir():
    raise UsageError(f"--workdir={workdir} is a file.")
  # Looked at before the file is asked for: the other jobs of an array may write it meanwhile.
  others = [p for p in files.inside(workdir) if not p.name.endswith(".writing")]
  if (workdir / FILE).exists():
    theirs = read(workdir)
    for key, ours in _fixed(values).items():
      if key not in _fixed(theirs) or _fixed(theirs)[key] != ours:
        raise UsageError(
          f"{workdir} belongs to a sweep with {key}={_fixed(theirs).get(key)!r}, not {ours!r}: choose another --workdir."
        )
  elif others:
    raise UsageError(f"{workdir} is not empty and holds no sweep: choose another --workdir.")
  files.make_folder(workdir, f"--workdir={workdir}")
  files.write_json(workdir / FILE, values, f"--workdir={workdir}")


def read(workdir: epath.PathLike) -> dict[str, Any]:
  """The file of the sweep in a folder, its units complete.

  Raises:
    UsageError: it is damaged.
  """
  path = epath.Path(workdir) / FILE
  values = files.read_json(path, {"table": str, "rates": list, "units": dict})
  try:
    files.checked(values["units"], dict.fromkeys(values["units"], dict))
  except ValueError as error:
    raise UsageError(f"{path} is damaged: {error}.") from None
  for name, unit in values["units"].items():
    try:  # of a sweep that began before there was a key, it has its default
      values["units"][name] = json.loads(config_lib.to_json(config_lib.from_json(json.dumps(unit))))
    except UsageError as error:
      raise UsageError(f"{path}: {name}: {error}") from None
  return values


def _fixed(values: dict[str, Any]) -> dict[str, Any]:
  """What must stay the same in a sweep's file."""
  flat = {k: values.get(k) for k in ("rates", "held_out")} | {"units": list(values["units"])}
  for name, unit in values["units"].items():
    for key, value in config_lib.leaves(unit):
      if key not in config_lib.QUIET:
        flat[f"{name} {key}"] = value
  return flat
