"""Slow drift: against its equations in float64 NumPy, on real training, in every way to deliver it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import pdt_optax
from tests import training
from tests.trees import assert_same, differs


def pdt(inner: Any, **settings: Any) -> Any:
    return pdt_optax.pdt(inner, **settings)


def predictor_of(**settings: Any) -> Any:
    return pdt_optax.Predictor(**settings)


STEPS = 6
EPOCHS = 14


@functools.cache
def data() -> tuple[jax.Array, jax.Array]:
    images, labels = load_digits(return_X_y=True)
    return jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)


def batch(number: int) -> tuple[jax.Array, jax.Array]:
    images, labels = data()
    rows = np.random.default_rng(number).integers(0, len(labels), 64)
    return images[rows], labels[rows]


class Trained(NamedTuple):
    """A run: at each epoch's end the weights before and after it, the state, and the report."""

    before: list[Any]
    after: list[Any]
    states: list[Any]
    reports: list[Any]


def train(
    tx: Any,
    *,
    epochs: int = EPOCHS,
    dtype: Any = jnp.float32,
    lengths: Callable[[int], int] = lambda e: STEPS,
) -> Trained:
    """Trains an MLP on digits; `lengths` are the epochs' updates."""
    params = jax.tree.map(lambda x: x.astype(dtype), training.init_params())
    state = tx.init(params)
    ends = tx.update.__self__.every is None

    @jax.jit
    def step(params: Any, state: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        value, grads = jax.value_and_grad(training.loss_fn)(params, images, labels)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    run, number = Trained([], [], [], []), 0
    for epoch in range(epochs):
        for _ in range(lengths(epoch)):
            params, state = step(params, state, *batch(number))
            number += 1
        run.before.append(jax.device_get(params))
        if ends:
            params, state, report = tx.end_epoch(params, state)
        else:
            report = state.last_report
        run.after.append(jax.device_get(params))
        run.states.append(jax.device_get(state))
        run.reports.append(jax.device_get(report))
    return run


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


class Oracle(NamedTuple):
    """The equations of `slow_drift` at one epoch's end."""

    mean: np.ndarray
    gain: float
    alignment: float
    persistence: float
    displacement: np.ndarray


def oracle(
    path: list[np.ndarray], started_from: list[np.ndarray], model: Any, start: int, delivered: list[float]
) -> list[Oracle]:
    """m_n, its gain, a_n and what is delivered, from the weights at the epochs' ends.

    Args:
      path: (N,) each, before the boundary, float64.
      started_from: the weights that each epoch started from.
      model: `slow_drift(...)`.
      start: the first epoch that predicts.
      delivered: of the displacement before it, how much each epoch delivered in parts.
    """
    mean, weight, gain = np.zeros_like(path[0]), 0.0, model.gain
    displacement, found = np.zeros_like(path[0]), []
    for epoch, (w, origin) in enumerate(zip(path, started_from, strict=True)):
        own = w - origin - delivered[epoch] * displacement
        persistence = float(own @ mean / (mean @ mean)) if mean.any() else 0.0
        cosine = float(own @ mean / (np.linalg.norm(own) * np.linalg.norm(mean))) if mean.any() else 0.0
        if epoch > start:
            gain *= np.exp(0.2 * np.clip((cosine - 0.15) / 0.1, -1, 1))
            gain = float(np.clip(gain, model.gain, model.most_gain))
        far = model.memory if model.memory >= 1 else max(model.memory * (epoch + 1), 2)
        weight = (1 - 1 / far) * weight + 1
        mean = mean + (own - mean) / weight
        displacement = np.zeros_like(w)
        if epoch >= start:
            w = np.where(mean != 0, w, 0)  # what never moved stays
            longer = 0.0 if model.outward else max(mean @ w, 0) / (w @ w)
            displacement = gain * (mean - longer * w)
        found.append(Oracle(mean, gain, cosine, persistence, displacement))
    return found


def check(
    run: Trained, model: Any, *, gradual: bool, start: int = 5, delivered: list[float] | None = None
) -> None:
    """Every epoch's end of a run against the oracle.

    Means and displacements are float32 and the weights that they come from too: 3e-7 of a weight
    of size 0.1 is a few 1e-5 of an epoch's motion, and a mean of them keeps that.
    """
    path = [flat(w) for w in run.before]
    origins = [flat(training.init_params()), *(flat(w) for w in run.after[:-1])]
    shares = delivered or [1.0] * len(path)
    expected = oracle(path, origins, model, start, shares if gradual else [0.0] * len(path))
    for epoch, (e, state, report) in enumerate(zip(expected, run.states, run.reports, strict=True)):
        motion = state.history.motion
        size = np.linalg.norm(e.mean)
        assert np.linalg.norm(flat(motion.mean) - e.mean) <= 1e-4 * size
        np.testing.assert_allclose(motion.pull.gain, e.gain, rtol=1e-3)
        assert report.gain == motion.pull.gain
        np.testing.assert_allclose(report.alignment, e.alignment, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(report.persistence, e.persistence, rtol=1e-3, atol=1e-4)
        assert report.predicted == (epoch >= start)
        moved = flat(state.history.delivery.displacement) if gradual else flat(run.after[epoch]) - path[epoch]
        assert np.linalg.norm(moved - e.displacement) <= 1e-3 * size


MODELS = {
    "default": pdt_optax.slow_drift(),
    "epochs": pdt_optax.slow_drift(memory=3, gain=0.5, most_gain=0.5, outward=True),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("every", [None, STEPS])
@pytest.mark.parametrize("deliver", ["gradual", "jump"])
def test_the_running_mean_is_its_equations(name: str, every: int | None, deliver: str) -> None:
    model = MODELS[name]
    tx = pdt(optax.adam(3e-3), every=every, deliver=deliver, dynamics=model)
    if every is None:
        check(train(tx), model, gradual=deliver == "gradual")
        return
    # The weights before a boundary inside `update` are not to be seen: the other form is the oracle.
    outside = train(pdt(optax.adam(3e-3), deliver=deliver, dynamics=model))
    inside = train(tx)
    for a, b in zip(outside.after, inside.after, strict=True):
        np.testing.assert_allclose(flat(a), flat(b), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("gain", "alignment", "then"),
    [
        (2.0, 0.15, 2.0),
        (2.0, 0.20, 2.0 * np.exp(0.1)),
        (2.0, 0.25, 2.0 * np.exp(0.2)),
        (2.0, 0.90, 2.0 * np.exp(0.2)),  # no faster
        (2.0, 0.10, 2.0 * np.exp(-0.1)),
        (2.0, 0.05, 2.0 * np.exp(-0.2)),
        (2.0, -1.0, 2.0 * np.exp(-0.2)),
        (3.4, 0.90, 3.5),
        (1.1, -1.0, 1.0),
    ],
)
def test_the_gain_by_the_cosine_of_the_path(gain: float, alignment: float, then: float) -> None:
    got = pdt_optax.slow_drift().next_gain(jnp.float32(gain), jnp.float32(alignment))
    np.testing.assert_allclose(got, then, rtol=1e-6)


@pytest.mark.parametrize(
    ("memory", "epochs", "far"), [(0.35, 3, 2.0), (0.35, 20, 7.0), (1, 20, 1.0), (1.5, 20, 1.5), (4, 1, 4.0)]
)
def test_how_far_the_mean_looks_back(memory: float, epochs: int, far: float) -> None:
    rate, weight = pdt_optax.slow_drift(memory=memory).rate(jnp.float32(1.6), epochs)
    np.testing.assert_allclose([rate, weight], [1 / (2.6 - 1.6 / far), 2.6 - 1.6 / far], rtol=1e-6)


@pytest.mark.parametrize(
    ("outward", "along", "square", "held"),
    [(False, 0.3, 0.5, -0.6), (False, -0.3, 0.5, 0), (False, 0, 0, 0), (True, 0.3, 0.5, 0)],
)
def test_what_keeps_the_length(outward: bool, along: float, square: float, held: float) -> None:
    got = pdt_optax.slow_drift(outward=outward).inward(jnp.float32(along), jnp.float32(square))
    np.testing.assert_allclose(got, held, rtol=1e-6)


def test_a_window_gives_the_same_mean() -> None:
    """`predict_and_mask` over all snapshots of a run that nothing was delivered to."""
    model = pdt_optax.slow_drift(gain=1.3, most_gain=1.3)
    run = train(pdt(optax.adam(3e-3), dynamics=model, dry_run=True), epochs=8)
    snapshots = [training.init_params(), training.init_params(), *run.before[:-1]]  # the oldest is not used
    prediction = pdt_optax.predict_and_mask(
        snapshots, run.before[-1], dynamics=model, accept=pdt_optax.everything(), horizon=1, step=7
    )
    assert prediction.rank == 1
    np.testing.assert_array_equal(prediction.eigenvalues, [1, *[0] * (len(snapshots) - 2)])  # it just goes on
    mean, w = flat(run.states[-1].history.motion.mean), flat(run.before[-1])
    at = np.where(mean != 0, w, 0)
    assert (at != w).any()  # the pixels that are dark in all images
    expected = w + 1.3 * (mean - max(mean @ at, 0) / (at @ at) * at)
    np.testing.assert_allclose(flat(prediction.params), expected, rtol=0, atol=2e-7 * np.abs(w).max())


def test_an_epoch_that_is_shorter_or_longer_than_the_one_before() -> None:
    """What a shorter one could not deliver is dropped, and reported; a longer one delivers no more than all."""
    lengths = [STEPS] * 7 + [3, 9, STEPS, STEPS]
    run = train(pdt(optax.adam(3e-3)), epochs=len(lengths), lengths=lengths.__getitem__)
    shares = [1.0] * 7 + [0.5, 1.0, 6 / 9, 1.0]
    check(run, pdt_optax.slow_drift(), gradual=True, delivered=shares)
    reported = [float(r.delivered_share) for r in run.reports]
    np.testing.assert_allclose(reported[6:], shares[6:], rtol=1e-6)
    assert reported[:6] == [1.0] * 6  # nothing was to be delivered
    assert all(r.gradual for r in run.reports)


def test_nothing_is_delivered_before_the_start() -> None:
    """Until then it is the inner optimizer, bit for bit."""
    plain = train(pdt(optax.adam(3e-3), dry_run=True), epochs=6)
    run = train(pdt(optax.adam(3e-3)), epochs=7)
    assert_same(plain.after[5], run.after[5])
    assert not plain.reports[5].predicted ^ run.reports[5].predicted
    assert differs(train(pdt(optax.adam(3e-3), dry_run=True), epochs=7).after[6], run.after[6])


def test_the_weights_are_not_made_longer() -> None:
    """To first order: a displacement has no component along the weights."""
    run = train(pdt(optax.adam(3e-3), deliver="jump"))
    for before, after in zip(run.before[5:], run.after[5:], strict=True):
        w, moved = flat(before), flat(after) - flat(before)
        assert w @ moved <= 1e-3 * np.linalg.norm(w) * np.linalg.norm(moved)


@pytest.mark.parametrize("deliver", ["gradual", "jump"])
def test_resumed_in_the_middle_of_an_epoch(deliver: str) -> None:
    """A state holds all: nothing is delivered twice or lost."""
    tx = pdt(optax.adam(3e-3), deliver=deliver)
    params = training.init_params()

    @jax.jit
    def step(params: Any, state: Any, *batch: Any) -> tuple[Any, Any]:
        grads = jax.grad(training.loss_fn)(params, *batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def go_on(params: Any, state: Any, first: int, last: int) -> tuple[Any, Any]:
        for number in range(first, last):
            params, state = step(params, state, *batch(number))
            if number % STEPS == STEPS - 1:
                params, state, _ = tx.end_epoch(params, state)
        return params, state

    whole = go_on(params, tx.init(params), 0, 60)
    params, state = jax.device_put(jax.device_get(go_on(params, tx.init(params), 0, 45)))
    assert_same(whole, go_on(params, state, 45, 60))


def test_bfloat16_weights_are_moved_at_once() -> None:
    """A part of a displacement would be rounded away; what was really added is no motion of the optimizer's own."""
    run = train(pdt(optax.sgd(0.2)), dtype=jnp.bfloat16)
    assert jax.tree.leaves(run.states[-1].history.delivery.displacement) == []
    assert differs(run.before[-1], run.after[-1])
    path = [flat(w) for w in run.before]
    origins = [flat(jax.tree.map(lambda x: x.astype(jnp.bfloat16), training.init_params()))]
    origins += [flat(w) for w in run.after[:-1]]
    expected = oracle(path, origins, pdt_optax.slow_drift(), 5, [0.0] * len(path))
    for e, state in zip(expected, run.states, strict=True):
        motion = state.history.motion
        assert {x.dtype for x in jax.tree.leaves(motion.mean)} == {np.dtype("float32")}
        assert np.linalg.norm(flat(motion.mean) - e.mean) <= 1e-5 * np.linalg.norm(e.mean)


def test_mixed_leaves() -> None:
    """Leaves of float32 in parts, of bfloat16 at once, integers and excluded ones never."""
    params: Any = {
        "wide": jnp.arange(1.0, 5.0),
        "narrow": jnp.arange(1.0, 5.0, dtype=jnp.bfloat16),
        "count": jnp.arange(3),
        "fixed": jnp.ones(2),
    }
    tx = pdt(optax.sgd(0.1), exclude=lambda path: path == "fixed")
    state: Any = tx.init(params)
    start, before, report = params, params, None
    for _ in range(7):
        grads = {name: jnp.ones_like(x) * 0.1 for name, x in params.items()}
        updates, state = tx.update(grads | {"count": jnp.zeros(3, int)}, state, params)
        params = optax.apply_updates(params, updates)
        before = params
        params, state, report = tx.end_epoch(params, state)
    assert report is not None
    assert report.accepted_share_per_leaf.shape == report.persistence_per_leaf.shape == (2,)
    assert [x.shape for x in jax.tree.leaves(state.history.delivery.displacement)] == [(4,)]
    assert differs(before["narrow"], params["narrow"])
    assert_same(before["wide"], params["wide"])
    assert_same(start["count"], params["count"])
    np.testing.assert_allclose(params["fixed"], 1 - 7 * 0.01, rtol=1e-6)


@pytest.mark.parametrize("deliver", ["gradual", "jump"])
@pytest.mark.parametrize("dynamics", [pdt_optax.slow_drift(), pdt_optax.drift(), pdt_optax.dmd()])
@pytest.mark.parametrize("snapshot_dtype", [None, "bfloat16"])
def test_a_window_holds_the_optimizers_own_path(
    deliver: str, dynamics: Any, snapshot_dtype: str | None
) -> None:
    """Its newest entry is where the weights are, its differences what the optimizer did by itself."""
    tx = pdt(
        optax.adam(3e-3), dynamics=dynamics, window=4, start=5, deliver=deliver, snapshot_dtype=snapshot_dtype
    )
    run = train(tx)
    own, moved = [], [np.zeros(1)] * EPOCHS
    origins = [flat(training.init_params()), *(flat(w) for w in run.after[:-1])]
    for epoch, state in enumerate(run.states):
        arrived = moved[epoch - 1] if deliver == "gradual" and epoch else 0.0
        own.append(flat(run.before[epoch]) - origins[epoch] - arrived)
        if deliver == "gradual":
            moved[epoch] = flat(state.history.delivery.displacement)
        window = [flat(w) for w in pdt_optax.snapshots(tx, state)]
        assert_same(window[-1], flat(run.after[epoch]))
        if epoch >= 3:
            for difference, step in zip(np.diff(window, axis=0), own[-3:], strict=True):
                rounded = 5e-3 if snapshot_dtype else 2e-4
                assert np.linalg.norm(difference - step) <= rounded * np.linalg.norm(step)
    assert any(r.predicted for r in run.reports)


def test_a_rollback_brings_the_weights_back_and_delivers_nothing() -> None:
    """Both ways: the epoch after a delivery that ruins it is as if there had been none."""
    for deliver in ("gradual", "jump"):
        tx = pdt(optax.sgd(0.1), guard=pdt_optax.rollback(), deliver=deliver)
        w: Any = jnp.array([4.0, -3.0])
        state, report, kept, mean = tx.init(w), None, None, None
        for epoch in range(8):
            updates, state = tx.update(0.5 * w, state, w)
            w = optax.apply_updates(w, updates)
            value = jnp.nan if epoch == 6 else jnp.sum(w**2)
            before = w
            w, state, report = tx.end_epoch(w, state, value=value)
            if epoch == 5:
                kept, mean = before, state.history.motion
                assert report.predicted
            if epoch == 6:
                assert report.rolled_back
                assert_same(kept, w)
                assert_same(mean, state.history.motion)
                if deliver == "gradual":
                    assert not np.any(state.history.delivery.displacement)
        assert report is not None
        assert not report.rolled_back
        assert np.all(np.isfinite(w))


def test_not_finite_weights_leave_the_mean_alone() -> None:
    tx = pdt(optax.sgd(0.1), deliver="jump")
    w = jnp.array([4.0, -3.0])
    state = tx.init(w)
    for _ in range(6):
        w, state, _ = tx.end_epoch(0.9 * w, state)
    mean = state.history.motion
    _, state, report = tx.end_epoch(jnp.array([jnp.nan, 1.0]), state)
    assert not report.finite
    assert not report.predicted
    assert_same(mean, state.history.motion)


def test_a_displacement_that_would_overflow_is_dropped() -> None:
    tx = pdt(optax.sgd(0.1), deliver="jump", dynamics=pdt_optax.slow_drift(outward=True))
    w, report = jnp.array([1.0, 1.0]), None
    state = tx.init(w)
    for _ in range(6):
        w, state, report = tx.end_epoch(w + 2e37, state)
    assert report is not None
    assert not report.finite
    assert np.all(np.isfinite(w))


@pytest.mark.parametrize(("dtype", "rounded"), [(jnp.float32, 1e-3), (jnp.float16, 1e-2)])
@pytest.mark.parametrize("outward", [False, True])
@pytest.mark.parametrize("horizon", [1, 3])
def test_what_a_prediction_may_come_to(outward: bool, horizon: int, dtype: Any, rounded: float) -> None:
    """|w| + horizon * gain * ((1 - k) |m| + k |d| + |held| |w|), of each leaf, is below half of the largest float."""
    model = pdt_optax.slow_drift(memory=4, gain=1.5, most_gain=1.5, outward=outward)
    path = np.array([[1, 0.5], [1.2, 0.9], [1.1, 1.4], [1.5, 1.7], [1.9, 1.8]])
    d = old = mean = np.zeros(2)
    weight = 0.0
    for d in np.diff(path, axis=0):
        weight = 0.75 * weight + 1
        old, mean = mean, mean + (d - mean) / weight
    w, size = path[-1], np.linalg.norm
    held = 0.0 if outward else (mean @ w) / (w @ w)
    ahead = (1 - 1 / weight) * size(old) + size(d) / weight + held * size(w)
    most = float(jnp.finfo(dtype).max) / 2 / (size(w) + horizon * 1.5 * ahead)
    predictor = pdt_optax.Predictor(dynamics=model, horizon=horizon, start=len(path) - 2)
    for scale in ((1 - rounded) * most, (1 + rounded) * most):
        x, *later = ({"a": jnp.asarray(scale * row, dtype), "small": jnp.float32(row)} for row in path)
        history, report = predictor.init(x), None
        for x in later:
            x, history, report = predictor.end_epoch(x, history)
        assert report is not None
        assert report.predicted == report.finite == (scale < most)


def test_a_predictor_jumps() -> None:
    predictor = predictor_of()
    w, report = jnp.array([4.0, -3.0]), None
    history = predictor.init(w)
    assert history.delivery is None
    for _ in range(6):
        w, history, report = predictor.end_epoch(0.9 * w, history)
    assert report is not None
    assert report.predicted
    assert not report.gradual
    steps = [-0.1 * 0.9**epoch * np.array([4.0, -3.0]) for epoch in range(6)]
    found = oracle(
        [np.array([4.0, -3.0]) * 0.9 ** (e + 1) for e in range(6)],
        [np.array([4.0, -3.0]) * 0.9**e for e in range(6)],
        pdt_optax.slow_drift(),
        5,
        [0.0] * 6,
    )[-1]
    np.testing.assert_allclose(report.persistence, found.persistence, rtol=1e-5)
    np.testing.assert_allclose(w, 0.9**6 * np.array([4.0, -3.0]) + found.displacement, rtol=1e-5)
    assert found.persistence == pytest.approx(steps[5] @ steps[0] / (steps[0] @ steps[0]), rel=0.5)


def test_a_predictor_sees_no_updates() -> None:
    with pytest.raises(ValueError, match='`deliver` must be "jump" or "auto" in a `Predictor`'):
        predictor_of(deliver="gradual")
    with pytest.raises(ValueError, match="deliver='slowly'"):
        pdt(optax.sgd(0.1), deliver="slowly")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("memory", 0),
        ("memory", True),
        ("memory", jnp.inf),
        ("gain", 0),
        ("gain", 4.0),
        ("most_gain", jnp.inf),
    ],
)
def test_numbers_out_of_range(setting: str, value: Any) -> None:
    settings: Any = {setting: value}
    with pytest.raises(ValueError, match=rf"`(memory|gain)` must be .* Got .*{setting}={value!r}"):
        pdt_optax.slow_drift(**settings)


def test_nothing_waits_on_the_host_for_a_running_mean() -> None:
    with pytest.raises(ValueError, match="leave them out"):
        predictor_of(snapshot_device="host")
    with pytest.raises(ValueError, match="leave them out"):
        predictor_of(snapshot_dtype="bfloat16")


def test_the_state_of_another_kind_is_told() -> None:
    w = jnp.ones(2)
    jumps, parts = (pdt(optax.sgd(0.1), deliver=d) for d in ("jump", "gradual"))
    windowed = pdt(optax.sgd(0.1), **pdt_optax.presets.drift)
    with pytest.raises(
        ValueError,
        match=r"`deliver` differs\. .*adopt\(made, state, params\)\. Expected the state of deliver='jump'; got that of deliver='gradual'",
    ):
        jumps.end_epoch(w, parts.init(w))
    with pytest.raises(ValueError, match=r"`deliver` differs\. A guard, .*make predictions jumps\."):
        pdt(optax.sgd(0.1), guard=pdt_optax.rollback()).update(w, parts.init(w), w)
    with pytest.raises(ValueError, match="`deliver` differs"):
        pdt_optax.check_saved(jumps, parts.init(w))
    with pytest.raises(ValueError, match="same kind of `dynamics`"):
        pdt_optax.check_saved(predictor_of(dynamics=pdt_optax.drift(), window=2), parts.init(w))
    with pytest.raises(ValueError, match="same kind of `dynamics`"):
        windowed.end_epoch(w, jumps.init(w))


def test_around_multisteps_and_inside_it() -> None:
    """Parts are counted in calls of this `update`: micro-batches around it, optimizer steps inside."""
    around = pdt(optax.MultiSteps(optax.sgd(0.1), 2))
    inside = pdt(optax.sgd(0.1))
    for tx, inner, calls in ((around, around, 4), (optax.MultiSteps(inside, 2), inside, 2)):
        tx: Any
        w: Any = jnp.array([4.0, -3.0])
        state, report = tx.init(w), None
        for _ in range(7):
            for _ in range(4):
                updates, state = tx.update(0.5 * w, state, w)
                w = optax.apply_updates(w, updates)
            w, state, report = pdt_optax.end_epoch(inner, w, state)
        assert report is not None
        assert report.predicted
        assert report.delivered_share == 1
        delivery = pdt_optax._history.find(state, pdt_optax.History).delivery
        assert delivery.parts == calls


@pytest.mark.parametrize("accept", [pdt_optax.everything(), pdt_optax.agree()], ids=str)
def test_leaves_that_are_alike_are_computed_together(accept: Any) -> None:
    """Three of one shape are one computation, and the same numbers as in three shapes, to the order of their sums."""
    random = np.random.default_rng(0)
    at, rows = random.normal(size=(4, 12)).astype(np.float32), []
    for shapes in ([(12,)] * 3, [(12,), (3, 4), (2, 6)]):
        predictor = pdt_optax.Predictor(accept=accept, start=3)
        tree = {
            str(i): jnp.asarray(x).reshape(shape)
            for i, (x, shape) in enumerate(zip(at, shapes, strict=False))
        }
        tree["-"] = jnp.asarray(at[3])[:5]  # before them
        tree["other"] = jnp.asarray(at[3])[:5].reshape(5, 1)
        history, report = predictor.init(tree), None
        for epoch in range(6):
            tree = {name: x * (0.9 - 0.01 * int(name == "1")) + 0.02 * epoch for name, x in tree.items()}
            tree, history, report = predictor.end_epoch(tree, history)
        assert report is not None
        assert report.predicted
        found = (
            tree,
            report.persistence_per_leaf,
            report.accepted_share_per_leaf,
            report.persistence,
            report.gain,
        )
        rows.append(flat(found))
    np.testing.assert_allclose(*rows, rtol=1e-5)


def test_leaves_that_are_alike_are_delivered_to_together() -> None:
    """What was delivered to each is no motion of its own, whether it is computed beside others or alone."""
    at = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    found = []
    for shapes in ([(12,)] * 3, [(12,), (3, 4), (2, 6)]):
        tx = pdt(optax.sgd(0.1), start=3)
        params: Any = [jnp.asarray(x).reshape(shape) for x, shape in zip(at, shapes, strict=True)]
        state, report = tx.init(params), None
        for _ in range(8):
            for _ in range(2):
                updates, state = tx.update([(i + 1) * 0.1 * x for i, x in enumerate(params)], state, params)
                params = optax.apply_updates(params, updates)
            params, state, report = tx.end_epoch(params, state)
        assert report is not None
        assert report.predicted
        found.append(flat((params, state.history.motion.mean, report.persistence_per_leaf, report.alignment)))
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_a_rule_takes_or_leaves_what_everything_takes() -> None:
    """Weight by weight; and the report counts them."""
    accepting = [
        pdt_optax.Predictor(accept=x, start=3, horizon=2) for x in (pdt_optax.everything(), pdt_optax.agree())
    ]
    path = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32).cumsum(0) + 5
    trees = [
        {"a": jnp.asarray(x[:2]), "b": jnp.asarray(x[2:6].reshape(2, 2)), "c": jnp.asarray(x[6])}
        for x in path
    ]
    ends: list[Any] = []
    for predictor in accepting:
        history, new, report = predictor.init(trees[0]), None, None
        for tree in trees[1:]:
            assert report is None or not (report.predicted or report.accepted_share_per_leaf.any())
            new, history, report = predictor.end_epoch(tree, history)
        assert report is not None
        assert report.predicted
        ends.append((flat(new), report))
    (taken, all_of_it), (new, report) = ends
    accepted = new != path[-1]
    assert 0 < accepted.sum() < 7
    np.testing.assert_allclose(new, np.where(accepted, taken, path[-1]), rtol=1e-6)
    np.testing.assert_allclose(report.accepted_share, accepted.mean(), rtol=1e-6)
    each = [x.mean() for x in np.split(accepted, [2, 6])]
    np.testing.assert_allclose(report.accepted_share_per_leaf, each, rtol=1e-6)
    np.testing.assert_array_equal(all_of_it.accepted_share_per_leaf, [1, 1, 1])


def test_a_rule_sees_as_many_steps_as_the_horizon_is_long() -> None:
    """However far it could come to be; and where a weight stays, it is not accepted."""

    def as_told(increments: Any, step: Any, differences: Any, reference: Any, horizon: Any) -> Any:
        ahead = jnp.arange(len(increments))[:, None] < horizon
        alike = jnp.isclose(increments, increments[0], rtol=1e-5, atol=0)
        return jnp.where(ahead, alike, increments == 0).all(0)

    schedule = pdt_optax.adaptive(horizon=2, longest_horizon=4)
    predictor = pdt_optax.Predictor(accept=as_told, schedule=schedule, start=3)
    w = jnp.array([4.0, -3.0, 2.0])
    history, horizons = predictor.init(w), []
    for epoch in range(12):
        w = w * jnp.array([0.9, 0.8, 1.0])
        w, history, report = predictor.end_epoch(w, history, value=10.0 - epoch)
        if report.predicted:
            np.testing.assert_allclose(report.accepted_share, 2 / 3)
            horizons.append(int(report.horizon))
    assert w[2] == 2
    assert horizons[0] == 2
    assert max(horizons) == 4


@pytest.mark.parametrize("dry_run", [False, True])
def test_nothing_is_added_where_there_is_nothing_to_deliver(dry_run: bool) -> None:
    """Not zero either: in a step that is compiled as a whole, adding it may round otherwise than the optimizer alone."""
    tx = pdt(optax.sgd(0.1), dry_run=dry_run)
    w: Any = jnp.array([4.0, -3.0])
    state, predicted, parts = tx.init(w), [], []
    for _ in range(8):
        for _ in range(3):
            updates, state = tx.update(0.1 * w, state, w)
            w = optax.apply_updates(w, updates)
        w, state, report = tx.end_epoch(w, state)
        predicted.append(bool(report.predicted))
        parts.append(int(state.history.delivery.parts))
    assert predicted == [False] * 5 + [True] * 3
    assert parts == [0] * 5 + [0 if dry_run else 3] * 3


def test_own_motion_is_what_it_is_a_mean_of() -> None:
    with pytest.raises(ValueError, match="`own_motion` must be True with slow_drift"):
        predictor_of(own_motion=False)


def test_a_rule_sees_the_mean_motion_alone() -> None:
    """However many snapshots the window keeps beside it."""

    class Older(pdt_optax.Rule):
        minimum_window = 3

    for window in (1, 5):
        with pytest.raises(ValueError, match="`accept` must need at most one difference"):
            predictor_of(accept=Older(), window=window)
        with pytest.raises(ValueError, match="shrink"):
            predictor_of(accept=pdt_optax.shrink(), window=window)


def test_an_update_keeps_its_type() -> None:
    tx, params = pdt(optax.identity()), {"w": jnp.ones(3)}
    updates, _ = tx.update({"w": jnp.ones(3, jnp.bfloat16)}, tx.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16


def test_all_is_delivered_once_and_no_more() -> None:
    """Of an optimizer that stands still, the weights move by the displacement, in equal parts, and then rest."""
    tx = pdt(optax.sgd(1.0))
    w: Any = jnp.array([4.0, -3.0])
    state = tx.init(w)
    for _ in range(6):
        for _ in range(3):
            updates, state = tx.update(0.05 * w, state, w)
            w = optax.apply_updates(w, updates)
        w, state, _ = tx.end_epoch(w, state)
    start, displacement = w, state.history.delivery.displacement
    assert differs(displacement, jnp.zeros(2))
    moved = []
    for _ in range(7):
        updates, state = tx.update(jnp.zeros(2), state, w)
        w = optax.apply_updates(w, updates)
        moved.append(w - start)
    for count, by in enumerate(moved, start=1):
        np.testing.assert_allclose(by, min(count, 3) / 3 * displacement, rtol=1e-4)


@pytest.mark.parametrize("form", ["pdt", "jump", "beside", "window"])
def test_weights_that_the_optimizer_never_moved_stay(form: str) -> None:
    """A frozen base is pulled inwards by nothing, and no inner product runs over it; a still weight in a leaf neither."""
    still: Any = {"base": jnp.full(50, 3.0), "some": jnp.array([2.0, 0.0, 5.0])}

    def trained(params: Any) -> Any:
        return params | {"some": params["some"] + jnp.array([0.0, 0.4, 0.3])}

    def run(params: Any) -> tuple[Any, Any]:
        tx = pdt_optax.pdt(optax.identity(), deliver="gradual" if form == "pdt" else "jump")
        predictor, report = pdt_optax.Predictor(), None
        state, history = tx.init(params), predictor.init(params)
        for _ in range(8):
            new = trained({"base": still["base"], **params})
            change = jax.tree.map(lambda a, b: a - b, {k: new[k] for k in params}, params)
            if form == "beside":
                params = optax.apply_updates(params, change)
                params, history, report = predictor.end_epoch(params, history)
            else:
                updates, state = tx.update(change, state, params)
                params = optax.apply_updates(params, updates)
                params, state, report = tx.end_epoch(params, state)
        return params, report

    if form == "window":
        window = [still, trained(still)]
        now: Any = trained(window[-1])
        rest: Any = {"dynamics": pdt_optax.slow_drift(), "accept": pdt_optax.everything(), "horizon": 1}
        whole: Any = pdt_optax.predict_and_mask(window, now, **rest)
        part: Any = pdt_optax.predict_and_mask(
            [{"some": w["some"][1:]} for w in window], {"some": now["some"][1:]}, **rest
        )
        params, report = whole.params, whole
        np.testing.assert_array_equal(params["some"][1:], part.params["some"])
    else:
        params, report = run(still)
        moving, _ = run({"some": still["some"]})
        np.testing.assert_allclose(params["some"], moving["some"], rtol=1e-6)
        assert moving["some"][1] > 8 * 0.4
    np.testing.assert_array_equal(params["base"], still["base"])
    assert params["some"][0] == 2.0
    np.testing.assert_allclose(report.accepted_share, 2 / 53, rtol=1e-6)
    np.testing.assert_allclose(report.accepted_share_per_leaf, [0, 2 / 3], rtol=1e-6)
