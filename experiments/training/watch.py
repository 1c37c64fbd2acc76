"""What a run can be watched for: arrays and counts that its records are too narrow for."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

import pdt_optax

KINDS = {
    "shares": "the accepted share of each leaf, in the record of every jump",
    "flops": "operations of a step and of an epoch's end, in the first line of the record",
    "mask": "where the weights jumped, at the first jump from a third of the epochs on",
    "landscape": "the weights' path in its principal plane, and the loss around it",
}

# The arrays of the last two, and of a landscape what lays other runs' paths into its plane: their number of dimensions, and what they are of, as NumPy's `dtype.kind` says it.
ARRAYS = {
    "mask": (3, "u"),
    "mask_names": (1, "U"),
    "mask_epoch": (0, "i"),
    "landscape_points": (2, "f"),
    "landscape_explained": (1, "f"),
    "landscape_x": (1, "f"),
    "landscape_y": (1, "f"),
    "landscape_loss": (2, "f"),
    "landscape_jumped": (1, "b"),
    "path_sketch": (2, "f"),
    "path_axes": (2, "f"),
}

BAND = (12, 240)  # rows and columns that a leaf's mask is shown in
GRID = 15  # points along each side of a landscape
SKETCH = 4096  # numbers that a point of a path is told in, for the planes of other runs
POINTS = 512  # training examples that a landscape's loss is the mean of

Params = Any


def leaf_names(params: Params) -> list[str]:
    """A name for each leaf, such as "conv1/kernel"."""
    flat = tree_flatten_with_path(params)[0]
    # nnx ends the path of a parameter with its own key.
    return [keystr(path, simple=True, separator="/").removesuffix("/value") for path, _ in flat]


class Watch:
    """Collects what a run is watched for, between the steps and off the clock.

    Args:
      kinds: names in `KINDS`.
      epochs: of the run.
      params: before its first step.
      arrays: where the arrays go.
    """

    def __init__(self, kinds: tuple[str, ...], epochs: int, params: Params, arrays: dict[str, np.ndarray]):
        if kinds and jax.process_count() > 1:
            raise ValueError(
                f"A watched run needs all its weights in one process. Got {jax.process_count()} processes."
            )
        self.kinds, self.arrays = kinds, arrays
        self.mask_from = -(-epochs // 3) if "mask" in kinds else None
        self.names = leaf_names(params)
        self.path = [_flat(params)] if "landscape" in kinds else []
        self.jumped = [False]

    def before_end(self, params: Params) -> Params | None:
        """A copy of the weights, if what happens to them at the epoch's end is watched."""
        needed = self.path or self.mask_from is not None
        return jax.block_until_ready(jax.tree.map(jnp.copy, params)) if needed else None

    def after_end(
        self, epoch: int, before: Params | None, params: Params, report: pdt_optax.PDTReport | None
    ) -> dict[str, Any]:
        """What the record of an epoch, counted from 1, gets besides the usual."""
        predicted = report is not None and bool(report.predicted)
        if self.path:
            self.path.append(_flat(before))
            self.jumped.append(False)
            if predicted:
                self.path.append(_flat(params))
                self.jumped.append(True)
        if predicted and self.mask_from is not None and epoch >= self.mask_from:
            moved = zip(jax.tree.leaves(before), jax.tree.leaves(params), strict=True)
            self.arrays["mask"] = np.stack([_band(np.asarray(a != b)) for a, b in moved])
            self.arrays["mask_names"] = np.array(self.names)
            self.arrays["mask_epoch"] = np.array(epoch)
            self.mask_from = None
        if predicted and report is not None and "shares" in self.kinds:
            shares = np.asarray(report.accepted_share_per_leaf).tolist()
            return {"shares": {n: float(f"{s:.6g}") for n, s in zip(self.names, shares, strict=True)}}
        return {}

    def finish(self, params: Params, loss: Callable[[Params], float]) -> None:
        """Measures the loss around the path; `loss` is of weights like `params`."""
        if not self.path:
            return
        leaves, tree = jax.tree.flatten(params)

        def at(flat: np.ndarray) -> float:
            parts = np.split(flat, np.cumsum([x.size for x in leaves])[:-1])
            shaped = [jnp.asarray(p.reshape(x.shape), x.dtype) for p, x in zip(parts, leaves, strict=True)]
            return loss(jax.tree.unflatten(tree, shaped))

        path = np.stack(self.path)
        finite = np.isfinite(path).all(1)  # a run that diverged is shown up to there
        self.arrays.update(
            landscape(path[finite], at),
            landscape_jumped=np.array(self.jumped)[finite],
            path_sketch=sketch(path[finite]),
        )


def _flat(params: Params) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float32).ravel() for x in jax.tree.leaves(params)])


def _band(mask: np.ndarray) -> np.ndarray:
    """A leaf's mask in the order of its weights, as the mean of each of `BAND` cells, in 1/255; uint8."""
    cells = BAND[0] * BAND[1]
    edges = np.arange(cells + 1) * mask.size // cells
    sums = np.concatenate([[0], np.cumsum(mask.ravel(), dtype=np.int64)])
    # A leaf smaller than the band fills several cells with each weight.
    first, last = edges[:-1], np.maximum(edges[1:], edges[:-1] + 1)
    return np.round(255 * (sums[last] - sums[first]) / (last - first)).astype(np.uint8).reshape(BAND)


def landscape(path: np.ndarray, loss: Callable[[np.ndarray], float]) -> dict[str, np.ndarray]:
    """The principal plane of a path through weight space, the path in it, and the loss on a grid around it.

    Args:
      path: (points, weights); the plane goes through the last of them.
      loss: of weights, (weights,).

    Returns:
      `landscape_points` (points, 2), `landscape_explained` (2,), the shares of the path's variance,
      `landscape_x`, `landscape_y` (GRID,) and `landscape_loss` (GRID, GRID), rows along y; and `path_axes`
      (2, points), the directions as sums of the points, each less the last.

    References:
      Li et al., Visualizing the loss landscape of neural nets, 2018.
    """
    away = path - path[-1]
    values, vectors = np.linalg.eigh(away.astype(np.float64) @ away.T.astype(np.float64))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    # Each direction is a sum of the points: no matrix the size of the weights squared.
    sums = (vectors[:, :2] / np.sqrt(np.maximum(values[:2], 1e-30))).T
    axes = sums @ away
    points = away @ axes.T
    low, high = points.min(0), points.max(0)
    margin = 0.2 * np.maximum(high - low, 1e-12)
    x, y = (np.linspace(low[i] - margin[i], high[i] + margin[i], GRID) for i in (0, 1))
    losses = [[loss((path[-1] + a * axes[0] + b * axes[1]).astype(np.float32)) for a in x] for b in y]
    return {
        "landscape_points": points.astype(np.float32),
        "landscape_explained": (values[:2] / max(values.sum(), 1e-30)).astype(np.float32),
        "landscape_x": x.astype(np.float32),
        "landscape_y": y.astype(np.float32),
        "landscape_loss": np.array(losses, np.float32),
        "path_axes": sums.astype(np.float32),
    }


def sketch(path: np.ndarray) -> np.ndarray:
    """A path in few numbers that keep inner products, also with those of other runs, to about a 64th: (points, SKETCH).

    Each weight, its sign drawn at random, is added to one of `SKETCH` sums; the same of all runs.

    References:
      Charikar, Chen and Farach-Colton, Finding frequent items in data streams, 2002.
    """
    rng = np.random.default_rng(0)
    place, sign = rng.integers(0, SKETCH, path.shape[1]), rng.choice((-1.0, 1.0), path.shape[1])
    return np.stack([np.bincount(place, sign * w, SKETCH) for w in path]).astype(np.float32)


def in_plane_of(plane: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> np.ndarray:
    """Another run's path in the plane of a landscape, by their sketches: (points, 2)."""
    origin = plane["path_sketch"][-1]
    axes = plane["path_axes"] @ (plane["path_sketch"] - origin)
    return (other["path_sketch"] - origin) @ axes.T
