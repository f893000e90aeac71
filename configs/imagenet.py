"""ImageNet as in Springenberg et al. 2015 [S15], Section 3.3: the network of Table 6.

  python launch.py train --config=configs/imagenet.py --workdir=DIR
  python launch.py train --config=configs/imagenet.py:large_batch --workdir=DIR

The paper's validation error: 41.2 % (top-1, one central patch). "450,000 iterations ... batches of
64": 22.5 epochs. `large_batch` takes 1,024 images a step, for eight devices.
"""

import ml_collections

IMAGES = 1_281_167  # of the training set
PAPER_BATCH = 64
PAPER_STEPS = 450_000
PAPER_RATE = 0.01
PAPER_DROP_EVERY = 200_000


def get_config(arg=""):
  """`arg` is "" or "large_batch"."""
  if arg not in ("", "large_batch"):
    raise ValueError(f"unknown option {arg!r}: 'large_batch' is the only one")
  batch_size = 1024 if arg else PAPER_BATCH
  times = batch_size // PAPER_BATCH  # 16 of the paper's batches in one

  config = ml_collections.ConfigDict()
  config.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "all_cnn_imagenet"
  config.model.dropout = (0.5,)  # 3.3: after conv9
  config.model.final_relu = True  # Table 6
  config.model.init = "lecun_uniform"  # our choice, Caffe's "xavier": the paper does not say

  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = "imagenet2012"
  # Our choices, as Krizhevsky et al. 2012: the shorter side at 256, random crops of 224, flips; the
  # training mean subtracted. The deviation goes too, as the initializer expects.
  config.dataset.augment = "imagenet"
  config.dataset.preprocessing = "standardize"

  config.train = ml_collections.ConfigDict()
  config.train.steps = PAPER_STEPS // times
  config.train.epochs = PAPER_STEPS * PAPER_BATCH // IMAGES  # 22 whole ones
  config.train.batch_size = batch_size
  config.train.dtype = "float32"

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = "sgd"
  config.optimizer.momentum = 0.9  # 3.2
  # 3.3. With k times the batch, k times the rate: Krizhevsky 2014 (arXiv 1404.5997), whose networks
  # have no batch normalisation either. 0.01 x 1024 / 64 = 0.16, unproven here.
  config.optimizer.learning_rate = PAPER_RATE * times
  if arg:  # Goyal et al. 2017 (arXiv 1706.02677): so large a rate is reached over five epochs
    config.optimizer.warmup = 5 / config.train.epochs
  # 3.3: divided by ten every 200,000 steps. Drops are in epochs of whole batches.
  steps_per_epoch = IMAGES // batch_size
  drops = range(PAPER_DROP_EVERY, PAPER_STEPS, PAPER_DROP_EVERY)
  config.optimizer.drops = tuple(step // times / steps_per_epoch for step in drops)
  config.optimizer.drop_factor = 10.0
  config.optimizer.clip_norm = 1.0  # our choice, as in configs/cifar10.py
  config.optimizer.weight_decay = 0.0005  # 3.3
  config.optimizer.decay_bias = True  # Caffe's default
  config.optimizer.velocity = "caffe"

  half_epoch = 10_000 // times  # of the paper's steps
  config.evaluate = ml_collections.ConfigDict({"every_steps": half_epoch})
  config.checkpoint = ml_collections.ConfigDict({"every_steps": half_epoch, "keep": 2})
  config.log = ml_collections.ConfigDict({"every_steps": 100})
  return config
