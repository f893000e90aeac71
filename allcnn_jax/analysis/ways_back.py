"""What each rule sends back through one layer, worked out on an example.

[M18] is Moskovitz et al. 2018.
"""

import jax
import jax.numpy as jnp
import numpy as np

from allcnn_jax.analysis.sheet import Block, Row, Sheet, plain
from allcnn_jax.analysis.subject import Request
from allcnn_jax.nets import feedback
from allcnn_jax.training import learning_rules

# A dense layer from two units to three, and an error at its output.
W = np.array([[2.4, -1.0, 0.6], [-1.6, 1.8, -3.0]], np.float32)
B0 = np.array([[-0.4, -0.9, 0.6], [0.7, 0.2, 0.5]], np.float32)
D = np.array([[0.5, -1.0, 0.2]], np.float32)
_HEADINGS = ("W", "B_0, drawn once", "B", "d, the error above", "sent below: d B'")
_SHOWN = ("bp", "fa", "fa_usf", "fa_usf_init", "fa_usf_sn")


def sent(rule: learning_rules.Rule) -> tuple[np.ndarray, np.ndarray]:
  """(B, what a layer of `feedback` passes on) for the example."""
  variables = {
    "params": {"a": {"kernel": jnp.asarray(W)}},
    "feedback": {"a": {"kernel": jnp.asarray(B0)}},
  }
  b = rule.feedback_weights(variables).get(("a", "kernel"), jnp.asarray(W))
  layer = feedback.Dense(3, use_bias=False)
  given = {"params": {"kernel": jnp.asarray(W)}, "feedback": {"kernel": b}}
  _, back = jax.vjp(lambda x: layer.apply(given, x), jnp.ones((1, 2)))
  return np.asarray(b), np.asarray(back(jnp.asarray(D))[0])


def figure(request: Request) -> Sheet:
  """[M18] Fig. 1, in our reading: the ways back of the methods, here in numbers."""
  rows, arrays = [], {"W": W, "B_0": B0, "d": D}
  for name in _SHOWN:
    b, passed_on = sent(learning_rules.RULES[name])
    arrays |= {f"B_{name}": b, f"sent_{name}": passed_on}
    tables = [W, B0, b, D, passed_on]
    rows.append(Row(name, [_picture(t) for t in tables], numbers=[t.round(1) for t in tables]))
  return Sheet(
    "fa1",
    "Ways back through a weight",
    "One dense layer with forward weights W (a row for each unit below, a column for each unit "
    "above), and what comes back to the units below from an error d above (our reading of "
    "Moskovitz et al. 2018, Fig. 1), to one decimal. The forward pass is the same in all rows. DFA sends the "
    "network's output error through a matrix of its own to every layer instead; DenseFA sends "
    "that of all layers above.",
    [Block("", rows, _HEADINGS)],
    1,
    arrays,
  )


def _picture(table: np.ndarray) -> np.ndarray:
  """Light where a number is zero, red where it is positive, blue where it is negative."""
  strength = np.clip(np.abs(table) / 4, 0, 1)[..., None]
  ink = np.where(table[..., None] > 0, [200, 60, 50], [50, 90, 190])
  return plain(np.round(255 - strength * (255 - ink)).astype(np.uint8)[None])[0]
