"""Lines to the terminal, whether or not anybody reads them."""

import errno
import os
import sys

from tqdm import tqdm

# Of a pipe whose reader has ended, as Ctrl-C ends a `| tee` too, and of a terminal that hung up.
_GONE = (errno.EPIPE, errno.EIO)


def open_closed() -> None:
  """Has a program that was begun with its output closed, as by `>&-`, write to nobody."""
  for name in ("stdout", "stderr"):
    if getattr(sys, name) is None:
      setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, open to the end


def note(text: str) -> None:
  """A line of its own, above any bar; nothing else depends on its having a reader."""
  _write(text, sys.stdout)


def warn(text: str) -> None:
  """The same, to standard error."""
  _write(text, sys.stderr)


def _write(text, stream):
  try:
    tqdm.write(text, file=stream)
    stream.flush()
  except OSError as error:
    if error.errno not in _GONE:
      raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
