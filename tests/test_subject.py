"""What a network sees, what people see, and the way between."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from allcnn_jax.analysis import subject as subject_lib
from allcnn_jax.data import preprocessing
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import model


def save(path, mode, size=(30, 20)):
  Image.new(mode, size, 100 if mode in ("L", "I;16") else None).save(path)
  return str(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
def test_photos_of_every_kind_come_in_the_net_s_channels(strided, tmp_path, mode):
  assert strided.photo(save(tmp_path / "a.png", mode)).shape == (1, 20, 30, 3)
  grey = dataclasses.replace(strided, stored=(32, 32, 1))
  assert grey.photo(save(tmp_path / "b.png", mode)).shape == (1, 20, 30, 1)


def test_photos_of_65536_levels_are_scaled_and_those_of_fractions_refused(strided, tmp_path):
  levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(8, 32)
  for name, pixels in (("a.png", levels), ("b.tif", levels.astype(np.int32))):
    Image.fromarray(pixels).save(tmp_path / name)
    found = strided.photo(str(tmp_path / name))[0, ..., 0]
    np.testing.assert_array_equal(found, np.arange(256).reshape(8, 32))
  Image.fromarray(levels.astype(np.float32)).save(tmp_path / "c.tif")
  with pytest.raises(UsageError, match="no integers"):
    strided.photo(str(tmp_path / "c.tif"))


def test_what_is_transparent_is_white(strided, tmp_path):
  half = np.zeros((32, 32, 4), np.uint8)
  half[16:] = 10, 20, 30, 255
  Image.fromarray(half).save(tmp_path / "a.png")
  found = strided.photo(str(tmp_path / "a.png"))[0]
  assert (found[:14] == 255).all()
  assert (found[18:] == (10, 20, 30)).all()


def test_a_photo_stands_as_its_camera_was_held(strided, tmp_path):
  image = Image.new("RGB", (30, 20))
  exif = image.getexif()
  exif[0x0112] = 6  # orientation: the right side is up
  image.save(tmp_path / "a.jpg", exif=exif)
  assert strided.photo(str(tmp_path / "a.jpg")).shape == (1, 30, 20, 3)


def test_large_photos_are_made_smaller(strided, tmp_path):
  assert strided.photo(save(tmp_path / "a.png", "RGB", (2000, 1000))).shape == (1, 256, 512, 3)


def test_whitening_and_dense_layers_fix_a_photo_s_size(strided, tmp_path):
  path = save(tmp_path / "a.png", "RGB")
  zca = preprocessing.Zca(np.zeros(1), np.eye(1))
  white = dataclasses.replace(strided, trained=strided.trained._replace(preprocessor=zca))
  dense = model.create("model_c", 10, head="dense")
  flat = dataclasses.replace(strided, trained=strided.trained._replace(net=dense))
  assert white.photo(path).shape == flat.photo(path).shape == (1, 32, 32, 3)
  assert dataclasses.replace(white, stored=(24, 40, 3)).photo(path).shape == (1, 24, 40, 3)


def test_what_is_no_picture_is_one_line(strided, tmp_path):
  broken, whole = tmp_path / "broken.png", tmp_path / "whole.png"
  save(whole, "RGB", (300, 300))
  broken.write_bytes(whole.read_bytes()[:80])
  text = tmp_path / "text.png"
  text.write_text("hello")
  for path in (broken, text):
    with pytest.raises(UsageError, match=r"--input=.*no picture that can be read"):
      strided.photo(str(path))
  for path in (tmp_path / "none.png", tmp_path):
    with pytest.raises(UsageError, match="no such file"):
      strided.photo(str(path))


def test_a_photo_too_small_for_the_net_is_named(strided, tmp_path):
  path = save(tmp_path / "tiny.png", "RGB", (3, 40))
  unpadded = strided.trained._replace(net=model.create("all_cnn_c", 10))
  with pytest.raises(UsageError, match=r"--input=.*tiny\.png: Images of 40x3 are too small"):
    dataclasses.replace(strided, trained=unpadded).photo(path)


def test_unwhitening_is_linear_and_adds_no_mean(strided):
  gradients = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  np.testing.assert_allclose(
    strided.unwhiten(3 * gradients), 3 * strided.unwhiten(gradients), rtol=1e-5
  )
  assert not strided.unwhiten(0 * gradients).any()


def test_a_net_that_takes_a_cut_sees_the_centre(strided):
  cut = dataclasses.replace(strided, trained=strided.trained._replace(image=(24, 24, 3)))
  images = strided.data(None).take(np.arange(2))
  np.testing.assert_array_equal(cut.seen(images), images[:, 4:28, 4:28])
  np.testing.assert_allclose(cut.inputs(images), strided.inputs(images)[:, 4:28, 4:28])
  gradients = np.ones((2, 24, 24, 3), np.float32)
  assert cut.unwhiten(gradients).shape == (2, 24, 24, 3)


def test_what_is_around_an_image_on_a_larger_canvas_is_grey(strided):
  large = dataclasses.replace(strided, trained=strided.trained._replace(image=(40, 40, 3)))
  images = strided.data(None).take(np.arange(2))
  seen = large.seen(images)
  np.testing.assert_array_equal(seen[:, 4:36, 4:36], images)
  assert (seen[:, :4] == 128).all()


def test_the_classes_that_are_predicted_come_surest_first(strided):
  inputs = strided.inputs(strided.data(None).take(np.arange(3)))
  shares = np.asarray(jax.nn.softmax(strided.net.apply(strided.variables, jnp.asarray(inputs))))
  for said, image in zip(strided.predicted(strided.net, inputs, best=3), shares, strict=True):
    surest = sorted(range(10), key=lambda c: -image[c])[:3]
    assert said == ", ".join(f"class {c} {round(100 * image[c])}%" for c in surest)


def test_the_default_layers():
  assert subject_lib.default_layer(model.create("all_cnn_c", 10)) == "conv7"
  assert subject_lib.last_convolution(model.create("all_cnn_c", 10)) == "conv9"
  assert subject_lib.default_layer(model.create("large_all_cnn", 10)) == "conv16"
