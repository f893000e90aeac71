import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from allcnn_jax import config as config_lib
from allcnn_jax.training import optimizer


def section(**values):
  config = config_lib.complete(ml_collections.ConfigDict()).optimizer
  config.update({"learning_rate": 0.1, "weight_decay": 0.01, "drops": (2,), **values})
  return config


def run(config, steps=12, steps_per_epoch=3):
  """The weights after each step on the loss w^2 / 2, whose gradient is w."""
  params = {"conv1": {"kernel": jnp.float32(1.0), "bias": jnp.float32(1.0)}}
  tx = optimizer.create(config, steps_per_epoch, epochs=5)
  state, trace = tx.init(params), []
  for _ in range(steps):
    updates, state = tx.update(params, state, params)
    params = optax.apply_updates(params, updates)
    trace.append([float(x) for x in jax.tree.leaves(params)])  # bias, kernel
  return np.array(trace)


def by_hand(velocity, decay_bias=True):
  """Caffe's and optax's order of SGD with momentum, as their sources have it."""
  w, v, trace = np.ones(2), np.zeros(2), []
  decay = np.array([0.01 if decay_bias else 0.0, 0.01])
  for step in range(12):
    rate = 0.1 if step < 6 else 0.01
    g = w + decay * w
    if velocity == "caffe":
      v = 0.9 * v + rate * g
      w = w - v
    else:
      v = 0.9 * v + g
      w = w - rate * v
    trace.append(w)
  return np.array(trace)


@pytest.mark.parametrize("velocity", ["caffe", "optax"])
@pytest.mark.parametrize("decay_bias", [True, False])
def test_sgd_is_the_rule_written_out(velocity, decay_bias):
  ours = run(section(velocity=velocity, decay_bias=decay_bias))
  np.testing.assert_allclose(ours, by_hand(velocity, decay_bias), rtol=1e-5)


def test_after_a_drop_caffes_velocity_coasts_on():
  caffe, plain = (np.abs(np.diff(run(section(velocity=v))[:, 1])) for v in ("caffe", "optax"))
  assert caffe[5] > 3 * plain[5]


def test_adam_is_its_algorithm_written_out():
  """Kingma & Ba 2015, algorithm 1; the decay is in the gradient, `momentum` is its first rate."""
  w, m, v, trace = np.ones(2), 0.0, 0.0, []
  for t in range(1, 6):
    g = w + 0.5 * w
    m, v = 0.7 * m + 0.3 * g, 0.999 * v + 0.001 * g**2
    w = w - 0.1 * (m / (1 - 0.7**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    trace.append(w)
  ours = run(section(name="adam", weight_decay=0.5, momentum=0.7), steps=5)
  np.testing.assert_allclose(ours, trace, rtol=1e-5)


def layer(seed, *shape):
  """Gradients of a layer whose singular values, bias included, go from 1 to 1/20."""
  features, rows = shape[-1], int(np.prod(shape[:-1])) + 1
  random = np.random.default_rng(seed)
  left, right = (np.linalg.qr(random.normal(size=(n, n)))[0] for n in (rows, features))
  n = min(rows, features)
  matrix = (left[:, :n] * np.geomspace(1, 1 / 20, n) @ right[:n]).astype(np.float32)
  return {"kernel": jnp.array(matrix[:-1].reshape(shape)), "bias": jnp.array(matrix[-1])}


def moves(*gradients, **values):
  """By how much Muon moves weights of 1 at a rate of 1, in the step of the last gradient."""
  values = {"name": "muon", "learning_rate": 1.0, "weight_decay": 0.0, "drops": (), **values}
  tx = optimizer.create(section(**values), steps_per_epoch=3, epochs=5)
  params = jax.tree.map(jnp.ones_like, gradients[0])
  state = tx.init(params)
  for gradient in gradients:
    moved, state = tx.update(gradient, state, params)
  return moved


def matrix_of(layer):
  return np.concatenate([layer["kernel"].reshape(-1, layer["bias"].size), layer["bias"][None]])


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_muon_moves_along_the_gradient_with_its_singular_values_made_equal(scale):
  """By numpy's decomposition G = U S V: along U V, whatever S."""
  gradient = {"conv1": layer(0, 3, 3, 2, 8), "conv2": layer(1, 3, 3, 8, 5), "wide": layer(2, 4, 45)}
  moved = moves(jax.tree.map(lambda x: scale * x, gradient))
  for name in gradient:
    left, _, right = np.linalg.svd(matrix_of(gradient[name]), full_matrices=False)
    ours = -matrix_of(moved[name])
    along = left.T @ ours @ right.T / {"wide": 3.0}.get(name, 1.0)
    np.testing.assert_allclose(np.diag(along), 1, atol=0.5)  # five rounds come no closer
    np.testing.assert_allclose(along - np.diag(np.diag(along)), 0, atol=1e-3)


@pytest.mark.parametrize("nesterov", [False, True])
def test_muons_velocity_by_hand(nesterov):
  """A mean of the gradients as Adam has it, or as Adam with Nesterov's step has it (Dozat 2016)."""
  first, second, m = layer(0, 3, 3, 2, 8), layer(1, 3, 3, 2, 8), 0.5
  moved = moves({"conv1": first}, {"conv1": second}, momentum=m, nesterov=nesterov)["conv1"]
  a, b = (m * m / (1 - m**3), m / (1 - m**3) + 1 / (1 - m**2)) if nesterov else (m, 1)
  left, _, right = np.linalg.svd(a * matrix_of(first) + b * matrix_of(second), full_matrices=False)
  along = -left.T @ matrix_of(moved) @ right.T
  np.testing.assert_allclose(along - np.diag(np.diag(along)), 0, atol=1e-3)


def test_muon_moves_a_layer_as_if_there_were_no_other():
  alone, large = layer(0, 3, 3, 2, 8), layer(1, 3, 3, 9, 12)
  one, two = moves({"conv1": alone}), moves({"conv1": alone, "conv2": large})
  np.testing.assert_allclose(matrix_of(one["conv1"]), matrix_of(two["conv1"]), atol=1e-5)


def test_muon_takes_a_layer_without_biases():
  """As one whose biases never have a gradient."""
  still = {"kernel": layer(0, 3, 3, 2, 8)["kernel"], "bias": jnp.zeros(8)}
  other = {"conv2": layer(1, 3, 3, 9, 12)}
  bare = moves({"conv1": {"kernel": still["kernel"]}} | other)["conv1"]
  assert bare.keys() == {"kernel"}
  np.testing.assert_allclose(bare["kernel"], moves({"conv1": still} | other)["conv1"]["kernel"])


@pytest.mark.parametrize("decay_bias", [True, False])
def test_muons_decay_is_a_share_of_the_weight(decay_bias):
  still = jax.tree.map(jnp.zeros_like, {"conv1": layer(0, 3, 3, 2, 8)})
  moved = moves(still, weight_decay=0.01, learning_rate=0.1, decay_bias=decay_bias)["conv1"]
  np.testing.assert_allclose(moved["kernel"], -0.001, rtol=1e-5)
  np.testing.assert_allclose(moved["bias"], -0.001 if decay_bias else 0.0, rtol=1e-5)


@pytest.mark.parametrize(("clip_norm", "moved"), [(0.0, 1.1), (5.0, 1.1), (0.5, 0.5 / 2**0.5)])
@pytest.mark.parametrize("velocity", ["caffe", "optax"])
def test_a_gradient_above_the_norm_is_scaled_down_to_it_with_its_decay(velocity, clip_norm, moved):
  """The first gradient is (1, 1), with its decay (1.1, 1.1)."""
  values = {"clip_norm": clip_norm, "weight_decay": 0.1, "learning_rate": 1.0}
  trace = run(section(velocity=velocity, **values), steps=1)
  np.testing.assert_allclose(1 - trace, moved, rtol=1e-6)


def test_clipping_does_not_move_where_the_loss_and_its_decay_balance():
  """The least of (w - 1)^2 / 2 + w^2 / 20, 1 / 1.1, is found from afar, where all steps are clipped."""
  values = {"clip_norm": 0.01, "weight_decay": 0.1, "learning_rate": 1.0, "momentum": 0.0}
  tx = optimizer.create(section(drops=(), **values), 1, epochs=1)
  params = {"conv1": {"kernel": jnp.float32(2.0)}}
  state = tx.init(params)
  for _ in range(150):
    gradient = jax.tree.map(lambda w: w - 1, params)
    updates, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params["conv1"]["kernel"], 1 / 1.1, rtol=1e-5)


def test_the_rate_drops_after_the_epochs_asked_for():
  rate = optimizer.schedule(section(drops=(2, 3), drop_factor=10.0), steps_per_epoch=5, epochs=4)
  rates = [float(rate(step)) for step in range(20)]
  np.testing.assert_allclose(rates, [0.1] * 10 + [0.01] * 5 + [0.001] * 5, rtol=1e-5)
  together = optimizer.schedule(section(drops=(0.9, 1.1), drop_factor=10.0), 2, epochs=2)
  np.testing.assert_allclose([float(together(step)) for step in (1, 2)], [0.1, 0.001], rtol=1e-5)


def test_a_triangle_rises_and_falls_in_straight_lines_and_ends_at_zero():
  values = {"schedule": "triangle", "warmup": 0.25, "drops": ()}
  rate = optimizer.schedule(section(**values), steps_per_epoch=5, epochs=4)
  rates = [float(rate(step)) for step in range(22)]
  by_hand = [0, 0.02, 0.04, 0.06, 0.08, *(0.1 * (20 - step) / 15 for step in range(5, 20)), 0, 0]
  np.testing.assert_allclose(rates, by_hand, rtol=1e-5, atol=1e-8)


def test_a_warm_up_delays_no_drop():
  values = {"warmup": 0.2, "drops": (2,), "drop_factor": 10.0}
  rate = optimizer.schedule(section(**values), steps_per_epoch=5, epochs=4)
  rates = [float(rate(step)) for step in range(12)]
  np.testing.assert_allclose(rates, [0, 0.025, 0.05, 0.075] + [0.1] * 6 + [0.01] * 2, rtol=1e-5)


@pytest.mark.parametrize("velocity", ["caffe", "optax"])
def test_nesterov_by_hand(velocity):
  """Gradient w: v <- m v + g, w <- w - r (g + m v), twice. Both orders are one at one rate."""
  values = {"nesterov": True, "velocity": velocity, "weight_decay": 0.0, "drops": ()}
  w, v, trace = 1.0, 0.0, []
  for _ in range(2):
    v = 0.9 * v + w
    w = w - 0.1 * (w + 0.9 * v)
    trace.append([w, w])
  np.testing.assert_allclose(run(section(**values), steps=2), trace, rtol=1e-6)


def test_a_drop_beyond_all_steps_never_comes():
  config = section(drops=(1, 1e308))
  rate = optimizer.schedule(config, steps_per_epoch=10**6, epochs=5)
  np.testing.assert_allclose([rate(0), rate(2 * 10**6), rate(2**31 - 2)], [0.1, 0.01, 0.01])


@pytest.mark.parametrize("name", ["sgd", "adam", "muon"])
def test_every_optimizer_is_given_what_was_clipped(key, name):
  """Of two gradients the second is a hundred times the norm, which Adam and Muon alone would hide."""
  params = {"conv1": {"kernel": jax.random.normal(key, (3, 3, 2, 4)), "bias": jnp.ones(4)}}
  first = jax.tree.map(lambda x: x / optax.tree.norm(params), params)
  second = jax.tree.map(lambda x: jnp.flip(100 * x), first)

  def moved(clip_norm, gradients):
    config = section(name=name, clip_norm=clip_norm, weight_decay=0.0)
    tx = optimizer.create(config, 3, epochs=5)
    state = tx.init(params)
    for gradient in gradients:
      updates, state = tx.update(gradient, state, params)
    return updates

  by_hand = [first, jax.tree.map(lambda x: x / 100, second)]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    moved(1.0, [first, second]),
    moved(0.0, by_hand),
  )
