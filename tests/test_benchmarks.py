"""The commands of benchmarks/ that need nothing but this project, shrunk."""

import ast
import functools
import json
import re
import sys
import types

import jax
import pytest

from allcnn_jax.errors import one_line
from benchmarks import compare, learning_rules, precision, saliency, scaling, table3, warp
from benchmarks import input as stream
from tests.processes import ROOT


@pytest.mark.parametrize(
  ("module", "words", "holds"),
  [
    (
      saliency,
      ["--images=4", "--batch_size=2", "--width=0.05", "--repeats=1"],
      lambda x: x["guided / plain gradient"] == x["seconds"]["guided"] / x["seconds"]["plain"],
    ),
    (
      learning_rules,
      ["--rules", "fa", "--batch_size=2", "--rounds=1"],
      lambda x: x["steps"].keys() == {"bp", "fa", "measure (fa)"},
    ),
    (warp, ["--images=2", "--rounds=1"], lambda x: x["largest_difference"] < 1e-3),
    (
      table3,
      ["--networks", "model_a", "all_cnn_a", "--width=0.05", "--batch_size=50", "--compiling=2"],
      lambda x: (
        x["steps"].keys() == {"model_a", "all_cnn_a"}
        and x["seconds"] == sum(y["step_seconds"] * 350_000 for y in x["steps"].values())
      ),
    ),
  ],
)
def test_a_command_measures_and_writes(module, words, holds, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["x", *words, f"--output={tmp_path / 'found.json'}"])
  module.main()
  found = json.loads((tmp_path / "found.json").read_text())
  assert found["hardware"]
  assert found["command"]
  assert holds(found)


def test_the_first_call_compiles_and_the_best_of_the_others_counts(monkeypatch):
  durations = {"plain": [90, 3, 5, 4], "guided": [2, 7, 6, 8]}
  now, called = [0], []

  def taking(name):
    called.append(name)
    now[0] += durations[name].pop(0)

  monkeypatch.setattr(saliency.time, "perf_counter", lambda: now[0])
  functions = {name: functools.partial(taking, name) for name in durations}
  assert saliency.seconds(functions, 3) == {"plain": 3, "guided": 6}
  assert called == ["plain", "guided"] * 4  # in turn


@pytest.fixture
def against(tmp_path, monkeypatch):
  """Compares with a peer that says what it is told to."""

  def go(*lines, words=()):
    peer = tmp_path / "peer"
    said = "".join(f"print({line!r}, flush=True); sys.stdin.readline()\n" for line in lines)
    told = f"open({str(tmp_path / 'told')!r}, 'w').write('\\n'.join(sys.argv))"
    peer.write_text(f"#!{sys.executable}\nimport sys\n{told}\n{said}")
    peer.chmod(0o755)
    ours = types.SimpleNamespace(steps=5, seconds=lambda: 0.25, begin=lambda: ours)
    monkeypatch.setattr(compare.benchmark, "Rounds", lambda config: ours)
    words = ["--batch_size=2", "--rounds=2", f"--output={tmp_path / 'found.json'}", *words]
    monkeypatch.setattr(sys, "argv", ["x", f"--python={peer}", *words])
    with one_line("x"):
      compare.main()
    return json.loads((tmp_path / "found.json").read_text())

  return go


ABOUT = {"torch": "2", "way": "plain", "tried": {"plain": 20.0, "compiled": 0.0}}


def test_the_ratio_to_the_peer_is_that_of_each_round(against, capsys):
  found = against(json.dumps(ABOUT), "20.0", "80.0")
  assert found["images_per_second"] == {"here": [40.0, 40.0], "there": [20.0, 80.0]}
  assert found["ratio"] == (2 + 0.5) / 2
  assert found["peer"] == ABOUT
  assert capsys.readouterr().out.endswith(", plain; failed: compiled\n")


@pytest.mark.parametrize(("asked", "precise"), [(None, False), ("highest", True)])
def test_the_peer_is_told_the_device_and_the_precision(against, asked, precise, tmp_path):
  with jax.default_matmul_precision(asked):
    against(json.dumps(ABOUT), "20.0", "80.0")
  words = (tmp_path / "told").read_text().splitlines()
  assert "--device=cpu" in words
  assert ("--precise" in words) == precise


def test_the_peer_goes_one_way_if_it_is_told_to(against, tmp_path):
  for way in ([], ["--way=one graph"]):
    against(json.dumps(ABOUT), "20.0", "80.0", words=way)
    words = (tmp_path / "told").read_text().splitlines()
    assert [x for x in words if x.startswith("--way")] == way


def test_a_rule_s_step_is_compared_with_backpropagation_s():
  found = learning_rules.compared("a rule", lambda: 3.0, lambda: 2.0, rounds=4)
  assert found == {"ratio": 1.5, "quartiles": [1.5, 1.5], "milliseconds": 3000}


def test_what_is_faster_than_scipy_is_more_than_once_as_fast(monkeypatch, tmp_path):
  times = iter([0, 6, 2, 3])  # to warm up; SciPy, the warp, all of the augmentation
  monkeypatch.setattr(warp, "seconds", lambda f: next(times))
  output = tmp_path / "found.json"
  monkeypatch.setattr(sys, "argv", ["x", "--images=2", "--rounds=1", f"--output={output}"])
  warp.main()
  found = json.loads(output.read_text())
  assert [found[x]["times_as_fast_as_scipy"] for x in ("scipy", "warp", "augmentation")] == [
    1,
    3,
    2,
  ]


def test_the_ways_are_the_peers():
  (ways,) = re.findall(r"^COMPILED = (.*)$", compare.PEER.read_text(), re.MULTILINE)
  assert tuple(ast.literal_eval(ways)) == compare.WAYS


def test_a_peer_that_ends_early_is_one_line_and_nothing_is_written(against, tmp_path, capsys):
  with pytest.raises(SystemExit, match="2"):
    against(json.dumps(ABOUT), "10.0")
  assert "the peer has ended" in capsys.readouterr().err
  assert not (tmp_path / "found.json").exists()


@pytest.mark.parametrize("word", ["--output=nowhere/found.json", "--output=.", "--python=nobody"])
def test_a_comparison_that_cannot_be_is_refused_before_it_begins(word, monkeypatch, capsys):
  ours = types.SimpleNamespace(steps=1, begin=lambda: ours)
  monkeypatch.setattr(compare.benchmark, "Rounds", lambda config: ours)
  monkeypatch.setattr(sys, "argv", ["x", "--python=nobody", word])
  with pytest.raises(SystemExit, match="2"), one_line("x"):
    compare.main()
  assert word in capsys.readouterr().err


@pytest.mark.parametrize(
  ("module", "words", "said"),
  [
    (warp, ["--images=0"], "0 is not above 0"),
    (saliency, ["--batch_size=-1"], "-1 is not above 0"),
    (learning_rules, ["--rounds=0"], "0 is not above 0"),
    (learning_rules, ["--rounds=many"], "many"),
    (learning_rules, ["--network=fa_mnist,x"], "'fa_mnist,x,bp' must be"),
    (precision, ["--network=all_cnn_c,more"], "'augment' is the only"),
    (compare, ["--python=nobody", "--network=all_cnn_c,more"], "'augment' is the only"),
    (compare, ["--python=nobody", "--width=0"], "model.width=0.0"),
    (compare, ["--python=nobody", "--way=two graphs"], "'two graphs'"),
    (table3, ["--width=0"], "model.width=0.0"),
    (saliency, ["--layer=conv99"], "Unknown layer 'conv99'"),
    (scaling, ["more"], "unrecognized arguments: more"),
    (stream, ["--workers=-1"], "-1 is below 0"),
  ],
)
def test_a_wrong_value_is_refused_before_anything_is_measured(
  module, words, said, monkeypatch, capsys
):
  monkeypatch.setattr(saliency, "seconds", None)
  monkeypatch.setattr(sys, "argv", ["x", *words])
  with pytest.raises(SystemExit, match="2"), one_line("x"):
    module.main()
  told = capsys.readouterr().err
  assert said in told
  assert told.count("\n") == 1


def test_the_page_on_scaling_is_the_one_that_is_printed(capsys, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["x"])
  scaling.main()
  assert (ROOT / "results" / "SCALING.md").read_text() == capsys.readouterr().out


def test_an_all_reduce_takes_what_a_ring_near_by_and_one_far_away_take(monkeypatch):
  """Of 1 GB: each of two chips sends half and receives half, twice over, at 1 GB/s."""
  monkeypatch.setattr(scaling, "LATENCY", 0.01)
  machine = scaling.Machine("two a host", 1.0, near=(2, 1e9), far=1e8, source="")
  assert machine.all_reduce(1e9, 2) == pytest.approx(1 + 2 * 0.01)
  # Between two hosts each chip sends its half, at a tenth of the speed.
  assert machine.all_reduce(1e9, 4) == pytest.approx(1 + 5 + 4 * 0.01)
