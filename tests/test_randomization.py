"""Cascading randomisation, and the rank correlation that it is measured by."""

import jax
import numpy as np
import pytest
import scipy.stats

from allcnn_jax.analysis import patches, randomization, saliency
from allcnn_jax.nets import model
from allcnn_jax.nets.architectures import Conv, GlobalAverage

TABLE = (Conv(3, 4, 1, (1, 1)), Conv(3, 6, 2, (1, 1)), Conv(1, 5, 1, (0, 0)), GlobalAverage())


@pytest.fixture(scope="module")
def trained():
  net = model.ConvNet(TABLE)
  images = np.asarray(jax.random.normal(jax.random.key(0), (6, 10, 10, 3)))
  return net, jax.jit(net.init)(jax.random.key(1), images), images


def test_rank_correlation_is_spearman_s():
  a, b = np.random.default_rng(0).normal(size=(2, 200)).round(1)  # with ties
  expected = scipy.stats.spearmanr(a, b + a).statistic
  assert randomization.rank_correlation(a, b + a) == pytest.approx(expected)
  assert randomization.rank_correlation(a, np.exp(a)) == pytest.approx(1)
  assert randomization.rank_correlation(a, -a) == pytest.approx(-1)
  assert np.isnan(randomization.rank_correlation(a, 0 * b))


def test_layers_are_randomised_from_the_top_down_and_stay_so(trained):
  net, variables, images = trained
  units = saliency.strongest(net, variables, images, layer="conv3")
  stages = randomization.cascade(
    net, variables, images, units, jax.random.key(2), layer="conv3", rule="backprop"
  )
  assert [s.layer for s in stages] == ["conv3", "conv2", "conv1"]
  for stage in stages:
    assert (np.abs(stage.pictures).max(axis=(1, 2, 3)) > 0).all()
    assert stage.signed.shape == stage.absolute.shape == (6,)
    assert (np.abs(stage.signed) < 0.999).all()

  # The last stage knows nothing of the trained weights any more.
  other = jax.tree.map(lambda x: x + 1, variables)
  again = randomization.cascade(
    net, other, images, units, jax.random.key(2), layer="conv3", rule="backprop"
  )
  np.testing.assert_array_equal(stages[-1].pictures, again[-1].pictures)
  assert not np.allclose(stages[0].pictures, again[0].pictures)


def test_a_layer_in_the_middle_randomises_nothing_above_it(trained):
  net, variables, images = trained
  units = saliency.strongest(net, variables, images, layer="conv2")
  stages = randomization.cascade(net, variables, images, units, jax.random.key(2), layer="conv2")
  assert [s.layer for s in stages] == ["conv2", "conv1"]


def test_correlations_are_spearman_s_of_what_the_unit_sees(trained):
  net, variables, images = trained
  units = saliency.strongest(net, variables, images, layer="conv2")
  where = {"layer": "conv2", "channel": units.channel, "position": units.position}
  row = saliency.locate(net, "conv2", images.shape[1:])
  seen = patches.visible(row, np.asarray(units.position), images.shape[1:])[..., 0]
  before = np.asarray(saliency.attribute(net, variables, images, **where))
  for stage in randomization.cascade(
    net, variables, images, units, jax.random.key(2), layer="conv2"
  ):
    for i, (a, b) in enumerate(zip(before, stage.pictures)):
      a, b = a[seen[i]].ravel(), b[seen[i]].ravel()
      found = stage.signed[i], stage.absolute[i]
      theirs = scipy.stats.spearmanr(a, b), scipy.stats.spearmanr(abs(a), abs(b))
      np.testing.assert_allclose(found, [x.statistic for x in theirs], atol=1e-6)


def test_notes_are_the_signed_correlation_then_that_of_absolute_values():
  stage = randomization.Stage(
    "conv1", np.zeros((3, 1, 1, 1)), np.array([0.1, 0.2, np.nan]), np.array([0.5, 0.6, 0.7])
  )
  assert randomization.correlations(stage, slice(1, 3)) == ["0.20 | 0.60", "off | 0.70"]


def test_correlations_count_only_what_the_unit_sees(trained):
  # Outside its field both pictures are zero: counting that would make any two pictures alike.
  net, variables, images = trained
  units = saliency.strongest(net, variables, images, layer="conv1")
  (stage,) = randomization.cascade(net, variables, images, units, jax.random.key(0), layer="conv1")
  trained_pictures = np.asarray(
    saliency.attribute(
      net, variables, images, layer="conv1", channel=units.channel, position=units.position
    )
  )
  for a, b, rho in zip(trained_pictures, stage.pictures, stage.absolute):
    whole = randomization.rank_correlation(np.abs(a).ravel(), np.abs(b).ravel())
    assert whole > 0.9
    assert rho < 0.7
