"""What `Recorder.add` costs at an epoch's end, beside the boundary that it records.

Ten million weights in 16 leaves: a boundary alone, and with `add` of its report,
and of 100 weights of every leaf as well. Writes their times and ratios to JSON.

python -m benchmarks.recorder
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import pdt_optax
from benchmarks import measure
from experiments import command

LEAVES, SIZE = 16, 625_000


class Epochs:
    """An epoch's end and then, if there is a recorder, its record."""

    def __init__(self, recorder: pdt_optax.Recorder | None):
        self.predictor = pdt_optax.Predictor()
        keys = jax.random.split(jax.random.key(0), LEAVES)
        self.params: Any = {f"layer{i}": jax.random.normal(k, (SIZE,)) for i, k in enumerate(keys)}
        self.history = self.predictor.init(self.params)
        self.recorder = recorder

    def __call__(self) -> Any:
        self.params, self.history, report = self.predictor.end_epoch(
            self.params, self.history, value=1.0, donate=True
        )
        if self.recorder is not None:
            self.recorder.add(report, self.history)
        return self.params, report


class Add:
    """`add` alone, of the same report and state."""

    def __init__(self, recorder: pdt_optax.Recorder):
        epochs = Epochs(None)
        _, self.report = jax.block_until_ready(epochs())
        self.history, self.recorder = epochs.history, recorder

    def __call__(self) -> Any:
        self.recorder.add(self.report, self.history)
        return jnp.zeros(())


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    p = measure.parser("recorder", __doc__)
    p.set_defaults(repeats=40)
    args = p.parse_args(argv)

    def recorders() -> dict[str, Any]:
        return {
            "report": pdt_optax.Recorder(),
            "report_and_weights": pdt_optax.Recorder(weights_per_leaf=100),
        }

    calls: dict[str, Any] = {"boundary": Epochs(None)}
    calls |= {f"boundary_and_{name}": Epochs(recorder) for name, recorder in recorders().items()}
    calls |= {f"add_{name}": Add(recorder) for name, recorder in recorders().items()}
    seconds = measure.interleaved(calls, args.repeats)
    figures: dict[str, Any] = {name: measure.summary(s) for name, s in seconds.items()}
    for name in recorders():
        figures[f"ratio_{name}"] = measure.median_ratio(seconds[f"boundary_and_{name}"], seconds["boundary"])
    measure.write(args.out, "recorder", {"weights": LEAVES * SIZE, "leaves": LEAVES, **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
