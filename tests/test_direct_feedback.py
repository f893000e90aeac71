"""DFA and DenseFA against a network written out in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures, model
from allcnn_jax.training import learning_rules

TABLE = (
  architectures.Conv(3, 2, 1, (1, 1)),
  architectures.Pool("max", 2, 2, (0, 0)),
  architectures.Dense(6),
  architectures.Dense(5),
  architectures.Dense(3, relu=False),
)
LABELS = np.array([0, 2, 1, 1])


@pytest.fixture
def net():
  return model.ConvNet(TABLE)


def slopes(rule, net, variables, x):
  def loss(params):
    logits = rule.apply(net, {**variables, "params": params}, x)
    return -jax.nn.log_softmax(logits)[jnp.arange(len(x)), LABELS].mean()

  return jax.jit(jax.grad(loss))(variables["params"])


def by_hand(variables, x, dense):
  """The kernels' gradients; the signals are named after the layers of `TABLE`."""
  w = {k: np.asarray(v["kernel"], np.float64) for k, v in variables["params"].items()}
  b = jax.tree.map(lambda v: np.asarray(v, np.float64), variables["feedback"])
  n, patches = len(x), np.zeros((len(x), 4, 4, 9))
  padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
  for i in range(4):
    for j in range(4):
      patches[:, i, j] = padded[:, i : i + 3, j : j + 3].reshape(n, 9)
  h1 = np.maximum(patches @ w["conv1"].reshape(9, 2), 0)
  windows = h1.reshape(n, 2, 2, 2, 2, 2)  # (n, row, y, column, x, feature)
  pooled = windows.max((2, 4))
  h2 = np.maximum(pooled.reshape(n, 8) @ w["dense1"], 0)
  h3 = np.maximum(h2 @ w["dense2"], 0)
  logits = h3 @ w["dense3"]
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  e = (p - np.eye(3)[LABELS]) / n

  if dense:
    d3 = (e @ b["dense3"]["kernel"].T) * (h3 > 0)
    d2 = (d3 @ b["dense2"]["kernel"].T + e @ b["dense1"]["dense3"]) * (h2 > 0)
    below = (d2 @ b["dense1"]["kernel"].T).reshape(n, 2, 1, 2, 1, 2)
    through_pool = (below * (windows == pooled[:, :, None, :, None])).reshape(h1.shape)
    sent = d3 @ b["conv1"]["dense2"] + e @ b["conv1"]["dense3"]
    d1 = (through_pool + sent.reshape(h1.shape)) * (h1 > 0)
  else:
    d3, d2, d1 = (
      (e @ b[k]["output"]).reshape(h.shape) * (h > 0)
      for k, h in (("dense2", h3), ("dense1", h2), ("conv1", h1))
    )
  return {
    "conv1": np.einsum("nijp,nijf->pf", patches, d1).reshape(3, 3, 1, 2),
    "dense1": pooled.reshape(n, 8).T @ d2,
    "dense2": h2.T @ d3,
    "dense3": h3.T @ e,
  }


@pytest.mark.parametrize("name", ["dfa", "dense_fa"])
def test_every_kernel_s_gradient_is_that_of_a_numpy_network(key, net, name):
  x = jax.random.normal(key, (4, 4, 4, 1))
  rule = learning_rules.create(name)
  variables = rule.init(net, jax.jit(net.init)(jax.random.key(1), x), x, seed=2)
  expected = by_hand(variables, x, dense=name == "dense_fa")
  found = slopes(rule, net, variables, x)
  assert found.keys() == expected.keys()
  for layer, slope in expected.items():
    assert np.abs(slope).max() > 1e-3
    np.testing.assert_allclose(found[layer]["kernel"], slope, rtol=1e-4, atol=1e-6, err_msg=layer)


def test_densefa_without_its_matrices_is_feedback_alignment(key, net):
  x = jax.random.normal(key, (4, 4, 4, 1))
  dense, fa = (learning_rules.create(n) for n in ("dense_fa", "fa"))
  variables = dense.init(net, jax.jit(net.init)(key, x), x, seed=2)
  without = {
    layer: {k: v if k == "kernel" else jnp.zeros_like(v) for k, v in b.items()}
    for layer, b in variables["feedback"].items()
  }
  variables = {**variables, "feedback": without}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    slopes(dense, net, variables, x),
    slopes(fa, net, variables, x),
  )


def values(rule, name, image, classes=10):
  net = model.create(name, classes)
  images = jax.ShapeDtypeStruct((1, *image), jnp.float32)
  variables = jax.eval_shape(net.init, jax.random.key(0), images)
  made = jax.eval_shape(lambda v: learning_rules.create(rule).init(net, v, images, 0), variables)
  return sum(
    x.size
    for path, x in jax.tree_util.tree_leaves_with_path(made["feedback"])
    if path[-1].key != "kernel"
  )


def test_how_many_feedback_values_the_papers_networks_need():
  assert values("dfa", "fa_cifar10_2", (32, 32, 3)) == 3_563_520
  assert values("dense_fa", "fa_mnist", (28, 28, 1)) == 26_066_432
  assert values("dense_fa", "fa_cifar10_1", (24, 24, 3)) == 23_467_776


def test_the_papers_largest_network_takes_dfa():
  assert (
    values("dfa", "fa_imagenet_1", architectures.ARCHITECTURES["fa_imagenet_1"].image, 1000) > 1e9
  )


def test_more_than_a_machine_holds_is_refused_with_the_figure():
  with pytest.raises(UsageError, match=r"'dense_fa' needs 34\.5 G feedback values"):
    values("dense_fa", "fa_cifar10_2", (32, 32, 3))


class Foreign(nn.Module):
  """The network of `TABLE`, as somebody else would write it."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(2, (3, 3), padding=1, name="conv1")(x))
    x = nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
    x = nn.relu(nn.Dense(6, name="dense1")(x))
    x = nn.relu(nn.Dense(5, name="dense2")(x))
    return nn.Dense(3, name="dense3")(x)


@pytest.mark.parametrize("name", ["dfa", "dense_fa"])
def test_in_anybody_s_network_errors_arrive_at_the_next_layer_s_input(key, net, name):
  x = jax.random.normal(key, (4, 4, 4, 1))
  rule, foreign = learning_rules.create(name), Foreign()
  variables = jax.jit(net.init)(jax.random.key(1), x)
  ours, theirs = (rule.init(n, variables, x, seed=2) for n in (net, foreign))
  shapes = jax.tree.map(jnp.shape, theirs["feedback"]["conv1"])
  last = "output" if name == "dfa" else "dense3"
  assert shapes[last] == (3, 8)  # after the pool, where ours has the 32 values before it
  a, b = slopes(rule, net, ours, x), slopes(rule, foreign, theirs, x)
  for layer in ("dense1", "dense2", "dense3"):  # no pool lies between
    np.testing.assert_allclose(a[layer]["kernel"], b[layer]["kernel"], rtol=1e-5, atol=1e-7)
  assert np.any(b["conv1"]["kernel"])


class Normalised(nn.Module):
  """A network that returns its batch statistics beside its output."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.Conv(2, (3, 3), name="conv1")(x))
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.relu(nn.Conv(2, (3, 3), name="conv2")(x))
    return nn.Dense(3, name="dense1")(x.mean(axis=(1, 2)))


@pytest.mark.parametrize("name", ["dfa", "dense_fa", "fa"])
def test_a_network_that_updates_its_own_state_learns_too(key, name):
  x = jax.random.normal(key, (4, 6, 6, 1))
  rule, net = learning_rules.create(name), Normalised()
  variables = rule.init(net, net.init(key, x), x, seed=2)

  def loss(params):
    y, state = rule.apply(
      net, {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
    )
    return (y**2).sum(), state

  gradients, state = jax.grad(loss, has_aux=True)(variables["params"])
  assert np.any(gradients["conv1"]["kernel"])
  mean = state["batch_stats"]["BatchNorm_0"]["mean"]
  assert not np.array_equal(mean, variables["batch_stats"]["BatchNorm_0"]["mean"])


class Shared(nn.Module):
  """A network that uses a layer twice."""

  @nn.compact
  def __call__(self, x):
    middle = nn.Dense(8, name="middle")
    return nn.Dense(3, name="last")(nn.relu(middle(nn.relu(middle(x)))))


@pytest.mark.parametrize("name", ["dfa", "dense_fa"])
def test_a_layer_that_is_used_twice_is_refused(key, name):
  x, net, rule = jnp.ones((4, 8)), Shared(), learning_rules.create(name)
  variables = rule.init(net, net.init(key, x), x, seed=2)
  with pytest.raises(UsageError, match="'middle' is used twice"):
    rule.apply(net, variables, x)


@pytest.mark.parametrize(("name", "same"), [("dense_fa", "fa"), ("dfa", "bp")])
def test_too_few_layers_for_matrices_are_the_plain_rule(name, same, key):
  """DenseFA of two layers has none to skip, and DFA of one none to send to."""
  net = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)] if name == "dense_fa" else [nn.Dense(3)])
  x = jax.random.normal(key, (4, 6))
  found = []
  for rule in map(learning_rules.create, (name, same)):
    variables = rule.init(net, net.init(key, x), x, seed=2)
    found.append(slopes(rule, net, variables, x))
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_dfa_needs_an_output_of_classes(key):
  net = nn.Conv(3, (3, 3))
  x = jnp.ones((1, 4, 4, 1))
  with pytest.raises(UsageError, match="one array"):
    learning_rules.create("dfa").init(net, net.init(key, x), x, 0)


class Named(nn.Module):
  """Three layers, of which the last has a name of its own."""

  last: str

  @nn.compact
  def __call__(self, x):
    for features in (6, 5):
      x = nn.relu(nn.Dense(features)(x))
    return nn.Dense(3, name=self.last)(x)


@pytest.mark.parametrize("last", ["output", "kernel"])
@pytest.mark.parametrize("name", ["dfa", "dense_fa"])
def test_a_layer_may_have_any_name(key, name, last):
  x, net, rule = jax.random.normal(key, (4, 8)), Named(last), learning_rules.create(name)
  variables = rule.init(net, net.init(key, x), x, seed=2)
  assert all(np.any(x["kernel"]) for x in slopes(rule, net, variables, x).values())
  other = learning_rules.create({"dfa": "dense_fa", "dense_fa": "dfa"}[name])
  with pytest.raises(UsageError, match="another rule"):
    slopes(other, net, variables, x)


def test_a_pool_of_weights_has_the_network_s_error_straight_at_its_output(key):
  table = (
    architectures.Conv(3, 2, 1, (1, 1)),
    architectures.Pool("depthwise", 2, 2, (0, 0)),
    architectures.Dense(3, relu=False),
  )
  net, rule, x = (
    model.ConvNet(table),
    learning_rules.create("dfa"),
    jax.random.normal(key, (4, 4, 4, 1)),
  )
  variables = rule.init(net, net.init(jax.random.key(1), x), x, seed=2)
  logits, seen = net.apply(variables, x, return_activations=True)
  e = np.asarray(jax.nn.softmax(logits) - np.eye(3)[LABELS]) / len(x)
  d = (e @ variables["feedback"]["pool1"]["output"]).reshape(4, 2, 2, 2)
  windows = np.asarray(seen["conv1"]).reshape(4, 2, 2, 2, 2, 2)  # image, row, y, column, x, feature
  expected = np.einsum("nrycxf,nrcf->yxf", windows, d)
  found = slopes(rule, net, variables, x)
  np.testing.assert_allclose(found["pool1"]["kernel"][:, :, 0], expected, rtol=1e-4, atol=1e-6)
  assert np.any(found["conv1"]["kernel"])


@pytest.mark.parametrize(("name", "source"), [("dfa", "output"), ("dense_fa", "layers_4")])
def test_a_matrix_s_variance_is_one_over_the_values_at_its_source(key, name, source):
  net = nn.Sequential([nn.Dense(300), nn.relu, nn.Dense(200), nn.relu, nn.Dense(50)])
  x = jnp.ones((2, 8))
  variables = learning_rules.create(name).init(net, net.init(key, x), x, seed=2)
  b = variables["feedback"]["layers_0"][source]
  assert b.shape == (50, 300)
  np.testing.assert_allclose(50 * b.var(), 1, rtol=0.1)


class Regularised(nn.Module):
  """A network that must be told whether it trains."""

  @nn.compact
  def __call__(self, x, train):
    for features in (6, 5):
      x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(features)(x)))
    return nn.Dense(3)(x)


@pytest.mark.parametrize("name", ["bp", "fa", "dfa", "dense_fa"])
def test_a_network_is_begun_with_what_it_must_be_told(key, name):
  x, net, rule = jax.random.normal(key, (4, 8)), Regularised(), learning_rules.create(name)
  variables = rule.init(net, net.init(key, x, train=False), x, seed=2, train=False)

  def loss(params):
    given = {**variables, "params": params}
    return (rule.apply(net, given, x, train=True, rngs={"dropout": key}) ** 2).sum()

  assert all(np.any(x["kernel"]) for x in jax.grad(loss)(variables["params"]).values())
