"""The two compiled shells around a boundary: between epochs, and inside `update`."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from pdt_optax import _boundary
from pdt_optax._layout import Column
from pdt_optax._moment import Moment, Plan
from pdt_optax._reduce import all_finite, over_shards, totals, usual_promotion, widest_float
from pdt_optax._report import PDTReport, Value
from pdt_optax._window import Window


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="donated")
@usual_promotion()
def end_apart(
    donated: Moment | None,
    borrowed: Moment | None,
    kept: Window,
    updates_seen: jax.Array,
    value: Value,
    *,
    plan: Plan,
) -> tuple[Moment, PDTReport]:
    """A boundary between epochs, compiled by itself.

    Without a guard only the columns of the window that change come back: jit
    would copy the rest.

    Args:
      donated, borrowed: one of them is what the boundary writes; its window the columns that it replaces.
      kept: the columns of the window that it only reads.
      updates_seen, value, plan: as for `end`.
    """
    now = borrowed if donated is None else donated
    assert now is not None
    storage, spent, rewrites = plan.settings.storage, now.window, plan.settings.rewrites
    window = spent if rewrites else storage.join(spent, kept)
    after, report = _boundary.end(now._replace(window=window), updates_seen, value, jnp.array(True), plan)
    if plan.settings.guard:
        newest = jax.tree.map(jnp.copy, after.window[-1])  # or the weights and it would share buffers
        return after._replace(window=(*after.window[:-1], newest)), report
    *older, newest = after.window if rewrites else storage.pushed(after.window)
    if not storage.host:  # whose window is a copy already
        seen = now.clock.snapshots_seen > 0
        made_of_it = (
            [value.mean] * len(newest) if after.motion is None else jax.tree.leaves(after.motion.mean)
        )
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
      continued: (), bool; with `every`, False once the weights were seen to be others
        than those that the last epoch ended with.
    """

    updates_seen: jax.Array
    value_sum: jax.Array
    values_seen: jax.Array
    continued: jax.Array

    @classmethod
    def start(cls) -> "Epoch":
        updates, total, values = (jnp.zeros((), t) for t in (jnp.int32, jnp.float32, jnp.int32))
        return cls(updates, total, values, jnp.array(True))

    @usual_promotion()
    def value(self) -> Value:
        """The mean of the values."""
        return Value(self.value_sum / jnp.maximum(self.values_seen, 1), self.values_seen > 0)


@usual_promotion()
def finite_or_none(steps: Column, weights: Column, armed: jax.Array, seen: Epoch) -> tuple[Column, Epoch]:
    """While a jump is judged, no update that would make a weight non-finite: it could not be taken back.

    It is left out whole, and the epoch's value becomes NaN: the guard then takes the jump back.
    """
    landed: Any = optax.apply_updates(cast(Any, weights), cast(Any, steps))
    refused = armed & ~all_finite(landed)
    steps = [jnp.where(refused, 0, u) for u in steps]
    return steps, seen._replace(value_sum=jnp.where(refused, jnp.nan, seen.value_sum))


def jump(update: jax.Array, old: jax.Array, trained: jax.Array, new: jax.Array) -> jax.Array:
    """The update that leads to `new`; where that is what the optimizer made, its own."""
    return jnp.where(new == trained, update, _way(update, old, new))


def _way(update: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """`new - old`, in the type of `update`."""
    wide = jnp.promote_types(old.dtype, update.dtype)
    return (new.astype(wide) - old.astype(wide)).astype(update.dtype)


@functools.partial(jax.jit, static_argnames=("plan", "every"))
@usual_promotion()
def end_inside(
    steps: Column, now: Moment, seen: Epoch, report: PDTReport, *, plan: Plan, every: int
) -> tuple[Column, Moment, Epoch, PDTReport]:
    """Ends an epoch inside `update` once `every` updates have passed since the last one.

    An epoch's first update sees whether it began where the last one ended.
    Loops of zero or one trips, as in `_boundary`: a conditional would copy every
    snapshot at every step.
    """
    old, storage = now.weights, plan.settings.storage
    begins = (seen.updates_seen == 1) & (now.clock.snapshots_seen > 1)

    def due(seen: Epoch) -> jax.Array:
        return seen.updates_seen >= every

    def end(carry: Any) -> Any:
        steps, before, seen, _ = carry
        trained: Any = optax.apply_updates(cast(Any, old), steps)
        now = before._replace(weights=trained)
        after, report = _boundary.end(now, seen.updates_seen, seen.value(), seen.continued, plan)
        steps = jax.tree.map(jump, steps, old, trained, after.weights)
        # What the caller will have after adding the updates, to the last bit.
        landed: Any = optax.apply_updates(cast(Any, old), steps)
        window = storage.replace_newest(after.window, plan.chosen(landed))
        return steps, after._replace(weights=[], window=window), Epoch.start(), report

    def trip(carry: Any) -> Any:
        steps, before, seen, report, _ = carry
        began = plan.chosen(old), before.window[-1], plan.chosen(steps)
        continued = lax.cond(begins, lambda: _continued(*began), lambda: seen.continued)
        if before.backup is not None:
            steps, before = _brought_back(steps, before, old, begins & report.rolled_back, plan)
        start = (steps, before, seen._replace(continued=continued), report)
        return (*lax.while_loop(lambda carry: due(carry[2]), end, start), jnp.array(False))

    start = (steps, now._replace(weights=[]), seen, report, begins | due(seen))
    *after, _ = lax.while_loop(lambda carry: carry[-1], trip, start)
    return tuple(after)  # pyright: ignore[reportReturnType]


def _continued(weights: Column, newest: Column, steps: Column) -> jax.Array:
    """Whether an epoch's first update starts from the newest snapshot: (), bool.

    To within a third of its own length: a caller who keeps weights within
    bounds moves a few of them a little, another wrapper moves all.
    """
    with widest_float() as wide:

        def measure(leaves: Any, shares: Any) -> jax.Array:
            found = [
                share * jnp.stack(totals([(w - s) ** 2, u**2]))
                for (w, s, u), share in zip(
                    [[x.reshape(-1).astype(wide) for x in leaf] for leaf in leaves], shares, strict=True
                )
            ]
            return functools.reduce(jnp.add, found)

        off, length = over_shards(measure, [*zip(weights, newest, steps, strict=True)])
        return ~(9 * off > length)  # what is not finite is found where predictions are made


def _brought_back(
    steps: Column, before: Moment, old: Column, back: jax.Array, plan: Plan
) -> tuple[Column, Moment]:
    """The update after a rollback, in place of the optimizer's: the weights come back to the last bit.

    The rollback's own update was added to weights that may have been huge, and so was rounded.
    """
    assert before.backup is not None
    weights = jax.tree.leaves(before.backup.weights_before)
    steps = [jnp.where(back, _way(u, o, w), u) for u, o, w in zip(steps, old, weights, strict=True)]
    pairs = zip(_boundary.optimizer_before(before), before.opt_state, strict=True)
    opt_state = [jnp.where(back, b, n) for b, n in pairs]
    pairs = zip(plan.chosen(weights), before.window[-1], strict=True)
    newest = [jnp.where(back, w, s) for w, s in pairs]
    window = plan.settings.storage.replace_newest(before.window, newest)
    return steps, before._replace(opt_state=opt_state, window=window)
