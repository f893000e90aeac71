"""A folder of runs, or of their records -> its table as Markdown, JSON and one HTML page.

The command `report`. What stands on the page is in the folder: the table, the learning curves and
every figure that was drawn of its runs.
"""

import html
import json
from collections.abc import Mapping, Sequence

from etils import epath

from allcnn_jax import files
from allcnn_jax.analysis import chart, figures, page, records, tables
from allcnn_jax.analysis.chart import Chart
from allcnn_jax.analysis.tables import Line, Made
from allcnn_jax.errors import UsageError
from allcnn_jax.training import layout, sweep

TABLE = "TABLE.md"
_BROKEN = "broken"  # in a kept sweep's file
_CURVES = 4  # of one panel: Table 3 has a base net and three derived from it


def report(workdir: epath.PathLike, output: epath.PathLike | None = None) -> list[epath.Path]:
  """Writes the table of a folder's runs: TABLE.md, report.json, report.html, figures/curves*.

  Args:
    workdir: a run's folder, a folder of runs such as a sweep's, or of their records.
    output: where to write; the folder itself by default. Another one gets a record of every run
      too, so that it can be reported on alone.

  Returns:
    the paths written.

  Raises:
    UsageError: there are no runs.
  """
  source, place = epath.Path(workdir), epath.Path(workdir if output is None else output)
  runs = records.read(source)
  made = of_folder(source, runs)
  paths = []
  apart = place.resolve() != source.resolve()
  if apart:
    paths += _keep(source, runs, made.broken, place)
  files.make_folder(place, f"--output={place}")
  drawn = [p for x in curves(runs) for p in figures.write(x, place / layout.FIGURES)]
  pictures = figures.written(place / layout.FIGURES, f"{layout.FIGURES}/")
  if not apart:
    for folder in sorted(source.glob(f"*/{layout.FIGURES}")):
      pictures += figures.written(folder, f"{folder.parent.name}/{layout.FIGURES}/")
  for name, text in (
    (TABLE, markdown(made)),
    (records.REPORT, as_json(made)),
    ("report.html", page.build(pictures, made.title, _html(made))),
  ):
    files.write(place / name, text.encode())
    paths.append(place / name)
  return list(dict.fromkeys([*paths, *drawn]))


def of_folder(folder: epath.PathLike, runs: Sequence[records.Record]) -> Made:
  """The table of a folder: that of its sweep, in its order, if it is one; else the one that fits."""
  folder = epath.Path(folder)
  if not (folder / sweep.FILE).exists():
    return tables.make(runs)
  plan = sweep.read(folder)
  units = list(plan["units"])
  broken = plan.get(_BROKEN) or [
    f"{p.stem}: {p.read_bytes().decode(errors='replace').strip()}"
    for p in sorted(folder.glob("*.broken"))
  ]

  def place(run: records.Record) -> int:
    unit = run.name.rpartition("-rate")[0]
    return units.index(unit) if unit in units else len(units)

  made = tables.make(sorted(runs, key=place), plan["table"] or None)
  return made._replace(broken=broken)


def _keep(
  source: epath.Path, runs: Sequence[records.Record], broken: Sequence[str], place: epath.Path
) -> list[epath.Path]:
  """Writes what is known of each run, and of the sweep, so that the runs can be thrown away."""
  one = layout.holds_run(source)
  folders = [source if one else source / run.name for run in runs]
  if not all(folder.is_dir() for folder in folders):
    raise UsageError(f"--output={place}: {source} holds records already; copy them there.")
  paths = [place / f"{run.name}.json" for run in runs]
  for path in paths:
    if path.name in records.NO_RECORDS:
      raise UsageError(f"{source / path.stem}: its record would be {path.name}: rename the folder.")
  files.make_folder(place, f"--output={place}")
  if (source / sweep.FILE).exists():
    files.write_json(
      place / sweep.FILE, sweep.read(source) | {_BROKEN: list(broken)}, f"--output={place}"
    )
  for folder, path in zip(folders, paths):
    records.write(folder, path)
  return paths


def curves(runs: Sequence[records.Record]) -> list[Chart]:
  """Learning curves of the runs, and of those on held-out images, if there are any of either."""
  held_out = [r for r in runs if r.config.dataset.validation]
  finals = [r for r in runs if not r.config.dataset.validation]
  charts = [
    _curves("curves", "Learning curves", tables.groups(records.longest(finals), without=())),
    _curves(
      "curves_held_out",
      "Learning curves on held-out training images",
      records.groups(records.longest(held_out), ("model.name", "optimizer.learning_rate")),
    ),
  ]
  return [x for x in charts if x.panels]


def _curves(name: str, title: str, groups: Sequence[records.Group]) -> Chart:
  """Training and evaluation error over epochs, `_CURVES` configs a panel.

  A network that all have stands in the title, and the labels say in what they differ.
  """
  apart = [label.partition(" (") for label, _ in groups]
  if len(groups) > 1 and len({network for network, *_ in apart}) == 1 and all(x[2] for x in apart):
    title = f"{title} of {apart[0][0]}"
    groups = [(told.removesuffix(")"), runs) for (*_, told), (_, runs) in zip(apart, groups)]
  panels, means = chart.learning(groups, _CURVES, logarithmic=True)
  return Chart(
    name,
    title,
    f"Error over epochs. {chart.LONGEST} Curves are {means} Training errors are those of the steps since the last line, with "
    "dropout and augmentation.",
    panels,
    sharey=True,
  )


Grid = list[list[str]]  # a header, then rows

_HEADER = [
  "network",
  "data",
  "paper, error %",
  "error %",
  "standard deviation",
  "n",
  "not counted",
  "last epoch",
  "difference",
  "parameters",
  "paper's",
  "multiply-adds",
  "rate",
  "time an epoch, s",
  "time a run, s",
  "measured with",
  "unlike the paper",
]


def grid(made: Made) -> Grid:
  """The cells of the table, as text."""
  numbers = {text: i for i, text in enumerate(made.machines, 1)}
  return [_HEADER, *([*_cells(x, numbers)] for x in made.lines)]


def trials(made: Made) -> Grid:
  """The cells of the runs on held-out images; empty if there are none."""
  header = [
    "network",
    "data",
    "rate",
    "error on held-out images, %",
    "n",
    "not counted",
    "last epoch",
  ]
  rows = [
    [
      x.name,
      x.data,
      f"{x.optimizer} {x.rate:g}",
      _two(x.error),
      _counted(x),
      _not_counted(x),
      plain(x.epoch),
    ]
    for x in made.trials
  ]
  return [header, *rows] if rows else []


def _cells(x: Line, numbers: Mapping[str, int]) -> Sequence[str]:
  rate = "" if x.rate is None else f"{x.optimizer} {x.rate:g}"
  if x.rates:
    rate += f" of {', '.join(f'{r:g}' for r in x.rates)}"
  return (
    x.name + " †" * x.theirs,
    x.data,
    # The papers print two decimals of CIFAR's errors, one of ImageNet's, which are above 40.
    "" if x.printed is None else f"{x.printed:g}" if x.printed >= 40 else f"{x.printed:.2f}",
    _two(x.error),
    _two(x.deviation),
    _counted(x) if x.rate is not None else "",
    _not_counted(x),
    plain(x.epoch),
    "" if x.difference is None else f"{x.difference:+.2f}",
    _many(x.parameters),
    x.printed_parameters,
    _many(x.multiply_adds),
    rate,
    plain(x.epoch_seconds),
    plain(x.seconds),
    ", ".join(map(str, sorted(numbers[text] for text in x.measured_with))),
    "not compared" if x.unlike is None else ", ".join(x.unlike),
  )


def _counted(x: Line) -> str:
  """n, and of how many seeds where one was run again: such runs differ by rounding alone."""
  seeds = len(set(x.seeds))
  return str(x.n) if seeds == x.n else f"{x.n}, seeds: {seeds}"


def _not_counted(x: Line) -> str:
  counts = {
    "dead": x.dead,
    "diverged": x.diverged,
    "not ended": x.not_ended,
    "evaluated otherwise": x.otherwise,
  }
  return ", ".join(f"{n} {what}" for what, n in counts.items() if n)


def _two(value: float | None) -> str:
  return "" if value is None else f"{value:.2f}"


def plain(value: float | None) -> str:
  """Three digits, and all in front of the point."""
  return "" if value is None else f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _many(value: int | None) -> str:
  return "" if value is None else f"{value:,}"


ABOUT = (
  "Errors are those of the last epoch. Runs that differ in their seed alone stand in one line: mean "
  "and standard deviation over the n runs that came to their end alive; dead runs (their loss is "
  "close to ln(classes)), diverged ones, those that have not ended and those last evaluated on other images "
  "or at another step are counted apart. Times are those of the training steps."
)


def about(made: Made) -> list[str]:
  """The paragraphs below a table that are its own."""
  measured = [f"[{i}] {text}." for i, text in enumerate(made.machines, 1)]
  broken = [f"Broken runs: {'; '.join(made.broken)}."] if made.broken else []
  return [x for x in (made.remark, " ".join(measured), *broken) if x]


def markdown(made: Made) -> str:
  """The table as Markdown."""
  return "\n\n".join([f"# {made.title}", ABOUT, *blocks(made)]) + "\n"


def blocks(made: Made) -> list[str]:
  """The table, if it has a line, and what is said of it, without its title."""
  found = [_markdown(grid(made))] * bool(made.lines) + about(made)
  if made.trials:
    found += ["On held-out training images:", _markdown(trials(made))]
  return found


def _markdown(cells: Grid) -> str:
  rows = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def as_json(made: Made) -> str:
  """The table with all that its lines know."""
  values = made._asdict() | {
    "lines": [x._asdict() for x in made.lines],
    "trials": [x._asdict() for x in made.trials],
  }
  return json.dumps(values, indent=2) + "\n"


def _html(made: Made) -> str:
  paragraphs = "".join(f"<p>{html.escape(x)}</p>" for x in (ABOUT, *about(made)))
  held_out = _html_table(trials(made)) if made.trials else ""
  title = "<h2>On held-out training images</h2>" if held_out else ""
  own = _html_table(grid(made)) if made.lines else ""
  return f'<section class="wide">{own}{paragraphs}{title}{held_out}</section>'


def _html_table(cells: Grid) -> str:
  head = "".join(f"<th>{html.escape(x)}</th>" for x in cells[0])
  body = "".join(
    "<tr>" + "".join(f"<td>{html.escape(x)}</td>" for x in row) + "</tr>" for row in cells[1:]
  )
  return f"<figure><table><tr>{head}</tr>{body}</table></figure>"
