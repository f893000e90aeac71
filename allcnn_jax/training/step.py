"""One step of training and one of evaluation: pure, traced by jit, no input or output.

Where the whole training set lives on the device, a step takes its rows of the epoch's order,
augments them, and changes the weights; `train_steps` does many steps in one call. `train_batch`
takes a batch that comes from elsewhere.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, PyTree

from allcnn_jax.data import augmentation
from allcnn_jax.nets import model
from allcnn_jax.training import learning_rules, randomness


class TrainState(flax.struct.PyTreeNode):
  """All that changes while training, and all that a checkpoint holds.

  Attributes:
    step: how many steps have been done, int32 ().
    variables: {"params": ...} of the network, and what else the learning rule keeps.
    opt_state: the optimizer's.
  """

  step: PyTree
  variables: PyTree
  opt_state: PyTree


class Examples(NamedTuple):
  """Preprocessed images (N, H, W, C) with their labels int32 (N,), on the device."""

  images: Float[Array, "n h w c"]
  labels: Int[Array, " n"]


class Stored(flax.struct.PyTreeNode):
  """A whole set on the device, one image a row.

  A TPU fills the last dimension up to a multiple of 128. A row of a whole image wastes little of
  that; three channels, or 32 columns, would make the set many times as large.

  Attributes:
    rows: preprocessed images (N, H W C), float32, or bfloat16 for a net that computes in it.
    labels: int32 (N,).
    shape: (H, W, C).
  """

  rows: PyTree
  labels: PyTree
  shape: tuple[int, int, int] = flax.struct.field(pytree_node=False)

  @classmethod
  def of(cls, images: Any, labels: Any) -> "Stored":
    """The set of images (N, H, W, C) and their labels (N,)."""
    return cls(images.reshape(len(images), -1), labels, images.shape[1:])

  def take(self, rows: Int[Array | np.ndarray, " n"] | slice) -> Examples:
    """The images at some rows."""
    return Examples(self.rows[rows].reshape(-1, *self.shape), self.labels[rows])


class Totals(flax.struct.PyTreeNode):
  """Sums over the steps since the last look at them, all of them scalars.

  Attributes:
    loss: sum of the images' losses.
    wrong: how many were classified wrongly.
    count: how many there were.
    bad_step: the first step whose loss was not finite, or -1.
  """

  loss: PyTree
  wrong: PyTree
  count: PyTree
  bad_step: PyTree

  @classmethod
  def zero(cls) -> "Totals":
    return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.int32(-1))


_compiled_in = functools.partial(flax.struct.field, pytree_node=False)


class Recipe(flax.struct.PyTreeNode):
  """What stays the same during a run. All but the seed is compiled into its step.

  So runs that differ in their seed alone have one program, which is in the cache for the second.

  Attributes:
    seed: of the run, a `randomness.Seed`.
    net: the network.
    optimizer: the optax chain.
    augment: what is done to a training batch.
    size: height and width of the network's input.
    batch_size: images a step.
    batch_sharding: how a batch is laid out over the devices.
    rule: how errors go back and what is done to the weights after a step.
    plain_from: the step from which on images are not augmented any more; None: none.
  """

  seed: PyTree
  net: model.ConvNet = _compiled_in()
  optimizer: optax.GradientTransformation = _compiled_in()
  augment: augmentation.Augmentation = _compiled_in()
  size: tuple[int, int] = _compiled_in()
  batch_size: int = _compiled_in()
  batch_sharding: NamedSharding = _compiled_in()
  rule: learning_rules.Rule = _compiled_in(default=learning_rules.RULES["bp"])
  plain_from: int | None = _compiled_in(default=None)


def init(recipe: Recipe, channels: int, given: PyTree | None = None) -> TrainState:
  """The state before the first step; the variables of another run may be `given`."""
  images = jnp.zeros((1, *recipe.size, channels))
  variables = given or recipe.net.init(randomness.key(recipe.seed, "init"), images)
  variables = recipe.rule.init(recipe.net, variables, images, recipe.seed)
  return TrainState(jnp.int32(0), variables, recipe.optimizer.init(variables["params"]))


@functools.partial(jax.jit, static_argnums=2)
def epoch_order(seed: randomness.Seed, epoch: Int[Array, ""], n: int) -> Int[Array, " n"]:
  """The order in which an epoch goes through the n training images."""
  return jax.random.permutation(randomness.key(seed, "order", epoch), n)


def cross_entropy(logits: Float[Array, "n k"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
  """Each image's loss, in nats. Nothing is looked up by label, so that nothing is scattered back."""
  own = jnp.where(labels[:, None] == jnp.arange(logits.shape[1])[None], logits, 0).sum(axis=1)
  return jax.nn.logsumexp(logits, axis=1) - own


def gradients(
  net: model.ConvNet,
  variables: PyTree,
  batch: Examples,
  rngs: dict[str, Array],
  rule: learning_rules.Rule,
) -> tuple[Any, PyTree]:
  """((each image's loss, each image's error), what the rule takes for the mean loss's gradient)."""

  def loss(params):
    given = {**variables, "params": params}
    logits = rule.apply(net, given, batch.images, train=True, rngs=rngs)
    losses = cross_entropy(logits, batch.labels)
    wrong = logits.argmax(axis=-1) != batch.labels
    return losses.mean() + rule.extra_loss(given), (losses, wrong)

  grads, aux = jax.grad(loss, has_aux=True)(variables["params"])
  return aux, rule.descent(grads)


def batch_at(
  recipe: Recipe, data: Stored, order: Int[Array, " n"], step: Int[Array, ""]
) -> Examples:
  """The augmented batch of a step. An epoch's last images that fill no batch are left out."""
  position = step % (len(order) // recipe.batch_size) * recipe.batch_size
  rows = jax.lax.dynamic_slice_in_dim(order, position, recipe.batch_size)
  batch = jax.lax.with_sharding_constraint(data.take(rows), recipe.batch_sharding)

  def augmented(images):
    return recipe.augment.apply(randomness.key(recipe.seed, "augment", step), images, recipe.size)

  if recipe.plain_from is None:
    return batch._replace(images=augmented(batch.images))
  plain = functools.partial(augmentation.center, size=recipe.size)
  return batch._replace(
    images=jax.lax.cond(step < recipe.plain_from, augmented, plain, batch.images)
  )


def _step(
  recipe: Recipe, state: TrainState, totals: Totals, batch: Examples
) -> tuple[TrainState, Totals]:
  rngs = {name: randomness.key(recipe.seed, name, state.step) for name in ("dropout", "noise")}
  (losses, wrong), grads = gradients(recipe.net, state.variables, batch, rngs, recipe.rule)
  params = state.variables["params"]
  updates, opt_state = recipe.optimizer.update(grads, state.opt_state, params)
  params = optax.apply_updates(params, updates)
  variables = recipe.rule.after(state.variables, params, state.step)
  # Summed as one array of floats, they cross devices in the gradients' own message.
  loss, wrong = jnp.stack([losses, wrong.astype(losses.dtype)]).sum(axis=1)
  first_bad = (totals.bad_step < 0) & ~jnp.isfinite(loss)
  totals = Totals(
    totals.loss + loss.astype(jnp.float32),
    totals.wrong + wrong.astype(jnp.int32),
    totals.count + len(losses),
    jnp.where(first_bad, state.step, totals.bad_step),
  )
  return TrainState(state.step + 1, variables, opt_state), totals


@functools.partial(jax.jit, donate_argnums=(1, 2))
def train_step(
  recipe: Recipe, state: TrainState, totals: Totals, data: Stored, order: Int[Array, " n"]
) -> tuple[TrainState, Totals]:
  """One step on the batch that `order` gives to `state.step`; the state is donated."""
  return _step(recipe, state, totals, batch_at(recipe, data, order, state.step))


@functools.partial(jax.jit, donate_argnums=(1, 2))
def train_batch(
  recipe: Recipe, state: TrainState, totals: Totals, batch: Examples
) -> tuple[TrainState, Totals]:
  """One step on a batch as it is; the state is donated."""
  return _step(recipe, state, totals, batch)


@functools.partial(jax.jit, static_argnums=5, donate_argnums=(1, 2))
def train_steps(
  recipe: Recipe,
  state: TrainState,
  totals: Totals,
  data: Stored,
  order: Int[Array, " n"],
  count: int,
) -> tuple[TrainState, Totals]:
  """`count` steps within one epoch, in one call.

  Each count is compiled by itself: a GPU asks the host after each round of a loop whose count it
  does not know.
  """

  def body(_, carry):
    state, totals = carry
    return _step(recipe, state, totals, batch_at(recipe, data, order, state.step))

  return jax.lax.fori_loop(0, count, body, (state, totals), unroll=unrolled(count))


def unrolled(count: int) -> int:
  """How many steps a round of the loop of `train_steps` has: two or three, if that divides them.

  XLA then rounds the weights to the compute type where the step before makes them.
  """
  return next((n for n in (2, 3) if count % n == 0), 1)


class Sums(NamedTuple):
  """Sums over the images of a batch, all of them scalars.

  Attributes:
    loss: of the images' losses.
    wrong: how many have another class than theirs at the top.
    wrong_top5: how many do not have their class among the first five.
    count: how many there are.
  """

  loss: Float[Array, ""]
  wrong: Int[Array, ""]
  wrong_top5: Int[Array, ""]
  count: Int[Array, ""]


@functools.partial(jax.jit, static_argnums=(0, 1))
def predict(
  net: model.ConvNet, size: tuple[int, int], variables: PyTree, images: Float[Array, "n h w c"]
) -> Float[Array, "n k"]:
  """The logarithm of each class's probability; images are first brought to `size` (h, w)."""
  return jax.nn.log_softmax(net.apply(variables, augmentation.center(images, size)))


@jax.jit
def score(logits: Float[Array, "n k"], labels: Int[Array, " n"], mask: Bool[Array, " n"]) -> Sums:
  """The sums over the images where `mask` is true.

  Of equal logits the first counts as larger; a logit that is no number answers nothing rightly.
  """
  own = jnp.take_along_axis(logits, labels[:, None], axis=1)
  before = jnp.arange(logits.shape[1])[None] < labels[:, None]
  rank = (~(logits <= own) | ((logits == own) & before)).sum(axis=1)
  return Sums(
    jnp.where(mask, cross_entropy(logits, labels), 0).sum(),
    ((rank >= 1) & mask).sum(dtype=jnp.int32),
    ((rank >= 5) & mask).sum(dtype=jnp.int32),
    mask.sum(dtype=jnp.int32),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def evaluate(
  net: model.ConvNet,
  size: tuple[int, int],
  variables: PyTree,
  views: Sequence[Float[Array, "n h w c"]],
  labels: Int[Array, " n"],
  mask: Bool[Array, " n"],
) -> Float[Array, "4"]:
  """The `Sums` of a batch as one array; the probabilities of several views are averaged."""
  seen = [predict(net, size, variables, images) for images in views]
  # Their sum instead of their mean: `score` normalises, so that the factor changes nothing.
  summed = functools.reduce(jnp.logaddexp, seen)
  return jnp.stack([x.astype(jnp.float32) for x in score(summed, labels, mask)])


@jax.jit
def all_finite(tree: PyTree) -> Bool[Array, ""]:
  """Whether every number in a tree of arrays is finite."""
  return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()
