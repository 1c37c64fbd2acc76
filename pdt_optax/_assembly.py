"""New weights from coefficients: the one pass that writes every weight."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from pdt_optax import _leaves
from pdt_optax._gram import Points, difference_basis
from pdt_optax._storage import Storage
from pdt_optax.dynamics import Fit, seen_columns

Accept = Callable[..., jax.Array]


def combine(coefficients: jax.Array, basis: Sequence[jax.Array]) -> jax.Array:
    """sum_j coefficients[j] basis[j]."""
    total = coefficients[0] * basis[0]
    for coefficient, column in zip(coefficients[1:], basis[1:], strict=True):
        total += coefficient * column
    return total


def assemble(
    points: Points,
    storage: Storage,
    fit: Fit,
    increments: jax.Array,
    displacement: jax.Array,
    rule: Accept,
    horizon: int | jax.Array,
    finite: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One leaf's new weights and mask, in two fused elementwise passes.

    Increments come straight from difference-basis coefficients, never as the
    difference of two predicted weights.
    """
    param = points[-1]
    compute = jnp.promote_types(param.dtype, jnp.float32)

    def columns() -> tuple[list[jax.Array], jax.Array]:
        """What the model sees, and the optimizer's step; made anew wherever it is used, never in memory."""
        every = difference_basis(points, storage, fit, compute)
        return [every[i] for i in seen_columns(len(points) - 1, fit)], every[-1]

    def judged() -> jax.Array:
        basis, step = columns()
        reference, *seen = basis
        rows = [combine(row.astype(compute), basis) for row in increments]
        mask = rule(jnp.stack(rows), step, jnp.stack(seen), reference, horizon)
        weighs = _leaves.is_floating(mask) or getattr(mask, "dtype", None) == jnp.bool_
        if getattr(mask, "shape", None) != param.shape or not weighs:
            raise ValueError(
                "An acceptance rule must return a mask of its leaf's shape, bool or a floating-point weight in "
                f"[0, 1]. {rule} returned {_leaves.describe(mask)} for a leaf of shape {list(param.shape)}."
            )
        return mask

    # A branch of its own, whose result is written to memory once: the count of
    # the accepted and the new weights would else each compute the mask again.
    like = jax.eval_shape(judged)
    mask = lax.cond(finite, judged, lambda: jnp.zeros_like(param, like.dtype))
    basis, _ = columns()
    prediction = basis[0] + combine(displacement.astype(compute), basis)
    if mask.dtype != bool:
        weight, wide = mask.astype(compute), param.astype(compute)
        prediction = jnp.where(weight == 1, prediction, wide + weight * (prediction - wide))
    new = jnp.where(mask != 0, prediction.astype(param.dtype), param)
    return new, mask
