"""The rules: their equations by hand, backpropagation where they must equal it, and what they hold."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from allcnn_jax.data import augmentation
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures, model
from allcnn_jax.training import learning_rules, loop, restore, sharding
from allcnn_jax.training import step as step_lib
from tests.runs import same

# Strided, padded, pooled, unpadded and dense layers, on images of 12 x 12.
TABLE = (
  architectures.Conv(3, 4, 2, (1, 1)),
  architectures.Conv(3, 4, 1, (1, 1)),
  architectures.Pool("max", 3, 2, (0, 1)),
  architectures.Conv(2, 5, 1, (0, 0)),
  architectures.Dense(6),
  architectures.Dense(5, relu=False),
)
W, B0 = jnp.array([3.0, -4.0, 0.0]), jnp.array([-1.0, 0.5, 7.0])


@pytest.mark.parametrize(
  ("way", "expected"),
  [
    ("transposed", [3.0, -4.0, 0.0]),
    ("fixed", [-1.0, 0.5, 7.0]),
    ("sign", [1.0, -1.0, 0.0]),
    ("sign_of_fixed_size", [1.0, -0.5, 0.0]),  # Eq. 4
    ("sign_of_same_norm", [5 / 2**0.5, -5 / 2**0.5, 0.0]),  # Eq. 5: |W| = 5, |sign(W)| = sqrt 2
  ],
)
def test_feedback_weights_by_hand(way, expected):
  np.testing.assert_allclose(getattr(learning_rules, way)(W, B0), expected, rtol=1e-6)


def test_alignment_by_hand():
  """Eq. 9: 0.001 ((1 - 3)^2 + (2 - 2)^2 + (0 - 1)^2) = 0.005, of slope 0.002 (W - B)."""
  rule = learning_rules.create("bp_alignment", penalty=0.001)
  b = {"a": {"kernel": jnp.array([3.0, 2.0, 1.0])}}

  def extra(params):
    return rule.extra_loss({"params": params, "feedback": b})

  params = {"a": {"kernel": jnp.array([1.0, 2.0, 0.0]), "bias": jnp.array([9.0])}}
  np.testing.assert_allclose(extra(params), 0.005, rtol=1e-6)
  slope = jax.grad(extra)(params)["a"]
  np.testing.assert_allclose(slope["kernel"], [-0.004, 0.0, -0.002], rtol=1e-6)
  assert slope["bias"] == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms_by_hand(dtype):
  """Eq. 10."""
  held = learning_rules.keep_norm(jnp.array([3, -4], dtype), jnp.float32(10))
  assert held.dtype == dtype
  np.testing.assert_allclose(held.astype(jnp.float32), [6, -8], rtol=1e-6)
  zeros = jnp.zeros(3, dtype)
  np.testing.assert_array_equal(learning_rules.keep_norm(zeros, jnp.float32(0)), zeros)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_signs_by_hand(dtype):
  before = jnp.array([1, -1, 1, -1, 0, 0], dtype)
  kept = learning_rules.keep_signs(jnp.array([0.5, -0.5, -2, 2, -1, 1], dtype), before)
  assert kept.dtype == dtype
  np.testing.assert_array_equal(jnp.sign(kept), [1, -1, 1, -1, 1, 1])
  np.testing.assert_allclose(kept.astype(jnp.float32)[:2], [0.5, -0.5])
  assert np.all(np.abs(kept.astype(jnp.float32)[2:5]) < 2e-10)


@pytest.fixture(scope="module")
def net():
  return model.ConvNet(TABLE)


@pytest.fixture(scope="module")
def x():
  return jax.random.normal(jax.random.key(1), (4, 12, 12, 3))


@pytest.fixture(scope="module")
def variables(net, x):
  return jax.jit(net.init)(jax.random.key(2), x)


def slopes(rule, net, variables, x):
  batch = step_lib.Examples(x, jnp.arange(len(x), dtype=jnp.int32))
  rngs = {"dropout": jax.random.key(3), "noise": jax.random.key(4)}
  run = jax.jit(lambda v: step_lib.gradients(net, v, batch, rngs, rule)[1])
  return run(variables)


def test_a_step_of_alignment_is_backpropagations_and_the_pull_to_b(net, variables, x):
  rule = learning_rules.create("bp_alignment", penalty=0.1)
  given = rule.init(net, variables, x, seed=0)
  found, plain = (slopes(r, net, given, x) for r in (rule, learning_rules.RULES["bp"]))
  for name, layer in given["params"].items():
    pull = 0.2 * (layer["kernel"] - given["feedback"][name]["kernel"])
    expected = plain[name]["kernel"] + pull
    np.testing.assert_allclose(found[name]["kernel"], expected, atol=1e-5)


# For each rule, a W and a B_0 for which B = W.
EQUAL = {
  "fa": (lambda w: w, lambda w: w),
  "fa_usf_init": (lambda w: w, lambda w: -w),
  "bp_alignment": (lambda w: w, lambda w: w),
  "fa_usf_sn": (lambda w: 0.2 * jnp.sign(w), lambda w: w),
  "fa_usf": (jnp.sign, lambda w: w),
}


@pytest.mark.parametrize("name", EQUAL)
def test_with_b_equal_to_w_a_rule_is_backpropagation_on_every_kernel(name, net, variables, x):
  forward, back = EQUAL[name]
  scaled = {k: v | {"kernel": forward(v["kernel"])} for k, v in variables["params"].items()}
  b0 = {k: {"kernel": back(v["kernel"])} for k, v in scaled.items()}
  given = {"params": scaled, "feedback": b0}
  found = slopes(learning_rules.create(name), net, given, x)
  expected = slopes(learning_rules.RULES["bp"], net, given, x)
  for layer in scaled:
    a, b = found[layer]["kernel"], expected[layer]["kernel"]
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), err_msg=layer)
    assert np.any(b)


def test_another_b_changes_every_kernel_but_the_last(net, variables, x):
  rule = learning_rules.create("fa")
  variables = rule.init(net, variables, x, seed=0)
  a, b = (slopes(learning_rules.RULES[n], net, variables, x) for n in ("fa", "bp"))
  same = {k: np.allclose(a[k]["kernel"], b[k]["kernel"], rtol=1e-3) for k in a}
  assert same == {"conv1": False, "conv2": False, "conv3": False, "dense1": False, "dense2": True}


def test_batch_manhattan_is_the_sign_of_uniform_sign_feedback(net, variables, x):
  a, b = (slopes(learning_rules.RULES[n], net, variables, x) for n in ("batch_manhattan", "fa_usf"))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, jnp.sign(b)), a, b)


@pytest.mark.parametrize("name", learning_rules.RULES)
def test_every_rule_keeps_the_forward_pass_of_a_net(name, net, variables, x):
  rule = learning_rules.create(name)
  given = rule.init(net, variables, x, seed=0)
  rngs = {"noise": jax.random.key(0)}
  found = jax.jit(lambda v: rule.apply(net, v, x, rngs=rngs))(given)
  np.testing.assert_allclose(found, jax.jit(net.apply)(variables, x), rtol=1e-5, atol=1e-6)


def recipe(rule, dtype=jnp.float32):
  net = model.ConvNet(TABLE, dtype=dtype)
  decay = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.2))
  over_devices = sharding.batch_sharding(sharding.mesh())
  return step_lib.Recipe(0, net, decay, augmentation.KINDS["none"], (12, 12), 4, over_devices, rule)


def train(recipe, steps):
  """The variables after each step, the start included."""
  images = jax.random.normal(jax.random.key(1), (8, 12, 12, 3))
  data = step_lib.Stored.of(images, jnp.arange(8, dtype=jnp.int32) % 5)
  state, totals = jax.jit(step_lib.init, static_argnums=1)(recipe, 3), step_lib.Totals.zero()
  seen = [jax.tree.map(jnp.copy, state.variables)]
  for _ in range(steps):
    state, totals = step_lib.train_step(recipe, state, totals, data, jnp.arange(8))
    seen.append(jax.tree.map(jnp.copy, state.variables))
  return seen


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_after_steps_signs_are_frozen_and_norms_are_held(dtype):
  rule = learning_rules.create("fa_usf_const_ei", freeze_step=2, tracks_signs=True)
  seen = train(recipe(rule, dtype), 6)
  at = [learning_rules.kernels_of(v["params"]) for v in seen]
  moved = last = 0
  for path, first in at[0].items():
    for kernels in at[1:]:
      np.testing.assert_allclose(np.linalg.norm(kernels[path]), np.linalg.norm(first), rtol=1e-6)
      assert np.any(kernels[path] != first)
    signs = [jnp.sign(kernels[path].astype(dtype)) for kernels in at]
    moved += np.sum(signs[0] != signs[2])
    last += np.sum(signs[1] != signs[2])
    for s in signs[3:]:
      np.testing.assert_array_equal(s, signs[2], err_msg=str(path))
  assert moved > last > 0  # before the freeze they do change, to its very step


def test_without_the_rule_neither_signs_nor_norms_are_held():
  seen = train(recipe(learning_rules.create("fa_usf_sn")), 6)
  a, b = (seen[i]["params"]["dense1"]["kernel"] for i in (2, 6))
  assert np.any(np.sign(a) != np.sign(b))
  assert abs(np.linalg.norm(a) / np.linalg.norm(b) - 1) > 1e-3


def test_changes_of_sign_are_remembered_after_they_are_undone(net):
  rule = learning_rules.create("bp", tracks_signs=True)
  w = jnp.array([[1.0, -1.0], [0.0, 1.0]])
  variables = {"params": {"a": {"kernel": w}}}
  variables = rule.init(net, variables, None, 0)
  for step, now in enumerate((w * -1, w)):
    variables = rule.after(variables, {"a": {"kernel": now}}, jnp.int32(step))
  # The zero became -0, which is no change.
  np.testing.assert_array_equal(
    variables["signs"]["a"]["kernel"]["changed"], [[True, True], [False, True]]
  )


@pytest.mark.parametrize("name", ["fa", "dfa", "fa_usf_init"])
def test_neither_the_optimizer_nor_weight_decay_touches_feedback_weights(name):
  seen = train(recipe(learning_rules.create(name)), 3)
  jax.tree.map(np.testing.assert_array_equal, seen[0]["feedback"], seen[3]["feedback"])
  assert np.any(seen[0]["params"]["conv1"]["kernel"] != seen[3]["params"]["conv1"]["kernel"])


def test_many_steps_in_one_call_are_the_same_steps():
  rule = learning_rules.create("fa_usf_const_ei", freeze_step=2, tracks_signs=True)
  made = recipe(rule)
  expected = train(made, 2)[-1]
  images = jax.random.normal(jax.random.key(1), (8, 12, 12, 3))
  data = step_lib.Stored.of(images, jnp.arange(8, dtype=jnp.int32) % 5)
  state = jax.jit(step_lib.init, static_argnums=1)(made, 3)
  state, _ = step_lib.train_steps(made, state, step_lib.Totals.zero(), data, jnp.arange(8), 2)
  for path, a in traverse_util.flatten_dict(expected).items():
    b = traverse_util.flatten_dict(state.variables)[path]
    np.testing.assert_allclose(a, b, atol=1e-5, err_msg=str(path))


def test_forward_and_feedback_weights_start_with_the_variances_of_the_paper():
  net = model.create("fa_mnist", 10, init="lecun_normal")
  x = jnp.zeros((1, 28, 28, 1))
  rule = learning_rules.create("fa")
  variables = jax.jit(lambda k: rule.init(net, net.init(k, x), x, 0))(jax.random.key(0))
  for layer, n_in, n_out in (("conv2", 25 * 32, 25 * 64), ("dense1", 3136, 1024)):
    np.testing.assert_allclose(variables["params"][layer]["kernel"].var() * n_in, 1, rtol=0.03)
    np.testing.assert_allclose(variables["feedback"][layer]["kernel"].var() * n_out, 1, rtol=0.03)


@pytest.mark.parametrize("name", ["fa_usf_const_ei", "bp_noise"])
def test_stopped_and_gone_on_with_is_bit_identical(tiny, tmp_path, name):
  tiny.model.name, tiny.model.head, tiny.model.dropout = "fa_cifar10_1", "dense", ()
  tiny.rule.name = name
  tiny.rule.freeze_at = 0.4
  tiny.alignment.every_steps = 3
  states = []
  for folder, stops in (("whole", (9,)), ("parts", (3, 9))):
    for steps in stops:
      tiny.train.steps = steps
      loop.train(tiny, tmp_path / folder)
    states.append(restore.trained(tmp_path / folder).variables)
  same(*states)
  logs = [(tmp_path / f / "metrics.jsonl").read_text().splitlines() for f in ("whole", "parts")]
  whole, parts = ([x for x in log if "error_angle/conv1" in x] for log in logs)
  assert whole == parts
  assert len(whole) == 4  # steps 0, 3, 6 and 9


def test_a_checkpoint_goes_from_rule_to_rule_by_name(net, variables, x):
  """Weights trained under one rule are the next one's: only the collections beside them differ."""
  before = learning_rules.create("fa").init(net, variables, x, seed=0)
  after = learning_rules.create("dfa").init(net, before, x, seed=0)
  same(after["params"], variables["params"])
  assert after["feedback"]["conv1"].keys() == {"output"}
  again = learning_rules.create("fa").init(net, after, x, seed=0)
  same(again["feedback"], before["feedback"])


def test_a_run_begins_with_the_weights_of_another_under_any_rule(tiny, tmp_path):
  tiny.model.name, tiny.model.head, tiny.model.dropout = "fa_cifar10_1", "dense", ()
  tiny.rule.name = "fa"
  tiny.train.steps = 2
  loop.train(tiny, tmp_path / "fa")
  fa = restore.trained(tmp_path / "fa").variables
  tiny.rule.start_from = str(tmp_path / "fa")
  tiny.seed = 1
  tiny.optimizer.learning_rate = 0.0
  tiny.rule.name = "fa_usf_init"
  loop.train(tiny, tmp_path / "next")
  # Feedback weights go along, though the seed is another one.
  same(restore.trained(tmp_path / "next").variables, fa)
  tiny.dataset.preprocessing = "none"
  with pytest.raises(UsageError, match="preprocessed by 'standardize', here they are by 'none'"):
    loop.train(tiny, tmp_path / "otherwise")
  tiny.dataset.preprocessing = "standardize"
  tiny.model.width = 0.08
  with pytest.raises(UsageError, match="another one than fa_cifar10_1"):
    loop.train(tiny, tmp_path / "wider")
  tiny.rule.start_from = str(tmp_path / "nowhere")
  with pytest.raises(UsageError, match="no run's folder"):
    loop.train(tiny, tmp_path / "lost")


def test_a_checkpoint_without_feedback_weights_is_one_clear_line(tiny, tmp_path):
  tiny.model.name, tiny.model.head, tiny.model.dropout = "fa_cifar10_1", "dense", ()
  tiny.train.steps = 1
  workdir = tmp_path / "run"
  loop.train(tiny, workdir)
  config = workdir / "config.json"
  config.write_text(config.read_text().replace('"name": "bp"', '"name": "fa"'))
  with pytest.raises(UsageError, match=r"no feedback weights.*rule\.start_from") as caught:
    restore.trained(workdir)
  assert "\n" not in str(caught.value)


def test_variables_without_feedback_weights_are_refused_with_the_rule(net, variables, x):
  for name in ("fa", "dfa", "dense_fa", "fa_usf_init"):
    with pytest.raises(UsageError, match=f"'{name}' needs feedback weights"):
      learning_rules.create(name).apply(net, variables, x)
    other = "fa" if name == "dfa" else "dfa"
    given = learning_rules.create(other).init(net, variables, x, seed=0)
    with pytest.raises(UsageError, match=f"'{name}' needs feedback weights"):
      learning_rules.create(name).apply(net, given, x)


@pytest.mark.parametrize("name", ["fa", "fa_usf", "dfa"])
def test_weights_that_no_way_back_is_defined_for_are_refused(name, key):
  class Loose(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(nn.Dense(4)(x) @ self.param("mix", nn.initializers.ones, (4, 4)))

  x = jnp.ones((2, 5))
  with pytest.raises(UsageError, match="'mix' are in no"):
    learning_rules.create(name).init(Loose(), Loose().init(key, x), x, seed=0)


def test_wrong_rules_are_refused_before_anything_is_written(tiny, tmp_path):
  tiny.rule.name = "fa_ufs_sn"
  with pytest.raises(UsageError, match="Did you mean 'fa_usf_sn'"):
    loop.train(tiny, tmp_path / "run")
  tiny.rule.name = "dense_fa"
  tiny.model.name, tiny.model.width = "all_cnn_c", 1.0
  with pytest.raises(UsageError, match=r"'dense_fa' needs .* G feedback values"):
    loop.train(tiny, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_backpropagation_keeps_nothing_and_changes_nothing(net, variables, x):
  rule = learning_rules.RULES["bp"]
  other = learning_rules.create("fa_usf_const", tracks_signs=True).init(net, variables, x, 0)
  assert other.keys() == {"params", "norms", "signs"}
  for given in (variables, other):
    assert rule.init(net, given, x, 0).keys() == {"params"}
  ours = jax.make_jaxpr(lambda v: rule.apply(net, v, x))(variables)
  assert str(ours) == str(jax.make_jaxpr(lambda v: net.apply(v, x))(variables))
  assert dataclasses.replace(rule, name="x").extra_loss(variables) == 0


def test_feedback_weights_that_do_not_fit_are_drawn_anew(net, variables, x):
  rule = learning_rules.create("fa")
  expected = rule.init(net, variables, x, 0)
  other = {**expected["feedback"], "conv1": {"kernel": jnp.zeros((5, 5, 3, 7))}}
  same(rule.init(net, {**variables, "feedback": other}, x, 0), expected)
