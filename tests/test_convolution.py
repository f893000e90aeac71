"""The training convolution against JAX's own, and where its products are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax.nets import convolution, model

CASES = {
  "padded": ((6, 8, 8, 3), (3, 3, 3, 32), (1, 1), ((1, 1), (1, 1))),
  "strided": ((6, 9, 8, 4), (3, 3, 4, 32), (2, 2), ((1, 1), (0, 1))),
  "unpadded": ((7, 8, 6, 2), (2, 3, 2, 24), (1, 1), ((0, 0), (0, 0))),
  "pointwise": ((5, 4, 4, 8), (1, 1, 8, 10), (1, 1), ((0, 0), (0, 0))),
  "few features": ((4, 8, 8, 3), (5, 5, 3, 8), (1, 1), ((2, 2), (2, 2))),
  "stride beyond the window": ((4, 9, 9, 3), (2, 2, 3, 16), (3, 3), ((0, 0), (0, 0))),
}


def _gradients(conv, case, key):
  x, kernel, strides, padding = CASES[case]
  x, kernel = (jax.random.normal(k, s) for k, s in zip(jax.random.split(key), (x, kernel)))
  y, pull = jax.vjp(lambda x, kernel: conv(x, kernel, strides, padding), x, kernel)
  return y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


@pytest.mark.parametrize("case", CASES)
def test_it_is_jaxs_convolution_and_so_are_its_gradients(case, key):
  def plain(x, kernel, strides, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)

  for ours, theirs in zip(
    _gradients(convolution.convolve, case, key), _gradients(plain, case, key)
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("cache", [1, 1 << 30])
def test_how_many_images_are_taken_at_a_time_does_not_matter(cache, key, monkeypatch):
  usual = _gradients(convolution.convolve, "padded", key)
  monkeypatch.setattr(convolution, "_CACHE", cache)
  for ours, theirs in zip(_gradients(convolution.convolve, "padded", key), usual):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_patch_is_what_an_output_sees(key):
  x, kernel, strides, padding = CASES["strided"]
  x, kernel = jax.random.normal(key, x), jax.random.normal(key, kernel)
  seen = convolution.patches(x, kernel.shape[:2], strides, padding)
  ours = seen @ kernel.reshape(-1, kernel.shape[3])
  theirs = convolution.convolve(x, kernel, strides, padding)
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


def _program(platform, key):
  net = model.create("all_cnn_c", 10, width=0.25).clone(conv=convolution.Conv)
  images = jnp.zeros((4, 32, 32, 3))
  variables = net.init(key, images)
  step = jax.jit(jax.grad(lambda v: net.apply(v, images).sum()))
  return step.trace(variables).lower(lowering_platforms=(platform,)).as_text()


def test_only_a_cpu_sums_products(key):
  assert "stablehlo.while" in _program("cpu", key)
  for platform in ("tpu", "cuda"):
    assert "stablehlo.while" not in _program(platform, key)
