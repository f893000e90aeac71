"""How an error finds its way back, and what else a learning rule does to the weights.

Moskovitz et al. 2018 [M18], and what it compares itself with. A rule is a few fields; its `way`
says what the feedback weights B of a layer are at a step, given its W and the drawn B_0. Under
every rule the forward pass is the network's own, so that evaluation needs no rule, and the
gradient of a layer's weights is exact, given the error signal that the layer receives.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float, Int, PyTree

from allcnn_jax.errors import UsageError, unknown
from allcnn_jax.nets import feedback
from allcnn_jax.training import direct_feedback, randomness

Weights = Float[Array, "..."]
Path = tuple[str, ...]

# Weights of a frozen sign stop here, on their side of zero: bfloat16 keeps the number and its sign.
_OFF_ZERO = 1e-10
TINY = 1e-30  # keeps a layer of zeros from being divided by zero
# What rules keep beside a network's own variables.
_COLLECTIONS = ("feedback", "norms", "signs")


def transposed(w: Weights, b0: Weights | None) -> Weights:
  """Backpropagation: B = W."""
  return w


def fixed(w: Weights, b0: Weights | None) -> Weights:
  """Feedback alignment (Lillicrap et al. 2016): B = B_0."""
  return b0


def sign(w: Weights, b0: Weights | None) -> Weights:
  """Uniform sign feedback (Liao et al. 2015): B = sign(W), without any magnitude."""
  return jnp.sign(w)


def sign_of_fixed_size(w: Weights, b0: Weights | None) -> Weights:
  """uSF Init, [M18] Eq. 4: B = |B_0| sign(W)."""
  return jnp.abs(b0) * jnp.sign(w)


def sign_of_same_norm(w: Weights, b0: Weights | None) -> Weights:
  """uSF SN, [M18] Eq. 5: B = sign(W) ||W|| / ||sign(W)||, with the 2-norm over all of W."""
  s = jnp.sign(w)
  return s * (norm(w) / jnp.maximum(norm(s), 1)).astype(w.dtype)


def norm(w: Weights) -> Float[Array, ""]:
  """The 2-norm over all of W, summed in float32 at least."""
  return jnp.sqrt(jnp.sum(jnp.square(w.astype(jnp.promote_types(w.dtype, jnp.float32)))))


def keep_signs(w: Weights, before: Weights) -> Weights:
  """E/I: W, clipped just off zero where it has left the sign of `before`. Zero is positive."""
  return jnp.where(before < 0, jnp.minimum(w, -_OFF_ZERO), jnp.maximum(w, _OFF_ZERO))


def keep_norm(w: Weights, first: Float[Array, ""]) -> Weights:
  """Const., [M18] Eq. 10: W ||W_0|| / ||W||, given `first`, the norm of W_0."""
  return (w * (first / jnp.maximum(norm(w), TINY))).astype(w.dtype)


def distance(w: Weights, b: Weights) -> Float[Array, ""]:
  """||W - B||^2, which [M18] Eq. 9 adds to the loss; our reading: the equation is not at hand."""
  return jnp.sum(jnp.square(w - b))


@dataclasses.dataclass(frozen=True)
class Rule:
  """A learning rule. The default is backpropagation, and costs nothing.

  Attributes:
    name: as in `RULES`.
    way: (W, B_0) -> B, for errors that go from layer to layer; None: autodiff's W, or nothing at all
      goes from layer to layer where `direct` sends errors.
    draws: whether a layer has a B_0 of the shape of its W.
    direct: "" or which dense matrices there are besides: "output" (DFA) or "all" (DenseFA).
    noisy: whether each layer learns from a signal with noise of the signal's own variance.
    aligns: whether W is drawn to B_0 by [M18] Eq. 9.
    manhattan: whether the sign of a gradient takes its place (Liao et al. 2015).
    keeps_signs: whether weights keep their sign from step `freeze_step` on (E/I).
    keeps_norms: whether a layer's weights keep their first norm (Const.).
    penalty: lambda of [M18] Eq. 9.
    freeze_step: see `keeps_signs`.
    feedback_init: one of `feedback.INITIALIZERS`.
    tracks_signs: whether to note which weights have ever changed their sign.
  """

  name: str = "bp"
  way: Callable[[Weights, Weights | None], Weights] | None = None
  draws: bool = False
  direct: str = ""
  noisy: bool = False
  aligns: bool = False
  manhattan: bool = False
  keeps_signs: bool = False
  keeps_norms: bool = False
  penalty: float = 0.001
  freeze_step: int = 0
  feedback_init: str = "fan_out"
  tracks_signs: bool = False

  @property
  def replaces_autodiff(self) -> bool:
    """Whether `feedback` puts in the way back: BP + noise has W for B, and needs it for the noise."""
    return self.way is not None or self.direct != ""

  def init(
    self,
    net: nn.Module,
    variables: PyTree,
    images: Any,
    seed: randomness.Seed,
    **kwargs: Any,
  ) -> PyTree:
    """The variables, with the collections that the rule needs and without those of another rule.

    Args:
      net: any Linen network of `nn.Conv` and `nn.Dense`.
      variables: as its `init` returns them, or of a run under another rule. Feedback weights that
        are there already and fit are kept.
      images: a batch, or its shape and type.
      seed: decides the feedback weights.
      **kwargs: of the network's `apply`, where it cannot do without, such as `train=False`.

    Returns:
      a dict with, where the rule asks for it, "feedback" (random weights), "norms" (the first
      norm of each kernel) and "signs" (of each weight: the first, and whether it ever changed).

    Raises:
      UsageError: the rule is not defined for the network.
    """
    added: dict[str, dict[Path, Array]] = {}
    if self.replaces_autodiff:
      feedback.layers(net, variables, images, **kwargs)  # refuses weights elsewhere
    if self.draws or self.direct:
      there = traverse_util.flatten_dict(variables.get("feedback", {}))
      added["feedback"] = {
        path: there[path]
        if path in there and there[path].shape == wanted[0]
        else feedback.draw(
          randomness.key(seed, "/".join(("feedback", *path))), *wanted, self.feedback_init
        )
        for path, wanted in self._wanted(net, variables, images, kwargs).items()
      }
    kernels = kernels_of(variables["params"])
    if self.keeps_norms:
      added["norms"] = {path: norm(w) for path, w in kernels.items()}
    if self.tracks_signs:
      first = {(*path, "positive"): w >= 0 for path, w in kernels.items()}
      added["signs"] = first | {
        (*path, "changed"): jnp.zeros(w.shape, bool) for path, w in kernels.items()
      }
    own = {k: v for k, v in variables.items() if k not in _COLLECTIONS}
    return own | {k: traverse_util.unflatten_dict(v) for k, v in added.items()}

  def _wanted(
    self, net: nn.Module, variables: PyTree, images: Any, kwargs: dict[str, Any]
  ) -> dict[Path, tuple[tuple[int, ...], int, int]]:
    """The random feedback weights: path -> (shape, n_out, n_in)."""
    wanted = {}
    if self.draws:
      layers = feedback.layers(net, variables, images, **kwargs)
      wanted = {(*x.path, "kernel"): (x.kernel, x.n_out, x.n_in) for x in layers}
    if self.direct:
      dense = self.direct == "all"
      shapes = direct_feedback.matrices(self.name, dense, net, variables, images, **kwargs)
      wanted |= {path: (shape, *shape) for path, shape in shapes.items()}
    return wanted

  def apply(self, net: nn.Module, variables: PyTree, *args: Any, **kwargs: Any) -> Any:
    """`net.apply(variables, ...)`, whose gradient with respect to the parameters is the rule's.

    Args:
      net: any Linen network of `nn.Conv` and `nn.Dense`.
      variables: as `init` returns them.
      *args: of the network.
      **kwargs: of the network's `apply`. BP + noise needs a random stream "noise".

    Raises:
      UsageError: a layer that the rule is not defined for, or no feedback weights.
    """
    if not self.replaces_autodiff:
      return net.apply(variables, *args, **kwargs)
    b = traverse_util.flatten_dict(self._drawn(variables)) | self.feedback_weights(variables)
    variables = {**variables, "feedback": traverse_util.unflatten_dict(b)}
    way = feedback.cut if self.way is None else feedback.through_b
    if self.noisy:
      way = functools.partial(way, noisy=True)
    if self.direct:
      return direct_feedback.apply(way, self.direct == "all", net, variables, *args, **kwargs)
    with feedback.under(way):
      return net.apply(variables, *args, **kwargs)

  def feedback_weights(self, variables: PyTree) -> dict[Path, Weights]:
    """B of each layer at this moment, by the path of its W, where it has one of that shape.

    Raises:
      UsageError: the rule needs random feedback weights and there are none.
    """
    b0 = kernels_of(self._drawn(variables))
    if self.way is None:
      return b0
    return {p: self.way(w, b0.get(p)) for p, w in kernels_of(variables["params"]).items()}

  def _drawn(self, variables: PyTree) -> PyTree:
    if not self.draws and not self.direct:
      return {}
    drawn = variables.get("feedback", {})
    kernels = kernels_of(variables["params"]).keys()
    lacks_own = self.draws and kernels - kernels_of(drawn).keys()
    lacks_direct = self.direct and not direct_feedback.fits(
      drawn, self.direct == "all", len(kernels)
    )
    if lacks_own or lacks_direct:
      raise UsageError(
        f"The rule {self.name!r} needs feedback weights, and these variables, of another rule, hold none of its kind: its `init` draws them."
      )
    return drawn

  def extra_loss(self, variables: PyTree) -> Float[Array, ""] | float:
    """What is added to the loss: [M18] Eq. 9 for BP + alignment, else 0."""
    if not self.aligns:
      return 0.0
    b0, kernels = self.feedback_weights(variables), kernels_of(variables["params"])
    return self.penalty * sum(distance(w, b0[path]) for path, w in kernels.items())

  def descent(self, gradients: PyTree) -> PyTree:
    """What the optimizer is given in the place of the gradients."""
    return jax.tree.map(jnp.sign, gradients) if self.manhattan else gradients

  def after(self, before: PyTree, params: PyTree, step: Int[Array, ""]) -> PyTree:
    """The variables after a step.

    Args:
      before: the variables before it.
      params: what the optimizer has made of the parameters.
      step: which step it was, counted from 0.
    """
    if not (self.keeps_signs or self.keeps_norms or self.tracks_signs):
      return {**before, "params": params}
    after, old = traverse_util.flatten_dict(params), kernels_of(before["params"])
    if self.keeps_signs:
      for path, w in old.items():
        kept = keep_signs(after[path], w)
        after[path] = jnp.where(step >= self.freeze_step, kept, after[path])
    if self.keeps_norms:
      first = traverse_util.flatten_dict(before["norms"])
      after |= {path: keep_norm(after[path], first[path]) for path in old}
    variables = {**before, "params": traverse_util.unflatten_dict(after)}
    if self.tracks_signs:
      signs = traverse_util.flatten_dict(before["signs"])
      for path in old:
        differs = (after[path] >= 0) != signs[*path, "positive"]
        signs[*path, "changed"] = signs[*path, "changed"] | differs
      variables["signs"] = traverse_util.unflatten_dict(signs)
    return variables


def kernels_of(tree: PyTree) -> dict[Path, Array]:
  """The kernels in a tree of parameters or feedback weights, by their path."""
  return {p: w for p, w in traverse_util.flatten_dict(tree).items() if p[-1] == "kernel"}


_FA = functools.partial(Rule, way=fixed, draws=True)
_USF_INIT = functools.partial(Rule, way=sign_of_fixed_size, draws=True)
_USF_SN = functools.partial(Rule, way=sign_of_same_norm)

RULES: dict[str, Rule] = {
  rule.name: rule
  for rule in (
    Rule(),
    Rule("bp_noise", way=transposed, noisy=True),
    Rule("bp_alignment", draws=True, aligns=True),
    _FA("fa"),
    Rule("fa_usf", way=sign),
    _USF_INIT("fa_usf_init"),
    _USF_SN("fa_usf_sn"),
    _USF_INIT("fa_usf_init_ei", keeps_signs=True),
    _USF_SN("fa_usf_sn_ei", keeps_signs=True),
    # Liao et al. 2015: uniform sign feedback, and a step of the same size for every weight.
    Rule("batch_manhattan", way=sign, manhattan=True),
    Rule("dfa", direct="output"),
    _FA("dense_fa", direct="all"),
    Rule("bp_const", keeps_norms=True),
    # At a constant norm Eq. 5 is a constant times the sign: our reading of the paper's "uSF".
    _USF_SN("fa_usf_const", keeps_norms=True),
    _USF_SN("fa_usf_const_ei", keeps_norms=True, keeps_signs=True),
  )
}


def create(name: str, **choices: Any) -> Rule:
  """A rule by its name.

  Args:
    name: one of `RULES`.
    **choices: `penalty`, `freeze_step`, `feedback_init` and `tracks_signs` of `Rule`.

  Raises:
    UsageError: an unknown name.
  """
  if name not in RULES:
    raise unknown("learning rule", name, RULES)
  return dataclasses.replace(RULES[name], **choices)
