"""Lines that are read, and lines that nobody can read any more."""

import errno
import io
import os
import pty
import shlex
import subprocess
import sys

import pytest

from allcnn_jax import terminal
from tests.processes import ROOT, TRAIN


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_terminal_that_has_hung_up_ends_nothing(stream, monkeypatch):
  reader, writer = pty.openpty()
  with open(writer, "w") as hung_up:
    monkeypatch.setattr(sys, stream, hung_up)
    write = {"stdout": terminal.note, "stderr": terminal.warn}[stream]
    write("while somebody reads")
    assert os.read(reader, 100) == b"while somebody reads\r\n"
    os.close(reader)
    for line in ("to nobody", "once more"):
      write(line)


def test_what_cannot_be_written_for_another_reason_is_said(monkeypatch):
  class Full(io.StringIO):
    def flush(self):
      raise OSError(errno.ENOSPC, "No space left")

  monkeypatch.setattr(sys, "stdout", Full())
  with pytest.raises(OSError, match="No space left"):
    terminal.note("to a full disk")


def test_a_program_whose_output_is_closed_does_its_work(tmp_path):
  words = [sys.executable, *TRAIN, "--config.train.steps=2", f"--workdir={tmp_path / 'run'}"]
  done = subprocess.run(["sh", "-c", f"exec {shlex.join(words)} >&- 2>&-"], cwd=ROOT)
  assert done.returncode == 0
  assert (tmp_path / "run" / "evaluation.json").exists()
