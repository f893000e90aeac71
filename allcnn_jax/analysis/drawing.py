"""Sheets and charts -> pixels; the only importer of the plotting library."""

import functools
import itertools
import math
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import LogFormatter
from PIL import Image

from allcnn_jax.analysis.chart import Chart, Panel
from allcnn_jax.analysis.sheet import Block, Picture, Row, Sheet

DPI = 200
_FONT = "DejaVu Sans"  # which comes with matplotlib
# A class or a file may be called "$1": no mathematics in names.
_LOOK = {"font.family": _FONT, "text.parse_math": False}
# A sheet: pixels between pictures, and around the whole; points of its letters.
_GAP, _MARGIN = 6, 24
_SMALL, _TEXT, _TITLE = 6, 7, 11
# A chart: panels in a row; inches of a panel, of a line of its caption, of a line of a legend and
# of what is beside the words there; letters in a line below one panel.
_COLUMNS = 4
_SIZE = (3.2, 2.7)
_LINE, _LEGEND_LINE, _HANDLE = 0.16, 0.147, 0.5
_LETTERS = 36
_MARKED = 60  # points of a curve, at most, that are marked each


def draw(figure: Sheet | Chart) -> UInt8[np.ndarray, "h w 3"]:
  """The figure as an image."""
  return _chart(figure) if isinstance(figure, Chart) else _sheet(figure)


def _sheet(sheet: Sheet) -> UInt8[np.ndarray, "h w 3"]:
  """Every picture is magnified by a whole number, so that pixels stay."""
  layouts = [_Layout(block) for block in sheet.blocks]
  lines = [layouts[i : i + sheet.columns] for i in range(0, len(layouts), sheet.columns)]
  apart = 3 * _MARGIN
  width = max(sum(x.width for x in line) + apart * (len(line) - 1) for line in lines)
  width = max(width, _width(sheet.title, _TITLE, "bold"), 900)
  letter = _width(sheet.caption, _TEXT) / len(sheet.caption)
  caption = textwrap.wrap(sheet.caption, int(0.97 * width / letter))
  top = _MARGIN + _height(_TITLE, 1) + _height(_TEXT, len(caption)) + _MARGIN
  heights = [max(x.height for x in line) for line in lines]
  height = top + sum(heights) + _MARGIN * (len(lines) - 1)

  canvas = _Canvas(height + _MARGIN, width + 2 * _MARGIN)
  canvas.text(sheet.title, _MARGIN, _MARGIN, _TITLE, weight="bold")
  canvas.text("\n".join(caption), _MARGIN, _MARGIN + _height(_TITLE, 1) + 8, _TEXT, color="#444")
  y = top
  for line, line_height in zip(lines, heights):
    x = _MARGIN
    for layout in line:
      layout.draw(canvas, x, y)
      x += layout.width + apart
    y += line_height + _MARGIN
  return canvas.image()


class _Layout:
  """Where the parts of a block go; all lengths in pixels."""

  def __init__(self, block: Block):
    self.block = block
    self.factor = _factor(max(max(p.shape[:2]) for row in block.rows for p in row.pictures))
    sizes = [[self._size(p) for p in row.pictures] for row in block.rows]
    count = max(map(len, sizes))
    notes = [[_width(n, _SMALL) for n in row.notes] for row in block.rows]
    heads = [_width(h, _SMALL) for h in block.headings]
    self.columns = [
      max([s[i][1] for s in sizes if i < len(s)] + [n[i] for n in [*notes, heads] if i < len(n)])
      for i in range(count)
    ]
    self.heights = [max(h for h, _ in s) for s in sizes]
    self.label = max(_width(row.label, _TEXT) for row in block.rows)
    self.label += 12 if self.label else 0
    end = max(_width(row.end, _SMALL) for row in block.rows)
    inner = sum(self.columns) + _GAP * (count - 1)
    self.width = max(
      self.label + inner + (end + 12 if end else 0), _width(block.title, _TEXT + 1, "bold")
    )
    self.head = _height(_TEXT + 1, 1) + _height(_SMALL, _lines(block.headings)) + 4
    self.below = [_height(_SMALL, _lines(row.notes)) for row in block.rows]
    self.height = self.head + sum(self.heights) + sum(self.below) + _GAP * len(sizes)

  def _size(self, picture: Picture) -> tuple[int, int]:
    return tuple(round(n * self.factor) for n in picture.shape[:2])

  def draw(self, canvas: "_Canvas", x: int, y: int) -> None:
    canvas.text(self.block.title, x, y, _TEXT + 1, weight="bold")
    first = x + self.label
    starts = list(itertools.accumulate((c + _GAP for c in self.columns), initial=first))
    for left, width, heading in zip(starts, self.columns, self.block.headings):
      canvas.text(heading, left + width / 2, y + _height(_TEXT + 1, 1), _SMALL, ha="center")
    y += self.head
    for row, height, below in zip(self.block.rows, self.heights, self.below):
      self._row(canvas, row, x, starts, y, height)
      y += height + below + _GAP

  def _row(self, canvas, row: Row, x: int, starts, y: int, height: int) -> None:
    middle = y + height / 2
    canvas.text(row.label, x, middle, _TEXT, centred=True)
    for i, picture in enumerate(row.pictures):
      h, w = self._size(picture)
      left = round(starts[i] + (self.columns[i] - w) / 2)
      canvas.picture(picture, left, y, h, w)
      if row.numbers:
        for (r, c), value in np.ndenumerate(row.numbers[i]):
          at = left + (c + 0.5) * self.factor, y + (r + 0.5) * self.factor
          ink = "white" if picture[r, c].mean() < 100 else "black"
          canvas.text(f"{value:g}", *at, _TEXT, ha="center", centred=True, color=ink)
    for left, width, note in zip(starts, self.columns, row.notes):
      canvas.text(note, left + width / 2, y + height + 2, _SMALL, ha="center")
    canvas.text(row.end, starts[len(row.pictures)] + 6, middle, _SMALL, centred=True, color="#444")


class _Canvas:
  """Pixels, and texts to be set over them."""

  def __init__(self, height: int, width: int):
    self._pixels = np.full((height, width, 3), 255, np.uint8)
    self._texts = []

  def picture(self, picture: Picture, x: int, y: int, height: int, width: int) -> None:
    grow = height >= picture.shape[0]
    method = Image.Resampling.NEAREST if grow else Image.Resampling.BOX
    resized = Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), method)
    self._pixels[y : y + height, x : x + width] = resized

  def text(
    self, text: str, x: int | float, y: int | float, points: int, *, centred: bool = False, **style
  ) -> None:
    """Lines below y, or around it; set one by one, as the baseline of a text depends on it."""
    lines = text.split("\n")
    if centred:
      y -= (_height(points, len(lines)) - 0.35 * _height(points, 1)) / 2
    for i, line in enumerate(lines):
      baseline = y + _height(points, i + 1) - 0.35 * _height(points, 1)
      self._texts.append((x, baseline, line, {"fontsize": points, **style}))

  def image(self) -> UInt8[np.ndarray, "h w 3"]:
    height, width = self._pixels.shape[:2]
    with matplotlib.rc_context(_LOOK):
      figure = Figure((width / DPI, height / DPI), dpi=DPI)
      canvas = FigureCanvasAgg(figure)
      figure.figimage(self._pixels, origin="upper")
      for x, y, text, style in self._texts:
        figure.text(x / width, 1 - y / height, text, va="baseline", **style)
      canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _factor(side: int) -> int | float:
  """Magnification of pictures of `side` pixels, to about 120 pixels and to 300 at most."""
  return max(1, round(120 / side)) if side <= 300 else 300 / side


def _lines(texts: Sequence[str]) -> int:
  return max((t.count("\n") + 1 for t in texts), default=0)


def _height(points: int, lines: int) -> int:
  return round(points * DPI / 72 * 1.4 * lines)


@functools.cache
def _width(text: str, points: int, weight: str = "normal") -> int:
  """Of the longest line, in pixels, as the canvas will set it."""
  renderer = FigureCanvasAgg(Figure(dpi=DPI)).get_renderer()
  font = FontProperties(family=_FONT, weight=weight, size=points)
  lines = (line for line in text.split("\n") if line)
  sizes = (renderer.get_text_width_height_descent(x, font, ismath=False) for x in lines)
  return max((round(width) + 4 for width, _, _ in sizes), default=0)


def _chart(chart: Chart) -> UInt8[np.ndarray, "h w 3"]:
  """Panels in rows of four; below them one legend if all have the same, else one below each that
  differs from what stands at its left.
  """
  columns = min(len(chart.panels), _COLUMNS)
  rows = math.ceil(len(chart.panels) / columns)
  width = max(_SIZE[0] * columns, 6.4)
  caption = textwrap.wrap(chart.caption, int(width * 17))
  labels = {tuple(curve.label for curve in panel.curves) for panel in chart.panels}
  shared = len(labels) == 1
  height, legend, abreast = _SIZE[1] * rows, 0.0, columns
  if shared:
    (told,) = labels
    widest = max(_width(label, _TEXT) for label in told) / DPI
    abreast = min(columns, max(1, int(width / (widest + _HANDLE))))
    if widest + _HANDLE > width:
      letter = max(_width(label, _TEXT) / len(label) for label in told if label) / DPI
      told = [textwrap.fill(label, int((width - _HANDLE) / letter)) for label in told]
    legend = _LEGEND_LINE * math.ceil(sum(x.count("\n") + 1 for x in told) / abreast) + 0.15
  else:
    height += _LEGEND_LINE * max(_lines_below(x) for x in labels) * rows
  below = _LINE * len(caption) + 0.15
  whole = height + 0.3 + legend + below
  # More curves than colours: in dashes.
  styles = (
    matplotlib.cycler(linestyle=["-", "--", ":"]) * matplotlib.rcParamsDefault["axes.prop_cycle"]
  )
  with matplotlib.rc_context(_LOOK | {"font.size": _TEXT, "axes.prop_cycle": styles}):
    figure = Figure((width, whole), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    free = (legend + below) / whole
    figure.get_layout_engine().set(rect=(0, free, 1, 1 - free))
    figure.suptitle(chart.title, fontsize=10, fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=chart.sharey)
    for i, (axes, panel) in enumerate(zip(grid.flat, chart.panels)):
      _panel(axes, panel)
      lines, named = axes.get_legend_handles_labels()
      left = grid.flat[i - 1].get_legend_handles_labels()[1] if i % columns else None
      if not shared and named != left:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
        axes.legend(lines, [textwrap.fill(x, _LETTERS) for x in named], frameon=False, **place)
    for axes in grid.flat[len(chart.panels) :]:
      axes.set_axis_off()
    if shared:
      lines, _ = grid.flat[0].get_legend_handles_labels()
      place = {"loc": "lower center", "bbox_to_anchor": (0.5, below / whole)}
      figure.legend(lines, told, ncols=abreast, frameon=False, **place)
    figure.text(0.01, 0.01, "\n".join(caption), color="#444", va="bottom")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _lines_below(labels: Sequence[str]) -> int:
  return sum(len(textwrap.wrap(label, _LETTERS)) for label in labels)


class _Plain(LogFormatter):
  """Labels the numbers that its base would, none as a product with a power of ten."""

  def __call__(self, x, pos=None):
    return f"{x:g}" if super().__call__(x, pos) else ""


def _panel(axes, panel: Panel) -> None:
  for curve in panel.curves:
    x, y, spread = curve.x, curve.y, curve.spread
    marker = "." if len(x) <= _MARKED else ""
    (drawn,) = axes.plot(x, y, label=curve.label, linewidth=1, marker=marker, markersize=2)
    if spread.any():
      color = drawn.get_color()
      axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.2, linewidth=0)
  if panel.logarithmic:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(_Plain(minor_thresholds=(2, 0.4)))
  axes.set_title(textwrap.fill(panel.title, _LETTERS), fontsize=8)
  axes.set_xlabel("epoch")
  axes.set_ylabel(panel.ylabel)
