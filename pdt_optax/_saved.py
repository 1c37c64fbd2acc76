"""Taking up a saved state: whether it fits its wrapper, and another window for it."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from pdt_optax._predict import count
from pdt_optax._state import VERSION, PDTState, find_state, no_report, with_state


def find_saved(saved: Any) -> Mapping[str, Any]:
    """The fields of the one state of `pdt` in what may have turned NamedTuples into dicts, as Orbax does.

    Raises:
      ValueError: if there is none, or more than one.
    """
    found = list(_saved_states(getattr(saved, "tree", saved)))
    if len(found) != 1:
        raise ValueError(
            "`saved` must hold exactly one state of `pdt`: that of a run without it is taken up by "
            f"tx.init(params)._replace(inner_state=saved). Found {len(found)} in {type(saved).__name__}."
        )
    return found[0]


def _saved_states(tree: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(tree, PDTState):
        yield tree._asdict()
    elif isinstance(tree, Mapping) and set(PDTState._fields) <= set(tree):
        yield tree
    elif isinstance(tree, Mapping | list | tuple):
        for part in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _saved_states(part)


def check_form(saved: Mapping[str, Any], *, window: int, every: bool, guard: bool) -> None:
    """Raises ValueError if the fields of a state are not those of a wrapper with these settings."""
    held = len(saved["snapshots"])
    if held == 0:
        raise ValueError(
            "The snapshots must be back in the state at an epoch's end, or to be saved: "
            "pdt_optax.attach(opt_state, detached). Got a state with 0 snapshots."
        )
    if held != window:
        raise ValueError(
            "The state must hold as many snapshots as its wrapper's `window`: give it another window by "
            f"pdt_optax.resize_window(opt_state, {window}), or make the wrapper with window={held}. "
            f"Got {held} snapshots, {window=}."
        )

    def describe(every: bool, guard: bool) -> str:
        return f"{'a' if every else 'no'} report, {'a' if guard else 'no'} backup"

    expected = describe(every, guard)
    got = describe(saved["last_report"] is not None, saved["backup"] is not None)
    if got != expected:
        raise ValueError(
            "The state must come from the `init` of a wrapper like this one: with a report only where "
            f"`every` is set, a backup only where `guard` is. Expected {expected}; got {got}."
        )


def check_version(version: Any) -> bool:
    """Whether `version` is there to be read, in a restored state; ValueError if it is another than ours."""
    if isinstance(version, Tracer) or not isinstance(version, jax.Array | np.ndarray | np.generic):
        return False
    if np.any(np.asarray(version) != VERSION):
        raise ValueError(
            "The state must be of the version that this pdt_optax reads: restore it with the pdt_optax that saved "
            "it, or go on without its snapshots: tx.init(params)._replace(inner_state=saved.inner_state). "
            f"Expected version {VERSION}, got {np.asarray(version)}."
        )
    return True


def resize_window(opt_state: optax.OptState, window: int) -> Any:
    """The state with a window of another length: for a changed `window`, when a run is resumed.

    A shorter window keeps the newest snapshots. A longer one predicts again once
    as many snapshots were taken as it holds; until then copies of the oldest fill it.

    Also takes the shapes of a state, so that a checkpoint with another window
    can be restored: see the example.

    Args:
      opt_state: the state of `pdt`, or of a transformation around it; its
        leaves may be `jax.ShapeDtypeStruct`s.
      window: snapshots that it shall hold, >= 2.

    Returns:
      `opt_state` with that window, in buffers of its own.

    Raises:
      ValueError: if `window` is too small, or `opt_state` does not hold exactly
        one state of `pdt` with its snapshots in place.

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
    window = count("window", window, 2, "a difference takes two snapshots")
    state = find_state(opt_state)
    held = len(state.snapshots)
    if held == 0:
        raise ValueError(
            "The snapshots must be in the state to be resized: pdt_optax.attach(opt_state, detached). "
            "Got a state with 0 snapshots."
        )
    older = tuple(jax.tree.map(_copy, state.snapshots[0]) for _ in range(window - held))
    snapshots_held, report = state.snapshots_held, state.last_report
    if not isinstance(snapshots_held, jax.ShapeDtypeStruct):
        snapshots_held = jnp.minimum(snapshots_held, window)
    if report is not None:
        leaves = len(report.accepted_share_per_leaf)
        blank: Any = no_report(window, leaves)
        if isinstance(report.rank, jax.ShapeDtypeStruct):
            blank = jax.eval_shape(lambda: no_report(window, leaves))
        report = report._replace(singular_values=blank.singular_values, eigenvalues=blank.eigenvalues)
    resized = state._replace(
        snapshots=(*older, *state.snapshots[-window:]), snapshots_held=snapshots_held, last_report=report
    )
    return with_state(opt_state, resized)


def _copy(x: Any) -> Any:
    return (
        x
        if isinstance(x, jax.ShapeDtypeStruct)
        else jax.device_put(x, getattr(x, "sharding", None), may_alias=False)
    )
