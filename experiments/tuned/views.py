"""PDT at tuned learning rates: what each view says and what it needs; and how the rates are tuned."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from experiments import command
from experiments.training import devices, records, sweep
from experiments.training.arms import BASELINE, Arm
from experiments.training.trainer import Config
from experiments.tuned import setups, tables
from experiments.tuned.setups import Pair
from experiments.views import metrics
from experiments.views.view import Asked, Finds, Need, Shown, View, find, placed

WIDEST_GRID = 16
FOLDER = "tuned"
# Arms that do not run at the baseline's rate, and whose rate they run at.
_RATED: dict[Arm, Arm] = {**{arm: arm for arm in setups.PEERS}, **{arm: arm.of for arm in setups.AROUND}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedView(View):
    """Arms on pairs at the tuned rates.

    Attributes:
      arms: by default; the baseline is always among them.
      seeds: by default.
      workloads: by default; None for all pairs.
      final: whether peers run at their own rates, on pairs where these are tuned, and the
        baseline at several lengths of its schedule, too. All else runs at the baseline's rate.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    workloads: tuple[str, ...] | None = None
    final: bool = False

    options = ("workloads", "arms", "seeds")

    def needs(self, asked: Asked) -> list[Need]:
        pairs = pairs_of(asked.workloads or self.workloads)
        rates = tuned_rates(asked.results, pairs)
        needs = []
        # The runs of a seed follow each other: their seconds are compared, and machines' speeds drift.
        for pair in pairs:
            tuned = rates[pair.name]
            own = {arm.name: tuned.get(peer.name) for arm, peer in _RATED.items()} if self.final else {}
            for seed in dict.fromkeys(asked.seeds or self.seeds):
                for arm in self._arms(asked):
                    rate = own.get(arm.name, tuned[BASELINE])
                    if rate is not None and arm.fits(pair.optimizer):
                        lengths = setups.SHARES if self.final and arm.name == BASELINE else ()
                        needs += [need(pair, arm, rate, seed, share) for share in (1.0, *lengths)]
        return needs

    def _arms(self, asked: Asked) -> list[Arm]:
        return arms_of(asked.arms or [arm.name for arm in self.arms])

    def check_ready(self, asked: Asked) -> None:
        """Peers without a rate are left out of tables, but not silently trained without."""
        pairs, arms = pairs_of(asked.workloads or self.workloads), self._arms(asked)
        rates = tuned_rates(asked.results, pairs)
        missing = [
            (pair.name, _RATED[arm].name)
            for pair in pairs
            for arm in arms
            if arm in _RATED and arm.fits(pair.optimizer) and _RATED[arm].name not in rates[pair.name]
        ]
        if self.final and missing:
            of = dict.fromkeys
            listed = ", ".join(" ".join(key) for key in of(missing))
            raise ValueError(
                f"There is no tuned learning rate for {listed} in {_rates(asked.results[0])}: run `python -m "
                f"experiments.run tune --workloads {' '.join(of(p for p, _ in missing))} --arms "
                f"{' '.join(of(a for _, a in missing))}` first, or name the arms that you want."
            )

    def folder(self, scale: str) -> str:
        del scale
        return FOLDER if self.name == FOLDER else f"{FOLDER}/{self.name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning(View):
    """The first grids of rates on the first seed; `tune` goes on from there. Peers' stand around the baseline's rate, once that is known."""

    arms = (Arm(BASELINE), *setups.PEERS)
    options = ("workloads", "arms", "seeds")

    def needs(self, asked: Asked) -> list[Need]:
        seed = _tuning_seeds(asked)[0]
        pairs = pairs_of(asked.workloads)
        rates = _known(asked, pairs)
        searches = _baselines(pairs, asked, rates)
        searches += _peers([pair for pair in pairs if pair.name in rates], asked, rates)
        return [need(of.pair, of.arm, rate, seed) for of in searches for rate in sorted(of.grid)]

    def folder(self, scale: str) -> str:
        del scale
        return f"{FOLDER}/{self.name}"


def _tuning_seeds(asked: Asked) -> tuple[int, ...]:
    return tuple(dict.fromkeys(asked.seeds or setups.TUNING_SEEDS))


def pairs_of(names: Sequence[str] | None) -> list[Pair]:
    """Pairs by their names, or by those of their workloads; by default all."""
    chosen: list[Pair] = []
    for name in dict.fromkeys(setups.PAIRS if names is None else names):
        found = [pair for pair in setups.PAIRS.values() if name in (pair.name, pair.workload.workload)]
        if not found:
            raise ValueError(f"There is no workload {name!r}. There are {', '.join(setups.PAIRS)}.")
        chosen += [pair for pair in found if pair not in chosen]
    return chosen


def arms_of(names: Sequence[str]) -> list[Arm]:
    """The arms by name, the baseline first whether or not it is named."""
    for name in names:
        if name not in setups.ARMS:
            raise ValueError(f"There is no arm {name!r}. There are {', '.join(setups.ARMS)}.")
    return [setups.ARMS[name] for name in dict.fromkeys([BASELINE, *names])]


def need(pair: Pair, arm: Arm, rate: float, seed: int, share: float = 1.0) -> Need:
    """One run, on a share of the pair's full schedule."""
    epochs = round(share * pair.epochs)
    config = Config(pair.workload, arm, pair.optimizer, rate, pair.schedule, epochs, seed)
    return Need(pair.name, f"{FOLDER}/records/{pair.name}", share * pair.seconds, config)


# Tuning.


class Search(NamedTuple):
    """A learning rate that is looked for."""

    pair: Pair
    arm: Arm
    grid: tuple[float, ...]


Rates = Mapping[
    str, Mapping[str, float]
]  # pair -> the baseline and each arm with a rate of its own -> its rate
Losses = dict[float, dict[int, float]]  # rate -> seed -> the loss that a run ended at


def tune(asked: Asked, how: sweep.How, console: Console) -> None:
    """Finds the learning rates of the baseline, then of the peers that are asked for, and writes them to rates.json.

    Where peers alone are asked for, the baseline keeps the rate that it has.
    """
    peers = [arm.name for arm in setups.PEERS]
    others = [name for name in asked.arms or () if name not in (BASELINE, *peers)]
    if others:
        raise ValueError(
            f"Only {', '.join(peers)} have a learning rate of their own; all others run at the baseline's: leave them "
            f"out. Got {', '.join(others)}."
        )
    _read_rates(asked.results[0])  # a broken file is better known before than after
    pairs = pairs_of(asked.workloads)
    known = _known(asked, pairs)
    best = _search(_baselines(pairs, asked, known), asked, how, console)
    found = {pair: {BASELINE: rate} for pair, rate in best.items()}
    _search(_peers(pairs, asked, {**known, **found}), asked, how, console)


def _known(asked: Asked, pairs: Sequence[Pair]) -> Rates:
    """The rates of those pairs that are tuned."""
    known = _tuned(asked.results)
    return tuned_rates(asked.results, [pair for pair in pairs if pair.name in known])


def _baselines(pairs: Sequence[Pair], asked: Asked, known: Rates) -> list[Search]:
    """The baseline's searches: of all pairs, or, where peers alone are asked for, of those without a rate."""
    due = [p for p in pairs if p.name not in known or asked.arms is None or BASELINE in asked.arms]
    return [Search(pair, Arm(BASELINE), pair.rates) for pair in due]


def _peers(pairs: Sequence[Pair], asked: Asked, rates: Rates) -> list[Search]:
    """The peers that are asked for, each on a grid around the baseline's rate."""
    return [
        Search(pair, arm, tuple(factor * rates[pair.name][BASELINE] for factor in setups.FACTORS))
        for pair in pairs
        for arm in setups.PEERS
        if arm.fits(pair.optimizer) and (asked.arms is None or arm.name in asked.arms)
    ]


def _search(searches: Sequence[Search], asked: Asked, how: sweep.How, console: Console) -> dict[str, float]:
    """Ends all searches; the best rates by pair, of the last arm."""
    seeds = _tuning_seeds(asked)
    losses: dict[Search, Losses] = {search: {rate: {} for rate in search.grid} for search in searches}
    best: dict[str, float] = {}
    while losses:
        due = {
            search: [_placed(search, rate, seed, asked) for rate, seed in next_runs(known, seeds)[0]]
            for search, known in losses.items()
        }
        if left_out := sweep.train([run for of in due.values() for run in of], how, console):
            raise command.RefusedError(" ".join(left_out))
        for search, of in due.items():
            known = losses[search]
            for run in of:
                known.setdefault(run.config.learning_rate, {})[run.config.seed] = _judged(run)
            left, rate = next_runs(known, seeds)
            if rate is not None:
                del losses[search]
                best[search.pair.name] = rate
                _write_rate(asked.results, search, _tuning_result(search, known, rate, asked))
                console.print(
                    f"{search.pair.name} {search.arm.name}: learning rate {rate:g}", highlight=False
                )
            elif len(known.keys() | {r for r, _ in left}) > WIDEST_GRID:
                raise ValueError(
                    f"The best learning rate of {search.pair.name} {search.arm.name} is still at the edge of a grid "
                    f"from {min(known):g} to {max(known):g}: start it elsewhere."
                )
    return best


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


def _placed(search: Search, rate: float, seed: int, asked: Asked) -> sweep.Planned:
    """One run, where it is recorded or is to be."""
    (planned,) = placed([need(search.pair, search.arm, rate, seed)], asked.results)
    return planned


def _measure(config: Config) -> str:
    """The loss that an arm is tuned for: at the weights that it evaluates."""
    return "train_loss" if config.arm.method(config.recipe).evaluated is None else "probe_loss"


def _judged(run: sweep.Planned) -> float:
    return metrics.last(records.read(run.folder, run.config), _measure(run.config))


def _tuning_result(search: Search, losses: Losses, best: float, asked: Asked) -> dict[str, Any]:
    """The grid, the losses by rate in the order of the seeds, the best rate, and what it cost to find."""
    seeds = _tuning_seeds(asked)
    planned = [_placed(search, rate, seed, asked) for rate, of in losses.items() for seed in of]
    runs = [records.read(run.folder, run.config) for run in planned]
    by_rate = {f"{rate:g}": [losses[rate][s] for s in seeds if s in losses[rate]] for rate in sorted(losses)}
    measure = _measure(planned[0].config)
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


def _rates(results: Path) -> Path:
    return results / FOLDER / "rates.json"


def _read_rates(results: Path) -> dict[str, Any]:
    path = _rates(results)
    return command.read_json(path) if path.exists() else {}


def _write_rate(results: Sequence[Path], search: Search, result: dict[str, Any]) -> None:
    """An entry for each pair, of the baseline, and under its `arms` one for each other."""
    tuned, pair = _read_rates(results[0]), search.pair.name
    entry = tuned.get(pair) or _tuned(results).get(pair)
    arms = _arms_in(entry)
    if search.arm.name == BASELINE:
        entry = result | ({"arms": arms} if arms else {})
    else:
        assert isinstance(entry, dict)  # of the baseline, whose rate is known first
        entry = entry | {"arms": dict(sorted((arms | {search.arm.name: result}).items()))}
    tuned[pair] = entry
    if devices.is_first():
        _rates(results[0]).parent.mkdir(parents=True, exist_ok=True)
        _rates(results[0]).write_text(json.dumps(dict(sorted(tuned.items())), indent=2) + "\n")


def _tuned(results: Sequence[Path]) -> dict[str, Any]:
    """All that is tuned: each entry from the first folder of results that has it."""
    tuned: dict[str, Any] = {}
    for folder in reversed(results):
        for pair, entry in _read_rates(folder).items():
            arms = _arms_in(tuned.get(pair)) | _arms_in(entry)
            tuned[pair] = entry | {"arms": arms} if arms else entry
    return tuned


def _arms_in(entry: Any) -> dict[str, Any]:
    """The entries of a pair's arms that have rates of their own."""
    arms = entry.get("arms") if isinstance(entry, dict) else None
    return arms if isinstance(arms, dict) else {}


def tuned_rates(results: Sequence[Path], pairs: Sequence[Pair]) -> Rates:
    """The rates of pairs: of the baseline, and of the arms that have their own.

    Raises:
      ValueError: if a pair is not tuned.
      RefusedError: if one is not a rate.
    """
    tuned = _tuned(results)
    missing = [pair.name for pair in pairs if pair.name not in tuned]
    if missing:
        raise ValueError(
            f"There is no tuned learning rate for {', '.join(missing)} in {_rates(results[0])}: "
            f"run `python -m experiments.run tune --workloads {' '.join(missing)}` first."
        )

    def rate(name: str, entry: Any) -> float:
        found = entry.get("learning_rate") if isinstance(entry, dict) else None
        if not isinstance(found, (int, float)) or not 0 < found < math.inf:
            raise command.RefusedError(
                f"The `learning_rate` of {name} in {_rates(results[0])} must be positive and finite. Got {found!r}."
            )
        return found

    rates: dict[str, dict[str, float]] = {}
    for name in (pair.name for pair in pairs):
        rates[name] = {BASELINE: rate(name, tuned[name])}
        rates[name] |= {arm: rate(f"{name} {arm}", entry) for arm, entry in _arms_in(tuned[name]).items()}
    return rates


# Views.


def grouped(finds: Finds) -> tables.Pairs:
    """The runs by pair, arm and share of the schedule."""
    pairs: dict[str, dict[str, dict[float, list[records.Run]]]] = {}
    for name, found in finds.items():
        full = setups.PAIRS[name].epochs
        lengths = {round(share * full): share for share in (*setups.SHARES, 1.0)}
        for run in found.runs:
            of_arm = pairs.setdefault(name, {}).setdefault(run.rule, {})
            of_arm.setdefault(lengths[run.fields["epochs"]], []).append(run)
    return pairs


def scores(name: str, results: Path) -> tables.Scores:
    """What is recorded of a view in a folder of results, on the pairs that have a rate there."""
    view, tuned = VIEWS[name], _tuned((results,))
    pairs = [pair.name for pair in pairs_of(view.workloads) if pair.name in tuned]
    return tables.scores(grouped(find(view, Asked((results,), workloads=pairs))))


def _render(
    name: str, finds: Finds, folder: Path, draw: Callable[[tables.Pairs, Path], Mapping[str, str]]
) -> Shown:
    del name
    pairs = grouped(finds)
    table = {pair: scored for pair, scored in tables.scores(pairs).items() if scored}
    tables.summary_picture(table, folder / "summary.png")
    drawn = {"summary.png": tables.SUMMARY_CAPTION, **draw({pair: pairs[pair] for pair in table}, folder)}
    return Shown(tables.all_tables(table), drawn, (), tables.summary_terminal(table))


def _curves(pairs: tables.Pairs, folder: Path) -> Mapping[str, str]:
    for pair, arms in pairs.items():
        tables.pair_picture(arms, folder / f"{pair}.png", pair)
    return {
        f"{pair}.png": f"{pair}: means over seeds, bands from the least to the greatest" for pair in pairs
    }


def _tuned_pictures(pairs: tables.Pairs, folder: Path) -> Mapping[str, str]:
    drawn = _curves(pairs, folder)
    shown = pairs.get(setups.SHOWN, {})
    if {BASELINE, "recommended"} <= shown.keys():
        tables.worth_picture(setups.SHOWN, shown, "recommended", folder / "worth.png")
        drawn = {
            "worth.png": f"{setups.SHOWN}: the default, and the longer schedule that ends where it ends",
            **drawn,
        }
    return drawn


def _jumps(pairs: tables.Pairs, folder: Path) -> Mapping[str, str]:
    tables.jumps_picture(pairs, {key: arm.name for key, arm in setups.JUMPS.items()}, folder / "jumps.png")
    return {"jumps.png": "train loss after one jump over the baseline's, by when and how far it goes"}


_view = functools.partial(TunedView, render=functools.partial(_render, draw=_curves), note=tables.COLUMNS)
_FIRST = setups.TUNING_SEEDS[:1]

TUNE = Tuning(
    name="tune",
    title="Learning rates of the baseline and of the arms that have their own",
    claim="Four rates on seed 1, the best two on seeds 2 and 3; the best has the least mean final train loss, or loss at "
    "evaluated weights where an arm has such, and is never at the edge of the grid, which is extended.",
    render=lambda name, finds, folder: Shown({}, {}, ()),
)
VIEWS: dict[str, TunedView] = {
    view.name: view
    for view in (
        _view(
            name="tuned",
            title="PDT at tuned learning rates",
            claim="40 epochs of the default are worth more of the baseline's, on every pair, at the baseline's tuned rate.",
            arms=setups.FINAL,
            seeds=setups.REPORTED_SEEDS,
            final=True,
            render=functools.partial(_render, draw=_tuned_pictures),
        ),
        _view(
            name="screen",
            title="Forty arms at tuned learning rates",
            claim="One choice at a time: how far, what to accept, how far back, how often, which dynamics, when to stop.",
            arms=setups.SCREEN,
            seeds=_FIRST,
            workloads=("mlp-sgd", "vit-adamw"),
        ),
        _view(
            name="ablation",
            title="The default, and one part of it changed at a time",
            claim="Each part earns its place: delivery step by step, the gain, the length that is kept, the memory, the start, all weights.",
            arms=setups.ABLATION,
            seeds=setups.TUNING_SEEDS,
            workloads=("mlp-lamb", "char_gru-clipped_adam"),
            final=True,
        ),
        _view(
            name="around",
            title="The default around optimizers with a slow memory of their own",
            claim="Do not: what the default reads as persistence is that memory.",
            arms=(*(arm.of for arm in setups.AROUND), *setups.AROUND),
            seeds=_FIRST,
            workloads=("mlp-sgd", "resnet-adamw", "char_lm-adamw", "vit-adamw", "autoencoder-adam"),
            final=True,
        ),
        _view(
            name="jumps",
            title="One jump in a run",
            claim="What a jump gains depends on when it is and how far it goes.",
            arms=tuple(setups.JUMPS.values()),
            seeds=_FIRST,
            workloads=("mlp-sgd",),
            render=functools.partial(_render, draw=_jumps),
        ),
        _view(
            name="guard",
            title="A rule made to fail, alone and under `rollback`",
            claim="`rollback` takes back the jumps that ruin a run.",
            arms=setups.RUNAWAY,
            seeds=_FIRST,
            workloads=setups.SIX,
        ),
        _view(
            name="statistics",
            title="BatchNorm's statistics after a jump",
            claim="A jump costs validation accuracy at its epoch's end unless statistics are estimated anew.",
            arms=setups.STATISTICS,
            seeds=setups.TUNING_SEEDS,
            workloads=("resnet-adamw",),
        ),
        _view(
            name="storage",
            title="How the window is kept",
            claim="bfloat16 differences and host memory change nothing that counts.",
            arms=setups.STORAGE,
            seeds=setups.REPORTED_SEEDS,
            workloads=("mlp-sgd", "vit-adamw"),
        ),
    )
}
