"""AlexNet on real digits, with pdt_optax and without: a table and pictures in a minute, on two CPU cores.

Before it starts it tells how long it will take, from a second's work on this machine.
"""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from experiments import cifar_alexnet, command
from experiments.training import records
from experiments.training.arms import BASELINE
from experiments.views import metrics, report

# At the learning rate that was the best for the baseline; nothing is saved, since nothing is lost in a minute.
RUNS = (
    *("--data", "digits", "--width", "0.125", "--image-size", "64", "--batch-size", "64"),
    *("--optimizer", "adamw", "--learning-rate", "1e-3", "--epochs", "20", "--seeds", "0"),
    *("--rules", "recommended", "--fresh", "--save-every", "0"),
)
# On two idle cores: of the runs, nothing compiled before; and `rounds` there.
SECONDS, ROUNDS = 30.0, 600.0


def rounds(seconds: float = 1.0) -> float:
    """How often this machine does, in that time, a little of what compiling and training do, per second."""
    square = jnp.ones((512, 512))
    product = jax.jit(lambda x: x @ x)
    product(square).block_until_ready()
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        sum(range(100_000))
        product(square).block_until_ready()
        count += 1
    return count / passed


def told(speed: float) -> str:
    """How long the runs take on a machine of so many rounds a second."""
    seconds = SECONDS * ROUNDS / speed
    if seconds < 90:
        return f"about {10 * math.ceil(seconds / 10)} seconds"
    return f"about {math.ceil(seconds / 60)} minutes"


def shown(out: Path) -> str:
    """Draws what was trained, and says in a sentence what came of it."""
    runs = {run.rule: run for run in records.read_all(out)}
    without, with_it = runs[BASELINE], runs["recommended"]
    before, after = (metrics.last(run, "train_loss") for run in (without, with_it))
    crossed = metrics.to_best(with_it, without, "train_loss").epochs
    epochs = len(without.epochs)
    sooner = f"; pdt_optax had reached that after {crossed:.0f}" if math.isfinite(crossed) else ""
    said = f"After {epochs} epochs the train loss is {after:.2g} with pdt_optax and {before:.2g} without{sooner}."
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for run, label, color in ((without, "AdamW alone", "0.5"), (with_it, "with pdt_optax", "C0")):
        report.curve(axes, [run], "train_loss", label, color)
        axes.annotate(
            label,
            (epochs, metrics.last(run, "train_loss")),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=color,
        )
    axes.set(xlabel="epoch", ylabel="train loss", yscale="log", xlim=(0, 1.3 * epochs))
    axes.set_title(f"{epochs} epochs end at {after:.2g} with pdt_optax, at {before:.2g} without")
    axes.grid(alpha=0.3)
    figure.savefig(out / "demo.png", dpi=120)
    return f"{said} Look at {out / 'demo.png'}."


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    p = command.Parser("experiments.demo", __doc__)
    p.add_argument("--out", type=command.output, default="runs/demo", help="folder for the results")
    args = p.parse_args(argv)
    print(f"This takes {told(rounds())} on this machine, less once it is compiled.", flush=True)
    if code := cifar_alexnet.main([*RUNS, "--out", str(args.out)]):
        return code
    print(shown(Path(args.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
