"""The two compiled shells around a boundary: between epochs, and inside `update`."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from pdt_optax import _boundary
from pdt_optax._boundary import Moment, Plan
from pdt_optax._layout import Column
from pdt_optax._reduce import usual_promotion
from pdt_optax._report import PDTReport
from pdt_optax._window import Window


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="donated")
@usual_promotion()
def end_apart(
    donated: Moment | None,
    borrowed: Moment | None,
    kept: Window,
    updates_seen: jax.Array,
    value: jax.Array,
    missing: jax.Array,
    *,
    plan: Plan,
) -> tuple[Moment, PDTReport]:
    """A boundary between epochs, compiled by itself.

    Without a guard only the columns of the window that change come back: jit
    would copy the rest.

    Args:
      donated, borrowed: one of them is what the boundary writes; its window the columns that it replaces.
      kept: the columns of the window that it only reads.
      updates_seen, value, missing, plan: as for `end`.
    """
    now = borrowed if donated is None else donated
    assert now is not None
    storage, spent, rewrites = plan.settings.storage, now.window, plan.settings.rewrites
    window = spent if rewrites else storage.join(spent, kept)
    after, report = _boundary.end(now._replace(window=window), updates_seen, value, missing, plan)
    if plan.settings.guard:
        newest = jax.tree.map(jnp.copy, after.window[-1])  # or the weights and it would share buffers
        return after._replace(window=(*after.window[:-1], newest)), report
    *older, newest = after.window if rewrites else storage.pushed(after.window)
    if not storage.host:  # whose window is a copy already
        seen = now.clock.snapshots_seen > 0
        made_of_it = [value] * len(newest) if after.motion is None else jax.tree.leaves(after.motion.mean)
        newest = own(newest, spent[-1], older[0] if older else made_of_it, seen)
    # In the order of the arguments, or their buffers would be swapped, and before
    # the report: with CUDA, an open XLA bug corrupts donated buffers otherwise.
    return after._replace(window=(*older, newest)), report


def own(new: Column, over: Column, after: Sequence[jax.Array], true: jax.Array) -> Column:
    """A copy of `new` for the window, or it and the weights would share buffers.

    Written over `over` once `after` are known, by a select whose condition
    hangs on them. XLA's CPU backend has one thread for a copy and all of them
    for this; and where `after` are made from `over`, it would save a copy of it
    from being overwritten too early. `true` is true, and XLA cannot know it.
    """
    return [jnp.where((a == 0) | true, x, y) for x, y, a in zip(new, over, after, strict=True)]


class Epoch(NamedTuple):
    """What `update` has seen since the last epoch's end.

    Attributes:
      updates_seen: (), int32; calls.
      value_sum, values_seen: (), float32 and int32; of the `value`s passed to it.
    """

    updates_seen: jax.Array
    value_sum: jax.Array
    values_seen: jax.Array

    @classmethod
    def start(cls) -> "Epoch":
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    @usual_promotion()
    def mean_value(self) -> jax.Array:
        """NaN if no value was seen."""
        return self.value_sum / self.values_seen


def _jump(update: jax.Array, old: jax.Array, trained: jax.Array, new: jax.Array) -> jax.Array:
    """The update that leads to `new`; where that is what the optimizer made, its own."""
    wide = jnp.promote_types(old.dtype, update.dtype)
    jump = (new.astype(wide) - old.astype(wide)).astype(update.dtype)
    return jnp.where(new == trained, update, jump)


@functools.partial(jax.jit, static_argnames=("plan", "every"))
@usual_promotion()
def end_inside(
    steps: Column, now: Moment, seen: Epoch, report: PDTReport, *, plan: Plan, every: int
) -> tuple[Column, Moment, Epoch, PDTReport]:
    """Ends an epoch inside `update` once `every` updates have passed since the last one.

    A loop of zero or one trips, as in `_boundary`: a conditional would copy every
    snapshot at every step.
    """
    old, start = now.weights, (steps, now._replace(weights=[]), seen, report)

    def end(carry: Any) -> Any:
        steps, before, seen, _ = carry
        trained: Any = optax.apply_updates(cast(Any, old), steps)
        now = before._replace(weights=trained)
        after, report = _boundary.end(now, seen.updates_seen, seen.mean_value(), jnp.array(False), plan)
        steps = jax.tree.map(_jump, steps, old, trained, after.weights)
        # What the caller will have after adding the updates, to the last bit.
        landed: Any = optax.apply_updates(cast(Any, old), steps)
        window = plan.settings.storage.replace_newest(after.window, plan.chosen(landed))
        return steps, after._replace(weights=[], window=window), Epoch.start(), report

    return lax.while_loop(lambda carry: carry[2].updates_seen >= every, end, start)
