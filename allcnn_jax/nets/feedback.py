"""Convolution and dense layers whose way back is a matrix of its own.

Moskovitz et al. 2018 [M18]. With the input x of a layer, its forward weights W and the error
signal d that comes back to its output, backpropagation changes W by the gradient that x and d give,
and passes W^T d on. Here the gradient of W stays exact, given d, and what is passed on is

  B^T d             `through_b`: B stands in the collection "feedback", under the layer's name
  nothing           `cut`: what lies before the layer hears from elsewhere, by `link`

`under` replaces the way back in anybody's Linen network of `nn.Conv` and `nn.Dense`, which is
left as it is; `Conv` and `Dense` are layers to build with.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, no_type_check

import flax.linen as nn
import jax
from flax import traverse_util
from jaxtyping import Array, Float, Key, PyTree

from allcnn_jax.errors import UsageError, unknown
from allcnn_jax.nets import linear

# The standard deviation of a random feedback weight, by the n_out and n_in of its `Layer`. [M18]:
# variance 1/n_out keeps the size of an error signal; "fan_in" gives B the variance
# of a W that starts by "lecun_normal", and "gaussian_0.05" asks for no size at all.
INITIALIZERS: dict[str, Callable[[int, int], float]] = {
  "fan_out": lambda n_out, n_in: n_out**-0.5,
  "fan_in": lambda n_out, n_in: n_in**-0.5,
  "gaussian_0.05": lambda n_out, n_in: 0.05,
}


@jax.custom_vjp
def split(
  own: Float[Array, "*shape"], onward: Float[Array, "*shape"], noise: Key[Array, ""] | None
) -> Float[Array, "*shape"]:
  """`own`; the error signal d that comes back goes to `own` and to `onward` alike.

  `own` is a layer's output as a function of its parameters, `onward` the output that it would
  have with feedback weights, as a function of its input. The value of `onward` is never used, so
  that under jit it costs nothing.

  Args:
    own: any shape.
    onward: of the same shape.
    noise: if given, `own` receives d + n instead, with n from a Gaussian of d's variance.
  """
  return own


def _split_forward(own, onward, noise):
  return own, noise


def _split_backward(noise, d):
  if noise is None:
    return d, d, None
  return d + d.std() * jax.random.normal(noise, d.shape, d.dtype), d, None


split.defvjp(_split_forward, _split_backward)


@jax.custom_vjp
def link(y: Float[Array, "n *y"], h: Float[Array, "n *h"], b: Float[Array, "i j"]) -> Array:
  """`y`; the error signal d that comes back to it also goes to `h`, as d B.

  Args:
    y: where the error is known, i numbers an image.
    h: where it is wanted, j numbers an image.
    b: the feedback matrix.
  """
  return y


def _link_forward(y, h, b):
  return y, (h, b)


def _link_backward(kept, d):
  h, b = kept
  sent = d.reshape(len(d), -1) @ b.astype(d.dtype)
  return d, sent.reshape(h.shape).astype(h.dtype), None


link.defvjp(_link_forward, _link_backward)


# A way back: (layer, its forward function, its input) -> its output.
Way = Callable[[nn.Module, Callable[[Array], Array], Array], Array]


def backpropagation(layer: nn.Module, forward: Callable[[Array], Array], x: Array) -> Array:
  """Backpropagation: the layer as it is."""
  return forward(x)


def cut(layer: nn.Module, forward: Callable[[Array], Array], x: Array) -> Array:
  """The layer learns from its error signal and passes nothing on."""
  return forward(jax.lax.stop_gradient(x))


def through_b(
  layer: nn.Module, forward: Callable[[Array], Array], x: Array, noisy: bool = False
) -> Array:
  """The layer learns from its error signal and passes it on through its feedback weights.

  If `noisy`, the signal that it learns from has noise, from the random stream "noise", and the
  one that it passes on has none.

  Raises:
    UsageError: the layer has no feedback weights.
  """
  own = forward(jax.lax.stop_gradient(x))
  if layer.is_initializing():
    _draw(layer)
  if not layer.has_variable("feedback", "kernel"):
    raise UsageError(
      f"The layer {'/'.join(layer.path)!r} has no feedback weights: there is no 'feedback' collection "
      "with a kernel under its name. A rule's `init` adds one to the variables of a network."
    )
  b = jax.lax.stop_gradient(layer.get_variable("feedback", "kernel"))
  twin = _ONWARD[nn.Conv if isinstance(layer, nn.Conv) else nn.Dense]
  fields = {f.name: getattr(layer, f.name) for f in dataclasses.fields(twin) if f.init}
  fields |= {"use_bias": False, "parent": None, "name": None}
  onward = twin(**fields).apply({"params": {"kernel": b}}, x)
  return split(own, onward, layer.make_rng("noise") if noisy else None)


# Flax gives its layers fields of types that cannot be checked at run time.
@no_type_check
class Conv(nn.Conv):
  """`nn.Conv` whose way back is a kernel of its own, drawn with variance 1/n_out."""

  @nn.compact
  def __call__(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """As `nn.Conv`."""
    return through_b(self, super().__call__, inputs)


@no_type_check
class Dense(nn.Dense):
  """`nn.Dense` whose way back is a kernel of its own, drawn with variance 1/n_out."""

  @nn.compact
  def __call__(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """As `nn.Dense`."""
    return through_b(self, super().__call__, inputs)


@no_type_check
class _OnwardConv(nn.Conv):
  """Kept apart from `nn.Conv`, so that no way back is put into a way back."""


@no_type_check
class _OnwardDense(nn.Dense):
  """See `_OnwardConv`."""


_ONWARD = {
  nn.Conv: _OnwardConv,
  linear.Conv: _OnwardConv,
  nn.Dense: _OnwardDense,
  linear.Dense: _OnwardDense,
}
_OURS = (Conv, Dense, *_ONWARD.values())


def under(way: Way) -> contextlib.AbstractContextManager[None]:
  """Within it, every `nn.Conv` and `nn.Dense` of any network goes back by `way`.

  If the variables have a collection "signals" with zeros of the shape of each layer's output,
  the gradient with respect to it is the error signal that each layer learns from.

  Raises:
    UsageError: when the network is run, if it has weights in a layer of another kind.
  """

  def intercept(next_function, args, kwargs, context):
    layer = context.module
    if context.method_name != "__call__" or isinstance(layer, _OURS):
      return next_function(*args, **kwargs)
    if type(layer) in _ONWARD:
      (x,) = (*args, *kwargs.values())
      return way(layer, lambda x: layer.perturb("signal", next_function(x), "signals"), x)
    y = next_function(*args, **kwargs)
    own = layer.get_variable("params", "kernel")
    if own is not None and not isinstance(own, Mapping):  # which is a layer of that name
      raise UsageError(
        f"The layer {'/'.join(layer.path)!r} is of type {type(layer).__name__}: a way back through weights is defined for nn.Conv and nn.Dense."
      )
    return y

  return nn.intercept_methods(intercept)


class Layer(NamedTuple):
  """What the feedback weights of a layer depend on.

  Attributes:
    path: the names that lead to its variables.
    kernel: shape of its forward weights.
    input: shape of its input, without the number of images.
    output: of its output, likewise.
    n_out: how many outputs one input goes into, at a stride of 1, and so how many errors are summed
      on the way back.
    n_in: how many inputs one output is made from.
  """

  path: tuple[str, ...]
  kernel: tuple[int, ...]
  input: tuple[int, ...]
  output: tuple[int, ...]
  n_out: int
  n_in: int


def layers(
  net: nn.Module,
  variables: PyTree,
  images: Float[Array, "n ..."] | jax.ShapeDtypeStruct,
  **kwargs: Any,
) -> list[Layer]:
  """The layers with weights, in the order of the forward pass; nothing is computed.

  Args:
    net: any Linen network.
    variables: of the network.
    images: a batch, or its shape and type.
    **kwargs: of the network's `apply`.

  Raises:
    UsageError: the network has weights elsewhere than in `nn.Conv` and `nn.Dense`.
  """
  found: dict[tuple[str, ...], Layer] = {}

  def note(layer: nn.Module, forward: Callable[[Array], Array], x: Array) -> Array:
    y = forward(x)
    kernel = layer.get_variable("params", "kernel").shape
    found[layer.path] = Layer(layer.path, kernel, x.shape[1:], y.shape[1:], *_fans(layer, kernel))
    return y

  def run(variables, images):
    with under(note):
      return net.apply(variables, images, **kwargs)

  jax.eval_shape(run, variables, images)
  for path, w in traverse_util.flatten_dict(variables["params"]).items():
    if w.ndim > 1 and path[:-1] not in found:
      raise UsageError(
        f"The weights {'/'.join(path)!r} are in no nn.Conv or nn.Dense, for which a way back is defined."
      )
  return list(found.values())


def _fans(layer: nn.Module, kernel: tuple[int, ...]) -> tuple[int, int]:
  groups = getattr(layer, "feature_group_count", 1)
  return math.prod(kernel[:-2]) * kernel[-1] // groups, math.prod(kernel[:-1])


def draw(
  key: Key[Array, ""], shape: tuple[int, ...], n_out: int, n_in: int, init: str = "fan_out"
) -> Float[Array, "..."]:
  """Random feedback weights, Gaussian, float32.

  Args:
    key: decides them.
    shape: of the weights.
    n_out, n_in: as of a `Layer`.
    init: one of `INITIALIZERS`.

  Raises:
    UsageError: an unknown initializer.
  """
  if init not in INITIALIZERS:
    raise unknown("initializer of feedback weights", init, INITIALIZERS)
  return INITIALIZERS[init](n_out, n_in) * jax.random.normal(key, shape)


def _draw(layer: nn.Module) -> Any:
  kernel = layer.get_variable("params", "kernel").shape
  drawn = draw(layer.make_rng("params"), kernel, *_fans(layer, kernel))
  layer.put_variable("feedback", "kernel", drawn)
