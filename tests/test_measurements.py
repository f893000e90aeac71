"""Angles, ratios and signs against NumPy, and against what must be so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from allcnn_jax.data import augmentation
from allcnn_jax.nets import architectures, model
from allcnn_jax.training import learning_rules, measurements, sharding
from allcnn_jax.training import step as step_lib

TABLE = (
  architectures.Conv(3, 8, 2, (1, 1)),
  architectures.Conv(3, 8, 1, (1, 1)),
  architectures.Dense(30),
  architectures.Dense(5, relu=False),
)
LAYERS = ("conv1", "conv2", "dense1", "dense2")


@pytest.fixture(scope="module")
def batch():
  images = jax.random.normal(jax.random.key(1), (16, 8, 8, 3))
  return step_lib.Examples(images, jnp.arange(16, dtype=jnp.int32) % 5)


@pytest.fixture(scope="module")
def params(batch):
  return jax.jit(model.ConvNet(TABLE).init)(jax.random.key(2), batch.images)["params"]


def recipe(name, **choices):
  rule = learning_rules.create(name, **choices)
  over_devices = sharding.batch_sharding(sharding.mesh())
  return step_lib.Recipe(
    0,
    model.ConvNet(TABLE),
    optax.sgd(0.1),
    augmentation.KINDS["none"],
    (8, 8),
    16,
    over_devices,
    rule,
  )


def measured(recipe, params, batch):
  variables = recipe.rule.init(recipe.net, {"params": params}, batch.images, 0)
  return {k: float(v) for k, v in measurements.measure(recipe, variables, batch).items()}


def test_an_angle_is_numpy_s_and_exact_at_its_ends(key):
  u, v = jax.random.normal(key, (2, 3, 50))
  cosine = np.vdot(u, v) / np.linalg.norm(u) / np.linalg.norm(v)
  np.testing.assert_allclose(measurements.angle(u, v), np.degrees(np.arccos(cosine)), rtol=1e-5)
  np.testing.assert_allclose(measurements.angle(u, 3 * u), 0, atol=1e-4)
  np.testing.assert_allclose(measurements.angle(u, -u), 180, atol=1e-4)
  assert np.isnan(measurements.angle(u, 0 * u))
  for small in (1e-18, 1e-30):
    np.testing.assert_allclose(
      measurements.angle(small * u, small * v), measurements.angle(u, v), rtol=1e-5
    )


@pytest.mark.parametrize("name", ["bp", "bp_const"])
def test_backpropagation_agrees_with_itself(name, params, batch):
  found = measured(recipe(name), params, batch)
  assert found == {
    f"{what}/{layer}": value
    for layer in LAYERS
    for what, value in (("error_angle", 0.0), ("error_ratio", 1.0))
  } | {k: pytest.approx(0, abs=1e-3) for k in found if k.startswith("error_angle")}


def test_weights_sent_back_by_a_rule_s_own_way_are_backpropagation(params, batch):
  made = recipe("bp_noise")
  made = made.replace(rule=dataclasses.replace(made.rule, noisy=False))
  found = measured(made, params, batch)
  for layer in LAYERS:
    assert found[f"error_angle/{layer}"] == pytest.approx(0, abs=0.1)
    assert found[f"error_ratio/{layer}"] == pytest.approx(1, abs=1e-4)


def test_the_error_signals_are_those_of_feedback_alignment_by_hand(params, batch):
  """The two dense layers in NumPy: what B and what W send back from the same error."""
  made = recipe("fa")
  found = measured(made, params, batch)
  variables = made.rule.init(made.net, {"params": params}, batch.images, 0)
  logits, maps = jax.jit(lambda v: made.net.apply(v, batch.images, return_activations=True))(
    variables
  )
  e = (np.asarray(jax.nn.softmax(logits)) - np.eye(5)[batch.labels]) / 16
  on = np.asarray(maps["dense1"]) > 0
  w, b = (np.asarray(variables[c]["dense2"]["kernel"]) for c in ("params", "feedback"))
  by_bp, by_rule = (e @ w.T) * on, (e @ b.T) * on
  ratio = np.linalg.norm(by_rule) / np.linalg.norm(by_bp)
  cosine = np.vdot(by_rule, by_bp) / np.linalg.norm(by_rule) / np.linalg.norm(by_bp)
  np.testing.assert_allclose(found["error_ratio/dense1"], ratio, rtol=1e-4)
  np.testing.assert_allclose(found["error_angle/dense1"], np.degrees(np.arccos(cosine)), rtol=1e-4)
  np.testing.assert_allclose(found["error_angle/dense2"], 0, atol=1e-3)
  cosine = np.vdot(w, b) / np.linalg.norm(w) / np.linalg.norm(b)
  np.testing.assert_allclose(found["weight_angle/dense2"], np.degrees(np.arccos(cosine)), rtol=1e-4)


def test_where_backpropagation_sends_nothing_no_angle_and_no_ratio_is_made_up(params, batch):
  dead = {**params, "dense2": jax.tree.map(jnp.zeros_like, params["dense2"])}
  for rule in ("fa", "bp"):
    found = measured(recipe(rule), dead, batch)
    assert np.isnan(found["error_angle/dense1"])
    assert np.isnan(found["error_ratio/dense1"])


def test_noise_puts_every_layer_near_45_degrees(params, batch):
  """It is not passed on: it does not grow towards the input."""
  found = measured(recipe("bp_noise"), params, batch)
  for layer in LAYERS:
    assert 38 < found[f"error_angle/{layer}"] < 52
    assert found[f"error_ratio/{layer}"] == pytest.approx(2**0.5, rel=0.15)


def test_direct_feedback_has_no_weights_to_compare_but_has_errors(params, batch):
  found = measured(recipe("dfa"), params, batch)
  assert not any(k.startswith("weight_angle") for k in found)
  assert 60 < found["error_angle/conv1"] < 120
  assert found["error_angle/dense2"] == pytest.approx(0, abs=1e-3)


def test_shares_of_changed_signs_by_hand(params, batch):
  made = recipe("fa_usf", tracks_signs=True)
  before = made.rule.init(made.net, {"params": params}, batch.images, 0)
  w = params["dense2"]["kernel"]  # 30 x 5
  there = {**params, "dense2": {**params["dense2"], "kernel": w.at[:6].multiply(-1)}}
  back = {**params, "dense2": {**params["dense2"], "kernel": w.at[4:9].multiply(-1)}}
  variables = made.rule.after(made.rule.after(before, there, jnp.int32(0)), back, jnp.int32(1))
  found = measurements.measure(made, variables, batch)
  np.testing.assert_allclose(found["sign_differs/dense2"], 5 / 30, rtol=1e-6)
  np.testing.assert_allclose(found["sign_ever_differed/dense2"], 9 / 30, rtol=1e-6)
  assert found["sign_ever_differed/conv1"] == 0


def test_both_ways_back_share_one_forward_pass(params, batch):
  """Convolutions: two forward; what conv2 sends to conv1, once for each way back."""
  made = recipe("fa")
  variables = made.rule.init(made.net, {"params": params}, batch.images, 0)
  compiled = measurements.measure.lower(made, variables, batch).compile().as_text()
  assert compiled.count("convolution(") == 2 + 2
