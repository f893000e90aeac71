"""Rows of cells as lines of text whose columns stand below each other."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
  """A line for each row: the first `left` columns begin alike, the others end alike."""
  widths = [max(map(len, column)) for column in zip(*rows)]

  def line(row: Sequence[str]) -> str:
    cells = [x.ljust(n) if i < left else x.rjust(n) for i, (x, n) in enumerate(zip(row, widths))]
    return "  ".join(cells).rstrip()

  return [line(row) for row in rows]
