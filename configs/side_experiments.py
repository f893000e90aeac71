"""Springenberg et al. 2015, the side experiments that it mentions: dense heads, and other dropout.

  python launch.py sweep --config=configs/side_experiments.py --workdir=DIR

Section 3.1: fully connected layers instead of the 1x1 convolutions. Their class scores have no
ReLU, our choice: the one in Table 1 stands before an average over 36 places. Footnote 4: additional
dropout after all layers, or only after the 1x1 ones. What the paper says of the outcome is not at
hand.
"""

from configs import cifar10


def get_config():
  return cifar10.get_config()


def get_sweep():
  units = []
  for name in ("model_c", "all_cnn_c"):
    for key, value in (
      ("head", "conv"),  # as printed
      ("head", "dense"),
      ("dropout_after", "all"),
      ("dropout_after", "1x1"),
    ):
      units.append(cifar10.get_config(name))
      units[-1].model[key] = value
      units[-1].model.final_relu = value != "dense"
  return {
    "table": "side_experiments",
    "units": units,
    "names": ("model.head", "model.dropout_after"),
    "seeds": 3,
  }
