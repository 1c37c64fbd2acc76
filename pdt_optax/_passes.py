"""The two passes over the weights: one reads every weight, one writes every weight."""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from pdt_optax import _layout
from pdt_optax._reduce import over_shards, totals, widest_float
from pdt_optax._shapes import expect, expect_alike
from pdt_optax._window import Storage
from pdt_optax.accept import Accept
from pdt_optax.dynamics import Fit, seen_columns

Points = Sequence[jax.Array]  # a leaf's snapshots, oldest to newest, and its weights


def difference_basis(
    points: Points, storage: Storage, fit: Fit, dtype: DTypeLike, moved_only: bool = False
) -> list[jax.Array]:
    """Columns `[reference, *differences]` of a leaf: everything computed from a window combines them.

    With `moved_only` the reference is 0 where all differences are.
    """
    *snapshots, param = points
    reference = (snapshots[-1] if fit == "past" else param).astype(dtype)
    differences = storage.differences(snapshots, param, dtype)
    if moved_only:
        moved = functools.reduce(operator.or_, (d != 0 for d in differences))
        reference = jnp.where(moved, reference, 0)
    return [reference, *differences]


def gram_matrix(
    leaves: Sequence[Points], storage: Storage, fit: Fit, diagonal: bool = False, moved_only: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Gram matrices of the columns that a model sees, each summed over all leaves of one type.

    The raw weights are nearly parallel: squaring them would square a condition
    number of up to 3e4. Products and sums are in float64 (float32 on a TPU): the
    squares of float32 weights then neither overflow nor underflow, and small
    angles survive.

    Args:
      leaves: for each leaf its snapshots, oldest to newest, and its weights.
      storage: how the snapshots are kept.
      fit: whether the newest snapshot ("past") or the weights ("current") are the reference.
      diagonal: leave all other products out, as 0.
      moved_only: see `difference_basis`.

    Returns:
      `(types, window, window)`, and `(types,)`, the square of the difference that
      the model does not see, in the order of `leaf_types`. Use them inside `widest_float`.
    """
    types = leaf_types(leaves)
    window = len(leaves[0]) - 1
    for leaf in leaves:
        expect_alike("leaves", leaf)
    seen = seen_columns(window, fit)
    (unseen,) = set(range(window + 1)) - set(seen)
    rows, columns_ = np.diag_indices(window) if diagonal else np.triu_indices(window)
    pairs = [*((seen[i], seen[j]) for i, j in zip(rows, columns_, strict=True)), (unseen, unseen)]
    with widest_float() as wide:

        def products(points: Points) -> jax.Array:
            columns = difference_basis([x.reshape(-1) for x in points], storage, fit, wide, moved_only)
            return jnp.stack(totals([columns[i] * columns[j] for i, j in pairs]))

        def measure(leaves: Sequence[Points], shares: Sequence[float]) -> jax.Array:
            found = [jnp.zeros(len(pairs), wide) for _ in types]
            for x, share in zip(leaves, shares, strict=True):
                found[types.index(x[-1].dtype)] += share * products(x)
            return jnp.stack(found)

        found = over_shards(measure, leaves)
        half = jnp.zeros((len(types), window, window), wide).at[:, rows, columns_].set(found[:, :-1])
        return jnp.where(np.tri(window, k=-1, dtype=bool), half.swapaxes(1, 2), half), found[:, -1]


def leaf_types(leaves: Sequence[Points]) -> list[np.dtype]:
    """The types of the leaves' weights, each once."""
    return list(dict.fromkeys(leaf[-1].dtype for leaf in leaves))


def combine(coefficients: jax.Array, basis: Sequence[jax.Array]) -> jax.Array:
    """sum_j coefficients[j] basis[j]."""
    total = coefficients[0] * basis[0]
    for coefficient, column in zip(coefficients[1:], basis[1:], strict=True):
        total += coefficient * column
    return total


def accepted(
    rule: Accept,
    increments: jax.Array,
    step: jax.Array,
    differences: jax.Array,
    reference: jax.Array,
    horizon: int | jax.Array,
) -> jax.Array:
    """What an acceptance rule says of a leaf, or ValueError if that is no mask."""
    expect("increments", increments, None, *step.shape)
    expect("differences", differences, None, *step.shape)
    expect("reference", reference, *step.shape)
    mask = rule(increments, step, differences, reference, horizon)
    weighs = _layout.is_floating(mask) or getattr(mask, "dtype", None) == jnp.bool_
    if getattr(mask, "shape", None) != step.shape or not weighs:
        raise ValueError(
            "An acceptance rule must return a mask of its leaf's shape, bool or a floating-point weight in "
            f"[0, 1]. {rule} returned {_layout.describe(mask)} for a leaf of shape {list(step.shape)}."
        )
    return mask


def assemble(
    points: Points,
    storage: Storage,
    fit: Fit,
    increments: jax.Array,
    displacement: jax.Array,
    rule: Accept,
    horizon: int | jax.Array,
    finite: jax.Array,
    *,
    moved_only: bool,
    whole_mask: bool,
) -> tuple[jax.Array, ...]:
    """One leaf's new weights, and the mask where it moves anything; in two fused elementwise passes.

    With `whole_mask` last the mask as the rule made it.

    Increments come straight from difference-basis coefficients, never as the
    difference of two predicted weights.
    """
    param = points[-1]
    window = len(points) - 1
    expect("increments", increments, None, window)
    expect("displacement", displacement, window)
    compute = jnp.promote_types(param.dtype, jnp.float32)

    def columns() -> tuple[list[jax.Array], jax.Array]:
        """What the model sees, and the optimizer's step; made anew wherever it is used, never in memory."""
        every = difference_basis(points, storage, fit, compute, moved_only)
        return [every[i] for i in seen_columns(window, fit)], every[-1]

    def judged() -> tuple[jax.Array, ...]:
        basis, step = columns()
        reference, *seen = basis
        rows = [combine(row.astype(compute), basis) for row in increments]
        mask = accepted(rule, jnp.stack(rows), step, jnp.stack(seen), reference, horizon)
        moves = functools.reduce(operator.or_, (row != 0 for row in (step, *rows)))
        moving = jnp.where(moves, mask, jnp.zeros_like(mask))
        return (moving, mask) if whole_mask else (moving,)

    # A branch of its own, whose result is written to memory once: the count of
    # the accepted and the new weights would else each compute the mask again.
    like = jax.eval_shape(judged)
    masks = lax.cond(finite, judged, lambda: tuple(jnp.zeros_like(param, x.dtype) for x in like))
    mask = masks[0]
    basis, _ = columns()
    reference = param.astype(compute) if moved_only else basis[0]
    prediction = reference + combine(displacement.astype(compute), basis)
    if mask.dtype != bool:
        weight, wide = mask.astype(compute), param.astype(compute)
        prediction = jnp.where(weight == 1, prediction, wide + weight * (prediction - wide))
    new = jnp.where(mask != 0, prediction.astype(param.dtype), param)
    return (new, *masks)
