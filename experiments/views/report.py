"""Tables and pictures over records. Nothing here trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.table import Table

from experiments.training.arms import BASELINE
from experiments.training.records import Run
from experiments.views import metrics
from experiments.views.metrics import Crossing, time_ratio, to_best

MEANING = {
    BASELINE: "the optimizer alone",
    "recommended": "the default of `pdt`",
    "drift": "the former default",
    "released": "the rule of the authors' released code",
    "paper": "the paper's Algorithm 1",
}


class Result(NamedTuple):
    """One run against the baseline of the same seed; ratios are `metrics.time_ratio`."""

    to_loss: Crossing
    to_accuracy: Crossing
    loss_ratio: float
    accuracy_ratio: float
    best_loss: float
    final_accuracy: float
    pdt_seconds: float


def compare(run: Run, baseline: Run) -> Result:
    """Both targets are the baseline's own best; its time is its first crossing."""
    return Result(
        to_best(run, baseline, "train_loss"),
        to_best(run, baseline, "validation_accuracy"),
        time_ratio(run, baseline, "train_loss"),
        time_ratio(run, baseline, "validation_accuracy"),
        min(e["train_loss"] for e in run.epochs),
        metrics.last(run, "validation_accuracy"),
        metrics.total(run, "pdt_seconds"),
    )


class Row(NamedTuple):
    """One line of the table: means over seeds, as text."""

    rule: str
    seeds: str
    loss_epochs: str
    loss_seconds: str
    loss_saved: str
    accuracy_epochs: str
    accuracy_seconds: str
    accuracy_saved: str
    best_loss: str
    final_accuracy: str
    pdt_seconds: str


HEADER = Row(
    "rule",
    "seeds",
    "epochs to baseline's best train loss",
    "seconds",
    "time saved",
    "epochs to baseline's best accuracy",
    "seconds",
    "time saved",
    "best train loss",
    "final accuracy",
    "seconds in PDT",
)


def rows(runs: Sequence[Run]) -> list[Row]:
    """For each rule, means over the seeds whose baseline is complete.

    A miss is infinite and counted, never dropped: with any miss, a mean is
    replaced by how many seeds reached the target.
    """
    baselines = {r.seed: r for r in runs if r.rule == BASELINE and r.complete}
    table = []
    for rule in dict.fromkeys(run.rule for run in runs):
        chosen = [r for r in runs if r.rule == rule and r.seed in baselines]
        if not chosen:
            continue
        least = min(len(r.epochs) for r in chosen)
        name = rule if all(r.complete for r in chosen) else f"{rule} (stopped at epoch {least})"
        results = [compare(r, baselines[r.seed]) for r in chosen]
        table.append(
            Row(
                name,
                str(len(results)),
                _mean([r.to_loss.epochs for r in results], ".1f"),
                _mean([r.to_loss.seconds for r in results], ".1f"),
                saved([r.loss_ratio for r in results]),
                _mean([r.to_accuracy.epochs for r in results], ".1f"),
                _mean([r.to_accuracy.seconds for r in results], ".1f"),
                saved([r.accuracy_ratio for r in results]),
                _mean([r.best_loss for r in results], ".2g"),
                _mean([r.final_accuracy for r in results], ".4f"),
                _mean([r.pdt_seconds for r in results], ".2f"),
            )
        )
    return table


def saved(ratios: Sequence[float]) -> str:
    """The mean saving that ratios to the baseline mean; "-" with any miss."""
    percent = round(100 * (1 - float(np.mean(ratios)))) if np.all(np.isfinite(ratios)) else None
    return "-" if percent is None else f"{percent}%"


def _mean(values: Sequence[float], form: str) -> str:
    """Mean and deviation; with any miss, how many there are instead."""
    reached = np.isfinite(values)
    if not reached.all():
        return f"never ({reached.sum()} of {len(values)} did)" if reached.any() else "never"
    deviation = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{deviation}"


def terminal_table(runs: Sequence[Run]) -> Table:
    """The table for a terminal of 80 columns."""
    table = Table(title="Against the baseline of the same seed", box=box.SIMPLE, padding=0)
    for column in ("rule", "to its best\ntrain loss", "to its best\naccuracy", "best train\nloss"):
        table.add_column(column, no_wrap=True)
    for column in ("final\naccuracy", "seconds\nin PDT"):
        table.add_column(column, no_wrap=True)
    for r in rows(runs):
        table.add_row(
            f"{r.rule}\n[dim]{r.seeds} seed{'s' * (r.seeds != '1')}".replace(" (", "\n("),
            _stack(r.loss_epochs, r.loss_seconds, r.loss_saved),
            _stack(r.accuracy_epochs, r.accuracy_seconds, r.accuracy_saved),
            r.best_loss.replace(" ±", "\n±"),
            r.final_accuracy.replace(" ±", "\n±"),
            r.pdt_seconds.replace(" ±", "\n±"),
        )
        table.add_section()
    meant = dict.fromkeys(run.rule for run in runs if run.rule in MEANING)
    table.caption = (
        "; ".join(f"{rule}: {MEANING[rule]}" for rule in meant)
        + "\nsaved: of the epochs, the rule's own longer by its overhead; seconds tell what else the machine did, too"
    )
    return table


def _stack(epochs: str, seconds: str, saved: str) -> str:
    if epochs.startswith("never"):
        return epochs.replace(" (", "\n(")
    return f"{epochs} epochs\n{seconds} s\n{saved} saved"


def markdown_table(runs: Sequence[Run]) -> str:
    """The table as Markdown."""
    return markdown([HEADER, *rows(runs)])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line is its header."""
    header, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rest)) + "\n"


def picture(runs: Sequence[Run], path: Path, title: str) -> None:
    """Train loss, validation accuracy and accepted share over epochs, as Figs. 4 and 10 show them.

    Lines are means over seeds, bands reach from the least to the greatest.
    """
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = (
        ("train_loss", "train loss"),
        ("validation_accuracy", "validation accuracy"),
        ("accepted_share", "accepted share of weights"),
    )
    for axis, (field, label) in zip(axes, panels, strict=True):
        for i, rule in enumerate(dict.fromkeys(run.rule for run in runs)):
            color = "0.4" if rule == BASELINE else f"C{i - 1}"
            curve(axis, [r for r in runs if r.rule == rule and r.epochs], field, rule, color)
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    baselines = [min(e["train_loss"] for e in r.epochs) for r in runs if r.rule == BASELINE and r.epochs]
    if baselines:
        axes[0].axhline(float(np.mean(baselines)), color="0.3", ls="--", lw=1, label="baseline's best")
    axes[0].set_yscale("log")
    axes[2].set_ylim(0, 1.02)
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def curve(axis: Any, runs: Sequence[Run], field: str, label: str, color: str) -> None:
    """One field over epochs: the mean over seeds, and a band from the least to the greatest."""
    if field == "accepted_share":
        if label == BASELINE:
            return
        runs = [run._replace(epochs=[e for e in run.epochs if e["predicted"]]) for run in runs]
    length = min((len(run.epochs) for run in runs), default=0)
    if length == 0:
        return
    epochs = [e["epoch"] for e in runs[0].epochs[:length]]
    values = np.array([[e[field] for e in run.epochs[:length]] for run in runs])
    marker = "." if field == "accepted_share" else None
    axis.plot(epochs, values.mean(0), color=color, label=label, marker=marker)
    if len(runs) > 1:
        axis.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.2, lw=0)
