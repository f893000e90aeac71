import dataclasses
import os

import jax
import numpy as np
import pytest

from allcnn_jax.errors import UsageError
from allcnn_jax.training import sharding


def test_a_batch_is_split_and_weights_are_not():
  mesh = sharding.mesh()
  n = jax.device_count()
  assert sharding.batch_sharding(mesh).shard_shape((8 * n, 3)) == (8, 3)
  assert sharding.replicated(mesh).shard_shape((8 * n, 3)) == (8 * n, 3)


def test_devices_stand_process_by_process_however_their_chips_are_laid():
  Chip = dataclasses.make_dataclass("Chip", ["process_index", "id"], frozen=True)
  chips = [Chip(i % 4 // 2, i) for i in range(8)]
  row = sharding.mesh(chips[::-1]).devices
  assert [(chip.process_index, chip.id) for chip in row] == [
    *((0, i) for i in (0, 1, 4, 5)),
    *((1, i) for i in (2, 3, 6, 7)),
  ]


def test_a_batch_that_the_devices_cannot_share_is_refused(monkeypatch):
  monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1] * 3)
  sharding.check_batch_size(9)
  with pytest.raises(UsageError, match="3 devices"):
    sharding.check_batch_size(8)


def test_an_evaluation_s_batch_is_rounded_up_to_what_the_devices_share(monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 8)
  assert [sharding.round_up(n) for n in (1, 8, 50, 64)] == [8, 8, 56, 64]


@pytest.mark.parametrize(
  ("error", "said"),
  [
    (
      RuntimeError("Backend 'gpus' is not known (set JAX_PLATFORMS='' to choose)"),
      "is not known.$",
    ),
    (AssertionError(), "no working plugin"),  # all that JAX says of CUDA where none is installed
  ],
)
def test_a_platform_that_is_not_there_is_wrong_use(error, said, monkeypatch):
  def devices():
    raise error

  monkeypatch.setattr(jax, "devices", devices)
  monkeypatch.setenv("JAX_PLATFORMS", "gpus")
  for asks in (sharding.mesh, lambda: sharding.check_batch_size(8)):
    with pytest.raises(UsageError, match=f"JAX_PLATFORMS=gpus: .*{said}"):
      asks()
  monkeypatch.delenv("JAX_PLATFORMS")  # then it is no wish of the user's that fails
  with pytest.raises(type(error)):
    sharding.mesh()


@pytest.mark.parametrize(
  "given", [{"JAX_NUM_PROCESSES": "2"}, {"JAX_PROCESS_ID": "first"}, {"JAX_NUM_PROCESSES": "0"}]
)
def test_processes_started_by_hand_are_told_what_belongs_together(given, monkeypatch):
  for name, value in given.items():
    monkeypatch.setenv(name, value)

  def initialize(**given):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  with pytest.raises(UsageError, match=r"JAX_COORDINATOR_ADDRESS, .* belong together"):
    sharding.start()
  for name in given:
    monkeypatch.delenv(name)
  sharding.start()  # alone


def test_a_process_that_dies_is_found_out_in_half_a_minute(monkeypatch):
  """JAX by itself takes 100 seconds."""
  given = {}
  monkeypatch.setattr(jax.distributed, "initialize", lambda **options: given.update(options))
  sharding.start()
  assert given["heartbeat_timeout_seconds"] <= 30
  assert given["shutdown_timeout_seconds"] <= 30


@pytest.fixture
def lost(monkeypatch):
  """A job, as far as `sharding` can tell, whose end is an exception that holds its status."""

  def leave(status):
    raise SystemExit(status)

  monkeypatch.setattr(sharding, "start", lambda: None)
  monkeypatch.setattr(sharding, "joined", lambda: True)
  monkeypatch.setattr(os, "_exit", leave)


def test_a_process_that_loses_the_others_says_so_and_asks_to_be_started_again(lost, capsys):
  with pytest.raises(SystemExit) as end, sharding.job():
    raise jax.errors.JaxRuntimeError("Connection reset by peer\nat some length")
  assert end.value.code not in (0, 2)
  said = capsys.readouterr().err
  assert "Connection reset by peer" in said
  assert "Start again" in said
  assert said.count("\n") == 1


def test_too_little_memory_is_no_loss_of_the_others(lost):
  with pytest.raises(jax.errors.JaxRuntimeError, match="EXHAUSTED"), sharding.job():
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


def test_a_process_by_itself_has_no_others_to_lose(lost, monkeypatch):
  monkeypatch.setattr(sharding, "joined", lambda: False)
  with pytest.raises(jax.errors.JaxRuntimeError, match="reset by peer"), sharding.job():
    raise jax.errors.JaxRuntimeError("Connection reset by peer")


def test_wrong_use_within_a_job_stays_wrong_use(lost):
  with pytest.raises(UsageError, match="so"), sharding.job():
    raise UsageError("so")


def test_arrays_are_replicated_and_batches_divided():
  rows = np.arange(24.0).reshape(8 * jax.device_count(), -1)
  put = sharding.replicate({"rows": rows})["rows"]
  np.testing.assert_array_equal(put, rows)
  assert put.addressable_shards[0].data.shape == rows.shape
  put = sharding.from_process({"rows": rows})["rows"]
  np.testing.assert_array_equal(put, rows)
  assert put.addressable_shards[0].data.shape == (8, *rows.shape[1:])
