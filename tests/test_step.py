import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from allcnn_jax.data import augmentation
from allcnn_jax.nets import model
from allcnn_jax.training import learning_rules, randomness, sharding
from allcnn_jax.training import step as step_lib


@pytest.fixture
def data(key):
  images = jax.random.normal(key, (20, 32, 32, 3))
  return step_lib.Stored.of(images, jnp.arange(20, dtype=jnp.int32) % 10)


@pytest.fixture
def recipe():
  net = model.create("all_cnn_c", 10, width=0.04, init="he_normal", final_relu=False)
  return step_lib.Recipe(
    seed=3,
    net=net,
    optimizer=optax.sgd(0.01),
    augment=augmentation.KINDS["shift_flip"],
    size=(32, 32),
    batch_size=4,
    batch_sharding=sharding.batch_sharding(sharding.mesh()),
  )


def test_a_step_goes_down_the_gradient_of_the_batch(recipe, data):
  """One step of plain SGD, without dropout or augmentation, against autodiff of the loss written out again."""
  net = model.create(
    "all_cnn_c", 10, width=0.04, init="he_normal", final_relu=False, dropout=(0.0, 0.0)
  )
  recipe = dataclasses.replace(
    recipe, net=net, augment=augmentation.KINDS["none"], optimizer=optax.sgd(1.0)
  )
  order = jnp.arange(20)[::-1]
  state = step_lib.init(recipe, 3)
  before = jax.tree.map(np.asarray, state.variables["params"])

  def loss(params):
    last = data.take(slice(16, None))
    logits = net.apply({"params": params}, last.images)
    return -jax.nn.log_softmax(logits)[jnp.arange(4), last.labels].mean()

  slope = jax.grad(loss)(before)
  expected_loss = loss(before)
  state, totals = step_lib.train_step(recipe, state, step_lib.Totals.zero(), data, order)
  moved = jax.tree.map(lambda a, b: a - b, before, state.variables["params"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, slope)
  np.testing.assert_allclose(totals.loss / 4, expected_loss, rtol=1e-5)
  assert (int(totals.count), int(state.step)) == (4, 1)


@pytest.mark.parametrize("count", [2, 3, 5])  # two or three a round of the loop, or one
def test_many_steps_in_one_call_are_the_same_steps(recipe, data, count):
  order = step_lib.epoch_order(3, 0, 20)
  one, totals_one = step_lib.init(recipe, 3), step_lib.Totals.zero()
  for _ in range(count):
    one, totals_one = step_lib.train_step(recipe, one, totals_one, data, order)
  many, totals = step_lib.train_steps(
    recipe, step_lib.init(recipe, 3), step_lib.Totals.zero(), data, order, count
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, many)
  assert int(totals.count) == int(totals_one.count) == 4 * count


def test_an_epoch_sees_each_image_once_and_every_epoch_in_another_order(recipe, data):
  recipe = dataclasses.replace(recipe, augment=augmentation.KINDS["none"])
  orders = [step_lib.epoch_order(3, epoch, 20) for epoch in range(2)]
  assert sorted(map(int, orders[0])) == list(range(20))
  assert not jnp.array_equal(*orders)
  seen = [step_lib.batch_at(recipe, data, orders[0], jnp.int32(step)).images for step in range(5)]
  sums = np.sort(np.concatenate(seen).sum((1, 2, 3)))
  np.testing.assert_allclose(sums, np.sort(np.asarray(data.rows).sum(1)), rtol=1e-4)


def test_an_epoch_whose_last_images_fill_no_batch_begins_with_the_first_again(recipe, data):
  recipe = dataclasses.replace(recipe, augment=augmentation.KINDS["none"], batch_size=6)
  order = step_lib.epoch_order(3, 0, 20)
  for step in range(7):
    found = step_lib.batch_at(recipe, data, order, jnp.int32(step))
    rows = order[step % 3 * 6 :][:6]
    np.testing.assert_array_equal(found.images, data.take(rows).images)
    np.testing.assert_array_equal(found.labels, data.take(rows).labels)


def test_augmentation_and_dropout_change_with_the_step_alone(recipe, data):
  order = step_lib.epoch_order(3, 0, 20)
  first = step_lib.batch_at(recipe, data, order, jnp.int32(1)).images
  again = step_lib.batch_at(recipe, data, order, jnp.int32(1)).images
  epoch_later = step_lib.batch_at(recipe, data, order, jnp.int32(6)).images
  np.testing.assert_array_equal(first, again)
  assert not jnp.array_equal(first, epoch_later)


def test_dropout_is_on_and_changes_with_step_and_seed(recipe, data):
  """At a rate of zero, steps on one batch differ in their masks alone."""
  still, losses = dataclasses.replace(recipe, optimizer=optax.sgd(0.0)), []
  state = step_lib.init(still, 3)
  for seed in (3, 4):
    seeded, now = dataclasses.replace(still, seed=seed), jax.tree.map(jnp.copy, state)
    for _ in range(2):
      batch = data.take(slice(4))
      now, totals = step_lib.train_batch(seeded, now, step_lib.Totals.zero(), batch)
      losses.append(float(totals.loss))
  assert len(set(losses)) == 4


@pytest.mark.parametrize(("rule", "differs"), [("bp", False), ("bp_noise", True)])
def test_noise_changes_with_the_step(recipe, data, rule, differs):
  """Without dropout, the descents of two steps from the same weights differ in their noise alone."""
  net = model.create("all_cnn_c", 10, width=0.04, final_relu=False, dropout=(0.0, 0.0))
  noisy = dataclasses.replace(
    recipe, net=net, rule=learning_rules.create(rule), optimizer=optax.sgd(1.0)
  )
  moved = []
  for step in (0, 1):
    state = dataclasses.replace(step_lib.init(noisy, 3), step=jnp.int32(step))
    state, _ = step_lib.train_batch(noisy, state, step_lib.Totals.zero(), data.take(slice(4)))
    moved.append(state.variables["params"])
  for a, b in zip(*map(jax.tree.leaves, moved)):
    assert (not jnp.array_equal(a, b)) == differs


def test_orders_and_augmentation_change_with_the_seed(recipe, data):
  assert not jnp.array_equal(*(step_lib.epoch_order(seed, 0, 20) for seed in (3, 4)))
  one, other = (
    step_lib.batch_at(dataclasses.replace(recipe, seed=seed), data, jnp.arange(20), jnp.int32(0))
    for seed in (3, 4)
  )
  np.testing.assert_array_equal(one.labels, other.labels)
  assert not jnp.array_equal(one.images, other.images)


def test_from_a_step_on_images_are_not_augmented(recipe, data):
  order = step_lib.epoch_order(3, 0, 20)
  until = dataclasses.replace(recipe, plain_from=3)
  none = dataclasses.replace(recipe, augment=augmentation.KINDS["none"])
  for step, like in ((2, recipe), (3, none), (4, none)):
    found, expected = (
      step_lib.batch_at(r, data, order, jnp.int32(step)).images for r in (until, like)
    )
    np.testing.assert_array_equal(found, expected)


def test_runs_that_differ_in_their_seed_have_one_program(recipe, data):
  """So that the second finds it compiled; 2^32 - 1 is the largest seed that a config takes."""
  state = step_lib.init(recipe, 3)
  rest = (state, step_lib.Totals.zero(), data, jnp.arange(20))
  texts = {
    step_lib.train_step.lower(recipe.replace(seed=np.uint32(seed)), *rest).as_text()
    for seed in (3, 2**32 - 1)
  }
  assert len(texts) == 1


@pytest.mark.parametrize("seed", [0, 3, 2**31, 2**32 - 1])
def test_a_seed_s_keys_are_the_same_traced_or_not(seed):
  expected = randomness.key(seed, "dropout", 7)
  found = jax.jit(lambda seed: randomness.key(seed, "dropout", 7))(np.uint32(seed))
  np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(expected))


def test_keys_differ_by_seed_stream_and_index():
  places = [(s, n, i) for s in (0, 1) for n in ("order", "dropout") for i in (0, 1)]
  keys = {tuple(map(int, jax.random.key_data(randomness.key(*place)))) for place in places}
  assert len(keys) == len(places)


def test_the_first_step_without_a_finite_loss_is_named(recipe, data):
  data = data.replace(rows=data.rows.at[13].set(jnp.nan))
  recipe = dataclasses.replace(recipe, augment=augmentation.KINDS["none"])
  state, totals = step_lib.init(recipe, 3), step_lib.Totals.zero()
  for _ in range(5):
    state, totals = step_lib.train_step(recipe, state, totals, data, jnp.arange(20))
  assert int(totals.bad_step) == 3
  assert not step_lib.all_finite(state.variables)
