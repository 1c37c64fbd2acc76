"""`Recorder`: what it keeps, that it never waits, and its files."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm import tqdm

import pdt_optax

SMALL: dict[str, Any] = {"window": 2, "start": 2, "interval": 1, "horizon": 1}


def make_params() -> dict[str, Any]:
    return {"b": jnp.float32(0.5), "steps": jnp.int32(3), "w": jnp.linspace(-1, 2, 60).reshape(3, 4, 5)}


def gradient(params: Any) -> Any:
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else jnp.zeros_like(x), params)


def train(recorder: pdt_optax.Recorder, epochs: int = 5, **settings: Any) -> tuple[list[Any], list[Any]]:
    inner = optax.masked(optax.sgd(0.1), {"b": True, "steps": False, "w": True})
    tx = pdt_optax.pdt(inner, **(SMALL | settings))
    params = make_params()
    state, reports, weights = tx.init(params), [], []
    for _ in range(epochs):
        updates, state = tx.update(gradient(params), state, params)
        params, state, report = tx.end_epoch(optax.apply_updates(params, updates), state)
        recorder.add(report, state)
        reports.append(jax.device_get(report))
        weights.append(jax.device_get(params))
    return reports, weights


def assert_same(a: pdt_optax.Recorder, b: pdt_optax.Recorder) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a.reports, b.reports)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a.weights, b.weights)
    assert a.paths == b.paths


def test_reports_are_those_of_the_run() -> None:
    recorder = pdt_optax.Recorder()
    reports, _ = train(recorder)
    assert len(recorder) == 5
    for i, report in enumerate(reports):
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), recorder.reports, report)
    assert recorder.reports.predicted.tolist() == [False, False, True, False, True]
    assert recorder.paths == ["b", "w"]
    assert recorder.weights == {}
    assert recorder.history() == []


def test_weights_are_a_fixed_subsample_of_each_leaf() -> None:
    recorder = pdt_optax.Recorder(weights_per_leaf=7, seed=1)
    _, weights = train(recorder)
    index = recorder.indices["w"]
    assert len(np.unique(index, axis=0)) == 7
    for i, tree in enumerate(weights):
        np.testing.assert_array_equal(recorder.weights["w"][i], tree["w"][tuple(index.T)])
        np.testing.assert_array_equal(recorder.history()[i]["b"], [tree["b"]])
    other = pdt_optax.Recorder(weights_per_leaf=7, seed=2)
    train(other, epochs=1)
    assert not np.array_equal(other.indices["w"], index)


def test_a_recorded_subsample_can_be_predicted() -> None:
    recorder = pdt_optax.Recorder(weights_per_leaf=7)
    train(recorder, dry_run=True)
    *snapshots, params = recorder.history()
    prediction = pdt_optax.predict_and_mask(
        snapshots, params, dynamics=pdt_optax.dmd(rank=1), accept=pdt_optax.everything(), horizon=2
    )
    # Plain SGD on |w|^2 / 2: one mode, 0.9 an epoch; DMD starts an epoch back.
    np.testing.assert_allclose(prediction.params["w"], 0.9 * params["w"], rtol=1e-5)


def test_add_does_not_wait_for_the_device() -> None:
    tx = pdt_optax.pdt(optax.sgd(0.1), **SMALL)
    params = {"w": jnp.ones(8)}
    state = tx.init(params)
    params, state, _ = tx.end_epoch(params, state)

    @jax.jit
    def slow(x):
        return jax.lax.fori_loop(0, 400, lambda i, m: jnp.tanh(m @ m), jnp.eye(256) * x)[0, 0]

    recorder, warm = pdt_optax.Recorder(weights_per_leaf=2), pdt_optax.Recorder(weights_per_leaf=2)
    jax.block_until_ready(slow(1.0))
    _, _, report = tx.end_epoch(params, state, value=1.0)
    warm.add(report, state)
    late = slow(0.5)
    params, state, report = tx.end_epoch(params, state, value=late)
    recorder.add(report, state)
    early = recorder.latest()
    assert not late.is_ready()
    assert early == {}
    jax.block_until_ready(report)
    recorder.reports  # noqa: B018 - waits
    assert recorder.latest()["ended"] == "1"


def test_latest_is_for_progress_bars() -> None:
    recorder = pdt_optax.Recorder()
    assert recorder.latest() == {}
    reports, _ = train(recorder)
    recorder.reports  # noqa: B018 - waits
    assert recorder.latest() == {"ended": "5", "accepted": f"{reports[-1].accepted_share:.0%}"}
    with tqdm(range(2), disable=True) as bar:
        for _ in bar:
            bar.set_postfix(recorder.latest())


def test_with_every_the_report_survives_the_donation_of_the_state() -> None:
    tx = pdt_optax.pdt(optax.sgd(0.1), every=2, **SMALL)

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    train_step: Any = jax.jit(step, donate_argnums=(0, 1))
    params = {"w": jnp.ones(6)}
    state, recorder = tx.init(params), pdt_optax.Recorder(weights_per_leaf=3)
    for _ in range(5):
        for _ in range(2):
            params, state = train_step(params, state)
        recorder.add(state.last_report, state)
    assert recorder.reports.predicted.tolist() == [False, False, True, False, True]
    np.testing.assert_allclose(recorder.weights["w"][:2, 0], [0.9**2, 0.9**4], rtol=1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_leaves_on_a_mesh(axis_type) -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(axis_type,))
    whole = NamedSharding(mesh, PartitionSpec())
    tx = pdt_optax.pdt(optax.sgd(0.1), **SMALL)
    params = jax.device_put({"w": jnp.arange(12.0).reshape(3, 4)}, whole)
    state, recorder = tx.init(params), pdt_optax.Recorder(weights_per_leaf=5)
    params, state, report = tx.end_epoch(params, state)
    recorder.add(report, state)
    np.testing.assert_array_equal(recorder.weights["w"][0], recorder.indices["w"] @ [4, 1])


# --- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights_per_leaf", [0, 7])
def test_a_file_holds_all_and_recording_can_go_on(tmp_path, weights_per_leaf) -> None:
    recorder, path = pdt_optax.Recorder(weights_per_leaf=weights_per_leaf), tmp_path / "run.npz"
    train(recorder)
    recorder.save(path)
    loaded = pdt_optax.Recorder.load(path)
    assert_same(recorder, loaded)
    for r in (recorder, loaded):
        train(r, epochs=3)
    assert len(loaded) == 8
    assert_same(recorder, loaded)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


class Boom:
    def __reduce__(self):
        return pytest.fail, ("the file was executed",)


def write_others(path) -> None:
    np.savez(path / "other.npz", x=np.ones(3))
    np.savez(path / "format.npz", format=np.array("else"), version=np.array(1))
    np.savez(path / "object.npz", format=np.array(Boom(), dtype=object), version=np.array(1))
    np.save(path / "array.npy", np.ones(3))
    (path / "pickle.npz").write_bytes(pickle.dumps(Boom()))
    (path / "text.npz").write_text("hello")
    (path / "empty.npz").write_bytes(b"")


@pytest.mark.parametrize(
    "name", ["other.npz", "format.npz", "object.npz", "array.npy", "pickle.npz", "text.npz", "empty.npz"]
)
def test_a_file_that_is_not_ours_is_an_error_and_never_executed(tmp_path, name) -> None:
    write_others(tmp_path)
    with pytest.raises(ValueError, match=f"`path` must be a file that `Recorder.save` wrote. Got '.*{name}'"):
        pdt_optax.Recorder.load(tmp_path / name)


def changed(tmp_path, **arrays: Any):
    recorder = pdt_optax.Recorder(weights_per_leaf=2)
    train(recorder)
    recorder.save(tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as found:
        kept = dict(found) | arrays
    np.savez(tmp_path / "changed.npz", **{k: v for k, v in kept.items() if v is not None})
    return tmp_path / "changed.npz"


def test_a_newer_version_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"newer pdt_optax: .* Got version 99, expected at most 1"):
        pdt_optax.Recorder.load(changed(tmp_path, version=np.array(99)))


@pytest.mark.parametrize(
    "arrays",
    [{"report/predicted": None}, {"report/rank": np.zeros(4, int)}, {"indices/0": np.zeros((9, 0), int)}],
    ids=str,
)
def test_a_damaged_file_is_an_error(tmp_path, arrays) -> None:
    with pytest.raises(ValueError, match=r"The record in '.*changed.npz' is damaged"):
        pdt_optax.Recorder.load(changed(tmp_path, **arrays))


def test_half_a_file_is_an_error(tmp_path) -> None:
    path = changed(tmp_path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"`path` must be a file that `Recorder.save` wrote"):
        pdt_optax.Recorder.load(path)


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
    train(recorder, epochs=1)
    with pytest.raises(ValueError, match=r"of one model. Expected the leaves \['b', 'w'\], got \['x'\]"):
        recorder.add(report, state)
