import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax.errors import UsageError
from allcnn_jax.nets import model
from allcnn_jax.training import evaluate, loop, sources
from allcnn_jax.training import step as step_lib


def padded(images, labels, batch_size):
  """Batches whose last is filled up with a wrong image."""
  for start in range(0, len(images), batch_size):
    missing = max(start + batch_size - len(images), 0)
    one, its = images[start : start + batch_size], labels[start : start + batch_size]
    filling = ((0, missing), (0, 0), (0, 0), (0, 0))
    views = [jnp.asarray(np.pad(one, filling, constant_values=9))]
    mask = np.arange(batch_size) < len(one)
    yield sources.Batch(
      views, jnp.asarray(np.pad(its, filling[0], constant_values=5)), jnp.asarray(mask)
    )


@pytest.fixture
def case(key):
  net = model.create("all_cnn_c", 12, width=0.04, init="he_normal", final_relu=False)
  images = np.asarray(jax.random.normal(key, (23, 32, 32, 3)))
  labels = np.arange(23, dtype=np.int32) % 12
  variables = net.init(key, images)
  logits = np.asarray(net.apply(variables, images), np.float64)
  loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(23), labels]
  first_five = np.argsort(-logits, axis=1)[:, :5]
  errors = (
    100 * np.mean(logits.argmax(1) != labels),
    100 * np.mean([label not in five for label, five in zip(labels, first_five)]),
  )
  return net, variables, images, labels, loss.mean(), errors


@pytest.mark.parametrize("batch_size", [1, 7, 23, 64])
def test_every_image_counts_once_at_any_batch_size(case, batch_size):
  net, variables, images, labels, loss, errors = case
  scores = evaluate.evaluate(net, (32, 32), variables, padded(images, labels, batch_size))
  assert scores.examples == 23
  np.testing.assert_allclose((scores.error, scores.error_top5), errors)
  np.testing.assert_allclose(scores.loss, loss, rtol=1e-5)


def test_where_no_result_can_stand_nothing_is_evaluated(tiny, tmp_path, monkeypatch):
  tiny.train.steps = 1
  loop.train(tiny, tmp_path / "run")
  monkeypatch.setattr(os, "access", lambda *_: False)
  monkeypatch.setattr(evaluate, "evaluate", None)
  with pytest.raises(UsageError, match="cannot be written: Permission"):
    evaluate.from_workdir(tmp_path / "run")


def test_larger_images_are_cut_to_their_centre(case):
  net, variables, images, labels, loss, _ = case
  larger = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), constant_values=9)
  scores = evaluate.evaluate(net, (32, 32), variables, padded(larger, labels, 8))
  np.testing.assert_allclose(scores.loss, loss, rtol=1e-5)


def test_the_probabilities_of_several_views_are_averaged(case):
  net, variables, images, labels, _, _ = case
  views = [images, 3 * images[:, :, ::-1], -images]
  mean = np.mean([jax.nn.softmax(net.apply(variables, x)) for x in views], axis=0)
  batch = sources.Batch(list(map(jnp.asarray, views)), jnp.asarray(labels), jnp.ones(23, bool))
  scores = evaluate.evaluate(net, (32, 32), variables, [batch])
  np.testing.assert_allclose(scores.loss, -np.log(mean[np.arange(23), labels]).mean(), rtol=1e-5)
  np.testing.assert_allclose(scores.error, 100 * np.mean(mean.argmax(1) != labels))


def test_of_equal_answers_the_first_counts_as_the_larger():
  logits = jnp.array([[0.0] * 8] * 8)
  sums = step_lib.score(logits, jnp.arange(8), jnp.ones(8, bool))
  assert (int(sums.wrong), int(sums.wrong_top5), int(sums.count)) == (7, 3, 8)


@pytest.mark.parametrize("broken", [slice(None), slice(2, 3)])
def test_what_is_no_number_is_wrong(broken):
  logits = jnp.eye(8).at[:, broken].set(jnp.nan)
  sums = step_lib.score(logits, jnp.full(8, 2), jnp.ones(8, bool))
  assert (int(sums.wrong), int(sums.wrong_top5)) == (8, 8)


def test_top_5_is_told_of_sets_of_more_than_ten_classes():
  scores = evaluate.Scores(1.0, 50.0, 20.0, 4)
  assert "error_top5" not in evaluate.summary(scores, 1, "test", "cifar10", 10)
  assert evaluate.summary(scores, 1, "test", "cifar100", 100)["error_top5"] == 20.0


@pytest.mark.parametrize(
  ("loss", "error", "classes", "expected"),
  [
    (math.log(10), 90.0, 10, "dead"),
    (2.3123, 88.0, 10, "dead"),
    (2.3010, 88.7, 10, "dead"),  # MNIST by how frequent its classes are
    (2.2974, 87.8, 10, "ok"),  # late to start, and on its way
    (2.27, 85.0, 10, "ok"),
    (0.1, 3.0, 10, "ok"),
    (2.5, 90.0, 10, "ok"),
    (math.log(100), 99.0, 100, "dead"),
    (2.3026, 60.0, 100, "ok"),
    (math.log(2), 50.0, 2, "dead"),
    (0.7, 28.0, 2, "ok"),  # sure mistakes
    (2.31, 50.0, 10, "ok"),
    (0.0, 0.0, 1, "ok"),  # ln 1
    (math.nan, math.nan, 10, "diverged"),
    (math.inf, 90.0, 10, "diverged"),
  ],
)
def test_dead_is_the_loss_and_the_error_of_guessing(loss, error, classes, expected):
  assert evaluate.status(loss, error, classes) == expected


def test_what_is_no_number_is_null(tmp_path):
  evaluate.write(tmp_path, {"loss": math.nan, "error": 3.0})
  assert json.loads((tmp_path / "evaluation.json").read_text()) == {"loss": None, "error": 3.0}


def test_a_network_outlives_the_optimizer_that_trained_it(tiny, tmp_path):
  tiny.train.steps, run = 1, tmp_path / "run"
  loop.train(tiny, run)
  before = evaluate.from_workdir(run)
  config = run / "config.json"
  config.write_text(config.read_text().replace('"name": "sgd"', '"name": "adam"'))
  assert evaluate.from_workdir(run) == before
  tiny.optimizer.name = "adam"
  with pytest.raises(UsageError, match="opt_state"):
    loop.train(tiny, run)  # to go on, its optimizer is needed as it was


def test_a_set_of_other_classes_is_refused_by_its_name(tiny, npz, tmp_path):
  tiny.train.steps = 1
  loop.train(tiny, tmp_path / "run")
  arrays = dict(np.load(npz))
  np.savez(npz, **arrays | {k: arrays[k] % 4 for k in ("train_labels", "test_labels")})
  with pytest.raises(UsageError, match=r"colours\.npz has 4 classes, the network in .* 10"):
    evaluate.from_workdir(tmp_path / "run")


def test_views_are_told_of_where_they_were_averaged(tiny, tmp_path):
  tiny.dataset.augment, tiny.train.steps = "shift_flip", 1
  loop.train(tiny, tmp_path / "run")
  assert evaluate.from_workdir(tmp_path / "run", views=2)["views"] == 2
  assert "views" not in evaluate.from_workdir(tmp_path / "run")
