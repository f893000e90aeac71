import jax.numpy as jnp
import numpy as np

from allcnn_jax.analysis import augmented
from allcnn_jax.analysis.subject import Request
from allcnn_jax.data import augmentation, preprocessing
from allcnn_jax.training import parts


def sheet_of(subject, **dataset):
  for key, value in dataset.items():
    subject.trained.config.dataset[key] = value
  return augmented.figure(Request(lambda: subject))


def test_sixty_four_augmented_images_beside_what_is_evaluated(strided):
  sheet = sheet_of(strided, augment="shift")
  rows = sheet.blocks[0].rows
  assert [len(row.pictures) for row in rows] == [9] * 8
  assert sheet.arrays["augmented"].shape == (8, 8, 32, 32, 3)
  for row, views in zip(rows, sheet.arrays["augmented"]):
    np.testing.assert_array_equal(
      row.pictures[1:], augmented._picture(strided.trained.preprocessor, views)
    )
  raw = parts.read_images(strided.trained.config, "train").images[:8]
  for row, image in zip(rows, raw):
    np.testing.assert_array_equal(row.pictures[0], image)
    shown = {picture.tobytes() for picture in row.pictures[1:]}
    assert len(shown) > 4


def test_the_caption_names_the_split(strided):
  assert "8 images of the train split of npz:" in sheet_of(strided).caption
  request = Request(lambda: strided, split="test")
  assert " images of the test split of npz:" in augmented.figure(request).caption


def test_without_augmentation_all_are_the_image(strided):
  for row in sheet_of(strided, augment="none").blocks[0].rows:
    assert len({picture.tobytes() for picture in row.pictures}) == 1


def test_whitened_images_are_shown_around_grey():
  zca = preprocessing.Zca(np.zeros(12, np.float32), np.eye(12, dtype=np.float32))
  x = np.zeros((1, 2, 2, 3), np.float32)
  x[0, 0, 0] = 2.0
  [picture] = augmented._picture(zca, x)
  assert picture[0, 0].tolist() == [255] * 3
  assert picture[1, 1].tolist() == [128] * 3


def test_a_canvas_is_grey_around_the_image():
  [picture] = augmented._picture(
    preprocessing.Grey(), np.asarray(augmentation.center(jnp.ones((1, 2, 2, 3)), (6, 6)))
  )
  assert picture[0, 0].tolist() == [128] * 3
  assert picture[2, 2].tolist() == [255] * 3


def test_what_stands_in_bfloat16_is_kept_in_numbers_that_can_be_read(strided):
  strided.trained.config.train.dtype = "bfloat16"
  arrays = sheet_of(strided, augment="shift").arrays
  assert {arrays["evaluated"].dtype, arrays["augmented"].dtype} == {np.dtype(np.float32)}
