"""Our convolution against JAX's own, and where it goes another way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax.nets import convolution, winograd

CASES = {
  "padded": ((6, 8, 8, 3), (3, 3, 3, 32), (1, 1), ((1, 1), (1, 1))),
  "strided": ((6, 9, 8, 3), (3, 3, 3, 32), (2, 2), ((1, 1), (0, 1))),
  "unpadded": ((7, 8, 6, 2), (2, 3, 2, 32), (1, 1), ((0, 0), (0, 0))),
  "pointwise": ((5, 4, 4, 8), (1, 1, 8, 10), (1, 1), ((0, 0), (0, 0))),
  "pointwise, wide": ((3, 4, 4, 8), (1, 1, 8, 32), (1, 1), ((0, 0), (0, 0))),
  "pointwise, padded": ((3, 4, 4, 8), (1, 1, 8, 10), (1, 1), ((1, 0), (0, 0))),
  "of an image, 5x5": ((4, 8, 8, 1), (5, 5, 1, 32), (1, 1), ((2, 2), (2, 2))),
  "few features": ((4, 8, 8, 3), (5, 5, 3, 8), (1, 1), ((2, 2), (2, 2))),
  "pointwise, strided": ((5, 5, 6, 8), (1, 1, 8, 10), (2, 2), ((0, 0), (1, 0))),
  "stride beyond the window": ((4, 9, 9, 3), (2, 2, 3, 32), (3, 3), ((0, 0), (0, 0))),
  "many features": ((6, 8, 8, 32), (3, 3, 32, 40), (1, 1), ((1, 1), (1, 1))),
  "many features, odd": ((3, 11, 6, 33), (3, 3, 33, 32), (1, 1), ((2, 0), (0, 0))),
  "many features, strided": ((6, 9, 8, 32), (3, 3, 32, 32), (2, 2), ((1, 1), (0, 1))),
  "many features, 5x5, strided": ((2, 12, 12, 32), (5, 5, 32, 32), (2, 2), ((2, 2), (2, 2))),
  "many features, 2x2": ((4, 9, 9, 32), (2, 2, 32, 32), (1, 1), ((0, 0), (0, 0))),
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


def test_a_pixels_few_errors_are_added_up_in_float32(key):
  """The order of 10 terms in bfloat16 would show: they are of both signs, and nearly cancel."""
  _, kernel, *rest = CASES["pointwise"]
  kernel = jax.random.normal(key, kernel, jnp.bfloat16)
  d = jax.random.normal(jax.random.fold_in(key, 1), (5, 4, 4, 10), jnp.bfloat16)
  x = jnp.zeros((5, 4, 4, 8), jnp.float32)
  _, pull = jax.vjp(lambda x: convolution.direct(x, kernel.astype(x.dtype), *rest), x)
  (theirs,) = pull(d.astype(x.dtype))
  ours = convolution.input_gradient_of_pixels(d, kernel)
  assert ours.dtype == jnp.bfloat16
  np.testing.assert_allclose(ours.astype(x.dtype), theirs, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("case", ["padded", "strided", "of an image, 5x5", "few features"])
def test_a_gpu_s_product_is_the_same_sums_with_the_bias(case, shared, key):
  x, kernel, strides, padding = CASES[case]
  shapes = (x, kernel, kernel[-1:])
  given = [jax.random.normal(k, s) for k, s in zip(jax.random.split(key, 3), shapes)]

  def apart(x, kernel, bias):
    return convolution.direct(x, kernel, strides, padding) + bias[None, None, None]

  y, pull = jax.vjp(apart, *given)
  ours, our_pull = jax.vjp(
    lambda *given: convolution.product(*given, strides, padding, shared), *given
  )
  np.testing.assert_allclose(ours, y, atol=1e-4)
  d = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
  for mine, theirs in zip(our_pull(d), pull(d)):
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-3)


def test_the_product_keeps_the_types_of_what_it_is_given_and_sums_errors_in_float32(key):
  x, kernel, strides, padding = CASES["padded"]
  x, kernel = (jax.random.normal(key, s, jnp.bfloat16) for s in (x, kernel))
  bias = jnp.zeros(kernel.shape[-1])
  y, pull = jax.vjp(lambda *given: convolution.product(*given, strides, padding), x, kernel, bias)
  d = jnp.ones_like(y).at[::2].set(-1).at[0, 0, 0].set(1)  # nearly cancels; exact in bfloat16
  gradients = pull(d)
  assert [a.dtype for a in (y, *gradients)] == [jnp.bfloat16] * 3 + [jnp.float32]
  np.testing.assert_array_equal(gradients[2], np.asarray(d, np.float64).sum((0, 1, 2)))


@pytest.mark.parametrize("cache", [1, 1 << 30])
@pytest.mark.parametrize("case", ["many features", "padded"])
def test_how_many_images_are_taken_at_a_time_does_not_matter(case, cache, key, monkeypatch):
  usual = _gradients(convolution.convolve, case, key)
  for module in (winograd, convolution):
    monkeypatch.setattr(module, "_CACHE", cache)
  for ours, theirs in zip(_gradients(convolution.convolve, case, key), usual):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("m", "r"), [(2, 2), (2, 3), (4, 3), (3, 1), (2, 5)])
def test_minimal_filters_are_correlations(m, r):
  random = np.random.default_rng(0)
  x, g = random.normal(size=m + r - 1), random.normal(size=r)
  bt, to_g, at = winograd.minimal(m, r)
  np.testing.assert_allclose(at @ ((to_g @ g) * (bt @ x)), np.correlate(x, g, "valid"), rtol=1e-9)


def test_tiles_are_as_large_as_the_map_lets_them_be():
  assert winograd._tile((32, 32), 3, 1) == 4
  assert winograd._tile((6, 6), 3, 1) == 3
  assert winograd._tile((2, 2), 3, 1) == 2
  assert winograd._tile((32, 32), 5, 1) == 2


@pytest.mark.parametrize(
  ("case", "other"),
  [("many features", True), ("padded", True), ("pointwise", True), ("few features", False)],
)
def test_only_a_cpu_goes_through_a_batch_in_parts_and_only_where_it_is_faster(case, other):
  *shapes, strides, padding = CASES[case]

  def total(x, kernel):
    return convolution.convolve(x, kernel, strides, padding).sum()

  traced = jax.jit(jax.grad(total, (0, 1))).trace(*map(jnp.zeros, shapes))
  for platform in ("cpu", "tpu", "cuda"):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.while" in text) == (other and platform == "cpu")


@pytest.mark.parametrize(
  ("case", "other"),
  [
    ("pointwise", True),
    ("pointwise, strided", False),
    ("pointwise, wide", False),
    ("pointwise, padded", False),
    ("few features", False),
  ],
)
def test_only_a_gpu_adds_up_the_errors_of_a_pixel(case, other):
  *shapes, strides, padding = CASES[case]

  def total(x, kernel):
    return convolution.convolve(x, kernel, strides, padding).sum()

  traced = jax.jit(jax.grad(total)).trace(*map(jnp.zeros, shapes))
  for platform in ("tpu", "cuda"):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # `total` needs no output and so no convolution forward.
    assert ("stablehlo.convolution" in text) != (other and platform == "cuda")
