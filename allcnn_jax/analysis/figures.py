"""Arrays -> pictures in files: the command `visualize`.

A figure is computed (by the modules of `FIGURES` and `alignment`), drawn (`drawing`), and written whole: `NAME.png`, its raw arrays in
`NAME.npz`, and one `index.html` of all figures in the folder.
"""

import functools
import io
import zipfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath
from PIL import Image

from allcnn_jax import files
from allcnn_jax.analysis import (
  alignment,
  augmented,
  drawing,
  gallery,
  page,
  records,
  subject,
  three_ways,
  ways_back,
)
from allcnn_jax.analysis.chart import Chart
from allcnn_jax.analysis.sheet import Sheet
from allcnn_jax.errors import UsageError, is_denied, unknown
from allcnn_jax.training import layout, sharding

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

# What NumPy and Pillow raise of a file that is none of ours, or not any more.
_DAMAGED = (
  EOFError,
  KeyError,
  OSError,
  RuntimeError,
  SyntaxError,
  ValueError,
  zipfile.BadZipFile,
  zlib.error,
)
# Which flags a figure takes; without a name, that of `inputs`.
_TAKES: dict[str | None, tuple[str, ...]] = {
  "2": ("layer", "channels", "step"),
  "3": ("layer", "channels", "split", "step"),
  **dict.fromkeys(("4", "5", "6"), ("layer", "channels", "input", "split", "step")),
  "augmentation": ("split", "step"),
  None: ("layer", "channels", "input", "step"),
}


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
    return write(chart, epath.Path(workdir) / layout.FIGURES)
  sharding.all_devices()  # refuses, before anything is computed, those that are not there
  load = functools.partial(subject.load, workdir, step)
  request = subject.Request(load, layer, tuple(channels), tuple(inputs), split)
  sheet = (FIGURES[figure] if figure else three_ways.photos)(request)
  return write(sheet, epath.Path(workdir) / layout.FIGURES)


def write(figure: Sheet | Chart, directory: epath.Path) -> list[epath.Path]:
  """Writes NAME.npz, NAME.png and the page of all figures, each under its name only when whole."""
  drawn = io.BytesIO()
  image = Image.fromarray(drawing.draw(figure))
  image.save(drawn, "png", dpi=(drawing.DPI, drawing.DPI), optimize=True)
  arrays = io.BytesIO()
  np.savez_compressed(arrays, title=figure.title, caption=figure.caption, **figure.arrays)
  files.make_folder(directory, str(directory))
  paths = [directory / f"{figure.name}.npz", directory / f"{figure.name}.png"]
  files.write(paths[0], arrays.getvalue())
  files.write(paths[1], drawn.getvalue())
  paths.append(directory / "index.html")
  files.write(
    paths[-1], page.build(written(directory), f"Figures of {directory.parent.name}").encode()
  )
  return paths


def written(directory: epath.Path, place: str = "") -> list[page.Figure]:
  """All figures in a folder, by name; `place` is the way to it from where the page will be.

  Pictures that `write` did not make, or that are damaged, are left out.
  """
  figures = []
  for path in sorted(directory.glob("*.png")):
    arrays = path.with_suffix(".npz")
    if arrays.exists():
      try:
        with np.load(io.BytesIO(arrays.read_bytes())) as archive:
          title, caption = str(archive["title"]), str(archive["caption"])
        png = path.read_bytes()
        width = round(Image.open(io.BytesIO(png)).width * 96 / drawing.DPI)
      except _DAMAGED as error:
        if is_denied(error):
          raise
        continue
      figures.append(page.Figure(place + path.stem, title, caption, png, width))
  return figures
