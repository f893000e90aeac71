"""Curves of records, by hand."""

import numpy as np

from allcnn_jax.analysis import chart
from tests.made import of_rule as run


def test_a_curve_is_the_mean_and_deviation_over_seeds_by_hand():
  curve = chart.curve("fa", [run(), run(seed=1, scale=3.0)], "train_error")
  np.testing.assert_allclose(curve.x, [1, 2])
  np.testing.assert_allclose(curve.y, [20, 40])
  np.testing.assert_allclose(curve.spread, [np.sqrt(200), np.sqrt(800)])
