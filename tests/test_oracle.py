"""`predict_and_mask` against an independent float64 oracle, on real training runs and on constructed truth."""

import functools
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdt_optax
import pdt_optax.dynamics as dynamics_module
from pdt_optax._coordinates import factor
from pdt_optax._predict import _stays_finite
from pdt_optax.dynamics import _gavish_donoho, _kept, _modulus_order
from tests import oracle, training
from tests.peers import DMD

WINDOW = 5
HORIZON = 5
EVERYTHING: pdt_optax.Rule = pdt_optax.everything()

# (optimizer, epoch of the oldest snapshot). In the annealed window the weights move too little for
# float32 weights to hold five digits of it, so there the displacement is judged before it is rounded.
WINDOWS = {
    "early": ("adamw", 0),
    "late": ("adamw", training.EPOCHS - WINDOW),
    "annealed": ("momentum-cosine", training.EPOCHS - WINDOW),
}

DMD_GRID = [
    pdt_optax.dmd(rank=rank, modes=modes, fit=fit, displacement=displacement)
    for rank in (1, 2, 3, 4)
    for modes in ("projected", "exact")
    for fit in ("past", "current")
    for displacement in (True, False)
]
RANK_RULES = [
    dynamics
    for rank in ("gavish-donoho", 0.99999, None)
    for dynamics in (
        pdt_optax.dmd(rank=rank, modes="projected", fit="past", displacement=True),
        pdt_optax.dmd(rank=rank, modes="exact", fit="current", displacement=False),
    )
]
DRIFT = pdt_optax.drift(fit="current")
DRIFTS = [pdt_optax.drift(fit="past"), DRIFT]

PAPER = pdt_optax.dmd(rank=None, modes="exact", fit="past", displacement=False)
RELEASED = pdt_optax.dmd(rank="gavish-donoho", modes="projected", fit="past", displacement=True)
CURRENT = pdt_optax.dmd(rank=2, modes="projected", fit="current", displacement=True)

# Every rule and every kind of model once; each is compiled once for all tests on real snapshots.
COMBINATIONS: list[tuple[Any, pdt_optax.Rule]] = [
    (PAPER, pdt_optax.paper_rule()),
    (RELEASED, pdt_optax.released_rule()),
    (CURRENT, pdt_optax.bounded_rule()),
    (DRIFT, pdt_optax.agree()),
    (pdt_optax.drift(fit="past"), pdt_optax.shrink()),
    (pdt_optax.dmd(rank=3, modes="exact", fit="current", displacement=False), EVERYTHING),
]


class Case(NamedTuple):
    """One window of a training run."""

    snapshots: list[Any]
    params: Any


def epoch_weights(optimizer: str = "adamw") -> list[dict[str, np.ndarray]]:
    """The run's weights in two leaves: enough to need sums over leaves, and half the time to compile."""
    return [
        {
            "kernel": weights["dense_0"]["kernel"],
            "rest": oracle.flatten([weights["dense_0"]["bias"], weights["dense_1"]]),
        }
        for weights in training.epoch_weights(optimizer)
    ]


@functools.cache
def case(window: str) -> Case:
    optimizer, first = WINDOWS[window]
    history = epoch_weights(optimizer)
    return Case(history[first : first + WINDOW], history[first + WINDOW])


def predict(snapshots, params, dynamics, accept: pdt_optax.Rule = EVERYTHING) -> pdt_optax.Prediction:
    return pdt_optax.predict_and_mask(snapshots, params, dynamics=dynamics, accept=accept, horizon=HORIZON)


def expected(snapshots, params, dynamics, accept: pdt_optax.Rule = EVERYTHING) -> oracle.Oracle:
    flat = [oracle.flatten(tree) for tree in snapshots]
    return oracle.predict_and_mask(flat, oracle.flatten(params), dynamics, accept, HORIZON)


def difference_basis(snapshots, params, fit: str) -> np.ndarray:
    """(N, window) in float64: the newest weights that a model sees, and the differences up to them."""
    seen = snapshots if fit == "past" else [*snapshots[1:], params]
    window = np.stack([oracle.flatten(tree).astype(np.float64) for tree in seen], axis=1)
    return np.column_stack([window[:, -1], np.diff(window, axis=1)])


def forecast(snapshots, params, dynamics) -> tuple[Any, np.ndarray]:
    """What a model answers to the float64 Gram matrix, and the (HORIZON, N) steps that this stands for.

    Called as it is: nothing else of the library runs, and nothing is compiled as a whole.
    """
    basis = difference_basis(snapshots, params, dynamics.fit)
    epsilon = float(np.finfo(oracle.flatten(params).dtype).eps)
    with jax.enable_x64(True):
        gram = jnp.asarray(basis.T @ basis)
        answer = dynamics(gram, HORIZON, size=len(basis), epsilon=epsilon, epoch=jnp.int32(0))
    return answer, np.asarray(answer.increments) @ basis.T


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def assert_same_spectrum(got, want, tolerance: float) -> None:
    """Eigenvalues agree as sets, each near one of the others and the other way round."""
    distance = np.abs(np.asarray(got)[:, None] - np.asarray(want)[None, :])
    assert distance.min(axis=0).max() <= tolerance
    assert distance.min(axis=1).max() <= tolerance


def assert_trees_identical(got, want) -> None:
    """Same structure, types and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def assert_same_model(got, steps: np.ndarray, want: oracle.Oracle, dynamics) -> None:
    """Every predicted step before it is rounded to the weights' type, the whole way, rank and modes."""
    oracle_steps = np.diff(np.vstack([want.reference, want.predictions]), axis=0)
    for ours, theirs in zip(steps, oracle_steps, strict=True):
        assert relative_error(ours, theirs) <= 1e-5
    assert relative_error(steps.sum(axis=0), want.predictions[-1] - want.reference) <= 1e-5

    rank = int(got.rank)
    assert rank == want.rank
    if isinstance(dynamics, pdt_optax.drift):
        assert not got.singular_values.any()
    else:
        np.testing.assert_allclose(got.singular_values, want.singular_values, rtol=1e-6)
        eigenvalues = np.asarray(got.eigenvalues)
        assert not eigenvalues[rank:].any()
        assert_same_spectrum(eigenvalues[:rank], want.eigenvalues, 1e-6)
        assert np.all(np.diff(np.abs(eigenvalues[:rank])) <= 1e-6)


@pytest.mark.parametrize("dynamics", [*DMD_GRID, *RANK_RULES, *DRIFTS], ids=str)
@pytest.mark.parametrize("window", WINDOWS)
def test_a_model_agrees_with_float64_svd(window, dynamics):
    got, steps = forecast(*case(window), dynamics)
    assert_same_model(got, steps, expected(*case(window), dynamics), dynamics)


@pytest.mark.parametrize(("dynamics", "accept"), COMBINATIONS, ids=str)
@pytest.mark.parametrize("window", WINDOWS)
def test_predict_and_mask_agrees_with_float64_svd(window, dynamics, accept):
    snapshots, params = case(window)
    got, want = predict(snapshots, params, dynamics, accept), expected(snapshots, params, dynamics, accept)
    assert bool(got.finite)
    basis = difference_basis(snapshots, params, dynamics.fit)
    assert_same_model(got, np.asarray(got.coefficients, np.float64) @ basis.T, want, dynamics)

    # The mask; one of all or nothing would agree with anything broken the same way.
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(got.mask)]
    soft = isinstance(accept, pdt_optax.shrink)
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32 if soft else bool)}
    mask = np.concatenate([leaf.ravel() for leaf in leaves])
    assert np.mean(np.abs(mask - want.mask.astype(float)) <= 1e-3 * soft) >= 0.999
    if accept != EVERYTHING:
        assert 0.05 * soft < np.mean(want.mask) < 1 - 0.05 * soft
    # What the prediction would not move is accepted, and not counted; rounding may leave more where it is.
    shares = [float(got.accepted_share), *map(float, got.accepted_share_per_leaf)]
    moved = [
        np.ravel(np.not_equal(new, old))
        for new, old in zip(*map(jax.tree.leaves, (got.params, params)), strict=True)
    ]
    flat = [leaf.ravel() for leaf in leaves]
    for share, of, by in zip(shares, [mask, *flat], [np.concatenate(moved), *moved], strict=True):
        assert np.mean(of * by) - 1e-6 <= share <= np.mean(of) + 1e-6
    assert soft or shares[0] < mask.mean() or accept == pdt_optax.released_rule()

    # The weights: the optimizer's own to the bit, or the prediction to two units in the last place and in
    # all 1e-5 of the jump.
    old, new = oracle.flatten(params), oracle.flatten(got.params)
    assert new[mask == 0].tobytes() == old[mask == 0].tobytes()
    if soft:
        np.testing.assert_allclose(new, want.weights, rtol=1e-6, atol=1e-6)
        return
    moved, prediction, reference = new[mask], want.predictions[-1][mask], want.reference[mask]
    displacement = prediction - reference
    size = (np.abs(reference) + np.abs(displacement)).astype(np.float32)
    allowed = 2 * np.spacing(size).astype(np.float64) + 1e-6 * np.abs(displacement).max()
    assert np.all(np.abs(moved - prediction) <= allowed)
    np.testing.assert_allclose(moved, prediction, rtol=1e-6, atol=1e-6)
    if window != "annealed":
        assert relative_error(moved - reference, displacement) <= 1e-5


@pytest.mark.parametrize("scale", [2.0**66, 2.0**-80])
@pytest.mark.parametrize(
    ("dynamics", "accept"),
    [pair for pair in COMBINATIONS if pair[0] in (PAPER, RELEASED, DRIFT)],
    ids=str,
)
def test_scale_does_not_matter(dynamics, accept, scale):
    """Squares of the scaled weights over- or underflow float32; powers of two round nothing."""
    snapshots, params = jax.tree.map(lambda w: w * np.float32(scale), case("early"))
    got, want = predict(snapshots, params, dynamics, accept), predict(*case("early"), dynamics, accept)
    assert bool(got.finite)
    assert 0 < float(want.accepted_share) < 1
    assert abs(float(got.accepted_share) - float(want.accepted_share)) <= 1e-3
    close = np.isclose(oracle.flatten(got.params) / scale, oracle.flatten(want.params), rtol=1e-5, atol=1e-6)
    assert np.mean(close) >= 0.999


# Constructed truth ---------------------------------------------------------------------------------------

TRUE_EIGENVALUES = np.array([0.95 * np.exp(0.7j), 0.95 * np.exp(-0.7j), 0.9, -0.6])


def linear_system(n_snapshots: int, n_weights: int = 2000) -> np.ndarray:
    """(n_snapshots, n_weights) snapshots of w_(k+1) = A w_k with `TRUE_EIGENVALUES`.

    A acts on a four-dimensional subspace, in coordinates in which it is a block-diagonal matrix.
    """
    random = np.random.default_rng(0)
    basis, _ = np.linalg.qr(random.normal(size=(n_weights, 4)))
    block = np.zeros((4, 4))
    block[:2, :2] = 0.95 * np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    block[2, 2], block[3, 3] = 0.9, -0.6
    mixing = random.normal(size=(4, 4))
    block = mixing @ block @ np.linalg.inv(mixing)
    states = [mixing @ np.array([1.0, 0.5, 1.0, 1.0])]
    for _ in range(n_snapshots - 1):
        states.append(block @ states[-1])
    return np.stack(states) @ basis.T


@pytest.mark.parametrize("modes", ["projected", "exact"])
@pytest.mark.parametrize("fit", ["past", "current"])
@pytest.mark.parametrize("displacement", [True, False])
def test_linear_system_is_predicted_exactly(modes, fit, displacement):
    """Four eigenvalues, four snapshot pairs: the model is the system."""
    truth = linear_system(WINDOW + 1 + HORIZON)
    assert np.linalg.cond(truth[: WINDOW - 1]) <= 1e3
    dynamics = pdt_optax.dmd(rank=None, modes=modes, fit=fit, displacement=displacement)
    newest = WINDOW - 1 if fit == "past" else WINDOW
    answers = [forecast([*truth[:WINDOW]], truth[WINDOW], dynamics)]
    answers = [(answer, truth[newest] + steps.sum(axis=0)) for answer, steps in answers]
    if (modes == "exact") == (fit == "current") == (not displacement):  # and all the way, twice
        with jax.enable_x64(True):
            weights = [jnp.asarray(w.reshape(40, 50)) for w in truth]
            got = predict(weights[:WINDOW], weights[WINDOW], dynamics)
        answers.append((got, oracle.flatten(got.params)))
    for got, moved in answers:
        assert moved.dtype == np.float64
        assert int(got.rank) == 4
        assert relative_error(moved, truth[newest + HORIZON]) <= 1e-10
        jump = truth[newest + HORIZON] - truth[newest]
        assert relative_error(moved - truth[newest], jump) <= 1e-10
        # The report's complex64 holds seven digits.
        assert_same_spectrum(got.eigenvalues, TRUE_EIGENVALUES, 1e-6)


def test_long_window_of_a_small_system():
    """Seven pairs of a four-dimensional system: the three singular values of rounding must be cut."""
    with jax.enable_x64(True):
        truth = linear_system(9 + HORIZON)
        dynamics = pdt_optax.dmd(rank=None, fit="past", displacement=False)
        snapshots = [jnp.asarray(w) for w in truth[:8]]
        got = predict(snapshots, jnp.asarray(truth[8]), dynamics)
        assert int(got.rank) == 4
        assert relative_error(np.asarray(got.params), truth[7 + HORIZON]) <= 1e-10


def test_random_windows_of_known_rank():
    """Eight float64 snapshots of rank four: noise of the Gram matrix's square root must be cut too."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        weights = rng.normal(size=(8, 4)) @ rng.normal(size=(4, 3000))
        with jax.enable_x64(True):
            snapshots = [jnp.asarray(w) for w in weights]
            got = predict(snapshots, snapshots[-1], pdt_optax.dmd(rank=None))
        assert int(got.rank) == 4, seed


@pytest.mark.parametrize(
    ("lengths", "increment", "dtype", "finite"),
    [
        # float16 reaches 65504, and rounding may double a bound: 100 + 10 * 3265.2 is half of it.
        ((100, 10, 10), 3265.1, jnp.float16, True),
        ((100, 10, 10), 3265.3, jnp.float16, False),
        ((100, 10, 10), 3265.3, jnp.float32, True),
        # Coefficients themselves must be far from overflow, whatever they multiply.
        ((1, 0, 0), 1.6e38, jnp.float32, True),
        ((1, 0, 0), 1.8e38, jnp.float32, False),
        ((1, 0, 0), math.nan, jnp.float32, False),
        # Half of the largest float, to the last bit, is too much.
        ((32752, 0, 0), 0, jnp.float16, False),
        ((32751, 0, 0), 0, jnp.float16, True),
        ((1, 0, 0), float(jnp.finfo(jnp.float32).max) / 2, jnp.float32, False),
    ],
)
def test_what_cannot_be_promised_to_be_finite_is_not(lengths, increment, dtype, finite):
    gram = jnp.diag(jnp.array(lengths, jnp.float32) ** 2)
    for sign in (1, -1):
        increments = jnp.array([[0, 0, 0], [0, sign * increment, 0]], jnp.float32)
        assert _stays_finite(gram[None], increments, [dtype]) == finite


@pytest.mark.parametrize(("beta", "omega"), [(1.0, 2.858), (0.5, 2.171), (0.25, 1.837), (0.1, 1.609)])
def test_the_hard_threshold_is_the_published_one(beta, omega):
    """Gavish and Donoho's table of omega(beta), within the 0.02 of their polynomial."""
    for second, kept in ((omega - 0.02, 1), (omega + 0.02, 2)):
        singular_values = jnp.array([9.0, second, 1.0, 1.0, 0.5])
        np.testing.assert_array_equal(_gavish_donoho(singular_values, round(5 / beta)), np.arange(5) < kept)
    np.testing.assert_array_equal(_gavish_donoho(jnp.ones(4), round(4 / beta)), np.arange(4) < 1)
    np.testing.assert_array_equal(_gavish_donoho(jnp.array([2.0, 0, 0]), round(3 / beta)), np.arange(3) < 1)


@pytest.mark.parametrize(
    ("rank", "singular_values", "epsilon", "noise", "kept"),
    [
        (0.8, (2, 1, 0), 0, -1, 1),  # energies 4, 5, 5: four are 80%
        (0.9, (2, 1, 0), 0, -1, 2),
        (0.8, (2, 1, 1), 0, -1, 2),  # 4, 5, 6
        (None, (2, 0.19, 0.1), 0.1, 0, 1),  # nothing below epsilon times the first
        (None, (2, 0.21, 0.1), 0.1, 0, 2),
        (None, (2, 0.21, 0.1), 0.1, 0.5, 1),  # or below the noise
        (3, (2, 0.21, 0.1), 0.1, 0, 2),
        (0.999, (2, 0.21, 0.1), 0.1, 0.5, 1),
    ],
)
def test_ranks(rank, singular_values, epsilon, noise, kept):
    window = factor(jnp.eye(4))._replace(
        singular_values=jnp.array(singular_values, jnp.float32), noise=jnp.float32(noise)
    )
    np.testing.assert_array_equal(_kept(rank, window, 100, epsilon), np.arange(3) < kept)


def test_without_float64_no_eigenvalues_are_known(monkeypatch):
    """As on a TPU, which has no solver for them."""
    monkeypatch.setattr(dynamics_module, "has_float64", lambda: False)
    unknown = _modulus_order(jnp.eye(2), jnp.int32(2))
    assert unknown.dtype == jnp.complex64
    assert unknown.tolist() == [0, 0]


def test_the_noise_is_relative_to_the_longest_difference():
    for lengths in ((1, 3, 2, 1), (9, 1, 2, 3)):
        window = factor(jnp.diag(jnp.array(lengths, jnp.float32) ** 2))
        assert float(window.noise) == pytest.approx(64 * 3 * 2.0**-11.5)


def test_drift_is_one_mode_that_neither_grows_nor_decays():
    got = predict([jnp.array([1.0]), jnp.array([2.0]), jnp.array([4.0])], jnp.array([6.0]), DRIFT)
    assert (int(got.rank), complex(got.eigenvalues[0])) == (1, 1)
    assert not got.eigenvalues[1:].any()
    assert got.eigenvalues.dtype == jnp.complex64


@pytest.mark.parametrize(("rank", "exact"), [(2, False), (4, True)])
@pytest.mark.filterwarnings("ignore:Input data condition number")
def test_pydmd_has_the_same_modes_and_eigenvalues(rank, exact):
    """On real weights in float64. PyDMD starts its forecasts from the oldest snapshot, we from the newest.

    So its modes and eigenvalues go into Eq. 5, which must give our prediction: that fixes eigenvalues,
    span and the pairing of the two.
    """
    snapshots = [oracle.flatten(w).astype(np.float64) for w in case("early").snapshots]
    params = oracle.flatten(case("early").params).astype(np.float64)
    modes_kind = "exact" if exact else "projected"
    dynamics = pdt_optax.dmd(rank=rank, modes=modes_kind, fit="past", displacement=False)
    got, steps = forecast(snapshots, params, dynamics)
    window = np.stack(snapshots, axis=1)
    peer = DMD(svd_rank=rank, exact=exact).fit(window)
    modes, eigenvalues = np.asarray(peer.modes), np.asarray(peer.eigs)
    assert_same_spectrum(np.asarray(got.eigenvalues)[:rank], eigenvalues, 1e-6)
    newest = window[:, -1]
    amplitudes = np.linalg.pinv(modes) @ newest
    prediction = np.real(modes @ (eigenvalues**HORIZON * amplitudes))
    assert relative_error(steps.sum(axis=0), prediction - newest) <= 1e-9


@pytest.mark.filterwarnings("ignore:Input data condition number")
def test_pydmd_forecasts_the_same_linear_system():
    truth = linear_system(WINDOW + 1)
    peer = DMD(svd_rank=4).fit(truth[:WINDOW].T)
    peer.dmd_time["tend"] = WINDOW - 1 + HORIZON
    peers_forecast = np.real(peer.reconstructed_data[:, -1])
    _, steps = forecast([*truth[:WINDOW]], truth[WINDOW], pdt_optax.dmd(rank=None))
    assert relative_error(truth[WINDOW - 1] + steps.sum(axis=0), peers_forecast) <= 1e-9


# Degenerate windows --------------------------------------------------------------------------------------

DEGENERATE = {
    "all equal": (0, 0, 0, 0, 0, 1),
    "all equal, no step": (0, 0, 0, 0, 0, 0),
    "one repeated": (0, 1, 1, 2, 3, 4),
    "two alternating": (0, 1, 0, 1, 0, 1),
    "stopped": (0, 1, 2, 2, 2, 2),
    "stopped, newest moves": (0, 0, 0, 0, 1, 2),
}
DEGENERATE_DYNAMICS = [
    PAPER,
    RELEASED,
    *(pdt_optax.dmd(rank=4, modes=m, fit="current", displacement=True) for m in ("projected", "exact")),
    DRIFT,
]


@pytest.mark.parametrize("dynamics", DEGENERATE_DYNAMICS, ids=str)
@pytest.mark.parametrize("order", DEGENERATE)
def test_degenerate_windows(order, dynamics):
    history = epoch_weights()
    *snapshots, params = [history[epoch] for epoch in DEGENERATE[order]]
    want = expected(snapshots, params, dynamics)
    got, steps = forecast(snapshots, params, dynamics)
    assert int(got.rank) == want.rank
    assert np.all(np.isfinite(got.increments))
    np.testing.assert_allclose(want.reference + steps.sum(0), want.predictions[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dynamics", "accept"), COMBINATIONS, ids=str)
def test_degenerate_windows_to_the_end(dynamics, accept):
    history = epoch_weights()
    for order in DEGENERATE:
        *snapshots, params = [history[epoch] for epoch in DEGENERATE[order]]
        got, want = predict(snapshots, params, dynamics, accept), expected(snapshots, params, dynamics)
        assert bool(got.finite)
        assert np.all(np.isfinite(got.coefficients))
        mask = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(got.mask)])
        old, new = oracle.flatten(params), oracle.flatten(got.params)
        moved = old + mask * (want.predictions[-1] - old)
        np.testing.assert_allclose(new, moved, rtol=1e-4, atol=1e-5)
    zeros = jax.tree.map(np.zeros_like, history[0])
    got = predict([zeros] * WINDOW, zeros, dynamics, accept)
    assert np.all(oracle.flatten(got.params) == 0)
    assert np.all(np.isfinite(got.coefficients))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["oldest", "newest", "params"])
def test_nothing_is_accepted_from_a_window_that_is_not_finite(place, poison):
    snapshots, params = jax.tree.map(np.copy, case("early"))
    trees = {"oldest": snapshots[0], "newest": snapshots[-1], "params": params}
    trees[place]["kernel"][3, 4] = poison
    for dynamics in (RELEASED, DRIFT):
        if place == "oldest" and dynamics.fit == "current":
            continue  # The model does not see it.
        got = predict(snapshots, params, dynamics)
        assert not bool(got.finite)
        assert float(got.accepted_share) == 0
        assert_trees_identical(jax.tree.map(np.asarray, got.params), params)


# Trees of every kind -------------------------------------------------------------------------------------


def mixed_tree(epoch: int) -> dict[str, Any]:
    """bfloat16, float32, int32 and bool leaves, a scalar and None, from real weights."""
    layers = training.epoch_weights("adamw")[epoch]
    return {
        "half": jnp.asarray(layers["dense_0"]["kernel"], jnp.bfloat16),
        "full": jnp.asarray(layers["dense_1"]["kernel"]),
        "scalar": jnp.asarray(layers["dense_1"]["bias"][0]),
        "steps": jnp.full((3,), epoch, jnp.int32),
        "flag": jnp.asarray(epoch % 2 == 0),
        "nothing": None,
    }


@pytest.mark.parametrize(
    ("dynamics", "accept"),
    [
        (RELEASED, EVERYTHING),
        (PAPER, pdt_optax.paper_rule()),
        (DRIFT, pdt_optax.shrink()),
    ],
    ids=str,
)
def test_mixed_trees(dynamics, accept):
    *snapshots, params = [mixed_tree(epoch) for epoch in range(WINDOW + 1)]
    got = predict(snapshots, params, dynamics, accept)
    want = expected(snapshots, params, dynamics, accept)
    new: dict[str, Any] = cast(dict[str, Any], got.params)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert_trees_identical([new["steps"], new["flag"]], [params["steps"], params["flag"]])

    # In the tree's order, like the oracle's weights.
    floating = sorted({"half", "full", "scalar"})
    masks = {name: np.asarray(got.mask[name]).astype(float) for name in floating}
    flat_mask = np.concatenate([mask.ravel() for mask in masks.values()])
    assert np.mean(np.abs(flat_mask - want.mask) <= 1e-3) >= 0.999
    np.testing.assert_allclose(float(got.accepted_share), flat_mask.mean(), rtol=1e-5)

    start = 0
    for name, mask in masks.items():
        ours, old = np.asarray(new[name]), np.asarray(params[name])
        assert ours.dtype == old.dtype
        assert ours.shape == old.shape == mask.shape
        assert ours[mask == 0].tobytes() == old[mask == 0].tobytes()
        here = slice(start, start + old.size)
        start += old.size
        theirs, their_mask = want.weights[here].reshape(old.shape), want.mask[here].reshape(old.shape)
        # One rounding to the leaf's type, and 1e-3 of the jump where the mask may differ by that.
        resolution = float(jnp.finfo(old.dtype).eps)
        jump = np.abs(want.predictions[-1, here].reshape(old.shape) - old.astype(float))
        allowed = resolution * np.abs(theirs) + np.abs(mask - their_mask) * jump + 1e-6
        assert np.all(np.abs(ours.astype(float) - theirs) <= allowed)
