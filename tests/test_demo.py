"""`make demo`: what it trains, what it tells beforehand, and that it needs no more than its extra installs."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cifar_alexnet, demo
from experiments.training import records


def test_it_tells_how_long_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trained = []

    def train(argv: list[str]) -> int:
        assert (
            capsys.readouterr().out
            == "This takes about 2 minutes on this machine, less once it is compiled.\n"
        )
        trained.append(cifar_alexnet.parser().parse_args(argv))
        return 0

    monkeypatch.setattr(demo, "rounds", lambda: demo.ROUNDS / 3)
    monkeypatch.setattr(cifar_alexnet, "main", train)
    monkeypatch.setattr(demo, "shown", str)
    assert demo.main(["--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}\n"
    (args,) = trained
    assert (args.out, args.rules, args.fresh) == (tmp_path, ["recommended"], True)


@pytest.mark.parametrize(
    ("share", "told"), [(1, "about 30 seconds"), (0.9, "about 40 seconds"), (0.5, "about 60 seconds")]
)
def test_a_slower_machine_is_told_more(share: float, told: str) -> None:
    assert demo.told(share * demo.ROUNDS) == told


def test_the_machine_is_timed_for_as_long_as_asked() -> None:
    first, second = (demo.rounds(0.2) for _ in range(2))
    assert 0.1 < first / second < 10
    assert first > 1


def test_what_was_trained_is_drawn_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(rule: str, losses: list[float]) -> records.Run:
        epochs = [
            {"epoch": i, "train_loss": x, "train_seconds": 1.0, "pdt_seconds": 0.0}
            for i, x in enumerate(losses, 1)
        ]
        return records.Run({"rule": rule, "seed": 0, "epochs": 3}, epochs)

    runs = [ended("baseline", [3.0, 2.0, 1.0]), ended("recommended", [3.0, 1.0, 0.5])]
    monkeypatch.setattr(records, "read_all", lambda folder: runs)
    said = demo.shown(tmp_path)
    assert said.startswith(
        "After 3 epochs the train loss is 0.5 with pdt_optax and 1 without; pdt_optax had reached that after 2. "
    )
    assert (tmp_path / "demo.png").stat().st_size > 10_000


@pytest.mark.slow
def test_it_needs_only_what_its_extra_installs() -> None:
    """The other experiments' packages are large, and the demo does without: here they cannot be imported."""
    absent = ("grain", "tensorboardX", "tensorflow_datasets", "array_record", "nbformat")
    program = f"import sys; sys.modules |= dict.fromkeys({absent})\nfrom experiments import demo\nfrom experiments.data import datasets; datasets.load('digits')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(demo.__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
