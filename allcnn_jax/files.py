"""A file is written whole or not at all, whoever else writes it at the same time."""

import uuid

from etils import epath


def write(path: epath.PathLike, content: bytes) -> None:
  """Writes beside `path`, under a name of its own, then renames."""
  path = epath.Path(path)
  beside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.writing")
  beside.write_bytes(content)
  beside.replace(path)
