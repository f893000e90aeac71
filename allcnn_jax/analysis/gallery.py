"""Figures 1 to 3 of Springenberg et al. 2015 as sheets: a ReLU, first filters, strongest patches.

Each function computes one figure from a request; nothing here draws or writes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from allcnn_jax.analysis import patches, randomization, saliency, sheet
from allcnn_jax.analysis.randomization import Stage
from allcnn_jax.analysis.sheet import Block, Row, Sheet
from allcnn_jax.analysis.subject import FromStream, InMemory, Request, Subject, default_layer
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures, relu
from allcnn_jax.nets.model import ConvNet

_FILTERS = 4  # of a layer, in Figure 3
_TOP = 10  # patches of a filter, as in the paper
_BATCH = 128
RULE_NAMES = {"backprop": "backpropagation", "deconvnet": "deconvnet", "guided": "guided"}

# Springenberg et al. 2015, Fig. 1b.
FORWARD = np.array([[1, -1, 5], [2, -5, -7], [-3, 2, 4]], np.float32)
SIGNAL = np.array([[-2, 3, -1], [6, -3, 1], [2, -1, 3]], np.float32)


def figure1(request: Request) -> Sheet:
  """Fig. 1b: the three ways back through a ReLU, on nine numbers."""
  arrays = {"input": FORWARD, "output": np.asarray(relu.relu(jnp.asarray(FORWARD), "backprop"))}
  blocks = [_numbers("forward pass", ["into the ReLU", "out of it"], *arrays.values())]
  arrays["signal"] = SIGNAL
  for rule in relu.RULES:
    _, back = jax.vjp(lambda x: relu.relu(x, rule), jnp.asarray(FORWARD))  # noqa: B023
    arrays[rule] = np.asarray(back(jnp.asarray(SIGNAL))[0])
    blocks.append(
      _numbers(RULE_NAMES[rule], ["comes back", "is passed on"], arrays["signal"], arrays[rule])
    )
  caption = (
    "Backpropagation passes on what comes back where the input was positive, the deconvnet where "
    "what comes back is positive, guided backpropagation where both are. Grey is zero, white is 7 "
    "and black -7. The numbers are those of the paper's Figure 1."
  )
  return Sheet("figure1", "Three ways back through a ReLU", caption, blocks, 4, arrays)


def _numbers(title: str, headings: list[str], *matrices: np.ndarray) -> Block:
  """Matrices as pictures with their numbers in them."""
  pictures = sheet.signed(np.stack(matrices)[..., None], 7.0)
  return Block(title, [Row("", pictures, end="±7", numbers=matrices)], headings)


def figure2(request: Request) -> Sheet:
  """Fig. 2: what each filter of the first layers stands for, whatever the image."""
  subject = request.load()
  net, image = subject.net, subject.trained.image
  pools = [n for n, x in architectures.named(net.table) if has_switches(x)]
  names = saliency.layer_names(net)
  free = names[: names.index(pools[0])] if pools else names
  free = [n for n in free if n.startswith("conv")]
  if request.layer is not None:
    saliency.locate(net, request.layer, image)
  if request.layer not in (None, *free):
    raise UsageError(
      f"Figure 2 sets a unit without an image, which reaches down from {', '.join(free)}: "
      f"{request.layer} is no convolution or lies above a max-pooling layer, whose switches only "
      "an image sets."
    )
  blocks, arrays = [], {}
  for layer in [request.layer] if request.layer else free[:3]:
    row = saliency.locate(net, layer, image)
    height, width, count = row.size
    saliency.check_channels(request.channels, layer, count)
    channels = request.channels or range(count)
    position = (height // 2, width // 2)
    places = np.broadcast_to(position, (len(channels), 2))
    raw, drawn = [], []  # in the network's input space, and with the whitening undone
    for start in range(0, len(channels), 32):
      some = np.array(channels[start : start + 32])
      blank = np.zeros((len(some), *image), np.float32)
      gradient = saliency.attribute(
        net,
        subject.variables,
        blank,
        layer=layer,
        channel=some,
        position=position,
        rule="deconvnet",
      )
      raw.append(patches.crop(np.asarray(gradient), row, places[: len(some)]))
      drawn.append(patches.crop(subject.unwhiten(gradient), row, places[: len(some)]))
    pictures = np.concatenate(drawn)
    arrays |= {layer: np.concatenate(raw), f"{layer}_channels": np.array(channels)}
    rows = []
    for start in range(0, len(pictures), 16):
      part = pictures[start : start + 16]
      shown = channels[start : start + len(part)]
      named = ", ".join(map(str, shown)) if request.channels else f"{shown[0]} to {shown[-1]}"
      rows.append(sheet.signed_row(named, part))
    side = f"{pictures.shape[1]}x{pictures.shape[2]} pixels"
    blocks.append(Block(f"{layer}, {len(pictures)} filters, {side}", rows))
  caption = (
    "One unit is set and sent back by the deconvnet to the patch that it sees; no image has a "
    f"part in it. Numbers of filters at the left. {sheet.scaling()}"
  )
  name = "figure2" + (f"_{request.layer}" if request.layer else "")
  return Sheet(name, "What the filters of the first layers stand for", caption, blocks, 1, arrays)


def has_switches(layer: architectures.Layer) -> bool:
  """Whether it pools by a maximum or a norm, whose way back depends on the image."""
  if not isinstance(layer, architectures.Pool):
    return False
  return layer.kind not in ("average", "depthwise")


def figure3(request: Request) -> Sheet:
  """Fig. 3: for each filter of a layer, the image patches that activate it most."""
  subject = request.load()
  net = subject.net
  layer = request.layer or default_layer(net)
  row = saliency.locate(net, layer, subject.trained.image)
  saliency.check_channels(request.channels, layer, row.size[-1])
  images = subject.data(request.split)

  top, units, raw = _search(subject, images, layer, request.channels)
  inputs = subject.inputs(raw)
  worst = _replay(subject, inputs, units, layer)
  k, position = top.value.shape[1], units.position
  channels = units.channel[::k]

  where = {"layer": layer, "channel": units.channel, "position": position}
  arrays = {
    "channels": channels,
    "images": patches.crop(subject.seen(raw), row, position, outside=128),
    "all_values": top.value,
    "all_images": top.image,
    "all_positions": top.position,
  }
  drawn = {}
  for rule in ("deconvnet", "guided"):
    gradient = saliency.attribute(net, subject.variables, inputs, rule=rule, **where)
    arrays[rule] = patches.crop(np.asarray(gradient), row, position)
    drawn[rule] = patches.crop(subject.unwhiten(gradient), row, position)
  stages = labelled_cascade(subject, net, inputs, units, layer)

  blocks = []
  for i, channel in enumerate(channels):
    own = slice(i * k, (i + 1) * k)
    numbers = [f"{v:.3g}" for v in units.value[own]]
    blocks.append(
      Block(
        f"{layer}, filter {channel}",
        [
          Row("image", sheet.plain(arrays["images"][own]), numbers),
          *(sheet.signed_row(rule, pictures[own]) for rule, pictures in drawn.items()),
          *(
            sheet.signed_row(
              label,
              patches.crop(subject.unwhiten(stage.pictures[own]), row, position[own]),
              randomization.correlations(stage, own),
            )
            for label, stage in stages.items()
          ),
        ],
      )
    )
  arrays |= randomization.stage_arrays(stages.values())
  shape = arrays["images"].shape
  caption = (
    f"The {k} images of {len(images)} that activate each filter most, cut to the {shape[1]}x"
    f"{shape[2]} pixels that the unit sees, its activation below; each was replayed with all else "
    f"blanked, and activates the unit as before (largest difference: {worst:.1g} of the largest "
    f"activation). "
    f"{sheet.scaling()} {randomization.CAPTION}"
  )
  title = f"What activates {layer} of {subject.trained.config.model.name} most"
  return Sheet(f"figure3_{layer}", title, caption, blocks, 2, arrays)


def _search(
  subject: Subject, images: InMemory | FromStream, layer: str, channels: Sequence[int]
) -> tuple[patches.Top, saliency.Units, UInt8[np.ndarray, "m h w c"]]:
  """What activates a layer most.

  Returns:
    the k strongest images of every channel; and of the channels asked for, else of the four that
    are activated most, what there is to show, channel by channel: its units and raw images.
  """
  batches = map(subject.inputs, images.batches(_BATCH))
  top = patches.top(subject.net, subject.variables, batches, layer=layer, k=_TOP)
  top = patches.Top(*(np.asarray(x)[:, : len(images)] for x in top))
  strongest = np.argsort(-top.value.mean(axis=1))[:_FILTERS]
  channels = np.array(channels or np.sort(strongest))
  value, image, position = (np.concatenate(x[channels]) for x in top)
  channel = np.repeat(channels, top.value.shape[1])
  return top, saliency.Units(channel, position, value), images.take(image)


def _replay(
  subject: Subject, inputs: Float[np.ndarray, "m h w c"], units: saliency.Units, layer: str
) -> float:
  """By how much the units' patches alone activate them otherwise, over the largest activation.

  Raises:
    RuntimeError: by more than 1 %.
  """
  again = patches.replay(subject.net, subject.variables, inputs, units, layer=layer)
  worst = float(np.abs(again - units.value).max() / max(np.abs(units.value).max(), 1e-12))
  if worst > 0.01:
    raise RuntimeError(f"Patches of {layer} do not activate it as recorded: off by {worst:.1%}.")
  return worst


def labelled_cascade(
  subject: Subject,
  net: ConvNet,
  inputs: Float[np.ndarray, "n h w c"],
  units: saliency.Units,
  layer: str,
) -> dict[str, Stage]:
  """The stages of the randomisation of `net`, with the subject's weights, by what to call them."""
  stages = randomization.cascade(
    net,
    subject.variables,
    inputs,
    units,
    jax.random.key(subject.trained.config.seed),
    layer=layer,
  )
  return {f"{'random' if i == 0 else 'and'} {s.layer}": s for i, s in enumerate(stages)}
