"""A benchmark's command line, looked at before anything is measured, and the JSON that it writes."""

import argparse
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from allcnn_jax import config as config_lib
from allcnn_jax import files
from allcnn_jax.errors import UsageError
from allcnn_jax.training import machine


def add_to(parser: argparse.ArgumentParser) -> None:
  """Adds --output=FILE."""
  parser.add_argument("--output", type=_file, help="a JSON file to write")


def positive(text: str) -> int:
  """The type of a flag that counts something, of which there is at least one."""
  if int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text} is not above 0.")
  return int(text)


def natural(text: str) -> int:
  """The same where there may be none."""
  if int(text) < 0:
    raise argparse.ArgumentTypeError(f"{text} is below 0.")
  return int(text)


def config(
  get_config: Callable[[str], ml_collections.ConfigDict], argument: str
) -> ml_collections.ConfigDict:
  """A shipped config, complete.

  Raises:
    UsageError: it takes no such argument.
  """
  try:
    return config_lib.complete(get_config(argument))
  except ValueError as error:
    raise UsageError(f"{error}.") from None


def asked(flags: argparse.Namespace) -> dict[str, Any]:
  """What was asked for, but for the file."""
  return {k: v for k, v in vars(flags).items() if k != "output"}


def write(flags: argparse.Namespace, values: Mapping[str, Any]) -> None:
  """Writes the values and what they were measured with, if a file was asked for."""
  if flags.output:
    files.write_json(flags.output, {**machine.machine(), **values}, f"--output={flags.output}")


def _file(text: str) -> pathlib.Path:
  text = os.path.expanduser(text)
  try:
    files.check_file(text, f"--output={text}")
  except UsageError as error:
    raise argparse.ArgumentTypeError(str(error)) from None
  return pathlib.Path(text)
