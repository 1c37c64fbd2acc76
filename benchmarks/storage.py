"""What a prediction loses when the window is kept as bfloat16 differences, or in host memory.

Trains pairs at their tuned rates for some epochs, without jumps, and predicts at every
epoch from the second half on: from float32 snapshots, from bfloat16
differences, and from host memory. For each pair and preset: the length of the
difference of the two displacements over the length of the float32 one, on
weights that both accept; the accepted shares; and the share of weights that
only one of them accepts.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import pdt_optax
from benchmarks import measure
from experiments import command
from experiments.training import trainer
from experiments.training.arms import BASELINE, preset
from experiments.training.trainer import Config
from experiments.tuned import setups
from experiments.tuned.views import tuned_rates

RESULTS = measure.RESULTS.parents[1] / "experiments" / "results"


def trajectory(pair: setups.Pair, epochs: int) -> list[Any]:
    """The weights after each epoch of the baseline at its tuned rate, the initial ones first."""
    rate = tuned_rates([RESULTS], [pair])[pair.name][BASELINE]
    config = Config(pair.workload, preset(BASELINE), pair.optimizer, rate, "constant", epochs, seed=0)
    program, workload = trainer._program.__wrapped__(config), pair.workload
    state = program.init(jax.random.key(0))
    inputs, targets = map(jnp.asarray, workload.load().train)
    weights = [jax.tree.map(np.asarray, state.params)]
    for epoch in track(range(epochs), description=pair.name):
        key = jax.random.key(1 + epoch)
        order = jax.random.permutation(key, len(targets))[: workload.epoch_steps * workload.batch_size]
        for i, index in enumerate(order.reshape(workload.epoch_steps, -1)):
            state = program.step(state, inputs, targets, index, jax.random.fold_in(key, i))
        weights.append(jax.tree.map(np.asarray, state.params))
    return weights


def predicted(weights: Sequence[Any], settings: dict[str, Any]) -> tuple[np.ndarray, float]:
    """The displacement of every weight, in float64, and the accepted share of a prediction at the end."""
    predictor = pdt_optax.Predictor(**settings)
    first, *rest = (jax.tree.map(jnp.asarray, w) for w in weights)
    history = predictor.init(first)
    for params in rest[:-1]:
        _, history, _ = predictor.end_epoch(params, history)
    new, _, report = predictor.end_epoch(rest[-1], history)
    assert report.predicted
    moved = jax.tree.map(lambda n, p: np.asarray(n, np.float64) - np.asarray(p, np.float64), new, rest[-1])
    return np.concatenate([x.ravel() for x in jax.tree.leaves(moved)]), float(report.accepted_share)


def figures(weights: Sequence[Any], settings: dict[str, Any]) -> dict[str, float]:
    """Means over predictions from the middle of the run to its end."""
    rows = []
    for last in range(len(weights) // 2, len(weights)):
        part = weights[last - settings["window"] - 1 : last + 1]
        whole, share = predicted(part, settings)
        rounded, rounded_share = predicted(part, settings | {"snapshot_dtype": "bfloat16"})
        hosted, _ = predicted(part, settings | {"snapshot_device": "host"})
        both = (whole != 0) & (rounded != 0)
        rows.append(
            {
                "displacement_error": np.linalg.norm((rounded - whole)[both]) / np.linalg.norm(whole[both]),
                "accepted_share": share,
                "accepted_share_bfloat16": rounded_share,
                "accepted_by_one_only": np.mean((whole != 0) != (rounded != 0)),
                "host_differs": np.mean(hosted != whole),
            }
        )
    return {name: float(f"{np.mean([r[name] for r in rows]):.3g}") for name in rows[0]}


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    p = measure.parser("storage", __doc__)
    pairs = ["mlp-sgd", "resnet-adamw", "vit-adamw"]
    p.add_argument("--pairs", nargs="+", choices=list(setups.PAIRS), default=pairs)
    p.add_argument(
        "--epochs",
        type=command.whole(11),
        default=16,
        help="so many that there is a window before the second half",
    )
    args = p.parse_args(argv)
    results: dict[str, Any] = {}
    for name in args.pairs:
        weights = trajectory(setups.PAIRS[name], args.epochs)
        results[name] = {
            n: figures(weights, dict(pdt_optax.presets.named(n))) for n in ("paper", "released", "drift")
        }
        print(name, results[name], flush=True)
    measure.write(args.out, "storage", {"epochs": args.epochs, "pairs": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
