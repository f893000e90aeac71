"""The masks of dropout: their chance, that values are independent, and what the layer does with them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax.nets.dropout import Dropout, keep

SHAPE = (70, 8, 9, 4)  # no whole number of words


@pytest.mark.parametrize("rate", [0.5, 0.25, 0.75, 0.125, 0.2, 0.3, 0.01])
def test_a_value_is_dropped_with_the_chance_of_the_rate_wherever_it_stands(rate, key):
  masks = np.stack([keep(k, SHAPE, rate) for k in jax.random.split(key, 50)])
  for axes in (None, (0, 2, 3, 4)):  # all together, and each image for itself
    n = masks.size // (1 if axes is None else SHAPE[0])
    deviation = np.sqrt(rate * (1 - rate) / n)
    assert np.abs(1 - masks.mean(axis=axes) - rate).max() < 5 * deviation


@pytest.mark.parametrize("rate", [0.5, 0.25, 0.2])
def test_values_are_independent_of_those_that_share_their_word(rate, key):
  masks = np.stack([keep(k, (64, 16), rate) for k in jax.random.split(key, 400)])
  values = masks.reshape(-1, 64, 16).transpose(0, 2, 1).reshape(-1, 64).astype(float)
  correlation = np.corrcoef(values, rowvar=False) - np.eye(64)
  assert np.abs(correlation).max() < 5 / np.sqrt(len(values))


def test_what_stays_is_divided_by_its_share_and_keeps_its_type(key):
  x = jnp.full(SHAPE, 3, jnp.bfloat16)
  y = Dropout(0.25, deterministic=False).apply({}, x, rngs={"dropout": key})
  assert y.dtype == x.dtype
  assert set(np.unique(np.asarray(y, np.float32))) == {0.0, 4.0}


def test_elsewhere_than_on_a_gpu_it_is_flax_s_own_and_there_it_draws_fewer_words(key):
  x = jax.random.normal(key, (64, 8, 8, 4))
  ours, theirs = (make(0.5, deterministic=False) for make in (Dropout, nn.Dropout))
  np.testing.assert_array_equal(*(m.apply({}, x, rngs={"dropout": key}) for m in (ours, theirs)))
  traced = jax.jit(lambda x, key: ours.apply({}, x, rngs={"dropout": key})).trace(x, key)
  for platform, words in (("cpu", x.shape), ("tpu", x.shape), ("cuda", (2, 8, 8, 4))):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "x".join(map(str, words)) + "xui32" in text
    assert ("64x8x8x4xui32" in text) == (platform != "cuda")


def test_it_has_a_derivative_and_can_be_turned_off(key):
  x = jax.random.normal(key, SHAPE)
  on, off = (Dropout(0.5, deterministic=off) for off in (False, True))
  y, pull = jax.vjp(lambda x: on.apply({}, x, rngs={"dropout": key}), x)
  np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], 2.0 * (y != 0))
  np.testing.assert_array_equal(off.apply({}, x), x)
  np.testing.assert_array_equal(Dropout(0.0, deterministic=False).apply({}, x), x)


def test_few_random_bits_are_drawn():
  """As a uniform float each value would take 32."""
  for rate, bits in ((0.5, 1), (0.25, 2), (0.2, 16)):
    traced = jax.make_jaxpr(lambda key, rate=rate: keep(key, (64, 8), rate))(jax.random.key(0))
    words = [e.outvars[0].aval.size for e in traced.eqns if e.primitive.name == "random_bits"]
    assert words == [64 * 8 * bits // 32]
