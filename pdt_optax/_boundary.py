"""The end of an epoch (Alg. 1): judge the last jump, predict if it is time, take a snapshot.

Everything here works on lists of leaves and is traced: inside `end_epoch`'s own
jit, inside `update`, or inside whatever the caller compiles.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike

from pdt_optax._layout import Column
from pdt_optax._moment import Backup, Clock, Moment, Plan
from pdt_optax._motion import Delivery, Motion, is_gradual
from pdt_optax._predict import predict
from pdt_optax._reduce import all_finite
from pdt_optax._report import PDTReport, Value, no_report
from pdt_optax._running import follow
from pdt_optax._settings import Settings
from pdt_optax._slow import slow_drift
from pdt_optax._window import Window
from pdt_optax.schedule import UNKNOWN, Pace


def end(
    now: Moment, updates_seen: jax.Array, value: Value, continued: jax.Array, plan: Plan
) -> tuple[Moment, PDTReport]:
    """Ends an epoch.

    Args:
      now: after the epoch, before its snapshot.
      updates_seen: (), int32; in the epoch.
      value: the epoch's value.
      continued: (), bool; whether it began where the last one ended.
      plan: which of the weights are predicted, and how.

    Returns:
      The moment after it, with the epoch's snapshot taken; or, where the guard
      takes the last jump back, as after the epoch that ended in it, had there
      been none. And the report.
    """
    settings = plan.settings
    missing = ~value.given if settings.needs_value else jnp.array(False)

    def go_on() -> tuple[Moment, PDTReport]:
        after, report = _predict_if_due(now, updates_seen, value, continued, plan)
        remaining = iter(after.weights)
        weights = [next(remaining) if p else w for w, p in zip(now.weights, plan.predicted, strict=True)]
        backup = None
        if settings.guard is not None:
            backup = Backup(report.predicted & (not settings.dry_run), now.weights, now.opt_state)
        return after._replace(weights=weights, backup=backup), report

    if settings.guard is None or now.backup is None:
        after, report = go_on()
    else:
        failed = settings.guard.failed(value.mean, now.clock.pace.value_before)
        take_back = now.backup.armed & failed & ~missing
        after, report = lax.cond(take_back, lambda: _taken_back(now, value, plan), go_on)
    if now.delivery is not None:
        extrapolated = (now.clock.predictions_made > 0) & (now.clock.plain_epochs == 0)
        extrapolated &= not settings.dry_run
        delivered = jnp.where(extrapolated, now.delivery.share(updates_seen), 1)
        report = report._replace(gradual=jnp.array(True), delivered_share=delivered)
    epoch = now.clock.snapshots_seen - 1  # counted from 0; the snapshot of `init` came before it
    return after, report._replace(
        epoch=epoch, update_count=updates_seen, value_missing=missing, continued=continued
    )


def _taken_back(now: Moment, value: Value, plan: Plan) -> tuple[Moment, PDTReport]:
    """The moment after the epoch that ended in the last jump, had there been none."""
    guard, before = plan.settings.guard, now.backup
    assert guard is not None
    assert before is not None
    weights, opt_state = jax.tree.leaves(before.weights_before), optimizer_before(now)
    # The newest snapshot is the weights after the jump: the optimizer's own take its place.
    storage, chosen = plan.settings.storage, plan.chosen(weights)
    window = (storage.moved_to if plan.settings.own_motion else storage.replace_newest)(now.window, chosen)
    plain = jnp.ones_like(now.clock.plain_epochs)
    pace = guard.after(now.clock.pace_of(plan.settings))
    clock = now.clock._replace(pace=pace, plain_epochs=plain, settings=_checksums(plan))
    report = no_report(plan.settings.spectrum, sum(plan.predicted), value)._replace(
        rolled_back=jnp.array(True)
    )
    spent = before._replace(armed=jnp.array(False), optimizer_before=opt_state)
    delivery = now.delivery
    if delivery is not None:
        nothing = [jnp.zeros_like(x) for x in jax.tree.leaves(delivery.displacement)]
        delivery = Delivery(nothing, jnp.zeros_like(delivery.parts))
    return Moment(weights, window, now.motion, delivery, opt_state, spent, clock), report


def optimizer_before(now: Moment) -> Column:
    """The optimizer's state in the backup, in the types and the memory that it has by now.

    Some optimizers change a type at their first update, as Adam does that of an integer leaf's moments.
    """
    assert now.backup is not None

    def alike(before: jax.Array, like: jax.Array) -> jax.Array:
        before = before if before.dtype == like.dtype else before.astype(like.dtype)
        space = jax.typeof(like).memory_space
        return before if jax.typeof(before).memory_space == space else jax.device_put(before, space)

    return [*map(alike, jax.tree.leaves(now.backup.optimizer_before), now.opt_state)]


def _checksums(plan: Plan) -> jax.Array:
    return jnp.array(plan.settings.checksums, jnp.int32)


def _next_pace(clock: Clock, value: Value, jumped: jax.Array, settings: Settings) -> Pace:
    """The pace after an epoch. A schedule that needs a value leaves it as it is where none came."""
    before = clock.pace_of(settings)
    pace = settings.schedule.next(before, value.mean, jumped)
    if settings.schedule.needs_value:
        pace = jax.tree.map(lambda new, old: jnp.where(value.given, new, old), pace, before)
    known = jnp.where(value.given, value.mean, UNKNOWN)
    return pace._replace(value_before=known, value_before_that=before.value_before)


def _predict_if_due(
    now: Moment, updates_seen: jax.Array, value: Value, continued: jax.Array, plan: Plan
) -> tuple[Moment, PDTReport]:
    """The moment after this epoch, its weights those that are predicted, and its report."""
    settings, clock, trained = plan.settings, now.clock, plan.chosen(now.weights)
    epoch = clock.snapshots_seen - 1
    jumped = (clock.predictions_made > 0) & (clock.plain_epochs == 0)
    pace = _next_pace(clock, value, jumped, settings)
    rested = (clock.predictions_made == 0) | (clock.plain_epochs >= pace.interval_now)
    due = (epoch >= settings.start) & (clock.snapshots_held >= settings.window) & rested & continued
    nothing = no_report(settings.spectrum, len(trained), value)
    share = jnp.zeros((), jnp.float32) if now.delivery is None else now.delivery.share(updates_seen)
    parts = _parts(now.delivery, trained)

    if now.motion is None:
        new, report = _windowed(now.window, trained, epoch, due, pace, nothing, plan)
        moved = [n.astype(d) - t.astype(d) for n, t, d in zip(new, trained, map(_wide, trained), strict=True)]
        motion = None
    else:
        moved, motion, report = _running(now, trained, parts, share, epoch, due, jumped, pace, nothing, plan)
        new = [jnp.where(m != 0, (t + m).astype(t.dtype), t) for t, m in zip(trained, moved, strict=True)]
    if settings.project is not None:
        new, moved, report = _projected(trained, new, moved, report, plan)

    delivery = now.delivery
    if delivery is not None:  # parts of what is to come, in place of the jump
        new = [t if is_gradual(t) else n for t, n in zip(trained, new, strict=True)]
        later = [m for m, t in zip(moved, trained, strict=True) if is_gradual(t)]
        # No parts where there is nothing to deliver: adding zero can round differently from adding nothing.
        delivers = report.predicted & (not settings.dry_run)
        delivery = Delivery(later, jnp.where(delivers, updates_seen, 0))
    if settings.own_motion:
        # The path that the optimizer would have taken to where the weights are now.
        shift = [
            n.astype(d) - t.astype(d) + (0 if part is None else share * part)
            for n, t, part, d in zip(new, trained, parts, map(_wide, trained), strict=True)
        ]
        window = settings.storage.push(now.window, new, shift)
    else:
        window = settings.storage.push(now.window, new)

    held, seen, plain, made = map(optax.safe_increment, clock[:4])
    clock = Clock(
        snapshots_held=jnp.minimum(held, settings.window),
        snapshots_seen=jnp.asarray(seen),
        plain_epochs=jnp.where(report.predicted, 0, plain),
        predictions_made=jnp.where(report.predicted, made, clock.predictions_made),
        pace=pace,
        settings=_checksums(plan),
    )
    return Moment(new, window, motion, delivery, now.opt_state, now.backup, clock), report


def _projected(
    trained: Column, new: Column, moved: Column, report: PDTReport, plan: Plan
) -> tuple[Column, Column, PDTReport]:
    """Predicted weights and how far they are, under the user's projection; dropped if that makes them non-finite."""
    target = jax.tree.leaves(project(plan.settings, plan.tree, new))
    finite = all_finite(target) | ~report.predicted
    predicted = report.predicted & finite
    if not plan.settings.dry_run:
        new = [jnp.where(predicted, x, t) for x, t in zip(target, trained, strict=True)]
        moved = [n.astype(d) - t.astype(d) for n, t, d in zip(new, trained, map(_wide, trained), strict=True)]
    report = report._replace(
        predicted=predicted,
        finite=report.finite & finite,
        horizon=report.horizon * predicted,
        accepted_share=report.accepted_share * predicted,
        accepted_share_per_leaf=report.accepted_share_per_leaf * predicted,
    )
    return new, moved, report


def project(settings: Settings, tree: Any, weights: Column) -> Any:
    """`settings.project` of these weights, checked: a tree like the snapshots."""
    given = jax.tree.unflatten(tree, weights)
    made = settings.project(given)  # pyright: ignore[reportOptionalCall]
    shapes = [jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), x) for x in (given, made)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`project` must return weights like those it is given: the same tree, shapes and types. "
            f"{settings.project} does not."
        )
    return made


def _wide(x: jax.Array) -> DTypeLike:
    return jnp.promote_types(x.dtype, jnp.float32)


def _parts(delivery: Delivery | None, trained: Column) -> list[jax.Array | None]:
    """For each leaf what the epoch's updates were to deliver to it; None where it is moved at once."""
    if delivery is None:
        return [None] * len(trained)
    displacement = iter(jax.tree.leaves(delivery.displacement))
    return [next(displacement) if is_gradual(t) else None for t in trained]


def _windowed(
    window: Window,
    trained: Column,
    epoch: jax.Array,
    due: jax.Array,
    pace: Pace,
    nothing: PDTReport,
    plan: Plan,
) -> tuple[Column, PDTReport]:
    """The new weights by a model that sees a window of snapshots."""
    settings = plan.settings

    def predicted(trained: Column) -> tuple[Column, PDTReport]:
        prediction = predict(
            settings.storage.at_hand(window),
            trained,
            epoch,
            dynamics=settings.dynamics,
            accept=settings.rule,
            horizon=settings.schedule.longest,
            reach=None if settings.schedule.steady and settings.guard is None else pace.horizon_now,
            storage=settings.storage,
            together=plan.together,
        )
        known = {name: x for name, x in prediction._asdict().items() if name in PDTReport._fields}
        report = nothing._replace(predicted=prediction.finite, horizon=pace.horizon_now, **known)
        return trained if settings.dry_run else prediction.params, report

    # A loop of zero or one trips, not a conditional: what a loop carries is
    # updated in place, while a conditional's weights would come back in new memory.
    _, new, report = lax.while_loop(
        lambda carry: carry[0],
        lambda carry: (jnp.array(False), *predicted(carry[1])),
        (due, trained, nothing),
    )
    return new, report


def _running(
    now: Moment,
    trained: Column,
    parts: Sequence[jax.Array | None],
    share: jax.Array,
    epoch: jax.Array,
    due: jax.Array,
    jumped: jax.Array,
    pace: Pace,
    nothing: PDTReport,
    plan: Plan,
) -> tuple[Column, Motion, PDTReport]:
    """The displacement by a model that keeps a mean of the motion, and the mean with this epoch in it."""
    settings, motion = plan.settings, now.motion
    assert motion is not None
    assert isinstance(settings.dynamics, slow_drift)
    columns = zip(now.window[-1], jax.tree.leaves(motion.mean), parts, trained, strict=True)
    points = [(s, m, t) if part is None else (s, m, part, t) for s, m, part, t in columns]
    followed = follow(
        points,
        motion.pull,
        share,
        epoch,
        due,
        jumped & (not settings.dry_run),
        pace.horizon_now,
        dynamics=settings.dynamics,
        accept=settings.rule,
        horizon=settings.schedule.longest,
        together=plan.together,
    )
    known = {name: x for name, x in followed._asdict().items() if name in PDTReport._fields}
    report = nothing._replace(
        predicted=due & followed.finite,
        horizon=jnp.where(due, pace.horizon_now, 0),
        rank=due.astype(jnp.int32),
        gain=followed.pull.gain,
        **known,
    )
    moved = [jnp.zeros_like(x) for x in followed.displacement] if settings.dry_run else followed.displacement
    return moved, Motion(followed.mean, followed.pull), report
