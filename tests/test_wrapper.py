"""The wrapper `pdt`: when it predicts, what it keeps, and what it promises to leave alone."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import pdt_optax
from pdt_optax import presets
from tests.states import WINDOWED, windowed
from tests.trees import assert_same, differs

SMALL: dict[str, Any] = {**WINDOWED, "window": 2, "start": 2, "interval": 1, "horizon": 2}
# The default in both its deliveries, its first prediction early.
DEFAULT: dict[str, dict[str, Any]] = {"gradual": {"start": 2}, "jump": {"start": 2, "deliver": "jump"}}


def make_params() -> dict[str, Any]:
    return {"b": jnp.array([0.3, -0.7, 0.05]), "w": jnp.arange(8.0).reshape(4, 2) / 5 - 0.6}


@jax.jit
def gradient(params: Any, i: int) -> Any:
    """A slow pull and a per-weight disturbance: some weights drift, others jitter."""

    def leaf(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros_like(x)
        order = jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)
        return (0.2 * x - 0.1 + 0.03 * order * jnp.sin(order + 2.3 * i)).astype(x.dtype)

    return jax.tree.map(leaf, params)


@functools.partial(jax.jit, static_argnums=0)
def update(tx: Any, grads: Any, state: Any, params: Any, **extra: Any) -> Any:
    return tx.update(grads, state, params, **extra)


# Apart from `update`: fused with it, XLA rounds a sum of products once, not twice.
apply_updates: Any = jax.jit(optax.apply_updates)


def step(tx: Any, params: Any, state: Any, i: int, **extra: Any) -> tuple[Any, Any]:
    updates, state = update(tx, gradient(params, i), state, params, **extra)
    return apply_updates(params, updates), state


@dataclasses.dataclass
class Epoch:
    before: Any  # the state that `end_epoch` got
    trained: Any  # the weights that `end_epoch` got
    params: Any
    state: Any
    report: Any


def run(tx: Any, epochs: int, params: Any = None, steps: int = 1) -> list[Epoch]:
    params = make_params() if params is None else params
    state = tx.init(params)
    history = []
    for epoch in range(epochs):
        for i in range(steps):
            params, state = step(tx, params, state, epoch * steps + i)
        before, trained = state, params
        params, state, report = tx.end_epoch(params, state)
        history.append(Epoch(before, trained, params, state, report))
    return history


def run_every(tx: Any, calls: int, params: Any = None) -> list[tuple[Any, Any]]:
    params = make_params() if params is None else params
    state = tx.init(params)
    history = []
    for i in range(calls):
        params, state = step(tx, params, state, i)
        history.append((params, state))
    return history


def run_inner(inner: optax.GradientTransformation, calls: int, params: Any = None) -> list[tuple[Any, Any]]:
    return run_every(inner, calls, params)


assert_close: Any = functools.partial(chex.assert_trees_all_close, rtol=1e-6, atol=1e-7)


# --- schedule ---------------------------------------------------------------------------------------------


def scheduled(window: int, start: int, interval: int, calls: int, bad: tuple[int, ...] = ()) -> list[str]:
    """The schedule in plain Python: "rest", "predict" or "drop" for each epoch.

    `bad` are the epochs whose weights hold a NaN.
    """
    snapshots = [False]  # of `init`; True for one with a NaN
    last, out = None, []
    for epoch in range(calls):
        rested = last is None or epoch - last - 1 >= interval
        due = epoch >= start and len(snapshots) >= window and rested
        spoilt = epoch in bad
        if due and not spoilt and not any(snapshots[-window:]):
            last = epoch
            out.append("predict")
        else:
            out.append("drop" if due else "rest")
        snapshots.append(spoilt)
    return out


def outcome(report: Any) -> str:
    return "predict" if report.predicted else "rest" if report.finite else "drop"


@pytest.mark.parametrize(
    ("window", "start", "interval"),
    [(2, 5, 1), (3, 3, 3), (4, None, 2), (3, 4, 20), (2, 3, 0), (1, 5, 0), (1, 5, 2)],
)
def test_schedule(window: int, start: int | None, interval: int) -> None:
    settings: dict[str, Any] = {"window": window, "start": start, "interval": interval, "horizon": 2}
    expected = scheduled(window, window if start is None else start, interval, 13)
    assert "predict" in expected

    make: Any = pdt_optax.pdt if window == 1 else windowed  # a running mean needs one snapshot
    history = run(make(optax.sgd(0.1), **settings), 13)
    assert [outcome(epoch.report) for epoch in history] == expected
    for n, epoch in enumerate(history, start=1):
        assert epoch.state.history.clock.snapshots_seen == n + 1
        assert epoch.state.history.clock.predictions_made == expected[:n].count("predict")

    if interval < 2 or start is None:  # half of them inside `update`, too
        calls = run_every(make(optax.sgd(0.1), every=1, **settings), 13)
        assert [outcome(state.last_report) for _, state in calls] == expected


def test_every_counts_calls_of_update() -> None:
    calls = run_every(pdt_optax.pdt(optax.sgd(0.1), every=3, **SMALL), 18)
    assert [int(state.history.clock.snapshots_seen) for _, state in calls] == [
        1 + n // 3 for n in range(1, 19)
    ]
    assert [int(state.this_epoch.updates_seen) for _, state in calls] == [n % 3 for n in range(1, 19)]
    # The report stays until the next epoch ends.
    epochs = [outcome(state.last_report) for _, state in calls[2::3]]
    assert epochs == scheduled(2, 2, 1, 6)
    assert [outcome(state.last_report) for _, state in calls] == ["rest"] * 2 + [
        x for x in epochs for _ in range(3)
    ][:-2]


# --- snapshots --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_snapshots_are_the_assembled_weights_oldest_to_newest(steps: int) -> None:
    tx: Any = windowed(optax.adam(0.05), window=3, horizon=2)
    weights = [make_params()] * 3  # until `window` were taken, the oldest repeat the initial weights
    assert_same(tx.init(make_params()).history.snapshots, tuple(weights))
    moved = 0
    for epoch in run(tx, 8, steps=steps):
        assert_same(epoch.before.history.snapshots, tuple(weights[-3:]))
        weights.append(epoch.params)
        assert_same(epoch.state.history.snapshots, tuple(weights[-3:]))
        moved += differs(epoch.params, epoch.trained)
    assert moved == 3  # the snapshots of three predictions are among them


def test_snapshots_inside_update_are_the_assembled_weights() -> None:
    tx: Any = windowed(optax.adam(0.05), every=2, window=3, horizon=2)
    weights = [make_params()] * 3
    predictions = 0
    for n, (params, state) in enumerate(run_every(tx, 16), start=1):
        if n % 2 == 0:
            weights.append(params)
            predictions += bool(state.last_report.predicted)
        assert_same(state.history.snapshots, tuple(weights[-3:]))
    assert predictions == 3


@pytest.mark.parametrize("settings", [SMALL, *DEFAULT.values()], ids=["windowed", *DEFAULT])
def test_snapshots_do_not_share_buffers(settings: Any) -> None:
    """Nor do the mean and what is delivered."""
    params = make_params()
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), **settings)
    state: Any = tx.init(params)
    new, ended, _ = tx.end_epoch(params, state)
    for p, s in ((params, state), (new, ended)):
        buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((p, s))]
        assert len(set(buffers)) == len(buffers)


# --- burn-in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "jit", "settings"),
    [
        (None, True, {**WINDOWED, "window": 3}),
        (2, True, {**WINDOWED, "window": 3}),
        (None, False, {**WINDOWED, "window": 3}),
        (None, True, {"start": 3}),
        (2, True, {"start": 3}),
        (2, True, {"start": 3, "deliver": "jump"}),
    ],
)
def test_burn_in_is_the_inner_optimizer(every: int | None, jit: bool, settings: Any) -> None:
    inner = optax.adamw(0.03, weight_decay=0.1)
    tx: Any = pdt_optax.pdt(inner, every=every, **settings)
    params, state = make_params(), tx.init(make_params())
    inner_state = inner.init(make_params())
    with jax.disable_jit(not jit):
        for i in range(6):  # three epochs of two steps: the fourth would predict
            grads = gradient(params, i)
            updates, state = update(tx, grads, state, params)
            inner_updates, inner_state = update(inner, grads, inner_state, params)
            assert_same(updates, inner_updates)
            assert_same(state.inner_state, inner_state)
            params = trained = apply_updates(params, updates)
            if every is None and i % 2 == 1:
                params, state, report = tx.end_epoch(params, state)
                assert not report.predicted
                assert_same(params, trained)
    assert state.history.clock.snapshots_seen == 4
    assert_same(state.history.snapshots[-1], params)


# --- what a prediction does -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper", "released", "drift"])
def test_end_epoch_is_predict_and_mask(name: str) -> None:
    """`slow_drift` remembers more than its snapshots: tests/test_slow_drift.py."""
    preset = presets.named(name)
    shares = []
    history = run(pdt_optax.pdt(optax.sgd(0.3), **preset), 10)
    assert [n for n, epoch in enumerate(history, start=1) if epoch.report.predicted] == [6, 8, 10]
    for epoch in history:
        if not epoch.report.predicted:
            assert_same(epoch.params, epoch.trained)
            continue
        prediction = pdt_optax.predict_and_mask(
            epoch.before.history.snapshots,
            epoch.trained,
            dynamics=preset["dynamics"],
            accept=preset["accept"],
            horizon=preset["horizon"],
            step=epoch.before.history.clock.snapshots_seen - 1,
        )
        assert_close(epoch.params, prediction.params)
        for new, old, mask in zip(
            *(jax.tree.leaves(t) for t in (epoch.params, epoch.trained, prediction.mask)), strict=True
        ):
            np.testing.assert_array_equal(new[~mask], old[~mask])  # rejected: bit for bit
        sizes = np.array([3, 8])
        accepted = np.array([int(x.sum()) for x in jax.tree.leaves(prediction.mask)])
        np.testing.assert_allclose(epoch.report.accepted_share_per_leaf, accepted / sizes, rtol=1e-6)
        np.testing.assert_allclose(epoch.report.accepted_share, accepted.sum() / 11, rtol=1e-6)
        assert epoch.report.horizon == preset["horizon"]
        assert epoch.report.rank == prediction.rank
        np.testing.assert_allclose(epoch.report.singular_values, prediction.singular_values, rtol=1e-4)
        shares.append(float(epoch.report.accepted_share))
    assert len(shares) == 3
    assert 0 < np.mean(shares) < 1


@pytest.mark.parametrize(
    "settings",
    [
        {**WINDOWED, "window": 3, "horizon": 3, "accept": pdt_optax.agree()},
        {**WINDOWED, "window": 3, "horizon": 3, "accept": pdt_optax.shrink()},
        {"start": 5, "accept": pdt_optax.agree()},
        {"start": 5, "accept": pdt_optax.agree(), "deliver": "jump"},
    ],
    ids=["agree", "shrink", "gradual", "jump"],
)
def test_every_does_what_end_epoch_does(settings: Any) -> None:
    """At each call, from one and the same state."""
    inner = optax.sgd(0.3, momentum=0.5)
    inside = pdt_optax.pdt(inner, every=2, **settings)
    outside: Any = pdt_optax.pdt(inner, **settings)
    params, state = make_params(), inside.init(make_params())
    shares = []
    for i in range(16):
        own: Any = state
        grads = gradient(params, i)
        updates, state = update(inside, grads, state, params)
        outer_updates, plain = update(outside, grads, own._replace(last_report=None), params)
        plain: Any
        if state.history.delivery is None:
            assert_same(outer_updates, update(inner, grads, own.inner_state, params)[0])
        trained = apply_updates(params, outer_updates)
        if i % 2 == 0:
            assert_same(updates, outer_updates)
            params = trained
            continue
        expected, plain, report = outside.end_epoch(trained, plain)
        new: Any = apply_updates(params, updates)
        for leaf in make_params():
            rejected = expected[leaf] == trained[leaf]
            np.testing.assert_array_equal(updates[leaf][rejected], outer_updates[leaf][rejected])
            np.testing.assert_array_equal(new[leaf][rejected], trained[leaf][rejected])
            # Updates are added to the old weight, so one ulp of the larger of the two.
            ulp = np.spacing(np.maximum(np.abs(params[leaf]), np.abs(expected[leaf])))
            assert np.all(np.abs(new[leaf] - expected[leaf]) <= ulp)
        assert_close(state.last_report, report)
        assert_same(state.inner_state, plain.inner_state)
        assert_same(state.this_epoch, plain.this_epoch)
        kept, expected_kept = (x.history._replace(snapshots=()) for x in (state, plain))
        if kept.delivery is not None:  # fused otherwise: to a unit in the last place
            assert_close(kept.delivery, expected_kept.delivery)
            kept, expected_kept = (x._replace(delivery=None) for x in (kept, expected_kept))
        assert_same(kept, expected_kept)
        assert_same(state.history.snapshots[:-1], plain.history.snapshots[:-1])
        assert_same(state.history.snapshots[-1], new)
        shares.append(float(report.accepted_share))
        params = new
    predicted = [share for share in shares if share]
    assert len(predicted) == 3
    assert any(share < 1 for share in predicted)


@pytest.mark.parametrize(
    "settings",
    [{**WINDOWED, "window": 3, "horizon": 3}, *DEFAULT.values()],
    ids=["windowed", *DEFAULT],
)
def test_every_and_end_epoch_train_alike(settings: Any) -> None:
    outside = run(pdt_optax.pdt(optax.sgd(0.3, momentum=0.5), **settings), 9, steps=2)
    inside = run_every(pdt_optax.pdt(optax.sgd(0.3, momentum=0.5), every=2, **settings), 18)[1::2]
    for epoch, (params, state) in zip(outside, inside, strict=True):
        assert_close(params, epoch.params, rtol=1e-5, atol=1e-6)
        assert outcome(epoch.report) == outcome(state.last_report)


@pytest.mark.parametrize("settings", [SMALL, *DEFAULT.values()], ids=["windowed", *DEFAULT])
def test_the_inner_state_is_never_touched(settings: Any) -> None:
    for epoch in run(pdt_optax.pdt(optax.adam(0.05), **settings), 6):
        assert_same(epoch.state.inner_state, epoch.before.inner_state)


# --- reports ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamics", [pdt_optax.drift(), pdt_optax.dmd(), pdt_optax.slow_drift()])
def test_report_has_one_structure(dynamics: Any) -> None:
    running = isinstance(dynamics, pdt_optax.slow_drift)
    make: Any = functools.partial(
        pdt_optax.pdt if running else windowed, window=4, start=4, dynamics=dynamics
    )
    history = run(make(optax.sgd(0.1)), 6)
    assert [bool(epoch.report.predicted) for epoch in history] == [False] * 4 + [True, running]
    inside: Any = make(optax.sgd(0.1), every=1)
    reports = [epoch.report for epoch in history]
    reports += [inside.init(make_params()).last_report, run_every(inside, 5)[-1][1].last_report]

    def describe(report: Any) -> Any:
        return [(x.shape, x.dtype, x.weak_type) for x in report]

    assert all(jax.tree.structure(r) == jax.tree.structure(reports[0]) for r in reports)
    assert all(describe(r) == describe(reports[0]) for r in reports)
    assert reports[0].singular_values.shape == reports[0].eigenvalues.shape == (3,)
    assert reports[0].accepted_share_per_leaf.shape == reports[0].persistence_per_leaf.shape == (2,)

    rest, predicted = reports[3], reports[4]
    assert rest.finite
    assert (rest.horizon, rest.rank, rest.accepted_share) == (0, 0, 0)
    assert not np.any(rest.singular_values)
    assert not np.any(rest.eigenvalues)
    assert predicted.finite
    assert predicted.horizon == presets.drift["horizon"] == presets.recommended["horizon"]
    assert predicted.rank >= 1
    assert [bool(predicted.persistence), bool(predicted.gain)] == [running] * 2
    assert np.not_equal(predicted.persistence_per_leaf, 0).tolist() == [running] * 2
    assert (predicted.gradual, predicted.delivered_share) == (running, 1)
    assert reports[5].delivered_share == 1
    needed = isinstance(dynamics, pdt_optax.dmd)
    assert np.all((predicted.singular_values[0] > 0) == needed)


@pytest.mark.parametrize("every", [None, 1])
def test_dry_run_changes_nothing_and_reports_the_share(every: int | None) -> None:
    settings: dict[str, Any] = {**WINDOWED, "window": 3, "horizon": 2, "dry_run": True}
    inner = optax.sgd(0.3, momentum=0.5)
    alone = run_inner(inner, 9)
    if every is None:
        history = run(pdt_optax.pdt(inner, **settings), 9)
        runs = [(epoch.params, epoch.state, epoch.report) for epoch in history]
    else:
        calls = run_every(pdt_optax.pdt(inner, every=every, **settings), 9)
        runs = [(params, state, state.last_report) for params, state in calls]
    assert [outcome(report) for _, _, report in runs] == scheduled(3, 3, 1, 9)
    before, shares = [make_params()], []
    for (params, state, report), (expected, inner_state) in zip(runs, alone, strict=True):
        assert_same(params, expected)
        assert_same(state.inner_state, inner_state)
        assert_same(state.history.snapshots[-1], expected)
        if report.predicted:
            prediction = pdt_optax.predict_and_mask(
                before[-3:], params, dynamics=pdt_optax.drift(), accept=pdt_optax.agree(), horizon=2
            )
            assert report.accepted_share == prediction.accepted_share
            shares.append(float(report.accepted_share))
        before.append(params)
    assert len(shares) == 3
    assert all(shares)
    assert min(shares) < 1


@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.parametrize("name", DEFAULT)
def test_dry_run_of_the_default_changes_nothing(name: str, every: int | None) -> None:
    """And the mean is that of the optimizer alone: no gain grows on what was not delivered."""
    inner = optax.sgd(0.3, momentum=0.5)
    alone = run_inner(inner, 6)
    tx: Any = pdt_optax.pdt(inner, every=every, accept=pdt_optax.agree(), dry_run=True, **DEFAULT[name])
    if every is None:
        runs = [(epoch.params, epoch.state, epoch.report) for epoch in run(tx, 6)]
    else:
        runs = [(params, state, state.last_report) for params, state in run_every(tx, 6)]
    assert [outcome(report) for _, _, report in runs] == scheduled(1, 2, 0, 6)
    for (params, state, report), (expected, inner_state) in zip(runs, alone, strict=True):
        assert_same(params, expected)
        assert_same(state.inner_state, inner_state)
        assert_same(state.history.snapshots[-1], expected)
        assert state.history.motion.pull.gain == 1
        assert (report.accepted_share > 0) == report.predicted


# --- which leaves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "every", "settings"),
    [
        (lambda path: path.startswith("embed/"), None, SMALL),
        (lambda path: path.startswith("embed/"), 1, SMALL),
        ({"embed": {"in": True, "out": True}, "head": {"b": False, "w": False}}, None, SMALL),
        ({"embed": True, "head": False}, None, SMALL),
        ({"embed": True, "head": False}, None, {"start": 1}),
        ({"embed": True, "head": False}, 1, {"start": 1}),
        ({"embed": True, "head": False}, None, {"start": 1, "deliver": "jump"}),
    ],
    ids=["function", "function, every", "tree", "prefix", "gradual", "gradual, every", "jump"],
)
def test_labels_keep_leaves_out(labels: Any, every: int | None, settings: Any) -> None:
    params = {"embed": {"in": jnp.ones(3), "out": jnp.full(2, 0.5, jnp.float32)}, "head": make_params()}
    tx: Any = pdt_optax.pdt(
        optax.sgd(0.1), exclude=labels, every=every, accept=pdt_optax.everything(), **settings
    )
    state = tx.init(params)
    assert pdt_optax.leaf_paths(state) == ["head/b", "head/w"]
    masked = {"in": optax.MaskedNode(), "out": optax.MaskedNode()}
    alone = run_inner(optax.sgd(0.1), 3, params)
    if every is None:
        last = run(tx, 3, params)[-1]
        new, state, report = last.params, last.state, last.report
    else:
        new, state = run_every(tx, 3, params)[-1]
        report = state.last_report
    assert report.predicted
    assert report.accepted_share == 1
    assert report.accepted_share_per_leaf.shape == (2,)
    assert all(snapshot["embed"] == masked for snapshot in state.history.snapshots)
    assert_same(new["embed"], alone[-1][0]["embed"])
    assert differs(new["head"], alone[-1][0]["head"])


def test_labels_for_all_leaves_at_once() -> None:
    # One bool is a prefix of any tree.
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), exclude=False, **SMALL)
    assert_same(tx.init(make_params()), pdt_optax.pdt(optax.sgd(0.1), **SMALL).init(make_params()))


def test_paths_are_told_without_what_a_leaf_is_wrapped_in() -> None:
    box: Any = nn.Partitioned(jnp.ones(2), names=("x",))
    params = {"a": [{"b": box}, jnp.ones(1)], "box": box, "c": {"value": jnp.ones(1)}, "value": jnp.ones(1)}
    told: list[str] = []
    pdt_optax.pdt(optax.sgd(0.1), exclude=lambda path: bool(told.append(path))).init(params)
    assert told == ["a/0/b", "a/1", "box", "c/value", "value"]
    assert pdt_optax.leaf_paths(pdt_optax.pdt(optax.sgd(0.1)).init(box)) == ["value"]  # the whole tree is one


def odd_params() -> dict[str, Any]:
    return {
        "count": jnp.array([3, 4]),
        "flag": jnp.array([True, False]),
        "half": jnp.array([0.5, -2.0, 0.25], jnp.bfloat16),
        "masked": optax.MaskedNode(),
        "none": None,
        "scalar": jnp.array(1.5),
        "w": jnp.array([0.3, -0.7]),
    }


@pytest.mark.parametrize("every", [None, 1])
def test_mixed_trees(every: int | None) -> None:
    inner = optax.sgd(0.1)
    tx: Any = pdt_optax.pdt(inner, every=every, accept=pdt_optax.everything(), **SMALL)
    state = tx.init(odd_params())
    assert pdt_optax.leaf_paths(state) == ["half", "scalar", "w"]
    # The int and bool leaves may hold anything: they are not even looked at.
    if every is None:
        history = run(tx, 3, odd_params())
        params, trained, report = history[-1].params, history[-1].trained, history[-1].report
        before, state = history[-2].params, history[-1].state
    else:
        calls = run_every(tx, 3, odd_params())
        (params, state), before = calls[-1], calls[-2][0]
        trained, report = run_inner(inner, 3, odd_params())[-1][0], state.last_report
    assert report.predicted
    moved = [np.ravel(params[leaf] != trained[leaf]) for leaf in ("half", "scalar", "w")]
    np.testing.assert_allclose(report.accepted_share, np.concatenate(moved).mean(), rtol=1e-6)
    assert report.accepted_share > 0.8
    assert jax.tree.structure(params) == jax.tree.structure(odd_params())
    for new, old in zip(jax.tree.leaves(params), jax.tree.leaves(odd_params()), strict=True):
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
    for leaf in ("count", "flag"):
        np.testing.assert_array_equal(params[leaf], odd_params()[leaf])
        assert isinstance(state.history.snapshots[0][leaf], optax.MaskedNode)
    for leaf in ("half", "scalar", "w"):
        # drift over two points, two epochs ahead: w + 2 (w - w_before)
        w, w_before = (np.asarray(x[leaf], np.float64) for x in (trained, before))
        expected = w + 2 * (w - w_before)
        eps = float(jnp.finfo(params[leaf].dtype).eps)
        np.testing.assert_allclose(np.asarray(params[leaf], np.float64), expected, rtol=eps)
        for snapshot in state.history.snapshots:
            assert snapshot[leaf].dtype == params[leaf].dtype


@pytest.mark.parametrize(
    ("params", "every", "settings"),
    [
        (jnp.array(2.0), 1, SMALL),
        ((jnp.ones(2), [jnp.zeros(3)]), None, SMALL),
        (jnp.array(2.0), 1, {"start": 1}),
        ((jnp.ones(2), [jnp.zeros(3)]), None, {"start": 1}),
        ((jnp.ones(2), [jnp.zeros(3)]), 1, {"start": 1, "deliver": "jump"}),
    ],
    ids=["array, every", "tuple", "array, gradual, every", "tuple, gradual", "tuple, jump, every"],
)
def test_any_tree_will_do(params: Any, every: int | None, settings: Any) -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), every=every, accept=pdt_optax.everything(), **settings)
    if every is None:
        last = run(tx, 3, params)[-1]
        new, report = last.params, last.report
    else:
        new, state = run_every(tx, 3, params)[-1]
        report = state.last_report
    assert report.predicted
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert differs(new, run_inner(optax.sgd(0.1), 3, params)[-1][0])


# --- numbers that are not finite --------------------------------------------------------------------------


OF_TWO_KINDS: Any = ((windowed, {"window": 3, "horizon": 2}), (pdt_optax.pdt, {}))

# One wrapper for all cases below: it compiles once.
UNCHECKED: Any = {
    (every, make): make(
        optax.sgd(0.1), every=every, accept=pdt_optax.everything(), deliver="jump", **settings
    )
    for every in (None, 1)
    for make, settings in OF_TWO_KINDS
}


@pytest.mark.parametrize("make", [windowed, pdt_optax.pdt])
@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.parametrize(("epoch", "poison"), [(1, jnp.nan), (5, jnp.nan), (6, jnp.inf), (5, -jnp.inf)])
def test_not_finite_changes_no_weight(poison: float, epoch: int, every: int | None, make: Any) -> None:
    """One spoilt epoch: its weights, then its snapshot until it has left the window."""
    tx, inner = UNCHECKED[every, make], optax.sgd(0.1)
    params, state = make_params(), tx.init(make_params())
    outcomes, elsewhere = [], []
    for i in range(14):
        healthy, grads = params, gradient(params, i)
        if i == epoch:
            grads["w"] = grads["w"].at[1, 1].set(poison)
        plain, _ = inner.update(grads, inner.init(params))
        updates, state = update(tx, grads, state, params)
        trained = apply_updates(params, plain)
        if every is None:
            params, state, report = tx.end_epoch(trained, state)
        else:
            params, report = apply_updates(params, updates), state.last_report
        outcomes.append(outcome(report))
        elsewhere += [] if report.continued else [i]
        if outcomes[-1] == "predict":
            assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(params))
            assert report.accepted_share == 1
        else:
            assert_same(params, trained)
            assert report.accepted_share == 0
            assert not report.accepted_share_per_leaf.any()
        if i == epoch:
            assert not bool(jnp.isfinite(params["w"][1, 1]))
            params = healthy  # the user restores the weights; the snapshot stays
    clock = (3, 3, 1) if make is windowed else (1, 5, 0)
    expected = scheduled(*clock, 14, bad=(epoch,))
    if elsewhere:  # `every` sees what the user did
        assert (every, elsewhere, outcomes[epoch + 1]) == (1, [epoch + 1], "rest")
        outcomes[epoch + 1] = expected[epoch + 1]
    assert outcomes == expected
    assert ("drop" in outcomes) == (make is windowed or epoch >= 4)  # before the start nothing is due
    assert outcomes[-4:].count("predict") == (2 if make is windowed else 4)


@pytest.mark.parametrize("every", [None, 1])
def test_not_finite_delivers_nothing(every: int | None) -> None:
    """After a spoilt epoch the updates are the inner optimizer's, until the mean goes on without it."""
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), every=every, start=2)
    params, state = make_params(), tx.init(make_params())
    outcomes = []
    for i in range(8):
        healthy, grads = params, gradient(params, i)
        if i == 4:
            grads["w"] = grads["w"].at[1, 1].set(jnp.nan)
        updates, state = update(tx, grads, state, params)
        own, _ = optax.sgd(0.1).update(grads, optax.sgd(0.1).init(params))
        assert differs(updates, own) == (i in (3, 4, 7))
        params = apply_updates(params, updates)
        report = state.last_report
        if every is None:
            params, state, report = tx.end_epoch(params, state)
        outcomes.append(outcome(report))
        assert all(
            bool(jnp.isfinite(x).all())
            for x in jax.tree.leaves((state.history.motion, state.history.delivery))
        )
        if i == 4:
            params = healthy
    assert outcomes == scheduled(1, 2, 0, 8, bad=(4,))


def test_a_prediction_that_overflows_is_dropped() -> None:
    tx: Any = windowed(optax.sgd(1.0), accept=pdt_optax.everything(), window=2, horizon=5)
    params = jnp.array([1e38, 1.0])
    state = tx.init(params)
    for i in range(3):
        updates, state = tx.update(jnp.array([-5e37, -1.0]), state, params)
        trained = apply_updates(params, updates)
        params, state, report = tx.end_epoch(trained, state)
        assert_same(params, trained)
        assert not report.predicted
        assert bool(report.finite) == (i < 2)


# --- value ------------------------------------------------------------------------------------------------


def test_value_is_the_mean_since_the_last_epoch() -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), **SMALL)
    params, state = make_params(), tx.init(make_params())
    for values in ([1.0, 2.0, 6.0], [0.5, jnp.float32(0.25)], [4.0]):
        for i, value in enumerate(values):
            params, state = step(tx, params, state, i, value=value)
        params, state, report = tx.end_epoch(params, state)
        np.testing.assert_allclose(report.mean_value, np.mean(values), rtol=1e-6)
    params, state = step(tx, params, state, 0)
    params, state, report = tx.end_epoch(params, state)
    assert (report.has_value, report.mean_value) == (False, 0)
    params, state = step(tx, params, state, 0, value=3.0)
    params, state, report = tx.end_epoch(params, state, value=7.0)
    assert (report.has_value, report.mean_value) == (True, 7)
    params, state = step(tx, params, state, 0, value=5.0)
    _, _, report = tx.end_epoch(params, state)
    assert report.mean_value == 5  # the overridden 3.0 is forgotten


def test_value_with_every() -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), every=2, **SMALL)
    params, state = make_params(), tx.init(make_params())
    seen = []
    for i in range(8):
        params, state = step(tx, params, state, i, value=float(i))
        seen.append(float(state.last_report.mean_value))
    assert seen == [0, 0.5, 0.5, 2.5, 2.5, 4.5, 4.5, 6.5]


@pytest.mark.parametrize("value", [3, np.float64(3), jnp.bfloat16(3)], ids=lambda value: type(value).__name__)
def test_values_are_summed_in_float32(value: Any) -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), **SMALL)
    params, state = step(tx, make_params(), tx.init(make_params()), 0, value=value)
    assert state.this_epoch.value_sum.dtype == jnp.float32
    _, _, report = tx.end_epoch(params, state, value=value)
    assert report.mean_value.dtype == jnp.float32
    assert report.mean_value == 3


@pytest.mark.parametrize("settings", [SMALL, {}], ids=["windowed", "default"])
def test_a_state_counts_in_int32(settings: Any) -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), **settings)
    state = tx.init(make_params())
    _, after, _ = tx.end_epoch(*step(tx, make_params(), state, 0, value=1.0))
    for s in (state, after):
        counters = (
            s.history.clock.snapshots_held,
            s.history.clock.snapshots_seen,
            s.history.clock.plain_epochs,
            s.history.clock.predictions_made,
            s.this_epoch.updates_seen,
            *([] if s.history.delivery is None else [s.history.delivery.parts]),
        )
        pace = (s.history.clock.pace.horizon_now, s.history.clock.pace.interval_now)
        assert {x.dtype for x in (*counters, s.this_epoch.values_seen, *pace)} == {jnp.dtype("int32")}


@pytest.mark.parametrize("settings", [SMALL, *DEFAULT.values()], ids=["windowed", *DEFAULT])
@pytest.mark.parametrize("every", [None, 1])
def test_an_update_keeps_its_type(every: int | None, settings: Any) -> None:
    tx: Any = pdt_optax.pdt(optax.identity(), every=every, accept=pdt_optax.everything(), **settings)
    params = {"w": jnp.ones(3)}
    state: Any = tx.init(params)
    for _ in range(4):
        updates, state = tx.update({"w": jnp.full(3, -0.25, jnp.bfloat16)}, state, params)
        assert updates["w"].dtype == jnp.bfloat16
        params = apply_updates(params, updates)
        if every is None:
            params, state, _ = tx.end_epoch(params, state)
    assert state.history.clock.predictions_made >= 1


@pytest.mark.parametrize("every", [None, 2])
def test_value_reaches_the_inner_optimizer(every: int | None) -> None:
    inner = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    tx: Any = pdt_optax.pdt(inner, every=every, window=6)  # burn-in throughout
    params, state = make_params(), tx.init(make_params())
    alone, inner_state = make_params(), inner.init(make_params())
    for i in range(8):
        params, state = step(tx, params, state, i, value=1.0)
        alone, inner_state = step(inner, alone, inner_state, i, value=1.0)
        assert_same(params, alone)
        assert_same(state.inner_state, inner_state)
    assert optax.tree.get(state.inner_state, "scale") < 0.5


# --- rules and models of one's own ------------------------------------------------------------------------


@pytest.mark.parametrize("every", [None, 1])
def test_random_subset_draws_anew_at_each_prediction(every: int | None) -> None:
    params = {"a": jnp.zeros(600), "b": jnp.zeros(400)}

    def accepted(seed: int) -> list[np.ndarray]:
        tx: Any = pdt_optax.pdt(
            optax.sgd(0.1), every=every, accept=pdt_optax.random_subset(ratio=0.3, seed=seed), **SMALL
        )
        weights, state = params, tx.init(params)
        masks = []
        for _ in range(7):  # a constant gradient: an accepted weight moves three steps at once
            updates, state = update(tx, jax.tree.map(jnp.ones_like, weights), state, weights)
            new: Any = apply_updates(weights, updates)
            if every is None:
                new, state, report = tx.end_epoch(new, state)
            else:
                report = state.last_report
            if report.predicted:
                moved = [(new[k] - weights[k]) < -0.15 for k in ("a", "b")]
                masks.append(np.concatenate(moved))
                np.testing.assert_allclose(report.accepted_share, masks[-1].mean(), rtol=1e-5)
            weights = new
        return masks

    masks = accepted(0)
    assert len(masks) == 3
    for i, mask in enumerate(masks):
        assert abs(mask.mean() - 0.3) < 0.06  # four standard deviations
        assert np.any(mask[:400] != mask[600:])  # leaves have draws of their own
        for other in masks[:i]:
            assert 0.3 < np.mean(mask != other) < 0.54  # independent: 0.42
    np.testing.assert_array_equal(masks, accepted(0))
    if every is None:
        assert np.any(np.array(masks) != np.array(accepted(1)))


def positive(increments: Any, step: Any, differences: Any, reference: Any, horizon: int) -> Any:
    assert increments.shape == (horizon, *step.shape)
    assert differences.shape == (2, *step.shape)
    return reference > 0


def test_a_function_is_an_acceptance_rule() -> None:
    history = run(windowed(optax.sgd(0.1), accept=positive, window=3, horizon=2), 4)
    before, last = history[0], history[-1]
    assert last.report.predicted
    for leaf, w in last.trained.items():
        accepted = np.asarray(w) > 0  # the reference of `drift` is the newest weights
        assert 0 < accepted.mean() < 1
        np.testing.assert_array_equal(last.params[leaf][~accepted], w[~accepted])
        ahead = w + 2 * (w - history[1].params[leaf]) / 2  # mean velocity over two epochs
        np.testing.assert_allclose(last.params[leaf][accepted], ahead[accepted], rtol=1e-5, atol=1e-6)
    assert before.report.accepted_share == 0


@dataclasses.dataclass(frozen=True)
class Quarter(pdt_optax.Rule):
    """A soft rule of one's own, that differs between epochs."""

    minimum_window = 3

    def at(self, epoch: Any, leaf: Any) -> Any:
        def rule(increments: Any, step: Any, differences: Any, reference: Any, horizon: int) -> Any:
            return jnp.full(step.shape, 0.125) * (epoch - 1)

        return rule


def test_a_soft_rule_of_ones_own() -> None:
    with pytest.raises(ValueError, match="`window` must be at least 3"):
        windowed(optax.sgd(0.1), accept=Quarter(), window=2)
    history = run(windowed(optax.sgd(0.1), accept=Quarter(), window=3, horizon=2), 6)
    for epoch, weight in ((3, 0.25), (5, 0.5)):
        h = history[epoch]
        assert h.report.accepted_share == weight
        for leaf, w in h.trained.items():
            jump = w - history[epoch - 2].params[leaf]  # two mean velocities over two epochs
            np.testing.assert_allclose(h.params[leaf], w + weight * jump, rtol=1e-5, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class LastStep(pdt_optax.Dynamics):
    """A model of one's own: every epoch goes `factor` times as far as the last one seen."""

    factor: float = 1.0
    fit: Any = "current"
    minimum_window: int = 2

    def __call__(
        self, gram: Any, horizon: int, *, size: int, epsilon: float, epoch: Any
    ) -> pdt_optax.Forecast:
        window = gram.shape[0]
        assert gram.shape == (window, window)
        assert size == 11
        row = jnp.zeros(window, gram.dtype).at[-1].set(self.factor)
        return pdt_optax.Forecast(
            jnp.tile(row, (horizon, 1)),
            jnp.zeros(window - 1),
            jnp.ones((), jnp.int32),
            jnp.zeros(window - 1, jnp.complex64),
        )


@pytest.mark.parametrize(("fit", "window"), [("past", 4), ("current", 2)])
def test_a_frozen_dataclass_is_a_model_of_the_dynamics(fit: str, window: int) -> None:
    model = LastStep(factor=2.0, fit=fit)
    assert isinstance(model, pdt_optax.Dynamics)
    tx: Any = windowed(
        optax.sgd(0.1), dynamics=model, accept=pdt_optax.everything(), window=window, horizon=3
    )
    *_, before, last = run(tx, window + 1)
    assert last.report.predicted
    assert last.report.rank == 1
    newest, older = (
        (last.trained, before.params) if fit == "current" else before.state.history.snapshots[:-3:-1]
    )
    for leaf in last.params:
        expected = newest[leaf] + 3 * 2.0 * (newest[leaf] - older[leaf])
        np.testing.assert_allclose(last.params[leaf], expected, rtol=1e-5, atol=1e-6)


def test_an_accepted_weight_of_a_rule_from_the_past() -> None:
    """With `fit="past"` the prediction starts from the newest snapshot, not from `params`."""
    past = {**SMALL, "dynamics": pdt_optax.drift(fit="past"), "accept": pdt_optax.everything()}
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), **past)
    history = run(tx, 3)
    for leaf, new in history[2].params.items():
        newest, oldest = history[1].params[leaf], history[0].params[leaf]
        np.testing.assert_allclose(new, newest + 2 * (newest - oldest), rtol=1e-5, atol=1e-6)


# --- presets ----------------------------------------------------------------------------------------------


def test_presets_are_what_they_claim() -> None:
    assert presets.names() == ("paper", "released", "drift", "recommended")
    numbers = {"window": 5, "start": 5, "interval": 1, "own_motion": False, "deliver": "jump"}
    assert dict(presets.paper) == {
        "dynamics": pdt_optax.dmd(rank=None, modes="exact", fit="past", displacement=False),
        "accept": pdt_optax.paper_rule(),
        "horizon": 5,
        **numbers,
    }
    assert dict(presets.released) == {
        "dynamics": pdt_optax.dmd(rank="gavish-donoho", modes="projected", fit="past", displacement=True),
        "accept": pdt_optax.released_rule(),
        "horizon": 5,
        **numbers,
    }
    assert dict(presets.drift) == {
        "dynamics": pdt_optax.drift(),
        "accept": pdt_optax.agree(),
        "horizon": 1,
        **numbers,
    }
    assert dict(presets.recommended) == {
        "dynamics": pdt_optax.slow_drift(),
        "accept": pdt_optax.everything(),
        "horizon": 1,
        "window": 1,
        "start": 5,
        "interval": 0,
        "own_motion": True,
        "deliver": "auto",
    }
    for name in presets.names():
        assert presets.named(name) is getattr(presets, name)
        with pytest.raises(TypeError, match="does not support item assignment"):
            presets.named(name)["horizon"] = 9  # pyright: ignore[reportIndexIssue]


def test_the_default_is_the_recommended_preset() -> None:
    default = run(pdt_optax.pdt(optax.adam(0.05)), 8)
    preset = run(pdt_optax.pdt(optax.adam(0.05), **presets.recommended), 8)
    for a, b in zip(default, preset, strict=True):
        assert_same((a.params, a.state, a.report), (b.params, b.state, b.report))
    assert differs(default[-1].params, run_inner(optax.adam(0.05), 8)[-1][0])


def test_an_empty_leaf_has_the_share_zero() -> None:
    window: Any = [{"a": jnp.zeros((0, 3)), "b": jnp.arange(1.0, 3) * i} for i in range(4)]
    got = pdt_optax.predict_and_mask(
        window[:3], window[3], dynamics=pdt_optax.drift(), accept=pdt_optax.agree(), horizon=2
    )
    assert got.accepted_share_per_leaf.tolist() == [0, 1]
    assert got.accepted_share == 1


@pytest.mark.parametrize("outer", ["directly", "in a chain"])
def test_a_pdt_inside_a_pdt_is_refused_at_init(outer: str) -> None:
    inner: Any = pdt_optax.pdt(optax.sgd(0.1))
    tx = pdt_optax.pdt(inner if outer == "directly" else optax.chain(optax.clip(1.0), inner))
    with pytest.raises(ValueError, match=r"must not hold another `pdt`.*Found 1"):
        tx.init({"w": jnp.ones(3)})


@pytest.mark.parametrize("increments", [(2, 4), (3, 5)])
def test_a_model_that_returns_the_wrong_shape_is_told_so(increments: tuple[int, int]) -> None:
    @dataclasses.dataclass(frozen=True)
    class Model(pdt_optax.Dynamics):
        fit: Any = "past"
        minimum_window: int = 2

        def __call__(
            self, gram: Any, horizon: int, *, size: int, epsilon: float, epoch: Any
        ) -> pdt_optax.Forecast:
            nan = jnp.full(3, jnp.nan)
            return pdt_optax.Forecast(jnp.zeros(increments), nan, jnp.int32(1), nan.astype(complex))

    snapshots = [jnp.ones(3) * i for i in range(4)]
    with pytest.raises(ValueError, match=r"`increments` has the shape \(3, 4\).*returned \(") as error:
        pdt_optax.predict_and_mask(
            snapshots, jnp.ones(3), dynamics=Model(), accept=pdt_optax.everything(), horizon=3
        )
    assert str(increments) in str(error.value)


def test_value_must_be_a_scalar() -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1))
    params = {"w": jnp.ones(3)}
    state = tx.init(params)
    for call in (
        lambda: tx.end_epoch(params, state, value=jnp.ones(3)),
        lambda: tx.update(params, state, params, value=jnp.ones(3)),
    ):
        with pytest.raises(ValueError, match=r"`value` must be a scalar.*\(3,\)"):
            call()


def test_numpy_integers_are_whole_numbers() -> None:
    assert pdt_optax.pdt(optax.sgd(0.1), window=np.int64(3), horizon=np.int32(2)).init(  # pyright: ignore
        {"w": jnp.ones(3)}
    )


def test_float64_numpy_parameters_are_taken_as_jax_takes_them() -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1))
    params: Any = {"w": np.arange(3.0), "b": np.float32(1)}
    params, _, _ = tx.end_epoch(params, tx.init(params))
    assert {k: (v.dtype, v.tolist()) for k, v in params.items()} == {
        "w": (jnp.float32, [0, 1, 2]),
        "b": (jnp.float32, 1),
    }
