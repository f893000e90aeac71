import errno
import os
import pathlib
import pickle
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags

import launch
from allcnn_jax.analysis import figures, report
from allcnn_jax.data import datasets
from allcnn_jax.errors import UsageError
from allcnn_jax.training import evaluate, loop, sweep
from tests import processes, runs
from tests.processes import ROOT

QUICK = "--config=configs/quickstart.py"
TINY = [
  *processes.TINY,
  "--config.train.steps=60",
  "--config.checkpoint.every_steps=4",
  "--config.log.every_steps=10",
]

BAD = [  # (words, what the line must say)
  ([], "Known: train, evaluate"),
  (["trian"], "Did you mean 'train'"),
  (["train"], "--config"),
  (["train", QUICK], "--workdir"),
  (["train", "--config=configs/nothing.py", "--workdir={run}"], "no Python file"),
  (["train", "--config=README.md", "--workdir={run}"], "README.md"),
  (["train", "--config", "--workdir={run}"], "--config"),
  (["train", QUICK + ":fast", "--workdir={run}"], "takes no argument"),
  (
    ["train", "--config=configs/cifar10.py:all_cnn_c,more", "--workdir={run}"],
    "'augment' is the only",
  ),
  (["train", "--config=configs/cifar10.py:all_cnn_d", "--workdir={run}"], "Did you mean 'all_cnn_"),
  (
    ["train", QUICK, "--workdir={run}", "--config.optimizer.learning_rat=1"],
    "'optimizer.learning_rate'",
  ),
  (
    ["train", QUICK, "--workdir={run}", "--config.optimiser.name=adam"],
    "Did you mean 'optimizer.name'",
  ),
  (
    ["train", QUICK, "--workdir={run}", "--config.train.batch_size=many"],
    "'many': must be an integer, at least 1",
  ),
  (["train", QUICK, "--workdir={run}", "--config.train.batch_size=0"], "at least 1"),
  (["train", QUICK, "--workdir={run}", "--config.train.batch_size=4000"], "more than the 1438"),
  (["train", QUICK, "--workdir={run}", "--config.seed=1.5"], "seed='1.5': must be an integer"),
  (["train", QUICK, "--workdir={run}", "--config.model.final_relu=1.5"], "must be True, False"),
  (["describe", QUICK, "--config2=configs/quickstart.py", "--config2.seed=a:\n b"], "seed='a"),
  (["train", QUICK, "--workdir={run}", "--config.model.stride_padding=valid"], "caffe, same"),
  (["train", QUICK, "--workdir={run}", "--config.model.pool=median"], "median"),
  (["train", QUICK, "--workdir={run}", "--config.dataset.name=digit"], "Did you mean 'digits'"),
  (["train", QUICK, "--workdir={run}", "--config.dataset.name=npz:none.npz"], "no such file"),
  (
    [
      "train",
      QUICK,
      "--workdir={run}",
      "--config.dataset.name=cifar10",
      "--config.dataset.data_dir={run}",
    ],
    "download_and_prepare",
  ),
  (["train", QUICK, "--workdir={run}", "--confg=3"], "confg"),
  (["train", QUICK, "--workdir={run}", "now"], "'now' is no flag"),
  (["train", QUICK, "--workdir=/dev/null/run"], "/dev/null/run"),
  (["train", QUICK, "--workdir=gcs://bucket/run"], "a bucket is gs://"),
  (["train", QUICK, "--workdir={run}\udcff"], "a path is in UTF-8"),
  (["train", QUICK, QUICK, "--workdir={run}"], "--config is given twice"),
  (["describe", QUICK, "--workdir={run}"], "workdir"),
  (["report", "--workdir={run}", "--output="], "--output= is empty"),
  (["evaluate", "--workdir={run}", "--split="], "--split= is empty"),
  (["visualize", "--workdir={run}", "--channels="], "--channels= is empty"),
  (["benchmark", QUICK, "--config.train.batch_size=4000"], "more than the 1438"),
  (["benchmark", QUICK, "--config.train.batch_size=0", "--profile={run}/p"], "at least 1"),
  (["train", QUICK, "--workdir={run}", "--config.dataset.name=huggingface:mnist"], "Unknown"),
  (["visualize", "--workdir={run}", "--input=a.png", "--input=gcs://b/c.png"], "--input=gcs://"),
  (["evaluate"], "--workdir"),
  (["evaluate", "--workdir={run}"], "no config.json"),
  (["evaluate", "--workdir={run}", "--step=last"], "last"),
  (["evaluate", "--workdir={run}", "--step=-1"], "-1"),
  (["describe"], "--config"),
  (["describe", QUICK, "--config2=configs/nothing.py"], "--config2"),
  (["describe", QUICK, "--config.model.width=0"], "above 0"),
  (["describe", "--config=configs/cifar10.py:all_cnn_d"], "Did you mean 'all_cnn_"),
  (["visualize", "--workdir=README.md", "--figure=1"], "README.md"),
  (["visualize", "--workdir={run}", "--figure=3", "--channels=a"], "--channels"),
  (["visualize", "--figure=3"], "--workdir"),
  (["visualize", "--workdir={run}", "--figure=3"], "no config.json"),
  (["benchmark"], "--config"),
  (["benchmark", QUICK, "--workdr=x"], "workdr"),
  (["compile"], "--config"),
  (["compile", QUICK], "Known: v5e:1x1, v5e:2x2, v5e:2x4"),
  (["compile", QUICK, "--topology=v9:2x4"], "Unknown topology 'v9:2x4'. Known: v5e:1x1"),
  (["compile", QUICK, "--topology=8"], "Known: v5e:1x1"),
  (["compile", QUICK, "--topology=v5e:2x4", "--config.model.name=vgg"], "model.name 'vgg'"),
  (["benchmark", QUICK, "--output={run}/b.json"], "no such folder"),
  (["report"], "--workdir"),
  (["report", "--workdir={run}"], "neither runs nor their records"),
  (["evaluate", "--workdir={run}", "--views=-1"], "-1"),
  (["sweep"], "--config"),
  (["sweep", QUICK], "--workdir"),
  (["sweep", QUICK, "--workdir={run}", "--seeds=0"], "seeds"),
  (["sweep", QUICK, "--workdir={run}", "--index=one"], "--index=one must be an integer."),
  (["sweep", QUICK, "--workdir={run}", "--index=first"], "first"),
  (["evaluate", "--workdir={run}", QUICK], "config"),
  (["train", QUICK, "--workdir={run}", "--step=3"], "step"),
  *(
    (["train", QUICK, "--workdir={run}", f"--config.{value}"], said)
    for value, said in (
      ("seed=-1", "from 0"),
      ("seed=4294967296", "below 2^32"),
      ("model.name=all_cnn", "Did you mean"),
      ("model.width=1e9", "at most 100"),
      ("model.init=xavier", "lecun_normal"),
      ("model.head=mlp", "conv, dense"),
      ("model.dropout=(1.5,)", "[0, 1)"),
      ("dataset.validation=5000", "none of digits's 1438 images"),
      ("dataset.preprocessing=zca", "gcn_zca"),
      ("dataset.augment=flip", "shift_flip"),
      ("train.epochs=0", "at least 1"),
      ("train.steps=-1", "at least 0"),
      ("train.dtype=float16", "bfloat16"),
      ("optimizer.name=rmsprop", "sgd, adam"),
      ("optimizer.learning_rate=-1", "a number from 0"),
      ("optimizer.drops=(3,2)", "rising epochs"),
      ("optimizer.drop_factor=0.5", "a number from 1"),
      ("optimizer.momentum=1", "below 1"),
      ("rule.name=fa_usf_in", "Did you mean 'fa_usf_init'"),
      ("rule.feedback_init=zeros", "fan_out"),
      ("rule.freeze_at=2", "below 1"),
      ("rule.start_from={run}", "no config.json"),
      ("rule.start_from=gcs://bucket/run", "a run's folder"),
      ("evaluate.every_steps=-5", "at least 0"),
      ("checkpoint.keep=0", "at least 1"),
      ("log.every_steps=0", "at least 1"),
    )
  ),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(w) or "nothing" for w, _ in BAD])
def test_wrong_use_is_one_line_and_writes_nothing(words, said, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises((UsageError, flags.Error)) as error:
    launch.run([w.format(run=tmp_path / "run") for w in words])
  assert said in str(error.value)
  assert not any(tmp_path.iterdir())


OWN = [  # (a config file of a user's, words, what the line must say)
  ("def get_config(arg): pass", ["describe"], "needs an argument, behind a colon"),
  ("def get_config(): pass", ["describe"], "returns no ConfigDict"),
  ("def get_config(): return {}['big']", ["describe"], "KeyError('big')"),
  ("{config}; c.optimizer = 'adam'; return c", ["describe"], "optimizer"),
  ("{sweep}[get_config()]", ["sweep"], "A sweep is a dict of units, names"),
  ("{sweep}dict(units=get_config())", ["sweep"], "units of a sweep must be list"),
  ("{sweep}None", ["sweep"], "A sweep is a dict of units, names"),
  ("{sweep}{}", ["sweep"], "needs `units`"),
  ("{sweep}dict(units=[])", ["sweep"], "needs `units`"),
  ("{sweep}dict(units=[get_config()], names='rule.name')", ["sweep"], "names of a sweep must be"),
  ("{sweep}dict(units=[get_config()], names=('rule.nam',))", ["sweep"], "Did you mean 'rule.name'"),
  ("{sweep}dict(units=[get_config()], rates=0.1)", ["sweep"], "rates of a sweep must be list"),
  ("{sweep}dict(units=[get_config()], table='table5')", ["sweep"], "Unknown table 'table5'"),
  ("{sweep}dict(units=[get_config()], seed=1)", ["sweep"], "Did you mean 'seeds'"),
]


@pytest.mark.parametrize(("text", "words", "said"), OWN, ids=[text for text, *_ in OWN])
def test_a_config_of_one_s_own_that_will_not_do_is_one_line(text, words, said, tmp_path):
  config = "def get_config(): c = ConfigDict(); c.dataset = ConfigDict({'name': 'digits'})"
  sweep = f"{config}; return c\ndef get_sweep(): return "
  text = text.replace("{config}", config).replace("{sweep}", sweep)
  path = tmp_path / "own.py"
  path.write_text(f"from ml_collections import ConfigDict\n{text}\n")
  workdir = [f"--workdir={tmp_path / 'run'}"] if words == ["sweep"] else []
  with pytest.raises(UsageError) as error:
    launch.run([*words, f"--config={path}", *workdir])
  assert said in str(error.value)
  assert not (tmp_path / "run").exists()


def test_a_tilde_is_the_user_s_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv("HOME", str(tmp_path))
  assert launch.run(["train", *TINY, "--config.train.steps=1", "--workdir=~/run"]) == 0
  assert (tmp_path / "run" / "evaluation.json").exists()
  (tmp_path / "mine.py").write_bytes((ROOT / "configs" / "quickstart.py").read_bytes())
  assert launch.run(["describe", "--config=~/mine.py"]) == 0


def test_a_run_goes_on_when_nobody_reads_what_it_says(tmp_path):
  """As after `| head`, or when Ctrl-C has ended `| tee` first."""
  read, write = os.pipe()
  os.close(read)
  words = command("train", *TINY, "--config.train.steps=20", f"--workdir={tmp_path / 'run'}")
  done = subprocess.run(words, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
  os.close(write)
  assert (done.returncode, done.stderr) == (0, "")
  assert (tmp_path / "run" / "evaluation.json").exists()


def test_a_verb_has_done_its_work_when_nobody_reads_what_it_says():
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run(
    command("describe", QUICK), cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True
  )
  os.close(write)
  assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
  ("name", "value", "words"),
  [
    ("JAX_ENABLE_X64", "maybe", ["describe", QUICK]),
    ("JAX_ENABLE_X64", "maybe", ["train", QUICK, "--workdir={run}"]),
    ("JAX_PLATFORMS", "gpus", ["visualize", "--figure=1", "--workdir={run}"]),
  ],
)
def test_a_variable_that_jax_refuses_is_one_line(name, value, words, tmp_path):
  words = command(*(w.format(run=tmp_path / "run") for w in words))
  wrong = os.environ | {name: value}
  done = subprocess.run(words, cwd=ROOT, env=wrong, capture_output=True, text=True)
  assert done.returncode == 2
  assert name in done.stderr
  assert done.stderr.count("\n") == 1
  assert not any(tmp_path.iterdir())


def test_nothing_is_opened_that_could_run_code(tmp_path):
  """A pickle and a Python config in a run's folder: `evaluate` opens neither."""
  workdir = tmp_path / "run"
  assert launch.run(["train", *TINY, "--config.train.steps=1", f"--workdir={workdir}"]) == 0

  class Trap:
    def __reduce__(self):
      return (pathlib.Path.touch, (tmp_path / "ran",))

  trap = pickle.dumps(Trap())
  program = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()"
  places = (workdir, workdir / "checkpoints", workdir / "preprocessing")
  for place in places:
    for name in ("state.pkl", "variables.pickle", "fitted.npy", "config.pkl"):
      (place / name).write_bytes(trap)
    for name in ("config.py", "__init__.py", "sitecustomize.py"):
      (place / name).write_text(program)
  planted = {str(p) for place in places for p in place.iterdir() if p.suffix[:2] in (".p", ".n")}
  assert len(planted) == 21
  seen = f"""
import sys
opened = set()
sys.addaudithook(lambda name, args: opened.add(str(args[0])) if name == "open" else None)
import launch
status = launch.run(["evaluate", "--workdir={workdir}"])
sys.exit(status or sorted(opened & {planted!r}) or 0)
"""
  done = subprocess.run([sys.executable, "-c", seen], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert not (tmp_path / "ran").exists()


def command(*words):
  return [sys.executable, "launch.py", *map(str, words)]


def call(*words):
  return subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_wrong_verb_ends_with_status_2_and_one_line():
  done = call("trian", "--workdir=x")
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr.count("\n") == 1
  assert "Traceback" not in done.stderr


def test_verbs_say_what_they_do_and_take(capsys):
  assert launch.run(["--help"]) == 0
  briefly = capsys.readouterr().out
  for name, verb in launch.VERBS.items():
    assert launch.run([name, "--help"]) == 0
    what, usage, *flags = capsys.readouterr().out.split("\n\n")
    assert what.endswith(".")
    assert f"  {name:9}  {what}\n" in briefly
    assert usage.startswith(f"  python launch.py {name} --")
    assert all(f"--{flag}" in usage for flag in (*verb.configs, *verb.flags))
    assert all(f"  --{flag} " in "".join(flags) for flag in verb.flags)


@pytest.mark.parametrize(
  "number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST]
)
def test_what_the_system_refuses_is_one_line(number, monkeypatch, capsys):
  def refuse(words):
    raise OSError(number, os.strerror(number), "a/file")

  monkeypatch.setattr(launch, "run", refuse)
  monkeypatch.setattr(launch.os, "_exit", sys.exit)
  with pytest.raises(SystemExit, match="2"):
    launch.main()
  assert capsys.readouterr().err == f"launch.py: a/file: {os.strerror(number)}.\n"


def test_a_bug_keeps_its_traceback_and_is_no_divergence(monkeypatch, capsys):
  def fail(words):
    raise OSError(errno.EIO, "a bug")

  monkeypatch.setattr(launch, "run", fail)
  with pytest.raises(SystemExit, match=str(os.EX_SOFTWARE)):
    launch.main()
  said = capsys.readouterr().err
  assert said.startswith("Traceback")
  assert "a bug" in said


def test_too_little_memory_is_one_line(monkeypatch, capsys):
  def fail(words):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes")

  monkeypatch.setattr(launch, "run", fail)
  with pytest.raises(SystemExit, match="2"):
    launch.main()
  said = capsys.readouterr().err
  assert "memory is too small (RESOURCE_EXHAUSTED: Out of memory): take" in said
  assert said.count("\n") == 1


def test_what_a_bucket_refuses_is_one_line(monkeypatch, capsys):
  from tensorflow import errors  # slow to import, and used for buckets alone

  def refuse(words):
    raise errors.NotFoundError(None, None, "The specified bucket\n does not exist.")

  monkeypatch.setattr(launch, "run", refuse)
  with pytest.raises(SystemExit, match="2"):
    launch.main()
  assert capsys.readouterr().err == "launch.py: The specified bucket does not exist.\n"


def test_a_bucket_that_fails_for_now_is_one_line_that_asks_for_another_start(monkeypatch, capsys):
  from tensorflow import errors

  def fail(words):
    raise errors.UnavailableError(None, None, "The service is away.")

  monkeypatch.setattr(launch, "run", fail)
  with pytest.raises(SystemExit, match=str(os.EX_TEMPFAIL)):
    launch.main()
  assert capsys.readouterr().err == "launch.py: The service is away.\n"


def test_the_status_says_how_a_verb_ended(monkeypatch):
  monkeypatch.chdir(ROOT)
  for ended, status in (("ok", 0), ("stopped", 0), ("diverged", 1)):
    monkeypatch.setattr(loop, "train", lambda *_, ended=ended: loop.Outcome(ended, 1))
    assert launch.run(["train", QUICK, "--workdir=x"]) == status
  for broken, status in ((0, 0), (2, 1)):
    monkeypatch.setattr(sweep, "sweep", lambda *_, broken=broken, **__: ("done", broken))
    assert launch.run(["sweep", QUICK, "--workdir=x"]) == status


def test_a_key_that_nothing_reads_is_told_of_in_one_line(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(loop, "train", lambda *_: loop.Outcome("ok", 1))
  monkeypatch.setattr(sweep, "sweep", lambda *_, **__: ("done", 0))
  two = tmp_path / "two.py"
  two.write_text(
    "from configs import quickstart\n"
    "def get_config(rule='bp'):\n"
    "  config = quickstart.get_config()\n"
    "  config.update({'rule': {'name': rule}})\n"
    "  return config\n"
    "def get_sweep():\n"
    "  return {'units': [get_config(r) for r in ('bp', 'fa')], 'names': ('rule.name',)}\n"
  )

  def said(verb, config, *keys):
    launch.run([verb, config, "--workdir=x", *keys])
    return capsys.readouterr().err

  factor, drawn = "--config.optimizer.drop_factor=5.0", "--config.rule.feedback_init=fan_in"
  triangle = "--config.optimizer.schedule=triangle"
  assert said("train", QUICK, factor, triangle) == (
    "launch.py: optimizer.drop_factor=5.0 changes nothing: optimizer.schedule='triangle' does not read it; "
    "drops would.\n"
  )
  assert said("train", QUICK, factor) == ""
  assert "rule.feedback_init='fan_in' changes nothing" in said("train", f"--config={two}", drawn)
  assert said("sweep", f"--config={two}", drawn) == ""  # one of its units reads it
  assert "optimizer.drop_factor=5.0" in said("sweep", f"--config={two}", factor, triangle)


def test_a_verb_s_flags_reach_what_it_calls(monkeypatch):
  monkeypatch.chdir(ROOT)
  given = {}

  def note(returned):
    def call(*positional, **named):
      given.clear()
      given.update(named, positional=positional)
      return returned

    return call

  scores = {"dataset": "x", "split": "y", "error": 1.0, "loss": 1.0, "examples": 1, "step": 1}
  monkeypatch.setattr(evaluate, "from_workdir", note(scores))
  words = ["--step=3", "--split=test", "--dataset=cifar10", "--views=5"]
  launch.run(["evaluate", "--workdir=x", *words])
  expected = {"step": 3, "split": "test", "dataset": "cifar10", "views": 5}
  assert given == expected | {"positional": ("x",)}

  monkeypatch.setattr(figures, "visualize", note([]))
  words = ["--figure=3", "--layer=conv6", "--channels=0,7", "--input=a", "--input=b", "--step=3"]
  launch.run(["visualize", "--workdir=x", *words, "--split=train"])
  expected = {"layer": "conv6", "channels": [0, 7], "inputs": ["a", "b"], "step": 3}
  assert given == expected | {"split": "train", "positional": ("x", "3")}

  monkeypatch.setattr(report, "report", note([]))
  launch.run(["report", "--workdir=x", "--output=y"])
  assert given == {"positional": ("x", "y")}

  monkeypatch.setattr(datasets, "_prepared", lambda *_: None)  # as if MNIST were at hand
  monkeypatch.setattr(sweep, "sweep", note(("done", 0)))
  words = ["--config=configs/pooling.py:mnist", "--seeds=5", "--index=1"]
  launch.run(["sweep", "--workdir=x", *words, "--config.train.epochs=2"])
  plan, workdir = given["positional"]
  assert (plan.seeds, workdir, given["index"]) == (5, "x", 1)
  assert [unit.train.epochs for unit in plan.units.values()] == [2] * len(plan.units)


def test_killed_and_started_again_it_ends_with_the_very_same_weights(tmp_path):
  """kill -9 and SIGTERM at some moment, against a run that nobody disturbed."""
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  endless = command("train", *TINY, "--config.train.steps=100000", f"--workdir={killed}")
  with subprocess.Popen(endless, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
    processes.wait_for_a_checkpoint(killed, process)
    process.kill()
  assert process.returncode == -signal.SIGKILL

  with subprocess.Popen(endless, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
    processes.wait_for_a_checkpoint(killed, process)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate()
  assert process.returncode == 0
  assert "The same command goes on from there" in out

  stopped = max(runs.saved(killed))
  for workdir in (whole, killed):
    words = [*TINY, f"--config.train.steps={stopped + 3}", f"--workdir={workdir}"]
    assert call("train", *words).returncode == 0
  runs.same(runs.weights(whole), runs.weights(killed))
  done = call("evaluate", f"--workdir={killed}")
  assert done.returncode == 0
  assert f"359 images  step {stopped + 3}" in done.stdout
  older = min(runs.saved(killed))
  done = call("evaluate", f"--workdir={killed}", "--split=train", f"--step={older}")
  assert f"1438 images  step {older}" in done.stdout
  words = [f"--workdir={killed}", "--figure=2", "--layer=conv2", "--channels=1"]
  assert call("visualize", *words).returncode == 0
  drawn = np.load(killed / "figures" / "figure2_conv2.npz")
  assert drawn["conv2_channels"].tolist() == [1]


def test_training_alone_asks_no_network_and_imports_neither_tensorflow_nor_jpegs_decoder(tmp_path):
  words = ["train", *TINY, "--config.train.steps=1", f"--workdir={tmp_path / 'run'}"]
  program = f"""
import sys
met = set()
sys.addaudithook(lambda name, args: met.add(name))
import launch
sys.argv = ["launch.py", *{words!r}]
try:
  launch.main()
except SystemExit as end:
  asked = sorted(met & {{"socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"}})
  unneeded = sorted({{"tensorflow", "simplejpeg"}} & set(sys.modules))
  sys.exit(end.code or unneeded or asked or 0)
"""
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
