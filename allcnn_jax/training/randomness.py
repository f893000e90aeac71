"""Randomness is addressed, not consumed: a key is a function of (seed, stream, index).

Nothing carries a generator along, so a run that was interrupted draws the same images in the
same order, the same augmentations and the same dropout masks as one that was not.
"""

import zlib

import jax
import numpy as np
from jaxtyping import Array, Integer, Key

Seed = int | np.integer | Integer[Array, ""]  # from 0, below 2^32; may be traced


def key(seed: Seed, stream: str, index: int | Array = 0) -> Key[Array, ""]:
  """The key of a stream ("init", "order", "augment", "dropout", ...) at an index.

  Args:
    seed: the run's seed.
    stream: what the random numbers are for.
    index: the step or the epoch; may be traced.
  """
  return jax.random.fold_in(
    jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode())), index
  )
