"""Pool or stride? The question behind Springenberg et al. 2015, and its textbook form.

  python launch.py sweep --config=configs/pooling.py --workdir=DIR
  python launch.py sweep --config=configs/pooling.py:mnist --workdir=DIR

On CIFAR-10: model C with max, average and p = 2 pooling (Eq. 1), Strided-CNN-C, ConvPool-CNN-C and
All-CNN-C, at 0.05, one of the paper's four rates. With `mnist`: a small network of unpadded 3x3
convolutions and a dense head, downsampled by max, average or stride, or not at all (30,976 values
and 15.9 M head weights); minutes a run on a CPU.
"""

import ml_collections

from configs import cifar10

POOLS = ("max", "average", "stride", "none")


def get_config(arg="cifar10"):
  """`arg` is "cifar10" or "mnist"."""
  if arg not in ("cifar10", "mnist"):
    raise ValueError(f"{arg!r} must be cifar10 or mnist")
  return cifar10.get_config("model_c") if arg == "cifar10" else _small("max")


def get_sweep(arg="cifar10"):
  """`arg` is "cifar10" or "mnist"."""
  if arg == "mnist":
    units = [_small(pool) for pool in POOLS]
  else:
    names = ("model_c", "model_c", "model_c", "strided_cnn_c", "conv_pool_cnn_c", "all_cnn_c")
    units = [cifar10.get_config(name) for name in names]
    units[1].model.pool = "average"
    units[2].model.pool = "2"  # Eq. 1 with p = 2
  return {"table": "pooling", "units": units, "names": ("model.pool",), "seeds": 3}


def _small(pool):
  """Every value is our choice."""
  config = ml_collections.ConfigDict()
  config.model = ml_collections.ConfigDict()
  config.model.name = "small_convnet"
  config.model.head = "dense"
  config.model.pool = pool
  config.model.final_relu = False
  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = "mnist"
  config.dataset.preprocessing = "standardize"
  config.train = ml_collections.ConfigDict()
  config.train.epochs = 5
  config.train.batch_size = 128
  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 0.001
  config.log = ml_collections.ConfigDict({"every_steps": 39})  # 12 lines an epoch
  return config
