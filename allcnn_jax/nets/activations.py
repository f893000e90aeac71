"""Which equations of a jaxpr are ReLUs, and which are other activations.

A ReLU is known by what it computes, not by what somebody called it:

  max(x, 0)                    `jnp.maximum`, `jnp.clip(x, 0)`, inside `jax.nn.relu`
  max(x, c x)                  a leaky ReLU, 0 < c < 1
  select(x > 0, x, 0 or c x)   `jnp.where`, inside `jax.nn.leaky_relu`, c not below 0
  x (x > 0)                    a product with what is 1 or 0
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Functions that JAX keeps together under their name, as a `jit` or a `custom_jvp_call`.
_NAMED = (
  *("celu", "elu", "gelu", "glu", "hard_silu", "hard_sigmoid", "hard_tanh", "log_sigmoid", "mish"),
  *("relu6", "selu", "silu", "soft_sign", "softplus", "sparse_plus", "sparse_sigmoid"),
  "squareplus",
)
_PRIMITIVES = (
  *("tanh", "logistic", "erf", "erfc", "sin", "cos", "atan", "sinh", "cosh", "asinh"),
  *("clamp", "min"),
)
_COMPARISONS = ("gt", "ge", "lt", "le")


class Scope:
  """What is known about the variables of one jaxpr: the equation or the value behind each."""

  def __init__(self, jaxpr, known: dict):
    self._known = known
    self._source = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}

  def source(self, atom, *primitives: str):
    """The equation that made `atom`, if it is one of `primitives`, or any if none is named."""
    eqn = None if isinstance(atom, core.Literal) else self._source.get(atom)
    return eqn if eqn and (not primitives or eqn.primitive.name in primitives) else None

  def constant(self, atom) -> float | None:
    """The number that `atom` is, everywhere, if that is known while tracing."""
    if isinstance(atom, core.Literal):
      value = atom.val
    elif atom in self._known:
      value = self._known[atom]
    elif eqn := self.source(atom, "broadcast_in_dim", "convert_element_type", "reshape"):
      return self.constant(eqn.invars[0])
    else:
      return None
    if isinstance(value, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(value), jnp.number):
      return None
    values = np.unique(np.asarray(value))
    return float(values[0]) if values.size == 1 else None

  def factor(self, atom, x) -> float | None:
    """The c of atom = c x."""
    if eqn := self.source(atom, "mul"):
      a, b = eqn.invars
      return self.constant(b) if a is x else self.constant(a) if b is x else None
    return None

  def known_inside(self, body, eqn) -> dict:
    """The inputs of `body`, a jaxpr that `eqn` calls, whose value is known."""
    match eqn.primitive.name:
      case "scan":
        # jax 0.12 has constants, carry and slices as three trees in the place of their numbers.
        trees = eqn.params.get("ft_in")
        count = len(trees.unpack()[0]) if trees is not None else eqn.params["num_consts"]
        inputs = eqn.invars[:count]
      case "cond":
        inputs = eqn.invars[1:]
      case "while":
        inputs = []
      case _:
        inputs = eqn.invars
    values = ((v, self.constant(atom)) for v, atom in zip(_opened(body).invars, inputs))
    return {v: value for v, value in values if value is not None}


def as_relu(eqn, scope: Scope):
  """(x, leak) if `eqn` is nothing but a ReLU of x, else None."""
  if len(eqn.outvars) != 1 or not _is_float(eqn.outvars[0]):
    return None
  match eqn.primitive.name:
    case "max":
      a, b = eqn.invars
      found = _as_max(a, b, scope) or _as_max(b, a, scope)
    case "select_n" | "jit" if choice := _choice(eqn):
      found = _as_choice(*choice, scope)
    case "mul":
      a, b = eqn.invars
      found = _as_product(a, b, scope) or _as_product(b, a, scope)
    case "jit" | "custom_jvp_call":
      found = _as_call(eqn, scope)
    case _:
      found = None
  # max(0, x) of a number and an array is the ReLU of the array only.
  return found if found and found[0].aval.shape == eqn.outvars[0].aval.shape else None


def _as_max(x, other, scope: Scope):
  if scope.constant(other) == 0 and not _is_variance(x, scope):
    return x, 0.0
  c = scope.factor(other, x)
  return (x, c) if c is not None and 0 < c < 1 else None


def _is_variance(x, scope: Scope) -> bool:
  """E[z^2] - E[z]^2, which normalisation layers keep from rounding to below zero by a max."""
  difference = scope.source(x, "sub")
  square = difference and scope.source(difference.invars[1], "square", "integer_pow", "mul")
  if not square or square.params.get("y", 2) != 2:
    return False
  return square.invars[0] is square.invars[-1]


def _choice(eqn):
  """(condition, value where it holds, value elsewhere) of a `jnp.where`."""
  if len(eqn.invars) != 3:
    return None
  if eqn.primitive.name == "select_n":
    condition, elsewhere, there = eqn.invars
    return condition, there, elsewhere
  return tuple(eqn.invars) if name_of(eqn) == "_where" else None


def _as_choice(condition, there, elsewhere, scope: Scope):
  if not (sign := _sign(condition, scope)):
    return None
  x, above = sign
  value, other = (there, elsewhere) if above else (elsewhere, there)
  leak = 0.0 if scope.constant(other) == 0 else scope.factor(other, x)
  return (x, leak) if value is x and leak is not None and leak >= 0 else None


def _as_product(x, gate, scope: Scope):
  cast = scope.source(gate, "convert_element_type")
  return (x, 0.0) if cast and _sign(cast.invars[0], scope) == (x, True) else None


def _sign(condition, scope: Scope):
  """(x, whether it asks for x above zero rather than below) of a comparison with zero."""
  if not (compared := scope.source(condition, *_COMPARISONS)):
    return None
  a, b = compared.invars
  above = compared.primitive.name in ("gt", "ge")
  x, bound, above = (a, b, above) if scope.constant(b) == 0 else (b, a, not above)
  return (x, above) if scope.constant(bound) == 0 else None


def _as_call(eqn, scope: Scope):
  """A function that is nothing but a ReLU of one of its arguments."""
  body = eqn.params["jaxpr" if eqn.primitive.name == "jit" else "call_jaxpr"]
  inner = Scope(_opened(body), scope.known_inside(body, eqn))
  last = inner.source(body.outvars[0])
  found = last and as_relu(last, inner)
  if found and found[0] in body.invars:
    return eqn.invars[body.invars.index(found[0])], found[1]
  return None


def as_other(eqn, scope: Scope) -> str | None:
  """The name of the activation that `eqn` is, if it is one and no ReLU."""
  primitive = eqn.primitive.name
  if primitive in ("jit", "custom_jvp_call") and name_of(eqn) in _NAMED:
    return name_of(eqn)
  if name_of(eqn) == "logaddexp" and 0 in map(scope.constant, eqn.invars):
    return "softplus"
  if not all(_is_float(v) for v in eqn.outvars):
    return None
  if primitive in _PRIMITIVES:
    # JAX writes some of its activations out: their name is in the traceback only.
    frames = eqn.source_info.traceback.frames if eqn.source_info.traceback else ()
    within = [f.function_name for f in frames if f.file_name.endswith("jax/_src/nn/functions.py")]
    return within[-1] if within else primitive
  if primitive == "max":
    bound = next((c for c in map(scope.constant, eqn.invars) if c is not None), None)
    if bound is None:
      return "max of two arrays"
    # A small bound guards a division, zero a variance, an infinite one an empty maximum.
    return f"max with {bound:g}" if 0.01 <= abs(bound) < np.inf else None
  if (choice := _choice(eqn)) and _is_bent(*choice, scope):
    return "a choice by the sign of its input"
  return None


def _is_bent(condition, there, elsewhere, scope: Scope) -> bool:
  """Whether the choice is x on one side of a bound and goes on from there on the other."""
  if not (compared := scope.source(condition, *_COMPARISONS)):
    return False
  for x, bound in (compared.invars, compared.invars[::-1]):
    threshold = scope.constant(bound)
    if threshold is not None and (x is there or x is elsewhere):
      other = scope.constant(elsewhere if x is there else there)
      # Another constant than the bound makes a jump: a guard against zero, no activation.
      return other is None or other == threshold
  return False


def name_of(eqn) -> str:
  """What the function that `eqn` calls was called, or nothing."""
  if "call_jaxpr" in eqn.params:
    return _opened(eqn.params["call_jaxpr"]).debug_info.func_name
  return str(eqn.params.get("name", ""))


def _opened(body):
  return getattr(body, "jaxpr", body)


def _is_float(atom) -> bool:
  return jnp.issubdtype(getattr(atom.aval, "dtype", np.int32), jnp.floating)
