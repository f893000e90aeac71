"""A program as a GPU runs it: once as it comes, and from then on as one graph."""

import os
from typing import NamedTuple

import jax

# The graph is recorded once, its loop inside, kernels side by side where none waits for another: XLA's
# own list of what a graph may hold, with loops and with convolutions. XLA leaves these out because
# cuDNN cannot load one while a graph is recorded: the program has to have run before, in the same
# process.
OPTIONS = {
  "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONVOLUTION,WHILE",
  "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
}
# Temporaries, in bytes, up to which a GPU waits for the host between kernels so that graphs pay; they
# need half as many again, since kernels side by side share none.
_SMALL = 1 << 30


class Calls(NamedTuple):
  """A compiled program; where graphs do not pay, both are the same.

  Attributes:
    first: takes the first call of a process.
    later: takes all others.
  """

  first: jax.stages.Compiled
  later: jax.stages.Compiled


def compile(lowered: jax.stages.Lowered) -> Calls:
  """Compiles a program for its first call and for those after it."""
  first = lowered.compile()
  chosen = "xla_gpu_enable_command_buffer" in os.environ.get("XLA_FLAGS", "")  # by the user
  small = jax.default_backend() == "gpu" and first.memory_analysis().temp_size_in_bytes <= _SMALL
  pays = small and not chosen
  return Calls(first, lowered.compile(compiler_options=OPTIONS) if pays else first)
