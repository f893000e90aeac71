"""What limits a run on many devices, on paper: prints results/SCALING.md.

  python -m benchmarks.scaling > results/SCALING.md

Nothing here is measured. The nets' sizes come from their tables, the machines' from their
makers' data sheets, and the share of its peak that a chip reaches is assumed.
"""

import math
from typing import NamedTuple

from allcnn_jax.errors import Parser, one_line
from allcnn_jax.nets import architectures

SHARE_OF_PEAK = 0.3
DECODED = 1000  # images/s that a core decodes and cuts
CORES = 112  # of a host
HOST = 8  # devices that it feeds
LATENCY = 5e-6  # seconds a message, in each of 2 log2(devices) rounds
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Machine(NamedTuple):
  """A kind of cluster.

  Attributes:
    name: of the chip and what joins it.
    peak: FLOP/s of a chip in bfloat16, dense.
    near: how many chips the fast links join, and their bytes/s out of a chip.
    far: bytes/s out of a chip to those beyond.
    source: of the figures.
  """

  name: str
  peak: float
  near: tuple[int, float]
  far: float
  source: str

  def all_reduce(self, size: float, devices: int) -> float:
    """Seconds: reduce-scatter and all-gather near by, each chip's own part far away."""
    group = min(devices, self.near[0])
    groups = devices // group
    near = 2 * (group - 1) / group * size / self.near[1]
    far = 2 * (groups - 1) / groups * size / group / self.far
    return near + far + 2 * math.log2(devices) * LATENCY


MACHINES = (
  Machine(
    "H100 SXM, NVLink in hosts of 8, InfiniBand NDR between",
    989e12,
    (8, 450e9),
    50e9,
    "NVIDIA, H100 data sheet: 989 TFLOP/s bfloat16 dense, NVLink 900 GB/s both ways together; "
    "DGX H100: one 400 Gb/s port for each GPU",
  ),
  Machine(
    "TPU v5e, ICI in slices of 256, data-centre network between",
    197e12,
    (256, 200e9),
    6.4e12 / 8 / 256,
    "Google Cloud, TPU v5e: 197 TFLOP/s bfloat16, ICI 1,600 Gb/s a chip, 6.4 Tb/s from a pod of 256",
  ),
)


class Job(NamedTuple):
  """A run.

  Attributes:
    name: of the experiment.
    net: its architecture.
    classes: how many.
    batch: images a step in its config.
    largest: the largest batch that its learning rate bears.
    why: no larger one.
    examples: training images.
    image_bytes: of one encoded image, or 0 where the set lives on the device.
  """

  name: str
  net: str
  classes: int
  batch: int
  largest: int
  why: str
  examples: int = 50_000
  image_bytes: float = 0.0

  def cost(self) -> tuple[int, float]:
    """(bytes of gradients, FLOPs of a step on one image: forward, and twice that backward)."""
    found = architectures.resolve(self.net, self.classes)
    rows = architectures.trace(found.table, found.image)
    biases = sum(r.size[-1] for r in rows if r.parameters)
    # In bfloat16, but for biases, whose gradients are summed in float32 (`nets/linear.py`).
    size = 2 * sum(r.parameters for r in rows) + 2 * biases
    return size, 6.0 * sum(r.multiply_adds for r in rows)


JOBS = (
  Job(
    "All-CNN-C on CIFAR-10",
    "all_cnn_c",
    10,
    128,
    640,
    "rates grow with the batch, 0.05 belongs to 128, and 0.25 is the largest that the paper tried",
  ),
  Job(
    "Large All-CNN on CIFAR-10",
    "large_all_cnn",
    10,
    128,
    640,
    "as for All-CNN-C: its rate is not stated and the same one is used",
  ),
  Job(
    "All-CNN on ImageNet",
    "all_cnn_imagenet",
    1000,
    1024,
    1024,
    "`large_batch` multiplies the paper's 0.01 by 16 to 0.16, unproven; the net has no normalisation",
    1_281_167,
    138e9 / 1_281_167,  # the training archive of ILSVRC 2012 and its images
  ),
)


def step(job: Job, machine: Machine, devices: int) -> tuple[float, float]:
  """Seconds that a step at the largest batch (computes, talks)."""
  size, flops = job.cost()
  computing = job.largest / devices * flops / (machine.peak * SHARE_OF_PEAK)
  return computing, machine.all_reduce(size, devices)


def fed(job: Job, machine: Machine, devices: int) -> float:
  """Images/s that a host of such a run must decode."""
  return job.largest / sum(step(job, machine, devices)) * min(HOST, devices) / devices


def rows(job: Job, machine: Machine) -> list[str]:
  """The table of a job on a machine; the batch is the largest that the rate bears."""
  header = ["devices", "images on each", "computing, ms", "all-reduce, ms", "of the step"]
  header += ["images/s", "epoch, s"]
  header += ["images/s to decode on a host", "GB/s to it"] if job.image_bytes else []
  lines = [f"| {' | '.join(header)} |", "| ---: " * len(header) + "|"]
  for n in DEVICES:
    if job.largest % n:
      lines.append(f"| {n} | not divided" + " |" * (len(header) - 1))
      continue
    computing, talking = step(job, machine, n)
    speed = job.largest / (computing + talking)
    cells = [
      f"{n}",
      f"{job.largest // n}",
      f"{1e3 * computing:,.3f}",
      f"{1e3 * talking:.3f}",
      f"{talking / (computing + talking):.0%}",
      f"{speed:,.0f}",
      f"{job.examples / speed:,.2f}",
    ]
    if job.image_bytes:
      host = fed(job, machine, n)
      cells += [f"{host:,.0f}", f"{host * job.image_bytes / 1e9:.1f}"]
    lines.append(f"| {' | '.join(cells)} |")
  return lines


def breaks_first(job: Job, machine: Machine) -> str:
  """What ends the growth of a job."""
  for n in DEVICES:
    if job.largest % n:
      return f"the batch: {n} devices cannot share {job.largest} images"
    computing, talking = step(job, machine, n)
    if job.image_bytes and fed(job, machine, n) > DECODED * CORES:
      return (
        f"the data: at {n} devices a host must decode {fed(job, machine, n):,.0f} images/s, and its {CORES} "
        f"cores are assumed to decode {DECODED * CORES:,}"
      )
    if talking > computing:
      return f"the batch: at {n} devices the {job.largest // n} images on each take less time than the all-reduce"
  return f"nothing up to {DEVICES[-1]:,} devices"


def main() -> None:
  """Prints the page."""
  Parser(description=__doc__.splitlines()[0]).parse_args()
  print("# What limits a run on many devices, on paper\n")
  print(
    "Made by `python -m benchmarks.scaling`. **Nothing on this page is measured.** A chip is assumed to reach "
    f"{SHARE_OF_PEAK:.0%} of its\npeak in bfloat16, and a core to decode {DECODED:,} images/s; messages go at the full speed of the links, with\n"
    f"{1e6 * LATENCY:g} µs for each of 2 log2(n) rounds, and do not overlap with computing. `launch.py benchmark` measures a step,\n"
    "`launch.py compile` counts what it exchanges: 2 bytes for each weight, 4 for each bias, and 8 for the loss and the errors, once a step."
  )
  print("\n| run | gradients a step, MB | GFLOP an image | batch | largest | why no larger |")
  print("| --- | ---: | ---: | ---: | ---: | --- |")
  for job in JOBS:
    size, flops = job.cost()
    print(
      f"| {job.name} | {size / 1e6:.2f} | {flops / 1e9:.2f} | {job.batch} | {job.largest} | {job.why} |"
    )
  print("\n## What breaks first\n")
  for job in JOBS:
    for machine in MACHINES:
      print(f"- {job.name}, {machine.name.split(',')[0]}: {breaks_first(job, machine)}.")
  print(
    "\nThe one number: **images on a device, the batch divided by the devices.** A batch that the learning rate bears ends\n"
    "the growth before links and memory do; a TPU keeps images in eights besides, and computes on filling below 8 on each.\n"
    "Only ImageNet may meet another limit before: what a host decodes."
  )
  for machine in MACHINES:
    print(f"\n## {machine.name}\n\nSource: {machine.source}.")
    for job in JOBS:
      print(f"\n{job.name}, batch {job.largest}\n")
      print("\n".join(rows(job, machine)))


if __name__ == "__main__":
  with one_line("benchmarks.scaling"):
    main()
