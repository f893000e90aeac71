"""How much of a saliency picture is the network: cascading randomisation of its weights.

Adebayo et al. 2018, "Sanity checks for saliency maps": the layers get fresh weights one after
another, from the top down. A picture that stays alike was not about what the net has learned.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from allcnn_jax.analysis import patches, saliency
from allcnn_jax.nets.model import ConvNet

CAPTION = (
  "Below the guided pictures: the same after the weights have been drawn anew, from the top layer "
  "down to the one named (Adebayo et al. 2018), and Spearman's rank correlation with the trained "
  "network's picture, signed | of absolute values, inside the receptive field. The nearer to 1, "
  "the less the picture says about what was learned."
)
_DRAWS = 8


class Stage(NamedTuple):
  """One step of the cascade, for N images.

  Attributes:
    layer: the layer that was randomised last; all above it are too.
    pictures: (N, H, W, C), what `attribute` gives.
    signed: (N,), Spearman's rank correlation with the trained net's picture, over the values
      inside the unit's receptive field; NaN where one of the two pictures is blank.
    absolute: (N,), the same of the absolute values.
  """

  layer: str
  pictures: Float[np.ndarray, "n h w c"]
  signed: Float[np.ndarray, " n"]
  absolute: Float[np.ndarray, " n"]


def cascade(
  net: ConvNet,
  variables: Any,
  images: Float[np.ndarray, "n h w c"],
  units: saliency.Units,
  key: Array,
  *,
  layer: str,
  rule: str = "guided",
) -> list[Stage]:
  """The pictures of `units` while layer after layer gets weights as at the start of training.

  A unit of a random net is off half the time, and then has no picture. Up to eight nets are
  drawn, and the first one taken in which the unit is on. Every second one is the one before it
  with its top layer negated: as likely a draw, and there a convolution's unit is on.

  Args:
    net, variables: the trained network.
    images: preprocessed.
    units: one for each image, from `saliency.strongest`.
    key: of the draws.
    layer: where the units are.
    rule: of the ReLUs.

  Returns:
    one stage for each layer with weights, from `layer` down.
  """
  images = np.asarray(images)
  where = {"layer": layer, "channel": units.channel, "position": units.position}
  trained = np.asarray(saliency.attribute(net, variables, images, rule=rule, **where))
  row = saliency.locate(net, layer, images.shape[1:])
  seen = patches.visible(row, np.asarray(units.position), images.shape[1:])
  seen = np.broadcast_to(seen, images.shape)

  below = saliency.up_to(net, layer)
  names = [n for n in saliency.layer_names(below) if n in variables["params"]][::-1]
  pictures = [np.zeros_like(images) for _ in names]
  off = np.ones((len(names), len(images)), bool)
  init = jax.jit(below.init)
  for draw in range(_DRAWS):
    fresh = dict(init(jax.random.fold_in(key, draw // 2), images[:1])["params"])
    if draw % 2:
      fresh[names[0]] = jax.tree.map(jnp.negative, fresh[names[0]])
    params = dict(variables["params"])
    for stage, name in enumerate(names):
      params[name] = fresh[name]
      if not off[stage].any():
        continue
      drawn = {**variables, "params": params}
      on = np.asarray(saliency.strongest(net, drawn, images, **where).value) > 0
      if (take := off[stage] & on).any():
        new = np.asarray(saliency.attribute(net, drawn, images, rule=rule, **where))
        pictures[stage] = np.where(take[:, None, None, None], new, pictures[stage])
        off[stage] &= ~take
    if not off.any():
      break

  return [
    Stage(
      name,
      picture,
      np.array([rank_correlation(a[s], b[s]) for a, b, s in zip(trained, picture, seen)]),
      np.array([rank_correlation(abs(a[s]), abs(b[s])) for a, b, s in zip(trained, picture, seen)]),
    )
    for name, picture in zip(names, pictures)
  ]


def correlations(stage: Stage, which: slice = slice(None)) -> list[str]:
  """The notes below a stage's pictures: both rank correlations of each."""
  pairs = zip(stage.signed[which], stage.absolute[which])
  return [" | ".join("off" if np.isnan(v) else f"{v:.2f}" for v in pair) for pair in pairs]


def stage_arrays(stages: Iterable[Stage]) -> dict[str, np.ndarray]:
  """The cascade for the npz, of S stages and N images.

  Returns:
    random_layers (S,), random_pictures (S, N, H, W, C) in the network's input space,
    random_signed and random_absolute (S, N).
  """
  layers, pictures, signed, absolute = zip(*stages)
  return {
    "random_layers": np.array(layers),
    "random_pictures": np.stack(pictures),
    "random_signed": np.stack(signed),
    "random_absolute": np.stack(absolute),
  }


def rank_correlation(a: Float[np.ndarray, " m"], b: Float[np.ndarray, " m"]) -> float:
  """Spearman's rho: the correlation of the ranks, ties sharing theirs; NaN if one is constant."""
  a, b = _ranks(a), _ranks(b)
  a, b = a - a.mean(), b - b.mean()
  norm = np.linalg.norm(a) * np.linalg.norm(b)
  return float(a @ b / norm) if norm > 0 else float("nan")


def _ranks(x: np.ndarray) -> np.ndarray:
  _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
