"""A guard against predictions that ruin a run, judged one epoch after the jump."""

import dataclasses

import jax
import jax.numpy as jnp

from pdt_optax.schedule import Pace, is_number


@dataclasses.dataclass(frozen=True)
class Guard:
    """Base of the guards: a frozen dataclass that says when a jump has failed, and what follows from it."""

    def failed(self, value: jax.Array, before: jax.Array) -> jax.Array:
        """Whether the epoch after a jump, of this value, is too much worse than the one before: (), bool."""
        raise NotImplementedError

    def after(self, pace: Pace) -> Pace:
        """The pace once a jump was taken back: the horizon halves and the interval doubles, from 0 to 1."""
        shorter = jnp.maximum(pace.horizon_now // 2, 1)
        rarer = jnp.maximum(2 * pace.interval_now, 1)
        return pace._replace(horizon_now=shorter, interval_now=rarer)


@dataclasses.dataclass(frozen=True)
class rollback(Guard):  # noqa: N801
    """Takes a jump back when the epoch after it is worse than the epoch before it.

    Worse means: not finite, or value > before + tolerance * |before|, where the
    values are the epochs' mean training losses. The optimizer's own weights, its
    state and the snapshots from before the jump then come back, the horizon
    halves and the interval doubles. Good jumps often raise the loss at first and
    pay off an epoch later, so nothing is judged at the jump itself.

    With `deliver="gradual"` an epoch's mean loss sees half of what is delivered
    meanwhile: judge by the loss at the epoch's end then. "auto" jumps under a guard.

    Only what it is given comes back: statistics of BatchNorm, averages or keys of your
    own go into `opt_state=(opt_state, extra)` of a `Predictor` (docs/recipes.md, "BatchNorm").

    It holds one more copy of the weights and of the optimizer's state, and
    passes both, and the snapshots, through the end of every epoch. With `every`,
    updates are added: the rollback's own update may be rounded, so the next one only
    brings the weights back to the last bit, in place of the optimizer's. While a jump is
    judged, an update that would make a weight non-finite is left out, and the jump taken back.

    Args:
      tolerance: how much worse an epoch may be, relative to the one before; >= 0.
        The default takes back none of the recommended rule's jumps in the
        benchmark's runs, and all that ruin one (docs/what-works.md).

    Raises:
      ValueError: for a negative tolerance.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> jumps = {**pdt_optax.presets.drift, "window": 2, "start": 2, "horizon": 30}
      >>> tx = pdt_optax.pdt(optax.sgd(0.1), **jumps, guard=pdt_optax.rollback())
      >>> w = jnp.array([1.0])
      >>> opt_state = tx.init(w)
      >>> for epoch in range(4):  # the third ends in a jump far past the optimum, at 0
      ...     w, opt_state, report = tx.end_epoch(0.8 * w, opt_state, value=0.8 * jnp.abs(w[0]))
      ...     print(f"{w[0]:.3f}", bool(report.predicted), bool(report.rolled_back))
      0.800 False False
      0.640 False False
      -3.328 True False
      0.512 False True
    """

    tolerance: float = 0.25

    def __post_init__(self) -> None:
        if not (is_number(self.tolerance) and self.tolerance >= 0):
            raise ValueError(
                "`tolerance` must be a number >= 0: it is how much worse than before an epoch may be. "
                f"Got tolerance={self.tolerance!r}."
            )

    def failed(self, value: jax.Array, before: jax.Array) -> jax.Array:
        return ~jnp.isfinite(value) | (value > before + self.tolerance * jnp.abs(before))
