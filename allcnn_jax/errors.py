"""The exceptions that are the user's to mend."""

import argparse
import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn


class UsageError(ValueError):
  """Wrong use: a value, the rule that it breaks and the way out, in one line.

  The launcher prints the line and exits with status 2, as for what `is_denied` and `is_memory`, or
  with 75, to be started again, for what `is_passing`; everything else is a bug of ours, with its
  traceback and status 70.
  """


class Hindered(UsageError):
  """What keeps a run from going on is not its own fault, and will pass: a sweep stops there."""


class DiskFull(Hindered):
  """No space is left for what a run writes."""


class Busy(Hindered):
  """Another process trains in the run's folder."""


# What a full disk is called, and a user's full share of one.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: Exception) -> bool:
  """Whether something could not be written for want of space; TensorStore has an error of its own."""
  said = ("No space left", "quota exceeded")
  return getattr(error, "errno", None) in _NO_SPACE or any(x in str(error) for x in said)


def is_memory(error: Exception) -> bool:
  """Whether a device's memory was too small, for which the program that asks may be to blame."""
  return "RESOURCE_EXHAUSTED" in str(error)


# What a file or folder is refused for, beside space: no permission, or one is where the other should be.
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
# An object store's errors are TensorFlow's; of these kinds they will not pass by themselves.
_STORE = "tensorflow.python.framework.errors_impl"
_STORE_DENIES = (
  "AlreadyExistsError",
  "FailedPreconditionError",
  "InvalidArgumentError",
  "NotFoundError",
  "PermissionDeniedError",
  "UnauthenticatedError",
  "UnimplementedError",
)


def is_denied(error: Exception) -> bool:
  """Whether the system or an object store refused a file or folder."""
  if isinstance(error, OSError):
    return is_full(error) or error.errno in _DENIED or isinstance(error, IsADirectoryError)
  return _of_store(error) and type(error).__name__ in _STORE_DENIES


def is_passing(error: Exception) -> bool:
  """Whether an object store has failed in a way that may be over at the next start."""
  return _of_store(error) and type(error).__name__ not in _STORE_DENIES


def _of_store(error: Exception) -> bool:
  return type(error).__module__ == _STORE


class Parser(argparse.ArgumentParser):
  """A command's flags; what is wrong with them is a `UsageError`, for `one_line`."""

  def error(self, message: str) -> NoReturn:
    """Refuses the command line."""
    raise UsageError(f"{message.removesuffix('.')}.")


@contextlib.contextmanager
def one_line(program: str) -> Iterator[None]:
  """Ends a command that was used wrongly, or was refused a file, as the launcher does."""
  try:
    yield
  except Exception as error:
    if not (isinstance(error, UsageError) or is_denied(error)):
      raise
    print(f"{program}: {in_a_line(error)}", file=sys.stderr)
    sys.exit(2)


def in_a_line(error: Exception) -> str:
  """What an error says, in one line: of a file, the file and what the system refuses it for."""
  said = str(error)
  if isinstance(error, OSError) and error.filename and error.strerror:
    said = f"{os.fsdecode(error.filename)}: {error.strerror}."
  return " ".join(said.split())


def unwritable(what: str, error: OSError) -> UsageError:
  """An error for a file or folder, as the user named it, that cannot be written."""
  kind = DiskFull if is_full(error) else UsageError
  return kind(f"{what} cannot be written: {error.strerror or error}.")


def unknown(what: str, value: object, known: Iterable[str]) -> UsageError:
  """An error for a name that is none of `known`, with the nearest one suggested."""
  known = list(known)
  return UsageError(f"Unknown {what} {value!r}.{hint(value, known)} Known: {', '.join(known)}.")


def hint(value: object, known: Iterable[str]) -> str:
  """A question after the nearest of `known`, with a space before it; or nothing if none is near."""
  near = difflib.get_close_matches(str(value), list(known), n=1)
  return f" Did you mean {near[0]!r}?" if near else ""
