"""Shampoo, which optax lacks (optax-shampoo 0.0.6 needs `jax.tree_map`, which is gone).

References:
  Gupta, Koren and Singer, Shampoo: preconditioned stochastic tensor optimization, 2018.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax


class ShampooState(NamedTuple):
    """State of `scale_by_shampoo`."""

    shampoo_count: jax.Array  # (), int32
    statistics: Any  # for each leaf a tuple, one for each of its dimensions: (d, d), or (d,) if d > largest
    roots: Any  # likewise, the statistics to the power of -1 / (2 order)


def _statistic(grad: jax.Array, axis: int, like: jax.Array) -> jax.Array:
    """The paper's G^(i): products of all slices along an axis, (d, d); or their squares alone, (d,)."""
    others = [i for i in range(grad.ndim) if i != axis]
    if like.ndim == 1:
        return jnp.sum(grad**2, others)
    return jnp.tensordot(grad, grad, (others, others), precision="highest")


def _root(statistic: jax.Array, order: int, epsilon: float) -> jax.Array:
    power = -1 / (2 * order)
    if statistic.ndim == 1:
        return statistic**power
    # Nothing is below epsilon but by rounding.
    values, vectors = jnp.linalg.eigh(statistic)
    return jnp.matmul(vectors * jnp.maximum(values, epsilon) ** power, vectors.T, precision="highest")


def _precondition(grad: jax.Array, roots: tuple[jax.Array, ...]) -> jax.Array:
    # Each product moves the axis it took to the end, so the order returns after the last.
    for root in roots:
        if root.ndim == 1:
            grad = jnp.moveaxis(grad, 0, -1) * root
        else:
            grad = jnp.tensordot(grad, root, (0, 0), precision="highest")
    return grad


def scale_by_shampoo(
    *, epsilon: float = 1e-4, largest: int = 1024, every: int = 1, graft: bool = False
) -> optax.GradientTransformation:
    """Preconditions every dimension of a gradient by what its slices have been.

    For a matrix, L = epsilon I + sum of G G^T, R = epsilon I + sum of G^T G over all
    steps so far, this one included, and the update is L^(-1/4) G R^(-1/4) (Algorithm 1).
    An array of k dimensions has k such statistics to the power of -1/(2k)
    (Algorithm 2); a scalar counts as a vector of one.

    Args:
      epsilon: what the statistics start from.
      largest: of a dimension larger than this only the diagonal is kept.
      every: steps between two computations of the roots, which are eigenvalue decompositions.
      graft: give each leaf's update the norm of its gradient, so that SGD's rates serve.

    Returns:
      An `optax.GradientTransformation`; it neither negates nor scales by a rate.

    Raises:
      ValueError: if `every` or `largest` is less than 1, or `epsilon` is not positive.
    """
    if every < 1 or largest < 1 or not epsilon > 0:
        raise ValueError(
            "`every` and `largest` must be at least 1, and `epsilon` positive: a root of zero is infinite. "
            f"Got {every=}, {largest=}, {epsilon=}."
        )

    def init(params: optax.Params) -> ShampooState:
        def start(param: jax.Array) -> tuple[jax.Array, ...]:
            shape, dtype = jnp.shape(param) or (1,), jnp.result_type(param)
            return tuple(
                epsilon * (jnp.eye(d, dtype=dtype) if d <= largest else jnp.ones(d, dtype)) for d in shape
            )

        statistics = jax.tree.map(start, params)
        return ShampooState(jnp.zeros((), jnp.int32), statistics, jax.tree.map(jnp.zeros_like, statistics))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ShampooState]:
        del params

        def accumulate(grad: jax.Array, statistics: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            grad = jnp.atleast_1d(grad)
            return tuple(h + _statistic(grad, axis, h) for axis, h in enumerate(statistics))

        def invert(grad: jax.Array, statistics: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            del grad
            return tuple(_root(h, len(statistics), epsilon) for h in statistics)

        def precondition(grad: jax.Array, roots: tuple[jax.Array, ...]) -> jax.Array:
            new = _precondition(jnp.atleast_1d(grad), roots).reshape(grad.shape)
            if graft:
                norm = jnp.linalg.norm(new)
                new = new * jnp.where(norm > 0, jnp.linalg.norm(grad) / jnp.where(norm > 0, norm, 1), 0)
            return new

        statistics = jax.tree.map(accumulate, updates, state.statistics)
        roots = lax.cond(
            state.shampoo_count % every == 0,
            lambda: jax.tree.map(invert, updates, statistics),
            lambda: state.roots,
        )
        new = jax.tree.map(precondition, updates, roots)
        return new, ShampooState(state.shampoo_count + 1, statistics, roots)

    return optax.GradientTransformation(init, update)


def shampoo(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float | None = None, **settings: Any
) -> optax.GradientTransformation:
    """Shampoo as an optimizer.

    Args:
      learning_rate: a rate, or a schedule of it.
      momentum: decay of the updates' trace; None for none.
      settings: of `scale_by_shampoo`.
    """
    return optax.chain(
        scale_by_shampoo(**settings),
        optax.identity() if momentum is None else optax.trace(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )
