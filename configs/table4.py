"""Springenberg et al. 2015, Table 4: All-CNN-C with and without augmentation, and on CIFAR-100.

  python launch.py sweep --config=configs/table4.py --workdir=DIR

The rate is chosen as in table3.py; 21 runs of 350 epochs, 528 PFLOP. The paper's test error:
9.08 %, with augmentation 7.25 %, CIFAR-100 33.71 %.
"""

from configs import cifar10, cifar100


def get_config():
  return cifar10.get_config()


def get_sweep():
  return {
    "table": "table4",
    "units": [
      cifar10.get_config("all_cnn_c"),
      cifar10.get_config("all_cnn_c,augment"),
      cifar100.get_config("all_cnn_c,augment"),
    ],
    "names": ("dataset.augment",),
    "rates": (0.25, 0.1, 0.05, 0.01),  # 3.2
    "held_out": 0.2,  # our choice, as in table3.py
    "seeds": 3,
  }
