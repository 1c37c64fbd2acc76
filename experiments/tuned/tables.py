"""Scores at tuned learning rates, and the tables and pictures of them. Nothing here trains."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter
from rich import box
from rich.table import Table

from experiments.training.arms import BASELINE
from experiments.training.records import Run
from experiments.views import metrics, report
from experiments.views.metrics import Effective, Runs


class Score(NamedTuple):
    """An arm on one pair: means over seeds. Ratios are to the baseline of the same seed; a miss is infinite.

    Attributes:
      seeds: how many.
      effective: the effective schedule at the final train loss; at evaluated weights
        (`probe_loss`), at the validation loss where that still falls, and per second
        at the final train loss. See `metrics.effective_schedule`.
      loss_epochs, loss_seconds: to the baseline's best train loss.
      loss_epochs_ratio, loss_time_ratio: `metrics.epochs_ratio` and `metrics.time_ratio`.
      probe_epochs_ratio: epochs to the baseline's best loss on the training
        probe, taken at the evaluated weights: the fair one for averages.
      accuracy_epochs, accuracy_seconds, accuracy_epochs_ratio,
        accuracy_time_ratio: likewise for the best validation accuracy.
      loss: final train loss.
      accuracy: final validation accuracy.
      gain, gain_interval: its difference to the baseline's, and the half width
        of the paired 95% interval.
      diverged: seeds that did.
      overhead: what the arm does at the ends of epochs, over its training steps, in seconds.
      rise: the greatest train loss of an epoch after a jump, over that of the epoch before; NaN without jumps.
      dip: the mean change of validation accuracy from an epoch's end to the next one's, where that is a jump.
    """

    seeds: int
    effective: Effective
    effective_probe: Effective
    effective_validation: Effective
    effective_seconds: Effective
    loss_epochs: float
    loss_seconds: float
    loss_epochs_ratio: float
    loss_time_ratio: float
    probe_epochs_ratio: float
    accuracy_epochs: float
    accuracy_seconds: float
    accuracy_epochs_ratio: float
    accuracy_time_ratio: float
    loss: float
    accuracy: float
    gain: float
    gain_interval: float
    diverged: int
    overhead: float
    rise: float
    dip: float


def _at_jumps(runs: Sequence[Run]) -> tuple[float, float]:
    """`Score.rise` and `Score.dip`."""
    steps = [step for run in runs for step in itertools.pairwise(run.epochs)]
    rises = [b["train_loss"] / a["train_loss"] for a, b in steps if a["predicted"]]
    dips = [b["validation_accuracy"] - a["validation_accuracy"] for a, b in steps if b["predicted"]]
    return float(np.max(rises)) if rises else math.nan, float(np.mean(dips)) if dips else math.nan


def score(runs: Runs, baselines: Runs) -> Score | None:
    """An arm against the baseline; None without full-length runs of a common seed."""
    pairs = metrics.paired(runs.get(1.0, ()), baselines.get(1.0, ()))
    if not pairs:
        return None
    chosen = [run for run, _ in pairs]

    def effective(field: str, per_second: bool = False) -> Effective:
        return metrics.effective_schedule(chosen, baselines, field, per_second=per_second)

    def times(field: str) -> tuple[float, float, float, float]:
        """Mean epochs and seconds to the baseline's best, and mean ratios to its own first crossing."""
        means = np.mean([metrics.to_best(*pair, field) for pair in pairs], axis=0)
        ratios = [(metrics.epochs_ratio(*pair, field), metrics.time_ratio(*pair, field)) for pair in pairs]
        (epochs, seconds), (epochs_ratio, time_ratio) = means, np.mean(ratios, axis=0)
        return float(epochs), float(seconds), float(epochs_ratio), float(time_ratio)

    loss, accuracy = times("train_loss"), times("validation_accuracy")
    gain, gain_interval = metrics.accuracy_difference(pairs)
    rise, dip = _at_jumps(chosen)
    return Score(
        seeds=len(pairs),
        effective=effective("train_loss"),
        effective_probe=effective("probe_loss"),
        effective_validation=effective("validation_loss"),
        effective_seconds=effective("train_loss", per_second=True),
        loss_epochs=loss[0],
        loss_seconds=loss[1],
        loss_epochs_ratio=loss[2],
        loss_time_ratio=loss[3],
        probe_epochs_ratio=times("probe_loss")[2],
        accuracy_epochs=accuracy[0],
        accuracy_seconds=accuracy[1],
        accuracy_epochs_ratio=accuracy[2],
        accuracy_time_ratio=accuracy[3],
        loss=float(np.mean([metrics.last(r, "train_loss") for r in chosen])),
        accuracy=float(np.mean([metrics.last(r, "validation_accuracy") for r in chosen])),
        gain=gain,
        gain_interval=gain_interval,
        diverged=sum(metrics.diverged(*pair) for pair in pairs),
        overhead=float(np.mean([metrics.overhead(r) for r in chosen])),
        rise=rise,
        dip=dip,
    )


Pairs = Mapping[str, Mapping[str, Runs]]  # pair -> arm -> share of the schedule -> runs
Scores = Mapping[str, Mapping[str, Score]]  # pair -> arm


def scores(pairs: Pairs) -> Scores:
    """All scores that the records allow."""
    table = {}
    for pair, arms in pairs.items():
        found = {arm: score(runs, arms.get(BASELINE, {})) for arm, runs in arms.items()}
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


def factor(value: float, bound: int = 0) -> str:
    """An effective schedule; one that is no less or no more than this is marked."""
    return "-" if math.isnan(value) else f"{('≤ ', '', '≥ ')[bound + 1]}{value:.2f}"


def interval(of: Effective) -> str:
    """An effective schedule with its 95% interval, if all seeds have a value and these differ."""
    known = math.isfinite(of.high) and not of.bound and of.low < of.high
    return factor(of.value, of.bound) + (f" ({of.low:.2f} to {of.high:.2f})" if known else "")


PAIR_HEADER = (
    "arm",
    "seeds",
    "effective schedule",
    "at evaluated weights",
    "at validation loss",
    "per second",
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
    "diverged",
    "overhead",
    "greatest rise after a jump",
    "accuracy at a jump",
)


def pair_table(arms: Mapping[str, Score]) -> list[tuple[str, ...]]:
    """One pair, the header first; columns that nothing is known of are left out."""
    lines = [
        (
            arm,
            str(s.seeds),
            interval(s.effective),
            interval(s.effective_probe),
            interval(s.effective_validation),
            interval(s.effective_seconds),
            number(s.loss_epochs, ".1f"),
            number(s.loss_seconds, ".1f"),
            saved(s.loss_time_ratio),
            saved(s.probe_epochs_ratio),
            number(s.accuracy_epochs, ".1f"),
            number(s.accuracy_seconds, ".1f"),
            saved(s.accuracy_time_ratio),
            f"{s.loss:.4g}",
            f"{100 * s.accuracy:.2f}%",
            "" if arm == BASELINE else points(s.gain, s.gain_interval),
            str(s.diverged),
            f"{s.overhead:.1%}",
            number(s.rise, ".2f"),
            "-" if math.isnan(s.dip) else points(s.dip),
        )
        for arm, s in arms.items()
    ]
    return _known([PAIR_HEADER, *lines])


def _known(lines: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """A table, its first line the header, without the columns in which every other line says "-"."""
    kept = [i for i in range(len(lines[0])) if any(line[i] != "-" for line in lines[1:])]
    return [tuple(line[i] for i in kept) for line in lines]


SUMMARY_HEADER = (
    "arm",
    "pairs",
    "",
    "effective schedule",
    "at evaluated weights",
    "at validation loss",
    "per second",
    "time saved to train loss",
    "epochs saved",
    "saved at evaluated weights",
    "time saved to accuracy",
    "difference in points",
    "diverged",
)


def summary_rows(table: Scores) -> list[tuple[str, ...]]:
    """Every arm over the pairs: the median and the worst of each column, where it is known."""
    lines = []
    for arm in dict.fromkeys(arm for arms in table.values() for arm in arms):
        found = [arms[arm] for arms in table.values() if arm in arms]
        for name, pick in (("median", np.median), ("worst", np.max)):

            def over(values: Sequence[float], pick: Callable[..., Any] = pick) -> float:
                """The median, or the worst, which is the greatest, of what is known."""
                known = [value for value in values if not math.isnan(value)]
                return float(pick(known)) if known else math.nan

            def effective(of: Sequence[Effective], name: str = name) -> str:
                known = sorted(e for e in of if not math.isnan(e.value))
                middle = known[(len(known) - 1) // 2 : len(known) // 2 + 1]
                chosen = middle if name == "median" else known[:1]
                value = float(np.mean([e.value for e in chosen])) if chosen else math.nan
                return factor(value, next((e.bound for e in chosen if e.bound), 0))

            first = name == "median"
            lines.append(
                (
                    arm if first else "",
                    str(len(found)) if first else "",
                    name,
                    effective([s.effective for s in found]),
                    effective([s.effective_probe for s in found]),
                    effective([s.effective_validation for s in found]),
                    effective([s.effective_seconds for s in found]),
                    saved(over([s.loss_time_ratio for s in found])),
                    saved(over([s.loss_epochs_ratio for s in found])),
                    saved(over([s.probe_epochs_ratio for s in found])),
                    saved(over([s.accuracy_time_ratio for s in found])),
                    points(-over([-s.gain for s in found])),
                    str(sum(s.diverged for s in found)) if first else "",
                )
            )
    return lines


BRIEF = ("arm", "", "effective schedule", "at evaluated weights", "at validation loss", "per second")
BRIEF = (*BRIEF, "epochs saved", "difference in points", "diverged")


def brief(table: Scores, arms: Sequence[str]) -> str:
    """The summary of a few arms as Markdown, for the README."""
    chosen = {pair: {arm: scored[arm] for arm in arms if arm in scored} for pair, scored in table.items()}
    columns = [SUMMARY_HEADER.index(name) for name in BRIEF]
    rows = [tuple(line[i] for i in columns) for line in (SUMMARY_HEADER, *summary_rows(chosen))]
    return report.markdown(_known(rows))


def summary_terminal(table: Scores) -> Table:
    """The summary for a terminal of 80 columns."""
    shown = Table(title="Against the baseline, over pairs", box=box.SIMPLE, padding=(0, 1, 0, 0))
    columns = {"arm": "arm", "": "", "effective\nschedule": "effective schedule", "per\nsecond": "per second"}
    columns |= {"evaluated\nweights": "at evaluated weights", "epochs\nsaved": "epochs saved"}
    columns |= {"points": "difference in points", "diverged": "diverged"}
    for name in columns:
        shown.add_column(name, no_wrap=True)
    for line in summary_rows(table):
        shown.add_row(*(line[SUMMARY_HEADER.index(name)] for name in columns.values()))
    return shown


COLUMNS = (
    "Means over seeds, each paired with the baseline of its seed.\n\n"
    "*Effective schedule*: the length of the baseline's schedule that ends at the arm's final train loss, over "
    "the length of the arm's own; 1.25: 40 epochs of the arm are worth 50 of the baseline. Log loss is "
    "interpolated against log epochs over the baseline's lengths that were trained; a longer schedule that ends "
    "higher counts like the best shorter one. Up to one step from length to length is extrapolated; what lies "
    "beyond is a bound (≥, ≤). Geometric means, with paired 95% t-intervals of the logs. *At evaluated weights*: "
    "the same at the loss on the first training examples, at the weights that are validated (averages are not "
    "what training steps see). *At validation loss*: the same, on pairs where the baseline's mean final "
    "validation loss at twice the schedule is lower than at the full one. *Per second*: the effective schedule "
    "with the arm's own schedule longer by its overhead; what it adds to a step is not in it "
    "(`python -m benchmarks.step`).\n\n"
    "Targets of the other columns are the baseline's own best, its time is its own first crossing; a miss in any "
    "seed is `never`. Seconds are training steps and all that the arm does at an epoch's end. *Time saved*: of "
    "the epochs to the target, the arm's longer by its overhead. ± is a paired 95% t-interval. *Diverged*: runs "
    "whose final train loss is not finite or more than twice the baseline's. *Overhead*: seconds at the ends of "
    "epochs over those of training steps. *Greatest rise after a jump*: an epoch's train loss over that of the "
    "epoch before, which ended in a jump. *Accuracy at a jump*: the mean change in points from the epoch's end "
    "before."
)
SUMMARY_CAPTION = (
    "one dot per arm and pair, a black bar at the median over pairs; a miss lies at the right edge"
)


def all_tables(table: Scores) -> dict[str, list[tuple[str, ...]]]:
    """The summary and every pair."""
    return {"Over all pairs": _known([SUMMARY_HEADER, *summary_rows(table)])} | {
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


def worth_picture(arms: Mapping[str, Runs], default: str, path: Path) -> None:
    """Train loss of the default, of the baseline, and of the baseline on the longer schedule that ends as the default does."""
    runs, baselines = arms[default].get(1.0, ()), arms[BASELINE]
    longer = min(baselines, key=lambda share: abs(metrics.effective_schedule(runs, baselines).value - share))
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axis = figure.subplots()
    blue, grey = "#0072B2", "0.5"
    lines = (
        (baselines[longer], grey, "--", "{} epochs without", (-4, -30), "right"),
        (baselines[1.0], grey, "-", "{} epochs without", (6, 6), "left"),
        (runs, blue, "-", "{} epochs with pdt_optax", (-60, -16), "right"),
    )
    ends: list[float] = []
    for chosen, color, style, label, offset, side in lines:
        losses = np.mean([[e["train_loss"] for e in run.epochs] for run in chosen], axis=0)
        epochs, end = len(losses), float(losses[-1])
        axis.plot(np.arange(1, epochs + 1), losses, color=color, ls=style, lw=2)
        axis.plot(epochs, end, "o", color=color)
        text = {"textcoords": "offset points", "color": color, "ha": side, "fontsize": 11}
        axis.annotate(label.format(epochs), (epochs, end), offset, **text)
        ends.append(end)
    axis.axhline(ends[-1], color=blue, lw=0.8, ls=":", zorder=0)
    axis.set(xlabel="epoch", ylabel="train loss", yscale="log", ylim=(0.75 * min(ends), 4 * min(ends)))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(ScalarFormatter())
    axis.spines[["top", "right"]].set_visible(False)
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
                    for run, base in metrics.paired(
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
    """One dot per arm and pair, a black bar at the median over pairs; a miss lies at the right edge."""
    figure = Figure(figsize=(14, 5.5), layout="constrained")
    arms = list(dict.fromkeys(arm for arms in table.values() for arm in arms))
    panels: list[tuple[str, Callable[[Score], float], str]] = [
        ("effective schedule at train loss", lambda s: s.effective.value, "multiple of the schedule"),
        ("per second", lambda s: s.effective_seconds.value, "the same, overhead in"),
        ("final accuracy", lambda s: 100 * s.gain, "points more than the baseline"),
    ]
    if all(math.isnan(s.effective.value) for scored in table.values() for s in scored.values()):
        panels[:2] = [
            (
                "epochs to baseline's best train loss",
                lambda s: min(s.loss_epochs_ratio, 1.3),
                "share of the baseline's; edge: never",
            )
        ]
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, value, label) in zip(axes, panels, strict=True):
        for j, (pair, scored) in enumerate(table.items()):
            known = [(i, value(scored[arm])) for i, arm in enumerate(arms) if arm in scored]
            axis.plot([v for _, v in known], [i for i, _ in known], "o", color=f"C{j}", alpha=0.8, label=pair)
        for i, arm in enumerate(arms):
            values = [value(scored[arm]) for scored in table.values() if arm in scored]
            found = [v for v in values if not math.isnan(v)]
            if found:
                label_bar = "median over pairs" if i == 0 else None
                axis.plot([np.median(found)] * 2, [i - 0.35, i + 0.35], color="k", lw=2, label=label_bar)
        axis.axvline(0 if title == "final accuracy" else 1, color="0.3", ls="--", lw=1)
        axis.set(title=title, xlabel=label)
        axis.grid(alpha=0.3, axis="x")
        if "multiple" in label:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(NullLocator())
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110)
