"""The loss in a plane."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patheffects import withStroke

from pdt_optax import _layout
from pdt_optax.plot._common import LINES, Weights, axes, colorbar, flat


def loss_surface(
    loss: Callable[[Any], jax.Array],
    runs: Weights | Mapping[str, Weights],
    *,
    plane: Literal["principal", "random"] = "principal",
    seed: int = 0,
    points: int = 25,
    margin: float = 0.25,
    ax: Axes | None = None,
) -> Axes:
    """The loss in a plane through a run's last weights, with the paths of runs projected onto it.

    The plane is that of the runs' two principal components, whose share of the
    motion the axes name; or it is spanned by two random directions, filter by
    filter as long as the last weights (filters are what a leaf's last axis counts;
    vectors do not move), so that surfaces of different networks can be compared.
    The paths are shadows: only the last weights of the first run lie in the plane.

    Args:
      loss: a function of one tree of weights, traced by jax.
      runs: the weights of a run over its epochs, or several by name.
      plane: "principal" or "random".
      seed: of the random directions.
      points: along each side of the grid; the loss is taken `points`^2 times.
      margin: what the grid reaches beyond the paths, as a share of their extent;
        in a random plane it reaches at least one unit, the weights' own length.
      ax: where to draw.

    Raises:
      ValueError: for an unknown `plane`, or too few weights to span it.

    References:
      Li et al., Visualizing the loss landscape of neural nets, 2018.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> run = [jnp.array([0.5**t, 0.3**t, 0.0]) for t in range(6)]
      >>> pdt_optax.plot.loss_surface(lambda w: jnp.sum(w**2), run, points=9).get_xlabel()
      'principal direction 1 (99% of the motion)'
    """
    if plane not in ("principal", "random"):
        raise ValueError(f'`plane` must be "principal" or "random". Got {plane=}.')
    named = dict(runs) if isinstance(runs, Mapping) else {"": runs}
    center = next(iter(named.values()))[-1]
    origin = flat(center)
    away = {name: np.stack([flat(tree) for tree in run]) - origin for name, run in named.items()}
    if plane == "principal":
        directions, shares = _principal_plane(np.concatenate(list(away.values())))
        names = [f"principal direction {i + 1} ({share:.0%} of the motion)" for i, share in enumerate(shares)]
        least = 0.0
    else:
        directions = np.stack([_filter_direction(center, np.random.default_rng([seed, i])) for i in range(2)])
        names, least = ["random direction 1 (weights' length)", "random direction 2 (weights' length)"], 1.0
    # The nearest point of the plane, by least squares: random directions are not quite orthogonal.
    places = {name: np.linalg.lstsq(directions.T, x.T)[0].T for name, x in away.items()}
    ends = np.concatenate(list(places.values()))
    low, high = ends.min(0), ends.max(0)
    reach = margin * np.maximum(high - low, (high - low).max() / 4)
    x, y = np.linspace(np.minimum(low - reach, -least), np.maximum(high + reach, least), points).T
    surface = _losses(loss, center, directions, x, y)

    ax = axes(ax)
    finite = surface[np.isfinite(surface)]
    wide = finite.size > 0 and finite.min() > 0 and finite.max() > 10 * finite.min()
    levels: Any = np.geomspace(finite.min(), finite.max(), 16) if wide else 16
    norm = LogNorm() if wide else None
    shades = ax.contourf(x, y, surface, levels=levels, cmap="Greys_r", norm=norm, alpha=0.7)
    colorbar(ax, shades, "loss", format="%.3g")
    for (name, path), (color, style, marker) in zip(places.items(), itertools.cycle(LINES), strict=False):
        halo = [withStroke(linewidth=3, foreground="white")]
        ax.plot(*path.T, style, color=color, marker=marker, ms=4, lw=1.4, label=name, path_effects=halo)
        ax.plot(*path[-1:].T, marker, color=color, ms=9, markeredgecolor="white")
    ax.set(xlabel=names[0], ylabel=names[1])
    if len(named) > 1:
        ax.legend(fontsize="small")
    return ax


def _filter_direction(center: Any, random: np.random.Generator) -> np.ndarray:
    """A random direction, each filter as long as that of the weights."""

    def direction(w: np.ndarray) -> np.ndarray:
        if w.ndim < 2:
            return np.zeros(w.size)
        d, w = random.normal(size=w.shape).reshape(-1, w.shape[-1]), w.reshape(-1, w.shape[-1])
        return (d * np.linalg.norm(w, axis=0) / np.linalg.norm(d, axis=0)).ravel()

    leaves = jax.tree.leaves(_layout.floating(center))
    return np.concatenate([direction(np.asarray(x, np.float64)) for x in leaves])


def _principal_plane(away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two orthonormal directions that hold most of the motion, (2, weights), and their shares of it."""
    _, lengths, directions = np.linalg.svd(away - away.mean(0), full_matrices=False)
    if len(lengths) < 2 or not lengths[1] > 1e-6 * lengths[0]:
        raise ValueError(
            f"A principal plane takes at least three weights that do not lie on a line. Got {len(away)}."
        )
    return directions[:2], lengths[:2] ** 2 / np.sum(lengths**2)


def _losses(
    loss: Callable[[Any], jax.Array], center: Any, directions: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """(len(y), len(x)): the loss at `center` and so many times each direction away."""
    origin = [jnp.asarray(w) for w in jax.tree.leaves(_layout.floating(center))]
    cuts = np.cumsum([w.size for w in origin])[:-1]
    planes = [
        [jnp.asarray(d.reshape(w.shape), w.dtype) for d, w in zip(np.split(line, cuts), origin, strict=True)]
        for line in directions
    ]

    def at(place: jax.Array) -> jax.Array:
        columns = zip(origin, *planes, strict=True)
        moved = [w + (place[0] * u + place[1] * v).astype(w.dtype) for w, u, v in columns]
        return loss(_layout.put(_layout.floating(center), center, moved))

    grid = np.stack(np.meshgrid(x, y), axis=-1)
    # One place after the other: all at once would hold that many copies of the weights.
    losses = jax.jit(lambda places: jax.lax.map(at, places))(jnp.asarray(grid.reshape(-1, 2), jnp.float32))
    return np.asarray(losses).reshape(grid.shape[:2])
