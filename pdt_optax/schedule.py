"""The acceleration scheduler: how far to look ahead and how often, as training goes."""

import dataclasses
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp


def count(name: str, value: object, least: int, reason: str) -> int:
    """`value` as an int, or ValueError if it is no whole number or less than `least`."""
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"`{name}` must be a whole number >= {least}: {reason}. Got {name}={value!r}.")
    return number


def is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def check_horizon(horizon: object) -> int:
    return count("horizon", horizon, 1, "a prediction looks at least one snapshot ahead")


UNKNOWN = float(jnp.finfo(jnp.float32).max)


class Pace(NamedTuple):
    """The schedule's numbers, part of the history.

    Attributes:
      horizon_now: (), int32; how many epochs the next prediction looks ahead.
      interval_now: (), int32; plain epochs between two predictions.
      value_before, value_before_that: (), float32; the last two epochs' values
        (mean training losses), `UNKNOWN`, the largest float32, until they are known.
    """

    horizon_now: jax.Array
    interval_now: jax.Array
    value_before: jax.Array
    value_before_that: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base of the schedules: a frozen dataclass that overrides `next`, and what else it needs.

    Args:
      horizon: how many epochs ahead the first prediction looks, >= 1.
      interval: plain epochs between two predictions at first, >= 0; 0 predicts at the end of every epoch.

    Attributes:
      needs_value: whether `next` looks at the epochs' values.
      steady: whether `next` never changes the horizon.
      longest: the longest horizon that the schedule can come to.

    Raises:
      ValueError: unless both are whole numbers, from 1 and from 0.

    Example:
      >>> import dataclasses, optax, pdt_optax
      >>> @dataclasses.dataclass(frozen=True)
      ... class rarer(pdt_optax.Schedule):  # predicts less and less often
      ...     def next(self, pace, value, jumped):
      ...         return pace._replace(interval_now=pace.interval_now + jumped)
      >>> tx = pdt_optax.pdt(optax.adamw(1e-3), schedule=rarer())
    """

    horizon: int = 1
    interval: int = 1

    needs_value = False
    steady = False

    def __post_init__(self) -> None:
        interval = count("interval", self.interval, 0, "it counts the plain epochs between two predictions")
        object.__setattr__(self, "horizon", check_horizon(self.horizon))
        object.__setattr__(self, "interval", interval)

    @property
    def longest(self) -> int:
        return self.horizon

    def start(self) -> Pace:
        """The pace before the first epoch."""
        # Two arrays, not one twice: a history's buffers must all be its own to be donated.
        unknown = [jnp.full((), UNKNOWN, jnp.float32) for _ in range(2)]
        return Pace(jnp.int32(self.horizon), jnp.int32(self.interval), *unknown)

    def next(self, pace: Pace, value: jax.Array, jumped: jax.Array) -> Pace:
        """The horizon and interval after an epoch; asked only for epochs with a value, where it needs one.

        Args:
          pace: before it; the values of the two epochs before are in it.
          value: (), float32; the epoch's value.
          jumped: (), bool; whether the epoch started from a prediction.
        """
        del value, jumped
        return pace


@dataclasses.dataclass(frozen=True, kw_only=True)
class fixed(Schedule):  # noqa: N801 - used like a function, printed like a value
    """The horizon and the interval stay as they are.

    Example:
      >>> import optax, pdt_optax
      >>> tx = pdt_optax.pdt(optax.adamw(1e-3), schedule=pdt_optax.fixed(horizon=2, interval=3))
    """

    steady = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class released_schedule(Schedule):  # noqa: N801
    """The released code's rule: look less far, or less often, when the loss rises.

    When an epoch's value is above the last one's, the horizon shrinks by 1; when it
    is also above the one before that, by 2. It never shrinks below 3: the interval
    grows by what is left.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> predictor = pdt_optax.Predictor(schedule=pdt_optax.released_schedule(horizon=5))
      >>> history = predictor.init(jnp.ones(2))
      >>> for loss in (3.0, 2.0, 2.5):  # rises, but not above the one before
      ...     params, history, report = predictor.end_epoch(jnp.ones(2), history, value=loss)
      >>> int(history.clock.pace.horizon_now)
      4
    """

    needs_value = True

    def next(self, pace: Pace, value: jax.Array, jumped: jax.Array) -> Pace:
        del jumped
        horizon, interval = pace.horizon_now, pace.interval_now
        rises = value > pace.value_before
        worse = rises.astype(jnp.int32) + (rises & (value > pace.value_before_that))
        shorter = jnp.clip(horizon - 3, 0, worse)
        return pace._replace(horizon_now=horizon - shorter, interval_now=interval + (worse - shorter))


@dataclasses.dataclass(frozen=True, kw_only=True)
class adaptive(Schedule):  # noqa: N801
    """Looks further while jumps pay off, less far, then less often, when they do not.

    Judged by the epoch after a jump. When its value is no higher than that of
    the epoch before the jump, the horizon grows by 1. When it is higher, the
    horizon halves; from 1, the interval grows by 1 instead.

    Args:
      longest_horizon: how far the horizon may grow; at least the one to start from.

    Raises:
      ValueError: unless it is a whole number >= `horizon`.

    Example:
      >>> import optax, pdt_optax
      >>> tx = pdt_optax.pdt(optax.adamw(1e-3), schedule=pdt_optax.adaptive(horizon=2, longest_horizon=6))
    """

    longest_horizon: int = 5

    needs_value = True

    def __post_init__(self) -> None:
        super().__post_init__()
        count("longest_horizon", self.longest_horizon, 1, "a prediction looks at least one snapshot ahead")
        if self.horizon > self.longest_horizon:
            raise ValueError(
                "`horizon` starts an adaptive schedule, so it must not exceed `longest_horizon`. "
                f"Got horizon={self.horizon}, longest_horizon={self.longest_horizon}."
            )

    @property
    def longest(self) -> int:
        return self.longest_horizon

    def next(self, pace: Pace, value: jax.Array, jumped: jax.Array) -> Pace:
        horizon, interval = pace.horizon_now, pace.interval_now
        known = jumped & (pace.value_before < UNKNOWN)
        paid_off = known & (value <= pace.value_before)
        failed = known & ~paid_off
        further, shorter = jnp.minimum(horizon + 1, self.longest_horizon), jnp.maximum(horizon // 2, 1)
        horizon_now = jnp.select([paid_off, failed], [further, shorter], horizon)
        return pace._replace(horizon_now=horizon_now, interval_now=interval + (failed & (horizon == 1)))
