"""What is committed is what the records say: tables, and the figures and verdicts in the README and in docs/."""

import json
import re
import runpy
import statistics
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks.report
from benchmarks import measure
from experiments import command, run
from experiments.paper.views import VIEWS
from experiments.training import records
from experiments.tuned import setups, tables
from experiments.tuned import views as tuned
from experiments.views import page
from experiments.views.view import Asked, View, find, plan

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"


# Tables.


def drawn(view: View, asked: Asked, folder: Path) -> str:
    """The table of a view, all of whose runs must be there."""
    status = run._status(plan(view, asked))
    count, of = re.findall(r"\d+", status)
    assert count == of
    page.write_view(view, find(view, asked), folder, "small", status)
    return (folder / "table.md").read_text()


@pytest.mark.parametrize("name", tuned.VIEWS)
def test_tables_at_tuned_rates(name, tmp_path, monkeypatch):
    for draw in ("summary_picture", "pair_picture", "jumps_picture", "worth_picture"):
        monkeypatch.setattr(tables, draw, lambda *_: None)
    asked = Asked((RESULTS,))
    view = tuned.VIEWS[name]
    written = asked.results[0] / view.folder("small") / "table.md"
    assert drawn(view, asked, tmp_path) == written.read_text()


@pytest.mark.parametrize("name", [name for name in VIEWS if name.startswith("table")])
def test_tables_of_the_paper(name, tmp_path):
    written = RESULTS / "small" / name / "table.md"
    assert drawn(VIEWS[name], Asked((RESULTS,)), tmp_path) == written.read_text()


def test_tables_of_the_benchmarks():
    tables = benchmarks.report.tables(benchmarks.report.figures(measure.RESULTS))
    assert (measure.RESULTS / "tables.md").read_text() == "\n".join(tables.values())


# Figures in the text.


@pytest.fixture(scope="module")
def figures() -> Any:
    return runpy.run_path(str(ROOT / "docs" / "figures.py"))


def test_no_figure_is_out_of_date_or_without_an_owner(figures, capsys):
    assert figures["main"](["--check"]) == 0, capsys.readouterr()


def test_figures_are_written_where_they_stand(figures):
    stated = {"a.b": "1.74", "a.table": "| x |\n| --- |\n| 1 |\n"}
    page = "It takes <!--a.b-->2<!--/--> s:\n\n- so:\n\n  <!--a.table-->old<!--/-->\n"
    written = (
        "It takes <!--a.b-->1.74<!--/--> s:\n\n- so:\n\n"
        "  <!--a.table-->\n\n  | x |\n  | --- |\n  | 1 |\n\n  <!--/-->\n"
    )
    assert figures["outdated"](page, stated) == ["a.b", "a.table"]
    assert figures["filled"](page, stated) == written
    assert figures["outdated"](written, stated) == []


@pytest.mark.parametrize(
    "page", ["a <!--a.b-->1", "a <!--/-->", "a <!--a.b-->1 <!--a.b-->2<!--/-->", "- <!--a.b-->1<!--/--> s"]
)
def test_misplaced_comments_are_refused(page, figures):
    with pytest.raises(command.RefusedError, match=r"must stand between|may begin a line"):
        figures["filled"](page, {"a.b": "1"})


# Verdicts in the text.


def read(name: str) -> dict[str, Any]:
    return json.loads((measure.RESULTS / f"{name}.json").read_text())


def test_verdicts_on_what_works():
    scores = tuned.scores("tuned", RESULTS)
    default = {pair: scored["recommended"] for pair, scored in scores.items()}
    worth = {pair: score.effective.value for pair, score in default.items()}
    assert list(default) == list(setups.PAIRS)
    assert min(worth.values()) > 1
    assert sum(score.diverged for score in default.values()) == 0
    # Beyond the longest baseline, and extrapolated by less than a step.
    assert [pair for pair, value in worth.items() if value > 2] == ["mlp-sgd"]
    assert default["mlp-sgd"].effective.bound == 0
    assert set(sorted(worth, key=lambda pair: -worth[pair])[:3]) == {
        "mlp-sgd",
        "mlp-lamb",
        "autoencoder-adam",
    }
    # Peers, by the final train loss, and where they evaluate other weights, by theirs.
    ahead = {
        arm.name: [
            pair
            for pair, of in scores.items()
            if arm.name in of and of[arm.name].effective.value > worth[pair]
        ]
        for arm in setups.PEERS
    }
    assert ahead["snoo"] == []
    assert ahead["linear"] == ["char_gru-clipped_adam"]
    assert min(of["linear"].effective.value for of in scores.values()) > 1
    assert len(ahead["ademamix"]) == 2
    probe = {
        name: [of[name].effective_probe.value for of in scores.values()]
        for name in ("recommended", "schedule-free", "trapezoid", "snoo")
    }
    assert sum(a > b for a, b in zip(probe["schedule-free"], probe["recommended"], strict=True)) == 7
    assert min(probe["recommended"]) > max(min(of) for name, of in probe.items() if name != "recommended")
    median = {name: statistics.median(of) for name, of in probe.items()}
    assert sorted(median, key=lambda name: median[name]) == [
        "snoo",
        "trapezoid",
        "recommended",
        "schedule-free",
    ]
    assert min(probe["trapezoid"]) < 1
    around = tuned.scores("around", RESULTS)
    for of in around.values():
        for arm in setups.AROUND:
            assert (
                arm.name not in of
                or of[arm.name].effective_probe.value < of[arm.of.name].effective_probe.value
            )
    lookahead, ema = (
        [of[name].effective_probe.value for of in scores.values()] for name in ("lookahead", "ema")
    )
    assert sorted(value > 1 for value in lookahead) == [False] * 3 + [True] * 6
    assert all(abs(value - 1) < 0.015 for value in ema)


def test_verdicts_on_jumps_guard_and_storage():
    jumped = tuned.scores("jumps", RESULTS)["mlp-sgd"]
    late = [jumped[setups.JUMPS[start, 8].name].loss for start in (16, 24)]
    assert late == pytest.approx([late[0]] * 2, rel=0.01)
    guarded = tuned.scores("guard", RESULTS)
    losses = [scored["runaway-guarded"].loss / scored["baseline"].loss for scored in guarded.values()]
    assert max(losses) <= 1.05
    assert sum(loss < 1 for loss in losses) == 5
    stored = tuned.scores("storage", RESULTS)
    for pair in ("mlp-sgd", "vit-adamw"):
        assert len({stored[pair][arm.name].loss_epochs for arm in setups.STORAGE[1:]}) == 1


@pytest.mark.parametrize(
    ("table", "rule", "verdict"),
    [
        ("table1", "recommended", "holds (all 5 rows)"),
        ("table2", "recommended", "holds in 6 of 7 rows"),
        ("table4", "recommended", "holds in 1 of 2 rows"),
        ("table6", "recommended-guarded", "holds (all 4 rows)"),
    ],
)
def test_verdicts_on_the_paper(table, rule, verdict):
    assert f"\n- {rule}: {verdict}; " in (RESULTS / "small" / table / "table.md").read_text()


def test_verdicts_on_the_papers_rule():
    """What makes it fail: growth that is extrapolated. Without, and under a guard, no run diverges."""
    failed = {}
    for path in sorted((RESULTS / "small" / "records").glob("alexnet-*.jsonl")):
        for trained in records.read_all(path.with_suffix("")):
            if trained.rule.startswith("paper"):
                lost = not np.isfinite(trained.epochs[-1]["train_loss"])
                failed[trained.rule] = failed.get(trained.rule, 0) + lost
                made = [epoch for epoch in trained.epochs if epoch["predicted"]]
                assert not lost or len(made) <= 5
    assert failed["paper-held"] == failed["paper-guarded"] == 0
    assert failed["paper-current"] == 7
    assert failed["paper-scheduled"] == failed["paper-adaptive"] == 11


def test_verdicts_on_a_whole_run_on_a_gpu():
    runs = records.read_all(RESULTS / "h100")
    assert {run.rule: len(run.epochs) for run in runs} == {"baseline": 60, "released": 60, "drift": 60}
    # With PDT and without.
    assert len({f"{statistics.median(e['train_seconds'] for e in run.epochs):.3f}" for run in runs}) == 1


def test_verdicts_on_speed():
    """The goal of 1.8, met at the smallest size alone and missed by little; and that of 13 GB for 632 million weights."""
    trees = {name: tree for name, tree in read("boundary")["trees"].items() if not name.startswith("small")}
    smallest, *others = (tree["boundary_to_references"] for tree in trees.values())
    assert smallest <= 1.8 < min(others)
    assert max(others) < 2
    assert read("huge")["peak_resident_gb"] <= 13


def test_verdicts_on_scaling():
    for count, of in read("scaling")["devices"].items():
        assert of["replicated drift"]["all_reduce_bytes"] == []
        assert {f["other_collectives"] for f in of.values()} == {0}
        if int(count) <= 8:
            assert {(f["displacement"], f["masks_agree"]) for f in of.values()} == {(0.0, 1.0)}
    runs = [run for name, run in read("processes").items() if "processes" in name]
    assert len(runs) == 6
    assert {apart for run in runs for apart in run["from_each_other"].values()} == {0.0}
    assert {(run["taken_back"], run["same_decisions"]) for run in runs} == {(1, True)}
    assert sorted(run["jumps"] for run in runs) == [3, 3, 3, 3, 4, 4]


def test_verdicts_on_reliability():
    kills, mutants = read("kills"), read("mutants")
    assert kills["survived"] == kills["killed"] == len(kills["kills"])
    reasons = {reason for module in mutants["modules"].values() for reason in module["not_noticed"]}
    assert reasons == mutants["reasons"].keys()
    modules = mutants["modules"]
    for module in modules.values():
        listed = sum(map(len, module["not_noticed"].values()))
        assert module["mutants"] == module["by_tests"] + module["by_types"] + listed
    made, *noticed = (sum(m[of] for m in modules.values()) for of in ("mutants", "by_tests", "by_types"))
    assert sum(noticed) >= 0.94 * made
    only = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]["only_mutate"]
    assert {Path(x).stem for x in only} == modules.keys()
