"""How well a rule's errors and weights agree with backpropagation's, layer by layer.

Moskovitz et al. 2018 [M18], Figs. 2, 3 and 5. One forward pass over a batch is shared: with the
batch's loss, XLA keeps one of two equal computations. What comes back to each layer is found as
the gradient with respect to zeros added to its output, once by the rule and once transposed.
"""

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float, PyTree

from allcnn_jax.nets import feedback
from allcnn_jax.training import learning_rules, randomness
from allcnn_jax.training import step as step_lib


def angle(u: Float[Array, "..."], v: Float[Array, "..."]) -> Float[Array, ""]:
  """The angle between two arrays as vectors, in degrees; no number if one of them is zero.

  Written as 2 atan(|u - v| / |u + v|) of the unit vectors, which is exact near 0 and 180 too.
  """
  u, v = (x.astype(jnp.float32) / _norm(x) for x in (u, v))
  return jnp.degrees(2 * jnp.arctan2(_norm(u - v), _norm(u + v)))


def _norm(x: Float[Array, "..."]) -> Float[Array, ""]:
  """The 2-norm, also of numbers whose squares are too small for float32, as errors come to be."""
  largest = jnp.abs(x).max().astype(jnp.float32)
  return largest * learning_rules.norm(x / jnp.where(largest > 0, largest, 1))


@jax.jit
def measure(
  recipe: step_lib.Recipe, variables: PyTree, batch: step_lib.Examples
) -> dict[str, Float[Array, ""]]:
  """The measurements on a batch, each under "what/layer".

  Args:
    recipe: of the run.
    variables: as training holds them.
    batch: preprocessed images of the network's size, without augmentation; dropout is off.

  Returns:
    error_angle: between the rule's error signal and backpropagation's at the layer's output
      before its activation, as vectors over the batch; degrees ([M18] Fig. 3).
    error_ratio: the norm of the rule's over that of backpropagation's ([M18] Fig. 2). Neither is a
      number where that is zero, as in a dead network, or one that is sure of each image.
    weight_angle: between W and B, degrees; for rules that have a B of the shape of W. That of
      the first layer carries nothing.
    sign_differs, sign_ever_differed: the shares of a layer's weights whose sign is not that at
      the start, or has ever not been; for rules that track signs ([M18] Fig. 5).
  """
  by_rule, by_bp = _signals(recipe, variables, batch)
  found = {}
  for path, bp in by_bp.items():
    d = by_rule[path]
    norm = _norm(bp)
    ratio = jnp.where(norm > 0, _norm(d) / norm, jnp.nan)
    found |= {("error_angle", *path[:-1]): angle(d, bp), ("error_ratio", *path[:-1]): ratio}

  kernels = learning_rules.kernels_of(variables["params"])
  for path, b in recipe.rule.feedback_weights(variables).items():
    found["weight_angle", *path[:-1]] = angle(kernels[path], b)
  for path, value in traverse_util.flatten_dict(variables.get("signs", {})).items():
    *kernel, what = path
    if what == "changed":
      found["sign_ever_differed", *kernel[:-1]] = value.mean()
    else:
      found["sign_differs", *kernel[:-1]] = ((kernels[tuple(kernel)] >= 0) != value).mean()
  return {"/".join(path): value for path, value in found.items()}


def _signals(recipe: step_lib.Recipe, variables: PyTree, batch: step_lib.Examples):
  """(the rule's, backpropagation's) error signals: the path of a layer -> (N, ...)."""
  rngs = {"noise": randomness.key(recipe.seed, "noise")}

  def rule(variables, **kwargs):
    return recipe.rule.apply(recipe.net, variables, batch.images, rngs=rngs, **kwargs)

  def backpropagation(variables, **kwargs):
    with feedback.under(feedback.backpropagation):
      return recipe.net.apply(variables, batch.images, **kwargs)

  shapes = jax.eval_shape(
    lambda v: backpropagation(v, mutable=["signals"])[1]["signals"], variables
  )
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def back(apply):
    def loss(signals):
      logits = apply({**variables, "signals": signals})
      return step_lib.cross_entropy(logits, batch.labels).mean()

    return traverse_util.flatten_dict(jax.grad(loss)(zeros))

  by_bp = back(backpropagation)
  return (back(rule) if recipe.rule.replaces_autodiff else by_bp), by_bp
