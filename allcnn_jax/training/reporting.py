"""Numbers to the terminal, to JSON lines and to TensorBoard."""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from allcnn_jax import files, terminal
from allcnn_jax.errors import UsageError
from allcnn_jax.training import layout

# What each line of `metrics.jsonl` has.
_LINE = {"step": int}
_WORDS = ("split", "damaged")  # all else in it is a number
_FLUSHED_EVERY = 10  # seconds: TensorBoard's file goes to the disk


class Reporter:
  """Tells how a run goes: a bar on a terminal, plain lines elsewhere, and two files.

  `metrics.jsonl` has one JSON object a line, each with its `step`; `tensorboard/` has the same
  numbers as event files. A run that goes on drops what an interrupted one wrote beyond its last
  checkpoint, so that every step stands there once. In a bucket there are no event files.
  """

  def __init__(
    self, workdir: epath.PathLike, start: int, total: int, steps_per_epoch: int, batch_size: int
  ):
    """Opens the files.

    Args:
      workdir: the run's folder.
      start: the step that the run begins with.
      total: the step that it ends with.
      steps_per_epoch: for the epoch that is shown.
      batch_size: images a step, for the speed that is shown.
    """
    self._metrics = epath.Path(workdir) / layout.METRICS
    # Step 0 itself is written by a run from the start.
    kept = _drop_after(self._metrics, start or -1)
    self._evaluated = {(x["step"], x["split"]) for x in kept if "eval_error" in x}
    self._events = None
    if not files.is_bucket(workdir):  # tensorboardX would need another package there
      self._events = _Events(epath.Path(workdir) / "tensorboard", start)
    self._total, self._steps_per_epoch, self._batch_size = total, steps_per_epoch, batch_size
    self._bar = bar(start, total, "step")
    self._mark = (start, time.monotonic())

  def advance(self, step: int) -> None:
    """Moves the bar."""
    self._bar.update(step - self._bar.n)

  def restart_clock(self, step: int) -> None:
    """Leaves the time since the last line out of the speed: it went into something else."""
    self._mark = (step, time.monotonic())

  def training(self, step: int, loss: float, error: float, learning_rate: float) -> None:
    """Tells of the steps since the last call: mean loss, error in percent, and the speed."""
    (last, then), now = self._mark, time.monotonic()
    seconds = max(now - then, 1e-9)
    self._mark = (step, now)
    speed = (step - last) * self._batch_size / seconds
    left = int((self._total - step) * seconds / max(step - last, 1))
    epoch = step / self._steps_per_epoch
    self._write(
      step,
      {
        "epoch": epoch,
        "train_loss": loss,
        "train_error": error,
        "learning_rate": learning_rate,
        "images_per_second": speed,
      },
    )
    text = f"epoch {epoch:.1f}  loss {loss:.4f}  error {error:.2f} %  {speed:.0f} images/s"
    self._bar.set_postfix_str(text, refresh=False)
    if self._bar.disable or not sys.stdout.isatty():
      self.note(f"step {step}/{self._total}  {text}  {tqdm.format_interval(left)} left")

  def evaluation(self, step: int, split: str, loss: float, error: float) -> None:
    """Tells of an evaluation; error in percent."""
    if (step, split) not in self._evaluated:  # as when a run that has ended is asked for again
      self._write(step, {"split": split, "eval_loss": loss, "eval_error": error})
    self.note(f"step {step}/{self._total}  {split}: loss {loss:.4f}  error {error:.2f} %")

  def alignment(self, step: int, values: dict[str, float]) -> None:
    """Keeps what `measurements.measure` found, without a word on the terminal."""
    self._write(step, values)

  def damaged(self, step: int, split: str, records: Sequence[str]) -> None:
    """Tells of records that could not be read and were left out."""
    for record in records:
      self._write(step, {"split": split, "damaged": record})
      self.note(left_out(split, record))

  def note(self, text: str) -> None:
    """A line of its own, above the bar."""
    terminal.note(text)

  def _write(self, step: int, values: dict[str, Any]) -> None:
    with self._metrics.open("a") as f:
      f.write(json.dumps({"step": step, **files.json_values(values)}) + "\n")
    if self._events:
      self._events.write(step, {k: v for k, v in values.items() if not isinstance(v, str)})

  def close(self) -> None:
    """Ends the bar and writes out what is left."""
    self._bar.close()
    if self._events:
      self._events.close()


class _Events:
  """An event file for TensorBoard. Where it cannot be written it ends, and the run goes on.

  tensorboardX's own `SummaryWriter` writes from a thread: if that dies, as of a full disk, the run
  waits for it for good.
  """

  def __init__(self, folder: epath.Path, start: int):
    """Begins a file; TensorBoard hides what others in the folder have beyond step `start`."""
    folder.mkdir(parents=True, exist_ok=True)
    self._writer = EventsWriter(str(folder / "events"), f".{start}")
    self._flushed, self._works = time.time(), True
    self._add(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

  def write(self, step: int, values: dict[str, float]) -> None:
    scalars = [x for name, v in values.items() for x in summary.scalar(name, v).value]
    self._add(Event(step=step, summary=Summary(value=scalars)))

  def _add(self, event: Event) -> None:
    event.wall_time = time.time()
    try:
      if self._works:
        self._writer.write_event(event)
        if event.wall_time - self._flushed > _FLUSHED_EVERY:
          self._writer.flush()
          self._flushed = event.wall_time
    except OSError:  # `metrics.jsonl` speaks of a full disk
      self._works = False

  def close(self) -> None:
    with contextlib.suppress(OSError):
      self._writer.close()


def bar(start: int, total: int, unit: str) -> tqdm:
  """A bar on a terminal, nothing elsewhere; below another one it goes when it is done."""
  columns, rows = shutil.get_terminal_size()  # 80 x 24 where a terminal does not tell
  return tqdm(
    total=total,
    initial=start,
    unit=unit,
    disable=not sys.stderr.isatty(),
    leave=None,
    ncols=columns,
    nrows=rows,
    bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [left {remaining}]{postfix}",
  )


def checked(line: Any) -> dict[str, Any]:
  """The same line of `metrics.jsonl`; ValueError where it is none that a run writes."""
  values = files.checked(line, _LINE)
  asked = {k: str if k in _WORDS else int | float | None for k in values}
  return files.checked(values, asked | ({"split": str} if "eval_error" in values else {}))


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """The whole lines of a run's `metrics.jsonl`; none if it has not begun.

  Raises:
    UsageError: one is damaged.
  """
  path, found = epath.Path(workdir) / layout.METRICS, []
  lines = path.read_bytes().splitlines() if path.exists() else []
  for i, text in enumerate(lines, 1):
    if text.endswith(b"}"):  # one may be cut by a kill
      try:
        found.append(checked(json.loads(text)))
      except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged ({error}): remove its line {i}.") from None
  return found


def seconds(lines: list[dict[str, Any]], batch_size: int) -> float:
  """How long the training steps of a run took, by the speeds in its metrics."""
  trained = [x for x in lines if "images_per_second" in x]
  starts = [0, *(x["step"] for x in trained)]
  took = (
    (x["step"] - start) * batch_size / x["images_per_second"] for start, x in zip(starts, trained)
  )
  return sum(took, start=0.0)


def left_out(split: str, record: str) -> str:
  """What is said of a record that could not be read."""
  return f"damaged, left out: {split} {record}"


class Silent:
  """The reporter of a process that is not the first: it tells only what that one cannot know."""

  def damaged(self, step: int, split: str, records: Sequence[str]) -> None:
    for record in records:
      terminal.note(left_out(split, record))

  def __getattr__(self, name: str) -> Callable[..., None]:
    return lambda *args: None


def _drop_after(path: epath.Path, step: int) -> list[dict[str, Any]]:
  """Keeps the whole lines of steps up to `step`, and returns them."""
  kept = [line for line in read(path.parent) if line["step"] <= step]
  if path.exists():
    files.write(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
  return kept
