"""Commands leave the checkout as it is: without --out they write below runs/, and draw from what is committed."""

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure, report
from experiments import command, run
from experiments.training import records, sweep
from tests.test_command_lines import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_default_output_is_below_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def parse_args(self: argparse.ArgumentParser, *_: Any) -> Any:
        found.extend(a.default for a in self._actions if "--out" in a.option_strings)
        raise command.RefusedError("no")

    monkeypatch.setattr(command.Parser, "parse_args", parse_args)
    assert importlib.import_module(name).main([]) == 2
    assert [Path(default).parts[0] for default in found] == ["runs"]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Another working directory, in which nothing is recorded, and no run may be trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep.pool, "train_all", lambda tasks, *_: pytest.fail(f"{len(tasks)} runs to train"))
    return tmp_path


def test_what_is_committed_is_drawn_into_runs(elsewhere: Path) -> None:
    assert run.main(["fig7", "table3", "--scale", "small"]) == 0
    assert run.main(["guard", "--workloads", "mlp-sgd"]) == 0
    assert report.main([]) == 0
    results = ROOT / "experiments" / "results"
    for drawn, committed, heading in (
        ("small/table3/table.md", results / "small" / "table3" / "table.md", "#"),
        ("tuned/guard/table.md", results / "tuned" / "guard" / "table.md", "## mlp-sgd"),
        ("benchmarks/tables.md", measure.RESULTS / "tables.md", "|"),
    ):
        text = (elsewhere / "runs" / drawn).read_text()
        assert text[text.index(heading) :].strip() in committed.read_text()
    assert (elsewhere / "runs" / "small" / "fig7" / "table.md").exists()
    assert not any(elsewhere.rglob("*.jsonl"))


def test_runs_of_a_row_come_from_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their seconds are compared: the user's own if all are there, else the committed if those are all there."""
    own, committed, absent = tmp_path / "own", tmp_path / "committed", tmp_path / "absent"
    there = {own: {"a"}, committed: {"a", "b"}, absent: set()}
    monkeypatch.setattr(
        records, "read", lambda folder, config: argparse.Namespace(complete=config in there[folder])
    )

    def place(folders: list[Path], configs: str) -> Path:
        return records.place(folders, list(configs))  # pyright: ignore[reportArgumentType]

    assert place([own, committed], "a") == own
    assert place([own, committed], "ab") == committed
    assert place([own, absent], "ab") == own
    assert place([own, committed], "abc") == own


def test_runs_trained_anew_or_into_a_folder_by_name_take_nothing_from_the_checkout() -> None:
    p = run.parser()
    assert list(run._results(p.parse_args(["fig4"]))) == [run.OUT, run.COMMITTED]
    assert list(run._results(p.parse_args(["fig4", "--fresh"]))) == [run.OUT]
    assert list(run._results(p.parse_args(["fig4", "--out", "x"]))) == [Path("x")]
