"""The configs that the project ships."""

import importlib

from allcnn_jax import config as config_lib
from tests.processes import ROOT

FOLDER = ROOT / "configs"
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))
SWEEPS = [name for name in FILES if "def get_sweep" in (FOLDER / f"{name}.py").read_text()]


def load(name, argument=None, **changes):
  """A complete config, but for `changes`, their dots written as two underscores."""
  get_config = importlib.import_module(f"configs.{name}").get_config
  config = config_lib.complete(get_config(argument) if argument else get_config())
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config
