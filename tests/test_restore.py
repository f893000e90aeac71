"""What `restore` refuses; what it gives is compared in the tests of training and of its verbs."""

import pytest

from allcnn_jax.errors import UsageError
from allcnn_jax.training import restore


def test_a_folder_that_is_no_runs_is_refused(tmp_path):
  with pytest.raises(UsageError, match=r"no config\.json"):
    restore.trained(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"3", b"[[1]]", b"\xff", b"{"])
def test_a_damaged_config_is_one_line(tmp_path, content):
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(UsageError, match=r"config\.json: "):
    restore.trained(tmp_path)
