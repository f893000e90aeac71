"""Contrast normalisation and whitening: fitted on the training images, kept with the run.

Springenberg et al. 2015, 3.2, take CIFAR "whitened and contrast normalized" as Goodfellow et al.
2013 do: pylearn2's `make_cifar10_gcn_whitened`, which `global_contrast_normalize` and `fit_zca`
repeat. Everything is fitted once in float64; what is applied is float32.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import safetensors.numpy
from etils import epath
from jaxtyping import Float, UInt8

from allcnn_jax import files
from allcnn_jax.errors import UsageError, is_denied, unknown

LARGEST_ZCA = 1 << 14  # values of an image: so many squared, in float64, are 2 GB
_CHUNK = 1000  # images at a time: their copies are small enough for memory that is used again
Images = Float[np.ndarray | jax.Array, "n h w c"]
Raw = UInt8[np.ndarray | jax.Array, "n h w c"]


def global_contrast_normalize(images: Raw) -> Images:
  """Each image less its mean over all values, divided by its L2 norm, times 55, as in pylearn2.

  Norms below 1e-8 count as 1, so that a constant image becomes zeros.

  Args:
    images: uint8 (N, H, W, C).

  Returns:
    float32 (N, H, W, C).
  """
  x = np.array(images, np.float32)  # of an array of JAX too: that would sum in float32
  x -= x.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
  norm = np.sqrt(np.sum(np.square(x), axis=(1, 2, 3), keepdims=True, dtype=np.float64))
  return x * (55 / np.where(norm < 1e-8, 1.0, norm)).astype(np.float32)


def _in_chunks(write: Callable[[Any, np.ndarray], None], images: Images | Raw) -> Images:
  """Calls `write(images, out)` for a chunk at a time; returns all of `out`, float32."""
  out = np.empty(images.shape, np.float32)
  for i in range(0, len(images), _CHUNK):
    write(images[i : i + _CHUNK], out[i : i + _CHUNK])
  return out


@dataclasses.dataclass(frozen=True)
class Zca:
  """The whitening x -> (x - mean) P, with P = E diag(1 / sqrt(lambda)) E' symmetric.

  Attributes:
    mean: (D,), the mean of each of the D = H W C values.
    matrix: P, (D, D).
  """

  mean: Float[np.ndarray, " d"]
  matrix: Float[np.ndarray, "d d"]

  @functools.cached_property
  def _inverse(self) -> np.ndarray:
    return np.linalg.inv(self.matrix.astype(np.float64)).astype(np.float32)

  def apply(self, x: Images) -> Images:
    """Whitens (N, H, W, C)."""
    return _in_chunks(self._whiten, x)

  def _whiten(self, x: Images, out: np.ndarray) -> None:
    np.matmul(x.reshape(len(x), -1) - self.mean, self.matrix, out=out.reshape(len(x), -1))

  def undo(self, x: Images) -> Images:
    """The linear part of `invert`, for differences of images such as gradients."""
    return (x.reshape(len(x), -1) @ self._inverse).reshape(x.shape)

  def invert(self, x: Images) -> Images:
    """The images that `apply` maps to x, (N, H, W, C)."""
    return self.undo(x) + self.mean.reshape(x.shape[1:])


def fit_zca(images: Images) -> Zca:
  """ZCA whitening of contrast-normalised images, as pylearn2 fits it.

  With the covariance X'X / N + 0.1 I = E diag(lambda) E' of the centred images X.

  Args:
    images: float32 (N, H, W, C).
  """
  x = np.asarray(images).reshape(len(images), -1)
  mean = x.mean(axis=0, dtype=np.float64)
  covariance = 0.1 * np.eye(x.shape[1])
  for i in range(0, len(x), _CHUNK):
    part = x[i : i + _CHUNK] - mean  # float64
    covariance += part.T @ part / len(x)
  eigenvalues, E = np.linalg.eigh(covariance)
  P = (E / np.sqrt(eigenvalues)) @ E.T
  return Zca(mean.astype(np.float32), P.astype(np.float32))


@runtime_checkable
class Preprocessor(Protocol):
  """What is done to raw images before a network sees them.

  A class's `fit` makes one from training images; its fields are what is kept on disk.
  """

  def apply(self, images: Raw) -> Images:
    """Raw images as the network takes them, float32."""

  def invert(self, x: Images) -> Images:
    """Takes images back, as far as that goes."""

  def undo(self, x: Images) -> Images:
    """The linear part of `invert`, for pictures of gradients: no mean is added."""


@dataclasses.dataclass(frozen=True)
class GcnZca(Zca):
  """Global contrast normalisation, then ZCA. `invert` ends at the normalised images."""

  @classmethod
  def fit(cls, images: Raw) -> "GcnZca":
    zca = fit_zca(global_contrast_normalize(images))
    return cls(zca.mean, zca.matrix)

  def apply(self, images: Raw) -> Images:
    return _in_chunks(lambda x, out: self._whiten(global_contrast_normalize(x), out), images)


@dataclasses.dataclass(frozen=True)
class Standardize:
  """(x - mean) / deviation, for each channel over the training images."""

  mean: Float[np.ndarray, " c"]
  deviation: Float[np.ndarray, " c"]

  @classmethod
  def fit(cls, images: Raw) -> "Standardize":
    # A histogram holds all that a mean and a deviation need, at little cost in memory.
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for i in range(0, len(images), _CHUNK):
      for c, one in enumerate(counts):
        one += np.bincount(images[i : i + _CHUNK, ..., c].ravel(), minlength=256)
    shares = counts / images[..., 0].size
    mean = shares @ np.arange(256)
    deviation = np.sqrt(shares @ np.square(np.arange(256)) - np.square(mean))
    deviation = np.where(deviation == 0, 1, deviation)
    return cls(mean.astype(np.float32), deviation.astype(np.float32))

  def apply(self, images: Raw) -> Images:
    mean, deviation = (x[None, None, None] for x in (self.mean, self.deviation))
    return (images.astype(np.float32) - mean) / deviation

  def invert(self, x: Images) -> Images:
    return x * self.deviation + self.mean

  def undo(self, x: Images) -> Images:
    return x * self.deviation


@dataclasses.dataclass(frozen=True)
class Unit:
  """Values from 0 to 1: nothing is fitted."""

  @classmethod
  def fit(cls, images: Raw) -> "Unit":
    return cls()

  def apply(self, images: Raw) -> Images:
    return images.astype(np.float32) / 255

  def invert(self, x: Images) -> Images:
    return x * 255

  undo = invert


@dataclasses.dataclass(frozen=True)
class Grey:
  """(x - 128) / 128, so that zero is grey: nothing is fitted. Graham's scale of colours."""

  @classmethod
  def fit(cls, images: Raw) -> "Grey":
    return cls()

  def apply(self, images: Raw) -> Images:
    return (images.astype(np.float32) - 128) / 128

  def invert(self, x: Images) -> Images:
    return x * 128 + 128

  def undo(self, x: Images) -> Images:
    return x * 128


KINDS: dict[str, Any] = {
  "gcn_zca": GcnZca,
  "standardize": Standardize,
  "grey": Grey,
  "none": Unit,
}


def fit(kind: str, images: Raw) -> Preprocessor:
  """Fits one of `KINDS` to raw training images, uint8 (N, H, W, C)."""
  if kind not in KINDS:
    raise unknown("preprocessing", kind, KINDS)
  return KINDS[kind].fit(images)


class Fitted(NamedTuple):
  """What a run keeps of its training images.

  Attributes:
    preprocessor: fitted to them.
    classes: the name of each class.
    examples: how many there were.
  """

  preprocessor: Preprocessor
  classes: tuple[str, ...]
  examples: int


_ARRAYS, _FACTS = "fitted.safetensors", "dataset.json"


def save(fitted: Fitted, directory: epath.PathLike) -> None:
  """Writes to a directory what was fitted; `saved` is true only once all of it is there."""
  directory = epath.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  arrays = {
    x.name: getattr(fitted.preprocessor, x.name) for x in dataclasses.fields(fitted.preprocessor)
  }
  files.write(directory / _ARRAYS, safetensors.numpy.save(arrays))
  facts = {"classes": fitted.classes, "examples": fitted.examples}
  files.write(directory / _FACTS, json.dumps(facts, indent=2).encode())


def fit_into(
  directory: epath.PathLike,
  kind: str,
  images: Raw,
  classes: tuple[str, ...],
  examples: int,
  shared: epath.PathLike | None = None,
) -> None:
  """Fits a preprocessor and keeps it in a directory; one fitted to the same before serves again.

  Args:
    directory: where `save` writes.
    kind: one of `KINDS`.
    images: what to fit to.
    classes: as `Fitted` has them.
    examples: likewise.
    shared: a directory for all who fit to the same; by default one in the user's cache.
  """
  shared = epath.Path(shared or _cached(kind, images, classes, examples))
  if not _is_whole(kind, shared):
    fitted = Fitted(fit(kind, images), classes, examples)
    try:
      save(fitted, shared)
    except OSError:  # without a cache the next start takes longer
      return save(fitted, directory)
  return share(shared, directory)


def _cached(kind: str, images: Raw, *facts: Any) -> epath.Path:
  """The place of what this very file fits to these very images."""
  digest = hashlib.sha256(epath.Path(__file__).read_bytes())
  digest.update(f"{kind} {images.shape} {facts}".encode())
  digest.update(np.ascontiguousarray(images))
  return files.cache() / "fitted" / f"{kind}_{digest.hexdigest()[:16]}"


def _is_whole(kind: str, directory: epath.PathLike) -> bool:
  try:
    load(kind, directory)
  except UsageError:
    return False
  return True


def share(source: epath.PathLike, directory: epath.PathLike) -> None:
  """Gives a directory what `save` wrote to another one: stored once where files can have two names.

  A whitening matrix is 38 MB. A hard link needs one file system that knows them; elsewhere, as in
  a bucket, the files are copied.
  """
  source, directory = epath.Path(source), epath.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  for name in (_ARRAYS, _FACTS):
    (directory / name).unlink(missing_ok=True)
    try:
      os.link(source / name, directory / name)
    except OSError:
      files.write(directory / name, (source / name).read_bytes())


def saved(directory: epath.PathLike) -> bool:
  """Whether `save` has been here."""
  return (epath.Path(directory) / _FACTS).exists()


def load(kind: str, directory: epath.PathLike) -> Fitted:
  """Reads what `save` wrote.

  Args:
    kind: one of `KINDS`, the one that was saved.
    directory: where.

  Raises:
    UsageError: it is missing or damaged.
  """
  directory = epath.Path(directory)
  if not saved(directory):
    raise UsageError(f"{directory} lacks {_FACTS}: the run never began. Train first.")
  try:
    facts = json.loads((directory / _FACTS).read_text())
    arrays = safetensors.numpy.load((directory / _ARRAYS).read_bytes())
    return Fitted(KINDS[kind](**arrays), tuple(facts["classes"]), int(facts["examples"]))
  except Exception as error:
    if is_denied(error):
      raise
    raise UsageError(
      f"{directory} is damaged ({error}). Remove it and train again: it is fitted anew."
    ) from None
