import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from allcnn_jax.nets import architectures
from allcnn_jax.nets.architectures import Pool
from allcnn_jax.nets.pooling import pool


@pytest.fixture
def x(key):
  return jax.random.normal(key, (2, 9, 9, 3))


def windows(x, layer):
  """Every window as NumPy slices it, zeros outside: (N, h, w, window * window, c)."""
  before, after = layer.padding
  x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
  k, s = layer.window, layer.stride
  size = (x.shape[1] - k) // s + 1
  cuts = [[x[:, i * s : i * s + k, j * s : j * s + k] for j in range(size)] for i in range(size)]
  return np.stack([np.stack(row, 1) for row in cuts], 1).reshape(len(x), size, size, k * k, -1)


@pytest.mark.parametrize("p", ["1", "2", "3.5", "7"])
@pytest.mark.parametrize("padding", [(0, 0), (0, 1)])
def test_p_norm_is_equation_1(x, p, padding):
  layer = Pool(p, 3, 2, padding)
  expected = (np.abs(windows(np.asarray(x), layer)) ** float(p)).sum(3) ** (1 / float(p))
  with jax.numpy_dtype_promotion("strict"):
    np.testing.assert_allclose(pool(x, layer), expected, rtol=1e-5)


def test_the_maximum_is_where_the_norms_lead(x):
  x = jnp.abs(x)
  layer = Pool("max", 3, 2, (0, 1))
  np.testing.assert_array_equal(pool(x, layer), windows(np.asarray(x), layer).max(3))
  np.testing.assert_allclose(pool(x, Pool("400", 3, 2, (0, 1))), pool(x, layer), rtol=1e-2)


@pytest.mark.parametrize(
  "layer", [Pool("max", 3, 2, (0, 1)), Pool("max", 2, 2, (0, 0)), Pool("max", 3, 1, (1, 1))]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_maximum_goes_back_as_in_xla(x, layer, dtype):
  """Of whole numbers, so that many are equal and sums are exact; to one image and to many at once."""
  x = jnp.round(x).astype(dtype)
  window, strides, padding = (layer.window,) * 2, (layer.stride,) * 2, (layer.padding,) * 2
  expected, pull = jax.vjp(lambda x: nn.max_pool(x, window, strides, padding), x)
  d = jnp.round(4 * jax.random.normal(jax.random.key(1), expected.shape)).astype(dtype)
  out, pull_ours = jax.vjp(lambda x: pool(x, layer), x)
  np.testing.assert_array_equal(out, expected)
  np.testing.assert_array_equal(pull_ours(d)[0], pull(d)[0])

  alone = jax.vmap(lambda x, d: jax.vjp(lambda x: pool(x[None], layer), x)[1](d[None])[0])(x, d)
  np.testing.assert_array_equal(alone, pull(d)[0])
  _, moved = jax.jvp(lambda x: pool(x, layer), (x,), (x,))
  np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("kind", ["max", "2", "average"])
def test_no_pool_hides_a_nan(x, kind):
  layer = Pool(kind, 3, 2, (0, 1))
  x = x.at[0, 4, 4, 0].set(jnp.nan)
  plain = pool(x, layer)
  assert jnp.isnan(plain).any()
  np.testing.assert_array_equal(jax.vjp(lambda x: pool(x, layer), x)[0], plain)


@pytest.mark.parametrize(("platform", "slow"), [("cpu", False), ("cuda", False), ("tpu", True)])
def test_only_a_tpu_goes_back_by_selecting_and_scattering(x, platform, slow):
  back = jax.jit(jax.grad(lambda x: pool(x, Pool("max", 3, 2, (0, 1))).sum()))
  program = back.trace(x).lower(lowering_platforms=(platform,)).as_text()
  assert ("select_and_scatter" in program) == slow


def test_a_norm_of_infinity_is_the_maximum():
  infinite, huge, largest, large = (
    architectures.resolve("model_c", 10, pool=p) for p in ("inf", "2e9", "max", "1e8")
  )
  assert infinite == huge == largest != large


def test_the_largest_norm_is_the_maximum_but_for_its_last_digit(x):
  norm, largest = (
    jax.jit(jax.value_and_grad(lambda x, p=p: pool(x, Pool(p, 3, 2, (0, 1))).sum()))(jnp.abs(x))
    for p in ("1e8", "max")
  )
  np.testing.assert_allclose(norm[0], largest[0], rtol=1e-6)
  assert jnp.isfinite(norm[1]).all()


def test_large_p_and_large_values_do_not_overflow(x):
  assert jnp.isfinite(pool(1e20 * x, Pool("50", 3, 2, (0, 0)))).all()


def test_the_gradient_is_the_norms(x):
  """Against differences of Eq. 1 in float64, at p = 3."""
  layer = Pool("3", 3, 2, (0, 1))

  def norm(v):
    return (np.abs(windows(v, layer)) ** 3).sum(3) ** (1 / 3)

  v = np.asarray(x, np.float64)
  direction = np.random.default_rng(0).normal(size=v.shape)
  expected = (norm(v + 1e-6 * direction) - norm(v - 1e-6 * direction)).sum() / 2e-6
  grad = jax.grad(lambda y: pool(y, layer).sum())(x)
  np.testing.assert_allclose(np.sum(np.asarray(grad) * direction), expected, rtol=1e-4)


@pytest.mark.parametrize("p", ["1", "1.5", "2", "9"])
def test_a_window_of_zeros_has_no_gradient(p):
  grad = jax.grad(lambda y: pool(y, Pool(p, 2, 2, (0, 0))).sum())(jnp.zeros((1, 4, 4, 1)))
  np.testing.assert_array_equal(grad, 0)


def test_average_pooling_is_a_convolution_with_a_constant_diagonal_kernel(x):
  """Springenberg et al. 2015, Section 2: theta_{h,w,u,o} = 1 / k^2 if u = o, else 0."""
  expected = jax.lax.conv_general_dilated(
    x,
    jnp.broadcast_to(jnp.eye(3).reshape(1, 1, 3, 3) / 9, (3, 3, 3, 3)),
    (2, 2),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  np.testing.assert_allclose(pool(x, Pool("average", 3, 2, (0, 0))), expected, atol=1e-6)


def test_padding_does_not_count_in_an_average(x):
  ones = jnp.ones_like(x)
  np.testing.assert_allclose(pool(ones, Pool("average", 3, 2, (1, 1))), 1, rtol=1e-6)


def test_a_maximum_rounds_up_as_caffe_does():
  x = jnp.arange(16.0).reshape(1, 4, 4, 1)
  out = pool(x, Pool("max", 3, 2, (0, 1)))[0, :, :, 0]
  np.testing.assert_array_equal(out, [[10, 11], [14, 15]])
  box = correlate2d(np.pad(x[0, :, :, 0], ((0, 1), (0, 1))), np.ones((3, 3)), "valid")[::2, ::2]
  assert box.shape == out.shape
