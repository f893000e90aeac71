"""A run on one device, on two or eight, and in two processes: one and the same."""

import signal

import numpy as np
import pytest

from tests import processes, runs

pytestmark = [pytest.mark.devices, pytest.mark.timeout(900)]

# Name: (devices, processes, whether in float64, whose checkpoint it restores).
RUNS = {
  "one": (1, 1, True, None),
  "eight": (8, 1, True, "one"),
  "two": (2, 1, True, "eight"),
  "one again": (1, 1, True, "eight"),
  "two processes": (1, 2, True, "eight"),
  "one, float32": (1, 1, False, None),
  "eight, float32": (8, 1, False, None),
  "two processes, float32": (2, 2, False, None),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  folder, all_found = tmp_path_factory.mktemp("agreement"), {}
  for name, (devices, count, wide, other) in RUNS.items():
    words = ["tests/agreement.py", folder / name, *([folder / other] if other else [])]
    running = (
      processes.start_together
      if count > 1
      else lambda _, *words, **env: [processes.start(*words, env=processes.environment(**env))]
    )
    started = running(count, *words, devices=devices, JAX_ENABLE_X64=int(wide))
    statuses, _, errors = processes.finish(*started)
    assert statuses == [0] * count, errors
    all_found[name] = dict(np.load(folder / name / "found.npz"))
  return all_found


def parts(found, kind):
  return {name: value for name, value in found.items() if name.startswith(kind + "/")}


def alone(name):
  """The run on one device of the same precision, which random integers depend on."""
  return "one" if RUNS[name][2] else "one, float32"


@pytest.mark.parametrize("name", list(RUNS))
def test_orders_crops_and_masks_are_the_same_bit_for_bit(found, name):
  mine = parts(found[name], "exact")
  for key, value in parts(found[alone(name)], "exact").items():
    np.testing.assert_array_equal(mine[key], value, key)
  assert set(np.unique(mine["exact/mask"])) == {0, 2}
  assert sorted(mine["exact/order"]) == list(range(64))


@pytest.mark.parametrize("name", list(RUNS))
def test_weights_agree_step_by_step_and_an_epoch_at_a_time(found, name):
  wide = RUNS[name][2]
  mine, one = parts(found[name], "close"), parts(found[alone(name)], "close")
  assert mine.keys() == one.keys()
  for key, value in mine.items():
    assert value.dtype == (np.float64 if wide else np.float32)
    np.testing.assert_allclose(value, one[key], rtol=0, atol=1e-9 if wide else 1e-3, err_msg=key)
    at_once = one[key.replace("False", "True")]
    np.testing.assert_allclose(value, at_once, rtol=0, atol=1e-9 if wide else 1e-3, err_msg=key)


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run[3]])
def test_a_checkpoint_of_any_number_of_devices_is_restored_on_any_other(found, name):
  saved = parts(found[RUNS[name][3]], "saved")
  for key, value in parts(found[name], "restored").items():
    np.testing.assert_array_equal(value, saved[key.replace("restored", "saved")])


TRAIN = [*processes.TRAIN, "--config.checkpoint.every_steps=5", "--config.log.every_steps=5"]


def test_the_first_of_two_processes_writes_for_both(tmp_path):
  words = [*TRAIN, "--config.train.steps=15", "--config.checkpoint.least_seconds=1000"]
  both = processes.start_together(2, *words, f"--workdir={tmp_path / 'both'}")
  statuses, outs, errors = processes.finish(*both)
  assert statuses == [0, 0], errors
  alone = processes.start(*words, f"--workdir={tmp_path / 'alone'}")
  assert processes.finish(alone)[0] == [0]
  assert "Done" in outs[0]
  assert "step" not in outs[1]
  first, second = runs.metrics(tmp_path / "both"), runs.metrics(tmp_path / "alone")
  assert [x["step"] for x in first] == [x["step"] for x in second] == [5, 10, 15, 15]
  for run in ("both", "alone"):
    assert {p.name for p in (tmp_path / run / "checkpoints").iterdir()} == {"5", "15"}
  for a, b in zip(first, second):
    for name in ("train_loss", "eval_loss"):
      assert a.get(name, 0) == pytest.approx(b.get(name, 0), abs=1e-3)
  assert len(list((tmp_path / "both" / "tensorboard").iterdir())) == 1


def two(workdir, steps):
  words = [*TRAIN, f"--config.train.steps={steps}", f"--workdir={workdir}"]
  return processes.start_together(2, *words)


def test_two_processes_are_preempted_and_killed_and_go_on(tmp_path):
  workdir = tmp_path / "run"
  for send, to in ((signal.SIGTERM, 1), (signal.SIGKILL, 0), (signal.SIGKILL, 1)):
    running = two(workdir, 100_000)
    processes.wait_for_a_checkpoint(workdir, *running)
    running[to].send_signal(send)
    statuses, outs, errors = processes.finish(*running)
    if send == signal.SIGTERM:
      assert statuses == [0, 0], errors
      assert "The same command goes on from there" in outs[0]
    else:
      assert statuses[to] == -signal.SIGKILL
      assert statuses[1 - to] not in (0, 2)
      assert "Start again" in errors[1 - to] or "another task died" in errors[1 - to]
  steps = max(runs.saved(workdir)) + 2
  for place in (workdir, tmp_path / "whole"):
    statuses, _, errors = processes.finish(*two(place, steps))
    assert statuses == [0, 0], errors
  runs.same(runs.weights(workdir), runs.weights(tmp_path / "whole"))


def test_what_the_first_alone_finds_wrong_ends_it_with_2_and_the_others_with_it(tmp_path):
  (tmp_path / "file").touch()
  statuses, _, errors = processes.finish(*two(tmp_path / "file" / "run", 2))
  assert statuses[0] == 2, errors
  assert "cannot be written" in errors[0]
  assert statuses[1] != 0


def test_what_all_find_wrong_ends_all_with_2(tmp_path):
  words = [*TRAIN, f"--workdir={tmp_path / 'run'}", "--config.train.batch_size=4000"]
  statuses, _, errors = processes.finish(*processes.start_together(2, *words))
  assert statuses == [2, 2], errors
  assert not (tmp_path / "run").exists()
