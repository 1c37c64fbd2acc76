"""The pictures of the paper's views. Colours suit colour-blind readers, lines differ in grey."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.arms import BASELINE
from experiments.records import Run

# Okabe and Ito's colours, from dark to light; a line style and a marker to each.
STYLES: Sequence[dict[str, Any]] = (
    {"color": "#000000", "ls": "-", "marker": ""},
    {"color": "#0072B2", "ls": "--", "marker": "o"},
    {"color": "#D55E00", "ls": "-.", "marker": "s"},
    {"color": "#009E73", "ls": (0, (6, 1)), "marker": "^"},
    {"color": "#CC79A7", "ls": ":", "marker": "D"},
    {"color": "#E69F00", "ls": (0, (3, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": "#56B4E9", "ls": (0, (1, 1)), "marker": "x"},
)
FIXED = {BASELINE: 0, "paper": 1, "released": 2, "recommended": 3}
LABELS = {
    "train_loss": "train loss",
    "validation_loss": "validation loss",
    "validation_accuracy": "validation accuracy",
    "accepted_share": "accepted share of weights",
}


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A style for each arm; the known ones always have the same."""
    free = [i for i in range(len(STYLES)) if i not in [FIXED[n] for n in names if n in FIXED]]
    rest = [n for n in names if n not in FIXED]
    chosen = {n: free[i % len(free)] for i, n in enumerate(rest)}
    return {n: STYLES[FIXED.get(n, chosen.get(n, 0))] for n in names}


def curves(runs: Mapping[str, Sequence[Run]], fields: Sequence[str], path: Path, title: str) -> None:
    """Fields over epochs, a panel each."""
    figure = Figure(figsize=(5 * len(fields), 4.2), layout="constrained")
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    for axis, field in zip(axes, fields, strict=True):
        for rule, style in styles(list(runs)).items():
            if field != "accepted_share" or rule != BASELINE:
                curve(axis, runs[rule], field, rule, style)
        axis.set(xlabel="epoch", ylabel=LABELS[field])
        axis.grid(alpha=0.3)
        if field.endswith("loss"):
            axis.set_yscale("log")
    if "accepted_share" in fields:
        axes[list(fields).index("accepted_share")].set_ylim(0, 1.02)
    if BASELINE in runs and "train_loss" in fields:
        best = np.mean([min(e["train_loss"] for e in run.epochs) for run in runs[BASELINE]])
        axes[list(fields).index("train_loss")].axhline(
            best, color="0.4", ls=(0, (1, 3)), label="baseline's best"
        )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def curve(
    axis: Any, runs: Sequence[Run], field: str, label: str, style: Mapping[str, Any], x: Any = None
) -> None:
    """A field over epochs, or over `x`: the mean over seeds, and a band from the least to the greatest."""
    kept = [[e for e in run.epochs if field != "accepted_share" or e["predicted"]] for run in runs]
    length = min(map(len, kept), default=0)
    if length == 0:
        return
    places = [e["epoch"] for e in kept[0][:length]]
    places = places if x is None else [x[epoch - 1] for epoch in places]
    values = np.array([[e[field] for e in epochs[:length]] for epochs in kept])
    every = max(1, length // 8)
    axis.plot(places, values.mean(0), **style, label=label, markevery=every, ms=5, lw=1.6)
    if len(values) > 1:
        axis.fill_between(places, values.min(0), values.max(0), color=style["color"], alpha=0.15, lw=0)
