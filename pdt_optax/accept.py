"""Acceptance rules: which weights take their prediction (dynamic consistency, Sec. 3.2).

A rule is called once per leaf, inside the pass that assembles the new weights:

    mask = rule(increments, step, differences, reference, horizon)

    increments   (horizon, ...)     predicted steps, pred(k) - pred(k - 1); pred(0) is `reference`
    step         (...)              what the optimizer did in the epoch just trained
    differences  (window - 1, ...)  the steps between the snapshots that the model saw
    reference    (...)              the weights that the prediction starts from
    horizon      int, or () int32   how many snapshots ahead the prediction looks; rows of
                                    `increments` past it are zero

The mask is bool, or a weight in [0, 1]: 0 keeps the optimizer's weights bit for
bit, 1 takes the prediction, anything between mixes the two in proportion.

Rules read `increments` and `differences` row by row where they can: XLA then
fuses the whole rule into one pass and never writes the stacks to memory.

The three weights of each example: one moves steadily, one slows down, one turns around.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdt_optax._reduce import Leaf, over_shards, total, widest_float
from pdt_optax._shapes import expect
from pdt_optax.dynamics import Dynamics, drift
from pdt_optax.schedule import is_number

Accept = Callable[..., Array]  # a rule as a plain function


class Rule:
    """Base of the acceptance rules: hashable, and called as above. A plain function is taken for its `__call__`."""

    minimum_window = 2

    def check(self, dynamics: Dynamics) -> None:
        """Raises ValueError if the rule makes no sense for predictions of `dynamics`."""
        del dynamics

    def at(self, epoch: Array | int, leaf: Array | int) -> Accept:
        """The rule for one leaf of one prediction, for rules that differ between them."""
        del epoch, leaf
        return self

    def __call__(
        self, increments: Array, step: Array, differences: Array, reference: Array, horizon: int | Array
    ) -> Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _Function(Rule):
    """A plain function as a rule."""

    function: Callable[..., Array]

    def __call__(self, increments, step, differences, reference, horizon):
        return self.function(increments, step, differences, reference, horizon)

    def __repr__(self) -> str:
        return repr(self.function)


def as_rule(name: str, rule: object) -> Rule:
    """`rule` itself, or a rule made of the function that it is; TypeError for anything else."""
    if isinstance(rule, Rule):
        return rule
    if not callable(rule) or isinstance(rule, type):
        raise TypeError(
            f"`{name}` must be an acceptance rule, such as `agree()` or `released_rule()` (with its "
            f"parentheses). Got {rule!r}."
        )
    return _Function(rule)  # pyright: ignore[reportArgumentType]


def _total(rows: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, list(rows))


def moves_far_enough(increments: Array, step: Array, horizon: int | Array) -> Array:
    """Eq. 6: the jump is at least `horizon` optimizer steps long."""
    return jnp.abs(_total(increments)) >= horizon * jnp.abs(step)


def moves_not_too_far(increments: Array, step: Array, horizon: int | Array) -> Array:
    """Eq. 8: the jump is at most `horizon` optimizer steps long."""
    return jnp.abs(_total(increments)) <= horizon * jnp.abs(step)


def every_step_agrees(increments: Array, step: Array, horizon: int | Array) -> Array:
    """Eq. 7: every predicted step has the sign of the optimizer's step."""
    agrees = [(jnp.sign(row) == jnp.sign(step)) | (k >= horizon) for k, row in enumerate(increments)]
    return functools.reduce(operator.and_, agrees)


def mean_weights(masks: Sequence[Array], stacked: Sequence[int]) -> tuple[Array, Array]:
    """The accepted shares of leaves, and of all together: (leaves,) and (), float32.

    Args:
      masks: each of a stack of leaves.
      stacked: how many leaves each stack has.
    """

    for mask, count in zip(masks, stacked, strict=True):
        if count > 1:
            expect("mask", mask, count, *[None] * (mask.ndim - 1))

    def measure(leaves: Sequence[Leaf], shares: Sequence[float]) -> Array:
        counts, sizes = [], []
        for (mask,), share, count in zip(leaves, shares, stacked, strict=True):
            exact = jnp.int32 if mask.dtype == bool and mask.size < 2**31 else wide
            counts.append(share * jax.vmap(total)(mask.reshape(count, -1).astype(exact)).astype(wide))
            sizes.append(jnp.full(count, share * (mask.size // count), wide))
        return jnp.stack([jnp.concatenate(counts), jnp.concatenate(sizes)])

    with widest_float() as wide:  # a float32 count stops at 2^24
        counts, sizes = over_shards(measure, [(lax.stop_gradient(mask),) for mask in masks])
        shares = counts / jnp.maximum(sizes, 1)
        return shares.astype(jnp.float32), (counts.sum() / jnp.maximum(sizes.sum(), 1)).astype(jnp.float32)


def mean_weight(mask: Array) -> Array:
    """The accepted share of one leaf: (), float32."""
    return mean_weights([mask], [1])[1]


@dataclasses.dataclass(frozen=True)
class paper_rule(Rule):  # noqa: N801
    """Eqs. 6 and 7: far enough, and every predicted step in the optimizer's direction.

    A weight that converges geometrically with ratio r < 1 is displaced by
    (1 - r^horizon) / (1 - r) < horizon steps, so Eq. 6 rejects every converging
    weight that is modelled exactly and accepts those whose motion is
    over-predicted. See `bounded_rule` for the opposite bound.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> *snapshots, params = jnp.array([[0, 0, 0], [1, 2, 2], [2, 3, 3], [3, 3.5, 2.5]])
      >>> pdt_optax.predict_and_mask(
      ...     snapshots, params, dynamics=pdt_optax.drift(), accept=pdt_optax.paper_rule(), horizon=2).mask
      Array([ True,  True, False], dtype=bool)
    """

    def __call__(self, increments, step, differences, reference, horizon):
        return moves_far_enough(increments, step, horizon) & every_step_agrees(increments, step, horizon)


@dataclasses.dataclass(frozen=True)
class bounded_rule(Rule):  # noqa: N801
    """Eqs. 8 and 7: not too far, and every predicted step in the optimizer's direction.

    Eq. 8 (Appendix A.5) is the bound of the paper's convergence argument; it
    contradicts Eq. 6 except at equality.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> *snapshots, params = jnp.array([[0, 0, 0], [1, 2, 2], [2, 3, 3], [3, 3.5, 2.5]])
      >>> pdt_optax.predict_and_mask(
      ...     snapshots, params, dynamics=pdt_optax.drift(), accept=pdt_optax.bounded_rule(), horizon=2).mask
      Array([ True, False, False], dtype=bool)
    """

    def __call__(self, increments, step, differences, reference, horizon):
        return moves_not_too_far(increments, step, horizon) & every_step_agrees(increments, step, horizon)


@dataclasses.dataclass(frozen=True)
class released_rule(Rule):  # noqa: N801
    """The rule behind the paper's published numbers: a band, and the final direction.

    Accepted where the displacement is between 1 and `horizon` + 1 optimizer
    steps long and has the sign of the step.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> *snapshots, params = jnp.array([[0, 0, 0], [1, 2, 2], [2, 3, 3], [3, 3.5, 2.5]])
      >>> pdt_optax.predict_and_mask(
      ...     snapshots, params, dynamics=pdt_optax.drift(), accept=pdt_optax.released_rule(), horizon=2).mask
      Array([ True,  True, False], dtype=bool)
    """

    def __call__(self, increments, step, differences, reference, horizon):
        displacement = _total(increments)
        length, unit = jnp.abs(displacement), jnp.abs(step)
        in_band = (unit <= length) & (length <= (horizon + 1) * unit)
        return in_band & (jnp.sign(displacement) == jnp.sign(step))


@dataclasses.dataclass(frozen=True)
class agree(Rule):  # noqa: N801
    """Eq. 7 alone: every predicted step has the sign of the optimizer's step.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> *snapshots, params = jnp.array([[0, 0, 0], [1, 2, 2], [2, 3, 3], [3, 3.5, 2.5]])
      >>> pdt_optax.predict_and_mask(
      ...     snapshots, params, dynamics=pdt_optax.drift(), accept=pdt_optax.agree(), horizon=2).mask
      Array([ True,  True, False], dtype=bool)
    """

    def __call__(self, increments, step, differences, reference, horizon):
        return every_step_agrees(increments, step, horizon)


@dataclasses.dataclass(frozen=True)
class shrink(Rule):  # noqa: N801
    """A soft mask: each weight's mean velocity, shrunk by its own noise (for `drift` only).

    Positive-part James-Stein over the n = `window` - 1 differences d:
    mask = max(0, 1 - var(d) / (n mean(d)^2)), with the unbiased variance, and 0
    where the mean is 0. A steady weight takes the whole jump, one that only
    jitters keeps the optimizer's value. Needs a window of at least 3.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> *snapshots, params = jnp.array([[0, 0, 0], [1, 2, 2], [2, 3, 3], [3, 3.5, 2.5]])
      >>> pdt_optax.predict_and_mask(
      ...     snapshots, params, dynamics=pdt_optax.drift(), accept=pdt_optax.shrink(), horizon=2).mask
      Array([1.       , 0.8888889, 0.       ], dtype=float32)

    References:
      James and Stein, Estimation with quadratic loss, 1961.
    """

    minimum_window = 3

    def check(self, dynamics: Dynamics) -> None:
        if not isinstance(dynamics, drift):
            raise ValueError(
                "`shrink()` weighs the window's mean velocity against its noise, and only `drift()` "
                f"predicts with that velocity. Got {dynamics=}."
            )

    def __call__(self, increments, step, differences, reference, horizon):
        count = len(differences)
        mean = _total(differences) / count
        moved = mean != 0
        unit = jnp.where(moved, mean, 1)
        # In units of the mean, or squares of tiny velocities would underflow.
        variance = _total([((difference - mean) / unit) ** 2 for difference in differences]) / (count - 1)
        return jnp.where(moved, jnp.maximum(0, 1 - variance / count), 0)


@dataclasses.dataclass(frozen=True)
class everything(Rule):  # noqa: N801
    """Every prediction, unchecked: the non-selective predictive training of Fig. 2.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> *snapshots, params = jnp.array([[0, 0, 0], [1, 2, 2], [2, 3, 3], [3, 3.5, 2.5]])
      >>> pdt_optax.predict_and_mask(
      ...     snapshots, params, dynamics=pdt_optax.drift(), accept=pdt_optax.everything(), horizon=2).mask
      Array([ True,  True,  True], dtype=bool)
    """

    def __call__(self, increments, step, differences, reference, horizon):
        return jnp.ones(step.shape, bool)


@dataclasses.dataclass(frozen=True)
class random_subset(Rule):  # noqa: N801
    """Weights drawn at random, a new draw at every prediction: the control of Fig. 5.

    Args:
      ratio: the share of every leaf to accept, in [0, 1].
      like: instead of `ratio`, a rule whose accepted share in each leaf is drawn.
      seed: of the draws.

    Raises:
      ValueError: unless exactly one of `ratio` and `like` is given.

    Example:
      >>> import pdt_optax
      >>> pdt_optax.random_subset(like=pdt_optax.released_rule(), seed=1)
      random_subset(ratio=None, like=released_rule(), seed=1)
    """

    ratio: float | None = None
    like: Rule | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.like is None):
            raise ValueError(
                "`random_subset` takes its share either from `ratio` or from the rule `like`: give "
                f"exactly one. Got ratio={self.ratio}, like={self.like}."
            )
        if self.ratio is not None and not (is_number(self.ratio) and 0 <= self.ratio <= 1):
            raise ValueError(f"`ratio` must be a share, a number between 0 and 1. Got ratio={self.ratio!r}.")
        if self.like is not None:
            as_rule("like", self.like)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"`seed` must be a whole number. Got seed={self.seed!r}.")

    @property
    def minimum_window(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 2 if self.like is None else as_rule("like", self.like).minimum_window

    def check(self, dynamics: Dynamics) -> None:
        if self.like is not None:
            as_rule("like", self.like).check(dynamics)

    def at(self, epoch: Array | int, leaf: Array | int) -> Accept:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), epoch), leaf)

        def draw(increments, step, differences, reference, horizon):
            if self.like is None:
                share = jnp.float32(self.ratio)
            else:
                share = mean_weight(self.like(increments, step, differences, reference, horizon))
            return jax.random.bernoulli(key, share, step.shape)

        return draw
