"""The end of an epoch (Alg. 1): judge the last jump, predict if it is time, take a snapshot.

Everything here works on lists of leaves and is traced: inside the wrapper's own
jit, or inside whatever the caller compiles.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from pdt_optax._assembly import Accept
from pdt_optax._predict import _predict
from pdt_optax._state import PDTReport, no_report
from pdt_optax._storage import Column, Storage, Window
from pdt_optax.dynamics import Dynamics
from pdt_optax.guard import rollback
from pdt_optax.schedule import Pace, Schedule


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a boundary depends on; hashable, so that equal wrappers share compiled code."""

    dynamics: Dynamics
    accept: Accept
    window: int
    horizon: int
    start: int
    interval: int
    schedule: Schedule
    guard: rollback | None
    dry_run: bool
    storage: Storage
    together: bool = False  # see `_predict`

    @property
    def needs_value(self) -> bool:
        """Whether the epochs' values are needed."""
        return self.schedule.needs_value or self.guard is not None


class Clock(NamedTuple):
    """The counters and the pace: what decides when to predict, and how far."""

    snapshots_held: jax.Array
    snapshots_seen: jax.Array
    plain_epochs: jax.Array
    predictions_made: jax.Array
    pace: Pace


def predict_if_due(
    window: Window, trained: Column, clock: Clock, value: jax.Array, settings: Settings
) -> tuple[Column, Clock, PDTReport]:
    """The new weights, the clock after this epoch, and its report.

    Args:
      window: the snapshots, oldest to newest.
      trained: the weights after the epoch.
      clock: as it stood during the epoch.
      value: (), float32, the epoch's value.
      settings: of the wrapper.
    """
    epoch = clock.snapshots_seen - 1  # counted from 0; the snapshot of `init` came before it
    jumped = (clock.predictions_made > 0) & (clock.plain_epochs == 0)
    pace = settings.schedule.next(clock.pace, value, jumped)
    pace = pace._replace(value_before=value, value_before_that=clock.pace.value_before)
    rested = (clock.predictions_made == 0) | (clock.plain_epochs >= pace.interval_now)
    due = (epoch >= settings.start) & (clock.snapshots_held >= settings.window) & rested
    longest = settings.schedule.longest(settings.horizon)
    adapts = settings.needs_value

    def predict(trained: Column) -> tuple[Column, PDTReport]:
        prediction = _predict(
            settings.storage.at_hand(window),
            trained,
            epoch,
            dynamics=settings.dynamics,
            accept=settings.accept,
            horizon=longest,
            reach=pace.horizon_now if adapts else None,
            storage=settings.storage,
            together=settings.together,
        )
        report = PDTReport(
            predicted=prediction.finite,
            finite=prediction.finite,
            horizon=pace.horizon_now,
            accepted_share=prediction.accepted_share,
            accepted_share_per_leaf=prediction.accepted_share_per_leaf,
            singular_values=prediction.singular_values,
            eigenvalues=prediction.eigenvalues,
            rank=prediction.rank,
            mean_value=value,
            rolled_back=jnp.array(False),
        )
        return (trained if settings.dry_run else prediction.params), report

    # A loop of zero or one trips, not a conditional: what a loop carries is
    # updated in place, while a conditional's weights would come back in new memory.
    nothing = no_report(len(window), len(trained), value)
    _, new, report = lax.while_loop(
        lambda carry: carry[0], lambda carry: (jnp.array(False), *predict(carry[1])), (due, trained, nothing)
    )
    more: Any = jax.tree.map(optax.safe_increment, clock._replace(pace=()))
    clock = Clock(
        snapshots_held=jnp.minimum(more.snapshots_held, settings.window),
        snapshots_seen=more.snapshots_seen,
        plain_epochs=jnp.where(report.predicted, 0, more.plain_epochs),
        predictions_made=jnp.where(report.predicted, more.predictions_made, clock.predictions_made),
        pace=pace,
    )
    return new, clock, report


class Guarded(NamedTuple):
    """What the guard may bring back: all floating leaves, the snapshots, the optimizer's state."""

    weights: Column
    window: Window
    inner_state: Any


class Saved(NamedTuple):
    """A `Backup` as leaves."""

    armed: jax.Array
    weights: Column
    inner_state: Any


def judge_and_predict(
    now: Guarded,
    saved: Saved,
    clock: Clock,
    value: jax.Array,
    predicted: tuple[bool, ...],
    settings: Settings,
) -> tuple[Guarded, Saved, Clock, PDTReport]:
    """`predict_if_due` under a guard: takes the last jump back if it has failed.

    Args:
      now: after the epoch, before its snapshot.
      saved: from before the last jump.
      clock, value, settings: as for `predict_if_due`.
      predicted: for each of the weights, whether it is one of the snapshots' leaves.

    Returns:
      All of it with the epoch's snapshot taken, or as it was after the epoch
      that ended in the jump, had there been none.
    """
    assert settings.guard is not None

    def chosen(weights: Column) -> Column:
        return [w for w, p in zip(weights, predicted, strict=True) if p]

    def go_on() -> tuple[Guarded, Saved, Clock, PDTReport]:
        new, after, report = predict_if_due(now.window, chosen(now.weights), clock, value, settings)
        remaining = iter(new)
        weights = [next(remaining) if p else w for w, p in zip(now.weights, predicted, strict=True)]
        jumped = report.predicted & (not settings.dry_run)
        backup = Saved(jumped, now.weights, now.inner_state)
        window = settings.storage.push(now.window, new)
        return Guarded(weights, window, now.inner_state), backup, after, report

    def take_back() -> tuple[Guarded, Saved, Clock, PDTReport]:
        # The newest snapshot is the weights after the jump: the optimizer's own take its place.
        window = settings.storage.replace_newest(now.window, chosen(saved.weights))
        pace = clock.pace._replace(
            horizon_now=jnp.maximum(clock.pace.horizon_now // 2, 1),
            interval_now=2 * clock.pace.interval_now,
        )
        report = no_report(len(window), sum(predicted), value)._replace(rolled_back=jnp.array(True))
        after = clock._replace(pace=pace, plain_epochs=jnp.ones_like(clock.plain_epochs))
        spent = saved._replace(armed=jnp.array(False))
        return Guarded(saved.weights, window, saved.inner_state), spent, after, report

    failed = saved.armed & settings.guard.failed(value, clock.pace.value_before)
    return lax.cond(failed, take_back, go_on)
