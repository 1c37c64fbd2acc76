"""What the end of an epoch works on: the weights and the history as lists of leaves, and what is known beforehand."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdt_optax._layout import Column
from pdt_optax._motion import Delivery, Motion
from pdt_optax._settings import DESCRIBED, Settings
from pdt_optax._window import Window
from pdt_optax.schedule import Pace


class Plan(NamedTuple):
    """What of a boundary is known before it is compiled.

    Attributes:
      settings: of the predictor.
      predicted: for each of the weights at hand, whether it is one of the snapshots' leaves.
      together: see `predict`.
      tree: the structure of the snapshots, for `project`.
    """

    settings: Settings
    predicted: tuple[bool, ...]
    together: bool
    tree: Any = None

    def chosen(self, weights: Column) -> Column:
        """Those of the weights that are predicted."""
        return [w for w, p in zip(weights, self.predicted, strict=True) if p]


class Clock(NamedTuple):
    """The counters and the pace: what decides when to predict, and how far.

    Attributes:
      snapshots_held: (), int32; of the window's snapshots, those that were
        taken; a prediction waits until all were.
      snapshots_seen: (), int32; taken so far, the one at `init` included; epochs
        that the guard took back do not count. The epoch's number, from 0, is one less.
      plain_epochs: (), int32; epochs since the last prediction.
      predictions_made: (), int32.
      pace: the schedule's numbers.
      settings: (5,), int32; of the settings that the last boundary had, a checksum each.
    """

    snapshots_held: jax.Array
    snapshots_seen: jax.Array
    plain_epochs: jax.Array
    predictions_made: jax.Array
    pace: Pace
    settings: jax.Array

    @classmethod
    def start(cls, settings: Settings) -> "Clock":
        """The clock before the first epoch, when the snapshot of the initial weights is taken."""
        # Four arrays, not two twice: a history's buffers must all be its own to be donated.
        held, seen, plain, made = (jnp.full((), start, jnp.int32) for start in (1, 1, 0, 0))
        return cls(
            held, seen, plain, made, settings.schedule.start(), jnp.array(settings.checksums, jnp.int32)
        )

    def pace_of(self, settings: Settings) -> Pace:
        """The pace; where the schedule is another one than at the last boundary, that one's first."""
        at = DESCRIBED.index("schedule")
        same = self.settings[at] == settings.checksums[at]
        first, now = settings.schedule.start(), self.pace
        return now._replace(
            horizon_now=jnp.where(same, now.horizon_now, first.horizon_now),
            interval_now=jnp.where(same, now.interval_now, first.interval_now),
        )


class Backup(NamedTuple):
    """What the guard brings back when a jump has failed.

    Attributes:
      armed: (), bool; whether the last epoch's end made a jump, still to be judged.
      weights_before: the optimizer's own weights at that jump, a tree like the
        parameters with a `MaskedNode` for each leaf that is not floating point;
        at a boundary, the list of its leaves.
      optimizer_before: the optimizer's state at that jump; at a boundary, its leaves.
    """

    armed: jax.Array
    weights_before: optax.Params
    optimizer_before: optax.OptState


class Moment(NamedTuple):
    """All that a boundary reads and writes.

    Attributes:
      weights: all floating leaves of the parameters under a guard, else those that are predicted.
      window: the snapshots, oldest to newest.
      motion: None but for a running model.
      delivery: None unless predictions are delivered in parts.
      opt_state: the leaves of the optimizer's state under a guard, else none.
      backup: from before the last jump, None without a guard.
      clock: as it stood during the epoch.
    """

    weights: Column
    window: Window
    motion: Motion | None
    delivery: Delivery | None
    opt_state: Column
    backup: Backup | None
    clock: Clock
