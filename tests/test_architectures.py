import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures, model
from allcnn_jax.nets.architectures import Conv, Dense, Dropout, GlobalAverage, Pool

PARAMETERS = {  # counted by hand from the papers' tables
  "model_a": 839_242,
  "strided_cnn_a": 839_242,
  "conv_pool_cnn_a": 1_254_250,
  "all_cnn_a": 1_254_250,
  "model_b": 885_610,
  "strided_cnn_b": 885_610,
  "conv_pool_cnn_b": 1_300_618,
  "all_cnn_b": 1_300_618,
  "model_c": 954_730,
  "strided_cnn_c": 954_730,
  "conv_pool_cnn_c": 1_369_738,
  "all_cnn_c": 1_369_738,
  "all_cnn_imagenet": 9_372_840,
  "large_all_cnn": 77_455_690,
}
# Height after each convolution and pool, as printed or as the paper's 6 x 6 demands.
SIZES = {
  "model_c": [32, 32, 16, 16, 16, 8, 6, 6, 6],
  "all_cnn_c": [32, 32, 16, 16, 16, 8, 6, 6, 6],
  "large_all_cnn": [125, 124, 62, 61, 60, 30, 29, 28, 14, 13, 12, 6, 5, 4, 2, 1, 1, 1],
  "all_cnn_imagenet": [54, 54, 27, 27, 27, 13, 13, 13, 6, 6, 6, 6],
  "fa_mnist": [28, 14, 14, 7],
  "fa_cifar10_1": [24, 12, 12, 6],
  "fa_cifar10_2": [32, 32, 16, 16, 16, 8, 8, 8, 8],
  "fa_imagenet_2": [75, 38, 13, 7, 7, 4, 4, 4, 4],
}


def resolved(name, **choices):
  classes = 1000 if "imagenet" in name else 10
  return architectures.resolve(name, classes, **choices)


def trace(name, **choices):
  architecture = resolved(name, **choices)
  return architectures.trace(architecture.table, architecture.image)


def test_there_are_nineteen_and_the_textbook_net():
  assert len(architectures.NAMES) == 20


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_are_those_of_the_papers(name, count):
  assert sum(row.parameters for row in trace(name)) == count


@pytest.mark.parametrize(("name", "sizes"), SIZES.items())
def test_maps_have_the_papers_sizes(name, sizes):
  assert [row.size[0] for row in trace(name) if isinstance(row.layer, Conv | Pool)] == sizes


@pytest.mark.parametrize("name", architectures.NAMES)
def test_trace_agrees_with_the_network_itself(name):
  net = model.create(name, 10)
  image = architectures.ARCHITECTURES[name].image
  images = jax.ShapeDtypeStruct((2, *image), jnp.float32)
  variables = jax.eval_shape(net.init, jax.random.key(0), images)
  _, maps = jax.eval_shape(lambda v, x: net.apply(v, x, return_activations=True), variables, images)
  rows = {row.name: row for row in architectures.trace(net.table, image)}
  assert sum(r.parameters for r in rows.values()) == sum(x.size for x in jax.tree.leaves(variables))
  for layer, activation in maps.items():
    assert np.prod(activation.shape[1:]) == np.prod(rows[layer].size)


def test_all_cnn_c_does_the_multiply_adds_that_its_table_says():
  assert sum(row.multiply_adds for row in trace("all_cnn_c")) == 270_798_336


def test_the_printed_all_cnn_c_is_what_is_derived():
  """Table 2's last column, written out here a second time."""
  conv = [
    (3, 96, 1), (3, 96, 1), (3, 96, 2), (3, 192, 1), (3, 192, 1), (3, 192, 2),
    (3, 192, 1), (1, 192, 1), (1, 10, 1),
  ]  # fmt: skip
  table = resolved("all_cnn_c").table
  assert [(x.kernel, x.features, x.stride) for x in table if isinstance(x, Conv)] == conv
  rates = [x.rate if isinstance(x, Dropout) else None for x in table]
  assert [i for i, r in enumerate(rates) if r] == [0, 4, 8]
  assert [r for r in rates if r] == [0.2, 0.5, 0.5]


POOLS = {"small_convnet": [(2, 2)] * 2, "fa_mnist": [(2, 2)] * 2, "fa_cifar10_1": [(3, 2)] * 2}
POOLS |= {"fa_imagenet_1": [(3, 2)] * 3}
POOLS |= {f"{kind}_{x}": [(3, 2)] * 2 for kind in ("model", "conv_pool_cnn") for x in "abc"}
# The layer that is dropped out, "" for the image, and the rate.
DROPPED = {
  "model_a": [("", 0.2), ("pool1", 0.5), ("pool2", 0.5)],
  "model_c": [("", 0.2), ("pool1", 0.5), ("pool2", 0.5)],
  "strided_cnn_a": [("", 0.2), ("conv1", 0.5), ("conv2", 0.5)],
  "strided_cnn_b": [("", 0.2), ("conv2", 0.5), ("conv4", 0.5)],
  "conv_pool_cnn_b": [("", 0.2), ("pool1", 0.5), ("pool2", 0.5)],
  "all_cnn_a": [("", 0.2), ("conv2", 0.5), ("conv4", 0.5)],
  "all_cnn_c": [("", 0.2), ("conv3", 0.5), ("conv6", 0.5)],
  "all_cnn_imagenet": [("conv9", 0.5)],
  "large_all_cnn": [
    (f"conv{first + i}", rate)
    for first, rate in zip((4, 7, 10, 13, 16), (0.1, 0.2, 0.3, 0.4, 0.5))
    for i in (0, 1)
  ],
}


@pytest.mark.parametrize("name", architectures.NAMES)
def test_pools_are_as_printed(name):
  pools = [(x.window, x.stride) for x in resolved(name).table if isinstance(x, Pool)]
  assert pools == POOLS.get(name, [])


@pytest.mark.parametrize(("name", "dropped"), DROPPED.items())
def test_dropout_stands_where_the_paper_has_it(name, dropped):
  found, last = [], ""
  for row in trace(name):
    if isinstance(row.layer, Dropout):
      found.append((last, row.layer.rate))
    last = row.name
  assert found == dropped


def test_strided_b_gives_the_stride_to_the_1x1_convolutions():
  strides = [(x.kernel, x.stride) for x in resolved("strided_cnn_b").table if isinstance(x, Conv)]
  assert strides == [(5, 1), (1, 2), (5, 1), (1, 2), (3, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("name", ["model_a", "all_cnn_c", "small_convnet"])
def test_a_unit_sees_its_receptive_field_and_nothing_else(name):
  """With positive weights, the gradient of a unit is positive just where it sees the image."""
  architecture = resolved(
    name, dropout=None, width=0.02, pool="average" if name == "model_a" else "max"
  )
  table = tuple(x for x in architecture.table if not isinstance(x, GlobalAverage | Dense | Dropout))
  net = model.ConvNet(table, kernel_init=lambda key, shape, dtype: jnp.ones(shape, dtype))
  image = architecture.image
  images = jnp.ones((1, *image))
  variables = net.init(jax.random.key(0), images)
  if name == "small_convnet":  # a maximum passes only one gradient: dilate it by averaging
    net = net.clone(
      table=tuple(
        dataclasses.replace(x, kind="average") if isinstance(x, Pool) else x for x in table
      )
    )
  rows = {r.name: r for r in architectures.trace(table, image)}
  for layer, row in rows.items():
    for position in (0, row.size[0] // 2, row.size[0] - 1):

      def unit(x, layer=layer, position=position):
        return net.apply(variables, x, return_activations=True)[1][layer][0, position, position, 0]

      seen = np.asarray(jax.grad(unit)(images))[0, :, :, 0].any(axis=1)
      first = row.offset + position * row.stride
      expected = np.zeros(image[0], bool)
      expected[max(first, 0) : first + row.field] = True
      np.testing.assert_array_equal(seen, expected, err_msg=f"{layer} {position}")


@pytest.mark.parametrize(
  "name", ["all_cnn_a", "strided_cnn_b", "all_cnn_c", "all_cnn_imagenet", "fa_imagenet_2"]
)
@pytest.mark.parametrize("padding", architectures.STRIDE_PADDINGS)
def test_pooling_instead_of_strides_keeps_weights_and_sizes(name, padding):
  architecture = resolved(name, stride_padding=padding)
  before = [r for r in trace(name, stride_padding=padding) if isinstance(r.layer, Conv)]
  pooled = architectures.trace(architectures.pooled(architecture.table), architecture.image)
  convs = [r for r in pooled if isinstance(r.layer, Conv)]
  assert [r.parameters for r in before] == [r.parameters for r in convs]
  assert all(r.layer.stride == 1 for r in convs)
  after = {}
  for row in pooled:  # the size after a convolution and the pool that may follow it
    if isinstance(row.layer, Conv):
      last = row.name
    if isinstance(row.layer, Conv | Pool):
      after[last] = row.size
  assert [r.size for r in before] == list(after.values())


def test_without_downsampling_the_textbook_net_has_30976_values():
  rows = {r.name: r for r in trace("small_convnet", pool="none")}
  assert np.prod(rows["conv3"].size) == 30_976
  assert rows["dense1"].parameters == 30_976 * 512 + 512


def test_none_removes_strides_too():
  assert all(r.size[0] >= 30 for r in trace("all_cnn_c", pool="none") if isinstance(r.layer, Conv))


def test_stride_is_the_strided_network():
  assert resolved("model_c", pool="stride").table == resolved("strided_cnn_c").table


@pytest.mark.parametrize("name", ["model_a", "fa_cifar10_1", "fa_imagenet_1", "small_convnet"])
def test_strides_in_the_place_of_pools_bring_maps_down_as_far(name):
  """To a pixel: a pool rounds up, and an unpadded one of two may lose the last row."""
  *_, pooled = [r for r in trace(name) if r.size[0] > 1]
  *_, strided = [r for r in trace(name, pool="stride") if r.size[0] > 1]
  assert abs(pooled.size[0] - strided.size[0]) <= 1


@pytest.mark.parametrize("name", [n for n in architectures.NAMES if "fa_" not in n])
def test_a_dense_head_takes_the_place_of_the_1x1_convolutions(name):
  table = resolved(name, head="dense").table
  assert isinstance(table[-1], Dense)
  assert not table[-1].relu
  assert not any(isinstance(x, GlobalAverage) for x in table)
  kernels = [x.kernel for x in table if isinstance(x, Conv)]
  assert kernels[-1] > 1


def test_width_scales_every_layer_but_the_last():
  features = [x.features for x in resolved("all_cnn_c", width=0.25).table if isinstance(x, Conv)]
  assert features == [24, 24, 24, 48, 48, 48, 48, 48, 10]


@pytest.mark.parametrize("relu", [True, False])
def test_the_last_relu_can_be_turned_off(relu):
  convs = [x for x in resolved("all_cnn_c", final_relu=relu).table if isinstance(x, Conv)]
  assert [x.relu for x in convs] == [True] * 8 + [relu]


@pytest.mark.parametrize(
  ("name", "head"), [("fa_cifar10_2", None), ("large_all_cnn", None), ("all_cnn_c", "dense")]
)
def test_a_last_layer_that_is_linear_in_the_table_stays_so(name, head):
  *_, last = [x for x in resolved(name, head=head, final_relu=True).table if hasattr(x, "relu")]
  assert not last.relu


@pytest.mark.parametrize(
  "choices",
  [
    {"name": "all_cnn_d"},
    {"name": "model_c", "pool": "median"},
    {"name": "model_c", "pool": "0.5"},
    {"name": "all_cnn_c", "pool": "average"},
    {"name": "fa_mnist", "head": "conv"},
    {"name": "model_c", "head": "sparse"},
    {"name": "model_c", "dropout": (0.1,)},
    {"name": "model_c", "dropout": (0.1, 1.0)},
    {"name": "model_c", "width": 0.0},
    {"name": "model_c", "stride_padding": "valid"},
  ],
  ids=str,
)
def test_what_a_table_cannot_take_is_refused(choices):
  with pytest.raises(UsageError):
    resolved(**choices)


def test_too_small_an_image_is_refused():
  with pytest.raises(UsageError, match="too small"):
    architectures.trace(resolved("all_cnn_c").table, (8, 8, 3))


@pytest.mark.parametrize("name", ["model_c", "strided_cnn_b", "all_cnn_a"])
def test_dropout_may_stand_after_more_layers_than_the_table_has_it(name):
  def layers(where, **choices):
    """Each layer but dropout, and the rate by which what comes out of it is dropped."""
    table = architectures.resolve(name, 10, dropout_after=where, **choices).table
    rates = [getattr(x, "rate", 0.0) for x in (*table[1:], None)]
    assert table[0].rate == 0.2
    return [(x, rate) for x, rate in zip(table, rates) if not isinstance(x, Dropout)]

  for where in ("all", "1x1"):
    for (layer, rate), (printed, printed_rate) in zip(
      layers(where), layers("printed"), strict=True
    ):
      assert layer == printed  # nothing else moves
      inner = isinstance(layer, Conv) and layer.features != 10
      more = inner and (where == "all" or layer.kernel == 1)
      assert rate == (0.5 if more else printed_rate)
  *_, (before, rate), (scores, after) = layers("all", head="dense")
  assert (type(before), rate, type(scores), after) == (Dense, 0.5, Dense, 0.0)


def test_dropout_elsewhere_needs_a_rate_for_the_input_and_one_for_the_rest():
  with pytest.raises(UsageError, match="has 5 dropout levels and not two"):
    architectures.resolve("large_all_cnn", 10, dropout_after="all")


@pytest.mark.parametrize("name", [n for n in architectures.NAMES if n != "large_all_cnn"])
def test_the_same_padding_is_xla_s(name):
  table, image = (
    getattr(architectures.resolve(name, 10, stride_padding="same"), k) for k in ("table", "image")
  )
  n = image[0]
  for row in architectures.trace(table, image):
    layer = row.layer
    if isinstance(layer, Conv) and layer.stride > 1 and layer.padding != (0, 0):
      (expected,) = jax.lax.padtype_to_pads((n,), (layer.kernel,), (layer.stride,), "SAME")
      assert layer.padding == expected
      assert row.size[0] == -(-n // layer.stride)
    n = row.size[0]
