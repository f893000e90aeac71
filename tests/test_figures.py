"""Sheets become images, pixel for pixel, and files, whole or not at all."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from allcnn_jax.analysis import figures
from allcnn_jax.analysis.sheet import Block, Row, Sheet
from allcnn_jax.errors import UsageError


def sheet(name="figure9", **changes):
  red = np.zeros((4, 6, 3), np.uint8)
  red[..., 0] = np.arange(24).reshape(4, 6) * 10
  blocks = [
    Block("filter 7", [Row("guided", [red, red[:, ::-1]], ["1.5", "2.5"], "±3")], ["a", "b"])
  ]
  return Sheet(name, "Title", "Caption. " * 20, blocks, 1, {"guided": red})._replace(**changes)


def test_every_picture_is_drawn_pixel_for_pixel():
  picture = sheet().blocks[0].rows[0].pictures[0]
  drawn = figures.draw(sheet())
  large = np.kron(picture, np.ones((20, 20, 1), np.uint8))
  top, left = np.argwhere((drawn == picture[3, 5]).all(-1)).min(axis=0) - (60, 100)
  np.testing.assert_array_equal(drawn[top : top + 80, left : left + 120], large)


def test_nothing_is_cut_off_at_the_edges():
  wide = Block("a long title " * 9, [Row("label", [np.zeros((3, 3, 3), np.uint8)], [], "±1")])
  drawn = figures.draw(sheet(blocks=[wide], title="A title that is long " * 5))
  for edge in (drawn[:8], drawn[-8:], drawn[:, :8], drawn[:, -8:]):
    assert (edge == 255).all()


def test_large_pictures_are_made_smaller():
  green = np.full((900, 600, 3), (0, 200, 0), np.uint8)
  drawn = figures.draw(sheet(blocks=[Block("", [Row("", [green])])]))
  assert (drawn == (0, 200, 0)).all(-1).sum() == 300 * 200


def test_files_are_whole_and_the_page_holds_every_figure(tmp_path):
  directory = epath.Path(tmp_path) / "figures"
  figures.write(sheet(), directory)
  paths = figures.write(sheet("figure8"), directory)
  names = {"figure8.npz", "figure8.png", "figure9.npz", "figure9.png", "index.html"}
  assert {p.name for p in directory.iterdir()} == names
  assert [p.name for p in paths] == ["figure8.npz", "figure8.png", "index.html"]
  page = (directory / "index.html").read_text()
  assert page.index('id="figure8"') < page.index('id="figure9"')
  with np.load(directory / "figure9.npz") as arrays:
    np.testing.assert_array_equal(arrays["guided"], sheet().arrays["guided"])
  with Image.open(directory / "figure9.png") as image:
    assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)


def test_pictures_of_others_are_left_out(tmp_path):
  directory = epath.Path(tmp_path) / "figures"
  figures.write(sheet(), directory)
  for name, content in (("a", b""), ("b", b"PK"), ("c", b"\x80\x04N."), ("d", None)):
    (directory / f"{name}.png").write_bytes((directory / "figure9.png").read_bytes())
    (directory / f"{name}.npz").write_bytes(content or b"")
  np.savez(directory / "d.npz", title=np.ones(3))
  (directory / "e.png").write_bytes(b"no picture")
  (directory / "e.npz").write_bytes((directory / "figure9.npz").read_bytes())
  assert [x.name for x in figures.written(directory)] == ["figure9"]


def test_what_fails_writes_nothing(tmp_path, monkeypatch):
  def fail(*_):
    raise UsageError("no")

  monkeypatch.setattr(figures, "draw", fail)
  with pytest.raises(UsageError):
    figures.visualize(tmp_path, "1")
  assert not list(tmp_path.iterdir())


def test_figure_1_needs_no_run(tmp_path):
  paths = figures.visualize(tmp_path / "new", "1")
  assert all(p.exists() for p in paths)


@pytest.mark.parametrize(
  ("figure", "inputs", "line"),
  [
    ("7", (), "Unknown figure '7'.*Known: 1, 2, 3, 4, 5, 6"),
    (None, (), "--figure=NAME or --input=PHOTO is missing"),
    ("3", ("a.png",), "--figure=3 takes no --input"),
    ("3", (), "no run's folder"),
  ],
)
def test_wrong_use_is_one_line_and_writes_nothing(tmp_path, figure, inputs, line):
  with pytest.raises(UsageError, match=line):
    figures.visualize(tmp_path, figure, inputs=inputs)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("figure", "choice", "line"),
  [
    ("1", {"layer": "conv1"}, "--figure=1 takes no --layer.$"),
    ("1", {"step": 0}, "takes no --step"),
    ("2", {"split": "train"}, "--figure=2 takes no --split, but --layer, --channels, --step"),
    ("augmentation", {"channels": [3]}, "takes no --channels, but --split, --step"),
    ("fa1", {"layer": "conv1"}, "takes no --layer"),
    ("fa2", {"step": 3}, "takes no --step"),
  ],
)
def test_a_choice_that_a_figure_does_not_have_is_refused(tmp_path, figure, choice, line):
  with pytest.raises(UsageError, match=line):
    figures.visualize(tmp_path, figure, **choice)
  assert not list(tmp_path.iterdir())
