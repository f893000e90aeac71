import json

import pytest

from allcnn_jax import config as config_lib
from allcnn_jax.analysis import records
from allcnn_jax.errors import UsageError
from allcnn_jax.training import loop, machine
from tests.made import of_rule


def test_a_record_says_what_its_run_s_folder_does(tiny, tmp_path):
  tiny.model.name, tiny.model.head, tiny.model.dropout = "fa_cifar10_1", "dense", ()
  tiny.train.steps = 4
  tiny.rule.name = "fa_usf_sn"
  tiny.alignment.every_steps = 4
  loop.train(tiny, tmp_path / "runs" / "a")
  records.write(tmp_path / "runs" / "a", tmp_path / "records" / "a.json")
  (run,), (kept,) = records.read(tmp_path / "runs"), records.read(tmp_path / "records")
  assert kept.config.to_dict() == run.config.to_dict()
  assert kept.evaluation == run.evaluation
  assert kept.metrics == run.metrics
  assert kept.series("train_loss")[0] == [4]
  assert kept.series("error_angle/conv1")[0] == [0, 4]
  written = json.loads((tmp_path / "records" / "a.json").read_text())
  assert kept.machine == run.machine
  assert kept.machine.keys() == machine.machine().keys() <= written.keys()
  assert records.read(tmp_path / "runs" / "a")[0].metrics == run.metrics


def test_a_run_beside_its_record_is_one(tiny, tmp_path):
  tiny.train.steps = 1
  loop.train(tiny, tmp_path / "a.1")
  for name in ("a.1", "b"):
    records.write(tmp_path / "a.1", tmp_path / f"{name}.json")
  assert [run.name for run in records.read(tmp_path)] == ["a.1", "b"]


def test_a_record_s_numbers_have_five_digits(tiny, tmp_path):
  (tmp_path / "config.json").write_text(config_lib.to_json(tiny))
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 1.2345678}\n')
  assert records.read(tmp_path)[0].metrics == [{"step": 1, "train_loss": 1.2346}]


def test_a_run_that_has_not_ended_is_none_that_is_alive():
  ended, running = of_rule(), of_rule(seed=1)
  running.evaluation.clear()
  assert records.alive([running, ended]) == [ended]
  assert records.alive([running]) == [running]


def test_a_run_s_record_is_called_as_its_folder_is(tiny, tmp_path, monkeypatch):
  tiny.train.steps = 1
  loop.train(tiny, tmp_path / "run")
  monkeypatch.chdir(tmp_path / "run")
  assert records.read(".")[0].name == "run"


def test_a_folder_without_runs_is_refused(tmp_path):
  with pytest.raises(UsageError, match="holds neither runs nor their records"):
    records.read(tmp_path)
  (tmp_path / "x.json").write_text("{}")
  with pytest.raises(UsageError, match=r"x\.json is no record"):
    records.read(tmp_path)


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("config.json", b"[]"),
    ("evaluation.json", b""),
    ("evaluation.json", b"\xff"),
    ("evaluation.json", b"[1]"),
    ("evaluation.json", b'{"error": 8.5, "step": 3}'),
    ("config.json", b"[" * 100_000),
    ("machine.json", b'{"hardware": {}}'),
    ("machine.json", b'{"hardware": {}, "versions": {}}'),
    ("machine.json", b'{"hardware": {"device": "a", "devices": null}, "versions": {}}'),
    ("metrics.jsonl", b'{"step": 1, "eval_error": 8.5}\n'),
    ("metrics.jsonl", b'{"step": 1, "eval_error": 8.5, "split": []}\n'),
    ("metrics.jsonl", b'{"step": 1, "train_error": "8.5"}\n'),
    ("metrics.jsonl", b'{"step": 1}\n{"step": "2"}\n'),
    ("metrics.jsonl", b'{"step": 1, \xff}\n'),
    ("metrics.jsonl", b"[" * 100_000 + b"}"),
  ],
)
def test_a_damaged_file_of_a_run_is_one_line_that_names_it(tiny, tmp_path, name, content):
  (tmp_path / "config.json").write_text(config_lib.to_json(tiny))
  assert len(records.read(tmp_path)) == 1
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UsageError, match=name) as error:
    records.read(tmp_path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["config", "metrics", "evaluation"])
def test_a_damaged_record_is_one_line_that_names_it(tiny, tmp_path, part):
  whole = {"config": tiny.to_dict(), "metrics": [{"step": 1}], "evaluation": {}}
  (tmp_path / "a.json").write_text(json.dumps(whole))
  assert records.read(tmp_path)[0].metrics == [{"step": 1}]
  deep = "[" * 100_000
  for value in (3, [3], {"step": "x"}, deep):
    text = json.dumps(whole | {part: value})
    (tmp_path / "a.json").write_text(text.replace(f'"{deep}"', deep))
    with pytest.raises(UsageError, match=r"a\.json is no record"):
      records.read(tmp_path)
