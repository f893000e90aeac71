import errno
import json
import re
import struct
import types

import pytest
from tensorboardX.proto import event_pb2

from allcnn_jax.training import reporting
from allcnn_jax.training.reporting import Reporter
from tests.runs import metrics


def report(workdir, steps, start=0):
  reporter = Reporter(workdir, start, 100, steps_per_epoch=10, batch_size=8)
  for step in steps:
    reporter.advance(step)
    reporter.training(step, loss=1 / step, error=50.0, learning_rate=0.1)
  reporter.evaluation(steps[-1], "test", loss=0.5, error=25.0)
  reporter.close()


def events(workdir):
  """What is in all event files, read from their records without TensorFlow."""
  for path in sorted((workdir / "tensorboard").iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (length,) = struct.unpack_from("<Q", data, at)
      yield event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
      at += 16 + length


def scalars(workdir):
  """(step, name, value) of each number in them."""
  return [(e.step, v.tag, v.simple_value) for e in events(workdir) for v in e.summary.value]


def test_the_same_numbers_stand_in_both_files(tmp_path):
  report(tmp_path, [10, 20])
  written = [(x["step"], k, v) for x in metrics(tmp_path) for k, v in x.items()]
  numbers = {(s, k): v for s, k, v in written if k != "step" and not isinstance(v, str)}
  seen = {(s, k): v for s, k, v in scalars(tmp_path)}
  assert seen == pytest.approx(numbers, rel=1e-5)
  assert numbers[20, "train_loss"] == 1 / 20
  assert numbers[20, "eval_error"] == 25.0


def test_a_run_that_goes_on_drops_what_came_after_its_checkpoint(tmp_path):
  report(tmp_path, [10, 20, 30])
  with (tmp_path / "metrics.jsonl").open("a") as f:
    f.write('{"step": 40, "train_lo')  # killed in the middle of a line
  report(tmp_path, [30, 40], start=20)
  assert [x["step"] for x in metrics(tmp_path)] == [10, 20, 30, 40, 40]
  # TensorBoard hides what the first wrote from this step on.
  assert {x.step for x in events(tmp_path) if x.HasField("session_log")} == {1, 21}


def test_a_run_that_begins_anew_writes_its_start_anew(tmp_path):
  for _ in range(2):
    reporter = Reporter(tmp_path, 0, 100, steps_per_epoch=10, batch_size=8)
    reporter.alignment(0, {"error_angle/conv1": 90.0})
    reporter.close()
  assert [x["step"] for x in metrics(tmp_path)] == [0]


def test_without_a_terminal_there_are_plain_lines(tmp_path, capsys):
  report(tmp_path, [10, 20])
  out = capsys.readouterr()
  assert "step 20/100  epoch 2.0  loss 0.0500  error 50.00 %" in out.out
  assert "test: loss 0.5000  error 25.00 %" in out.out
  assert "\r" not in out.out + out.err


def test_what_goes_to_a_file_has_every_line_though_the_bar_is_on_a_terminal(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(reporting.sys.stderr, "isatty", lambda: True)
  report(tmp_path, [10, 20])
  assert "step 20/100  epoch 2.0  loss 0.0500  error 50.00 %" in capsys.readouterr().out


def test_what_is_no_number_is_null(tmp_path):
  reporter = Reporter(tmp_path, 0, 100, steps_per_epoch=10, batch_size=8)
  reporter.evaluation(10, "test", loss=float("nan"), error=90.0)
  reporter.close()
  assert metrics(tmp_path) == [{"step": 10, "split": "test", "eval_loss": None, "eval_error": 90.0}]


def test_the_time_of_training_is_that_of_its_steps_by_hand(tmp_path):
  lines = [
    {"step": 10, "images_per_second": 40.0},
    {"step": 10, "split": "test", "eval_error": 1.0},
    {"step": 30, "images_per_second": 16.0},
  ]
  assert reporting.seconds(lines, batch_size=8) == 10 * 8 / 40 + 20 * 8 / 16
  assert reporting.seconds([], batch_size=8) == 0
  assert reporting.read(tmp_path) == []
  cut = '{"step": 40, "images_per'
  (tmp_path / "metrics.jsonl").write_text("\n".join([*map(json.dumps, lines), cut]))
  assert reporting.read(tmp_path) == lines


def test_an_event_file_that_cannot_be_written_ends_and_the_run_goes_on(tmp_path, monkeypatch):
  monkeypatch.setattr(reporting, "_FLUSHED_EVERY", -1)
  reporter = Reporter(tmp_path, 0, 100, steps_per_epoch=10, batch_size=8)
  reporter.training(1, loss=1.0, error=50.0, learning_rate=0.1)

  def full(writer):
    raise OSError(errno.ENOSPC, "No space left")

  with monkeypatch.context() as patch:
    patch.setattr(reporting.EventsWriter, "flush", full)
    for step in range(2, 30):
      reporter.training(step, loss=1.0, error=50.0, learning_rate=0.1)
  reporter.close()
  assert [x["step"] for x in metrics(tmp_path)] == list(range(1, 30))
  assert {step for step, *_ in scalars(tmp_path)} == {1, 2}


def test_in_a_bucket_there_are_no_event_files(tmp_path, monkeypatch):
  monkeypatch.setattr(reporting.files, "is_bucket", lambda path: True)
  report(tmp_path, [10])
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
  assert len(metrics(tmp_path)) == 2


def test_another_process_tells_of_its_damaged_records_and_of_nothing_else(tmp_path, capsys):
  silent = reporting.Silent()
  silent.training(3, 1.0, 50.0, 0.1)
  silent.damaged(3, "train", ["record 7"])
  silent.close()
  assert capsys.readouterr().out == "damaged, left out: train record 7\n"


def test_the_speed_is_that_of_the_steps_alone(tmp_path, monkeypatch, capsys):
  clock = iter([0.0, 2.0, 100.0, 104.0])
  stopped = types.SimpleNamespace(monotonic=lambda: next(clock), time=lambda: 0.0)
  monkeypatch.setattr(reporting, "time", stopped)
  reporter = Reporter(tmp_path, 0, 100, steps_per_epoch=10, batch_size=8)
  reporter.training(10, 1.0, 50.0, 0.1)
  reporter.restart_clock(10)  # 98 s went into an evaluation
  reporter.training(30, 1.0, 50.0, 0.1)
  reporter.close()
  assert [x["images_per_second"] for x in metrics(tmp_path)] == [40.0, 40.0]
  assert re.findall(r"\d+:\d+ left", capsys.readouterr().out) == ["00:18 left", "00:14 left"]
