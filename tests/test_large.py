"""`experiments.large`: which runs it starts, at which rate, within which time, and what it finds of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import large
from experiments.training import records
from experiments.training.devices import ONE_DEVICE
from experiments.training.trainer import Config
from experiments.training.workloads import Resized
from experiments.views import metrics

TINY = large.Scale(
    Resized(
        workload="fcnet",
        data="digits",
        examples=256,
        validation_examples=100,
        image_size=8,
        batch_size=32,
        size=(("depth", 2), ("pixels", 192), ("width", 1 / 32)),
    ),
    rates=(0.02, 0.2),
    epochs=4,
    longer=(6, 8),
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(large.SCALES, "small", TINY)  # pyright: ignore[reportArgumentType]


def run(out: Path, *arguments: str) -> int:
    return large.main(["--scale", "small", "--out", str(out), *arguments])


def test_the_better_rate_then_all_else_at_it(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, "--seeds", "0", "7") == 0
    told = capsys.readouterr().out
    done = [line.split(":")[0] for line in told.splitlines() if line.startswith("seed ")]
    rest = ("recommended, 4", "baseline, 6", "baseline, 8", "released, 4")
    assert done == [
        *(f"seed 0, baseline, 4 epochs at rate {rate}" for rate in (0.02, 0.2)),
        *(f"seed 0, {run} epochs at rate 0.2" for run in rest),
        *(f"seed 7, {run} epochs at rate 0.2" for run in ("baseline, 4", *rest)),
    ]
    runs = [records.read(tmp_path / "records", c) for seed in (0, 7) for c in TINY.of_seed(0.2, seed)]
    slow = records.read(tmp_path / "records", TINY.config(large.preset("baseline"), 0.02, 0))
    assert all(r.complete for r in runs)
    assert metrics.last(slow, "train_loss") > metrics.last(runs[0], "train_loss")
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert len(lines) == len(done)
    assert {json.loads(line)["config"]["learning_rate"] for line in lines} == {0.02, 0.2}

    baselines = {
        epochs / 4: [r for r in runs if (r.rule, r.fields["epochs"]) == ("baseline", epochs)]
        for epochs in (4, 6, 8)
    }
    table = [line.strip("| ").split(" | ") for line in (tmp_path / "table.md").read_text().splitlines()]
    by_arm = {(line[0], line[1]): dict(zip(table[0], line, strict=False)) for line in table[2:]}
    assert [*by_arm] == [
        ("baseline", "4"),
        ("baseline", "6"),
        ("baseline", "8"),
        ("recommended", "4"),
        ("released", "4"),
    ]
    for arm in ("recommended", "released"):
        of = [r for r in runs if r.rule == arm]
        value = metrics.effective_schedule(of, baselines)
        assert by_arm[arm, "4"]["effective schedule"].lstrip("≤≥ ").startswith(f"{value.value:.2f}")
        assert by_arm[arm, "4"]["seeds"] == "2"
    assert (tmp_path / "curves.png").stat().st_size > 10_000

    written = (tmp_path / "table.md").read_bytes()
    assert run(tmp_path, "--seeds", "0", "7") == 0  # and nothing is trained again
    assert capsys.readouterr().out.count("(recorded before)") == len(done)
    assert (tmp_path / "table.md").read_bytes() == written


class Clock:
    """A clock that runs only while runs are trained."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start_up: float, epoch: float):
        self.now, self.start_up, self.epoch = 100.0, start_up, epoch
        monkeypatch.setattr(large.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(records, "record", self.record)

    def record(self, folder: Path, config: Config, *_: Any) -> Iterator[dict[str, int]]:
        del folder
        self.now += self.start_up
        for epoch in range(config.epochs):
            self.now += self.epoch
            yield {"epoch": epoch + 1}


def trained(budget: large.Budget, epochs: int) -> bool:
    config = TINY.config(large.preset("baseline"), 0.1, 0, epochs)
    return budget.train(Path(), config, Any, ONE_DEVICE)  # pyright: ignore[reportArgumentType]


def test_a_run_is_started_if_it_fits_by_those_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, start_up=5, epoch=2)
    budget = large.Budget(40)
    assert trained(budget, 4)
    assert (clock.now, budget.start_up, budget.epoch) == (113, 5, 2)
    assert [budget.fits(epochs) for epochs in (11, 12)] == [True, False]  # 27 seconds are left
    assert not trained(budget, 12)
    assert clock.now == 113
    assert trained(budget, 11)
    assert not trained(budget, 1)


def test_a_run_is_broken_off_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, start_up=5, epoch=2)
    budget = large.Budget(10)
    assert not trained(budget, 9)  # the first, of which nothing is known
    assert clock.now == 111
    budget = large.Budget(10)
    assert trained(budget, 3)  # which is over before it can be broken off
    assert clock.now == 122


def test_what_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(large.Budget, "fits", lambda self, epochs: epochs <= 4)
    assert run(tmp_path, "--seeds", "0") == 0
    told = capsys.readouterr().out
    assert [line.split(":")[0] for line in told.splitlines() if "left out" in line] == [
        f"seed 0, baseline, {epochs} epochs at rate 0.2" for epochs in (6, 8)
    ]
    assert "| recommended | 4 | 1 | - | - |" in told  # of one length no schedule is known


def test_too_little_time_for_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(large.Budget, "fits", lambda self, epochs: False)
    assert run(tmp_path, "--minutes", "1") == 2
    said = capsys.readouterr()
    assert said.out.count("left out") == 2
    assert said.err.startswith("error: `--minutes` must be enough for both learning rates")
