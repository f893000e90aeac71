"""What a compiled program does, read from its text (HLO)."""

import collections
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Operation(NamedTuple):
  """An instruction of a compiled program.

  Attributes:
    kind: its opcode, such as "all-reduce"; cuDNN's convolutions and cuBLAS's products are called
      "convolution" and "dot".
    shapes: of what it is given, with their types.
    bytes: the size of all that it is given.
    source: the operation in JAX that it comes from.
    precision: of a product, such as "highest,highest"; "" is the chip's own.
    activation: that a convolution ends with, such as "relu"; or "".
    within: the computation that it belongs to.
    name: its own.
    given: the names of what it is given.
  """

  kind: str
  shapes: tuple[str, ...]
  bytes: int
  source: str
  precision: str = ""
  activation: str = ""
  within: str = ""
  name: str = ""
  given: tuple[str, ...] = ()


_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+\w*)\[([\d,]*)\]")
_NAMED = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9-]*)\(")
_KEEPS_ORDER = re.compile(r"dimensions=\{0(,1(,2(,3(,4)?)?)?)?\}")
_PRECISION = re.compile(r"operand_precision=\{([^}]*)\}")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_ACTIVATION = re.compile(r'"activation_mode":"k(\w+)"')
_HEADER = re.compile(r"^(?:ENTRY )?%([\w.-]+) .*\{$")
_LIBRARIES = {"__cudnn$conv": "convolution", "__cublas$": "dot"}
_KERNELS = {"fusion", "convolution", "dot", "custom-call", "copy", "transpose", "reduce", "sort"}


def operations(text: str) -> Iterator[Operation]:
  """The instructions of a compiled program, from its text; a transpose that moves nothing is a bitcast."""
  lines, within = [], ""
  for line in text.splitlines():
    if header := _HEADER.match(line):
      within = header[1]
    elif named := _NAMED.match(line):
      name, rest = named.groups()
      lines.append((within, name, _OPCODE.search(rest), rest))
  types = {name: rest[: opcode.start()] for _, name, opcode, rest in lines if opcode}
  for within, name, opcode, rest in lines:
    if not opcode:
      continue
    given = re.findall(r"%([\w.-]+)", rest[opcode.end() : _closing(rest, opcode.end())])
    arrays = [a for name in given for a in _ARRAY.finditer(types.get(name, ""))]
    yield Operation(
      _kind(opcode[1], rest),
      tuple(a[0] for a in arrays),
      sum(_size(a) for a in arrays),
      _first(_SOURCE, rest),
      _first(_PRECISION, rest),
      _first(_ACTIVATION, rest).lower().replace("none", ""),
      within,
      name,
      tuple(given),
    )


def kernels(found: Sequence[Operation]) -> list[Operation]:
  """The kernels that a GPU starts for a program, or for its loop once."""
  started = [x for x in found if x.kind in _KERNELS]
  loop = dict(collections.Counter(x.within for x in started).most_common(1))
  return [x for x in started if x.within in loop]


def in_a_row(found: Sequence[Operation]) -> int:
  """How many of those kernels, at most, wait each for the one before; a graph runs the others beside them."""
  loop = {x.within for x in kernels(found)}
  depth: dict[str, int] = {}
  for x in found:  # in the order in which they are begun
    if x.within in loop:
      depth[x.name] = max((depth.get(g, 0) for g in x.given), default=0) + (x.kind in _KERNELS)
  return max(depth.values(), default=0)


def asking(text: str) -> int:
  """How many loops of a program end when a value computed in them says so, not after n rounds."""
  return sum(" while(" in x and "known_trip_count" not in x for x in text.splitlines())


def sides(shape: str) -> tuple[int, ...]:
  """The dimensions of a shape such as f32[3,3,96,96]."""
  return tuple(int(n) for n in _ARRAY.match(shape)[2].split(",") if n)


def _kind(opcode: str, rest: str) -> str:
  if opcode == "transpose" and _KEEPS_ORDER.search(rest):
    return "bitcast"
  if opcode == "custom-call":
    target = _first(_TARGET, rest)
    return next((kind for name, kind in _LIBRARIES.items() if target.startswith(name)), opcode)
  return opcode


def _first(pattern: re.Pattern[str], text: str) -> str:
  found = pattern.search(text)
  return found[1] if found else ""


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
