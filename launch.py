"""The command line: a verb, a config, a workdir -> one call into the package.

  python launch.py VERB --config=FILE[:ARGUMENT] --workdir=DIR [--config.a.b=VALUE ...]

Wrong use of any verb is one line and exit status 2.
"""

import contextlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from allcnn_jax import files, terminal
from allcnn_jax.errors import (
  DiskFull,
  UsageError,
  in_a_line,
  is_denied,
  is_full,
  is_memory,
  is_passing,
  unknown,
)


def train(values: flags.FlagValues) -> int:
  """Trains a run, or goes on with it from its newest checkpoint.

  --config=FILE --workdir=DIR [--config.a.b=VALUE ...]
  """
  from allcnn_jax.training import loop

  outcome = loop.train(_config(values), _workdir(values))
  return 1 if outcome.status == "diverged" else 0


def evaluate(values: flags.FlagValues) -> int:
  """Evaluates a run's checkpoint: all that it needs is in the folder.

  --workdir=DIR [--step=N] [--split=NAME] [--dataset=NAME] [--views=K]
  """
  from allcnn_jax.training import evaluate as evaluate_lib

  result = evaluate_lib.from_workdir(
    _workdir(values),
    step=values.step,
    split=values.split,
    dataset=values.dataset,
    views=values.views,
  )
  line = (
    "{dataset} {split}: error {error:.2f} %{top5}  loss {loss:.4f}  {examples} images  step {step}"
  )
  top5 = f"  top-5 error {result['error_top5']:.2f} %" if "error_top5" in result else ""
  terminal.note(line.format(top5=top5, **result))
  return 0


def describe(values: flags.FlagValues) -> int:
  """Prints a network layer by layer: size, receptive field, parameters, multiply-adds; or two side by side.

  --config=FILE [--config2=FILE]
  """
  from allcnn_jax.analysis import describe as describe_lib

  configs = [_config(values)] + ([values.config2] if "config2" in values else [])
  terminal.note(describe_lib.side_by_side(configs))
  return 0


def visualize(values: flags.FlagValues) -> int:
  """Draws a figure of the papers from a run's folder, or what its network sees in a picture.

  --workdir=DIR --figure=NAME [--layer=NAME] [--channels=0,1] [--input=PHOTO ...] [--step=N] [--split=NAME]
  """
  from allcnn_jax.analysis import figures

  if not all(c.isdecimal() for c in values.channels):
    raise UsageError(f"--channels={','.join(values.channels)}: numbers of filters, such as 0,7,12.")
  for path in figures.visualize(
    _workdir(values),
    values.figure,
    layer=values.layer,
    channels=list(dict.fromkeys(map(int, values.channels))),
    inputs=values.input,
    split=values.split,
    step=values.step,
  ):
    terminal.note(str(path))
  return 0


def benchmark(values: flags.FlagValues) -> int:
  """Measures how fast a config's training step is here, and each layer.

  --config=FILE [--output=FILE] [--profile=DIR]
  """
  from allcnn_jax.analysis import benchmark as benchmark_lib

  found = benchmark_lib.benchmark(_config(values), values.output, values.profile)
  terminal.note(benchmark_lib.text(found))
  return 0


def compile(values: flags.FlagValues) -> int:
  """Compiles a config's programs for a machine that need not be at hand, and says what they need there.

  --config=FILE --topology=v5e:2x4|h200:1|... [--output=FILE]
  """
  from allcnn_jax.analysis import compile as compile_lib

  compiled = compile_lib.compile(_config(values), values.topology or "", output=values.output)
  terminal.note(compile_lib.report(compiled))
  return 0 if compiled.fits else 1


def sweep(values: flags.FlagValues) -> int:
  """Does the runs of a config's sweep that are not done yet.

  --config=FILE[:ARGUMENT] --workdir=DIR [--index=N] [--seeds=N] [--config.a.b=VALUE ...]
  """
  from allcnn_jax.analysis import printed
  from allcnn_jax.training import sweep as sweep_lib

  config, workdir = _given_config(values), _workdir(values)
  # Any other config is a sweep of one unit.
  declared = _call("config", values.config_file, "get_sweep", {"units": [config]})
  plan = sweep_lib.plan(declared, _overrides(values), values.seeds)
  printed.check(plan.table)
  _remark(values, plan.units.values())
  _, broken = sweep_lib.sweep(plan, workdir, index=values.index)
  return 1 if broken else 0


def report(values: flags.FlagValues) -> int:
  """Makes a table of the runs in a folder, measured beside printed.

  --workdir=DIR [--output=DIR]
  """
  from allcnn_jax.analysis import report as report_lib

  for path in report_lib.report(_workdir(values), values.output):
    terminal.note(str(path))
  return 0


class Verb(NamedTuple):
  """What the launcher knows of a verb: its call, the configs that it takes, its own flags."""

  call: Callable[[flags.FlagValues], int]
  configs: tuple[str, ...] = ()
  flags: tuple[str, ...] = ()


VERBS = {
  "train": Verb(train, ("config",), ("workdir",)),
  "evaluate": Verb(evaluate, (), ("workdir", "step", "split", "dataset", "views")),
  "visualize": Verb(
    visualize, (), ("workdir", "figure", "layer", "channels", "input", "step", "split")
  ),
  "describe": Verb(describe, ("config", "config2")),
  "benchmark": Verb(benchmark, ("config",), ("output", "profile")),
  "compile": Verb(compile, ("config",), ("topology", "output")),
  "sweep": Verb(sweep, ("config",), ("workdir", "index", "seeds")),
  "report": Verb(report, (), ("workdir", "output")),
}
_HELP = {
  "workdir": "the folder of the run, of the sweep or, for `report`, of runs or their records",
  "output": "what to write: a JSON file, or for `report` the folder of the table",
  "profile": "a folder for a trace",
  "topology": "TPUs as in v5e:2x4, or GPUs as in h200:1",
  "step": "a checkpoint's; the newest by default",
  "split": "train, validation, test, or one of TFDS such as test[:100]",
  "dataset": "another set with as many classes",
  "views": "augmented views to average; 0: the image itself",
  "figure": "1 to 6, augmentation, fa1 to fa5",
  "layer": "its name in `describe`, or logits",
  "channels": "filters of the layer, such as 0,7,12",
  "input": "a picture of one's own; may be repeated",
  "index": "of the sweep's only unit to do",
  "seeds": "runs of each unit",
}
# The flags that name files or folders.
_PLACES = ("workdir", "output", "profile", "input")


def _told(verb: Verb) -> list[str]:
  """What a verb does, and how it is called."""
  return inspect.getdoc(verb.call).split("\n\n")


def _define(name: str, values: flags.FlagValues) -> None:
  """Defines a verb's own flag."""
  one = {"help": _HELP[name], "flag_values": values}
  match name:
    case "step":
      flags.DEFINE_integer(name, None, lower_bound=0, **one)
    case "index":
      flags.DEFINE_integer(name, None, **one)
    case "seeds":
      flags.DEFINE_integer(name, None, lower_bound=1, **one)
    case "views":
      flags.DEFINE_integer(name, 0, lower_bound=0, **one)
    case "channels":
      flags.DEFINE_list(name, [], **one)
    case "input":
      flags.DEFINE_multi_string(name, [], **one)
    case _:
      flags.DEFINE_string(name, None, **one)


def _define_config(name: str, words: list[str], values: flags.FlagValues) -> None:
  """Takes `--name=FILE[:ARGUMENT]` out of `words`; each key of that config becomes a flag.

  Keys that the file leaves out are there too, so that every one can be overridden.
  """
  from allcnn_jax import config as config_lib

  for i, word in enumerate(words):
    flag, equals, value = word.partition("=")
    if word.startswith("-") and flag.lstrip("-") == name:
      if not equals:
        value = words[i + 1] if i + 1 < len(words) else ""
      del words[i : i + (1 if equals else 2)]
      break
  else:
    return
  config = _call(name, value, "get_config")
  if not isinstance(config, ml_collections.ConfigDict):
    raise UsageError(f"--{name}={value}: its get_config returns no ConfigDict.")
  config = config_lib.complete(config)
  keys = dict(config_lib.leaves(config))
  for word in words:
    group, _, key = word.partition("=")[0].lstrip("-").partition(".")
    if word.startswith("-") and group == name and not key:
      raise UsageError(f"--{name} is given twice.")
    if word.startswith("-") and group == name and key not in keys:
      raise unknown("config key", key, keys)
  config_flags.DEFINE_config_dict(name, config, flag_values=values, sys_argv=["", *words])
  flags.DEFINE_string(f"{name}_file", value, "where it stands", flag_values=values)


def _call(flag: str, value: str, function: str, otherwise: Any = None) -> Any:
  """What a function of a config's file returns, given what stands behind the colon.

  `otherwise` if the file has no such function.
  """
  path, _, argument = os.path.expanduser(value).partition(":")
  spec = importlib.util.spec_from_file_location("config", path) if os.path.isfile(path) else None
  if spec is None:
    raise UsageError(f"--{flag}={value}: {path!r} is no Python file. Ours are in configs/.")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise AttributeError("it has no get_config")
  except Exception as error:
    raise UsageError(f"--{flag}={value}: {path} is no config ({error!r}).") from None
  call = getattr(module, function, None)
  if call is None:
    return otherwise
  given = [argument] if argument else []
  try:
    inspect.signature(call).bind(*given)
  except TypeError:
    takes = "takes no argument" if given else "needs an argument, behind a colon"
    raise UsageError(f"--{flag}={value}: {path} {takes}.") from None
  try:
    return call(*given)
  except ValueError as error:
    raise UsageError(f"--{flag}={value}: {error}.") from None
  except Exception as error:
    raise UsageError(f"--{flag}={value}: {path} fails ({error!r}).") from None


def _workdir(values: flags.FlagValues) -> str:
  if not values.workdir:
    raise UsageError("--workdir=DIR is missing: the run's folder.")
  return values.workdir


def _check(values: flags.FlagValues, names: Sequence[str]) -> None:
  """Looks at a verb's own flags before anything is done: at empty ones, and at files and folders.

  A shell leaves the ~ of `--workdir=~/x` to us.
  """
  for name in names:
    told = values[name].value
    if values[name].present and told in ("", []):
      raise UsageError(f"--{name}= is empty.")
    if name in _PLACES and told:
      for path in [told] if isinstance(told, str) else told:
        files.check_place(path, f"--{name}={path}")
      home = os.path.expanduser
      values[name].value = home(told) if isinstance(told, str) else [home(x) for x in told]


def _given_config(values: flags.FlagValues) -> ml_collections.ConfigDict:
  if "config" not in values:
    raise UsageError("--config=FILE[:ARGUMENT] is missing. Ours are in configs/.")
  return values.config


def _config(values: flags.FlagValues) -> ml_collections.ConfigDict:
  from allcnn_jax import config as config_lib

  config = _given_config(values)
  config_lib.check(config)
  _remark(values, [config])
  return config


def _overrides(values: flags.FlagValues) -> dict[str, Any]:
  """The keys that were set on the command line."""
  return config_flags.get_override_values(values["config"])


def _remark(values: flags.FlagValues, configs: Collection[ml_collections.ConfigDict]) -> None:
  """Says which keys of the command line none of the configs reads."""
  from allcnn_jax import config as config_lib

  for path in _overrides(values):
    whys = [config_lib.unread(config, path) for config in configs]
    if all(whys):
      terminal.warn(f"launch.py: {whys[0]}")


def run(words: Sequence[str]) -> int:
  """Runs a verb with its flags, as they stand behind "launch.py"; returns the exit status.

  Raises:
    UsageError: wrong use.
    flags.Error: a flag that is unknown or has a wrong value.
  """
  name, *words = words or ("",)
  if name.lstrip("-") in ("h", "help"):
    terminal.note(__doc__ + "\n" + "\n".join(f"  {n:9}  {_told(v)[0]}" for n, v in VERBS.items()))
    return 0
  if name not in VERBS:
    raise unknown("verb", name, VERBS)
  verb = VERBS[name]
  if {"-h", "--help"} & {*words}:
    what, usage = _told(verb)
    own = "\n".join(f"  --{flag:9} {_HELP[flag]}" for flag in verb.flags)
    terminal.note(f"{what}\n\n  python launch.py {name} {usage}" + (f"\n\n{own}" if own else ""))
    return 0
  _import_jax()
  values = flags.FlagValues()
  for flag in verb.flags:
    _define(flag, values)
  for config in verb.configs:
    _define_config(config, words, values)
  rest = _parse(words, values)
  if rest:
    raise UsageError(f"{name}: {rest[0]!r} is no flag; flags are written --name=value.")
  _check(values, verb.flags)
  return verb.call(values)


def _parse(words: Sequence[str], values: flags.FlagValues) -> list[str]:
  """Reads flags into `values`; returns the words that are none.

  Raises:
    UsageError: a config's key with a value of another type than its own, or no integer where one must be.
    flags.Error: a flag that is unknown or has a wrong value.
  """
  try:
    return values(["launch.py", *words])[1:]
  except flags.IllegalFlagValueError as error:
    key = re.match(r"flag --config2?\.(.+?)=(.*?): ", str(error), re.DOTALL)
    number = re.match(r"flag (--\w+=.*?): invalid literal for int", str(error), re.DOTALL)
    if number:
      raise UsageError(f"{number[1]} must be an integer.") from None
    if not key:
      raise
    from allcnn_jax import config as config_lib

    raise config_lib.refused(*key.groups()) from None


def _import_jax() -> None:
  """Imports JAX, which reads its own variables then."""
  try:
    import jax  # noqa: F401
  except ValueError as error:
    raise UsageError(f"JAX refuses the environment: {error}") from None


def _too_large(error: Exception) -> UsageError:
  return UsageError(
    f"The device's memory is too small ({str(error).splitlines()[0][:160]}): "
    "take a smaller train.batch_size or network, or more devices."
  )


def main() -> None:
  """Runs what stands on the command line and exits with its status."""
  terminal.open_closed()
  files.keep_compiled()
  job, leave = contextlib.nullcontext, lambda status: None
  try:
    if sys.argv[1:2] == ["train"]:
      _import_jax()
      from allcnn_jax.training import sharding

      job, leave = sharding.job, sharding.leave
    with job():
      status = run(sys.argv[1:])
  except Exception as error:
    wrong = isinstance(error, (UsageError, flags.Error)) or is_denied(error)
    if is_memory(error) and not is_passing(error):
      error, wrong = _too_large(error), True
    if not (wrong or is_passing(error)):
      traceback.print_exc()
      sys.exit(os.EX_SOFTWARE)
    terminal.warn(f"launch.py: {in_a_line(error)}")
    status = 2 if wrong else os.EX_TEMPFAIL
    leave(status)
    if isinstance(error, DiskFull) or is_full(error):
      os._exit(status)  # the usual way out would try to write again, and complain of each file
  sys.exit(status)


if __name__ == "__main__":
  main()
