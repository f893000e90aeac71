"""Tables from records made by hand."""

import pytest

from allcnn_jax import config as config_lib
from allcnn_jax.analysis import printed, report, tables
from allcnn_jax.errors import UsageError
from allcnn_jax.nets import architectures
from configs import cifar10_large, imagenet
from tests.made import of_all_cnn_c as run


def line(runs, name, table="table3"):
  (found,) = [x for x in tables.make(runs, table).lines if x.name == name]
  return found


def test_the_mean_and_the_deviation_are_over_seeds_by_hand():
  found = line([run(8.0), run(10.0, seed=1), run(12.0, seed=2)], "All-CNN-C")
  assert (found.error, found.deviation, found.n) == (10.0, 2.0, 3)
  assert found.difference == pytest.approx(10.0 - 9.08)
  assert (found.epoch, found.rate, found.printed) == (350, 0.05, 9.08)
  assert found.seconds == pytest.approx(350 / 2)
  assert found.epoch_seconds == pytest.approx(1 / 2)


def test_every_run_counts_and_its_seed_is_told():
  runs = [run(7.0), run(8.0), run(9.0, seed=1), run(status="dead", seed=2)]
  found = line(runs, "All-CNN-C")
  assert (found.n, found.seeds, found.error, found.dead) == (3, (0, 0, 1), 8.0, 1)
  made = tables.make(runs, "table4")
  said = [row[report.grid(made)[0].index("n")] for row in report.grid(made)]
  assert "3, seeds: 2" in said
  made = tables.make(runs[1:], "table4")
  assert "2" in [row[report.grid(made)[0].index("n")] for row in report.grid(made)]


def test_a_table_that_there_is_not_is_one_line():
  with pytest.raises(UsageError, match=r"Unknown table 'table5'.*Did you mean 'table"):
    tables.make([run(8.0)], "table5")


def test_two_runs_of_one_config_stand_in_one_line():
  runs = [run(8.0)]
  runs.append(run(9.0, seed=7, dataset__data_dir="/x", log__every_steps=3, stream__workers=4))
  assert line(runs, "All-CNN-C").n == 2


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("model.width", 0.5),
    ("model.init", "lecun_normal"),
    ("optimizer.learning_rate", 0.1),
    ("optimizer.clip_norm", 2.0),
    ("train.epochs", 2),
    ("train.batch_size", 64),
    ("evaluate.every_steps", 5),
    ("dataset.name", "digits"),
    ("dataset.augment", "shift_flip"),
  ],
)
def test_a_run_of_another_config_never_slips_in(key, value):
  runs = [run(8.0), run(9.0, seed=1), run(50.0, seed=2, **{key.replace(".", "__"): value})]
  found = [x for x in tables.make(runs, "table3").lines if x.n]
  assert sorted((x.n, x.error) for x in found) == [(1, 50.0), (2, 8.5)]


def test_dead_diverged_and_unfinished_runs_are_counted_apart():
  runs = [
    run(8.0),
    run(90.0, "dead", seed=1),
    run(0.0, "diverged", seed=2, step=400),  # before it was ever evaluated
    run(20.0, seed=3, step=390),
    run(20.0, seed=4)._replace(evaluation={}),
  ]
  found = line(runs, "All-CNN-C")
  assert (found.n, found.dead, found.diverged, found.not_ended) == (1, 1, 1, 2)
  assert (found.error, found.deviation) == (8.0, None)
  text = report.markdown(tables.make(runs, "table3"))
  assert "| 1 | 1 dead, 1 diverged, 2 not ended |" in text
  assert "90.0" not in text


@pytest.mark.parametrize(
  "change", [{"split": "train"}, {"dataset": "mnist"}, {"views": 12}, {"step": 390}]
)
def test_an_error_on_other_images_or_at_another_step_is_not_the_run_s(change):
  runs = [run(8.0, seed=i) for i in (0, 1)]
  runs[1].evaluation.update(change)
  found = line(runs, "All-CNN-C")
  assert (found.n, found.otherwise, found.error) == (1, 1, 8.0)


def test_a_damaged_record_does_not_make_a_training_error_the_run_s():
  found = run()
  found.metrics.insert(0, {"step": 3, "split": "train", "damaged": "record 3"})
  found.evaluation["split"] = "train"
  assert line([found], "All-CNN-C").n == 0


def test_a_difference_is_given_only_where_the_paper_s_experiment_was_repeated():
  whole, narrow = line([run()], "All-CNN-C"), line([run(model__width=0.1)], "All-CNN-C")
  assert whole.unlike == ()
  assert whole.difference is not None
  assert narrow.unlike == ("model.width 0.1",)
  assert narrow.difference is None
  assert narrow.printed == 9.08
  assert narrow.parameters < whole.parameters / 50


@pytest.mark.parametrize(
  "keys",
  [
    {"optimizer__schedule": "triangle"},
    {"optimizer__drops": ()},
    {"optimizer__momentum": 0.5},
    {"optimizer__nesterov": True},
    {"optimizer__weight_decay": 0.0},
    {"model__dropout": (0.0, 0.0)},
    {"model__dropout": (0.2, 0.4)},
    {"model__final_relu": False},
    {"rule__start_from": "elsewhere"},
    {"optimizer__learning_rate": 0.002},  # none of the four that it searched
  ],
)
def test_another_protocol_is_not_the_paper_s_experiment(keys):
  (said,) = line([run(**keys)], "All-CNN-C").unlike
  (key,) = keys
  assert said.startswith(key.replace("__", "."))


def test_each_rate_of_the_paper_s_four_is_its_experiment():
  for rate in (0.25, 0.1, 0.05, 0.01):
    assert line([run(optimizer__learning_rate=rate)], "All-CNN-C").unlike == ()


def test_no_dropout_given_is_the_paper_s():
  assert line([run(model__dropout=())], "All-CNN-C").unlike == ()


def test_another_optimizer_stands_in_no_row_of_the_paper_s():
  config = {k.replace(".", "__"): v for k, v in config_lib.leaves(cifar10_large.get_config())}
  made = tables.make([run(**config | {"optimizer__name": "adam"})], "table4")
  (found,) = [x for x in made.lines if x.n]
  assert found.printed is None


def test_a_record_without_its_machine_is_said_to_have_none():
  assert tables.make([run(machine={"command": "python launch.py"})], "table3").machines == [
    "not kept"
  ]


def test_the_configs_of_the_other_rows_repeat_theirs():
  def unlike(config):
    values = dict(config_lib.leaves(config))
    (found,) = [
      x
      for x in tables.make([run(**{k.replace(".", "__"): v for k, v in values.items()})]).lines
      if x.n
    ]
    return found.printed, found.unlike

  assert unlike(cifar10_large.get_config()) == (4.41, ())
  assert unlike(imagenet.get_config()) == (41.2, ())
  printed_error, keys = unlike(imagenet.get_config("large_batch"))
  assert printed_error == 41.2
  assert {k.split()[0] for k in keys} >= {"train.batch_size", "optimizer.learning_rate"}


@pytest.mark.parametrize("quiet", [{}, {"log__every_steps": 7}, {"dataset__data_dir": "/x"}])
def test_the_rate_is_said_with_those_that_it_was_chosen_from(quiet):
  trials = [
    run(20.0 + i, optimizer__learning_rate=r, dataset__validation=100)
    for i, r in enumerate((0.1, 0.05))
  ]
  other = run(1.0, optimizer__learning_rate=0.01, dataset__validation=100, model__name="model_a")
  unlike = [
    run(2.0, optimizer__learning_rate=0.25, dataset__validation=100, **{key: value})
    for key, value in (("model__width", 0.5), ("train__epochs", 3))
  ]
  made = tables.make([run(**quiet), *trials, other, *unlike], "table3")
  (found,) = [x for x in made.lines if x.n]
  assert (found.rate, found.rates) == (0.05, (0.1, 0.05))
  assert found.error == 10.0  # not an error on held-out images
  assert {(x.rate, x.error) for x in made.trials} == {
    *((0.1, 20.0), (0.05, 21.0), (0.01, 1.0), (0.25, 2.0))
  }


def test_a_printed_row_stays_when_nobody_measured_it():
  made = tables.make([], "table4")
  assert [x.printed for x in made.lines if x.name == "All-CNN-C"] == [9.08, 7.25, 33.71]
  assert [x.printed for x in made.lines if "ImageNet" in x.data] == [40.7, 41.2]
  assert all(x.error is None and x.n == 0 for x in made.lines)
  text = report.markdown(made)
  assert "| Maxout † | CIFAR-10 | 11.68 |  |  |  |" in text
  assert "| All-CNN-C | CIFAR-10 | 9.08 |  |" in text


def test_a_measured_row_says_its_data_in_the_paper_s_words_if_it_has_them():
  measured = [run(), run(seed=1, dataset__augment="shift"), run(seed=2, dataset__name="digits")]
  lines = [x for x in tables.make(measured, "table3").lines if x.n]
  assert {x.data: x.printed for x in lines} == {
    "CIFAR-10": 9.08,
    "cifar10, shift": 9.08,
    "digits": None,  # the paper's error is not of those
  }


def test_our_parameters_are_those_printed_but_for_the_paper_s_own_slip():
  """Model C and Strided-CNN-C: the paper's 1.3 M does not fit its own table."""
  made = tables.make([], "table3")
  for x in made.lines:
    said = float(x.printed_parameters.removesuffix(" M"))
    slip = x.name in ("Model C", "Strided-CNN-C")
    assert (abs(x.parameters / 1e6 - said) < 0.12) != slip, x.name
  assert [x.name for x in made.lines if x.name.startswith("All")] == [
    "All-CNN-A",
    "All-CNN-B",
    "All-CNN-C",
  ]


def test_every_row_of_ours_is_a_network_of_ours():
  for table in printed.TABLES.values():
    for row in table.rows:
      if row.keys is not None:
        assert row.keys["model.name"] in architectures.NAMES
        assert {*row.keys, *row.like} <= set(config_lib.KEYS)


@pytest.mark.parametrize(
  ("table", "keys"),
  [
    ("table3", {"model__name": "strided_cnn_b"}),
    ("table4", {"dataset__augment": "shift_flip"}),
    ("pooling", {"model__name": "model_c", "model__pool": "average"}),
    ("fa_table1", {"model__name": "fa_mnist", "model__head": "dense", "dataset__name": "mnist"}),
    ("fa_table1", {"rule__name": "fa"}),
    ("cifar10_fast", {"optimizer__name": "muon", "dataset__augment": "shift_flip"}),
    ("", {"dataset__name": "digits"}),
  ],
)
def test_the_table_that_fits_is_found(table, keys):
  assert tables.fitting([run(**keys)]) == table


def test_what_each_line_was_measured_with_is_told_once():
  here = {
    "hardware": {"device": "H", "devices": 8, "cores": 4},
    "versions": {"jax": "1"},
    "commit": "abc",
  }
  tuned = here | {"environment": {"XLA_FLAGS": "--fast"}}
  made = tables.make(
    [
      run(machine=here),
      run(seed=1),
      *(run(seed=i, machine=x, model__name="model_a") for i, x in enumerate((here, tuned))),
    ],
    "table3",
  )
  plain = "8 x H, 4 cores, float32, jax 1"
  assert sorted(made.machines) == [
    f"{plain}, XLA_FLAGS=--fast; commit abc",
    f"{plain}; commit abc",
    "not kept",
  ]
  assert next(x.measured_with for x in made.lines if x.n == 2) == tuple(made.machines[:2])


def test_cells_stay_in_their_columns():
  cells = report.grid(tables.make([run(8.0), run(9.0, seed=1)], "table3"))
  assert len({len(row) for row in cells}) == 1
  row = dict(zip(cells[0], cells[-1]))
  assert (row["network"], row["n"], row["error %"], row["standard deviation"]) == (
    "All-CNN-C",
    "2",
    "8.50",
    "0.71",
  )
