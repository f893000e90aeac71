"""A run compiled for a TPU slice that nobody has at hand, by the TPU's own compiler.

It needs shapes alone. What the compiler hands back says whether the run fits, what it exchanges
between devices, and what of the chip it leaves unused.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree

from allcnn_jax import config as config_lib
from allcnn_jax.data import augmentation, datasets
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures
from allcnn_jax.training import parts, sharding
from allcnn_jax.training import step as step_lib

# Memory of one device, bytes: Google's documentation of the chips. A v4 is compiled for by core.
_MEMORY = {"v5e": 16e9, "v6e": 32e9, "v5p": 95e9, "v4": 16e9}
_LANES, _SUBLANES = 128, 8  # a TPU's registers, and the tiles of its memory: 8 rows of 128 numbers


class Operation(NamedTuple):
  """An instruction of a compiled program.

  Attributes:
    kind: its opcode, such as "all-reduce".
    shapes: of what it is given, with their types.
    bytes: the size of all that it is given.
    source: the operation in JAX that it comes from.
    precision: of a product, such as "highest,highest"; "" is the chip's own: bfloat16.
  """

  kind: str
  shapes: tuple[str, ...]
  bytes: int
  source: str
  precision: str = ""


class Program(NamedTuple):
  """A compiled program; sizes are bytes on each device.

  Attributes:
    name: "step", "steps" (many in one call) or "evaluation".
    arguments: weights, the optimizer's state, the data set.
    temporaries: what is needed beside them while it runs.
    code: the program itself.
    flops: floating-point operations of one step on each device.
    exchanges: what crosses devices in a step.
    convolutions: how many there are, matrix products included.
    given_float32: those of them that are given float32, and round it to bfloat16 themselves.
    not_bfloat16: those that multiply in another type than bfloat16.
    copies: copies and transposes of arrays of activations, or of the data set.
    seconds: that compiling took here.
    refused: the compiler's word if it does not fit, and then nothing else; or "".
  """

  name: str
  arguments: int = 0
  temporaries: int = 0
  code: int = 0
  flops: float = 0.0
  exchanges: tuple[Operation, ...] = ()
  convolutions: int = 0
  given_float32: int = 0
  not_bfloat16: tuple[Operation, ...] = ()
  copies: tuple[Operation, ...] = ()
  seconds: float = 0.0
  refused: str = ""

  @property
  def memory(self) -> int:
    """All that it takes of a device's memory."""
    return self.arguments + self.temporaries + self.code

  @property
  def exchanged(self) -> int:
    """Bytes that each device reduces with the others a step."""
    return sum(x.bytes for x in self.exchanges)


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
  """A run's programs for a slice.

  Attributes:
    topology: the slice.
    devices: how many it has.
    chip: what each is.
    memory: of each, bytes.
    images: images of a batch on each.
    programs: "step", "steps" (of a set on the device) and "evaluation".
    paddings: of each layer with channels.
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
) -> Compiled:
  """Compiles a config's own programs for a slice; only a set of one's own is read.

  Args:
    config: complete.
    topology: such as "v5e:2x4".
    programs: which ones.

  Raises:
    UsageError: the config, the slice, or a batch that its devices cannot share.
  """
  config_lib.check(config)
  devices = sharding.topology(topology)
  sharding.check_batch_size(config.train.batch_size, len(devices))
  sizes = datasets.sizes(config.dataset.name, config.dataset.data_dir)
  lowered = _lowered(config, sizes, sharding.mesh(devices))
  images = config.train.batch_size // len(devices)
  table = parts.network(config, sizes.classes).table
  return Compiled(
    topology,
    len(devices),
    devices[0].device_kind,
    _MEMORY[topology.partition(":")[0]],
    images,
    tuple(
      _program(name, lowered[name], (images, sizes.train, sizes.test))
      for name in programs
      if name in lowered
    ),
    tuple(
      Padding(r.name, r.size[2], -(-r.size[2] // _LANES) * _LANES)
      for r in architectures.trace(table, parts.image(config))
      if isinstance(r.layer, architectures.Conv | architectures.Dense)
    ),
  )


def _lowered(
  config: ml_collections.ConfigDict, sizes: datasets.Sizes, mesh: Mesh
) -> dict[str, Callable[[], jax.stages.Lowered]]:
  """The run's programs, each traced for a mesh when it is asked for.

  A set that is streamed is not on the devices: a step is given its batch, one at a time.
  """
  examples = sizes.train - config.dataset.validation
  if config.train.batch_size > examples:
    raise UsageError(
      f"train.batch_size={config.train.batch_size} is more than the {examples} training images of {config.dataset.name}."
    )
  recipe = parts.recipe(config, sizes.classes, examples, mesh)

  def placed(tree: PyTree, place: Any = sharding.replicated(mesh)) -> PyTree:  # noqa: B008
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

  def zeros(shape: tuple[int, ...] = (), dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)

  image = parts.image(config)
  kind = jnp.float32
  if not sizes.varies:
    image = augmentation.stored_size(config.dataset.augment, image)
    kind = parts.stored_type(config)
  rows = zeros((examples, math.prod(image)), kind)
  data = placed(step_lib.Stored(rows, zeros((examples,)), image))
  state = placed(jax.eval_shape(lambda: step_lib.init(recipe, image[2])))
  totals = placed(jax.eval_shape(step_lib.Totals.zero))
  order, count = placed((zeros((examples,)), zeros()))

  n = config.train.batch_size
  batch = step_lib.Images(zeros((n, *image), kind), zeros((n,)))
  batch = placed(batch, sharding.split(mesh))
  evaluation = {
    "evaluation": lambda: step_lib.predict.lower(
      recipe.net, recipe.size, state.variables, batch.images
    )
  }
  if sizes.varies:
    return {"step": lambda: step_lib.train_batch.lower(recipe, state, totals, batch), **evaluation}
  return {
    "step": lambda: step_lib.train_step.lower(recipe, state, totals, data, order),
    "steps": lambda: step_lib.train_steps.lower(recipe, state, totals, data, order, count),
    **evaluation,
  }


def _program(name: str, lower: Callable[[], jax.stages.Lowered], rows: tuple[int, ...]) -> Program:
  # A program of another machine is not kept: the seconds are the compiler's.
  jax.config.update("jax_enable_compilation_cache", False)
  start = time.perf_counter()
  try:
    compiled = lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return Program(name, refused=str(error).partition("\n")[0])
  finally:
    jax.config.update("jax_enable_compilation_cache", True)
  seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  operations = list(_operations(compiled.as_text()))
  products = [x for x in operations if x.kind in ("convolution", "dot")]
  return Program(
    name,
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
    memory.generated_code_size_in_bytes,
    compiled.cost_analysis()["flops"],
    tuple(x for x in operations if _EXCHANGE.fullmatch(x.kind)),
    len(products),
    sum(any(s.startswith("f32") for s in x.shapes) for x in products),
    tuple(x for x in products if x.precision or not all(map(_IN_BFLOAT16.match, x.shapes))),
    tuple(x for x in operations if x.kind in ("copy", "transpose") and _is_of_images(x, rows)),
    seconds,
  )


def _is_of_images(copy: Operation, rows: tuple[int, ...]) -> bool:
  """Whether an array has an image in each of so many rows: those on a device, or a whole set."""
  shape = [int(n) for n in _ARRAY.match(copy.shapes[0])[2].split(",") if n]
  return len(shape) > 1 and math.prod(shape[1:]) >= _LANES and shape[0] in rows


_EXCHANGE = re.compile(
  "(all-reduce|all-gather|all-to-all|reduce-scatter|ragged-all-to-all|collective-\\w+)(-start)?"
)
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+\w*)\[([\d,]*)\]")
_IN_BFLOAT16 = re.compile("(bf16|f32)\\[")
_NAMED = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9-]*)\(")
_KEEPS_ORDER = re.compile(r"dimensions=\{0(,1(,2(,3(,4)?)?)?)?\}")
_PRECISION = re.compile(r"operand_precision=\{([^}]*)\}")
_SOURCE = re.compile(r'op_name="([^"]*)"')


def _operations(text: str) -> Iterator[Operation]:
  """The instructions of a compiled program, from its text."""
  lines = [m.groups() for m in map(_NAMED.match, text.splitlines()) if m]
  found = [(name, _OPCODE.search(rest), rest) for name, rest in lines]
  types = {name: rest[: opcode.start()] for name, opcode, rest in found if opcode}
  for _, opcode, rest in found:
    if not opcode:
      continue
    given = re.findall(r"%([\w.-]+)", rest[opcode.end() : _closing(rest, opcode.end())])
    arrays = [a for name in given for a in _ARRAY.finditer(types.get(name, ""))]
    if opcode[1] == "transpose" and _KEEPS_ORDER.search(rest):
      continue
    source, precision = _SOURCE.search(rest), _PRECISION.search(rest)
    yield Operation(
      opcode[1],
      tuple(a[0] for a in arrays),
      sum(_size(a) for a in arrays),
      source[1] if source else "",
      precision[1] if precision else "",
    )


def _closing(text: str, start: int) -> int:
  """Where the parenthesis that was opened just before `start` is closed."""
  depth = 1
  for i in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[i], 0)
    if depth == 0:
      return i
  return len(text)


def _size(array: re.Match[str]) -> int:
  """Bytes of an array of HLO, such as f32[3,3,96,96]."""
  bits = re.search(r"\d+", array[1])
  count = math.prod(int(n) for n in array[2].split(",") if n)
  return count * max(int(bits[0]) // 8, 1) if bits else count


def report(compiled: Compiled) -> str:
  """What `compile` found, as a table."""
  c = compiled
  rows = [
    ("a device holds", lambda p: ""),
    ("  arguments", lambda p: _bytes(p.arguments)),
    ("  temporaries", lambda p: _bytes(p.temporaries)),
    ("  program", lambda p: _bytes(p.code)),
    (f"  in all, of {_bytes(c.memory)}", lambda p: _bytes(p.memory)),
    ("FLOPs a step", lambda p: f"{p.flops / 1e9:.2f} G"),
    ("reduced across devices", lambda p: _bytes(p.exchanged)),
    ("  in operations", lambda p: str(len(p.exchanges))),
    ("convolutions", lambda p: str(p.convolutions)),
    ("  given float32", lambda p: str(p.given_float32)),
    ("  outside bfloat16", lambda p: str(len(p.not_bfloat16))),
    ("copies of activations", lambda p: str(len(p.copies))),
    ("compiled in", lambda p: f"{p.seconds:.1f} s"),
  ]
  cells = [("", *(p.name for p in c.programs))]
  cells += [(name, *("-" if p.refused else f(p) for p in c.programs)) for name, f in rows]
  widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
  lines = [f"{c.topology}: {c.devices} x {c.chip}, {c.images} images on each", ""]
  for row in cells:
    aligned = [x.rjust(n) if i else x.ljust(n) for i, (x, n) in enumerate(zip(row, widths))]
    lines.append("  ".join(aligned).rstrip())
  lines.append("")
  for p in c.programs:
    if p.refused:
      lines.append(f"{p.name} does not fit: {p.refused}")
    lines += [f"{p.name}: {_told(x)}" for x in (*p.exchanges, *p.not_bfloat16, *p.copies)]
  lines += ["", "channels in rows of 128, and the share that is filling"]
  lines += [f"  {x.layer:8} {x.channels:5} of {x.lanes:5}  {x.waste:6.1%}" for x in c.paddings]
  if c.images % _SUBLANES:
    lines.append(f"  images   {c.images:5}: rows come in eights, so that some are filling too")
  lines += ["", "It fits." if c.fits else "It does not fit."]
  return "\n".join(lines)


def _told(x: Operation) -> str:
  shapes = ", ".join(x.shapes[:2]) + (f" and {len(x.shapes) - 2} more" if len(x.shapes) > 2 else "")
  return f"{x.kind} of {shapes}: {_bytes(x.bytes)}, from {x.source or 'the compiler'}"


def _bytes(n: int | float) -> str:
  for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if n >= size:
      return f"{n / size:.2f} {unit}"
  return f"{n:g} B"


def write(compiled: Compiled, path: epath.PathLike) -> None:
  """Writes what `compile` found as JSON.

  Raises:
    UsageError: the file cannot be written.
  """
  plain = compiled._asdict() | {"fits": compiled.fits}
  plain["programs"] = [
    p._asdict()
    | {name: [x._asdict() for x in getattr(p, name)] for name in _LISTS}
    | {"memory": p.memory, "exchanged": p.exchanged}
    for p in compiled.programs
  ]
  plain["paddings"] = [x._asdict() | {"waste": x.waste} for x in compiled.paddings]
  try:
    epath.Path(path).write_text(json.dumps(plain, indent=2) + "\n")
  except OSError as error:
    raise UsageError(f"--output={path} cannot be written: {error.strerror or error}.") from None


_LISTS = ("exchanges", "not_bfloat16", "copies")
