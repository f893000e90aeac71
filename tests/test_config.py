import math

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from allcnn_jax import config as config_lib
from allcnn_jax.errors import UsageError
from allcnn_jax.training import parts
from allcnn_jax.training import step as step_lib


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
    ("optimizer__drops", (5, 5), "rising"),
    ("optimizer__momentum", 1.0, "below 1"),
    ("optimizer__learning_rate", float("nan"), "from 0"),
    ("optimizer__name", "sdg", "Did you mean 'sgd'"),
    ("checkpoint__keep", 0, "at least 1"),
    ("dataset__augment", "graham", "scale of 'grey'"),
    ("graham__colour", (1.0, 2.0), "four numbers"),
    ("graham__skew", 1.0, "below 1"),
    ("graham__shift", 10**12, "at most 1000"),
    pytest.param("optimizer__learning_rate", 10**400, "a number from 0", id="no float"),
    ("stream__damaged", 1.5, "below 1"),
    ("model__width", math.inf, "above 0"),
    ("model__pool", "0.5", "p >= 1"),
    ("dataset__name", "", "or a TFDS image set such as cifar10, cifar100, mnist"),
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


OTHER_VALUES = {
  "dataset.plain_epochs": 2,
  "graham.stretch": 0.1,
  "graham.skew": 0.1,
  "graham.shift": 3,
  "graham.colour": (1.0, 0.1, 0.1, 0.1),
  "optimizer.warmup": 0.3,
  "optimizer.drops": (1, 3),
  "optimizer.drop_factor": 3.0,
  "optimizer.nesterov": True,
  "optimizer.velocity": "optax",
  "rule.feedback_init": "fan_in",
  "rule.freeze_at": 0.7,
  "rule.penalty": 0.3,
}


def program(config):
  """All that a run computes, from its seed to the weights after a step."""

  def run(data, order):
    recipe = parts.recipe(config, 10, 40)
    state = step_lib.init(recipe, 3)
    return step_lib._step(
      recipe, state, step_lib.Totals.zero(), step_lib.batch_at(recipe, data, order, state.step)
    )

  images = jnp.zeros((40, *parts.stored(config)))
  data = step_lib.Stored.of(images, jnp.zeros(40, jnp.int32))
  traced = jax.make_jaxpr(run)(data, jnp.arange(40))
  return str(traced), [x.tolist() for x in traced.consts]


@pytest.mark.parametrize("path", [p for p, key in config_lib.KEYS.items() if key.read_where])
def test_a_key_changes_the_program_exactly_where_it_is_said_to_be_read(path):
  decides, names = config_lib.KEYS[path].read_where
  config = complete(model__name="fa_cifar10_1", model__head="dense", model__width=0.1)
  config.train.epochs, config.train.batch_size = 5, 4
  if path == "optimizer.drop_factor":
    config.optimizer.drops = (2,)
  for name in config_lib.KEYS[decides].names:
    config.update_from_flattened_dict({decides: name, path: config_lib.KEYS[path].default})
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({path: OTHER_VALUES[path]})
    assert (program(config) != program(other)) == (name in names), name
    assert bool(config_lib.unread(other, path)) == (name not in names)
