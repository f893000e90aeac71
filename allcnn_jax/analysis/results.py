"""results/ -> its README and the table at the head of the project's own.

  python -m allcnn_jax.analysis.results

Rewrites the TABLE.md of every folder of records that has one, results/README.md, and the table
between `<!-- results -->` marks in README.md.
"""

import re

from etils import epath

from allcnn_jax import files, terminal
from allcnn_jax.analysis import printed, records, report, tables
from allcnn_jax.errors import Parser, UsageError, one_line

# What the rows of the table at the head say of a run beside its name: no rate, but the type.
_SAID = (*(k for k in tables.IN_COLUMNS if k != "optimizer.learning_rate"), "train.dtype")
_HEAD = re.compile(r"(<!-- results[^\n]*-->\n).*?(<!-- /results -->)", re.DOTALL)


def generated(root: epath.PathLike) -> dict[epath.Path, str]:
  """The text of every file that is made from the records under `root`/results.

  Raises:
    UsageError: the project is not there, or a record is damaged.
  """
  root = epath.Path(root)
  readme = root / "README.md"
  if not readme.exists() or not (root / "results").is_dir():
    raise UsageError(f"{root} has no README.md and results/.")
  folders = sorted(x.parent for x in (root / "results").glob(f"*/{report.TABLE}"))
  runs = {folder: records.read(folder) for folder in folders}
  made = {folder: report.of_folder(folder, found) for folder, found in runs.items()}
  head = _head([run for found in runs.values() for run in found])
  return {
    **{folder / report.TABLE: report.markdown(x) for folder, x in made.items()},
    root / "results" / "README.md": _overview(made),
    readme: _HEAD.sub(lambda marks: f"{marks[1]}\n{head}\n\n{marks[2]}", readme.read_text()),
  }


def _overview(made: dict[epath.Path, tables.Made]) -> str:
  blocks = [
    "# Measured results",
    "Made by `python -m allcnn_jax.analysis.results` from the records in each folder; a record has "
    "the run's config, its curves, its command, the machine, the versions and, but for the oldest, the "
    "commit. What was tried on the way is in [LOG.md](LOG.md). Beside errors there were measured: speeds "
    "([speed/](speed), [rule_cost/](rule_cost), [input/](input)), and runs that were killed and damaged "
    "([faults.json](faults.json)).",
    report.ABOUT,
  ]
  for folder, x in made.items():
    blocks += [f"## {x.title}: [{folder.name}]({folder.name}/{report.TABLE})", *report.blocks(x)]
  return "\n\n".join(blocks) + "\n"


def _head(runs: list[records.Record]) -> str:
  """The fast recipe's figures, and the first paper's own, ours where its experiment was repeated."""
  runs = records.distinct(runs)
  lines = [
    "**The paper's own experiments**, repeated:",
    "",
    "| test error | paper | here | n |",
    "| --- | --- | --- | --- |",
  ]
  for row in printed.OURS:
    # Named by what tells them apart, in which those that repeat nothing have no part.
    repeated = tables.fill((row,), [run for run in runs if _repeats(run, row)], _SAID)
    for x in repeated:
      here, n = ("", "") if x.error is None else (_measured(x), x.n)
      lines.append(f"| {x.name}, {row.data} | {row.error:g} % | {here} | {n} |")
  return "\n".join([*_fast(runs), *lines])


def _fast(runs: list[records.Record]) -> list[str]:
  """Of the lengths of the fast recipe that were run most often the shortest that reaches the aim, and the best."""
  found = [x for x in tables.fill((printed.FAST,), runs) if x.error is not None]
  if not found:
    return []
  n, paper = max(x.n for x in found), printed.OURS[0].error
  often = [x for x in found if x.n == n]
  best = min(often, key=lambda x: x.error)
  # The fewest epochs for the aim; the best where none reaches it.
  least = min([x for x in often if x.error <= paper] or [best], key=lambda x: (x.epoch, x.error))
  return [
    f"**All-CNN-C's layers in the least time**, by Muon, on {printed.FAST.data}; the paper has {printed.FAST.error:g} % there "
    f"after 350 epochs, which took it up to ten hours, and {paper:g} % without flips and shifts:",
    "",
    "| epochs | test error | n | time of all training steps |",
    "| --- | --- | --- | --- |",
    *map(_epochs, [least] if best is least else [least, best]),
    "",
    f"{printed.COMPARED.capitalize()}; all runs are in [results/cifar10_fast](results/cifar10_fast/TABLE.md).",
    *_on_cifar100(runs),
    "",
  ]


def _on_cifar100(runs: list[records.Record]) -> list[str]:
  """The recipe on the set for which none of its values was chosen: of its lengths the one that was run most often, or the longest."""
  found = [x for x in tables.fill((printed.FAST_100,), runs) if x.error is not None]
  if not found:
    return []
  most, row = max(found, key=lambda x: (x.n, x.epoch)), printed.FAST_100
  return [
    f"On {row.data}, for which nothing in it was chosen, it has {_measured(most)} after {most.epoch:g} epochs "
    f"(n={most.n}; its training steps took {_time(most)}); the paper has {row.error:g} % after 350."
  ]


def _epochs(x: tables.Line) -> str:
  return f"| {x.epoch:g} | {_measured(x)} | {x.n} | {_time(x)} |"


def _time(x: tables.Line) -> str:
  """What the training steps of a run took, and where."""
  return f"{report.plain(x.seconds)} s on {x.measured_with[0].partition(',')[0]}"


def _repeats(run: records.Record, row: printed.Row) -> bool:
  """Whether a run is the experiment of a printed row."""
  return any(x.error is not None and not x.unlike for x in tables.fill((row,), [run]))


def _measured(x: tables.Line) -> str:
  spread = "" if x.deviation is None else f" ± {x.deviation:.2f}"
  return f"{x.error:.2f} %{spread}" + ("" if x.dtype == "float32" else f" in {x.dtype}")


def main():
  parser = Parser(description=__doc__.splitlines()[0])
  parser.add_argument("root", nargs="?", default=".", help="the project's folder")
  with one_line("results"):
    flags = parser.parse_args()
    for path, text in generated(flags.root).items():
      files.write(path, text.encode())
      terminal.note(str(path))


if __name__ == "__main__":
  main()
