"""Pictures of reports: one number, or a few, an epoch."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from pdt_optax._report import PDTReport
from pdt_optax.plot._common import BLUE, GREY, VERMILION, axes, colorbar, whole_epochs

Reports = Sequence[PDTReport] | PDTReport


def eigenvalues(reports: Reports, ax: Axes | None = None) -> Axes:
    """The eigenvalues of every prediction's model in the unit circle, lighter as training goes.

    An eigenvalue is a mode's factor per snapshot: inside the circle the mode
    decays, at 1 it rests, off the real axis it turns. `drift` has the one
    eigenvalue 1, where a weight keeps its velocity.

    Args:
      reports: of a run, one an epoch.
      ax: where to draw.

    Raises:
      ValueError: for no reports, or none that predicted.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> tx = pdt_optax.pdt(optax.sgd(0.1), dynamics=pdt_optax.dmd(rank=1), window=3)
      >>> params, reports = jnp.array([1.0, 2.0]), []
      >>> opt_state = tx.init(params)
      >>> for epoch in range(6):
      ...     params, opt_state, report = tx.end_epoch(0.8 * params, opt_state)
      ...     reports.append(report)
      >>> ax = pdt_optax.plot.eigenvalues(reports)
      >>> [round(float(x), 2) for x, y in ax.collections[0].get_offsets()]
      [0.8, 0.8]
    """
    epochs, r = _predictions(reports)
    ax = axes(ax)
    known = r.eigenvalues != 0
    found = r.eigenvalues[known]
    time = np.broadcast_to(epochs[:, None], known.shape)[known]
    ax.add_patch(Circle((0, 0), 1, fill=False, color="black", lw=1))
    ax.axhline(0, color=GREY, lw=0.5, zorder=0)
    ax.axvline(0, color=GREY, lw=0.5, zorder=0)
    points = ax.scatter(found.real, found.imag, c=time, cmap="cividis", s=30, edgecolors="k", linewidths=0.4)
    colorbar(ax, points, "epoch", ticks=MaxNLocator(integer=True))
    ax.set(aspect="equal", xlabel="real part, per snapshot", ylabel="imaginary part, per snapshot")
    return ax


def singular_values(reports: Reports, ax: Axes | None = None) -> Axes:
    """The singular values of each prediction's window, filled where the model uses them.

    They span several orders of magnitude: the first is the weights' common
    part, the others are their motion.

    Args:
      reports: of a run, one an epoch.
      ax: where to draw.

    Raises:
      ValueError: for no reports, none that predicted, or a model without
        singular values, such as `drift`.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> tx = pdt_optax.pdt(optax.sgd(0.1), dynamics=pdt_optax.dmd(rank=1), window=3)
      >>> params, reports = jnp.array([3.0, 4.0]), []
      >>> opt_state = tx.init(params)
      >>> for epoch in range(4):
      ...     params, opt_state, report = tx.end_epoch(0.5 * params, opt_state)
      ...     reports.append(report)
      >>> ax = pdt_optax.plot.singular_values(reports)
      >>> round(float(ax.lines[0].get_ydata()[0]), 3)  # |2.5, 1.25|, the window without its newest
      2.795
    """
    epochs, r = _predictions(reports)
    if not r.singular_values.any():
        raise ValueError(
            "There is nothing to draw: the model does not need the window's singular values, as `drift` does not. "
            f"Got {len(epochs)} predictions without."
        )
    ax = axes(ax)
    positive = np.where(r.singular_values > 0, r.singular_values, np.nan)  # zero has no place on a log axis
    used = np.arange(positive.shape[1]) < r.rank[:, None]
    ax.plot(epochs, positive, color=GREY, lw=1)
    for chosen, face, label in ((used, BLUE, "used by the model"), (~used, "white", "cut")):
        time = np.broadcast_to(epochs[:, None], positive.shape)[chosen]
        ax.plot(time, positive[chosen], "o", ms=5, color=BLUE, markerfacecolor=face, label=label)
    ax.set(xlabel="epoch", ylabel="singular value of the window", yscale="log")
    ax.legend()
    return whole_epochs(ax)


def accepted_share(reports: Reports, ax: Axes | None = None) -> Axes:
    """The share of the weights that took each prediction; jumps that the guard took back are crossed.

    Args:
      reports: of a run, one an epoch.
      ax: where to draw.

    Raises:
      ValueError: for no reports, or none that predicted.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> tx, params, reports = pdt_optax.pdt(optax.sgd(0.1), **pdt_optax.presets.drift), jnp.array([1.0, 2.0]), []
      >>> opt_state = tx.init(params)
      >>> for epoch in range(8):
      ...     params, opt_state, report = tx.end_epoch(0.8 * params, opt_state)
      ...     reports.append(report)
      >>> pdt_optax.plot.accepted_share(reports).lines[0].get_xydata()  # epochs count from 1
      array([[6., 1.],
             [8., 1.]])
    """
    epochs, r = _predictions(reports)
    ax = axes(ax)
    ax.plot(epochs, r.accepted_share, "o-", color=BLUE, ms=4, label="accepted")
    # The epoch after a jump finds it bad: its 0-based index is the jump's 1-based number.
    undone = np.isin(epochs, np.flatnonzero(_stacked(reports).rolled_back))
    if undone.any():
        shares = r.accepted_share[undone]
        ax.plot(epochs[undone], shares, "x", color=VERMILION, ms=9, mew=2, label="taken back")
        ax.legend()
    ax.set(xlabel="epoch", ylabel="accepted share of weights", ylim=(-0.02, 1.02))
    return whole_epochs(ax)


def persistence(reports: Reports, ax: Axes | None = None) -> Axes:
    """How much of its past mean motion the optimizer goes on doing by itself, and the gain that follows.

    The line is that of all weights, the band holds the middle half of the leaves.
    Above 0 the path goes on and a prediction can help; below 0 it turns back.
    After a delivery the optimizer persists less, since part of its way is done.

    Args:
      reports: of a run with `slow_drift`, one an epoch; `dry_run` will do.
      ax: where to draw.

    Raises:
      ValueError: for no reports, or none with a persistence.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> predictor, params, reports = pdt_optax.Predictor(dry_run=True), jnp.array([1.0, 2.0]), []
      >>> history = predictor.init(params)
      >>> for epoch in range(3):
      ...     params, history, report = predictor.end_epoch(0.9 * params, history)
      ...     reports.append(report)
      >>> pdt_optax.plot.persistence(reports).lines[0].get_ydata().round(2)  # 0.9 of the step before
      array([ nan, 0.9 , 0.87], dtype=float32)
    """
    r = _stacked(reports)
    known = r.alignment != 0  # not in the first epoch
    if not known.any():
        raise ValueError(
            "There is nothing to draw: only `slow_drift` measures the persistence of the path, from the second "
            f"epoch on. Got {len(r.persistence)} reports without."
        )
    epochs, ax = np.arange(1, len(r.persistence) + 1), axes(ax)
    ax.plot(
        epochs,
        np.where(known, r.persistence, np.nan),
        "o-",
        color=BLUE,
        ms=4,
        label="persistence of all weights",
    )
    low, high = np.percentile(r.persistence_per_leaf[known], (25, 75), axis=1)
    ax.fill_between(
        epochs[known], low, high, color=BLUE, alpha=0.2, lw=0, label="of the middle half of the leaves"
    )
    ax.axhline(0, color="black", lw=0.8)
    moved = epochs[np.asarray(r.predicted, bool)]
    if moved.size:
        ax.axvline(moved[0], color=VERMILION, lw=1, ls="--", label="first prediction")
    ax.set(xlabel="epoch", ylabel="persistence")
    ax.legend()
    return whole_epochs(ax)


def accepted_share_per_leaf(reports: Reports, paths: Sequence[str], ax: Axes | None = None) -> Axes:
    """The accepted share of each leaf (rows) at each prediction (columns), dark where most is accepted.

    Args:
      reports: of a run.
      paths: names for the leaves: `leaf_paths(opt_state)` or `Recorder.paths`.
      ax: where to draw.

    Raises:
      ValueError: for no reports, none that predicted, or another number of paths than leaves.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> tx = pdt_optax.pdt(optax.sgd(0.1), dynamics=pdt_optax.drift(), window=2)
      >>> params, reports = {"out": {"bias": jnp.zeros(2), "kernel": jnp.ones(3)}}, []
      >>> opt_state = tx.init(params)
      >>> for epoch in range(3):
      ...     params["out"]["kernel"] *= 0.8
      ...     params, opt_state, report = tx.end_epoch(params, opt_state)
      ...     reports.append(report)
      >>> ax = pdt_optax.plot.accepted_share_per_leaf(reports, pdt_optax.leaf_paths(opt_state))
      >>> [label.get_text() for label in ax.get_yticklabels()]
      ['out/bias', 'out/kernel']
    """
    epochs, r = _predictions(reports)
    shares = r.accepted_share_per_leaf.T
    if len(paths) != len(shares):
        raise ValueError(
            "`paths` must name each leaf of `accepted_share_per_leaf`, as `leaf_paths(opt_state)` does. "
            f"Got {len(paths)} for {len(shares)} leaves."
        )
    ax = axes(ax)
    image = ax.imshow(shares, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    shown = np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), 8)).round().astype(int))
    ax.set_xticks(shown, [str(epochs[i]) for i in shown])
    ax.set_yticks(range(len(paths)), list(paths))
    ax.set(xlabel="epoch")
    colorbar(ax, image, "accepted share")
    return ax


def _stacked(reports: Any) -> Any:
    """Reports with an axis of epochs in front, in host memory."""
    if not isinstance(reports, PDTReport):
        if not len(reports):
            raise ValueError("`reports` must hold at least one `PDTReport`. Got none.")
        reports = jax.tree.map(lambda *x: np.stack(x), *reports)
    leaves: list[Any] = [np.asarray(x) for x in jax.tree.leaves(reports)]  # without nnx's Variables
    reports = PDTReport(*leaves)
    if np.ndim(reports.predicted) != 1:
        raise ValueError(
            "`reports` must be a sequence of `PDTReport`, or one with an axis of epochs in front. Got one whose "
            f"`predicted` has the shape {np.shape(reports.predicted)}."
        )
    return reports


def _predictions(reports: Reports) -> tuple[np.ndarray, Any]:
    """The epochs, counted from 1, whose ends predicted, and their reports."""
    stacked = _stacked(reports)
    chosen = np.flatnonzero(stacked.predicted)
    if not chosen.size:
        raise ValueError(
            "There is nothing to draw: none of the reports made a prediction (the first comes after `start` "
            f"epochs). Got {len(stacked.predicted)} reports."
        )
    return chosen + 1, jax.tree.map(lambda x: x[chosen], stacked)
