"""`Predictor`: Predictive Differential Training beside any optimizer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pdt_optax import _history, _layout
from pdt_optax._compiled import end_apart
from pdt_optax._history import History
from pdt_optax._layout import Column, Tree
from pdt_optax._moment import Moment, Plan
from pdt_optax._reduce import on_one_device
from pdt_optax._report import PDTReport, Value
from pdt_optax._settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictor(Settings):
    """Predictive Differential Training beside any optimizer, in any framework: your step is untouched.

    Between epochs, call `end_epoch`: it models how the weights move, predicts
    where they are going and moves those whose prediction is accepted. All
    others keep what the optimizer gave them. Nothing moves before the end of
    epoch `start`.

    The default keeps a mean of the optimizer's own motion and adds it once more:
    `presets.recommended`. What is left out here follows from `dynamics`: the
    other settings of that preset for `slow_drift`, those of `presets.drift` for
    models that see a window of snapshots.

    Args:
      dynamics: how weights move: `slow_drift()`, `drift()`, `dmd(...)`.
      accept: which weights take their prediction: `everything()`, `agree()`, `shrink()`, ...
      window: snapshots that the history holds, each a copy of the weights. A model
        looks back on all of them and needs at least 2; `slow_drift` needs 1, and
        more are for `decompose` and pictures.
      schedule: how far and how often it predicts: `fixed()`, `adaptive()` or
        `released_schedule()`.
      horizon: how many epochs ahead the schedule starts, >= 1; by default the schedule's own.
      interval: plain epochs between two predictions, >= 0; by default the schedule's own.
      start: the first epoch, counted from 0, whose end may predict; at least
        `window`, by default 5 or, for models that see a window, `window`.
      guard: `rollback(...)` takes a jump back when the epoch after it is too
        much worse. It and all schedules but `fixed` look at the epochs'
        values: pass them to `end_epoch` as `value`.
      own_motion: True keeps the path that the optimizer took by itself: when weights
        were moved, older snapshots are moved along. False keeps the weights as they
        were, as the paper and its released code do.
      deliver: "jump" moves weights at the epoch's end. A `Predictor` can do nothing
        else ("auto" means this); `pdt` can deliver a prediction in parts.
      exclude: leaves that are never predicted, such as embeddings or norms: a
        tree of bools like the parameters (or a prefix of it), or a function of
        a leaf's path (`"layers/0/kernel"`); True keeps the leaf out.
      project: a function that keeps weights where they belong, such as
        `optax.projections.projection_non_negative`: what a prediction makes passes
        through it before it is used. It gets and returns a tree like the parameters,
        with an `optax.MaskedNode` for each leaf that is never predicted.
        What it cuts off while a prediction is delivered in parts counts as the optimizer's own motion.
      snapshot_dtype: "bfloat16" keeps the newest snapshot whole and, for each
        older one, its difference to the next newer one in bfloat16: a window of
        5 of float32 weights costs 12 bytes a weight instead of 20, and every
        difference is rounded by up to 0.4% of itself.
      snapshot_device: "host" keeps the window in host memory and moves it in
        at a prediction only.
      dry_run: report what would be accepted and change nothing.

    Raises:
      TypeError: if `dynamics` is not a model, `accept` not a rule, or `schedule` or
        `guard` not one of theirs.
      ValueError: for a number out of range, or rules that do not fit together.

    Example:
      >>> import jax, jax.numpy as jnp, pdt_optax
      >>> loss = lambda w: jnp.sum(w**2)
      >>> params = jnp.array([1.0, 2.0])
      >>> predictor = pdt_optax.Predictor()
      >>> history = predictor.init(params)
      >>> for epoch in range(8):
      ...     params = params - 0.05 * jax.grad(loss)(params)  # any optimizer
      ...     params, history, report = predictor.end_epoch(params, history, value=loss(params))
      ...     if report.predicted:
      ...         print(f"Epoch {epoch} ended at {report.mean_value:.3f} and jumped to {loss(params):.3f}.")
      Epoch 5 ended at 1.412 and jumped to 1.085.
      Epoch 6 ended at 0.879 and jumped to 0.611.
      Epoch 7 ended at 0.495 and jumped to 0.296.

    References:
      Predictive Differential Training Guided by Training Dynamics, Algorithm 1.
    """

    def __post_init__(self, horizon: int | None, interval: int | None) -> None:
        super().__post_init__(horizon, interval)
        if self.deliver == "gradual":
            raise ValueError(
                '`deliver` must be "jump" or "auto" in a `Predictor`: it sees no updates that could deliver a '
                "prediction in parts. Wrap the optimizer instead: pdt_optax.pdt(optimizer, deliver='gradual'). "
                f"Got deliver={self.deliver!r}."
            )

    def init(self, params: optax.Params, opt_state: optax.OptState | None = None) -> History:
        """The history before the first epoch, with a snapshot of the initial weights.

        Args:
          params: the parameters, any pytree; `nnx.state(model, nnx.Param)` as it is.
          opt_state: the optimizer's state, which a guard may bring back; only with one.

        Raises:
          ValueError: if there is nothing to predict, or if `opt_state` and a guard do not come together.

        Example:
          >>> import jax.numpy as jnp, optax, pdt_optax
          >>> params, optimizer = {"w": jnp.ones(3)}, optax.adam(1e-3)
          >>> predictor = pdt_optax.Predictor(guard=pdt_optax.rollback())
          >>> history = predictor.init(params, opt_state=optimizer.init(params))
        """
        self._check_opt_state(opt_state, "init(params, opt_state=opt_state)")
        return _history.start(params, opt_state, self)

    def end_epoch(
        self,
        params: optax.Params,
        history: History,
        *,
        opt_state: optax.OptState | None = None,
        value: jax.typing.ArrayLike | None = None,
        donate: bool = False,
    ) -> tuple[Any, History, PDTReport]:
        """Ends an epoch: predicts if it is time, and takes a snapshot. It may be jitted, and never waits.

        It is no part of what you differentiate: reverse mode does not go through a model that sees a window.

        Args:
          params: the parameters after the epoch's last update.
          history: what `init` or the last `end_epoch` returned.
          opt_state: with a guard, the optimizer's state after the epoch. Go on
            with `history.opt_state`, which is this one or the one that came back.
          value: the epoch's value, usually its mean training loss. The report
            has it, and the guard and all schedules but `fixed` need it.
          donate: update `params` and the history's arrays in place. The caller's
            `params`, `history` and `opt_state` are then no longer valid.

        Returns:
          The parameters, the history, and a `PDTReport`.

        Raises:
          TypeError: if `history` is not one.
          ValueError: if `params` or `history` do not match, or if `value` or `opt_state` is missing.

        Example:
          >>> import jax.numpy as jnp, optax, pdt_optax
          >>> optimizer, predictor = optax.adam(1e-3), pdt_optax.Predictor(guard=pdt_optax.rollback())
          >>> params = {"w": jnp.ones(3)}
          >>> opt_state = optimizer.init(params)
          >>> history = predictor.init(params, opt_state)
          >>> params, history, report = predictor.end_epoch(params, history, opt_state=opt_state, value=0.5)
          >>> opt_state = history.opt_state
        """
        if not isinstance(history, History):
            raise TypeError(
                "`history` must be what `predictor.init(params)` or the last `end_epoch` returned. "
                f"Got {type(history).__name__}."
            )
        _layout.refuse_whole(params, "predictor.end_epoch(state.params, history)")
        self._check_opt_state(opt_state, "end_epoch(params, history, opt_state=opt_state)")
        if self.needs_value and value is None:
            raise ValueError(self.value_rule("predictor.end_epoch(params, history, value=loss)"))
        unseen = jnp.zeros((), jnp.int32)
        params, history, _, report = end_with(
            self, params, history, opt_state, unseen, as_value(value), donate=donate
        )
        return params, history, report

    def _check_opt_state(self, opt_state: optax.OptState | None, call: str) -> None:
        if (self.guard is None) != (opt_state is None):
            raise ValueError(
                "The optimizer's state belongs to the guard, which may bring it back: pass it with one, and "
                f"without one leave it out: predictor.{call}. "
                f"Got guard={self.guard}, opt_state={'None' if opt_state is None else 'a state'}."
            )

    def value_rule(self, call: str) -> str:
        """The message where an epoch's value is needed and none came."""
        return (
            "The schedule or the guard judges epochs by their values, and none came: pass the training loss, "
            f"{call}. Got schedule={self.schedule}, guard={self.guard}."
        )


def scalar(value: jax.typing.ArrayLike) -> jax.Array:
    if jnp.shape(value) != ():
        raise ValueError(f"`value` must be a scalar, such as a mean loss. Got the shape {jnp.shape(value)}.")
    return jnp.asarray(value, jnp.float32)


def as_value(value: jax.typing.ArrayLike | None) -> Value:
    return Value.none() if value is None else Value(scalar(value), jnp.array(True))


def at_boundary(
    predictor: Predictor, params: optax.Params, history: History, opt_state: object, *, whole: bool = True
) -> tuple[Moment, Plan]:
    """What a boundary works on, and under which settings: matched once, and each tree flattened once.

    `whole` if `params` are those that `init` saw, and no more than these.
    """
    _history.check(history._asdict(), predictor)
    _layout.check_exclude(history.snapshots[-1], params, predictor.exclude, whole=whole)
    weights = _layout.take(history.weights, params)
    leaves: Column = []
    if history.backup is not None:
        leaves, kept = map(jax.tree.leaves, (opt_state, history.backup.optimizer_before))
        if len(kept) != len(leaves):
            raise ValueError(
                "`opt_state` must have the leaves that it had at `init`. "
                f"Expected {len(kept)}, got {len(leaves)}."
            )
    known = {*_layout.paths(history.snapshots[-1])}
    predicted = tuple(path in known for path in _layout.paths(history.weights))
    tree = None if predictor.project is None else jax.tree.structure(history.snapshots[-1])
    return history.moment(weights, leaves), Plan(predictor.shared, predicted, on_one_device(weights), tree)


def end_with(
    predictor: Predictor,
    params: optax.Params,
    history: History,
    opt_state: Tree,
    updates_seen: jax.Array,
    value: Value,
    *,
    donate: bool,
    whole: bool = True,
) -> tuple[optax.Params, History, Tree, PDTReport]:
    """`Predictor.end_epoch`, its arguments checked, and the optimizer's state."""
    _layout.refuse_model(params, history.weights)
    if donate:
        _layout.refuse_tied(params)
    now, plan = at_boundary(predictor, params, history, opt_state, whole=whole)
    spent, kept = predictor.spent(now.window)
    now = now._replace(window=spent)
    given = (now, None) if donate else (None, now)
    after, report = end_apart(*given, kept, updates_seen, value, plan=plan)
    new = history.after(after._replace(window=(*kept, *after.window)))
    return _layout.put(history.weights, params, after.weights), new, history.refill(opt_state, after), report
