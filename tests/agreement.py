"""Trains a tiny net for some steps and writes down everything that must not depend on how many
devices and processes do it. The test `test_devices.py` starts it under each number of them.

  python tests/agreement.py OUT [FOLDER]     restores the checkpoint of another run's FOLDER too
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from allcnn_jax.data import augmentation
from allcnn_jax.nets import architectures, model
from allcnn_jax.nets.dropout import Dropout
from allcnn_jax.training import checkpoints, learning_rules, parts, randomness, sharding
from allcnn_jax.training import step as step_lib

EXAMPLES, BATCH, SIZE, SEED = 64, 16, (12, 12), 5
STEPS = 50 if jax.config.jax_enable_x64 else 10


def recipe(rule):
  conv, dropout = architectures.Conv, architectures.Dropout
  table = (
    dropout(0.1),
    conv(3, 8, 1, (1, 1)),
    conv(3, 8, 2, (1, 1)),
    dropout(0.5),
    conv(1, 5, 1, (0, 0), relu=False),
    architectures.GlobalAverage(),
  )
  net = parts.fast(model.ConvNet(table, dtype=jnp.result_type(float)))
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, momentum=0.9))
  return step_lib.Recipe(
    seed=SEED,
    net=net,
    optimizer=optimizer,
    augment=augmentation.KINDS["shift_flip"],
    size=SIZE,
    batch_size=BATCH,
    batch_sharding=sharding.batch_sharding(sharding.mesh()),
    rule=learning_rules.create(rule),
  )


def data():
  random = np.random.default_rng(0)
  labels = np.arange(EXAMPLES, dtype=np.int32) % 5
  images = random.integers(-9, 9, (EXAMPLES, *SIZE, 3)) + 3 * labels[:, None, None, None]
  stored = sharding.replicate(step_lib.Stored.of(images.astype(np.float32) / 8, labels))
  assert stored.rows.addressable_shards[0].data.shape == stored.rows.shape
  return stored


def of_processes():
  """A batch of which each process has had rows of its own."""
  index, count = sharding.process()
  rows = np.arange(BATCH * 3).reshape(BATCH, 3)
  whole = sharding.from_process(np.split(rows, count)[index])
  assert whole.addressable_shards[0].data.shape == (BATCH // jax.device_count(), 3)
  return jax.jit(lambda x: x, out_shardings=sharding.replicated(sharding.mesh()))(whole)


def begin(recipe):
  place = sharding.replicated(sharding.mesh())
  return jax.jit(step_lib.init, static_argnums=1, out_shardings=place)(recipe, 3)


def integers(recipe, images):
  """A batch as its processes have it, orders of images, one batch of pixels after augmentation, one mask of dropout."""
  place = sharding.replicated(sharding.mesh())
  order = step_lib.epoch_order(SEED, 3, EXAMPLES)
  batch = jax.jit(step_lib.batch_at, out_shardings=place)(recipe, images, order, 2)

  @functools.partial(jax.jit, out_shardings=place)
  def masks(x):
    x = jax.lax.with_sharding_constraint(x, recipe.batch_sharding)
    rngs = {"dropout": randomness.key(SEED, "dropout", 7)}
    return Dropout(0.5, deterministic=False).apply({}, x, rngs=rngs)

  return {
    "rows": of_processes(),
    "order": order,
    "augmented": batch.images,
    "labels": batch.labels,
    "mask": masks(np.ones((BATCH, *SIZE, 8), np.float32)),
  }


def weights(recipe, images, at_once):
  """After STEPS steps, taken one by one or an epoch at a time."""
  state, totals = begin(recipe), step_lib.Totals.zero()
  per_epoch = EXAMPLES // BATCH
  for step in range(0, STEPS, per_epoch if at_once else 1):
    order = step_lib.epoch_order(SEED, step // per_epoch, EXAMPLES)
    if at_once:
      count = min(per_epoch, STEPS - step)
      state, totals = step_lib.train_steps(recipe, state, totals, images, order, count)
    else:
      state, totals = step_lib.train_step(recipe, state, totals, images, order)
    jax.block_until_ready(totals)
  return state


def flat(tree):
  return {"/".join(k): v for k, v in traverse_util.flatten_dict(tree).items()}


def main(out, folder=None):
  sharding.start()
  assert sharding.batch_sharding(sharding.mesh()).shard_shape((64,)) == (64 // jax.device_count(),)
  images, found = data(), {}
  found |= {f"exact/{k}": v for k, v in integers(recipe("bp"), images).items()}
  for rule in ("bp", "fa"):
    for at_once in (False, True):
      state = weights(recipe(rule), images, at_once)
      found |= {
        f"close/{rule}/{at_once}/{k}": v for k, v in flat(state.variables["params"]).items()
      }
  if folder:
    restored = checkpoints.Checkpoints(folder).restore(jax.eval_shape(lambda: state))
    found |= {f"restored/{k}": v for k, v in flat(restored.variables).items()}
  store = checkpoints.Checkpoints(out)
  store.save(state)
  store.close()
  found |= {f"saved/{k}": v for k, v in flat(state.variables).items()}
  if sharding.is_first():
    np.savez(pathlib.Path(out) / "found.npz", **{k: np.asarray(v) for k, v in found.items()})


if __name__ == "__main__":
  main(*sys.argv[1:])
