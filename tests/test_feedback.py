"""Layers whose way back is a matrix of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax.errors import UsageError
from allcnn_jax.nets import feedback, model

LAYERS = {
  "padded": (nn.Conv, feedback.Conv, {"features": 4, "kernel_size": (3, 3), "padding": 1}),
  "unpadded": (nn.Conv, feedback.Conv, {"features": 4, "kernel_size": (3, 2), "padding": "VALID"}),
  "strided": (
    nn.Conv,
    feedback.Conv,
    {"features": 4, "kernel_size": (3, 3), "strides": 2, "padding": [(0, 1), (1, 1)]},
  ),
  "grouped": (
    nn.Conv,
    feedback.Conv,
    {"features": 4, "kernel_size": (3, 3), "feature_group_count": 2},
  ),
  "dilated": (
    nn.Conv,
    feedback.Conv,
    {"features": 4, "kernel_size": (3, 3), "kernel_dilation": 2, "use_bias": False},
  ),
  "circular": (
    nn.Conv,
    feedback.Conv,
    {"features": 4, "kernel_size": (3, 3), "padding": "CIRCULAR"},
  ),
  "dense": (nn.Dense, feedback.Dense, {"features": 5}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_b_equal_to_w_is_the_ordinary_one(key, name):
  ordinary, ours, fields = LAYERS[name]
  x = jax.random.normal(key, (3, 6, 6, 2))
  variables = ours(**fields).init(jax.random.key(1), x)
  kernel = variables["params"]["kernel"]
  assert variables["feedback"]["kernel"].shape == kernel.shape
  given = {**variables, "feedback": {"kernel": kernel}}

  def pull(layer, variables):
    y, back = jax.vjp(lambda p, x: layer.apply({**variables, "params": p}, x), given["params"], x)
    return y, back(jax.random.normal(jax.random.key(2), y.shape))

  expected = pull(ordinary(**fields), {})
  jax.tree.map(np.testing.assert_array_equal, pull(ours(**fields), given), expected)
  # With another B the forward pass and the parameters' gradient stay, what is passed on does not.
  y, (params, passed_on) = pull(ours(**fields), variables)
  jax.tree.map(np.testing.assert_array_equal, (y, params), (expected[0], expected[1][0]))
  assert not np.allclose(passed_on, expected[1][1])


def test_what_is_passed_on_is_the_error_times_b_by_hand():
  x, b = jnp.ones((1, 2)), jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
  variables = {"params": {"kernel": jnp.zeros((2, 3))}, "feedback": {"kernel": b}}
  layer = feedback.Dense(3, use_bias=False)
  _, back = jax.vjp(lambda x: layer.apply(variables, x), x)
  np.testing.assert_array_equal(back(jnp.array([[1.0, 0.0, -1.0]]))[0], [[-2.0, -2.0]])


def test_feedback_weights_get_no_gradient(key):
  layer = feedback.Dense(3)
  x = jax.random.normal(key, (2, 4))
  slope = jax.grad(lambda v: layer.apply(v, x).sum())(layer.init(key, x))
  assert not np.any(slope["feedback"]["kernel"])
  assert np.any(slope["params"]["kernel"])


def test_a_net_of_ours_takes_the_layers_and_keeps_its_names(key):
  net = model.create("fa_mnist", 10, width=0.05)
  x = jax.random.normal(key, (2, 28, 28, 1))
  own = net.clone(conv=feedback.Conv, dense=feedback.Dense)
  variables = jax.jit(own.init)(key, x)
  names = jax.eval_shape(net.init, key, x)["params"].keys()
  assert variables["feedback"].keys() == variables["params"].keys() == names
  np.testing.assert_array_equal(own.apply(variables, x), net.apply(variables, x))


def test_under_jit_the_way_back_costs_no_second_forward_pass(key):
  net = model.create("all_cnn_a", 10, width=0.05)
  x = jax.random.normal(key, (2, 32, 32, 3))
  variables = jax.jit(net.init)(key, x)
  variables["feedback"] = {k: {"kernel": v["kernel"]} for k, v in variables["params"].items()}

  def convolutions(way):
    def loss(params):
      with feedback.under(way):
        return net.apply({**variables, "params": params}, x).sum()

    return (
      jax.jit(jax.grad(loss)).lower(variables["params"]).compile().as_text().count("convolution(")
    )

  assert convolutions(feedback.through_b) == convolutions(feedback.backpropagation) > 5


def test_drawn_weights_have_the_variance_asked_for(key):
  drawn = feedback.draw(key, (3, 3, 64, 96), n_out=9 * 96, n_in=9 * 64)
  np.testing.assert_allclose(drawn.var() * 9 * 96, 1, rtol=0.02)
  np.testing.assert_allclose(
    feedback.draw(key, (500, 400), 400, 500, "fan_in").var() * 500, 1, rtol=0.02
  )
  np.testing.assert_allclose(
    feedback.draw(key, (500, 400), 400, 500, "gaussian_0.05").std(), 0.05, rtol=0.02
  )
  # A layer of its own draws 1 / n_out too.
  own = feedback.Conv(96, (3, 3)).init(key, jnp.zeros((1, 4, 4, 64)))["feedback"]["kernel"]
  np.testing.assert_allclose(own.var() * 9 * 96, 1, rtol=0.02)


def test_noise_has_the_variance_of_the_signal_and_is_not_passed_on(key):
  d = 3 * jax.random.normal(key, (100, 200))
  _, back = jax.vjp(lambda a, b: feedback.split(a, b, jax.random.key(1)), d, d)
  own, onward = back(d)
  np.testing.assert_array_equal(onward, d)
  noise = np.asarray(own - d)
  np.testing.assert_allclose(noise.std(), 3, rtol=0.03)
  assert abs(np.corrcoef(noise.ravel(), np.ravel(d))[0, 1]) < 0.03


def test_layers_are_found_in_the_order_of_the_forward_pass(key):
  net = model.create("fa_mnist", 10)
  images = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
  found = feedback.layers(net, jax.eval_shape(net.init, key, images), images)
  assert [x.path for x in found] == [("conv1",), ("conv2",), ("dense1",), ("dense2",)]
  assert found[1] == (("conv2",), (5, 5, 32, 64), (14, 14, 32), (14, 14, 64), 25 * 64, 25 * 32)
  assert found[2] == (("dense1",), (3136, 1024), (3136,), (1024,), 1024, 3136)


class Foreign(nn.Module):
  """Somebody's network: layers from `setup`, a branch, normalisation, a layer used twice."""

  last: type[nn.Module] = nn.Dense

  def setup(self):
    self.stem = nn.Conv(6, (3, 3), strides=2)
    self.body = nn.Conv(6, (3, 3))
    self.norm = nn.BatchNorm(use_running_average=True)
    self.head = self.last(4)

  def __call__(self, x):
    x = nn.relu(self.stem(x))
    for _ in range(2):
      x = x + nn.relu(self.norm(self.body(inputs=x)))
    return self.head(x.mean(axis=(1, 2)))


def test_a_foreign_network_under_b_equal_to_w_is_itself(key):
  net, x = Foreign(), jax.random.normal(key, (3, 8, 8, 3))
  variables = jax.jit(net.init)(key, x)
  kernels = {k: v["kernel"] for k, v in variables["params"].items() if "kernel" in v}

  def slopes(scale):
    given = {**variables, "feedback": {k: {"kernel": scale * w} for k, w in kernels.items()}}

    def loss(params, x):
      with feedback.under(feedback.through_b):
        return jnp.square(net.apply({**given, "params": params}, x)).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables["params"], x)

  def plain(params, x):
    return jnp.square(net.apply({**variables, "params": params}, x)).sum()

  expected = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(variables["params"], x)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), slopes(1.0), expected
  )
  assert not np.allclose(slopes(2.0)[1][1], expected[1][1])


def test_a_layer_of_another_kind_is_refused_by_name(key):
  net, x = Foreign(last=nn.DenseGeneral), jnp.ones((1, 8, 8, 3))
  with pytest.raises(UsageError, match=r"head' is of type DenseGeneral.*nn\.Conv and nn\.Dense"):
    feedback.layers(net, net.init(key, x), x)


def test_a_layer_without_feedback_weights_is_named(key):
  net, x = model.create("fa_mnist", 10, width=0.1), jnp.ones((1, 28, 28, 1))
  variables = jax.jit(net.init)(key, x)
  with (
    feedback.under(feedback.through_b),
    pytest.raises(UsageError, match="conv1' has no feedback"),
  ):
    net.apply(variables, x)


def test_an_unknown_initializer_is_refused(key):
  with pytest.raises(UsageError, match="Did you mean 'fan_out'"):
    feedback.draw(key, (2, 2), 2, 2, "fan_ou")


def test_a_depthwise_layer_s_inputs_go_into_its_own_outputs_alone(key):
  """As a pool of weights has it: 2 x 2 of its channel, whatever the number of channels."""
  net = nn.Conv(6, (2, 2), strides=(2, 2), feature_group_count=6)
  x = jnp.ones((1, 8, 8, 6))
  (layer,) = feedback.layers(net, net.init(key, x), x)
  assert (layer.n_out, layer.n_in) == (4, 4)
