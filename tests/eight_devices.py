"""Weights split over a mesh: run by test_sharding.py, where jax has eight CPU devices."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import pdt_optax
from pdt_optax import _pdt

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
    "recommended": {},
    "shrink": {"accept": pdt_optax.shrink(), "horizon": 3},
    "released": dict(pdt_optax.presets.released),
    "paper": dict(pdt_optax.presets.paper),
    "bfloat16": {"snapshot_dtype": "bfloat16"},
}


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
    return params, state, report  # pyright: ignore[reportPossiblyUnboundVariable]


def assert_same(got: Any, want: Any, before: Any) -> None:
    """Displacements to 1e-6 of their length, masks alike."""
    trees = (got, want, before)
    flat = [np.concatenate([np.asarray(t[n], np.float64).ravel() for n in SPECS]) for t in trees]
    moved, expected = flat[0] - flat[2], flat[1] - flat[2]
    assert 0 < np.mean(expected != 0) < 1
    np.testing.assert_array_equal(moved != 0, expected != 0)
    # A float32 weight of size 1 to 3 rounds by up to 1.2e-7.
    np.testing.assert_allclose(moved, expected, rtol=0, atol=3e-7)


GUARDED: dict[str, dict[str, Any]] = {"guarded": {"guard": pdt_optax.rollback()}}


@pytest.mark.parametrize("name", [*SETTINGS, *GUARDED])
@pytest.mark.parametrize("kind", ["auto", "explicit"])
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("donate", [False, True])
def test_a_split_window_predicts_what_one_device_does(
    name: str, kind: str, jitted: bool, donate: bool
) -> None:
    tx = pdt_optax.pdt(optax.identity(), **(SETTINGS | GUARDED)[name])
    trees = walk()
    want, _, expected = last(tx, [jax.tree.map(jnp.asarray, t) for t in trees], tx.end_epoch)
    on = mesh(kind)
    with jax.set_mesh(on):

        def end_epoch(params: Any, state: Any, value: Any) -> Any:
            return tx.end_epoch(params, state, value=value, donate=donate and not jitted)

        got, state, report = last(
            tx, [put(t, on) for t in trees], jax.jit(end_epoch) if jitted else end_epoch
        )
    assert_same(got, want, trees[-1])
    np.testing.assert_allclose(report.accepted_share, expected.accepted_share, rtol=1e-6)
    np.testing.assert_allclose(report.accepted_share_per_leaf, expected.accepted_share_per_leaf, rtol=1e-6)
    for column in (got, *state.snapshots):
        for leaf, x in column.items():
            assert x.sharding.is_equivalent_to(NamedSharding(on, SPECS[leaf][1]), x.ndim), leaf


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_one_small_all_reduce_before_the_assembly_and_one_after(name: str, kind: str) -> None:
    tx = pdt_optax.pdt(optax.identity(), **SETTINGS[name])
    on = mesh(kind)
    with jax.set_mesh(on):
        params = put(walk(1)[0], on)
        text = _pdt._lower_end_epoch(tx, params).compile().as_text()
    assert not re.search(r" (all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(", text)
    reduced = re.findall(r"= (\S+) all-reduce(?:-start)?\(", text)
    sizes = [
        int(np.prod([int(n) for n in re.findall(r"\d+", shape.split("[")[1].split("]")[0])]))
        for shape in reduced
    ]
    assert 1 <= len(sizes) <= 2, reduced
    assert len(sizes) == len(re.findall(r" all-reduce(?:-start)?\(", text)), (
        "one all-reduce has several results"
    )
    assert max(sizes) <= max(36, len(SPECS)), reduced


def test_inside_shard_map() -> None:
    tx = pdt_optax.pdt(optax.identity())
    trees = walk()
    want, _, expected = last(tx, [jax.tree.map(jnp.asarray, t) for t in trees], tx.end_epoch)
    on = mesh("auto")
    specs = {n: spec for n, (_, spec) in SPECS.items()}

    @jax.jit
    @jax.shard_map(mesh=on, in_specs=([specs] * len(trees),), out_specs=(specs, P()))
    def run(trees: Any) -> Any:
        params, _, report = last_traced(tx, trees)
        return params, (report.predicted, report.accepted_share)

    got, (predicted, share) = run([put(t, on) for t in trees])
    assert predicted
    assert_same(got, want, trees[-1])
    np.testing.assert_allclose(share, expected.accepted_share, rtol=1e-6)


def last_traced(tx: Any, trees: Any) -> Any:
    state = tx.init(trees[0])
    for tree in trees[1:-1]:
        _, state, _ = tx.end_epoch(tree, state)
    return tx.end_epoch(trees[-1], state)


@pytest.mark.parametrize("kind", ["auto", "explicit"])
@pytest.mark.parametrize("initialised", ["eagerly", "in jit"])
def test_training_in_jit_keeps_the_shardings(kind: str, initialised: str) -> None:
    """The `every` form, with adam: equal to one device, and each snapshot stays where its weights are."""
    tx = pdt_optax.pdt(optax.adam(0.05), every=2, window=2, start=2, horizon=2)
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
    for leaf in SPECS:
        np.testing.assert_allclose(got[leaf], want[leaf], rtol=2e-5, atol=2e-6)
        for x in (got[leaf], *(s[leaf] for s in state.snapshots)):
            assert x.sharding.is_equivalent_to(NamedSharding(on, SPECS[leaf][1]), x.ndim), leaf


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_in_an_nnx_optimizer(kind: str) -> None:
    """A jitted step on a split model; its snapshots are split as its weights are."""

    class Model(nnx.Module):
        def __init__(self) -> None:
            for name, x in walk(1)[0].items():
                setattr(self, name, nnx.Param(jnp.asarray(x)))

    def train(place: Any) -> Any:
        model = Model()
        nnx.update(model, place(nnx.as_pure(nnx.state(model, nnx.Param))))
        tx = pdt_optax.pdt(optax.adam(0.05), every=2, window=2, start=2, horizon=2)
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
    for leaf in SPECS:
        np.testing.assert_allclose(got[leaf], want[leaf], rtol=2e-5, atol=2e-6)
        for x in (got[leaf], *(s[leaf] for s in state.snapshots)):
            assert x.sharding.is_equivalent_to(NamedSharding(on, SPECS[leaf][1]), x.ndim), leaf


def test_under_pmap() -> None:
    """Eight replicas of all weights, each of which decides alone and alike."""
    tx = pdt_optax.pdt(optax.adam(0.05), every=2, window=2, start=2, horizon=2)
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
        for leaf in SPECS:
            np.testing.assert_allclose(got[leaf][replica], want[leaf], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["auto", "explicit"])
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
