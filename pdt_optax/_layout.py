"""Which leaves of a tree are predicted, and where they lie in another tree: by path, whatever the containers."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.tree_util import KeyPath

Path = tuple[str, ...]
Tree = TypeVar("Tree")
Column = list[jax.Array]  # some leaves of a tree, at one time
Exclude = Callable[[str], bool] | Any  # of a leaf's path, or a tree of bools


def is_masked(x: object) -> bool:
    return isinstance(x, optax.MaskedNode)


def is_floating(x: object) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", jnp.int32), jnp.floating)


def _is_number(x: object) -> bool:
    """Whether a leaf is floating point as an array or by itself."""
    return is_floating(x) or isinstance(x, float)


def as_array(x: Any) -> Any:
    """NumPy arrays and Python numbers as jax takes them: float64 is float32 unless x64 is on."""
    return x if hasattr(x, "dtype") and not isinstance(x, np.ndarray) else jnp.asarray(x)


def describe(x: Any) -> str:
    """`float32[2, 3]`, the keys of a tree, or the value itself if it is neither."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype}{list(x.shape)}"
    return repr(x) if x is None or jax.tree_util.all_leaves([x]) else str(jax.tree.structure(x))


def _path(keys: KeyPath) -> Path:
    """`("layers", "0", "kernel")`.

    A Flax nnx Variable is a node with one child, its attribute `value`: a path
    is the same whether or not a leaf is wrapped in one.
    """
    if len(keys) > 1 and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys = keys[:-1]
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


@functools.lru_cache(maxsize=1024)
def _paths(treedef: Any) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The paths of a tree's leaves, and of the `MaskedNode`s in it."""
    numbered = treedef.unflatten(range(treedef.num_leaves))
    found, _ = jax.tree_util.tree_flatten_with_path(numbered, is_leaf=is_masked)
    leaves = tuple(_path(keys) for keys, x in found if not is_masked(x))
    return leaves, tuple(_path(keys) for keys, x in found if is_masked(x))


def paths(tree: object) -> tuple[Path, ...]:
    """The paths of a tree's leaves."""
    return _paths(jax.tree.structure(tree))[0]


def leaf_names(tree: object) -> list[str]:
    """The paths of a tree's leaves as text, `"layers/0/kernel"`."""
    return ["/".join(path) for path in paths(tree)]


def floating(tree: Tree) -> Tree:
    """`tree` with a `MaskedNode` for each leaf that is no floating-point array."""
    return jax.tree.map(lambda x: x if is_floating(x) else optax.MaskedNode(), tree)


def snapshot(params: optax.Params, exclude: Exclude = None) -> optax.Params:
    """A copy of `params`, with a `MaskedNode` for each leaf that is never predicted.

    Those are the leaves that are no floating-point arrays, and those that
    `exclude` names. The copy has strong types (weak ones would turn strong one
    snapshot at a time and recompile the caller's step at every epoch) and its
    own buffers (params and state can then both be donated).
    """
    _refuse_statistics(params)
    leaves, treedef = jax.tree.flatten(params)
    # Under `jit` or `eval_shape` a leaf is a tracer; under `optax.tree.map_params` there are no leaves.
    excluded = _excluded(params, exclude) if leaves else []
    for i, x in enumerate(leaves):
        if callable(x) or isinstance(x, str):
            raise TypeError(
                f"`params` must hold only arrays, and {leaf_names(params)[i]!r} is not one. Pass the arrays of the model: "
                "eqx.filter(model, eqx.is_array) with Equinox, nnx.state(model, nnx.Param) with Flax nnx. "
                f"Got {type(x).__name__}."
            )
    copies = [
        optax.MaskedNode() if skip or not is_floating(x) else jnp.array(x, x.dtype, copy=True)
        for x, skip in zip(map(as_array, leaves), excluded, strict=True)
    ]
    if leaves and all(is_masked(x) for x in copies):
        raise ValueError(
            "There is nothing to predict: `params` has no floating-point leaf that `exclude` leaves in. "
            f"Got leaves of {', '.join(sorted({describe(x) for x in leaves}))}."
        )
    return treedef.unflatten(copies)


def _refuse_statistics(params: object) -> None:
    """Raises TypeError for Flax nnx Variables that no optimizer trains."""

    def is_variable(x: object) -> bool:
        return hasattr(x, "get_value") and type(x).__module__.startswith("flax.")

    for x in jax.tree.leaves(params, is_leaf=is_variable):
        kinds = {t.__name__ for t in type(x).__mro__} if is_variable(x) else set()
        if kinds & {"BatchStat", "RngState"}:
            raise TypeError(
                "`params` must hold what the optimizer trains, and statistics or keys would be predicted, too: pass "
                f"nnx.state(model, nnx.Param). Got a {type(x).__name__}."
            )


def refuse_whole(tree: object, call: str) -> None:
    """Raises TypeError for a whole TrainState or nnx Optimizer in place of a part of it: what comes back would not be in it."""
    if not hasattr(tree, "opt_state"):
        return
    if hasattr(tree, "params"):
        raise TypeError(
            f"Pass the parts of the state, and put back both: params, opt_state, report = {call}; "
            f"state = state.replace(params=params, opt_state=opt_state). Got a whole {type(tree).__name__}."
        )
    if _is_nnx(tree):
        raise TypeError(
            "Pass the optimizer's state, and put back what comes: params, optimizer.opt_state, report = "
            f"tx.end_epoch(nnx.state(model, nnx.Param), optimizer.opt_state). Got a whole {type(tree).__name__}."
        )


def refuse_model(params: object, like: object) -> None:
    """Raises TypeError for an nnx model where `init` saw its state: `nnx.update` would not take what comes back."""
    if _is_nnx(params) and hasattr(params, "eval") and not isinstance(like, type(params)):
        raise TypeError(
            "`params` must be what `init` saw, the state of a model: nnx.state(model, nnx.Param). Put back what comes by "
            f"nnx.update(model, params). Got a whole {type(params).__name__}."
        )


def _is_nnx(x: object) -> bool:
    return any(kind.__module__.startswith("flax.nnx.") for kind in type(x).__mro__)


def refuse_tied(tree: object) -> None:
    """Raises ValueError if one array stands at two places of a tree that is to be donated."""
    places: dict[int, list[str]] = {}
    for name, x in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True):
        places.setdefault(id(x), []).append(name)
    for names in places.values():
        if len(names) > 1:
            raise ValueError(
                f"`donate` needs arrays of their own, and {' and '.join(map(repr, names[:3]))} are one: copy it once, or "
                "leave `donate` out (the two then come back as two arrays)."
            )


class ExcludedLeaves(NamedTuple):
    """A tree of bools, or a prefix of one, in a form that can be hashed."""

    excluded: tuple[Any, ...]
    treedef: Any


def hashable(exclude: Exclude) -> Exclude:
    """`exclude` as a setting: a tree becomes `ExcludedLeaves`."""
    if exclude is None or callable(exclude) or isinstance(exclude, ExcludedLeaves):
        return exclude
    leaves, treedef = jax.tree.flatten(exclude)
    return ExcludedLeaves(tuple(x.item() if isinstance(x, np.bool_) else x for x in leaves), treedef)


def _excluded(params: optax.Params, exclude: Exclude) -> list[bool]:
    """For each leaf of `params`, whether it is never predicted."""
    names = leaf_names(params)
    if exclude is None:
        return [False] * len(names)
    if isinstance(exclude, ExcludedLeaves):
        try:
            tree = jax.tree.broadcast(exclude.treedef.unflatten(exclude.excluded), params)
            excluded: list[Any] = jax.tree.structure(params).flatten_up_to(tree)
        except ValueError as e:
            raise ValueError(
                "`exclude` must be a tree of bools with the structure of the parameters, or a prefix of "
                f"it (True: never predicted), or a function from a leaf's path to a bool. {e}"
            ) from None
    else:
        try:
            excluded = [exclude(name) for name in names]
        except (AttributeError, TypeError) as e:
            raise ValueError(
                "`exclude` as a function takes the path of a leaf, such as 'layers/0/kernel', and says True or False. "
                f"A function of the parameters has to be called: exclude=mask(params). It failed at {names[0]!r}: {e}."
            ) from e
    for name, x in zip(names, excluded, strict=True):
        if not isinstance(x, bool):
            raise ValueError(
                f"`exclude` must say True (never predicted) or False for each leaf. Got {x!r} at {name!r}."
            )
    return excluded


def check_exclude(like: object, params: optax.Params, exclude: Exclude, *, whole: bool) -> None:
    """Raises ValueError if `exclude` names other leaves than it did when the snapshots `like` were made.

    Leaves that are predicted only now are told if `params` are the `whole` tree that
    `init` saw: else a wrapper such as `optax.masked` may keep them away.
    """
    try:
        excluded = _excluded(params, exclude)
    except ValueError:
        if isinstance(exclude, ExcludedLeaves):  # a tree of other containers than these
            return
        raise
    here, masked = paths(params), _paths(jax.tree.structure(like))[1]
    known, out, new = {*paths(like)}, [], []
    for path, x, skip in zip(here, jax.tree.leaves(params), excluded, strict=True):
        if skip and path in known:
            out.append(path)
        elif whole and not skip and _is_number(x) and path in masked:
            new.append(path)
    if out or new:
        raise ValueError(
            "`exclude` must name the leaves that it named at `init`. If it is meant to change, take the state up with "
            "state = pdt_optax.adopt(made, state, params)."
            + _first("Excluded only now", out, len(here))
            + _first("Predicted only now", new, len(here))
        )


@functools.lru_cache(maxsize=1024)
def _positions(like: Any, treedef: Any) -> tuple[tuple[int, ...], list[Path], list[Path]]:
    """Where in a tree the leaves of `like` lie; which of them are missing, and which of the tree are unknown.

    A `MaskedNode` in `like` stands for whatever the tree has there: a leaf that
    is never predicted, or a part that `optax.masked` keeps away.
    """
    expected, masked = _paths(like)
    found = {path: i for i, path in enumerate(_paths(treedef)[0])}
    known = {*expected}
    missing = [path for path in expected if path not in found]
    extra = [p for p in found if p not in known and not any(p[: len(m)] == m for m in masked)]
    return tuple(found[path] for path in expected if path in found), missing, extra


def _where(like: object, tree: object, name: str) -> tuple[int, ...]:
    where, missing, extra = _positions(jax.tree.structure(like), jax.tree.structure(tree))
    if missing or extra:
        raise ValueError(
            f"`{name}` must have the leaves that it had at `init`."
            + _first("Missing", missing, len(jax.tree.leaves(like)))
            + _first("Unknown", extra, len(jax.tree.leaves(tree)))
            + (
                " Pass the parameters alone: variables['params'] with Flax linen, nnx.state(model, nnx.Param) with Flax nnx, "
                "eqx.filter(model, eqx.is_inexact_array) with Equinox."
                if extra and name == "params"
                else ""
            )
        )
    return where


def _first(what: str, paths: list[Path], total: int, most: int = 3) -> str:
    names = [repr("/".join(path)) if path else "the root" for path in paths]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f" {what} ({len(names)} of {total} leaves): {', '.join(names[:most])}{more}." if names else ""


def take(like: object, tree: object, name: str = "params", *, types: bool = True) -> Column:
    """The leaves of `tree` at those of `like`, found by path.

    Raises:
      ValueError: if one is missing, unknown, or of another shape or (with `types`) another dtype.
    """
    leaves = jax.tree.leaves(tree)
    column = [leaves[i] for i in _where(like, tree, name)]
    for i, (x, expected) in enumerate(zip(column, jax.tree.leaves(like), strict=True)):
        with contextlib.suppress(TypeError, ValueError):  # no array: the error below says what instead
            column[i] = x = as_array(x)
        if isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_deleted():
            raise ValueError(
                f"`{name}` must hold arrays that are still there, and {leaf_names(like)[i]!r} was donated: go on with "
                "what the call that it was given to returned."
            )
        if getattr(x, "shape", None) != expected.shape or (types and x.dtype != expected.dtype):
            raise ValueError(
                f"Each leaf of `{name}` must keep the shape and dtype that it had at `init`. "
                f"Expected {describe(expected)} at {leaf_names(like)[i]!r}, got {describe(x)}."
                + (
                    " Arrays that are stacked for `pmap` or `vmap` have their epochs ended under it, too, as their "
                    "`init` was."
                    if getattr(x, "shape", ())[1:] == expected.shape
                    else ""
                )
            )
    return column


def put(like: object, tree: Tree, column: Column) -> Tree:
    """`tree` with `column` in place of the leaves that `take` found."""
    leaves, treedef = jax.tree.flatten(tree)
    for i, x in zip(_where(like, tree, "tree"), column, strict=True):
        leaves[i] = x
    return treedef.unflatten(leaves)


def refill(tree: Tree, leaves: object) -> Tree:
    """A tree like `tree`, its containers included, with the leaves of another one in the same order."""
    return jax.tree.unflatten(jax.tree.structure(tree), jax.tree.leaves(leaves))
