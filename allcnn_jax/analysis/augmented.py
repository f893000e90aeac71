"""What training sees: augmented images on a contact sheet."""

import itertools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from allcnn_jax.analysis import sheet
from allcnn_jax.analysis.sheet import Block, Row, Sheet
from allcnn_jax.analysis.subject import Request
from allcnn_jax.data import augmentation, preprocessing
from allcnn_jax.training import sources

_IMAGES, _VIEWS = 8, 8


def figure(request: Request) -> Sheet:
  """The first eight images of the training split, or another, each augmented eight times."""
  trained = request.load().trained
  source = sources.open(trained.config, request.split or "train")
  source.prepare(trained.preprocessor)
  [stored] = _first(source, 0)
  itself = np.asarray(augmentation.center(jnp.asarray(stored), trained.image[:2]))
  views = _first(source, _VIEWS)
  pictures = [_picture(trained.preprocessor, x) for x in np.stack([itself, *views], axis=1)]
  kind = trained.config.dataset.augment
  caption = (
    f"{len(pictures)} images of the {request.split or 'train'} split of "
    f"{trained.config.dataset.name}, at the left as they are evaluated, then {_VIEWS} times under "
    f"dataset.augment={kind!r}, as the network takes them: {trained.image[0]}x{trained.image[1]}."
  )
  headings = ["evaluated", *(f"{i + 1}" for i in range(_VIEWS))]
  block = Block("", [Row(f"image {i}", row) for i, row in enumerate(pictures)], headings)
  arrays = {"evaluated": itself, "augmented": np.stack(views, axis=1)}
  return Sheet("augmentation", "What training sees of an image", caption, [block], 1, arrays)


def _first(source: sources.Source, views: int) -> list[np.ndarray]:
  """Each view of the first images."""
  batches = source.evaluation(_IMAGES, views)
  [batch] = itertools.islice(batches, 1)
  kept = np.asarray(batch.mask)
  return [np.asarray(x, np.float32)[kept] for x in batch.views]


def _picture(
  preprocessor: preprocessing.Preprocessor, x: Float[np.ndarray, "n h w c"]
) -> list[sheet.Picture]:
  """Preprocessed images for people; whitened ones as they are, around grey."""
  if isinstance(preprocessor, preprocessing.Zca):
    return sheet.signed(x, sheet.scale_of(x))
  return sheet.plain(preprocessor.invert(x).round().clip(0, 255).astype(np.uint8))
