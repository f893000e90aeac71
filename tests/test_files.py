import pytest
from etils import epath

from allcnn_jax import files


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
