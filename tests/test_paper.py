"""What is committed of the paper's tables, and what the docs say of them, is what the records say."""

from pathlib import Path

import pytest

from experiments import report, views
from experiments.figures import comparison
from experiments.page import claims_table
from experiments.views import VIEWS

RESULTS = Path(__file__).parent.parent / "experiments" / "results"


def finds(name):
    return views.find(VIEWS[name], "small", None, None, RESULTS)


@pytest.mark.parametrize("name", [name for name in VIEWS if name.startswith("table")])
def test_all_runs_are_there_and_the_table_is_theirs(name, tmp_path):
    planned = VIEWS[name].configs("small")
    found = finds(name)
    assert sum(len(row.runs) for row in found.values()) == len({config.key for _, _, config in planned})
    written = (RESULTS / "small" / name / "table.md").read_text()
    assert report.markdown(comparison(name, found)) in written
    for verdict in VIEWS[name].render(name, found, tmp_path).verdicts:
        assert f"- {verdict}\n" in written


def test_the_docs_say_what_was_found():
    docs = Path("docs/paper.md").read_text()
    assert claims_table(RESULTS / "small", list(VIEWS)) in docs
