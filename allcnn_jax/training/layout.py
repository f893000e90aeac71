"""What stands where in a run's folder, and the config there."""

import ml_collections
from etils import epath

from allcnn_jax import config as config_lib
from allcnn_jax import files
from allcnn_jax.errors import UsageError

CONFIG = "config.json"
MACHINE = "machine.json"
EVALUATION = "evaluation.json"
METRICS = "metrics.jsonl"
FIGURES = "figures"


def holds_run(workdir: epath.PathLike) -> bool:
  """Whether it is a run's folder, or a published network's."""
  return (epath.Path(workdir) / CONFIG).exists()


def read_config(workdir: epath.PathLike) -> ml_collections.ConfigDict:
  """The config of the run in a folder.

  Raises:
    UsageError: the folder holds no run.
  """
  path = epath.Path(workdir) / CONFIG
  if not path.exists():
    files.inside(workdir)  # refuses one that may not be looked into
    raise UsageError(f"{workdir} is no run's folder: it has no {CONFIG}.")
  try:
    return config_lib.from_json(path.read_text())
  except (UsageError, UnicodeDecodeError) as error:
    raise UsageError(f"{path}: {error}") from None


def write_config(workdir: epath.PathLike, config: ml_collections.ConfigDict) -> None:
  """Makes a folder the run's of a config."""
  files.write(epath.Path(workdir) / CONFIG, config_lib.to_json(config).encode())


def preprocessing_of(workdir: epath.PathLike) -> epath.Path:
  """Where the preprocessing that was fitted for the run is kept."""
  return epath.Path(workdir) / "preprocessing"
