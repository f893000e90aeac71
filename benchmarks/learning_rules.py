"""What a step under each rule costs, against a step of backpropagation.

  python -m benchmarks.learning_rules --config=fa_mnist --batch_size=128

Steps of a rule and of backpropagation alternate, so that whatever else the machine does falls on both
alike; a ratio is the median over rounds of (the rule's step / backpropagation's step of the same
round). Compile time is apart. `measure` is one measurement of alignment, as a ratio to the same step.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from allcnn_jax import config as config_lib
from allcnn_jax.analysis import benchmark
from allcnn_jax.errors import UsageError
from allcnn_jax.training import learning_rules, measurements, parts
from allcnn_jax.training import step as step_lib
from benchmarks import output
from configs import feedback_alignment


def prepare(name, rule, batch_size):
  """(a function that does one step, one that measures alignment); the step's program goes with it."""
  config = config_lib.complete(feedback_alignment.get_config(f"{name},{rule}"))
  config.train.batch_size = batch_size
  recipe = parts.recipe(config, 10, batch_size)
  image = parts.image(config)
  images = jax.random.normal(jax.random.key(0), (batch_size, *image))
  data = step_lib.Stored.of(images, jnp.arange(batch_size, dtype=jnp.int32) % 10)
  order, carry = jnp.arange(batch_size), [step_lib.init(recipe, image[2]), step_lib.Totals.zero()]
  compiled = step_lib.train_step.lower(recipe, *carry, data, order).compile()

  def step():
    carry[:] = compiled(*carry, data, order)
    jax.block_until_ready(carry[1])

  def measure():
    jax.block_until_ready(measurements.measure(recipe, carry[0].variables, data.take(slice(None))))

  return step, measure


def seconds(f):
  start = time.perf_counter()
  f()
  return time.perf_counter() - start


def compared(name, f, bp, rounds):
  """What `f` takes beside a step of backpropagation; both are called once before."""
  seconds(bp), seconds(f)
  pairs = [(seconds(f), seconds(bp)) for _ in range(rounds)]
  ratios = [a / b for a, b in pairs]
  low, high = benchmark.quartiles(ratios)
  ratio, taken = statistics.median(ratios), 1000 * statistics.median(a for a, _ in pairs)
  print(f"{name:18} {taken:8.1f} ms   x {ratio:.3f}   ({low:.3f} to {high:.3f})", flush=True)
  return {"ratio": ratio, "quartiles": [low, high], "milliseconds": taken}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--config", default="fa_mnist", help="a network of configs/feedback_alignment"
  )
  parser.add_argument("--rules", nargs="+", default=list(learning_rules.RULES))
  parser.add_argument("--batch_size", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=20)
  output.add_to(parser)
  flags = parser.parse_args()

  found, (bp, _) = {}, prepare(flags.config, "bp", flags.batch_size)
  for rule in dict.fromkeys(("bp", *flags.rules)):
    try:
      step, measure = prepare(flags.config, rule, flags.batch_size)
    except UsageError as error:
      print(f"{rule}: {error}")
      continue
    found[rule] = compared(rule, step, bp, flags.rounds)
    if rule == "fa":
      found["measure (fa)"] = compared("measure (fa)", measure, bp, flags.rounds)
  about = {"network": flags.config, "batch_size": flags.batch_size, "rounds": flags.rounds}
  output.write(flags, about | {"steps": found})


if __name__ == "__main__":
  main()
