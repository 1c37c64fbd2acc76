"""Inner products of the weights' recent motion: the one pass that reads every weight."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pdt_optax._precision import widest_float

# Elements of a leaf handled at once: (window + 1) rows of this length in
# float64 stay in a core's L2 cache.
_BLOCK = 4096


def difference_basis(points: Sequence[jax.Array], reference: int) -> list[jax.Array]:
    """Columns `[points[reference], points[1] - points[0], points[2] - points[1], ...]`.

    Everything computed from a window is a combination of these columns.
    Consecutive weights are so close that their float32 difference is exact
    (Sterbenz), while the raw weights are nearly parallel: squaring them would
    square a condition number of up to 3e4.
    """
    return [points[reference], *(new - old for old, new in itertools.pairwise(points))]


def gram_matrix(leaves: Sequence[Sequence[jax.Array]], reference: int) -> jax.Array:
    """Gram matrix of the difference basis, summed over all leaves.

    Products and sums are in float64 (float32 on a TPU): the squares of float32
    weights then neither overflow nor underflow, and small angles survive.

    Args:
      leaves: for each leaf, its points (the snapshots, then the parameters),
        oldest to newest, all of one shape.
      reference: the index of the point that is the first basis column.

    Returns:
      `(k, k)` with k = 1 + number of differences. Use it inside `widest_float`.
    """
    with widest_float() as wide:
        return sum(
            (_leaf_gram([x.reshape(-1) for x in points], reference, wide) for points in leaves),
            start=jnp.zeros((), wide),
        )


def _leaf_gram(points: list[jax.Array], reference: int, wide: Any) -> jax.Array:
    size = points[0].size
    blocks, tail = divmod(size, _BLOCK)

    def block_gram(block: list[jax.Array]) -> jax.Array:
        basis = jnp.stack(difference_basis([x.astype(wide) for x in block], reference))
        # 'highest': on recent GPUs the default would be TF32 in the float32 form.
        return jnp.dot(basis, basis.T, precision="highest")

    def add_block(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + block_gram([lax.dynamic_slice_in_dim(x, i * _BLOCK, _BLOCK) for x in points])

    total = block_gram([x[size - tail :] for x in points])
    return lax.fori_loop(0, blocks, add_block, total) if blocks else total
