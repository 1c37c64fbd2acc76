"""The ideas that were tried: each does what it says."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pdt_optax
from experiments.training import rules
from experiments.training.arms import Recipe, predictive
from experiments.training.optimizers import Cosine

# One weight a column: steady, one step back, back and forth, still.
DIFFERENCES = np.array(
    [[1.0, 2.0, 1.0, 0.0], [1.0, -1.0, -1.0, 0.0], [1.0, 2.0, 1.0, 0.0], [1.0, 2.0, -1.0, 0.0]]
)


def mask(rule: Any) -> list[bool]:
    points = np.concatenate([np.zeros((2, 4)), np.cumsum(DIFFERENCES, axis=0)])
    prediction = pdt_optax.predict_and_mask(
        [jnp.asarray(w, jnp.float32) for w in points[:-1]],
        jnp.asarray(points[-1], jnp.float32),
        dynamics=pdt_optax.drift(),
        accept=rule,
        horizon=2,
        step=7,
    )
    return [bool(x) for x in prediction.mask]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (rules.votes(3), [True, True, False, True]),
        (rules.votes(4), [True, False, False, True]),
        (rules.signal_to_noise(1.0), [True, True, False, False]),
        (rules.signal_to_noise(2.0), [True, False, False, False]),
        (rules.backtest(0.4), [True, False, False, True]),
        (rules.backtest(0.6), [True, True, False, True]),
        (rules.until(rules.votes(3), 8), [True, True, False, True]),
        (rules.until(rules.votes(3), 7), [False] * 4),
    ],
)
def test_rules_accept(rule, expected):
    assert mask(rule) == expected


def test_held_dmd_lets_no_mode_grow():
    """Against the spectrum of a known system: a pair that spirals outwards, and a mode that decays."""
    rng = np.random.default_rng(0)
    spiral = 1.3 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    within = np.zeros((3, 3))
    within[:2, :2], within[2, 2] = spiral, 0.8
    basis = rng.normal(size=(6, 3))
    points = [np.ones(3)]
    for _ in range(5):
        points.append(within @ points[-1])
    weights = [basis @ p for p in points]
    held = within.copy()
    held[:2, :2] = spiral / 1.3
    for model, operator in ((pdt_optax.dmd, within), (rules.held_dmd, held)):
        with jax.enable_x64(True):
            prediction: Any = pdt_optax.predict_and_mask(
                [jnp.asarray(w) for w in weights[:-1]],
                jnp.asarray(weights[-1]),
                dynamics=model(rank=None, modes="exact", displacement=False),
                accept=pdt_optax.everything(),
                horizon=4,
                step=5,
            )
        expected = basis @ np.linalg.matrix_power(operator, 4) @ points[-2]
        np.testing.assert_allclose(prediction.params, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "total", "forward-backward", "disc"])
@pytest.mark.parametrize(("ratio", "seen"), [(0.5, 0.5), (1.5, 1.5), (-0.5, -0.5)])
def test_difference_dmd_finds_the_ratio_of_a_geometric_motion(kind, ratio, seen):
    direction = np.random.default_rng(0).normal(size=6)
    steps = ratio ** np.arange(1, 6)
    points = np.concatenate([[0], np.cumsum(steps)])[:, None] * direction
    expected = seen if kind != "disc" else min(max(seen, 0), 1)
    prediction: Any = pdt_optax.predict_and_mask(
        [jnp.asarray(w, jnp.float32) for w in points[:-1]],
        jnp.asarray(points[-1], jnp.float32),
        dynamics=rules.difference_dmd(kind),
        accept=pdt_optax.everything(),
        horizon=3,
    )
    assert float(prediction.eigenvalues[0].real) == pytest.approx(expected, abs=1e-5)
    ahead = steps[-1] * sum(expected**k for k in (1, 2, 3))
    np.testing.assert_allclose(prediction.params, points[-1] + ahead * direction, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("steps", "by_dmd"), [([16, 8, 4, 2], True), ([1, 1.2, 0.8, 1], False)])
def test_the_hybrid_takes_what_would_have_predicted_the_last_difference(steps, by_dmd):
    points = np.concatenate([[0, 0], np.cumsum(steps)])[:, None] * np.array([1.0, -2.0])

    def predict(dynamics: Any) -> Any:
        return pdt_optax.predict_and_mask(
            [jnp.asarray(w, jnp.float32) for w in points[:-1]],
            jnp.asarray(points[-1], jnp.float32),
            dynamics=dynamics,
            accept=pdt_optax.everything(),
            horizon=2,
        ).params

    dmd, drift = predict(rules.difference_dmd("disc")), predict(pdt_optax.drift())
    assert jnp.all(dmd != drift)
    np.testing.assert_array_equal(predict(rules.hybrid()), dmd if by_dmd else drift)


RECIPE = Recipe("momentum", Cosine(0.1, 80), 40, 2)


def trained(arm: Any, epochs: int) -> tuple[Any, Any, Any, Any]:
    """The weights, the optimizer's state, the history and the last report."""
    method = arm.method(RECIPE)
    assert method.end_epoch is not None
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
    state, report = method.tx.init(params), None
    history = method.begin(params, state)
    update: Any = jax.jit(method.tx.update)
    for _ in range(epochs):
        for _ in range(RECIPE.steps_per_epoch):
            updates, state = update(params, state, params)
            params = optax.apply_updates(params, updates)
        params, state, history, report = method.end_epoch(params, state, history, jnp.float32(1))
    assert report is not None
    return params, state, history, report


GIVEN = predictive("", horizon=2).given


@pytest.mark.parametrize("epochs", [5, 6])
def test_at_a_jump_moments_may_be_reset_and_the_schedule_advanced(epochs):
    kept, before, _, report = trained(rules.AtJump("", GIVEN), epochs)
    assert bool(report.predicted) == (epochs == 6)
    reset, after, *_ = trained(rules.AtJump("", GIVEN, moments="reset"), epochs)
    _, ahead, *_ = trained(rules.AtJump("", GIVEN, advance=3), epochs)
    chex.assert_trees_all_equal(kept, reset)
    moments = optax.tree.get(before, "trace")
    assert all(jnp.any(m != 0) for m in moments.values())
    expected = optax.tree.zeros_like(moments) if epochs == 6 else moments
    chex.assert_trees_all_equal(optax.tree.get(after, "trace"), expected)
    steps = optax.tree.get(ahead, "count") - optax.tree.get(before, "count")
    assert steps == (6 if epochs == 6 else 0)


def test_a_model_for_every_leaf_is_a_prediction_of_each_alone():
    given = tuple(pdt_optax.presets.released.items())
    before, inner, plain, _ = trained(rules.LeafByLeaf("", given), 5)
    params, _, history, report = trained(rules.LeafByLeaf("", given), 6)
    assert report.predicted
    new: Any = before
    for _ in range(RECIPE.steps_per_epoch):
        updates, inner = RECIPE.inner().update(new, inner, new)
        new = optax.apply_updates(new, updates)
    for name in ("w", "b"):
        alone: Any = pdt_optax.predict_and_mask(
            [w[name] for w in plain.snapshots],
            new[name],
            dynamics=dict(given)["dynamics"],
            accept=dict(given)["accept"],
            horizon=5,
            step=5,
        )
        assert float(alone.accepted_share) == 1
        np.testing.assert_allclose(params[name], alone.params, rtol=1e-6)
        np.testing.assert_array_equal(params[name], history.snapshots[-1][name])


def test_a_model_for_every_part_of_a_layer_is_a_prediction_of_each_part_alone():
    given = dict(pdt_optax.presets.released)
    arm = rules.PartByPart("", tuple(given.items()))
    rng = np.random.default_rng(0)
    names = ["embed/kernel", "layers/0/mlp/bias", "layers/0/mlp/kernel", "layers/1/mlp/kernel", "out/kernel"]
    assert [arm.group(name) for name in names] == [
        "embed",
        "layers/0/mlp",
        "layers/0/mlp",
        "layers/1/mlp",
        "out",
    ]
    weights: Any = {
        "embed": jnp.asarray(rng.normal(size=3)),
        "layers": [{"mlp": {"bias": jnp.ones(2), "kernel": jnp.asarray(rng.normal(size=(2, 2)))}}],
    }
    method = arm.method(RECIPE)
    assert method.begin is not None
    assert method.end_epoch is not None
    state = method.tx.init(weights)
    kept, run = method.begin(weights, state), []
    for epoch in range(6):
        window = kept.snapshots
        trained = jax.tree.map(lambda w, e=epoch: w * 0.9 + 0.1 * jnp.sin(w + e), weights)
        weights, state, kept, report = method.end_epoch(trained, state, kept, jnp.float32(1))
        run.append((window, trained, report))
    window, trained, report = run[-1]
    assert report.predicted
    choice = {name: given[name] for name in ("dynamics", "accept", "horizon")}
    for part in (lambda w: w["embed"], lambda w: w["layers"][0]["mlp"]):
        alone = pdt_optax.predict_and_mask([part(w) for w in window], part(trained), step=5, **choice)
        assert float(alone.accepted_share) > 0
        chex.assert_trees_all_close(part(weights), alone.params, rtol=1e-6)
    together: Any = pdt_optax.predict_and_mask(list(window), trained, step=5, **choice)
    assert not np.allclose(together.params["embed"], weights["embed"], rtol=1e-6)
