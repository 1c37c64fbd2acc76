"""A regression with PDT and a guard, trained by one, two and four processes: how far they are apart.

The program of `tests/one_process.py`, data parallel and FSDP, 40 steps with jumps, one of
them taken back. Its rate is low: at the bench's tuned ones training is chaotic, a millionth
more of each weight is 13% more loss after 20 steps, and no two roundings stay together.
Writes, to JSON, the largest differences of losses and weights: among the processes of a
run, and from the run of one process.

python -m benchmarks.processes
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import measure
from experiments import command
from tests.test_sharding import train_together


def apart(one: Any, other: Any) -> dict[str, float]:
    """The largest relative difference of a loss, and the difference of all weights, relative to their length."""
    losses = [np.array(run["losses"]) for run in (one, other)]
    weights = [np.concatenate([run["weights"][n] for n in sorted(run["weights"])]) for run in (one, other)]
    return {
        "loss": float(np.max(np.abs(losses[0] / losses[1] - 1))),
        "weights": float(np.linalg.norm(weights[0] - weights[1]) / np.linalg.norm(weights[1])),
    }


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    args = measure.parser("processes", __doc__).parse_args(argv)
    (alone,) = train_together(1)
    figures: dict[str, Any] = {"epochs": len(alone[0]["losses"])}
    for processes in (2, 4):
        first, *others = train_together(processes)
        for layout, together, single, rest in zip(
            ("data parallel", "fsdp", "fsdp, delivered in parts"),
            first,
            alone,
            zip(*others, strict=True),
            strict=True,
        ):
            figures[f"{processes} processes, {layout}"] = {
                "from_each_other": max((apart(x, together) for x in rest), key=lambda d: max(d.values())),
                "from_one_process": apart(together, single),
                "jumps": sum(predicted for _, predicted, _ in together["reports"]),
                "taken_back": sum(back for *_, back in together["reports"]),
                "same_decisions": [r[1:] for r in together["reports"]] == [r[1:] for r in single["reports"]],
            }
    measure.write(args.out, "processes", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
