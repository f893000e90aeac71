"""The commands of benchmarks/ that need nothing but this project, shrunk."""

import json
import pathlib
import sys

import pytest

from benchmarks import learning_rules, saliency, scaling, warp

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
  ("module", "words"),
  [
    (saliency, ["--images=4", "--batch=2", "--width=0.05", "--repeats=1"]),
    (learning_rules, ["--rules", "fa", "--batch_size=2", "--rounds=1"]),
    (warp, ["--images=2", "--rounds=1"]),
  ],
)
def test_a_command_measures_and_writes(module, words, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["x", *words, f"--output={tmp_path / 'found.json'}"])
  module.main()
  assert json.loads((tmp_path / "found.json").read_text())["hardware"]


def test_the_page_on_scaling_is_the_one_that_is_printed(capsys):
  scaling.main()
  assert (ROOT / "results" / "SCALING.md").read_text() == capsys.readouterr().out
