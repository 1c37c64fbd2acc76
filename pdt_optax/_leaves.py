"""Which leaves are predicted, and how snapshots line up with the parameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pdt_optax._storage import WHOLE, Storage

Labels = Callable[[str], bool] | Any


class Leaf(NamedTuple):
    """One predicted leaf: its path, its snapshots (oldest to newest) and its weights."""

    path: str
    snapshots: tuple[jax.Array, ...]
    param: jax.Array


def is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def path_name(path: Sequence[Any]) -> str:
    """`("layers", 0, "kernel")` as `"layers/0/kernel"`.

    A Flax nnx Variable is a node with one child, its attribute `value`: a path
    is the same whether or not the leaves are still wrapped in Variables.
    """
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def as_array(x: Any) -> Any:
    """NumPy arrays and Python numbers as jax takes them: float64 is float32 unless x64 is on."""
    return x if hasattr(x, "dtype") and not isinstance(x, np.ndarray) else jnp.asarray(x)


def is_floating(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def snapshot(params: optax.Params, labels: Labels = None) -> optax.Params:
    """A copy of `params`, with a `MaskedNode` for each leaf that is never predicted.

    Those are the leaves that are no floating-point arrays, and those that
    `labels` names. The copy has strong types (weak ones would turn strong one
    snapshot at a time and recompile the caller's step at every epoch) and its
    own buffers (params and state can then both be donated).
    """
    leaves, treedef = jax.tree.flatten(params)
    # Under `jit` or `eval_shape` a leaf is a tracer; under `optax.tree.map_params` there is none.
    excluded = _excluded(params, labels) if leaves else []
    copies = [
        optax.MaskedNode() if skip or not is_floating(x) else jnp.array(x, x.dtype, copy=True)
        for x, skip in zip(map(as_array, leaves), excluded, strict=True)
    ]
    if leaves and all(is_masked(x) for x in copies):
        raise ValueError(
            "There is nothing to predict: `params` has no floating-point leaf that `labels` leaves in. "
            f"Got leaves of {', '.join(sorted({describe(x) for x in leaves}))}."
        )
    return treedef.unflatten(copies)


def _excluded(params: optax.Params, labels: Labels) -> list[bool]:
    """For each leaf of `params`, whether it is never predicted."""
    paths_, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [path_name(path) for path, _ in paths_]
    if labels is None:
        return [False] * len(names)
    if callable(labels):
        excluded: list[Any] = [labels(name) for name in names]
    else:
        try:
            excluded = treedef.flatten_up_to(jax.tree.broadcast(labels, params))
        except ValueError as e:
            raise ValueError(
                "`labels` must be a tree of bools with the structure of the parameters, or a prefix of "
                f"it (True: never predicted), or a function from a leaf's path to a bool. {e}"
            ) from None
    for name, x in zip(names, excluded, strict=True):
        if not isinstance(x, bool):
            raise ValueError(
                f"`labels` must say True (never predicted) or False for each leaf. Got {x!r} at {name!r}."
            )
    return excluded


def match(snapshots: Sequence[optax.Params], params: optax.Params, storage: Storage = WHOLE) -> list[Leaf]:
    """Pairs each predicted leaf of `params` with its snapshots.

    A `MaskedNode` in the snapshots stands for whatever `params` has there: a
    leaf that is never predicted, or a part that `optax.masked` keeps away.

    Raises:
      ValueError: if structures, shapes or dtypes differ.
    """
    newest = snapshots[-1]
    windows = zip(*(predicted(newest, s, f"snapshots[{i}]") for i, s in enumerate(snapshots)), strict=True)
    leaves = []
    for path, window, given in zip(paths(newest), windows, predicted(newest, params, "params"), strict=True):
        try:
            param = as_array(given)
        except (TypeError, ValueError):  # no array: the error below says what instead
            param = given
        older = jax.ShapeDtypeStruct(window[-1].shape, storage.older_dtype(window[-1]))
        for x, like in ((param, window[-1]), *((x, older) for x in window[:-1])):
            if getattr(x, "shape", None) != like.shape or x.dtype != like.dtype:
                raise ValueError(
                    "Each leaf of `params` must keep the shape and dtype of its snapshots, those it had at "
                    f"`init`. Expected {describe(like)} at {path!r}, got {describe(x)}."
                )
        leaves.append(Leaf(path, window, param))
    return leaves


def matched(like: optax.Params, params: optax.Params) -> list[jax.Array]:
    """The leaves of `params` at the floating ones of `like`, which must have their shapes and dtypes.

    Raises:
      ValueError: if they have not.
    """
    return [leaf.param for leaf in match((like,), params)]


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


def describe(x: Any) -> str:
    """`float32[2, 3]`, the keys of a tree, or the value itself if it is neither."""
    if hasattr(x, "shape"):
        return f"{x.dtype}{list(x.shape)}"
    return repr(x) if x is None or jax.tree_util.all_leaves([x]) else str(jax.tree.structure(x))
