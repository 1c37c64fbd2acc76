"""Predict and mask: two passes over the weights, everything else `window` x `window`."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import DTypeLike

from pdt_optax._layout import Column, as_array, floating, put, refill, take
from pdt_optax._passes import Points, assemble, gram_matrix, leaf_types
from pdt_optax._reduce import in_widest_float, on_one_device, usual_promotion
from pdt_optax._shapes import expect
from pdt_optax._window import WHOLE, Storage, Window
from pdt_optax.accept import Accept, Rule, as_rule, mean_weights
from pdt_optax.dynamics import Dynamics, check_fit
from pdt_optax.schedule import check_horizon


class Prediction(NamedTuple):
    """What `predict_and_mask` returns.

    Attributes:
      params: the parameters, with accepted weights moved to their prediction.
      mask: a tree like `params`: bool, or weights in [0, 1]; a `MaskedNode` for
        each leaf that is not predicted.
      coefficients: (horizon, window); row k is predicted step k + 1 as a
        combination of the difference basis [newest weights that the model saw,
        then their window - 1 consecutive differences, oldest first].
      singular_values: (window - 1,), of the window, descending; 0 for a model
        that does not need them, as `drift`.
      rank: (), int32, modes that the model uses.
      eigenvalues: (window - 1,), complex64, by falling modulus; 0 past `rank`.
      accepted_share: (), float32, mean of the mask over all predicted leaves; a
        weight that its prediction would not move counts as 0.
      accepted_share_per_leaf: (leaves,), float32, in the order of
        `jax.tree.leaves(mask)`.
      finite: (), bool; False if any number was not finite, or could not be
        promised to be: then nothing is accepted.
    """

    params: optax.Params
    mask: Any
    coefficients: jax.Array
    singular_values: jax.Array
    rank: jax.Array
    eigenvalues: jax.Array
    accepted_share: jax.Array
    accepted_share_per_leaf: jax.Array
    finite: jax.Array


def check_model(dynamics: Dynamics, accept: Rule, window: int) -> None:
    """Raises if `dynamics` and `accept` cannot work together on `window` snapshots."""
    if not isinstance(dynamics, Dynamics) or isinstance(dynamics, type):
        raise TypeError(
            "`dynamics` must be a model of the dynamics, such as `drift()` or `dmd()` (with its "
            f"parentheses). Got {dynamics!r}."
        )
    for name, value in (("dynamics", dynamics), ("accept", accept)):
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"`{name}` must be hashable: it is a static argument of a jitted function. Got {value!r}."
            ) from None
    check_fit(dynamics.fit)
    needed = max(2, dynamics.minimum_window, accept.minimum_window)
    if window < needed:
        raise ValueError(
            f"`window` must be at least {needed}: {dynamics} with {accept} needs that many snapshots. "
            f"Got {window=}."
        )
    accept.check(dynamics)


def predict_and_mask(
    snapshots: Sequence[optax.Params],
    params: optax.Params,
    *,
    dynamics: Dynamics,
    accept: Rule | Accept,
    horizon: int,
    step: jax.Array | int = 0,
) -> Prediction:
    """Predicts the weights `horizon` snapshots ahead and accepts it weight by weight.

    Fits `dynamics` to the window, forms the predicted steps and, where `accept`
    says so, moves weights to `reference + sum of the predicted steps`; all
    others keep `params` bit for bit. Pure and jitted; inside another jit it is
    inlined. Leaves that are not floating point are left alone.

    Args:
      snapshots: `window` trees like `params`, oldest to newest; the newest is
        the weights that the epoch just trained started from.
      params: what the optimizer made of them.
      dynamics: a model such as `drift()` or `dmd()`.
      accept: an acceptance rule such as `agree()`.
      horizon: how many snapshots ahead, >= 1. Static, as are the two above.
      step: the epoch that made `params` of the newest snapshot, counted from 0,
        (), int32: rules that follow a learning-rate schedule look it up, random
        ones draw anew for each.

    Returns:
      A `Prediction`.

    Raises:
      ValueError: for too few snapshots, or trees that do not match.
      TypeError: if `dynamics` is not a model, or `accept` not a rule.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> halving = [jnp.array([8.0, 1.0]), jnp.array([4.0, 1.0]), jnp.array([2.0, 1.0])]
      >>> prediction = pdt_optax.predict_and_mask(
      ...     halving, jnp.array([1.0, 3.0]),
      ...     dynamics=pdt_optax.dmd(rank=2), accept=pdt_optax.bounded_rule(), horizon=3)
      >>> prediction.mask
      Array([ True, False], dtype=bool)
      >>> [round(float(w), 4) for w in prediction.params]
      [0.25, 3.0]
    """
    if not isinstance(snapshots, list | tuple):
        raise TypeError(
            "`snapshots` must be a list or tuple of trees like `params`, oldest to newest. "
            f"Got {type(snapshots).__name__}."
        )
    horizon, rule = check_horizon(horizon), as_rule("accept", accept)
    check_model(dynamics, rule, len(snapshots))
    like = jax.tree.map(as_array, floating(snapshots[-1]))
    window = tuple(take(like, s, f"snapshots[{i}]") for i, s in enumerate(snapshots))
    weights = take(like, params)
    alone = on_one_device(weights)
    result = predict(
        window,
        weights,
        step,
        dynamics=dynamics,
        accept=rule,
        horizon=horizon,
        together=alone,
        whole_mask=True,
    )
    return result._replace(params=put(like, params, result.params), mask=refill(like, result.mask))


@functools.partial(
    jax.jit, static_argnames=("dynamics", "accept", "horizon", "storage", "together", "whole_mask")
)
@usual_promotion()
def predict(
    window: Window,
    weights: Column,
    step: jax.Array | int,
    *,
    dynamics: Dynamics,
    accept: Rule,
    horizon: int,
    reach: jax.Array | None = None,
    storage: Storage = WHOLE,
    together: bool = False,
    whole_mask: bool = False,
) -> Prediction:
    """`predict_and_mask` of columns: lists of leaves that are known to match.

    Args:
      window: the snapshots, oldest to newest.
      weights: what the optimizer made of the newest.
      step, dynamics, accept, horizon: as in `predict_and_mask`, checked.
      reach: (), int32, a horizon below the static one.
      storage: how the snapshots are kept.
      together: whether small leaves that are alike may be computed together;
        not where they may be split over devices, each in its own way.
      whole_mask: whether the mask is True, too, where it moves nothing, as the
        rule made it; a boundary has no use for it.

    Returns:
      A `Prediction` whose `params` and `mask` are lists of leaves, too.
    """
    if not weights:
        raise ValueError(
            "There is nothing to predict: the snapshots have no floating-point leaf. "
            f"Got {len(window)} snapshots of 0 leaves."
        )
    points: list[Points] = list(zip(*window, weights, strict=True))
    groups = stacks(weights, together)
    stacked = [tuple(map(stack, *(points[i] for i in group))) for group in groups]
    small = in_widest_float(functools.partial(_forecast, storage, dynamics, horizon))
    far = horizon if reach is None else reach
    epoch, ahead = jnp.asarray(step, jnp.int32), jnp.asarray(far, jnp.int32)
    increments, displacement, finite, singular_values, rank, eigenvalues = small(stacked, epoch, ahead)
    # Or XLA would fuse the coefficients' last small steps into the pass over the
    # weights and repeat them for each weight.
    increments, displacement, finite = lax.optimization_barrier((increments, displacement, finite))

    def assembled(leaf: jax.Array | int, points: Points) -> tuple[jax.Array, ...]:
        return assemble(
            points,
            storage,
            dynamics.fit,
            increments,
            displacement,
            accept.at(step, leaf),
            far,
            finite,
            moved_only=dynamics.moved_only,
            whole_mask=whole_mask,
        )

    pairs, masks = [], []  # each leaf's new weights and mask; where each group's masks move anything
    for group, x in zip(groups, stacked, strict=True):
        if len(group) == 1:
            found = assembled(group[0], x)
            pairs.append((found[0], found[-1]))
        else:
            found = jax.vmap(assembled)(jnp.array(group), x)
            pairs += [(found[0][row], found[-1][row]) for row in range(len(group))]
        masks.append(found[1])
    order = np.argsort([i for group in groups for i in group])
    new, mask = map(list, zip(*(pairs[i] for i in order), strict=True))
    shares, share = mean_weights(masks, [len(group) for group in groups])
    shares = shares[order]
    return Prediction(new, mask, increments, singular_values, rank, eigenvalues, share, shares, finite)


# Up to so many weights a leaf is small: it costs more to be called for than to be copied.
_SMALL = 2**16


def stacks(leaves: Sequence[jax.Array], together: bool) -> list[list[int]]:
    """Indices of the leaves in groups: small ones that are alike together, each of the others alone."""
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        alike = (x.shape, x.dtype) if together and x.size <= _SMALL else i
        groups.setdefault(alike, []).append(i)
    return list(groups.values())


def stack(*leaves: jax.Array) -> jax.Array:
    return leaves[0] if len(leaves) == 1 else jnp.stack(leaves)


def _forecast(
    storage: Storage, dynamics: Dynamics, horizon: int, points: list[Points], epoch: jax.Array, far: jax.Array
) -> tuple[jax.Array, ...]:
    """The Gram pass and the small algebra; all that runs in the widest float."""
    dtypes = [leaf[-1].dtype for leaf in points]
    working = jnp.float64 if all(d == jnp.float64 for d in dtypes) else jnp.float32
    result = jnp.float64 if any(d == jnp.float64 for d in dtypes) else jnp.float32
    grams, unseen = gram_matrix(points, storage, dynamics.fit, not dynamics.needs_gram, dynamics.moved_only)
    finite = jnp.all(jnp.isfinite(grams)) & jnp.all(jnp.isfinite(unseen))
    # Some LAPACK solvers never return from a NaN; `finite` remembers it.
    grams = jnp.where(jnp.all(jnp.isfinite(grams)), grams, 0)
    model_gram = grams.sum(0)
    size = max(1, sum(leaf[-1].size for leaf in points))
    epsilon = float(jnp.finfo(working).eps)
    forecast = dynamics(model_gram, horizon, size=size, epsilon=epsilon, epoch=epoch)
    window = len(model_gram)
    spectrum = (window - 1,)
    shapes = {"increments": (horizon, window), "singular_values": spectrum, "eigenvalues": spectrum}
    for name, shape in shapes.items():
        if (got := jnp.shape(getattr(forecast, name))) != shape:
            raise ValueError(
                f"A model of the dynamics must return a `Forecast` whose `{name}` has the shape {shape}, for "
                f"{horizon=} and {window=}. {dynamics} returned {got}."
            )
    increments = jnp.where(jnp.arange(horizon)[:, None] < far, forecast.increments, 0)
    return (
        increments.astype(result),
        jnp.sum(increments, axis=0).astype(result),
        finite & _stays_finite(grams, increments, leaf_types(points)),
        forecast.singular_values.astype(jnp.float32),
        jnp.asarray(forecast.rank, jnp.int32),
        forecast.eigenvalues.astype(jnp.complex64),
    )


def largest(dtype: DTypeLike) -> float:
    return float(jnp.finfo(dtype).max)


def _stays_finite(grams: jax.Array, increments: jax.Array, dtypes: Sequence[DTypeLike]) -> jax.Array:
    """Whether every predicted weight is sure to be finite, told from h x h numbers a type alone.

    No element of a column is larger than the column's length, so every partial
    sum of a prediction is below sum_j |coefficient_j| length_j, over the leaves of its type.
    """
    window = grams.shape[-1]
    expect("grams", grams, len(dtypes), window, window)
    expect("increments", increments, None, window)
    length = jnp.sqrt(jnp.diagonal(grams, axis1=1, axis2=2))
    bound = length[:, 0] + jnp.sum(jnp.abs(increments) * length[:, None], axis=(1, 2))
    most = jnp.array([min(largest(x), largest(grams.dtype)) / 2 for x in dtypes], grams.dtype)
    small_enough = jnp.max(jnp.abs(increments)) < largest(jnp.float32) / 2
    return jnp.all(bound < most) & small_enough
