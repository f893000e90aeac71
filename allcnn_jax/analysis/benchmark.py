"""How fast a config's training step is, against what the machine can do.

The very step that training runs, but for its rate, on random images that lie on the device: one
step a call on a CPU or where training is given its batches one by one, many on an accelerator.
"""

import math
import os
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from allcnn_jax import config as config_lib
from allcnn_jax import files
from allcnn_jax.analysis import roofline
from allcnn_jax.data import datasets
from allcnn_jax.training import (
  direct_feedback,
  evaluate,
  graphs,
  machine,
  parts,
  sharding,
  sources,
)
from allcnn_jax.training import step as step_lib

# Random images stand for the data set: as many as CIFAR has, or as fit into this many bytes.
_EXAMPLES, _BYTES = 50_000, 2 << 30
# Seconds of a round, at least; rounds to warm up with; what is measured at least, in rounds and seconds.
_ROUND, _WARM, _ROUNDS, _SECONDS = 1.0, 3, 10, 10.0
# Random labels can kill a network at a rate that it learns by, and zeros are multiplied faster.
_RATE = 1e-6
_MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes of its unit
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Rounds:
  """A config's step, compiled, with its state and random images for data; `begin` comes first.

  Attributes:
    recipe: what the step was compiled from.
    data: the random images.
    state: after the steps so far.
    image: height, width and channels of the network's input.
    steps: how many a round has.
    first_step_seconds: from the start of the process to the end of the first call; None where the
      system does not tell.
    compile_seconds: what compiling took.
    from_cache: whether it was found compiled.
    memory: the compiled program's, bytes by kind.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    """Compiles.

    Raises:
      UsageError: the config cannot be run here.
    """
    config_lib.check(config)
    sharding.check_batch_size(config.train.batch_size)
    config = config.copy_and_resolve_references()
    config.optimizer.learning_rate = _RATE
    c = config.dataset
    sizes = datasets.sizes(c.name, c.data_dir)
    examples = datasets.left_to_train(c.name, c.validation, sizes.train)
    parts.steps(config, examples)  # a batch of more is refused
    self.image, self._evaluated = parts.image(config), evaluate.batch_size(config)
    self.recipe = recipe = sharding.replicate(parts.recipe(config, sizes.classes, _EXAMPLES))
    self.data = data = _random_images(config, self.image, sizes)
    start = sharding.everywhere(step_lib.init, static_argnums=1)
    self.state = start(recipe, self.image[2])
    self._totals = sharding.everywhere(step_lib.Totals.zero)()

    if sizes.varies:
      self._inputs = (jax.device_put(data.take(slice(recipe.batch_size)), recipe.batch_sharding),)
    else:
      self._inputs = (data, step_lib.epoch_order(recipe.seed, 0, len(data.labels)))
    given = (recipe, self.state, self._totals, *self._inputs)

    events: list[str] = []

    def note(event: str, **_: Any) -> None:
      events.append(event)

    jax.monitoring.register_event_listener(note)
    began = time.perf_counter()
    if sizes.varies:
      step = step_lib.train_batch.lower(*given).compile()
      self._todo = sources.Steps(graphs.Calls(step, step), 1)
    else:
      self._todo = sources.steps_of_stored(parts.steps_a_call(config, examples), *given)
    self.compile_seconds, self.from_cache = time.perf_counter() - began, _CACHE_HIT in events
    jax.monitoring.unregister_event_listener(note)
    memory = self._todo.calls.later.memory_analysis()
    self.memory = {
      "arguments": memory.argument_size_in_bytes,
      "temporaries": memory.temp_size_in_bytes,
      "program": memory.generated_code_size_in_bytes,
    }

  def begin(self) -> "Rounds":
    """Does the first calls, and sees how many a round must have."""
    self._step = self._todo.calls.first
    self.seconds(calls=1)
    self.first_step_seconds = _since_start()
    self._step = self._todo.calls.later
    self.seconds(calls=1)
    self._calls = math.ceil(_ROUND / self.seconds(calls=1))
    self.steps = self._todo.count * self._calls
    return self

  def seconds(self, calls: int | None = None) -> float:
    """How long one more round takes, or so many calls."""
    start = time.perf_counter()
    for _ in range(calls or self._calls):
      self.state, self._totals = self._step(self.recipe, self.state, self._totals, *self._inputs)
    jax.block_until_ready(self._totals)
    return time.perf_counter() - start

  def evaluation(self) -> float:
    """Images a second of an evaluation as training does it."""
    batch = self._evaluated
    n = min(batch if jax.default_backend() == "cpu" else 10_000, len(self.data.labels))
    data = step_lib.Stored.of(*self.data.take(slice(n)))
    inputs = (self.recipe.net, self.recipe.size, self.state.variables)
    return n / roofline.best(
      lambda: evaluate.evaluate(*inputs, sources.batches(data, batch)), calls=3
    )


def benchmark(
  config: ml_collections.ConfigDict,
  output: epath.PathLike | None = None,
  profile: epath.PathLike | None = None,
) -> dict[str, Any]:
  """Measures a config's training step, its layers and its evaluation.

  Args:
    config: complete.
    output: a JSON file to write.
    profile: a folder for a trace of one call, to be opened with TensorBoard or Perfetto.

  Returns:
    What is written to `output`: times in seconds, rates a second, sizes in bytes.
    `first_step_seconds` counts from the start of the process to the end of the first call, and so
    does `peak_memory`: on a GPU the compiler's trials are in it, unless `compiled_from_cache`.

  Raises:
    UsageError: the config cannot be run here, or `output` or `profile` cannot be written.
  """
  if output is not None:
    files.check_file(output, f"--output={output}")
  run = Rounds(config).begin()
  if profile is not None:
    files.make_folder(profile, f"--profile={profile}")
  for _ in range(_WARM):  # the caches and clocks are warm from here on
    run.seconds()
  if profile is not None:
    with jax.profiler.trace(str(profile)):
      run.seconds(calls=1)
  seconds: list[float] = []
  while len(seconds) < _ROUNDS or sum(seconds) < _SECONDS:
    seconds.append(run.seconds())
  peak = _peak_memory()

  recipe = run.recipe
  rates = [run.steps * recipe.batch_size / s for s in seconds]
  median = statistics.median(rates)
  limits = roofline.ceilings(recipe.net.dtype)
  layers = roofline.layers(recipe, run.image[2], limits)
  devices = recipe.batch_sharding.mesh.size
  flops = sum(row.flops for row in layers) / (recipe.batch_size // devices)
  flops += 2 * direct_feedback.values(run.state.variables.get("feedback", {}))
  found = {
    "network": config.model.name,
    "width": config.model.width,
    "rule": config.rule.name,
    "augment": config.dataset.augment,
    "batch_size": recipe.batch_size,
    "dtype": config.train.dtype,
    **machine.machine(),
    "images_per_second": {
      "median": median,
      "quartiles": quartiles(rates),
      "rounds": len(rates),
      "steps_a_round": run.steps,
    },
    "step_seconds": recipe.batch_size / median,
    "flops_per_image": flops,
    "flops": flops * median,
    "matrix_flops": limits.flops,
    "fraction_of_matrix_flops": flops * median / limits.flops / devices,
    "memory_bandwidth": limits.bytes,
    "peak_memory": peak,
    "program_memory": run.memory,
    "compile_seconds": run.compile_seconds,
    "compiled_from_cache": run.from_cache,
    "first_step_seconds": run.first_step_seconds,
    "evaluation_images_per_second": run.evaluation(),
    "layers": [row._asdict() for row in layers],
  }
  if output is not None:
    files.write_json(output, found, f"--output={output}")
  return found


def quartiles(values: Iterable[float]) -> list[float]:
  """The measured values a quarter from either end."""
  ranked = sorted(values)
  return [ranked[len(ranked) // 4], ranked[-1 - len(ranked) // 4]]


def _random_images(
  config: ml_collections.ConfigDict, image: tuple[int, int, int], sizes: datasets.Sizes
) -> step_lib.Stored:
  """Images as training has them on the device: of a set that is streamed a batch."""
  n, size, kind = config.train.batch_size, image, jnp.float32
  if not sizes.varies:
    size = parts.stored(config)
    n = max(n, min(_EXAMPLES, _BYTES // (4 * math.prod(size))))
    kind = parts.stored_type(config)

  def draw(key):
    labels = jax.random.randint(key, (n,), 0, sizes.classes)
    return step_lib.Stored.of(jax.random.normal(key, (n, *size), kind), labels)

  return sharding.everywhere(draw)(jax.random.key(0))


def _peak_memory() -> int | None:
  """Bytes that were in use at once, at most: of a device; of the whole process if that is a CPU."""
  device = jax.local_devices()[0]
  if device.platform == "cpu":
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS
  return (device.memory_stats() or {}).get("peak_bytes_in_use")


def _since_start() -> float | None:
  """Seconds since the process was started; None where the system does not tell."""
  status, up = pathlib.Path("/proc/self/stat"), pathlib.Path("/proc/uptime")
  if not status.exists():
    return None
  ticks = int(status.read_text().rpartition(")")[2].split()[19])
  return float(up.read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def text(found: dict[str, Any]) -> str:
  """The result as a person reads it."""
  rate = found["images_per_second"]
  low, high = rate["quartiles"]
  peak, memory = found["peak_memory"], sum(found["program_memory"].values())
  cache = " (from the cache)" if found["compiled_from_cache"] else ""
  first = found["first_step_seconds"]
  lines = [
    f"{found['network']}, batch {found['batch_size']}, {found['dtype']}, on {found['hardware']['device']} x {found['hardware']['devices']}",
    f"  images/s    {rate['median']:.1f}   quartiles {low:.1f} to {high:.1f}, {rate['rounds']} rounds of {rate['steps_a_round']}",
    f"  arithmetic  {found['flops'] / 1e9:.1f} GFLOP/s, {100 * found['fraction_of_matrix_flops']:.1f} % of the {found['matrix_flops'] / 1e9:.0f} of a large matrix product here",
    f"  memory      {memory / 2**20:.0f} MiB of program and data"
    + (f", at most {peak / 2**20:.0f} MiB in use" if peak else ""),
    f"  compile     {found['compile_seconds']:.1f} s{cache}"
    + (f"; first step done {first:.1f} s after the start" if first else ""),
    f"  evaluation  {found['evaluation_images_per_second']:.0f} images/s",
    "",
    f"  {'layer':10} {'GFLOP':>9} {'MiB':>9} {'bound ms':>9} {'ms':>9} {'of bound':>9} {'of step':>8}",
  ]
  step = found["step_seconds"]
  for row in found["layers"]:
    lines.append(
      f"  {row['name']:10} {row['flops'] / 1e9:9.2f} {row['bytes'] / 2**20:9.1f} {1e3 * row['bound']:9.2f} {1e3 * row['seconds']:9.2f} {100 * row['bound'] / row['seconds']:7.0f} % {100 * row['seconds'] / step:6.0f} %"
    )
  bound, taken = (sum(r[k] for r in found["layers"]) for k in ("bound", "seconds"))
  lines += [
    f"  {'together':10} {'':9} {'':9} {1e3 * bound:9.2f} {1e3 * taken:9.2f}",
    f"  {'a step':10} {'':9} {'':9} {'':9} {1e3 * step:9.2f}",
  ]
  return "\n".join(lines)
