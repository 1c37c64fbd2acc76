"""Weights split over a mesh: run by test_sharding.py, where jax has eight CPU devices.

Cases are chosen so that every two choices meet at least once: a setting and a kind of mesh, a setting and donation,
a layout and a kind of mesh, and so on. What says the same on another mesh is slow.
"""

import contextlib
import functools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import pdt_optax
from benchmarks.lowered import lower
from experiments.training import records
from experiments.training.arms import preset
from experiments.training.checkpoints import Saving
from experiments.training.devices import check_batch, devices
from experiments.training.trainer import Config, _program
from experiments.training.trainer import train as train_run
from experiments.tuned.setups import PAIRS
from pdt_optax._history import find
from tests.states import WINDOWED
from tests.test_bench import tiny

SPECS = {
    "replicated": ((64, 32), P()),
    "fsdp": ((16, 24), P("data")),
    "tensor": ((24, 16), P(None, "model")),
    "both": ((32, 16), P("data", "model")),
    "flattened": ((64, 3), P(("data", "model"))),
    "bias_a": ((16,), P("model")),
    "bias_b": ((16,), P()),
    "scale": ((), P()),
}
SETTINGS: dict[str, dict[str, Any]] = {
    # Some weights are to be left alone, in every case.
    "default": {"accept": pdt_optax.agree()},
    "jump": {"accept": pdt_optax.agree(), "deliver": "jump"},
    "default, guarded": {"accept": pdt_optax.agree(), "guard": pdt_optax.rollback()},
    "own motion": {"dynamics": pdt_optax.drift(), "deliver": "jump"},
    "drift": dict(pdt_optax.presets.drift),
    "shrink": {**WINDOWED, "accept": pdt_optax.shrink(), "horizon": 3},
    "released": dict(pdt_optax.presets.released),
    "paper": dict(pdt_optax.presets.paper),
    "bfloat16": {**WINDOWED, "snapshot_dtype": "bfloat16"},
    "guarded": {**WINDOWED, "guard": pdt_optax.rollback()},
}
slow = pytest.mark.slow


def mesh(kind: str) -> Any:
    axis = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}[kind]
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis, axis))


def walk(steps: int = 7) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape) for name, (shape, _) in SPECS.items()}
    velocity = {name: 1e-2 * rng.normal(size=shape) for name, (shape, _) in SPECS.items()}
    trees = []
    for _ in range(steps):
        weights = {n: w + velocity[n] + 1e-2 * rng.normal(size=w.shape) for n, w in weights.items()}
        trees.append({n: np.asarray(w, np.float32) for n, w in weights.items()})
    return trees


def put(tree: Any, on: Any) -> Any:
    return {n: jax.device_put(x, NamedSharding(on, SPECS[n][1])) for n, x in tree.items()}


def last(tx: Any, trees: list[Any], end_epoch: Any) -> Any:
    state = tx.init(trees[0])
    for tree in trees[1:]:
        params, state, report = end_epoch(tree, state, value=1.0)
    assert report.predicted  # pyright: ignore[reportPossiblyUnboundVariable]
    return arrived(params, state), state, report  # pyright: ignore[reportPossiblyUnboundVariable]


def arrived(params: Any, state: Any) -> Any:
    """The parameters with all that the coming updates will deliver."""
    delivery = state.history.delivery
    return params if delivery is None else jax.tree.map(jnp.add, params, delivery.displacement)


def columns(state: Any) -> Any:
    """All that the history holds in the shape of the parameters."""
    history = state.history
    means = [] if history.motion is None else [history.motion.mean]
    return [
        *history.snapshots,
        *means,
        *([] if history.delivery is None else [history.delivery.displacement]),
    ]


def assert_same(got: Any, want: Any, before: Any) -> None:
    """Displacements to 1e-6 of their length, masks alike."""
    trees = (got, want, before)
    flat = [np.concatenate([np.asarray(t[n], np.float64).ravel() for n in SPECS]) for t in trees]
    moved, expected = flat[0] - flat[2], flat[1] - flat[2]
    assert 0 < np.mean(expected != 0) < 1
    np.testing.assert_array_equal(moved != 0, expected != 0)
    # A float32 weight of size 1 to 3 rounds by up to 1.2e-7.
    np.testing.assert_allclose(moved, expected, rtol=0, atol=3e-7)


def assert_split(params: Any, on: Any, specs: dict[str, Any]) -> None:
    for leaf, spec in specs.items():
        assert params[leaf].sharding.is_equivalent_to(NamedSharding(on, spec), params[leaf].ndim), leaf


@functools.cache
def on_one_device(name: str) -> tuple[Any, Any]:
    tx = pdt_optax.pdt(optax.identity(), **SETTINGS[name])
    params, _, report = last(tx, [jax.tree.map(jnp.asarray, t) for t in walk()], tx.end_epoch)
    return params, report


# Under the user's jit nothing is donated.
@pytest.mark.parametrize(
    ("name", "kind", "ended"),
    [
        ("default", "auto", "donated"),
        ("default", "explicit", "in jit"),
        ("jump", "auto", "in jit"),
        ("jump", "explicit", "donated"),
        ("default, guarded", "auto", "as it is"),
        ("own motion", "explicit", "donated"),
        ("drift", "auto", "donated"),
        ("drift", "explicit", "in jit"),
        pytest.param("drift", "explicit", "as it is", marks=slow),
        ("shrink", "auto", "in jit"),
        ("shrink", "explicit", "donated"),
        ("released", "auto", "donated"),
        ("released", "explicit", "in jit"),
        ("paper", "auto", "in jit"),
        pytest.param("paper", "explicit", "donated", marks=slow),
        ("bfloat16", "auto", "donated"),
        ("bfloat16", "explicit", "in jit"),
        ("guarded", "auto", "in jit"),
        ("guarded", "auto", "as it is"),
        ("guarded", "explicit", "donated"),
    ],
)
def test_a_split_window_predicts_what_one_device_does(name: str, kind: str, ended: str) -> None:
    tx = pdt_optax.pdt(optax.identity(), **SETTINGS[name])
    trees, (want, expected) = walk(), on_one_device(name)
    on = mesh(kind)
    with jax.set_mesh(on):

        def end_epoch(params: Any, state: Any, value: Any) -> Any:
            return tx.end_epoch(params, state, value=value, donate=ended == "donated")

        got, state, report = last(
            tx, [put(t, on) for t in trees], jax.jit(end_epoch) if ended == "in jit" else end_epoch
        )
    assert_same(got, want, trees[-1])
    np.testing.assert_allclose(report.accepted_share, expected.accepted_share, rtol=1e-6)
    np.testing.assert_allclose(report.accepted_share_per_leaf, expected.accepted_share_per_leaf, rtol=1e-6)
    for column in (got, *columns(state)):
        assert_split(column, on, {n: spec for n, (_, spec) in SPECS.items()})


# How the weights lie, each of 8 leaves: replicated (data parallel), split over one axis, over
# the other, or each leaf in another way.
LAYOUTS: dict[str, dict[str, Any]] = {
    "replicated": {n: P() for n in SPECS},
    "fsdp": {n: P("data") if shape and shape[0] % 4 == 0 else P() for n, (shape, _) in SPECS.items()},
    "tensor": {
        n: P(*(None,) * (len(s) - 1), "model") if s and s[-1] % 2 == 0 else P() for n, (s, _) in SPECS.items()
    },
    "mixed": {n: spec for n, (_, spec) in SPECS.items()},
}
# Numbers in the all-reduce before the assembly, at most (window + 1)^2; the one after it has two for each leaf,
# the sum of its mask in two parts.
# A running mean sums ten numbers of each leaf.
REDUCED = {
    "default": 8 * len(SPECS),
    "own motion": 6,
    "drift": 6,
    "shrink": 6,
    "released": 16,
    "paper": 16,
    "bfloat16": 6,
}


def all_reduced(text: str) -> list[int]:
    """How many numbers each all-reduce of a compiled program adds up; fails if it moves any other way."""
    assert not re.search(r" (all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(", text)
    shapes = re.findall(r"= (\S+) all-reduce(?:-start)?\(", text)
    assert len(shapes) == len(re.findall(r" all-reduce(?:-start)?\(", text)), (
        "an all-reduce has several results"
    )
    return [int(np.prod([int(n) for n in re.findall(r"\d+", s.split("[")[1].split("]")[0])])) for s in shapes]


@pytest.mark.parametrize(
    ("name", "layout", "kind", "within"),
    [
        ("default", "replicated", "auto", True),
        ("default", "mixed", "auto", True),
        ("default", "fsdp", "explicit", False),
        ("own motion", "mixed", "explicit", True),
        ("drift", "replicated", "explicit", False),
        ("drift", "mixed", "auto", False),
        ("shrink", "fsdp", "auto", False),
        ("shrink", "fsdp", "explicit", True),
        ("released", "tensor", "auto", True),
        ("released", "tensor", "explicit", False),
        pytest.param("paper", "mixed", "auto", False, marks=slow),
        pytest.param("paper", "mixed", "explicit", True, marks=slow),
        ("bfloat16", "mixed", "auto", True),
        ("bfloat16", "mixed", "explicit", False),
    ],
)
def test_collectives(name: str, layout: str, kind: str, within: bool) -> None:
    """One small all-reduce before the assembly and one after, of the accepted counts; no other traffic."""
    on = mesh(kind)
    with jax.set_mesh(on) if within else contextlib.nullcontext():
        params = {n: jax.device_put(x, NamedSharding(on, LAYOUTS[layout][n])) for n, x in walk(1)[0].items()}
        text = lower(pdt_optax.Predictor(**SETTINGS[name]), params).compile().as_text()
    assert all_reduced(text) == ([] if layout == "replicated" else [REDUCED[name], 2 * len(SPECS)])


@pytest.mark.parametrize(
    ("kind", "layout"), [("auto", "mixed"), ("explicit", "tensor"), ("explicit", "replicated")]
)
def test_collectives_of_what_is_delivered_in_parts(kind: str, layout: str) -> None:
    """Those of a jump, of all weights: nothing is counted where all are accepted. A step adds none."""
    on = mesh(kind)
    with jax.set_mesh(on):
        params = {n: jax.device_put(x, NamedSharding(on, LAYOUTS[layout][n])) for n, x in walk(1)[0].items()}
        tx = pdt_optax.pdt(optax.adam(0.05))
        state = jax.jit(tx.init)(params)
        end = jax.jit(tx.end_epoch).lower(params, state).compile().as_text() or ""
        step = jax.jit(tx.update).lower(params, state, params).compile().as_text() or ""
    assert all_reduced(step) == []
    assert all_reduced(end) == ([] if layout == "replicated" else [REDUCED["default"]])


@pytest.mark.parametrize(
    "settings",
    [{**WINDOWED, "window": 3}, {"start": 3, "accept": pdt_optax.agree()}],
    ids=["windowed", "default"],
)
def test_inside_shard_map(settings: Any) -> None:
    tx = pdt_optax.pdt(optax.identity(), **settings)
    trees = walk(5)
    want, _, expected = last(tx, [jax.tree.map(jnp.asarray, t) for t in trees], tx.end_epoch)
    on = mesh("auto")
    specs = {n: spec for n, (_, spec) in SPECS.items()}

    @jax.jit
    @jax.shard_map(mesh=on, in_specs=([specs] * len(trees),), out_specs=(specs, P()))
    def run(trees: Any) -> Any:
        params, state, report = last_traced(tx, trees)
        return arrived(params, state), (report.predicted, report.accepted_share)

    got, (predicted, share) = run([put(t, on) for t in trees])
    assert predicted
    assert_same(got, want, trees[-1])
    np.testing.assert_allclose(share, expected.accepted_share, rtol=1e-6)


def last_traced(tx: Any, trees: Any) -> Any:
    state = tx.init(trees[0])
    for tree in trees[1:-1]:
        _, state, _ = tx.end_epoch(tree, state)
    return tx.end_epoch(trees[-1], state)


@pytest.mark.parametrize(
    ("kind", "initialised", "settings"),
    [
        ("explicit", "in jit", {**WINDOWED, "window": 2, "horizon": 2}),
        ("explicit", "in jit", {"start": 2}),
        ("auto", "eagerly", {"start": 2, "deliver": "jump"}),
        pytest.param("auto", "eagerly", {**WINDOWED, "window": 2, "horizon": 2}, marks=slow),
    ],
    ids=["windowed", "gradual", "jump", "windowed, auto"],
)
def test_training_in_jit_keeps_the_shardings(kind: str, initialised: str, settings: Any) -> None:
    """The `every` form, with adam: equal to one device, and each snapshot stays where its weights are."""
    tx = pdt_optax.pdt(optax.adam(0.05), every=2, **settings)
    start = walk(1)[0]

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        grads = jax.tree.map(lambda w: jnp.sin(3 * w), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def train(params: Any, init: Any) -> Any:
        state, shares = init(params), []
        for _ in range(12):
            params, state = step(params, state)
            shares.append(float(state.last_report.accepted_share))
        return params, state, shares

    want, _, expected = train(jax.tree.map(jnp.asarray, start), tx.init)
    on = mesh(kind)
    with jax.set_mesh(on):
        got, state, shares = train(put(start, on), tx.init if initialised == "eagerly" else jax.jit(tx.init))
    assert max(expected) > 0
    np.testing.assert_allclose(shares, expected, rtol=1e-5)
    chex.assert_trees_all_close(got, want, rtol=2e-5, atol=2e-6)
    for column in (got, *columns(state)):
        assert_split(column, on, {n: spec for n, (_, spec) in SPECS.items()})


@pytest.mark.parametrize("kind", ["auto", pytest.param("explicit", marks=slow)])
def test_in_an_nnx_optimizer(kind: str) -> None:
    """A jitted step on a split model; its snapshots are split as its weights are."""

    class Model(nnx.Module):
        def __init__(self) -> None:
            for name, x in walk(1)[0].items():
                setattr(self, name, nnx.Param(jnp.asarray(x)))

    def train(place: Any) -> Any:
        model = Model()
        nnx.update(model, place(nnx.as_pure(nnx.state(model, nnx.Param))))
        tx = pdt_optax.pdt(optax.adam(0.05), every=2, start=2)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model: Any, optimizer: Any) -> None:
            grads = jax.tree.map(lambda w: jnp.sin(3 * w), nnx.state(model, nnx.Param))
            optimizer.update(model, grads)

        for _ in range(12):
            step(model, optimizer)
        weights = dict(nnx.as_pure(nnx.state(model, nnx.Param)))
        return weights, nnx.as_pure(optimizer.opt_state)

    want, _ = train(lambda params: params)
    on = mesh(kind)
    with jax.set_mesh(on):
        got, state = train(lambda params: type(params)(put(dict(params), on)))
    chex.assert_trees_all_close(got, want, rtol=2e-5, atol=2e-6)
    for column in (got, *columns(state)):
        assert_split(column, on, {n: spec for n, (_, spec) in SPECS.items()})


@pytest.mark.parametrize(
    "settings", [{**WINDOWED, "window": 2, "horizon": 2}, {"start": 2}], ids=["windowed", "default"]
)
def test_under_pmap(settings: Any) -> None:
    """Eight replicas of all weights, each of which decides alone and alike."""
    tx = pdt_optax.pdt(optax.adam(0.05), every=2, **settings)
    params = jax.tree.map(jnp.asarray, walk(1)[0])

    def train(params: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.tree.map(lambda w: jnp.sin(3 * w), params), state, params)
            now: Any = state
            return (optax.apply_updates(params, updates), state), now.last_report.accepted_share

        (params, _), shares = jax.lax.scan(step, (params, tx.init(params)), None, length=12)
        return params, shares

    want, expected = jax.jit(train)(params)
    assert max(expected) > 0
    got, shares = jax.pmap(train)(jax.tree.map(lambda x: jnp.stack([x] * 8), params))
    for replica in range(8):
        np.testing.assert_allclose(shares[replica], expected, rtol=1e-5)
        alone = jax.tree.map(lambda x, i=replica: x[i], got)
        chex.assert_trees_all_close(alone, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", [pytest.param("auto", marks=slow), "explicit"])
def test_a_recorder_keeps_weights_from_every_shard(kind: str) -> None:
    trees = walk(3)
    tx = pdt_optax.pdt(optax.sgd(0.1))
    state, recorder = tx.init(put(trees[0], mesh(kind))), pdt_optax.Recorder(weights_per_leaf=40)
    for tree in trees[1:]:
        _, state, report = tx.end_epoch(put(tree, mesh(kind)), state)
        recorder.add(report, state)
    for name, index in recorder.indices.items():
        expected = [tree[name].ravel()[index] for tree in trees[1:]]
        np.testing.assert_array_equal(recorder.weights[name], expected)


# The whole mesh to two of its devices, and replicated weights to split ones.
MOVES = {"8 devices to 2": ("mixed", 8, "mixed", 2), "replicated to fsdp": ("replicated", 8, "fsdp", 8)}


@pytest.mark.parametrize(
    ("move", "kind", "settings"),
    [
        ("8 devices to 2", "explicit", {**WINDOWED, "window": 3, "horizon": 2}),
        ("8 devices to 2", "auto", {"start": 3, "deliver": "gradual"}),
        pytest.param("replicated to fsdp", "auto", {**WINDOWED, "window": 3, "horizon": 2}, marks=slow),
    ],
    ids=["windowed", "default", "replicated to fsdp"],
)
def test_a_checkpoint_goes_on_on_another_mesh(move: str, kind: str, settings: Any, tmp_path: Any) -> None:
    tx = pdt_optax.pdt(optax.adam(0.05), guard=pdt_optax.rollback(), **settings)
    axis = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}[kind]

    def place(layout: str, devices: int) -> Any:
        on = jax.make_mesh(
            (devices // 2, 2), ("data", "model"), (axis, axis), devices=jax.devices()[:devices]
        )
        params = {n: jax.device_put(x, NamedSharding(on, LAYOUTS[layout][n])) for n, x in walk(1)[0].items()}
        with jax.set_mesh(on):  # or what Orbax restores of the counters lies on one device
            return on, {"params": params, "opt_state": jax.jit(tx.init)(params)}

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        grads = jax.tree.map(lambda w: jnp.sin(3 * w), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def train(on: Any, saved: Any, epochs: range) -> Any:
        params, state, shares = saved["params"], saved["opt_state"], []
        with jax.set_mesh(on):
            for _ in epochs:
                params, state = step(params, state)
                params, state, report = tx.end_epoch(params, state, value=1.0)
                shares.append(float(report.accepted_share))
        return {"params": params, "opt_state": state}, shares

    layout, devices, new_layout, new_devices = MOVES[move]
    on, start = place(layout, devices)
    saved, _ = train(on, start, range(4))  # ends in a jump that is still to be judged
    assert saved["opt_state"].history.backup.armed
    want, expected = train(on, saved, range(4, 8))
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.StandardSave(saved))
        manager.wait_until_finished()
        other, target = place(new_layout, new_devices)
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        restored = manager.restore(3, args=ocp.args.StandardRestore(like))
    chex.assert_trees_all_equal(restored, saved)
    got, shares = train(other, restored, range(4, 8))
    assert max(expected) > 0
    np.testing.assert_allclose(shares, expected, rtol=1e-5)
    chex.assert_trees_all_close(got["params"], want["params"], rtol=2e-5, atol=2e-6)
    for column in (restored["params"], *columns(got["opt_state"])):
        assert_split(column, other, LAYOUTS[new_layout])


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_shapes_of_the_state_know_where_it_will_lie(kind: str) -> None:
    """`eval_shape` tells explicit shardings; automatic ones are known once XLA has compiled `init`."""
    tx = pdt_optax.pdt(optax.adam(0.05))
    on = mesh(kind)
    params = put(walk(1)[0], on)
    if kind == "explicit":
        shardings = jax.tree.map(lambda x: x.sharding, jax.eval_shape(tx.init, params))
    else:
        shardings = jax.jit(tx.init).lower(params).compile().output_shardings
    for snapshot in columns(shardings):
        for leaf, x in params.items():
            spec = NamedSharding(on, snapshot[leaf].spec)
            assert spec.is_equivalent_to(x.sharding, x.ndim), leaf


@pytest.mark.parametrize(
    ("pair", "spread"),
    [
        ("mlp-sgd", "data=4,model=2"),
        pytest.param("mlp-sgd", "data=2,fsdp=4", marks=slow),
        pytest.param("resnet-adamw", "fsdp=8", marks=slow),
    ],
)
def test_the_trainer_on_a_mesh(pair: str, spread: str, tmp_path: Any) -> None:
    """As on one device, weights split as the mesh says; broken off on one mesh, it goes on on another."""
    workload = tiny(PAIRS[pair])
    config = Config(workload, preset("recommended"), PAIRS[pair].optimizer, 3e-3, "cosine", epochs=7, seed=0)
    dataset, on = workload.load(), devices(spread)
    alone = list(train_run(config, dataset))
    assert any(e["predicted"] for e in alone)
    checkpoints = Saving(every=1, keep=True)
    run = records.record(tmp_path, config, dataset, devices("data=8"), checkpoints)
    while next(run)["epoch"] < 2:
        pass
    run.close()
    together = list(records.record(tmp_path, config, dataset, on, checkpoints))
    for name, tolerance in (("train_loss", 1e-3), ("validation_loss", 1e-2), ("accepted_share", 1e-2)):
        np.testing.assert_allclose([e[name] for e in together], [e[name] for e in alone], rtol=tolerance)

    key = jax.random.key(0)
    state = _program(config, on).init(key)
    split = {x.sharding.spec for x in jax.tree.leaves(state.params)}
    assert ("model" in str(split)) == ("model" in spread)
    assert ("fsdp" in str(split)) == ("fsdp" in spread)
    for snapshot in find((state.kept, state.opt_state), pdt_optax.History).snapshots:
        for x, s in zip(jax.tree.leaves(state.params), jax.tree.leaves(snapshot), strict=True):
            assert s.sharding.is_equivalent_to(x.sharding, x.ndim)


def test_a_batch_that_the_mesh_cannot_split() -> None:
    with pytest.raises(ValueError, match=r"must be a multiple of the parts.* Got 12, 8 parts"):
        check_batch(12, devices("data=4,fsdp=2"))
