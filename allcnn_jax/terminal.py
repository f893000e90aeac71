"""Lines to the terminal, whether or not anybody reads them."""

import os
import sys

from tqdm import tqdm


def note(text: str) -> None:
  """A line of its own, above any bar; nothing else depends on its having a reader."""
  try:
    tqdm.write(text)
    sys.stdout.flush()
  except BrokenPipeError:  # Ctrl-C ends a `| tee` too
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
