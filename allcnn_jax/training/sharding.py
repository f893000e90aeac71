"""The mesh: the only file that knows how many devices and processes there are.

Data parallel over one axis: weights and the data set stand on every device, a batch is split
over them, and XLA sums the gradients.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from allcnn_jax import terminal
from allcnn_jax.errors import UsageError, is_memory

_AXIS = "data"
_DEAD_AFTER = 30  # seconds without a heartbeat
_START_AGAIN = os.EX_TEMPFAIL
_OTHERS_FIRST = 5  # seconds
_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start() -> None:
  """Joins the other processes of a job under Slurm, MPI, Kubernetes or on Cloud TPU.

  JAX finds them in the environment; where it finds none this is one process, and no network is
  asked. Processes started by hand have JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID. A process that dies is found out within 30 s, and the others end.

  Called before anything is computed.

  Raises:
    UsageError: some of those three are there, and not all that is needed.
  """
  count, number = (os.environ.get(name) for name in _BY_HAND[1:])
  try:
    jax.distributed.initialize(
      num_processes=int(count) if count else None,
      process_id=int(number) if number else None,
      cluster_detection_method="deactivate" if count else None,
      heartbeat_timeout_seconds=_DEAD_AFTER,
      shutdown_timeout_seconds=_DEAD_AFTER,
    )
  except ValueError as error:  # with none of the three: JAX has found no job
    if any(name in os.environ for name in _BY_HAND):
      raise UsageError(f"{', '.join(_BY_HAND)} belong together: {error}") from None


@contextlib.contextmanager
def job() -> Iterator[None]:
  """Part of a job from `start` on, whose processes all end where one has died.

  JAX ends them with a word of its own. Where a broken connection is noticed first, the word is
  ours, and the status asks a scheduler to start again.
  """
  start()
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not joined() or is_memory(error):
      raise
    terminal.warn(
      f"launch.py: process {jax.process_index()} has lost the others, one of which has died, or has failed itself "
      f"({str(error).splitlines()[0][:200]}). Start again: the run goes on from its last checkpoint."
    )
    os._exit(_START_AGAIN)  # the usual way out waits for the others


def leave(status: int) -> None:
  """Ends this process where it is part of a job, and does not wait for the others as usual.

  What is wrong may be known to this process alone. The first one stays a while: the others, which
  may have found the same, would be ended with it.
  """
  if joined():
    time.sleep(_OTHERS_FIRST if is_first() else 0)
    os._exit(status)


def joined() -> bool:
  """Whether `start` has found a job to be part of."""
  return jax.distributed.is_initialized()


def is_first() -> bool:
  """Whether this process writes for all of them."""
  return jax.process_index() == 0


def wait_for_all(what: str) -> None:
  """Returns when every process has come here."""
  multihost_utils.sync_global_devices(what)


def first_says(yes: bool) -> bool:
  """What the first process says, in every one; all must have come here."""
  return bool(multihost_utils.broadcast_one_to_all(yes))


def agreement() -> Callable[[], bool]:
  """Tells whether any process was sent SIGTERM: "yes" at the same call in every process.

  Every process must call it equally often.
  """
  calls = itertools.count(1)
  return lambda: multihost_utils.reached_preemption_sync_point(next(calls))


def all_devices() -> list[Any]:
  """All devices of the job.

  Raises:
    UsageError: JAX_PLATFORMS asks for what is not there.
  """
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as error:  # the latter where no plugin works
    asked = os.environ.get("JAX_PLATFORMS")
    if joined() or not asked:
      raise
    why = str(error).partition(" (set JAX_PLATFORMS")[0] or "JAX has no working plugin for it"
    raise UsageError(f"JAX_PLATFORMS={asked}: {why}.") from None


def mesh(devices: Sequence[Any] | None = None) -> Mesh:
  """All devices, or those given, in a row, process by process.

  So the rows of a batch that a process reads stand together, in the order of their stream; a ring
  of a TPU's chips, as `jax.make_mesh` lays it, would mix them. The axis is Auto: under Explicit
  ones Linen's Dropout fails.
  """
  row = sorted(devices or all_devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(row, (_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, PartitionSpec())


def everywhere(f: Callable[..., PyTree], **options: Any) -> Callable[..., PyTree]:
  """`jax.jit` of a function whose results stand on every device, as a step hands them back.

  Results that lie elsewhere would have the step that takes them compiled once more.
  """
  return jax.jit(f, out_shardings=replicated(mesh()), **options)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first dimension divided among the devices."""
  return NamedSharding(mesh, PartitionSpec(_AXIS))


def process() -> tuple[int, int]:
  """The number of this process, and how many there are."""
  return jax.process_index(), jax.process_count()


def check_batch_size(batch_size: int, devices: int | None = None) -> None:
  """Raises UsageError where the devices, by default all there are, cannot share a batch evenly."""
  n = devices or len(all_devices())
  if batch_size % n:
    raise UsageError(
      f"train.batch_size={batch_size} is not a multiple of the {n} devices, which share it evenly: "
      f"{round_up(batch_size, n)} is the next that is."
    )


def round_up(batch_size: int, devices: int | None = None) -> int:
  """The least batch size from this one on that the devices, by default all, can share evenly."""
  n = devices or jax.device_count()
  return -(-batch_size // n) * n


def replicate(tree: PyTree) -> PyTree:
  """Arrays that every process has whole, put on every device of all of them."""
  place = replicated(mesh())
  return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, place, lambda i: x[i]), tree)


def from_process(rows: PyTree) -> PyTree:
  """The whole batch, of which this process holds its own `rows` alone, over the devices."""
  place = batch_sharding(mesh())
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, x), rows)
