"""Scores at tuned learning rates, and the tables and pictures of them. Nothing here trains."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.special
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from experiments.training.arms import BASELINE
from experiments.training.records import Run
from experiments.views import report

ACCURACY_MARGIN = 1e-3  # 0.1 points

# An arm's complete runs by the share of the full schedule that they trained.
Runs = Mapping[float, Sequence[Run]]


class Score(NamedTuple):
    """An arm on one pair: means over seeds. Ratios are to the baseline of the same seed; a miss is infinite.

    Attributes:
      seeds: how many.
      loss_epochs, loss_seconds: to the baseline's best train loss.
      loss_epochs_ratio, loss_seconds_ratio: the same, to the baseline's own first crossing.
      probe_epochs_ratio: epochs to the baseline's best loss on the training
        probe, taken at the evaluated weights: the fair one for averages.
      accuracy_epochs, accuracy_seconds, accuracy_epochs_ratio,
        accuracy_seconds_ratio: likewise for the best validation accuracy.
      loss: final train loss.
      accuracy: final validation accuracy.
      gain, gain_interval: its difference to the baseline's, and the half width
        of the paired 95% interval.
      budget: the equal-quality budget; NaN without shortened schedules.
      diverged: seeds that did.
      overhead: what the arm does at the ends of epochs, over its training steps, in seconds.
      rise: the greatest train loss of an epoch after a jump, over that of the epoch before; NaN without jumps.
      dip: the mean change of validation accuracy from an epoch's end to the next one's, where that is a jump.
    """

    seeds: int
    loss_epochs: float
    loss_seconds: float
    loss_epochs_ratio: float
    loss_seconds_ratio: float
    probe_epochs_ratio: float
    accuracy_epochs: float
    accuracy_seconds: float
    accuracy_epochs_ratio: float
    accuracy_seconds_ratio: float
    loss: float
    accuracy: float
    gain: float
    gain_interval: float
    budget: float
    diverged: int
    overhead: float
    rise: float
    dip: float


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences and the half width of its 95% t-interval; infinite for one pair."""
    count = len(differences)
    if count < 2:
        return float(np.mean(differences)), math.inf
    quantile = scipy.special.stdtrit(count - 1, 0.975)
    return float(np.mean(differences)), float(quantile * np.std(differences, ddof=1) / math.sqrt(count))


def diverged(run: Run, baseline: Run) -> bool:
    """Whether the final train loss is not finite, or more than twice the baseline's."""
    loss = _last(run, "train_loss")
    return not loss <= 2 * _last(baseline, "train_loss")


def equal_quality_budget(runs: Runs, baselines: Sequence[Run]) -> float:
    """The shortest share of the schedule that gives the full-length baseline's quality; infinite if none.

    Quality: mean final train loss no higher, and final validation accuracy no
    more than 0.1 points lower in the paired mean.
    """
    return min((share for share, chosen in runs.items() if _as_good(chosen, baselines)), default=math.inf)


def _as_good(runs: Sequence[Run], baselines: Sequence[Run]) -> bool:
    pairs = list(_paired(runs, baselines))
    if not pairs:
        return False
    losses = np.array([[_last(x, "train_loss") for x in pair] for pair in pairs])
    accuracies = np.array([[_last(x, "validation_accuracy") for x in pair] for pair in pairs])
    loss_difference, accuracy_difference = (np.mean(v[:, 0] - v[:, 1]) for v in (losses, accuracies))
    # Accuracies are ratios of counts: let 0.1 points be 0.1 points despite rounding.
    return bool(loss_difference <= 0 and accuracy_difference >= -ACCURACY_MARGIN - 1e-9)


def _paired(runs: Sequence[Run], baselines: Sequence[Run]) -> list[tuple[Run, Run]]:
    of_seed = {run.seed: run for run in baselines}
    return [(run, of_seed[run.seed]) for run in runs if run.seed in of_seed]


def _last(run: Run, field: str) -> float:
    return run.epochs[-1][field]


def _sum(run: Run, field: str) -> float:
    return sum(e[field] for e in run.epochs)


def _at_jumps(runs: Sequence[Run]) -> tuple[float, float]:
    """`Score.rise` and `Score.dip`."""
    steps = [step for run in runs for step in itertools.pairwise(run.epochs)]
    rises = [b["train_loss"] / a["train_loss"] for a, b in steps if a["predicted"]]
    dips = [b["validation_accuracy"] - a["validation_accuracy"] for a, b in steps if b["predicted"]]
    return float(np.max(rises)) if rises else math.nan, float(np.mean(dips)) if dips else math.nan


def score(runs: Runs, baselines: Sequence[Run]) -> Score | None:
    """An arm against the full-length baseline; None without a full-length run of a common seed."""
    pairs = _paired(runs.get(1.0, ()), baselines)
    if not pairs:
        return None

    def times(field: str) -> tuple[float, float, float, float]:
        """Mean epochs and seconds to the baseline's best, and mean ratios to its own first crossing."""
        own = np.array([report.to_best(run, baseline, field) for run, baseline in pairs])
        first = np.array([report.to_best(baseline, baseline, field) for _, baseline in pairs])
        (epochs, seconds), (epochs_ratio, seconds_ratio) = own.mean(0), (own / first).mean(0)
        return float(epochs), float(seconds), float(epochs_ratio), float(seconds_ratio)

    loss, accuracy, probe = map(times, ("train_loss", "validation_accuracy", "probe_loss"))
    differences = [_last(r, "validation_accuracy") - _last(b, "validation_accuracy") for r, b in pairs]
    return Score(
        len(pairs),
        *loss,
        probe[2],
        *accuracy,
        float(np.mean([_last(r, "train_loss") for r, _ in pairs])),
        float(np.mean([_last(r, "validation_accuracy") for r, _ in pairs])),
        *paired_interval(differences),
        equal_quality_budget(runs, baselines) if len(runs) > 1 else math.nan,
        sum(diverged(r, b) for r, b in pairs),
        float(np.mean([_sum(r, "pdt_seconds") / _sum(r, "train_seconds") for r, _ in pairs])),
        *_at_jumps([r for r, _ in pairs]),
    )


Pairs = Mapping[str, Mapping[str, Runs]]  # pair -> arm -> share of the schedule -> runs
Scores = Mapping[str, Mapping[str, Score]]  # pair -> arm


def scores(pairs: Pairs) -> Scores:
    """All scores that the records allow."""
    table = {}
    for pair, arms in pairs.items():
        baselines = arms.get(BASELINE, {}).get(1.0, ())
        found = {arm: score(runs, baselines) for arm, runs in arms.items()}
        table[pair] = {arm: s for arm, s in found.items() if s is not None}
    return table


def number(value: float, form: str) -> str:
    """A figure that may be unknown, or missed in some seed."""
    return "-" if math.isnan(value) else "never" if math.isinf(value) else f"{value:{form}}"


def saved(ratio: float) -> str:
    """What a ratio to the baseline saves."""
    return "-" if math.isnan(ratio) else "never" if math.isinf(ratio) else f"{100 * (1 - ratio):.0f}%"


def points(gain: float, interval: float | None = None) -> str:
    """A difference of accuracies in points, and its interval if that is finite."""
    mean = f"{round(100 * gain, 2) + 0.0:+.2f}"  # never -0.00
    return mean if interval is None or math.isinf(interval) else f"{mean} ± {100 * interval:.2f}"


PAIR_HEADER = (
    "arm",
    "seeds",
    "epochs to baseline's best train loss",
    "seconds",
    "time saved",
    "saved at evaluated weights",
    "epochs to baseline's best accuracy",
    "seconds",
    "time saved",
    "final train loss",
    "final accuracy",
    "difference in points",
    "equal-quality budget",
    "diverged",
    "overhead",
    "greatest rise after a jump",
    "accuracy at a jump",
)


def pair_table(arms: Mapping[str, Score]) -> list[tuple[str, ...]]:
    """One pair, the header first."""
    lines = [
        (
            arm,
            str(s.seeds),
            number(s.loss_epochs, ".1f"),
            number(s.loss_seconds, ".1f"),
            saved(s.loss_seconds_ratio),
            saved(s.probe_epochs_ratio),
            number(s.accuracy_epochs, ".1f"),
            number(s.accuracy_seconds, ".1f"),
            saved(s.accuracy_seconds_ratio),
            f"{s.loss:.4g}",
            f"{100 * s.accuracy:.2f}%",
            "" if arm == BASELINE else points(s.gain, s.gain_interval),
            number(s.budget, ".0%"),
            str(s.diverged),
            f"{s.overhead:.1%}",
            number(s.rise, ".2f"),
            "-" if math.isnan(s.dip) else points(s.dip),
        )
        for arm, s in arms.items()
    ]
    return [PAIR_HEADER, *lines]


SUMMARY_HEADER = (
    "arm",
    "pairs",
    "",
    "time saved to train loss",
    "epochs saved",
    "saved at evaluated weights",
    "time saved to accuracy",
    "difference in points",
    "equal-quality budget",
    "diverged",
)


def summary_rows(table: Scores) -> list[tuple[str, ...]]:
    """Every arm over the pairs: the median and the worst of each column."""
    lines = []
    for arm in dict.fromkeys(arm for arms in table.values() for arm in arms):
        found = [arms[arm] for arms in table.values() if arm in arms]
        columns = np.array(
            [
                (
                    s.loss_seconds_ratio,
                    s.loss_epochs_ratio,
                    s.probe_epochs_ratio,
                    s.accuracy_seconds_ratio,
                    -s.gain,
                    s.budget,
                )
                for s in found
            ]
        )
        for name, pick in (("median", np.median), ("worst", np.max)):
            known = [column[~np.isnan(column)] for column in columns.T]  # a budget may not have been trained
            loss, epochs, probe, accuracy, lost, budget = (pick(c) if c.size else math.nan for c in known)
            lines.append(
                (
                    arm if name == "median" else "",
                    str(len(found)) if name == "median" else "",
                    name,
                    *map(saved, (loss, epochs, probe, accuracy)),
                    points(-lost),
                    number(budget, ".0%"),
                    str(sum(s.diverged for s in found)) if name == "median" else "",
                )
            )
    return lines


BRIEF = {"arm": 0, "": 2, "epochs saved": 4, "time saved": 3, "accuracy, points": 7}
BRIEF |= {"equal-quality budget": 8, "diverged": 9}


def brief(table: Scores, arms: Sequence[str]) -> str:
    """The summary of a few arms as Markdown, for the README."""
    chosen = {pair: {arm: scored[arm] for arm in arms if arm in scored} for pair, scored in table.items()}
    rows = [tuple(line[i] for i in BRIEF.values()) for line in summary_rows(chosen)]
    return report.markdown([tuple(BRIEF), *rows])


def summary_terminal(table: Scores) -> Table:
    """The summary for a terminal of 80 columns."""
    shown = Table(title="Saved against the baseline, over pairs", box=box.SIMPLE, padding=(0, 1, 0, 0))
    columns = {"arm": 0, "": 2, "loss\ntime": 3, "loss\nepochs": 4, "accuracy\ntime": 6}
    columns |= {"points": 7, "equal-quality\nbudget": 8, "diverged": 9}
    for name in columns:
        shown.add_column(name, no_wrap=True)
    for line in summary_rows(table):
        shown.add_row(*(line[i] for i in columns.values()))
    return shown


COLUMNS = (
    "Means over seeds, each paired with the baseline of its seed. Targets are the baseline's own best, its time is its "
    "own first crossing; a miss in any seed is `never`. Seconds are training steps and all that the arm does at an "
    "epoch's end. *Saved at evaluated weights*: epochs to the baseline's best loss on the first training examples, at "
    "the weights that are validated (averages are not what training steps see). ± is a paired 95% t-interval. "
    "*Equal-quality budget*: the shortest of the trained schedules whose final train loss is no higher and whose "
    "accuracy is at most 0.1 points lower than the full-length baseline's. *Diverged*: runs whose final train loss is "
    "not finite or more than twice the baseline's. *Overhead*: seconds at the ends of epochs over those of training "
    "steps. *Greatest rise after a jump*: an epoch's train loss over that of the epoch before, which ended in a jump. "
    "*Accuracy at a jump*: the mean change in points from the epoch's end before."
)
SUMMARY_CAPTION = "one dot per arm and pair, a bar at the median over pairs; a miss lies at the right edge"


def all_tables(table: Scores) -> dict[str, list[tuple[str, ...]]]:
    """The summary and every pair."""
    return {"Over all pairs": [SUMMARY_HEADER, *summary_rows(table)]} | {
        pair: pair_table(arms) for pair, arms in table.items()
    }


def pair_picture(arms: Mapping[str, Runs], path: Path, title: str) -> None:
    """Train loss and validation accuracy over epochs; lines are means over seeds, bands their range."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (field, label) in zip(
        axes, (("train_loss", "train loss"), ("validation_accuracy", "validation accuracy")), strict=True
    ):
        for i, (arm, runs) in enumerate(arms.items()):
            report.curve(axis, runs.get(1.0, ()), field, arm, _color(i))
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def jumps_picture(pairs: Pairs, jumps: Mapping[tuple[int, int], str], path: Path) -> None:
    """Train loss after one jump over the baseline's, by when (columns) and how far (lines) it goes."""
    starts, horizons = (sorted({key[i] for key in jumps}) for i in (0, 1))
    figure = Figure(figsize=(14, 3.6 * len(pairs)), layout="constrained")
    rows = figure.subplots(len(pairs), len(starts), squeeze=False, sharey="row", sharex=True)
    for axes, (pair, arms) in zip(rows, pairs.items(), strict=True):
        for axis, start in zip(axes, starts, strict=True):
            for i, horizon in enumerate(horizons):
                ratios = [
                    [r["train_loss"] / b["train_loss"] for r, b in zip(run.epochs, base.epochs, strict=True)]
                    for run, base in _paired(
                        arms.get(jumps[start, horizon], {}).get(1.0, ()), arms[BASELINE][1.0]
                    )
                ]
                if ratios:
                    shown = np.mean(ratios, axis=0)[start + 1 : start + 8]
                    label = f"{horizon} epoch{'s' * (horizon > 1)} ahead"
                    axis.plot(range(1, len(shown) + 1), shown, "o-", ms=3, color=f"C{i}", label=label)
            axis.axhline(1, color="k", lw=1)
            axis.set(title=f"{pair}, after epoch {start + 1}", ylim=(0.6, 1.4))
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("train loss / baseline's")
    for axis in rows[-1]:
        axis.set_xlabel("epochs after the jump")
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110)


def _color(i: int) -> str:
    return "k" if i == 0 else f"C{(i - 1) % 10}"


def summary_picture(table: Scores, path: Path) -> None:
    """One dot per arm and pair, a bar at the median over pairs; a miss lies at the right edge."""
    figure = Figure(figsize=(14, 5), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    arms = list(dict.fromkeys(arm for arms in table.values() for arm in arms))
    panels = (
        ("loss_epochs_ratio", "epochs to baseline's best train loss"),
        ("budget", "equal-quality budget"),
        ("gain", "final accuracy against the baseline"),
    )
    for axis, (field, label) in zip(axes, panels, strict=True):
        limit = math.inf if field == "gain" else 1.3
        for j, (pair, scored) in enumerate(table.items()):
            known = [(i, getattr(scored[arm], field)) for i, arm in enumerate(arms) if arm in scored]
            values = [min(value, limit) for _, value in known]
            axis.plot(values, [i for i, _ in known], "o", color=f"C{j}", alpha=0.8, label=pair)
        for i, arm in enumerate(arms):
            middle = np.median([getattr(scored[arm], field) for scored in table.values() if arm in scored])
            axis.plot([min(middle, limit)] * 2, [i - 0.35, i + 0.35], color="k", lw=2)
        axis.axvline(0 if field == "gain" else 1, color="0.3", ls="--", lw=1)
        axis.set(
            title=label, xlabel="difference" if field == "gain" else "share of the baseline's; edge: never"
        )
        axis.grid(alpha=0.3, axis="x")
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110)
