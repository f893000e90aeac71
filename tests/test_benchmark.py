"""The benchmark against what is known without it."""

import json
import math
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import launch
from allcnn_jax.analysis import benchmark, describe, roofline
from allcnn_jax.errors import UsageError
from tests.processes import ROOT


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


def test_direct_feedback_s_matrices_are_arithmetic_too(tiny):
  """Under DFA ten numbers an image go to the output of each layer but the last, by a matrix."""
  tiny.rule.name = "dfa"
  layers = [x for x in describe.rows(tiny) if x.multiply_adds]
  dense = 10 * sum(math.prod(x.size) for x in layers[:-1])
  found = benchmark.benchmark(tiny)
  assert found["flops_per_image"] == 2 * (2 * sum(x.multiply_adds for x in layers) + dense)


def test_quartiles_are_as_far_from_either_end():
  assert benchmark.quartiles([7.0, 0.0, 6.0, 1.0, 5.0, 2.0, 4.0, 3.0]) == [2, 5]


def test_several_devices_rate_is_beside_that_of_as_many(tiny, monkeypatch):
  """Two that each reach the rate of a matrix product reach twice that."""
  monkeypatch.setattr(benchmark.Rounds, "seconds", lambda run, calls=None: 0.25)
  alone = benchmark.benchmark(tiny)
  monkeypatch.setattr(benchmark.roofline, "best", lambda *_, **__: 0.5)
  alone, begin = benchmark.benchmark(tiny), benchmark.Rounds.begin
  two = NamedSharding(Mesh(np.array([jax.devices()[0]] * 2), ("data",)), PartitionSpec("data"))

  def begin_on_two(run):
    run = begin(run)
    run.recipe = run.recipe.replace(batch_sharding=two)
    return run

  monkeypatch.setattr(benchmark.Rounds, "begin", begin_on_two)
  found = benchmark.benchmark(tiny)
  assert found["flops_per_image"] == alone["flops_per_image"]
  assert found["fraction_of_matrix_flops"] == alone["fraction_of_matrix_flops"] / 2
  assert [x["flops"] for x in found["layers"]] == [x["flops"] / 2 for x in alone["layers"]]


def test_a_layer_s_shares_are_of_its_bound_and_of_the_step(tiny):
  row = {"name": "conv1", "flops": 1e9, "bytes": 1e6, "bound": 0.25, "seconds": 0.5}
  found = benchmark.benchmark(tiny) | {"layers": [row], "step_seconds": 2.0}
  (line,) = [x for x in benchmark.text(found).splitlines() if "conv1" in x]
  assert line.split()[-6:] == ["250.00", "500.00", "50", "%", "25", "%"]


def test_the_time_since_the_start_is_that_of_the_process():
  program = "import time; from allcnn_jax.analysis import benchmark; time.sleep(0.5); print(benchmark._since_start())"
  start = time.perf_counter()
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
  taken = time.perf_counter() - start
  assert "None" in done.stdout or 0.5 < float(done.stdout) < taken + 0.1  # of two clocks


def test_too_many_held_out_are_told_as_in_training(tiny):
  tiny.dataset.validation = 96
  with pytest.raises(UsageError, match=r"leaves none of .* 96 images"):
    benchmark.benchmark(tiny)


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
