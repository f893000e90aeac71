"""One run in a folder at a time: the operating system's lock, which ends with its holder."""

import fcntl
from typing import IO

from etils import epath

from allcnn_jax import files
from allcnn_jax.errors import Busy, unwritable

NAME = ".lock"


class Lock:
  """The right to train in a folder. A bucket has no locks: there it is always given."""

  def __init__(self, workdir: epath.PathLike):
    """Asks for nothing yet."""
    self._path = epath.Path(workdir) / NAME
    self._file: IO | None = None

  def take(self) -> None:
    """Takes it, or keeps it.

    Raises:
      Busy: another process has it.
      UsageError: the folder may not be written to, or has no locks.
    """
    if self._file or files.is_bucket(self._path):
      return
    try:
      self._file = open(self._path, "a")  # noqa: SIM115 - it stays open until the lock is given back
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self.__exit__()
      if isinstance(error, BlockingIOError):
        raise Busy(
          f"Another process trains in {self._path.parent}: wait for its end, or choose another --workdir."
        ) from None
      raise unwritable(str(self._path), error) from None

  def __enter__(self) -> "Lock":
    return self

  def __exit__(self, *_) -> None:
    if self._file:
      self._file.close()
    self._file = None
