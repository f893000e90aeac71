"""The benchmark against what is known without it."""

import json

import jax
import pytest

import launch
from allcnn_jax.analysis import benchmark, describe, roofline
from allcnn_jax.errors import UsageError


@pytest.fixture(autouse=True)
def _short(monkeypatch):
  monkeypatch.setattr(benchmark, "_ROUND", 1e-9)
  monkeypatch.setattr(benchmark, "_ROUNDS", 3)
  monkeypatch.setattr(benchmark, "_SECONDS", 0.0)
  monkeypatch.setattr(benchmark, "_EXAMPLES", 64)
  monkeypatch.setattr(roofline, "ceilings", lambda dtype: roofline.Ceilings(2e9, 1e9))


def test_it_says_what_is_measured_and_writes_it(tiny, tmp_path):
  found = benchmark.benchmark(tiny, tmp_path / "b.json", tmp_path / "trace")
  assert json.loads((tmp_path / "b.json").read_text()) == found
  rows = describe.rows(tiny)
  first = next(r.multiply_adds for r in rows if r.multiply_adds)  # sends no error to the images
  assert found["flops_per_image"] == 6 * sum(r.multiply_adds for r in rows) - 2 * first
  low, high = found["images_per_second"]["quartiles"]
  assert 0 < low <= found["images_per_second"]["median"] <= high
  fraction = found["flops_per_image"] * found["images_per_second"]["median"] / 2e9
  assert found["fraction_of_matrix_flops"] == pytest.approx(fraction)
  assert 50e6 < found["peak_memory"] < 100e9  # of a process that has imported JAX
  assert list((tmp_path / "trace").rglob("*.xplane.pb"))
  text = benchmark.text(found)
  assert all(row["name"] in text for row in found["layers"])


def test_its_figures_are_those_of_rounds_of_a_known_time(tiny, monkeypatch):
  """A quarter of a second for one step of eight images; twice as many are evaluated at once."""
  monkeypatch.setattr(benchmark.Rounds, "seconds", lambda run, calls=None: 0.25)
  monkeypatch.setattr(benchmark.roofline, "best", lambda *_, **__: 0.5)
  found = benchmark.benchmark(tiny)
  assert found["images_per_second"]["median"] == 8 / 0.25
  assert found["step_seconds"] == 0.25
  assert found["flops"] == found["flops_per_image"] * 8 / 0.25
  assert found["evaluation_images_per_second"] == 16 / 0.5
  assert {row["seconds"] for row in found["layers"]} == {0.5}


def test_a_round_trains(tiny):
  run = benchmark.Rounds(tiny).begin()
  before = int(run.state.step)
  run.seconds()
  assert int(run.state.step) == before + run.steps


def test_a_round_has_as_many_calls_as_make_it_long_enough(tiny, monkeypatch):
  monkeypatch.setattr(benchmark, "_ROUND", 1.0)
  monkeypatch.setattr(benchmark.Rounds, "seconds", lambda run, calls=None: 0.15)
  assert benchmark.Rounds(tiny).begin().steps == 7


def test_what_an_accelerator_runs(tiny, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  run = benchmark.Rounds(tiny).begin()
  before = int(run.state.step)
  run.seconds()
  # A call's, of the 12 of an epoch and the 4 between lines of the log.
  assert (run.steps, int(run.state.step)) == (4, before + 4)
  assert run.evaluation() > 0


def test_a_set_that_is_streamed_gives_its_batches_one_by_one(streamed):
  run = benchmark.Rounds(streamed).begin()
  assert [x.shape for x in jax.tree.leaves(run._inputs)] == [(6, 32, 32, 3), (6,)]
  before = int(run.state.step)
  run.seconds()
  assert int(run.state.step) == before + 1
  assert run.evaluation() > 0


def test_wrong_use(tiny, tmp_path):
  with pytest.raises(UsageError, match="no such folder"):
    benchmark.benchmark(tiny, tmp_path / "none" / "b.json")
  with pytest.raises(UsageError, match="is a folder"):
    benchmark.benchmark(tiny, tmp_path)
  (tmp_path / "file").write_text("")
  with pytest.raises(UsageError, match="cannot be written"):
    benchmark.benchmark(tiny, profile=tmp_path / "file")
  with pytest.raises(UsageError, match=r"train\.dtype"):
    launch.run(["benchmark", "--config=configs/quickstart.py", "--config.train.dtype=float8"])
