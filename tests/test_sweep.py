"""Sweeps: what they plan, what they leave to be done, and one whole one that is killed."""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time

import jax
import pytest

import launch
from allcnn_jax import config as config_lib
from allcnn_jax import errors, files
from allcnn_jax.analysis import describe, printed
from allcnn_jax.data import datasets
from allcnn_jax.errors import UsageError
from allcnn_jax.training import loop, sweep
from tests.processes import ROOT
from tests.runs import contents, evaluation
from tests.shipped import SWEEPS


@pytest.fixture
def declared(tiny):
  """Two nets, two rates, two seeds."""
  units = []
  for name in ("strided_cnn_a", "all_cnn_a"):
    units.append(tiny.copy_and_resolve_references())
    units[-1].model.name = name
  return {"units": units, "rates": (0.1, 0.01), "held_out": 0.25, "seeds": 2, "table": "table3"}


class Trainer:
  """Stands in for `loop.train`: a run ends at once, as `outcomes` says by its folder's name."""

  def __init__(self, monkeypatch):
    self.trained, self.outcomes = [], {}
    monkeypatch.setattr(loop, "train", self)

  def __call__(self, config, workdir, shared=None, asked_to_stop=None):
    self.trained.append(workdir.name)
    told = [x for part, x in self.outcomes.items() if part in workdir.name]
    outcome = told[0] if told else 100 * config.optimizer.learning_rate
    if outcome in ("stopped", "late", "broken"):
      signal.raise_signal(signal.SIGTERM)
      assert asked_to_stop()
    if outcome == "broken":
      raise RuntimeError("while it was asked to stop")
    if isinstance(outcome, BaseException):
      raise outcome
    if outcome == "stopped":
      return loop.Outcome("stopped", 1)
    outcome = 90.0 if outcome == "late" else outcome
    status = outcome if isinstance(outcome, str) else "ok"
    held_out = config.dataset.validation
    step = config.train.epochs * ((96 - held_out) // config.train.batch_size)
    workdir.mkdir(parents=True, exist_ok=True)
    error = None if status == "diverged" else outcome if status == "ok" else 90.0
    values = {
      "error": error,
      "status": status,
      "step": 1 if status == "diverged" else step,
      "split": "validation" if held_out else "test",
      "dataset": config.dataset.name,
    }
    (workdir / "evaluation.json").write_text(json.dumps(values))
    return loop.Outcome(status, step)


@pytest.fixture
def trainer(monkeypatch):
  return Trainer(monkeypatch)


def go(declared, workdir, **options):
  return sweep.sweep(sweep.plan(declared, {}), workdir, **options)


def test_rates_are_chosen_on_held_out_images_and_seeds_use_all(declared, trainer, tmp_path):
  assert go(declared, tmp_path / "s") == ("done", 0)
  first = [name.removeprefix("strided_cnn_a-colours-") for name in trainer.trained[:4]]
  assert first == [
    "rate0.1-held_out-seed0",
    "rate0.01-held_out-seed0",
    "rate0.01-seed0",
    "rate0.01-seed1",
  ]
  assert len(trainer.trained) == len(set(trainer.trained)) == 8


def test_a_plan_s_runs_are_complete_configs_that_differ_in_nothing_else(declared):
  plan = sweep.plan(declared, {})
  trials, finals = plan.trials("all_cnn_a-colours"), plan.finals("all_cnn_a-colours", 0.1)
  values = [dict(config_lib.leaves(run.config)) for run in trials + finals]
  differ = {k for k in values[0] if len({str(v[k]) for v in values}) > 1}
  assert differ == {"seed", "optimizer.learning_rate", "dataset.validation"}
  assert [v["dataset.validation"] for v in values] == [24, 24, 0, 0]
  assert [v["seed"] for v in values] == [0, 0, 0, 1]


def test_what_is_done_is_skipped_and_what_stopped_is_gone_on_with(declared, trainer, tmp_path):
  trainer.outcomes = {"rate0.01-seed1": "stopped"}
  assert go(declared, tmp_path / "s")[0] == "stopped"
  done, trainer.trained, trainer.outcomes = trainer.trained, [], {}
  assert go(declared, tmp_path / "s") == ("done", 0)
  assert trainer.trained[0] == done[-1]
  assert len(trainer.trained) == 8 - len(done) + 1
  trainer.trained = []
  go(declared, tmp_path / "s")
  assert trainer.trained == []


@pytest.mark.parametrize("ending", ["late", "broken"])
def test_asked_to_stop_while_a_run_ends_it_begins_no_other(declared, trainer, tmp_path, ending):
  trainer.outcomes = {"strided_cnn_a-colours-rate0.01-held_out": ending}
  assert go(declared, tmp_path / "s")[0] == "stopped"
  assert len(trainer.trained) == 2
  trainer.outcomes = {}
  assert go(declared, tmp_path / "s") == ("done", int(ending == "broken"))
  assert len(trainer.trained) == len(set(trainer.trained)) == 8


@pytest.mark.parametrize(
  "change", [{"step": 3}, {"split": "train"}, {"dataset": "digits"}, {"views": 3}]
)
def test_a_run_evaluated_before_its_end_or_on_something_else_is_not_done(
  change, declared, trainer, tmp_path
):
  go(declared, tmp_path / "s", index=0)
  path = tmp_path / "s" / "strided_cnn_a-colours-rate0.01-seed1" / "evaluation.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  trainer.trained = []
  go(declared, tmp_path / "s", index=0)
  assert trainer.trained == [path.parent.name]


def test_a_broken_run_is_marked_in_one_line_and_passed(declared, trainer, tmp_path, capsys):
  trainer.outcomes = {"strided_cnn_a-colours-rate0.01-held_out": RuntimeError("no\n memory")}
  assert go(declared, tmp_path / "s") == ("done", 1)
  (mark,) = (tmp_path / "s").glob("*.broken")
  assert mark.read_text() == "RuntimeError: no memory\n"
  assert len(trainer.trained) == 8
  assert "strided_cnn_a-colours-rate0.1-seed0" in trainer.trained  # of the rates that are left
  trainer.trained, trainer.outcomes = [], {}
  assert go(declared, tmp_path / "s") == ("done", 1)
  assert trainer.trained == []
  mark.unlink()
  assert go(declared, tmp_path / "s") == ("done", 0)
  assert "strided_cnn_a-colours-rate0.01-held_out-seed0" in trainer.trained


LOST = jax.errors.JaxRuntimeError("INTERNAL: an illegal memory access was encountered")
AWAY = type("UnavailableError", (Exception,), {"__module__": errors._STORE})("The store is away")
LARGE = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


@pytest.mark.parametrize(
  "error", [errors.Busy("Another process"), errors.DiskFull("No space"), LOST, AWAY]
)
def test_what_hinders_every_run_breaks_none(error, declared, trainer, tmp_path):
  trainer.outcomes = {"strided_cnn_a-colours-rate0.01-held_out": error}
  with pytest.raises(UsageError, match=str(error)):
    go(declared, tmp_path / "s")
  assert len(trainer.trained) == 2
  assert not list((tmp_path / "s").glob("*.broken"))
  trainer.outcomes = {}
  assert go(declared, tmp_path / "s") == ("done", 0)


def test_a_run_too_large_for_the_device_breaks_itself_alone(declared, trainer, tmp_path):
  trainer.outcomes = {"strided_cnn_a-colours-rate0.01-held_out": LARGE}
  assert go(declared, tmp_path / "s") == ("done", 1)


def test_a_job_of_an_array_answers_for_its_own_unit_alone(declared, trainer, tmp_path):
  trainer.outcomes = {"strided_cnn_a-colours-rate0.01-held_out": LARGE}
  assert go(declared, tmp_path / "s", index=0) == ("done", 1)
  assert go(declared, tmp_path / "s", index=1) == ("done", 0)


def test_a_dead_or_diverged_rate_is_not_chosen(declared, trainer, tmp_path):
  trainer.outcomes = {
    "strided_cnn_a-colours-rate0.01-held_out": "dead",
    "all_cnn_a-colours-rate0.01-held_out": "diverged",
  }
  go(declared, tmp_path / "s")
  assert "strided_cnn_a-colours-rate0.1-seed0" in trainer.trained
  assert "all_cnn_a-colours-rate0.1-seed0" in trainer.trained
  trainer.outcomes = {"held_out": "diverged"}
  trainer.trained = []
  assert go(declared, tmp_path / "none") == ("done", 0)
  assert len(trainer.trained) == 4  # no seeds
  trainer.outcomes = {"held_out": "dead"}
  go(declared, tmp_path / "dead")
  assert sum("-rate0.1-seed" in name for name in trainer.trained) == 4


def test_units_in_any_order_and_alone_are_the_same_sweep(declared, trainer, tmp_path):
  for index in (1, 0):
    go(declared, tmp_path / "s", index=index)
  apart, trainer.trained = set(trainer.trained), []
  go(declared, tmp_path / "s")
  assert trainer.trained == []
  go(declared, tmp_path / "whole")
  assert apart == set(trainer.trained)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("dataset.name", "npz:/d/a_b.npz"),  # of one plain name
    ("dataset.preprocessing", "gcn_zca"),
    ("dataset.validation", 7),
    ("model.name", "fa_cifar10_1"),  # whose images have another size
  ],
)
def test_what_is_fitted_to_other_images_or_otherwise_is_not_shared(tiny, key, value):
  tiny.dataset.name = "npz:/d/a/b.npz"
  before = sweep._shared(tiny)
  tiny.seed, tiny.model.width = 3, 0.3
  assert sweep._shared(tiny) == before
  tiny.update_from_flattened_dict({key: value})
  assert sweep._shared(tiny) != before


def test_overrides_reach_every_unit(declared):
  plan = sweep.plan(declared, {"model.width": 0.5, "train.epochs": 3, "dataset.validation": 7})
  for unit in plan.units:
    for run in plan.trials(unit):
      assert (run.config.model.width, run.config.train.epochs) == (0.5, 3)
      assert run.config.dataset.validation == 7
  assert sweep.plan(declared, {}, seeds=5).seeds == 5
  # A rate that is given leaves none to choose, two units made the same are one.
  plan = sweep.plan(declared, {"optimizer.learning_rate": 0.3, "model.name": "model_a"})
  (unit,) = plan.units
  assert plan.trials(unit) == []
  assert [r.config.optimizer.learning_rate for r in plan.finals(unit, 0.3)] == [0.3, 0.3]


def test_the_cost_is_told_before_and_the_time_left_once_runs_are_done(
  declared, trainer, tmp_path, capsys
):
  go(declared, tmp_path / "s", index=0)
  said = capsys.readouterr().out.splitlines()[0]
  # 2 trials of 9 steps and 2 seeds of 12, an epoch each; of 8 images, there and twice as much back.
  work = 42 * 8 * 3 * 2 * sum(x.multiply_adds for x in describe.rows(declared["units"][0]))
  assert said.startswith(f"Units: 1. Runs: 4, 4 epochs, {work / 1e15:.3g} PFLOP. ")
  plan = sweep.plan(declared, {})
  first, second = (tmp_path / "s" / run.name for run in plan.trials("strided_cnn_a-colours"))
  last = plan.finals("strided_cnn_a-colours", 0.1)[1].name  # the rate that is left
  # 9 steps of 8 images in 9 s. Another run diverged after one of its 9, in a second: 10 steps done.
  (first / "metrics.jsonl").write_text('{"step": 9, "images_per_second": 8.0}\n')
  (second / "metrics.jsonl").write_text('{"step": 1, "images_per_second": 8.0}\n')
  values = evaluation(second)
  (second / "evaluation.json").write_text(json.dumps(values | {"status": "diverged", "step": 1}))
  (tmp_path / "s" / f"{last}.broken").write_text("RuntimeError\n")
  trainer.outcomes = {"rate0.1-seed0": "stopped"}
  go(declared, tmp_path / "s", index=0)
  said = capsys.readouterr().out.splitlines()[0]
  assert "Done: 2, " in said
  assert "0:00:12 left" in said  # 12 steps; the broken one's are not waited for


def test_another_sweep_s_folder_is_refused(declared, trainer, tmp_path):
  go(declared, tmp_path / "s", index=0)
  before = contents(tmp_path)
  for overrides, said in (
    ({"train.epochs": 2}, "train.epochs=1, not 2"),
    ({"optimizer.learning_rate": 0.1}, "rates="),
    ({"dataset.validation": 7}, "held_out="),
  ):
    with pytest.raises(UsageError, match=said):
      sweep.sweep(sweep.plan(declared, overrides), tmp_path / "s")
  assert before == contents(tmp_path)
  sweep.sweep(
    sweep.plan(declared, {"log.every_steps": 9, "dataset.data_dir": "/moved"}, seeds=3),
    tmp_path / "s",
  )
  with pytest.raises(UsageError, match="holds no sweep"):
    go(declared, tmp_path)


def test_a_sweep_that_began_before_a_key_was_there_is_gone_on_with(declared, trainer, tmp_path):
  go(declared, tmp_path / "s", index=0)
  path = tmp_path / "s" / sweep.FILE
  values = json.loads(path.read_text())
  for unit in values["units"].values():
    del unit["dataset"]["plain_epochs"]
  path.write_text(json.dumps(values))
  assert go(declared, tmp_path / "s") == ("done", 0)


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (b"", "is damaged"),
    (b"[]", "is damaged"),
    (b'{"table": ""}', "is damaged"),
    (b'{"table": "", "rates": [], "units": {"a": 3}}', "is damaged"),
    (
      b'{"table": "", "rates": [], "units": {"a": {"model": {"depth": 3}}}}',
      r": a: .*'model\.depth'",
    ),
    (b'{"table": "", "rates": [], "units": {"a": {"model": 3}}}', ": a: .*'model'"),
    (b'{"table": "", "rates": [], "units": {"a": {"seed": "x"}}}', ": a: seed='x'"),
  ],
)
def test_a_damaged_sweep_is_one_line_and_stays_as_it_is(declared, trainer, tmp_path, content, said):
  (tmp_path / "s").mkdir()
  (tmp_path / "s" / sweep.FILE).write_bytes(content)
  with pytest.raises(UsageError, match=rf"sweep\.json ?{said}"):
    go(declared, tmp_path / "s")
  assert [p.read_bytes() for p in (tmp_path / "s").iterdir()] == [content]


def test_jobs_of_an_array_that_begin_together_are_one_sweep(
  declared, trainer, tmp_path, monkeypatch
):
  go(declared, tmp_path / "other", index=0)
  written = (tmp_path / "other" / sweep.FILE).read_bytes()
  (tmp_path / "s").mkdir()
  inside = files.inside

  def while_another_writes(folder):
    (tmp_path / "s" / sweep.FILE).write_bytes(written)
    return inside(folder)

  monkeypatch.setattr(files, "inside", while_another_writes)
  assert go(declared, tmp_path / "s", index=1) == ("done", 0)


def test_where_a_job_was_killed_before_the_sweep_had_its_file_another_begins(
  declared, trainer, tmp_path
):
  (tmp_path / "s").mkdir()
  (tmp_path / "s" / f"{sweep.FILE}.0123abcd.writing").touch()
  assert go(declared, tmp_path / "s", index=1) == ("done", 0)


def test_wrong_use_is_found_before_anything_is_written(declared, trainer, tmp_path):
  for overrides, said in (
    ({"dataset.validation": 96}, "leaves none"),
    ({"dataset.validation": 0}, "hold some out"),
    ({"train.batch_size": 80}, "more than the 72"),
    ({"model.width": 0.0}, "above 0"),
    ({"dataset.name": "npz:none.npz"}, "no such file"),
    ({"seed": 2**32 - 1}, "below 2.32"),
  ):
    with pytest.raises(UsageError, match=said):
      sweep.sweep(sweep.plan(declared, overrides), tmp_path / "s")
  for wrong, said in (
    ({"rate": (0.1,)}, "Did you mean 'rates'"),
    ({"units": []}, "needs `units`"),
    ({"units": "all_cnn_a"}, "list or tuple, not 'all_cnn_a'"),
    ({"units": ["all_cnn_a"]}, "must be configs, not 'all_cnn_a'"),
    ({"seeds": 2.5}, "must be int, not 2.5"),
    ({"seeds": 0}, "at least 1, not 0"),
    ({"held_out": math.nan}, "a share below 1, not nan"),
    ({"rates": (0.1234561, 0.1234562)}, "are called .*rate0.123456-held_out-seed0'"),
    ({"rates": (0.1, "fast")}, "not 'fast'"),
    ({"rates": (0.1, -1)}, "a number from 0"),
    ({"names": (["model.width"],)}, "config key in names"),
  ):
    with pytest.raises(UsageError, match=said):
      sweep.plan({**declared, **wrong}, {})
  for index in (-1, 2):
    with pytest.raises(UsageError, match=r"0 strided_cnn_a-colours, 1 all_cnn_a"):
      go(declared, tmp_path / "s", index=index)
  assert not (tmp_path / "s").exists()
  assert trainer.trained == []


@pytest.mark.parametrize("name", SWEEPS)
def test_every_declared_sweep_is_a_plan_without_its_sets_at_hand(name, monkeypatch):
  monkeypatch.setattr(datasets, "_prepared", None)
  module = importlib.import_module(f"configs.{name}")
  plan = sweep.plan(module.get_sweep(), {})
  assert plan.table in printed.TABLES
  assert len(plan.units) == len(module.get_sweep()["units"])
  expected = {"table3": (12, 84), "table4": (3, 21), "pooling": (6, 18), "fa_table1": (44, 88)}
  expected["cifar10_fast"] = (1, 5)
  runs = len(plan.units) * (len(plan.rates) + plan.seeds)
  assert (len(plan.units), runs) == expected.get(name, (8, 24))


SWEEP = """
from configs import quickstart

def get_config(arg=""):
  config = quickstart.get_config()
  config.model.head, config.model.dropout, config.model.width = "dense", (), 0.05
  config.model.pool = "stride"
  config.model.init = "he_normal"
  config.train.steps, config.checkpoint.every_steps = 6, 3
  config.train.batch_size, config.optimizer.drops = 16, ()
  return config

def get_sweep(arg=""):
  units = [get_config(), get_config()]
  units[0].model.name, units[1].model.name = "small_convnet", "fa_mnist"
  return {"units": units, "rates": (0.05, 0.01), "seeds": 2}
"""


def test_one_unit_is_killed_and_begun_again_then_the_rest_is_done(tmp_path, monkeypatch):
  """Two nets, two rates and two seeds on digits, for real."""
  monkeypatch.chdir(ROOT)
  (tmp_path / "two.py").write_text(SWEEP)
  folder = tmp_path / "sweep"
  words = ["sweep", f"--config={tmp_path / 'two.py'}", f"--workdir={folder}"]
  with subprocess.Popen([sys.executable, "launch.py", *words, "--index=0"], stdout=-3) as process:
    # In the middle of the second run.
    while not list(folder.glob("*rate0.01-held_out-seed0/checkpoints/[0-9]*")):
      assert process.poll() is None
      time.sleep(0.02)
    process.kill()
  assert process.returncode == -signal.SIGKILL

  def ended():
    return {path.parent.name for path in folder.glob("*/evaluation.json")}

  before = ended()
  assert launch.run([*words, "--index=0"]) == 0
  assert before < ended()
  assert len(ended()) == 4
  assert all(name.startswith("small_convnet-digits-rate") for name in ended())
  assert launch.run(words) == 0
  assert len(ended()) == 8
  assert not list(folder.glob("*.broken"))

  # What was fitted is on the disk once for each set of training images, and each run has it.
  fitted = list(folder.glob("**/fitted.safetensors"))
  assert len(fitted) == 2 + 8
  assert len({os.stat(path).st_ino for path in fitted}) == 2

  assert launch.run(["report", f"--workdir={folder}"]) == 0
  made = json.loads((folder / "report.json").read_text())
  counts = [x["n"] + x["dead"] for x in made["lines"] if x["rate"]]
  assert counts == [2, 2]
  assert [len(x["rates"]) for x in made["lines"] if x["rate"]] == [2, 2]
