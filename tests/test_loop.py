import errno
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from allcnn_jax import config as config_lib
from allcnn_jax import files
from allcnn_jax.data import preprocessing
from allcnn_jax.errors import Busy, DiskFull, UsageError
from allcnn_jax.training import evaluate, graphs, loop, parts, reporting, sources
from tests.runs import contents, evaluation, metrics, same, saved, weights


def test_it_learns_and_evaluation_agrees_with_the_log(tiny, tmp_path):
  tiny.train.epochs = 6
  workdir = tmp_path / "run"
  assert loop.train(tiny, workdir) == loop.Outcome("ok", 72)
  log = [x for x in metrics(workdir) if "eval_loss" in x]
  assert [x["step"] for x in log] == list(range(12, 73, 12))
  assert log[-1]["eval_loss"] < 1.0 < log[0]["eval_loss"]
  written = evaluation(workdir)
  assert (written["split"], written["examples"], written["step"]) == ("test", 50, 72)
  again = evaluate.from_workdir(workdir)
  assert again["loss"] == pytest.approx(log[-1]["eval_loss"], rel=1e-5)
  assert again["error"] == log[-1]["eval_error"] == written["error"]
  older = evaluate.from_workdir(workdir, step=60)
  assert older["loss"] == pytest.approx(log[-2]["eval_loss"], rel=1e-5)


def test_at_a_rate_of_zero_each_epoch_is_an_evaluation_in_another_order(tiny, npz, tmp_path):
  tiny.model.dropout, tiny.optimizer.learning_rate = (0.0, 0.0), 0.0
  tiny.train.epochs, tiny.log.every_steps, run = 2, 1, tmp_path / "run"
  loop.train(tiny, run)
  logged = [x for x in metrics(run) if "train_loss" in x]
  whole = evaluate.from_workdir(run, split="train")
  for name in ("loss", "error"):
    epochs = np.reshape([x[f"train_{name}"] for x in logged], (2, 12))
    np.testing.assert_allclose(epochs.mean(1), whole[name], rtol=1e-4)
  losses = np.reshape([x["train_loss"] for x in logged], (2, 12))
  assert not np.allclose(*losses)
  mean = preprocessing.load("standardize", run / "preprocessing").preprocessor.mean
  np.testing.assert_allclose(mean, np.load(npz)["train_images"].mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("status", ["ok", "dead"])
def test_a_run_that_has_ended_is_not_begun_anew_where_its_checkpoints_are_gone(
  tiny, tmp_path, status
):
  tiny.train.steps = 2
  run = tmp_path / "run"
  loop.train(tiny, run)
  shutil.rmtree(run / "checkpoints")
  (run / "evaluation.json").write_text(json.dumps(evaluation(run) | {"status": status}))
  before = contents(run)
  with pytest.raises(UsageError, match="checkpoints are gone"):
    loop.train(tiny, run)
  assert contents(run) == before


def test_stopped_and_gone_on_with_is_bit_identical_to_never_stopped(tiny, tmp_path):
  tiny.dataset.augment = "shift_flip"
  tiny.train.steps = 17
  tiny.checkpoint.every_steps = 5
  loop.train(tiny, tmp_path / "whole")
  for steps in (3, 8, 17):  # within an epoch, after a save, to the end
    tiny.train.steps = steps
    loop.train(tiny, tmp_path / "parts")
  same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_run_that_is_stopped_logs_every_step(tiny, tmp_path):
  tiny.train.steps = tiny.log.every_steps = 8
  loop.train(tiny, tmp_path / "whole")
  asked = iter([False, False, True])
  assert loop.train(tiny, tmp_path / "parts", None, lambda: next(asked)).step == 3
  loop.train(tiny, tmp_path / "parts")
  (whole,), (early, late) = (
    [x for x in metrics(tmp_path / name) if "train_loss" in x] for name in ("whole", "parts")
  )
  assert [early["step"], late["step"]] == [3, 8]
  mean = (3 * early["train_loss"] + 5 * late["train_loss"]) / 8
  assert mean == pytest.approx(whole["train_loss"], rel=1e-5)


def test_a_gpu_records_its_graphs_once_all_has_been_loaded(tiny, tmp_path, gpu):
  tiny.train.steps, tiny.log.every_steps = 12, 3
  loop.train(tiny, tmp_path / "run")
  assert gpu == ["plain"] + 3 * ["graph"]  # of three steps each


def test_who_chooses_a_gpu_s_graphs_by_a_flag_is_left_alone(tiny, tmp_path, gpu, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_command_buffer=")
  tiny.train.steps, tiny.log.every_steps = 12, 3
  loop.train(tiny, tmp_path / "run")
  assert gpu == 4 * ["plain"]


def test_large_steps_need_no_graphs(tiny, tmp_path, gpu, monkeypatch):
  monkeypatch.setattr(graphs, "_SMALL", 0)
  tiny.train.steps, tiny.log.every_steps = 12, 3
  loop.train(tiny, tmp_path / "run")
  assert gpu == 4 * ["plain"]


def test_many_steps_a_call_log_and_save_at_the_same_steps(tiny, tmp_path, request):
  tiny.train.steps = 30  # two epochs of twelve, and a half
  tiny.optimizer.learning_rate = 0.0002  # at a higher one rounding grows to 1e-4 in so many steps
  tiny.log.every_steps, tiny.checkpoint.every_steps = 4, 6
  loop.train(tiny, tmp_path / "one by one")
  calls = request.getfixturevalue("gpu")  # from here on
  loop.train(tiny, tmp_path / "pairs")
  assert len(calls) == 15
  for one, pair in zip(metrics(tmp_path / "one by one"), metrics(tmp_path / "pairs"), strict=True):
    assert one["step"] == pair["step"]
    assert one.get("eval_error") == pair.get("eval_error")
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    weights(tmp_path / "one by one"),
    weights(tmp_path / "pairs"),
  )
  assert sorted(os.listdir(tmp_path / "pairs" / "checkpoints")) == sorted(
    os.listdir(tmp_path / "one by one" / "checkpoints")
  )


@pytest.mark.parametrize(
  ("log", "steps", "start", "expected"),
  [(4, 24, 0, 4), (5, 24, 0, 1), (6, 24, 0, 6), (6, 24, 3, 3), (24, 0, 0, 12)],
)
def test_no_call_goes_beyond_what_is_due(tiny, log, steps, start, expected):
  tiny.log.every_steps, tiny.train.steps, tiny.train.epochs = log, steps, 3
  assert parts.steps_a_call(tiny, 96, start) == expected


def test_a_checkpoint_soon_after_the_last_is_left_out_but_for_the_end(tiny, tmp_path):
  tiny.train.steps, tiny.checkpoint.every_steps, tiny.checkpoint.keep = 10, 2, 9
  loop.train(tiny, tmp_path / "all")
  tiny.checkpoint.least_seconds = 1000.0
  loop.train(tiny, tmp_path / "few")
  kept = {
    run: sorted(map(int, os.listdir(tmp_path / run / "checkpoints"))) for run in ("all", "few")
  }
  assert kept == {"all": [2, 4, 6, 8, 10], "few": [2, 10]}
  same(weights(tmp_path / "all"), weights(tmp_path / "few"))


def test_the_log_has_the_rate_of_its_steps_and_no_time_but_theirs(tiny, tmp_path, monkeypatch):
  tiny.optimizer.drops, tiny.train.epochs, tiny.train.steps = (1,), 2, 14
  tiny.log.every_steps, tiny.checkpoint.every_steps = 1, 7
  restarted = []
  monkeypatch.setattr(reporting.Reporter, "restart_clock", lambda _, step: restarted.append(step))
  loop.train(tiny, tmp_path / "run")
  rates = [x["learning_rate"] for x in metrics(tmp_path / "run") if "learning_rate" in x]
  np.testing.assert_allclose(rates, [0.005] * 12 + [0.0005] * 2, rtol=1e-6)
  assert restarted == [7, 12, 14]  # saved, evaluated, saved


def test_another_rate_gives_other_weights(tiny, tmp_path):
  tiny.train.steps = 2
  loop.train(tiny, tmp_path / "a")
  tiny.optimizer.learning_rate *= 2
  loop.train(tiny, tmp_path / "b")
  a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
  assert not np.array_equal(a["params"]["conv2"]["kernel"], b["params"]["conv2"]["kernel"])


def test_sigterm_saves_and_says_how_to_go_on(tiny, tmp_path, capsys, monkeypatch):
  tiny.train.steps = 100_000
  tiny.evaluate.every_steps = tiny.checkpoint.every_steps = 100_000
  workdir, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)

  def stop(*_):
    if signal.getsignal(signal.SIGTERM) != before:
      signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before  # a second one ends the program

  with monkeypatch.context() as patch:
    patch.setattr(reporting.Reporter, "training", stop)
    outcome = loop.train(tiny, workdir)
  assert (outcome.status, outcome.step) == ("stopped", 5)  # the log's fourth, and the next
  assert "The same command goes on from there" in capsys.readouterr().out
  assert signal.getsignal(signal.SIGTERM) == before
  tiny.train.steps = outcome.step + 2
  assert loop.train(tiny, workdir).step == outcome.step + 2
  tiny.train.steps = outcome.step
  with pytest.raises(UsageError, match="beyond"):
    loop.train(tiny, workdir)


def test_a_run_that_another_one_overtakes_leaves_its_folder_alone(tiny, tmp_path, monkeypatch):
  theirs = tiny.copy_and_resolve_references()
  theirs.optimizer.learning_rate *= 2
  theirs.train.steps = 1

  def late(*args):
    with monkeypatch.context() as patch:
      patch.setattr(loop.sources, "open", opened)
      loop.train(theirs, tmp_path / "run")
    return opened(*args)

  opened = loop.sources.open
  monkeypatch.setattr(loop.sources, "open", late)
  with pytest.raises(Busy, match="Another run has begun in"):
    loop.train(tiny, tmp_path / "run")
  kept = config_lib.from_json((tmp_path / "run" / "config.json").read_text())
  assert kept.optimizer.learning_rate == theirs.optimizer.learning_rate
  assert [x["step"] for x in metrics(tmp_path / "run")] == [1, 1]


def test_a_run_goes_on_from_before_a_damaged_checkpoint_and_under_other_quiet_keys(tiny, tmp_path):
  tiny.train.steps, tiny.checkpoint.every_steps, run = 6, 3, tmp_path / "run"
  loop.train(tiny, run)
  whole = weights(run)
  next(p for p in (run / "checkpoints" / "6").rglob("*") if p.is_file()).write_bytes(b"")
  tiny.log.every_steps, tiny.checkpoint.keep, tiny.stream.damaged = 3, 5, 0.5
  tiny.dataset.data_dir = "/moved"
  loop.train(tiny, run)
  same(weights(run), whole)
  assert (run / "damaged" / "6").exists()


def test_weights_that_are_not_finite_are_never_saved(tiny, tmp_path):
  """The first step's loss is finite; what it does to the weights is not."""
  tiny.optimizer.learning_rate, tiny.optimizer.weight_decay = 1e30, 1e10
  tiny.train.steps, tiny.checkpoint.every_steps, tiny.evaluate.every_steps = 9, 1, 9
  assert loop.train(tiny, tmp_path / "run") == loop.Outcome("diverged", 1)
  assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("rate", [0.05, 1e20])
def test_a_line_of_the_log_that_waits_for_the_next_call_is_the_same(
  rate, tiny, tmp_path, monkeypatch, capsys
):
  tiny.train.steps, tiny.log.every_steps, tiny.evaluate.every_steps = 24, 1, 12
  tiny.optimizer.learning_rate = rate
  told = {}
  for ahead in (False, True):
    monkeypatch.setattr(loop, "runs_ahead", lambda ahead=ahead: ahead)
    run = tmp_path / f"{ahead}"
    outcome = loop.train(tiny, run)
    lines = [{k: v for k, v in x.items() if k != "images_per_second"} for x in metrics(run)]
    told[ahead] = (outcome, lines, evaluation(run)["status"])
  assert told[True] == told[False]
  assert len(told[True][1]) == (26 if rate == 0.05 else told[True][0].step - 1)


def test_a_checkpoint_that_is_left_out_holds_up_no_call(tiny, tmp_path, monkeypatch):
  tiny.train.steps, tiny.evaluate.every_steps, tiny.log.every_steps = 36, 36, 12
  tiny.checkpoint.least_seconds = 1000.0
  monkeypatch.setattr(loop, "runs_ahead", lambda: True)
  done, told = [], []
  advance, training = sources.Resident.advance, reporting.Reporter.training

  def advanced(self, state, totals, step):
    done.append(step + 1)
    return advance(self, state, totals, step)

  def tells(self, step, *rest, **named):
    told.append((step, done[-1]))
    return training(self, step, *rest, **named)

  monkeypatch.setattr(sources.Resident, "advance", advanced)
  monkeypatch.setattr(reporting.Reporter, "training", tells)
  loop.train(tiny, tmp_path / "run")
  assert saved(tmp_path / "run") == {12, 36}
  # The line of step 24 is read while the step after it runs; the others wait for a checkpoint.
  assert told == [(12, 12), (24, 25), (36, 36)]


@pytest.mark.parametrize("ahead", [False, True])
def test_asked_to_stop_a_run_tells_of_all_its_steps_first(ahead, tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, "runs_ahead", lambda: ahead)
  tiny.train.steps, tiny.log.every_steps = 8, 2
  asked = iter([False, False, True])
  outcome = loop.train(tiny, tmp_path / "run", None, lambda: next(asked))
  assert outcome == loop.Outcome("stopped", 3)
  assert [x["step"] for x in metrics(tmp_path / "run")] == [2, 3]


def test_asked_to_stop_at_its_very_end_a_run_ends_and_its_caller_knows(tiny, tmp_path, monkeypatch):
  tiny.train.steps = 2
  whole = evaluate.evaluate

  def evaluated(*inputs):
    os.kill(os.getpid(), signal.SIGTERM)
    return whole(*inputs)

  monkeypatch.setattr(evaluate, "evaluate", evaluated)
  with loop.on_signal() as asked_to_stop:
    outcome = loop.train(tiny, tmp_path / "run", None, asked_to_stop)
    assert asked_to_stop()
  assert (outcome.status in ("ok", "dead"), outcome.step) == (True, 2)


def test_a_run_that_has_ended_says_nothing_twice(tiny, tmp_path):
  tiny.train.steps = 2
  outcomes = [loop.train(tiny, tmp_path / "run") for _ in range(2)]
  assert outcomes[0] == outcomes[1]
  assert [x["step"] for x in metrics(tmp_path / "run") if "eval_error" in x] == [2]


def test_the_step_is_compiled_once_and_before_the_clock_starts(tiny, tmp_path, caplog, monkeypatch):
  def compiled():
    names = [x.args[0] for x in caplog.records if x.msg.startswith("Compiling %s with")]
    return names.count("jit(train_step)")

  at_start, reporter = [], reporting.Reporter
  monkeypatch.setattr(reporting, "Reporter", lambda *x: at_start.append(compiled()) or reporter(*x))
  tiny.train.steps = 14  # beyond an epoch, with three lines of the log
  jax.clear_caches()
  with jax.log_compiles():
    loop.train(tiny, tmp_path / "run")
  assert at_start == [1]
  assert compiled() == 1


def test_the_machine_is_that_which_trained(tiny, tmp_path, monkeypatch):
  tiny.train.steps = 2
  for name in ("first", "second"):
    monkeypatch.setattr(loop.machine, "machine", lambda name=name: {"hardware": name})
    loop.train(tiny, tmp_path / "run")
  kept = tmp_path / "run" / "machine.json"
  assert json.loads(kept.read_text()) == {"hardware": "first"}
  tiny.train.steps = 3
  loop.train(tiny, tmp_path / "run")
  assert json.loads(kept.read_text()) == {"hardware": "second"}


@pytest.mark.parametrize(
  ("name", "number"), [("config.json", errno.ENOSPC), ("evaluation.json", errno.EDQUOT)]
)
def test_a_full_disk_is_told_as_one(tiny, tmp_path, monkeypatch, name, number):
  tiny.train.steps = 2
  write = files.write

  def full(path, content):
    if path.name == name:
      raise OSError(number, os.strerror(number))
    write(path, content)

  monkeypatch.setattr(files, "write", full)
  with pytest.raises(DiskFull, match=r"No space left|quota exceeded"):
    loop.train(tiny, tmp_path / "run")


def test_a_run_that_diverges_names_the_step_and_keeps_its_last_good_checkpoint(
  tiny, tmp_path, capsys
):
  tiny.train.steps = 3
  loop.train(tiny, tmp_path / "run")
  good = weights(tmp_path / "run")
  tiny.train.steps = 40
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  config["optimizer"]["learning_rate"] = 1e20  # what a user may not change, to make it diverge
  (tmp_path / "run" / "config.json").write_text(json.dumps(config))
  tiny.optimizer.learning_rate = 1e20
  outcome = loop.train(tiny, tmp_path / "run")
  assert outcome.status == "diverged"
  assert outcome.step == 5  # the first to see what the fourth, the first at that rate, has made
  assert "not finite at step 5" in capsys.readouterr().out
  assert evaluation(tmp_path / "run")["status"] == "diverged"
  assert evaluation(tmp_path / "run")["loss"] is None
  same(weights(tmp_path / "run"), good)


def test_a_run_too_short_for_its_augmentation_says_so(tiny, tmp_path, capsys):
  tiny.dataset.augment, tiny.dataset.plain_epochs, tiny.train.steps = "shift", 2, 1
  loop.train(tiny, tmp_path / "run")
  said = "No image is augmented: dataset.plain_epochs=2 of train.epochs="
  assert said + "1." in capsys.readouterr().out
  tiny.train.epochs = 3
  loop.train(tiny, tmp_path / "longer")
  assert said not in capsys.readouterr().out


def test_a_dead_network_is_said_to_be_dead(tiny, tmp_path, capsys):
  tiny.optimizer.learning_rate = 0.0
  tiny.model.init = "gaussian_0.05"
  tiny.train.steps = 2
  assert loop.train(tiny, tmp_path / "run").status == "dead"
  assert "dead" in capsys.readouterr().out
  assert evaluation(tmp_path / "run")["status"] == "dead"


def test_held_out_images_are_what_is_evaluated(tiny, tmp_path):
  tiny.dataset.validation = 20
  tiny.train.steps = 2
  loop.train(tiny, tmp_path / "run")
  assert (evaluation(tmp_path / "run")["split"], evaluation(tmp_path / "run")["examples"]) == (
    "validation",
    20,
  )
  assert evaluate.from_workdir(tmp_path / "run", split="test")["examples"] == 50
  assert evaluate.from_workdir(tmp_path / "run", split="train")["examples"] == 76
  assert evaluate.from_workdir(tmp_path / "run", dataset="digits")["split"] == "test"


def test_a_run_keeps_every_key_but_those_that_may_change():
  """The README's list, written out a second time."""
  free = {"train.steps", "train.epochs", "dataset.data_dir"}
  free |= {x for x in config_lib.KEYS if x.partition(".")[0] in ("log", "checkpoint", "stream")}
  assert set(config_lib.MAY_CHANGE) == free


@pytest.mark.parametrize(
  ("path", "value"), [("seed", 5), ("model.width", 0.08), ("optimizer.drops", (3,))]
)
def test_a_folder_of_another_config_is_refused_untouched(tiny, tmp_path, path, value):
  tiny.train.steps = 2
  loop.train(tiny, tmp_path / "run")
  before = contents(tmp_path)
  with tiny.unlocked():
    *groups, key = path.split(".")
    (tiny[groups[0]] if groups else tiny)[key] = value
  with pytest.raises(UsageError, match=f"{path}="):
    loop.train(tiny, tmp_path / "run")
  assert before == contents(tmp_path)


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(tiny, tmp_path):
  tiny.train.batch_size = 97
  with pytest.raises(UsageError, match="more than the 96"):
    loop.train(tiny, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("images", "label"), [(80, 9), (96, 10)])
def test_a_run_does_not_go_on_with_other_images(tiny, npz, tmp_path, images, label):
  """With fewer of them, or with as many and one class more."""
  tiny.train.steps = 1
  loop.train(tiny, tmp_path / "run")
  arrays = dict(np.load(npz))
  arrays |= {name: arrays[name][:images] for name in ("train_images", "train_labels")}
  arrays["train_labels"][9] = label
  np.savez(npz, **arrays)
  before, tiny.train.steps = contents(tmp_path / "run"), 2
  said = rf"fitted to 96 images of 10 classes; npz:.* now has {images} of {label + 1}"
  with pytest.raises(UsageError, match=said):
    loop.train(tiny, tmp_path / "run")
  assert contents(tmp_path / "run") == before


def test_a_folder_with_other_things_in_it_is_refused(tiny, tmp_path):
  with pytest.raises(UsageError, match="not empty"):
    loop.train(tiny, tmp_path)  # where the npz lies


def test_what_a_start_that_was_killed_left_is_no_obstacle(tiny, tmp_path):
  (tmp_path / "run").mkdir()
  for name in (".lock", "config.json.0123abcd.writing", "figures"):
    (tmp_path / "run" / name).touch()
  tiny.train.steps = 1
  assert loop.train(tiny, tmp_path / "run").step == 1


def test_a_file_is_no_folder(tiny, npz):
  with pytest.raises(UsageError, match="is a file"):
    loop.train(tiny, npz)


@pytest.mark.parametrize("name", ["metrics.jsonl", "preprocessing/dataset.json"])
def test_damage_is_refused_before_anything_is_changed(tiny, tmp_path, name):
  run = tmp_path / "run"
  tiny.train.steps = 2
  loop.train(tiny, run)
  files.write(run / name, b"damaged}\n")  # another file: other runs have a name of this one
  before = contents(run)
  tiny.train.steps = 3
  with pytest.raises(UsageError, match="damaged"):
    loop.train(tiny, run)
  assert before == contents(run)
