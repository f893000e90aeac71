"""The three ways back through one ReLU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax.errors import UsageError
from allcnn_jax.nets import relu

# Springenberg et al. 2015, Fig. 1b: what goes in, what comes back, and what is passed on.
FORWARD = [[1, -1, 5], [2, -5, -7], [-3, 2, 4]]
SIGNAL = [[-2, 3, -1], [6, -3, 1], [2, -1, 3]]
PASSED_ON = {
  "backprop": [[-2, 0, -1], [6, 0, 0], [0, -1, 3]],
  "deconvnet": [[0, 3, 0], [6, 0, 1], [2, 0, 3]],
  "guided": [[0, 0, 0], [6, 0, 0], [0, 0, 3]],
}


def back(x, r, rule, leak=0.0):
  _, pull = jax.vjp(lambda x: relu.relu(x, rule, leak), jnp.asarray(x, jnp.float32))
  return np.asarray(pull(jnp.asarray(r, jnp.float32))[0])


@pytest.mark.parametrize("rule", relu.RULES)
def test_figure_1_of_the_paper(rule):
  np.testing.assert_array_equal(back(FORWARD, SIGNAL, rule), PASSED_ON[rule])


def test_leaky_slopes_by_hand():
  x, r = [2.0, 2.0, -2.0, -2.0], [1.0, -1.0, 1.0, -1.0]
  np.testing.assert_allclose(back(x, r, "backprop", 0.5), [1, -1, 0.5, -0.5])
  np.testing.assert_allclose(back(x, r, "deconvnet", 0.5), [1, -0.5, 1, -0.5])
  np.testing.assert_allclose(back(x, r, "guided", 0.5), [1, -0.5, 0.5, -0.25])


@pytest.mark.parametrize("leak", [0.0, 0.3])
@pytest.mark.parametrize("rule", relu.RULES)
def test_forward_is_the_ordinary_function_under_every_rule(key, rule, leak):
  x = jax.random.normal(key, (50,))
  np.testing.assert_array_equal(relu.relu(x, rule, leak), jnp.where(x > 0, x, leak * x))


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_backprop_is_jax_s_derivative_also_at_zero(key, leak):
  x = jax.random.normal(key, (50,)).at[:5].set(0.0)
  r = jax.random.normal(jax.random.key(1), (50,))
  ordinary = jax.nn.relu if leak == 0 else lambda x: jax.nn.leaky_relu(x, leak)
  np.testing.assert_allclose(back(x, r, "backprop", leak), jax.vjp(ordinary, x)[1](r)[0])
  np.testing.assert_allclose(
    jax.vjp(lambda x: relu.rectify(x, leak), x)[1](r), jax.vjp(ordinary, x)[1](r)
  )


def test_guided_is_zero_where_either_of_the_others_is(key):
  x, r = jax.random.normal(key, (2, 500))
  zero = {rule: back(x, r, rule) == 0 for rule in relu.RULES}
  np.testing.assert_array_equal(zero["guided"], zero["backprop"] | zero["deconvnet"])
  assert not zero["guided"].all()


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_what_is_kept_for_the_way_back_is_a_mask_or_nothing(leak):
  def kept(rule):
    _, pull = jax.vjp(lambda x: relu.relu(x, rule, leak), jnp.ones(7))
    return [(x.dtype, x.shape) for x in jax.tree.leaves(pull)]

  assert kept("deconvnet") == []
  assert kept("backprop") == kept("guided") == [(jnp.bool_, (7,))]


def test_under_finds_the_slope_of_a_net_s_activation():
  def act(x):
    return jax.nn.leaky_relu(x, 0.25)

  def slopes(act):
    return jax.grad(lambda x: relu.under(act, "backprop")(x).sum())(jnp.array([-1.0, 1.0])).tolist()

  assert slopes(act) == [0.25, 1.0]
  assert slopes(jax.nn.relu) == [0.0, 1.0]


def test_wrong_use_is_one_line():
  with pytest.raises(UsageError, match=r"Unknown ReLU rule 'guide'.*'guided'"):
    relu.relu(jnp.ones(2), "guide")
  with pytest.raises(UsageError, match="no ReLU"):
    relu.under(jnp.tanh, "guided")
  with pytest.raises(UsageError, match="is no ReLU"):
    relu.under(jnp.abs, "guided")
  with pytest.raises(UsageError, match="is no ReLU"):
    relu.under(jax.nn.relu6, "guided")
