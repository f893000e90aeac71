"""DFA and DenseFA: errors that reach a layer through dense matrices, over the heads of others.

Moskovitz et al. 2018. With the error e at the network's output, the signal d_m at the output of
layer m before its activation, and h_l what layer l sends on, after its activation:

  DFA      the gradient at h_l is e B_l                                        (Nokland 2016)
  DenseFA  it is that of feedback alignment from layer l + 1, plus the sum over m >= l + 2 of
           d_m B_lm: our reading, in which neighbours keep a B of the kernel's shape

Each h_l is a map before pooling in a network of ours. In anybody's network, whose activations
cannot be seen, it is the input of the next layer.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util
from jaxtyping import Array, PyTree

from allcnn_jax.errors import UsageError
from allcnn_jax.nets import feedback, model

# 8 GB, which DFA on the ImageNet networks stays below.
_MOST_VALUES = 2 * 10**9
# What a matrix from the network's output is called, and a B of the shape of the layer's own weights.
_OUTPUT, _KERNEL = "output", "kernel"


def matrices(
  rule: str, from_all: bool, net: nn.Module, variables: PyTree, images: Any, **kwargs: Any
) -> dict[tuple[str, ...], tuple[int, int]]:
  """The shapes of the feedback matrices: (*layer, source) -> (values at the source, at the layer).

  Args:
    rule: its name, for the errors.
    from_all: DenseFA rather than DFA.
    net: any Linen network of `nn.Conv` and `nn.Dense`.
    variables: of the network.
    images: a batch, or its shape and type.
    **kwargs: of the network's `apply`.

  Raises:
    UsageError: the matrices would have more than 2 x 10^9 values, or DFA finds no output (N, classes).
  """
  layers = feedback.layers(net, variables, images, **kwargs)
  if isinstance(net, model.ConvNet):
    sent = [math.prod(x.output) for x in layers[:-1]]
  else:
    sent = [math.prod(x.input) for x in layers[1:]]
  if from_all:
    shapes = {
      (*x.path, _name(source.path)): (math.prod(source.output), n)
      for i, (x, n) in enumerate(zip(layers[:-1], sent))
      for source in layers[i + 2 :]
    }
  else:
    output = jax.eval_shape(functools.partial(net.apply, **kwargs), variables, images)
    if not isinstance(output, jax.ShapeDtypeStruct) or len(output.shape) != 2:
      raise UsageError(f"The rule {rule!r} needs a network whose output is one array (N, classes).")
    shapes = {(*x.path, _OUTPUT): (output.shape[1], n) for x, n in zip(layers[:-1], sent)}
  count = sum(i * j for i, j in shapes.values())
  if count > _MOST_VALUES:
    raise UsageError(
      f"The rule {rule!r} needs {count / 1e9:.3g} G feedback values on this network, more than the {_MOST_VALUES / 1e9:g} G "
      "that we allow: choose another rule, or a lower model.width."
    )
  return shapes


def values(weights: PyTree) -> int:
  """How many numbers the matrices among feedback weights have: an image's multiply-adds with them."""
  flat = traverse_util.flatten_dict(weights)
  return sum(b.size for path, b in flat.items() if path[-1] != _KERNEL)


def fits(matrices: PyTree, from_all: bool, layers: int) -> bool:
  """Whether these feedback weights are those of DFA, or of DenseFA if `from_all`, of so many layers."""
  names = {path[-1] for path in traverse_util.flatten_dict(matrices)} - {_KERNEL}
  if not names:
    return layers <= (2 if from_all else 1)  # too few for any
  return (_OUTPUT in names) != from_all


def apply(
  way: feedback.Way, from_all: bool, net: nn.Module, variables: PyTree, *args: Any, **kwargs: Any
) -> Any:
  """`net.apply(variables, ...)`, whose way back is `way` and the matrices in "feedback".

  Args:
    way: between neighbours: `feedback.cut` for DFA, `feedback.through_b` for DenseFA.
    from_all: DenseFA rather than DFA.
    net: any Linen network of `nn.Conv` and `nn.Dense`.
    variables: with the matrices in the collection "feedback".
    *args: of the network.
    **kwargs: of the network's `apply`.

  Raises:
    UsageError: a layer is used twice.
  """
  b = variables["feedback"]
  done: list[tuple[str, ...]] = []  # the layers that have run
  sent: dict[tuple[str, ...], Array] = {}
  ours = isinstance(net, model.ConvNet)

  def activate(x: Array) -> Array:
    sent[done[-1]] = h = net.act(x)
    return h

  def run(layer: nn.Module, forward, x: Array) -> Array:
    if layer.path in done:
      raise UsageError(
        f"The layer {'/'.join(layer.path)!r} is used twice: which errors go straight to it, the rules dfa and dense_fa do not say."
      )
    if done and not ours:
      sent[done[-1]] = x
    y = sent[layer.path] = way(layer, forward, x)
    if from_all:
      for path in done[:-1]:
        y = feedback.link(y, sent[path], _at(b, path)[_name(layer.path)])
    done.append(layer.path)
    return y

  with feedback.under(run):
    y = (net.clone(act=activate) if ours else net).apply(variables, *args, **kwargs)
  if from_all:
    return y
  # With `mutable`, as of batch statistics, `net.apply` returns them too.
  y, *rest = y if isinstance(y, tuple) else (y,)
  for path in done[:-1]:
    y = feedback.link(y, sent[path], _at(b, path)[_OUTPUT])
  return (y, *rest) if rest else y


def _name(path: tuple[str, ...]) -> str:
  """What a matrix from a layer is called: never as that from a network's output, or as B itself."""
  name = ".".join(path)
  return f"{name}." if name in (_OUTPUT, _KERNEL) else name


def _at(tree: PyTree, path: tuple[str, ...]) -> PyTree:
  for name in path:
    tree = tree[name]
  return tree
