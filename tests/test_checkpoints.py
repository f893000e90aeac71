import errno
import logging
import os
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from allcnn_jax import errors
from allcnn_jax.errors import DiskFull, UsageError
from allcnn_jax.training import checkpoints, weights
from allcnn_jax.training.step import TrainState
from tests.runs import damage


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


def test_what_others_log_is_left_to_them(saved):
  logger = logging.getLogger("absl")
  before = logger.level
  checkpoints.Checkpoints(saved).restore(like())
  assert logger.level == before < logging.CRITICAL


def test_another_network_is_refused(saved):
  store = checkpoints.Checkpoints(saved)
  with pytest.raises(UsageError, match=r"another network.*conv1/kernel.*\(3, 4\).*\(5, 4\)"):
    store.restore(like(shape=(5, 4)))
  with pytest.raises(UsageError, match=r"optimizer.*opt_state/0.*holds shape \(\).*is none"):
    store.restore(like().replace(opt_state=()))


def test_weights_come_back_without_the_optimizer_that_made_them(saved):
  restored = checkpoints.Checkpoints(saved).restore(like().replace(opt_state=None))
  expected = state(3, scale=3).replace(opt_state=None)
  jax.tree.map(np.testing.assert_array_equal, restored, expected)
  with pytest.raises(UsageError, match=r"another network.*conv1/kernel"):
    checkpoints.Checkpoints(saved).restore(like(shape=(5, 4)).replace(opt_state=None))


def files(place):
  return sorted(p.relative_to(place) for p in place.rglob("*") if p.is_file())


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_damage_in_any_file_is_named_and_the_checkpoint_before_is_used(saved, how, capsys):
  newest = saved / "checkpoints" / "3"
  shutil.copytree(newest, saved / "whole")
  for file in files(newest):
    damage(newest / file, how)
    restored = checkpoints.Checkpoints(saved).restore(like())
    jax.tree.map(np.testing.assert_array_equal, restored, state(2, scale=2))
    said = capsys.readouterr().err
    assert str(file) in said
    assert "step 2 is used" in said
    assert said.count("\n") == 1
    shutil.copy(saved / "whole" / file, newest / file)
  assert int(checkpoints.Checkpoints(saved).restore(like()).step) == 3


LOST = jax.errors.JaxRuntimeError("INTERNAL: the device is lost")
LARGE = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
AWAY = type("UnavailableError", (Exception,), {"__module__": errors._STORE})("The store is away")


@pytest.mark.parametrize(
  ("error", "raised"), [(LOST, type(LOST)), (AWAY, type(AWAY)), (LARGE, UsageError)]
)
def test_what_keeps_a_whole_checkpoint_from_being_read_is_said_and_no_older_one_used(
  saved, monkeypatch, error, raised
):
  load = checkpoints.ocp.load

  def fail(place, *rest):
    if place.name == "3":
      raise error
    return load(place, *rest)

  monkeypatch.setattr(checkpoints.ocp, "load", fail)
  with pytest.raises(raised, match=str(error)):
    checkpoints.Checkpoints(saved).restore(like())


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT])
def test_a_file_that_cannot_be_read_is_damage_too(saved, monkeypatch, capsys, number):
  """As of a bad block, or of a run that deletes its oldest checkpoint meanwhile."""
  read = epath.Path.read_bytes

  def fail(path):
    if "checkpoints/3/" in str(path):
      raise OSError(number, os.strerror(number))
    return read(path)

  monkeypatch.setattr(type(epath.Path(saved)), "read_bytes", fail)
  assert int(checkpoints.Checkpoints(saved).restore(like()).step) == 2
  assert (
    f"/3 is damaged: its files cannot be read ({os.strerror(number)})" in capsys.readouterr().err
  )


def test_where_every_checkpoint_is_damaged_each_is_named(saved):
  for step in (2, 3):
    place = saved / "checkpoints" / str(step)
    damage(place / files(place)[0], "flipped")
  with pytest.raises(UsageError, match=r"/3 is damaged.*/2 is damaged.*no other") as error:
    checkpoints.Checkpoints(saved).restore(like())
  assert "\n" not in str(error.value)
  with pytest.raises(UsageError, match=r"/3 is damaged.*Others are: 2"):
    checkpoints.Checkpoints(saved).restore(like(), 3)


def test_a_damaged_checkpoint_makes_room_for_a_new_one(saved):
  store = checkpoints.Checkpoints(saved, keep=2)
  store.set_aside_after(2)
  store.save(state(3, scale=9))
  store.close()
  assert store.steps() == [2, 3]
  jax.tree.map(np.testing.assert_array_equal, store.restore(like()), state(3, scale=9))
  assert (saved / "damaged" / "3" / "checksums.json").exists()
  store.set_aside_after(2)  # damaged once more
  assert store.steps() == [2]
  assert [x.name for x in (saved / "damaged").iterdir()] == ["3"]


def test_a_checkpoint_whose_run_was_killed_before_its_checksums_is_used(saved):
  (saved / "checkpoints" / "3" / "checksums.json").unlink()
  assert int(checkpoints.Checkpoints(saved).restore(like()).step) == 3


def test_one_that_was_half_deleted_with_its_checksums_is_named_and_the_one_before_is_used(
  saved, capsys
):
  (saved / "checkpoints" / "4").mkdir()
  (saved / "checkpoints" / "5").write_text("no folder")
  store = checkpoints.Checkpoints(saved)
  assert store.steps() == [2, 3, 4]
  assert int(store.restore(like()).step) == 3
  said = capsys.readouterr().err
  assert "/4 cannot be read" in said
  assert "step 3 is used" in said
  assert said.count("\n") == 1
  with pytest.raises(UsageError, match="/4 cannot be read"):
    store.restore(like(), 4)


def test_a_full_disk_is_one_line_that_names_the_whole_checkpoints(saved, monkeypatch):
  store = checkpoints.Checkpoints(saved)

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(store, "_save", full)
  with pytest.raises(UsageError, match=r"No space left.*step 4.*Whole ones are there: 2, 3"):
    store.save(state(4))


def test_where_another_checkpoint_has_no_room_none_is_begun(saved, monkeypatch):
  store = checkpoints.Checkpoints(saved)
  monkeypatch.setattr(store, "_save", None)
  monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=0))
  with pytest.raises(DiskFull, match="Whole ones are there: 2, 3"):
    store.save(state(4))


def test_a_save_that_was_cut_short_is_no_checkpoint(saved):
  (saved / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
  assert checkpoints.Checkpoints(saved).steps() == [2, 3]
  store = checkpoints.Checkpoints(saved, keep=2)
  store.save(state(4))
  store.close()
  assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == ["3", "4"]


@pytest.fixture
def published(tmp_path):
  weights.save(state(3).variables, 3, tmp_path / "weights.safetensors")
  return checkpoints.Checkpoints(tmp_path)


def test_a_published_network_is_one_checkpoint_without_an_optimizer(published):
  assert published.steps() == [3]
  bare = like().replace(opt_state=None)
  expected = state(3).replace(opt_state=None)
  for step in (None, 3):
    jax.tree.map(np.testing.assert_array_equal, published.restore(bare, step), expected)
  with pytest.raises(UsageError, match="no checkpoint of step 4"):
    published.restore(bare, 4)


def test_what_a_published_network_cannot_give_is_refused(published):
  with pytest.raises(UsageError, match=r"optimizer.*opt_state/0.*holds none"):
    published.restore(like())
  with pytest.raises(UsageError, match=r"another network.*conv1/kernel.*\(3, 4\).*\(5, 4\)"):
    published.restore(like(shape=(5, 4)).replace(opt_state=None))


def test_in_a_bucket_a_checkpoint_is_whole_when_orbax_has_marked_it(tmp_path, monkeypatch):
  for step in (2, 4):
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  (tmp_path / "checkpoints" / "2" / "commit_success.txt").touch()
  assert checkpoints.Checkpoints(tmp_path).steps() == [2, 4]
  monkeypatch.setattr(checkpoints.files, "is_bucket", lambda path: True)
  assert checkpoints.Checkpoints(tmp_path).steps() == [2]
