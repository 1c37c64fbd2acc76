"""What is committed of the paper's tables, and what the docs say of them, is what the records say."""

import json
import re
import statistics
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


def verdict(name, rule):
    said = json.loads((RESULTS / "small" / name / "view.json").read_text())["verdicts"]
    return next(v.removeprefix(f"{rule}: ") for v in said if v.startswith(f"{rule}: "))


def saved(name, rule):
    low, high = re.findall(r"time saved (-?\d+) to (-?\d+)%", verdict(name, rule))[0]
    return f"{low} to {high}%"


def test_the_readme_says_what_was_found():
    readme = " ".join(Path("README.md").read_text().split())
    assert verdict("table1", "recommended").startswith("holds (all 5 rows)")
    assert verdict("table2", "recommended").startswith("holds in 6 of 7 rows")
    assert verdict("table6", "recommended-guarded").startswith("holds (all 4 rows)")
    assert f"{saved('table1', 'recommended')} sooner on five architectures" in readme
    assert f"and {saved('table2', 'recommended')} sooner under six of seven optimizers" in readme
    assert f"all of four rates save {saved('table6', 'recommended-guarded')}" in readme


def test_the_docs_say_what_was_found():
    docs = Path("docs/paper.md").read_text()
    assert claims_table(RESULTS / "small", list(VIEWS)) in docs


def test_the_docs_say_how_long_a_run_took():
    parts = ("train_seconds", "pdt_seconds", "compile_seconds")
    medians = []
    for folder in (RESULTS / "small" / "records").iterdir():
        runs = [
            [json.loads(line) for line in path.read_text().splitlines()][1:]
            for path in folder.glob("*.jsonl")
        ]
        medians.append(statistics.median(sum(epoch[part] for epoch in run for part in parts) for run in runs))
    assert (
        f"the longest median of a setup's runs is {max(medians):.1f} s" in Path("docs/paper.md").read_text()
    )
