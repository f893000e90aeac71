"""The short form of `faults.py`."""

import pytest

from tests import faults

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def test_killed_at_random_moments_a_run_ends_with_the_very_same_weights(tmp_path):
  found = faults.kills(tmp_path, count=4, seed=0)
  assert found["kills"] == 4
  assert found["runs with the very same weights"] == found["runs"]


def test_damage_is_found_and_the_checkpoint_before_is_used(tmp_path):
  found = faults.damage(tmp_path)
  assert found["damages after which the checkpoint before was used"] == found["damages"] > 10
  assert found["refused with none left"]


def test_a_full_disk_is_said_and_costs_no_older_checkpoint(tmp_path):
  found = faults.full_disk(tmp_path)
  if found is None:
    pytest.skip("a small disk is mounted as root only")
  assert found["status"] == 2
  assert found["says"].count("\n") == 0
  assert "No space left" in found["says"]
  assert found["checkpoints that stayed whole"] >= 1


def test_a_second_run_in_a_folder_is_refused(tmp_path):
  found = faults.second_run(tmp_path)
  assert found["status"] == 2
  assert found["says"].count("\n") == 0
  assert "Another process trains in" in found["says"]
  assert found["the first goes on"]
