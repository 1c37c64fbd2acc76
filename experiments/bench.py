"""PDT at tuned learning rates: workloads x optimizers x arms x seeds, to records, tables and pictures.

  tune    the baseline's learning rate for each pair, on seeds 1 to 3: the best
          mean final train loss, never at the edge of the grid (it is extended)
  screen  many arms on a few pairs, on a tuning seed; its tables go to OUT/screen
  jumps   one jump in a run, at several epochs and of several lengths, on a tuning
          seed; its table and picture go to OUT/jumps
  guard   a rule made to fail, alone and under `rollback`, on a tuning seed; its
          tables go to OUT/guard
  statistics  BatchNorm's statistics after a jump, kept or estimated anew, on the
          tuning seeds (--workloads resnet); its tables go to OUT/statistics
  storage the window as bfloat16 differences and in host memory, on final's seeds;
          its tables go to OUT/storage
  final   the reported arms on seeds that nothing was tuned on, and the baseline
          at 60, 75, 133 and 200% of the schedule, which the effective schedule
          is read from
  table   final's tables and pictures from what is recorded; trains nothing
  list    the names of pairs and arms

A finished run is never trained again; after Ctrl-C, or worse, the next start goes
on, and a run that was broken off goes on from its last checkpoint. Without --out,
the learning rates and the runs that the checkout has recorded are taken, too.

examples:
  python -m experiments.bench tune
  python -m experiments.bench screen --workloads mlp cnn --arms baseline agree-h3 shrink-h5
  python -m experiments.bench final
  python -m experiments.bench table
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from experiments import bench_configs as configs
from experiments import bench_report, checkpoints, command, devices, records, sweep
from experiments.arms import BASELINE, Arm
from experiments.bench_configs import Pair
from experiments.training import Config

WIDEST_GRID = 16
OUT, COMMITTED = Path("runs/bench"), Path(__file__).parent / "results" / "bench"


def parser() -> command.Parser:
    """The command line."""
    p = command.Parser("experiments.bench", __doc__)
    p.add_argument(
        "what",
        choices=("tune", "screen", "jumps", "guard", "statistics", "storage", "final", "table", "list"),
        help="see above",
    )
    p.add_argument(
        "--workloads",
        nargs="+",
        metavar="NAME",
        default=list(configs.PAIRS),
        help="pairs, such as mlp-sgd, or workloads, such as mlp for all its pairs",
    )
    p.add_argument("--arms", nargs="+", metavar="NAME", help="arms, by default those of the command")
    p.add_argument("--seeds", nargs="+", type=command.seed, help="by default those of the command")
    sweep.add_arguments(p)
    p.add_argument("--out", type=command.output, default=OUT, help="folder for all results")
    checkpoints.add_arguments(p, every=10)
    devices.add_arguments(p)
    return p


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    args = parser().parse_args(argv)
    if args.what == "list":
        console = Console()
        console.print("pairs:", *configs.PAIRS, highlight=False)
        for name in ("final", "screen", "jumps", "guard", "statistics", "storage"):
            console.print(f"arms of {name}:", *(arm.name for arm in _ARMS[name]), highlight=False)
        return 0
    spread = devices.start(args)
    console = Console(quiet=not devices.is_first())
    how = sweep.how(args, spread)
    pairs = _pairs(args.workloads)
    seeds = tuple(dict.fromkeys(args.seeds or _SEEDS[args.what]))
    if args.what == "tune":
        tune(pairs, seeds, args.out, how, console)
        return 0
    arms = _arms(args.arms or [arm.name for arm in _ARMS[args.what]])
    rates = _tuned_rates(args.out, pairs)
    plan = _plan(pairs, rates, arms, seeds, lengths=args.what in ("final", "table"))
    if args.what != "table":
        _train(plan, args.out, how, console)
    if not devices.is_first():
        return 0
    folder = args.out if args.what in ("final", "table") else args.out / args.what
    return _show(plan, args.out, folder, console)


_SEEDS = {
    "tune": configs.TUNING_SEEDS,
    "screen": configs.TUNING_SEEDS[:1],
    "jumps": configs.TUNING_SEEDS[:1],
    "guard": configs.TUNING_SEEDS[:1],
    "statistics": configs.TUNING_SEEDS,
    "storage": configs.REPORTED_SEEDS,
    "final": configs.REPORTED_SEEDS,
    "table": configs.REPORTED_SEEDS,
}
_ARMS = {
    "screen": configs.SCREEN,
    "jumps": tuple(configs.JUMPS.values()),
    "guard": configs.RUNAWAY,
    "statistics": configs.STATISTICS,
    "storage": configs.STORAGE,
    "final": configs.FINAL,
    "table": configs.FINAL,
}


class Entry(NamedTuple):
    """One run of a plan; `share` is of the pair's full schedule."""

    pair: Pair
    share: float
    config: Config


def _pairs(names: Sequence[str]) -> list[Pair]:
    chosen = []
    for name in dict.fromkeys(names):
        found = [pair for pair in configs.PAIRS.values() if name in (pair.name, pair.workload.workload)]
        if not found:
            raise ValueError(f"There is no workload {name!r}. There are {', '.join(configs.PAIRS)}.")
        chosen += [pair for pair in found if pair not in chosen]
    return chosen


def _arms(names: Sequence[str]) -> list[Arm]:
    """The arms by name, the baseline first whether or not it is named."""
    for name in names:
        if name not in configs.ARMS:
            raise ValueError(f"There is no arm {name!r}. There are {', '.join(configs.ARMS)}.")
    return [configs.ARMS[name] for name in dict.fromkeys([BASELINE, *names])]


def _entry(pair: Pair, arm: Arm, rate: float, seed: int, share: float = 1.0) -> Entry:
    epochs = round(share * pair.epochs)
    config = Config(pair.workload, arm, pair.optimizer, rate, pair.schedule, epochs, seed)
    return Entry(pair, share, config)


def _plan(
    pairs: Sequence[Pair], rates: dict[str, float], arms: Sequence[Arm], seeds: Sequence[int], lengths: bool
) -> list[Entry]:
    """All runs, the baseline at several lengths of its schedule if asked for. Those of a seed follow each other: their seconds are compared, and machines' speeds drift."""
    return [
        _entry(pair, arm, rates[pair.name], seed, share)
        for pair in pairs
        for seed in seeds
        for arm in arms
        for share in (1.0, *(configs.SHARES if lengths and arm.name == BASELINE else ()))
    ]


def _folders(plan: Sequence[Entry], out: Path) -> dict[Pair, Path]:
    """Where each pair's records lie."""
    folders = {}
    for pair in dict.fromkeys(entry.pair for entry in plan):
        results = [results / "records" / pair.name for results in _results(out)]
        folders[pair] = records.place(results, [entry.config for entry in plan if entry.pair == pair])
    return folders


def _results(out: Path) -> Sequence[Path]:
    """Where to look for what is recorded; the first is where new records go."""
    return (OUT, COMMITTED) if out == OUT else (out,)


def _train(plan: Sequence[Entry], out: Path, how: sweep.How, console: Console) -> None:
    """Trains what is not recorded yet."""
    folders = _folders(plan, out)
    runs = [sweep.Planned(folders[e.pair], e.config, e.share * e.pair.seconds) for e in plan]
    sweep.train(runs, how, console)


def tune(pairs: Sequence[Pair], seeds: Sequence[int], out: Path, how: sweep.How, console: Console) -> None:
    """Finds each pair's learning rate for the baseline and writes it to OUT/tuned.json."""
    grids = {pair.name: sorted(pair.rates) for pair in pairs}
    unsettled = list(pairs)
    _read_tuned(out)  # a broken file is better known before than after
    while unsettled:
        plan = {
            pair.name: [
                _entry(pair, Arm(BASELINE), rate, seed) for rate in grids[pair.name] for seed in seeds
            ]
            for pair in unsettled
        }
        _train([entry for entries in plan.values() for entry in entries], out, how, console)
        for pair in list(unsettled):
            result = _tuning_result(plan[pair.name], out)
            wider = wider_grid(grids[pair.name], result["learning_rate"])
            if wider == grids[pair.name]:
                unsettled.remove(pair)
                _write_tuned(out, pair.name, result)
                console.print(f"{pair.name}: learning rate {result['learning_rate']:g}", highlight=False)
            elif len(wider) > WIDEST_GRID:
                raise ValueError(
                    f"The best learning rate of {pair.name} is still at the edge of a grid from {wider[0]:g} "
                    f"to {wider[-1]:g}: start it elsewhere."
                )
            grids[pair.name] = wider


def wider_grid(grid: Sequence[float], best: float) -> list[float]:
    """The grid, a factor of 2 longer at the edge where the best rate is, if it is at one."""
    grid = sorted(grid)
    lower = [grid[0] / 2] if best == grid[0] else []
    upper = [2 * grid[-1]] if best == grid[-1] else []
    return [*lower, *grid, *upper]


def _tuning_result(entries: Sequence[Entry], out: Path) -> dict[str, Any]:
    """The grid, its final train losses, the best rate, and what it cost to find."""
    losses: dict[float, list[float]] = {}
    seconds = 0.0
    folders = _folders(entries, out)
    for entry in entries:
        epochs = records.read(folders[entry.pair], entry.config).epochs
        losses.setdefault(entry.config.learning_rate, []).append(epochs[-1]["train_loss"])
        seconds += sum(e["train_seconds"] for e in epochs)
    means = {rate: float(np.mean(values)) for rate, values in losses.items()}
    return {
        "learning_rate": min(means, key=lambda rate: means[rate] if math.isfinite(means[rate]) else math.inf),
        "seeds": list(dict.fromkeys(entry.config.seed for entry in entries)),
        "epochs": entries[0].config.epochs,
        "mean_final_train_loss": {f"{rate:g}": means[rate] for rate in sorted(means)},
        "final_train_losses": {f"{rate:g}": losses[rate] for rate in sorted(losses)},
        "runs": len(entries),
        "train_seconds": round(seconds, 1),
    }


def _read_tuned(out: Path) -> dict[str, Any]:
    path = out / "tuned.json"
    return command.read_json(path) if path.exists() else {}


def _write_tuned(out: Path, pair: str, result: dict[str, Any]) -> None:
    tuned = _read_tuned(out) | {pair: result}
    if devices.is_first():
        out.mkdir(parents=True, exist_ok=True)
        (out / "tuned.json").write_text(json.dumps(dict(sorted(tuned.items())), indent=2) + "\n")


def _tuned_rates(out: Path, pairs: Sequence[Pair]) -> dict[str, float]:
    tuned: dict[str, Any] = {}
    for results in _results(out):
        tuned = _read_tuned(results) | tuned
    missing = [pair.name for pair in pairs if pair.name not in tuned]
    if missing:
        raise ValueError(
            f"There is no tuned learning rate for {', '.join(missing)} in {out / 'tuned.json'}: "
            f"run `python -m experiments.bench tune --workloads {' '.join(missing)}` first."
        )
    rates = {}
    for pair in pairs:
        entry = tuned[pair.name]
        rate = entry.get("learning_rate") if isinstance(entry, dict) else None
        if not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise command.RefusedError(
                f"The `learning_rate` of {pair.name} in {out / 'tuned.json'} must be positive and finite. Got {rate!r}."
            )
        rates[pair.name] = rate
    return rates


def _recorded(plan: Sequence[Entry], out: Path) -> dict[str, dict[str, dict[float, list[records.Run]]]]:
    """The complete runs of a plan: by pair, arm and share of the schedule."""
    pairs: dict[str, dict[str, dict[float, list[records.Run]]]] = {}
    folders = _folders(plan, out)
    for entry in plan:
        run = records.read(folders[entry.pair], entry.config)
        if run.complete:
            arms = pairs.setdefault(entry.pair.name, {})
            arms.setdefault(run.rule, {}).setdefault(entry.share, []).append(run)
    return pairs


def read_scores(
    out: Path, arms: Sequence[Arm] = configs.FINAL, seeds: Sequence[int] = configs.REPORTED_SEEDS
) -> bench_report.Scores:
    """What is recorded of some arms, by default of the final table's."""
    tuned = {name for results in _results(out) for name in _read_tuned(results)}
    pairs = [pair for pair in configs.PAIRS.values() if pair.name in tuned]
    named = _arms([arm.name for arm in arms])
    plan = _plan(pairs, _tuned_rates(out, pairs), named, seeds, lengths=True)
    return bench_report.scores(_recorded(plan, out))


def _show(plan: Sequence[Entry], out: Path, folder: Path, console: Console) -> int:
    """Writes and names the tables and pictures of what is recorded of a plan."""
    pairs = _recorded(plan, out)
    table = {pair: scored for pair, scored in bench_report.scores(pairs).items() if scored}
    if not table:
        console.print("Nothing is recorded yet.")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(bench_report.page(table, "PDT at tuned learning rates"))
    bench_report.summary_picture(table, folder / "summary.png")
    if folder.name == "jumps":
        jumps = {key: arm.name for key, arm in configs.JUMPS.items()}
        bench_report.jumps_picture(pairs, jumps, folder / "jumps.png")
    else:
        for pair in table:
            bench_report.pair_picture(pairs[pair], folder / f"{pair}.png", pair)
    console.print(bench_report.summary_terminal(table))
    console.print(f"Look at {folder / 'table.md'}, and the pictures beside it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
