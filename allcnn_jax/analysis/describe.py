"""A network as a table: what each layer sees, how large it is and what it costs."""

from collections.abc import Sequence

import ml_collections

from allcnn_jax import config as config_lib
from allcnn_jax.analysis import columns
from allcnn_jax.nets import architectures
from allcnn_jax.training import parts

_HEADER = ("layer", "", "output", "field", "stride", "parameters", "multiply-adds")


def rows(config: ml_collections.ConfigDict) -> list[architectures.Row]:
  """The layers of a config's network, with sizes for the images that it takes."""
  config_lib.check(config)
  return parts.layers(config)


def _kind(layer: architectures.Layer) -> str:
  match layer:
    case architectures.Conv(kernel, _, stride, padding, relu):
      step = f" /{stride}" if stride > 1 else ""
      pad = f" pad {padding[0]}" if padding[0] == padding[1] else f" pad {padding[0]},{padding[1]}"
      return f"{kernel}x{kernel}{step}{pad}{' ReLU' if relu else ''}"
    case architectures.Pool(kind, window, stride, _):
      norm = f"{kind}-norm" if kind not in architectures.POOLS else kind
      return f"{norm} {window}x{window} /{stride}"
    case architectures.Dropout(rate=rate):
      return f"{rate:g}"
    case architectures.Dense(_, relu):
      return "ReLU" if relu else ""
  return "mean"


def lines(config: ml_collections.ConfigDict) -> list[str]:
  """The table as text, its totals below; `field` and `stride` are pixels of the image."""
  traced = rows(config)
  h, w, c = parts.image(config)
  cells = [_HEADER, ("image", "", f"{h}x{w}x{c}", "1", "1", "", "")]
  for r in traced:
    size = "x".join(map(str, r.size))
    costs = (f"{n:,}" if n else "" for n in (r.parameters, r.multiply_adds))
    cells.append((r.name, _kind(r.layer), size, str(r.field), str(r.stride), *costs))
  totals = (f"{sum(r.parameters for r in traced):,}", f"{sum(r.multiply_adds for r in traced):,}")
  cells.append(("total", "", "", "", "", *totals))
  text = columns.aligned(cells, left=2)
  rule = "-" * len(text[0])
  return [config.model.name, "", text[0], rule, *text[1:-1], rule, text[-1]]


def side_by_side(configs: Sequence[ml_collections.ConfigDict]) -> str:
  """The tables of one or two configs, the second to the right of the first."""
  tables = [lines(c) for c in configs]
  height = max(len(t) for t in tables)
  # Totals stay on one line: the shorter table is filled before its last two.
  tables = [t[:-2] + [""] * (height - len(t)) + t[-2:] for t in tables]
  widths = [max(map(len, t)) for t in tables]
  joined = ["    ".join(x.ljust(n) for x, n in zip(row, widths)).rstrip() for row in zip(*tables)]
  return "\n".join(joined)
