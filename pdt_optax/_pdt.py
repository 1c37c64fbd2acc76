"""`pdt`: any Optax optimizer, with a prediction of its weights between epochs."""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from pdt_optax import _leaves, presets
from pdt_optax._predict import Accept, _predict, check_horizon, check_model, count
from pdt_optax.dynamics import Dynamics


class PDTReport(NamedTuple):
    """What happened at an epoch's end; the same structure whether or not it predicted.

    Attributes:
      predicted: (), bool; a prediction was made and its accepted weights moved
        (with `dry_run`: would have moved).
      finite: (), bool; False if a prediction was due but dropped, because it or
        the window held a number that was not finite.
      horizon: (), int32, snapshots ahead; 0 without a prediction.
      accepted_share: (), float32; 0 without a prediction.
      accepted_share_per_leaf: (leaves,), float32, in the order of `leaf_paths`.
      singular_values, eigenvalues: (window - 1,); NaN without a prediction.
      rank: (), int32; 0 without a prediction.
      mean_value: (), float32; the epoch's `value` (its loss), NaN if none came.
    """

    predicted: jax.Array
    finite: jax.Array
    horizon: jax.Array
    accepted_share: jax.Array
    accepted_share_per_leaf: jax.Array
    singular_values: jax.Array
    eigenvalues: jax.Array
    rank: jax.Array
    mean_value: jax.Array


class PDTState(NamedTuple):
    """State of `pdt`.

    Attributes:
      inner_state: of the wrapped optimizer.
      snapshots: `window` trees like the parameters, oldest to newest, with a
        `MaskedNode` for each leaf that is never predicted. Until `window` were
        taken, the oldest repeat the initial weights.
      snapshots_seen: (), int32; taken so far, the one at `init` included.
      plain_epochs: (), int32; epochs since the last prediction.
      predictions_made: (), int32.
      updates_seen: (), int32; calls of `update` since the last epoch's end.
      value_sum, values_seen: (), float32 and int32; of the `value`s passed to
        `update` since the last epoch's end.
      last_report: the last epoch's `PDTReport` with `every`, else None.
    """

    inner_state: optax.OptState
    snapshots: tuple[optax.Params, ...]
    snapshots_seen: jax.Array
    plain_epochs: jax.Array
    predictions_made: jax.Array
    updates_seen: jax.Array
    value_sum: jax.Array
    values_seen: jax.Array
    last_report: PDTReport | None


@dataclasses.dataclass(frozen=True)
class _Settings:
    """All that a boundary depends on; hashable, so that equal wrappers share compiled code."""

    dynamics: Dynamics
    accept: Accept
    window: int
    horizon: int
    start: int
    interval: int
    dry_run: bool


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
    every: int | None = None,
    labels: _leaves.Labels = None,
    dry_run: bool = False,
) -> PDT:
    """Predictive Differential Training around any Optax optimizer.

    `update` is `inner`'s and a counter. Between epochs, call `end_epoch`: it
    keeps a snapshot of the weights and, when it is time, predicts where the
    last `window` snapshots lead in `horizon` epochs and moves the weights whose
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
      every: take every so many calls of `update` for an epoch and end it inside
        `update`, for loops that live in jit or scan; `params` must then be
        passed to `update`, there is no `end_epoch`, and in a chain the wrapper
        comes last. The report is `opt_state.last_report`. Accepted weights land
        within one ulp of their prediction, since updates are added. It costs:
        an update that leaves a conditional must be written out (a bare adamw
        step on 10 M weights takes 1.4 to 1.5 times as long on a CPU), and
        under vmap the conditional becomes a select that predicts at each step.
      labels: leaves that are never predicted, such as embeddings or norms: a
        tree of bools like the parameters (or a prefix of it), or a function of
        a leaf's path (`"layers/0/kernel"`); True keeps the leaf out.
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
      6 False 0.421
      7 True 0.341

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
    settings = _Settings(dynamics, accept, window, horizon, start, interval, dry_run)
    wrapper = _Wrapper(optax.with_extra_args_support(inner), settings, every, labels)
    # Bound methods, so that the settings survive `_replace` and tree maps.
    return PDT(cast(Any, wrapper.init), cast(Any, wrapper.update))


class _Wrapper:
    """The two functions of the transformation and what they close over."""

    def __init__(
        self,
        inner: optax.GradientTransformationExtraArgs,
        settings: _Settings,
        every: int | None,
        labels: _leaves.Labels,
    ):
        self.inner = inner
        self.settings = settings
        self.every = every
        self.labels = labels

    def init(self, params: optax.Params) -> PDTState:
        window = self.settings.window
        inner_state = self.inner.init(params)
        if _states(inner_state):
            raise ValueError(
                "`inner` must not hold another `pdt`: their predictions would build on each other's jumps. "
                f"Found {len(_states(inner_state))}."
            )
        snapshots = tuple(_leaves.snapshot(params, self.labels) for _ in range(window))
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        return PDTState(
            inner_state=inner_state,
            snapshots=snapshots,
            snapshots_seen=jnp.ones((), jnp.int32),
            plain_epochs=zero(),
            predictions_made=zero(),
            updates_seen=zero(),
            value_sum=jnp.zeros((), jnp.float32),
            values_seen=zero(),
            last_report=None if self.every is None else _no_report(window, len(_leaves.paths(snapshots[-1]))),
        )

    def update(
        self, updates: optax.Updates, state: PDTState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, PDTState]:
        updates, inner_state = self.inner.update(updates, state.inner_state, params, **extra)
        state = state._replace(inner_state=inner_state, updates_seen=optax.safe_increment(state.updates_seen))
        if (value := extra.get("value")) is not None:
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
        like = state.snapshots[-1]
        window, old = _columns(state, params)
        steps = [lax.convert_element_type(u, u.dtype) for u in _leaves.predicted(like, updates, "updates")]
        if not steps:
            return updates, state
        small = state._replace(inner_state=None, snapshots=())
        steps, window, small = _end_epoch_if_due(steps, window, small, old, self.settings, self.every)
        snapshots = tuple(_leaves.replace(like, like, column) for column in window)
        state = small._replace(inner_state=inner_state, snapshots=snapshots)
        return _leaves.replace(like, updates, steps), state

    def check_state(self, state: PDTState) -> None:
        """Raises ValueError if `state` is of a wrapper with another window or another way to end epochs."""

        def describe(snapshots: int, every: bool) -> str:
            return f"{snapshots} snapshots and {'a' if every else 'no'} report"

        expected = describe(self.settings.window, self.every is not None)
        got = describe(len(state.snapshots), state.last_report is not None)
        if got != expected:
            raise ValueError(
                "The state must come from this wrapper's own `init`: with the same `window`, and a report only "
                f"where `every` is set. Expected {expected}, got {got}."
            )


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
    wrapper = getattr(getattr(pdt_tx, "update", None), "__self__", None)
    if not isinstance(wrapper, _Wrapper):
        raise TypeError(
            "`pdt_tx` must be what `pdt_optax.pdt(...)` returned; a chain around it does not know how to "
            f"end an epoch. Got {pdt_tx!r}."
        )
    if wrapper.every is not None:
        raise ValueError(
            "`end_epoch` is not for a wrapper that ends its epochs inside `update`: drop the call, or "
            f"make the wrapper without `every`. Got every={wrapper.every}."
        )
    state = _find_state(opt_state)
    wrapper.check_state(state)
    like = state.snapshots[-1]
    window, trained = _columns(state, params)
    if not trained:
        raise ValueError("There is nothing to predict: the state's snapshots have no leaf.")
    value = _mean_value(state) if value is None else _scalar(value)
    # Only what changes goes through the jitted core: it would copy the rest.
    small = state._replace(inner_state=None, snapshots=())
    core = _end_epoch_donated if donate else _end_epoch
    new, newest, small, report = core(window[0], window[1:], trained, small, value, wrapper.settings)
    snapshots = (*state.snapshots[1:], _leaves.replace(like, like, newest))
    state = small._replace(inner_state=state.inner_state, snapshots=snapshots)
    opt_state = jax.tree.map(lambda x: state if _is_state(x) else x, opt_state, is_leaf=_is_state)
    return _leaves.replace(like, params, new), opt_state, report


def leaf_paths(opt_state: optax.OptState) -> list[str]:
    """The paths of the predicted leaves, in the order of `accepted_share_per_leaf`.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> params = {"embed": jnp.ones((2, 2)), "out": {"kernel": jnp.ones(2)}, "step": jnp.array(0)}
      >>> tx = pdt_optax.pdt(optax.sgd(0.1), labels=lambda path: "embed" in path)
      >>> pdt_optax.leaf_paths(tx.init(params))
      ['out/kernel']
    """
    return _leaves.paths(_find_state(opt_state).snapshots[-1])


def _is_state(x: Any) -> bool:
    return isinstance(x, PDTState)


def _states(opt_state: optax.OptState) -> list[PDTState]:
    return [x for x in jax.tree.leaves(opt_state, is_leaf=_is_state) if _is_state(x)]


def _find_state(opt_state: optax.OptState) -> PDTState:
    found = _states(opt_state)
    if len(found) != 1:
        raise ValueError(
            "`opt_state` must hold the state of exactly one `pdt` wrapper, as `init` returned it. "
            f"Found {len(found)} in {type(opt_state).__name__}."
        )
    return found[0]


Column = list[jax.Array]  # all predicted leaves at one time


def _columns(state: PDTState, params: optax.Params) -> tuple[tuple[Column, ...], Column]:
    """The snapshots and the parameters as lists of their predicted leaves."""
    leaves = _leaves.match(state.snapshots, params)
    window = zip(*(leaf.snapshots for leaf in leaves), strict=True)
    return tuple(list(column) for column in window), [leaf.param for leaf in leaves]


def _scalar(value: jax.typing.ArrayLike) -> jax.Array:
    if jnp.shape(value) != ():
        raise ValueError(f"`value` must be a scalar, such as a mean loss. Got the shape {jnp.shape(value)}.")
    return jnp.asarray(value, jnp.float32)


def _mean_value(state: PDTState) -> jax.Array:
    return state.value_sum / state.values_seen  # NaN if none was seen


def _boundary(
    window: tuple[Column, ...], trained: Column, small: PDTState, value: jax.Array, settings: _Settings
) -> tuple[Column, PDTState, PDTReport]:
    """The end of an epoch: the new weights, the counters and the report (Alg. 1)."""
    epoch = small.snapshots_seen - 1  # counted from 0; the snapshot of `init` came before it
    rested = (small.predictions_made == 0) | (small.plain_epochs >= settings.interval)
    due = (epoch >= settings.start) & (small.snapshots_seen >= settings.window) & rested

    def predict() -> tuple[Column, PDTReport]:
        prediction = _predict(
            window,
            trained,
            small.predictions_made,
            dynamics=settings.dynamics,
            accept=settings.accept,
            horizon=settings.horizon,
        )
        report = PDTReport(
            predicted=prediction.finite,
            finite=prediction.finite,
            horizon=jnp.int32(settings.horizon),
            accepted_share=prediction.accepted_share,
            accepted_share_per_leaf=prediction.accepted_share_per_leaf,
            singular_values=prediction.singular_values,
            eigenvalues=prediction.eigenvalues,
            rank=prediction.rank,
            mean_value=value,
        )
        return (trained if settings.dry_run else prediction.params), report

    # The branch that does nothing must be the false one: jax <= 0.11 copies
    # what passes through the other.
    new, report = lax.cond(due, predict, lambda: (trained, _no_report(len(window), len(trained), value)))
    small = small._replace(
        snapshots_seen=optax.safe_increment(small.snapshots_seen),
        plain_epochs=jnp.where(report.predicted, 0, optax.safe_increment(small.plain_epochs)),
        predictions_made=jnp.where(
            report.predicted, optax.safe_increment(small.predictions_made), small.predictions_made
        ),
        updates_seen=jnp.zeros_like(small.updates_seen),
        value_sum=jnp.zeros_like(small.value_sum),
        values_seen=jnp.zeros_like(small.values_seen),
    )
    return new, small, report


def _no_report(window: int, leaves: int, value: jax.typing.ArrayLike = jnp.nan) -> PDTReport:
    return PDTReport(
        predicted=jnp.array(False),
        finite=jnp.array(True),
        horizon=jnp.zeros((), jnp.int32),
        accepted_share=jnp.zeros((), jnp.float32),
        accepted_share_per_leaf=jnp.zeros(leaves, jnp.float32),
        singular_values=jnp.full(window - 1, jnp.nan, jnp.float32),
        eigenvalues=jnp.full(window - 1, jnp.nan, jnp.complex64),
        rank=jnp.zeros((), jnp.int32),
        mean_value=jnp.asarray(value, jnp.float32),
    )


def _jump(update: jax.Array, old: jax.Array, trained: jax.Array, new: jax.Array) -> jax.Array:
    """The update that leads to `new`; where that is what the optimizer made, its own."""
    wide = jnp.promote_types(old.dtype, update.dtype)
    jump = (new.astype(wide) - old.astype(wide)).astype(update.dtype)
    return jnp.where(new == trained, update, jump)


@functools.partial(jax.jit, static_argnames=("settings", "every"))
def _end_epoch_if_due(
    steps: Column,
    window: tuple[Column, ...],
    small: PDTState,
    old: Column,
    settings: _Settings,
    every: int,
) -> tuple[Column, tuple[Column, ...], PDTState]:
    """Ends an epoch inside `update` once `every` updates have passed since the last one.

    A loop of zero or one trips, not a conditional: what a loop carries is
    updated in place, while a conditional's pass-through would copy every
    snapshot at every step.
    """

    def due(carry: Any) -> jax.Array:
        return carry[-1].updates_seen >= every

    def end(carry: Any) -> Any:
        steps, window, small = carry
        trained: Any = optax.apply_updates(old, steps)
        new, small, report = _boundary(window, trained, small, _mean_value(small), settings)
        steps = jax.tree.map(_jump, steps, old, trained, new)
        newest = optax.apply_updates(old, steps)
        return steps, (*window[1:], newest), small._replace(last_report=report)

    return lax.while_loop(due, end, (steps, window, small))


def _core(
    oldest: Column,
    newer: tuple[Column, ...],
    trained: Column,
    small: PDTState,
    value: jax.Array,
    settings: _Settings,
) -> tuple[Column, Column, PDTState, PDTReport]:
    new, small, report = _boundary((oldest, *newer), trained, small, value, settings)
    # Donated buffers come back first: with CUDA, an open XLA bug corrupts them otherwise.
    return new, jax.tree.map(jnp.copy, new), small, report


_end_epoch = jax.jit(_core, static_argnames="settings")
_end_epoch_donated = jax.jit(_core, static_argnames="settings", donate_argnames=("oldest", "trained"))
