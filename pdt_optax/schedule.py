"""The acceleration scheduler: how far to look ahead and how often, as training goes."""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from pdt_optax._predict import count


class Pace(NamedTuple):
    """The schedule's numbers, part of the wrapper's state.

    Attributes:
      horizon_now: (), int32; how many epochs the next prediction looks ahead.
      interval_now: (), int32; plain epochs between two predictions.
      value_before, value_before_that: (), float32; the last two epochs' values
        (mean training losses), NaN until they are known.
    """

    horizon_now: jax.Array
    interval_now: jax.Array
    value_before: jax.Array
    value_before_that: jax.Array

    @classmethod
    def start(cls, horizon: int, interval: int) -> "Pace":
        """The pace that the wrapper was given."""
        # Two arrays, not one twice: a state's buffers must all be its own to be donated.
        unknown = [jnp.full((), jnp.nan, jnp.float32) for _ in range(2)]
        return cls(jnp.int32(horizon), jnp.int32(interval), *unknown)


@runtime_checkable
class Schedule(Protocol):
    """How the pace changes: hashable, with these members."""

    @property
    def needs_value(self) -> bool:
        """Whether `next` looks at the epochs' values."""
        ...

    def longest(self, horizon: int) -> int:
        """The longest horizon that the schedule can come to from `horizon`."""
        ...

    def next(self, pace: Pace, value: jax.Array, jumped: jax.Array) -> Pace:
        """The horizon and interval after an epoch.

        Args:
          pace: before it; the values of the two epochs before are in it.
          value: (), float32; the epoch's value.
          jumped: (), bool; whether the epoch started from a prediction.
        """
        ...


@dataclasses.dataclass(frozen=True)
class fixed:  # noqa: N801
    """The horizon and the interval stay as they are.

    Example:
      >>> import optax, pdt_optax
      >>> tx = pdt_optax.pdt(optax.adamw(1e-3), horizon=2, interval=3, schedule=pdt_optax.fixed())
    """

    needs_value = False

    def longest(self, horizon: int) -> int:
        return horizon

    def next(self, pace: Pace, value: jax.Array, jumped: jax.Array) -> Pace:
        del value, jumped
        return pace


@dataclasses.dataclass(frozen=True)
class released_schedule:  # noqa: N801
    """The released code's rule: look less far, or less often, when the loss rises.

    When an epoch's value is above the last one's and the one before that, the
    horizon shrinks by 2 (from more than 4), or from 4 to 3 with one more epoch
    between predictions, or stays and the interval grows by 2. When it is above
    the last one's only, the horizon shrinks by 1 (from more than 3), or stays
    and the interval grows by 1.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> settings = dict(pdt_optax.presets.released, schedule=pdt_optax.released_schedule())
      >>> tx = pdt_optax.pdt(optax.sgd(0.1), **settings)
      >>> params = jnp.ones(2)
      >>> opt_state = tx.init(params)
      >>> for loss in (3.0, 2.0, 2.5):  # rises, but not above the one before
      ...     params, opt_state, report = tx.end_epoch(params, opt_state, value=loss)
      >>> int(opt_state.pace.horizon_now)
      4
    """

    needs_value = True

    def longest(self, horizon: int) -> int:
        return horizon

    def next(self, pace: Pace, value: jax.Array, jumped: jax.Array) -> Pace:
        del jumped
        horizon, interval = pace.horizon_now, pace.interval_now
        rises = value > pace.value_before
        above_both = rises & (value > pace.value_before_that)
        above_last = rises & ~above_both
        shorter = jnp.select(
            [above_both & (horizon > 4), above_both & (horizon == 4), above_last & (horizon > 3)],
            [2, 1, 1],
            0,
        )
        longer = jnp.select(
            [
                above_both & (horizon == 4),
                above_both & (horizon < 4),
                above_last & (horizon <= 3),
            ],
            [1, 2, 1],
            0,
        )
        return pace._replace(
            horizon_now=(horizon - shorter).astype(jnp.int32),
            interval_now=(interval + longer).astype(jnp.int32),
        )


@dataclasses.dataclass(frozen=True)
class adaptive:  # noqa: N801
    """Looks further while jumps pay off, less far, then less often, when they do not.

    Judged by the epoch after a jump. When its value is no higher than that of
    the epoch before the jump, the horizon grows by 1. When it is higher, the
    horizon halves; from 1, the interval grows by 1 instead.

    Args:
      longest_horizon: how far the horizon may grow; at least the one to start from.

    Raises:
      ValueError: unless it is a whole number >= 1.

    Example:
      >>> import optax, pdt_optax
      >>> tx = pdt_optax.pdt(optax.adamw(1e-3), horizon=2, schedule=pdt_optax.adaptive(longest_horizon=6))
    """

    longest_horizon: int = 5

    needs_value = True

    def __post_init__(self) -> None:
        count("longest_horizon", self.longest_horizon, 1, "a prediction looks at least one snapshot ahead")

    def longest(self, horizon: int) -> int:
        if horizon > self.longest_horizon:
            raise ValueError(
                "`horizon` starts an adaptive schedule, so it must not exceed `longest_horizon`. "
                f"Got {horizon=}, longest_horizon={self.longest_horizon}."
            )
        return self.longest_horizon

    def next(self, pace: Pace, value: jax.Array, jumped: jax.Array) -> Pace:
        horizon, interval = pace.horizon_now, pace.interval_now
        paid_off = jumped & (value <= pace.value_before)
        failed = jumped & ~paid_off
        further = jnp.minimum(horizon + 1, self.longest_horizon)
        return pace._replace(
            horizon_now=jnp.where(
                paid_off, further, jnp.where(failed, jnp.maximum(horizon // 2, 1), horizon)
            ).astype(jnp.int32),
            interval_now=jnp.where(failed & (horizon == 1), interval + 1, interval).astype(jnp.int32),
        )
