"""The window of a running training, to look at."""

import functools
from typing import Any

import jax
import optax

from pdt_optax import _leaves
from pdt_optax._pdt import PDT, wrapper_of
from pdt_optax._state import find_state
from pdt_optax._storage import Storage, Window


def snapshots(pdt_tx: PDT, opt_state: optax.OptState) -> tuple[Any, ...]:
    """The window's snapshots as whole weights on the device, however the state keeps them.

    For `predict_and_mask` and `pdt_optax.plot`. Right after an epoch's end the
    newest of them is the parameters.

    Args:
      pdt_tx: what `pdt(...)` returned.
      opt_state: the state of `pdt_tx` or of a transformation around it.

    Returns:
      `window` trees like the parameters, oldest to newest, with a `MaskedNode`
      for each leaf that is never predicted. With `snapshot_dtype` the older ones
      are exact to the rounding of the differences in between.

    Raises:
      TypeError: if `pdt_tx` is not what `pdt` returned.
      ValueError: if `opt_state` does not hold exactly one state of it, or its snapshots are detached.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> tx = pdt_optax.pdt(optax.sgd(0.1), window=3, snapshot_dtype="bfloat16")
      >>> params = jnp.ones(1)
      >>> opt_state = tx.init(params)
      >>> for epoch in range(2):
      ...     params, opt_state, report = tx.end_epoch(0.5 * params, opt_state)
      >>> [float(w[0]) for w in pdt_optax.snapshots(tx, opt_state)]
      [1.0, 0.5, 0.25]
    """
    state = find_state(opt_state)
    if not state.snapshots:
        raise ValueError(
            "The snapshots are not in this state: pdt_optax.attach(opt_state, detached). Got 0 snapshots."
        )
    newest = state.snapshots[-1]
    window = tuple(_leaves.predicted(newest, tree) for tree in state.snapshots)
    whole = _whole(window, wrapper_of(pdt_tx).settings.storage)
    return tuple(_leaves.replace(newest, newest, column) for column in whole)


@functools.partial(jax.jit, static_argnames="storage")
def _whole(window: Window, storage: Storage) -> Window:
    return storage.whole(storage.at_hand(window))
