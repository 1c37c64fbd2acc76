"""Situations from users' public reports; docs/reliability.md has the table, with the reports."""

import functools
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training.dynamic_scale import DynamicScale
from flax.training.train_state import TrainState
from jax.sharding import SingleDeviceSharding

import pdt_optax
from tests.states import WINDOWED
from tests.trees import assert_same, differs

JUMP: dict[str, Any] = {"deliver": "jump"}
DELIVERIES: list[Any] = [{}, JUMP]
INPUTS, TARGETS = jnp.linspace(-1, 1, 15).reshape(5, 3), jnp.ones((5, 2))


UNKNOWN: Any = None  # until an epoch has ended
from_bytes: Any = serialization.from_bytes


def weights() -> dict[str, jax.Array]:
    return {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}


def pull(params: Any) -> Any:
    return jax.tree.map(lambda x: 0.3 * x - 0.1, params)


@functools.partial(jax.jit, static_argnums=0)
def step(tx: Any, params: Any, state: Any, grads: Any = None, **extra: Any) -> tuple[Any, Any]:
    updates, state = tx.update(pull(params) if grads is None else grads, state, params, **extra)
    return optax.apply_updates(params, updates), state


def epochs(tx: Any, params: Any, state: Any, count: int, steps: int = 2, **end: Any) -> tuple[Any, Any, Any]:
    report = UNKNOWN
    for _ in range(count):
        for _ in range(steps):
            params, state = step(tx, params, state)
        params, state, report = tx.end_epoch(params, state, **end)
    return params, state, report


def refused(call: Any, *parts: str, error: Any = (TypeError, ValueError)) -> None:
    """It is an error of at most ten lines that has these parts."""
    with pytest.raises(error) as e:
        call()
    message = str(e.value)
    assert len(message) < 800
    assert message.count("\n") < 10
    for part in parts:
        assert part in message


# --- freezing and partition -------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", DELIVERIES)
@pytest.mark.parametrize("how", ["partition", "freeze", "zero gradient"])
def test_frozen_weights_stay_frozen(how: str, settings: Any) -> None:
    frozen = {
        "partition": optax.partition(
            {"train": optax.adam(0.05), "freeze": optax.set_to_zero()}, {"base": "freeze", "head": "train"}
        ),
        "freeze": optax.chain(optax.adam(0.05), optax.freeze({"base": True, "head": False})),
        "zero gradient": optax.adam(0.05),
    }[how]
    tx: Any = pdt_optax.pdt(frozen, start=2, **settings)
    params: Any = {"base": jnp.array([1.0, 2.0, 3.0]), "head": jnp.array([0.1, 0.2])}
    state: Any = tx.init(params)
    base = jnp.copy(params["base"])
    report = UNKNOWN
    for _ in range(6):
        for _ in range(2):
            grads = {"base": jnp.zeros(3), "head": -jnp.ones(2)}
            params, state = step(tx, params, state, grads)
        params, state, report = tx.end_epoch(params, state)
    assert report.predicted
    assert_same(params["base"], base)


def test_two_wrappers_in_one_partition() -> None:
    """Each has a part of the state, which `end_epoch` takes alone."""
    first, second = (pdt_optax.pdt(optax.adam(rate), start=2, **JUMP) for rate in (0.1, 0.2))
    tx = optax.partition({"first": first, "second": second}, {"a": "first", "b": "second"})
    params: Any = weights()
    state: Any = tx.init(params)
    for _ in range(4):
        for _ in range(2):
            params, state = step(tx, params, state)
        for name, part in (("first", first), ("second", second)):
            params, new, report = pdt_optax.end_epoch(part, params, state.inner_states[name])
            state = state._replace(inner_states={**state.inner_states, name: new})
            assert report.accepted_share_per_leaf.shape == (1,)
    for name, leaf, part in (("first", "a", first), ("second", "b", second)):
        alone = {leaf: weights()[leaf]}
        expected, _, report = epochs(part, alone, part.init(alone), 4)
        assert report.predicted
        np.testing.assert_allclose(params[leaf], expected[leaf], rtol=1e-5, err_msg=name)


def test_the_whole_state_of_two_wrappers() -> None:
    first, second = pdt_optax.pdt(optax.adam(0.1)), pdt_optax.pdt(optax.adam(0.2))
    tx = optax.partition({"first": first, "second": second}, {"a": "first", "b": "second"})
    state = tx.init(weights())
    refused(lambda: pdt_optax.end_epoch(first, weights(), state), "Found 2", "part")


def test_one_wrapper_for_two_models() -> None:
    """It holds no state of its own: taking turns is training each alone."""
    tx: Any = pdt_optax.pdt(optax.adam(0.05), start=2)
    runs = [(p, tx.init(p)) for p in ({"a": jnp.ones(3)}, {"b": jnp.arange(4.0)})]
    for _ in range(4):
        runs = [epochs(tx, *run, 1)[:2] for run in runs]
    for params, state in runs:
        own = {"a": jnp.ones(3)} if "a" in params else {"b": jnp.arange(4.0)}
        expected, _, report = epochs(tx, own, tx.init(own), 4)
        assert report.predicted
        assert_same(params, expected)
        assert state.history.clock.snapshots_seen == 5


# --- gradient accumulation --------------------------------------------------------------------------------


def test_an_accumulation_that_an_epoch_cuts_in_two() -> None:
    """Five micro-batches of two: the fifth is kept over the epoch's end."""
    tx: Any = pdt_optax.pdt(optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), start=2, **JUMP)
    params: Any = weights()
    state: Any = tx.init(params)
    report = UNKNOWN
    for epoch in range(4):
        for _ in range(5):
            params, state = step(tx, params, state)
        kept = state.inner_state
        params, state, report = tx.end_epoch(params, state)
        assert_same(state.inner_state, kept)
        assert state.inner_state.mini_step == (epoch + 1) % 2
        assert state.inner_state.gradient_step == 5 * (epoch + 1) // 2
    assert report.predicted


@pytest.mark.parametrize("settings", DELIVERIES)
def test_gradients_of_one_accumulation(settings: Any) -> None:
    """With jumps the weights stand still within it; the default moves them a little at every micro-batch."""
    tx: Any = pdt_optax.pdt(
        optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation(), start=1, **settings
    )
    params: Any = {"w": jnp.ones(3)}
    state: Any = tx.init(params)
    between = []
    report = UNKNOWN
    for _ in range(3):
        for i in range(6):
            new, state = step(tx, params, state, {"w": jnp.ones(3)})
            between += [] if i % 3 == 2 else [float(new["w"][0] - params["w"][0])]
            params = new
        params, state, report = tx.end_epoch(params, state)
    assert report.predicted
    late = between[8:]  # an epoch has four, and the first to see a prediction is the third
    assert all(x == 0 for x in late) if settings else all(x < 0 for x in late)
    if not settings:
        assert report.delivered_share == 1


def test_multi_steps_passes_extra_arguments_on() -> None:
    params: Any = weights()
    for inner in (
        optax.MultiSteps(optax.contrib.momo(0.1), 2).gradient_transformation(),
        optax.MultiSteps(optax.contrib.momo(0.1), 2),
    ):
        tx: Any = pdt_optax.pdt(inner)  # pyright: ignore[reportArgumentType]
        state: Any = tx.init(params)
        for _ in range(2):
            _, state = step(tx, params, state, value=jnp.float32(3))
        assert state.inner_state.inner_opt_state.barf != 0  # momo's mean of the values


def test_resumed_within_an_accumulation() -> None:
    """And within an epoch, to the last bit."""
    tx: Any = pdt_optax.pdt(optax.MultiSteps(optax.adam(0.05), 3).gradient_transformation(), every=6, start=2)
    grads = [jax.tree.map(lambda x, i=i: jnp.sin(x + i), weights()) for i in range(32)]
    params: Any = weights()
    state: Any = tx.init(params)
    saved: Any = None
    for i, g in enumerate(grads):
        if i == 16:
            assert state.inner_state.mini_step == 1
            assert state.this_epoch.updates_seen == 4
            saved = serialization.to_bytes((params, state))
        params, state = step(tx, params, state, g)
    assert state.last_report.predicted
    again, state_again = from_bytes((weights(), tx.init(weights())), saved)
    for g in grads[16:]:
        again, state_again = step(tx, again, state_again, g)
    assert_same((again, state_again.inner_state), (params, state.inner_state))


# --- mixed precision and loss scaling ---------------------------------------------------------------------


@pytest.mark.parametrize("settings", DELIVERIES)
def test_a_step_that_loss_scaling_skips_leaves_no_trace(settings: Any) -> None:
    """The loop takes weights and state back; what was to be delivered comes with the next step."""
    tx: Any = pdt_optax.pdt(optax.adam(0.05), start=2, **settings)

    @jax.jit
    def scaled(scale: DynamicScale, params: Any, state: Any, factor: float) -> Any:
        loss = lambda p: factor * sum(jnp.sum(x**2) for x in jax.tree.leaves(p))  # noqa: E731
        scale, finite, _, grads = scale.value_and_grad(loss)(params)
        new = step(tx, params, state, grads)
        return scale, *jax.tree.map(functools.partial(jnp.where, finite), new, (params, state))

    def run(bad: bool) -> tuple[Any, Any]:
        params, state, report, scale = weights(), tx.init(weights()), UNKNOWN, DynamicScale()
        for _ in range(5):
            for i in range(4 if bad else 3):
                factor = np.nan if bad and i == 1 else 1.0
                scale, params, state = scaled(scale, params, state, factor)
            params, state, report = tx.end_epoch(params, state)
        return params, report

    (params, report), (expected, _) = run(bad=True), run(bad=False)
    assert report.predicted
    np.testing.assert_allclose(params["a"], expected["a"], rtol=1e-5)
    assert report.delivered_share == 1


def test_bfloat16_weights_have_a_float32_mean() -> None:
    """A mean of steps that bfloat16 weights can just hold is below what they can hold."""
    predictor = pdt_optax.Predictor(dynamics=pdt_optax.slow_drift(memory=4), start=9)
    w = jnp.full(4, 256, jnp.bfloat16)  # its neighbour is 258
    history, mean, weight = predictor.init(w), np.float32(0), np.float32(0)
    for epoch in range(8):
        w = w + jnp.bfloat16(2 * (epoch % 2))
        w, history, _ = predictor.end_epoch(w, history)
        weight = np.float32((1 - 1 / 4) * weight + 1)
        mean += (2 * (epoch % 2) - mean) / weight
    motion: Any = history.motion
    assert motion.mean.dtype == jnp.float32
    assert 0.5 < mean < 1.5
    np.testing.assert_allclose(motion.mean, mean, rtol=1e-6)


# --- checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("donate", [False, True])
def test_a_state_restored_as_numpy_arrays(donate: bool) -> None:
    """Flax's `from_bytes` makes NumPy arrays of them: the run goes on to the last bit, and no warning comes."""
    tx: Any = pdt_optax.pdt(optax.adam(0.1), start=2)
    params, state, _ = epochs(tx, weights(), tx.init(weights()), 3)
    saved = serialization.to_bytes((params, state))
    expected = epochs(tx, params, state, 2)
    restored = from_bytes((weights(), tx.init(weights())), saved)
    assert isinstance(restored[0]["a"], np.ndarray)
    params, state = step(tx, *step(tx, *restored))
    params, state, report = tx.end_epoch(params, state, donate=donate)
    assert report.predicted
    assert_same(epochs(tx, params, state, 1)[:2], expected[:2])
    assert tx.end_epoch(*restored, donate=donate)[2].predicted  # before any step


def test_a_state_restored_without_a_target() -> None:
    """Dicts and lists in place of NamedTuples, or the state of the optimizer alone."""
    tx: Any = pdt_optax.pdt(optax.adam(0.1))
    state = tx.init(weights())
    for wrong in (serialization.to_state_dict(state), list(state), tuple(state), state.inner_state):
        refused(lambda wrong=wrong: tx.update(weights(), wrong, weights()), "tx.init")
        refused(lambda wrong=wrong: tx.end_epoch(weights(), wrong), "init")


def test_equinox_saves_and_loads_a_run() -> None:
    tx: Any = pdt_optax.pdt(optax.adam(0.1), start=2, guard=pdt_optax.rollback())
    params, state, _ = epochs(tx, weights(), tx.init(weights()), 3, value=1.0)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, (params, state))
    file.seek(0)
    restored = eqx.tree_deserialise_leaves(file, (weights(), tx.init(weights())))
    assert_same(restored, (params, state))
    expected, got = (epochs(tx, p, s, 2, value=1.0) for p, s in ((params, state), restored))
    assert got[2].predicted
    assert_same(got[:2], expected[:2])


def test_settings_and_states_are_pickled() -> None:
    """As workers of a search send them to each other."""
    guarded = {"guard": pdt_optax.rollback(), "schedule": pdt_optax.adaptive()}
    for settings in ({}, {"exclude": {"a": True, "b": False}}, pdt_optax.presets.released, guarded):
        predictor = pdt_optax.Predictor(**settings)
        assert pickle.loads(pickle.dumps(predictor)) == predictor
    predictor = pdt_optax.Predictor(start=2)
    history = predictor.init(weights())
    assert_same(pickle.loads(pickle.dumps(history)), history)


def test_a_schedule_made_longer_at_a_resume() -> None:
    """The step count goes on, and so do the snapshots."""

    def make(steps: int) -> Any:
        return pdt_optax.pdt(optax.sgd(optax.cosine_decay_schedule(0.1, steps)), start=2, **JUMP)

    params, state, _ = epochs(make(10), weights(), make(10).init(weights()), 4)
    pdt_optax.check_saved(make(20), state)
    longer, _ = make(20).update(pull(params), state, params)
    expected: Any = optax.cosine_decay_schedule(0.1, 20)(8)
    np.testing.assert_allclose(longer["a"], -expected * pull(params)["a"], rtol=1e-5)
    _, resumed, report = epochs(make(20), params, state, 1)
    assert report.predicted
    assert resumed.history.clock.snapshots_seen == 6


SAVE = """
import sys, jax, jax.numpy as jnp, optax, orbax.checkpoint as ocp, pdt_optax
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.test_situations import epochs
mesh = jax.make_mesh((4,), ("x",))
tx = pdt_optax.pdt(optax.adam(0.1), start=2)
params = jax.device_put({"w": jnp.arange(8.0)}, NamedSharding(mesh, P("x")))
with jax.set_mesh(mesh):
    run = epochs(tx, params, jax.jit(tx.init)(params), 3)[:2]
    with ocp.StandardCheckpointer() as saver:
        saver.save(sys.argv[1], dict(zip(("params", "opt_state"), run)))
    print(*epochs(tx, *run, 3)[0]["w"])
"""


@pytest.mark.slow
def test_a_run_of_four_devices_goes_on_on_one(tmp_path: Path) -> None:
    """Restored into shapes without shardings, in a process that has one device."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    script = [sys.executable, "-c", SAVE, str(tmp_path / "run")]
    done = subprocess.run(
        script, env=environment, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    expected = np.array(done.stdout.split(), np.float32)
    tx: Any = pdt_optax.pdt(optax.adam(0.1), start=2)
    fresh = {"params": {"w": jnp.zeros(8)}, "opt_state": tx.init({"w": jnp.zeros(8)})}
    with ocp.StandardCheckpointer() as saver:
        run = saver.restore(tmp_path / "run", jax.tree.map(ocp.utils.to_shape_dtype_struct, fresh))
    params, _, report = epochs(tx, run["params"], run["opt_state"], 3)
    assert report.predicted
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5)


def test_optimizer_state_in_host_memory_without_a_guard() -> None:
    host = SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    tx: Any = pdt_optax.pdt(optax.adam(0.05), start=2)
    params, state, _ = epochs(tx, weights(), tx.init(weights()), 3)
    moved = state._replace(inner_state=jax.device_put(state.inner_state, host))
    expected = tx.end_epoch(params, state)
    got = tx.end_epoch(params, moved)
    assert got[2].predicted
    assert all(x.sharding.memory_kind == "pinned_host" for x in jax.tree.leaves(got[1].inner_state))
    assert_same(got[0], expected[0])


def test_optimizer_state_in_host_memory() -> None:
    host = SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    tx: Any = pdt_optax.pdt(optax.adam(0.05), start=2, guard=pdt_optax.rollback())
    state: Any = tx.init(weights())
    moved = state._replace(inner_state=jax.device_put(state.inner_state, host))
    expected = tx.end_epoch(weights(), state, value=1.0)
    got = tx.end_epoch(weights(), moved, value=1.0)
    assert_same(got[0], expected[0])


# --- averages, and weights that come from elsewhere -------------------------------------------------------


@pytest.mark.parametrize("settings", DELIVERIES)
def test_the_best_weights_put_back_with_their_state(settings: Any) -> None:
    """After an evaluation with other weights, or to try again: the same epochs come to the same bits."""
    tx: Any = pdt_optax.pdt(optax.adam(0.05), start=2, **settings)
    best = epochs(tx, weights(), tx.init(weights()), 3)[:2]
    first = epochs(tx, *best, 3)
    again = epochs(tx, *best, 3)
    assert first[2].predicted
    assert_same(again[:2], first[:2])


@pytest.mark.parametrize("settings", DELIVERIES)
def test_weights_reset_by_hand(settings: Any) -> None:
    """`restart` begins the history anew: the leap is not taken for motion, and the optimizer keeps its state."""
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), start=2, **settings)
    params: Any = {"w": jnp.full(4, 5.0)}
    state: Any = tx.init(params)
    grads = {"w": jnp.full(4, 0.1)}

    def epoch(params: Any, state: Any) -> Any:
        for _ in range(2):
            params, state = step(tx, params, state, grads)
        return tx.end_epoch(params, state)[:2]

    for _ in range(4):
        params, state = epoch(params, state)
    params = {"w": params["w"].at[0].set(0.0)}
    inner = state.inner_state
    state = pdt_optax.restart(tx, state, params)
    assert_same(state.inner_state, inner)
    for _ in range(5):
        params, state = epoch(params, state)
    # 10 steps of 0.01 alone come to -0.1; what was added since is of that size, not of the leap's.
    assert -0.6 < params["w"][0] < -0.1


# --- ensembles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", DELIVERIES)
def test_an_ensemble_with_a_rate_for_each_member(settings: Any) -> None:
    """Under vmap each member is what it is alone."""
    tx: Any = pdt_optax.pdt(optax.inject_hyperparams(optax.adam)(learning_rate=0.1), start=2, **settings)

    def train(w: jax.Array, rate: jax.Array) -> Any:
        state = optax.tree.set(tx.init(w), learning_rate=rate)

        def one(carry: Any, _: None) -> Any:
            updates, state = tx.update(pull(carry[0]), carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        def epoch(carry: Any, _: None) -> Any:
            carry, _ = jax.lax.scan(one, carry, length=3)
            params, state, report = tx.end_epoch(*carry)
            return (params, state), (report.predicted, report.persistence)

        (w, _), reports = jax.lax.scan(epoch, (w, state), length=5)
        return w, reports

    members, rates = jnp.arange(12.0).reshape(3, 4), jnp.array([0.01, 0.1, 0.3])
    together, (predicted, persistence) = jax.jit(jax.vmap(train))(members, rates)
    assert predicted.sum() == 9
    assert len({*map(float, persistence[:, -1])}) == 3
    for i in range(3):
        alone, _ = jax.jit(train)(members[i], rates[i])
        np.testing.assert_allclose(together[i], alone, rtol=1e-6)


def ensemble() -> tuple[Any, Any, Any, Any]:
    tx: Any = pdt_optax.pdt(optax.adam(0.05), start=2)
    members = jnp.arange(8.0).reshape(2, 4)

    @jax.jit
    @jax.vmap
    def epoch(w: Any, state: Any) -> Any:
        for _ in range(2):
            updates, state = tx.update(pull(w), state, w)
            w = optax.apply_updates(w, updates)
        return tx.end_epoch(w, state)[:2]

    return tx, members, jax.vmap(tx.init)(members), epoch


def test_a_member_copied_over_another() -> None:
    """As population-based training does: weights and state together, and both go on alike."""
    _, members, states, epoch = ensemble()
    for _ in range(3):
        members, states = epoch(members, states)
    assert differs(members[0], members[1])
    members, states = jax.tree.map(lambda x: x.at[1].set(x[0]), (members, states))
    for _ in range(3):
        members, states = epoch(members, states)
    assert_same(members[0], members[1])


def test_an_ensemble_outside_vmap() -> None:
    tx, members, states, _ = ensemble()
    refused(lambda: tx.end_epoch(members, states), "vmap")


# --- trees of nnx, linen and Equinox ----------------------------------------------------------------------


def test_tied_weights() -> None:
    """One array at two places comes back as two; nnx and Equinox hold shared layers once."""
    w = jnp.ones((3, 2))
    predictor = pdt_optax.Predictor()
    params, _, _ = predictor.end_epoch({"embed": w, "head": w}, predictor.init({"embed": w, "head": w}))
    assert_same(params["embed"], params["head"])

    class Tied(nnx.Module):
        def __init__(self) -> None:
            self.embed = nnx.Embed(5, 3, rngs=nnx.Rngs(0))
            self.again = self.embed

    model = Tied()
    history = predictor.init(nnx.state(model, nnx.Param))
    assert pdt_optax.leaf_paths(history) == ["again/embedding"]
    params, history, _ = predictor.end_epoch(nnx.state(model, nnx.Param), history, donate=True)
    nnx.update(model, params)
    assert model.embed is model.again

    shared = eqx.nn.Shared(
        (eqx.nn.Embedding(5, 3, key=jax.random.key(0)), eqx.nn.Linear(3, 5, False, key=jax.random.key(1))),
        where=lambda pair: pair[1].weight,
        get=lambda pair: pair[0].weight,
    )
    assert pdt_optax.leaf_paths(predictor.init(eqx.filter(shared, eqx.is_inexact_array))) == [
        "pytree/0/weight"
    ]


def test_tied_weights_cannot_be_donated() -> None:
    w = jnp.ones((3, 2))
    tx = pdt_optax.pdt(optax.adam(0.1))
    params = {"embed": w, "head": w}
    refused(lambda: tx.end_epoch(params, tx.init(params), donate=True), "'embed'", "'head'")


@pytest.mark.parametrize("guard", [None, pdt_optax.rollback()])
def test_names_with_slashes(guard: Any) -> None:
    """As Haiku's: two paths may read alike, and each is excluded for itself."""
    params: Any = {"mlp/linear": jnp.ones(2), "mlp": {"linear": jnp.ones(3)}}
    expected: Any = params["mlp/linear"]
    exclude = {"mlp/linear": True, "mlp": {"linear": False}}
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), exclude=exclude, start=1, guard=guard, **JUMP)
    state: Any = tx.init(params)
    report = UNKNOWN
    for _ in range(3):
        params, state = step(tx, params, state)
        expected = optax.apply_updates(expected, -0.1 * pull(expected))
        params, state, report = tx.end_epoch(params, state, value=1.0)
    assert report.predicted
    assert report.accepted_share_per_leaf.shape == (1,)
    np.testing.assert_allclose(params["mlp/linear"], expected, rtol=1e-6)
    assert differs(params["mlp"]["linear"][0], expected[0])


def test_branches_without_a_weight() -> None:
    """Modules without parameters leave `{}`, `()` or None behind."""
    params: Any = {"dense": {"w": jnp.ones(3)}, "relu": {}, "dropout": None, "pool": ()}
    tx: Any = pdt_optax.pdt(optax.adam(0.1), start=1)
    state = tx.init(params)
    structure = jax.tree.structure((params, state))
    params, state, report = epochs(tx, params, state, 3)
    assert report.predicted
    assert jax.tree.structure((params, state)) == structure


def test_random_keys_and_counters_among_the_weights() -> None:
    predictor = pdt_optax.Predictor(start=2)
    model: Any = {"key": jax.random.key(0), "steps": jnp.arange(3), "w": jnp.ones(3)}
    history = predictor.init(model)
    assert pdt_optax.leaf_paths(history) == ["w"]
    report = trained = UNKNOWN
    for _ in range(4):
        trained = model | {"w": 0.9 * model["w"]}
        model, history, report = predictor.end_epoch(trained, history)
    assert report.predicted
    assert differs(model["w"], trained["w"])
    assert_same(jax.random.key_data(model["key"]), jax.random.key_data(jax.random.key(0)))
    assert_same(model["steps"], jnp.arange(3))


def test_complex_weights() -> None:
    """They are left to the optimizer; as real and imaginary parts they are predicted."""
    params: Any = {"c": jnp.array([1 + 1j, 2 - 1j]), "r": jnp.ones(2)}
    refused(
        lambda: pdt_optax.pdt(optax.adam(0.1)).init({"c": params["c"]}), "nothing to predict", "complex64[2]"
    )
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), start=2, **JUMP)
    trained, state, report = epochs(tx, params, tx.init(params), 4)
    assert pdt_optax.leaf_paths(state) == ["r"]
    assert report.predicted
    expected = params["c"]
    for _ in range(8):
        expected = expected - 0.1 * pull(expected)
    np.testing.assert_allclose(trained["c"], expected, rtol=1e-5)

    split: Any = optax.contrib.split_real_and_imaginary(pdt_optax.pdt(optax.sgd(0.1), every=2, start=2))
    parts, state = params, split.init(params)
    assert pdt_optax.leaf_paths(state) == ["c/real", "c/imaginary", "r"]
    for _ in range(8):
        parts, state = step(split, parts, state)
    assert optax.tree.get(state, "last_report").predicted
    assert parts["c"].dtype == params["c"].dtype
    assert differs(parts["c"], trained["c"])


class Net(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.base = nnx.Linear(3, 2, rngs=rngs)
        self.lora = nnx.LoRA(3, 1, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.base(x) + self.lora(x)


def error(model: Any) -> jax.Array:
    return jnp.mean((model(INPUTS) - TARGETS) ** 2)


@pytest.mark.parametrize("every", [None, 2])
def test_nnx_with_an_optimizer_for_each_group(every: int | None) -> None:
    """Labels by a function, as nnx needs them; `value` goes through `nnx.Optimizer.update`."""

    def labels(params: Any) -> Any:
        return jax.tree.map_with_path(lambda path, _: "lora" if "lora" in str(path) else "base", params)

    groups: Any = {"lora": optax.adam(0.01), "base": optax.sgd(0.01)}
    tx: Any = pdt_optax.pdt(optax.partition(groups, labels), start=2, every=every)
    model = Net()
    optimizer: Any = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train(model: Any, optimizer: Any) -> Any:
        loss, grads = nnx.value_and_grad(error)(model)
        optimizer.update(model, grads, value=loss)
        return loss

    report, losses = UNKNOWN, []
    for _ in range(3):
        losses = [train(model, optimizer) for _ in range(2)]
        if every is None:
            params = nnx.state(model, nnx.Param)
            params, optimizer.opt_state, report = tx.end_epoch(params, optimizer.opt_state)
            nnx.update(model, params)
    report = optimizer.opt_state.last_report if every else report
    assert report.predicted[...]
    np.testing.assert_allclose(report.mean_value[...], np.mean(losses), rtol=1e-5)


def test_nnx_trains_lora_alone() -> None:
    """The base is none of the parameters, and stays; handed over by mistake it is named."""
    model = Net()
    tx: Any = pdt_optax.pdt(optax.adam(0.01), start=2)
    optimizer: Any = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    base = [*map(jnp.copy, jax.tree.leaves(nnx.state(model.base)))]
    report = UNKNOWN
    for _ in range(4):
        grads = nnx.grad(error, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
        optimizer.update(model, grads)
        params = nnx.state(model, nnx.LoRAParam)
        params, optimizer.opt_state, report = tx.end_epoch(params, optimizer.opt_state)
        nnx.update(model, params)
    assert report.predicted
    assert pdt_optax.leaf_paths(optimizer.opt_state) == ["lora/lora_a", "lora/lora_b"]
    assert_same(jax.tree.leaves(nnx.state(model.base)), base)
    refused(
        lambda: tx.end_epoch(nnx.state(model, nnx.Param), optimizer.opt_state),
        "Unknown (2 of 4 leaves)",
        "'base/kernel'",
    )


def test_linen_weights_that_carry_their_axes() -> None:
    """`nn.with_partitioning` puts each weight into a box: boxes come back, and weights without them are taken."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            kernel = nn.initializers.lecun_normal()
            x = nn.Dense(4, kernel_init=nn.with_partitioning(kernel, (None, "model")))(x)
            return nn.Dense(2, kernel_init=nn.with_logical_partitioning(kernel, ("embed", "heads")))(x)

    model = Model()
    tx: Any = pdt_optax.pdt(optax.adam(0.01), start=2)
    params = model.init(jax.random.key(0), INPUTS)["params"]
    state: Any = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    gradient: Any = jax.jit(jax.grad(lambda p: error(functools.partial(model.apply, {"params": p}))))
    report = UNKNOWN
    for _ in range(4):
        grads = gradient(state.params)
        state = state.apply_gradients(grads=grads)
        new, opt_state, report = tx.end_epoch(state.params, state.opt_state)
        state = state.replace(params=new, opt_state=opt_state)
    assert report.predicted
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    assert pdt_optax.leaf_paths(state.opt_state)[1] == "Dense_0/kernel"
    assert tx.end_epoch(nn.unbox(state.params), state.opt_state)[2].predicted


# --- under jit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", [None, pdt_optax.rollback()])
def test_a_rate_that_falls_on_a_plateau(guard: Any) -> None:
    """optax's `reduce_on_plateau` inside: its scale falls, jumps or not, and nothing is compiled twice."""
    plateau = optax.contrib.reduce_on_plateau(patience=2, factor=0.5)
    tx: Any = pdt_optax.pdt(optax.chain(optax.sgd(0.1), plateau), start=2, guard=guard, **JUMP)
    params: Any = weights()
    state: Any = tx.init(params)

    def epoch(params: Any, state: Any) -> Any:
        for _ in range(2):
            params, state = step(tx, params, state, value=jnp.float32(1))
        return tx.end_epoch(params, state)[:2]

    params, state = epoch(params, state)
    with jax.no_tracing():
        for _ in range(4):
            params, state = epoch(params, state)
    assert state.history.clock.predictions_made == 3
    assert optax.tree.get(state.inner_state, "scale") < 0.1


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("ScheduleFreeState", optax.contrib.schedule_free_sgd(0.1)),
        ("ScaleByAdemamixState", optax.chain(optax.clip(1.0), optax.contrib.ademamix(0.1))),
        (
            "ScaleByAdemamixState, ScheduleFreeState",
            optax.chain(optax.contrib.schedule_free_sgd(0.1), optax.contrib.ademamix(0.1)),
        ),
    ],
)
def test_an_optimizer_with_a_slow_mean_of_its_own(name: str, inner: Any) -> None:
    """Warned of; other dynamics, and a mean of gradients as in Adam, are not."""
    told = (
        rf"^`inner` keeps a slow mean of its own \({name}\), and its path persists because of it\. Around such an "
        "optimizer the default ended at a higher loss, at the weights that it evaluates, than the optimizer alone, "
        r"on every task that was tried\. Use it without `pdt`\.$"
    )
    with pytest.warns(UserWarning, match=told):
        pdt_optax.pdt(inner).init(weights())
    pdt_optax.pdt(inner, **pdt_optax.presets.drift).init(weights())
    pdt_optax.pdt(optax.adam(0.1)).init(weights())


def test_a_warning_names_the_line_of_the_user() -> None:
    with pytest.warns(UserWarning, match="slow mean") as caught:
        pdt_optax.pdt(optax.contrib.schedule_free_sgd(0.1)).init(weights())
    assert caught[0].filename == __file__


SETTINGS: dict[str, Any] = {
    "default": {},
    "jump": {"deliver": "jump", "accept": pdt_optax.agree()},
    "guard": {"guard": pdt_optax.rollback()},
    "adaptive": {"schedule": pdt_optax.adaptive()},
    "window": {"window": 4},
    "every": {"every": 1},
    "drift": {**WINDOWED, "deliver": "gradual"},
    "rate": {
        **WINDOWED,
        "dynamics": pdt_optax.drift(learning_rate=optax.linear_schedule(0.0, 0.1, 9), steps_per_epoch=2),
    },
    "bfloat16": {**WINDOWED, "snapshot_dtype": "bfloat16"},
    "own motion": {**WINDOWED, "own_motion": True},
    "released": pdt_optax.presets.released,
    "paper": pdt_optax.presets.paper,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_all_types_are_the_same_with_x64(name: str) -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), **SETTINGS[name])

    def epoch(params: Any) -> Any:
        state = tx.init(params)
        updates, state = tx.update(params, state, params, value=jnp.float32(1))
        return (updates, state) if tx.update.__self__.every else (updates, *tx.end_epoch(params, state))

    types = {"a": jnp.float32, "b": jnp.float32, "c": jnp.bfloat16, "d": jnp.float16}
    found = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            found.append(jax.eval_shape(epoch, {k: jnp.ones((3, 2), dtype) for k, dtype in types.items()}))
    chex.assert_trees_all_equal_shapes_and_dtypes(*found)


@pytest.mark.parametrize("every", [None, 2])
def test_no_tracer_is_kept(every: int | None) -> None:
    tx: Any = pdt_optax.pdt(optax.adam(0.05), start=2, every=every)

    @jax.jit
    def epoch(params: Any, state: Any) -> Any:
        for _ in range(2):
            updates, state = tx.update(pull(params), state, params)
            params = optax.apply_updates(params, updates)
        return (params, state) if every else tx.end_epoch(params, state)[:2]

    with jax.checking_leaks():
        params, state = epoch(weights(), tx.init(weights()))
        epoch(params, state)


@pytest.mark.parametrize("every", [None, 1])
def test_x64_switched_on_later(every: int | None) -> None:
    """The run goes on in the types it had; weights that came back as float64 are refused by name."""
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), start=2, every=every)
    params: Any = weights()
    state: Any = tx.init(params)
    kinds = [x.dtype for x in jax.tree.leaves((params, state))]
    with jax.enable_x64(True):
        for _ in range(4):
            grads = jax.tree.map(lambda x: x * jnp.float32(0.3), params)
            params, state = step(tx, params, state, grads, value=1.0)
            if every is None:
                params, state, _ = tx.end_epoch(params, state)
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        again = (lambda: tx.update(wide, state, wide)) if every else (lambda: tx.end_epoch(wide, state))
        refused(again, "float32", "float64", "'a'")
    assert state.history.clock.predictions_made == 2
    assert [x.dtype for x in jax.tree.leaves((params, state))] == kinds
