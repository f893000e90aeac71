"""What the README says is so."""

import re

from allcnn_jax import config as config_lib
from tests.processes import ROOT

README = (ROOT / "README.md").read_text()


def test_the_keys_are_those_that_are_read():
  assert config_lib.markdown() in README


def test_its_tree_has_every_file_and_no_other():
  tree = re.search(r"```\nlaunch\.py.*?```", README, re.DOTALL)[0]
  named, folders = set(), {-2: ""}  # by how far they are indented
  for line in tree.splitlines()[1:-1]:
    indent, name = len(line) - len(line.lstrip()), line.split()[0]
    path = folders[indent - 2] + name
    if name.endswith("/"):
      folders[indent] = path
    elif name.endswith(".py"):
      named.add(path)
  there = {
    str(p.relative_to(ROOT))
    for folder in ("allcnn_jax", "configs", "benchmarks")
    for p in (ROOT / folder).rglob("*.py")
  } | {"launch.py"}
  assert named == {p for p in there if not p.endswith("__init__.py")}


def test_every_file_that_it_links_to_exists():
  for target in re.findall(r"\]\(([^)#]+)\)", README):
    assert target.startswith("http") or (ROOT / target).exists(), target


def test_its_first_two_commands_are_single_lines():
  blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
  for block in blocks[:2]:
    assert block.count("\n") == 1
    assert "\\" not in block
    assert "pip install" in block
