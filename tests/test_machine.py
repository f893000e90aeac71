import datetime
import pathlib
import shutil
import subprocess
import sys

from allcnn_jax.training import machine

ROOT = pathlib.Path(__file__).parents[1]


def test_the_commit_is_what_git_says_and_nothing_outside_the_repository(tmp_path):
  said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
  found = machine.commit()
  if said.returncode:  # an archive of the code has none
    assert found == ""
  else:
    assert said.stdout.startswith(found.rstrip("+"))
    assert len(found) >= 12
  # A copy inside somebody else's repository is not part of it.
  subprocess.run(["git", "init", "-q", tmp_path], check=True)
  copy = shutil.copy(machine.__file__, tmp_path / "machine.py")
  program = f"import runpy; print(repr(runpy.run_path({str(copy)!r})['commit']()))"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert done.stdout == "''\n"


def test_it_names_the_device_and_the_versions():
  values = machine.machine()
  assert values["hardware"]["device"]
  assert values["hardware"]["devices"] >= 1
  assert {"python", "jax", "flax", "optax"} <= values["versions"].keys()
  datetime.date.fromisoformat(values["date"])
