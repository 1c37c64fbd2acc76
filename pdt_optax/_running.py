"""The running form of `slow_drift`: two passes over the weights, and a few numbers a leaf between them."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pdt_optax._layout import Column
from pdt_optax._passes import accepted
from pdt_optax._predict import largest, stack, stacks
from pdt_optax._reduce import Leaf, in_widest_float, over_shards, totals, widest_float
from pdt_optax._slow import Pull, slow_drift
from pdt_optax.accept import Rule, everything, mean_weights

# Of a leaf: the newest snapshot, the mean, what is delivered to it (if anything), and the weights.
Points = Leaf

# The products of [weights, own step, mean] that are summed, in this order; of the weights, those that ever moved.
_PAIRS = [*zip(*np.triu_indices(3), strict=True)]


class Followed(NamedTuple):
    """What the end of an epoch makes of a running mean; lists of leaves.

    Attributes:
      mean: with this epoch's own motion in it.
      pull: see `Pull`.
      displacement: of each weight, in the mean's type; 0 where it is not accepted.
      accepted_share, accepted_share_per_leaf, finite, alignment, persistence,
        persistence_per_leaf: for the report.
    """

    mean: Column
    pull: Pull
    displacement: Column
    accepted_share: jax.Array
    accepted_share_per_leaf: jax.Array
    finite: jax.Array
    alignment: jax.Array
    persistence: jax.Array
    persistence_per_leaf: jax.Array


def own_step(
    newest: jax.Array, delivered: jax.Array | None, share: jax.Array, weights: jax.Array
) -> jax.Array:
    """d_n: what the optimizer did to a leaf since its newest snapshot, without what was delivered to it."""
    wide = jnp.promote_types(weights.dtype, jnp.float32)
    step = weights.astype(wide) - newest.astype(wide)
    return step if delivered is None else step - share * delivered


def follow(
    points: Sequence[Points],
    pull: Pull,
    share: jax.Array,
    epoch: jax.Array,
    due: jax.Array,
    extrapolated: jax.Array,
    far: jax.Array,
    *,
    dynamics: slow_drift,
    accept: Rule,
    horizon: int,
    together: bool,
) -> Followed:
    """Takes the epoch's own motion into the mean and, if it is `due`, extrapolates.

    Args:
      points: of each leaf.
      pull: before the epoch.
      share: (), float32; of what was to be delivered, how much was.
      epoch: (), int32, counted from 0.
      due: (), bool.
      extrapolated: (), bool; whether the last epoch's end predicted.
      far: (), int32; the horizon.
      dynamics, accept: of the predictor.
      horizon: the longest.
      together: as for `predict`.
    """
    groups = stacks([leaf[-1] for leaf in points], together)
    stacked = [tuple(map(stack, *(points[i] for i in group))) for group in groups]
    order = np.argsort([i for group in groups for i in group])
    dtypes = [leaf[-1].dtype for leaf in points]
    small = in_widest_float(
        functools.partial(_pulled, dynamics, groups, [dtypes[i] for g in groups for i in g])
    )
    numbers = small(stacked, pull, share, epoch, extrapolated, far)
    # Or XLA would repeat the small steps for each weight.
    k, held, weight, gain, whole, finite, alignment, persistence, of_leaves, moving = (
        lax.optimization_barrier(numbers)
    )
    go = due & finite

    def moved(leaf: jax.Array | int, points: Points) -> tuple[jax.Array, ...]:
        newest, old, *delivered, weights = points
        wide = old.dtype

        def columns() -> tuple[jax.Array, ...]:
            """The own step, the mean and the prediction's step; made anew wherever they are used, never in memory."""
            step = own_step(newest, delivered[0] if delivered else None, share, weights).astype(wide)
            mean = jnp.where(whole, old + k.astype(wide) * (step - old), old)
            held_back = mean + held.astype(wide) * weights.astype(wide)
            return step, mean, jnp.where(mean != 0, gain.astype(wide) * held_back, 0)

        def judged() -> jax.Array:
            step, mean, each = columns()
            rows = jnp.stack([jnp.where(i < far, each, 0) for i in range(horizon)])
            mask = accepted(accept.at(epoch, leaf), rows, step, mean[None], weights, far)
            return jnp.where(each != 0, mask, jnp.zeros_like(mask))

        _, mean, each = columns()
        if isinstance(accept, everything):
            return mean, jnp.where(go, far * each, 0)
        # A branch of its own, whose result is written to memory once.
        like = jax.eval_shape(judged)
        mask = lax.cond(go, judged, lambda: jnp.zeros_like(weights, like.dtype))
        return mean, jnp.where(go, far * each * mask.astype(wide), 0), mask

    results = []
    masks = []
    for group, x in zip(groups, stacked, strict=True):
        if len(group) == 1:
            result = moved(group[0], x)
            results.append(result)
        else:
            result = jax.vmap(moved)(jnp.array(group), x)
            results += [tuple(part[row] for part in result) for row in range(len(group))]
        masks += result[2:]
    means, displacements, *_ = map(list, zip(*(results[i] for i in order), strict=True))
    shares, all_of_it = moving[:-1], moving[-1]
    if masks:
        shares, all_of_it = mean_weights(masks, [len(group) for group in groups])
    shares, all_of_it = jnp.where(go, shares, 0), jnp.where(go, all_of_it, 0)
    new = Pull(jnp.where(whole, weight, pull.weight), jnp.where(whole, gain, pull.gain))
    return Followed(
        means,
        new,
        displacements,
        all_of_it,
        shares[order],
        ~due | finite,
        alignment,
        persistence,
        of_leaves[order],
    )


def _sums(stacked: Sequence[Points], groups: Sequence[Sequence[int]], share: jax.Array) -> jax.Array:
    """What is summed over each leaf, (leaves, 8), in the order of the groups: `_PAIRS`, the weights that ever moved, all.

    Use them inside `widest_float`.
    """
    with widest_float() as wide:

        def products(points: Points, share: jax.Array) -> jax.Array:
            newest, mean, *delivered, weights = (x.reshape(-1).astype(wide) for x in points)
            own = own_step(newest, delivered[0] if delivered else None, share, weights)
            moved = (mean != 0) | (own != 0)
            columns = [jnp.where(moved, weights, 0), own, mean]
            exact = jnp.int32 if moved.size < 2**31 else wide
            *found, moving = totals([*(columns[i] * columns[j] for i, j in _PAIRS), moved.astype(exact)])
            return jnp.stack([*found, moving.astype(wide), jnp.full((), weights.size, wide)])

        def measure(leaves: Sequence[Points], shares: Sequence[float]) -> jax.Array:
            *of, (delivered,) = leaves
            rows = [
                share
                * (
                    products(x, delivered)[None]
                    if len(group) == 1
                    else jax.vmap(products, (0, None))(x, delivered)
                )
                for x, share, group in zip(of, shares[:-1], groups, strict=True)
            ]
            return jnp.concatenate(rows)

        return over_shards(measure, [*stacked, (share.astype(wide),)])


def _pulled(
    dynamics: slow_drift,
    groups: Sequence[Sequence[int]],
    dtypes: Sequence[np.dtype],
    stacked: Sequence[Points],
    pull: Pull,
    share: jax.Array,
    epoch: jax.Array,
    extrapolated: jax.Array,
    far: jax.Array,
) -> tuple[jax.Array, ...]:
    """The first pass, and all that lies between the two.

    Returns:
      k_n, the weights' coefficient, the new weight and gain, whether what was
      read is finite and whether the prediction will be, the alignment, the
      persistence of all and of each leaf, in the order of the groups, and the
      share of the weights that ever moved, of each leaf and of all.
    """
    sums = _sums(stacked, groups, share)
    products, moving, size = sums[:, :-2], sums[:, -2], sums[:, -1]
    rows, columns = np.triu_indices(3)
    known = jnp.all(jnp.isfinite(products))
    half = jnp.zeros((len(sums), 3, 3), sums.dtype).at[:, rows, columns].set(jnp.where(known, products, 0))
    leaves = half + jnp.triu(half, 1).swapaxes(1, 2)
    total = leaves.sum(0)

    def persistence(gram: jax.Array) -> jax.Array:
        past = gram[..., 2, 2]
        return gram[..., 1, 2] / jnp.where(past > 0, past, 1)

    overall = persistence(total)
    both = jnp.sqrt(total[1, 1]) * jnp.sqrt(total[2, 2])
    alignment = total[1, 2] / jnp.where(both > 0, both, 1)  # 0 where nothing moved
    gain = jnp.where(extrapolated, dynamics.next_gain(pull.gain, alignment), pull.gain)
    k, weight = dynamics.rate(pull.weight, epoch + 1)
    held = dynamics.inward((1 - k) * total[0, 2] + k * total[0, 1], total[0, 0])
    # No element that moves is larger than those of its leaf are long.
    length = jnp.sqrt(jnp.maximum(jnp.diagonal(leaves, axis1=1, axis2=2), 0))
    reach = far * gain * ((1 - k) * length[:, 2] + k * length[:, 1] + jnp.abs(held) * length[:, 0])
    most = jnp.array([largest(dtype) / 2 for dtype in dtypes], sums.dtype)
    finite = known & jnp.all(length[:, 0] + reach < most)
    narrow = (x.astype(jnp.float32) for x in (k, held, weight, gain))
    by_leaf = persistence(leaves).astype(jnp.float32)
    shares = jnp.append(moving, moving.sum()) / jnp.maximum(jnp.append(size, size.sum()), 1)
    shares = shares.astype(jnp.float32)
    return (
        *narrow,
        known,
        finite,
        alignment.astype(jnp.float32),
        overall.astype(jnp.float32),
        by_leaf,
        shares,
    )
