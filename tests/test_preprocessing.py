import errno
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from allcnn_jax.data import preprocessing
from allcnn_jax.errors import UsageError


@pytest.fixture
def images():
  """Correlated uint8 images (400, 6, 6, 3), one of them constant."""
  random = np.random.default_rng(0)
  smooth = random.normal(size=(400, 3, 3, 3)).repeat(2, 1).repeat(2, 2)
  x = 128 + 30 * smooth + 10 * random.normal(size=(400, 6, 6, 3))
  x[7] = 50
  return x.clip(0, 255).astype(np.uint8)


def normalize_by_hand(images):
  """pylearn2's global contrast normalisation, one image at a time, in float64."""
  rows = []
  for image in images.astype(np.float64):
    centred = image.ravel() - image.mean()
    length = np.sqrt(centred @ centred)
    rows.append(55 * centred / (length if length >= 1e-8 else 1))
  return np.stack(rows)


def whiten_by_hand(train, test):
  """ZCA by a matrix square root instead of an eigendecomposition, in float64."""
  mean = train.mean(0)
  covariance = (train - mean).T @ (train - mean) / len(train) + 0.1 * np.eye(train.shape[1])
  return (test - mean) @ np.linalg.inv(scipy.linalg.sqrtm(covariance)).real


def test_contrast_normalisation_against_float64(images):
  ours = preprocessing.global_contrast_normalize(images)
  assert ours.dtype == np.float32
  np.testing.assert_allclose(ours.reshape(400, -1), normalize_by_hand(images), atol=1e-4)


def test_every_image_has_norm_55_and_a_constant_one_is_zero(images):
  norms = np.linalg.norm(preprocessing.global_contrast_normalize(images).reshape(400, -1), axis=1)
  np.testing.assert_allclose(np.delete(norms, 7), 55, rtol=1e-5)
  assert norms[7] == 0


def test_zca_against_a_matrix_square_root_in_float64(images):
  train, test = images[:300], images[300:]
  ours = preprocessing.fit("gcn_zca", train).apply(test)
  expected = whiten_by_hand(normalize_by_hand(train), normalize_by_hand(test))
  np.testing.assert_allclose(ours.reshape(100, -1), expected, rtol=1e-3, atol=1e-4)


def test_zca_whitens_up_to_its_bias(images):
  """The covariance of whitened images is P C P: eigenvalues c / (c + 0.1)."""
  norm = preprocessing.global_contrast_normalize(images)
  zca = preprocessing.fit_zca(norm)
  flat = norm.reshape(400, -1).astype(np.float64)
  before = np.linalg.eigvalsh(np.cov(flat.T, bias=True))
  after = np.linalg.eigvalsh(
    np.cov(zca.apply(norm).reshape(400, -1).T.astype(np.float64), bias=True)
  )
  np.testing.assert_allclose(np.sort(after), np.sort(before / (before + 0.1)), atol=1e-3)
  np.testing.assert_allclose(zca.matrix, zca.matrix.T, atol=1e-5)


@pytest.mark.parametrize("kind", ["gcn_zca", "standardize"])
def test_images_are_fitted_and_applied_to_the_same_in_any_company(images, kind, monkeypatch):
  whole = preprocessing.fit(kind, images)
  expected = whole.apply(images)
  monkeypatch.setattr(preprocessing, "_CHUNK", 7)
  assert len(images) % 7
  np.testing.assert_allclose(whole.apply(images), expected, rtol=1e-4, atol=1e-4)
  refitted = preprocessing.fit(kind, images)
  np.testing.assert_allclose(refitted.apply(images), expected, rtol=1e-3, atol=1e-3)


def test_zca_is_inverted(images):
  norm = preprocessing.global_contrast_normalize(images)
  zca = preprocessing.fit_zca(norm)
  np.testing.assert_allclose(zca.invert(zca.apply(norm)), norm, atol=1e-2)


@pytest.mark.parametrize("kind", preprocessing.KINDS)
def test_undo_is_the_linear_part_of_invert(images, kind):
  """invert(x + d) - invert(x) = undo(d)."""
  fitted = preprocessing.fit(kind, images)
  x = fitted.apply(images[:5])
  d = np.float32(0.1) * x[::-1]
  np.testing.assert_allclose(fitted.invert(x + d) - fitted.invert(x), fitted.undo(d), atol=1e-2)


@pytest.mark.parametrize("kind", ["standardize", "grey", "none"])
def test_by_channel_and_unit_are_inverted_to_the_raw_images(images, kind):
  fitted = preprocessing.fit(kind, images)
  np.testing.assert_allclose(fitted.invert(fitted.apply(images)), images, atol=1e-3)


def test_standardized_channels_have_mean_0_and_deviation_1(images):
  x = preprocessing.fit("standardize", images).apply(images)
  np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-5)


def test_a_channel_that_never_changes_is_standardized_to_0(images):
  images = images.copy()
  images[..., 1] = 7
  x = np.asarray(preprocessing.fit("standardize", images).apply(images))
  assert (x[..., 1] == 0).all()
  assert np.isfinite(x).all()


@pytest.mark.parametrize("kind", preprocessing.KINDS)
def test_what_was_fitted_comes_back_from_disk(tmp_path, images, kind):
  fitted = preprocessing.Fitted(preprocessing.fit(kind, images), ("a", "b"), 400)
  preprocessing.save(fitted, tmp_path)
  loaded = preprocessing.load(kind, tmp_path)
  assert loaded.classes == fitted.classes
  np.testing.assert_array_equal(
    loaded.preprocessor.apply(images), fitted.preprocessor.apply(images)
  )


def test_missing_and_damaged_are_one_line(tmp_path, images):
  with pytest.raises(UsageError, match="Train first"):
    preprocessing.load("none", tmp_path)
  fitted = preprocessing.fit("standardize", images)
  preprocessing.save(preprocessing.Fitted(fitted, ("a",), 400), tmp_path)
  path = tmp_path / "fitted.safetensors"
  path.write_bytes(path.read_bytes()[:20])
  with pytest.raises(UsageError, match="damaged"):
    preprocessing.load("standardize", tmp_path)


def test_what_is_shared_is_stored_once_and_survives_its_source(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
  fitted = preprocessing.Fitted(preprocessing.fit("gcn_zca", images), ("a", "b"), 20)
  preprocessing.save(fitted, tmp_path / "first")
  preprocessing.share(tmp_path / "first", tmp_path / "run")
  files = [folder / "fitted.safetensors" for folder in (tmp_path / "first", tmp_path / "run")]
  assert files[0].stat().st_ino == files[1].stat().st_ino
  shutil.rmtree(tmp_path / "first")
  found = preprocessing.load("gcn_zca", tmp_path / "run")
  np.testing.assert_array_equal(found.preprocessor.matrix, fitted.preprocessor.matrix)
  assert (found.classes, found.examples) == (("a", "b"), 20)


def test_the_same_images_are_fitted_to_once(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  images = np.random.default_rng(1).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
  fits, fit = [], preprocessing.fit
  monkeypatch.setattr(preprocessing, "fit", lambda *x: fits.append(x[0]) or fit(*x))

  def matrix(run, images=images, classes=("a", "b")):
    preprocessing.fit_into(tmp_path / run, "gcn_zca", images, classes, len(images))
    found = preprocessing.load("gcn_zca", tmp_path / run)
    assert (found.classes, found.examples) == (classes, len(images))
    return found.preprocessor.matrix

  first = matrix("first")
  np.testing.assert_array_equal(matrix("second"), first)
  assert len(fits) == 1
  assert not np.array_equal(matrix("others", images[::-1] // 2), first)
  last = np.concatenate([images[:-1], 255 - images[-1:]])
  assert not np.array_equal(matrix("another last one", last), first)
  matrix("other names", classes=("a", "c"))
  assert len(fits) == 4


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, images, monkeypatch):
  fitted = preprocessing.fit("standardize", images)
  preprocessing.save(preprocessing.Fitted(fitted, ("a",), 400), tmp_path)

  def refuse(_):
    raise PermissionError(errno.EACCES, "Permission denied")

  monkeypatch.setattr(preprocessing.safetensors.numpy, "load", refuse)
  with pytest.raises(PermissionError):
    preprocessing.load("standardize", tmp_path)


def test_a_damaged_or_forbidden_cache_is_no_obstacle(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  images = np.random.default_rng(1).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
  for run in ("first", "second"):
    preprocessing.fit_into(tmp_path / run, "standardize", images, ("a",), 20)
    for path in (tmp_path / "cache").rglob("*.safetensors"):
      path.unlink()  # its other name stays whole
      path.write_bytes(b"nothing")
  (tmp_path / "file").write_bytes(b"")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  preprocessing.fit_into(tmp_path / "third", "standardize", images, ("a",), 20)
  found = [
    preprocessing.load("standardize", tmp_path / run) for run in ("first", "second", "third")
  ]
  for other in found[1:]:
    np.testing.assert_array_equal(other.preprocessor.mean, found[0].preprocessor.mean)


def test_what_is_shared_is_copied_where_files_have_one_name(tmp_path, monkeypatch):
  images = np.zeros((2, 4, 4, 3), np.uint8)
  fitted = preprocessing.Fitted(preprocessing.fit("standardize", images), ("a",), 2)
  preprocessing.save(fitted, tmp_path / "first")
  monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
  preprocessing.share(tmp_path / "first", tmp_path / "run")
  assert preprocessing.load("standardize", tmp_path / "run").examples == 2


def test_arrays_of_jax_are_fitted_in_float64_too():
  raw = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), np.uint8)
  normal = preprocessing.global_contrast_normalize(raw)
  np.testing.assert_array_equal(preprocessing.global_contrast_normalize(jnp.asarray(raw)), normal)
  ours, theirs = (preprocessing.fit_zca(x) for x in (normal, jnp.asarray(normal)))
  np.testing.assert_array_equal(ours.matrix, theirs.matrix)
  np.testing.assert_array_equal(ours.mean, theirs.mean)
