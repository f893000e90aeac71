"""What the twelve networks of Table 3 take: a step of each, and the paper's epochs of all.

  python -m benchmarks.table3 --dtype=bfloat16 --compiling=4

All are compiled first, so many side by side, and then measured one after the other. The times are
those of the training steps; compilation, evaluations and checkpoints are apart. All twelve lie on the
device at once, each with images of its own: 8 GB of them in float32.
"""

import concurrent.futures
import statistics

from allcnn_jax.analysis import benchmark
from allcnn_jax.data import datasets
from allcnn_jax.errors import Parser, one_line
from allcnn_jax.training import parts
from benchmarks import command
from configs import cifar10, table3


def main():
  parser = Parser(description=__doc__.splitlines()[0])
  names = {"choices": table3.NETWORKS, "default": table3.NETWORKS, "metavar": "NAME"}
  parser.add_argument("--networks", nargs="+", help="of the twelve", **names)
  parser.add_argument("--width", type=float, default=1.0)
  parser.add_argument("--batch_size", type=command.positive, default=128)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--compiling", type=command.positive, default=1, help="networks at a time")
  parser.add_argument("--rounds", type=command.positive, default=3)
  command.add_to(parser)
  flags = parser.parse_args()

  configs = [command.config(cifar10.get_config, name) for name in flags.networks]
  for config in configs:
    config.model.width, config.train.dtype = flags.width, flags.dtype
    config.train.batch_size = flags.batch_size
  with concurrent.futures.ThreadPoolExecutor(flags.compiling) as pool:
    runs = list(pool.map(benchmark.Rounds, configs))

  found, examples = {}, datasets.sizes("cifar10").train
  for config, run in zip(configs, runs):
    run.begin()
    steps = [run.seconds() / run.steps for _ in range(flags.rounds)]
    step, (_, whole) = statistics.median(steps), parts.steps(config, examples)
    found[config.model.name] = {"step_seconds": step, "range": [min(steps), max(steps)]}
    found[config.model.name]["seconds"] = step * whole
    print(f"{config.model.name:16} {1e3 * step:10.4f} ms a step {step * whole:10.1f} s", flush=True)
    together = sum(x["seconds"] for x in found.values())
    command.write(flags, command.asked(flags) | {"steps": found, "seconds": together})
  print(f"{'together':16} {'':20} {together:10.1f} s for {config.train.epochs} epochs of each")


if __name__ == "__main__":
  with one_line("benchmarks.table3"):
    main()
