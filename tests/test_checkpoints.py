import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcnn_jax.errors import UsageError
from allcnn_jax.training import checkpoints
from allcnn_jax.training.step import TrainState


def state(step, scale=1.0, shape=(3, 4)):
  kernel = scale * jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
  return TrainState(jnp.int32(step), {"params": {"conv1": {"kernel": kernel}}}, (jnp.float32(2),))


def like(**changes):
  return jax.eval_shape(lambda: state(0, **changes))


@pytest.fixture
def saved(tmp_path):
  store = checkpoints.Checkpoints(tmp_path, keep=2)
  for step in (1, 2, 3):
    store.save(state(step, scale=step))
  store.close()
  return tmp_path


def test_the_newest_are_kept_and_come_back_bit_for_bit(saved):
  store = checkpoints.Checkpoints(saved)
  assert store.steps() == [2, 3]
  for step, asked in ((3, None), (2, 2)):
    restored = store.restore(like(), asked)
    jax.tree.map(np.testing.assert_array_equal, restored, state(step, scale=step))


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  store = checkpoints.Checkpoints("run")
  store.save(state(1))
  store.close()
  jax.tree.map(np.testing.assert_array_equal, store.restore(like()), state(1))
  assert (tmp_path / "run" / "checkpoints" / "1").exists()


def test_looking_makes_no_folder(tmp_path):
  assert checkpoints.Checkpoints(tmp_path / "run").steps() == []
  with pytest.raises(UsageError, match="no checkpoint"):
    checkpoints.Checkpoints(tmp_path / "run").restore(like())
  assert not any(tmp_path.iterdir())


def test_a_step_that_is_not_there_is_named_with_those_that_are(saved):
  with pytest.raises(UsageError, match="There are: 2, 3"):
    checkpoints.Checkpoints(saved).restore(like(), 1)


@pytest.fixture
def collected():
  """Orbax leaves coroutines of its own behind when it finds damage: they end in this test."""
  yield
  gc.collect()


def finds_damage(test):
  """A test in which Orbax may warn of those coroutines."""
  kinds = ("ignore:coroutine:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
  return pytest.mark.usefixtures("collected")(pytest.mark.filterwarnings(*kinds)(test))


@finds_damage
def test_another_network_is_refused(saved):
  with pytest.raises(UsageError, match="another network"):
    checkpoints.Checkpoints(saved).restore(like(shape=(5, 4)))


@finds_damage
def test_a_truncated_file_is_one_line_that_names_the_older_checkpoint(saved):
  files = [p for p in (saved / "checkpoints" / "3").rglob("*") if p.is_file()]
  biggest = max(files, key=lambda p: p.stat().st_size)
  for path in files:
    if "ocdbt" in str(path) or path.parent.name == "d" or path == biggest:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(UsageError, match=r"damaged.*older one: 2") as error:
    checkpoints.Checkpoints(saved).restore(like())
  assert "\n" not in str(error.value)


def test_a_save_that_was_cut_short_is_no_checkpoint(saved):
  (saved / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
  assert checkpoints.Checkpoints(saved).steps() == [2, 3]
  store = checkpoints.Checkpoints(saved, keep=2)
  store.save(state(4))
  store.close()
  assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == ["3", "4"]


def test_no_pretrained_weights_are_published_yet():
  for name in checkpoints.PRETRAINED:
    with pytest.raises(UsageError, match=f"No weights of {name} are published yet"):
      checkpoints.load_pretrained(name)
  with pytest.raises(UsageError, match="Did you mean 'all_cnn_c_cifar10'"):
    checkpoints.load_pretrained("all_cnn_c_cifar100")
