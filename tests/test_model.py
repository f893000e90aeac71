import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.signal import correlate2d

from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures, model
from allcnn_jax.nets.architectures import Conv, Dense, Dropout, GlobalAverage, Pool


def by_hand(table, params, image):
  """A forward pass of one image in float64, convolution by SciPy, written without the model."""
  x, counts = np.asarray(image, np.float64), {}
  for layer in table:
    kind = type(layer).__name__.lower()
    counts[kind] = counts.get(kind, 0) + 1
    weights = params.get(f"{kind}{counts[kind]}")
    if isinstance(layer, Conv):
      before, after = layer.padding
      padded = np.pad(x, ((before, after), (before, after), (0, 0)))
      kernel = np.asarray(weights["kernel"], np.float64)
      maps = [
        sum(correlate2d(padded[:, :, i], kernel[:, :, i, o], "valid") for i in range(x.shape[2]))
        for o in range(layer.features)
      ]
      x = np.stack(maps, -1)[:: layer.stride, :: layer.stride] + np.asarray(weights["bias"])
    elif isinstance(layer, Dense):
      x = x.reshape(-1) @ np.asarray(weights["kernel"], np.float64) + np.asarray(weights["bias"])
    elif isinstance(layer, Pool):
      k, s = layer.window, layer.stride
      size = (x.shape[0] + sum(layer.padding) - k) // s + 1  # slices end at the map's edge
      x = np.stack(
        [
          np.stack([x[i * s : i * s + k, j * s : j * s + k].max((0, 1)) for j in range(size)])
          for i in range(size)
        ]
      )
    elif isinstance(layer, GlobalAverage):
      x = x.mean((0, 1))
    if getattr(layer, "relu", False):
      x = np.maximum(x, 0)
  return x


@pytest.mark.parametrize(
  ("name", "choices"),
  [
    ("model_a", {}),
    ("strided_cnn_b", {}),
    ("all_cnn_c", {}),
    ("all_cnn_c", {"stride_padding": "same"}),
    ("model_c", {"head": "dense"}),
    ("small_convnet", {}),
    ("fa_cifar10_1", {}),
  ],
)
def test_the_network_is_the_table_computed_by_scipy(key, name, choices):
  net = model.create(name, 10, width=0.05, init="he_normal", final_relu=False, **choices)
  image = jax.random.normal(key, architectures.ARCHITECTURES[name].image)
  params = net.init(key, image[None])["params"]
  params = jax.tree.map(lambda x: x + 0.01, params)  # biases that are not zero
  logits = net.apply({"params": params}, image[None])[0]
  np.testing.assert_allclose(logits, by_hand(net.table, params, image), rtol=1e-4, atol=1e-5)


def test_a_strided_convolution_is_the_dense_one_sampled_every_other_pixel(key):
  """Springenberg et al. 2015, Section 2."""
  x = jax.random.normal(key, (2, 8, 8, 3))
  strided = model.ConvNet((Conv(3, 5, 2, (1, 1)),))
  dense = model.ConvNet((Conv(3, 5, 1, (1, 1)),))
  variables = strided.init(key, x)
  np.testing.assert_allclose(
    strided.apply(variables, x), dense.apply(variables, x)[:, ::2, ::2], atol=1e-6
  )


def test_depthwise_pooling_starts_as_average_pooling(key):
  x = jax.random.normal(key, (2, 9, 9, 4))
  depthwise = model.ConvNet((Pool("depthwise", 3, 2, (0, 0)),))
  average = model.ConvNet((Pool("average", 3, 2, (0, 0)),))
  variables = depthwise.init(key, x)
  assert variables["params"]["pool1"]["kernel"].shape == (3, 3, 1, 4)
  np.testing.assert_allclose(depthwise.apply(variables, x), average.apply({}, x), atol=1e-6)


def test_depthwise_weights_cross_no_channels(key):
  net = model.ConvNet((Pool("depthwise", 3, 2, (0, 1)),))
  x = jax.random.normal(key, (1, 8, 8, 4))
  variables = net.init(key, x)
  touched = jax.grad(lambda y: net.apply(variables, y)[..., 2].sum())(x)
  np.testing.assert_array_equal(np.any(touched != 0, axis=(0, 1, 2)), [False, False, True, False])


def test_dropout_is_where_the_table_has_it_and_off_in_evaluation(key):
  net = model.create("all_cnn_c", 10, width=0.1, final_relu=False)
  x = jax.random.normal(key, (4, 32, 32, 3))
  variables = net.init(key, x)
  evaluated = net.apply(variables, x)
  np.testing.assert_array_equal(evaluated, net.apply(variables, x))
  trained = net.apply(variables, x, train=True, rngs={"dropout": key})
  assert not np.allclose(evaluated, trained)
  off = model.create("all_cnn_c", 10, width=0.1, final_relu=False, dropout=(0.0, 0.0))
  np.testing.assert_allclose(off.apply(variables, x, train=True), evaluated, atol=1e-6)


def test_dropout_is_elementwise_and_inverted(key):
  net = model.ConvNet((Dropout(0, 0.5),))
  x = jnp.ones((4, 16, 16, 8))
  out = net.apply({}, x, train=True, rngs={"dropout": key})
  assert set(np.unique(out)) == {0.0, 2.0}
  assert abs(out.mean() - 1) < 0.05
  assert len(np.unique(np.asarray(out[0, 0, 0]))) == 2  # channels of one pixel fall separately


def test_activations_are_handed_back_by_name_after_the_relu(key):
  net = model.create("model_c", 10, width=0.1)
  x = jax.random.normal(key, (2, 32, 32, 3))
  variables = net.init(key, x)
  logits, maps = net.apply(variables, x, return_activations=True)
  assert list(maps) == [
    "conv1",
    "conv2",
    "pool1",
    "conv3",
    "conv4",
    "pool2",
    "conv5",
    "conv6",
    "conv7",
  ]
  assert all((m >= 0).all() for m in maps.values())
  np.testing.assert_allclose(logits, maps["conv7"].mean((1, 2)), atol=1e-6)


def test_the_way_back_is_a_field(key):
  """Any convolution and activation can be put into a trained network without new weights."""

  class Doubled(nn.Conv):
    def __call__(self, inputs):
      return 2 * super().__call__(inputs)

  net = model.create("all_cnn_c", 10, width=0.1, final_relu=False)
  x = jax.random.normal(key, (2, 32, 32, 3))
  variables = net.init(key, x)
  linear = net.clone(act=lambda v: v)
  np.testing.assert_allclose(
    net.clone(conv=Doubled, act=lambda v: v).apply(variables, x),
    2**9 * linear.apply(variables, x),
    rtol=1e-4,
  )


def test_the_large_net_leaks():
  net = model.create("large_all_cnn", 10)
  np.testing.assert_allclose(net.act(jnp.array([-3.0, 3.0])), [-1.0, 3.0], rtol=1e-6)


def test_compiled_as_a_whole_bfloat16_answers_as_layer_by_layer(key):
  """With jaxlib 0.11 and 0.12 a CPU answered with memory that was never written, from 64 images on."""
  net = model.create("all_cnn_c", 10, width=0.1, dtype=jnp.bfloat16)
  images = jax.random.normal(key, (128, 32, 32, 3))
  variables = net.init(key, images[:1])
  compiled = jax.jit(net.apply)(variables, images)
  np.testing.assert_allclose(compiled, net.apply(variables, images), atol=0.01)


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(key):
  net = model.create("model_c", 10, width=0.1, dtype=jnp.bfloat16)
  x = jax.random.normal(key, (2, 32, 32, 3))
  variables = net.init(key, x)
  logits, maps = net.apply(variables, x, return_activations=True)
  assert logits.dtype == jnp.float32
  assert {m.dtype for m in maps.values()} == {jnp.dtype("bfloat16")}
  assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
  ("init", "variance", "largest"),  # of a weight, the fan-in 1
  [("lecun_normal", 1, None), ("lecun_uniform", 1, 3**0.5), ("he_normal", 2, None)],
)
def test_initializers_scale_the_variance_by_the_fan_in(key, init, variance, largest):
  net = model.create("all_cnn_c", 10, init=init)
  params = jax.jit(net.init)(key, jnp.zeros((1, 32, 32, 3)))["params"]
  for layer, fan_in in (("conv2", 9 * 96), ("conv8", 192)):
    kernel = np.asarray(params[layer]["kernel"]) * fan_in**0.5
    assert kernel.var() == pytest.approx(variance, rel=0.03)
    if largest:  # and evenly spread
      assert 0.99 * largest < np.abs(kernel).max() <= largest * (1 + 1e-6)
      assert np.median(np.abs(kernel)) == pytest.approx(largest / 2, rel=0.03)
    assert not params[layer]["bias"].any()


def test_the_second_paper_s_other_initializer_has_a_deviation_of_its_own(key):
  net = model.create("fa_mnist", 10, init="gaussian_0.05")
  params = jax.jit(net.init)(key, jnp.zeros((1, 28, 28, 1)))["params"]
  for layer in ("conv2", "dense1"):
    assert params[layer]["kernel"].std() == pytest.approx(0.05, rel=0.03)


def test_an_unknown_initializer_is_refused():
  with pytest.raises(UsageError, match="he_normal"):
    model.create("model_c", 10, init="he_norml")
