"""`Recorder`: what it keeps, that it never waits, and its files."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm import tqdm

import pdt_optax
from tests.states import WINDOWED
from tests.trees import assert_same

SMALL: dict[str, Any] = {**WINDOWED, "window": 2, "start": 2, "interval": 1, "horizon": 1}
DEFAULT: dict[str, Any] = {**pdt_optax.presets.recommended, "start": 2}


def train(recorder: pdt_optax.Recorder, epochs: int = 5, **settings: Any) -> tuple[list[Any], list[Any]]:
    """Halves the weights at each epoch; returns the reports and weights that the recorder should have kept."""
    tx = pdt_optax.pdt(optax.sgd(0.5), **(SMALL | settings))
    params: Any = {
        "b": jnp.float32(0.5),
        "steps": jnp.int32(3),
        "w": jnp.linspace(-1, 2, 60).reshape(3, 4, 5),
    }
    state, reports, weights = tx.init(params), [], []
    for _ in range(epochs):
        params = jax.tree.map(lambda x: (0.5 * x).astype(x.dtype), params)
        params, state, report = tx.end_epoch(params, state, value=params["b"])
        recorder.add(report, state)
        reports.append(jax.device_get(report))
        weights.append(jax.device_get(params))
    return reports, weights


@pytest.mark.parametrize("settings", [SMALL, DEFAULT], ids=["windowed", "default"])
def test_reports_are_those_of_the_run(settings: Any) -> None:
    recorder = pdt_optax.Recorder()
    reports, _ = train(recorder, **settings)
    assert len(recorder) == 5
    assert_same(recorder.reports, jax.tree.map(lambda *x: np.stack(x), *reports))
    assert recorder.reports.predicted.tolist() == [False, False, True, settings is DEFAULT, True]
    assert (recorder.reports.persistence[1:] != 0).tolist() == [settings is DEFAULT] * 4
    assert recorder.paths == ["b", "w"]
    assert recorder.weights == recorder.indices == {}
    assert recorder.history() == []


# Differences and host memory: the snapshots are not all whole weights on the device.
@pytest.mark.parametrize(
    "storage", [{}, {"snapshot_dtype": "bfloat16"}, {"snapshot_device": "host"}, DEFAULT], ids=str
)
def test_weights_are_a_fixed_subsample_of_each_leaf(storage: dict[str, Any]) -> None:
    recorder = pdt_optax.Recorder(weights_per_leaf=7, seed=1)
    _, weights = train(recorder, **storage)
    index = recorder.indices["w"]
    assert len(np.unique(index)) == 7
    np.testing.assert_array_equal(recorder.weights["w"], [tree["w"].ravel()[index] for tree in weights])
    np.testing.assert_array_equal([tree["b"] for tree in recorder.history()], [[t["b"]] for t in weights])
    other = pdt_optax.Recorder(weights_per_leaf=7, seed=2)
    train(other, epochs=1)
    assert not np.array_equal(other.indices["w"], index)


def test_a_recorded_subsample_can_be_predicted() -> None:
    recorder = pdt_optax.Recorder(weights_per_leaf=7)
    train(recorder, dry_run=True)
    *snapshots, params = recorder.history()
    prediction: Any = pdt_optax.predict_and_mask(
        snapshots, params, dynamics=pdt_optax.dmd(rank=1), accept=pdt_optax.everything(), horizon=2
    )
    # One mode, halved at each epoch; DMD starts an epoch back.
    np.testing.assert_allclose(prediction.params["w"], 0.5 * params["w"], rtol=1e-5)


def test_add_and_latest_do_not_wait_for_the_device() -> None:
    tx = pdt_optax.pdt(optax.sgd(0.1), **SMALL)
    state = tx.init({"w": jnp.ones(8)})
    params, state, report = tx.end_epoch({"w": jnp.ones(8)}, state, value=1.0)
    pdt_optax.Recorder(weights_per_leaf=2).add(report, state)  # compiles

    @jax.jit
    def slow(x):
        return jax.lax.fori_loop(0, 400, lambda i, m: jnp.tanh(m @ m), jnp.eye(256) * x)[0, 0]

    jax.block_until_ready(slow(1.0))
    late = slow(0.5)
    params, state, report = tx.end_epoch(params, state, value=late)
    recorder = pdt_optax.Recorder(weights_per_leaf=2)
    recorder.add(report, state)
    early = recorder.latest()
    assert not late.is_ready()
    assert early == {}
    jax.block_until_ready(recorder._rows)
    assert recorder.latest() == {"ended": "1", "value": f"{float(late):.4g}", "accepted": "0%"}


def test_latest_is_for_progress_bars() -> None:
    recorder = pdt_optax.Recorder()
    reports, _ = train(recorder)
    jax.block_until_ready(recorder._rows)
    last = reports[-1]
    assert recorder.latest() == {
        "ended": "5",
        "value": f"{last.mean_value:.4g}",
        "accepted": f"{last.accepted_share:.0%}",
    }
    tqdm(range(2), disable=True).set_postfix(recorder.latest())


def test_with_every_the_report_survives_the_donation_of_the_state() -> None:
    tx = pdt_optax.pdt(optax.sgd(0.1), every=2, **SMALL)

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    train_step: Any = jax.jit(step, donate_argnums=(0, 1))
    params = {"w": jnp.ones(6)}
    state: Any = tx.init(params)
    recorder = pdt_optax.Recorder(weights_per_leaf=3)
    for _ in range(5):
        for _ in range(2):
            params, state = train_step(params, state)
        recorder.add(state.last_report, state)
    assert recorder.reports.predicted.tolist() == [False, False, True, False, True]
    np.testing.assert_allclose(recorder.weights["w"][:2, 0], [0.9**2, 0.9**4], rtol=1e-6)


def test_in_an_nnx_optimizer() -> None:
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tx = pdt_optax.pdt(optax.sgd(0.1), every=1, **SMALL)
    optimizer, recorder = nnx.Optimizer(model, tx, wrt=nnx.Param), pdt_optax.Recorder(weights_per_leaf=6)
    kernels = []
    for _ in range(3):
        optimizer.update(model, nnx.state(model, nnx.Param))
        state: Any = optimizer.opt_state
        recorder.add(state.last_report, state)
        kernels.append(np.asarray(model.kernel[...]).ravel())
    np.testing.assert_array_equal(recorder.weights["kernel"], kernels)
    assert type(recorder.reports.predicted) is np.ndarray
    assert recorder.reports.predicted.tolist() == [False, False, True]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_leaves_on_a_mesh(axis_type) -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(axis_type,))
    tx = pdt_optax.pdt(optax.sgd(0.1), **SMALL)
    params = jax.device_put({"w": jnp.arange(12.0).reshape(3, 4)}, NamedSharding(mesh, PartitionSpec("data")))
    state, recorder = tx.init(params), pdt_optax.Recorder(weights_per_leaf=5)
    params, state, report = tx.end_epoch(params, state)
    recorder.add(report, state)
    np.testing.assert_array_equal(recorder.weights["w"][0], recorder.indices["w"])


@pytest.mark.parametrize(("weights_per_leaf", "settings"), [(0, SMALL), (7, SMALL), (7, DEFAULT)], ids=str)
def test_a_file_holds_all_and_recording_can_go_on(tmp_path, weights_per_leaf: int, settings: Any) -> None:
    recorder, path = pdt_optax.Recorder(weights_per_leaf=weights_per_leaf), tmp_path / "run.npz"
    train(recorder, **settings)
    recorder.save(path)
    loaded = pdt_optax.Recorder.load(path)
    for epochs in (5, 8):
        assert len(loaded) == epochs
        assert loaded.paths == recorder.paths
        assert_same(loaded.reports, recorder.reports)
        assert_same(loaded.weights, recorder.weights)
        for r in (recorder, loaded):
            train(r, epochs=3, **settings)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


class Boom:
    def __reduce__(self):
        return pytest.fail, ("the file was executed",)


def write_others(path, recorded: dict[str, Any]) -> None:
    np.savez(path / "other.npz", x=np.ones(3))
    missing = {k: v for k, v in recorded.items() if k != "report/predicted"}
    assert recorded["format"] == "pdt_optax.Recorder 5"
    older = {k: v for k, v in recorded.items() if "persistence" not in k}
    older |= {"format": np.array("pdt_optax.Recorder 2")}
    newer = recorded | {"format": np.array("pdt_optax.Recorder 99")}
    pickled = recorded | {"report/rank": np.array([Boom()] * 5, dtype=object)}
    for name, arrays in (("missing", missing), ("older", older), ("newer", newer), ("object", pickled)):
        np.savez(path / f"{name}.npz", **arrays)  # pyright: ignore[reportArgumentType]
    np.save(path / "array.npy", np.ones(3))
    (path / "pickle.npz").write_bytes(pickle.dumps(Boom()))
    (path / "half.npz").write_bytes((path / "run.npz").read_bytes()[:900])
    (path / "empty.npz").write_bytes(b"")


def test_a_file_that_is_not_ours_is_an_error_and_never_executed(tmp_path) -> None:
    recorder = pdt_optax.Recorder(weights_per_leaf=2)
    train(recorder)
    recorder.save(tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as recorded:
        write_others(tmp_path, dict(recorded))
    others = sorted(path.name for path in tmp_path.iterdir() if path.name != "run.npz")
    assert len(others) == 9
    for name in others:
        rule = f"`path` must be a file that `Recorder.save` wrote. Got '.*{name}'"
        with pytest.raises(ValueError, match=rule):
            pdt_optax.Recorder.load(tmp_path / name)


def test_mistakes_are_errors() -> None:
    recorder = pdt_optax.Recorder()
    with pytest.raises(ValueError, match="Nothing is recorded yet"):
        recorder.reports  # noqa: B018
    with pytest.raises(ValueError, match="`weights_per_leaf` must be a whole number >= 0"):
        pdt_optax.Recorder(weights_per_leaf=-1)
    with pytest.raises(FileNotFoundError):
        pdt_optax.Recorder.load("no such file.npz")
    tx = pdt_optax.pdt(optax.sgd(0.1), **SMALL)
    _, state, report = tx.end_epoch({"x": jnp.ones(2)}, tx.init({"x": jnp.ones(2)}))
    with pytest.raises(TypeError, match=r"`report` must be a `PDTReport`.* Got NoneType"):
        recorder.add(None, state)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"must hold exactly one history of snapshots.* Found 0 in"):
        recorder.add(report, optax.sgd(0.1).init({"x": jnp.ones(2)}))
    train(recorder, epochs=1)
    with pytest.raises(ValueError, match=r"of one model. Expected the leaves \['b', 'w'\], got \['x'\]"):
        recorder.add(report, state)
