"""A chart before it is drawn: curves over epochs in panels, and the learning curves of any runs."""

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from allcnn_jax.analysis import records
from allcnn_jax.analysis.records import Group, Record

# What a caption says where `records.longest` has chosen.
LONGEST = "Of runs that differ in their epochs alone, at the same rates, the longest are shown."


class Curve(NamedTuple):
  """A mean over runs.

  Attributes:
    label: in the legend.
    x: (points,), epochs.
    y: (points,), in the panel's unit.
    spread: (points,), the standard deviation over the runs; 0 for one run.
  """

  label: str
  x: np.ndarray
  y: np.ndarray
  spread: np.ndarray


class Panel(NamedTuple):
  """Curves in one pair of axes."""

  title: str
  ylabel: str
  curves: Sequence[Curve]
  logarithmic: bool = False


class Chart(NamedTuple):
  """A whole figure: panels side by side, over epochs.

  Attributes:
    sharey: one scale of values for all panels.
  """

  name: str
  title: str
  caption: str
  panels: Sequence[Panel]
  sharey: bool = False

  @property
  def arrays(self) -> dict[str, np.ndarray]:
    """The raw numbers: for each curve its epochs, values and standard deviations, (3, points)."""
    return {
      f"{i}.{panel.title}.{curve.label}": np.stack([curve.x, curve.y, curve.spread])
      for i, panel in enumerate(self.panels)
      for curve in panel.curves
    }


def curve(label: str, runs: Sequence[Record], name: str) -> Curve:
  """The mean and the standard deviation of one number over epochs, where all runs have it."""
  series = [dict(zip(*r.series(name))) for r in runs]
  steps = sorted(set.intersection(*(set(s) for s in series)))
  values = np.array([[s[step] for step in steps] for s in series])
  spread = values.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(steps))
  return Curve(label, np.array(steps) / runs[0].steps_per_epoch, values.mean(axis=0), spread)


def learning(
  groups: Sequence[Group], most: int, logarithmic: bool = False
) -> tuple[list[Panel], str]:
  """Training and evaluation error over epochs, in percent, with a curve for each group.

  A group's runs that are not "ok" are left out where others are there. A group without errors of
  both kinds has no curve.

  Args:
    groups: runs of one config each.
    most: curves in a panel; more are dealt out evenly.
    logarithmic: the errors' axis.

  Returns:
    the panels in pairs, none if no group has both errors, and what a caption says of the curves.
  """
  errors = {"training": "train_error", "evaluation": "eval_error"}
  found = []
  for label, members in groups:
    alive = records.alive(members)
    if all(r.series(name)[0] for r in alive for name in errors.values()):
      found.append((label, alive))
  panels = []
  count = math.ceil(len(found) / most)
  for i in range(count):
    part = found[i * len(found) // count : (i + 1) * len(found) // count]
    for title, name in errors.items():
      curves = [curve(label, alive, name) for label, alive in part]
      panels.append(Panel(title, "error, %", curves, logarithmic))
  return panels, said_of(found)


def said_of(groups: Sequence[Group]) -> str:
  """What a caption says of curves that are means over groups of runs."""
  sizes = [(label, len(members)) for label, members in groups]
  times = collections.Counter(n for _, n in sizes)
  usual = next((n for n in times if times[n] >= max(2, len(sizes) / 2)), None)
  counts = ", ".join(f"{label}: {n}" for label, n in sizes if n != usual)
  if usual:
    counts = f"{usual} for each curve" + (f", but {counts}" if counts else "")
  return (
    "the mean over runs that differ in their seed, shaded by their standard deviation; runs that are "
    f"dead, have diverged or have not ended are left out where others are there. Runs: {counts}."
  )
