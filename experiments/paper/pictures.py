"""The pictures of the paper's views. Colours suit colour-blind readers, lines differ in grey."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from experiments.training.arms import BASELINE
from experiments.training.records import Run
from experiments.views import metrics

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
FIXED = {BASELINE: 0, "paper": 1, "released": 2, "drift": 3, "recommended": 4}
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
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if field.endswith("loss"):
            _scale(axis)
        if field == "train_loss":
            _cut(axis)
    if "accepted_share" in fields:
        axes[list(fields).index("accepted_share")].set_ylim(0, 1.02)
    if BASELINE in runs and "train_loss" in fields:
        best = np.mean([min(e["train_loss"] for e in run.epochs) for run in runs[BASELINE]])
        axes[list(fields).index("train_loss")].axhline(
            best, color="0.4", ls=(0, (1, 3)), label="baseline's best"
        )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3 * len(fields) - 2))
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


@FuncFormatter
def _plain(value: float, _: Any) -> str:
    """A tick of a logarithmic axis, where its first digit leaves room for it."""
    return f"{value:g}" if f"{value:.0e}"[0] in "12346" else ""


def _scale(axis: Any) -> None:
    """Logarithmic where losses span more than a factor of three."""
    values = np.concatenate([line.get_ydata() for line in axis.get_lines()] or [[1.0]])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 3 * values.min():
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(_plain)
        axis.yaxis.set_minor_formatter(_plain if values.max() < 100 * values.min() else NullFormatter())


def _cut(axis: Any) -> None:
    """Cuts off what lies far above the first epoch's loss, and says so: it would squash everything else."""
    first, high = max(line.get_ydata()[0] for line in axis.get_lines()), axis.get_ylim()[1]
    if 0 < 3 * first < high:
        axis.set_ylim(top=2 * first)
        axis.set_ylabel(f"{axis.get_ylabel()}, up to {2 * first:.2g}")


def curve(
    axis: Any, runs: Sequence[Run], field: str, label: str, style: Mapping[str, Any], x: Any = None
) -> None:
    """A field over epochs, or over `x`: the mean over seeds, and a band from the least to the greatest.

    A cross stands where the line ends because a seed's values are not finite any more.
    """
    kept = [[e for e in run.epochs if field != "accepted_share" or e["predicted"]] for run in runs]
    length = min(map(len, kept), default=0)
    if length == 0:
        return
    places = [e["epoch"] for e in kept[0][:length]]
    places = places if x is None else [x[epoch - 1] for epoch in places]
    values = np.array([[e[field] for e in epochs[:length]] for epochs in kept])
    every = max(1, length // 8)
    mean = values.mean(0)
    axis.plot(places, mean, **style, label=label, markevery=every, ms=5, lw=1.6)
    finite = np.isfinite(mean)
    if not finite.all():
        last = max(int(finite.argmin()) - 1, 0)
        axis.plot(places[last], mean[last], "x", color=style["color"], ms=11, mew=2.5, zorder=5)
    if len(values) > 1:
        axis.fill_between(places, values.min(0), values.max(0), color=style["color"], alpha=0.15, lw=0)


def operations(runs: Mapping[str, tuple[Sequence[Run], np.ndarray]], path: Path, title: str) -> None:
    """Train loss over epochs and over operations so far."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    chosen = styles(list(runs))
    for rule, (own, work) in runs.items():
        curve(axes[0], own, "train_loss", rule, chosen[rule])
        curve(axes[1], own, "train_loss", rule, chosen[rule], x=work / 1e12)
    axes[0].set(xlabel="epoch", ylabel="train loss")
    axes[1].set(xlabel="operations so far, in 1e12")
    for axis in axes:
        axis.grid(alpha=0.3)
    _scale(axes[0])
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def shares(
    run: Run, kernels: Sequence[str], is_convolution: Callable[[str], bool], path: Path, title: str
) -> None:
    """The accepted share at every jump: of each layer, and of its types."""
    jumps = [e for e in run.epochs if "shares" in e]
    epochs = [e["epoch"] for e in jumps]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    layers, types = figure.subplots(1, 2, sharey=True)
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(kernels)))
    for i, leaf in enumerate(kernels):
        style = STYLES[i % len(STYLES)]
        values = [e["shares"][leaf] for e in jumps]
        label = leaf.removesuffix("/kernel")
        layers.plot(
            epochs, values, color=shades[i], ls=style["ls"], marker="osD^vx*P"[i % 8], ms=5, label=label
        )
    for i, (label, kind) in enumerate((("convolutions", True), ("dense layers", False))):
        chosen = [leaf for leaf in kernels if is_convolution(leaf) == kind]
        values = [np.mean([e["shares"][leaf] for leaf in chosen]) for e in jumps]
        types.plot(epochs, values, **STYLES[i + 1], label=f"{label}, mean over layers")
    types.plot(epochs, [e["accepted_share"] for e in jumps], **STYLES[0], label="all weights")
    layers.set(xlabel="epoch", ylabel=LABELS["accepted_share"], title="by layer")
    layers.set_ylim(bottom=0)
    types.set(xlabel="epoch", title="by type")
    for axis in (layers, types):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def mask(arrays: Mapping[str, np.ndarray], path: Path, title: str) -> None:
    """A band for each kernel, in the order of its weights from left to right and from top to bottom."""
    bands = [
        (n, b) for n, b in zip(arrays["mask_names"], arrays["mask"], strict=True) if n.endswith("kernel")
    ]
    figure = Figure(figsize=(10, 0.55 * len(bands) + 1.2), layout="constrained")
    axes = figure.subplots(len(bands), 1, squeeze=False)[:, 0]
    image: Any = None
    for axis, (name, band) in zip(axes, bands, strict=True):
        image = axis.imshow(
            band / 255, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest"
        )
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(str(name).removesuffix("/kernel"), rotation=0, ha="right", va="center")
    figure.colorbar(image, ax=list(axes), label="share that jumped")
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def _levels(surfaces: Sequence[np.ndarray]) -> np.ndarray:
    """Of contours of losses, evenly apart on a logarithmic scale."""
    losses = np.concatenate([surface.ravel() for surface in surfaces])
    losses = np.maximum(losses[np.isfinite(losses)], 1e-6)
    low, high = np.log10(losses.min()), np.log10(losses.max())
    return np.logspace(low, max(high, low + 1e-3), 16)


def overlay(plane: Mapping[str, np.ndarray], paths: Mapping[str, np.ndarray], path: Path, title: str) -> None:
    """Paths of several runs over the loss in the plane of one."""
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axis = figure.subplots()
    levels = _levels([plane["landscape_loss"]])
    place = (plane["landscape_x"], plane["landscape_y"], plane["landscape_loss"])
    surface = axis.contourf(*place, levels, norm=LogNorm(), cmap="Greys", extend="both")
    for rule, style in styles(list(paths)).items():
        points = paths[rule]
        axis.plot(*points.T, **{**style, "marker": "."}, lw=1.4, ms=5, label=rule)
        axis.plot(*points[-1], "*", color=style["color"], ms=13)
    first, second = 100 * plane["landscape_explained"]
    axis.set(
        xlabel=f"first direction of the baseline ({first:.0f}% of the variance)",
        ylabel=f"second direction ({second:.0f}%)",
        title=title,
    )
    axis.legend()
    figure.colorbar(surface, label="train loss", ticks=levels[::3], format="%.3g")
    figure.savefig(path, dpi=100)


def landscapes(arrays: Mapping[str, Mapping[str, np.ndarray]], path: Path, title: str) -> None:
    """A panel for each run: contours of the loss, the path on it, rings where it was predicted."""
    figure = Figure(figsize=(4.9 * len(arrays), 4.6), layout="constrained")
    axes = figure.subplots(1, len(arrays), squeeze=False)[0]
    levels = _levels([a["landscape_loss"] for a in arrays.values()])
    surface: Any = None
    for axis, (rule, a) in zip(axes, arrays.items(), strict=True):
        place = (a["landscape_x"], a["landscape_y"], a["landscape_loss"])
        surface = axis.contourf(*place, levels, norm=LogNorm(), cmap="Greys", extend="both")
        x, y = a["landscape_points"].T
        axis.plot(x, y, ".-", color="#D55E00", lw=1.4, ms=5, label="weights at epochs' ends")
        jumped = a["landscape_jumped"]
        if jumped.any():
            axis.plot(x[jumped], y[jumped], "o", mfc="none", color="#0072B2", ms=9, label="predicted")
        axis.plot(x[0], y[0], "s", color="#0072B2", ms=8, label="start")
        axis.plot(x[-1], y[-1], "*", color="#0072B2", ms=13, label="end")
        first, second = 100 * a["landscape_explained"]
        axis.set(
            title=rule,
            xlabel=f"first direction ({first:.0f}% of the variance)",
            ylabel=f"second direction ({second:.0f}%)",
        )
    handles = axes[-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(handles[1]))
    figure.colorbar(surface, ax=list(axes), label="train loss", ticks=levels[::3], format="%.3g")
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def hyperparameters(
    panels: Mapping[str, Mapping[int, Sequence[Run]]], baseline: Sequence[Run], path: Path, title: str
) -> None:
    """A panel for each setting, a line for each of its values: train loss over the baseline's, which keeps the lines apart."""
    figure = Figure(figsize=(4.2 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        axis.axhline(1, color="k", lw=1.2, label=BASELINE)
        shades = colormaps["viridis"](np.linspace(0, 0.9, len(values)))
        for i, (value, runs) in enumerate(values.items()):
            style = {**STYLES[1 + i % (len(STYLES) - 1)], "color": shades[i]}
            curve(axis, _relative(runs, baseline), "train_loss", f"{name} {value}", style)
        axis.set(xlabel="epoch", title=name)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("train loss / baseline's")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, min(high, 1.5))
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def _relative(runs: Sequence[Run], baseline: Sequence[Run]) -> list[Run]:
    """The runs with their train loss over that of the baseline's epoch, of the same seed."""
    return [
        run._replace(
            epochs=[
                {**a, "train_loss": a["train_loss"] / b["train_loss"]}
                for a, b in zip(run.epochs, base.epochs, strict=False)
            ]
        )
        for run, base in metrics.paired(runs, baseline)
    ]
