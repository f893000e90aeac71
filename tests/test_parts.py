"""Keys of a config reach the parts of its run."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from allcnn_jax.data import augmentation
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import linear
from allcnn_jax.training import parts
from allcnn_jax.training import step as step_lib


def test_keys_reach_the_rule(tiny):
  tiny.rule.name, tiny.rule.freeze_at, tiny.rule.penalty = "fa_usf_init_ei", 0.25, 0.5
  tiny.alignment.every_steps, tiny.train.epochs = 7, 4
  rule = parts.recipe(tiny, 10, 96).rule  # 12 steps an epoch
  assert (rule.freeze_step, rule.penalty, rule.tracks_signs) == (12, 0.5, True)


def test_feedback_weights_have_the_variance_asked_for_and_change_with_the_seed(tiny):
  tiny.rule.name, tiny.rule.feedback_init, tiny.model.width = "fa", "gaussian_0.05", 0.2
  found = []
  for seed in (0, 1):
    tiny.seed = seed
    variables = step_lib.init(parts.recipe(tiny, 10, 96), 3).variables
    found.append(variables["feedback"]["conv3"]["kernel"])
  np.testing.assert_allclose([b.std() for b in found], 0.05, rtol=0.1)
  assert not np.array_equal(*found)


def test_keys_reach_the_augmentation(tiny):
  tiny.train.epochs, tiny.dataset.plain_epochs = 4, 1
  tiny.dataset.augment, tiny.graham.stretch, tiny.graham.shift = "graham", 0.1, 3
  assert parts.augment(tiny).apply == augmentation.Graham(stretch=0.1, shift=3)
  assert parts.recipe(tiny, 10, 96).plain_from == 36


def test_a_run_trains_with_the_layers_of_training_one_device_with_the_faster_convolution(tiny):
  net = parts.recipe(tiny, 10, 96).net
  assert net.dense is linear.Dense
  device = jax.devices()[:1]
  meshes = [Mesh(np.array(device * n), ("batch",)) for n in (1, 2)]
  assert [parts.fast(net, mesh).conv for mesh in meshes] == [linear.Fast, linear.Conv]


def test_more_steps_than_are_counted_are_refused(tiny):
  tiny.train.epochs = 2**31 // 12 + 1
  with pytest.raises(UsageError, match="32-bit"):
    parts.steps(tiny, 96)
  tiny.train.steps = 5  # schedules count epochs all the same
  with pytest.raises(UsageError, match="32-bit"):
    parts.steps(tiny, 96)
