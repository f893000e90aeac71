"""What results/ shows is made from its records."""

import pathlib

from allcnn_jax.analysis import results

ROOT = pathlib.Path(__file__).parents[1]


def test_every_table_is_the_one_that_its_records_make():
  made = results.generated(ROOT)
  assert {"README.md", "results/README.md"} <= {str(p.relative_to(ROOT)) for p in made}
  for path, text in made.items():
    assert path.read_text() == text, f"{path}: run python -m allcnn_jax.analysis.results"
