import json
import os

import pytest
from etils import epath

from allcnn_jax import files
from allcnn_jax.errors import UsageError


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
  files.write(tmp_path / "a", b"old")
  monkeypatch.setattr(
    type(epath.Path(tmp_path)), "replace", lambda *_: (_ for _ in ()).throw(OSError)
  )
  with pytest.raises(OSError):  # noqa: PT011
    files.write(tmp_path / "a", b"new")
  assert (tmp_path / "a").read_bytes() == b"old"
  assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_has_its_content_and_nothing_is_left_beside_it(tmp_path):
  files.write(tmp_path / "a", b"1")
  files.write(tmp_path / "a", b"2")
  assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"2")]


def test_a_file_that_cannot_be_written_is_one_line_before_and_after(tmp_path, monkeypatch):
  for place, said in ((tmp_path, "is a folder"), (tmp_path / "none" / "x", "no such folder")):
    with pytest.raises(UsageError, match=f"--output=here.* {said}"):
      files.check_file(place, "--output=here")
  files.check_file(tmp_path / "x", "--output=here")
  files.write_json(tmp_path / "x", {"a": [1]}, "--output=here")
  assert json.loads((tmp_path / "x").read_text()) == {"a": [1]}
  with pytest.raises(UsageError, match="--output=here cannot be written: Is a directory"):
    files.write_json(tmp_path, {}, "--output=here")
  monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
  with pytest.raises(UsageError, match="--output=here cannot be written: Permission denied"):
    files.check_file(tmp_path / "x", "--output=here")


def test_a_link_is_written_through_and_stays_one(tmp_path):
  (tmp_path / "file").write_text("old")
  (tmp_path / "link").symlink_to(tmp_path / "file")
  files.write_json(tmp_path / "link", {"a": 1}, "--output=link")
  assert json.loads((tmp_path / "file").read_text()) == {"a": 1}
  assert (tmp_path / "link").is_symlink()


def test_a_pipe_is_written_into_and_stays_one(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  end = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
  files.check_file(tmp_path / "pipe", "--output=pipe")
  files.write_json(tmp_path / "pipe", {"a": 1}, "--output=pipe")
  assert json.loads(os.read(end, 100)) == {"a": 1}
  os.close(end)
  assert (tmp_path / "pipe").is_fifo()
