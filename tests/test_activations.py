"""ReLUs are recognised in every spelling, and nothing else is taken for one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from allcnn_jax.nets import activations

X = jnp.linspace(-2.0, 2.0, 12).reshape(3, 4)


def findings(fn, *args):
  """(ReLUs as slopes, other activations) among the outermost equations of fn's jaxpr."""
  closed = jax.make_jaxpr(fn)(*(args or (X,)))
  scope = activations.Scope(closed.jaxpr, dict(zip(closed.jaxpr.constvars, closed.consts)))
  relus = [activations.as_relu(eqn, scope) for eqn in closed.eqns]
  others = [
    activations.as_other(eqn, scope) for eqn, relu in zip(closed.eqns, relus) if relu is None
  ]
  return [leak for _, leak in filter(None, relus)], [name for name in others if name]


ZEROS = jnp.zeros((3, 4))
RELUS = {
  "jax.nn.relu": (jax.nn.relu, 0.0),
  "flax": (nn.relu, 0.0),
  "jit": (jax.jit(jax.nn.relu), 0.0),
  "vmap": (jax.vmap(jax.nn.relu), 0.0),
  "maximum": (lambda x: jnp.maximum(x, 0), 0.0),
  "maximum, turned": (lambda x: jnp.maximum(0.0, x), 0.0),
  "maximum with zeros": (lambda x: jax.lax.max(x, jnp.zeros_like(x)), 0.0),
  "maximum with a constant": (lambda x: jax.lax.max(x, ZEROS), 0.0),
  "clip": (lambda x: jnp.clip(x, 0), 0.0),
  "where": (lambda x: jnp.where(x > 0, x, 0), 0.0),
  "where, turned": (lambda x: jnp.where(x <= 0, 0, x), 0.0),
  "where, zero first": (lambda x: jnp.where(jnp.less(0, x), x, 0.0), 0.0),
  "leaky_relu": (jax.nn.leaky_relu, 0.01),
  "leaky_relu with its slope": (lambda x: jax.nn.leaky_relu(x, 0.25), 0.25),
  "leaky where": (lambda x: jnp.where(x >= 0, x, 0.25 * x), 0.25),
  "leaky maximum": (lambda x: jnp.maximum(x, 0.25 * x), 0.25),
}


@pytest.mark.parametrize("spelling", RELUS)
def test_every_spelling_of_a_relu(spelling):
  fn, leak = RELUS[spelling]
  relus, others = findings(fn)
  assert relus == [pytest.approx(leak)]
  assert others == []


NAMES = (
  *("celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "log_sigmoid", "mish"),
  *("relu6", "selu", "silu", "soft_sign", "softplus", "sparse_plus", "squareplus"),
)


@pytest.mark.parametrize("name", NAMES)
def test_activations_that_are_no_relu_are_named(name):
  relus, others = findings(getattr(jax.nn, name))
  assert (relus, others) == ([], [name])


@pytest.mark.parametrize(
  ("fn", "name"),
  [
    (jnp.tanh, "tanh"),
    (jnp.arcsinh, "asinh"),
    (jax.nn.sigmoid, "logistic"),
    (lambda x: jax.nn.gelu(x, approximate=False), "gelu"),
    (lambda x: jnp.logaddexp(x, 0), "softplus"),
    (lambda x: jnp.maximum(x, -1), "max with -1"),
    (lambda x: jnp.maximum(x, x[::-1]), "max of two arrays"),
    (lambda x: jnp.where(x > 0, x, jnp.expm1(x)), "a choice by the sign of its input"),
    (lambda x: jnp.where(x > 1, 1, x), "a choice by the sign of its input"),
  ],
)
def test_other_spellings_are_named_too(fn, name):
  assert findings(fn) == ([], [name])


@pytest.mark.parametrize("norm", [nn.LayerNorm(), nn.GroupNorm(num_groups=2)])
def test_the_variance_of_a_normalisation_is_no_relu(key, norm):
  # Flax computes max(0, E[x^2] - E[x]^2): guided there would bend the gradient of a linear net.
  assert findings(norm.apply, norm.init(key, X), X) == ([], [])


@pytest.mark.parametrize(
  "fn",
  [
    jax.nn.softmax,
    jax.nn.log_softmax,
    jax.nn.logsumexp,
    lambda x: x / jnp.maximum(jnp.linalg.norm(x), 1e-6),
    lambda x: x / jnp.where(x > 0, x, 1.0),
    lambda x: x[jnp.maximum(jnp.arange(3) - 1, 0)],
    lambda x: jnp.maximum(x.astype(jnp.int32), 0),
  ],
)
def test_what_bends_nothing_is_not_reported(fn):
  assert findings(fn) == ([], [])


def test_a_slope_that_is_learned_is_no_constant(key):
  prelu = nn.PReLU()
  variables = prelu.init(key, X)
  assert findings(prelu.apply, variables, X) == ([], ["a choice by the sign of its input"])
