"""Springenberg et al. 2015, Table 3: twelve networks on CIFAR-10, without augmentation.

  python launch.py sweep --config=configs/table3.py --workdir=DIR

For each network the four rates of Section 3.2 on held-out images, then the best one on all 50,000
with three seeds: 84 runs of 350 epochs, 1,625 PFLOP. One network is one unit (`--index=11` is
All-CNN-C).
"""

from configs import cifar10

NETWORKS = [
  name.format(letter)
  for letter in "abc"
  for name in ("model_{}", "strided_cnn_{}", "conv_pool_cnn_{}", "all_cnn_{}")
]


def get_config():
  return cifar10.get_config()


def get_sweep():
  return {
    "table": "table3",
    "units": [cifar10.get_config(name) for name in NETWORKS],
    "rates": (0.25, 0.1, 0.05, 0.01),  # 3.2
    "held_out": 0.2,  # 10,000 images; our choice: the paper does not say what it chose by
    "seeds": 3,  # our choice: the paper does not say
  }
