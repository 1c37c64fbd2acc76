"""Situations from users' reports of wrappers, checkpoints, masks, guards and mixed precision: each does what it says or says what to do."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import pdt_optax
from experiments.data import datasets

PARAMS = {"a": jnp.ones((2, 3)), "b": jnp.zeros(3)}


def short(error: pytest.ExceptionInfo[Exception]) -> str:
    """The message, of at most ten lines of text and without the values of arrays."""
    message = str(error.value)
    assert len(message) < 800
    assert message.count("\n") < 10
    return message


def test_a_whole_train_state_is_no_tree_of_parameters() -> None:
    tx = pdt_optax.pdt(optax.sgd(0.1))
    state: Any = TrainState.create(apply_fn=lambda: None, params=PARAMS, tx=tx)
    calls: Any = (
        lambda: tx.end_epoch(state),
        lambda: tx.end_epoch(state, state.opt_state),
        lambda: tx.end_epoch(state.params, state),
        lambda: pdt_optax.Predictor().end_epoch(state, pdt_optax.Predictor().init(PARAMS)),
    )
    for call in calls:
        with pytest.raises(
            TypeError, match=r"state = state\.replace\(params=params, opt_state=opt_state\)"
        ) as e:
            call()
        short(e)


def test_a_mask_function_of_the_parameters_is_no_function_of_a_path() -> None:
    def mask(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim < 2, params)

    with pytest.raises(ValueError, match=r"takes the path of a leaf.*exclude=mask\(params\)") as e:
        pdt_optax.pdt(optax.sgd(0.1), exclude=mask).init(PARAMS)
    short(e)
    state = pdt_optax.pdt(optax.sgd(0.1), exclude=mask(PARAMS)).init(PARAMS)
    assert pdt_optax.leaf_paths(state) == ["a"]


def test_parameters_that_were_donated_are_named() -> None:
    tx = pdt_optax.pdt(optax.sgd(0.1))
    params = jax.tree.map(jnp.copy, PARAMS)
    state = tx.init(params)
    tx.end_epoch(params, state, donate=True)
    with pytest.raises(ValueError, match="'a' was donated: go on with what the call") as e:
        tx.end_epoch(params, state)
    short(e)


def test_a_whole_equinox_model_holds_functions() -> None:
    model: Any = eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"'activation' is none.*eqx\.filter\(model, eqx\.is_array\)") as e:
        pdt_optax.Predictor().init(model)
    short(e)


@pytest.mark.parametrize("preset", ["drift", "released", "recommended"])
def test_one_float16_leaf_bounds_itself_alone(preset: str) -> None:
    """The others' total norm is past 32,752, half of what float16 can hold."""
    predictor = pdt_optax.Predictor(**pdt_optax.presets.named(preset))
    params = {"wide": jnp.full(70_000, 200.0), "narrow": jnp.ones(3, jnp.float16)}
    assert np.linalg.norm(params["wide"]) > 32_752
    history, reports = predictor.init(params), []
    for _ in range(7):
        params = jax.tree.map(lambda x: (x * 0.99).astype(x.dtype), params)
        params, history, report = predictor.end_epoch(params, history)
        reports.append(report)
    assert reports[5].predicted
    assert all(r.finite for r in reports)


CONFIGURATIONS: dict[str, Any] = {
    "default": {},
    "jump": {"deliver": "jump"},
    "every": {"every": 1},
    "guard": {"guard": pdt_optax.rollback()},
    "adaptive": {"schedule": pdt_optax.adaptive()},
    "paper": pdt_optax.presets.paper,
    "released": pdt_optax.presets.released,
    "drift": pdt_optax.presets.drift,
    "bfloat16": {**pdt_optax.presets.drift, "snapshot_dtype": "bfloat16"},
    "shrink": {"dynamics": pdt_optax.drift(), "accept": pdt_optax.shrink()},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_strict_promotion_is_for_the_users_own_code(name: str) -> None:
    """`jax_numpy_rank_promotion="raise"` and `jax_numpy_dtype_promotion="strict"`, where optax's own sgd passes."""
    tx = pdt_optax.pdt(optax.sgd(0.1), **CONFIGURATIONS[name])
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        params: Any = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
        state: Any = tx.init(params)
        update, value, report = jax.jit(tx.update), jnp.float32(1), None
        for _ in range(8):
            grads = jax.tree.map(lambda x: x * 0.5, params)
            updates, state = update(grads, state, params, value=value)
            params = optax.apply_updates(params, updates)
            if name != "every":
                params, state, report = tx.end_epoch(params, state)
            else:
                report = state.last_report
    assert report is not None
    assert report.finite
    assert int(state.history.clock.predictions_made) > 0


def test_a_rollback_brings_back_what_it_was_given_beside_the_optimizer() -> None:
    """One NaN batch after a jump would poison BatchNorm's running mean for good."""
    predictor = pdt_optax.Predictor(guard=pdt_optax.rollback())
    params: Any = jnp.array([4.0, -3.0])
    stats: Any = {"mean": jnp.zeros(2)}
    opt_state, report, before = optax.sgd(0.1).init(params), None, None
    history = predictor.init(params, (opt_state, stats))
    for epoch in range(7):
        broken = epoch == 6
        stats = {"mean": 0.9 * stats["mean"] + (jnp.nan if broken else 0.1)}
        value = jnp.nan if broken else jnp.sum(params**2)
        params, history, report = predictor.end_epoch(
            0.9 * params, history, opt_state=(opt_state, stats), value=value
        )
        before, kept = stats, history.opt_state
        assert isinstance(kept, tuple)
        opt_state, stats = kept
    assert report is not None
    assert report.rolled_back
    assert before is not None
    assert np.isnan(before["mean"]).all()
    np.testing.assert_allclose(stats["mean"], 1 - 0.9**6, rtol=1e-5)


def test_a_data_folder_that_is_named_is_used_or_refused(tmp_path: Any) -> None:
    """Without the data in it, another place would train something else than was asked for."""
    with pytest.raises(datasets.DataUnavailableError, match=f"looked in {tmp_path}"):
        datasets.load("fashion_mnist", tmp_path)
