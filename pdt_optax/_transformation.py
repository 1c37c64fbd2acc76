"""`pdt`: any Optax optimizer, with a prediction of its weights between epochs."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from pdt_optax import _history, _layout
from pdt_optax._compiled import Epoch, end_inside, finite_or_none
from pdt_optax._delivered import delivered
from pdt_optax._history import History
from pdt_optax._inner import check_cached, warn_of_slow_mean, with_extra_args
from pdt_optax._layout import Tree
from pdt_optax._predictor import Predictor, as_value, at_boundary, end_with, scalar
from pdt_optax._report import PDTReport, no_report
from pdt_optax._settings import Deliver, check_names
from pdt_optax.schedule import count


class PDTState(NamedTuple):
    """State of `pdt`.

    Attributes:
      inner_state: of the wrapped optimizer.
      history: the snapshots, the clock and the guard's backup.
      this_epoch: what `update` has seen since the last epoch's end.
      last_report: the last epoch's `PDTReport` with `every`, else None.
    """

    inner_state: optax.OptState
    history: History
    this_epoch: Epoch
    last_report: PDTReport | None


class PDT(optax.GradientTransformationExtraArgs):
    """What `pdt` returns: an optax transformation with one more method, `end_epoch`."""

    def end_epoch(
        self,
        params: optax.Params,
        opt_state: optax.OptState | None = None,
        *,
        value: jax.typing.ArrayLike | None = None,
        donate: bool = False,
    ) -> tuple[Any, Any, PDTReport]:
        """Ends an epoch: predicts if it is time, and takes a snapshot. See `end_epoch`."""
        return end_epoch(self, params, cast(Any, opt_state), value=value, donate=donate)


def pdt(
    inner: optax.GradientTransformation,
    *,
    every: int | None = None,
    deliver: Deliver = "auto",
    after_jump: Callable[[Any], Any] | None = None,
    **settings: Any,
) -> PDT:
    """Predictive Differential Training around any Optax optimizer.

    Between epochs, call `end_epoch`: it does what `Predictor` describes. By
    default the prediction is then delivered by the coming epoch's updates, in
    equal parts, so that every gradient sees the moving weights: `update` is
    `inner`'s, one addition, and a counter. The state holds the snapshots; where a
    step's arrays should not carry them, use a `Predictor` beside the optimizer.

    Args:
      inner: any optax transformation. Extra arguments of `update` reach it.
      every: treat every `every` calls of `update` as one epoch and end it inside
        `update`, for loops that live in jit or scan. `params` must then be
        passed to `update`, there is no `end_epoch`, and in a chain the wrapper
        comes last. The report is `opt_state.last_report`. Accepted weights land
        within one ulp of their prediction, since updates are added. It costs:
        XLA can no longer fuse the optimizer's update with its addition to the
        weights (a bare adamw step on 10 M weights takes 1.4 to 1.5 times as long
        on a CPU), under vmap it predicts at each step and selects, and on a GPU
        the host reads a condition at each step (docs/speed.md, "On a GPU"). A
        `scan` over epochs with `end_epoch` inside has none of these costs.
      deliver: "gradual" delivers a prediction in as many updates as the last epoch
        had. If the coming epoch is longer, delivery stops when all is delivered; if
        it is shorter, the rest is dropped, and the next report's `delivered_share` says
        so: it is 0 if `update` is never called. Leaves of less than 32 bits are moved at once: parts would be rounded
        away. "jump" moves all weights at the epoch's end. "auto" is "gradual"; with a
        guard it is "jump", since a guard judges by the epoch after it, whose mean
        loss would see half of what is delivered meanwhile; and with `after_jump`.
      after_jump: a function of the state of `inner` that returns it as it should be
        after a jump, for optimizers that remember something of the weights that they
        left: `forget_value` for line searches and `optax.lbfgs`.
      **settings: those of `Predictor`; `snapshot_device` not with `every`. Where the
        guard or the schedule needs an epoch's value, the mean of the `value`s that
        `update` saw serves, or the one given to `end_epoch`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a method `end_epoch`.

    Raises:
      TypeError: if `inner` is not an Optax transformation, or as for `Predictor`.
      ValueError: as for `Predictor`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, pdt_optax
      >>> loss = lambda w: jnp.sum(w**2)
      >>> tx = pdt_optax.pdt(optax.sgd(0.05), window=5)
      >>> params = jnp.array([1.0, 2.0])
      >>> opt_state = tx.init(params)
      >>> for epoch in range(6):
      ...     updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     params, opt_state, report = tx.end_epoch(params, opt_state, value=loss(params))
      >>> bool(report.predicted), float(report.accepted_share)
      (True, 1.0)

    References:
      Predictive Differential Training Guided by Training Dynamics, Algorithm 1.
    """
    if not (callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None))):
        hint = " Call it first: it makes one." if callable(inner) else ""
        raise TypeError(
            f"`inner` must be an optax gradient transformation, such as optax.adamw(1e-3). Got {inner!r}.{hint}"
        )
    check_names(settings, [*inspect.signature(pdt).parameters][1:])
    # A `Predictor` alone sees no updates, and refuses "gradual".
    predictor = Predictor(deliver="auto" if deliver == "gradual" else deliver, **settings)
    if every is not None:
        every = count("every", every, 1, "it counts calls of `update`")
        if predictor.snapshot_device is not None:
            raise ValueError(
                "`snapshot_device` needs the `end_epoch` form: inside `update` every step would carry the window "
                f"through the device. Got snapshot_device={predictor.snapshot_device!r}, {every=}."
            )
    if after_jump is not None and (deliver == "gradual" or not callable(after_jump)):
        raise ValueError(
            '`after_jump` must be a function of the state of `inner`, and jumps must be what happens: deliver="jump". '
            f"Got {after_jump=!r}, {deliver=}."
        )
    jumps = predictor.guard is not None or after_jump is not None
    gradual = deliver == "gradual" or (deliver == "auto" and not jumps)
    wrapper = _Wrapper(with_extra_args(inner), predictor, every, gradual, after_jump)
    # Bound methods, so that the settings survive `_replace` and tree maps.
    return PDT(cast(Any, wrapper.init), cast(Any, wrapper.update))


# `help(pdt)` and editors show the settings by name, with their defaults.
_own, _settings = (inspect.signature(f).parameters.values() for f in (pdt, Predictor))
_shared = [x for x in _settings if x.name != "deliver"]
pdt.__signature__ = inspect.Signature([*[*_own][:-1], *_shared], return_annotation=PDT)  # pyright: ignore[reportFunctionMemberAccess]


@dataclasses.dataclass(frozen=True, eq=False)
class _Wrapper:
    """The two functions of the transformation and what they close over."""

    inner: optax.GradientTransformationExtraArgs
    predictor: Predictor
    every: int | None
    gradual: bool
    after_jump: Callable[[Any], Any] | None

    def init(self, params: optax.Params) -> PDTState:
        inner_state = self.inner.init(params)
        if self.after_jump is None and not self.predictor.dry_run:
            check_cached(inner_state)
        warn_of_slow_mean(self.predictor.dynamics, inner_state)
        if nested := _history.all_of(inner_state, PDTState):
            raise ValueError(
                "`inner` must not hold another `pdt`: their predictions would build on each other's jumps. "
                f"Found {len(nested)}."
            )
        history = self.start(params, inner_state)
        leaves = len(jax.tree.leaves(history.snapshots[-1]))
        report = None if self.every is None else no_report(self.predictor.spectrum, leaves)
        return PDTState(inner_state, history, Epoch.start(), report)

    def start(self, params: optax.Params, inner_state: object) -> History:
        """The history before the first epoch."""
        # Leaves alone: what looks for a name in the state, as `optax.tree.get` does, finds it once.
        kept = tuple(jax.tree.leaves(inner_state))
        return _history.start(params, kept, self.predictor, gradual=self.gradual)

    def update(
        self, updates: optax.Updates, state: PDTState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, PDTState]:
        if not isinstance(state, PDTState):
            raise TypeError(
                "The state must be what `tx.init(params)` or the last call returned. Restore a saved one into the shapes "
                "of a new one, jax.eval_shape(tx.init, params); the state of an optimizer alone is taken up by "
                f"tx.init(params)._replace(inner_state=state). Got {type(state).__name__}."
            )
        self.check_delivery(state.history.delivery)
        self.check_report(state.last_report)
        updates, inner_state = self.inner.update(updates, state.inner_state, params, **extra)
        seen = state.this_epoch
        if state.history.delivery is not None:
            updates = delivered(updates, state.history.delivery, seen.updates_seen, params, self.predictor)
        seen = seen._replace(updates_seen=optax.safe_increment(seen.updates_seen))
        if (value := extra.get("value")) is not None:
            values_seen = optax.safe_increment(seen.values_seen)
            seen = seen._replace(value_sum=seen.value_sum + scalar(value), values_seen=values_seen)
        state = state._replace(inner_state=inner_state, this_epoch=seen)
        if self.every is None:
            return updates, state
        if params is None:
            raise ValueError(
                "`update` needs `params` when `every` is set, to predict them: "
                f"tx.update(grads, opt_state, params). Got params=None, every={self.every}."
            )
        history, last = state.history, state.last_report
        assert last is not None
        # Wrappers that compute with states, as SAM does, make integers of bools.
        seen, last = _typed(seen, Epoch.start()), _typed(last, no_report(1, 1))
        if value is None and self.predictor.needs_value:
            raise ValueError(self.predictor.value_rule("tx.update(..., value=loss)"))
        now, plan = at_boundary(self.predictor, params, history, inner_state)
        if not any(plan.predicted):
            return updates, state
        steps = _layout.take(history.weights, updates, "updates", types=False)
        steps = [lax.convert_element_type(u, u.dtype) for u in steps]  # strong types
        if now.backup is not None:
            steps, seen = finite_or_none(steps, now.weights, now.backup.armed, seen)
        steps, now, seen, report = end_inside(steps, now, seen, last, plan=plan, every=self.every)
        inner_state = history.refill(inner_state, now)
        inner_state = self.told(inner_state, report.predicted & (seen.updates_seen == 0))
        return _layout.put(history.weights, updates, steps), PDTState(
            inner_state, history.after(now), seen, report
        )

    def told(self, inner_state: Any, jumped: jax.Array) -> Any:
        """The state of `inner`, told of a jump."""
        if self.after_jump is None or self.predictor.dry_run:
            return inner_state
        return jax.tree.map(
            lambda new, old: old if new is old else jnp.where(jumped, new, old),
            self.after_jump(inner_state),
            inner_state,
        )

    def check_delivery(self, delivery: object) -> None:
        """Raises ValueError if a state is of a wrapper with another way to deliver predictions."""
        expected, got = ("gradual" if x else "jump" for x in (self.gradual, delivery is not None))
        if expected != got:
            raise ValueError(
                "The state must come from the `init` of a wrapper like this one: `deliver` differs. A guard, `after_jump` "
                f"and all presets but `recommended` make predictions jumps. {_history.TAKE_UP} "
                f"Expected the state of deliver={expected!r}; got that of deliver={got!r}."
            )

    def check_report(self, report: object) -> None:
        """Raises ValueError if a state is of a wrapper with another way to end epochs."""
        expected, got = ("with" if x else "without" for x in (self.every is not None, report is not None))
        if expected != got:
            raise ValueError(
                "The state must come from the `init` of a wrapper like this one: it holds a report only where "
                f"`every` is set. {_history.TAKE_UP} "
                f"Expected the state of a wrapper {expected} `every`; got that of one {got} it."
            )


def _typed(tree: Tree, like: Tree) -> Tree:
    """`tree` with the types of another one."""
    return jax.tree.map(lambda x, of: lax.convert_element_type(x, of.dtype), tree, like)


def wrapper_of(pdt_tx: object) -> _Wrapper:
    """What stands behind a `PDT`, or TypeError."""
    wrapper = getattr(getattr(pdt_tx, "update", None), "__self__", None)
    if not isinstance(wrapper, _Wrapper):
        raise TypeError(
            "`pdt_tx` must be what `pdt_optax.pdt(...)` returned; a chain around it does not know how to end an epoch: "
            f"pdt_optax.end_epoch(inner, params, opt_state), with what `pdt` returned as `inner`. Got {pdt_tx!r}."
        )
    return wrapper


def end_epoch(
    pdt_tx: PDT,
    params: optax.Params,
    opt_state: optax.OptState,
    *,
    value: jax.typing.ArrayLike | None = None,
    donate: bool = False,
) -> tuple[Any, Any, PDTReport]:
    """Ends an epoch: predicts if it is time, and takes a snapshot.

    As a function it also serves a `pdt` nested in a bigger transformation
    (`optax.chain`, `optax.masked`, `optax.partition`, ...), whose state is
    found in `opt_state`. Leaves are matched by path and shape, whatever the
    containers: `nnx.state(model, nnx.Param)` and `optimizer.opt_state` are taken
    as they are. It may be jitted. It waits for the device only where the guard or
    the schedule needs a value and none is passed: then it reads how many `update` saw.

    Args:
      pdt_tx: what `pdt(...)` returned.
      params: the parameters after the epoch's last update.
      opt_state: the state of `pdt_tx` or of the transformation around it.
      value: the epoch's value, usually its mean training loss, for the report;
        by default the mean of the `value`s that `update` saw.
      donate: as in `Predictor.end_epoch`.

    Returns:
      The parameters, the state, and a `PDTReport`.

    Raises:
      TypeError: if `pdt_tx` is not what `pdt` returned.
      ValueError: if `pdt_tx` ends its epochs itself (`every`), if `opt_state`
        does not hold exactly one state of it, if `params` do not match, or if a
        value is needed and none came.

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
    for tree in (params, opt_state):
        _layout.refuse_whole(tree, "tx.end_epoch(state.params, state.opt_state)")
    if wrapper.every is not None:
        raise ValueError(
            "`end_epoch` is not for a wrapper that ends its epochs inside `update`: drop the call, or "
            f"make the wrapper without `every`. Got every={wrapper.every}."
        )
    state = _history.find(opt_state, PDTState)
    wrapper.check_report(state.last_report)
    wrapper.check_delivery(state.history.delivery)
    seen = Epoch(*map(jnp.asarray, jax.tree.leaves(state.this_epoch)))
    if value is None and wrapper.predictor.needs_value:
        missing = seen.values_seen == 0
        if not isinstance(missing, Tracer) and bool(missing):
            raise ValueError(wrapper.predictor.value_rule("tx.end_epoch(params, opt_state, value=loss)"))
    params, history, inner_state, report = end_with(
        wrapper.predictor,
        params,
        state.history,
        state.inner_state,
        seen.updates_seen,
        seen.value() if value is None else as_value(value),
        donate=donate,
        whole=opt_state is state,
    )
    inner_state = wrapper.told(inner_state, report.predicted)
    new = PDTState(inner_state, history, _layout.refill(state.this_epoch, Epoch.start()), None)
    return params, _history.replaced(opt_state, PDTState, lambda _: new), report
