"""What results/ shows is made from its records."""

import pytest

from allcnn_jax.analysis import results
from allcnn_jax.errors import UsageError
from tests.made import of_all_cnn_c as run
from tests.processes import ROOT


def test_every_table_is_the_one_that_its_records_make():
  made = results.generated(ROOT)
  assert {"README.md", "results/README.md"} <= {str(p.relative_to(ROOT)) for p in made}
  for path, text in made.items():
    assert path.read_text() == text, f"{path}: run python -m allcnn_jax.analysis.results"


def test_a_folder_that_is_not_the_project_is_refused(tmp_path):
  with pytest.raises(UsageError, match=r"no README\.md"):
    results.generated(tmp_path)


def test_a_run_that_several_sweeps_have_counts_once():
  twice = [run(8.0, seed=0), run(9.0, seed=1), run(8.0, seed=0, log__every_steps=7)]
  twice.insert(0, run(20.0, seed=1, step=390))  # interrupted
  (line,) = [x for x in results._head(twice).splitlines() if "±" in x]
  assert line.endswith("| 8.50 % ± 0.71 | 2 |")


def test_only_a_run_that_repeats_the_experiment_stands_at_the_head():
  empty = results._head([])
  assert results._head([run(dataset__augment="shift_flip", train__epochs=8)]) == empty
  repeated = results._head([run(dataset__augment="shift_flip")])
  assert [x != y for x, y in zip(repeated.splitlines(), empty.splitlines())].count(True) == 1


def test_two_ways_to_repeat_an_experiment_are_told_apart_by_what_tells_them_apart():
  like = {"dataset__augment": "shift_flip"}
  runs = [run(8.0, **like), run(9.0, optimizer__clip_norm=0.0, **like)]
  found = results._head([*runs, run(7.0, model__width=0.5, **like)])
  assert (
    "| All-CNN-C (optimizer.clip_norm 1.0), CIFAR-10, flips and shifts | 7.25 % | 8.00 % | 1 |"
    in found
  )
  assert (
    "| All-CNN-C (optimizer.clip_norm 0.0), CIFAR-10, flips and shifts | 7.25 % | 9.00 % | 1 |"
    in found
  )


def test_the_head_has_no_column_for_the_rate_and_one_for_the_type():
  like = {"dataset__augment": "shift_flip"}
  runs = [
    run(8.0, **like),
    run(9.0, optimizer__learning_rate=0.01, **like),
    run(9.5, train__dtype="bfloat16", **like),
  ]
  names = [x for x in results._head(runs).splitlines() if " % | 1 |" in x or "bfloat16" in x]
  assert [x.partition("), ")[0] for x in names] == [
    "| All-CNN-C (optimizer.learning_rate 0.05",
    "| All-CNN-C (optimizer.learning_rate 0.01",
    "| All-CNN-C (optimizer.learning_rate 0.05",
  ]


def test_of_the_fast_recipe_the_most_often_run_stands_at_the_head_then_the_shortest_and_the_best():
  muon = {"optimizer__name": "muon", "dataset__augment": "shift_flip"}
  long, short = {"train__epochs": 24, **muon}, {"train__epochs": 16, **muon}
  runs = [run(9.5, **long), run(9.0, optimizer__learning_rate=0.03, **long)]
  assert _fast(runs) == ["| 24 | 9.00 % | 1 |"]
  runs += [run(9.7, seed=1, **long)]
  assert _fast(runs) == ["| 24 | 9.60 % ± 0.14 | 2 |"]  # nobody reached 9.08 so often
  runs += [run(8.0, seed=i, **long, optimizer__learning_rate=0.01) for i in (0, 1)]
  assert _fast(runs) == ["| 24 | 8.00 % ± 0.00 | 2 |"]
  runs += [run(9.0, seed=i, **short) for i in (0, 1)]
  runs += [run(9.2, seed=i, **muon, train__epochs=8) for i in (0, 1)]  # not there yet
  assert _fast(runs) == ["| 16 | 9.00 % ± 0.00 | 2 |", "| 24 | 8.00 % ± 0.00 | 2 |"]


def test_a_wider_net_is_none_of_the_fast_recipe_s():
  muon = {"optimizer__name": "muon", "dataset__augment": "shift_flip", "train__epochs": 16}
  runs = [
    run(9.0, **muon),
    run(8.0, model__width=2.0, **muon),
    run(8.0, model__head="dense", **muon),
  ]
  assert _fast(runs) == ["| 16 | 9.00 % | 1 |"]


def test_the_fast_recipe_s_longest_on_cifar100_is_told_beside_the_paper_s():
  """Not its best: that would be a choice."""
  muon = {"optimizer__name": "muon", "dataset__augment": "shift_flip", "train__epochs": 20}
  runs = [run(9.0, **muon)]
  assert "CIFAR-100, flips and shifts, for which" not in results._head(runs)
  runs += [
    run(e, dataset__name="cifar100", **muon | n)
    for e, n in ((34.0, {}), (34.5, {"train__epochs": 24}), (33.0, {"train__epochs": 16}))
  ]
  head = results._head(runs)
  assert "it has 34.50 % after 24 epochs (n=1; " in head
  assert "; the paper has 33.71 % after 350." in head
  assert _fast([x for x in runs if x.config.dataset.name == "cifar100"]) == []


def _fast(runs):
  lines = [
    x for x in results._head(runs).splitlines() if x.startswith(("| 16 |", "| 24 |", "| 8 |"))
  ]
  return [x[: x.rindex("|", 0, -1) + 1] for x in lines]  # without their times


def test_the_head_says_what_was_not_computed_in_float32():
  runs = [run(8.0, dataset__augment="shift_flip", train__dtype=x) for x in ("float32", "bfloat16")]
  assert "| 8.00 % | 1 |" in results._head(runs[:1])
  assert "| 8.00 % in bfloat16 | 1 |" in results._head(runs[1:])
