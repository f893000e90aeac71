"""Records and sheets made by hand."""

import ml_collections
import numpy as np

from allcnn_jax import config as config_lib
from allcnn_jax.analysis.records import Record
from allcnn_jax.analysis.sheet import Block, Row, Sheet
from tests import shipped


def of_rule(rule="fa", seed=0, scale=1.0, error=5.0, **keys):
  """A run of two epochs whose errors and angles are `scale` times its steps, but for `keys`."""
  config = config_lib.complete(ml_collections.ConfigDict())
  config.rule.name, config.seed = rule, seed
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
  metrics = [{"step": 0, **_alignment(0.0)}]
  for step in (10, 20):
    loss = {"train_error": scale * step, "train_loss": 1.0, "epoch": step / 10}
    metrics += [{"step": step, **loss}, {"step": step, **_alignment(scale * step)}]
    metrics += [{"step": step, "split": "test", "eval_error": 2 * scale * step}]
  return Record(config, metrics, {"error": error, "status": "ok"})


def _alignment(value):
  names = ("error_angle", "error_ratio", "sign_differs", "sign_ever_differed")
  return {f"{name}/{layer}": value + 1 for name in names for layer in ("conv10", "conv2", "dense1")}


def of_all_cnn_c(error=10.0, status="ok", step=None, machine=None, **keys):
  """A run of the paper's All-CNN-C but for `keys`, at two epochs a second."""
  config = shipped.load("cifar10", **keys)
  total = config.train.steps or 390 * config.train.epochs
  metrics = [
    {"step": s, "epoch": s / 390, "train_error": 1.0, "images_per_second": 2 * 390 * 128.0}
    for s in (390, total)
  ]
  error = None if status == "diverged" else error
  evaluation = {"error": error, "status": status, "step": step or total, "split": "test"}
  if status != "diverged":
    metrics.append({"step": step or total, "split": "test", "eval_error": error})
  return Record(config, metrics, evaluation, machine or {}, "")


def sheet(name="figure9", **changes):
  """A sheet of one row of two pictures, but for `changes`."""
  red = np.zeros((4, 6, 3), np.uint8)
  red[..., 0] = np.arange(24).reshape(4, 6) * 10
  blocks = [
    Block("filter 7", [Row("guided", [red, red[:, ::-1]], ["1.5", "2.5"], "±3")], ["a", "b"])
  ]
  return Sheet(name, "Title", "Caption. " * 20, blocks, 1, {"guided": red})._replace(**changes)
