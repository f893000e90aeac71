import math

import ml_collections
import pytest

from allcnn_jax import config as config_lib
from allcnn_jax.errors import UsageError


def complete(**keys):
  config = ml_collections.ConfigDict()
  for path, value in keys.items():
    group, name = path.split("__")
    config.update({group: {name: value}})
  return config_lib.complete(config)


def test_every_default_is_allowed():
  config = complete()
  config_lib.check(config)
  assert {path for path, _ in config_lib.leaves(config)} == set(config_lib.KEYS)


def test_json_keeps_every_value_and_type():
  config = complete(model__dropout=(0.1, 0.2), optimizer__drops=(2, 3.5), train__steps=7)
  again = config_lib.from_json(config_lib.to_json(config))
  assert again.to_dict() == config.to_dict()
  assert isinstance(again.model.dropout, tuple)


@pytest.mark.parametrize(
  ("path", "value", "said"),
  [
    ("model__name", "all_cn_c", "Did you mean 'all_cnn_c'"),
    ("model__pool", "0.3", "p >= 1"),
    ("model__dropout", (0.1, 1.5), r"\[0, 1\)"),
    ("model__dropout", (0.1,), "2 rates"),
    ("dataset__augment", "flop", "shift_flip"),
    ("train__batch_size", 0, "at least 1"),
    ("train__dtype", "float16", "bfloat16"),
    ("optimizer__drops", (5, 3), "rising"),
    ("optimizer__momentum", 1.0, "below 1"),
    ("optimizer__learning_rate", float("nan"), "from 0"),
    ("optimizer__name", "sdg", "Did you mean 'sgd'"),
    ("checkpoint__keep", 0, "at least 1"),
    ("dataset__augment", "graham", "scale of 'grey'"),
    ("graham__colour", (1.0, 2.0), "four numbers"),
    ("graham__skew", 1.0, "below 1"),
    ("stream__damaged", 1.5, "below 1"),
    ("model__width", math.inf, "above 0"),
    ("model__pool", "0.5", "p >= 1"),
    ("dataset__name", "", "or a TFDS image set such as cifar10 cifar100 mnist"),
    ("optimizer__drops", (5, math.inf), "rising"),
    ("graham__colour", (math.inf, 0, 0, 0), "four numbers"),
  ],
)
def test_a_value_that_is_not_allowed_is_named_with_those_that_are(path, value, said):
  with pytest.raises(UsageError, match=said):
    config_lib.check(complete(**{path: value}))


@pytest.mark.parametrize(
  ("keys", "said"),
  [
    (
      {"model__name": "large_all_cnn", "dataset__preprocessing": "gcn_zca"},
      "up to 16384 values, not of 126x126x3",
    ),
    (
      {"dataset__preprocessing": "grey", "dataset__augment": "graham"},
      "'all_cnn_c': .*large_all_cnn takes 126x126",
    ),
  ],
)
def test_what_does_not_go_together_is_refused(keys, said):
  with pytest.raises(UsageError, match=said):
    config_lib.check(complete(**keys))


def test_a_key_that_nothing_reads_is_refused():
  with pytest.raises(UsageError, match=r"Did you mean 'optimizer.learning_rate'"):
    complete(optimizer__learning_rat=0.1)


def test_a_value_of_another_type_is_refused():
  with pytest.raises(UsageError, match="type int"):
    complete(train__batch_size="many")


def test_damaged_json_is_one_line():
  with pytest.raises(UsageError, match="JSON"):
    config_lib.from_json("{")


def test_signs_are_not_clipped(tiny):
  tiny.rule.name, tiny.optimizer.clip_norm = "batch_manhattan", 1.0
  with pytest.raises(
    UsageError, match=r"clip_norm=1\.0: rule\.name='batch_manhattan' takes the sign"
  ):
    config_lib.check(tiny)
