"""Foreign functions: every ReLU in them takes the rule, and what does not is said."""

import functools
import warnings
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures, model, relu, rewrite

X = jax.random.normal(jax.random.key(3), (4, 3))
R = jax.random.normal(jax.random.key(4), (4, 3))


def guided(x):
  return relu.relu(x, "guided")


def pull(fn, x=X, r=R):
  return jax.vjp(fn, x)[1](r)[0]


@jax.custom_jvp
def clipped(x):
  return 2 * jnp.maximum(x, 0)


clipped.defjvp(lambda primals, tangents: (clipped(*primals), tangents[0]))


@jax.custom_jvp
def straight_through(x):
  return jnp.maximum(x, 0)


straight_through.defjvp(lambda primals, tangents: (straight_through(*primals), tangents[0]))


@jax.custom_vjp
def sealed(x):
  return jax.nn.relu(x)


sealed.defvjp(lambda x: (sealed(x), None), lambda _, r: (r,))


CONTAINERS = {
  "jit": lambda act: jax.jit(act),
  "jit in jit": lambda act: jax.jit(lambda x: jax.jit(act)(x) * 2),
  "scan": lambda act: lambda x: lax.scan(lambda c, w: (act(c * w), c), x, jnp.array([1.0, 2.0]))[0],
  "remat": lambda act: jax.checkpoint(act),
  "cond": lambda act: lambda x: lax.cond(x[0, 0] > -9, act, lambda x: x, x),
  "fori": lambda act: lambda x: lax.fori_loop(0, 2, lambda i, c: act(c - 0.1), x),
  "vmap": lambda act: jax.vmap(lambda x: act(x) + 1),
  "map": lambda act: lambda x: lax.map(act, x),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_relus_inside_every_container_take_the_rule(container):
  make = CONTAINERS[container]
  ruled = rewrite.with_relu_rule(make(jax.nn.relu), "guided")
  np.testing.assert_allclose(ruled(X), make(jax.nn.relu)(X))
  np.testing.assert_allclose(pull(ruled), pull(make(guided)), rtol=1e-6)
  np.testing.assert_allclose(pull(jax.jit(ruled)), pull(make(guided)), rtol=1e-6)
  assert not np.allclose(pull(ruled), pull(make(jax.nn.relu)))


def test_zeros_that_come_from_outside_a_loop_are_seen_in_it():
  def fn(x):
    zeros = jnp.zeros_like(x)
    return lax.scan(lambda c, _: (lax.max(c, zeros), None), x, None, length=1)[0]

  np.testing.assert_array_equal(pull(rewrite.with_relu_rule(fn, "guided")), pull(guided))


def test_zeros_that_come_from_outside_a_branch_are_seen_in_it():
  def fn(x):
    zeros = jnp.zeros_like(x)
    return lax.cond(x.sum() > -1e9, lambda x: lax.max(x, zeros), lambda x: x, x)

  np.testing.assert_array_equal(pull(rewrite.with_relu_rule(fn, "guided")), pull(guided))


LARGEST_SO_FAR = {
  "scan": lambda x: lax.scan(lambda c, v: (jnp.maximum(c, v), None), jnp.zeros_like(x[0]), x)[0],
  "while": lambda x: lax.while_loop(
    lambda c: c[1] < len(x),
    lambda c: (jnp.maximum(c[0], x[c[1]]), c[1] + 1),
    (jnp.zeros_like(x[0]), 0),
  )[0],
}


@pytest.mark.parametrize("loop", LARGEST_SO_FAR)
def test_zeros_that_a_loop_only_begins_with_make_no_relu(loop):
  fn = LARGEST_SO_FAR[loop]
  with pytest.warns(UserWarning, match="max of two arrays"):
    found = rewrite.with_relu_rule(fn, "guided")(X)
  np.testing.assert_array_equal(found, fn(X))


def test_while_runs_forward():
  def fn(x):
    return lax.while_loop(lambda c: c.sum() > 5, lambda c: jax.nn.relu(c) / 2, x + 3)

  np.testing.assert_allclose(rewrite.with_relu_rule(fn, "guided")(X), fn(X))


@pytest.mark.parametrize("leak", [0.01, 0.4])
@pytest.mark.parametrize("rule", relu.RULES)
def test_leaky_relus_keep_their_slope(rule, leak):
  ruled = rewrite.with_relu_rule(lambda x: jax.nn.leaky_relu(x, leak), rule)
  expected = pull(lambda x: relu.relu(x, rule, leak))
  np.testing.assert_allclose(pull(ruled), expected, rtol=1e-6)


@pytest.mark.parametrize(
  "spelt",
  [
    lambda x: jnp.maximum(x, 0),
    lambda x: jnp.clip(x, 0),
    lambda x: jnp.where(x > 0, x, 0),
    lambda x: jnp.where(x <= 0, 0, x),
    lambda x: x * (x > 0),
    lambda x: (x > 0) * x,
  ],
)
def test_a_relu_is_known_in_many_spellings(spelt):
  np.testing.assert_array_equal(pull(rewrite.with_relu_rule(spelt, "guided")), pull(guided))


@pytest.mark.parametrize(
  "other",
  [lambda x: jnp.where(x > 0, x, -x), lambda x: jax.nn.leaky_relu(x, -0.5)],
)
def test_what_falls_below_zero_is_no_relu_and_keeps_its_derivative(other):
  with pytest.warns(UserWarning, match="a choice by the sign"):
    result = pull(rewrite.with_relu_rule(lambda x: other(jax.nn.relu(x) - 1), "backprop"))
  np.testing.assert_allclose(result, pull(lambda x: other(jax.nn.relu(x) - 1)))


def test_a_custom_jvp_that_is_a_relu_is_a_relu():
  np.testing.assert_array_equal(
    pull(rewrite.with_relu_rule(straight_through, "guided")), pull(guided)
  )


def test_a_custom_jvp_around_a_relu_goes_back_through_its_body_and_says_so():
  ruled = rewrite.with_relu_rule(clipped, "guided")
  with pytest.warns(UserWarning, match="the derivative that clipped gives itself"):
    result = pull(ruled)
  np.testing.assert_allclose(result, pull(lambda x: 2 * guided(x)))


def test_a_relu_inside_a_custom_vjp_is_reported_and_left():
  ruled = rewrite.with_relu_rule(lambda x: sealed(jax.nn.relu(x)), "guided")
  with pytest.warns(UserWarning, match="a ReLU inside custom_vjp_call sealed"):
    result = pull(ruled)
  np.testing.assert_array_equal(result, pull(guided))


def test_other_activations_are_reported_with_their_place_wherever_they_are():
  def fn(x):
    return lax.scan(lambda c, _: (jnp.tanh(jax.nn.relu(c)), None), x, None, length=2)[0]

  with pytest.warns(UserWarning, match=r"'guided', which is for ReLUs: tanh at .*test_rewrite"):
    rewrite.with_relu_rule(fn, "guided")(X)
  with pytest.raises(UsageError, match="tanh"):
    rewrite.with_relu_rule(fn, "guided", strict=True)(X)


def test_what_is_found_again_at_the_same_place_is_counted():
  def fn(x):
    return sum(f(x) for f in (jax.nn.softplus, jax.nn.softplus))

  with pytest.warns(UserWarning, match=r"softplus .*\(2 times\)"):
    rewrite.with_relu_rule(fn, "guided")(X)


def test_a_function_without_relus_is_reported():
  with pytest.warns(UserWarning, match="No ReLU found"):
    rewrite.with_relu_rule(lambda x: 2 * x, "guided")(X)
  with pytest.raises(UsageError, match="Unknown ReLU rule"):
    rewrite.with_relu_rule(jnp.sin, "gradient")


def test_arguments_and_results_keep_their_structure():
  def fn(inputs, *, double):
    y = jax.nn.relu(inputs["x"])
    return {"y": 2 * y if double else y, "n": (y.sum(),)}

  out = rewrite.with_relu_rule(fn, "guided")({"x": X}, double=True)
  np.testing.assert_allclose(out["y"], 2 * jax.nn.relu(X))
  assert out["n"][0].shape == ()


def test_gradients_reach_what_the_function_closes_over():
  def loss(w, act):
    fn = lambda x: act(x * w).sum()  # noqa: E731
    return (rewrite.with_relu_rule(fn, "backprop") if act is jax.nn.relu else fn)(X)

  plain = jax.grad(loss)(1.5, lambda x: relu.relu(x, "backprop"))
  np.testing.assert_allclose(jax.grad(loss)(1.5, jax.nn.relu), plain, rtol=1e-6)


class Block(nn.Module):
  """A residual block as Flax users write it."""

  features: int
  stride: int
  act: Callable

  @nn.compact
  def __call__(self, x):
    y = nn.Conv(self.features, (3, 3), self.stride, use_bias=False)(x)
    y = self.act(nn.BatchNorm(use_running_average=True)(y))
    y = nn.GroupNorm(num_groups=2)(nn.Conv(self.features, (3, 3), use_bias=False)(y))
    if x.shape != y.shape:
      x = nn.Conv(self.features, (1, 1), self.stride)(x)
    return self.act(x + y)


class ResNet(nn.Module):
  act: Callable = nn.relu

  @nn.compact
  def __call__(self, x):
    x = nn.max_pool(self.act(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
    x = nn.remat(Block)(4, 1, self.act)(x)
    x = Block(8, 2, self.act)(x)
    return nn.Dense(5)(x.mean(axis=(1, 2)))


class NnxBlock(nnx.Module):
  def __init__(self, inputs, features, stride, act, rngs):
    self.act = act
    self.conv1 = nnx.Conv(inputs, features, (3, 3), strides=stride, rngs=rngs)
    self.norm = nnx.BatchNorm(features, use_running_average=True, rngs=rngs)
    self.conv2 = nnx.Conv(features, features, (3, 3), rngs=rngs)
    self.layer_norm = nnx.LayerNorm(features, rngs=rngs)
    self.short = nnx.Conv(inputs, features, (1, 1), strides=stride, rngs=rngs)

  def __call__(self, x):
    y = self.act(self.norm(self.conv1(x)))
    return self.act(self.short(x) + self.layer_norm(self.conv2(y)))


class NnxResNet(nnx.Module):
  def __init__(self, act, rngs):
    self.act = act
    self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
    self.block1 = NnxBlock(4, 4, 1, act, rngs)
    self.block2 = NnxBlock(4, 8, 2, act, rngs)
    self.dense = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, x):
    x = nnx.max_pool(self.act(self.conv(x)), (2, 2), (2, 2))
    return self.dense(self.block2(self.block1(x)).mean(axis=(1, 2)))


@pytest.fixture
def images(key):
  return jax.random.normal(key, (2, 8, 8, 3))


def assert_same_gradient(foreign, ours, images):
  """d (class 3) / d images of a rewritten function and of one that was built with our ReLU."""
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    result = jax.jit(jax.grad(lambda x: foreign(x)[:, 3].sum()))(images)
  expected = jax.jit(jax.grad(lambda x: ours(x)[:, 3].sum()))(images)
  assert np.abs(expected).max() > 1e-4
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", relu.RULES)
def test_a_linen_resnet(key, images, rule):
  variables = jax.jit(ResNet().init)(key, images)
  foreign = rewrite.with_relu_rule(lambda x: ResNet().apply(variables, x), rule)
  ours = ResNet(act=lambda x: relu.relu(x, rule))
  assert_same_gradient(foreign, lambda x: ours.apply(variables, x), images)


@pytest.mark.parametrize("rule", relu.RULES)
def test_an_nnx_resnet(images, rule):
  foreign = rewrite.with_relu_rule(NnxResNet(nnx.relu, nnx.Rngs(0)), rule)
  assert_same_gradient(foreign, NnxResNet(lambda x: relu.relu(x, rule), nnx.Rngs(0)), images)


@pytest.mark.parametrize("leak", [0.0, 0.2])
def test_a_net_of_ours_rewritten_is_the_net_with_our_relu(key, images, leak):
  table = (
    architectures.Conv(3, 4, 2, (1, 1)),
    architectures.Pool("max", 3, 2, (0, 1)),
    architectures.Dense(6),
    architectures.Dense(5, relu=False),
  )
  net = model.ConvNet(table, act=functools.partial(jax.nn.leaky_relu, negative_slope=leak))
  variables = jax.jit(net.init)(key, images)
  ours = net.clone(act=relu.under(net.act, "guided"))
  foreign = rewrite.with_relu_rule(lambda x: net.apply(variables, x), "guided")
  assert_same_gradient(foreign, lambda x: ours.apply(variables, x), images)
