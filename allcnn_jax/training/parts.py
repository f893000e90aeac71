"""A config -> the parts of its run: images, network, step."""

import math
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from allcnn_jax.data import augmentation, datasets
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures, linear, model
from allcnn_jax.training import learning_rules, optimizer, sharding
from allcnn_jax.training import step as step_lib


def image(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
  """Height, width and channels of the network's input."""
  return architectures.ARCHITECTURES[config.model.name].image


def network(config: ml_collections.ConfigDict, num_classes: int) -> model.ConvNet:
  """The network of a config's section `model`.

  Under JAX_ENABLE_X64=1 float32 is float64, in which runs on any number of devices agree closely.
  """
  dtype = {"float32": jnp.result_type(float), "bfloat16": jnp.bfloat16}[config.train.dtype]
  choices = {**config.model.to_dict(), "dropout": tuple(config.model.dropout) or None}
  return model.create(choices.pop("name"), num_classes, dtype=dtype, **choices)


def layers(config: ml_collections.ConfigDict) -> list[architectures.Row]:
  """The layers of a config's network, with what each costs for one image.

  Raises:
    UsageError: its data set is not at hand.
  """
  classes = datasets.num_classes(config.dataset.name, config.dataset.data_dir)
  return architectures.trace(network(config, classes).table, image(config))


def stored(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
  """Height, width and channels of the images that a run keeps."""
  return augmentation.stored_size(config.dataset.augment, image(config))


def fast(net: model.ConvNet, mesh: Mesh | None = None) -> model.ConvNet:
  """The same net, variables and all, with the layers of training.

  A CPU's faster convolutions go through a batch in parts, for which several devices would gather all of it on each;
  GPUs that share one take the way to patches that sends nothing round.
  """
  mesh = mesh or sharding.mesh()
  several = linear.Conv if mesh.devices.flat[0].platform == "cpu" else linear.FastShared
  return net.clone(conv=linear.Fast if mesh.size == 1 else several, dense=linear.Dense)


def data_set(config: ml_collections.ConfigDict, name: str | None = None) -> tuple[str, int, str]:
  """Name, held-out images and folder of the config's data set, or of another, which holds none out."""
  c = config.dataset
  own = name in (None, c.name)
  return (c.name, c.validation, c.data_dir) if own else (name, 0, c.data_dir)


def read_images(
  config: ml_collections.ConfigDict, split: str, name: str | None = None
) -> datasets.Dataset:
  """A split of the config's data set, or of another one, as the network's images are stored.

  Raises:
    UsageError: as `datasets.load`; of sets whose images vary in size too, which are streamed.
  """
  name, held_out, data_dir = data_set(config, name)
  return datasets.load(name, split, stored(config), validation=held_out, data_dir=data_dir)


def rule(config: ml_collections.ConfigDict, steps_per_epoch: int) -> learning_rules.Rule:
  """The learning rule of a config's section `rule`."""
  c = config.rule
  return learning_rules.create(
    c.name,
    feedback_init=c.feedback_init,
    penalty=c.penalty,
    freeze_step=round(c.freeze_at * config.train.epochs * steps_per_epoch),
    tracks_signs=config.alignment.every_steps > 0,
  )


def augment(config: ml_collections.ConfigDict) -> augmentation.Augmentation:
  """What a config does to a training batch."""
  graham = config.graham.to_dict() | {"colour": tuple(config.graham.colour)}
  return augmentation.create(config.dataset.augment, augmentation.Graham(**graham))


def stored_type(config: ml_collections.ConfigDict) -> Any:
  """The type in which whole sets stand on the device: bfloat16 where nothing finer looks at them."""
  coarse = config.train.dtype == "bfloat16" and augment(config).moves
  return jnp.bfloat16 if coarse else jnp.float32


def recipe(
  config: ml_collections.ConfigDict, num_classes: int, examples: int, mesh: Mesh | None = None
) -> step_lib.Recipe:
  """What a run's step is compiled from, for `examples` training images, on all devices or a mesh."""
  steps_per_epoch, _ = steps(config, examples)
  plain = 0 if config.dataset.augment == "none" else config.dataset.plain_epochs
  mesh = mesh or sharding.mesh()
  return step_lib.Recipe(
    seed=np.uint32(config.seed),
    net=fast(network(config, num_classes), mesh),
    optimizer=optimizer.create(config.optimizer, steps_per_epoch, config.train.epochs),
    augment=augment(config),
    size=image(config)[:2],
    batch_size=config.train.batch_size,
    batch_sharding=sharding.batch_sharding(mesh),
    rule=rule(config, steps_per_epoch),
    plain_from=max(config.train.epochs - plain, 0) * steps_per_epoch if plain else None,
  )


def steps(config: ml_collections.ConfigDict, examples: int) -> tuple[int, int]:
  """Steps of an epoch and of the whole run, for `examples` training images.

  Raises:
    UsageError: a batch is larger than that, or the steps are too many to count.
  """
  batch = config.train.batch_size
  if batch > examples:
    raise UsageError(
      f"train.batch_size={batch} is more than the {examples} training images of {config.dataset.name}."
    )
  whole = config.train.epochs * (examples // batch)  # schedules count these, whatever `steps` says
  total = config.train.steps or whole
  if max(total, whole) >= 2**31:
    raise UsageError(
      f"{max(total, whole)} steps are more than a 32-bit integer counts: fewer epochs or steps."
    )
  return examples // batch, total


def periods(config: ml_collections.ConfigDict, examples: int) -> tuple[int, int, int, int]:
  """Steps between logs, evaluations, checkpoints and measurements of alignment."""
  per_epoch, total = steps(config, examples)
  return (
    config.log.every_steps,
    config.evaluate.every_steps or per_epoch,
    config.checkpoint.every_steps or per_epoch,
    config.alignment.every_steps or total,
  )


def steps_a_call(config: ml_collections.ConfigDict, examples: int, start: int = 0) -> int:
  """As many steps as fit a whole number of times between any two moments when something is due.

  An accelerator does so many in one call, which is compiled for that number.

  Args:
    config: complete.
    examples: training images.
    start: the step that a run goes on from.
  """
  return math.gcd(start, *steps(config, examples), *periods(config, examples))


def eval_split(config: ml_collections.ConfigDict, name: str | None = None) -> str:
  """The split of the config's data set, or of another one, that a run is evaluated on."""
  return datasets.eval_split(*data_set(config, name))
