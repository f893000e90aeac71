"""Figures 4 to 6 of Springenberg et al. 2015 as sheets: three ways back from one unit an image.

And the same of a user's own photos.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from allcnn_jax.analysis import gallery, randomization, saliency, sheet
from allcnn_jax.analysis.randomization import Stage
from allcnn_jax.analysis.sheet import Block, Row, Sheet
from allcnn_jax.analysis.subject import Request, Subject, last_convolution
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures
from allcnn_jax.nets.model import ConvNet

_IMAGES = 5  # of a data set
_ABREAST = 5  # stages of the cascade side by side, below a photo


def figure4(request: Request) -> Sheet:
  """Fig. 4: the largest activation of the last convolution, by the three ways back."""
  return _switched(request, "figure4", last_convolution)


def figure5(request: Request) -> Sheet:
  """Fig. 5: the same from the global pool."""
  return _switched(request, "figure5", lambda net: saliency.LOGITS)


def _switched(request: Request, name: str, default: Callable[[ConvNet], str]) -> Sheet:
  subject = request.load()
  net = subject.net
  switched = net.clone(table=architectures.pooled(net.table))
  if switched.table == net.table:
    raise UsageError(
      f"{name} compares strides with pooling in their place, and the network has no strided "
      "convolution; --figure=6 is for networks with max-pooling."
    )
  layer = request.layer or default(net)
  nets = {"with pooling and switches": switched, "without pooling": net}
  return _three_ways(subject, request, name, layer, nets)


def figure6(request: Request) -> Sheet:
  """Fig. 6: the three ways back in a network trained with max-pooling."""
  subject = request.load()
  pools = [x.kind for x in subject.net.table if isinstance(x, architectures.Pool)]
  if "max" not in pools:
    raise UsageError(
      "Figure 6 is of a network trained with max-pooling, such as "
      f"--config=configs/cifar10.py:model_c; {subject.trained.config.model.name} has no such layer."
    )
  layer = request.layer or saliency.LOGITS
  name = subject.trained.config.model.name
  return _three_ways(subject, request, "figure6", layer, {f"{name}, max-pooling": subject.net})


def _three_ways(
  subject: Subject, request: Request, name: str, layer: str, nets: dict[str, ConvNet]
) -> Sheet:
  """A block for each net; its columns are images and its rows the three ways and the cascade."""
  raw = _images(subject, request)
  inputs, seen = subject.inputs(raw), subject.seen(raw)
  channel = _channel(subject, request, layer, inputs)
  blocks, arrays = [], {"images": seen}
  for title, net in nets.items():
    units, pictures, stages = _sent_back(subject, net, inputs, layer, channel)
    rows = [Row("image", sheet.plain(seen), subject.predicted(net, inputs))]
    for rule, label in gallery.RULE_NAMES.items():
      rows.append(sheet.signed_row(label, subject.unwhiten(pictures[rule])))
    for label, stage in stages.items():
      drawn = subject.unwhiten(stage.pictures)
      rows.append(sheet.signed_row(label, drawn, randomization.correlations(stage)))
    found = pictures | randomization.stage_arrays(stages.values())
    arrays |= {f"{title}: {key}": value for key, value in found.items()}
    arrays[f"{title}: channel"] = np.asarray(units.channel)
    arrays[f"{title}: position"] = np.asarray(units.position)
    blocks.append(Block(title, rows, _unit_names(subject, layer, units)))
  unit = layer if channel is None else f"filter {channel} of {layer}"
  question = "the class score" if layer == saliency.LOGITS else f"the largest activation of {unit}"
  caption = (
    f"Which pixels speak for {question} in each image: the unit above each column, the predicted "
    f"class below its image. {sheet.scaling()} {randomization.CAPTION}"
  )
  if request.layer:
    name = f"{name}_{layer}"
  where = "the class scores" if layer == saliency.LOGITS else layer
  title = f"Three ways back from {where} of {subject.trained.config.model.name}"
  return Sheet(name, title, caption, blocks, len(blocks), arrays)


def photos(request: Request) -> Sheet:
  """The three ways back side by side for pictures of the user's own."""
  subject = request.load()
  layer = request.layer or saliency.LOGITS
  saliency.locate(subject.net, layer, subject.trained.image)
  raws = [subject.photo(path) for path in request.inputs]
  blocks, arrays = [], {}
  for number, (path, raw) in enumerate(zip(request.inputs, raws)):
    inputs, seen = subject.inputs(raw), subject.seen(raw)
    channel = _channel(subject, request, layer, inputs)
    units, pictures, stages = _sent_back(subject, subject.net, inputs, layer, channel)
    found = {"image": seen} | pictures | randomization.stage_arrays(stages.values())
    arrays |= {f"{number}: {key}": value for key, value in found.items()}
    (best,) = subject.predicted(subject.net, inputs, best=3)
    unit = _unit_names(subject, layer, units)[0].replace("\n", " ")
    drawn = {label: subject.unwhiten(pictures[x]) for x, label in gallery.RULE_NAMES.items()}
    ways = _own_scales([(label, picture, "") for label, picture in drawn.items()])
    rows = [Row("", [*sheet.plain(seen), *ways.pictures], ["image", *ways.notes])]
    random = [
      (label, subject.unwhiten(stage.pictures), f"\n{randomization.correlations(stage)[0]}")
      for label, stage in stages.items()
    ]
    for i in range(0, len(random), _ABREAST):
      rows.append(_own_scales(random[i : i + _ABREAST]))
    blocks.append(Block(f"{path.rsplit('/', 1)[-1]}: {best}; {unit}", rows))
  scores = "the score at the end of each title" if request.channels else "the predicted class"
  caption = (
    f"Which pixels speak for {scores if layer == saliency.LOGITS else layer}. "
    f"{sheet.scaling('below a picture')} {randomization.CAPTION}"
  )
  title = f"Three ways back in {subject.trained.config.model.name}"
  name = f"input_{layer}" if request.layer else "input"
  return Sheet(name, title, caption, blocks, min(len(blocks), 2), arrays)


def _channel(
  subject: Subject, request: Request, layer: str, inputs: Float[np.ndarray, "n h w c"]
) -> int | None:
  """The channel asked for; None: in each image the one with the largest activation.

  Raises:
    UsageError: there is no such channel, or more than one is asked for.
  """
  size = saliency.locate(subject.net, layer, inputs.shape[1:]).size
  saliency.check_channels(request.channels, layer, size[-1])
  if len(request.channels) > 1:
    raise UsageError("One unit is shown for each image: --channels takes one number here.")
  return request.channels[0] if request.channels else None


def _sent_back(
  subject: Subject,
  net: ConvNet,
  inputs: Float[np.ndarray, "n h w c"],
  layer: str,
  channel: int | None,
) -> tuple[saliency.Units, dict[str, np.ndarray], dict[str, Stage]]:
  """(the units with the largest activations, what each rule sends back from them, the cascade)."""
  units = saliency.strongest(net, subject.variables, inputs, layer=layer, channel=channel)
  where = {"layer": layer, "channel": units.channel, "position": units.position}
  pictures = {
    rule: np.asarray(saliency.attribute(net, subject.variables, inputs, rule=rule, **where))
    for rule in gallery.RULE_NAMES
  }
  return units, pictures, gallery.labelled_cascade(subject, net, inputs, units, layer)


def _own_scales(shown: Sequence[tuple[str, Float[np.ndarray, "1 h w c"], str]]) -> Row:
  """Pictures of different kinds side by side: (name, picture, note), and below name, scale, note."""
  pictures, below = [], []
  for name, picture, note in shown:
    scale = sheet.scale_of(picture)
    pictures += sheet.signed(picture, scale)
    below.append(f"{name}  ±{scale:.3g}{note}")
  return Row("", pictures, below)


def _images(subject: Subject, request: Request) -> UInt8[np.ndarray, "n h w c"]:
  """The user's pictures, or the first ones of the data set: none is picked out by hand."""
  if not request.inputs:
    first = next(subject.data(request.split).batches(_IMAGES), None)
    if first is None:
      raise UsageError("The set has no image that can be read.")
    return first
  raw = [subject.photo(path) for path in request.inputs]
  if len({x.shape for x in raw}) > 1:
    raise UsageError("Pictures of one figure must have one size; without --figure any sizes do.")
  return np.concatenate(raw)


def _unit_names(subject: Subject, layer: str, units: saliency.Units) -> list[str]:
  if layer == saliency.LOGITS:
    return [f"score of\n{subject.trained.classes[c]}" for c in np.asarray(units.channel)]
  places = zip(np.asarray(units.channel), np.asarray(units.position))
  return [f"unit {c}\nat {i}, {j}" for c, (i, j) in places]
