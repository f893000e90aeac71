"""Every shipped config is complete and allowed, and runs when shrunk."""

import ast
import importlib
import inspect
import json

import pytest

from allcnn_jax import config as config_lib
from allcnn_jax.data import datasets
from allcnn_jax.nets import architectures
from allcnn_jax.training import evaluate, learning_rules, loop, optimizer, parts
from tests.shipped import FILES, FOLDER, SWEEPS, load

ARGUMENTS = {
  "cifar10": ["all_cnn_c", "model_a,augment"],
  "cifar100": ["strided_cnn_b", "conv_pool_cnn_c,augment"],
  "cifar10_large": ["cifar100"],
  "imagenet": ["large_batch"],
  "pooling": ["mnist"],
  "feedback_alignment": ["fa_cifar10_1,fa_usf_sn_ei", "fa_cifar10_2,dfa,adam"],
}


def cases():
  for name in FILES:
    if name in ("table3", "table4", "side_experiments", "fa_table1"):
      continue  # what these list are the configs of the other files
    for argument in ARGUMENTS.get(name, [None]):
      yield pytest.param(name, argument, id=f"{name}:{argument}" if argument else name)


@pytest.mark.parametrize(("name", "argument"), list(cases()))
def test_it_runs_shrunk(name, argument, npz, tmp_path):
  config = load(name, argument)
  config_lib.check(config)
  whitened = config.dataset.preprocessing == "gcn_zca"
  if whitened:  # the matrix of 32 x 32 images takes longer than everything else here
    config.dataset.preprocessing = "standardize"
  grey = parts.image(config)[2] == 1
  config.dataset.name = "digits" if grey else f"npz:{npz}"
  config.model.width = 0.04
  config.train.batch_size = 8
  config.train.steps = 2
  outcome = loop.train(config, tmp_path / "run")
  assert outcome.step == 2
  assert evaluate.from_workdir(tmp_path / "run")["examples"] == (359 if grey else 50)


@pytest.mark.parametrize("name", FILES)
def test_an_accelerator_does_many_steps_in_a_call(name):
  module = importlib.import_module(f"configs.{name}")
  arguments = {
    "pooling": ["cifar10", "mnist"],
    "feedback_alignment": ["fa_mnist,fa", "fa_cifar10_2,fa"],
  }
  for argument in arguments.get(name, [""]):
    if name in SWEEPS:
      configs = module.get_sweep(argument)["units"] if argument else module.get_sweep()["units"]
    else:
      configs = [module.get_config(argument) if argument else module.get_config()]
    for config in map(config_lib.complete, configs):
      sizes = datasets.sizes(config.dataset.name)
      if config.dataset.name != "digits" and not sizes.varies:
        assert parts.steps_a_call(config, sizes.train) >= 39


@pytest.mark.parametrize("name", architectures.NAMES[:12])
@pytest.mark.parametrize("option", ["", ",augment"])
def test_cifar10_takes_every_network_of_the_tables(name, option):
  config = load("cifar10", name + option)
  config_lib.check(config)
  assert config.dataset.augment == ("shift_flip" if option else "none")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_augment_alone_is_that_of_all_cnn_c(name):
  assert load(name, "augment") == load(name, "all_cnn_c,augment")


@pytest.mark.parametrize("name", architectures.NAMES)
def test_feedback_alignment_takes_every_network_and_every_rule(name):
  for rule in learning_rules.RULES:
    config = load("feedback_alignment", f"{name},{rule}")
    config_lib.check(config)
    assert config.rule.name == rule


def test_feedback_alignment_s_protocols_and_both_sides_of_its_contradiction():
  found = {
    name: load("feedback_alignment", f"{name},fa").train.epochs
    for name in architectures.NAMES
    if name.startswith("fa_")
  }
  assert found == {
    "fa_mnist": 25,
    "fa_cifar10_1": 154,
    "fa_cifar10_2": 256,
    "fa_imagenet_1": 100,
    "fa_imagenet_2": 100,
  }
  for option, name in (("", "sgd"), (",adam", "adam")):
    config = load("feedback_alignment", f"fa_cifar10_2,bp{option}")
    assert (config.optimizer.name, config.optimizer.learning_rate) == (name, 0.05)
  for wrong in ("fa_mnist", "fa_mnist,fa,sdg", "fa_mnist,fa,sgd,1"):
    with pytest.raises(ValueError, match="ARCHITECTURE,RULE"):
      load("feedback_alignment", wrong)


def test_the_papers_protocol():
  """Section 3.2, written out here a second time."""
  config = load("cifar100", "all_cnn_c")
  assert config.train.epochs == 350
  assert config.optimizer.drops == (200, 250, 300)
  assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 0.001)
  assert config.model.dropout == (0.2, 0.5)
  assert config.dataset.preprocessing == "gcn_zca"
  rates = importlib.import_module("configs.table3").get_sweep()["rates"]
  assert sorted(rates) == [0.01, 0.05, 0.1, 0.25]


def test_what_the_feedback_alignment_paper_and_graham_s_program_say():
  """Moskovitz et al., Methods and supplement; SparseConvNet's cifar10big.cpp. A second time."""
  config = load("feedback_alignment", "fa_cifar10_1,fa_usf_sn_ei")
  assert (config.rule.freeze_at, config.rule.penalty, config.rule.feedback_init) == (
    0.05,
    0.001,
    "fan_out",
  )
  assert config.dataset.augment == "crop_flip"
  config = load("cifar10_large")
  assert config.graham.to_dict() == {
    "stretch": 0.2,
    "skew": 0.2,
    "shift": 16,
    "colour": (25.5, 0.15, 2.4, 2.4),
  }


def test_imagenet_s_protocol_in_steps_at_either_batch_size():
  """Section 3.3: rate 0.01, divided by 10 every 200,000 of 450,000 steps of 64."""
  for argument, times in (("", 1), ("large_batch", 16)):
    config = load("imagenet", argument)
    config_lib.check(config)
    assert config.train.steps * config.train.batch_size == 450_000 * 64
    assert config.train.batch_size == 64 * times
    steps_per_epoch = 1_281_167 // config.train.batch_size
    rate = optimizer.schedule(config.optimizer, steps_per_epoch, config.train.epochs)
    for drop, before in ((200_000 // times, 0.01), (400_000 // times, 0.001)):
      assert float(rate(drop - 1)) == pytest.approx(before * times)
      assert float(rate(drop + 1)) == pytest.approx(before * times / 10)
    assert (config.optimizer.weight_decay, config.model.dropout) == (0.0005, (0.5,))


@pytest.mark.parametrize("name", FILES)
def test_configs_import_nothing_but_ml_collections_and_each_other(name):
  tree = ast.parse((FOLDER / f"{name}.py").read_text())
  imported = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      imported |= {a.name.split(".")[0] for a in node.names}
    elif isinstance(node, ast.ImportFrom):
      imported.add(node.module.split(".")[0])
  assert imported <= {"ml_collections", "configs"}


@pytest.mark.parametrize("name", FILES)
def test_get_config_needs_no_argument_and_survives_json(name):
  get_config = importlib.import_module(f"configs.{name}").get_config
  assert all(p.default is not p.empty for p in inspect.signature(get_config).parameters.values())
  json.loads(config_lib.to_json(config_lib.complete(get_config())))


def test_a_dense_head_s_scores_have_no_relu():
  for unit in importlib.import_module("configs.side_experiments").get_sweep()["units"]:
    net = parts.network(config_lib.complete(unit), 10)
    *_, last = (x for x in net.table if hasattr(x, "features"))
    assert last.relu == (unit.model.get("head", "conv") == "conv")
