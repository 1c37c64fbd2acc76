"""A state at hand: what its snapshots are, whether a saved one can be taken up, another window for it."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pdt_optax import _history, _layout
from pdt_optax._history import History, find, replaced
from pdt_optax._layout import Tree
from pdt_optax._predictor import Predictor
from pdt_optax._report import PDTReport, no_report
from pdt_optax._settings import DESCRIBED
from pdt_optax._transformation import PDT, PDTState, wrapper_of
from pdt_optax.schedule import count


def predictor_of(made: object) -> Predictor:
    """A `Predictor`, or the one that `pdt(...)` made."""
    return made if isinstance(made, Predictor) else wrapper_of(made).predictor


def check_saved(made: PDT | Predictor, saved: object) -> None:
    """Checks that a saved state can be taken up: before it is restored, and after.

    Args:
      made: what `pdt(...)` returned, or a `Predictor`.
      saved: a restored state, or what the checkpoint says of it (nested dicts,
        Orbax's metadata); it may lie within a bigger tree.

    Raises:
      TypeError: if `made` is something else.
      ValueError: if `saved` does not hold exactly one history of snapshots, if its
        window, its guard, its way to end epochs or (of restored arrays, not of what
        a checkpoint says of them) any setting is another, or if another version of
        this library saved it.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> state = pdt_optax.Predictor(window=3).init(jnp.ones(2))
      >>> pdt_optax.check_saved(pdt_optax.Predictor(window=5), {"opt_state": state})
      Traceback (most recent call last):
      ...
      ValueError: The state must hold as many snapshots as its predictor's `window`: give it another window by \
pdt_optax.resize_window(state, 5), or set window=3. Got 3 snapshots, window=5.
    """
    predictor = predictor_of(made)
    tree = getattr(saved, "tree", saved)
    found = list(_with_fields(tree, {"snapshots", "version"}))
    if len(found) != 1:
        raise ValueError(
            "`saved` must hold exactly one history of snapshots. That of a run without PDT is taken up by "
            "tx.init(params)._replace(inner_state=saved), or beside a Predictor as it is. "
            f"Found {len(found)} in {type(saved).__name__}."
        )
    _history.check(found[0], predictor)
    if made is not predictor:
        for state in _with_fields(tree, {"history", "last_report"}):
            wrapper_of(made).check_report(state["last_report"])
        wrapper_of(made).check_delivery(found[0].get("delivery"))
    _check_settings(found[0]["clock"], predictor)


def _check_settings(clock: Any, predictor: Predictor) -> None:
    """Raises ValueError for a saved clock of other settings, where its numbers are there."""
    fields = getattr(clock, "_asdict", lambda: clock)()
    if not isinstance(saved := fields["settings"], jax.Array | np.ndarray):
        return
    pairs = zip(DESCRIBED, predictor.checksums, np.asarray(saved), strict=True)
    if differing := [name for name, expected, got in pairs if expected != got]:
        now = ", ".join(f"{name}={getattr(predictor, name)}" for name in differing)
        raise ValueError(
            "The state must be of the same settings as its predictor, or take on new ones by "
            "state = pdt_optax.adopt(made, state, params). "
            f"Saved with another {', '.join(differing)}; now {now}."
        )


def _with_fields(tree: object, fields: set[str]) -> Iterator[Mapping[str, Any]]:
    """The NamedTuples in a tree that have these fields, or the dicts that Orbax makes of them."""
    tree = getattr(tree, "_asdict", lambda: tree)()
    if isinstance(tree, Mapping) and fields <= set(tree):
        yield tree
    elif isinstance(tree, Mapping | list | tuple):
        for part in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _with_fields(part, fields)


def snapshots(made: PDT | Predictor, state: object) -> tuple[Any, ...]:
    """The window's snapshots as whole weights on the device, however the history keeps them.

    For `predict_and_mask` and `pdt_optax.plot`. Right after an epoch's end the
    newest of them is the parameters.

    Args:
      made: what `pdt(...)` returned, or a `Predictor`.
      state: a `History`, the state of `pdt`, or a tree around either.

    Returns:
      `window` trees like the parameters, oldest to newest, with a `MaskedNode`
      for each leaf that is never predicted. With `snapshot_dtype` the older ones
      are exact to the rounding of the differences in between.

    Raises:
      TypeError: if `made` is something else.
      ValueError: if `state` does not hold exactly one history.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> predictor = pdt_optax.Predictor(window=3, snapshot_dtype="bfloat16")
      >>> params = jnp.ones(1)
      >>> history = predictor.init(params)
      >>> for epoch in range(2):
      ...     params, history, report = predictor.end_epoch(0.5 * params, history)
      >>> [float(w[0]) for w in pdt_optax.snapshots(predictor, history)]
      [1.0, 0.5, 0.25]
    """
    history = find(state, History)
    storage = predictor_of(made).storage
    window = tuple(map(jax.tree.leaves, history.snapshots))
    whole = jax.jit(lambda window: storage.whole(storage.at_hand(window)))(window)
    return tuple(_layout.refill(history.snapshots[-1], column) for column in whole)


def resize_window(state: Tree, window: int) -> Tree:
    """The state with a window of another length: for a changed `window`, when a run is resumed.

    A shorter window keeps the newest snapshots. A longer one predicts again once
    as many snapshots were taken as it holds; until then copies of the oldest fill it.

    Args:
      state: a `History`, the state of `pdt`, or a tree around either; its
        leaves may be `jax.ShapeDtypeStruct`s, to restore a checkpoint into.
      window: snapshots that it shall hold, >= 2.

    Returns:
      `state` with that window, in buffers of its own.

    Raises:
      ValueError: if `window` is too small, or `state` does not hold exactly one history.

    Example:
      A checkpoint of a run with 5 snapshots, taken up with 7:

      >>> import jax, jax.numpy as jnp, optax, pdt_optax
      >>> params = {"w": jnp.ones(3)}
      >>> saved = pdt_optax.pdt(optax.sgd(0.1), window=5).init(params)
      >>> tx = pdt_optax.pdt(optax.sgd(0.1), window=7)
      >>> target = pdt_optax.resize_window(jax.eval_shape(tx.init, params), 5)  # what to restore into
      >>> jax.tree.structure(target) == jax.tree.structure(saved)
      True
      >>> opt_state = pdt_optax.resize_window(saved, 7)
      >>> params, opt_state, report = tx.end_epoch(params, opt_state)
    """
    running = find(state, History).motion is not None
    window = count("window", window, 1 if running else 2, "a difference takes two snapshots")

    def resized(history: History) -> History:
        held = len(history.snapshots)
        older = tuple(jax.tree.map(_copy, history.snapshots[0]) for _ in range(window - held))
        clock = history.clock
        if not isinstance(clock.snapshots_held, jax.ShapeDtypeStruct):
            clock = clock._replace(snapshots_held=jnp.minimum(clock.snapshots_held, window))
        return history._replace(snapshots=(*older, *history.snapshots[-window:]), clock=clock)

    def spectra(report: PDTReport) -> PDTReport:
        def emptied(x: jax.Array) -> Any:
            blank = jax.ShapeDtypeStruct((max(window - 1, 1),), x.dtype)
            return blank if isinstance(x, jax.ShapeDtypeStruct) else jnp.zeros(blank.shape, blank.dtype)

        values, eigenvalues = map(emptied, (report.singular_values, report.eigenvalues))
        return report._replace(singular_values=values, eigenvalues=eigenvalues)

    return replaced(replaced(state, History, resized), PDTReport, spectra)


def _copy(x: jax.Array) -> jax.Array:
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    return jax.device_put(x, getattr(x, "sharding", None), may_alias=False)


def restart(made: PDT | Predictor, state: Tree, params: optax.Params) -> Tree:
    """The state with a history that begins at these weights: after they were set by hand.

    A weight that you reset, copy or put back would be taken for the optimizer's
    own motion, and go on. The optimizer's state stays as it is; nothing is
    predicted for `start` epochs.

    Args:
      made: what `pdt(...)` returned, or a `Predictor`.
      state: a `History`, the state of `pdt`, or a tree around either.
      params: the weights to begin at.

    Raises:
      TypeError: if `made` is something else.
      ValueError: if `state` does not hold exactly one history.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> tx = pdt_optax.pdt(optax.adam(1e-3))
      >>> params = jnp.array([1.0, 40.0])
      >>> opt_state = tx.init(params)
      >>> params = params.at[1].set(0.0)  # by hand
      >>> opt_state = pdt_optax.restart(tx, opt_state, params)
    """
    return replaced(state, History, lambda old: _fresh(made, state, old, params))


def adopt(made: PDT | Predictor, state: Tree, params: optax.Params) -> Tree:
    """The state with other settings: those of `made`.

    What both know goes on: snapshots and the mean of the motion, leaf by leaf, the
    counters and, under the same schedule, the pace. A leaf that is predicted only
    now, or has another shape or type, begins at `params`, and with it a window that
    must be full. A jump that a guard has still to judge stays. What was still to be delivered in parts is
    dropped if the new settings jump.

    Args:
      made: what `pdt(...)` returned, or a `Predictor`; with the new settings.
      state: from a run with others, at the end of an epoch: a `History`, the state of
        `pdt`, or a tree around either.
      params: the parameters at that time, the whole tree that `init` sees.

    Raises:
      TypeError: if `made` is something else.
      ValueError: if `state` does not hold exactly one history, or that of a
        `Predictor` without a guard is to get one.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> params = {"embed": jnp.ones(2), "out": jnp.ones(3)}
      >>> opt_state = pdt_optax.pdt(optax.adam(1e-3)).init(params)
      >>> tx = pdt_optax.pdt(optax.adam(1e-3), exclude=lambda path: "embed" in path, start=8)
      >>> opt_state = pdt_optax.adopt(tx, opt_state, params)
      >>> params, opt_state, report = tx.end_epoch(params, opt_state)
    """

    def carried(old: History) -> History:
        fresh = _fresh(made, state, old, params)
        same = old.clock.settings[_SCHEDULE] == fresh.clock.settings[_SCHEDULE]
        pace = jax.tree.map(lambda a, b: jnp.where(same, a, b), old.clock.pace, fresh.clock.pace)
        clock = old.clock._replace(pace=pace, settings=fresh.clock.settings)
        have, need = (_kinds(x.snapshots[0]) for x in (old, fresh))
        if need.items() <= have.items():
            window = len(fresh.snapshots)
            held = jnp.minimum(clock.snapshots_held, window)
            columns = [old.snapshots[max(len(old.snapshots) - window + i, 0)] for i in range(window)]
            snapshots = tuple(
                _with(new, column) for new, column in zip(fresh.snapshots, columns, strict=True)
            )
        else:
            held = jnp.ones_like(clock.snapshots_held)
            snapshots = (*fresh.snapshots[:-1], _with(fresh.snapshots[-1], old.snapshots[-1]))
        motion, delivery = fresh.motion, fresh.delivery
        if motion is not None and old.motion is not None:
            motion = motion._replace(mean=_with(motion.mean, old.motion.mean), pull=old.motion.pull)
        if delivery is not None and old.delivery is not None:
            displacement = _with(delivery.displacement, old.delivery.displacement)
            delivery = delivery._replace(displacement=displacement, parts=old.delivery.parts)
        clock = clock._replace(snapshots_held=held)
        return fresh._replace(snapshots=snapshots, motion=motion, delivery=delivery, clock=clock)

    new = replaced(state, History, carried)
    if isinstance(made, Predictor):
        return new
    wrapper = wrapper_of(made)
    last = None if wrapper.every is None else no_report(wrapper.predictor.spectrum, len(leaf_paths(new)))
    return replaced(new, PDTState, lambda old: old._replace(last_report=last))


_SCHEDULE = DESCRIBED.index("schedule")


def _kinds(snapshot: object) -> dict[_layout.Path, tuple[tuple[int, ...], Any]]:
    """The shape and the type of each leaf, by its path."""
    leaves = zip(_layout.paths(snapshot), jax.tree.leaves(snapshot), strict=True)
    return {path: (x.shape, x.dtype) for path, x in leaves}


def _fresh(made: PDT | Predictor, state: object, old: History, params: optax.Params) -> History:
    """A history that begins at these weights."""
    if isinstance(made, Predictor):
        if made.guard is not None and old.backup is None:
            raise ValueError(
                "A `Predictor` with a guard keeps the optimizer's state, which this history does not have: begin a new one, "
                f"predictor.init(params, opt_state=opt_state). Got a history without a guard, guard={made.guard}."
            )
        backup = None if made.guard is None or old.backup is None else old.backup.optimizer_before
        return _history.start(params, backup, made)
    wrapper = wrapper_of(made)
    inner_state = find(state, PDTState).inner_state
    return wrapper.start(params, inner_state)


def _with(tree: Tree, other: object) -> Tree:
    """`tree` with copies of those leaves of another one that lie at the same path and are alike."""
    known = dict(zip(_layout.paths(other), jax.tree.leaves(other), strict=True))
    leaves = []
    for path, x in zip(_layout.paths(tree), jax.tree.leaves(tree), strict=True):
        y = known.get(path, x)
        leaves.append(_copy(y) if y.shape == x.shape and y.dtype == x.dtype else x)
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def leaf_paths(state: object) -> list[str]:
    """The paths of the predicted leaves, in the order of `accepted_share_per_leaf`.

    Args:
      state: a `History`, the state of `pdt`, or a tree around either.

    Raises:
      ValueError: if `state` does not hold exactly one history.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> params = {"embed": jnp.ones((2, 2)), "out": {"kernel": jnp.ones(2)}, "step": jnp.array(0)}
      >>> predictor = pdt_optax.Predictor(exclude=lambda path: "embed" in path)
      >>> pdt_optax.leaf_paths(predictor.init(params))
      ['out/kernel']
    """
    return _layout.leaf_names(find(state, History).snapshots[-1])
