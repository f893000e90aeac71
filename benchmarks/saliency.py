"""What pictures cost: guided against plain gradients, a search for patches against a forward pass.

  python -m benchmarks.saliency [--images=10000] [--batch_size=128] [--layer=conv7] [--output=FILE]

Random weights and images: neither changes the work. Each time is the best of several runs after
one that compiles, because other load only adds to a time; a search is over all the images.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from allcnn_jax.analysis import patches, saliency
from allcnn_jax.errors import Parser, one_line
from allcnn_jax.nets import model, relu
from benchmarks import command


def seconds(functions: dict, repeats: int) -> dict[str, float]:
  """Best time of each function; they take turns, so that a busy machine slows all alike."""
  times = {name: [] for name in functions}
  for turn in range(repeats + 1):
    for name, function in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(function())
      if turn:
        times[name].append(time.perf_counter() - start)
  return {name: min(values) for name, values in times.items()}


def main() -> None:
  parser = Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--images", type=command.positive, default=10_000)
  parser.add_argument("--batch_size", type=command.positive, default=128)
  parser.add_argument("--width", type=float, default=1.0)
  parser.add_argument("--layer", default="conv7")
  parser.add_argument("--repeats", type=command.positive, default=3)
  command.add_to(parser)
  flags = parser.parse_args()

  net = model.create("all_cnn_c", 10, width=flags.width)
  images = np.random.default_rng(0).normal(size=(flags.images, 32, 32, 3)).astype(np.float32)
  batch = jnp.asarray(images[: flags.batch_size])
  saliency.locate(net, flags.layer, images.shape[1:])  # a layer that there is not is refused here
  variables = jax.jit(net.init)(jax.random.key(0), batch)

  @jax.jit
  def plain(variables, images):
    return jax.grad(lambda x: net.apply(variables, x)[:, 7].sum())(images)

  attribute = functools.partial(
    saliency.attribute, net, variables, batch, layer="logits", channel=7
  )
  gradients = {
    "plain": lambda: plain(variables, batch),
    **{rule: functools.partial(attribute, rule=rule) for rule in relu.RULES},
  }
  forward = jax.jit(net.apply)

  def batches():
    return (images[i : i + flags.batch_size] for i in range(0, flags.images, flags.batch_size))

  passes = {
    "forward": lambda: [forward(variables, x) for x in batches()][-1],
    "patches": lambda: patches.top(net, variables, batches(), layer=flags.layer),
  }
  gradient = seconds(gradients, 5 * flags.repeats)
  search = seconds(passes, flags.repeats)
  found = {
    **command.asked(flags),
    "seconds": gradient | search,
    "guided / plain gradient": gradient["guided"] / gradient["plain"],
    "patches / forward": search["patches"] / search["forward"],
  }
  for name, value in found["seconds"].items():
    print(f"{name:10} {1000 * value:10.1f} ms")
  for ratio in ("guided / plain gradient", "patches / forward"):
    print(f"{ratio}: {found[ratio]:.3f}")
  command.write(flags, found)


if __name__ == "__main__":
  with one_line("benchmarks.saliency"):
    main()
