"""A finished run -> a folder small enough for the repository, from which its network is used.

  python -m allcnn_jax.training.publish --workdir=DIR --output=pretrained/NAME

The folder is a run's to all that looks at a network (`evaluate`, `visualize`, `rule.start_from`):
its config, what was fitted to the images, the metrics, the evaluation and the machine are the run's
own, and one file of weights stands in the place of checkpoints.
"""

from etils import epath

from allcnn_jax import files
from allcnn_jax.data import preprocessing
from allcnn_jax.errors import Parser, UsageError, one_line
from allcnn_jax.training import evaluate, layout, parts, restore, weights

_KEPT = (layout.CONFIG, layout.METRICS, layout.EVALUATION, layout.MACHINE)


def publish(workdir: epath.PathLike, output: epath.PathLike) -> None:
  """Writes the network of a finished run's last checkpoint into a new folder.

  Args:
    workdir: the run's.
    output: the folder to make.

  Raises:
    UsageError: the run has not ended, was evaluated otherwise since, or something is in the folder.
  """
  for told, path in (("workdir", workdir), ("output", output)):
    files.check_place(path, f"--{told}={path}")
  workdir, output = (epath.Path(path).expanduser() for path in (workdir, output))
  trained = restore.trained(workdir)
  _, steps = parts.steps(trained.config, trained.examples)
  if trained.step != steps:
    raise UsageError(f"--workdir={workdir} is at step {trained.step} of {steps}: train it first.")
  if evaluate.of_training(workdir, trained.config, steps) is None:
    raise UsageError(
      f"--workdir={workdir} has no evaluation like training's own: evaluate it first."
    )
  for name in _KEPT:
    if not (workdir / name).exists():
      raise UsageError(f"--workdir={workdir} has no {name}.")
  if files.inside(output):
    raise UsageError(f"--output={output} is not empty: choose another folder.")
  files.make_folder(output, f"--output={output}")
  for name in _KEPT:
    files.write(output / name, (workdir / name).read_bytes())
  preprocessing.share(layout.preprocessing_of(workdir), layout.preprocessing_of(output))
  weights.save(trained.variables, trained.step, output / weights.NAME)


def main():
  parser = Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True, help="the run's folder")
  parser.add_argument("--output", required=True, help="the folder to make, pretrained/NAME")
  with one_line("publish"):
    flags = parser.parse_args()
    publish(flags.workdir, flags.output)


if __name__ == "__main__":
  main()
