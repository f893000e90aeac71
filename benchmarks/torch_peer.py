"""The same training step in PyTorch, as fast as PyTorch makes it.

  python benchmarks/torch_peer.py --network=all_cnn_c --augment [--device=cuda]

The layers are read from this project's table, which needs no JAX. On a GPU: channels_last,
bfloat16 autocast, the data on the device, and `torch.compile` with max-autotune, its own CUDA graphs
or one of the whole step. On a CPU: channels_last. With and without all that, whichever way is the
fastest. Prints one line of JSON for each line that comes in on stdin, so that two programs can take
turns; see compare.py.
"""

import argparse
import json
import pathlib
import sys
import time

import torch
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from allcnn_jax.nets import architectures

IMAGES = 50_000
RATE = 1e-6  # ours, for the reason that analysis/benchmark.py gives
COMPILED = {"plain": None, "compiled": "max-autotune", "one graph": "max-autotune-no-cudagraphs"}


def network(name, width, dropout):
  """The table as a PyTorch module."""
  resolved = architectures.resolve(name, 10, width=width, dropout=dropout)
  channels, layers = resolved.image[2], []
  for layer in resolved.table:
    match layer:
      case architectures.Conv(kernel, features, stride, (before, after), relu) if before == after:
        layers.append(nn.Conv2d(channels, features, kernel, stride, before))
        layers += [nn.ReLU(inplace=True)] if relu else []
        channels = features
      case architectures.Dropout(rate=rate):
        layers += [nn.Dropout(rate)] if rate else []
      case architectures.GlobalAverage():
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
      case _:
        raise SystemExit(f"torch_peer: {name} has a layer that this peer does not know: {layer}")
  return nn.Sequential(*layers)


def shift_flip(images, pixels=5):
  """Moves each image by up to `pixels` and mirrors half of them; zeros come in from outside."""
  n, _, h, w = images.shape
  padded = nn.functional.pad(images, (pixels,) * 4)
  top, left = torch.randint(0, 2 * pixels + 1, (2, n, 1), device=images.device)
  rows = top + torch.arange(h, device=images.device)
  columns = left + torch.arange(w, device=images.device)
  mirrored = torch.rand(n, 1, device=images.device) < 0.5
  columns = torch.where(mirrored, columns.flip(1), columns)
  each = torch.arange(n, device=images.device)[:, None, None]
  cut = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None]]
  return cut.permute(0, 3, 1, 2)


class Training:
  """A network, its optimizer and its data; `step` does one step, in one of the ways of `COMPILED`."""

  def __init__(self, flags, way):
    self.device = torch.device(flags.device)
    self.flags, on = flags, {"device": self.device}
    self.net = network(flags.network, flags.width, (0.2, 0.5)).to(
      memory_format=torch.channels_last, **on
    )
    self.optimizer = torch.optim.SGD(
      self.net.parameters(), lr=RATE, momentum=0.9, weight_decay=0.001, fused=True
    )
    images = torch.randn(IMAGES, 3, 32, 32, dtype=getattr(torch, flags.dtype), **on)
    self.images = images.to(memory_format=torch.channels_last)
    self.labels = torch.randint(0, 10, (IMAGES,), **on)
    mode = COMPILED[way] if self.device.type == "cuda" else "default"
    self.loss = self._loss if way == "plain" else torch.compile(self._loss, mode=mode)
    self.rows = torch.arange(flags.batch_size, **on)
    self.position = IMAGES
    self.work = self._work
    if way == "one graph":
      self._capture()

  def _capture(self):
    """Makes of the work of a step one CUDA graph, as PyTorch's notes on CUDA graphs have it."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
      for _ in range(3):
        self._work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
      self._work()
    self.work = graph.replay

  def _loss(self, images, labels):
    if self.flags.augment:
      images = shift_flip(images)
    dtype = getattr(torch, self.flags.dtype)
    with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
      logits = self.net(images)
    return nn.functional.cross_entropy(logits.float(), labels)

  def step(self):
    """One step on the next batch of a random order."""
    if self.position + self.flags.batch_size > IMAGES:
      self.order, self.position = torch.randperm(IMAGES, device=self.device), 0
    self.rows.copy_(self.order[self.position : self.position + self.flags.batch_size])
    self.position += self.flags.batch_size
    self.work()

  def _work(self):
    self.optimizer.zero_grad(set_to_none=True)
    self.loss(self.images[self.rows], self.labels[self.rows]).backward()
    nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
    self.optimizer.step()

  def rate(self, steps):
    """Images a second over so many steps."""
    start = time.perf_counter()
    for _ in range(steps):
      self.step()
    if self.device.type == "cuda":
      torch.cuda.synchronize()
    return steps * self.flags.batch_size / (time.perf_counter() - start)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--network", default="all_cnn_c")
  parser.add_argument("--width", type=float, default=1.0)
  parser.add_argument("--batch_size", type=int, default=128)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--augment", action="store_true", help="shifts of up to 5 pixels, and flips")
  parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
  parser.add_argument(
    "--way", choices=COMPILED, help="one way alone; left out, the fastest is looked for"
  )
  parser.add_argument("--precise", action="store_true", help="a GPU's float32 is no TF32")
  parser.add_argument("--steps", type=int, default=1, help="in a round")
  flags = parser.parse_args()
  if flags.batch_size > IMAGES:
    parser.error(f"--batch_size={flags.batch_size} is more than its {IMAGES} images.")
  on_gpu = flags.device == "cuda"
  if on_gpu and not torch.cuda.is_available():
    raise SystemExit("torch_peer: PyTorch finds no GPU.")
  tf32 = on_gpu and not flags.precise
  torch.backends.cudnn.benchmark = True
  torch.backends.cudnn.allow_tf32 = tf32
  # For 1x1 convolutions too, which Inductor makes products of.
  torch.set_float32_matmul_precision("high" if tf32 else "highest")

  best, fastest, rates = None, None, {}
  for way in [flags.way] if flags.way else COMPILED if on_gpu else ("plain", "compiled"):
    try:
      training = Training(flags, way)
      training.rate(3)  # compiles, chooses kernels, warms up
      rates[way] = training.rate(max(3, flags.steps))
    except Exception as error:  # of many kinds: no compiler, no memory
      rates[way] = 0.0
      print(f"torch_peer: {way}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
      continue
    if fastest is None or rates[way] > rates[best]:
      best, fastest = way, training
  if fastest is None:
    raise SystemExit("torch_peer: no way works.")
  about = {
    "torch": torch.__version__,
    "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    "cudnn": torch.backends.cudnn.version() if on_gpu else None,
    "tf32": tf32,
    "way": best,
    "tried": rates,
    "threads": torch.get_num_threads(),
  }
  print(json.dumps(about), flush=True)
  for _ in sys.stdin:
    print(json.dumps(fastest.rate(flags.steps)), flush=True)


if __name__ == "__main__":
  main()
