"""What is committed is what the records say: tables, and the figures in the README and in docs/."""

import shutil
from pathlib import Path

import pytest

from experiments import bench, bench_configs, bench_report, pool
from experiments.bench_configs import PAIRS
from experiments.workloads import Images

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results" / "bench"


@pytest.mark.parametrize(
    ("command", "table"),
    [
        (["table"], "table.md"),
        (["final", "--arms", "baseline", "recommended"], "detached/table.md"),
        (["screen", "--workloads", "mlp-sgd", "vit-adamw"], "screen/table.md"),
        (["jumps", "--workloads", "mlp-sgd"], "jumps/table.md"),
        (["guard"], "guard/table.md"),
        (["statistics", "--workloads", "resnet"], "statistics/table.md"),
        (["storage", "--workloads", "mlp-sgd", "vit-adamw"], "storage/table.md"),
    ],
)
def test_committed_tables_are_what_the_records_say(command, table, tmp_path, monkeypatch):
    def missing(*_):
        raise AssertionError("a record of a committed table is missing")

    folder = RESULTS / "detached" if table.startswith("detached") else RESULTS
    shutil.copytree(folder / "records", tmp_path / "records")
    shutil.copy(folder / "tuned.json", tmp_path)
    monkeypatch.setattr(pool, "train_all", missing)
    for draw in ("summary_picture", "pair_picture", "jumps_picture"):
        monkeypatch.setattr(bench_report, draw, lambda *_: None)
    monkeypatch.setattr(Images, "load", lambda self: None)
    assert bench.main([*command, "--out", str(tmp_path)]) == 0
    written = tmp_path / (RESULTS / table).relative_to(folder)
    assert written.read_text() == (RESULTS / table).read_text()


def test_the_readme_says_what_the_records_say():
    scored = bench.read_scores(RESULTS)
    brief = bench_report.brief(scored, bench_configs.README_ARMS)
    assert brief in (ROOT / "README.md").read_text()


def rows(text):
    """Of a page of tables, the cells of each line, under the heading that it stands below."""
    heading = ""
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("| "):
            yield heading, [cell.strip() for cell in line.strip("|").split("|")]


def test_the_docs_say_what_was_saved_with_detached_snapshots():
    """Epochs, seconds and their saving, pair by pair, and the median and the worst of them."""
    docs = (ROOT / "docs" / "what-works.md").read_text()
    table = (RESULTS / "detached" / "table.md").read_text()
    cells = {(pair, row[0]): row for pair, row in rows(table)}
    for pair in PAIRS:
        before, after = cells[pair, "baseline"], cells[pair, "recommended"]
        line = [f"`{pair}`", before[2], after[2], before[3], after[3], after[4]]
        assert f"| {' | '.join(line)} |" in docs
    (median,), (worst,) = (
        [
            row[3]
            for pair, row in rows(table)
            if pair == "Over all pairs" and row[0] == arm and row[2] == kind
        ][-1:]
        for arm, kind in (("recommended", "median"), ("", "worst"))
    )
    assert f"{median} in the median pair, {worst} in the worst." in docs
    assert (
        f"[{median} of the time in the median pair and {worst} in the worst]"
        in (ROOT / "README.md").read_text()
    )
