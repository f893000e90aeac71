"""Files that are written whole or not at all, and the folder of those that can be made again."""

import errno
import json
import math
import os
import types
import uuid
from collections.abc import Mapping
from typing import Any

from etils import epath

from allcnn_jax.errors import UsageError, unwritable

Kind = type | types.UnionType  # what `isinstance` takes


def write(path: epath.PathLike, content: bytes) -> None:
  """Writes beside `path`, under a name of its own, then renames; what fails leaves nothing behind."""
  path = epath.Path(path)
  beside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.writing")
  try:
    beside.write_bytes(content)
    beside.replace(path)
  except BaseException:
    beside.unlink(missing_ok=True)
    raise


def is_bucket(path: epath.PathLike) -> bool:
  """Whether it is in an object store: without locks, and without files that are renamed or linked."""
  return "://" in str(path)


def is_place(path: epath.PathLike) -> bool:
  """Whether it can name a file or folder: a path in UTF-8, or "gs://..." and the like, but no other "x://".

  Orbax loses a checkpoint in a folder of another name.
  """
  try:
    epath.Path(path)
    os.fspath(path).encode()
  except (KeyError, UnicodeEncodeError):
    return False
  return True


def check_place(path: epath.PathLike, told: str) -> None:
  """Raises UsageError unless `path` is a place; `told` is how the user named it."""
  if not os.fspath(path):
    raise UsageError(f"{told} is empty.")
  if not is_place(path):
    raise UsageError(
      f"{told}: no such kind of place is known; a bucket is gs://NAME, and a path is in UTF-8."
    )


def inside(folder: epath.PathLike) -> list[epath.Path]:
  """What is in a folder; nothing if there is none.

  Raises:
    UsageError: it may not be read.
  """
  folder = epath.Path(folder)
  try:
    return list(folder.iterdir()) if folder.exists() else []
  except OSError as error:
    raise UsageError(f"{folder} cannot be read: {error.strerror or error}.") from None


def make_folder(path: epath.PathLike, told: str) -> None:
  """Makes a folder and those around it, where they are not there.

  Args:
    path: of the folder.
    told: how the user named it.

  Raises:
    UsageError: it cannot be made.
  """
  try:
    epath.Path(path).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise unwritable(told, error) from None


def check_file(path: epath.PathLike, told: str) -> None:
  """Looks, before there is anything to write, whether a file can be written.

  Args:
    path: of the file.
    told: how the user named it.

  Raises:
    UsageError: it is a folder, or would be in one that is not there or may not be written to.
  """
  path = epath.Path(path)
  if path.is_dir():
    raise UsageError(f"{told} is a folder: a file is wanted.")
  if not path.parent.is_dir():
    raise UsageError(f"{told}: there is no such folder.")
  if not is_bucket(path) and not os.access(path if _is_kept(path) else path.parent, os.W_OK):
    raise UsageError(f"{told} cannot be written: {os.strerror(errno.EACCES)}.")


def write_json(path: epath.PathLike, values: Any, told: str) -> None:
  """Writes `values` into a file that the user named as `told`: whole, or not at all.

  Raises:
    UsageError: it cannot be written.
  """
  path, text = epath.Path(path), json.dumps(values, indent=2) + "\n"
  try:
    path.write_text(text) if _is_kept(path) else write(path, text.encode())
  except OSError as error:
    raise unwritable(told, error) from None


def _is_kept(path: epath.Path) -> bool:
  """Whether it is written into as it is: a link, a pipe, or /dev/stdout, which is either."""
  return os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path))


def read_json(path: epath.PathLike, needed: Mapping[str, Kind]) -> dict[str, Any]:
  """The JSON object in a file.

  Args:
    path: of the file.
    needed: what it must have, of which types.

  Raises:
    UsageError: it is damaged.
  """
  try:
    return checked(json.loads(epath.Path(path).read_text()), needed)
  except (ValueError, RecursionError) as error:
    raise UsageError(f"{path} is damaged: {error}.") from None


def checked(values: Any, needed: Mapping[str, Kind]) -> dict[str, Any]:
  """The same values; ValueError where they are no JSON object, or not one with what it must have."""
  if not isinstance(values, dict):
    raise ValueError(f"it holds a {type(values).__name__}, not an object")
  for name, kind in needed.items():
    if name not in values:
      raise ValueError(f"it has no {name!r}")
    if not isinstance(values[name], kind):
      raise ValueError(f"{name!r} is {values[name]!r}")
  return values


def json_values(values: Mapping[str, Any]) -> dict[str, Any]:
  """The same values, with None in place of NaN and infinities, which JSON does not have."""
  return {
    k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
  }


def cache() -> epath.Path:
  """What can be made again stands in this folder: $XDG_CACHE_HOME, or ~/.cache, /allcnn_jax."""
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return epath.Path(home).expanduser() / "allcnn_jax"


def keep_compiled() -> None:
  """Has JAX keep what it compiles for the next start, in that folder; called before it is imported."""
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache() / "programs"))
  # A start has many small programs, which JAX by itself would compile each time.
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
