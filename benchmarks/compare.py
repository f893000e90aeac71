"""This project's training step against PyTorch's, in turn on the same machine.

  python -m benchmarks.compare --python=VENV/bin/python

`VENV` is an environment with PyTorch and NumPy, which this project itself does not need. The two
programs take turns, round by round; the ratio is the median over rounds of (images a second here /
images a second there), so that whatever else the machine does falls on both.
"""

import json
import os
import pathlib
import statistics
import subprocess

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory too
import jax

from allcnn_jax.analysis import benchmark
from allcnn_jax.data import datasets
from allcnn_jax.errors import Parser, one_line
from allcnn_jax.training import parts
from benchmarks import command
from configs import cifar10

PEER = pathlib.Path(__file__).with_name("torch_peer.py")
DEVICES = {"cpu": "cpu", "gpu": "cuda"}  # what PyTorch calls them
WAYS = ("plain", "compiled", "one graph")  # the peer's, which cannot be asked where PyTorch is not
# Values of JAX_DEFAULT_MATMUL_PRECISION under which there is no TF32.
PRECISE = ("highest", "float32")


def main():
  parser = Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--python", required=True, help="an interpreter that has PyTorch")
  parser.add_argument("--network", default="all_cnn_c")
  parser.add_argument("--width", type=float, default=1.0)
  parser.add_argument("--batch_size", type=command.positive, default=128)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--augment", action="store_true", help="shifts of up to 5 pixels, and flips")
  parser.add_argument("--way", choices=WAYS, help="of PyTorch; left out, the fastest")
  parser.add_argument("--rounds", type=command.positive, default=12)
  command.add_to(parser)
  flags = parser.parse_args()

  backend = jax.default_backend()
  if backend not in DEVICES:
    parser.error(f"the peer runs on a CPU or a GPU, and this is a {backend}.")
  if jax.device_count() > 1:
    parser.error("the peer knows one device: choose one, such as by CUDA_VISIBLE_DEVICES=0.")
  augmented = ",augment" if flags.augment else ""
  config = command.config(cifar10.get_config, flags.network + augmented)
  config.model.width, config.train.dtype = flags.width, flags.dtype
  config.train.batch_size = flags.batch_size
  # On an accelerator an epoch a call: nothing is due within one.
  an_epoch, _ = parts.steps(config, datasets.sizes(config.dataset.name).train)
  config.log.every_steps = config.evaluate.every_steps = config.checkpoint.every_steps = an_epoch
  ours = benchmark.Rounds(config).begin()

  words = [flags.python, str(PEER), f"--steps={ours.steps}", f"--device={DEVICES[backend]}"]
  words += ["--precise"] if jax.config.jax_default_matmul_precision in PRECISE else []
  words += [f"--{k}={getattr(flags, k)}" for k in ("network", "width", "batch_size", "dtype")]
  words += ["--augment"] if flags.augment else []
  words += [f"--way={flags.way}"] if flags.way else []
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
  try:
    peer = subprocess.Popen(words, text=True, bufsize=1, **pipes)
  except OSError as error:
    parser.error(f"--python={flags.python}: {error.strerror}.")

  def told():
    line = peer.stdout.readline()
    if not line:
      parser.error("the peer has ended with what stands above.")
    return json.loads(line)

  with peer:
    about = told()
    print(f"{backend}: jax {jax.__version__} against {about}", flush=True)
    here, there = [], []
    for _ in range(flags.rounds):
      here.append(ours.steps * flags.batch_size / ours.seconds())
      if peer.poll() is None:
        peer.stdin.write("\n")
      there.append(told())
      print(
        f"  {here[-1]:10.1f} {there[-1]:10.1f} images/s   x {here[-1] / there[-1]:.2f}", flush=True
      )
    peer.stdin.close()

  ratios = [a / b for a, b in zip(here, there)]
  ratio, (low, high) = statistics.median(ratios), benchmark.quartiles(ratios)
  failed = [way for way, rate in about["tried"].items() if not rate]
  print(
    f"x {ratio:.3f} of PyTorch's images a second ({low:.3f} to {high:.3f}), {about['way']}"
    + (f"; failed: {', '.join(failed)}" if failed else "")
  )
  asked = {k: v for k, v in command.asked(flags).items() if k != "python"}
  values = {
    "peer": about,
    "images_per_second": {"here": here, "there": there},
    "ratio": ratio,
    "quartiles": [low, high],
  }
  command.write(flags, asked | values)


if __name__ == "__main__":
  with one_line("benchmarks.compare"):
    main()
