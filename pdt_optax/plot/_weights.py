"""Pictures of weights: what was predicted of them, what they took, and what came."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.axes import Axes

from pdt_optax import _layout
from pdt_optax._predict import Prediction, predict_and_mask
from pdt_optax.accept import Accept, Rule, everything
from pdt_optax.dynamics import Dynamics
from pdt_optax.plot._common import BLUE, GREY, LINES, VERMILION, Weights, axes, colorbar, flat, whole_epochs
from pdt_optax.schedule import check_horizon, count


def mask(prediction: Prediction, leaf: str, ax: Axes | None = None) -> Axes:
    """Which weights of one leaf took their prediction: black where accepted, grey where in part.

    A leaf of more than two dimensions is shown with its last as columns and all
    others as rows; a vector as one row.

    Args:
      prediction: what `predict_and_mask` returned.
      leaf: the path of a leaf, as `leaf_paths` names it.
      ax: where to draw.

    Raises:
      ValueError: if there is no such leaf.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> run = [{"w": jnp.array([t, -t, t**2, (0.0, 0.0, 4.0, 3.0)[t]])} for t in range(4)]
      >>> prediction = pdt_optax.predict_and_mask(
      ...     run[:3], run[3], dynamics=pdt_optax.drift(), accept=pdt_optax.agree(), horizon=1)
      >>> pdt_optax.plot.mask(prediction, "w").get_title()  # the last weight has just turned
      'w: 75% accepted'
    """
    accepted = _leaf(prediction.mask, leaf)
    ax = axes(ax)
    rows = np.atleast_2d(np.asarray(accepted, np.float32))
    rows = rows.reshape(-1, rows.shape[-1])
    look = "nearest" if max(rows.shape) <= 512 else "auto"  # each weight, or their density
    image = ax.imshow(rows, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation=look)
    ax.set(title=f"{leaf}: {rows.mean():.0%} accepted", xlabel="index along the last axis")
    if accepted.ndim < 2:
        ax.set_yticks([])
    else:
        ax.set_ylabel("index along the first axis" if accepted.ndim == 2 else "index along the other axes")
    if accepted.dtype != bool:
        colorbar(ax, image, "accepted share of the jump")
    return ax


def trajectories(
    snapshots: Weights,
    params: optax.Params,
    *,
    dynamics: Dynamics,
    accept: Rule | Accept,
    horizon: int,
    leaf: str,
    weights: int | Sequence[int] = 8,
    future: Weights = (),
    step: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """What a few weights did, what is predicted of them, and whether they take it.

    Drawn as the change of each weight from its present value: what it did in
    grey, its prediction solid with a filled end where accepted, dashed with an
    open end where not. With `fit="past"` a prediction starts one epoch back.

    Args:
      snapshots: `window` trees like `params`, oldest to newest.
      params: the present weights, an epoch after the newest snapshot.
      dynamics: a model such as `drift()`.
      accept: a rule such as `agree()`.
      horizon: how many snapshots ahead.
      leaf: the path of a leaf, as `leaf_paths` names it.
      weights: flat indices into the leaf, or how many to show at most: evenly spread from
        the one that moved least in the window to the one that moved most.
      future: the weights of the following epochs of the same training without a
        jump, if they are known.
      step: the epoch that made `params`, as in `predict_and_mask`.
      ax: where to draw.

    Raises:
      ValueError: if there is no such leaf, or as `predict_and_mask` does.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> run = [{"w": jnp.array([1.0 * t, 0.5**t])} for t in range(4)]
      >>> ax = pdt_optax.plot.trajectories(run[:3], run[3], dynamics=pdt_optax.drift(),
      ...     accept=pdt_optax.agree(), horizon=2, leaf="w", weights=[0])
      >>> ax.lines[1].get_ydata()  # now, and one and two epochs ahead
      array([0., 1., 2.])
    """
    result = predict_and_mask(snapshots, params, dynamics=dynamics, accept=accept, horizon=horizon, step=step)
    taken = _leaf(result.mask, leaf).ravel()
    run = np.stack([flat(_leaf(tree, leaf)) for tree in [*snapshots, params, *future]])
    window = len(snapshots)
    chosen = _choose(run[: window + 1], weights)
    taken, run, now = taken[chosen], run[:, chosen], run[window, chosen]
    newest = -1 if dynamics.fit == "past" else 0  # that the model saw, in epochs from now
    path = _predicted_path(run[newest + 1 :][:window], result) - now

    ax = axes(ax)
    past = ax.plot(np.arange(len(run)) - window, run - now, ".-", color=GREY, ms=3, lw=1)
    past[0].set_label("actual")
    ahead = newest + np.arange(len(path))
    for accepted, style, color, face in ((True, "o-", BLUE, BLUE), (False, "o--", VERMILION, "white")):
        of = path[:, (taken > 0) == accepted]
        for line in ax.plot(ahead, of, style, color=color, markerfacecolor=face, markevery=[-1], ms=6)[:1]:
            line.set_label(f"predicted, {'accepted' if accepted else 'rejected'}")
    ax.axvline(0, color="black", lw=0.6)
    ax.set(xlabel="epochs from now", ylabel="change of a weight from now", title=leaf)
    ax.legend(fontsize="small")
    return whole_epochs(ax)


def forecast_error(
    history: Weights,
    *,
    dynamics: Dynamics,
    window: int = 5,
    horizon: int = 8,
    leaf: str | None = None,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How far ahead a run can be predicted: the error of its forecasts against their horizon.

    The model is fitted to every `window` consecutive weights of the run. The
    error k epochs ahead is |pred(k) - w(k)| / |w(k) - w(0)|, the forecast's
    distance to the weights that came over the distance that they moved: 0 is a
    perfect forecast, 1 is worth as much as predicting that nothing moves. The
    line is the median over the run, the band holds its middle 80%. Call it
    again with the same `ax` to compare models or leaves.

    Args:
      history: the weights of consecutive epochs of training without a jump, oldest to newest.
      dynamics: a model such as `drift()`.
      window: how many of them the model sees.
      horizon: how many epochs ahead.
      leaf: take the error of this leaf alone; the model sees all.
      label: for the legend; by default the model.
      ax: where to draw.

    Raises:
      ValueError: if the history is not longer than `window + horizon`, or has no such leaf.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> line = [jnp.array([1.0, 2.0]) * t for t in range(12)]
      >>> ax = pdt_optax.plot.forecast_error(line, dynamics=pdt_optax.drift(), horizon=3)
      >>> ax.lines[0].get_ydata()
      array([0., 0., 0.])
    """
    errors = _forecast_errors(history, dynamics, window, horizon, leaf)
    low, middle, high = np.nanpercentile(errors, [10, 50, 90], axis=0)
    ahead = np.arange(1, len(middle) + 1)
    ax = axes(ax)
    drawn = sum(line.get_gid() == "forecast" for line in ax.lines)
    color, style, marker = LINES[drawn % len(LINES)]
    label = label or str(dynamics)
    ax.fill_between(ahead, low, high, color=color, alpha=0.15, lw=0)
    ax.plot(ahead, middle, style, marker=marker, ms=4, color=color, label=label, gid="forecast")
    if not drawn:
        ax.axhline(1, color=GREY, lw=1, label="nothing moves")
    ax.set(xlabel="epochs ahead", ylabel="forecast error / distance moved", ylim=(0, None))
    ax.legend(fontsize="small")
    return whole_epochs(ax)


def _forecast_errors(
    history: Weights, dynamics: Dynamics, window: int, horizon: int, leaf: str | None
) -> np.ndarray:
    """(windows, horizon): by time and by epochs ahead; NaN past the end of the run and where nothing moved."""
    horizon = check_horizon(horizon)
    window = count("window", window, 2, "a difference takes two snapshots")
    if len(history) <= window + horizon:
        raise ValueError(
            "`history` must be longer than `window + horizon`, to have something to compare a forecast with. "
            f"Got {len(history)} weights, {window=}, {horizon=}."
        )
    run = np.stack([flat(tree if leaf is None else _leaf(tree, leaf)) for tree in history])
    # A model fitted to the past is handed one epoch more, which it does not look at.
    unseen = 1 if dynamics.fit == "past" else 0
    errors = np.full((len(history) - 1 - window, horizon), np.nan)
    for row, newest in zip(errors, range(window, len(history) - 1), strict=True):
        now = newest + unseen
        past, params = history[now - window : now], history[now]
        prediction = predict_and_mask(
            past, params, dynamics=dynamics, accept=everything(), horizon=horizon, step=now - 1
        )
        came = run[newest + 1 :][:horizon]
        path = _predicted_path(run[newest + 1 - window : newest + 1], prediction)[1 : len(came) + 1]
        moved = np.linalg.norm(came - run[newest], axis=1)
        wrong = np.linalg.norm(path - came, axis=1)
        np.divide(wrong, moved, out=row[: len(came)], where=moved > 0)
    return errors


def _predicted_path(seen: np.ndarray, prediction: Prediction) -> np.ndarray:
    """(horizon + 1, weights): the newest of the `window` weights that the model saw, and each predicted step on."""
    basis = np.concatenate([seen[-1:], np.diff(seen, axis=0)])
    increments = np.asarray(prediction.coefficients, np.float64) @ basis
    return seen[-1] + np.concatenate([np.zeros_like(seen[-1:]), np.cumsum(increments, axis=0)])


def _choose(past: np.ndarray, weights: int | Sequence[int]) -> np.ndarray:
    """Flat indices: as given, or of weights evenly spread by how far they moved."""
    if not isinstance(weights, int):
        return np.asarray(weights, int)
    moved = np.abs(past[-1] - past[0])
    order = np.argsort(moved)
    spread = np.linspace(moved.min(), moved.max(), weights)
    return order[np.unique(np.searchsorted(moved[order], spread))]


def _leaf(tree: Any, path: str) -> np.ndarray:
    """The leaf that `leaf_paths` calls `path`."""
    named = dict(zip(_layout.leaf_names(tree), jax.tree.leaves(tree), strict=True))
    if path not in named:
        raise ValueError(f"There is no leaf {path!r}. The leaves are {', '.join(map(repr, named))}.")
    return np.asarray(named[path])
