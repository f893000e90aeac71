"""A trained network's variables in one safetensors file, which any framework reads.

In the folder of a network that is published it stands in the place of checkpoints; of the optimizer
it holds nothing.
"""

import numpy as np
import safetensors.numpy
from etils import epath
from flax import traverse_util
from jaxtyping import PyTree

from allcnn_jax import files
from allcnn_jax.errors import UsageError

NAME = "weights.safetensors"
_STEP = "step"


def published(folder: epath.PathLike) -> bool:
  """Whether it is the folder of a network that is published: no run can go on there."""
  return (epath.Path(folder) / NAME).exists()


def save(variables: PyTree, step: int, path: epath.PathLike) -> None:
  """Writes each array under its path, such as "params/conv1/kernel", and the step as "step"."""
  arrays = {**traverse_util.flatten_dict(variables, sep="/"), _STEP: np.int32(step)}
  arrays = {name: np.asarray(x, order="C") for name, x in arrays.items()}
  files.write(epath.Path(path), safetensors.numpy.save(arrays))


def load(path: epath.PathLike) -> tuple[PyTree, int]:
  """(variables, step) as `save` wrote them; the variables are NumPy arrays.

  Raises:
    UsageError: it is no such file, or damaged.
  """
  path = epath.Path(path)
  try:
    arrays = safetensors.numpy.load(path.read_bytes())
    step = arrays.pop(_STEP)
    if (step.shape, step.dtype) != ((), np.int32) or step < 0:
      raise ValueError(f"its step is {step}, of type {step.dtype}")
    return traverse_util.unflatten_dict(arrays, sep="/"), int(step)
  except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
    raise UsageError(f"{path} is damaged ({error}).") from None
