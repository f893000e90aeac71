import json

import pytest

from allcnn_jax.analysis import records
from allcnn_jax.errors import UsageError
from allcnn_jax.training import loop, machine


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
