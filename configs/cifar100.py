"""CIFAR-100 as in Springenberg et al. 2015, Section 3.2.2: the set-up of CIFAR-10, unchanged.

  python launch.py train --config=configs/cifar100.py:all_cnn_c --workdir=DIR
  python launch.py train --config=configs/cifar100.py:all_cnn_c,augment --workdir=DIR

The paper's test error: All-CNN-C 33.71 % (Table 4; with augmentation, as it is commonly read).
"""

from configs import cifar10


def get_config(arg="all_cnn_c"):
  """`arg` is the name of a network, "augment", or both with a comma between."""
  config = cifar10.get_config(arg)
  config.dataset.name = "cifar100"
  return config
