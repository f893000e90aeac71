"""The layers of training against Flax's own, and the sums of their biases' gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax.nets import convolution, linear

CONV = {"kernel_size": (3, 3), "strides": 2, "padding": ((1, 1), (1, 0))}
# A layer, Flax's own, their fields, and the shape of an input.
LAYERS = {
  "conv": (linear.Conv, nn.Conv, CONV, (9, 9, 3)),
  "fast": (linear.Fast, nn.Conv, CONV, (9, 9, 3)),
  "dense": (linear.Dense, nn.Dense, {}, (7,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_flax_s_own_but_for_its_sums(name, key):
  ours, theirs, fields, shape = LAYERS[name]
  ours, theirs = (f(5, bias_init=nn.initializers.normal(1.0), **fields) for f in (ours, theirs))
  x = jax.random.normal(key, (2, *shape))
  params = theirs.init(key, x)
  jax.tree.map(np.testing.assert_array_equal, ours.init(key, x), params)

  def value_and_gradients(layer):
    return jax.vjp(lambda p, x: jnp.square(layer.apply(p, x)), params, x)

  (y, pull), (expected, their_pull) = map(value_and_gradients, (ours, theirs))
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    pull(jnp.ones_like(y)),
    their_pull(jnp.ones_like(y)),
  )


@pytest.mark.parametrize("places", [6, 7])
def test_a_bias_of_any_number_of_places_has_a_gradient(places):
  d = jnp.arange(3.0 * places).reshape(places, 3)
  gradient = jax.jit(jax.grad(lambda b: (linear.add_bias(jnp.zeros_like(d), b) * d).sum()))
  traced = gradient.trace(jnp.zeros(3))
  np.testing.assert_array_equal(traced.lower().compile()(jnp.zeros(3)), d.sum(0))
  traced.lower(lowering_platforms=("cuda",))


@pytest.mark.parametrize("name", LAYERS)
def test_errors_that_nearly_cancel_reach_the_bias_in_bfloat16(name, key):
  make, _, fields, shape = LAYERS[name]
  layer, x = make(4, dtype=jnp.bfloat16, **fields), jnp.zeros((1024, *shape), jnp.bfloat16)
  params = layer.init(key, x)
  d = 0.1 + 0.01 * jax.random.normal(key, layer.apply(params, x).shape)
  d = d.at[512:].multiply(-0.9).astype(jnp.bfloat16)
  gradient = jax.jit(jax.grad(lambda p: (layer.apply(p, x) * d).sum(dtype=jnp.float32)))(params)
  exact = np.asarray(d, np.float64).reshape(-1, 4).sum(0)
  np.testing.assert_allclose(gradient["params"]["bias"], exact, rtol=1e-3)


def test_a_gpu_s_sum_of_pairs_is_the_sum_in_its_type(key):
  d = jax.random.normal(key, (6, 5, 4, 3)).astype(jnp.bfloat16)
  found = linear.sum_of_pairs(d, jnp.float32)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, np.asarray(d, np.float64).sum((0, 1, 2)), rtol=1e-5, atol=1e-5)


def test_the_fast_layer_convolves_by_our_own_convolution(monkeypatch):
  seen = []
  monkeypatch.setattr(
    convolution, "convolve", lambda x, *rest: seen.append(x.shape) or convolution.direct(x, *rest)
  )
  for make, expected in ((linear.Conv, []), (linear.Fast, [(1, 9, 9, 3)])):
    layer = make(4, **CONV)
    jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 9, 9, 3)))
    assert seen == expected


@pytest.mark.parametrize(("side", "channels", "products"), [(3, 3, 2), (5, 3, 2), (3, 32, 0)])
def test_only_a_gpu_makes_a_product_of_an_images_convolution_and_its_bias(side, channels, products):
  layer, x = linear.Fast(32, **CONV | {"kernel_size": (side, side)}), jnp.zeros((2, 9, 9, channels))
  params = layer.init(jax.random.key(0), x)
  traced = jax.jit(jax.value_and_grad(lambda p: layer.apply(p, x).sum())).trace(params)
  for platform, expected in (("cuda", products), ("tpu", 0)):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.dot_general") == expected
    assert text.count("stablehlo.convolution") == 2 - expected
