"""Figures become files, whole or not at all."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from allcnn_jax.analysis import figures
from allcnn_jax.errors import UsageError
from tests.made import sheet


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


def test_one_changed_bit_leaves_a_picture_out_or_in_and_is_no_error(tmp_path):
  directory = epath.Path(tmp_path)
  figures.write(sheet(), directory)
  for name in ("figure9.npz", "figure9.png"):
    whole = (directory / name).read_bytes()
    for i in range(min(len(whole), 1000)):
      (directory / name).write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
      assert len(figures.written(directory)) <= 1
    (directory / name).write_bytes(whole)
  assert len(figures.written(directory)) == 1


def test_what_fails_writes_nothing(tmp_path, monkeypatch):
  def fail(*_):
    raise UsageError("no")

  monkeypatch.setattr(figures.drawing, "draw", fail)
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
