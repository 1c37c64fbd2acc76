"""Predict and mask: two passes over the weights, everything else `window` x `window`."""

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from pdt_optax import _leaves
from pdt_optax._assembly import Accept, assemble
from pdt_optax._gram import Points, gram_matrix
from pdt_optax._precision import in_widest_float
from pdt_optax._sharding import on_one_device
from pdt_optax._storage import WHOLE, Storage
from pdt_optax.accept import Rule, mean_weights
from pdt_optax.dynamics import Dynamics, check_fit


class Prediction(NamedTuple):
    """What `predict_and_mask` returns.

    Attributes:
      params: the parameters, with accepted weights moved to their prediction.
      mask: a tree like `params`: bool, or weights in [0, 1]; a `MaskedNode` for
        each leaf that is not predicted.
      coefficients: (horizon, window); row k is predicted step k + 1 as a
        combination of the difference basis [newest weights that the model saw,
        then their window - 1 consecutive differences, oldest first].
      singular_values: (window - 1,), of the window, descending; NaN for a model
        that does not need them, as `drift`.
      rank: (), int32, modes that the model uses.
      eigenvalues: (window - 1,), complex64, by falling modulus; NaN past `rank`.
      accepted_share: (), float32, mean of the mask over all predicted leaves.
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


def check_model(dynamics: Any, accept: Any, window: int) -> None:
    """Raises if `dynamics` and `accept` cannot work together on `window` snapshots."""
    if not isinstance(dynamics, Dynamics) or isinstance(dynamics, type):
        raise TypeError(
            "`dynamics` must be a model of the dynamics, such as `drift()` or `dmd()` (with its "
            f"parentheses). Got {dynamics!r}."
        )
    if not callable(accept) or isinstance(accept, type):
        raise TypeError(
            "`accept` must be an acceptance rule, such as `agree()` or `released_rule()` (with its "
            f"parentheses). Got {accept!r}."
        )
    for name, value in (("dynamics", dynamics), ("accept", accept)):
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"`{name}` must be hashable: it is a static argument of a jitted function. Got {value!r}."
            ) from None
    check_fit(dynamics.fit)
    needed = max(2, dynamics.minimum_window, getattr(accept, "minimum_window", 2))
    if window < needed:
        raise ValueError(
            f"`window` must be at least {needed}: {dynamics} with {accept} needs that many snapshots. "
            f"Got {window=}."
        )
    if isinstance(accept, Rule):
        accept.check(dynamics)


def count(name: str, value: Any, least: int, reason: str) -> int:
    """`value` as an int, or ValueError if it is none or less than `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"`{name}` must be a whole number >= {least}: {reason}. Got {name}={value!r}.")
    return number


def check_horizon(horizon: Any) -> int:
    return count("horizon", horizon, 1, "a prediction looks at least one snapshot ahead")


def predict_and_mask(
    snapshots: Sequence[optax.Params],
    params: optax.Params,
    *,
    dynamics: Dynamics,
    accept: Accept,
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
      TypeError: if `dynamics` or `accept` is none.

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
    snapshots = tuple(snapshots)
    horizon = check_horizon(horizon)
    check_model(dynamics, accept, len(snapshots))
    _leaves.match(snapshots, params)
    return _predict(
        snapshots,
        params,
        step,
        dynamics=dynamics,
        accept=accept,
        horizon=horizon,
        together=on_one_device(params),
    )


def _core(
    snapshots: tuple[optax.Params, ...],
    params: optax.Params,
    step: jax.Array | int,
    *,
    dynamics: Dynamics,
    accept: Accept,
    horizon: int,
    reach: jax.Array | None = None,
    storage: Storage = WHOLE,
    together: bool = False,
) -> Prediction:
    """`predict_and_mask`, checked.

    Args:
      reach: (), int32, a horizon below the static one.
      together: whether small leaves that are alike may be computed together;
        not where they may be split over devices, each in its own way.
    """
    leaves = _leaves.match(snapshots, params, storage)
    if not leaves:
        raise ValueError(
            "There is nothing to predict: the snapshots have no floating-point leaf. "
            f"Got {jax.tree.structure(snapshots[-1])}."
        )
    points = [(*leaf.snapshots, leaf.param) for leaf in leaves]
    stacks = _stacks([leaf.param for leaf in leaves], together)
    stacked = [tuple(map(_stack, *(points[i] for i in stack))) for stack in stacks]
    small = in_widest_float(functools.partial(_forecast, storage=storage, dynamics=dynamics, horizon=horizon))
    ahead = jnp.asarray(horizon if reach is None else reach, jnp.int32)
    increments, displacement, finite, singular_values, rank, eigenvalues = small(
        stacked, jnp.asarray(step, jnp.int32), ahead
    )
    # Or XLA would fuse the coefficients' last small steps into the pass over the
    # weights and repeat them for each weight.
    increments, displacement, finite = lax.optimization_barrier((increments, displacement, finite))

    def assembled(leaf: jax.Array | int, points: Points) -> tuple[jax.Array, jax.Array]:
        return assemble(
            points,
            storage,
            dynamics.fit,
            increments,
            displacement,
            _rule_at(accept, step, leaf),
            horizon if reach is None else reach,
            finite,
        )

    new: list[Any] = [None] * len(leaves)
    mask: list[Any] = [None] * len(leaves)
    masks = []
    for stack, x in zip(stacks, stacked, strict=True):
        if len(stack) == 1:
            new[stack[0]], mask[stack[0]] = assembled(stack[0], x)
            masks.append(mask[stack[0]])
        else:
            news, judged = jax.vmap(assembled)(jnp.array(stack), x)
            masks.append(judged)
            for row, i in enumerate(stack):
                new[i], mask[i] = news[row], judged[row]
    order = np.argsort([i for stack in stacks for i in stack])
    shares, share = mean_weights(masks, [len(stack) for stack in stacks])
    unpredicted = jax.tree.map(lambda _: optax.MaskedNode(), snapshots[-1])
    return Prediction(
        params=_leaves.replace(snapshots[-1], params, new),
        mask=_leaves.replace(snapshots[-1], unpredicted, mask),
        coefficients=increments,
        singular_values=singular_values,
        rank=rank,
        eigenvalues=eigenvalues,
        accepted_share=share,
        accepted_share_per_leaf=shares[order],
        finite=finite,
    )


_predict = jax.jit(_core, static_argnames=("dynamics", "accept", "horizon", "storage", "together"))


# Up to so many weights a leaf is small: it costs more to be called for than to be copied.
_SMALL = 2**16


def _stacks(leaves: Sequence[Any], together: bool) -> list[list[int]]:
    """Indices of the leaves in groups: small ones that are alike together, each of the others alone."""
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        alike = (x.shape, x.dtype) if together and x.size <= _SMALL else i
        groups.setdefault(alike, []).append(i)
    return list(groups.values())


def _stack(*leaves: jax.Array) -> jax.Array:
    return leaves[0] if len(leaves) == 1 else jnp.stack(leaves)


def _forecast(
    points: list[Points],
    epoch: jax.Array,
    reach: jax.Array,
    *,
    storage: Storage,
    dynamics: Dynamics,
    horizon: int,
) -> tuple[jax.Array, ...]:
    """The Gram pass and the small algebra; all that runs in the widest float."""
    dtypes = [leaf[-1].dtype for leaf in points]
    working = jnp.float64 if all(d == jnp.float64 for d in dtypes) else jnp.float32
    result = jnp.float64 if any(d == jnp.float64 for d in dtypes) else jnp.float32
    gram, unseen = gram_matrix(points, storage, dynamics.fit, not getattr(dynamics, "needs_gram", True))
    finite = jnp.all(jnp.isfinite(gram)) & jnp.isfinite(unseen)
    # Some LAPACK solvers never return from a NaN; `finite` remembers it.
    model_gram = jnp.where(jnp.all(jnp.isfinite(gram)), gram, 0)
    size = max(1, sum(leaf[-1].size for leaf in points))
    epsilon = float(jnp.finfo(working).eps)
    forecast = dynamics(model_gram, horizon, size=size, epsilon=epsilon, epoch=epoch)
    window = len(gram)
    for name, value, shape in (
        ("increments", forecast.increments, (horizon, window)),
        ("singular_values", forecast.singular_values, (window - 1,)),
        ("eigenvalues", forecast.eigenvalues, (window - 1,)),
    ):
        if jnp.shape(value) != shape:
            raise ValueError(
                f"A model of the dynamics must return a `Forecast` whose `{name}` has the shape {shape}, for "
                f"{horizon=} and {window=}. {dynamics} returned {jnp.shape(value)}."
            )
    increments = jnp.where(jnp.arange(horizon)[:, None] < reach, forecast.increments, 0)
    return (
        increments.astype(result),
        jnp.sum(increments, axis=0).astype(result),
        finite & _stays_finite(model_gram, increments, min(dtypes, key=_largest)),
        forecast.singular_values.astype(jnp.float32),
        jnp.asarray(forecast.rank, jnp.int32),
        forecast.eigenvalues.astype(jnp.complex64),
    )


def _largest(dtype: Any) -> float:
    return float(jnp.finfo(dtype).max)


def _stays_finite(gram: jax.Array, increments: jax.Array, dtype: Any) -> jax.Array:
    """Whether every predicted weight is sure to be finite, told from h x h numbers alone.

    No element of a column is larger than the column's length, so every partial
    sum of a prediction is below sum_j |coefficient_j| length_j.
    """
    length = jnp.sqrt(jnp.diagonal(gram))
    bound = length[0] + jnp.sum(jnp.abs(increments) * length)
    largest = min(_largest(dtype), _largest(gram.dtype)) / 2
    small_enough = jnp.max(jnp.abs(increments)) < _largest(jnp.float32) / 2
    return (bound < largest) & small_enough


def _rule_at(accept: Accept, epoch: jax.Array | int, leaf: jax.Array | int) -> Accept:
    return accept.at(epoch, leaf) if isinstance(accept, Rule) else accept
