"""What a layer costs, counted by hand and by XLA."""

import jax
import pytest

from allcnn_jax.analysis import roofline
from allcnn_jax.nets import architectures
from allcnn_jax.training import parts


def test_a_convolutions_cost_by_hand():
  (row,) = architectures.trace((architectures.Conv(3, 5, 1, (1, 1)),), (4, 6, 2))
  flops, moved = roofline.cost(row, (4, 6, 2), batch_size=7, itemsize=2)
  assert flops == 3 * 2 * 7 * (4 * 6 * 5) * (3 * 3 * 2)
  assert moved == 3 * 2 * (7 * (4 * 6 * 2 + 4 * 6 * 5) + (3 * 3 * 2 * 5 + 5))


def test_flops_of_a_forward_pass_as_xla_counts_them(tiny, key):
  # XLA leaves out what multiplies padding, so unpadded layers only: 1x1 and the last 3x3.
  table = (architectures.Conv(3, 8, 1, (0, 0), False), architectures.Conv(1, 10, 1, (0, 0), False))
  net = parts.network(tiny, 10).clone(table=table)
  x = jax.numpy.ones((4, 8, 8, 3))
  compiled = jax.jit(net.apply).lower(net.init(key, x), x).compile()
  ours = sum(
    roofline.cost(r, (8, 8, 3), 4, 4)[0] / 3 for r in architectures.trace(table, (8, 8, 3))
  )
  assert compiled.cost_analysis()["flops"] == pytest.approx(ours, rel=0.1)


def test_layers_are_those_with_weights_and_a_bound_is_the_slower_ceiling(tiny):
  recipe = parts.recipe(tiny, 10, 96)
  slow = roofline.layers(recipe, 3, roofline.Ceilings(flops=1e3, bytes=1e30))
  assert [r.name for r in slow] == [
    r.name for r in architectures.trace(recipe.net.table, (32, 32, 3)) if r.parameters
  ]
  assert all(r.bound == r.flops / 1e3 and r.seconds > 0 for r in slow)
