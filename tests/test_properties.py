"""Any tree, any window, any schedule: against the state machine in plain Python and the float64 oracle.

More cases: HYPOTHESIS_PROFILE=thorough python -m pytest tests/test_properties.py
"""

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given

import pdt_optax
from tests import oracle
from tests.states import windowed

QUICK = hypothesis.settings(max_examples=20, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("quick", QUICK)
hypothesis.settings.register_profile("thorough", QUICK, max_examples=250, derandomize=False, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
hypothesis.settings.load_profile(PROFILE)
_examples = itertools.count(1)


def forgetful(test: Callable[..., None]) -> Callable[..., None]:
    """Examples compile programs of their own. A thousand of them are more than a process may map: forget them now and then."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        if next(_examples) % 100 == 0:
            jax.clear_caches()
        test(*args, **kwargs)

    return run


SHAPES = ((), (1,), (3,), (0,), (2, 3), (4, 1, 2))
FLOATS = ("float32", "bfloat16", "float16")
# Not predicted: they must come back as they are.
OTHERS = (None, optax.MaskedNode(), 7, jnp.arange(3), jnp.array([True, False]))


class Shape(NamedTuple):
    """A floating leaf to come, for a tree is drawn before its weights are."""

    shape: tuple[int, ...]
    dtype: str


def floating(dtypes: tuple[str, ...] = FLOATS) -> st.SearchStrategy[Any]:
    return st.builds(Shape, st.sampled_from(SHAPES), st.sampled_from(dtypes))


@st.composite
def trees(draw: Callable[..., Any], dtypes: tuple[str, ...] = FLOATS, others: bool = True) -> Any:
    """Nested dicts, lists and tuples of leaves, at least one of them floating and not empty."""
    leaf = st.one_of(floating(dtypes), st.sampled_from(OTHERS)) if others else floating(dtypes)
    nested = st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
        ),
        max_leaves=6,
    )
    return {"given": draw(nested), "always": Shape(draw(st.sampled_from([(1,), (2, 3)])), "float32")}


def is_shape(x: Any) -> bool:
    return isinstance(x, Shape)


def walk(tree: Any, steps: int, seed: int, poisoned: tuple[int, ...] = ()) -> list[Any]:
    """Weights after each epoch: each drifts and shakes, some stand still; those of `poisoned` epochs hold a NaN."""
    rng = np.random.default_rng(seed)
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_shape)
    weights = {i: rng.normal(size=x.shape) for i, x in enumerate(leaves) if is_shape(x)}
    velocity = {i: 0.02 * rng.normal(size=w.shape) * (rng.random(w.shape) < 0.8) for i, w in weights.items()}
    still = {i: v == 0 for i, v in velocity.items()}

    def at(epoch: int) -> Any:
        for i in weights:
            shake = np.where(still[i], 0, 0.01 * rng.normal(size=weights[i].shape))
            weights[i] = weights[i] + velocity[i] + shake
        values = [jnp.asarray(weights[i], x.dtype) if is_shape(x) else x for i, x in enumerate(leaves)]
        if epoch in poisoned:
            first = next(i for i, x in enumerate(leaves) if is_shape(x) and values[i].size)
            values[first] = values[first].at[(0,) * values[first].ndim].set(jnp.nan)
        return treedef.unflatten(values)

    return [at(epoch) for epoch in range(steps)]


def flat(tree: Any) -> np.ndarray:
    """All floating weights, in float64."""
    leaves = [
        x for x in jax.tree.leaves(tree) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    ]
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])


def resolution(tree: Any) -> np.ndarray:
    """One unit in the last place at 1, of each floating weight's type."""
    leaves = [
        x for x in jax.tree.leaves(tree) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    ]
    return np.concatenate([np.full(x.size, float(jnp.finfo(x.dtype).eps)) for x in leaves])


RULES = [
    (pdt_optax.drift(), pdt_optax.agree()),
    (pdt_optax.drift(fit="past"), pdt_optax.bounded_rule()),
    (pdt_optax.drift(), pdt_optax.everything()),
    (pdt_optax.dmd(rank=1, modes="projected", fit="current", displacement=True), pdt_optax.agree()),
    (pdt_optax.dmd(rank=1, modes="projected", fit="past", displacement=True), pdt_optax.released_rule()),
]
SLOW = (pdt_optax.slow_drift(), pdt_optax.everything())
SEEDS = st.integers(0, 2**32 - 1)


class Machine:
    """The wrapper in plain Python: which snapshots, when, from what."""

    def __init__(self, params: Any, window: int, start: int, interval: int):
        self.taken, self.window, self.start, self.interval = [params], window, start, interval
        self.epoch, self.jumped = 0, None

    def end_epoch(self, trained: Any) -> list[Any] | None:
        """The window to predict from, if it is time."""
        rested = self.jumped is None or self.epoch - self.jumped > self.interval
        due = self.epoch >= self.start and len(self.taken) >= self.window and rested
        return self.taken[-self.window :] if due else None

    def take(self, assembled: Any, predicted: bool) -> None:
        self.taken.append(assembled)
        self.jumped = self.epoch if predicted else self.jumped
        self.epoch += 1


@given(
    tree=trees(),
    seed=SEEDS,
    rule=st.sampled_from(RULES),
    window=st.integers(3, 6),
    wait=st.integers(0, 2),
    interval=st.integers(1, 3),
    horizon=st.integers(1, 6),
    poisoned=st.lists(st.integers(1, 12), max_size=1),
    every=st.booleans(),
)
@forgetful
def test_the_wrapper_is_the_machine(
    tree: Any,
    seed: int,
    rule: Any,
    window: int,
    wait: int,
    interval: int,
    horizon: int,
    poisoned: list[int],
    every: bool,
) -> None:
    """Epochs that predict, their windows, and every weight: the optimizer's own to the bit, or the oracle's."""
    dynamics, accept = rule
    epochs = window + wait + 2 * (interval + 1) + 2
    steps = walk(tree, epochs + 1, seed, tuple(poisoned))
    tx = windowed(
        optax.identity(),
        dynamics=dynamics,
        accept=accept,
        window=window,
        start=window + wait,
        interval=interval,
        horizon=horizon,
    )
    machine = Machine(steps[0], window, window + wait, interval)
    state: Any = tx.init(steps[0])
    end_epoch = jax.jit(tx.end_epoch) if every else tx.end_epoch
    for trained in steps[1:]:
        snapshots = machine.end_epoch(trained)
        params, state, report = end_epoch(trained, state)
        finite = snapshots is not None and all(np.isfinite(flat(x)).all() for x in (*snapshots, trained))
        assert bool(report.predicted) == finite
        assert bool(report.finite) == (snapshots is None or finite)
        assert jax.tree.structure(params) == jax.tree.structure(trained)
        if finite:
            check_prediction(snapshots, trained, params, report, dynamics, accept, horizon)
        else:
            chex.assert_trees_all_equal(params, trained)
        machine.take(params, bool(report.predicted))
        chex.assert_trees_all_equal(
            jax.tree.leaves(state.history.snapshots[-1]),
            [x for x in jax.tree.leaves(params) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)],
        )
    assert int(state.history.clock.snapshots_seen) == epochs + 1


def check_prediction(
    snapshots: Any, trained: Any, params: Any, report: Any, dynamics: Any, accept: Any, horizon: int
) -> None:
    """Against the oracle, to what the leaves' types resolve."""
    old, new = flat(trained), flat(params)
    window = [flat(x) for x in snapshots]
    want = oracle.predict_and_mask(window, old, dynamics, accept, horizon)
    assert np.isfinite(new).all()
    moved = new != old
    size = np.abs(np.stack([*window, old, want.predictions[-1]])).max(0)
    rounding = resolution(trained) * size
    # A mask may differ where a condition is decided by what the leaf's type cannot resolve.
    jump = want.predictions[-1] - old
    accepted = want.mask.astype(bool)
    assert np.all(
        np.abs(new - want.weights)[moved & accepted]
        <= (rounding + 1e-6 * size + 1e-5 * np.abs(jump))[moved & accepted]
    )
    room = 0.02 + 1.01 / len(old)
    assert (moved & accepted).mean() - room <= float(report.accepted_share) <= accepted.mean() + room


class Mean:
    """`slow_drift` at its defaults in float64: what an epoch's end adds to the weights."""

    def __init__(self, size: int):
        self.mean, self.weight, self.gain = np.zeros(size), 0.0, 1.0

    def end_epoch(self, own: np.ndarray, weights: np.ndarray, epoch: int, extrapolated: bool) -> np.ndarray:
        past = self.mean @ self.mean
        if extrapolated:
            both = np.sqrt((own @ own) * past)
            cosine = own @ self.mean / both if both > 0 else 0.0
            above = np.clip((cosine - 0.15) / 0.1, -1, 1)
            self.gain = float(np.clip(self.gain * np.exp(0.2 * above), 1.0, 3.5))
        self.weight = (1 - 1 / max(0.35 * (epoch + 1), 2)) * self.weight + 1
        self.mean = self.mean + (own - self.mean) / self.weight
        weights = np.where(self.mean != 0, weights, 0)  # what never moved stays
        longer = max(self.mean @ weights, 0) / max(weights @ weights, 1e-300)
        return self.gain * (self.mean - longer * weights)


@given(
    tree=trees(),
    seed=SEEDS,
    start=st.integers(1, 4),
    interval=st.integers(0, 2),
    horizon=st.integers(1, 3),
    poisoned=st.lists(st.integers(1, 9), max_size=1),
    gradual=st.booleans(),
    in_jit=st.booleans(),
)
@forgetful
def test_a_running_mean_is_the_machine(
    tree: Any,
    seed: int,
    start: int,
    interval: int,
    horizon: int,
    poisoned: list[int],
    gradual: bool,
    in_jit: bool,
) -> None:
    """Epochs that predict, every displacement, and what is left alone; an epoch is one update, or none."""
    epochs = 9
    steps = walk(tree, epochs + 1, seed, tuple(poisoned))
    tx = pdt_optax.pdt(
        optax.identity(),
        start=start,
        interval=interval,
        horizon=horizon,
        deliver="gradual" if gradual else "jump",
    )
    state: Any = tx.init(steps[0])
    end_epoch = jax.jit(tx.end_epoch) if in_jit else tx.end_epoch
    newest, known, jumped = flat(steps[0]), True, None
    model = Mean(newest.size)
    for epoch, trained in enumerate(steps[1:]):
        params, state, report = end_epoch(trained, state)
        assert jax.tree.structure(params) == jax.tree.structure(trained)
        before, after = flat(trained), flat(params)
        finite = bool(np.isfinite(before).all()) and known
        rested = jumped is None or epoch - jumped > interval
        due = epoch >= start and rested
        assert bool(report.predicted) == (due and finite)
        assert bool(report.finite) == (not due or finite)
        displacement = np.zeros_like(before)
        if finite:
            displacement = model.end_epoch(before - newest, before, epoch, jumped == epoch - 1)
        if not (due and finite):
            chex.assert_trees_all_equal(params, trained)
        else:
            displacement = displacement * horizon
            moved = after - before
            if (
                gradual
            ):  # no update is seen, so nothing arrives: only what is moved at once shows in the weights
                moved = moved + delivered(state, trained)
            room = resolution(trained) * np.maximum(np.abs(before), np.abs(before + displacement))
            assert np.all(np.abs(moved - displacement) <= room + 2e-5 * np.abs(displacement).max() + 1e-6)
            jumped = epoch
        newest, known = after, bool(np.isfinite(after).all())
    assert int(state.history.clock.snapshots_seen) == epochs + 1


def delivered(state: Any, trained: Any) -> np.ndarray:
    """What is to be delivered in parts, 0 for the leaves of less than 32 bits."""
    parts = iter(jax.tree.leaves(state.history.delivery.displacement))
    leaves = [
        x for x in jax.tree.leaves(trained) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    ]
    return np.concatenate(
        [
            np.asarray(next(parts) if x.dtype.itemsize == 4 else jnp.zeros(x.shape), np.float64).ravel()
            for x in leaves
        ]
    )


# Whatever is new is compiled: where a property is one of numbers, a few trees and orders stand for all of them.
F32 = [Shape(shape, "float32") for shape in SHAPES]
SOME_TREES = st.sampled_from([F32[4], {"a": F32[:4], "b": (F32[5], F32[4])}])
SOME_ORDERS = st.sampled_from([(3, 2, 1, 0), (1, 3, 0, 2)])


@given(
    tree=SOME_TREES if PROFILE == "quick" else trees(others=False, dtypes=("float32",)),
    seed=SEEDS,
    rule=st.sampled_from([*RULES, SLOW]),
    power=st.integers(-40, 40),
)
@forgetful
def test_scaling_by_a_power_of_two_scales_the_prediction(tree: Any, seed: int, rule: Any, power: int) -> None:
    """To the last bit."""
    *snapshots, params = walk(tree, 6, seed)
    dynamics, accept = rule

    def predict(scale: float) -> Any:
        scaled = jax.tree.map(lambda x: x * jnp.float32(scale), [*snapshots, params])
        return pdt_optax.predict_and_mask(
            scaled[:-1], scaled[-1], dynamics=dynamics, accept=accept, horizon=3
        )

    plain, scaled = predict(1.0), predict(2.0**power)
    chex.assert_trees_all_equal(scaled.mask, plain.mask)
    chex.assert_trees_all_equal(
        scaled.params, jax.tree.map(lambda x: x * jnp.float32(2.0**power), plain.params)
    )


@given(
    seed=SEEDS,
    rule=st.sampled_from([RULES[0], RULES[-1], SLOW] if PROFILE == "quick" else [*RULES, SLOW]),
    order=SOME_ORDERS if PROFILE == "quick" else st.permutations(range(4)).map(tuple),
)
@forgetful
def test_the_order_of_leaves_does_not_matter(seed: int, rule: Any, order: tuple[int, ...]) -> None:
    """To rounding: sums are added up in another order."""
    shapes = [Shape(shape, "float32") for shape in ((3,), (2, 3), (), (5,))]
    *snapshots, params = walk(shapes, 6, seed)
    dynamics, accept = rule

    def predict(order: tuple[int, ...]) -> Any:
        trees = [[tree[i] for i in order] for tree in (*snapshots, params)]
        found = pdt_optax.predict_and_mask(trees[:-1], trees[-1], dynamics=dynamics, accept=accept, horizon=3)
        new: Any = found.params
        return dict(zip(order, new, strict=True))

    plain, permuted = predict((0, 1, 2, 3)), predict(order)
    for i in range(4):
        np.testing.assert_allclose(permuted[i], plain[i], rtol=1e-5, atol=1e-5)


# Windows that break careless algebra: (window, weights) from a seed.
DEGENERATE: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "all equal": lambda rng: np.repeat(rng.normal(size=(1, 7)), 6, axis=0),
    "zero": lambda rng: np.zeros((6, 7)),
    "a snapshot twice": lambda rng: np.repeat(rng.normal(size=(3, 7)), 2, axis=0),
    "rank one": lambda rng: np.outer(rng.normal(size=6), rng.normal(size=7)),
    "geometric": lambda rng: 0.5 ** np.arange(6)[:, None] * rng.normal(size=7),
    "defective": lambda rng: np.arange(6)[:, None] * rng.normal(size=7) + rng.normal(size=7),
    "denormal": lambda rng: 1e-40 * rng.normal(size=(6, 7)),
    "huge": lambda rng: 1e30 * rng.normal(size=(6, 7)),
    "the largest": lambda rng: np.float32(3.4e38) * rng.choice([-1, 1], size=(6, 7)),
    "far apart": lambda rng: rng.normal(size=(6, 7)) * 10.0 ** rng.integers(-38, 38, size=7),
    "an infinity": lambda rng: np.where(rng.random((6, 7)) < 0.05, np.inf, rng.normal(size=(6, 7))),
}
ALL_RULES = [
    *RULES,
    SLOW,
    (pdt_optax.drift(), pdt_optax.shrink()),
    (pdt_optax.dmd(rank=None, modes="exact", fit="past", displacement=False), pdt_optax.paper_rule()),
    (pdt_optax.dmd(rank="gavish-donoho", modes="projected", fit="past"), pdt_optax.everything()),
]


@given(
    kind=st.sampled_from(sorted(DEGENERATE)),
    seed=SEEDS,
    rule=st.sampled_from(ALL_RULES),
    horizon=st.sampled_from([1, 50]),
)
@forgetful
def test_finite_in_finite_out_and_nothing_from_what_is_not(
    kind: str, seed: int, rule: Any, horizon: int
) -> None:
    *snapshots, params = DEGENERATE[kind](np.random.default_rng(seed)).astype(np.float32)
    dynamics, accept = rule
    found = pdt_optax.predict_and_mask(
        [{"w": jnp.asarray(x)} for x in snapshots],
        {"w": jnp.asarray(params)},
        dynamics=dynamics,
        accept=accept,
        horizon=horizon,
    )
    new: Any = found.params
    if np.isfinite([*snapshots, params]).all():
        assert np.isfinite(new["w"]).all()
    else:
        assert not found.finite
    if not found.finite:
        np.testing.assert_array_equal(np.asarray(new["w"]), params)
        assert float(found.accepted_share) == 0
    unaccepted = np.asarray(found.mask["w"]) == 0
    assert np.asarray(new["w"])[unaccepted].tobytes() == params[unaccepted].tobytes()
    if kind in ("all equal", "zero"):
        np.testing.assert_array_equal(np.asarray(new["w"]), params)
