"""Charts from records, by hand; and that they are drawn."""

import json

import numpy as np
import pytest

from allcnn_jax.analysis import alignment, figures, ways_back
from allcnn_jax.analysis import chart as chart_lib
from allcnn_jax.errors import UsageError
from allcnn_jax.training import learning_rules
from tests.made import of_rule as run


@pytest.mark.parametrize("figure", ["fa2", "fa3"])
def test_backpropagation_alone_has_no_figure_of_its_own_errors(figure):
  with pytest.raises(UsageError, match="Only runs under backpropagation"):
    alignment.CHARTS[figure]([run("bp")])


def test_groups_stand_in_the_papers_order():
  longer = run("fa", train__epochs=5, optimizer__learning_rate=0.5)
  runs = [run("fa_usf"), longer, run("fa", train__epochs=2), run("bp")]
  rules = [runs[0].config.rule.name for _, runs in alignment.groups(runs)]
  assert rules == ["bp", "fa", "fa", "fa_usf"]
  assert [runs[0].config.train.epochs for _, runs in alignment.groups(runs)][1:3] == [2, 5]


def test_runs_are_grouped_by_all_but_their_seed_and_named_by_what_differs():
  runs = [
    run(),
    run(seed=1),
    run(rule__feedback_init="gaussian_0.05"),
    run("fa_usf_sn_ei", rule__freeze_at=0.2),
    run("fa_usf_sn_ei", rule__freeze_at=0.5),
  ]
  found = {label: len(members) for label, members in alignment.groups(runs)}
  assert found == {
    "fa (rule.feedback_init fan_out)": 2,
    "fa (rule.feedback_init gaussian_0.05)": 1,
    "fa_usf_sn_ei (rule.freeze_at 0.2)": 1,
    "fa_usf_sn_ei (rule.freeze_at 0.5)": 1,
  }
  assert [label for label, _ in alignment.groups(runs[:2])] == ["fa"]


def test_of_runs_that_differ_in_their_epochs_the_longest_are_shown():
  short = [run(), run(seed=1), run("bp", train__epochs=2)]
  long = [run(train__epochs=5), run(seed=3, train__epochs=5, log__every_steps=7)]
  other = [run(train__epochs=2, optimizer__learning_rate=0.5)]
  found = {label: len(members) for label, members in alignment.groups(short + long + other)}
  rates = [x.config.optimizer.learning_rate for x in (long[0], other[0])]
  assert found == {
    "bp": 1,
    f"fa (optimizer.learning_rate {rates[1]}, train.epochs 2)": 1,
    f"fa (optimizer.learning_rate {rates[0]}, train.epochs 5)": 2,
  }


def test_a_longer_run_that_diverged_takes_no_place():
  diverged = run(seed=1, train__epochs=5)
  diverged.evaluation["status"] = "diverged"
  ((_, members),) = alignment.groups([run(), diverged])
  assert [x.config.train.epochs for x in members] == [run().config.train.epochs]
  ((_, members),) = alignment.groups([diverged])
  assert members == [diverged]


def test_a_mean_is_where_all_runs_have_a_value():
  two = [run(scale=1.0), run(seed=1, scale=3.0)]
  del two[1].metrics[-3]  # its training error at step 20
  (panel, _), _ = chart_lib.learning([("fa", two)], most=1)
  assert [list(panel.curves[0].x), list(panel.curves[0].y)] == [[1.0], [20.0]]


def test_layers_stand_in_the_order_of_the_network():
  chart = alignment.angles([run(), run("bp")])
  assert [p.title for p in chart.panels] == ["fa"]  # backpropagation's own angle says nothing
  assert [curve.label for curve in chart.panels[0].curves] == ["conv2", "conv10", "dense1"]
  np.testing.assert_allclose(chart.panels[0].curves[0].y, [1, 11, 21])


def test_layers_are_compared_on_one_scale():
  norms, angles = alignment.norms([run()]), alignment.angles([run()])
  assert norms.sharey
  assert angles.sharey
  assert [p.logarithmic for p in norms.panels + angles.panels] == [True, False]


def test_every_chart_is_drawn_and_written_with_its_numbers(tmp_path):
  record = run()
  where = {"dataset": record.config.dataset.name, "split": "test", "step": 1_000_000}
  values = {
    "config": record.config.to_dict(),
    "metrics": record.metrics,
    "evaluation": record.evaluation | where,
  }
  (tmp_path / "fa.json").write_text(json.dumps(values))
  for name in alignment.CHARTS:
    paths = figures.visualize(tmp_path, name)
    assert [p.name for p in paths] == [f"{name}.npz", f"{name}.png", "index.html"]
  with np.load(tmp_path / "figures" / "fa3.npz") as arrays:
    np.testing.assert_allclose(arrays["0.fa.conv2"], [[0, 1, 2], [1, 11, 21], [0, 0, 0]])


@pytest.mark.parametrize("figure", ["fa2", "fa3", "fa5"])
def test_measurements_leave_dead_runs_out_where_others_are_there(figure):
  dead = run(seed=1, scale=50.0)
  dead.evaluation["status"] = "dead"
  drawn, alone = (alignment.CHARTS[figure](runs) for runs in ([run(), dead], [run()]))
  assert drawn.arrays.keys() == alone.arrays.keys()
  for name, values in drawn.arrays.items():
    np.testing.assert_array_equal(values, alone.arrays[name])
  assert drawn.caption.endswith("left out where others are there. Runs: fa: 1.")


def test_learning_curves_leave_dead_runs_out_where_others_are_there():
  dead, alone = run(seed=1, scale=50.0), run("bp", scale=2.0)
  for x in (dead, alone):
    x.evaluation["status"] = "dead"
  chart = alignment.learning([run(), dead, alone])
  assert [[c.y.tolist() for c in panel.curves] for panel in chart.panels] == [
    [[20, 40], [10, 20]],
    [[40, 80], [20, 40]],
  ]
  assert chart.caption.endswith("left out where others are there. Runs: 1 for each curve.")


def test_a_caption_says_the_usual_number_of_runs_once():
  pair = [run(), run(seed=1)]
  groups = [("a", pair), ("b", pair), ("c", pair[:1])]
  assert chart_lib.said_of(groups).endswith("Runs: 2 for each curve, but c: 1.")
  assert chart_lib.said_of(groups[1:]).endswith("Runs: b: 2, c: 1.")
  halves = [("z", [*pair, run(seed=2)]), *groups]
  assert chart_lib.said_of(halves).endswith("Runs: 2 for each curve, but z: 3, c: 1.")


def test_runs_without_measurements_are_refused_with_the_key(tmp_path):
  bare = run()._replace(metrics=[{"step": 1, "train_error": 1.0, "epoch": 0.1}])
  for name in ("fa2", "fa3", "fa5"):
    with pytest.raises(UsageError, match=r"alignment\.every_steps=N"):
      alignment.CHARTS[name]([bare])
  with pytest.raises(UsageError, match="no learning curves"):
    alignment.learning([bare])
  with pytest.raises(UsageError, match="holds neither runs"):
    figures.visualize(tmp_path, "fa3")
  assert not list(tmp_path.iterdir())


def test_figure_1_sends_back_what_the_equations_say(tmp_path):
  for name, b in (("bp", ways_back.W), ("fa", ways_back.B0), ("fa_usf", np.sign(ways_back.W))):
    found, sent = ways_back.sent(learning_rules.RULES[name])
    np.testing.assert_array_equal(found, b)
    np.testing.assert_allclose(sent, ways_back.D @ b.T, rtol=1e-6)
  assert all(p.exists() for p in figures.visualize(tmp_path / "new", "fa1"))


def test_figure_5_says_when_signs_are_frozen():
  signs = [{"step": 1, "epoch": 0.1, "sign_differs/conv1": 0.1, "sign_ever_differed/conv1": 0.2}]
  free, early, late = (
    run(rule, rule__freeze_at=share)._replace(metrics=signs)
    for rule, share in (("fa_usf", 0.3), ("fa_usf_sn_ei", 0.05), ("fa_usf_sn_ei", 0.125))
  )
  assert "freeze" not in alignment.signs([free]).caption
  assert "freeze the signs after 5 % of training. " in alignment.signs([free, early]).caption
  both = alignment.signs([late, early])
  assert "after 5 or 12.5 % of training, in brackets" in both.caption
