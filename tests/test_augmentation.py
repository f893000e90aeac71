import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from allcnn_jax.data import augmentation


@pytest.fixture
def images(key):
  return jax.random.normal(key, (256, 12, 12, 2))


@pytest.fixture(autouse=True)
def strict_dtypes():
  with jax.numpy_dtype_promotion("strict"):
    yield


def test_a_flip_mirrors_half_of_the_images(key, images):
  flipped = np.asarray(augmentation.flip(key, images))
  mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
  same = (flipped == images).all((1, 2, 3))
  assert (mirrored ^ same).all()
  assert 80 < mirrored.sum() < 176  # 6 deviations of a fair coin


def test_a_shift_is_some_window_of_the_image_on_zeros(key, images):
  """Each result is found among the 121 windows that NumPy cuts, and all shifts come up."""
  shifted = np.asarray(augmentation.shift(key, images))
  padded = np.pad(images, ((0, 0), (5, 5), (5, 5), (0, 0)))
  found = []
  for image, result in zip(padded, shifted):
    places = [
      (i, j)
      for i in range(11)
      for j in range(11)
      if (image[i : i + 12, j : j + 12] == result).all()
    ]
    assert len(places) == 1
    found += places
  assert {i for i, _ in found} == {j for _, j in found} == set(range(11))


def test_crops_have_the_size_and_reach_every_place(key, images):
  cut = np.asarray(augmentation.crop(key, images, (9, 9)))
  assert cut.shape == (256, 9, 9, 2)
  corners = {float(x[0, 0, 0]) for x in cut}
  per_place = [np.isin(images[:, i, j, 0], list(corners)).sum() for i in range(4) for j in range(4)]
  assert min(per_place) > 0


def test_the_centre(images):
  np.testing.assert_array_equal(augmentation.center(images, (8, 8)), images[:, 2:10, 2:10])
  np.testing.assert_array_equal(augmentation.center(images, (12, 12)), images)
  around = np.pad(images, ((0, 0), (4, 5), (1, 1), (0, 0)))
  np.testing.assert_array_equal(augmentation.center(images, (21, 14)), around)


@pytest.mark.parametrize("kind", augmentation.KINDS)
def test_every_kind_is_a_pure_function_that_jit_can_trace(key, kind):
  stored = augmentation.stored_size(kind, (24, 24, 3))
  images = jax.random.normal(key, (4, *stored))
  apply = jax.jit(augmentation.KINDS[kind].apply, static_argnums=2)
  out = apply(key, images, (24, 24))
  assert out.shape == (4, 24, 24, 3)
  np.testing.assert_array_equal(out, apply(key, images, (24, 24)))
  other = apply(jax.random.key(9), images, (24, 24))
  assert (kind == "none") == bool(jnp.array_equal(out, other))


@pytest.mark.parametrize(
  ("kind", "size", "around", "flips"),
  [
    ("none", 12, 0, False),
    ("shift", 12, 5, False),
    ("shift_flip", 12, 5, True),
    ("crop_flip", 9, 0, True),
    ("imagenet", 9, 0, True),
  ],
)
def test_a_kind_gives_windows_and_mirrors_half_of_them_or_none(
  key, images, kind, size, around, flips
):
  found = np.asarray(augmentation.KINDS[kind].apply(key, images, (size, size)))
  margin = (around, around)
  padded = np.pad(images, ((0, 0), margin, margin, (0, 0)))
  places = list(np.ndindex(padded.shape[1] - size + 1, padded.shape[2] - size + 1))
  mirrored = 0
  for image, result in zip(padded, found):
    windows = {image[i : i + size, j : j + size].tobytes() for i, j in places}
    other = result[:, ::-1].tobytes() in windows
    assert (result.tobytes() in windows) ^ other
    mirrored += other
  assert 80 < mirrored < 176 if flips else mirrored == 0


def test_crops_of_24_come_from_images_of_32_and_those_of_224_from_256():
  assert augmentation.stored_size("crop_flip", (24, 24, 3)) == (32, 32, 3)
  assert augmentation.stored_size("imagenet", (224, 224, 3)) == (256, 256, 3)
  assert augmentation.stored_size("shift_flip", (32, 32, 3)) == (32, 32, 3)


def maps(key, n):
  """Maps of all kinds, and shifts that are no whole pixels."""
  matrix = jnp.eye(2)[None] + 0.4 * jax.random.uniform(key, (n, 2, 2), minval=-1)
  return matrix, 9 * jax.random.uniform(jax.random.key(7), (n, 2), minval=-1)


@pytest.mark.parametrize("size", [(126, 126), (31, 40)])
def test_a_warp_is_scipy_s(key, size):
  images = jax.random.normal(key, (6, 32, 32, 3))
  matrix, shift = maps(key, 6)
  found = jax.jit(augmentation.warp, static_argnums=3)(images, matrix, shift, size)
  for image, m, t, result in zip(*map(np.asarray, (images, matrix, shift, found))):
    offset = np.array([15.5, 15.5]) - m @ ((np.array(size) - 1) / 2 + t)
    for c in range(3):
      expected = scipy.ndimage.affine_transform(
        image[..., c], m, offset, size, order=1, mode="grid-constant"
      )
      np.testing.assert_allclose(result[..., c], expected, atol=1e-4)


def test_looking_up_neighbours_is_multiplying_by_tents(key, images):
  """Inside, on the pixels, on the edge and far outside."""
  places = jax.random.uniform(key, (256, 40, 2), minval=-4, maxval=16)
  places = jnp.concatenate([places, places.round(), 100 * places], axis=1)
  by_neighbours = augmentation.sample_by_neighbours(images, places)
  np.testing.assert_allclose(
    by_neighbours, augmentation.sample_by_products(images, places), atol=1e-4
  )
  inside = jnp.array([[[3.0, 7.0]]]).repeat(256, axis=0)
  np.testing.assert_array_equal(
    augmentation.sample_by_neighbours(images, inside)[:, 0], images[:, 3, 7]
  )


def still(**changes):
  nothing = {"stretch": 0.0, "skew": 0.0, "shift": 0, "colour": (0.0, 0.0, 0.0, 0.0)}
  return augmentation.Graham(**(nothing | changes))


def test_graham_without_anything_is_a_flip_on_a_canvas(key, images):
  found = np.asarray(jax.jit(still(), static_argnums=2)(key, images, (40, 40)))
  plain = np.asarray(augmentation.center(images, (40, 40)))
  same, mirrored = (
    np.isclose(found, x, atol=1e-5).all((1, 2, 3)) for x in (plain, plain[:, :, ::-1])
  )
  assert (same ^ mirrored).all()
  assert 80 < mirrored.sum() < 176


@pytest.mark.parametrize("kind", sorted(augmentation.KINDS))
def test_images_keep_their_type_where_draws_are_wider(kind):
  with jax.enable_x64(True):
    shapes = jax.eval_shape(
      lambda key, x: augmentation.KINDS[kind].apply(key, x, (24, 24)),
      jax.random.key(0),
      jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32),
    )
  assert shapes.dtype == jnp.float32


def test_graham_s_colours_change_each_channel_by_a_plane_and_a_gain(key):
  images = jax.random.normal(key, (64, 12, 12, 3))
  moved = jax.random.randint(key, (64, 2), -9, 10).astype(jnp.float32)
  found = augmentation.Graham()._recolour(key, images, moved)
  drawn = []
  for x, y, centre in zip(np.asarray(images), np.asarray(found), np.asarray(moved)):
    i, j = np.meshgrid(*(np.arange(12) - 5.5 - m for m in centre), indexing="ij")
    for c in range(3):
      terms = np.stack([np.ones(144), i.ravel(), j.ravel(), x[..., c].ravel()], axis=1)
      fitted, rest, *_ = np.linalg.lstsq(terms, (y - x)[..., c].ravel(), rcond=None)
      np.testing.assert_allclose(rest, 0, atol=1e-6)
      drawn.append(fitted * [128, 128, 128, 1])
  deviations = np.std(drawn, axis=0) / [25.5, 2.4, 2.4, 0.15]
  assert ((deviations > 0.8) & (deviations < 1.2)).all()  # 192 draws: 4 deviations


def test_graham_s_colours_leave_grey_as_it_is(key):
  """Around the image, and where all of a pixel's channels are within two levels of it."""
  graham = augmentation.Graham()
  dull = jnp.full((64, 8, 8, 3), 1.9 / 128)
  np.testing.assert_array_equal(graham._recolour(key, dull, jnp.zeros((64, 2))), dull)
  bright = dull.at[:, 3, 4, 1].set(2.1 / 128)
  changed = graham._recolour(key, bright, jnp.zeros((64, 2))) != bright
  assert changed[:, 3, 4].all()
  assert changed.sum() == 64 * 3
  on_canvas = jax.jit(graham, static_argnums=2)(key, dull + 1, (126, 126))
  plain = dataclasses.replace(graham, colour=(0.0, 0.0, 0.0, 0.0))
  around = np.asarray(jax.jit(plain, static_argnums=2)(key, dull + 1, (126, 126))) == 0
  np.testing.assert_array_equal(np.asarray(on_canvas)[around], 0)


def test_graham_s_maps_stay_within_their_limits(key):
  matrix = np.asarray(augmentation.Graham(stretch=0.2, skew=0.1).inverse(key, 3000))
  forward = np.linalg.inv(matrix)
  sides = np.linalg.svd(forward, compute_uv=False)
  assert 0.79 / 1.06 < sides.min() < 0.82
  assert 1.18 < sides.max() < 1.21 * 1.06  # a shear by 0.1 lengthens a side by half of that
  assert 1300 < (np.linalg.det(forward) < 0).sum() < 1700
  rotated = np.abs(forward[:, 0, 1] * forward[:, 1, 0]) > 1e-9
  assert 850 < rotated.sum() < 1150
  # Stretched first, so that a row of a shear is longer or shorter as a whole.
  sheared = forward[(forward[:, 0, 1] != 0) & (np.abs(forward[:, 1, 0]) < 1e-9)]
  assert 0.099 < np.abs(sheared[:, 0, 1] / sheared[:, 1, 1]).max() <= 0.1001
  only = np.abs(np.linalg.inv(still(skew=0.1).inverse(key, 3000)))
  assert 0.099 < only[:, 0, 1].max() <= 0.1001
  assert 0.099 < only[:, 1, 0].max() <= 0.1001


def test_graham_s_maps_are_of_every_kind_and_sign(key):
  forward = np.linalg.inv(still(stretch=0.2).inverse(key, 3000))
  sides = np.abs([forward[:, 0, 0], forward[:, 1, 1]])
  assert abs(np.corrcoef(*sides)[0, 1]) < 0.1  # each axis is stretched by itself
  matrix = np.asarray(still(skew=0.1).inverse(key, 3000))
  for i, j in ((0, 1), (1, 0)):
    sheared = matrix[(matrix[:, i, j] != 0) & (matrix[:, j, i] == 0), i, j]
    assert 850 < len(sheared) < 1150
    assert abs((sheared > 0).mean() - 0.5) < 0.1


def test_graham_s_colours_are_planes_through_the_image_s_centre_for_each_channel(key):
  images = jnp.ones((64, 13, 13, 3))
  moved = jnp.broadcast_to(jnp.array([3.0, -2.0]), (64, 2))

  def change(*colour):
    return np.asarray(still(colour=colour)._recolour(key, images, moved) - images)

  rows, columns = change(0.0, 0.0, 2.4, 0.0), change(0.0, 0.0, 0.0, 2.4)
  assert not rows[:, 9].any()
  assert rows[:, 8].all()
  assert not columns[:, :, 4].any()
  assert columns[:, :, 5].all()
  assert abs(np.corrcoef(rows[:, 8, 0].T)[0, 1]) < 0.5


@pytest.mark.parametrize(
  ("n", "side", "how", "size"),
  [
    (4000, 32, {"stretch": 0.2, "skew": 0.2, "shift": 16}, 126),
    (64, 8, {"stretch": 0.2}, 61),
  ],
)
def test_the_window_holds_all_at_the_size_of_use_and_on_an_odd_canvas(key, n, side, how, size):
  graham, images = still(**how), jnp.ones((n, side, side, 1))
  _, shapes, shifts = jax.random.split(key, 3)
  moved = jax.random.randint(shifts, (n, 2), -graham.shift, graham.shift + 1).astype(jnp.float32)
  matrix = graham.inverse(shapes, n)
  whole = jax.jit(augmentation.warp, static_argnums=3)(images, matrix, moved, (size, size))
  found = jax.jit(graham, static_argnums=2)(key, images, (size, size))
  np.testing.assert_allclose(found, whole, atol=1e-5)


def test_the_window_that_is_warped_holds_all_that_is_not_grey(key):
  images = jnp.ones((512, 8, 8, 1))
  graham = augmentation.Graham(shift=5, colour=(0.0, 0.0, 0.0, 0.0))
  found = jax.jit(graham, static_argnums=2)(key, images, (40, 40))
  matrix = graham.inverse(jax.random.split(key, 3)[1], 512)
  moved = jax.random.randint(jax.random.split(key, 3)[2], (512, 2), -5, 6).astype(jnp.float32)
  whole = jax.jit(augmentation.warp, static_argnums=3)(images, matrix, moved, (40, 40))
  np.testing.assert_allclose(found, whole, atol=1e-5)
  assert graham._window(8, 40) < 40
  shown = np.asarray(whole)[..., 0] > 0
  assert shown.any((0, 2)).sum() > 20  # rows that some image reaches
