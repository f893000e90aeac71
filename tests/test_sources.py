"""A split is the same through either door, and training goes on where it was stopped."""

import gc
import weakref

import jax
import numpy as np
import pytest

from allcnn_jax import config as config_lib
from allcnn_jax.data import augmentation, preprocessing, stream
from allcnn_jax.errors import UsageError
from allcnn_jax.training import evaluate, loop, parts, sharding, sources
from allcnn_jax.training import step as step_lib
from tests.runs import metrics, same, weights


def opened(config, split="test"):
  source = sources.open(config, split)
  source.prepare(preprocessing.fit(config.dataset.preprocessing, source.sample()))
  return source


def images_of(batches):
  """The first view of each image that is not masked."""
  parts = [np.asarray(b.views[0])[np.asarray(b.mask)] for b in batches]
  return np.concatenate(parts)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
@pytest.mark.parametrize("views", [0, 2])
def test_an_evaluation_has_every_image_once(tiny, batch_size, views):
  tiny.dataset.augment = "shift_flip"
  batches = list(opened(tiny).evaluation(batch_size, views))
  assert all(len(b.views) == max(views, 1) for b in batches)
  labels = np.concatenate([np.asarray(b.labels)[np.asarray(b.mask)] for b in batches])
  np.testing.assert_array_equal(labels, parts.read_images(tiny, "test").labels)
  assert len(images_of(batches)) == 50


def test_each_batch_of_views_is_augmented_in_its_own_way(tiny, tmp_path):
  images = np.repeat(parts.read_images(tiny, "test").images[:1], 16, axis=0)
  labels = np.zeros(16, int)
  path = tmp_path / "same.npz"
  np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
  tiny.dataset.name, tiny.dataset.augment = f"npz:{path}", "shift_flip"
  one, other = (np.asarray(batch.views[0]) for batch in opened(tiny).evaluation(8, 1))
  assert not np.array_equal(one, other)


def test_views_are_augmented_and_the_image_itself_is_not(tiny):
  tiny.dataset.augment = "graham"
  tiny.dataset.preprocessing = "grey"
  tiny.model.name = "large_all_cnn"
  tiny.model.dropout = ()
  [batch] = opened(tiny).evaluation(50, 3)
  assert [x.shape for x in batch.views] == [(50, 126, 126, 3)] * 3
  assert len({np.asarray(x).tobytes() for x in batch.views}) == 3
  first = np.asarray(opened(tiny).first(4).images)
  raw = parts.read_images(tiny, "test").images[:4].astype(np.float32)
  np.testing.assert_allclose(first[:, 47:79, 47:79], (raw - 128) / 128)
  assert np.abs(first).sum() == pytest.approx(np.abs((raw - 128) / 128).sum(), rel=1e-5)


def test_a_stream_evaluates_what_would_be_read_into_memory(streamed):
  size = parts.image(streamed)[:2]
  side = augmentation.stored_size("imagenet", (*size, 3))[:2]
  [(stored, _)] = stream.Stream("photos", "test", data_dir=streamed.dataset.data_dir).central(side)
  top = (stored.shape[1] - size[0]) // 2
  kept = stored[:, top : top + size[0], top : top + size[1]].astype(np.float32)
  found = images_of(opened(streamed).evaluation(4))
  # Cut before it is resized, or after: the windows differ by less than a pixel.
  assert found.shape == kept.shape
  assert np.abs(found - (kept - 128) / 128).mean() < 0.03


def whole_stream(config, split="train"):
  return stream.Stream("photos", split, data_dir=config.dataset.data_dir)


@pytest.mark.parametrize("seed", [0, 5])
def test_a_stream_trains_on_random_crops_of_its_seed_until_they_are_plain(streamed, seed):
  streamed.seed, streamed.train.epochs, streamed.dataset.plain_epochs = seed, 2, 1
  recipe = parts.recipe(streamed, 18, 18)
  source = opened(streamed, "train")
  source.start(recipe, step_lib.init(recipe, 3), step_lib.Totals.zero())
  crops = stream.Crops((32, 32), 37, random=True, seed=seed)  # 256 for 224 is 37 for 32
  expected = whole_stream(streamed).training(crops, 6, 0, plain_from=3)
  for _ in range(5):
    batch = next(expected)
    np.testing.assert_array_equal(source._ahead.labels, batch.labels)
    raw = batch.images[0].astype(np.float32)
    np.testing.assert_allclose(source._ahead.images, (raw - 128) / 128, atol=1e-6)
    source._ahead = source._next()
  source.close()


def test_views_of_a_stream_are_random_crops(streamed):
  [batch] = opened(streamed).evaluation(11, 2)
  [plain] = opened(streamed).evaluation(11)
  images = [np.asarray(x) for x in (*batch.views, *plain.views)]
  assert len({x.tobytes() for x in images}) == 3
  np.testing.assert_array_equal(batch.labels, plain.labels)


def test_each_process_reads_its_own_rows_of_a_stream(streamed, monkeypatch):
  crops = stream.Crops((32, 32), 37, random=True, seed=streamed.seed)
  trained = next(whole_stream(streamed).training(crops, 6, 0)).labels
  [evaluated] = (x.labels for x in whole_stream(streamed, "test").evaluation(crops, 12))
  monkeypatch.setattr(sharding, "process", lambda: (1, 3))
  monkeypatch.setattr(sharding, "from_process", lambda rows: rows)
  recipe = parts.recipe(streamed, 18, 18)
  source = opened(streamed, "train")
  source.start(recipe, step_lib.init(recipe, 3), step_lib.Totals.zero())
  np.testing.assert_array_equal(source._ahead.labels, trained[2:4])
  source.close()
  [batch] = opened(streamed).evaluation(12)
  np.testing.assert_array_equal(batch.labels, evaluated[4:8])


def test_a_stream_s_batches_are_such_as_the_devices_can_share(streamed, monkeypatch):
  monkeypatch.setattr(sources.sharding, "round_up", lambda n: -(-n // 8) * 8)
  batches = list(opened(streamed).evaluation(5))
  assert [len(b.labels) for b in batches] == [8, 8]
  assert len(images_of(batches)) == 11


def test_an_epoch_s_order_is_drawn_on_the_device(tiny):
  source = opened(tiny, "train")
  recipe = sharding.replicate(parts.recipe(tiny, 10, 96))
  carry = step_lib.init(recipe, 3), step_lib.Totals.zero()
  source.start(recipe, *carry)
  *carry, step = source.advance(*carry, 0)
  *carry, step = source.advance(*carry, step)
  with jax.transfer_guard("disallow"):
    while step < 13:  # into the second epoch
      *carry, step = source.advance(*carry, step)


def test_a_streamed_run_stopped_anywhere_goes_on_with_the_very_next_batch(streamed, tmp_path):
  streamed.train.steps = 7
  streamed.checkpoint.every_steps = 3
  loop.train(streamed, tmp_path / "whole")
  for steps in (2, 4, 7):
    streamed.train.steps = steps
    loop.train(streamed, tmp_path / "parts")
  same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
  result = evaluate.from_workdir(tmp_path / "parts")
  assert (result["split"], result["examples"]) == ("test", 11)
  assert result["error_top5"] <= result["error"]


def test_a_streamed_step_is_that_of_the_same_batch_on_the_device(streamed):
  """One step on the stream's first batch, against the step of a set that holds just that batch."""
  source = opened(streamed, "train")
  recipe = parts.recipe(streamed, 18, 18)
  carry = step_lib.init(recipe, 3), step_lib.Totals.zero()
  source.start(recipe, *carry)
  batch = jax.tree.map(np.asarray, source._ahead)
  plain = config_lib.complete(streamed)
  plain.dataset.augment = "none"
  state, _, step = source.advance(*carry, 0)
  source.close()
  other, _ = step_lib.train_step(
    parts.recipe(plain, 18, 18),
    step_lib.init(recipe, 3),
    step_lib.Totals.zero(),
    step_lib.Stored.of(*batch),
    np.arange(6),
  )
  assert step == 1
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, other)


def test_damaged_records_are_in_the_log_once_and_counted_out(streamed, photos, tmp_path, capsys):
  photos({3: b"no picture", 7: None})
  streamed.stream.damaged = 0.2
  streamed.train.steps = 7
  loop.train(streamed, tmp_path / "run")
  named = [x["damaged"] for x in metrics(tmp_path / "run") if "damaged" in x]
  assert sorted(name.split(":")[0] for name in named) == [
    "record 3 (photo3.jpg)",
    "record 7 (photo7.jpg)",
  ]
  result = evaluate.from_workdir(tmp_path / "run", split="train")
  assert result["examples"] == 16
  assert "damaged, left out: train record 7 (photo7.jpg)" in capsys.readouterr().out


def test_too_many_damaged_records_stop_a_run(streamed, photos, tmp_path):
  photos({3: b"", 7: b"", 8: b""})
  streamed.stream.damaged = 2 / 18
  streamed.train.steps = 9
  with pytest.raises(UsageError, match=r"3 of the 18 records of photos train are damaged.*photo"):
    loop.train(streamed, tmp_path / "run")


def test_what_other_processes_could_not_read_counts_in_an_evaluation(streamed):
  streamed.stream.damaged = 2 / 18
  source = sources.open(streamed, "train")
  source.check(evaluated=16)
  with pytest.raises(UsageError, match=r"3 of the 18 records of photos train are damaged"):
    source.check(evaluated=15)


def test_images_held_out_of_a_stream_are_not_trained_on(streamed):
  streamed.dataset.validation = 5
  splits = ("train", "validation", "test")
  assert [sources.open(streamed, split).examples for split in splits] == [13, 5, 11]


def test_another_set_may_be_a_stream_whatever_the_training_images_went_through(streamed):
  streamed.dataset.augment = "shift_flip"
  source = sources.open(streamed, "test", "photos")
  source.prepare(preprocessing.fit("grey", source.sample()))
  assert len(images_of(source.evaluation(4))) == 11
  with pytest.raises(UsageError, match="vary in size 'shift_flip'"):
    next(source.evaluation(4, views=2))


def test_views_are_augmented_as_the_config_says(tiny):
  """Graham's warps without any change but the flip."""
  tiny.dataset.augment, tiny.dataset.preprocessing = "graham", "grey"
  tiny.model.name, tiny.model.dropout = "large_all_cnn", ()
  for key in ("stretch", "skew"):
    tiny.graham[key] = 0.0
  tiny.graham.shift, tiny.graham.colour = 0, (0.0, 0.0, 0.0, 0.0)
  source = opened(tiny)
  (batch, *_), (plain, *_) = source.evaluation(8, views=1), source.evaluation(8)
  view, image = np.asarray(batch.views[0])[:, 47:79, 47:79], np.asarray(plain.views[0])
  same, mirrored = (
    np.isclose(view, x, atol=1e-4).all((1, 2, 3)) for x in (image, image[:, :, ::-1])
  )
  assert (same | mirrored).all()


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("dataset.augment", "shift_flip", "vary in size 'shift_flip'.*Known: none, crop_flip"),
    ("dataset.preprocessing", "gcn_zca", "needs all images in memory"),
    ("model.name", "fa_mnist", "1 channel"),
  ],
)
def test_what_a_stream_cannot_do_is_refused(streamed, key, value, said):
  group, name = key.split(".")
  streamed[group][name] = value
  with pytest.raises(UsageError, match=said):
    sources.open(streamed, "train")


def test_first_images_are_the_same_ones_each_time(streamed):
  source = opened(streamed)
  first = source.first(4)
  assert first.images.shape == (4, 32, 32, 3)
  np.testing.assert_array_equal(first.labels, range(4))
  np.testing.assert_array_equal(first.images, source.first(4).images)


def test_images_in_the_compute_type_train_the_same_net(tiny, monkeypatch):
  tiny.train.dtype, tiny.dataset.augment = "bfloat16", "shift_flip"
  recipe, ends = parts.recipe(tiny, 10, 96), []
  for kind in (parts.stored_type(tiny), np.float32):
    monkeypatch.setattr(parts, "stored_type", lambda config, kind=kind: kind)
    source = opened(tiny, "train")
    carry = jax.jit(step_lib.init, static_argnums=1)(recipe, 3), step_lib.Totals.zero()
    source.start(recipe, *carry)
    assert source.first(2).images.dtype == kind
    for step in range(3):
      *carry, _ = source.advance(*carry, step)
    ends.append(jax.tree.leaves(carry[0]))
  for coarse, fine in zip(*ends):
    np.testing.assert_array_equal(coarse, fine)
  assert ends[0][0].dtype == ends[1][0].dtype


def test_what_an_augmentation_computes_with_stays_fine(tiny):
  tiny.train.dtype = "bfloat16"
  assert parts.stored_type(tiny) == jax.numpy.bfloat16
  tiny.dataset.augment = "graham"
  assert parts.stored_type(tiny) == np.float32


def test_a_split_that_is_done_with_leaves_no_images_on_the_device(tiny):
  source = opened(tiny, "train")
  recipe = parts.recipe(tiny, 10, 96)
  carry = jax.jit(step_lib.init, static_argnums=1)(recipe, 3), step_lib.Totals.zero()
  source.start(recipe, *carry)
  source.advance(*carry, 0)
  gone = weakref.ref(source)
  gc.disable()  # it does not know how large an array on the device is, and may come late
  try:
    del source
    assert gone() is None
  finally:
    gc.enable()
