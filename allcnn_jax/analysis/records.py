"""What is kept of a run beside its weights: one small JSON file, enough for tables and figures."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
from etils import epath

from allcnn_jax import config as config_lib
from allcnn_jax import files
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures
from allcnn_jax.training import evaluate, layout, learning_rules, reporting, sweep

# What a report writes into a folder of records, and a sweep into its own.
REPORT = "report.json"
NO_RECORDS = (REPORT, sweep.FILE)
# Runs that differ in these keys alone are runs of one config.
_QUIET = ("seed", *config_lib.QUIET)
_RULES = tuple(learning_rules.RULES)


class Record(NamedTuple):
  """A run.

  Attributes:
    config: complete.
    metrics: the lines of `metrics.jsonl`.
    evaluation: `evaluation.json`, or empty if the run has not ended.
    machine: what `machine.machine` said when it was last trained, as far as it was kept.
    name: of its folder or file.
  """

  config: ml_collections.ConfigDict
  metrics: list[dict[str, Any]]
  evaluation: dict[str, Any]
  machine: dict[str, Any] = {}  # noqa: RUF012, nobody writes to it
  name: str = ""

  def series(self, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one number of the metrics."""
    lines = [x for x in self.metrics if name in x]
    return [x["step"] for x in lines], [x[name] for x in lines]

  @property
  def steps_per_epoch(self) -> float:
    """1 if the metrics do not tell."""
    lines = [x for x in self.metrics if x.get("epoch")]
    return lines[-1]["step"] / lines[-1]["epoch"] if lines else 1.0

  @property
  def epochs(self) -> float:
    """How many were done when the run was evaluated."""
    return self.evaluation.get("step", 0) / self.steps_per_epoch

  @property
  def status(self) -> str:
    """ "ok", "dead", "diverged", "not ended", or "evaluated otherwise" than in training."""
    found, train = self.evaluation, self.config.train
    status = found.get("status", "not ended")
    total = train.steps or train.epochs * round(self.steps_per_epoch)
    if status == "diverged":
      return status
    step = found.get("step", total)
    if step < total and not any(x["step"] >= total for x in self.metrics if "eval_error" in x):
      return "not ended"
    # `evaluate` may have been here since, with another step, another split, another set, or views.
    splits = {x["split"] for x in self.metrics if "eval_error" in x}
    name = self.config.dataset.name
    same = found.get("split") in {None, *splits} and found.get("dataset", name) == name
    own = same and step >= total and not found.get("views")
    return status if own else "evaluated otherwise"

  @property
  def seconds(self) -> float:
    """How long its training steps took."""
    return reporting.seconds(self.metrics, self.config.train.batch_size)


# Runs of one config, with a name.
Group = tuple[str, list[Record]]


def distinct(runs: Sequence[Record]) -> list[Record]:
  """One run for each config and seed, one that counts if there is: sweeps have some in common."""
  found: dict[str, Record] = {}
  for run in runs:
    key = f"{run.config.seed} {_key(_telling(run))}"
    if key not in found or (run.status == "ok" and found[key].status != "ok"):
      found[key] = run
  return list(found.values())


def alive(runs: Sequence[Record]) -> list[Record]:
  """Those that came to their end alive, or all where none did."""
  return [run for run in runs if run.status == "ok"] or list(runs)


def longest(runs: Sequence[Record]) -> list[Record]:
  """Those with the most epochs, of runs that differ in nothing else but their seed.

  Runs whose rate goes by `train.epochs` differ in all rates, and stay. A run that is not "ok" is
  longer than no other that is.
  """
  keys = [_key(_telling(run) | ({} if _paced(run) else {"train.epochs": 0})) for run in runs]
  alike: dict[str, list[Record]] = {}
  for key, run in zip(keys, runs):
    alike.setdefault(key, []).append(run)
  most = {key: max(x.config.train.epochs for x in alive(found)) for key, found in alike.items()}
  return [run for key, run in zip(keys, runs) if run.config.train.epochs == most[key]]


def _paced(run: Record) -> bool:
  return run.config.optimizer.schedule == "triangle" or run.config.optimizer.warmup > 0


def groups(runs: Sequence[Record], by: Sequence[str], without: Sequence[str] = ()) -> list[Group]:
  """Runs of one config, whatever their seeds, with a name that tells them from the others.

  They stand in the papers' order: by network, by rule, then by epochs.

  Args:
    runs: of any configs.
    by: the config keys whose values begin the name. The other keys that differ between runs that
      agree in these follow in brackets.
    without: keys that the name leaves out; runs that differ in them are in two groups all the same.
  """
  flat = [_telling(run) for run in runs]
  found: dict[str, Group] = {}
  for run, values in zip(runs, flat):
    near = [f for f in flat if all(f[k] == values[k] for k in by)]
    told = {k: v for k, v in values.items() if k not in without and any(f[k] != v for f in near)}
    said = ", ".join(f"{k} {v}" for k, v in sorted(told.items()))
    name = ", ".join(str(values[k]) for k in by) + (f" ({said})" if said else "")
    found.setdefault(_key(values), (name, []))[1].append(run)
  return sorted(found.values(), key=lambda group: _place(group[1][0].config))


def _place(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
  net, rule = config.model.name, config.rule.name
  return architectures.NAMES.index(net), _RULES.index(rule), config.train.epochs


def _telling(run: Record) -> dict[str, Any]:
  """The keys that make a run one of its config, with their values."""
  return {k: v for k, v in config_lib.leaves(run.config) if k not in _QUIET}


def _key(values: dict[str, Any]) -> str:
  return json.dumps(values, sort_keys=True)


def write(workdir: epath.PathLike, path: epath.PathLike) -> None:
  """Writes the record of the run in `workdir` to `path`."""
  run = _of_workdir(epath.Path(workdir))
  record = {**run.machine, "evaluation": run.evaluation, "config": run.config.to_dict()}
  text = json.dumps(record, indent=2)
  # A line of metrics a line of the file, so that a difference can be read.
  metrics = map(json.dumps, run.metrics)
  text = (
    text[: text.rindex("\n}")] + ',\n  "metrics": [\n    ' + ",\n    ".join(metrics) + "\n  ]\n}\n"
  )
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write(path, text.encode())


def read(folder: epath.PathLike) -> list[Record]:
  """The runs in a folder: itself, the runs' folders in it, and the files that `write` made of others.

  Raises:
    UsageError: there are none.
  """
  folder = epath.Path(folder)
  if layout.holds_run(folder):
    return [_of_workdir(folder)]
  inside = sorted(folder.iterdir()) if folder.is_dir() else []
  runs = [_of_workdir(x) for x in inside if layout.holds_run(x)]
  kept = (x for x in inside if x.suffix == ".json" and x.name not in NO_RECORDS)
  runs += [_of_file(x) for x in kept if not layout.holds_run(x.with_suffix(""))]
  if not runs:
    raise UsageError(f"{folder} is no run's folder, and holds neither runs nor their records.")
  return runs


def _of_workdir(workdir: epath.Path) -> Record:
  path = workdir / layout.MACHINE
  kept = files.read_json(path, {"hardware": dict}) if path.exists() else {}
  try:
    machine = _machine(kept)
  except ValueError as error:
    raise UsageError(f"{path} is damaged: {error}.") from None
  return Record(
    layout.read_config(workdir),
    # Rounded as its file has them, so that both make the same table.
    [{k: _short(v) for k, v in line.items()} for line in reporting.read(workdir)],
    evaluate.read(workdir),
    machine,
    workdir.name or workdir.resolve().name,
  )


def _of_file(path: epath.Path) -> Record:
  try:
    needed = {"config": dict, "metrics": list, "evaluation": dict}
    values = files.checked(json.loads(path.read_text()), needed)
    config = config_lib.from_json(json.dumps(values["config"]))
    metrics = [reporting.checked(x) for x in values["metrics"]]
    if values["evaluation"]:
      files.checked(values["evaluation"], evaluate.NEEDED)
    kept = {k: v for k, v in values.items() if k not in needed}
    return Record(config, metrics, values["evaluation"], _machine(kept), path.stem)
  except (ValueError, RecursionError) as error:
    raise UsageError(f"{path} is no record of a run: {error}") from None


def _machine(kept: dict[str, Any]) -> dict[str, Any]:
  """What was kept of the machine; ValueError where it is damaged. A record may have nothing."""
  if "hardware" in kept:
    files.checked(kept, {"hardware": dict, "versions": dict})
    files.checked(kept["hardware"], {"device": str, "devices": int, "cores": int | None})
  return kept


def _short(value: Any) -> Any:
  return float(f"{value:.5g}") if isinstance(value, float) else value
