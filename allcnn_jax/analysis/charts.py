"""Charts -> pixels; beside `figures` the only importer of the plotting library."""

import math
import textwrap

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from allcnn_jax.analysis.chart import Chart, Panel

DPI, FONT = 200, "DejaVu Sans"  # the font comes with matplotlib
_COLUMNS = 4
_SIZE = (3.2, 2.7)  # inches, of a panel
_LETTER = 0.06  # inches, of a legend


def draw(chart: Chart) -> UInt8[np.ndarray, "h w 3"]:
  """The chart as an image: panels in rows of four; one legend if all have the same, else one in each."""
  columns = min(len(chart.panels), _COLUMNS)
  rows = math.ceil(len(chart.panels) / columns)
  width, height = max(_SIZE[0] * columns, 6.4), _SIZE[1] * rows
  caption = textwrap.wrap(chart.caption, int(width * 17))
  labels = {tuple(curve.label for curve in panel.curves) for panel in chart.panels}
  shared = len(labels) == 1
  legend, abreast = 0.0, columns
  if shared:
    (named,) = labels
    abreast = min(columns, max(1, int(width / (_LETTER * max(map(len, named)) + 0.4))))
    legend = 0.16 * math.ceil(len(named) / abreast) + 0.15
  below = 0.16 * len(caption) + 0.15
  whole = height + 0.3 + legend + below
  with matplotlib.rc_context({"font.size": 7, "font.family": FONT}):
    figure = Figure((width, whole), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    free = (legend + below) / whole
    figure.get_layout_engine().set(rect=(0, free, 1, 1 - free))
    figure.suptitle(chart.title, fontsize=10, fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, chart.panels):
      _panel(axes, panel)
      if not shared:
        axes.legend(fontsize=6, frameon=False)
    for axes in grid.flat[len(chart.panels) :]:
      axes.set_axis_off()
    if shared:
      lines = grid.flat[0].get_legend_handles_labels()
      place = {"loc": "lower center", "bbox_to_anchor": (0.5, below / whole)}
      figure.legend(*lines, ncols=abreast, frameon=False, **place)
    figure.text(0.01, 0.01, "\n".join(caption), color="#444", va="bottom", parse_math=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _panel(axes, panel: Panel) -> None:
  for curve in panel.curves:
    x, y, spread = curve.x, curve.y, curve.spread
    (drawn,) = axes.plot(x, y, label=curve.label, linewidth=1, marker=".", markersize=2)
    if spread.any():
      color = drawn.get_color()
      axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.2, linewidth=0)
  if panel.logarithmic:
    axes.set_yscale("log")
  axes.set_title(textwrap.fill(panel.title, 36), fontsize=8)
  axes.set_xlabel("epoch")
  axes.set_ylabel(panel.ylabel)
