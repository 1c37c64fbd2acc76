"""Pictures of a run's dynamics, one short function each (extra `plot`: matplotlib).

  eigenvalues               of the fitted models, in the unit circle, over time
  singular_values           of the windows over time, and which of them a model used
  accepted_share            over time
  accepted_share_per_leaf   by layer and over time
  mask                      of one layer at one prediction
  trajectories              of a few weights: what they did, what was predicted, what was accepted
  forecast_error            how far ahead a run can be predicted
  loss_surface              in a plane, with the run's path on it

Each takes reports or weights and an optional `Axes`, draws, and returns the
`Axes`. *Reports* are a sequence of `PDTReport`, one an epoch, or one whose
arrays have an axis of epochs in front, such as `Recorder.reports` or what
`scan` stacks. *Weights* are trees like the parameters, or `Recorder.history()`.

Colours are told apart by colour-blind readers and in grey print.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pdt_optax import _leaves
from pdt_optax._predict import Accept, Prediction, check_horizon, count, predict_and_mask
from pdt_optax._state import PDTReport
from pdt_optax.accept import everything
from pdt_optax.dynamics import Dynamics

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Circle
    from matplotlib.ticker import MaxNLocator
except ImportError as e:
    raise ImportError("`pdt_optax.plot` needs matplotlib: pip install 'pdt-optax[plot]'.") from e

Reports = Sequence[PDTReport] | PDTReport
Weights = Sequence[optax.Params]

# Okabe and Ito's palette, dark to light.
_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "0.6"
_LINES = (("#000000", "-", "o"), (_VERMILION, "--", "s"), (_BLUE, "-.", "^"), ("#009E73", ":", "D"))
_TIME = "cividis"


def eigenvalues(reports: Reports, ax: Axes | None = None) -> Axes:
    """The eigenvalues of every prediction's model in the unit circle, lighter as training goes.

    An eigenvalue is a mode's factor per snapshot: inside the circle the mode
    decays, on it it stays (at 1 a weight drifts or rests), off the real axis it
    turns. `drift` has the one eigenvalue 1.

    Args:
      reports: of a run.
      ax: where to draw; by default a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: for no reports, or none that predicted.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> from pdt_optax import plot
      >>> tx = pdt_optax.pdt(optax.sgd(0.1), dynamics=pdt_optax.dmd(rank=1), window=3)
      >>> params, reports = jnp.array([1.0, 2.0]), []
      >>> state = tx.init(params)
      >>> for epoch in range(6):
      ...     updates, state = tx.update(2 * params, state)  # the gradient of |w|^2
      ...     params, state, report = tx.end_epoch(optax.apply_updates(params, updates), state)
      ...     reports.append(report)
      >>> ax = plot.eigenvalues(reports)
      >>> [round(float(x), 2) for x in ax.collections[0].get_offsets()[:, 0]]
      [0.8, 0.8]
    """
    epochs, r = _predictions(reports)
    ax = _axes(ax)
    found = r.eigenvalues
    known = np.isfinite(found)
    time = np.broadcast_to(epochs[:, None], found.shape)[known]
    ax.add_patch(Circle((0, 0), 1, fill=False, color="black", lw=1))
    ax.axhline(0, color=_GREY, lw=0.5, zorder=0)
    ax.axvline(0, color=_GREY, lw=0.5, zorder=0)
    points = ax.scatter(
        found[known].real, found[known].imag, c=time, cmap=_TIME, s=30, edgecolors="black", linewidths=0.4
    )
    _colorbar(ax, points, "epoch")
    ax.set(
        aspect="equal",
        xlabel="real part (factor per snapshot)",
        ylabel="imaginary part (factor per snapshot)",
    )
    return ax


def singular_values(reports: Reports, ax: Axes | None = None) -> Axes:
    """The singular values of each prediction's window, filled where the model uses them.

    They span several orders of magnitude: the first is the weights' common
    part, the others are their motion.

    Args:
      reports: of a run.
      ax: where to draw; by default a new figure.

    Returns:
      The axes: one line for each singular value, one marked point an epoch.

    Raises:
      ValueError: for no reports, or none that predicted.
    """
    epochs, r = _predictions(reports)
    ax = _axes(ax)
    values = r.singular_values
    used = np.arange(values.shape[1]) < r.rank[:, None]
    positive = np.where(values > 0, values, np.nan)  # zero has no place on a log axis
    ax.plot(epochs, positive, color=_GREY, lw=1)
    for chosen, face, label in ((used, _BLUE, "used by the model"), (~used, "white", "cut")):
        time = np.broadcast_to(epochs[:, None], values.shape)[chosen]
        ax.plot(time, positive[chosen], "o", ms=5, color=_BLUE, markerfacecolor=face, label=label)
    ax.set(xlabel="epoch", ylabel="singular value (weight units)", yscale="log")
    ax.legend()
    return _whole_epochs(ax)


def accepted_share(reports: Reports, ax: Axes | None = None) -> Axes:
    """The share of the weights that took each prediction; jumps that were taken back are crossed.

    Args:
      reports: of a run.
      ax: where to draw; by default a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: for no reports, or none that predicted.
    """
    epochs, r = _predictions(reports)
    ax = _axes(ax)
    share = r.accepted_share
    ax.plot(epochs, share, "o-", color=_BLUE, ms=4, label="accepted")
    # It is the epoch after a jump that finds it bad: with 0-based indices, the jump's number from 1.
    undone = np.isin(epochs, np.flatnonzero(_stacked(reports).rolled_back))
    if undone.any():
        ax.plot(epochs[undone], share[undone], "x", color=_VERMILION, ms=9, mew=2, label="taken back")
        ax.legend()
    ax.set(xlabel="epoch", ylabel="accepted share of weights", ylim=(-0.02, 1.02))
    return _whole_epochs(ax)


def accepted_share_per_leaf(reports: Reports, paths: Sequence[str], ax: Axes | None = None) -> Axes:
    """The accepted share of each leaf (rows) at each prediction (columns), dark where most is accepted.

    Args:
      reports: of a run.
      paths: names for the leaves: `leaf_paths(opt_state)`, or `Recorder.paths`.
      ax: where to draw; by default a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: for no reports, none that predicted, or another number of paths than leaves.
    """
    epochs, r = _predictions(reports)
    shares = r.accepted_share_per_leaf.T
    if len(paths) != len(shares):
        raise ValueError(
            "`paths` must name each leaf of `accepted_share_per_leaf`, as `leaf_paths(opt_state)` does. "
            f"Got {len(paths)} for {len(shares)} leaves."
        )
    ax = _axes(ax)
    image = ax.imshow(shares, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    shown = np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), 8)).round().astype(int))
    ax.set_xticks(shown, [str(epochs[i]) for i in shown])
    ax.set_yticks(range(len(paths)), list(paths))
    ax.set(xlabel="epoch")
    _colorbar(ax, image, "accepted share")
    return ax


def mask(prediction: Prediction, leaf: str, ax: Axes | None = None) -> Axes:
    """Which weights of one leaf took their prediction, black where accepted.

    A leaf of more than two dimensions is shown with its last as columns and all
    others as rows; a vector as one row.

    Args:
      prediction: what `predict_and_mask` returned.
      leaf: the path of a leaf, as `leaf_paths` names it.
      ax: where to draw; by default a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: if there is no such leaf.
    """
    accepted = np.asarray(_leaf(prediction.mask, leaf), np.float32)
    ax = _axes(ax)
    rows = accepted.reshape(-1, accepted.shape[-1]) if accepted.ndim else accepted.reshape(1, 1)
    image = ax.imshow(rows, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axis = "index along the other axes" if accepted.ndim > 2 else "index along the first axis"
    ax.set(
        title=f"{leaf}: {rows.mean():.0%} accepted",
        xlabel="index along the last axis",
        ylabel="" if accepted.ndim < 2 else axis,
    )
    if accepted.ndim < 2:
        ax.set_yticks([])
    _colorbar(ax, image, "accepted")
    return ax


def trajectories(
    snapshots: Weights,
    params: optax.Params,
    *,
    dynamics: Dynamics,
    accept: Accept,
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
      weights: flat indices into the leaf, or how many to show: evenly spread from
        the one that moved least in the window to the one that moved most.
      future: the weights of the following epochs of the same training without a
        jump, if they are known.
      step: the epoch that made `params`, as in `predict_and_mask`.
      ax: where to draw; by default a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: if there is no such leaf or weight, or as `predict_and_mask` does.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> from pdt_optax import plot
      >>> run = [{"w": jnp.array([1.0 * t, 0.5**t])} for t in range(4)]
      >>> ax = plot.trajectories(run[:3], run[3], dynamics=pdt_optax.drift(),
      ...     accept=pdt_optax.agree(), horizon=2, leaf="w", weights=[0])
      >>> ax.lines[-1].get_ydata()  # now, and one and two epochs ahead
      array([0., 1., 2.])
    """
    prediction = predict_and_mask(
        snapshots, params, dynamics=dynamics, accept=accept, horizon=horizon, step=step
    )
    past = np.stack([np.asarray(_leaf(tree, leaf), np.float64).ravel() for tree in [*snapshots, params]])
    coming = [np.asarray(_leaf(tree, leaf), np.float64).ravel() for tree in future]
    chosen = _choose(past, weights, leaf)
    seen, newest = (past[:-1], -1) if dynamics.fit == "past" else (past[1:], 0)  # epochs from now
    path = _predicted_path(seen[:, chosen], prediction)
    taken = np.asarray(_leaf(prediction.mask, leaf), np.float64).ravel()[chosen]
    now = past[-1, chosen]

    ax = _axes(ax)
    actual = np.concatenate([past, *(x[None] for x in coming)])[:, chosen] - now
    time = np.arange(len(actual)) - len(snapshots)
    ax.plot(time, actual, ".-", color=_GREY, ms=3, lw=1)
    ahead = newest + np.arange(len(path))
    for i in range(len(chosen)):
        color, style, face = (_BLUE, "-", _BLUE) if taken[i] > 0 else (_VERMILION, "--", "white")
        (line,) = ax.plot(ahead, path[:, i] - now[i], style, color=color, lw=1.4, marker="o", ms=6)
        line.set(markerfacecolor=face, markevery=[len(path) - 1])
    for style, face, color, label in (
        (".-", _GREY, _GREY, "actual"),
        ("o-", _BLUE, _BLUE, "predicted, accepted"),
        ("o--", "white", _VERMILION, "predicted, rejected"),
    ):
        ax.plot([], [], style, color=color, markerfacecolor=face, label=label)
    ax.axvline(0, color="black", lw=0.6)
    ax.set(xlabel="epochs from now", ylabel="change of a weight from now", title=leaf)
    ax.legend(fontsize="small")
    return _whole_epochs(ax)


def forecast_errors(
    history: Weights, *, dynamics: Dynamics, window: int = 5, horizon: int = 8, leaf: str | None = None
) -> np.ndarray:
    """How wrong a model's forecasts of a recorded run are: the numbers of `forecast_error`.

    The model is fitted to every `window` consecutive weights of the run. The
    error k epochs ahead is |pred(k) - w(k)| / |w(k) - w(0)|, the forecast's
    distance to the weights that came over the distance they moved: 0 is a
    perfect forecast, 1 is worth as much as predicting that nothing moves.

    Args:
      history: the weights of consecutive epochs of training without a jump, oldest to newest.
      dynamics: a model such as `drift()`.
      window: how many of them the model sees.
      horizon: how many epochs ahead.
      leaf: take the error of this leaf alone; the model sees all.

    Returns:
      (windows, horizon), float64, by time; NaN past the end of the run and where
      nothing moved.

    Raises:
      ValueError: if the history is shorter than `window + horizon`, or has no such leaf.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> from pdt_optax import plot
      >>> line = [jnp.array([1.0, 2.0]) * t for t in range(12)]
      >>> float(plot.forecast_errors(line, dynamics=pdt_optax.drift(), horizon=3)[0].max())
      0.0
    """
    horizon = check_horizon(horizon)
    window = count("window", window, 2, "a difference takes two snapshots")
    if len(history) <= window + horizon:
        raise ValueError(
            "`history` must be longer than `window + horizon`, to have something to compare a forecast with. "
            f"Got {len(history)} weights, {window=}, {horizon=}."
        )
    run = np.stack([_flat(tree, leaf) for tree in history])
    # A model fitted to the past is handed one epoch more, which it does not look at.
    unseen = 1 if dynamics.fit == "past" else 0
    errors = []
    for newest in range(window, len(history) - 1):
        now = newest + unseen
        prediction = predict_and_mask(
            history[now - window : now],
            history[now],
            dynamics=dynamics,
            accept=everything(),
            horizon=horizon,
            step=now - 1,
        )
        came = run[newest + 1 : newest + 1 + horizon]
        path = _predicted_path(run[newest - window + 1 : newest + 1], prediction)[1 : len(came) + 1]
        wrong = np.linalg.norm(path - came, axis=1)
        moved = np.linalg.norm(came - run[newest], axis=1)
        relative = np.where(moved > 0, wrong / np.where(moved > 0, moved, 1), np.nan)
        errors.append(np.pad(relative, (0, horizon - len(came)), constant_values=np.nan))
    return np.stack(errors)


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

    The line is the median over the run, the band holds its middle 80%. Above 1
    predicting that nothing moves would be better. Call it again with the same
    `ax` to compare models or leaves.

    Args:
      history, dynamics, window, horizon, leaf: as for `forecast_errors`.
      label: for the legend; by default the model.
      ax: where to draw; by default a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: as `forecast_errors` does.
    """
    errors = forecast_errors(history, dynamics=dynamics, window=window, horizon=horizon, leaf=leaf)
    low, middle, high = np.nanpercentile(errors, [10, 50, 90], axis=0)
    ax = _axes(ax)
    drawn = sum(line.get_gid() == "forecast error" for line in ax.lines)
    color, style, marker = _LINES[drawn % len(_LINES)]
    ahead = np.arange(1, len(middle) + 1)
    ax.fill_between(ahead, low, high, color=color, alpha=0.15, lw=0)
    ax.plot(
        ahead,
        middle,
        style,
        marker=marker,
        ms=4,
        color=color,
        label=label or str(dynamics),
        gid="forecast error",
    )
    if not drawn:
        ax.axhline(1, color=_GREY, lw=1)
        ax.annotate(
            "as good as: nothing moves", (ahead[0], 1), (0, 3), textcoords="offset points", fontsize="small"
        )
    ax.set(xlabel="epochs ahead", ylabel="forecast error / distance moved", ylim=(0, None))
    ax.legend(fontsize="small")
    return _whole_epochs(ax)


def filter_directions(params: optax.Params, seed: int = 0) -> tuple[Any, Any]:
    """Two random directions, filter by filter as long as the weights themselves.

    Filters are what the last axis counts; biases and other vectors do not move.
    A unit step along such a direction changes every filter by its own length, so
    surfaces of networks with different scales can be compared.

    Args:
      params: the weights at the centre of the surface.
      seed: of the directions.

    Returns:
      Two trees like `params`, for `loss_surface`.

    References:
      Li et al., Visualizing the loss landscape of neural nets, 2018.
    """
    random = np.random.default_rng(seed)

    def direction(w: Any) -> Any:
        w = np.asarray(w)
        if w.ndim < 2 or not _leaves.is_floating(w):
            return np.zeros_like(w)
        d = random.normal(size=w.shape)
        others = tuple(range(w.ndim - 1))
        length = np.linalg.norm(d.reshape(-1, w.shape[-1]), axis=0)
        return (d / length * np.sqrt(np.sum(np.square(w, dtype=np.float64), axis=others))).astype(w.dtype)

    return jax.tree.map(direction, params), jax.tree.map(direction, params)


def loss_surface(
    loss: Callable[[Any], jax.Array],
    runs: Weights | Mapping[str, Weights],
    *,
    directions: tuple[Any, Any] | None = None,
    points: int = 25,
    margin: float = 0.25,
    ax: Axes | None = None,
) -> Axes:
    """The loss in a plane through a run's last weights, with the paths of runs projected onto it.

    By default the plane of the runs' two principal components, whose share of
    the motion the axes name; or one along given `directions`, in which a path
    looks short: random directions are nearly at right angles to it. The paths
    are shadows: only the last weights of the first run lie in the plane.

    Args:
      loss: a function of one tree of weights, traced by jax.
      runs: the weights of a run over its epochs, or several by name.
      directions: two trees like the weights, such as `filter_directions(params)`.
      points: along each side of the grid; the loss is taken `points`^2 times.
      margin: what the grid reaches beyond the paths, as a share of their extent.
      ax: where to draw; by default a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: if there are too few weights to span a plane.
    """
    named = dict(runs) if isinstance(runs, Mapping) else {"": runs}
    trees = [tree for run in named.values() for tree in run]
    center = next(iter(named.values()))[-1]
    away = [_difference(tree, center) for tree in trees]
    if directions is None:
        plane, share = _principal_plane(away)
        names = [f"principal direction {i + 1} ({share[i]:.0%} of the motion)" for i in range(2)]
    else:
        plane = tuple(_leaves.predicted(center, d, "directions") for d in directions)
        names = ["direction 1", "direction 2"]
    # The nearest point of the plane, by least squares: directions need not be orthogonal.
    inner = np.array([[_dot(u, v) for v in plane] for u in plane])
    places = np.array([np.linalg.solve(inner, [_dot(u, d) for u in plane]) for d in away])

    low, high = places.min(0), places.max(0)
    reach = margin * np.maximum(high - low, (high - low).max() / 4 or 1)
    sides = [np.linspace(low[i] - reach[i], high[i] + reach[i], points) for i in range(2)]
    origin = _leaves.predicted(center, center)

    @jax.jit
    def evaluate(at: jax.Array) -> jax.Array:
        moved = [
            x + (at[0] * u + at[1] * v).astype(x.dtype)
            for x, u, v in zip(map(jnp.asarray, origin), *plane, strict=True)
        ]
        return loss(_leaves.replace(center, center, moved))

    surface = np.array([[evaluate(jnp.array([a, b], jnp.float32)) for a in sides[0]] for b in sides[1]])

    ax = _axes(ax)
    finite = surface[np.isfinite(surface)]
    wide = finite.size > 0 and finite.min() > 0 and finite.max() > 10 * finite.min()
    levels = np.geomspace(finite.min(), finite.max(), 16) if wide else 16
    norm = LogNorm() if wide else None
    shades = ax.contourf(*sides, surface, levels=levels, cmap="Greys_r", norm=norm, alpha=0.7)
    _colorbar(ax, shades, "loss", format="%.3g")
    first = 0
    for (name, run), (color, style, marker) in zip(named.items(), itertools.cycle(_LINES)):
        x, y = places[first : first + len(run)].T
        first += len(run)
        ax.plot(x, y, style, color=color, marker=marker, ms=4, lw=1.4, label=name or "run")
        ax.plot(x[-1:], y[-1:], marker, color=color, ms=9, markeredgecolor="white")
    ax.set(xlabel=names[0], ylabel=names[1])
    if len(named) > 1:
        ax.legend(fontsize="small")
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def _colorbar(ax: Axes, drawn: Any, label: str, **options: Any) -> None:
    figure: Any = ax.figure
    figure.colorbar(drawn, ax=ax, label=label, **options)


def _whole_epochs(ax: Axes) -> Axes:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def _stacked(reports: Reports) -> PDTReport:
    """Reports with an axis of epochs in front, in host memory."""
    if not isinstance(reports, PDTReport):
        reports = list(reports)
        if not reports:
            raise ValueError("`reports` must hold at least one `PDTReport`. Got none.")
        reports = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(reports))
    if np.ndim(reports.predicted) != 1:
        raise ValueError(
            "`reports` must be a sequence of `PDTReport`, or one with an axis of epochs in front. Got one whose "
            f"`predicted` has the shape {np.shape(reports.predicted)}."
        )
    return reports


def _predictions(reports: Reports) -> tuple[np.ndarray, PDTReport]:
    """The epochs, counted from 1, whose ends predicted, and their reports."""
    stacked = _stacked(reports)
    chosen = np.flatnonzero(np.asarray(stacked.predicted))
    if not chosen.size:
        raise ValueError(
            "There is nothing to draw: none of the reports made a prediction (the first comes after `start` "
            f"epochs). Got {len(stacked.predicted)} reports."
        )
    return chosen + 1, jax.tree.map(lambda x: np.asarray(x)[chosen], stacked)


def _leaf(tree: Any, path: str) -> np.ndarray:
    """The leaf that `leaf_paths` calls `path`."""
    named = {
        _leaves.path_name(where): x
        for where, x in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(x, "dtype")
    }
    if path not in named:
        raise ValueError(f"There is no leaf {path!r}. The leaves are {', '.join(map(repr, named))}.")
    return np.asarray(named[path])


def _flat(tree: Any, path: str | None) -> np.ndarray:
    """One leaf, or all floating ones, as a float64 vector."""
    leaves = _leaves.predicted(tree, tree) if path is None else [_leaf(tree, path)]
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])


def _predicted_path(seen: np.ndarray, prediction: Prediction) -> np.ndarray:
    """(horizon + 1, weights): the newest of the `window` weights that the model saw, and each predicted step on."""
    basis = np.concatenate([seen[-1:], np.diff(seen, axis=0)])
    increments = np.asarray(prediction.coefficients, np.float64) @ basis
    return seen[-1] + np.concatenate([np.zeros_like(seen[-1:]), np.cumsum(increments, axis=0)])


def _choose(past: np.ndarray, weights: int | Sequence[int], leaf: str) -> np.ndarray:
    """Flat indices: as given, or evenly spread by how far the weights moved."""
    size = past.shape[1]
    if isinstance(weights, int):
        order = np.argsort(np.abs(past[-1] - past[0]), kind="stable")
        shown = min(count("weights", weights, 1, "it counts the weights to show"), size)
        return order[np.linspace(0, size - 1, shown).round().astype(int)]
    chosen = np.asarray(weights, int)
    if not chosen.size or chosen.min() < -size or chosen.max() >= size:
        raise ValueError(
            f"`weights` must be flat indices into {leaf!r}, which has {size} weights. Got {weights}."
        )
    return chosen


def _difference(tree: Any, center: Any) -> list[np.ndarray]:
    leaves = zip(_leaves.predicted(center, tree), _leaves.predicted(center, center), strict=True)
    return [np.asarray(x, np.float32) - np.asarray(c, np.float32) for x, c in leaves]


def _dot(u: Sequence[np.ndarray], v: Sequence[np.ndarray]) -> float:
    return sum(
        float(np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64)))
        for x, y in zip(u, v, strict=True)
    )


def _principal_plane(away: Sequence[list[np.ndarray]]) -> tuple[tuple[Any, Any], np.ndarray]:
    """Two orthonormal directions that hold most of the motion, and their shares of it."""
    gram = np.array([[_dot(u, v) for v in away] for u in away])
    centering = np.eye(len(away)) - 1 / len(away)
    variances, vectors = np.linalg.eigh(centering @ gram @ centering)
    if len(away) < 3 or not variances[-2] > 1e-12 * variances[-1]:
        raise ValueError(
            "A plane takes at least three weights that do not lie on a line. "
            f"Got {len(away)}; give two `directions` instead."
        )
    combinations = centering @ vectors[:, :-3:-1] / np.sqrt(variances[:-3:-1])
    plane = tuple([np.tensordot(c, np.stack(x), 1) for x in zip(*away, strict=True)] for c in combinations.T)
    return (plane[0], plane[1]), variances[:-3:-1] / variances.clip(0).sum()
