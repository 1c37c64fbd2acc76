"""Situations from users' reports of wrappers, checkpoints, masks, guards and mixed precision: each does what it says or says what to do."""

import dataclasses
import functools
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import pdt_optax
from experiments.data import datasets
from pdt_optax._settings import _text


def pdt(inner: Any, **settings: Any) -> Any:
    return pdt_optax.pdt(inner, **settings)


PARAMS: Any = {"a": jnp.ones((2, 3)), "b": jnp.zeros(3)}


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
    with pytest.raises(TypeError, match=r"'activation' is not one.*eqx\.filter\(model, eqx\.is_array\)") as e:
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
        datasets.load("fashion_mnist", datasets.Where(tmp_path))


# Settings that differ from those a state was made with.


def test_an_exclusion_that_is_new_or_gone_is_told_and_taken_up() -> None:
    def embed(path: str) -> bool:
        return "a" in path

    def trained(params: Any) -> Any:
        return jax.tree.map(lambda x: x * 0.9 + 0.01, params)

    first, later = pdt(optax.sgd(0.1)), pdt(optax.sgd(0.1), exclude=embed)
    params, state = PARAMS, first.init(PARAMS)
    for _ in range(6):
        params, state, _ = first.end_epoch(trained(params), state)
    with pytest.raises(ValueError, match=r"Excluded only now \(1 of 2 leaves\): 'a'.*") as e:
        later.end_epoch(params, state)
    assert "state = pdt_optax.adopt(made, state, params)" in short(e)
    adopted = pdt_optax.adopt(later, state, params)
    assert pdt_optax.leaf_paths(adopted) == ["b"]
    np.testing.assert_array_equal(adopted.history.motion.mean["b"], state.history.motion.mean["b"])
    before = trained(params)
    now, after, report = later.end_epoch(before, adopted)
    assert report.predicted
    delivered = after.history.delivery.displacement
    assert isinstance(delivered["a"], optax.MaskedNode)
    np.testing.assert_array_equal(now["a"], before["a"])
    with pytest.raises(ValueError, match=r"Predicted only now \(1 of 2 leaves\): 'a'"):
        first.end_epoch(params, after)
    assert pdt_optax.leaf_paths(pdt_optax.adopt(first, after, now)) == ["a", "b"]


@pytest.mark.parametrize("guard", [None, pdt_optax.rollback(10)])
def test_a_new_interval_and_horizon_act_from_the_next_end_of_an_epoch(guard: Any) -> None:
    usual = {**pdt_optax.presets.drift, "window": 2, "start": 2, "guard": guard}
    old = pdt_optax.Predictor(**usual)
    new = pdt_optax.Predictor(**{**usual, "horizon": 4, "interval": 0})
    params, opt = jnp.array([8.0, 4.0]), None if guard is None else optax.sgd(0.1).init(jnp.ones(2))
    history, reports = old.init(params, opt), []
    for epoch in range(7):
        made = old if epoch < 4 else new
        params, history, report = made.end_epoch(params * 0.99, history, opt_state=opt, value=jnp.float32(1))
        reports.append((bool(report.predicted), int(report.horizon)))
    far = int(old.schedule.horizon)
    assert reports == [(False, 0)] * 2 + [(True, far), (False, 0)] + [(True, 4)] * 3


def test_a_saved_state_of_other_settings_is_named() -> None:
    saved = pdt_optax.Predictor().init(PARAMS)
    made = pdt_optax.Predictor(
        dynamics=pdt_optax.slow_drift(memory=0.2), start=7, schedule=pdt_optax.fixed(interval=3)
    )
    pdt_optax.check_saved(pdt_optax.Predictor(dry_run=True), saved)  # changes nothing that is kept
    with pytest.raises(ValueError, match="another dynamics, schedule; now") as e:
        pdt_optax.check_saved(made, saved)
    assert "state = pdt_optax.adopt(made, state, params)" in str(e.value)
    pdt_optax.check_saved(made, pdt_optax.adopt(made, saved, PARAMS))
    # Shapes alone, as a checkpoint's metadata has them, say nothing of numbers.
    pdt_optax.check_saved(made, jax.eval_shape(made.init, PARAMS))
    _, history, _ = made.end_epoch(PARAMS, saved)
    pdt_optax.check_saved(made, history)


def test_checksums_are_of_what_settings_mean_in_any_process() -> None:
    """No address, no random hash: these numbers are in checkpoints."""
    assert pdt_optax.Predictor().checksums == pdt_optax.Predictor(window=1, start=5).checksums
    drift = pdt_optax.Predictor(dynamics=pdt_optax.drift(), window=3)
    assert drift.checksums == (697417146, 1034065455, 138213108, 1875990520, 786919897)
    rule: Any = lambda *given: given[1] > 0  # noqa: E731
    assert pdt_optax.Predictor(accept=rule).checksums == pdt_optax.Predictor(accept=rule).checksums


@pytest.mark.parametrize("shorter", [True, False])
def test_another_kind_of_window_is_adopted(shorter: bool) -> None:
    """What a window of another length or storage cannot take over begins anew, and waits until it is full."""
    settings: Any = {**pdt_optax.presets.drift, "window": 5}
    other = {**settings, "window": 3} if shorter else {**settings, "snapshot_dtype": "bfloat16"}
    old, new = (pdt_optax.Predictor(**x) for x in (settings, other))
    params, history, report = jnp.array([8.0, 4.0]), old.init(jnp.array([8.0, 4.0])), None
    for _ in range(4):
        params, history, _ = old.end_epoch(params * 0.9, history)
    history, predicted = pdt_optax.adopt(new, history, params), []
    if shorter:
        kept = pdt_optax.snapshots(old, history)
        np.testing.assert_allclose(kept[0] / kept[1], 1 / 0.9, rtol=1e-6)
    for _ in range(5):
        params, history, report = new.end_epoch(params * 0.9, history)
        predicted.append(bool(report.predicted))
    assert (
        predicted
        == ([False, True] if shorter else [False] * 4 + [True])[: len(predicted)]
        + predicted[2 if shorter else 5 :]
    )


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_window_with_a_new_leaf_begins_anew(dtype: Any) -> None:
    """But for the newest snapshot of the leaves that it had, wherever the parameters are by now."""
    settings: Any = {**pdt_optax.presets.drift, "snapshot_dtype": dtype}
    old, new = (
        pdt_optax.Predictor(**settings, exclude=lambda path: path == "b"),
        pdt_optax.Predictor(**settings),
    )
    params: Any = {"a": jnp.array([8.0, 4.0]), "b": jnp.ones(2)}
    history = old.init(params)
    for _ in range(7):
        params, history, _ = old.end_epoch(jax.tree.map(lambda x: 0.9 * x, params), history)
    assert history.clock.snapshots_held == settings["window"]
    moved = jax.tree.map(lambda x: x + 1, params)
    taken: Any = pdt_optax.adopt(new, history, moved)
    assert taken.clock.snapshots_held == 1
    chex.assert_trees_all_equal(taken.snapshots[-1], {"a": params["a"], "b": moved["b"]})
    kept = pdt_optax.adopt(old, history, moved)
    assert kept.clock.snapshots_held == settings["window"]
    other = dataclasses.replace(old, snapshot_dtype=None if dtype else "bfloat16")
    assert pdt_optax.adopt(other, history, moved).clock.snapshots_held == 1


def test_all_that_both_settings_know_goes_on() -> None:
    """With another memory nothing of the state is lost; with another dynamics the mean of the motion begins anew."""
    old, new = pdt(optax.adam(0.1)), pdt(optax.adam(0.1), dynamics=pdt_optax.slow_drift(memory=0.5))
    params: Any = {"a": jnp.array([4.0, -3.0]), "b": jnp.array([2.0])}
    state: Any = old.init(params)
    for _ in range(9):
        for _ in range(2):
            updates, state = old.update(jax.tree.map(lambda x: 0.1 * x, params), state, params)
            params = optax.apply_updates(params, updates)
        params, state, _ = old.end_epoch(params, state)
    assert state.history.delivery.parts == 2
    assert state.history.motion.pull.weight > 0
    taken = pdt_optax.adopt(new, state, params)
    own = taken.history.clock.settings
    assert (own != state.history.clock.settings).sum() == 1
    same = taken.history.clock._replace(settings=state.history.clock.settings)
    chex.assert_trees_all_equal(taken._replace(history=taken.history._replace(clock=same)), state)

    windowed = pdt(optax.adam(0.1), **pdt_optax.presets.drift)
    with pytest.raises(ValueError, match="same kind of `dynamics`"):
        windowed.end_epoch(params, state._replace(history=state.history._replace(delivery=None)))
    taken = pdt_optax.adopt(windowed, state, params)
    assert taken.history.motion is taken.history.delivery is None
    chex.assert_trees_all_equal(taken.history.snapshots[-1], params)
    back = pdt_optax.adopt(new, taken, params)
    assert not any(x.any() for x in jax.tree.leaves((back.history.motion.mean, back.history.delivery)))


@pytest.mark.parametrize("horizon", [None, 2])
def test_the_pace_goes_on_under_the_same_schedule(horizon: int | None) -> None:
    """Which has looked further meanwhile; another one begins at its own."""
    schedule = pdt_optax.adaptive(horizon=1, longest_horizon=4)
    old, params = pdt_optax.Predictor(schedule=schedule, start=2), jnp.array([4.0, -3.0])
    history = old.init(params)
    for epoch in range(8):
        params, history, _ = old.end_epoch(0.9 * params, history, value=9.0 - epoch)
    assert history.clock.pace.horizon_now == 4
    new = pdt_optax.Predictor(
        schedule=schedule if horizon is None else pdt_optax.fixed(horizon=horizon), start=3
    )
    taken = pdt_optax.adopt(new, history, params)
    assert taken.clock.pace.horizon_now == (horizon or 4)
    np.testing.assert_array_equal(taken.clock.settings, new.checksums)


@pytest.mark.parametrize("settings", [{}, pdt_optax.presets.drift], ids=["default", "drift"])
def test_a_leaf_of_another_shape_or_type_begins_anew(settings: Any) -> None:
    made = pdt_optax.Predictor(**settings)
    held: Any = {"a": jnp.array([4.0, -3.0]), "b": jnp.ones(3), "c": jnp.ones(1)}
    history: Any = made.init(held)
    for _ in range(4):
        held, history, _ = made.end_epoch(jax.tree.map(lambda x: 0.9 * x, held), history)
    params = {"a": jnp.arange(4.0), "b": jnp.full(3, 2, jnp.bfloat16), "c": jnp.full(1, 5.0)}
    taken: Any = pdt_optax.adopt(made, history, params)
    chex.assert_trees_all_equal(taken.snapshots[-1], {**params, "c": held["c"]})
    chex.assert_trees_all_equal_shapes_and_dtypes(taken, made.init(params))
    assert taken.clock.snapshots_held == 1
    if taken.motion is not None:
        assert taken.motion.mean["c"] == history.motion.mean["c"] != 0
        assert not taken.motion.mean["a"].any()
    assert taken.clock.snapshots_seen == history.clock.snapshots_seen


def test_a_backup_is_adopted_with_its_guard() -> None:
    """Beside an optimizer, where the history alone has the optimizer's state."""
    old, new = (pdt_optax.Predictor(guard=pdt_optax.rollback(x)) for x in (0.0, 0.5))
    params, opt_state = jnp.array([4.0, -3.0]), optax.adam(0.1).init(jnp.ones(2))
    taken = pdt_optax.adopt(new, old.init(params, opt_state=opt_state), params)
    assert taken.backup is not None
    chex.assert_trees_all_equal(taken.backup.optimizer_before, opt_state)
    assert pdt_optax.adopt(pdt_optax.Predictor(), taken, params).backup is None


def test_a_guard_is_adopted() -> None:
    params = jnp.array([4.0, -3.0])
    plain, guarded = (
        pdt(optax.adam(0.1)),
        pdt(optax.adam(0.1), guard=pdt_optax.rollback()),
    )
    state: Any = plain.init(params)
    for _ in range(7):
        params, state, _ = plain.end_epoch(params * 0.9, state)
    state = pdt_optax.adopt(guarded, state, params)
    jumped, state, report = guarded.end_epoch(params * 0.9, state, value=1.0)
    assert report.predicted
    back, state, report = guarded.end_epoch(jumped * 0.9, state, value=9.0)
    assert report.rolled_back
    np.testing.assert_array_equal(back, params * 0.9)


# Weights that are somewhere else than they were left.


def test_weights_set_by_hand_are_no_motion_after_a_restart() -> None:
    tx = pdt(optax.sgd(0.1), start=2)
    params, leap = jnp.full(4, 5.0), jnp.array([0.0, 5.0, 5.0, 5.0])
    state: Any = tx.init(params)
    for epoch in range(10):
        for _ in range(2):
            updates, state = tx.update(jnp.full(4, 0.1), state, params)
            params = optax.apply_updates(params, updates)
        params, state, _ = tx.end_epoch(params, state)
        if epoch == 5:
            params = jnp.where(leap == 0, 0, params)
            state = pdt_optax.restart(tx, state, params)
    assert params[0] > -0.3  # the optimizer alone: -0.08


WRAPPERS: dict[str, Any] = {
    "lookahead": lambda tx: optax.lookahead(tx, 4, 0.5),
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, 0.1, b1=0.9),
    "halved": lambda tx: optax.chain(tx, optax.scale(0.5)),
    "halved, from below": lambda tx: optax.chain(tx, optax.scale(0.5)),
}


@pytest.mark.parametrize("deliver", ["auto", "jump"])
@pytest.mark.parametrize("name", ["alone", "projected", *WRAPPERS])
def test_every_sees_whether_its_weights_are_the_callers(name: str, deliver: Any) -> None:
    """Wrapped in what moves weights on its own, it predicts nothing and says so; the right order goes on."""
    inner = pdt(optax.sgd(0.02), every=4, deliver=deliver, start=2)
    tx: Any = WRAPPERS.get(name, lambda tx: tx)(inner)
    start = jnp.linspace(-2, -1, 32) if "below" in name else jnp.linspace(1, 2, 32)
    params: Any = optax.LookaheadParams.init_synced(start) if name == "lookahead" else start
    state, reports = tx.init(params), []
    for _ in range(24):
        fast = params.fast if name == "lookahead" else params
        updates, state = tx.update(2 * fast, state, params)
        params = optax.apply_updates(params, updates)
        if name == "projected":  # a few weights, by the caller
            params = jnp.minimum(params, 1.98)
        (found,) = [x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x)]
        if found.this_epoch.updates_seen == 0:
            reports.append(found.last_report)
    assert len(reports) == 6
    goes_on = name in ("alone", "projected")
    assert [bool(r.continued) for r in reports[1:]] == [goes_on] * 5
    assert any(r.predicted for r in reports) == goes_on


def is_state(x: Any) -> bool:
    return isinstance(x, pdt_optax.PDTState)


def test_every_sees_a_jump_that_a_mean_of_updates_spreads() -> None:
    tx = optax.chain(pdt(optax.sgd(0.02), every=4, deliver="jump", start=2), optax.ema(0.9))
    params: Any = jnp.ones(3)
    state: Any = tx.init(params)
    reports = []
    for _ in range(24):
        updates, state = tx.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
        if state[0].this_epoch.updates_seen == 0:
            reports.append(state[0].last_report)
    jumped, continued = (
        [bool(x) for x in of] for of in zip(*((r.predicted, r.continued) for r in reports), strict=True)
    )
    first = jumped.index(True)
    assert continued[: first + 2] == [True] * (first + 1) + [False]


def test_sam_around_every_steps_as_sam_does() -> None:
    opt, adv = (
        pdt(optax.sgd(0.1), every=2, start=1),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.01)),
    )
    tx = optax.contrib.sam(opt, adv, sync_period=2)
    params: Any = jnp.array([1.0, 2.0])
    state = tx.init(params)
    for _ in range(12):
        updates, state = tx.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
    assert np.isfinite(params).all()


# A guard with `every`: what is added must be such that it can be taken off.


@pytest.mark.parametrize(
    ("inner", "broken"),
    [
        (optax.sgd(0.1), jnp.nan),
        (optax.sgd(0.1), jnp.inf),
        (optax.sgd(0.1), 1e30),
        (optax.adam(0.1), jnp.nan),
    ],
)
def test_every_with_a_guard_takes_back_what_is_not_finite_or_huge(inner: Any, broken: float) -> None:
    """To the last bit, the optimizer's state with it, once the update after the rollback was added."""
    settings: Any = {**pdt_optax.presets.drift, "window": 2, "start": 2, "guard": pdt_optax.rollback()}
    tx = pdt(inner, every=2, **settings)
    params = jnp.array([1.0, 2.0])
    state: Any = tx.init(params)
    update = jax.jit(tx.update)

    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = update(gradient, state, params, value=jnp.sum(jnp.abs(params)))
        return optax.apply_updates(params, updates), state

    for _ in range(6):
        params, state = step(params, state, params)
    assert state.last_report.predicted
    before = state.history.backup
    params, state = step(params, state, params.at[0].set(broken))
    assert np.isfinite(params).all()
    params, state = step(params, state, params)
    assert state.last_report.rolled_back
    for x, y in zip(jax.tree.leaves(state.inner_state), before.optimizer_before, strict=True):
        np.testing.assert_array_equal(x, y)
    params, state = step(params, state, jnp.ones(2))
    np.testing.assert_array_equal(params, before.weights_before)
    np.testing.assert_array_equal(state.history.snapshots[-1], before.weights_before)
    params, state = step(params, state, params)
    assert state.last_report.continued
    assert not state.last_report.rolled_back
    assert np.abs(params - before.weights_before).max() < 0.5


# Bounds on the weights.


@pytest.mark.parametrize("deliver", ["gradual", "jump"])
@pytest.mark.parametrize("every", [None, 2])
def test_a_projection_keeps_what_is_predicted_within_bounds(deliver: Any, every: int | None) -> None:
    """A square root in the loss is NaN for good once a weight is negative."""
    bounded = optax.chain(optax.adam(0.1), optax.keep_params_nonnegative())
    keep = optax.projections.projection_non_negative
    lowest = {}
    for project in (None, keep):
        tx = pdt(bounded, every=every, deliver=deliver, start=3, project=project)
        params: Any = {"w": jnp.array([1.0, 0.6, 3.0]), "b": jnp.float32(1)}
        state, seen = tx.init(params), []
        for i in range(60):
            updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
            params = optax.apply_updates(params, updates)
            seen.append(min(params["w"].min(), params["b"]))
            if every is None and i % 2:
                params, state, _ = tx.end_epoch(params, state)
                seen.append(min(params["w"].min(), params["b"]))
        lowest[project] = min(map(float, seen))
    assert lowest[None] < 0
    assert lowest[keep] == 0


def test_a_projection_that_breaks_finite_weights_is_not_followed() -> None:
    def broken(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.sqrt(x - 1), tree)

    predictor: Any = pdt_optax.Predictor(project=broken)
    params, history, reports = jnp.array([0.5, 4.0]), predictor.init(jnp.array([0.5, 4.0])), []
    for _ in range(7):
        params = params * 0.95
        now, history, report = predictor.end_epoch(params, history)
        reports.append(report)
        np.testing.assert_array_equal(now, params)
    assert [bool(r.predicted) for r in reports] == [False] * 7
    assert [bool(r.finite) for r in reports] == [True] * 5 + [False] * 2
    assert (int(reports[-1].horizon), float(reports[-1].accepted_share)) == (0, 0)
    assert not reports[-1].accepted_share_per_leaf.any()


@pytest.mark.parametrize("deliver", ["gradual", "jump"])
@pytest.mark.parametrize("settings", [{}, pdt_optax.presets.drift], ids=["default", "drift"])
def test_a_dry_run_with_a_projection_moves_nothing(settings: Any, deliver: Any) -> None:
    keep = optax.projections.projection_non_negative
    tx = pdt(optax.sgd(0.1), **{**settings, "deliver": deliver, "dry_run": True, "project": keep})
    params: Any = jnp.array([2.0, 1.0])
    alone: Any = params
    predicted = False
    state = tx.init(params)
    for _ in range(9):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
        alone = optax.apply_updates(alone, -0.1 * alone)
        np.testing.assert_array_equal(params, alone)
        params, state, report = tx.end_epoch(params, state)
        predicted |= bool(report.predicted)
        np.testing.assert_array_equal(params, alone)
    assert predicted


@pytest.mark.parametrize("updates_per_epoch", [1, 3])
@pytest.mark.parametrize("settings", [{}, pdt_optax.presets.drift], ids=["default", "drift"])
def test_what_is_delivered_in_parts_moves_nothing_at_the_end_of_an_epoch(
    settings: Any, updates_per_epoch: int
) -> None:
    """And all of it by the end of the next, beside what the optimizer does."""
    tx = pdt(optax.sgd(0.1), **{**settings, "deliver": "gradual"})
    params: Any = jnp.array([2.0, 1.0])
    state: Any = tx.init(params)
    delivered, to_come = 0, np.zeros(2)
    for _ in range(9):
        before: Any = params
        own: Any = np.zeros(2)
        for _ in range(updates_per_epoch):
            updates, state = tx.update(params, state, params)
            own, params = own - 0.1 * params, optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, before + own + to_come, rtol=1e-6)
        ended, state, report = tx.end_epoch(params, state)
        np.testing.assert_array_equal(ended, params)
        to_come = np.asarray(state.history.delivery.displacement)
        assert to_come.any() == report.predicted
        delivered += bool(report.predicted)
    assert delivered >= 2


def test_what_a_projection_must_be() -> None:
    with pytest.raises(TypeError, match="`project` must be None or a function"):
        pdt_optax.Predictor(project=3)  # pyright: ignore[reportArgumentType]
    predictor: Any = pdt_optax.Predictor(project=lambda tree: jax.tree.map(lambda x: x[:1], tree))
    history = predictor.init(PARAMS)
    with pytest.raises(ValueError, match="`project` must return weights like those"):
        predictor.end_epoch(PARAMS, history)
    predictor = pdt_optax.Predictor(project=lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree))
    with pytest.raises(ValueError, match="the same tree, shapes and types"):
        predictor.end_epoch(PARAMS, predictor.init(PARAMS))
    tx = pdt(optax.sgd(0.1), project=optax.projections.projection_non_negative)
    with pytest.raises(ValueError, match="`update` needs `params` with `project`"):
        tx.update(PARAMS, tx.init(PARAMS))


# Optimizers that remember the loss.


def test_lbfgs_is_refused_unless_it_is_told_of_jumps() -> None:
    inner = optax.lbfgs()
    for deliver in ("auto", "jump"):
        with pytest.raises(
            ValueError, match=r"after_jump=pdt_optax\.forget_value.*ScaleByZoomLinesearchState"
        ) as e:
            pdt(inner, deliver=deliver).init(PARAMS)
        short(e)
    with pytest.raises(ValueError, match=r'`after_jump` must be .* deliver="jump"'):
        pdt(inner, deliver="gradual", after_jump=pdt_optax.forget_value)
    pdt(inner, dry_run=True).init(PARAMS)
    remembers_none = optax.adam(0.1).init(PARAMS)
    chex.assert_trees_all_equal(pdt_optax.forget_value(remembers_none), remembers_none)


@pytest.mark.parametrize("every", [None, 1])
def test_after_a_jump_lbfgs_computes_its_loss_anew(every: int | None) -> None:
    def loss(w: jax.Array) -> jax.Array:
        return jnp.sum((w - 1) ** 2) + 0.1 * jnp.sum(w**4)

    inner = optax.chain(
        optax.scale_by_learning_rate(0.02), optax.scale_by_backtracking_linesearch(5, store_grad=True)
    )
    tx = pdt(inner, every=every, start=2, deliver="jump", after_jump=pdt_optax.forget_value)
    params: Any = jnp.array([3.0, -2.0])
    state, jumps = tx.init(params), 0
    for _ in range(8):
        value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
        np.testing.assert_allclose(value, loss(params), rtol=1e-5)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        params = optax.apply_updates(params, updates)
        if every is None:
            params, state, report = tx.end_epoch(params, state)
        else:
            report = state.last_report
        jumps += bool(report.predicted)
    assert jumps >= 5


# Names, NaN, accumulation, derivatives.


def test_a_name_is_found_once_in_the_state_under_a_guard() -> None:
    inner = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    tx = pdt(inner, guard=pdt_optax.rollback())
    state = tx.init(PARAMS)
    assert optax.tree.get(state, "learning_rate") == jnp.float32(0.1)
    assert optax.tree.get(
        optax.tree.set(state, learning_rate=jnp.float32(0.2)), "learning_rate"
    ) == jnp.float32(0.2)
    assert optax.tree.get(state, "mu")["a"].shape == (2, 3)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_nothing_is_nan_where_jax_looks_for_it(name: str) -> None:
    """`jax_debug_nans` stops a program at the first NaN that any of its parts returns."""
    tx = pdt(optax.sgd(0.1), **CONFIGURATIONS[name])
    with jax.debug_nans(True):
        params: Any = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
        state: Any = tx.init(params)
        update, report = jax.jit(tx.update), None
        for _ in range(8):
            updates, state = update(
                jax.tree.map(lambda x: x * 0.5, params), state, params, value=jnp.float32(1)
            )
            params = optax.apply_updates(params, updates)
            if name == "every":
                report = state.last_report
            else:
                params, state, report = tx.end_epoch(params, state)
        assert report is not None
        assert not any(np.isnan(x).any() for x in jax.tree.leaves(jax.device_get(report)))
    assert int(state.history.clock.predictions_made) > 0


def test_values_of_micro_batches_are_averaged_where_pdt_is_outside() -> None:
    """The other way round only the last one would be seen: optax keeps nothing of the inner state until it emits."""
    values = [3.0, 9.0, 150.0, 0.0] * 2
    outside = pdt(optax.MultiSteps(optax.sgd(0.1), 4), every=8)
    nested = pdt(optax.sgd(0.1), every=2)
    inside = optax.MultiSteps(nested, 4)
    seen = []
    for tx, running in ((outside, False), (inside, False), (inside, True)):
        params: Any = jnp.ones(2)
        state: Any = tx.init(params)
        for i, value in enumerate(values):
            mean = np.mean(values[i - i % 4 : i + 1]) if running else value  # of the micro-batches so far
            updates, state = tx.update(params, state, params, value=jnp.float32(mean))
            params = optax.apply_updates(params, updates)
        (found,) = [x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x)]
        seen.append(float(found.last_report.mean_value))
    np.testing.assert_allclose(seen, [40.5, 0, 40.5])


def test_parameters_that_are_no_tree_of_arrays_of_one_device_are_told_shortly() -> None:
    tx = pdt(optax.sgd(0.1))
    state = tx.init({"w": jnp.ones(3)})
    for wrong in ({"w": jnp.ones((2, 3))}, {"v": jnp.ones(3)}, {"w": "text"}, object()):
        with pytest.raises((ValueError, TypeError)) as e:
            tx.end_epoch(wrong, state)
        short(e)
    members: Any = jax.vmap(tx.init)({"w": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match=r"holds 2 members.*jax\.vmap\(tx\.end_epoch\)"):
        tx.end_epoch({"w": jnp.ones((2, 3))}, members)


def test_statistics_and_keys_of_an_nnx_model_are_no_parameters() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.dense, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.drop = nnx.Dropout(0.1, rngs=rngs)

    model: Any = Model(nnx.Rngs(0))
    tx = pdt(optax.sgd(0.1))
    statistics, keys = nnx.state(model, nnx.BatchStat), nnx.state(model, nnx.RngState)
    for whole in (model, nnx.state(model), statistics, keys):
        with pytest.raises(TypeError, match=r"pass nnx\.state\(model, nnx\.Param\)") as e:
            tx.init(whole)
        short(e)
    state = tx.init(nnx.state(model, nnx.Param))
    with pytest.raises(TypeError, match=r"nnx\.state\(model, nnx\.Param\).*Got a whole Model") as e:
        tx.end_epoch(model, state)
    short(e)
    with pytest.raises(ValueError, match=r"Unknown.*nnx\.state\(model, nnx\.Param\)") as told:
        tx.end_epoch(nnx.state(model), state)
    short(told)
    with pytest.raises(ValueError, match="stacked for `pmap` or `vmap`") as told:
        tx.end_epoch(jax.tree.map(lambda x: jnp.stack([x, x]), nnx.state(model, nnx.Param)), state)
    short(told)


def test_hints_say_what_the_reports_say() -> None:
    predictor, recorder = pdt_optax.Predictor(guard=pdt_optax.rollback(), start=1), pdt_optax.Recorder()
    params: Any = jnp.ones(3)
    state = optax.sgd(0.1).init(params)
    history, report = predictor.init(params, state), None
    for epoch in range(5):
        params, history, report = predictor.end_epoch(
            params * (jnp.nan if epoch == 3 else 0.9), history, opt_state=history.opt_state, value=1.0
        )
        recorder.add(report, history)
    assert recorder.hints() == [
        "2 of 5 epochs predicted nothing, since the weights or the prediction were not finite."
    ]
    assert report is not None
    other = pdt_optax.Recorder()
    other.add(report._replace(delivered_share=jnp.float32(0.5), continued=jnp.array(False)), history)
    assert [hint[:30] for hint in other.hints()] == [
        "Nothing was predicted in 1 epo",
        "1 of 1 epochs predicted nothin",
        "1 of 1 epochs did not begin at",
        "1 of 1 epochs were shorter tha",
    ]


@pytest.mark.parametrize(
    ("mistake", "hints"),
    [
        (None, []),
        (
            "state not put back",
            ["Nothing was predicted in 5 epochs", "4 of 5 epochs had the number of the one before"],
        ),
        ("ended at each batch", ["5 of 5 epochs had a single update"]),
        (
            "ended twice",
            [
                "5 of 10 epochs had no update",
                "8 of 10 epochs were shorter than the one before, which dropped",
            ],
        ),
    ],
)
def test_hints_tell_of_epochs_that_are_ended_wrongly(mistake: str | None, hints: list[str]) -> None:
    tx, recorder = pdt_optax.pdt(optax.sgd(0.1), start=1), pdt_optax.Recorder()
    params: Any = jnp.ones(3)
    state: Any = tx.init(params)
    for _ in range(5):
        for _ in range(1 if mistake == "ended at each batch" else 3):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        for _ in range(2 if mistake == "ended twice" else 1):
            params, ended, report = tx.end_epoch(params, state)
            recorder.add(report, ended)
            state = state if mistake == "state not put back" else ended
    found = recorder.hints()
    assert len(found) == len(hints)
    assert all(a.startswith(b) for a, b in zip(found, hints, strict=True)), found


def test_epochs_are_numbered_and_one_taken_back_is_counted_again() -> None:
    tx, recorder = pdt(optax.sgd(0.1), start=1, guard=pdt_optax.rollback()), pdt_optax.Recorder()
    params: Any = jnp.ones(3)
    state: Any = tx.init(params)
    for value in (1.0, 0.9, 9.0, 0.8):
        for _ in range(2):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        params, state, report = tx.end_epoch(params, state, value=value)
        recorder.add(report, state)
    assert recorder.reports.rolled_back.tolist() == [False, False, True, False]
    assert recorder.reports.epoch.tolist() == [0, 1, 2, 2]
    assert recorder.reports.update_count.tolist() == [2, 2, 2, 2]
    assert recorder.hints() == []


def test_nnx_objects_in_place_of_their_parts() -> None:
    model: Any = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tx: Any = pdt_optax.pdt(optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    predictor, params = pdt_optax.Predictor(), nnx.state(model, nnx.Param)
    for call in (
        lambda: tx.end_epoch(model, optimizer.opt_state),
        lambda: predictor.end_epoch(model, predictor.init(params)),
    ):
        with pytest.raises(TypeError, match=r"nnx\.update\(model, params\).*Got a whole Linear") as e:
            call()
        short(e)
    with pytest.raises(TypeError, match=r"optimizer\.opt_state, report = .*Got a whole Optimizer") as e:
        tx.end_epoch(params, optimizer)
    short(e)
    # A model that `init` saw as it is comes back as it is.
    assert isinstance(predictor.end_epoch(model, predictor.init(model))[0], nnx.Linear)


def test_a_setting_that_there_is_not() -> None:
    with pytest.raises(TypeError, match=r"There is no setting 'evry'\. Did you mean 'every'\?"):
        pdt(optax.sgd(0.1), evry=3)
    with pytest.raises(TypeError, match=r"There is no setting 'x'\. There are every, "):
        pdt(optax.sgd(0.1), x=3)


def test_reverse_mode_ends_where_a_window_is_looked_at() -> None:
    """As the documentation of `end_epoch` says; within epochs everything is as it was."""
    predictor: Any = pdt_optax.Predictor(**pdt_optax.presets.drift)
    history = predictor.init(jnp.ones(2))
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(lambda w: jnp.sum(predictor.end_epoch(w, history)[0]))(jnp.ones(2))


class _Rule(pdt_optax.Rule):
    """Prints its address, as most objects do."""

    def __call__(self, increments: Any, step: Any, differences: Any, reference: Any, horizon: Any) -> Any:
        return step > 0


def _faster(limit: float, increments: Any, step: Any, differences: Any, reference: Any, horizon: Any) -> Any:
    return step > limit


def test_checksums_hold_no_addresses() -> None:
    """A rule that prints where it lies in memory would refuse every resumed run."""
    kinds: Any = (_Rule, lambda: functools.partial(_faster, 0.5))
    for rule in kinds:
        one, other = rule(), rule()
        assert one is not other
        assert pdt_optax.Predictor(accept=one).checksums == pdt_optax.Predictor(accept=other).checksums
    half, whole = (pdt_optax.Predictor(accept=functools.partial(_faster, x)) for x in (0.5, 1.0))
    assert half.checksums != whole.checksums
    assert _text(functools.partial(_faster, 0.5)) == f"{__name__}._faster(0.5,){{}}"
    assert _text(_Rule()) == f"{__name__}._Rule"
    assert _text(pdt_optax.rollback()) == "rollback(tolerance=0.25)"
    assert _text(_Follows(_faster)) == f"_Follows(of={__name__}._faster)"


@dataclasses.dataclass(frozen=True)
class _Follows:
    of: Any


def test_a_dry_run_tells_the_optimizer_of_no_jump() -> None:
    def broken(state: Any) -> Any:
        return jax.tree.map(lambda x: x + 100, state)

    for every in (None, 1):
        tx = pdt(optax.adam(0.1), every=every, start=1, dry_run=True, after_jump=broken)
        params, report = jnp.ones(2), None
        state: Any = tx.init(params)
        for _ in range(4):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
            if every is None:
                params, state, report = tx.end_epoch(params, state)
            else:
                report = state.last_report
        assert report is not None
        assert report.predicted
        assert optax.tree.get(state, "count") == 4


@pytest.mark.parametrize("every", [None, 2])
def test_the_optimizer_is_told_of_each_jump_and_of_nothing_else(every: int | None) -> None:
    def told(state: Any) -> Any:
        return optax.tree.set(state, count=optax.tree.get(state, "count") + 100)

    tx = pdt(optax.adam(0.1), every=every, start=3, interval=1, deliver="jump", after_jump=told)
    params: Any = jnp.array([2.0, 1.0])
    state: Any = tx.init(params)
    counts = []
    for _ in range(7):
        for _ in range(2):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        if every is None:
            params, state, _ = tx.end_epoch(params, state)
        counts.append(int(optax.tree.get(state.inner_state, "count")))
    assert counts == [2, 4, 6, 108, 110, 212, 214]


def test_what_adopt_cannot_do_it_refuses() -> None:
    history = pdt_optax.Predictor().init(PARAMS)
    with pytest.raises(ValueError, match=r"predictor\.init\(params, opt_state=opt_state\)"):
        pdt_optax.adopt(pdt_optax.Predictor(guard=pdt_optax.rollback()), history, PARAMS)


def test_a_state_that_ends_its_own_epochs_is_adopted_with_its_report() -> None:
    """A report has numbers for as many snapshots as the window."""
    usual = {**pdt_optax.presets.drift, "every": 1}
    old, new = (
        pdt(optax.sgd(0.1), **{**usual, "window": 5, "start": 5}),
        pdt(optax.sgd(0.1), **{**usual, "window": 3, "start": 3}),
    )
    params: Any = jnp.array([2.0, 1.0])
    state = old.init(params)
    for tx in (old, old, new, new, new):
        if tx is new and len(state.history.snapshots) == 5:
            state = pdt_optax.adopt(new, state, params)
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert state.last_report.singular_values.shape == (2,)
    assert int(state.history.clock.predictions_made) >= 1


@pytest.mark.parametrize("every", [None, 2])
def test_another_way_to_end_epochs_is_adopted(every: int | None) -> None:
    """What `update` refuses at once, and says how to take up."""
    inner = optax.adam(0.1)
    old, new = pdt(inner, every=2 if every is None else None), pdt(inner, every=every)
    state = old.init(PARAMS)
    with pytest.raises(
        ValueError, match=r"only where `every` is set\. Take it up: .*adopt\(made, state, params\)"
    ):
        new.update(PARAMS, state, PARAMS)
    state = pdt_optax.adopt(new, state, PARAMS)
    pdt_optax.check_saved(new, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new.init(PARAMS))
    _, state = new.update(PARAMS, state, PARAMS)
    assert (state.last_report is None) == (every is None)
