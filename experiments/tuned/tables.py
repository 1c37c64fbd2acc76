"""Scores at tuned learning rates, and the tables and pictures of them. Nothing here trains."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
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
      persistence, pull: the means of the persistence, and of the gain of what is
        delivered, over the epochs after a prediction; NaN without them.
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
    persistence: float
    pull: float


def _at_jumps(runs: Sequence[Run]) -> tuple[float, float]:
    """`Score.rise` and `Score.dip`."""
    steps = [step for run in runs for step in itertools.pairwise(run.epochs)]
    rises = [b["train_loss"] / a["train_loss"] for a, b in steps if a["predicted"]]
    dips = [b["validation_accuracy"] - a["validation_accuracy"] for a, b in steps if b["predicted"]]
    return float(np.max(rises)) if rises else math.nan, float(np.mean(dips)) if dips else math.nan


def _after_predictions(runs: Sequence[Run], field: str) -> float:
    """The mean over the epochs after a prediction; NaN where it is not recorded."""
    steps = [step for run in runs for step in itertools.pairwise(run.epochs)]
    found = [b.get(field, math.nan) for a, b in steps if a["predicted"]]
    return float(np.mean(found)) if found else math.nan


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
        persistence=_after_predictions(chosen, "persistence"),
        pull=_after_predictions(chosen, "gain"),
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


MOST_RATIO, MOST_POINTS = 2.0, 5.0  # pictures are cut there, and name what leaves them
MOST_SHARE = 1.3  # where a miss is drawn
MOST_LINES = 10  # with more arms than that, the best few have colours and the others are grey


def pair_picture(arms: Mapping[str, Runs], path: Path, title: str) -> None:
    """Train loss over the baseline's, and accuracy less the baseline's, of the same epoch and seed.

    Lines are means over seeds, bands reach from the least to the greatest.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.subplots(1, 2)
    ends, labels = [], []
    for name, runs in arms.items():
        pairs = metrics.paired(runs.get(1.0, ()), arms[BASELINE].get(1.0, ()))
        if pairs and name != BASELINE:
            labels.append(name)
            ends.append(
                [
                    _over_epochs(pairs, "train_loss", lambda a, b: a / b),
                    _over_epochs(pairs, "validation_accuracy", lambda a, b: 100 * (a - b)),
                ]
            )
    best = sorted(range(len(labels)), key=lambda i: _finite(ends[i][0].mean(0)[-1]))
    coloured = list(range(len(labels))) if len(labels) <= MOST_LINES else best[:5]
    for panel, (axis, most) in enumerate(zip(axes, (MOST_RATIO, MOST_POINTS), strict=True)):
        for i, curves in enumerate(ends):
            values, shown = curves[panel], i in coloured
            epochs, color = np.arange(1, values.shape[1] + 1), f"C{coloured.index(i)}" if shown else "0.75"
            axis.plot(epochs, values.mean(0), color=color, lw=1.8 if shown else 0.8, zorder=2 + shown)
            if shown:
                axis.plot([], [], color=color, lw=1.8, label=labels[i])
                axis.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.12, lw=0)
        means = [of[panel].mean(0) for of in ends]
        cut = [labels[i] for i, mean in enumerate(means) if not np.all((mean < most) & (mean > -most))]
        told = ", ".join(cut) if len(cut) < 3 else f"{len(cut)} arms"
        axis.axhline(1 - panel, color="k", lw=1.2, label=BASELINE)
        axis.set(xlabel=f"epoch; in part cut off: {told}" if cut else "epoch")
        axis.grid(alpha=0.3)
    axes[0].set(title="train loss / baseline's (lower is better)")
    axes[1].set(title="validation accuracy, points above baseline's")
    for axis, least, most in ((axes[0], 0.0, MOST_RATIO), (axes[1], -MOST_POINTS, MOST_POINTS)):
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, least), min(high, most))
    lowest = min((float(np.nanmin(of[0])) for of in ends), default=1.0)
    if 0 < lowest < 0.5:
        axes[0].set(yscale="log", ylim=(0.8 * lowest, axes[0].get_ylim()[1]))
        _plain_ticks(axes[0].yaxis, axes[0].get_ylim())
    if len(labels) > len(coloured):
        axes[0].plot([], [], color="0.75", lw=0.8, label=f"{len(labels) - len(coloured)} other arms")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _over_epochs(
    pairs: Sequence[tuple[Run, Run]], field: str, of: Callable[[float, float], float]
) -> np.ndarray:
    """(seeds, epochs): a field of runs and of their baselines, put together epoch by epoch."""
    length = min(len(run.epochs) for pair in pairs for run in pair)
    values = [
        [of(a[field], b[field]) for a, b in zip(run.epochs[:length], base.epochs[:length], strict=True)]
        for run, base in pairs
    ]
    return np.array(values)


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _plain_ticks(axis: Any, limits: tuple[float, float]) -> None:
    """As few ticks of a logarithmic axis as can be read, as plain numbers."""
    steps = (1, 2, 5) if limits[1] > 10 * limits[0] else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    ticks = [step * 10.0**power for power in range(-6, 4) for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if limits[0] <= tick <= limits[1]]))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def worth_picture(pair: str, arms: Mapping[str, Runs], default: str, path: Path) -> None:
    """Train loss of the default, of the baseline, and of the baseline on the longer schedule that ends as the default does."""
    runs, baselines = arms[default].get(1.0, ()), arms[BASELINE]
    worth = metrics.effective_schedule(runs, baselines).value
    longer = min(baselines, key=lambda share: abs(worth - share))
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axis = figure.subplots()
    blue, grey = "#0072B2", "0.45"
    lines = (
        (baselines[longer], grey, "--", "{} epochs without", (-4, -30), "right"),
        (baselines[1.0], grey, "-", "{} epochs without", (6, 6), "left"),
        (runs, blue, "-", "{} epochs with pdt_optax", (-60, -16), "right"),
    )
    ends: list[float] = []
    length = 0
    for chosen, color, style, label, offset, side in lines:
        losses = np.mean([[e["train_loss"] for e in run.epochs] for run in chosen], axis=0)
        length, end = len(losses), float(losses[-1])
        axis.plot(np.arange(1, length + 1), losses, color=color, ls=style, lw=2)
        axis.plot(length, end, "o", color=color)
        text = {"textcoords": "offset points", "color": color, "ha": side, "fontsize": 11}
        axis.annotate(label.format(length), (length, end), offset, **text)
        ends.append(end)
    axis.axhline(ends[-1], color=blue, lw=0.8, ls=":", zorder=0)
    axis.set(xlabel="epoch", ylabel="train loss", yscale="log", ylim=(0.75 * min(ends), 4 * min(ends)))
    axis.set_title(
        f"{length} epochs with pdt_optax are worth {worth * length:.0f} without ({pair})", loc="left"
    )
    _plain_ticks(axis.yaxis, axis.get_ylim())
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
                found = metrics.paired(arms.get(jumps[start, horizon], {}).get(1.0, ()), arms[BASELINE][1.0])
                if found:
                    ratios = _over_epochs(found, "train_loss", lambda a, b: a / b)
                    shown = ratios.mean(0)[start + 1 : start + 8]
                    label = f"a jump of {horizon} epoch{'s' * (horizon > 1)}"
                    axis.plot(range(1, len(shown) + 1), shown, "o-", ms=3, color=f"C{i}", label=label)
            axis.axhline(1, color="k", lw=1)
            axis.set(title=f"{pair}, after epoch {start + 1}", yscale="log")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(f"train loss / baseline's, to {MOST_RATIO:g}")
        axes[0].set_ylim(top=min(axes[0].get_ylim()[1], MOST_RATIO))
        _plain_ticks(axes[0].yaxis, axes[0].get_ylim())
    for axis in rows[-1]:
        axis.set_xlabel("epochs after the jump")
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110)


def summary_picture(table: Scores, path: Path) -> None:
    """One dot per arm and pair, a black bar at the median over pairs; a miss lies at the right edge."""
    of_arm: dict[str, dict[str, Score]] = {}
    for pair, scored in table.items():
        for arm, score in scored.items():
            if arm != BASELINE:  # the dashed line
                of_arm.setdefault(arm, {})[pair] = score
    panels: list[tuple[str, Callable[[Score], float], str]] = [
        ("worth of an epoch, at equal train loss", lambda s: s.effective.value, "epochs of the baseline"),
        ("worth of a second", lambda s: s.effective_seconds.value, "seconds of the baseline"),
        ("final accuracy", lambda s: 100 * s.gain, "points more than the baseline"),
    ]
    if all(math.isnan(score.effective.value) for of in of_arm.values() for score in of.values()):
        panels[:2] = [
            (
                "epochs to the baseline's best train loss",
                lambda s: min(s.loss_epochs_ratio, MOST_SHARE),
                "share of the baseline's; at the edge: never",
            )
        ]
    figure = Figure(figsize=(13, max(3.0, 0.27 * len(of_arm) + 1.2)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, value, label) in zip(axes, panels, strict=True):
        points = title == "final accuracy"
        low, high = (-MOST_POINTS, MOST_POINTS) if points else (0.0, math.inf)
        for j, pair in enumerate(table):
            known = [(i, value(of[pair])) for i, of in enumerate(of_arm.values()) if pair in of]
            inside = [(i, v) for i, v in known if low <= v <= high]
            axis.plot(
                [v for _, v in inside], [i for i, _ in inside], "o", color=f"C{j}", alpha=0.8, label=pair
            )
            cut = [(i, v) for i, v in known if v < low]
            axis.plot([low] * len(cut), [i for i, _ in cut], "<", color=f"C{j}", alpha=0.8)
        for i, of in enumerate(of_arm.values()):
            found = [v for v in map(value, of.values()) if not math.isnan(v)]
            if len(found) > 1:
                bar = max(float(np.median(found)), low)
                axis.plot(
                    [bar] * 2,
                    [i - 0.35, i + 0.35],
                    color="k",
                    lw=2,
                    label="median over pairs" if i == 0 else None,
                )
        axis.axvline(0 if points else 1, color="0.3", ls="--", lw=1)
        axis.set(title=title, xlabel=label)
        axis.grid(alpha=0.3, axis="x")
        if "baseline" in label and label.startswith(("epochs", "seconds")):
            axis.set_xscale("log")
            _plain_ticks(axis.xaxis, axis.get_xlim())
        if points and any(value(score) < low for of in of_arm.values() for score in of.values()):
            axis.set_xlabel(f"{label}; arrows: less than {low:g}")
    axes[0].set_yticks(range(len(of_arm)), list(of_arm))
    axes[0].set_ylim(len(of_arm) - 0.4, -0.6)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110)
