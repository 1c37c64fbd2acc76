"""Inner products of the weights' recent motion: the one pass that reads every weight."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pdt_optax._precision import widest_float
from pdt_optax._storage import Storage
from pdt_optax.dynamics import Fit

Points = Sequence[jax.Array]  # a leaf's snapshots, oldest to newest, and its weights

# Elements of a leaf handled at once: (window + 1) rows of this length in
# float64 stay in a core's L2 cache.
_BLOCK = 4096


def difference_basis(points: Points, storage: Storage, fit: Fit, dtype: Any) -> list[jax.Array]:
    """Columns `[reference, *differences]` of a leaf: everything computed from a window combines them."""
    *snapshots, param = points
    reference = (snapshots[-1] if fit == "past" else param).astype(dtype)
    return [reference, *storage.differences(snapshots, param, dtype)]


def gram_matrix(leaves: Sequence[Points], storage: Storage, fit: Fit) -> jax.Array:
    """Gram matrix of the difference basis `[reference, *differences]`, summed over all leaves.

    The raw weights are nearly parallel: squaring them would square a condition
    number of up to 3e4. Products and sums are in float64 (float32 on a TPU): the
    squares of float32 weights then neither overflow nor underflow, and small
    angles survive.

    Args:
      leaves: for each leaf its snapshots, oldest to newest, and its weights.
      storage: how the snapshots are kept.
      fit: whether the newest snapshot ("past") or the weights ("current") are the reference.

    Returns:
      `(window + 1, window + 1)`. Use it inside `widest_float`.
    """
    with widest_float() as wide:
        return sum(
            (_leaf_gram([x.reshape(-1) for x in points], storage, fit, wide) for points in leaves),
            start=jnp.zeros((), wide),
        )


def _leaf_gram(points: list[jax.Array], storage: Storage, fit: Fit, wide: Any) -> jax.Array:
    size = points[0].size
    blocks, tail = divmod(size, _BLOCK)

    def block_gram(block: list[jax.Array]) -> jax.Array:
        basis = jnp.stack(difference_basis(block, storage, fit, wide))
        # 'highest': on recent GPUs the default would be TF32 in the float32 form.
        return jnp.dot(basis, basis.T, precision="highest")

    def add_block(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + block_gram([lax.dynamic_slice_in_dim(x, i * _BLOCK, _BLOCK) for x in points])

    total = block_gram([x[size - tail :] for x in points])
    return lax.fori_loop(0, blocks, add_block, total) if blocks else total
