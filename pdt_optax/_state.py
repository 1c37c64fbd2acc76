"""The state of the wrapper and the report of an epoch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdt_optax.schedule import Pace

# Of what a `PDTState` holds and means; it grows when a saved one could be misread.
VERSION = 1


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
      singular_values, eigenvalues: (window - 1,); NaN without a prediction, and
        where the model does not need them: `drift` has no singular values, and
        one eigenvalue, 1.
      rank: (), int32; 0 without a prediction.
      mean_value: (), float32; the epoch's `value` (its loss), NaN if none came.
      rolled_back: (), bool; the guard took the last jump back, and this epoch with it.
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
    rolled_back: jax.Array


class Backup(NamedTuple):
    """What the guard brings back when a jump has failed.

    Attributes:
      armed: (), bool; whether the last epoch's end made a jump, still to be judged.
      weights_before: the optimizer's own weights at that jump, a tree like the
        parameters with a `MaskedNode` for each leaf that is not floating point.
      optimizer_before: the wrapped optimizer's state at that jump.
    """

    armed: jax.Array
    weights_before: optax.Params
    optimizer_before: Any


class PDTState(NamedTuple):
    """State of `pdt`.

    Attributes:
      inner_state: of the wrapped optimizer.
      snapshots: `window` trees like the parameters, oldest to newest, with a
        `MaskedNode` for each leaf that is never predicted. Until `window` were
        taken, the oldest repeat the initial weights.
      snapshots_held: (), int32; of them, those that were taken; a prediction
        waits until all were.
      snapshots_seen: (), int32; taken so far, the one at `init` included; epochs
        that the guard took back do not count. The epoch's number, from 0, is one less.
      plain_epochs: (), int32; epochs since the last prediction.
      predictions_made: (), int32.
      updates_seen: (), int32; calls of `update` since the last epoch's end.
      value_sum, values_seen: (), float32 and int32; of the `value`s passed to
        `update` since the last epoch's end.
      pace: the schedule's numbers.
      backup: what the guard would bring back, None without one.
      last_report: the last epoch's `PDTReport` with `every`, else None.
      version: (), int32; `VERSION` of the library that made the state.
    """

    inner_state: optax.OptState
    snapshots: tuple[optax.Params, ...]
    snapshots_held: jax.Array
    snapshots_seen: jax.Array
    plain_epochs: jax.Array
    predictions_made: jax.Array
    updates_seen: jax.Array
    value_sum: jax.Array
    values_seen: jax.Array
    pace: Pace
    backup: Backup | None
    last_report: PDTReport | None
    version: jax.Array


def no_report(window: int, leaves: int, value: jax.typing.ArrayLike = jnp.nan) -> PDTReport:
    """The report of an epoch without a prediction."""
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
        rolled_back=jnp.array(False),
    )


def is_state(x: Any) -> bool:
    return isinstance(x, PDTState)


def find_states(opt_state: optax.OptState) -> list[PDTState]:
    return [x for x in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(x)]


def find_state(opt_state: optax.OptState) -> PDTState:
    found = find_states(opt_state)
    if len(found) != 1:
        raise ValueError(
            "`opt_state` must hold the state of exactly one `pdt` wrapper, as `init` returned it. "
            f"Found {len(found)} in {type(opt_state).__name__}."
        )
    return found[0]


class Detached(NamedTuple):
    """What `detach` took out of a state."""

    snapshots: tuple[optax.Params, ...]
    backup: Backup | None


def detach(opt_state: optax.OptState) -> tuple[Any, Detached]:
    """Takes the snapshots, and the guard's backup, out of a state: training steps do not need them.

    jax hands each array of a state to every jitted step, in 2 us or so: next to
    nothing on an accelerator, which is asked ahead of time, or in long steps, but
    a tenth of a step of a few ms on a CPU. Detach them after `end_epoch`, and
    `attach` them before the next.

    Args:
      opt_state: the state of a `pdt` without `every`, or of a transformation around it.

    Returns:
      The state without them, for `update`, and what was taken out.

    Raises:
      ValueError: if `opt_state` does not hold exactly one state of `pdt`, if
        its steps need the snapshots (`every`), or if they are out already.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> tx = pdt_optax.pdt(optax.sgd(0.1))
      >>> params = {"w": jnp.ones(3)}
      >>> opt_state, detached = pdt_optax.detach(tx.init(params))
      >>> for step in range(10):
      ...     updates, opt_state = tx.update({"w": jnp.ones(3)}, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> opt_state = pdt_optax.attach(opt_state, detached)
      >>> params, opt_state, report = tx.end_epoch(params, opt_state)
    """
    state = find_state(opt_state)
    if state.last_report is not None:
        raise ValueError(
            "`detach` is not for a wrapper that ends its epochs inside `update` (`every`): its steps need the "
            "snapshots. Got a state with a report."
        )
    if not state.snapshots:
        raise ValueError("The snapshots are detached already. Got a state with 0 snapshots.")
    lean = state._replace(snapshots=(), backup=None)
    return with_state(opt_state, lean), Detached(state.snapshots, state.backup)


def attach(opt_state: optax.OptState, detached: Detached) -> Any:
    """Puts back what `detach` took out. See `detach`.

    Raises:
      ValueError: if `opt_state` does not hold exactly one state of `pdt`, or
        its snapshots are in place.
    """
    state = find_state(opt_state)
    if state.snapshots:
        raise ValueError(
            "Nothing is detached from this state: `attach` would overwrite its own snapshots. "
            f"Got a state with {len(state.snapshots)} snapshots."
        )
    return with_state(opt_state, state._replace(**detached._asdict()))


def with_state(opt_state: optax.OptState, state: PDTState) -> Any:
    return jax.tree.map(lambda x: state if is_state(x) else x, opt_state, is_leaf=is_state)
