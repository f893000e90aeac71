import datetime
import shlex
import shutil
import subprocess
import sys
import types

from allcnn_jax.training import machine
from tests.processes import ROOT


def test_the_commit_is_what_git_says():
  said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
  found = machine.commit()
  if said.returncode:  # an archive of the code has none
    assert found == ""
  else:
    assert said.stdout.startswith(found.rstrip("+"))
    assert len(found) >= 12


def test_a_copy_in_a_repository_has_its_commit_with_a_plus_once_a_file_has_changed(tmp_path):
  copy = shutil.copy(machine.__file__, tmp_path / "machine.py")
  program = f"import runpy; print(repr(runpy.run_path({str(copy)!r})['commit']()))"

  def git(*words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    run = ["git", *who, "-C", tmp_path, *words]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()

  def found():
    words = [sys.executable, "-c", program]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

  git("init", "-q")
  assert found() == "''"  # inside somebody else's repository it is not part of it
  git("add", ".")
  git("commit", "-qm", "all")
  head = git("rev-parse", "--short=12", "HEAD")
  (tmp_path / "notes").touch()  # untracked
  assert found() == f"'{head}'"
  with copy.open("a") as file:
    file.write("# changed\n")
  assert found() == f"'{head}+'"


def test_the_command_is_what_was_typed(monkeypatch):
  words = ["launch.py", "train", "--config.model.dropout=(0.1, 0.4)"]
  monkeypatch.setattr(sys, "orig_argv", ["/a/place/python3.11", *words])
  assert shlex.split(machine.machine()["command"]) == ["python", *words]


def test_of_the_environment_it_keeps_what_changes_numbers(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_command_buffer=+CONVOLUTION")
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  monkeypatch.setenv("SECRET", "1")
  kept = machine.machine()["environment"]
  assert kept["XLA_FLAGS"] == "--xla_gpu_enable_command_buffer=+CONVOLUTION"
  assert {"GLIBC_TUNABLES", "SECRET", "HOME"}.isdisjoint(kept)


def test_it_names_the_device_and_the_versions():
  values = machine.machine()
  assert values["hardware"]["device"]
  assert values["hardware"]["devices"] >= 1
  assert {"python", "jax", "flax", "optax"} <= values["versions"].keys()
  datetime.date.fromisoformat(values["date"])


def test_an_accelerator_s_versions_are_those_of_its_drivers_too(monkeypatch):
  drivers = {"jax-cuda13-plugin", "nvidia-cudnn-cu13"}
  installed = [types.SimpleNamespace(name=x) for x in (*drivers, "jax", "nvidia-ml-py", "libtpu")]
  monkeypatch.setattr(machine.metadata, "distributions", lambda: installed)
  monkeypatch.setattr(machine.metadata, "version", lambda name: "1.0")
  assert machine.versions("gpu").keys() - machine.versions("cpu").keys() == drivers
