"""What `pdt_optax.inspect` knows of tuned tasks: how plain training moves on each pair, and what the default was worth.

python -m experiments.tuned.expected            # trains what is not recorded (half an hour), writes pdt_optax/inspect/tuned.json
python -m experiments.tuned.expected --write    # trains nothing
"""

import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import pdt_optax
from experiments import command
from experiments.training import checkpoints, devices, records, sweep
from experiments.training.arms import BASELINE, Predictive
from experiments.training.trainer import Config
from experiments.tuned import setups
from experiments.tuned.views import pairs_of, scores, tuned_rates
from pdt_optax.inspect._measure import settled

RESULTS = Path(__file__).parents[1] / "results"
FILE = Path(pdt_optax.__file__).parent / "inspect" / "tuned.json"

SEEDS = setups.REPORTED_SEEDS[:3]

# The default, looking on: this is plain training, whose path is measured.
LOOKING_ON = Predictive("looking-on", (*pdt_optax.presets.recommended.items(), ("dry_run", True)))


def configs() -> Iterator[tuple[str, float, Config]]:
    """Of each pair and seed: the pair's name, the seconds that it takes, and its run."""
    pairs = pairs_of(None)
    rates = tuned_rates((RESULTS,), pairs)
    for seed in SEEDS:
        for pair in pairs:
            rate = rates[pair.name][BASELINE]
            run = pair.workload, LOOKING_ON, pair.optimizer, rate, pair.schedule, pair.epochs, seed
            yield pair.name, pair.seconds, Config(*run)


def folder(results: Path, pair: str) -> Path:
    """Of a pair's records."""
    return results / "tuned" / "motion" / pair


def _over(runs: Sequence[records.Run], name: str) -> list[float]:
    """Of each run the mean of a number, over the motions that the report takes it over, too."""
    return [settled(np.array([epoch.get(name, math.nan) for epoch in run.epochs])) for run in runs]


def known(results: Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """What the package is to ship, from committed records alone.

    Raises:
      RefusedError: if a run is not recorded.
    """
    scored, pairs = scores("tuned", RESULTS), []
    for pair in setups.PAIRS:
        planned = [config for name, _, config in configs() if name == pair]
        runs = [records.read(folder(results, pair), config) for config in planned]
        if not all(run.complete for run in runs):
            raise command.RefusedError(f"Plain training of {pair} must be recorded first: leave out --write.")
        effective = scored[pair]["recommended"].effective
        of_path = {name: statistics.mean(_over(runs, name)) for name in ("persistence", "alignment")}
        numbers = of_path | {"effective": effective.value, "low": effective.low, "high": effective.high}
        pairs.append({"name": pair} | {name: round(number, 4) for name, number in numbers.items()})
    return {"pairs": pairs}


def written(found: Mapping[str, Sequence[Any]]) -> str:
    """As it stands in the file, a line a pair."""
    lines = ",\n".join(f"    {json.dumps(pair)}" for pair in found["pairs"])
    return f'{{\n  "pairs": [\n{lines}\n  ]\n}}\n'


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    parser = command.Parser("experiments.tuned.expected", __doc__)
    parser.add_argument("--write", action="store_true", help="train nothing, write what is recorded")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    sweep.add_arguments(parser)
    checkpoints.add_arguments(parser, every=10)
    devices.add_arguments(parser)
    args = parser.parse_args(argv)
    if not args.write:
        plan = [sweep.Planned(folder(args.out, p), c, s) for p, s, c in configs()]
        sweep.train(plan, sweep.how(args, devices.start(args)), Console())
        records.pack_all(args.out / "tuned" / "motion")
    FILE.write_text(written(known(args.out)))
    print(f"Written: {FILE}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
