"""`pdt` among its neighbours: optimizers, optax's combinators, jax's transformations, flax."""

import functools
from collections.abc import Iterator
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import pdt_optax
from tests.states import WINDOWED, with_clock
from tests.trees import assert_same, differs

SMALL: dict[str, Any] = {**WINDOWED, "window": 2, "start": 2, "interval": 1, "horizon": 2}
PREDICTED = [False, False, True, False, True, False]
# A window of snapshots, and the default in both its deliveries.
KINDS: dict[str, dict[str, Any]] = {
    "windowed": SMALL,
    "gradual": {"start": 2},
    "jump": {"start": 2, "deliver": "jump"},
}
OUTCOMES = {kind: PREDICTED if kind == "windowed" else [False] * 2 + [True] * 4 for kind in KINDS}

# The wrapper never asks which optimizer it holds: each stands where what sets it apart could matter.
OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "sgd": optax.sgd(0.1),  # no state
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.05),  # moments and a counter
    "adamw": optax.adamw(0.05, weight_decay=0.1),  # reads the weights
    "rmsprop": optax.rmsprop(0.05),
    "lamb": optax.lamb(0.05),  # scales each leaf by its norm
    "lion": optax.lion(0.02),
    "muon": optax.contrib.muon(0.05),  # treats matrices and vectors apart
    "schedule-free": optax.contrib.schedule_free(
        optax.sgd(0.1), 0.1
    ),  # weights in its state, extra arguments
}
pytestmark = pytest.mark.filterwarnings("ignore:`inner` keeps a slow mean of its own")
assert_close: Any = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


@pytest.fixture(autouse=True)
def _count_traces_anew() -> Iterator[None]:
    yield
    chex.clear_trace_counter()


def make_params() -> dict[str, Any]:
    return {"v": jnp.array([[0.3, -0.7, 0.05]]), "w": jnp.arange(8.0).reshape(4, 2) / 5 - 0.6}


@jax.jit
def gradient(params: Any) -> Any:
    return jax.tree.map(lambda x: 0.3 * x - 0.1 + 0.2 * jnp.sin(9 * x), params)


@functools.partial(jax.jit, static_argnums=0)
def update(tx: Any, grads: Any, state: Any, params: Any, **extra: Any) -> Any:
    return tx.update(grads, state, params, **extra)


# Apart from `update`: fused with it, XLA rounds a sum of products once, not twice.
apply_updates: Any = jax.jit(optax.apply_updates)


def step(tx: Any, params: Any, state: Any, **extra: Any) -> tuple[Any, Any]:
    updates, state = update(tx, gradient(params), state, params, **extra)
    return apply_updates(params, updates), state


def run(tx: Any, end: Any, epochs: int = 6, params: Any = None, steps: int = 1) -> tuple[Any, Any, list[Any]]:
    """Trains with `tx`, and ends epochs with the `pdt` wrapper `end` somewhere inside it."""
    params = make_params() if params is None else params
    state, reports = tx.init(params), []
    for _ in range(epochs):
        for _ in range(steps):
            params, state = step(tx, params, state)
        params, state, report = pdt_optax.end_epoch(end, params, state)
        reports.append(report)
    return params, state, reports


def plain_pdt() -> pdt_optax.PDT:
    return pdt_optax.pdt(optax.sgd(0.1), **SMALL)


def run_plain(tx: Any, calls: int, params: Any = None) -> tuple[Any, Any]:
    params = make_params() if params is None else params
    state = tx.init(params)
    for _ in range(calls):
        params, state = step(tx, params, state)
    return params, state


def predicted(reports: list[Any]) -> list[bool]:
    return [bool(report.predicted) for report in reports]


def types(tree: Any) -> Any:
    return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


def buffers(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree)


# --- optimizers x invariants ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "every", "settings"),
    [
        ("momentum", None, {}),
        ("adamw", None, {**WINDOWED, "window": 4}),
        ("adamw", None, {"deliver": "jump"}),
        ("schedule-free", None, {}),
        ("sgd", 1, {**WINDOWED, "window": 4}),
        ("muon", 1, {}),
    ],
)
def test_burn_in_is_bitwise_the_inner_optimizer(name: str, every: int | None, settings: Any) -> None:
    inner = OPTIMIZERS[name]
    tx: Any = pdt_optax.pdt(inner, every=every, **{"start": 4} | settings)
    params, state, inner_state = make_params(), tx.init(make_params()), inner.init(make_params())
    for _ in range(4):
        grads = gradient(params)
        updates, state = update(tx, grads, state, params)
        expected, inner_state = update(inner, grads, inner_state, params)
        assert_same(updates, expected)
        assert_same(state.inner_state, inner_state)
        params = trained = apply_updates(params, updates)
        if every is None:
            params, state, report = tx.end_epoch(params, state)
            assert_same(params, trained)
            assert not report.predicted
    assert state.history.clock.snapshots_seen == 5


def takes_factor() -> optax.GradientTransformationExtraArgs:
    def scale(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return jax.tree.map(lambda u: extra["factor"] * u, updates), extra["value"]

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), scale)


@pytest.mark.parametrize("name", ["lamb", "schedule-free"])
def test_extra_args_reach_the_inner_optimizer(name: str) -> None:
    inner = optax.chain(OPTIMIZERS[name], takes_factor())
    tx: Any = pdt_optax.pdt(inner, **SMALL)
    params = make_params()
    grads, state = gradient(params), tx.init(params)
    expected, inner_state = update(inner, grads, inner.init(params), params, factor=3.0, value=4.0)
    updates, state = update(tx, grads, state, params, factor=3.0, value=4.0)
    assert_same(updates, expected)
    assert_same(state.inner_state, inner_state)
    assert state.inner_state[-1] == 4
    # and an inner optimizer that takes none is not disturbed by them
    plain, _ = update(pdt_optax.pdt(OPTIMIZERS[name], **SMALL), grads, tx_state(name), params, factor=3.0)
    assert_same(plain, update(OPTIMIZERS[name], grads, OPTIMIZERS[name].init(params), params)[0])


def tx_state(name: str) -> Any:
    return pdt_optax.pdt(OPTIMIZERS[name], **SMALL).init(make_params())


def trained(name: str, kind: str, donate: bool) -> Any:
    """The weights after each of seven epochs with the user's own jitted step, donating params and state or not."""
    tx: Any = pdt_optax.pdt(OPTIMIZERS[name], **KINDS[kind])

    @functools.partial(jax.jit, donate_argnums=(0, 1) if donate else ())
    def train(params: Any, state: Any) -> Any:
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    def epoch(params: Any, state: Any) -> tuple[Any, Any, bool]:
        old = buffers((params, state))
        params, state = train(params, state)
        assert [x.is_deleted() for x in old] == [donate] * len(old)
        old, history = buffers((params, state)), state.history
        oldest = buffers((params, history.snapshots[0], history.motion, history.delivery))
        params, state, report = tx.end_epoch(params, state, donate=donate)
        assert all(x.is_deleted() for x in oldest) if donate else not any(x.is_deleted() for x in old)
        return params, state, bool(report.predicted)

    start = make_params(), tx.init(make_params())
    first = types(start)
    params, state, _ = epoch(*start)
    weights, outcomes = [jax.tree.map(jnp.copy, params)], []
    for _ in range(6):
        # All that is ever compiled, for epochs that predict too, is so in the first.
        with jax.no_tracing():
            params, state, predicted = epoch(params, state)
        assert types((params, state)) == first
        weights.append(jax.tree.map(jnp.copy, params))
        outcomes.append(predicted)
    assert outcomes == [*OUTCOMES[kind][1:], True]
    return weights


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", "windowed"),
        ("adam", "windowed"),
        ("schedule-free", "windowed"),
        ("adam", "gradual"),
        ("schedule-free", "gradual"),
        ("sgd", "jump"),
    ],
)
def test_nothing_recompiles_types_are_kept_and_donation_changes_no_number(name: str, kind: str) -> None:
    assert_same(trained(name, kind, donate=True), trained(name, kind, donate=False))


@pytest.mark.parametrize(
    ("name", "kind"), [("rmsprop", "windowed"), ("lion", "windowed"), ("lion", "gradual")]
)
def test_low_precision_is_kept(name: str, kind: str) -> None:
    inner, params = OPTIMIZERS[name], jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params())
    tx: Any = pdt_optax.pdt(inner, accept=pdt_optax.everything(), **KINDS[kind])
    new, state, reports = run(tx, tx, 3, params)
    assert predicted(reports) == [False, False, True]
    assert types(new) == types(params)
    assert types(state.history.snapshots) == types((params,) * len(state.history.snapshots))
    plain, inner_state = run_plain(inner, 3, params)
    assert types(state.inner_state) == types(inner_state)
    assert differs(new, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_every_in_the_users_jitted_step(kind: str) -> None:
    """The boundary is in the graph: donated and never recompiled."""
    tx: Any = pdt_optax.pdt(optax.adam(0.05), every=2, **KINDS[kind])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    @chex.assert_max_traces(n=1)
    def train(params: Any, state: Any) -> Any:
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    params: Any = make_params()
    state: Any = tx.init(params)
    start, outcomes = types((params, state)), []
    for _ in range(12):
        old = buffers((params, state))
        params, state = train(params, state)
        assert all(x.is_deleted() for x in old)
        assert types((params, state)) == start
        outcomes.append(bool(state.last_report.predicted))
    assert outcomes[1::2] == OUTCOMES[kind]


@pytest.mark.parametrize("kind", ["windowed", "gradual"])
def test_every_outside_jit_does_not_recompile(kind: str) -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), every=2, **KINDS[kind])

    def train(params: Any, state: Any) -> Any:
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    params, state = train(make_params(), tx.init(make_params()))
    with jax.no_tracing():
        for _ in range(3):
            params, state = train(params, state)
    assert state.history.clock.snapshots_seen == 3


@pytest.mark.parametrize("kind", KINDS)
def test_equal_wrappers_share_compiled_code(kind: str) -> None:
    params = make_params()
    one, other = (pdt_optax.pdt(optax.sgd(rate), **KINDS[kind]) for rate in (0.1, 0.2))
    one.end_epoch(params, one.init(params))
    state = other.init(params)
    with jax.no_tracing():
        other.end_epoch(params, state)


# --- the type of the wrapper ------------------------------------------------------------------------------


def test_the_wrapper_is_an_optax_transformation() -> None:
    tx: Any = pdt_optax.pdt(optax.adam(0.05), **SMALL)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    assert isinstance(tx, pdt_optax.PDT)
    init, update_fn = tx
    assert (init, update_fn) == (tx.init, tx.update)
    assert optax.with_extra_args_support(tx) is tx
    expected = run(tx, tx)
    for same in (tx._replace(update=tx.update), jax.tree.map(lambda f: f, tx)):
        assert isinstance(same, pdt_optax.PDT)
        assert hash(same) == hash(tx)
        assert_same(run(same, same)[:2], expected[:2])
    wrapped = tx._replace(init=lambda params: tx.init(params))
    assert_same(run(wrapped, wrapped)[:2], expected[:2])


@pytest.mark.parametrize("kind", ["windowed", "gradual"])
def test_init_under_jit_and_eval_shape(kind: str) -> None:
    for every in (None, 3):
        tx: Any = pdt_optax.pdt(
            optax.adam(0.05), every=every, exclude=lambda path: path == "v", **KINDS[kind]
        )
        state = tx.init(make_params())
        shapes = jax.eval_shape(tx.init, make_params())
        assert jax.tree.structure(shapes) == jax.tree.structure(state)
        assert types(shapes) == types(state)
        jitted = jax.jit(tx.init)(make_params())
        assert types(jitted) == types(state)
        assert_same(jitted, state)


# --- optax's combinators ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_chain(kind: str) -> None:
    """Gradients are clipped before the wrapper: inside or outside makes no difference."""
    clip = optax.clip_by_global_norm(0.1)
    nested = pdt_optax.pdt(optax.adam(0.05), **KINDS[kind])
    tx = optax.chain(clip, nested)
    whole = pdt_optax.pdt(optax.chain(clip, optax.adam(0.05)), **KINDS[kind])
    params, state, reports = run(tx, nested)
    expected, whole_state, _ = run(whole, whole)
    assert predicted(reports) == OUTCOMES[kind]
    assert_same(params, expected)
    assert_same(state[1].history.snapshots, whole_state.history.snapshots)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
    assert pdt_optax.leaf_paths(state) == ["v", "w"]
    assert differs(params, run_plain(optax.chain(clip, optax.adam(0.05)), 6)[0])
    # Behind the optimizer, around nothing.
    behind = pdt_optax.pdt(optax.identity(), **KINDS[kind])
    assert_same(run(optax.chain(clip, optax.adam(0.05), behind), behind)[0], expected)


@pytest.mark.parametrize("kind", ["windowed", "gradual"])
def test_masked(kind: str) -> None:
    nested = pdt_optax.pdt(optax.sgd(0.1), accept=pdt_optax.everything(), **KINDS[kind])
    tx = optax.masked(nested, {"v": True, "w": False})
    params, state, reports = run(tx, nested)
    assert predicted(reports) == OUTCOMES[kind]
    assert pdt_optax.leaf_paths(state) == ["v"]
    expected = run(nested, nested, params={"v": make_params()["v"]})[0]
    assert_same(params["v"], expected["v"])
    # `masked` hands the gradient of what it masks on untouched.
    assert_same(
        params["w"],
        run_plain(optax.identity(), 6, {"w": make_params()["w"]})[0]["w"],
    )


def test_inner_masked() -> None:
    inner = optax.masked(optax.sgd(0.1), {"v": True, "w": False})
    tx: Any = pdt_optax.pdt(inner, accept=pdt_optax.everything(), **SMALL)
    params, state, reports = run(tx, tx)
    assert predicted(reports) == PREDICTED
    assert pdt_optax.leaf_paths(state) == ["v", "w"]  # `pdt` predicts both
    alone = pdt_optax.pdt(optax.sgd(0.1), accept=pdt_optax.everything(), **SMALL)
    assert_close(params["v"], run(alone, alone)[0]["v"])


@pytest.mark.parametrize(
    ("every", "kind"), [(None, "windowed"), (1, "windowed"), (None, "gradual"), (1, "gradual")]
)
def test_partition(every: int | None, kind: str) -> None:
    nested = pdt_optax.pdt(optax.sgd(0.1), every=every, accept=pdt_optax.everything(), **KINDS[kind])
    tx = optax.partition({"pdt": nested, "plain": optax.adam(0.05)}, {"v": "plain", "w": "pdt"})
    if every is None:
        params, state, reports = run(tx, nested)
        assert predicted(reports) == OUTCOMES[kind]
    else:
        params, state = run_plain(tx, 6)
    assert pdt_optax.leaf_paths(state) == ["w"]
    plain = optax.partition({"pdt": optax.sgd(0.1), "plain": optax.adam(0.05)}, {"v": "plain", "w": "pdt"})
    assert_same(params["v"], run_plain(plain, 6)[0]["v"])
    alone = pdt_optax.pdt(optax.sgd(0.1), accept=pdt_optax.everything(), **KINDS[kind])
    assert_close(params["w"], run(alone, alone, params={"w": make_params()["w"]})[0]["w"])
    assert differs(params["w"], run_plain(optax.sgd(0.1), 6)[0]["w"])


def test_inject_hyperparams_inside() -> None:
    tx: Any = pdt_optax.pdt(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), **SMALL)
    params, state, reports = run(tx, tx)
    assert predicted(reports) == PREDICTED
    assert_same(params, run(plain_pdt(), plain_pdt())[0])
    assert optax.tree.get(state, "learning_rate") == jnp.float32(0.1)
    slower = optax.tree.set(state, learning_rate=jnp.float32(0.05))
    fast, _ = update(tx, gradient(params), state, params)
    slow, _ = update(tx, gradient(params), slower, params)
    assert_close(slow, jax.tree.map(lambda u: u / 2, fast))


def test_inject_hyperparams_outside() -> None:
    def make(learning_rate: Any) -> Any:
        return pdt_optax.pdt(optax.sgd(learning_rate), every=1, **SMALL)

    tx = optax.inject_hyperparams(make)(learning_rate=0.1)
    params, state = run_plain(tx, 5)
    assert state.inner_state.last_report.predicted
    assert_close(params, run_plain(make(0.1), 5)[0])


def test_multi_steps_outside_counts_optimizer_steps() -> None:
    nested = pdt_optax.pdt(optax.sgd(0.1), every=2, **SMALL)
    tx = optax.MultiSteps(nested, every_k_schedule=3)
    grads = [jax.tree.map(lambda x, i=i: jnp.sin(x + i), make_params()) for i in range(36)]
    params, state, seen = make_params(), tx.init(make_params()), []
    train: Any = jax.jit(lambda g, s, p: tx.update(g, s, p))
    for g in grads:
        updates, state = train(g, state, params)
        params = apply_updates(params, updates)
        seen.append(int(state.inner_opt_state.history.clock.snapshots_seen))
    assert seen == [1 + n // 6 for n in range(1, 37)]
    expected, own = make_params(), nested.init(make_params())
    for i in range(0, 36, 3):
        mean = jax.tree.map(lambda *g: sum(g) / 3, *grads[i : i + 3])
        updates, own = update(nested, mean, own, expected)
        expected = apply_updates(expected, updates)
    assert_close(params, expected)
    assert state.inner_opt_state.history.clock.predictions_made == 2


@pytest.mark.parametrize("as_transformation", [False, True])
def test_multi_steps_inside(as_transformation: bool) -> None:
    accumulate: Any = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2)
    inner = accumulate.gradient_transformation() if as_transformation else accumulate
    tx: Any = pdt_optax.pdt(inner, **SMALL)
    params, state, reports = run(tx, tx, steps=2)
    assert predicted(reports) == PREDICTED
    # Both gradients of an epoch are taken at the same weights, so their mean is either.
    assert_close(params, run(plain_pdt(), plain_pdt())[0])
    assert state.inner_state.gradient_step == 6


@pytest.mark.parametrize("inside", [False, True])
def test_apply_if_finite(inside: bool) -> None:
    if inside:
        tx = nested = pdt_optax.pdt(optax.apply_if_finite(optax.sgd(0.1), 5), **SMALL)
    else:
        nested = pdt_optax.pdt(optax.sgd(0.1), **SMALL)
        tx = optax.apply_if_finite(nested, 5)
    params: Any = make_params()
    state: Any = tx.init(params)
    for epoch in range(6):
        bad = jax.tree.map(lambda g: g * jnp.nan, gradient(params))
        updates, state = update(tx, bad, state, params)  # skipped
        params, state = step(tx, apply_updates(params, updates), state)
        params, state, report = pdt_optax.end_epoch(nested, params, state)
        assert bool(report.predicted) == PREDICTED[epoch]
        assert report.finite
    assert_close(params, run(plain_pdt(), plain_pdt())[0])
    assert optax.tree.get(state, "total_notfinite") == 6


# --- optax.tree -------------------------------------------------------------------------------------------


NAMED = {
    "adam": (optax.adam(0.05), ("count", "mu", "nu")),
    "injected": (optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), ("count", "learning_rate")),
    "momentum": (optax.sgd(0.1, momentum=0.9), ("trace",)),
    "plateau": (optax.contrib.reduce_on_plateau(), ("scale", "best_value", "plateau_count", "avg_value")),
    "line search": (optax.scale_by_backtracking_linesearch(5), ("learning_rate", "value", "grad")),
    "lbfgs": (optax.scale_by_lbfgs(), ("count", "params", "updates")),
}


# A line search must be told of jumps.
TOLD: dict[str, Any] = {"deliver": "jump", "after_jump": pdt_optax.forget_value}


@pytest.mark.parametrize(
    ("every", "kind"), [(None, "windowed"), (2, "windowed"), (None, "gradual"), (2, "gradual")]
)
@pytest.mark.parametrize("name", NAMED)
def test_names_stay_unambiguous(name: str, every: int | None, kind: str) -> None:
    """Whatever `optax.tree.get` finds in the inner state, it finds in ours."""
    inner, keys = NAMED[name]
    told = TOLD if name == "line search" else {}
    state: Any = pdt_optax.pdt(inner, every=every, **KINDS[kind] | told).init(make_params())
    for key in keys:
        assert_same(optax.tree.get(state, key), optax.tree.get(state.inner_state, key))


@pytest.mark.parametrize(("every", "kind"), [(None, "windowed"), (2, "windowed"), (2, "gradual")])
def test_value_and_grad_from_state(every: int | None, kind: str) -> None:
    """It looks for `value` in the state of a line search."""
    tx: Any = pdt_optax.pdt(optax.lbfgs(), every=every, **KINDS[kind] | TOLD)

    def loss(params: Any) -> Any:
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    params = make_params()
    value, grads = optax.value_and_grad_from_state(loss)(params, state=tx.init(params))
    np.testing.assert_allclose(value, loss(params), rtol=1e-6)
    assert_close(grads, jax.tree.map(lambda x: 2 * x, params))


@pytest.mark.parametrize("kind", ["windowed", "gradual"])
@pytest.mark.parametrize(
    "labels",
    [None, lambda path: path == "v", {"v": True, "w": False}],
    ids=["no labels", "a function", "a tree"],
)
def test_map_params(labels: Any, kind: str) -> None:
    tx: Any = pdt_optax.pdt(optax.adam(0.05), exclude=labels, **KINDS[kind])
    params = make_params()
    state: Any = tx.init(params)
    mapped: Any = optax.tree.map_params(tx, lambda x: x + 1, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    assert_same(mapped.history.snapshots, jax.tree.map(lambda x: x + 1, state.history.snapshots))
    assert_same(mapped.inner_state[0].mu, jax.tree.map(jnp.ones_like, params))
    assert_same((mapped.history.clock, mapped.this_epoch), (state.history.clock, state.this_epoch))
    if kind == "gradual":
        for got, had in (
            (mapped.history.motion.mean, state.history.motion.mean),
            (mapped.history.delivery.displacement, state.history.delivery.displacement),
        ):
            assert_same(got, jax.tree.map(lambda x: x + 1, had))
        assert_same(mapped.history.motion.pull, state.history.motion.pull)


# --- jax's transformations --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["windowed", "gradual"])
def test_end_epoch_under_jit(kind: str) -> None:
    tx: Any = pdt_optax.pdt(optax.adam(0.05), **KINDS[kind])
    expected, expected_state, expected_reports = run(tx, tx)

    epoch: Any = jax.jit(lambda params, state: tx.end_epoch(params, state, value=jnp.float32(0.5)))

    params, state, reports = make_params(), tx.init(make_params()), []
    for _ in range(6):
        params, state = step(tx, params, state)
        params, state, report = epoch(params, state)
        assert report.mean_value == 0.5
        assert report.has_value
        given = {name: getattr(expected_reports[0], name) for name in ("mean_value", "has_value")}
        reports.append(report._replace(**given))
    assert epoch._cache_size() == 1
    assert_close(params, expected)
    assert (state.history.clock.pace.value_before, state.history.clock.pace.value_before_that) == (
        0.5,
        0.5,
    )  # the reference has none
    assert_close(with_clock(state, pace=expected_state.history.clock.pace), expected_state)
    assert_close(reports, expected_reports)


@pytest.mark.parametrize("kind", KINDS)
def test_scan_with_every(kind: str) -> None:
    tx: Any = pdt_optax.pdt(optax.adam(0.05), every=2, **KINDS[kind])

    def body(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient(params), state, params)
        return (optax.apply_updates(params, updates), state), state.last_report

    (params, state), reports = jax.lax.scan(body, (make_params(), tx.init(make_params())), length=12)
    assert reports.predicted[1::2].tolist() == OUTCOMES[kind]
    expected, expected_state = run_plain(tx, 12)
    assert_close(params, expected)
    assert_close(state, expected_state)


def ensemble() -> Any:
    return jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), make_params())


def member(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], tree)


def test_vmap_of_predict_and_mask() -> None:
    def predict(snapshots: Any, params: Any) -> Any:
        return pdt_optax.predict_and_mask(
            snapshots, params, dynamics=pdt_optax.dmd(), accept=pdt_optax.released_rule(), horizon=2
        )

    weights = [jax.tree.map(lambda x, k=k: x * 0.8**k, ensemble()) for k in range(4)]
    together = jax.vmap(predict)(weights[:3], weights[3])
    for i in range(3):
        alone = predict([member(w, i) for w in weights[:3]], member(weights[3], i))
        assert_close(member(together, i).params, alone.params)


@pytest.mark.parametrize("kind", ["windowed", "gradual"])
def test_vmap_with_every(kind: str) -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), every=2, **KINDS[kind])
    params = ensemble()
    state = jax.vmap(tx.init)(params)
    train = jax.jit(jax.vmap(lambda p, s: tx.update(gradient(p), s, p)))
    for _ in range(6):
        updates, state = train(params, state)
        params = apply_updates(params, updates)
    assert state.last_report.predicted.tolist() == [True] * 3
    for i in range(3):
        assert_close(member(params, i), run_plain(tx, 6, member(ensemble(), i))[0])


@pytest.mark.parametrize("kind", ["windowed", "gradual", "jump"])
def test_vmap_of_end_epoch(kind: str) -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), **KINDS[kind])
    params, state = ensemble(), jax.vmap(tx.init)(ensemble())
    outcomes = []
    for _ in range(3):
        updates, state = jax.vmap(tx.update)(gradient(params), state, params)
        params, state, report = jax.vmap(lambda p, s: tx.end_epoch(p, s))(
            apply_updates(params, updates), state
        )
        outcomes.append(report.predicted.tolist())
    assert outcomes == [[p] * 3 for p in OUTCOMES[kind][:3]]
    for i in range(3):
        assert_close(member(params, i), run(tx, tx, 3, member(ensemble(), i))[0])


def weak_params() -> dict[str, Any]:
    return {"a": jnp.full((2, 3), 0.01), "b": jnp.asarray(0.5)}


@pytest.mark.parametrize(
    ("every", "kind"), [(None, "windowed"), (1, "windowed"), (None, "gradual"), (1, "gradual"), (1, "jump")]
)
def test_weakly_typed_params_cause_no_recompiles(every: int | None, kind: str) -> None:
    assert all(x.weak_type for x in weak_params().values())
    tx: Any = pdt_optax.pdt(optax.adam(0.05), every=every, **KINDS[kind])
    params, state = weak_params(), tx.init(weak_params())
    assert not any(x.weak_type for x in jax.tree.leaves(state._replace(inner_state=None)))

    # As with adam alone: for weights and moments both weakly typed, for the moments alone, and for none.
    @jax.jit
    @chex.assert_max_traces(n=3)
    def train(params: Any, state: Any) -> Any:
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(6):
        params, state = train(params, state)
        if every is None:
            params, state, _ = tx.end_epoch(params, state)


# --- flax -------------------------------------------------------------------------------------------------


X = jnp.sin(jnp.arange(16.0)).reshape(8, 2)
Y = jnp.cos(jnp.arange(8.0)).reshape(8, 1)


def test_linen_train_state() -> None:
    model: Any = nn.Dense(1)
    tx: Any = pdt_optax.pdt(optax.adam(0.05), **SMALL)
    variables = model.init(jax.random.key(0), X)
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)

    def loss(params: Any) -> Any:
        return jnp.mean((model.apply({"params": params}, X) - Y) ** 2)

    train_step: Any = jax.jit(lambda state: state.apply_gradients(grads=jax.grad(loss)(state.params)))

    params, opt_state, reports = variables["params"], tx.init(variables["params"]), []
    for _ in range(6):
        state = train_step(state)
        new_params, new_opt_state, report = tx.end_epoch(state.params, state.opt_state)
        state = state.replace(params=new_params, opt_state=new_opt_state)
        reports.append(report)

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        params, opt_state, _ = tx.end_epoch(optax.apply_updates(params, updates), opt_state)
    assert predicted(reports) == PREDICTED
    assert train_step._cache_size() <= 2  # `step` starts as an int
    assert state.step == 6
    assert_close(state.params, params)


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.out = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.norm(self.hidden(x))))


def nnx_loss(model: Model) -> jax.Array:
    return jnp.mean((model(X) - Y) ** 2)


@nnx.jit
def nnx_step(model: Model, optimizer: nnx.Optimizer) -> None:
    optimizer.update(model, nnx.grad(nnx_loss)(model))


def nnx_reference(tx: Any, end: bool) -> Any:
    """The same training without `nnx.Optimizer`."""
    graph, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)
    params = nnx.as_pure(params)
    state = tx.init(params)
    for _ in range(6):
        model = nnx.merge(graph, params, rest)
        grads = nnx.as_pure(nnx.grad(nnx_loss)(model))
        rest = nnx.state(model, nnx.Not(nnx.Param))
        updates, state = update(tx, grads, state, params)
        params = apply_updates(params, updates)
        if end:
            params, state, _ = tx.end_epoch(params, state)
    return params


@pytest.mark.parametrize(
    ("labels", "donate", "kind"),
    [
        (None, True, "windowed"),
        (lambda path: path.startswith("norm/"), False, "windowed"),
        (lambda path: path.startswith("norm/"), True, "gradual"),
    ],
    ids=["all, donated", "labels", "gradual"],
)
def test_nnx_optimizer(labels: Any, donate: bool, kind: str) -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), exclude=labels, **KINDS[kind])
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    kinds = jax.tree.structure(optimizer.opt_state)
    reports = []
    for _ in range(6):
        nnx_step(model, optimizer)
        params, opt_state, report = tx.end_epoch(
            nnx.as_pure(nnx.state(model, nnx.Param)), nnx.as_pure(optimizer.opt_state), donate=donate
        )
        nnx.update(model, params)
        nnx.update(optimizer.opt_state, nnx.state(opt_state))
        reports.append(report)
    assert predicted(reports) == OUTCOMES[kind]
    assert jax.tree.structure(optimizer.opt_state) == kinds
    state: Any = nnx.as_pure(optimizer.opt_state)
    assert state.history.clock.snapshots_seen == 7
    new = nnx.as_pure(nnx.state(model, nnx.Param))
    leaves = jax.tree.leaves(new)
    if labels is not None:
        leaves = [x for path, x in jax.tree_util.tree_leaves_with_path(new) if "norm" not in str(path)]
    assert_same(jax.tree.leaves(state.history.snapshots[-1]), leaves)
    assert_close(new, nnx_reference(tx, True), rtol=1e-4, atol=1e-5)
    assert differs(new, nnx_reference(optax.sgd(0.1), False))


@pytest.mark.parametrize("kind", ["windowed", "gradual"])
def test_nnx_optimizer_with_every(kind: str) -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), every=1, **KINDS[kind])
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    outcomes = []
    for _ in range(6):
        nnx_step(model, optimizer)
        outcomes.append(bool(nnx.as_pure(optimizer.opt_state).last_report.predicted))
    assert outcomes == OUTCOMES[kind]
    new = nnx.as_pure(nnx.state(model, nnx.Param))
    assert_close(new, nnx_reference(pdt_optax.pdt(optax.sgd(0.1), **KINDS[kind]), True), rtol=1e-4, atol=1e-5)


def test_nnx_paths_are_those_of_the_model() -> None:
    """The same names at `init`, where nnx hands over Variables, and afterwards."""
    seen = []
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), exclude=lambda path: bool(seen.append(path)), **SMALL)
    optimizer = nnx.Optimizer(Model(nnx.Rngs(0)), tx, wrt=nnx.Param)
    pure = pdt_optax.leaf_paths(nnx.as_pure(optimizer.opt_state))
    assert "hidden/kernel" in pure
    assert sorted(set(seen)) == sorted(pure)
