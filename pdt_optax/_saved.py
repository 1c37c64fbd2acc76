"""A state at hand: what its snapshots are, whether a saved one can be taken up, another window for it."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pdt_optax import _history, _layout
from pdt_optax._history import History, find, replaced
from pdt_optax._layout import Tree
from pdt_optax._predictor import Predictor
from pdt_optax._report import PDTReport
from pdt_optax._transformation import PDT, wrapper_of
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
      TypeError: if `made` is neither.
      ValueError: if `saved` does not hold exactly one history of snapshots, if its
        window, its guard or its way to end epochs is another, or if another version
        of this library saved it.

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
      TypeError: if `made` is neither.
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
        def blank(x: jax.Array) -> Any:
            nan = jax.ShapeDtypeStruct((max(window - 1, 1),), x.dtype)
            return nan if isinstance(x, jax.ShapeDtypeStruct) else jnp.full(nan.shape, jnp.nan, nan.dtype)

        values, eigenvalues = map(blank, (report.singular_values, report.eigenvalues))
        return report._replace(singular_values=values, eigenvalues=eigenvalues)

    return replaced(replaced(state, History, resized), PDTReport, spectra)


def _copy(x: jax.Array) -> jax.Array:
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    return jax.device_put(x, getattr(x, "sharding", None), may_alias=False)


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
