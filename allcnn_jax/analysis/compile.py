"""A run compiled for TPUs or GPUs that nobody has at hand, by their own compiler.

It needs shapes alone. What the compiler hands back says whether the run fits, what it exchanges
between devices, how many kernels a GPU starts, and what of a TPU it leaves unused.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from allcnn_jax import config as config_lib
from allcnn_jax import files
from allcnn_jax.analysis import columns, hlo, targets
from allcnn_jax.data import datasets
from allcnn_jax.errors import is_memory
from allcnn_jax.nets import architectures
from allcnn_jax.training import evaluate, parts, sharding
from allcnn_jax.training import step as step_lib

_LANES, _SUBLANES = 128, 8  # a TPU's registers, and the tiles of its memory: 8 rows of 128 numbers
_EXCHANGE = re.compile(
  "(all-reduce|all-gather|all-to-all|reduce-scatter|ragged-all-to-all|collective-\\w+)(-start)?"
)
_LISTS = ("exchanges", "not_bfloat16", "copies")  # fields of a `Program`


class Program(NamedTuple):
  """A compiled program; sizes are bytes on each device, lists are of all that it does in a call.

  Attributes:
    name: "step", "steps" (many in one call) or "evaluation".
    steps: of which a loop's body is made; what is counted below is counted for all of them.
    arguments: weights, the optimizer's state, the data set.
    temporaries: what is needed beside them while it runs.
    code: the program itself.
    flops: floating-point operations on each device; 0 where the compiler does not tell.
    exchanges: what crosses devices.
    kernels: how many a GPU starts; 0 for a TPU.
    in_a_row: how many of them wait each for the one before.
    asking: loops after each round of which a GPU asks the host whether to go on.
    convolutions: how many there are, matrix products included.
    with_relu: those of them that end with a ReLU, on a GPU.
    given_float32: those that are given float32, which a TPU rounds to bfloat16.
    not_bfloat16: those that multiply in another type than bfloat16.
    copies: copies and transposes of arrays of activations, or of the data set.
    seconds: that compiling took here.
    refused: the compiler's word if it does not fit, and then nothing else; or "".
  """

  name: str
  steps: int = 1
  arguments: int = 0
  temporaries: int = 0
  code: int = 0
  flops: float = 0.0
  exchanges: tuple[hlo.Operation, ...] = ()
  kernels: int = 0
  in_a_row: int = 0
  asking: int = 0
  convolutions: int = 0
  with_relu: int = 0
  given_float32: int = 0
  not_bfloat16: tuple[hlo.Operation, ...] = ()
  copies: tuple[hlo.Operation, ...] = ()
  seconds: float = 0.0
  refused: str = ""

  @property
  def memory(self) -> int:
    """All that it takes of a device's memory."""
    return self.arguments + self.temporaries + self.code

  @property
  def exchanged(self) -> int:
    """Bytes that each device reduces with the others a step."""
    return sum(x.bytes for x in self.exchanges) // self.steps


class Padding(NamedTuple):
  """What of a layer's output is filling: a TPU keeps channels in rows of 128.

  Attributes:
    layer: its name.
    channels: of its output.
    lanes: what they are filled up to.
  """

  layer: str
  channels: int
  lanes: int

  @property
  def waste(self) -> float:
    """The share that is filling."""
    return 1 - self.channels / self.lanes


class Compiled(NamedTuple):
  """A run's programs for a machine.

  Attributes:
    topology: the machine.
    devices: how many it has.
    chip: what each is.
    memory: of each, bytes that a run can have; of a GPU what JAX takes by default.
    images: images of a batch on each.
    programs: "step", "steps" (of a set on the device) and "evaluation".
    paddings: of each layer with channels, on a TPU.
  """

  topology: str
  devices: int
  chip: str
  memory: float
  images: int
  programs: tuple[Program, ...]
  paddings: tuple[Padding, ...]

  @property
  def fits(self) -> bool:
    """Whether every program has room on a device."""
    return all(not p.refused and p.memory <= self.memory for p in self.programs)


def compile(
  config: ml_collections.ConfigDict,
  topology: str,
  programs: Sequence[str] = ("step", "steps", "evaluation"),
  output: epath.PathLike | None = None,
) -> Compiled:
  """Compiles a config's own programs for a machine; only a set of one's own is read.

  Args:
    config: complete.
    topology: a TPU slice such as "v5e:2x4", or GPUs such as "h200:1".
    programs: which ones.
    output: a JSON file to write.

  Raises:
    UsageError: the config, the machine, a batch that its devices cannot share, or the file.
  """
  config_lib.check(config)
  if output is not None:
    files.check_file(output, f"--output={output}")
  target = targets.target(topology)
  devices = target.devices
  sharding.check_batch_size(config.train.batch_size, len(devices))
  sizes = datasets.sizes(config.dataset.name, config.dataset.data_dir)
  examples = datasets.left_to_train(config.dataset.name, config.dataset.validation, sizes.train)
  lowered = _lowered(config, sizes, examples, sharding.mesh(devices))
  images = config.train.batch_size // len(devices)

  def rows(name: str) -> tuple[int, int]:
    looked_at = evaluate.batch_size(config) // len(devices)
    return looked_at if name == "evaluation" else images, examples

  compiled = Compiled(
    topology,
    len(devices),
    devices[0].device_kind,
    target.memory,
    images,
    tuple(
      _program(name, *lowered[name], target.kind, rows(name))
      for name in programs
      if name in lowered
    ),
    tuple(
      Padding(r.name, r.size[2], -(-r.size[2] // _LANES) * _LANES)
      for r in parts.layers(config)
      if target.kind == "tpu" and isinstance(r.layer, architectures.Conv | architectures.Dense)
    ),
  )
  if output is not None:
    files.write_json(output, _as_json(compiled), f"--output={output}")
  return compiled


def _lowered(
  config: ml_collections.ConfigDict, sizes: datasets.Sizes, examples: int, mesh: Mesh
) -> dict[str, tuple[int, Callable[[], jax.stages.Lowered]]]:
  """The run's programs, each with the steps that it repeats, and traced for a mesh when called.

  A set that is streamed is not on the devices: a step is given its batch, one at a time.
  """
  count = parts.steps_a_call(config, examples)

  everywhere = sharding.replicated(mesh)

  def placed(tree: PyTree, place: NamedSharding = everywhere) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

  recipe = placed(parts.recipe(config, sizes.classes, examples, mesh))

  def zeros(shape: tuple[int, ...] = (), dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)

  image = parts.image(config)
  kind = jnp.float32
  if not sizes.varies:
    image = parts.stored(config)
    kind = parts.stored_type(config)
  rows = zeros((examples, math.prod(image)), kind)
  data = placed(step_lib.Stored(rows, zeros((examples,)), image))
  state = placed(jax.eval_shape(lambda r: step_lib.init(r, image[2]), recipe))
  totals = placed(jax.eval_shape(step_lib.Totals.zero))
  order = placed(zeros((examples,)))

  n = config.train.batch_size
  batch = step_lib.Examples(zeros((n, *image), kind), zeros((n,)))
  batch = placed(batch, sharding.batch_sharding(mesh))
  if sizes.varies:
    found = {"step": (1, lambda: step_lib.train_batch.lower(recipe, state, totals, batch))}
  else:
    stored = (recipe, state, totals, data, order)
    found = {
      "step": (1, lambda: step_lib.train_step.lower(*stored)),
      "steps": (step_lib.unrolled(count), lambda: step_lib.train_steps.lower(*stored, count)),
    }
  views = zeros((evaluate.batch_size(config), *image), kind)
  views = placed(views, sharding.batch_sharding(mesh))
  evaluated = (recipe.net, recipe.size, state.variables, views)
  return found | {"evaluation": (1, lambda: step_lib.predict.lower(*evaluated))}


def _program(
  name: str,
  steps: int,
  lower: Callable[[], jax.stages.Lowered],
  kind: str,
  rows: tuple[int, ...],
) -> Program:
  # A program of another machine is not kept: the seconds are the compiler's.
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  start = time.perf_counter()
  try:
    compiled = lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if not is_memory(error):
      raise
    return Program(name, steps, refused=str(error).partition("\n")[0])
  finally:
    jax.config.update("jax_enable_compilation_cache", before)
  seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  text = compiled.as_text()
  operations = list(hlo.operations(text))
  products = [x for x in operations if x.kind in ("convolution", "dot")]
  rounds = ("bf16[", "f32[") if kind == "tpu" else ("bf16[",)
  counted = {}
  if kind == "gpu":
    counted["kernels"] = len(hlo.kernels(operations))
    counted["in_a_row"] = hlo.in_a_row(operations)
    counted["asking"] = hlo.asking(text)
  return Program(
    name,
    steps,
    arguments=memory.argument_size_in_bytes,
    temporaries=(
      memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    ),
    code=memory.generated_code_size_in_bytes,
    flops=(compiled.cost_analysis() or {}).get("flops", 0.0),
    exchanges=tuple(x for x in operations if _EXCHANGE.fullmatch(x.kind)),
    convolutions=len(products),
    with_relu=sum(x.activation == "relu" for x in products),
    given_float32=sum(any(s.startswith("f32") for s in x.shapes) for x in products),
    not_bfloat16=tuple(
      x for x in products if x.precision or not all(s.startswith(rounds) for s in x.shapes)
    ),
    copies=tuple(
      x for x in operations if x.kind in ("copy", "transpose") and _is_of_images(x, rows)
    ),
    seconds=seconds,
    **counted,
  )


def _is_of_images(copy: hlo.Operation, rows: tuple[int, ...]) -> bool:
  """Whether an array has an image in each of so many rows: those on a device, or a whole set."""
  shape = hlo.sides(copy.shapes[0])
  return len(shape) > 1 and math.prod(shape[1:]) >= _LANES and shape[0] in rows


def report(compiled: Compiled) -> str:
  """What `compile` found, as a table."""
  c = compiled
  rows = [
    ("a device holds", lambda p: ""),
    ("  arguments", lambda p: _bytes(p.arguments)),
    ("  temporaries", lambda p: _bytes(p.temporaries)),
    ("  program", lambda p: _bytes(p.code)),
    (f"  in all, of {_bytes(c.memory)}", lambda p: _bytes(p.memory)),
    ("FLOPs a step", lambda p: f"{p.flops / p.steps / 1e9:.2f} G" if p.flops else ""),
    ("reduced across devices", lambda p: _bytes(p.exchanged)),
    ("  in operations", lambda p: f"{len(p.exchanges) / p.steps:g}"),
    ("kernels a step", lambda p: f"{p.kernels / p.steps:g}" if p.kernels else ""),
    ("  one after the other", lambda p: f"{p.in_a_row / p.steps:g}" if p.kernels else ""),
    ("  loops that ask the host", lambda p: str(p.asking) if p.kernels else ""),
    ("convolutions", lambda p: f"{p.convolutions / p.steps:g}"),
    ("  with their ReLU", lambda p: f"{p.with_relu / p.steps:g}" if p.kernels else ""),
    ("  given float32", lambda p: f"{p.given_float32 / p.steps:g}"),
    ("  outside bfloat16", lambda p: f"{len(p.not_bfloat16) / p.steps:g}"),
    ("copies of activations", lambda p: f"{len(p.copies) / p.steps:g}"),
    ("compiled in", lambda p: f"{p.seconds:.1f} s"),
  ]
  cells = [("", *(p.name for p in c.programs))]
  cells += [(name, *("-" if p.refused else f(p) for p in c.programs)) for name, f in rows]
  cells = [row for row in cells if any(row[1:]) or row[0] == "a device holds"]
  lines = [f"{c.topology}: {c.devices} x {c.chip}, {c.images} images on each", ""]
  lines += columns.aligned(cells)
  told = []
  for p in c.programs:
    if p.refused:
      told.append(f"{p.name} does not fit: {p.refused}")
    # That a float32 net multiplies in float32 on a GPU, the table has said.
    odd = p.not_bfloat16 if len(p.not_bfloat16) < p.convolutions else ()
    told += [f"{p.name}: {_line(x)}" for x in (*p.exchanges, *odd, *p.copies)]
  lines += ["", *told] if told else []
  if c.paddings:
    lines += ["", "channels in rows of 128, and the share that is filling"]
    lines += [f"  {x.layer:8} {x.channels:5} of {x.lanes:5}  {x.waste:6.1%}" for x in c.paddings]
  if c.paddings and c.images % _SUBLANES:
    lines.append(f"  images   {c.images:5}: rows come in eights, so that some are filling too")
  lines += ["", "It fits." if c.fits else "It does not fit."]
  return "\n".join(lines)


def _line(x: hlo.Operation) -> str:
  shapes = ", ".join(x.shapes[:2]) + (f" and {len(x.shapes) - 2} more" if len(x.shapes) > 2 else "")
  return f"{x.kind} of {shapes}: {_bytes(x.bytes)}, from {x.source or 'the compiler'}"


def _bytes(n: int | float) -> str:
  for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if n >= size:
      return f"{n / size:.2f} {unit}"
  return f"{n:g} B"


def _as_json(compiled: Compiled) -> dict[str, Any]:
  """What `compile` found, as JSON has it."""
  values = compiled._asdict() | {"fits": compiled.fits}
  values["programs"] = [
    p._asdict()
    | {name: [x._asdict() for x in getattr(p, name)] for name in _LISTS}
    | {"memory": p.memory, "exchanged": p.exchanged}
    for p in compiled.programs
  ]
  values["paddings"] = [x._asdict() | {"waste": x.waste} for x in compiled.paddings]
  return values
