"""`pdt`: any Optax optimizer, with a prediction of its weights between epochs."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from pdt_optax import _leaves, presets
from pdt_optax._assembly import Accept
from pdt_optax._boundary import (
    Clock,
    Guarded,
    Saved,
    Settings,
    judge_and_predict,
    predict_if_due,
)
from pdt_optax._predict import check_horizon, check_model, count
from pdt_optax._saved import check_form, check_version, find_saved
from pdt_optax._sharding import on_one_device
from pdt_optax._state import (
    VERSION,
    Backup,
    PDTReport,
    PDTState,
    find_state,
    find_states,
    no_report,
    with_state,
)
from pdt_optax._storage import Column, Storage, Window
from pdt_optax.dynamics import Dynamics
from pdt_optax.guard import rollback
from pdt_optax.schedule import Pace, Schedule, fixed


class PDT(optax.GradientTransformationExtraArgs):
    """What `pdt` returns: an optax transformation with one more method, `end_epoch`."""

    def end_epoch(
        self,
        params: optax.Params,
        opt_state: optax.OptState,
        *,
        value: jax.typing.ArrayLike | None = None,
        donate: bool = False,
    ) -> tuple[optax.Params, Any, PDTReport]:
        """Ends an epoch: predicts if it is time, and takes a snapshot. See `end_epoch`."""
        return end_epoch(self, params, opt_state, value=value, donate=donate)


def pdt(
    inner: optax.GradientTransformation,
    *,
    dynamics: Dynamics = presets.recommended["dynamics"],
    accept: Accept = presets.recommended["accept"],
    window: int = presets.recommended["window"],
    horizon: int = presets.recommended["horizon"],
    start: int | None = None,
    interval: int = presets.recommended["interval"],
    schedule: Schedule = fixed(),
    guard: rollback | None = None,
    every: int | None = None,
    labels: _leaves.Labels = None,
    snapshot_dtype: str | None = None,
    snapshot_device: str | None = None,
    dry_run: bool = False,
) -> PDT:
    """Predictive Differential Training around any Optax optimizer.

    `update` is `inner`'s and a counter. Between epochs, call `end_epoch`: it
    keeps a snapshot of the weights and, when it is time, predicts where the
    last `window` snapshots lead in `horizon` more epochs and moves the weights whose
    own last step agrees. All others keep what `inner` gave them.

    Args:
      inner: any optax transformation. Extra arguments of `update` reach it.
      dynamics: how weights move: `drift()`, `dmd(...)`.
      accept: which weights take their prediction: `agree()`, `shrink()`, ...
      window: snapshots that a prediction looks back on, >= 2. The state holds
        that many copies of the weights.
      horizon: how many epochs ahead it looks, >= 1.
      start: the first epoch, counted from 0, whose end may predict; at least
        `window`, the default.
      interval: plain epochs between two predictions, >= 1.
      schedule: how horizon and interval change as training goes: `fixed()`,
        `adaptive()` or `released_schedule()`.
      guard: `rollback(...)` takes a jump back when the epoch after it is too
        much worse. It and all schedules but `fixed` look at the epochs'
        values: pass them to `end_epoch` or `update` as `value`.
      every: take every so many calls of `update` for an epoch and end it inside
        `update`, for loops that live in jit or scan; `params` must then be
        passed to `update`, there is no `end_epoch`, and in a chain the wrapper
        comes last. The report is `opt_state.last_report`. Accepted weights land
        within one ulp of their prediction, since updates are added. It costs:
        an update that leaves a conditional must be written out (a bare adamw
        step on 10 M weights takes 1.4 to 1.5 times as long on a CPU), under vmap
        the conditional becomes a select that predicts at each step, and on a GPU
        the host reads its condition at each step, unless XLA is told to keep it
        there (docs/speed.md, "On a GPU").
      labels: leaves that are never predicted, such as embeddings or norms: a
        tree of bools like the parameters (or a prefix of it), or a function of
        a leaf's path (`"layers/0/kernel"`); True keeps the leaf out.
      snapshot_dtype: "bfloat16" keeps the newest snapshot whole and, for each
        older one, its difference to the next newer one in bfloat16: a window of
        5 of float32 weights costs 12 bytes a weight instead of 20, and every
        difference is rounded by up to 0.4% of itself.
      snapshot_device: "host" keeps the window in host memory and moves it in
        at a prediction only; not with `every`.
      dry_run: report what would be accepted and change nothing.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a method `end_epoch`.

    Raises:
      TypeError: if `inner`, `dynamics` or `accept` is none.
      ValueError: for a number out of range, or rules that do not fit together.

    Example:
      >>> import jax, jax.numpy as jnp, optax, pdt_optax
      >>> loss = lambda w: jnp.sum(w**2)
      >>> tx = pdt_optax.pdt(optax.sgd(0.05))
      >>> params = jnp.array([1.0, 2.0])
      >>> opt_state = tx.init(params)
      >>> for epoch in range(8):
      ...     updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     params, opt_state, report = tx.end_epoch(params, opt_state, value=loss(params))
      ...     print(epoch, bool(report.predicted), f"{report.mean_value:.3f}")
      0 False 4.050
      1 False 3.280
      2 False 2.657
      3 False 2.152
      4 False 1.743
      5 True 1.412
      6 False 0.864
      7 True 0.700

    References:
      Predictive Differential Training Guided by Training Dynamics, Algorithm 1.
    """
    if not (callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None))):
        hint = " Call it first: it makes one." if callable(inner) else ""
        raise TypeError(
            f"`inner` must be an optax gradient transformation, such as optax.adamw(1e-3). Got {inner!r}.{hint}"
        )
    window = count("window", window, 2, "a difference takes two snapshots")
    interval = count("interval", interval, 1, "an epoch must be trained between two predictions")
    start = window if start is None else count("start", start, 1, "it counts epochs")
    horizon = check_horizon(horizon)
    if start < window:
        raise ValueError(
            "`start` must be at least `window`: the first prediction needs a full window. "
            f"Got {start=}, {window=}."
        )
    if every is not None:
        every = count("every", every, 1, "it counts calls of `update`")
    check_model(dynamics, accept, window)
    if not isinstance(schedule, Schedule) or isinstance(schedule, type):
        raise TypeError(
            "`schedule` must be an acceleration schedule, such as `fixed()` or `adaptive()` (with its "
            f"parentheses). Got {schedule!r}."
        )
    schedule.longest(horizon)  # raises if it cannot start from there
    if guard is not None and not isinstance(guard, rollback):
        raise TypeError(f"`guard` must be None or `rollback(...)`. Got {guard!r}.")
    if snapshot_dtype not in (None, "bfloat16"):
        raise ValueError(
            '`snapshot_dtype` must be None, whole snapshots in the types of the parameters, or "bfloat16", '
            f"their differences. Got {snapshot_dtype=}."
        )
    if snapshot_device not in (None, "host"):
        raise ValueError(
            '`snapshot_device` must be None, beside the parameters, or "host", in host memory between '
            f"predictions. Got {snapshot_device=}."
        )
    if snapshot_device is not None and every is not None:
        raise ValueError(
            "`snapshot_device` needs the `end_epoch` form: inside `update` every step would carry the window "
            f"through the device. Got {snapshot_device=}, {every=}."
        )
    storage = Storage(snapshot_dtype, snapshot_device == "host")
    settings = Settings(dynamics, accept, window, horizon, start, interval, schedule, guard, dry_run, storage)
    wrapper = _Wrapper(optax.with_extra_args_support(inner), settings, every, labels)
    # Bound methods, so that the settings survive `_replace` and tree maps.
    return PDT(cast(Any, wrapper.init), cast(Any, wrapper.update))


class _Wrapper:
    """The two functions of the transformation and what they close over."""

    def __init__(
        self,
        inner: optax.GradientTransformationExtraArgs,
        settings: Settings,
        every: int | None,
        labels: _leaves.Labels,
    ):
        self.inner = inner
        self.settings = settings
        self.every = every
        self.labels = labels
        self.update_saw_value = False
        self.version_seen = False

    def init(self, params: optax.Params) -> PDTState:
        inner_state = self.inner.init(params)
        if nested := find_states(inner_state):
            raise ValueError(
                "`inner` must not hold another `pdt`: their predictions would build on each other's jumps. "
                f"Found {len(nested)}."
            )
        window = self.settings.window
        snapshots = self.settings.storage.start(_leaves.snapshot(params, self.labels), window)
        backup = None
        if self.settings.guard is not None:
            backup = Backup(
                armed=jnp.array(False),
                weights_before=_leaves.snapshot(params),
                optimizer_before=jax.tree.map(_own_copy, inner_state),
            )
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        return PDTState(
            inner_state=inner_state,
            snapshots=snapshots,
            snapshots_held=jnp.ones((), jnp.int32),
            snapshots_seen=jnp.ones((), jnp.int32),
            plain_epochs=zero(),
            predictions_made=zero(),
            updates_seen=zero(),
            value_sum=jnp.zeros((), jnp.float32),
            values_seen=zero(),
            pace=Pace.start(self.settings.horizon, self.settings.interval),
            backup=backup,
            last_report=None if self.every is None else no_report(window, len(_leaves.paths(snapshots[-1]))),
            version=jnp.array(VERSION, jnp.int32),
        )

    def update(
        self, updates: optax.Updates, state: PDTState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, PDTState]:
        updates, inner_state = self.inner.update(updates, state.inner_state, params, **extra)
        state = state._replace(inner_state=inner_state, updates_seen=optax.safe_increment(state.updates_seen))
        if (value := extra.get("value")) is not None:
            self.update_saw_value = True
            state = state._replace(
                value_sum=state.value_sum + _scalar(value),
                values_seen=optax.safe_increment(state.values_seen),
            )
        if self.every is None:
            return updates, state
        if params is None:
            raise ValueError(
                "`update` needs `params` when `every` is set, to predict them: "
                f"tx.update(grads, opt_state, params). Got params=None, every={self.every}."
            )
        self.check_state(state)
        self.check_value(value)
        return self._update_boundary(updates, state, params)

    def _update_boundary(
        self, updates: optax.Updates, state: PDTState, params: optax.Params
    ) -> tuple[optax.Updates, PDTState]:
        """Ends an epoch inside `update` if `every` updates have passed since the last one."""
        like = state.snapshots[-1]
        window, trained_from = _columns(state, params, self.settings.storage)
        if not trained_from:
            return updates, state
        whole = like if state.backup is None else state.backup.weights_before
        old = trained_from if state.backup is None else _leaves.matched(whole, params)
        steps = [lax.convert_element_type(u, u.dtype) for u in _leaves.predicted(whole, updates, "updates")]
        small = _small(state)
        kept = None if state.backup is None else (state.inner_state, _saved(state))
        settings = dataclasses.replace(self.settings, together=on_one_device(trained_from))
        steps, window, small, kept = _end_epoch_if_due(
            steps, window, small, kept, old, _which_predicted(state), settings, cast(int, self.every)
        )
        state = _restore(state, like, window, small, kept)
        return _leaves.replace(whole, updates, steps), state

    def check_state(self, state: PDTState) -> None:
        """Raises ValueError if `state` is of a wrapper with another window, guard or way to end epochs."""
        self.check_form(state._asdict())
        # Once: to read it is to wait for the device.
        self.version_seen = self.version_seen or check_version(state.version)

    def check_form(self, saved: Mapping[str, Any]) -> None:
        """Raises ValueError if these fields are not of a state of this wrapper."""
        guard = self.settings.guard is not None
        check_form(saved, window=self.settings.window, every=self.every is not None, guard=guard)

    def check_value(self, value: Any) -> None:
        """Raises ValueError if the schedule or the guard would wait for values in vain."""
        if self.settings.needs_value and value is None:
            call = (
                "end_epoch(params, opt_state, value=loss)"
                if self.every is None
                else "update(..., value=loss)"
            )
            raise ValueError(
                "The schedule or the guard judges epochs by their values, and none came: pass the training loss, "
                f"tx.{call}. Got schedule={self.settings.schedule}, guard={self.settings.guard}."
            )


def wrapper_of(pdt_tx: Any) -> _Wrapper:
    """What stands behind a `PDT`, or TypeError."""
    wrapper = getattr(getattr(pdt_tx, "update", None), "__self__", None)
    if not isinstance(wrapper, _Wrapper):
        raise TypeError(
            "`pdt_tx` must be what `pdt_optax.pdt(...)` returned; a chain around it does not know how to "
            f"end an epoch. Got {pdt_tx!r}."
        )
    return wrapper


def end_epoch(
    pdt_tx: PDT,
    params: optax.Params,
    opt_state: optax.OptState,
    *,
    value: jax.typing.ArrayLike | None = None,
    donate: bool = False,
) -> tuple[optax.Params, Any, PDTReport]:
    """Ends an epoch: predicts if it is time, and takes a snapshot.

    As a function it also serves a `pdt` nested in a bigger transformation
    (`optax.chain`, `optax.masked`, `optax.partition`, ...), whose state is
    found in `opt_state`. It may be jitted, and never waits for the device.

    Args:
      pdt_tx: what `pdt(...)` returned.
      params: the parameters after the epoch's last update.
      opt_state: the state of `pdt_tx` or of the transformation around it.
      value: the epoch's value, usually its mean training loss, for the report;
        by default the mean of the `value`s that `update` saw.
      donate: update `params` and the oldest snapshot in place. The caller's
        `params` and `opt_state` are then no longer valid.

    Returns:
      The parameters, the state, and a `PDTReport`.

    Raises:
      TypeError: if `pdt_tx` is not what `pdt` returned.
      ValueError: if `pdt_tx` ends its epochs itself (`every`), if `opt_state`
        does not hold exactly one state of it, or if `params` do not match.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> inner = pdt_optax.pdt(optax.adam(1e-2))
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), inner)
      >>> params = {"w": jnp.ones(3)}
      >>> opt_state = tx.init(params)
      >>> params, opt_state, report = pdt_optax.end_epoch(inner, params, opt_state)
      >>> bool(report.predicted)
      False
    """
    wrapper = wrapper_of(pdt_tx)
    if wrapper.every is not None:
        raise ValueError(
            "`end_epoch` is not for a wrapper that ends its epochs inside `update`: drop the call, or "
            f"make the wrapper without `every`. Got every={wrapper.every}."
        )
    state = find_state(opt_state)
    wrapper.check_state(state)
    if not wrapper.update_saw_value:
        wrapper.check_value(value)
    like = state.snapshots[-1]
    storage = wrapper.settings.storage
    window, trained = _columns(state, params, storage)
    settings = dataclasses.replace(wrapper.settings, together=on_one_device(trained))
    if not trained:
        raise ValueError("There is nothing to predict: the state's snapshots have no leaf.")
    value = _mean_value(state) if value is None else _scalar(value)
    if state.backup is None:
        # Only what changes goes through the jitted core: it would copy the rest.
        core = _end_epoch_donated if donate else _end_epoch
        spent, kept = storage.split(window)
        new, fresh, small, report = core(trained, spent, kept, _small(state), value, settings)
        snapshots = tuple(_leaves.replace(like, like, column) for column in (*kept, *fresh))
        state = small._replace(inner_state=state.inner_state, snapshots=snapshots)
        whole = like
    else:
        whole = state.backup.weights_before
        core = _end_epoch_guarded_donated if donate else _end_epoch_guarded
        now = Guarded(_leaves.matched(whole, params), window, state.inner_state)
        now, saved, small, report = core(
            now, _saved(state), _small(state), value, _which_predicted(state), settings
        )
        new = now.weights
        state = _restore(state, like, now.window, small, (now.inner_state, saved))
    return _leaves.replace(whole, params, new), with_state(opt_state, state), report


def _lower_end_epoch(pdt_tx: PDT, params: Any) -> Any:
    """The donated `end_epoch` of an unguarded wrapper, lowered for parameters, or for their shapes."""
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))
    state: Any = jax.eval_shape(pdt_tx.init, params) if abstract else pdt_tx.init(params)
    settings = wrapper_of(pdt_tx).settings
    window, trained = _columns(state, params, settings.storage)
    settings = dataclasses.replace(settings, together=on_one_device(trained))
    value = jax.ShapeDtypeStruct((), jnp.float32)
    return _end_epoch_donated.lower(trained, *settings.storage.split(window), _small(state), value, settings)


def check_saved(pdt_tx: PDT, saved: Any) -> None:
    """Checks that a saved state can be taken up by this wrapper: before it is restored, and after.

    Args:
      pdt_tx: what `pdt(...)` returned.
      saved: a restored state, or what the checkpoint says of it (nested dicts,
        Orbax's metadata); it may lie within a bigger tree.

    Raises:
      TypeError: if `pdt_tx` is not what `pdt` returned.
      ValueError: if `saved` does not hold exactly one state of `pdt`, if its
        window, its guard or its way to end epochs is another, or if another version
        of this library saved it.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> state = pdt_optax.pdt(optax.sgd(0.1), window=3, start=3).init(jnp.ones(2))
      >>> pdt_optax.check_saved(pdt_optax.pdt(optax.sgd(0.1)), {"opt_state": state})
      Traceback (most recent call last):
      ...
      ValueError: The state must hold as many snapshots as its wrapper's `window`: give it another window by \
pdt_optax.resize_window(opt_state, 5), or make the wrapper with window=3. Got 3 snapshots, window=5.
    """
    fields = find_saved(saved)
    wrapper_of(pdt_tx).check_form(fields)
    check_version(fields["version"])


def leaf_paths(opt_state: optax.OptState) -> list[str]:
    """The paths of the predicted leaves, in the order of `accepted_share_per_leaf`.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> params = {"embed": jnp.ones((2, 2)), "out": {"kernel": jnp.ones(2)}, "step": jnp.array(0)}
      >>> tx = pdt_optax.pdt(optax.sgd(0.1), labels=lambda path: "embed" in path)
      >>> pdt_optax.leaf_paths(tx.init(params))
      ['out/kernel']
    """
    return _leaves.paths(find_state(opt_state).snapshots[-1])


def _own_copy(x: Any) -> Any:
    return jnp.array(x, copy=True) if isinstance(x, jax.Array) else x


def _small(state: PDTState) -> PDTState:
    """The state without anything the size of the weights."""
    return state._replace(inner_state=None, snapshots=(), backup=None)


def _saved(state: PDTState) -> Saved:
    backup = cast(Backup, state.backup)
    weights = _leaves.predicted(backup.weights_before, backup.weights_before)
    return Saved(backup.armed, weights, backup.optimizer_before)


def _which_predicted(state: PDTState) -> tuple[bool, ...]:
    """For each floating leaf, whether it is predicted."""
    like = state.snapshots[-1]
    whole = like if state.backup is None else state.backup.weights_before
    return tuple(not _leaves.is_masked(x) for x in _leaves.predicted(whole, like))


def _restore(state: PDTState, like: optax.Params, window: Window, small: PDTState, kept: Any) -> PDTState:
    """The state with what came back from a boundary."""
    inner_state, backup = state.inner_state, None
    if kept is not None:
        inner_state, saved = kept
        whole = cast(Backup, state.backup).weights_before
        backup = Backup(saved.armed, _leaves.replace(whole, whole, saved.weights), saved.inner_state)
    snapshots = tuple(_leaves.replace(like, like, column) for column in window)
    return small._replace(inner_state=inner_state, snapshots=snapshots, backup=backup)


def _columns(state: PDTState, params: optax.Params, storage: Storage) -> tuple[Window, Column]:
    """The snapshots and the parameters as lists of their predicted leaves."""
    leaves = _leaves.match(state.snapshots, params, storage)
    window = zip(*(leaf.snapshots for leaf in leaves), strict=True)
    return tuple(list(column) for column in window), [leaf.param for leaf in leaves]


def _scalar(value: jax.typing.ArrayLike) -> jax.Array:
    if jnp.shape(value) != ():
        raise ValueError(f"`value` must be a scalar, such as a mean loss. Got the shape {jnp.shape(value)}.")
    return jnp.asarray(value, jnp.float32)


def _mean_value(state: PDTState) -> jax.Array:
    return state.value_sum / state.values_seen  # NaN if none was seen


def _clock(small: PDTState) -> Clock:
    return Clock(
        small.snapshots_held, small.snapshots_seen, small.plain_epochs, small.predictions_made, small.pace
    )


def _next_epoch(small: PDTState, clock: Clock) -> PDTState:
    """The counters at the start of the next epoch."""
    return small._replace(
        **clock._asdict(),
        updates_seen=jnp.zeros_like(small.updates_seen),
        value_sum=jnp.zeros_like(small.value_sum),
        values_seen=jnp.zeros_like(small.values_seen),
    )


def _jump(update: jax.Array, old: jax.Array, trained: jax.Array, new: jax.Array) -> jax.Array:
    """The update that leads to `new`; where that is what the optimizer made, its own."""
    wide = jnp.promote_types(old.dtype, update.dtype)
    jump = (new.astype(wide) - old.astype(wide)).astype(update.dtype)
    return jnp.where(new == trained, update, jump)


def _core_if_due(
    steps: Column,
    window: Window,
    small: PDTState,
    kept: Any,
    old: Column,
    predicted: tuple[bool, ...],
    settings: Settings,
    every: int,
) -> tuple[Column, Window, PDTState, Any]:
    """Ends an epoch inside `update` once `every` updates have passed since the last one.

    A loop of zero or one trips, not a conditional: what a loop carries is
    updated in place, while a conditional's pass-through would copy every
    snapshot at every step.
    """

    def due(carry: Any) -> jax.Array:
        return carry[2].updates_seen >= every

    def end(carry: Any) -> Any:
        steps, window, small, kept = carry
        value = _mean_value(small)
        trained: Any = optax.apply_updates(old, steps)
        if kept is None:
            new, clock, report = predict_if_due(window, trained, _clock(small), value, settings)
            window = settings.storage.push(window, new)
        else:
            now = Guarded(trained, window, kept[0])
            now, saved, clock, report = judge_and_predict(
                now, kept[1], _clock(small), value, predicted, settings
            )
            new, window, kept = now.weights, now.window, (now.inner_state, saved)
        steps = jax.tree.map(_jump, steps, old, trained, new)
        # What the caller will have after adding the updates, to the last bit.
        landed: Any = optax.apply_updates(old, steps)
        newest = [x for x, p in zip(landed, predicted, strict=True) if p]
        small = _next_epoch(small, clock)._replace(last_report=report)
        return steps, settings.storage.replace_newest(window, newest), small, kept

    return lax.while_loop(due, end, (steps, window, small, kept))


_end_epoch_if_due = jax.jit(_core_if_due, static_argnames=("predicted", "settings", "every"))


def _own(new: Column, over: Column, after: Sequence[jax.Array]) -> Column:
    """A copy of `new` for the window, or it and the weights would share buffers.

    Written over `over` once `after` are known, by a select whose condition
    hangs on them. XLA's CPU backend has one thread for a copy and all of them
    for this; and where `after` are made from `over`, it would save a copy of it
    from being overwritten too early.
    """

    def own(x: jax.Array, y: jax.Array, a: jax.Array) -> jax.Array:
        return jnp.where((a == 0) | (a != 0), x, y)

    return [own(*leaf) for leaf in zip(new, over, after, strict=True)]


def _core(
    trained: Column,
    spent: Window,
    kept: Window,
    small: PDTState,
    value: jax.Array,
    settings: Settings,
) -> tuple[Column, Window, PDTState, PDTReport]:
    storage = settings.storage
    window = storage.join(spent, kept)
    new, clock, report = predict_if_due(window, trained, _clock(small), value, settings)
    *older, newest = storage.pushed(storage.push(window, new))
    if not storage.host:  # whose window is a copy already
        newest = _own(newest, spent[-1], older[0] if older else [value] * len(new))
    fresh = (*older, newest)
    # In the order of the arguments, or their buffers would be swapped, and
    # before the rest: with CUDA, an open XLA bug corrupts donated buffers otherwise.
    return new, fresh, _next_epoch(small, clock), report


_end_epoch = jax.jit(_core, static_argnames="settings")
_end_epoch_donated = jax.jit(_core, static_argnames="settings", donate_argnames=("trained", "spent"))


def _guarded_core(
    now: Guarded,
    saved: Saved,
    small: PDTState,
    value: jax.Array,
    predicted: tuple[bool, ...],
    settings: Settings,
) -> tuple[Guarded, Saved, PDTState, PDTReport]:
    now, saved, clock, report = judge_and_predict(now, saved, _clock(small), value, predicted, settings)
    newest = jax.tree.map(jnp.copy, now.window[-1])  # or the weights and it would share buffers
    now = now._replace(window=(*now.window[:-1], newest))
    return now, saved, _next_epoch(small, clock), report


_end_epoch_guarded = jax.jit(_guarded_core, static_argnames=("predicted", "settings"))
_end_epoch_guarded_donated = jax.jit(
    _guarded_core, static_argnames=("predicted", "settings"), donate_argnames=("now", "saved")
)
