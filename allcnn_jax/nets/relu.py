"""One ReLU forward, three ways back: Springenberg et al. 2015, Section 3.4 and Fig. 1c.

With the input f of a ReLU and the signal R that comes back to its output, what goes on is

  backprop   R [f > 0]            the derivative
  deconvnet  R [R > 0]            Zeiler and Fergus 2014
  guided     R [f > 0] [R > 0]    both

A leaky ReLU has a slope s(z), 1 above zero and `leak` below, in the place of each bracket.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from allcnn_jax.errors import UsageError, unknown

RULES = ("backprop", "deconvnet", "guided")
_FAR = 1e4  # beyond where other activations, such as ReLU6, bend


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def rectify(x: Float[Array, "..."], leak: float = 0.0) -> Float[Array, "..."]:
  """max(x, 0), or x below zero times `leak`.

  Its derivative is read off what comes out. So nothing asks again for what goes in, and a GPU's
  compiler makes the ReLU part of the convolution before it.
  """
  return jnp.where(x >= 0, x, leak * x) if leak else jnp.maximum(x, 0)


@rectify.defjvp
def _derivative(leak, primals, tangents):
  y = rectify(*primals, leak)
  return y, jnp.where(_is_on(y, leak), *tangents, leak * tangents[0] if leak else 0.0)


def _is_on(y, leak):
  # At zero itself the derivative is JAX's: 0 for a ReLU, 1 for a leaky one. From y > 0 XLA makes a
  # question about the ReLU's input, which it then has to keep.
  return y >= 0 if leak else y != 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def relu(x: Float[Array, "..."], rule: str, leak: float = 0.0) -> Float[Array, "..."]:
  """max(x, 0), or x below zero times `leak`; the same function under every rule.

  Args:
    x: any shape.
    rule: what the gradient is, one of `RULES`.
    leak: slope below zero.

  Raises:
    UsageError: an unknown rule.
  """
  if rule not in RULES:
    raise unknown("ReLU rule", rule, RULES)
  return rectify(x, leak)


def _forward(x: Float[Array, "..."], rule: str, leak: float):
  # One bit's worth a value, and nothing at all for the deconvnet: it asks about R only.
  y = rectify(x, leak)
  return y, None if rule == "deconvnet" else _is_on(y, leak)


def _backward(rule: str, leak: float, on: Bool[Array, "..."] | None, r: Float[Array, "..."]):
  if rule != "backprop":
    r = jnp.where(r > 0, r, leak * r if leak else 0.0)
  if rule != "deconvnet":
    r = jnp.where(on, r, leak * r if leak else 0.0)
  return (r,)


relu.defvjp(_forward, _backward)


@functools.cache
def under(act, rule: str):
  """The activation `act` of a net, a ReLU or a leaky one, with its way back replaced.

  `net.clone(act=under(net.act, "guided"))` takes the net's variables unchanged.

  Raises:
    UsageError: an unknown rule, or an activation that is no ReLU.
  """
  if rule not in RULES:
    raise unknown("ReLU rule", rule, RULES)
  with jax.ensure_compile_time_eval():
    probe = np.asarray(act(jnp.array([-_FAR, -1.0, 1.0, _FAR])))
  leak = -float(probe[1])
  # A ReLU is the identity above zero and a multiple of it below, of the same sign.
  if leak < 0 or not np.allclose(probe, [-_FAR * leak, -leak, 1, _FAR]):
    raise UsageError(f"The activation {act} is no ReLU: guided ways back are defined for ReLUs.")
  return functools.partial(relu, rule=rule, leak=leak)
