"""How fast images come: our stream against `tf.data`, on the same JPEGs and the same cores.

  python -m benchmarks.input [--cores=1] [--output=FILE]

Both cut random crops of 224 from images whose shorter side is 256 and flip half of them, into
batches of uint8 on the host. `tf.data` decodes with `decode_and_crop_jpeg` what it reads from a
TFRecord file of bare JPEGs, up to 4,096 spread over the set, which its shuffling holds in memory;
ours come from the ArrayRecord files of TFDS. Both are confined to the same cores and take turns.
Then: the time from the start of a process to its first batch, and the memory after each part of a
long epoch. `python launch.py benchmark --config=configs/imagenet.py` says how many images a second
the step takes, so that the cores that feed a device can be counted. With --workers images are
decoded in processes whose memory and time are not this one's: the ratio is then by the clock.
"""

import itertools
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from allcnn_jax.data import stream
from allcnn_jax.errors import Parser, one_line
from benchmarks import command

CROPS = stream.Crops((224, 224), 256, random=True)
_BUFFERED = 10  # batches; more than either keeps
_COPIED = 4096  # records at most that `tf.data` reads
FIRST = """
import time
from allcnn_jax.data import stream
if __name__ == "__main__":
  imported = time.time()
  batches = stream.Stream({name!r}, "train").training(
    stream.Crops((224, 224), 256, random=True), {batch}, 0, workers={workers}
  )
  next(batches)
  print(imported, time.time())
  batches.close()
"""


def ours(name, batch, workers):
  batches = stream.Stream(name, "train").training(CROPS, batch, 0, workers=workers)
  return (b.images[0] for b in batches)


def by_tf_data(name, batch, cores):
  """Batches of the same crops of up to `_COPIED` images, decoded and cut in one operation."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  import tensorflow as tf

  from allcnn_jax.data import datasets

  def crop(content):
    height, width = tf.unstack(tf.cast(tf.io.extract_jpeg_shape(content)[:2], tf.float32))
    length = tf.minimum(height, width) * 224 / 256
    top, left = tf.random.uniform(()) * (height - length), tf.random.uniform(()) * (width - length)
    window = tf.cast(tf.stack([top, left, length, length]), tf.int32)
    image = tf.image.decode_and_crop_jpeg(content, window, channels=3)
    image = tf.image.random_flip_left_right(image)
    return tf.cast(tf.image.resize(image, (224, 224)), tf.uint8)

  source = datasets.Records(name, "train", 0, "")
  rows = range(0, len(source), math.ceil(len(source) / _COPIED))
  with tempfile.NamedTemporaryFile() as file:
    with tf.io.TFRecordWriter(file.name) as writer:
      for i in rows:
        writer.write(source[i].content)
    data = tf.data.TFRecordDataset(file.name).repeat().shuffle(len(rows))
    data = data.map(crop, num_parallel_calls=tf.data.AUTOTUNE).batch(batch).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    yield from data.with_options(options).as_numpy_iterator()


def turn(batches, count):
  """(images a second of a core's time, images a second by the clock).

  A core's time is all that the process's threads used, so that what else the machine does falls out
  of it. What was decoded ahead, while it was the other's turn, is left out.
  """
  for _ in itertools.islice(batches, _BUFFERED):
    pass
  used, start = time.process_time(), time.perf_counter()
  images = sum(len(x) for x in itertools.islice(batches, count))
  return images / (time.process_time() - used), images / (time.perf_counter() - start)


def resident():
  """Bytes of memory that this process has."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


def seconds_to_first_batch(name, batch, workers):
  """(from the start of the process, from when its imports were done)."""
  program = FIRST.format(name=name, batch=batch, workers=workers)
  start = time.time()
  words = [sys.executable, "-c", program]
  done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
  imported, end = map(float, done.stdout.split())
  return end - start, end - imported


def main():
  parser = Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--dataset", default="imagenet2012")
  parser.add_argument("--batch_size", type=command.positive, default=64)
  parser.add_argument(
    "--cores", type=command.positive, default=1, help="the first cores of the machine"
  )
  parser.add_argument(
    "--workers", type=command.natural, default=0, help="as the key stream.workers"
  )
  parser.add_argument("--rounds", type=command.positive, default=10)
  parser.add_argument("--batches", type=command.positive, default=10, help="a round")
  parser.add_argument(
    "--epoch", type=command.positive, default=6400, help="images; memory is read ten times"
  )
  command.add_to(parser)
  flags = parser.parse_args()
  cores = sorted(os.sched_getaffinity(0))[: flags.cores]
  os.sched_setaffinity(0, cores)
  # A set that is not at hand is refused here.
  found = command.asked(flags) | {"records": len(stream.Stream(flags.dataset, "train"))}

  first = [seconds_to_first_batch(flags.dataset, flags.batch_size, flags.workers) for _ in range(3)]
  found["seconds_to_first_batch"] = {
    "from_process_start": statistics.median(x for x, _ in first),
    "from_imports_done": statistics.median(x for _, x in first),
  }
  print(f"first batch after {found['seconds_to_first_batch']}")

  batches = ours(flags.dataset, flags.batch_size, flags.workers)
  part, memory = max(1, flags.epoch // flags.batch_size // 10), []
  for _ in range(0 if flags.workers else 10):
    for _ in itertools.islice(batches, part):
      pass
    memory.append(resident())
  found["memory_bytes"] = memory
  print("memory over an epoch, MB:", *(f"{m / 1e6:.0f}" for m in memory))

  peer = by_tf_data(flags.dataset, flags.batch_size, flags.cores)
  rounds = []
  for _ in range(flags.rounds):
    one, other = turn(batches, flags.batches), turn(peer, flags.batches)
    rounds.append((*one, *other))
    text = "{:6.0f} images a second of a core ({:.0f} by the clock)"
    print(f"ours {text.format(*one)}   tf.data {text.format(*other)}", flush=True)
  ours_core, ours_clock, peer_core, peer_clock = map(statistics.median, zip(*rounds))
  by = 1 if flags.workers else 0
  from allcnn_jax.analysis import benchmark  # what it imports is no part of the memory above

  ratios = [x[by] / x[2 + by] for x in rounds]
  found |= {
    "images_per_second_of_a_core": {"ours": ours_core, "tf_data": peer_core},
    "images_per_second_by_the_clock": {"ours": ours_clock, "tf_data": peer_clock},
    "ratio": statistics.median(ratios),
    "ratio_quartiles": benchmark.quartiles(ratios),
  }
  print(f"ratio {found['ratio']:.2f}")
  command.write(flags, found)
  batches.close()


if __name__ == "__main__":
  with one_line("benchmarks.input"):
    main()
