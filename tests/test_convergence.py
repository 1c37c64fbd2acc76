"""What docs/convergence.md states: the bounds hold on smooth functions, and where they are said to break they do."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import pdt_optax
from pdt_optax import presets

pytestmark = pytest.mark.usefixtures("double")

HORIZON = presets.paper["horizon"]
QUICK = hypothesis.settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
RULES = {"bounded": pdt_optax.bounded_rule(), "released": pdt_optax.released_rule()}
# The least and the greatest of s in an accepted weight's jump, in units of its own last step.
BOUNDS = {"bounded": (0, HORIZON), "released": (1, HORIZON + 1)}


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


class Smooth(NamedTuple):
    """w' H w / 2 + c sum(cos(A w)), whose gradient is `smoothness`-Lipschitz, and where to start from."""

    hessian: np.ndarray
    wave: np.ndarray
    height: float
    smoothness: float
    start: np.ndarray

    def loss(self, w: Any) -> float:
        w = np.asarray(w)
        return float(w @ self.hessian @ w / 2 + self.height * np.cos(self.wave @ w).sum())

    def gradient(self, w: Any) -> np.ndarray:
        w = np.asarray(w)
        return self.hessian @ w - self.height * self.wave.T @ np.sin(self.wave @ w)


def quadratic(seed: int, spectrum: Any, height: float = 0.0) -> Smooth:
    """Of random directions and a random start; `height` adds waves, and with them hills."""
    rng = np.random.default_rng(seed)
    size = len(spectrum)
    axes, _ = np.linalg.qr(rng.normal(size=(size, size)))
    start = rng.normal(size=size)
    wave = rng.normal(size=(size, size))
    wave /= np.linalg.norm(wave, 2)
    smoothness = max(map(abs, spectrum)) + height
    return Smooth(axes @ np.diag(spectrum) @ axes.T, wave, height, smoothness, start)


@st.composite
def functions(draw: Callable[..., Any], height: float = 0.0) -> Smooth:
    """Convex quadratics of up to five weights, with waves where a height is given."""
    count = draw(st.sampled_from([0, 1, 4]))  # each count is compiled anew
    others = draw(st.lists(st.floats(1e-3, 1), min_size=count, max_size=count))
    return quadratic(draw(st.integers(0, 10_000)), [1.0, *others], draw(st.sampled_from([0.0, height])))


class Epoch(NamedTuple):
    """The weights before an epoch, after its gradient step, and after its end."""

    before: np.ndarray
    stepped: np.ndarray
    after: np.ndarray
    predicted: bool
    history: Any


def descend(f: Smooth, predictor: pdt_optax.Predictor, rate: float, epochs: int) -> list[Epoch]:
    """Gradient descent, one step an epoch."""
    w = jnp.asarray(f.start)
    history, run = predictor.init(w), []
    for _ in range(epochs):
        stepped = w - rate * f.gradient(w)
        after, history, report = predictor.end_epoch(stepped, history)
        before, stepped, moved = map(np.asarray, (w, stepped, after))
        run.append(Epoch(before, stepped, moved, bool(report.predicted), history))
        w = after
    return run


def jumps(run: list[Epoch]) -> list[Epoch]:
    return [e for e in run if e.predicted]


def under(rule: str, **settings: Any) -> pdt_optax.Predictor:
    """The paper's Algorithm 1 with another rule."""
    return pdt_optax.Predictor(**{**presets.paper, "accept": RULES[rule], **settings})


def slack(*losses: float) -> float:
    return 1e-12 * max(1.0, *map(abs, losses))


# Eqs. 9 and 10 as printed.


def printed(f: Smooth, w: np.ndarray, rate: float) -> float:
    """The right side of Eq. 10."""
    gradient = f.gradient(w)
    return float(f.loss(w) - rate * (rate * f.smoothness / 2 - 1) * gradient @ gradient)


@given(functions(2.0), st.floats(0.01, 1.99))
@QUICK
def test_the_printed_bound_allows_a_rise_where_gradient_descent_falls(f, times):
    rate, w = times / f.smoothness, f.start
    gradient = f.gradient(w)
    after = f.loss(w - rate * gradient)
    mended = f.loss(w) - rate * (1 - rate * f.smoothness / 2) * gradient @ gradient
    assert after <= mended + slack(after)
    assert printed(f, w, rate) >= f.loss(w)


def test_the_printed_bound_promises_a_fall_where_gradient_descent_rises():
    f = quadratic(0, [1.0])
    w, rate = f.start, 3 / f.smoothness
    after = f.loss(w - rate * f.gradient(w))
    assert after == pytest.approx(4 * f.loss(w))
    assert printed(f, w, rate) == pytest.approx(-2 * f.loss(w))
    assert after > printed(f, w, rate)


def accepted(rule: Any, jump: float, step: float) -> bool:
    """Whether a rule takes `HORIZON` equal predicted steps, together `jump` long."""
    rows = jnp.full((HORIZON, 1), jump / HORIZON)
    return bool(rule(rows, jnp.array([step]), jnp.array([[step]]), jnp.zeros(1), HORIZON)[0])


def not_too_far(increments, step, differences, reference, horizon):
    return pdt_optax.accept.moves_not_too_far(increments, step, horizon)


@pytest.mark.parametrize(
    ("rule", "rate", "jump", "factor"),
    [(not_too_far, 0.1, -HORIZON, 1.35), (pdt_optax.bounded_rule(), 1.5, HORIZON, 3.25)],
    ids=["Eq. 8 alone, uphill", "Eqs. 7 and 8 at a rate below 2 / L"],
)
def test_theorem_1_is_false(rule, rate, jump, factor):
    """On w^2 / 2, a jump every second epoch: each pair of epochs multiplies the weight."""
    w = start = 1.0
    for epoch in range(40):
        step = -rate * w
        if epoch % 2:
            assert accepted(rule, jump * step, step)
            w += jump * step
        else:
            w += step
    assert abs(w) == pytest.approx(start * factor**20)


# What holds.


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fit", ["past", "current"])
@given(functions(2.0), st.floats(0.05, 1.0))
@QUICK
def test_a_bounded_jump_is_bounded_by_smoothness(rule, fit, f, share):
    """Proposition 1 at any rate and, where the prediction starts before the epoch, Proposition 2 at those it is for."""
    least, most = BOUNDS[rule]
    rate = share * 2 / (most * f.smoothness)
    dynamics = pdt_optax.dmd(rank=None, modes="exact", fit=fit, displacement=False)
    run = descend(f, under(rule, dynamics=dynamics), rate, 16)
    assert len(jumps(run)) == 6
    from_end = fit == "current"
    for e in jumps(run):
        step = e.stepped - e.before
        moved = step != 0
        s = (e.after - e.before)[moved] / step[moved]
        own = np.isclose(s, 1, atol=1e-6)
        assert np.all(own | ((s - from_end >= least - 1e-6) & (s - from_end <= most + 1e-6)))
        was, stepped, now = map(f.loss, (e.before, e.stepped, e.after))
        size = max(most - 1 + from_end, 1 - least if not from_end else 0) * np.linalg.norm(step)
        rise = np.linalg.norm(f.gradient(e.stepped)) * size + f.smoothness / 2 * size**2
        assert now <= stepped + rise + slack(now, stepped)
        if fit == "past":
            gained = rate * s * (1 - rate * s * f.smoothness / 2) * f.gradient(e.before)[moved] ** 2
            assert now <= was - gained.sum() + slack(now, was)
            assert now <= was + slack(now, was)


@pytest.mark.parametrize("rule", RULES)
def test_the_bounds_are_not_empty(rule):
    """On the quadratics of the property, most jumps accept something, and some reach far."""
    far, some = [], []
    for seed in range(10):
        f = quadratic(seed, [1, 0.5, 0.2, 0.05])
        run = descend(f, under(rule), 2 / (BOUNDS[rule][1] * f.smoothness), 16)
        for e in jumps(run):
            s = (e.after - e.before) / (e.stepped - e.before)
            some.append(not np.allclose(s, 1))
            far.append(s.max())
    assert np.mean(some) > 0.5
    assert max(far) > BOUNDS[rule][1] - 0.5


@pytest.mark.parametrize("rule", RULES)
@given(functions(2.0), st.floats(0.2, 1.0))
@QUICK
def test_gradients_vanish_under_a_bounded_rule(rule, f, share):
    """Proposition 3: the plain epochs' squared gradients add up to no more than what there is to lose."""
    rate = share * 2 / (BOUNDS[rule][1] * f.smoothness)
    run = descend(f, under(rule), rate, 60)
    losses = [f.loss(f.start), *(f.loss(e.after) for e in run)]
    for was, now in itertools.pairwise(losses):
        assert now <= was + slack(was, now)
    each = rate * (1 - rate * f.smoothness / 2)
    spent = sum(each * np.sum(f.gradient(e.before) ** 2) for e in run if not e.predicted)
    assert spent <= losses[0] - losses[-1] + slack(losses[0])


# Eq. 6.


def worst_jump(f: Smooth, predictor: pdt_optax.Predictor, rate: float) -> float:
    """By how much a jump multiplies the loss of the weights that its epoch started from."""
    run = descend(f, predictor, rate, 16)
    return max(f.loss(e.after) / f.loss(e.before) for e in jumps(run))


def test_eq_6_breaks_the_bound_on_convex_quadratics():
    """The same predictions on the same functions, at the largest rate that Proposition 2 allows."""
    paper = pdt_optax.Predictor(**presets.paper)
    worst: dict[str, list[float]] = {"paper": [], "bounded": []}
    for seed in range(50):
        f = quadratic(seed, [1, 0.5, 0.2, 0.05])
        worst["paper"].append(worst_jump(f, paper, 2 / HORIZON))
        worst["bounded"].append(worst_jump(f, under("bounded"), 2 / HORIZON))
    assert sum(ratio > 1 for ratio in worst["paper"]) == 5
    searched_for = quadratic(158, [1, 0.5, 0.2, 0.05])
    assert worst_jump(searched_for, paper, 2 / HORIZON) == pytest.approx(2.2e18, rel=0.05)
    assert max(worst["bounded"]) < 1


def plateau(w: np.ndarray) -> np.ndarray:
    """The slope of a hill at 0 and a valley at 2, both of curvature 1: -w, then w - 2."""
    return np.where(w < 1, -w, w - 2)


def test_eq_6_overshoots_where_training_leaves_a_plateau():
    """The model is exact, an eigenvalue of 1.4; the hill just ends before the jump does."""

    def loss(w: float) -> float:
        return -(w**2) / 2 if w < 1 else (w - 2) ** 2 / 2 - 1

    def run(accept: pdt_optax.Rule) -> list[float]:
        predictor = pdt_optax.Predictor(**{**presets.paper, "accept": accept})
        w = jnp.array([0.15])
        history, losses = predictor.init(w), [loss(0.15)]
        for _ in range(12):
            w, history, _ = predictor.end_epoch(w - 2 / HORIZON * plateau(np.asarray(w)), history)
            losses.append(loss(float(w[0])))
        return losses

    jumped, plain = run(pdt_optax.paper_rule()), run(pdt_optax.bounded_rule())
    assert max(jumped) == pytest.approx(1.73, abs=0.01)  # above the top of the hill, at 0
    assert np.all(np.diff(plain) <= 0)


# The default.


def steady(gain: float, memory: float) -> pdt_optax.Predictor:
    """The default as jumps, its gain fixed and its length free."""
    dynamics = pdt_optax.slow_drift(memory=memory, gain=gain, most_gain=gain, outward=True)
    return pdt_optax.Predictor(dynamics=dynamics)


@given(
    functions(2.0),
    st.sampled_from([1.0, 3.5]),
    st.sampled_from([0.35, 3]),
    st.floats(0.2, 1),
)
@QUICK
def test_slow_drift_of_a_fixed_gain_falls_with_the_energy_of_its_mean(f, gain, memory, share):
    """Proposition 4: the loss, and the mean motion's square, go down together by what the gradient gives."""
    rate = share / ((1 + gain) * f.smoothness)
    run = descend(f, steady(gain, memory), rate, 30)

    def energy(e: Epoch) -> float:
        motion = e.history.motion
        weight, mean = float(motion.pull.weight), np.asarray(motion.mean)
        return f.loss(e.after) + gain / (2 * rate) * weight * float(mean @ mean)

    started = next(i for i, e in enumerate(run) if e.predicted)
    assert all(e.predicted for e in run[started:])
    for was, now in itertools.pairwise(run[started - 1 :]):
        least = rate / (2 * (1 + gain)) * np.sum(f.gradient(now.before) ** 2)
        # The weight and the coefficients of the mean are float32's.
        assert energy(now) <= energy(was) - least + 1e-6 * max(1.0, abs(energy(was)))


@given(functions(2.0), st.floats(0.1, 1.5))
@QUICK
def test_the_default_moves_no_further_than_its_gain_times_the_mean(f, times):
    """Proposition 1 for the default as it is: its growing gain, and the length held."""
    run = descend(f, pdt_optax.Predictor(), times / f.smoothness, 20)
    assert len(jumps(run)) == 15
    for e in jumps(run):
        motion = e.history.motion
        most = float(motion.pull.gain) * np.linalg.norm(motion.mean)
        assert float(motion.pull.gain) <= 3.5
        moved = np.linalg.norm(e.after - e.stepped)
        assert moved <= most * (1 + 1e-6)
        rise = np.linalg.norm(f.gradient(e.stepped)) * most + f.smoothness / 2 * most**2
        assert f.loss(e.after) <= f.loss(e.stepped) + rise + 1e-6 * max(1.0, abs(f.loss(e.after)))


@pytest.mark.parametrize("gain", [1.0, 3.5])
@pytest.mark.parametrize("memory", [2, 8])
def test_slow_drift_is_stable_on_quadratics_up_to_a_known_rate(gain, memory):
    """Proposition 5, from both sides."""
    k = 1 / memory
    limit = 2 / (1 + gain * k / (2 - k))
    f = quadratic(0, [1.0])
    below, above = (descend(f, steady(gain, memory), times * limit, 300)[-1] for times in (0.97, 1.03))
    assert f.loss(below.after) < 1e-3 * f.loss(f.start)
    assert f.loss(above.after) > 1e3 * f.loss(f.start)
