"""Figures 1 to 3, beside what can be worked out without them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax.analysis import gallery, patches, saliency
from allcnn_jax.analysis import sheet as sheet_lib
from allcnn_jax.analysis import subject as subject_lib
from allcnn_jax.analysis.subject import Request
from allcnn_jax.data import stream
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures


def test_figure_1_is_the_paper_s():
  arrays = gallery.figure1(Request(None)).arrays
  np.testing.assert_array_equal(arrays["output"], [[1, 0, 5], [2, 0, 0], [0, 2, 4]])
  np.testing.assert_array_equal(arrays["guided"], [[0, 0, 0], [6, 0, 0], [0, 0, 3]])


def test_figure_2_of_the_first_layer_is_its_kernels(strided):
  sheet = gallery.figure2(Request(lambda: strided))
  kernel = np.asarray(strided.variables["params"]["conv1"]["kernel"])  # (h, w, in, out)
  kernels = np.moveaxis(kernel, -1, 0)
  np.testing.assert_allclose(sheet.arrays["conv1"], kernels, rtol=1e-5)
  drawn = kernels * strided.trained.preprocessor.deviation  # standardisation undone
  assert sheet.blocks[0].rows[0].end == f"±{sheet_lib.scale_of(drawn):.3g}"
  assert sheet.arrays["conv2"].shape == (5, 5, 5, 3)
  assert [b.title.split(",")[0] for b in sheet.blocks] == ["conv1", "conv2", "conv3"]


def test_figure_2_needs_no_image_and_so_goes_through_no_switches(pooling):
  sheet = gallery.figure2(Request(lambda: pooling))
  assert [b.title.split(",")[0] for b in sheet.blocks] == ["conv1"]
  with pytest.raises(UsageError, match="conv2 is no convolution or lies above a max-pooling"):
    gallery.figure2(Request(lambda: pooling, layer="conv2"))


def test_figure_2_s_rows_are_of_sixteen_filters(strided):
  net = strided.net.clone(table=(architectures.Conv(3, 20, 1, (1, 1)), *strided.net.table[1:]))
  variables = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  trained = strided.trained._replace(net=net, variables=variables)
  wide = dataclasses.replace(strided, trained=trained)
  sheet = gallery.figure2(Request(lambda: wide, layer="conv1"))
  assert [x.label for x in sheet.blocks[0].rows] == ["0 to 15", "16 to 19"]
  assert [len(x.pictures) for x in sheet.blocks[0].rows] == [16, 4]


@pytest.mark.parametrize(
  ("pool", "switches"), [("max", True), ("2", True), ("average", False), ("depthwise", False)]
)
def test_what_pools_by_the_size_of_its_numbers_needs_an_image(pool, switches):
  assert gallery.has_switches(architectures.Pool(pool, 3, 2, (0, 0))) is switches
  assert not gallery.has_switches(architectures.Conv(3, 4, 1, (1, 1)))


def test_figure_2_of_chosen_filters(strided):
  request = Request(lambda: strided, layer="conv2", channels=(3, 1))
  sheet = gallery.figure2(request)
  everything = gallery.figure2(request._replace(channels=())).arrays["conv2"]
  np.testing.assert_array_equal(sheet.arrays["conv2"], everything[[3, 1]])
  assert [row.label for row in sheet.blocks[0].rows] == ["3, 1"]
  assert sheet.name == "figure2_conv2"


def test_figure_3_shows_the_patches_of_a_full_search(strided):
  (images,) = strided.data(None).batches(1000)
  sheet = gallery.figure3(Request(lambda: strided, layer="conv2", channels=(4,)))
  inputs = strided.inputs(images)
  maps = strided.net.apply(strided.variables, jnp.asarray(inputs), return_activations=True)[1]
  best = np.asarray(maps["conv2"])[..., 4].max(axis=(1, 2))
  order = np.argsort(-best)[:10]
  np.testing.assert_allclose(sheet.arrays["all_values"][4], best[order], rtol=1e-5)
  assert list(sheet.arrays["all_images"][4]) == list(order)

  row = saliency.locate(strided.net, "conv2", images.shape[1:])
  for n, number in enumerate(order):
    i, j = row.offset + row.stride * sheet.arrays["all_positions"][4, n]
    whole = np.pad(images[number], ((20, 20), (20, 20), (0, 0)), constant_values=128)
    patch = whole[i + 20 : i + 20 + row.field, j + 20 : j + 20 + row.field]
    np.testing.assert_array_equal(sheet.arrays["images"][n], patch)

  numbers, places = order, sheet.arrays["all_positions"][4]
  for rule in ("deconvnet", "guided"):
    whole = saliency.attribute(
      strided.net,
      strided.variables,
      jnp.asarray(inputs[numbers]),
      layer="conv2",
      channel=4,
      rule=rule,
    )
    for n, picture in enumerate(np.pad(whole, ((0, 0), (20, 20), (20, 20), (0, 0)))):
      i, j = row.offset + row.stride * places[n] + 20
      patch = picture[i : i + row.field, j : j + row.field]
      np.testing.assert_allclose(sheet.arrays[rule][n], patch, atol=1e-7, err_msg=rule)

    drawn = sheet.arrays[rule] * strided.trained.preprocessor.deviation
    (shown,) = (r for r in sheet.blocks[0].rows if r.label == rule)
    assert shown.end == f"±{sheet_lib.scale_of(drawn):.3g}"

  labels = [r.label for r in sheet.blocks[0].rows]
  assert labels == ["image", "deconvnet", "guided", "random conv2", "and conv1"]
  assert all(len(r.pictures) == 10 for r in sheet.blocks[0].rows)


def test_figure_3_says_of_each_filter_its_own_numbers(strided):
  sheet = gallery.figure3(Request(lambda: strided, layer="conv2", channels=(4, 0)))
  found = sheet.arrays
  for i, channel in enumerate((4, 0)):
    own = slice(10 * i, 10 * (i + 1))
    values, *others = sheet.blocks[i].rows
    assert list(values.notes) == [f"{v:.3g}" for v in found["all_values"][channel]]
    row = saliency.locate(strided.net, "conv2", (32, 32, 3))
    for stage, line in enumerate(others[2:]):
      pairs = zip(found["random_signed"][stage, own], found["random_absolute"][stage, own])
      said = [" | ".join("off" if np.isnan(v) else f"{v:.2f}" for v in pair) for pair in pairs]
      assert list(line.notes) == said
      drawn = patches.crop(
        strided.unwhiten(found["random_pictures"][stage, own]), row, found["all_positions"][channel]
      )
      assert line.end == f"±{sheet_lib.scale_of(drawn):.3g}"


def test_figure_3_by_default_takes_the_strongest_filters_of_the_last_wide_layer(strided):
  sheet = gallery.figure3(Request(lambda: strided))
  assert sheet.name == "figure3_conv3"
  means = sheet.arrays["all_values"].mean(axis=1)
  assert set(sheet.arrays["channels"]) == set(np.argsort(-means)[:4].tolist())


def test_figure_3_believes_no_patch_that_does_not_replay(strided, monkeypatch):
  def wrong(*args, **kwargs):
    """The largest of all is 5 % off."""
    found = replay(*args, **kwargs)
    return found + 0.05 * found.max() * (np.arange(len(found)) == found.argmax())

  replay = gallery.patches.replay
  monkeypatch.setattr(gallery.patches, "replay", wrong)
  with pytest.raises(RuntimeError, match="do not activate it as recorded"):
    gallery.figure3(Request(lambda: strided, layer="conv1"))


@pytest.mark.parametrize("figure", [gallery.figure2, gallery.figure3])
def test_wrong_layers_and_channels_are_one_line(strided, figure):
  with pytest.raises(
    UsageError, match=r"Unknown layer 'conv9'.*conv1, conv2, conv3, conv4, logits"
  ):
    figure(Request(lambda: strided, layer="conv9"))
  with pytest.raises(UsageError, match="Channel 5 of conv2: it has 5, 0 to 4"):
    figure(Request(lambda: strided, layer="conv2", channels=(5,)))


def test_a_set_smaller_than_ten(strided, monkeypatch):
  few = strided.data(None).take(np.arange(3))
  monkeypatch.setattr(type(strided), "data", lambda self, split: subject_lib.InMemory(few))
  sheet = gallery.figure3(Request(lambda: strided, layer="conv1"))
  assert sheet.arrays["all_values"].shape[1] == 3
  assert sheet.caption.startswith("The 3 images of 3")


def test_figure_3_of_a_stream_is_that_of_the_same_images_in_memory(strided, photos, monkeypatch):
  place = photos({4: None, 9: b"no picture"})
  source = stream.Stream("photos", "train", data_dir=place)
  streamed = subject_lib.FromStream(functools.partial(source.central, (32, 32)))
  stored = subject_lib.InMemory(np.concatenate(list(streamed.batches(7))))
  sheets = []
  for images in (stored, streamed):
    monkeypatch.setattr(type(strided), "data", lambda self, split, images=images: images)
    sheets.append(gallery.figure3(Request(lambda: strided, layer="conv2", channels=(4,))))
  a, b = (sheet.arrays for sheet in sheets)
  assert len(stored) == 16
  for name in ("all_images", "all_positions", "images"):
    np.testing.assert_array_equal(a[name], b[name])


def test_a_stream_of_which_little_can_be_read(strided, photos, monkeypatch):
  damage = dict.fromkeys(range(3, 18), b"no picture")
  source = stream.Stream("photos", "train", data_dir=photos(damage))
  images = subject_lib.FromStream(functools.partial(source.central, (32, 32)))
  monkeypatch.setattr(type(strided), "data", lambda self, split: images)
  sheet = gallery.figure3(Request(lambda: strided, layer="conv2", channels=(4,)))
  assert sheet.caption.startswith("The 3 images of 3")
  assert np.isfinite(sheet.arrays["all_values"]).all()


def test_a_dead_layer_is_drawn_and_called_blank(strided):
  dead = jax.tree.map(jnp.zeros_like, strided.variables)
  subject = dataclasses.replace(strided, trained=strided.trained._replace(variables=dead))
  sheet = gallery.figure3(Request(lambda: subject, layer="conv2", channels=(0,)))
  guided = next(r for r in sheet.blocks[0].rows if r.label == "guided")
  assert guided.end == "blank"
  random = next(r for r in sheet.blocks[0].rows if r.label == "random conv2")
  assert set(random.notes) == {"off | off"}
