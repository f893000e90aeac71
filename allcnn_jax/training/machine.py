"""What a number was measured with: the command, the machine, the versions, the code and the day."""

import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from typing import Any

import jax
from etils import epath

from allcnn_jax.training import sharding

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# What drives an accelerator, by the start of the package's name.
_DRIVERS = {"gpu": ("jax-cuda", "nvidia-cudnn"), "tpu": ("libtpu",)}
# Variables of the environment that change speeds or values.
_VARIABLES = (
  "XLA_FLAGS",
  "LIBTPU_INIT_ARGS",
  "JAX_DEFAULT_MATMUL_PRECISION",
  "JAX_DEFAULT_PRNG_IMPL",
  "JAX_ENABLE_X64",
  "NVIDIA_TF32_OVERRIDE",
  "XLA_CLIENT_MEM_FRACTION",
  "XLA_PYTHON_CLIENT_ALLOCATOR",
  "XLA_PYTHON_CLIENT_PREALLOCATE",
  "GLIBC_TUNABLES",
)


def machine() -> dict[str, Any]:
  """The command, the hardware, the versions of what computes, the commit of this code, the day.

  Of the environment, which stands behind the command, the variables that change speeds or values.
  """
  device = jax.devices()[0]
  return {
    "command": shlex.join(["python", *sys.orig_argv[1:]]),
    "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    "hardware": {
      "device": _processor() if device.platform == "cpu" else device.device_kind,
      "devices": sharding.mesh().size,
      "cores": os.cpu_count(),
    },
    "versions": {"python": platform.python_version()} | versions(device.platform),
    "commit": commit(),
    "date": time.strftime("%Y-%m-%d"),
  }


def versions(kind: str) -> dict[str, str]:
  """The versions of the packages that compute on a device of a kind: "cpu", "gpu" or "tpu"."""
  installed = {x.name for x in metadata.distributions() if x.name}
  drivers = [x for x in sorted(installed) if x.lower().startswith(_DRIVERS.get(kind, ()))]
  return {name: metadata.version(name) for name in (*_PACKAGES, *drivers)}


def commit() -> str:
  """The commit of this code, with a "+" if files have changed since; "" outside its repository."""
  try:
    _git("ls-files", "--error-unmatch", pathlib.Path(__file__).name)  # not a repository around it
    changed = _git("status", "--porcelain", "--untracked-files=no", ":/")
    return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
  except (OSError, subprocess.CalledProcessError):
    return ""


def _git(*words: str) -> str:
  here = pathlib.Path(__file__).parent
  done = subprocess.run(
    ["git", "--no-optional-locks", *words], cwd=here, capture_output=True, text=True, check=True
  )
  return done.stdout.strip()


def _processor() -> str:
  cpu = epath.Path("/proc/cpuinfo")
  names = [x for x in cpu.read_text().splitlines() if "model name" in x] if cpu.exists() else []
  return names[0].partition(":")[2].strip() if names else platform.processor()
