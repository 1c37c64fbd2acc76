"""Resuming from an Orbax checkpoint at any epoch goes on to the last bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import pdt_optax
from tests.test_wrapper import make_params, step

SETTINGS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "guarded": {"guard": pdt_optax.rollback(), "schedule": pdt_optax.adaptive()},
    "bfloat16": {"snapshot_dtype": "bfloat16"},
    "every": {"every": 1},
}


def epochs(tx: Any, params: Any, state: Any, numbers: range) -> Any:
    """The weights, state and report after each of these epochs; the one after the first jump looks bad."""
    for i in numbers:
        params, state = step(tx, params, state, i)
        if isinstance(state.last_report, pdt_optax.PDTReport):
            report = state.last_report
        else:
            params, state, report = tx.end_epoch(params, state, value=100.0 if i == 4 else 1.0)
        yield params, state, report


@pytest.mark.parametrize("name", SETTINGS)
def test_resuming_is_bit_identical(name: str, tmp_path: Any) -> None:
    tx = pdt_optax.pdt(optax.adam(0.05), window=3, start=3, horizon=2, **SETTINGS[name])
    initial: Any = make_params()
    whole = list(epochs(tx, initial, tx.init(initial), range(8)))
    jumps = [bool(report.predicted) for *_, report in whole]
    assert sum(jumps) >= 2
    with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions()) as manager:
        for i, (params, state, _) in enumerate(whole):
            manager.save(i, args=ocp.args.StandardSave({"params": params, "opt_state": state}))
        manager.wait_until_finished()
        like = jax.eval_shape(lambda: {"params": initial, "opt_state": tx.init(initial)})
        for i in range(7):  # in the middle of a window, right before and right after a jump
            saved = manager.restore(i, args=ocp.args.StandardRestore(like))
            resumed = list(epochs(tx, saved["params"], saved["opt_state"], range(i + 1, 8)))
            assert jax.tree.structure(resumed) == jax.tree.structure(whole[i + 1 :])
            jax.tree.map(np.testing.assert_array_equal, resumed, whole[i + 1 :])


def test_pdt_is_added_to_and_removed_from_a_checkpoint_in_one_line() -> None:
    inner = optax.adam(0.05)
    tx = pdt_optax.pdt(inner, window=2, start=2)
    params: Any = make_params()
    trained_without: Any = inner.init(params)
    for i in range(3):
        params, trained_without = step(inner, params, trained_without, i)
    added: Any = tx.init(params)
    added = added._replace(inner_state=trained_without)
    via_pdt, after = step(tx, params, added, 3)
    alone, expected = step(inner, params, trained_without, 3)
    jax.tree.map(np.testing.assert_array_equal, via_pdt, alone)
    jax.tree.map(np.testing.assert_array_equal, after.inner_state, expected)  # and so it is removed again
    jax.tree.map(np.testing.assert_array_equal, added.snapshots[-1], jax.tree.map(jnp.asarray, params))
