import json
import math

import jax
import numpy as np
import pytest

from allcnn_jax.errors import UsageError
from allcnn_jax.nets import model
from allcnn_jax.training import evaluate
from allcnn_jax.training import step as step_lib


@pytest.fixture
def case(key):
  net = model.create("all_cnn_c", 10, width=0.04, init="he_normal", final_relu=False)
  images = np.asarray(jax.random.normal(key, (23, 32, 32, 3)))
  labels = np.arange(23, dtype=np.int32) % 10
  variables = net.init(key, images)
  logits = np.asarray(net.apply(variables, images), np.float64)
  loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(23), labels]
  error = 100 * np.mean(logits.argmax(1) != labels)
  return net, variables, images, labels, loss.mean(), error


@pytest.mark.parametrize("batch_size", [1, 4, 7, 22, 23, 64])
def test_every_image_counts_once_at_any_batch_size(case, batch_size):
  net, variables, images, labels, loss, error = case
  scores = evaluate.evaluate(
    net, (32, 32), variables, step_lib.Stored.of(images, labels), batch_size
  )
  assert scores.examples == 23
  np.testing.assert_allclose(scores.error, error)
  np.testing.assert_allclose(scores.loss, loss, rtol=1e-5)


def test_larger_images_are_cut_to_their_centre(case):
  net, variables, images, labels, loss, _ = case
  padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), constant_values=9)
  scores = evaluate.evaluate(net, (32, 32), variables, step_lib.Stored.of(padded, labels), 8)
  np.testing.assert_allclose(scores.loss, loss, rtol=1e-5)


@pytest.mark.parametrize(
  ("loss", "classes", "expected"),
  [
    (math.log(10), 10, "dead"),
    (2.3123, 10, "dead"),
    (2.27, 10, "ok"),
    (0.1, 10, "ok"),
    (2.5, 10, "ok"),
    (math.log(100), 100, "dead"),
    (2.3026, 100, "ok"),
    (math.nan, 10, "diverged"),
    (math.inf, 10, "diverged"),
  ],
)
def test_dead_is_a_loss_at_the_logarithm_of_the_classes(loss, classes, expected):
  assert evaluate.status(loss, classes) == expected


def test_what_is_no_number_is_null(tmp_path):
  evaluate.write(tmp_path, {"loss": math.nan, "error": 3.0})
  assert json.loads((tmp_path / "evaluation.json").read_text()) == {"loss": None, "error": 3.0}


def test_a_folder_that_is_no_runs_is_refused(tmp_path):
  with pytest.raises(UsageError, match=r"no config\.json"):
    evaluate.restore(tmp_path)
