"""How far a network's gradients here are from float64's, layer by layer.

  python -m benchmarks.precision --dtype=bfloat16

The gradient of one batch, by the step's own function and convolutions, on this machine's first
device; and once more in float64 on its CPU, by XLA's own convolutions. An error is
||here - there|| / ||there||. Random images, a fresh net, no dropout: its masks are others in float64.
On a GPU float32 means TF32 unless JAX_DEFAULT_MATMUL_PRECISION=highest is set.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from allcnn_jax import config as config_lib
from allcnn_jax.errors import Parser, UsageError, one_line
from allcnn_jax.training import parts, randomness
from allcnn_jax.training import step as step_lib
from benchmarks import command
from configs import cifar10

CLASSES = 10


def errors(config):
  """{"conv1/kernel": the error of its gradient, ..., "all": that of all as one}, for one batch.

  Raises:
    UsageError: the config, or JAX_PLATFORMS names no CPU.
  """
  config_lib.check(config)
  try:
    cpu = jax.devices("cpu")[0]
  except RuntimeError as error:
    raise UsageError(f"JAX_PLATFORMS must name the CPU too ({error}).") from None
  config = config.copy_and_resolve_references()
  config.model.dropout = tuple(0.0 for _ in config.model.dropout)
  images, shape = config.train.batch_size, parts.image(config)
  recipe = parts.recipe(config, CLASSES, images)
  variables = step_lib.init(recipe, shape[2]).variables
  batch = step_lib.Examples(
    jax.random.normal(randomness.key(config.seed, "images"), (images, *shape)),
    jnp.arange(images, dtype=jnp.int32) % CLASSES,
  )
  here = _gradient(recipe.net, recipe.rule, variables, batch)
  with jax.enable_x64(True), jax.default_device(cpu):
    variables, batch = jax.tree.map(_widened, jax.device_put((variables, batch), cpu))
    config.train.dtype = "float32"  # float64 in this context
    there = _gradient(parts.network(config, CLASSES), recipe.rule, variables, batch)
  found = {name: _error(here[name], there[name]) for name in there}
  whole = [np.concatenate([g[name].ravel() for name in there]) for g in (here, there)]
  return found | {"all": _error(*whole)}


def _gradient(net, rule, variables, batch):
  compute = jax.jit(lambda v, b: step_lib.gradients(net, v, b, {}, rule)[1])
  found = traverse_util.flatten_dict(jax.device_get(compute(variables, batch)), sep="/")
  return {name: np.asarray(g, np.float64) for name, g in found.items()}


def _widened(x):
  return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _error(here, there):
  return float(np.linalg.norm(here - there) / np.linalg.norm(there))


def main():
  parser = Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--network", default="all_cnn_c")
  parser.add_argument("--width", type=float, default=1.0)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--batch_size", type=command.positive, default=128)
  command.add_to(parser)
  flags = parser.parse_args()

  config = command.config(cifar10.get_config, flags.network)
  config.model.width, config.train.dtype = flags.width, flags.dtype
  config.train.batch_size = flags.batch_size
  found = errors(config)
  for name, error in found.items():
    print(f"{name:16} {error:.1e}")
  command.write(flags, command.asked(flags) | {"errors": found})


if __name__ == "__main__":
  with one_line("benchmarks.precision"):
    main()
