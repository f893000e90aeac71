"""Machines to compile for that need not be here: TPU slices, and nodes of GPUs.

All that is needed is the compiler: libtpu, or JAX's plugin for CUDA, neither of which asks for a
device then.
"""

import os
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from allcnn_jax.errors import UsageError


class Target(NamedTuple):
  """A machine.

  Attributes:
    kind: "tpu" or "gpu".
    memory: of each device, bytes that a run can have.
    devices: what `jax.sharding.Mesh` takes.
  """

  kind: str
  memory: float
  devices: list[Any]


class _Tpu(NamedTuple):
  memory: float  # of a device, bytes, from Google's documentation; a v4 is compiled for by core
  shapes: tuple[str, ...]  # as they are rented; libtpu takes others too


_TPUS = {
  "v5e": _Tpu(16e9, ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
  "v6e": _Tpu(32e9, ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
  "v5p": _Tpu(95e9, ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")),
  "v4": _Tpu(16e9, ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")),
}


class _Gpu(NamedTuple):
  product: str
  memory: int  # bytes
  bandwidth: float  # bytes a second


_GPUS = {
  "h100": _Gpu("NVIDIA H100 80GB HBM3", 84_929_347_584, 3.35e12),
  "h200": _Gpu("NVIDIA H200", 151_397_597_184, 4.8e12),
}
_NODES = ("1", "2", "4", "8")
_JAX_TAKES = 0.75  # of a GPU's memory, unless XLA_CLIENT_MEM_FRACTION is set where it runs

# What XLA has to know of a GPU of NVIDIA's Hopper generation (`GpuTargetConfigProto`): what it
# reports itself of an H100, as others have published it. An H200 has another memory and bandwidth.
_HOPPER = """
platform_name: "CUDA"
device_description_str: "{product}"
dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  name: "{product}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_address_bits: 64
}}
"""

# JAX would leave its plugin out where CUDA's other libraries are not installed.
_NO_GPU_HERE = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
_NO_TPU_HERE = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5e-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # one process a TPU, but there is none to quarrel over
}


def target(name: str) -> Target:
  """A machine by its name.

  Args:
    name: CHIP:SHAPE, such as v5e:2x4, or h200:8 for a node of eight.

  Raises:
    UsageError: there is none of that name, or its compiler is not installed.
  """
  chip, _, shape = name.partition(":")
  if chip in _GPUS and shape in _NODES:
    return Target("gpu", _JAX_TAKES * _GPUS[chip].memory, _gpus(_GPUS[chip], shape))
  if chip in _TPUS and (devices := _tpus(name)):
    return Target("tpu", _TPUS[chip].memory, devices)
  shapes = {chip: tpu.shapes for chip, tpu in _TPUS.items()} | dict.fromkeys(_GPUS, _NODES)
  known = ", ".join(f"{chip}:{shape}" for chip in shapes for shape in shapes[chip])
  raise UsageError(f"Unknown topology {name!r}. Known: {known}.")


def _gpus(gpu: _Gpu, count: str) -> list[Any]:
  _set(_NO_GPU_HERE)
  try:
    return topologies.get_topology_desc(
      platform="cuda", target_config=_HOPPER.format(**gpu._asdict()), topology=f"1x1x{count}"
    ).devices
  except RuntimeError as error:
    if "cuda" not in str(error):
      raise
    raise UsageError(
      "The compiler for GPUs is not installed: pip install -r requirements-gpu.txt. It needs no GPU."
    ) from None


def _tpus(name: str) -> list[Any]:
  """The devices of a slice; none if there is no such slice."""
  # libtpu would ask a network for the TPU that it thinks it sits on.
  _set(_NO_TPU_HERE)
  # A host has four chips; a slice of one chip is a part of a host.
  part = {"chips_per_host_bounds": (1, 1, 1)} if name.endswith(":1x1") else {}
  try:
    return topologies.get_topology_desc(name, platform="tpu", **part).devices
  except (ValueError, RuntimeError) as error:
    if "not installed" in str(error):
      raise UsageError(
        "The compiler for TPUs is not installed: pip install -r requirements-tpu.txt. It needs no TPU."
      ) from None
    if isinstance(error, jax.errors.JaxRuntimeError) and "INVALID_ARGUMENT" not in str(error):
      raise
    return []


def _set(variables: dict[str, str]) -> None:
  for key, value in variables.items():
    os.environ.setdefault(key, value)
