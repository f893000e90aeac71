"""A stream against what Pillow and NumPy make of the same files, and against itself elsewhere."""

import contextlib
import dataclasses
import io
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from allcnn_jax.data import stream
from allcnn_jax.errors import UsageError
from tests.processes import ROOT

CROPS = stream.Crops((32, 32), 36, random=True, seed=5)
CENTRAL = stream.Crops((32, 32), 36)


def take(batches, n):
  try:
    return list(itertools.islice(batches, n))
  finally:
    batches.close()


def cut(crops, image, position):
  into = np.zeros((*crops.size, 3), np.uint8)
  crops.cut(image, into, position)
  return into


def same(a, b):
  assert len(a) == len(b) > 0
  for x, y in zip(a, b):
    for one, other in zip(x, y):
      np.testing.assert_array_equal(one, other)


@pytest.fixture
def train(photos):
  return stream.Stream("photos", "train", data_dir=photos())


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_every_kind_of_picture_is_decoded_as_pillow_does(photo, mode, form):
  if (mode, form) == ("CMYK", "PNG"):
    pytest.skip("there is no such thing")
  content = photo(0, mode=mode, form=form)
  decoded = stream.decode(content, 36).astype(int)
  pillow = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
  assert decoded.shape == pillow.shape
  assert np.abs(decoded - pillow).max() <= 3


def test_a_picture_of_65536_levels_is_scaled():
  levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(8, 32)
  file = io.BytesIO()
  Image.fromarray(levels).save(file, "PNG")
  found = stream.decode(file.getvalue(), 8)
  np.testing.assert_array_equal(found[..., 0], np.arange(256).reshape(8, 32))


def test_large_pictures_are_decoded_small_and_small_ones_whole(photo):
  assert stream.decode(photo(0, size=(400, 600)), 50).shape == (50, 75, 3)  # an eighth
  assert stream.decode(photo(0, size=(400, 600)), 51).shape == (100, 150, 3)
  assert stream.decode(photo(0, size=(90, 130)), 50).shape == (90, 130, 3)
  assert stream.decode(photo(0, size=(8, 5)), 50).shape == (8, 5, 3)


@pytest.mark.parametrize("size", [(48, 64), (200, 72), (20, 30), (36, 36), (32, 100)])
def test_the_central_crop_is_that_of_the_resized_picture(photo, size):
  image = np.asarray(Image.open(io.BytesIO(photo(1, size=size, form="PNG"))))
  scale = 36 / min(size)
  height, width = (round(n * scale) for n in size)
  whole = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
  top, left = (height - 32) // 2, (width - 32) // 2
  expected = np.asarray(whole.crop((left, top, left + 32, top + 32))).astype(float)
  found = cut(CENTRAL, image, 0).astype(float)
  assert np.abs(found - expected).mean() < 6  # of 256; a crop off by two pixels is off by more


def test_random_crops_reach_every_place_and_half_of_them_are_mirrored():
  rows, columns = np.meshgrid(np.arange(72), np.arange(72), indexing="ij")
  image = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
  cuts = np.stack([cut(CROPS, image, i) for i in range(400)]).astype(int)
  mirrored = cuts[:, 0, 0, 1] > cuts[:, 0, -1, 1]
  assert 150 < mirrored.sum() < 250
  tops, lefts = cuts[:, 0, 0, 0], np.minimum(cuts[:, 0, 0, 1], cuts[:, 0, -1, 1])
  for half in (mirrored, ~mirrored):  # a window of 64 of 72; 0.5 is rounded up
    assert set(tops[half]) == set(lefts[half]) == set(range(1, 10))


def test_an_epoch_has_every_record_once_in_an_order_of_its_own(train):
  n = len(train)
  labels = np.concatenate([b.labels for b in take(train.training(CROPS, 6, 0), 2 * n // 6)])
  assert sorted(labels[:n]) == sorted(labels[n:]) == list(range(n))
  assert list(labels[:n]) != list(labels[n:])
  other = stream.Crops((32, 32), 36, random=True, seed=6)
  assert list(labels[:6]) != list(take(train.training(other, 6, 0), 1)[0].labels)


def test_a_batch_is_a_function_of_its_step_whoever_decodes_it(train):
  whole = take(train.training(CROPS, 6, 0), 9)
  same(whole[5:], take(train.training(CROPS, 6, 5), 4))
  same(whole[7:], take(train.training(CROPS, 6, 7, workers=1), 2))


def test_processes_share_a_batch(train):
  whole = take(train.training(CROPS, 6, 3), 2)
  parts = [take(train.training(CROPS, 6, 3, shard=(i, 3)), 2) for i in range(3)]
  for step in range(2):
    for field in ("images", "labels"):
      shared = [getattr(p[step], field) for p in parts]
      joined = np.concatenate(shared, axis=1 if field == "images" else 0)
      np.testing.assert_array_equal(joined, getattr(whole[step], field))


def test_from_a_step_on_crops_are_central(train):
  random = take(train.training(CROPS, 6, 0), 4)
  plain = take(train.training(CROPS, 6, 0, plain_from=2), 4)
  central = take(train.training(dataclasses.replace(CENTRAL, seed=5), 6, 0), 4)
  same(plain[:2], random[:2])
  same(plain[2:], central[2:])


@pytest.mark.parametrize("batch_size", [1, 5, 18, 64])
def test_an_evaluation_has_every_record_once(train, batch_size):
  batches = list(train.evaluation(CENTRAL, batch_size))
  assert all(len(b.labels) == batch_size for b in batches)
  labels = np.concatenate([b.labels[b.mask] for b in batches])
  np.testing.assert_array_equal(labels, np.arange(len(train)))


def test_views_are_several_crops_of_the_same_images(train):
  [batch] = train.evaluation(CROPS, 18, views=3)
  assert batch.images.shape == (3, 18, 32, 32, 3)
  assert len({view.tobytes() for view in batch.images}) == 3


def test_a_random_crop_is_of_its_position_its_view_and_its_seed(train):
  [batch] = train.evaluation(CROPS, 18, views=2)
  into = np.zeros((32, 32, 3), np.uint8)
  for view in range(2):
    for position in range(18):
      image = stream.decode(train._source[position].content, CROPS.side)
      CROPS.cut(image, into, position, view)
      np.testing.assert_array_equal(batch.images[view, position], into)
  [other] = train.evaluation(dataclasses.replace(CROPS, seed=6), 18)
  assert (other.images[0] != batch.images[0]).any((1, 2, 3)).mean() > 0.8


def test_damaged_records_are_named_and_the_next_one_takes_their_place(photos):
  bad = {4: b"no picture", 5: None, 9: b""}  # None: cut off in the middle
  damaged = stream.Stream("photos", "train", data_dir=photos(bad))
  [batch] = damaged.evaluation(CENTRAL, 18)
  assert set(np.flatnonzero(~batch.mask)) == set(bad)
  assert [name.split(":")[0] for name in batch.damaged] == [
    "record 4 (photo4.jpg)",
    "record 5 (photo5.jpg)",
    "record 9 (photo9.jpg)",
  ]
  batches = take(damaged.training(CROPS, 6, 0), 3)
  labels = np.concatenate([b.labels for b in batches])
  assert sorted(labels) == sorted([*(set(range(18)) - set(bad)), 6, 6, 10])
  assert all(b.mask.all() for b in batches)
  assert {name.split()[1] for b in batches for name in b.damaged} == {"4", "5", "9"}


def test_a_set_without_one_readable_record_is_refused(photos):
  nothing = stream.Stream("photos", "train", data_dir=photos(dict.fromkeys(range(18), b"")))
  [batch] = take(nothing.training(CROPS, 6, 0), 1)
  assert not batch.mask.any()
  assert len(set(batch.damaged)) == 18
  with pytest.raises(UsageError, match="no image can be read"):
    nothing.sample((32, 32))


def test_workers_leave_signals_to_the_run(train):
  """From their first moment on, and while they work."""
  batches, hit, done = train.training(CROPS, 6, 0, workers=1), set(), threading.Event()

  def hit_them():
    while not done.wait(0.02):
      for worker in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM):
          os.kill(worker.pid, number)
        hit.add(worker.pid)

  hitting = threading.Thread(target=hit_them)
  hitting.start()
  try:
    found = [next(batches) for _ in range(9)]  # more than wait in memory
  finally:
    done.set()
    hitting.join()
    batches.close()
  assert hit
  same(found, take(train.training(CROPS, 6, 0), 9))
  assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_worker_whose_run_has_died_before_it_began_ends(tmp_path):
  """The run starts one and dies; the worker waits for that before it begins."""
  program = tmp_path / "run.py"
  program.write_text(
    """
import multiprocessing, os, time

def work(pid):
  from allcnn_jax.data import stream
  while os.getppid() == pid:
    time.sleep(0.01)
  stream._begin_worker(0, 1)
  time.sleep(20)
  print("alive", flush=True)

if __name__ == "__main__":
  worker = multiprocessing.get_context("spawn").Process(target=work, args=[os.getpid()])
  worker.start()
  print(worker.pid, flush=True)
  os._exit(0)
"""
  )
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  words = [sys.executable, str(program)]
  run = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
  with run.stdout:
    worker = int(run.stdout.readline())
    run.wait()
    try:
      assert run.stdout.read() == ""  # until the worker, which has it too, is gone
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)


def test_held_out_records_are_not_trained_on(photos):
  parts = [
    stream.Stream("photos", split, validation=5, data_dir=photos())
    for split in ("train", "validation")
  ]
  labels = [set(np.concatenate([b.labels for b in p.evaluation(CENTRAL, 1)])) for p in parts]
  assert [len(x) for x in labels] == [13, 5]
  assert labels[0] | labels[1] == set(range(18))


def test_central_crops_come_with_their_rows_and_can_be_read_again(photos):
  train = stream.Stream("photos", "train", data_dir=photos({4: None, 9: b"no picture"}))
  batches = list(train.central((36, 36), 7))
  assert [len(images) for images, _ in batches] == [6, 6, 4]
  rows = np.concatenate([rows for _, rows in batches])
  assert list(rows) == [x for x in range(18) if x not in (4, 9)]
  [(again, found)] = train.central((36, 36), rows=rows[[12, 3]])
  assert list(found) == [14, 3]
  np.testing.assert_array_equal(again, np.concatenate([x for x, _ in batches])[[12, 3]])
  assert len(train.sample((32, 32), 7)) == 7


@pytest.mark.parametrize(
  ("name", "split", "said"),
  [
    ("photos", "tset", "Known: train"),
    ("photos", "train[:0]", r"'train\[:0\]' of photos is empty"),
    ("potos", "train", "Unknown"),
  ],
)
def test_what_is_not_there_is_one_line(photos, name, split, said):
  with pytest.raises(UsageError, match=said):
    stream.Stream(name, split, data_dir=photos())
