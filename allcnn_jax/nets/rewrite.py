"""Gives the ReLUs of anybody's JAX function another way back, by rewriting its jaxpr.

A function is traced, every equation of its jaxpr that is a ReLU (`activations.as_relu`) is
replaced by `relu.relu` under the chosen rule, and JAX evaluates the result. All else keeps its own
derivative; what `activations.as_other` knows for another activation is reported.
"""

import collections
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core, source_info_util

from allcnn_jax.errors import UsageError, unknown
from allcnn_jax.nets import activations
from allcnn_jax.nets.relu import RULES, relu

# A report names the line of the user's program, not the one here that calls it.
source_info_util.register_exclusion(__file__)

# Equations that only call the jaxprs among their parameters.
_CALLS = ("jit", "closed_call", "remat2", "checkpoint", "scan", "while", "cond")
# Their jaxprs say how two numbers become one; a maximum in there is no activation.
_COMBINERS = ("reduce", "scatter", "sort", "cum")


def with_relu_rule(fn: Callable, rule: str, *, strict: bool = False) -> Callable:
  """A function that computes what `fn` does and whose ReLUs go back by `rule`.

  ReLUs inside `jit`, `scan`, `while`, `cond`, `remat` and `custom_jvp` are found too. What stays
  as it was is reported in one `UserWarning` at each trace: activations that are no ReLU, and
  ReLUs inside a `custom_vjp` or another primitive with a derivative of its own. A `custom_jvp`
  with a ReLU among other things is differentiated through its body instead, and reported.

  Args:
    fn: any function that JAX can trace, such as `functools.partial(model.apply, variables)` or
      an NNX module. Arrays among its arguments are traced, everything else is passed on.
    rule: one of `relu.RULES`.
    strict: raise instead of warning.

  Raises:
    UsageError: an unknown rule; when called and strict, anything that would be reported.
  """
  if rule not in RULES:
    raise unknown("ReLU rule", rule, RULES)

  def rewritten(*args, **kwargs):
    leaves, structure = jax.tree.flatten((args, kwargs))
    traced = [isinstance(x, (jax.Array, np.ndarray)) for x in leaves]

    def of_arrays(*arrays):
      arrays = iter(arrays)
      merged = [next(arrays) if t else x for x, t in zip(leaves, traced)]
      args, kwargs = jax.tree.unflatten(structure, merged)
      return fn(*args, **kwargs)

    arrays = [x for x, t in zip(leaves, traced) if t]
    closed, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
    rewriter = _Rewriter(rule)
    closed = rewriter.body(closed, {})
    if report := rewriter.report():
      if strict:
        raise UsageError(report)
      warnings.warn(report, stacklevel=2)
    return jax.tree.unflatten(jax.tree.structure(shapes), core.jaxpr_as_fun(closed)(*arrays))

  return rewritten


@dataclasses.dataclass
class _Rewriter:
  """Rewrites jaxprs and keeps count of what it met."""

  rule: str
  relus: int = 0
  left: collections.Counter = dataclasses.field(default_factory=collections.Counter)

  def report(self) -> str:
    if self.left:
      found = "; ".join(f"{what} ({n} times)" if n > 1 else what for what, n in self.left.items())
      return f"Not under the rule {self.rule!r}, which is for ReLUs: {found}."
    return "" if self.relus else f"No ReLU found: the rule {self.rule!r} changes nothing."

  def body(self, body, known: dict):
    """A jaxpr, closed or open, rewritten; `known` are the inputs whose value is known."""
    if hasattr(body, "jaxpr"):
      known = known | dict(zip(body.jaxpr.constvars, body.consts))
      return body.replace(jaxpr=self._open(body.jaxpr, known))
    return self._open(body, known)

  def _open(self, jaxpr, known: dict):
    scope = activations.Scope(jaxpr, known)
    return jaxpr.replace(eqns=[self._equation(eqn, scope) for eqn in jaxpr.eqns])

  def _equation(self, eqn, scope: activations.Scope):
    if found := activations.as_relu(eqn, scope):
      self.relus += 1
      x, leak = found
      return _call(lambda x: relu(x, self.rule, leak), [x], eqn)
    if name := activations.as_other(eqn, scope):
      self.left[_at(name, eqn)] += 1
      return eqn
    name = activations.name_of(eqn)
    if eqn.primitive.name.startswith(_COMBINERS) or name == "logaddexp":
      return eqn

    inside = _Rewriter(self.rule)
    params = {
      key: _map_bodies(lambda b: inside.body(b, scope.known_inside(b, eqn)), value)
      for key, value in eqn.params.items()
    }
    self.left += inside.left
    if not inside.relus:
      return eqn
    if eqn.primitive.name in _CALLS:
      self.relus += inside.relus
      return eqn.replace(params=params)

    if eqn.primitive.name == "custom_jvp_call":
      self.relus += inside.relus
      self.left[_at(f"the derivative that {name} gives itself, now that of its body", eqn)] += 1
      return _call(jax.jit(core.jaxpr_as_fun(params["call_jaxpr"])), eqn.invars, eqn)
    self.left[_at(f"a ReLU inside {eqn.primitive.name} {name}".rstrip(), eqn)] += inside.relus
    return eqn


def _at(what: str, eqn) -> str:
  place = source_info_util.summarize(eqn.source_info)
  return f"{what} at {place}" if place else what


def _map_bodies(f: Callable, value: Any) -> Any:
  if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
    return f(value)
  if isinstance(value, tuple):
    return tuple(_map_bodies(f, x) for x in value)
  return value


def _call(fn: Callable, inputs: list, eqn):
  """An equation that calls `fn` on `inputs` in the place of `eqn`."""
  shapes = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in inputs]
  (call,) = jax.make_jaxpr(fn)(*shapes).eqns
  return call.replace(invars=list(inputs), outvars=list(eqn.outvars), source_info=eqn.source_info)
