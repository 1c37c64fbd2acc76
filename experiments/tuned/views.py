"""PDT at tuned learning rates: what each view says and what it needs; and how the rates are tuned."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments import command
from experiments.training import devices, records, sweep
from experiments.training.arms import BASELINE, Arm
from experiments.training.trainer import Config
from experiments.tuned import setups, tables
from experiments.tuned.setups import Pair
from experiments.views.view import Asked, Finds, Need, Shown, View, find, placed

WIDEST_GRID = 16
FOLDER = "tuned"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedView(View):
    """Arms on pairs at the tuned rates.

    Attributes:
      arms: by default; the baseline is always among them.
      seeds: by default.
      workloads: by default; None for all pairs.
      shorter: whether `setups.SHORTENED` are trained on other schedules, too.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    workloads: tuple[str, ...] | None = None
    shorter: bool = False

    options = ("workloads", "arms", "seeds")

    def needs(self, asked: Asked) -> list[Need]:
        pairs = pairs_of(asked.workloads or self.workloads)
        rates = tuned_rates(asked.results, pairs)
        seeds = dict.fromkeys(asked.seeds or self.seeds)
        arms = arms_of(asked.arms or [arm.name for arm in self.arms])
        # The runs of a seed follow each other: their seconds are compared, and machines' speeds drift.
        return [
            need(pair, arm, rates[pair.name], seed, share)
            for pair in pairs
            for seed in seeds
            for arm in arms
            for share in (1.0, *(setups.SHARES if self.shorter and arm.name in setups.SHORTENED else ()))
        ]

    def folder(self, scale: str) -> str:
        del scale
        return FOLDER if self.name == FOLDER else f"{FOLDER}/{self.name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning(View):
    """The baseline at each pair's first grid of rates; `tune` goes on from there."""

    options = ("workloads", "seeds")

    def needs(self, asked: Asked) -> list[Need]:
        return [n for pair in pairs_of(asked.workloads) for n in tuning(pair, pair.rates, asked)]

    def folder(self, scale: str) -> str:
        del scale
        return f"{FOLDER}/{self.name}"


def tuning(pair: Pair, grid: Sequence[float], asked: Asked) -> list[Need]:
    """The baseline of a pair at each rate of a grid."""
    seeds = dict.fromkeys(asked.seeds or setups.TUNING_SEEDS)
    return [need(pair, Arm(BASELINE), rate, seed) for rate in sorted(grid) for seed in seeds]


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
    config = Config(pair.workload, arm, pair.optimizer, rate, "cosine", round(share * pair.epochs), seed)
    return Need(pair.name, f"{FOLDER}/records/{pair.name}", share * pair.seconds, config)


# Tuning.


def tune(asked: Asked, how: sweep.How, console: Console) -> None:
    """Finds each pair's learning rate for the baseline and writes it to rates.json."""
    out = asked.results[0]
    _read_rates(out)  # a broken file is better known before than after
    grids = {pair: sorted(pair.rates) for pair in pairs_of(asked.workloads)}
    while grids:
        plans = {pair: placed(tuning(pair, grid, asked), asked.results) for pair, grid in grids.items()}
        sweep.train([run for plan in plans.values() for run in plan], how, console)
        for pair, plan in plans.items():
            result = _tuning_result([run.config for run in plan], plan[0].folder)
            wider = wider_grid(grids[pair], result["learning_rate"])
            if wider == grids.pop(pair):
                _write_rate(out, pair.name, result)
                console.print(f"{pair.name}: learning rate {result['learning_rate']:g}", highlight=False)
            elif len(wider) > WIDEST_GRID:
                raise ValueError(
                    f"The best learning rate of {pair.name} is still at the edge of a grid from {wider[0]:g} "
                    f"to {wider[-1]:g}: start it elsewhere."
                )
            else:
                grids[pair] = wider


def wider_grid(grid: Sequence[float], best: float) -> list[float]:
    """The grid, a factor of 2 longer at the edge where the best rate is, if it is at one."""
    grid = sorted(grid)
    lower = [grid[0] / 2] if best == grid[0] else []
    upper = [2 * grid[-1]] if best == grid[-1] else []
    return [*lower, *grid, *upper]


def _tuning_result(configs: Sequence[Config], folder: Path) -> dict[str, Any]:
    """The grid, its final train losses, the best rate, and what it cost to find."""
    losses: dict[float, list[float]] = {}
    seconds = 0.0
    for config in configs:
        epochs = records.read(folder, config).epochs
        losses.setdefault(config.learning_rate, []).append(epochs[-1]["train_loss"])
        seconds += sum(e["train_seconds"] for e in epochs)
    means = {rate: float(np.mean(values)) for rate, values in losses.items()}
    return {
        "learning_rate": min(means, key=lambda rate: means[rate] if math.isfinite(means[rate]) else math.inf),
        "seeds": list(dict.fromkeys(config.seed for config in configs)),
        "epochs": configs[0].epochs,
        "mean_final_train_loss": {f"{rate:g}": means[rate] for rate in sorted(means)},
        "final_train_losses": {f"{rate:g}": losses[rate] for rate in sorted(losses)},
        "runs": len(configs),
        "train_seconds": round(seconds, 1),
    }


def _rates(results: Path) -> Path:
    return results / FOLDER / "rates.json"


def _read_rates(results: Path) -> dict[str, Any]:
    path = _rates(results)
    return command.read_json(path) if path.exists() else {}


def _write_rate(results: Path, pair: str, result: dict[str, Any]) -> None:
    tuned = _read_rates(results) | {pair: result}
    if devices.is_first():
        _rates(results).parent.mkdir(parents=True, exist_ok=True)
        _rates(results).write_text(json.dumps(dict(sorted(tuned.items())), indent=2) + "\n")


def tuned_rates(results: Sequence[Path], pairs: Sequence[Pair]) -> dict[str, float]:
    """The rates of pairs, each from the first folder of results that has it.

    Raises:
      ValueError: if one is not tuned.
      RefusedError: if one is not a rate.
    """
    tuned: dict[str, Any] = {}
    for folder in results:
        tuned = _read_rates(folder) | tuned
    missing = [pair.name for pair in pairs if pair.name not in tuned]
    if missing:
        raise ValueError(
            f"There is no tuned learning rate for {', '.join(missing)} in {_rates(results[0])}: "
            f"run `python -m experiments.run tune --workloads {' '.join(missing)}` first."
        )
    rates = {}
    for pair in pairs:
        entry = tuned[pair.name]
        rate = entry.get("learning_rate") if isinstance(entry, dict) else None
        if not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise command.RefusedError(
                f"The `learning_rate` of {pair.name} in {_rates(results[0])} must be positive and finite. Got {rate!r}."
            )
        rates[pair.name] = rate
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
    """What is recorded of a view in a folder of results."""
    return tables.scores(grouped(find(VIEWS[name], Asked((results,)))))


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


def _jumps(pairs: tables.Pairs, folder: Path) -> Mapping[str, str]:
    tables.jumps_picture(pairs, {key: arm.name for key, arm in setups.JUMPS.items()}, folder / "jumps.png")
    return {"jumps.png": "train loss after one jump over the baseline's, by when and how far it goes"}


_view = functools.partial(TunedView, render=functools.partial(_render, draw=_curves), note=tables.COLUMNS)
_FIRST = setups.TUNING_SEEDS[:1]

TUNE = Tuning(
    name="tune",
    title="Learning rates of the baseline",
    claim="Each pair's rate has the best mean final train loss; it is never at the edge of the grid, which is extended.",
    render=lambda name, finds, folder: Shown({}, {}, ()),
)
VIEWS: dict[str, TunedView] = {
    view.name: view
    for view in (
        _view(
            name="tuned",
            title="PDT at tuned learning rates",
            claim="PDT reaches the baseline's best train loss sooner where the baseline's rate is tuned; controls do not.",
            arms=setups.FINAL,
            seeds=setups.REPORTED_SEEDS,
            shorter=True,
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
