"""All-CNN-C on CIFAR-10 in the least time: the paper's layers, today's protocol.

  python launch.py train --config=configs/cifar10_fast.py --workdir=DIR
  python launch.py sweep --config=configs/cifar10_fast.py --workdir=DIR

The goal is the paper's 9.08 % within seconds of one GPU, as the mean of five seeds: the sweep.
Nothing here is the paper's but the layers; every value is our choice. What came of them, and of more
epochs (--config.train.epochs=40), is in results/cifar10_fast. A run is 16 epochs instead of 350, 1.3
PFLOP instead of 28.4.
"""

from configs import cifar10


def get_sweep():
  return {"table": "cifar10_fast", "units": [get_config()], "seeds": 5}


def get_config():
  config = cifar10.get_config("all_cnn_c,augment")
  config.model.final_relu = False  # no start can die
  config.model.init = "he_normal"
  config.model.dropout = (0.0, 0.3)  # a short run overfits less

  config.dataset.preprocessing = "standardize"  # learns as fast as whitened images here

  config.train.epochs = 16
  config.train.batch_size = 256
  config.train.dtype = "float32"  # bfloat16 is as good, but slow on a CPU

  config.optimizer.name = "muon"
  config.optimizer.learning_rate = 0.02
  config.optimizer.schedule = "triangle"
  config.optimizer.warmup = 0.2
  config.optimizer.drops = ()
  config.optimizer.nesterov = True
  config.optimizer.weight_decay = 0.02
  config.optimizer.decay_bias = False

  an_epoch = 50_000 // config.train.batch_size
  config.evaluate.every_steps = 5 * an_epoch
  config.checkpoint.every_steps = 20 * an_epoch
  config.log.every_steps = an_epoch // 5  # and so many steps in one call of a GPU
  return config
