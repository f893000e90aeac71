"""Runs under several rules -> the figures of Moskovitz et al. 2018 [M18], as charts to be drawn.

The numbers are those that `measurements` put into the metrics while the runs were trained; runs
that differ in their seed only are averaged, and of those that differ in their epochs too the
longest are shown.
"""

from collections.abc import Callable, Sequence

from allcnn_jax.analysis import chart, records
from allcnn_jax.analysis.chart import Chart, Panel, curve
from allcnn_jax.analysis.records import Group, Record
from allcnn_jax.errors import UsageError
from allcnn_jax.training import learning_rules

_CURVES = f"{chart.LONGEST} Curves are "


def groups(runs: Sequence[Record]) -> list[Group]:
  """Runs of one config but for the seed, each with its rule's name and what tells it from others.

  Where runs differ in their epochs alone, there are the longest.
  """
  return records.groups(records.longest(runs), by=("rule.name",))


def _layers(runs: Sequence[Record], what: str) -> list[str]:
  """The layers that a number was measured at, in the order of the network's names."""
  names = {k.partition("/")[2] for r in runs for x in r.metrics for k in x if k.startswith(what)}
  return sorted(names, key=lambda n: (n.rstrip("0123456789"), len(n), n))


def _measured(runs: Sequence[Record], what: str) -> list[Group]:
  """The groups whose every run has a measurement, of those that came to their end if any did.

  Raises:
    UsageError: none has.
  """
  living = [(label, records.alive(members)) for label, members in groups(runs)]
  found = [g for g in living if all(_layers([r], what) for r in g[1])]
  if not found:
    raise UsageError(
      f"No run has {what} in its metrics: train with --config.alignment.every_steps=N."
    )
  return found


def _each(runs: Sequence[Record], what: str, ylabel: str, **style) -> tuple[list[Panel], str]:
  """A panel for each group whose errors autodiff does not send, with a curve for each layer.

  Returns:
    the panels, and what a caption says of the curves.

  Raises:
    UsageError: there is none.
  """
  shown = [
    (label, members)
    for label, members in _measured(runs, what)
    if learning_rules.RULES[members[0].config.rule.name].replaces_autodiff
  ]
  panels = [
    Panel(
      label,
      ylabel,
      [curve(layer, members, f"{what}/{layer}") for layer in _layers(members, what)],
      **style,
    )
    for label, members in shown
  ]
  if not panels:
    raise UsageError(
      f"Only runs under backpropagation's own errors have {what} here: it says nothing of them."
    )
  return panels, chart.said_of(shown)


def norms(runs: Sequence[Record]) -> Chart:
  """[M18] Fig. 2: the size of the errors, under one initialisation of the weights and another."""
  panels, means = _each(runs, "error_ratio", "norm / norm of BP's", logarithmic=True)
  return Chart(
    "fa2",
    "The size of what is sent back",
    "Norm of a rule's error signal at each layer over that of backpropagation's, on a fixed batch "
    "(after Moskovitz et al. 2018, Fig. 2). Feedback weights of variance 1/n_out keep the size of "
    "a signal from layer to layer, while forward weights of variance 1/n_in make backpropagation's "
    "smaller at a layer with fewer outputs than inputs. Runs with other initialisations, if there "
    f"are any, say theirs in brackets. {_CURVES}{means}",
    panels,
    sharey=True,
  )


def angles(runs: Sequence[Record]) -> Chart:
  """[M18] Fig. 3: the angle of the errors to backpropagation's."""
  panels, means = _each(runs, "error_angle", "degrees")
  return Chart(
    "fa3",
    "How errors align with backpropagation's",
    "Angle between a rule's error signal at each layer, before its activation, and "
    "backpropagation's, as vectors over a fixed batch (after Moskovitz et al. 2018, Fig. 3). At "
    f"90 degrees they have nothing in common. {_CURVES}{means}",
    panels,
    sharey=True,
  )


def learning(runs: Sequence[Record]) -> Chart:
  """[M18] Fig. 4, in our reading: the learning curves of the rules.

  Raises:
    UsageError: no run has errors both of training and of evaluation.
  """
  panels, means = chart.learning(groups(runs), most=len(runs), logarithmic=True)
  if not panels:
    raise UsageError("No run has been trained and evaluated: there are no learning curves.")
  return Chart(
    "fa4",
    "Learning curves",
    f"Error over epochs (our reading of Moskovitz et al. 2018, Fig. 4). {_CURVES}{means}",
    panels,
  )


def signs(runs: Sequence[Record]) -> Chart:
  """[M18] Fig. 5: the signs of weights, frozen at several times."""
  panels = []
  for what, ylabel in (
    ("sign_differs", "share of signs that differ"),
    ("sign_ever_differed", "share that ever differed"),
  ):
    found = _measured(runs, what)
    for layer in _layers(runs, what):
      lines = [curve(label, members, f"{what}/{layer}") for label, members in found]
      panels.append(Panel(layer, ylabel, lines))
  return Chart(
    "fa5",
    "Signs that change",
    "Share of a layer's weights whose sign differs from that at the start, and share whose sign "
    "has differed after any step (after Moskovitz et al. 2018, Fig. 5). "
    f"{_freezing(found)}{_CURVES}{chart.said_of(found)}",
    panels,
  )


def _freezing(shown: Sequence[Group]) -> str:
  """What a caption says of when signs are frozen; nothing if they never are."""
  rules = [members[0].config.rule for _, members in shown]
  shares = sorted({r.freeze_at for r in rules if learning_rules.RULES[r.name].keeps_signs})
  if not shares:
    return ""
  said = " or ".join(f"{100 * share:g}" for share in shares)
  told = ", in brackets where a rule has several" if len(shares) > 1 else ""
  return f"Rules that end in _ei freeze the signs after {said} % of training{told}. "


CHARTS: dict[str, Callable[[Sequence[Record]], Chart]] = {
  "fa2": norms,
  "fa3": angles,
  "fa4": learning,
  "fa5": signs,
}
