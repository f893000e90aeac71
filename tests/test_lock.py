import multiprocessing
import os

import pytest

from allcnn_jax.errors import Busy, UsageError
from allcnn_jax.training.lock import Lock


def test_a_second_one_is_refused_until_the_first_is_given_back(tmp_path):
  with Lock(tmp_path) as first, Lock(tmp_path) as second:
    first.take()
    first.take()  # keeps it
    with pytest.raises(Busy, match="Another process trains in"):
      second.take()
  with Lock(tmp_path) as third:
    third.take()


def take_and_die(folder):
  Lock(folder).take()
  os.kill(os.getpid(), 9)


def test_a_process_that_was_killed_leaves_none(tmp_path):
  process = multiprocessing.get_context("spawn").Process(target=take_and_die, args=(tmp_path,))
  process.start()
  process.join()
  assert process.exitcode == -9
  with Lock(tmp_path) as lock:
    lock.take()


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
  (tmp_path / ".lock").mkdir()
  with Lock(tmp_path) as lock, pytest.raises(UsageError, match=r"\.lock cannot be written"):
    lock.take()


def test_a_bucket_has_none():
  with Lock("gs://bucket/run") as lock:
    lock.take()
