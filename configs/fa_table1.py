"""Moskovitz et al. 2018, Table 1: three networks under the learning rules.

  python launch.py sweep --config=configs/fa_table1.py --workdir=DIR
  python launch.py sweep --config=configs/fa_table1.py:fa_mnist --workdir=DIR

The argument is one network. Alignment with backpropagation is measured ten or twelve times an epoch.
The paper's ImageNet columns need that data set: configs/feedback_alignment.py runs their cells.
"""

import ml_collections

from configs import feedback_alignment

NETWORKS = ("fa_mnist", "fa_cifar10_1", "fa_cifar10_2")
RULES = (
  "bp",
  "bp_noise",
  "bp_alignment",
  "fa",
  "fa_usf",
  "fa_usf_init",
  "fa_usf_sn",
  "fa_usf_init_ei",
  "fa_usf_sn_ei",
  "batch_manhattan",
  "dfa",
  "dense_fa",
  "bp_const",
  "fa_usf_const",
  "fa_usf_const_ei",
)


def get_config(arg="fa_mnist"):
  """`arg` is the network."""
  return _config(arg, "bp")


def get_sweep(arg=""):
  """`arg` is the network, or empty: all three."""
  return {
    "table": "fa_table1",
    "units": [
      _config(name, rule)
      for name in ([arg] if arg else NETWORKS)
      for rule in RULES
      # DenseFA's matrices for the all-convolutional net are refused: 34 G values.
      if (name, rule) != ("fa_cifar10_2", "dense_fa")
    ],
    "names": ("rule.name",),
    "seeds": 2,  # our choice
  }


def _config(name, rule):
  config = feedback_alignment.get_config(f"{name},{rule}")
  config.alignment.every_steps = config.log.every_steps
  # Kept rarely, for there are many runs; a multiple, so that a GPU has so many steps a call.
  config.checkpoint = ml_collections.ConfigDict({"every_steps": 250 * config.log.every_steps})
  return config
