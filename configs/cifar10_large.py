"""The large All-CNN of Springenberg et al. 2015 [S15], Section 3.2.3 and Table 5.

  python launch.py train --config=configs/cifar10_large.py --workdir=DIR
  python launch.py train --config=configs/cifar10_large.py:cifar100 --workdir=DIR
  python launch.py evaluate --workdir=DIR --views=12

The paper's test error on CIFAR-10: 4.41 %. Images of 32x32 stand on a grey canvas of 126x126 with
the augmentation of Graham 2014, "Fractional max-pooling" [G14]. [S15] gives no more; numbers that
neither text has are those of Graham's program (SparseConvNet, cifar10big.cpp), or our choice.
"""

import ml_collections


def get_config(arg="cifar10"):
  """`arg` is "cifar10" or "cifar100"."""
  if arg not in ("cifar10", "cifar100"):
    raise ValueError(f"{arg!r} must be cifar10 or cifar100")

  config = ml_collections.ConfigDict()
  config.seed = 0

  config.model = ml_collections.ConfigDict()
  config.model.name = "large_all_cnn"
  config.model.dropout = (0.1, 0.2, 0.3, 0.4, 0.5)  # Table 5
  config.model.final_relu = False  # Table 5 lists no 10-way layer: ours is linear
  config.model.init = "he_normal"  # our choice: the paper does not say

  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = arg
  config.dataset.preprocessing = "grey"  # Graham's program: (x - 128) / 128, no whitening
  config.dataset.augment = "graham"
  config.dataset.plain_epochs = 10  # Graham's program: the last 10 of 810
  config.dataset.validation = 0

  config.graham = ml_collections.ConfigDict()  # all four: Graham's program
  config.graham.stretch = 0.2
  config.graham.skew = 0.2
  config.graham.shift = 16
  # As written there. The program passes them as integers, so that what it ran was (25, 0, 2, 2).
  config.graham.colour = (25.5, 0.15, 2.4, 2.4)

  # Optimizer and schedule are not stated: those of Section 3.2, unless said otherwise.
  config.train = ml_collections.ConfigDict()
  config.train.epochs = 350
  config.train.batch_size = 128  # our choice
  # 7.9 PFLOP an epoch: bfloat16 once a run has shown that it costs nothing.
  config.train.dtype = "float32"

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = "sgd"
  config.optimizer.momentum = 0.9
  config.optimizer.learning_rate = 0.05
  config.optimizer.clip_norm = 1.0  # our choice, as in configs/cifar10.py
  config.optimizer.drops = (200, 250, 300)
  config.optimizer.drop_factor = 10.0
  config.optimizer.weight_decay = 0.001
  config.optimizer.decay_bias = True  # Caffe's default
  config.optimizer.velocity = "caffe"

  an_epoch = 50_000 // config.train.batch_size
  config.evaluate = ml_collections.ConfigDict({"every_steps": 10 * an_epoch})
  config.checkpoint = ml_collections.ConfigDict({"every_steps": an_epoch, "keep": 2})
  config.checkpoint.least_seconds = 300.0  # 620 MB each
  config.log = ml_collections.ConfigDict({"every_steps": an_epoch // 10})
  return config
