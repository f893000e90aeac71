"""Figures 4 to 6 and a user's own photos."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from allcnn_jax.analysis import saliency, three_ways
from allcnn_jax.analysis import sheet as sheet_lib
from allcnn_jax.analysis import subject as subject_lib
from allcnn_jax.analysis.subject import Request
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures, model


@pytest.fixture
def photo(tmp_path):
  path = tmp_path / "photo.png"
  pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3)).astype(np.uint8)
  Image.fromarray(pixels).save(path)
  return str(path)


def test_figure_4_asks_the_strongest_unit_of_the_last_convolution(strided):
  sheet = three_ways.figure4(Request(lambda: strided))
  images = next(strided.data(None).batches(5))
  inputs = strided.inputs(images)
  switched = strided.net.clone(table=architectures.pooled(strided.net.table))
  for title, net in (("without pooling", strided.net), ("with pooling and switches", switched)):
    units = saliency.strongest(net, strided.variables, inputs, layer="conv4")
    np.testing.assert_array_equal(sheet.arrays[f"{title}: channel"], units.channel)
    for rule in ("backprop", "deconvnet", "guided"):
      expected = saliency.attribute(net, strided.variables, inputs, layer="conv4", rule=rule)
      stored = sheet.arrays[f"{title}: {rule}"]  # raw, as the network's input is
      np.testing.assert_allclose(stored, expected, rtol=1e-4, atol=1e-7)
  drawn = strided.unwhiten(sheet.arrays["without pooling: guided"])
  assert sheet.blocks[1].rows[3].end == f"±{sheet_lib.scale_of(drawn):.3g}"
  rows = [r.label for r in sheet.blocks[0].rows]
  ways = ["image", "backpropagation", "deconvnet", "guided"]
  assert rows == [*ways, "random conv4", "and conv3", "and conv2", "and conv1"]
  assert sheet.columns == 2


def test_images_may_be_stored_smaller_than_the_net_takes_them(strided, monkeypatch):
  conv = architectures.Conv
  table = (conv(3, 4, 2, (0, 0)), conv(3, 10, 1, (0, 0)), architectures.GlobalAverage())
  net = model.ConvNet(table)
  variables = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  trained = strided.trained._replace(net=net, variables=variables)
  small = dataclasses.replace(strided, trained=trained, stored=(4, 4, 3))
  raw = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
  monkeypatch.setattr(type(small), "data", lambda *_: subject_lib.InMemory(raw))
  sheet = three_ways.figure5(Request(lambda: small))
  assert sheet.arrays["without pooling: guided"].shape == (5, 32, 32, 3)


def test_figure_5_asks_the_class_scores(strided):
  sheet = three_ways.figure5(Request(lambda: strided, channels=(3,)))
  assert set(sheet.arrays["without pooling: channel"]) == {3}
  assert sheet.blocks[0].headings[0] == "score of\nclass 3"


def test_a_figure_says_whose_pixels_it_shows(strided):
  own = three_ways.figure4(Request(lambda: strided, layer="conv2"))
  chosen = three_ways.figure4(Request(lambda: strided, layer="conv2", channels=(2,)))
  assert own.caption.startswith("Which pixels speak for the largest activation of conv2 in each")
  assert "the largest activation of filter 2 of conv2 in each image" in chosen.caption
  title = "without pooling"
  (block,) = [x for x in chosen.blocks if x.title == title]
  places = chosen.arrays[f"{title}: position"]
  assert list(block.headings) == [f"unit 2\nat {i}, {j}" for i, j in places]
  assert any(i != j for i, j in places)


def test_notes_are_the_cascade_s_and_each_net_s_own(strided):
  sheet = three_ways.figure5(Request(lambda: strided))
  inputs = strided.inputs(next(strided.data(None).batches(5)))
  switched = strided.net.clone(table=architectures.pooled(strided.net.table))
  nets = {"without pooling": strided.net, "with pooling and switches": switched}
  for block in sheet.blocks:
    kept = {k.partition(": ")[2]: v for k, v in sheet.arrays.items() if k.startswith(block.title)}
    assert list(block.rows[0].notes) == strided.predicted(nets[block.title], inputs)
    for i, row in enumerate(block.rows[4:]):
      pairs = zip(kept["random_signed"][i], kept["random_absolute"][i])
      assert list(row.notes) == [f"{a:.2f} | {b:.2f}" for a, b in pairs]
      drawn = strided.unwhiten(kept["random_pictures"][i])
      assert row.end == f"±{sheet_lib.scale_of(drawn):.3g}"


def test_figure_6_is_of_a_net_with_max_pooling(strided, pooling):
  sheet = three_ways.figure6(Request(lambda: pooling))
  assert len(sheet.blocks) == 1
  with pytest.raises(UsageError, match="trained with max-pooling"):
    three_ways.figure6(Request(lambda: strided))
  with pytest.raises(UsageError, match="no strided convolution"):
    three_ways.figure4(Request(lambda: pooling))


def test_one_unit_a_picture(strided):
  with pytest.raises(UsageError, match="--channels takes one number here"):
    three_ways.figure4(Request(lambda: strided, channels=(0, 1)))
  with pytest.raises(UsageError, match="Channel 10 of logits"):
    three_ways.figure5(Request(lambda: strided, channels=(10,)))


def test_photos_of_any_size_side_by_side(strided, photo, tmp_path):
  other = tmp_path / "grey.png"
  Image.fromarray(np.arange(33 * 45, dtype=np.uint8).reshape(33, 45)).save(other)
  sheet = three_ways.photos(Request(lambda: strided, inputs=(photo, str(other))))
  assert [b.title.split(":")[0] for b in sheet.blocks] == ["photo.png", "grey.png"]
  guided = sheet.arrays["0: guided"]
  assert guided.shape == (1, 40, 52, 3)
  scale = sheet_lib.scale_of(strided.unwhiten(guided))
  assert sheet.blocks[0].rows[0].notes[3] == f"guided  ±{scale:.3g}"
  assert sheet.arrays["1: guided"].shape == (1, 33, 45, 3)
  names = [note.split("  ")[0] for note in sheet.blocks[0].rows[0].notes]
  assert names == ["image", "backpropagation", "deconvnet", "guided"]
  assert "speak for the predicted class." in sheet.caption
  with pytest.raises(UsageError, match="one size"):
    three_ways.figure4(Request(lambda: strided, inputs=(photo, str(other))))


def test_a_photo_s_picture_says_whose_pixels_it_shows_and_keeps_out_of_others_way(strided, photo):
  class_3 = three_ways.photos(Request(lambda: strided, channels=(3,), inputs=(photo,)))
  assert "speak for the score at the end of each title." in class_3.caption
  layer = three_ways.photos(Request(lambda: strided, "conv4", inputs=(photo,)))
  assert "speak for conv4." in layer.caption
  assert (class_3.name, layer.name) == ("input", "input_conv4")
