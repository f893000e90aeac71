"""The command `report`, on real runs and on their records."""

import json

import pytest

from allcnn_jax.analysis import figures, report, tables
from allcnn_jax.errors import UsageError
from allcnn_jax.training import evaluate, loop, sweep
from tests.made import of_rule as record
from tests.runs import evaluation


@pytest.fixture
def two(tiny, tmp_path):
  """A folder with two runs of one config."""
  tiny.train.steps, tiny.model.width = 4, 0.05
  for seed in (0, 1):
    tiny.seed = seed
    folder = tmp_path / "runs" / f"run{seed}"
    loop.train(tiny, folder)
    values = evaluation(folder)
    evaluate.write(folder, values | {"status": "ok", "error": 20.0 + 4 * seed})
  return tmp_path / "runs"


def test_two_runs_are_one_line_in_markdown_json_and_html(two, tmp_path):
  paths = {p.name for p in report.report(two)}
  assert {"TABLE.md", "report.json", "report.html", "curves.png"} <= paths
  made = json.loads((two / "report.json").read_text())
  (line,) = made["lines"]
  assert (line["n"], line["error"]) == (2, 22.0)
  assert line["deviation"] == pytest.approx(8**0.5)
  page = (two / "report.html").read_text()
  assert "<table>" in page
  assert "strided_cnn_a" in page
  assert 'src="data:image/png;base64,' in page
  assert "http" not in page

  # Kept elsewhere as records, the same table comes out without the runs.
  kept = tmp_path / "kept"
  report.report(two, kept)
  first = (kept / "TABLE.md").read_text()
  assert first == (two / "TABLE.md").read_text()
  assert {p.name for p in kept.glob("run*.json")} == {"run0.json", "run1.json"}
  report.report(kept)
  assert (kept / "TABLE.md").read_text() == first
  with pytest.raises(UsageError, match="holds records already"):
    report.report(kept, tmp_path / "elsewhere")
  with pytest.raises(UsageError, match=r"TABLE\.md cannot be written"):
    report.report(two, kept / "TABLE.md")

  # The folder itself by another way is no other place.
  report.report(two, tmp_path / "kept" / ".." / "runs")
  assert not list(two.glob("run*.json"))
  (two / "run1").rename(two / "report")
  with pytest.raises(UsageError, match=r"its record would be report\.json"):
    report.report(two, tmp_path / "elsewhere")
  assert not (tmp_path / "elsewhere").exists()


def test_figures_of_the_runs_are_on_the_page(two):
  figures.visualize(two / "run0", "1")
  report.report(two)
  assert 'id="run0/figures/figure1"' in (two / "report.html").read_text()


def test_a_sweep_s_table_is_the_one_that_it_names(two):
  (two / sweep.FILE).write_text('{"table": "table4", "rates": [], "units": {}}')
  report.report(two)
  title = tables.make([], "table4").title
  assert (two / "TABLE.md").read_text().startswith(f"# {title}\n")


def test_names_are_no_markup():
  made = tables.make([record("bp", dataset__name="npz:/<b>.npz")])._replace(broken=["<i>: no"])
  text = report._html(made)
  assert "<b>" not in text
  assert "<i>" not in text
  assert "&lt;b&gt;" in text


def test_numbers_have_three_digits_and_no_exponent():
  found = [report.plain(x) for x in (None, 0.12345, 999.4, 999.7, 1234.5)]
  assert found == ["", "0.123", "999", "1,000", "1,234"]


def test_broken_runs_are_told_and_kept(two, tmp_path):
  (two / "run2.broken").write_text("RuntimeError: no memory\n")
  (two / sweep.FILE).write_text('{"table": "", "rates": [], "units": {}}')
  report.report(two)
  report.report(two, tmp_path / "kept")
  report.report(tmp_path / "kept")
  said = "Broken runs: run2: RuntimeError: no memory."
  for folder in (two, tmp_path / "kept"):
    assert said in (folder / "TABLE.md").read_text()
    assert said in (folder / "report.html").read_text()
  (two / "run2.broken").unlink()
  report.report(two, tmp_path / "kept")
  assert "Broken" not in (tmp_path / "kept" / "TABLE.md").read_text()


def test_runs_on_held_out_images_alone_have_one_table():
  made = tables.make([record("bp", dataset__validation=10)])
  assert sum(line.startswith("| ---") for line in report.markdown(made).splitlines()) == 1
  assert report._html(made).count("<table>") == 1


def test_no_runs_are_refused_and_nothing_is_written(tmp_path):
  with pytest.raises(UsageError, match="holds neither runs nor their records"):
    report.report(tmp_path / "none")
  assert not any(tmp_path.iterdir())


def test_curves_at_several_rates_are_told_apart():
  runs = [record(optimizer__learning_rate=rate) for rate in (0.03, 0.05)]
  (chart,) = report.curves(runs)
  for panel in chart.panels:
    assert [curve.label for curve in panel.curves] == [
      "optimizer.learning_rate 0.03",
      "optimizer.learning_rate 0.05",
    ]
  assert chart.title == "Learning curves of all_cnn_c, fa"


def test_networks_that_differ_stand_in_the_labels():
  (chart,) = report.curves([record(), record(model__name="model_c"), record(seed=1)])
  for panel in chart.panels:
    assert [curve.label for curve in panel.curves] == ["model_c, fa", "all_cnn_c, fa"]
  assert chart.title == "Learning curves"
  assert "Runs: model_c, fa: 1, all_cnn_c, fa: 2." in chart.caption


def test_a_curve_that_is_the_beginning_of_another_is_left_out():
  def epochs(**given):
    (chart,) = report.curves([record(train__epochs=n, **given) for n in (2, 5)])
    return [len(panel.curves) for panel in chart.panels]

  assert epochs() == epochs(dataset__validation=10) == [1, 1]
  assert epochs(optimizer__schedule="triangle") == epochs(optimizer__warmup=0.1) == [2, 2]


def test_curves_leave_dead_runs_out_and_split_many_configs_over_panels():
  runs = [record(seed=i, scale=1.0 + i, model__width=0.1 * (1 + i % 8)) for i in range(8)]
  dead = record(seed=99, scale=50.0, model__width=0.1)
  dead.evaluation["status"] = "dead"
  trial = record(dataset__validation=10)
  chart, held_out = report.curves([*runs, dead, trial])
  assert [len(panel.curves) for panel in held_out.panels] == [1, 1]
  assert [len(panel.curves) for panel in chart.panels] == [4, 4, 4, 4]
  narrow = chart.panels[0].curves[0]
  assert narrow.y.max() == runs[0].series("train_error")[1][-1]
