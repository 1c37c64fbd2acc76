"""The paper's AlexNet, 57 M weights, at its tuned learning rate, within minutes on one GPU.

Fashion-MNIST at 128 x 128, SGD. Two learning rates are tried first; the better one, by final train loss, is
the baseline, and all else runs at it: the default, the baseline on longer schedules, `released`. Then the
same on the next seed. A run is started if it fits into what is left of the minutes, by the epochs and the
start-ups seen so far; what was left out is said. What is recorded below --out is not trained again.

Writes a line for each run to OUT/records.jsonl, a table (OUT/table.md) and a picture (OUT/curves.png).

examples:
  on a GPU:
    python -m experiments.large --minutes 9
  the same with a narrow network on smaller images, in minutes on two CPU cores:
    python -m experiments.large --scale small --seeds 0
"""

import contextlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from experiments import command
from experiments.data import datasets
from experiments.data.datasets import Dataset
from experiments.training import devices, records
from experiments.training.arms import BASELINE, Arm, preset
from experiments.training.records import Run
from experiments.training.trainer import Config
from experiments.training.workloads import Resized
from experiments.tuned import tables
from experiments.views import metrics, report


class Scale(NamedTuple):
    """How large everything is.

    Attributes:
      rates: the learning rates that are tried.
      epochs: of all arms.
      longer: the baseline's other schedules.
    """

    workload: Resized
    rates: tuple[float, float]
    epochs: int
    longer: tuple[int, ...]

    def config(self, arm: Arm, rate: float, seed: int, epochs: int | None = None) -> Config:
        """One run."""
        return Config(self.workload, arm, "sgd", rate, "cosine", epochs or self.epochs, seed)

    def of_seed(self, rate: float, seed: int) -> list[Config]:
        """All runs of a seed, those worth most first."""
        first = [self.config(preset(name), rate, seed) for name in (BASELINE, "recommended")]
        longer = [self.config(preset(BASELINE), rate, seed, epochs) for epochs in self.longer]
        return [*first, *longer, self.config(preset("released"), rate, seed)]


SCALES: Mapping[str, Scale] = {
    "full": Scale(
        Resized(
            workload="alexnet",
            data="fashion_mnist",
            examples=60_000,
            validation_examples=10_000,
            image_size=128,
            batch_size=256,
            size=(("width", 1.0),),
        ),
        rates=(0.05, 0.1),
        epochs=36,
        longer=(48, 60),
    ),
    "small": Scale(
        Resized(
            workload="alexnet",
            data="fashion_mnist",
            examples=4_096,
            validation_examples=1_000,
            image_size=64,
            batch_size=32,
            size=(("width", 1 / 8),),
        ),
        rates=(0.05, 0.1),
        epochs=12,
        longer=(16, 20),
    ),
}


class Budget:
    """What is left of a command's time, and what a run will take by the slowest seen.

    Args:
      seconds: from now.

    Attributes:
      start_up, epoch: seconds of a run before its first epoch, compilation included, and of an epoch with
        its evaluation; 0 until a run is trained, so that the first is tried whatever it takes.
    """

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds
        self.start_up = self.epoch = 0.0

    def fits(self, epochs: int) -> bool:
        """Whether a run would end in time."""
        return time.monotonic() + self.start_up + epochs * self.epoch <= self.end

    def train(self, folder: Path, config: Config, dataset: Dataset, spread: devices.Devices) -> bool:
        """Trains a run unless it is recorded or does not fit, and breaks it off when the time is up; whether it is recorded."""
        if not self.fits(config.epochs):
            return False
        times = [time.monotonic()]
        with contextlib.closing(records.record(folder, config, dataset, spread)) as epochs:
            for _ in epochs:
                times.append(time.monotonic())
                if times[-1] > self.end and len(times) <= config.epochs:
                    return False
        epoch = (times[-1] - times[1]) / max(config.epochs - 1, 1)
        self.epoch = max(self.epoch, epoch)
        self.start_up = max(self.start_up, times[1] - times[0] - epoch)
        return True


def parser() -> command.Parser:
    """The command line."""
    p = command.Parser("experiments.large", __doc__)
    p.add_argument("--scale", choices=SCALES, default="full", help="the paper's size, or a narrow network")
    p.add_argument("--minutes", type=command.whole(1), default=9, help="that the command may take")
    p.add_argument("--seeds", type=command.seed, nargs="+", default=[0, 100, 200], help="in this order")
    datasets.add_arguments(p)
    p.add_argument("--out", type=command.output, default="runs/large", help="folder for the results")
    return p


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    args = parser().parse_args(argv)
    budget, scale, folder = Budget(60 * args.minutes), SCALES[args.scale], args.out / "records"
    spread, console = devices.devices(), Console(highlight=False, soft_wrap=True)
    devices.check_batch(scale.workload.batch_size, spread)
    dataset = scale.workload.load(datasets.Where(args.data_dir, args.download))

    def loss(config: Config) -> float:
        return metrics.last(records.read(folder, config), "train_loss")

    def trained(config: Config) -> bool:
        told = f"seed {config.seed}, {config.rule}, {config.epochs} epochs at rate {config.learning_rate:g}"
        known = records.read(folder, config).complete
        done = known or budget.train(folder, config, dataset, spread)
        ended = (
            f"final train loss {loss(config):.4g}" if done else "left out, it does not fit into the minutes"
        )
        console.print(f"{told}: {ended}{' (recorded before)' if known else ''}")
        return done

    tried = [scale.config(preset(BASELINE), rate, args.seeds[0]) for rate in scale.rates]
    if [trained(config) for config in tried] != [True, True]:
        raise ValueError(
            "`--minutes` must be enough for both learning rates that are tried, since all else runs at the better "
            f"one; what is recorded is not trained again. Got --minutes {args.minutes}."
        )
    best = min(tried, key=lambda config: loss(config) if math.isfinite(loss(config)) else math.inf)
    console.print(f"The baseline's rate is {best.learning_rate:g}.")
    planned = [c for seed in dict.fromkeys(args.seeds) for c in scale.of_seed(best.learning_rate, seed)]
    done = [config for config in planned if config == best or trained(config)]
    arms: dict[str, dict[float, list[Run]]] = {}
    for run in (records.read(folder, config) for config in done):
        arms.setdefault(run.rule, {}).setdefault(run.fields["epochs"] / scale.epochs, []).append(run)
    records.pack(folder)
    table = _table(arms)
    (args.out / "table.md").write_text(table)
    tables.pair_picture(arms, args.out / "curves.png", f"AlexNet at learning rate {best.learning_rate:g}")
    console.print(table)
    if budget.epoch:
        console.print(
            f"An epoch took {budget.epoch:.2f} s with its evaluation, a start {budget.start_up:.0f} s."
        )
    console.print(f"Look at {args.out / 'table.md'} and {args.out / 'curves.png'}")
    return 0


def _table(arms: Mapping[str, metrics.Runs]) -> str:
    """Every arm at full length against the baseline of its seed, and the baseline's other lengths, as Markdown."""
    header = (
        "arm",
        "epochs",
        "seeds",
        "effective schedule",
        "per second",
        "final train loss",
        "accuracy",
        "points",
    )
    lines: list[tuple[str, ...]] = [(*header, "overhead")]
    for arm, share, runs in ((arm, share, runs) for arm, of in arms.items() for share, runs in of.items()):
        baselines = arms[BASELINE]
        of_length, of_seconds = (
            metrics.effective_schedule(runs, baselines, per_second=timed) for timed in (False, True)
        )
        pairs = metrics.paired(runs, baselines[1.0])
        loss, accuracy = (
            np.mean([metrics.last(run, field) for run in runs])
            for field in ("train_loss", "validation_accuracy")
        )
        plain = arm == BASELINE
        lines.append(
            (
                arm,
                str(runs[0].fields["epochs"]),
                str(len(runs)),
                "" if plain else tables.interval(of_length),
                "" if plain else tables.interval(of_seconds),
                f"{loss:.4g}",
                f"{accuracy:.2%}",
                "" if plain and share == 1 else tables.points(*metrics.accuracy_difference(pairs)),
                f"{np.mean([metrics.overhead(run) for run in runs]):.1%}",
            )
        )
    return report.markdown(lines)


if __name__ == "__main__":
    sys.exit(main())
