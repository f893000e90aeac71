"""The strongest patches, beside a full sort of all activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax.analysis import patches, saliency
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import model
from allcnn_jax.nets.architectures import Conv, GlobalAverage, Pool

TABLE = (
  Conv(3, 4, 1, (1, 1)),
  Pool("max", 2, 2, (0, 1)),
  Conv(3, 6, 2, (1, 1)),
  Conv(1, 5, 1, (0, 0)),
  GlobalAverage(),
)


@pytest.fixture(scope="module")
def trained():
  net = model.ConvNet(TABLE)
  images = np.asarray(jax.random.normal(jax.random.key(0), (23, 13, 11, 3)))
  return net, jax.jit(net.init)(jax.random.key(1), images), images


def batches(images, size):
  return (images[i : i + size] for i in range(0, len(images), size))


@pytest.mark.parametrize("layer", ["conv1", "conv2", "logits"])
@pytest.mark.parametrize("size", [5, 23, 40])
def test_the_running_best_are_the_best_of_a_full_sort(trained, layer, size):
  net, variables, images = trained
  logits, named = net.apply(variables, jnp.asarray(images), return_activations=True)
  outputs = np.asarray(logits if layer == "logits" else named[layer])
  maps = outputs[:, None, None] if layer == "logits" else outputs
  best = patches.top(net, variables, batches(images, size), layer=layer, k=4)
  order = np.sort(maps.max(axis=(1, 2)).T)[:, ::-1]
  np.testing.assert_allclose(best.value, order[:, :4], rtol=1e-5)
  for c in range(maps.shape[-1]):
    row, column = best.position[c].T
    found = maps[best.image[c], row, column, c]
    np.testing.assert_allclose(found, best.value[c], rtol=1e-5)
    assert len(set(np.asarray(best.image[c]).tolist())) == 4


def test_a_set_of_fewer_images_than_asked_for(trained):
  net, variables, images = trained
  best = patches.top(net, variables, batches(images[:3], 2), layer="conv2", k=5)
  assert np.isfinite(best.value).sum(axis=1).tolist() == [3] * 6
  with pytest.raises(UsageError, match="no images"):
    patches.top(net, variables, batches(images[:0], 2), layer="conv2")


@pytest.mark.parametrize("layer", ["conv1", "pool1", "conv2", "conv3", "logits"])
def test_a_unit_answers_to_its_patch_and_to_nothing_else(trained, layer):
  net, variables, images = trained
  images = images[:12]
  height, width, channels = saliency.locate(net, layer, images.shape[1:]).size
  corners = [(i, j) for i in (0, height - 1) for j in (0, width - 1)] * 3
  units = saliency.strongest(
    net,
    variables,
    images,
    layer=layer,
    channel=np.arange(12) % channels,
    position=np.array(corners),
  )
  again = patches.replay(net, variables, images, units, layer=layer)
  np.testing.assert_allclose(again, units.value, atol=1e-6)

  row = saliency.locate(net, layer, images.shape[1:])
  seen = patches.visible(row, np.array(corners), images.shape[1:])
  gradient = saliency.attribute(
    net,
    variables,
    images,
    layer=layer,
    channel=units.channel,
    position=units.position,
    rule="deconvnet",
  )
  assert not (np.abs(gradient) * ~seen).any()
  if layer != "logits":  # which see everything
    assert not seen.all()


def test_the_patch_seen_is_no_smaller_than_stated(trained):
  # Something in the outermost row and column of every inner unit's field must reach it.
  net, variables, images = trained
  row = saliency.locate(net, "conv2", images.shape[1:])
  position = np.array([[2, 1]])
  (start,), (height, width) = patches.field(row, position, images.shape[1:])
  assert (height, width) == (row.field, row.field)
  reach = np.zeros(images.shape[1:3], bool)
  for channel in range(6):
    gradient = saliency.attribute(
      net,
      variables,
      images,
      layer="conv2",
      channel=channel,
      position=(2, 1),
      rule="deconvnet",
    )
    reach |= (np.abs(gradient) > 0).any(axis=(0, 3))
  rows, columns = np.nonzero(reach.any(axis=1))[0], np.nonzero(reach.any(axis=0))[0]
  assert (rows.min(), rows.max()) == (start[0], start[0] + height - 1)
  assert (columns.min(), columns.max()) == (start[1], start[1] + width - 1)


def test_a_field_as_large_as_a_side_is_the_whole_side(trained):
  net, *_ = trained
  row = saliency.locate(net, "conv2", (13, 11, 3))._replace(field=11, offset=-3, stride=2)
  (start,), sides = patches.field(row, np.array([[2, 1]]), (13, 11, 3))
  assert (list(start), sides) == ([1, 0], (11, 11))
  (start,), sides = patches.field(row._replace(field=12), np.array([[2, 1]]), (13, 11, 3))
  assert (list(start), sides) == ([1, 0], (12, 11))


def test_crops_are_filled_up_beyond_the_border(trained):
  net, _, images = trained
  row = saliency.locate(net, "conv2", images.shape[1:])
  cut = patches.crop(images[:2], row, np.array([[0, 0], [2, 1]]))
  side = row.field
  before = -row.offset
  assert cut.shape == (2, side, side, 3)
  assert not cut[0, :before].any()
  np.testing.assert_array_equal(
    cut[0, before:, before:], images[0, : side - before, : side - before]
  )
  i, j = row.offset + 2 * row.stride, row.offset + row.stride
  np.testing.assert_array_equal(cut[1], images[1, i : i + side, j : j + side])
