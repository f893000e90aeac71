"""One run in a folder at a time: the operating system's lock, which ends with its holder."""

import fcntl
from typing import IO

from etils import epath

from allcnn_jax.errors import Busy

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
    """
    if self._file or "://" in str(self._path):
      return
    file = open(self._path, "a")  # noqa: SIM115 - it stays open until the lock is given back
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.close()
      raise Busy(
        f"Another process trains in {self._path.parent}: wait for its end, or choose another --workdir."
      ) from None
    self._file = file

  def __enter__(self) -> "Lock":
    return self

  def __exit__(self, *_) -> None:
    if self._file:
      self._file.close()
