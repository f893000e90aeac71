"""Arrays -> pictures: the command `visualize`; it and `charts` alone import the plotting library.

A figure is computed (`gallery`), drawn, and written whole: `NAME.png`, its raw arrays in
`NAME.npz`, and one `index.html` of all figures in the folder.
"""

import functools
import io
import itertools
import textwrap
import zipfile
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from etils import epath
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image, UnidentifiedImageError

from allcnn_jax import files
from allcnn_jax.analysis import (
  alignment,
  augmented,
  charts,
  gallery,
  page,
  records,
  subject,
  three_ways,
  ways_back,
)
from allcnn_jax.analysis.chart import Chart
from allcnn_jax.analysis.sheet import Block, Picture, Row, Sheet
from allcnn_jax.errors import UsageError, unknown

FIGURES: dict[str, Callable[[subject.Request], Sheet]] = {
  "1": gallery.figure1,
  "2": gallery.figure2,
  "3": gallery.figure3,
  "4": three_ways.figure4,
  "5": three_ways.figure5,
  "6": three_ways.figure6,
  "augmentation": augmented.figure,
  "fa1": ways_back.figure,
}

# Which flags a figure takes; without a name, that of `inputs`.
_TAKES: dict[str | None, tuple[str, ...]] = {
  "2": ("layer", "channels", "step"),
  "3": ("layer", "channels", "split", "step"),
  **dict.fromkeys(("4", "5", "6"), ("layer", "channels", "input", "split", "step")),
  "augmentation": ("split", "step"),
  None: ("layer", "channels", "input", "step"),
}

_GAP, _MARGIN = 6, 24  # pixels between pictures, and around the whole
_SMALL, _TEXT, _TITLE = 6, 7, 11  # points


def visualize(
  workdir: epath.PathLike,
  figure: str | None,
  *,
  layer: str | None = None,
  channels: Sequence[int] = (),
  inputs: Sequence[str] = (),
  split: str | None = None,
  step: int | None = None,
) -> list[epath.Path]:
  """Computes one figure and writes it to WORKDIR/figures; what fails writes nothing.

  Args:
    workdir: the run's folder; for fa2 to fa5 a folder of runs or of their records. Figures 1 and
      fa1 need no run in it.
    figure: one of `FIGURES` or of `alignment.CHARTS`; None: the three ways back side by side for each of `inputs`.
    layer: whose units are asked about; by default the last 3x3 convolution in Figure 3, the
      first three in 2, the last one in 4, and the class scores in 5, 6 and for `inputs`.
    channels: which filters; by default those of the largest activations.
    inputs: paths of pictures to show instead of the data set's.
    split: of the run's data set; by default the one that it was evaluated on.
    step: of the checkpoint; by default the newest.

  Returns:
    the paths written.

  Raises:
    UsageError: an unknown figure, layer or channel, a choice that the figure does not have, a
      picture that is none, an empty set.
  """
  known = (*FIGURES, *alignment.CHARTS)
  if figure is None and not inputs:
    raise UsageError(f"--figure=NAME or --input=PHOTO is missing. Figures: {', '.join(known)}.")
  if figure is not None and figure not in known:
    raise unknown("figure", figure, known)
  given = {"layer": layer, "channels": channels, "input": inputs, "split": split, "step": step}
  takes = _TAKES.get(None if inputs and figure in ("4", "5", "6") else figure, ())
  for name, value in given.items():
    if value not in (None, [], ()) and name not in takes:
      what = f"--figure={figure}" if figure else "A picture of your own"
      others = f", but {', '.join(f'--{x}' for x in takes)}" if takes else ""
      raise UsageError(f"{what} takes no --{name}{others}.")
  if figure in alignment.CHARTS:
    chart = alignment.CHARTS[figure](records.read(workdir))
    return write(chart, epath.Path(workdir) / "figures")
  load = functools.partial(subject.load, workdir, step)
  request = subject.Request(load, layer, tuple(channels), tuple(inputs), split)
  sheet = (FIGURES[figure] if figure else three_ways.photos)(request)
  return write(sheet, epath.Path(workdir) / "figures")


def write(sheet: Sheet | Chart, directory: epath.Path) -> list[epath.Path]:
  """Writes NAME.npz, NAME.png and the page of all figures, each under its name only when whole."""
  drawn = io.BytesIO()
  image = charts.draw(sheet) if isinstance(sheet, Chart) else draw(sheet)
  Image.fromarray(image).save(drawn, "png", dpi=(charts.DPI, charts.DPI), optimize=True)
  arrays = io.BytesIO()
  np.savez_compressed(arrays, title=sheet.title, caption=sheet.caption, **sheet.arrays)
  files.make_folder(directory, str(directory))
  paths = [directory / f"{sheet.name}.npz", directory / f"{sheet.name}.png"]
  files.write(paths[0], arrays.getvalue())
  files.write(paths[1], drawn.getvalue())
  paths.append(directory / "index.html")
  files.write(
    paths[-1], page.build(written(directory), f"Figures of {directory.parent.name}").encode()
  )
  return paths


def written(directory: epath.Path, place: str = "") -> list[page.Figure]:
  """All figures in a folder, by name; `place` is the way to it from where the page will be.

  Pictures that `write` did not make are left out.
  """
  figures = []
  for path in sorted(directory.glob("*.png")):
    arrays = path.with_suffix(".npz")
    if arrays.exists():
      try:
        with np.load(io.BytesIO(arrays.read_bytes())) as archive:
          title, caption = str(archive["title"]), str(archive["caption"])
        png = path.read_bytes()
        width = round(Image.open(io.BytesIO(png)).width * 96 / charts.DPI)
      except (ValueError, KeyError, EOFError, zipfile.BadZipFile, UnidentifiedImageError):
        continue
      figures.append(page.Figure(place + path.stem, title, caption, png, width))
  return figures


def draw(sheet: Sheet) -> UInt8[np.ndarray, "h w 3"]:
  """The sheet as an image. Every picture is magnified by a whole number, so that pixels stay."""
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
    with matplotlib.rc_context({"font.family": charts.FONT}):
      figure = Figure((width / charts.DPI, height / charts.DPI), dpi=charts.DPI)
      canvas = FigureCanvasAgg(figure)
      figure.figimage(self._pixels, origin="upper")
      for x, y, text, style in self._texts:
        # A class or a file may be called "$1": no mathematics in names.
        figure.text(x / width, 1 - y / height, text, va="baseline", parse_math=False, **style)
      canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _factor(side: int) -> int | float:
  """Magnification of pictures of `side` pixels, to about 120 pixels and to 300 at most."""
  return max(1, round(120 / side)) if side <= 300 else 300 / side


def _lines(texts: Sequence[str]) -> int:
  return max((t.count("\n") + 1 for t in texts), default=0)


def _height(points: int, lines: int) -> int:
  return round(points * charts.DPI / 72 * 1.4 * lines)


@functools.cache
def _width(text: str, points: int, weight: str = "normal") -> int:
  """Of the longest line, in pixels, as the canvas will set it."""
  renderer = FigureCanvasAgg(Figure(dpi=charts.DPI)).get_renderer()
  font = FontProperties(family=charts.FONT, weight=weight, size=points)
  lines = (line for line in text.split("\n") if line)
  sizes = (renderer.get_text_width_height_descent(x, font, ismath=False) for x in lines)
  return max((round(width) + 4 for width, _, _ in sizes), default=0)
