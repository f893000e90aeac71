"""What Graham's augmentation costs an image: one jitted warp, against SciPy's.

  python -m benchmarks.warp [--output=FILE]
  python -m benchmarks.warp --step     # on an accelerator: its share of a step of the Large net

SciPy's `affine_transform` with the same bilinear interpolation draws the same canvas of 126x126
with the same maps, channel by channel. Both take turns; the ratio is the median over rounds.
`augmentation` is all of it: drawing the numbers, colours, the warp and the grey around.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from allcnn_jax import config as config_lib
from allcnn_jax.analysis import benchmark
from allcnn_jax.data import augmentation
from allcnn_jax.errors import Parser, one_line
from benchmarks import command
from configs import cifar10_large

SIZE = (126, 126)


def seconds(f):
  start = time.perf_counter()
  jax.block_until_ready(f())
  return time.perf_counter() - start


def by_scipy(images, matrix, shift):
  middle, own = (np.array(SIZE) - 1) / 2, (np.array(images.shape[1:3]) - 1) / 2
  out = np.empty((len(images), *SIZE, images.shape[-1]), np.float32)
  for i, (m, t) in enumerate(zip(matrix, shift)):
    for c in range(images.shape[-1]):
      scipy.ndimage.affine_transform(
        images[i, ..., c],
        m,
        own - m @ (middle + t),
        SIZE,
        out[i, ..., c],
        order=1,
        mode="grid-constant",
      )
  return out


def share_of_a_step(batch_size, rounds):
  """Seconds of a step of the Large net, and of the same step without augmentation, in turn."""
  config = config_lib.complete(cifar10_large.get_config())
  config.train.batch_size = batch_size
  plain = config.copy_and_resolve_references()
  plain.dataset.augment, plain.dataset.plain_epochs = "none", 0
  runs = {"augmented": benchmark.Rounds(config).begin(), "plain": benchmark.Rounds(plain).begin()}
  times = [{name: run.seconds() / run.steps for name, run in runs.items()} for _ in range(rounds)]
  return {name: statistics.median(t[name] for t in times) for name in runs}


def main():
  parser = Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--images", type=command.positive, default=128)
  parser.add_argument("--rounds", type=command.positive, default=20)
  parser.add_argument("--step", action="store_true", help="the share of a whole step instead")
  command.add_to(parser)
  flags = parser.parse_args()
  found = {"images": flags.images, "rounds": flags.rounds}

  if flags.step:
    found["seconds"] = share_of_a_step(flags.images, flags.rounds)
    found["share"] = 1 - found["seconds"]["plain"] / found["seconds"]["augmented"]
    print(f"{found['share']:.1%} of a step of {found['seconds']['augmented']:.3f} s")
  else:
    images = jax.random.normal(jax.random.key(0), (flags.images, 32, 32, 3))
    graham = augmentation.Graham()
    matrix = graham.inverse(jax.random.key(1), flags.images)
    shift = jax.random.randint(jax.random.key(2), (flags.images, 2), -16, 17).astype(jnp.float32)
    plain = [np.asarray(x, np.float64) for x in (matrix, shift)]
    raw = np.asarray(images)
    warp, whole = (
      jax.jit(augmentation.warp, static_argnums=3),
      jax.jit(graham, static_argnums=2),
    )
    ways = {
      "scipy": lambda: by_scipy(raw, *plain),
      "warp": lambda: warp(images, matrix, shift, SIZE),
      "augmentation": lambda: whole(jax.random.key(3), images, SIZE),
    }
    worst = float(np.abs(ways["scipy"]() - np.asarray(ways["warp"]())).max())
    seconds(ways["augmentation"])
    times = [{name: seconds(f) for name, f in ways.items()} for _ in range(flags.rounds)]
    found |= {"largest_difference": worst}
    for name in ways:
      ratio = statistics.median(t["scipy"] / t[name] for t in times)
      each = 1000 * statistics.median(t[name] for t in times) / flags.images
      found[name] = {"milliseconds_an_image": each, "times_as_fast_as_scipy": ratio}
      print(f"{name:12} {each:7.3f} ms an image   {ratio:5.2f} times as fast as SciPy")
    print(f"largest difference between warp and SciPy: {worst:.1g}")
  command.write(flags, found)


if __name__ == "__main__":
  with one_line("benchmarks.warp"):
    main()
