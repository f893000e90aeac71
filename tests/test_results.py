"""What results/ shows is made from its records."""

import pathlib

from test_tables import run

from allcnn_jax.analysis import results

ROOT = pathlib.Path(__file__).parents[1]


def test_every_table_is_the_one_that_its_records_make():
  made = results.generated(ROOT)
  assert {"README.md", "results/README.md"} <= {str(p.relative_to(ROOT)) for p in made}
  for path, text in made.items():
    assert path.read_text() == text, f"{path}: run python -m allcnn_jax.analysis.results"


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
