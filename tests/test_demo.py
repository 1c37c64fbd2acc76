"""`make demo`: what it trains, what it tells beforehand, and that it needs no more than its extra installs."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cifar_alexnet, demo


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
    assert demo.main(["--out", str(tmp_path)]) == 0
    (args,) = trained
    assert (args.out, args.rules, args.fresh) == (tmp_path, ["recommended", "released"], True)


@pytest.mark.parametrize(
    ("share", "told"), [(1, "about 40 seconds"), (0.9, "about 50 seconds"), (0.5, "about 80 seconds")]
)
def test_a_slower_machine_is_told_more(share: float, told: str) -> None:
    assert demo.told(share * demo.ROUNDS) == told


def test_the_machine_is_timed_for_as_long_as_asked() -> None:
    first, second = (demo.rounds(0.2) for _ in range(2))
    assert 0.1 < first / second < 10
    assert first > 1


@pytest.mark.slow
def test_it_needs_only_what_its_extra_installs() -> None:
    """The other experiments' packages are large, and the demo does without: here they cannot be imported."""
    absent = ("grain", "tensorboardX", "tensorflow_datasets", "array_record", "nbformat")
    program = f"import sys; sys.modules |= dict.fromkeys({absent})\nfrom experiments import demo\nfrom experiments.data import datasets; datasets.load('digits')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(demo.__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
