"""PDT at tuned learning rates: workloads x optimizers x arms x seeds, to records, tables and pictures.

  tune    the learning rates of the baseline and of the arms that have their own,
          for each pair: four on seed 1, the best two on seeds 2 and 3; the best
          mean final train loss, or loss at evaluated weights where an arm has
          such, never at the edge of the grid (it is extended)
  screen  many arms on a few pairs, on a tuning seed; its tables go to OUT/screen
  jumps   one jump in a run, at several epochs and of several lengths, on a tuning
          seed; its table and picture go to OUT/jumps
  guard   a rule made to fail, alone and under `rollback`, on a tuning seed; its
          tables go to OUT/guard
  statistics  BatchNorm's statistics after a jump, kept or estimated anew, on the
          tuning seeds (--workloads resnet); its tables go to OUT/statistics
  storage the window as bfloat16 differences and in host memory, on final's seeds;
          its tables go to OUT/storage
  final   the reported arms, at their own rates where they have such, on seeds that
          nothing was tuned on, and the baseline at 60, 75, 133 and 200% of the
          schedule, which the effective schedule is read from
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from experiments import bench_configs as configs
from experiments import bench_report, checkpoints, command, devices, metrics, records, sweep
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
        for name in ("tune", "final", "screen", "jumps", "guard", "statistics", "storage"):
            console.print(f"arms of {name}:", *(arm.name for arm in _ARMS[name]), highlight=False)
        return 0
    spread = devices.start(args)
    console = Console(quiet=not devices.is_first())
    how = sweep.how(args, spread)
    pairs = _pairs(args.workloads)
    seeds = tuple(dict.fromkeys(args.seeds or _SEEDS[args.what]))
    arms = _arms(args.arms or [arm.name for arm in _ARMS[args.what]])
    if args.what == "tune":
        tune(pairs, arms, seeds, args.out, how, console)
        return 0
    rates = _tuned_rates(args.out, pairs)
    if args.what == "final":
        _check_own_rates(pairs, arms, rates, args.out)
    plan = _plan(pairs, rates, arms, seeds, final=args.what in ("final", "table"))
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
    "tune": (Arm(BASELINE), *configs.PEERS),
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


Rates = dict[str, dict[str, float]]  # pair -> the baseline and each arm with a rate of its own -> its rate


def _plan(
    pairs: Sequence[Pair], rates: Rates, arms: Sequence[Arm], seeds: Sequence[int], final: bool
) -> list[Entry]:
    """All runs. Those of a seed follow each other: their seconds are compared, and machines' speeds drift.

    All arms run at the baseline's rate; in the final table, peers at their own, where
    they have been tuned, and the baseline at several lengths of its schedule.
    """
    plan = []
    for pair in pairs:
        tuned = rates[pair.name]
        own = {arm.name: tuned.get(arm.name) for arm in configs.PEERS} if final else {}
        for seed in seeds:
            for arm in arms:
                rate = own.get(arm.name, tuned[BASELINE])
                if rate is not None and arm.fits(pair.optimizer):
                    lengths = configs.SHARES if final and arm.name == BASELINE else ()
                    plan += [_entry(pair, arm, rate, seed, share) for share in (1.0, *lengths)]
    return plan


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


class Search(NamedTuple):
    """A learning rate that is looked for."""

    pair: Pair
    arm: Arm
    grid: tuple[float, ...]


def tune(
    pairs: Sequence[Pair],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    out: Path,
    how: sweep.How,
    console: Console,
) -> None:
    """Finds the learning rates of the baseline, then of the other arms, and writes them to OUT/tuned.json."""
    others = [arm.name for arm in arms if arm.name != BASELINE and arm not in configs.PEERS]
    if others:
        raise ValueError(
            f"Only {', '.join(arm.name for arm in configs.PEERS)} have a learning rate of their own; all others run at "
            f"the baseline's: leave them out. Got {', '.join(others)}."
        )
    _read_tuned(out)  # a broken file is better known before than after
    best = _search([Search(pair, Arm(BASELINE), pair.rates) for pair in pairs], seeds, out, how, console)
    peers = [
        Search(pair, arm, tuple(factor * best[pair.name] for factor in configs.FACTORS))
        for pair in pairs
        for arm in arms
        if arm.name != BASELINE and arm.fits(pair.optimizer)
    ]
    _search(peers, seeds, out, how, console)


def _search(
    searches: Sequence[Search], seeds: Sequence[int], out: Path, how: sweep.How, console: Console
) -> dict[str, float]:
    """Ends all searches; the best rates by pair, of the last arm."""
    losses: dict[Search, Losses] = {search: {rate: {} for rate in search.grid} for search in searches}
    best: dict[str, float] = {}
    while losses:
        due = {
            search: [_entry(search.pair, search.arm, rate, seed) for rate, seed in next_runs(known, seeds)[0]]
            for search, known in losses.items()
        }
        entries = [entry for of in due.values() for entry in of]
        sweep.train([sweep.Planned(_place(e, out), e.config, e.pair.seconds) for e in entries], how, console)
        for search, of in due.items():
            known = losses[search]
            for entry in of:
                known.setdefault(entry.config.learning_rate, {})[entry.config.seed] = _judged(entry, out)
            left, rate = next_runs(known, seeds)
            if rate is not None:
                del losses[search]
                best[search.pair.name] = rate
                _write_tuned(out, search, _tuning_result(search, known, rate, seeds, out))
                console.print(
                    f"{search.pair.name} {search.arm.name}: learning rate {rate:g}", highlight=False
                )
            elif len(known.keys() | {r for r, _ in left}) > WIDEST_GRID:
                raise ValueError(
                    f"The best learning rate of {search.pair.name} {search.arm.name} is still at the edge of a grid "
                    f"from {min(known):g} to {max(known):g}: start it elsewhere."
                )
    return best


Losses = dict[float, dict[int, float]]  # rate -> seed -> the loss that a run ended at


def next_runs(
    losses: Mapping[float, Mapping[int, float]], seeds: Sequence[int]
) -> tuple[list[tuple[float, int]], float | None]:
    """Which rates to train on which seeds next, and the best rate once there is nothing left to train.

    All rates on the first seed, and more while the best is at an edge; the best two
    on the others. The better of these in the mean is the best, unless it is at an edge.

    >>> next_runs({1: {}, 2: {}, 4: {}}, (1, 2))
    ([(1, 1), (2, 1), (4, 1)], None)
    >>> next_runs({1: {1: 0.6}, 2: {1: 0.4}, 4: {1: 0.5}}, (1, 2))
    ([(2, 2), (4, 2)], None)
    >>> next_runs({1: {1: 0.6}, 2: {1: 0.4, 2: 0.4}, 4: {1: 0.5, 2: 0.2}}, (1, 2))
    ([(8, 1)], None)
    >>> next_runs({1: {1: 0.6}, 2: {1: 0.4, 2: 0.4}, 4: {1: 0.5, 2: 0.5}}, (1, 2))
    ([], 2)
    """
    first, *others = seeds
    if missing := [(rate, first) for rate in sorted(losses) if first not in losses[rate]]:
        return missing, None

    def beyond(best: float) -> list[tuple[float, int]]:
        return [(rate, first) for rate in wider_grid(list(losses), best) if rate not in losses]

    ranked = sorted(losses, key=lambda rate: _finite(losses[rate][first]))
    if wider := beyond(ranked[0]):
        return wider, None
    if missing := [(rate, seed) for rate in ranked[:2] for seed in others if seed not in losses[rate]]:
        return missing, None
    best = min(ranked[:2], key=lambda rate: _finite(float(np.mean([losses[rate][seed] for seed in seeds]))))
    return (wider, None) if (wider := beyond(best)) else ([], best)


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def wider_grid(grid: Sequence[float], best: float) -> list[float]:
    """The grid, a factor of 2 longer at the edge where the best rate is, if it is at one."""
    grid = sorted(grid)
    lower = [grid[0] / 2] if best == grid[0] else []
    upper = [2 * grid[-1]] if best == grid[-1] else []
    return [*lower, *grid, *upper]


def _place(entry: Entry, out: Path) -> Path:
    """Where a run is recorded, or is to be."""
    folders = [results / "records" / entry.pair.name for results in _results(out)]
    return records.place(folders, [entry.config])


def _measure(arm: Arm, config: Config) -> str:
    """The loss that an arm is tuned for: at the weights that it evaluates."""
    return "train_loss" if arm.method(config.recipe).evaluated is None else "probe_loss"


def _judged(entry: Entry, out: Path) -> float:
    return metrics.last(
        records.read(_place(entry, out), entry.config), _measure(entry.config.arm, entry.config)
    )


def _tuning_result(
    search: Search, losses: Losses, best: float, seeds: Sequence[int], out: Path
) -> dict[str, Any]:
    """The grid, the losses by rate in the order of the seeds, the best rate, and what it cost to find."""
    entries = [_entry(search.pair, search.arm, rate, seed) for rate, of in losses.items() for seed in of]
    runs = [records.read(_place(entry, out), entry.config) for entry in entries]
    by_rate = {f"{rate:g}": [losses[rate][s] for s in seeds if s in losses[rate]] for rate in sorted(losses)}
    measure = _measure(search.arm, entries[0].config)
    return {
        "learning_rate": best,
        "seeds": list(seeds),
        "epochs": search.pair.epochs,
        f"mean_final_{measure}": {
            rate: float(np.mean(of)) for rate, of in by_rate.items() if len(of) == len(seeds)
        },
        f"final_{measure}es": by_rate,
        "runs": len(runs),
        "train_seconds": round(sum(metrics.total(run, "train_seconds") for run in runs), 1),
    }


def _read_tuned(out: Path) -> dict[str, Any]:
    path = out / "tuned.json"
    return command.read_json(path) if path.exists() else {}


def _write_tuned(out: Path, search: Search, result: dict[str, Any]) -> None:
    """An entry for each pair, of the baseline, and under its `arms` one for each other."""
    tuned = _read_tuned(out)
    entry = tuned.get(search.pair.name)
    arms = _arms_of(entry)
    if search.arm.name == BASELINE:
        entry = result | ({"arms": arms} if arms else {})
    else:
        assert isinstance(entry, dict)  # of the baseline, which is looked for first
        entry = entry | {"arms": dict(sorted((arms | {search.arm.name: result}).items()))}
    tuned[search.pair.name] = entry
    if devices.is_first():
        out.mkdir(parents=True, exist_ok=True)
        (out / "tuned.json").write_text(json.dumps(dict(sorted(tuned.items())), indent=2) + "\n")


def _tuned(out: Path) -> dict[str, Any]:
    """All that is tuned: what is in OUT, and what the checkout has besides."""
    tuned: dict[str, Any] = {}
    for results in reversed(_results(out)):
        for pair, entry in _read_tuned(results).items():
            arms = _arms_of(tuned.get(pair)) | _arms_of(entry)
            tuned[pair] = entry | {"arms": arms} if arms else entry
    return tuned


def _arms_of(entry: Any) -> dict[str, Any]:
    """The entries of a pair's arms that have rates of their own."""
    arms = entry.get("arms") if isinstance(entry, dict) else None
    return arms if isinstance(arms, dict) else {}


def _tuned_rates(out: Path, pairs: Sequence[Pair]) -> Rates:
    tuned = _tuned(out)
    missing = [pair.name for pair in pairs if pair.name not in tuned]
    if missing:
        raise ValueError(
            f"There is no tuned learning rate for {', '.join(missing)} in {out / 'tuned.json'}: "
            f"run `python -m experiments.bench tune --workloads {' '.join(missing)}` first."
        )

    def rate(name: str, entry: Any) -> float:
        found = entry.get("learning_rate") if isinstance(entry, dict) else None
        if not isinstance(found, (int, float)) or not 0 < found < math.inf:
            raise command.RefusedError(
                f"The `learning_rate` of {name} in {out / 'tuned.json'} must be positive and finite. Got {found!r}."
            )
        return found

    rates: Rates = {}
    for name in (pair.name for pair in pairs):
        rates[name] = {BASELINE: rate(name, tuned[name])}
        rates[name] |= {arm: rate(f"{name} {arm}", entry) for arm, entry in _arms_of(tuned[name]).items()}
    return rates


def _check_own_rates(pairs: Sequence[Pair], arms: Sequence[Arm], rates: Rates, out: Path) -> None:
    """Raises ValueError if an arm has no rate of its own where it must."""
    missing = {
        (pair.name, arm.name): None
        for pair in pairs
        for arm in arms
        if arm in configs.PEERS and arm.fits(pair.optimizer) and arm.name not in rates[pair.name]
    }
    if missing:
        listed, of = ", ".join(" ".join(key) for key in missing), dict.fromkeys
        raise ValueError(
            f"There is no tuned learning rate for {listed} in {out / 'tuned.json'}: run `python -m experiments.bench "
            f"tune --workloads {' '.join(of(p for p, _ in missing))} --arms {' '.join(of(a for _, a in missing))}` "
            "first, or name the arms that you want."
        )


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
    out: Path, arms: Sequence[Arm] | None = None, seeds: Sequence[int] = configs.REPORTED_SEEDS
) -> bench_report.Scores:
    """What is recorded of some arms at the baseline's rate; by default, of the final table."""
    arms, final = (configs.FINAL, True) if arms is None else (arms, False)
    tuned = _tuned(out)
    pairs = [pair for pair in configs.PAIRS.values() if pair.name in tuned]
    named = _arms([arm.name for arm in arms])
    plan = _plan(pairs, _tuned_rates(out, pairs), named, seeds, final)
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
