import jax
import numpy as np
import pytest
import safetensors.numpy

from allcnn_jax.errors import UsageError
from allcnn_jax.training import weights


def test_variables_come_back_bit_for_bit_under_names_that_others_can_read(tmp_path, key):
  kernel = jax.random.normal(key, (3, 3, 2, 4))
  variables = {"params": {"conv1": {"kernel": kernel, "bias": kernel[0, 0, 0]}}}
  weights.save(variables, 7, tmp_path / "w.safetensors")
  loaded, step = weights.load(tmp_path / "w.safetensors")
  assert step == 7
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  with safetensors.safe_open(tmp_path / "w.safetensors", "np") as file:
    np.testing.assert_array_equal(file.get_tensor("params/conv1/kernel"), kernel)


def test_damage_is_one_line_that_names_the_file(tmp_path):
  path = tmp_path / "w.safetensors"
  weights.save({"params": {"w": np.ones(9)}}, 1, path)
  whole = path.read_bytes()
  for content in (b"", whole[:-4], whole.replace(b'"step"', b'"stop"')):
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"w\.safetensors is damaged") as error:
      weights.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "step", [np.float32("nan"), np.int64(1 << 40), np.int32([1, 2]), np.int32(-1)]
)
def test_a_step_that_is_none_is_damage(tmp_path, step):
  arrays = {"params/w": np.ones(9), "step": np.asarray(step)}
  (tmp_path / "w.safetensors").write_bytes(safetensors.numpy.save(arrays))
  with pytest.raises(UsageError, match="damaged"):
    weights.load(tmp_path / "w.safetensors")
