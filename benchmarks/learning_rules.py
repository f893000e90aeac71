"""What a step under each rule costs, against a step of backpropagation.

  python -m benchmarks.learning_rules --network=fa_mnist --batch_size=128

Rounds of steps of a rule and of backpropagation alternate, so that whatever else the machine does
falls on both alike; a ratio is the median over rounds of (the rule's step / backpropagation's step of
the same round). Compile time is apart. `measure` is one measurement of alignment, as a ratio to the
same step.
"""

import statistics
import time

import jax

from allcnn_jax.analysis import benchmark
from allcnn_jax.errors import Parser, UsageError, one_line
from allcnn_jax.training import learning_rules, measurements
from benchmarks import command
from configs import feedback_alignment


def prepare(name, rule, batch_size):
  """(the seconds that a step takes, those of a measurement of alignment): functions that measure."""
  config = command.config(feedback_alignment.get_config, f"{name},{rule}")
  config.train.batch_size = batch_size
  run = benchmark.Rounds(config).begin()
  batch = run.data.take(slice(batch_size))

  def step():
    return run.seconds() / run.steps

  def measure():
    start = time.perf_counter()
    for _ in range(run.steps):  # one by itself would be the wait for an accelerator
      found = measurements.measure(run.recipe, run.state.variables, batch)
    jax.block_until_ready(found)
    return (time.perf_counter() - start) / run.steps

  return step, measure


def compared(name, f, bp, rounds):
  """What `f` takes beside a step of backpropagation; both are called once before."""
  bp(), f()
  pairs = [(f(), bp()) for _ in range(rounds)]
  ratios = [a / b for a, b in pairs]
  low, high = benchmark.quartiles(ratios)
  ratio, taken = statistics.median(ratios), 1000 * statistics.median(a for a, _ in pairs)
  print(f"{name:18} {taken:8.1f} ms   x {ratio:.3f}   ({low:.3f} to {high:.3f})", flush=True)
  return {"ratio": ratio, "quartiles": [low, high], "milliseconds": taken}


def main():
  parser = Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--network", default="fa_mnist", help="of configs/feedback_alignment.py")
  rules = list(learning_rules.RULES)
  parser.add_argument("--rules", nargs="+", default=rules, choices=rules, metavar="RULE")
  parser.add_argument("--batch_size", type=command.positive, default=128)
  parser.add_argument("--rounds", type=command.positive, default=20)
  command.add_to(parser)
  flags = parser.parse_args()

  about = {"network": flags.network, "batch_size": flags.batch_size, "rounds": flags.rounds}
  found, (bp, _) = {}, prepare(flags.network, "bp", flags.batch_size)
  for rule in dict.fromkeys(("bp", *flags.rules)):
    try:
      step, measure = prepare(flags.network, rule, flags.batch_size)
    except UsageError as error:
      print(f"{rule}: {error}")
      continue
    found[rule] = compared(rule, step, bp, flags.rounds)
    if rule == "fa":
      found["measure (fa)"] = compared("measure (fa)", measure, bp, flags.rounds)
    command.write(flags, about | {"steps": found})  # what has been measured is kept


if __name__ == "__main__":
  with one_line("benchmarks.learning_rules"):
    main()
