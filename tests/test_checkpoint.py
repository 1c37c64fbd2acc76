"""Resuming from an Orbax checkpoint at any epoch goes on to the last bit."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import pdt_optax
from tests.states import WINDOWED, windowed, with_clock
from tests.test_wrapper import make_params, step

SMALL: dict[str, Any] = {**WINDOWED, "window": 3, "start": 3, "horizon": 2}
GUARDED: dict[str, Any] = {"guard": pdt_optax.rollback(), "schedule": pdt_optax.adaptive()}
SETTINGS: dict[str, dict[str, Any]] = {
    "windowed": SMALL,
    "windowed, guarded": {**SMALL, **GUARDED},
    "windowed, bfloat16": {**SMALL, "snapshot_dtype": "bfloat16"},
    "windowed, every": {**SMALL, "every": 1},
    "own motion": {"dynamics": pdt_optax.drift(), "window": 3, "start": 3},
    "default": {"start": 3},
    "default, guarded": {"start": 3, **GUARDED},
    "default, jump, every": {"start": 3, "deliver": "jump", "every": 1},
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
    tx = pdt_optax.pdt(optax.adam(0.05), **SETTINGS[name])
    initial: Any = make_params()
    whole = list(epochs(tx, initial, tx.init(initial), range(8)))
    jumps = [bool(report.predicted) for *_, report in whole]
    assert sum(jumps) >= 2
    with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions()) as manager:
        moments = (1, 2, 3)  # in the middle of the first window, right before and right after a jump
        assert jumps[3]
        for i in moments:
            params, state, _ = whole[i]
            manager.save(i, args=ocp.args.StandardSave({"params": params, "opt_state": state}))
        manager.wait_until_finished()
        like = jax.eval_shape(lambda: {"params": initial, "opt_state": tx.init(initial)})
        for i in moments:
            saved = manager.restore(i, args=ocp.args.StandardRestore(like))
            resumed = list(epochs(tx, saved["params"], saved["opt_state"], range(i + 1, 8)))
            chex.assert_trees_all_equal(resumed, whole[i + 1 :])


@pytest.mark.parametrize("settings", [{**WINDOWED, "window": 2}, {}], ids=["windowed", "default"])
def test_pdt_is_added_to_and_removed_from_a_checkpoint_in_one_line(settings: Any) -> None:
    inner = optax.adam(0.05)
    tx = pdt_optax.pdt(inner, **settings)
    params: Any = make_params()
    trained_without: Any = inner.init(params)
    for i in range(3):
        params, trained_without = step(inner, params, trained_without, i)
    added: Any = tx.init(params)
    added = added._replace(inner_state=trained_without)
    via_pdt, after = step(tx, params, added, 3)
    alone, expected = step(inner, params, trained_without, 3)
    chex.assert_trees_all_equal(via_pdt, alone)
    chex.assert_trees_all_equal(after.inner_state, expected)  # and so it is removed again
    chex.assert_trees_all_equal(added.history.snapshots[-1], jax.tree.map(jnp.asarray, params))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [(SMALL, [False, False, True, False, True, False]), ({}, [True] * 6)],
    ids=["windowed", "default"],
)
def test_a_run_that_takes_up_pdt_late_knows_its_epoch(settings: Any, expected: list[bool]) -> None:
    """With `snapshots_seen` set to the epochs that were trained, a prediction waits for the window alone."""
    tx = pdt_optax.pdt(optax.adam(0.05), **settings)
    params: Any = make_params()
    state: Any = tx.init(params)
    state = with_clock(state, snapshots_seen=jnp.int32(21))
    predicted = [bool(report.predicted) for *_, report in epochs(tx, params, state, range(20, 26))]
    assert predicted == expected


KINDS: dict[str, dict[str, Any]] = {
    "whole": {},
    "guarded": {"guard": pdt_optax.rollback()},
    "bfloat16": {"snapshot_dtype": "bfloat16"},
    "host": {"snapshot_device": "host"},
    "every": {"every": 1},
}


LONGER, SHORTER = (3, 5), (5, 3)


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        pytest.param("whole", SHORTER, id="whole, shorter"),
        pytest.param("bfloat16", LONGER, id="bfloat16, longer"),
        pytest.param("every", LONGER, id="every, longer"),
        pytest.param("guarded", SHORTER, id="guarded, shorter", marks=pytest.mark.slow),
        pytest.param("host", LONGER, id="host, longer", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_with_another_window(name: str, windows: tuple[int, int], tmp_path: Any) -> None:
    """Restored and resized, it predicts from what a window of that length would have held."""
    old, new = (
        windowed(optax.adam(0.05), window=w, start=start, horizon=2, **KINDS[name])
        for w, start in zip(windows, (20, windows[1]), strict=True)
    )
    initial: Any = make_params()
    first = range(7)  # no jump yet
    *_, (params, state, _) = list(epochs(old, initial, old.init(initial), first))
    with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions()) as manager:
        manager.save(0, args=ocp.args.StandardSave({"params": params, "opt_state": state}))
        manager.wait_until_finished()
        like = jax.eval_shape(lambda: {"params": initial, "opt_state": new.init(initial)})
        like["opt_state"] = pdt_optax.resize_window(like["opt_state"], windows[0])
        saved = manager.restore(0, args=ocp.args.StandardRestore(like))
    with pytest.raises(ValueError, match=rf"resize_window\(state, {windows[1]}\)"):
        pdt_optax.check_saved(new, saved)
    resized = pdt_optax.resize_window(saved["opt_state"], windows[1])
    assert jax.tree.structure(resized) == jax.tree.structure(new.init(initial))
    assert [x.shape for x in jax.tree.leaves(resized)] == [
        x.shape for x in jax.tree.leaves(new.init(initial))
    ]
    pdt_optax.check_saved(new, {"params": saved["params"], "opt_state": resized})

    then = list(epochs(new, saved["params"], resized, range(len(first), 12)))
    reports = [report for *_, report in then]
    epoch = next(i for i, report in enumerate(reports) if report.predicted)
    assert epoch == windows[1] - min(windows)  # as soon as it is full of snapshots that were taken
    always: Any = windowed(
        optax.adam(0.05), window=windows[1], start=len(first) + epoch, horizon=2, **KINDS[name]
    )
    *_, expected = epochs(always, initial, always.init(initial), range(len(first) + epoch + 1))
    np.testing.assert_array_equal(reports[epoch].accepted_share, expected[2].accepted_share)
    chex.assert_trees_all_equal(then[epoch][0], expected[0])


def test_a_resized_state_can_be_donated() -> None:
    params: Any = make_params()
    state = pdt_optax.resize_window(windowed(optax.adam(0.05), window=2).init(params), 5)
    jax.jit(lambda state: state, donate_argnums=0)(state)


def test_what_a_checkpoint_says_of_itself_is_checked_before_it_is_restored(tmp_path: Any) -> None:
    params: Any = make_params()
    inner = optax.adam(0.05)
    handler = ocp.StandardCheckpointHandler()
    default, jumping = pdt_optax.pdt(inner), pdt_optax.pdt(inner, deliver="jump")
    made = {0: windowed(inner, window=3), 1: default, 2: jumping}
    with ocp.CheckpointManager(tmp_path, item_handlers=handler) as manager:
        for i, tx in made.items():
            state = tx.init(params)
            manager.save(i, args=ocp.args.StandardSave({"params": params, "opt_state": (state, 1)}))
        manager.wait_until_finished()
        saved = {i: manager.item_metadata(i) for i in made}
    for i, tx in made.items():
        pdt_optax.check_saved(tx, saved[i])
    with pytest.raises(ValueError, match="Got 3 snapshots, window=5"):
        pdt_optax.check_saved(windowed(inner), saved[0])
    for tx, other in ((default, saved[0]), (made[0], saved[1])):
        with pytest.raises(ValueError, match="same kind of `dynamics`"):
            pdt_optax.check_saved(tx, other)
    for tx, other in ((default, saved[2]), (jumping, saved[1])):
        with pytest.raises(ValueError, match="`deliver` differs"):
            pdt_optax.check_saved(tx, other)
    pdt_optax.check_saved(pdt_optax.Predictor(), saved[2])
