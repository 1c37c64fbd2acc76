"""Which leaves are predicted, and how snapshots line up with the parameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Labels = Callable[[str], bool] | Any


class Leaf(NamedTuple):
    """One predicted leaf: its path, its snapshots (oldest to newest) and its weights."""

    path: str
    snapshots: tuple[jax.Array, ...]
    param: jax.Array


def is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def path_name(path: Sequence[Any]) -> str:
    """`("layers", 0, "kernel")` as `"layers/0/kernel"`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def is_floating(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def snapshot(params: optax.Params, labels: Labels = None) -> optax.Params:
    """A copy of `params`, with a `MaskedNode` for each leaf that is never predicted.

    Those are the leaves that are no floating-point arrays, and those that
    `labels` names. The copy has strong types (weak ones would turn strong one
    snapshot at a time and recompile the caller's step at every epoch) and its
    own buffers (params and state can then both be donated).
    """
    excluded = _excluded(params, labels)

    def copy(x: Any, skip: bool) -> Any:
        x = x if hasattr(x, "dtype") else jnp.asarray(x)
        return jnp.array(x, x.dtype, copy=True) if is_floating(x) and not skip else optax.MaskedNode()

    return jax.tree.map(copy, params, excluded)


def _excluded(params: optax.Params, labels: Labels) -> Any:
    """A tree of bools like `params`, True where a leaf is never predicted."""
    if labels is None:
        return jax.tree.map(lambda _: False, params)
    if callable(labels):
        excluded = jax.tree_util.tree_map_with_path(lambda path, _: labels(path_name(path)), params)
    else:
        try:
            excluded = jax.tree.broadcast(labels, params)
        except ValueError as e:
            raise ValueError(
                "`labels` must be a tree of bools with the structure of the parameters, or a prefix of "
                f"it (True: never predicted), or a function from a leaf's path to a bool. {e}"
            ) from None
    for path, x in jax.tree_util.tree_leaves_with_path(excluded):
        if not isinstance(x, bool):
            raise ValueError(
                "`labels` must say True (never predicted) or False for each leaf. "
                f"Got {x!r} at {path_name(path)!r}."
            )
    return excluded


def match(snapshots: Sequence[optax.Params], params: optax.Params) -> list[Leaf]:
    """Pairs each predicted leaf of `params` with its snapshots.

    A `MaskedNode` in the snapshots stands for whatever `params` has there: a
    leaf that is never predicted, or a part that `optax.masked` keeps away.

    Raises:
      ValueError: if structures, shapes or dtypes differ.
    """
    newest = snapshots[-1]
    windows = zip(*(predicted(newest, s, f"snapshots[{i}]") for i, s in enumerate(snapshots)), strict=True)
    leaves = []
    for path, window, param in zip(paths(newest), windows, predicted(newest, params, "params"), strict=True):
        for x in (param, *window):
            if _describe(x) != _describe(window[-1]):
                raise ValueError(
                    "Each leaf of `params` must keep the shape and dtype of its snapshots, those it had at "
                    f"`init`. Expected {_describe(window[-1])} at {path!r}, got {_describe(x)}."
                )
        leaves.append(Leaf(path, window, param))
    return leaves


def predicted(snapshot_: optax.Params, tree: Any, name: str = "tree") -> list[Any]:
    """What `tree` has at the predicted leaves of a snapshot."""
    like, treedef = jax.tree.flatten(snapshot_, is_leaf=is_masked)
    try:
        values = treedef.flatten_up_to(tree)
    except (ValueError, TypeError) as e:
        raise ValueError(
            f"`{name}` must have the structure of the snapshots, that of the parameters at `init`. "
            f"Expected {treedef}, got {jax.tree.structure(tree)}. ({e})"
        ) from None
    return [value for x, value in zip(like, values, strict=True) if is_floating(x)]


def replace(snapshot_: optax.Params, tree: Any, values: Sequence[Any]) -> Any:
    """`tree` with `values` at the predicted leaves of a snapshot."""
    like, treedef = jax.tree.flatten(snapshot_, is_leaf=is_masked)
    remaining = iter(values)
    return treedef.unflatten(
        [
            next(remaining) if is_floating(x) else other
            for x, other in zip(like, treedef.flatten_up_to(tree), strict=True)
        ]
    )


def paths(snapshot_: optax.Params) -> list[str]:
    """The paths of the predicted leaves of a snapshot."""
    with_paths = jax.tree_util.tree_leaves_with_path(snapshot_)
    return [path_name(path) for path, x in with_paths if is_floating(x)]


def _describe(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else repr(x)
