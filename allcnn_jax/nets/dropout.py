"""Dropout whose masks take, on a GPU, as few random bits as their rate needs.

Srivastava et al. 2014, inverted: what stays is divided by the share that stays. A rate of one half
takes one bit a value, where a uniform float takes 32. A TPU would have to lay maps out anew for it.
"""

import functools
from typing import no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

_WORD, _FINEST = 32, 16  # bits of a random word, and of a value at most: rates are exact to 2^-17


@no_type_check  # Flax gives its layers fields of types that cannot be checked at run time.
class Dropout(nn.Dropout):
  """`nn.Dropout` of whole arrays; on a GPU with other masks of the same chance."""

  @nn.compact
  def __call__(self, inputs: Float[Array, "n *rest"]) -> Float[Array, "n *rest"]:
    """The inputs, some of them zero and the others larger."""
    if self.deterministic or self.rate == 0:
      return inputs
    packed, plain = (
      functools.partial(draw, shape=inputs.shape, rate=self.rate)
      for draw in (keep, _keep_by_floats)
    )
    key = self.make_rng(self.rng_collection)
    kept = jax.lax.platform_dependent(key, cuda=packed, default=plain)
    return jnp.where(kept, inputs / (1 - self.rate), 0)


def _keep_by_floats(
  key: Key[Array, ""], shape: tuple[int, ...], rate: float
) -> Bool[Array, "n *rest"]:
  """As `nn.Dropout` draws them."""
  return jax.random.bernoulli(key, 1 - rate, shape)


def keep(key: Key[Array, ""], shape: tuple[int, ...], rate: float) -> Bool[Array, "n *rest"]:
  """A mask of independent values, false with a chance of `rate`.

  Bits of one word go to as many values of the first dimension: on a GPU no value moves for it.
  """
  bits, zeros = _chance(rate)
  values = _WORD // bits
  n, *rest = shape
  words = jax.random.bits(key, (-(-n // values), *rest), jnp.uint32)
  # Without a barrier XLA would draw a word anew for each of its values.
  words = jax.lax.optimization_barrier(words)[:, None]
  places = jnp.arange(0, _WORD, bits, dtype=jnp.uint32).reshape(1, values, *(1 for _ in rest))
  drawn = (words >> places) & jnp.uint32(2**bits - 1)
  return (drawn >= zeros).reshape(-1, *rest)[:n]


def _chance(rate: float) -> tuple[int, int]:
  """(b, k): a number of b random bits is below k with a chance of `rate`, or nearly so."""
  bits = next((b for b in (1, 2, 4, 8) if (rate * 2**b).is_integer()), _FINEST)
  return bits, round(rate * 2**bits)
