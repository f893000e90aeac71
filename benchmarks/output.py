"""The JSON file of a benchmark: asked for with --output, looked at before anything is measured."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

from allcnn_jax import files
from allcnn_jax.errors import UsageError
from allcnn_jax.training import machine


def add_to(parser: argparse.ArgumentParser) -> None:
  """Adds --output=FILE."""
  parser.add_argument("--output", type=_file, help="a JSON file to write")


def asked(flags: argparse.Namespace) -> dict[str, Any]:
  """What was asked for, but for the file."""
  return {k: v for k, v in vars(flags).items() if k != "output"}


def write(flags: argparse.Namespace, values: Mapping[str, Any]) -> None:
  """Writes the values and what they were measured with, if a file was asked for."""
  if flags.output:
    files.write_json(flags.output, {**machine.machine(), **values}, f"--output={flags.output}")


def _file(text: str) -> pathlib.Path:
  try:
    files.check_file(text, f"--output={text}")
  except UsageError as error:
    raise argparse.ArgumentTypeError(str(error)) from None
  return pathlib.Path(text)
