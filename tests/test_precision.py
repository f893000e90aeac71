"""Benchmarks: how far gradients are from float64's."""

import pytest

from benchmarks import precision


@pytest.mark.parametrize(
  ("dtype", "least", "most"), [("float32", 1e-8, 1e-5), ("bfloat16", 1e-3, 0.3)]
)
def test_an_error_is_as_large_as_the_type_is_coarse(tiny, dtype, least, most):
  tiny.train.dtype = dtype
  found = precision.errors(tiny)
  assert least < found["all"] < most
  assert all(error < 3 * most for error in found.values())
  assert {"conv1/kernel", "conv1/bias"} < set(found)
