import shutil

import jax
import numpy as np
import pytest

from allcnn_jax.analysis import report
from allcnn_jax.data import datasets
from allcnn_jax.errors import UsageError
from allcnn_jax.training import checkpoints, evaluate, loop, publish, restore
from tests.processes import ROOT
from tests.runs import contents, evaluation

PRETRAINED = ROOT / "pretrained"
ours = pytest.mark.parametrize("name", sorted(x.name for x in PRETRAINED.iterdir() if x.is_dir()))


@pytest.fixture
def published(tiny, tmp_path):
  tiny.train.steps = 3
  loop.train(tiny, tmp_path / "run")
  publish.publish(tmp_path / "run", tmp_path / "published")
  return tmp_path / "published"


def test_a_published_network_scores_what_its_run_did(published):
  (published.parent / "run" / "checkpoints").rename(published.parent / "gone")
  before = evaluation(published)
  assert evaluate.from_workdir(published) == before
  assert before["step"] == 3


def test_a_published_network_s_record_stays_whatever_it_is_evaluated_on(published):
  before = contents(published)
  assert evaluate.from_workdir(published, split="train")["examples"] == 96
  assert contents(published) == before


def test_another_run_begins_with_a_published_network(published, tiny):
  tiny.rule.start_from, tiny.optimizer.learning_rate = str(published), 0.0
  loop.train(tiny, published.parent / "next")
  after, before = (restore.trained(published.parent / x).variables for x in ("next", "published"))
  jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_published_network_is_not_trained_on_where_it_stands(published, tiny):
  held = contents(published)
  with pytest.raises(UsageError, match="without its optimizer"):
    loop.train(tiny, published)
  assert held == contents(published)


def test_a_published_network_is_reported_like_its_run(published):
  tables = []
  for folder in (published, published.parent / "run"):
    report.report(folder, published.parent / "report" / folder.name)
    tables.append((published.parent / "report" / folder.name / "TABLE.md").read_text())
  assert tables[0] == tables[1]
  assert "evaluated otherwise" not in tables[0]


def test_a_tilde_is_the_home(published, monkeypatch):
  monkeypatch.setenv("HOME", str(published.parent))
  publish.publish("~/run", "~/again")
  again, before = (contents(published.parent / name) for name in ("again", "published"))
  assert sorted(again.values()) == sorted(before.values())


def test_what_cannot_be_published_is_refused(published):
  run, other = published.parent / "run", published.parent / "other"
  with pytest.raises(UsageError, match="not empty"):
    publish.publish(run, published)
  evaluate.from_workdir(run, split="train")
  with pytest.raises(UsageError, match="evaluate it first"):
    publish.publish(run, other)
  config = run / "config.json"
  config.write_text(config.read_text().replace('"steps": 3', '"steps": 4'))
  with pytest.raises(UsageError, match="is at step 3 of 4: train it first"):
    publish.publish(run, other)
  config.write_text(config.read_text().replace('"steps": 4', '"steps": 3'))
  evaluate.from_workdir(run)
  (run / "machine.json").unlink()
  with pytest.raises(UsageError, match=r"no machine\.json"):
    publish.publish(run, other)
  assert not other.exists()


def test_a_name_that_is_none_is_refused_with_those_that_are():
  with pytest.raises(UsageError, match="Did you mean 'all_cnn_c_cifar10'"):
    checkpoints.load_pretrained("all_cnn_c_cifar100")


@ours
def test_ours_is_small_and_gives_the_same_answers_by_either_door(name):
  folder = PRETRAINED / name  # where a user may have drawn figures
  held = [x for x in folder.rglob("*") if x.is_file() and "figures" not in x.parts]
  assert sum(x.stat().st_size for x in held) < 6_000_000
  net, variables, preprocessing = checkpoints.load_pretrained(name)
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
  trained = restore.trained(folder)
  same = trained.net.apply(trained.variables, trained.preprocessor.apply(images))
  np.testing.assert_array_equal(net.apply(variables, preprocessing.apply(images)), same)
  assert same.shape == (2, len(trained.classes))


@ours
def test_ours_has_the_error_that_it_says(name, tmp_path):
  folder = shutil.copytree(PRETRAINED / name, tmp_path / name)
  said = evaluation(folder)
  try:
    datasets.load(said["dataset"], "test[:1]", (32, 32, 3))
  except UsageError as error:
    pytest.skip(str(error))
  found = evaluate.from_workdir(folder, split="test[:1000]")
  assert abs(found["error"] - said["error"]) < 4  # four deviations of a thousand images' error
