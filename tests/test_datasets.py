import os
import pathlib
import types

import numpy as np
import pytest
import sklearn.datasets

from allcnn_jax.data import datasets, preprocessing, stream
from allcnn_jax.errors import UsageError

IMAGE = (32, 32, 3)


def prepared(name):
  """Whether TFDS has prepared a set on this machine."""
  try:
    datasets.load(name, "test[:1]", IMAGE)
  except UsageError:
    return False
  return True


cifar10 = pytest.mark.skipif("not prepared('cifar10')", reason="TFDS has no cifar10 prepared here")


def pairs(*splits):
  """Each image of some splits with its label, sorted."""
  return sorted((x.tobytes(), int(y)) for data in splits for x, y in zip(data.images, data.labels))


def test_digits_are_split_without_overlap_and_resized():
  small = {s: datasets.load("digits", s, (8, 8, 1)) for s in ("train", "test")}
  assert [len(small[s].labels) for s in ("train", "test")] == [1438, 359]
  whole = sklearn.datasets.load_digits()
  images = np.round(whole.images * (255 / 16)).astype(np.uint8)
  assert pairs(*small.values()) == pairs(datasets.Dataset(images, whole.target, ()))
  seen = {x.tobytes() for x in small["train"].images}
  assert sum(x.tobytes() in seen for x in small["test"].images) <= 1  # the set has near-twins
  big = datasets.load("digits", "test", IMAGE)
  assert big.images.shape == (359, *IMAGE)
  assert big.images.dtype == np.uint8
  np.testing.assert_array_equal(big.images[..., 0], big.images[..., 2])
  # In between, four times as fine: linear from centre to centre, and the same beyond the last.
  at = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
  between = np.maximum(1 - np.abs(at[:, None] - np.arange(8)), 0)
  expected = np.einsum("ri,nij,cj->nrc", between, small["test"].images[..., 0], between)
  np.testing.assert_allclose(big.images[..., 0], expected, atol=0.5001)


def test_held_out_images_are_the_same_ones_and_not_trained_on():
  train = datasets.load("digits", "train", (8, 8, 1), validation=300)
  held = datasets.load("digits", "validation", (8, 8, 1), validation=300)
  whole = datasets.load("digits", "train", (8, 8, 1))
  assert (len(train.labels), len(held.labels)) == (1138, 300)
  again = datasets.load("digits", "validation", (8, 8, 1), validation=300)
  np.testing.assert_array_equal(held.images, again.images)
  assert pairs(train, held) == pairs(whole)


def test_a_users_own_arrays(npz):
  data = datasets.load(f"npz:{npz}", "test", IMAGE)
  with np.load(npz) as archive:
    np.testing.assert_array_equal(data.images, archive["test_images"])
    np.testing.assert_array_equal(data.labels, archive["test_labels"])
  assert len(data.classes) == 10
  assert datasets.num_classes(f"npz:{npz}") == 10


def bad_npz(tmp_path, **changes):
  arrays = {
    "train_images": np.zeros((4, 8, 8), np.uint8),
    "train_labels": np.zeros(4, int),
    "test_images": np.zeros((4, 8, 8), np.uint8),
    "test_labels": np.zeros(4, int),
  }
  arrays |= changes
  path = tmp_path / "bad.npz"
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
  return f"npz:{path}"


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"test_labels": None}, "lacks test_labels"),
    ({"train_images": np.zeros((4, 8, 8), np.float32)}, "uint8"),
    ({"train_images": np.zeros((4, 8, 8, 2), np.uint8)}, "uint8"),
    ({"train_images": np.zeros((4, 8, 0), np.uint8)}, "uint8"),
    ({"train_labels": np.zeros(3, int)}, r"integers of shape \(4,\), not int64 \(3,\)"),
    ({"train_labels": np.array([0, 1, -1, 2])}, "from 0, below 1000000, not -1"),
    ({"train_labels": np.array([0, 1, 2, 2**32 + 1])}, "below 1000000, not 4294967297"),
    ({"test_labels": np.array([0, 1, 2, 2**63 + 5], np.uint64)}, "below 1000000"),
    ({"train_labels": np.array(["a", "b", "c", "d"])}, "integers of shape"),
    ({"train_labels": np.array([None] * 4)}, "no readable npz"),
  ],
)
def test_other_arrays_are_refused(tmp_path, changes, said):
  with pytest.raises(UsageError, match=said):
    datasets.load(bad_npz(tmp_path, **changes), "train", (8, 8, 1))


@pytest.mark.parametrize(
  ("name", "split", "image", "said"),
  [
    ("digits", "tset", IMAGE, "Did you mean 'test'"),
    ("digits", "validation", IMAGE, "dataset.validation"),
    ("npz:nowhere.npz", "test", IMAGE, "no such file"),
    ("no_such_set", "train", IMAGE, "Unknown dataset"),
    ("cifar100", "train", IMAGE, "download_and_prepare"),
    ("mnist_corrupted/identity", "train", IMAGE, "mnist_corrupted/identity'.*download_and_prepare"),
    ("imdb_reviews", "train", IMAGE, "no set of classified images"),
  ],
)
def test_what_cannot_be_had_is_one_line(tmp_path, name, split, image, said):
  with pytest.raises(UsageError, match=said) as error:
    datasets.load(name, split, image, data_dir=str(tmp_path))
  assert "\n" not in str(error.value)
  assert not any(tmp_path.iterdir())


def test_a_set_that_is_in_memory_is_no_stream():
  with pytest.raises(UsageError, match="digits is held in memory"):
    datasets.Records("digits", "train", 0, "")


def test_holding_out_everything_is_refused():
  with pytest.raises(UsageError, match="leaves none"):
    datasets.load("digits", "train", IMAGE, validation=1438)


def test_colour_does_not_fit_a_grey_network(npz):
  with pytest.raises(UsageError, match="3 channels"):
    datasets.load(f"npz:{npz}", "test", (28, 28, 1))


def test_records_that_need_tensorflow_are_refused_with_the_command(tmp_path):
  """A set in TFRecord form, as TFDS prepares it by default, made from a few lines of metadata."""
  place = tmp_path / "mnist" / "3.0.1"
  place.mkdir(parents=True)
  (place / "dataset_info.json").write_text(
    '{"name": "mnist", "version": "3.0.1", "fileFormat": "tfrecord", "splits": '
    '[{"name": "train", "numBytes": "1", "shardLengths": ["1"], '
    '"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}]}'
  )
  with pytest.raises(UsageError, match=r"tfrecord form.*download_and_prepare"):
    datasets.load("mnist", "train", (28, 28, 1), data_dir=str(tmp_path))


@cifar10
def test_cifar10_through_tfds():
  data = datasets.load("cifar10", "test", IMAGE)
  assert data.images.shape == (10_000, *IMAGE)
  np.testing.assert_array_equal(np.bincount(data.labels), [1000] * 10)
  assert data.classes[3] == "cat"
  part = datasets.load("cifar10", "test[20:30]", IMAGE)
  np.testing.assert_array_equal(part.images, data.images[20:30])
  with pytest.raises(UsageError, match="Known: train, test"):
    datasets.load("cifar10", "tset", IMAGE)


@cifar10
def test_cifar10_whitens_to_small_correlations():
  """Neighbouring pixels of natural images are alike; whitened ones hardly."""
  raw = datasets.load("cifar10", "test", (16, 16, 3)).images
  white = preprocessing.fit("gcn_zca", raw).apply(raw)

  def neighbours(x):
    return np.corrcoef(x[:, :, :-1].ravel(), x[:, :, 1:].ravel())[0, 1]

  assert neighbours(raw.astype(np.float32)) > 0.8
  assert abs(neighbours(white)) < 0.4


@pytest.mark.parametrize("held_out", [0, 300])
def test_training_images_are_as_many_as_are_loaded(held_out, npz):
  for name in ("digits", f"npz:{npz}") if not held_out else ("digits",):
    loaded = datasets.load(name, "train", (32, 32, 3), validation=held_out)
    assert datasets.training_images(name, held_out) == len(loaded.labels)


def test_only_what_is_trained_on_is_counted(photos):
  """Some sets have no other split, and images of it are held out."""

  def renamed(old, new):
    path = next(pathlib.Path(folder).rglob("dataset_info.json"))
    path.write_text(path.read_text().replace(f'"name": "{old}"', f'"name": "{new}"'))
    return folder

  folder = photos()
  assert datasets.sizes("photos", renamed("test", "other")) == (18, 18, True)
  assert datasets.training_images("photos", 5, folder) == 13
  with pytest.raises(UsageError, match=r"Unknown split of photos 'train'.*Known: tarin, other"):
    datasets.sizes("photos", renamed("train", "tarin"))


@pytest.mark.parametrize("split", ["test[5:2]", "test[3:3]", "test[:12]"])
def test_a_part_of_a_split_without_images_is_refused(photos, split):
  builder = datasets._prepared("photos", photos())
  assert len(datasets._open("photos", builder, "test[2:5]")) == 3
  with pytest.raises(UsageError, match="is empty, not understood, or goes beyond its 11 images"):
    datasets._open("photos", builder, split)


def test_training_images_of_a_set_that_is_not_here_are_not_promised(tmp_path):
  with pytest.raises(UsageError, match="download_and_prepare"):
    datasets.training_images("cifar10", 0, str(tmp_path))
  with pytest.raises(UsageError, match="leaves none of digits's 1438"):
    datasets.training_images("digits", 1438)


@pytest.mark.parametrize("damage", ["cut", "empty", "removed", "about", "features"])
def test_a_set_that_is_damaged_is_one_line_that_says_what_to_do(photos, damage):
  """As by a copy that was broken off: of the images, or of what TFDS wrote beside them."""
  folder = pathlib.Path(photos())
  place = folder / "photos" / "1.0.0"
  about = place / "dataset_info.json"
  features = place / "features.json"
  # A set of one size is held in memory.
  features.write_text(features.read_text().replace('"-1", "-1"', '"48", "64"'))
  file = {"about": about, "features": features}.get(damage) or next(place.glob("*train*"))
  content = file.read_bytes()
  if damage == "removed":
    file.unlink()
  else:
    file.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
  with pytest.raises(
    UsageError, match=r"photos.* cannot be read \(.*\)\. If it is damaged"
  ) as error:
    datasets.load("photos", "train", IMAGE, data_dir=str(folder))
  assert "\n" not in str(error.value)


def test_a_stream_with_a_validation_split_is_evaluated_on_it(photos):
  folder = photos()
  assert datasets.eval_split("photos", 0, folder) == "test"
  path = next(pathlib.Path(folder).rglob("dataset_info.json"))
  path.write_text(path.read_text().replace('"name": "test"', '"name": "validation"'))
  assert datasets.eval_split("photos", 0, folder) == "validation"


class _Prepared:
  """Stands in for a TFDS builder of 1,003 images of 4 x 4, and counts how often it is read."""

  def __init__(self, folder):
    self.data_dir, self.reads = str(folder), 0
    number = np.arange(1003)[:, None, None, None]
    self.images = np.broadcast_to([number // 256, number % 256, number // 4], (3, 1003, 4, 4, 1))
    self.images = np.moveaxis(self.images[..., 0], 0, -1).astype(np.uint8)
    self.labels = np.arange(1003) % 2
    label = types.SimpleNamespace(num_classes=2, names=["a", "b"])
    image = types.SimpleNamespace(shape=(4, 4, 3), np_dtype=np.uint8)
    self.info = types.SimpleNamespace(name="numbered", features={"image": image, "label": label})
    (folder / "dataset_info.json").write_text("{}")

  def as_data_source(self, split):
    return self

  def __len__(self):
    return len(self.labels)

  def __getitems__(self, rows):
    self.reads += 0 in rows
    return [{"image": self.images[i], "label": self.labels[i]} for i in rows]


def test_images_are_decoded_once_until_the_set_is_prepared_anew(tmp_path, monkeypatch):
  builder = _Prepared(tmp_path)
  monkeypatch.setattr(datasets, "_prepared", lambda name, data_dir: builder)
  for data in [datasets.load("numbered", "train", (4, 4, 3)) for _ in range(2)]:
    np.testing.assert_array_equal(data.images, builder.images)
    np.testing.assert_array_equal(data.labels, builder.labels)
    assert data.classes == ("a", "b")
  assert builder.reads == 1
  os.utime(tmp_path / "dataset_info.json", (1, 1))
  datasets.load("numbered", "train", (4, 4, 3))
  datasets.load("numbered", "test", (4, 4, 3))
  assert builder.reads == 3


def test_images_without_labels_are_refused(tmp_path, monkeypatch, photos):
  """TFDS stores -1 for those of ImageNet's test images, say."""
  builder = _Prepared(tmp_path)
  builder.labels[:] = -1
  monkeypatch.setattr(datasets, "_prepared", lambda name, data_dir: builder)
  with pytest.raises(UsageError, match="split 'test' of numbered have no labels"):
    datasets.load("numbered", "test", (4, 4, 3))
  monkeypatch.undo()
  record = datasets.Record(b"", -1, "")
  monkeypatch.setattr(datasets.Records, "__getitem__", lambda self, row: record)
  with pytest.raises(UsageError, match="split 'test' of photos have no labels"):
    stream.Stream("photos", "test", data_dir=photos())


def test_decoded_images_that_are_damaged_are_read_anew(tmp_path, monkeypatch):
  builder = _Prepared(tmp_path)
  monkeypatch.setattr(datasets, "_prepared", lambda name, data_dir: builder)
  first = datasets.load("numbered", "train", (4, 4, 3))
  kept = datasets._decoded(builder, "train")
  kept.write_bytes(kept.read_bytes()[:100])
  again = datasets.load("numbered", "train", (4, 4, 3))
  np.testing.assert_array_equal(first.images, again.images)
  assert builder.reads == 2
  assert len(kept.read_bytes()) > 100


def test_images_of_another_type_than_uint8_are_refused_and_not_cut_off():
  features = {
    "image": types.SimpleNamespace(np_dtype=np.float32),
    "label": types.SimpleNamespace(num_classes=3),
  }
  builder = types.SimpleNamespace(info=types.SimpleNamespace(features=features))
  with pytest.raises(UsageError, match="images are float32, and not uint8"):
    datasets._label("maps", builder)
  features["image"].np_dtype = np.uint8
  assert datasets._label("maps", builder).num_classes == 3
