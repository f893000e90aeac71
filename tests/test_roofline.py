"""What a layer costs, counted by hand and by XLA."""

import jax
import numpy as np
import pytest

from allcnn_jax.analysis import roofline
from allcnn_jax.nets import architectures
from allcnn_jax.training import parts


def test_a_convolutions_cost_by_hand():
  (row,) = architectures.trace((architectures.Conv(3, 5, 1, (1, 1)),), (4, 6, 2))
  flops, moved = roofline.cost(row, (4, 6, 2), batch_size=7, itemsize=2)
  assert flops == 3 * 2 * 7 * (4 * 6 * 5) * (3 * 3 * 2)
  assert moved == 3 * 2 * (7 * (4 * 6 * 2 + 4 * 6 * 5) + (3 * 3 * 2 * 5 + 5))
  first = roofline.cost(row, (4, 6, 2), batch_size=7, itemsize=2, onward=False)
  assert first == (flops * 2 / 3, moved - 2 * 7 * (4 * 6 * 2))


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


def test_ceilings_are_a_product_s_operations_and_a_copy_s_bytes_both_ways(monkeypatch):
  monkeypatch.setattr(roofline, "best", lambda *_: 0.5)
  found = roofline.ceilings(np.float32)
  assert found == (2 * 2048**3 / 0.5, 2 * 4 * 2**26 / 0.5)


def test_many_products_in_a_call_of_a_gpu_are_each_counted(gpu, monkeypatch):
  """Arrays are as large as they are said to be; nothing is computed."""
  monkeypatch.setattr(roofline, "best", lambda *_: 0.5)
  monkeypatch.setattr(roofline, "_REPEATS", 2)
  monkeypatch.setattr(jax.random, "normal", lambda *_: np.zeros(1))
  monkeypatch.setattr(jax.numpy, "ones", lambda shape: np.broadcast_to(np.float32(1), shape))
  found = roofline.ceilings(np.float32)
  assert found == (2 * 8192**3 / 0.25, 2 * 4 * 2**28 / 0.25)


def test_many_steps_of_a_layer_in_a_call_of_a_gpu_are_each_counted(tiny, gpu, monkeypatch):
  monkeypatch.setattr(roofline, "best", lambda *_, **__: 0.5)
  monkeypatch.setattr(roofline, "_REPEATS", 2)
  layers = roofline.layers(parts.recipe(tiny, 10, 96), 3, roofline.Ceilings(1e9, 1e9))
  assert {x.seconds for x in layers} == {0.25}


def test_layers_are_those_with_weights_and_a_bound_is_the_slower_ceiling(tiny):
  recipe = parts.recipe(tiny, 10, 96)
  slow, narrow = (
    roofline.layers(recipe, 3, roofline.Ceilings(*limits)) for limits in ((1e3, 1e30), (1e30, 1e3))
  )
  assert [r.name for r in slow] == [
    r.name for r in architectures.trace(recipe.net.table, (32, 32, 3)) if r.parameters
  ]
  assert all(r.bound == r.flops / 1e3 and r.seconds > 0 for r in slow)
  assert all(r.bound == r.bytes / 1e3 for r in narrow)


def test_an_error_goes_before_every_layer_but_the_first_and_before_none_under_dfa(tiny):
  limits = roofline.Ceilings(1e9, 1e9)
  rows = architectures.trace(parts.network(tiny, 10).table, (32, 32, 3))
  work = [2 * 8 * r.multiply_adds for r in rows if r.multiply_adds]
  onward = [2, *[3] * (len(work) - 1)]
  for rule, products in (("bp", onward), ("dense_fa", onward), ("dfa", [2] * len(work))):
    tiny.rule.name = rule
    found = roofline.layers(parts.recipe(tiny, 10, 96), 3, limits)
    assert [r.flops for r in found] == [n * w for n, w in zip(products, work)]


def test_many_steps_of_a_layer_in_one_call_are_each_done(tiny):
  """The last of three gives what one gives."""
  recipe = parts.recipe(tiny, 10, 96)
  layer = architectures.Conv(3, 5, 1, (1, 1))
  for onward in (True, False):
    (one, *inputs), (three, *_) = (
      roofline._alone(recipe.net, layer, (4, 8, 8, 3), onward, repeats) for repeats in (1, 3)
    )
    alone = one(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone, three(*inputs))
    counted = [f.lower(*inputs).as_text().count("stablehlo.convolution") for f in (one, three)]
    assert counted[0] == (3 if onward else 2)
    assert counted[1] in (2 * counted[0], 3 * counted[0])  # those of a loop of two, and of the last


def test_a_gpu_s_layers_are_timed_as_graphs_after_a_call_without(tiny, gpu, monkeypatch):
  monkeypatch.setattr(roofline, "_REPEATS", 2)
  layers = roofline.layers(parts.recipe(tiny, 10, 96), 3, roofline.Ceilings(1e9, 1e9))
  assert gpu == len(layers) * (["plain"] + 6 * ["graph"])  # best of five, and one to warm up
