"""Strict settings for every test, and what several test files share."""

import functools
import gc
import io
import json
import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly all of the tests' time would be the compiler's: it is told to hurry, and what it has made
# once, here or in a program that a test starts, is kept until the end.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
if "PYTEST_XDIST_WORKER" not in os.environ:  # all workers have that of the process that starts them
  _cache = tempfile.TemporaryDirectory()
  os.environ["XDG_CACHE_HOME"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# Public annotations are checked while the tests run.
from jaxtyping import install_import_hook

install_import_hook("allcnn_jax", "beartype.beartype")

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from allcnn_jax import config as config_lib
from allcnn_jax.analysis import subject
from allcnn_jax.data import preprocessing
from allcnn_jax.nets import architectures, model
from allcnn_jax.training import graphs, restore

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def gpu(monkeypatch):
  """All is computed as on a GPU: what is called of the compiled programs, "plain" or a "graph"."""
  called = []

  def noted(lowered, compile=graphs.compile):
    first, later = compile(lowered)
    return graphs.Calls(
      noting("plain", first), noting("plain" if later is first else "graph", later)
    )

  def noting(name, compiled):
    def call(*given):
      called.append(name)
      return compiled(*given)

    call.memory_analysis = compiled.memory_analysis
    return call

  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.setattr(graphs, "compile", noted)
  return called


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
  """A process may have 65,530 mappings of memory on Linux, and each compiled program has some."""
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 15_000:
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture
def npz(tmp_path):
  """The path of a small set of 10 classes: 96 + 50 images of 32 x 32, learnable by colour."""
  random = np.random.default_rng(0)
  arrays = {}
  for split, n in (("train", 96), ("test", 50)):
    labels = np.arange(n) % 10
    noise = random.integers(0, 60, (n, 32, 32, 3))
    colour = np.stack([190 * (labels // 5), 95 * (labels % 5 // 2), 190 * (labels % 2)], -1)
    arrays[f"{split}_images"] = (noise + colour[:, None, None]).clip(0, 255).astype(np.uint8)
    arrays[f"{split}_labels"] = labels
  path = tmp_path / "colours.npz"
  np.savez(path, **arrays)
  return str(path)


def _encoded(colour, *, size=(48, 64), mode="RGB", form="JPEG"):
  """A picture file: stripes of a colour of its own, which survive any resizing."""
  stripes = np.sin(np.arange(size[0]) * 6 / size[0])[:, None] * np.cos(
    np.arange(size[1]) * 5 / size[1]
  )
  tint = np.array([37 * colour % 256, 91 * colour % 256, 151 * colour % 256])
  pixels = (0.5 * tint + 64 * (1 + stripes[..., None])).clip(0, 255).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(file, form)
  return file.getvalue()


@pytest.fixture
def photo():
  """Makes the file of a picture: photo(number, size=, mode=, form=)."""
  return _encoded


@pytest.fixture
def photos(tmp_path):
  """Makes a TFDS set "photos" of 18 JPEGs of many sizes, one a class, and 11 to test with.

  photos({4: content}) puts other contents into training records, None: what is there, cut off.
  Returns the folder to read it from.
  """

  def make(damage=None):
    place = tmp_path / "sets" / "photos" / "1.0.0"
    place.mkdir(parents=True, exist_ok=True)
    splits = []
    for split, n in (("train", 18), ("test", 11)):
      contents = [_encoded(i, size=(40 + 3 * i, 90 - 3 * i)) for i in range(n)]
      for i, content in (damage or {}).items() if split == "train" else ():
        contents[i] = contents[i][:300] if content is None else content
      _write_records(place / f"photos-{split}.array_record-00000-of-00001", contents)
      splits.append({"name": split, "shardLengths": [str(n)], "numBytes": "1"})
      splits[-1]["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {"name": "photos", "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    (place / "dataset_info.json").write_text(json.dumps(info))
    kinds = {
      "image": ("image_feature.Image", {"image": {"shape": {"dimensions": ["-1", "-1", "3"]}}}),
      "label": ("class_label_feature.ClassLabel", {"classLabel": {"numClasses": "18"}}),
      "file_name": ("text_feature.Text", {"text": {}}),
    }
    prefix = "tensorflow_datasets.core.features."
    features = {k: {"pythonClassName": prefix + name, **v} for k, (name, v) in kinds.items()}
    features["image"]["image"] |= {"dtype": "uint8", "encodingFormat": "jpeg"}
    (place / "features.json").write_text(
      json.dumps(
        {
          "pythonClassName": prefix + "features_dict.FeaturesDict",
          "featuresDict": {"features": features},
        }
      )
    )
    return str(tmp_path / "sets")

  return make


def _write_records(path, contents):
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for i, content in enumerate(contents):
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(content)
    feature["file_name"].bytes_list.value.append(f"photo{i}.jpg".encode())
    feature["label"].int64_list.value.append(i)
    writer.write(example.SerializeToString())
  writer.close()


@pytest.fixture
def tiny(npz):
  """A complete config whose steps take milliseconds: 12 steps an epoch on the set of `npz`."""
  config = config_lib.complete(ml_collections.ConfigDict())
  config.dataset.name = f"npz:{npz}"
  config.model.name = "strided_cnn_a"
  config.model.width = 0.1
  config.model.init = "he_normal"
  config.model.final_relu = False
  config.model.dropout = (0.0, 0.1)
  config.train.batch_size = 8
  config.log.every_steps = 4
  config.optimizer.learning_rate = 0.005
  config.optimizer.weight_decay = 0.001
  return config


@pytest.fixture
def streamed(tiny, photos):
  """The same on `photos`, three steps an epoch."""
  tiny.dataset.name, tiny.dataset.data_dir = "photos", photos()
  tiny.dataset.augment, tiny.dataset.preprocessing = "imagenet", "grey"
  tiny.train.batch_size = 6
  return tiny


@functools.cache
def _initialised(table):
  net = model.ConvNet(table)
  return net, jax.jit(net.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))


def _subject(config, *table):
  net, variables = _initialised((*table, architectures.Conv(1, 10, 1, (0, 0), relu=False), _MEAN))
  standardize = preprocessing.Standardize(
    np.array([100, 110, 120], np.float32), np.array([50, 60, 70], np.float32)
  )
  classes = tuple(f"class {i}" for i in range(10))
  trained = restore.Trained(config, net, variables, standardize, (32, 32, 3), classes, 96, 0)
  return subject.Subject(trained, (32, 32, 3))


_MEAN = architectures.GlobalAverage()


@pytest.fixture
def strided(tiny):
  """What a figure is about, with a net whose conv3 strides; conv4 gives 10 classes."""
  conv = architectures.Conv
  return _subject(tiny, conv(3, 4, 1, (1, 1)), conv(3, 5, 1, (1, 1)), conv(3, 6, 2, (1, 1)))


@pytest.fixture
def pooling(tiny):
  """The same with max-pooling between conv1 and conv2; conv3 gives 10 classes."""
  conv, pool = architectures.Conv, architectures.Pool("max", 2, 2, (0, 0))
  return _subject(tiny, conv(3, 4, 1, (1, 1)), pool, conv(3, 5, 1, (1, 1)))
