"""Sheets and charts become images: pixel for pixel, and nothing cut off."""

import numpy as np

from allcnn_jax.analysis import alignment, drawing
from allcnn_jax.analysis.chart import Chart, Curve, Panel
from allcnn_jax.analysis.sheet import Block, Row
from tests.made import of_rule as run
from tests.made import sheet


def test_every_picture_is_drawn_pixel_for_pixel():
  picture = sheet().blocks[0].rows[0].pictures[0]
  drawn = drawing.draw(sheet())
  large = np.kron(picture, np.ones((20, 20, 1), np.uint8))
  top, left = np.argwhere((drawn == picture[3, 5]).all(-1)).min(axis=0) - (60, 100)
  np.testing.assert_array_equal(drawn[top : top + 80, left : left + 120], large)


def test_nothing_is_cut_off_at_the_edges():
  wide = Block("a long title " * 9, [Row("label", [np.zeros((3, 3, 3), np.uint8)], [], "±1")])
  drawn = drawing.draw(sheet(blocks=[wide], title="A title that is long " * 5))
  for edge in (drawn[:8], drawn[-8:], drawn[:, :8], drawn[:, -8:]):
    assert (edge == 255).all()


def test_large_pictures_are_made_smaller():
  green = np.full((900, 600, 3), (0, 200, 0), np.uint8)
  drawn = drawing.draw(sheet(blocks=[Block("", [Row("", [green])])]))
  assert (drawn == (0, 200, 0)).all(-1).sum() == 300 * 200


def test_a_chart_has_ink_of_each_line():
  image = drawing.draw(alignment.learning([run(), run("bp", scale=2.0)]))
  for colour in ((31, 119, 180), (255, 127, 14)):
    assert (image == colour).all(-1).any()


def test_more_curves_than_colours_are_told_apart():
  def drawn(first, eleventh):
    levels = [first, *range(2, 11), eleventh]
    curves = [
      Curve(str(i), np.arange(5.0), np.full(5, float(y)), np.zeros(5)) for i, y in enumerate(levels)
    ]
    return drawing.draw(Chart("c", "", "A caption.", [Panel("", "error, %", curves)]))

  assert not np.array_equal(drawn(0, 1), drawn(1, 0))


def test_a_long_legend_hides_no_curve():
  def ink(name):
    panels = [
      Panel("", "error, %", [Curve(name + label, np.arange(5.0), np.arange(5.0), np.zeros(5))])
      for label in "ab"
    ]
    image = drawing.draw(Chart("c", "", "A caption.", panels))
    top, *_, bottom = np.flatnonzero((image == 0).all(-1).sum(axis=1) > 500)  # the axes' edges
    return (image[top:bottom] != 255).any(-1).sum()

  np.testing.assert_allclose(ink("a long name of a rule, " * 6), ink(""), rtol=0.02)


def test_a_long_legend_of_all_panels_has_room_for_each_curve():
  labels = ["a long name of a run, " * 8 + label for label in "ab"]
  curves = [Curve(label, np.arange(5.0), np.arange(5.0), np.zeros(5)) for label in labels]
  panels = [Panel("", "error, %", curves)] * 2
  image = drawing.draw(Chart("c", "", "A caption.", panels))
  for edge in (image[:, :4], image[:, -4:]):
    assert (edge == 255).all()
  *_, bottom = np.flatnonzero((image == 0).all(-1).sum(axis=1) > 500)
  for colour in ((31, 119, 180), (255, 127, 14)):
    assert (image[bottom:] == colour).all(-1).any()


def test_a_logarithmic_panel_is_drawn_so_and_no_other():
  def drawn(**how):
    curve = Curve("a", np.arange(3.0), np.array([1.0, 10.0, 100.0]), np.zeros(3))
    image = drawing.draw(Chart("c", "", "A caption.", [Panel("", "", [curve], **how)]))
    blue = (image == (31, 119, 180)).all(-1)
    left, *_, right = np.flatnonzero(blue.any(axis=0))
    return [np.flatnonzero(blue[:, x]).mean() for x in (left, (left + right) // 2, right)]

  bottom, middle, top = drawn(logarithmic=True)
  assert abs((bottom + top) / 2 - middle) < 0.1 * (bottom - top)
  bottom, middle, top = drawn()
  assert (bottom - middle) < 0.2 * (bottom - top)


def test_what_a_figure_says_is_drawn(monkeypatch):
  said = []

  def noted(self, x, y, text, **style):
    said.append(text)

  monkeypatch.setattr(drawing.Figure, "text", noted)
  drawing.draw(sheet())
  assert " ".join(said).split() == [
    *("Title", *("Caption. " * 20).split(), "filter", "7", "a", "b"),
    *("guided", "1.5", "2.5", "±3"),
  ]


def test_a_number_is_light_on_dark_and_dark_on_light(monkeypatch):
  inks = {}

  def noted(self, x, y, text, color="black", **style):
    inks[text] = color

  monkeypatch.setattr(drawing.Figure, "text", noted)
  picture = np.array([[[0] * 3, [255] * 3]], np.uint8)
  numbers = [np.array([[1.0, 2.0]])]
  drawing.draw(sheet(blocks=[Block("", [Row("", [picture], numbers=numbers)])]))
  assert (inks["1"], inks["2"]) == ("white", "black")


def test_panels_side_by_side_with_the_same_curves_have_one_legend():
  panels = [
    Panel("", "error, %", [Curve(label, np.arange(5.0), np.arange(5.0), np.zeros(5))])
    for label in "aabbb"
  ]
  image = drawing.draw(Chart("c", "", "A caption.", panels))
  edges = np.flatnonzero((image == 0).all(-1).sum(axis=1) > 500)
  _, bottom, top, lowest = (x[0] for x in np.split(edges, np.flatnonzero(np.diff(edges) > 9) + 1))
  blue = (image == (31, 119, 180)).all(-1)
  below = [
    x.any() for part in (blue[bottom:top], blue[lowest:]) for x in np.array_split(part, 4, 1)
  ]
  assert below == [True, False, True, False, True, False, False, False]


def test_no_name_is_taken_for_mathematics():
  """Not even one that would be none: a path may hold anything."""
  curve = Curve("/data/$a_{$/x", np.arange(5.0), np.arange(5.0), np.zeros(5))
  for curves in ([[curve]], [[curve], [curve._replace(label="$b^{$")]]):
    panels = [Panel("a panel of $c_{$", "error, %", x) for x in curves]
    drawn = drawing.draw(Chart("c", "A title with $d_{$", "A caption of $e_{$.", panels))
    assert (drawn != 255).any()
