"""Inner products of the weights' recent motion: the one pass that reads every weight."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdt_optax._precision import widest_float
from pdt_optax._sharding import over_shards
from pdt_optax._storage import Storage
from pdt_optax._sums import totals
from pdt_optax.dynamics import Fit, seen_columns

Points = Sequence[jax.Array]  # a leaf's snapshots, oldest to newest, and its weights


def difference_basis(points: Points, storage: Storage, fit: Fit, dtype: Any) -> list[jax.Array]:
    """Columns `[reference, *differences]` of a leaf: everything computed from a window combines them."""
    *snapshots, param = points
    reference = (snapshots[-1] if fit == "past" else param).astype(dtype)
    return [reference, *storage.differences(snapshots, param, dtype)]


def gram_matrix(
    leaves: Sequence[Points], storage: Storage, fit: Fit, diagonal: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Gram matrix of the columns that a model sees, summed over all leaves.

    The raw weights are nearly parallel: squaring them would square a condition
    number of up to 3e4. Products and sums are in float64 (float32 on a TPU): the
    squares of float32 weights then neither overflow nor underflow, and small
    angles survive.

    Args:
      leaves: for each leaf its snapshots, oldest to newest, and its weights.
      storage: how the snapshots are kept.
      fit: whether the newest snapshot ("past") or the weights ("current") are the reference.
      diagonal: leave all other products out, as 0.

    Returns:
      `(window, window)`, and `()`, the square of the difference that the model
      does not see. Use them inside `widest_float`.
    """
    window = len(leaves[0]) - 1
    seen = seen_columns(window, fit)
    (unseen,) = set(range(window + 1)) - set(seen)
    rows, columns_ = np.diag_indices(window) if diagonal else np.triu_indices(window)
    pairs = [*((seen[i], seen[j]) for i, j in zip(rows, columns_, strict=True)), (unseen, unseen)]
    with widest_float() as wide:

        def products(points: Points) -> jax.Array:
            columns = difference_basis([x.reshape(-1) for x in points], storage, fit, wide)
            return jnp.stack(totals([columns[i] * columns[j] for i, j in pairs]))

        def measure(leaves: Sequence[Points], shares: Sequence[float]) -> jax.Array:
            zeros = jnp.zeros(len(pairs), wide)
            return sum((share * products(x) for x, share in zip(leaves, shares, strict=True)), start=zeros)

        *upper, last = over_shards(measure, leaves)
        half = jnp.zeros((window, window), wide).at[rows, columns_].set(jnp.stack(upper))
        return jnp.where(np.tri(window, k=-1, dtype=bool), half.T, half), last
