"""A figure before it is drawn: pictures in rows, rows in blocks, and what stands beside them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

Picture = UInt8[np.ndarray, "h w 3"]


class Row(NamedTuple):
  """Pictures side by side.

  Attributes:
    label: before the first.
    pictures: their sizes may differ.
    notes: a text below each, or none.
    end: behind the last.
    numbers: for each picture the number to write into each of its pixels, or none.
  """

  label: str
  pictures: Sequence[Picture]
  notes: Sequence[str] = ()
  end: str = ""
  numbers: Sequence[np.ndarray] = ()


class Block(NamedTuple):
  """Rows below each other under one title; `headings` stand over their columns."""

  title: str
  rows: Sequence[Row]
  headings: Sequence[str] = ()


class Sheet(NamedTuple):
  """A whole figure.

  Attributes:
    name: of its files.
    title: in a few words.
    caption: how to read it, a sentence or more.
    blocks: in reading order.
    columns: how many blocks stand side by side.
    arrays: the raw numbers, for the npz beside the picture.
  """

  name: str
  title: str
  caption: str
  blocks: Sequence[Block]
  columns: int
  arrays: dict[str, Any]


def scaling(where: str = "at the end of the row") -> str:
  """How to read pictures of `signed`, whose scale, as `scale_of` has it, stands somewhere."""
  return (
    f"Grey is zero; white and black are plus and minus the number {where}, the 99.5th percentile of "
    "the absolute values that are not zero."
  )


def scale_of(pictures: Float[np.ndarray, "n h w c"]) -> float:
  """The 99.5th percentile of the absolute values that are not zero; 0 if all are."""
  values = np.abs(pictures[pictures != 0])
  return float(np.percentile(values, 99.5)) if values.size else 0.0


def signed(pictures: Float[np.ndarray, "n h w c"], scale: float) -> list[Picture]:
  """Zero is grey, +scale white, -scale black, colour by colour; what is beyond is cut off."""
  shown = np.clip(pictures / (scale or 1), -1, 1)
  return plain(np.round(127.5 + 127.5 * shown).astype(np.uint8))


def plain(images: UInt8[np.ndarray, "n h w c"]) -> list[Picture]:
  """Images of one or three channels as pictures of three."""
  return list(np.broadcast_to(images, (*images.shape[:3], 3)))


def signed_row(
  label: str, pictures: Float[np.ndarray, "n h w c"], notes: Sequence[str] = ()
) -> Row:
  """A row of signed pictures under one scale, which is stated at its end."""
  scale = scale_of(pictures)
  end = f"±{scale:.3g}" if scale else "blank"
  return Row(label, signed(pictures, scale), notes, end)
