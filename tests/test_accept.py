"""Acceptance rules called as they are, against what they say in plain Python; at equality above all."""

import itertools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdt_optax
from pdt_optax.accept import mean_weight, mean_weights

# Every row of three predicted steps with every step of the optimizer: a weight each.
WEIGHTS = np.array(
    [*itertools.product([-1, 0, 1, 2], [-1, 0, 1], [-2, 0, 1, 3], [-2, -1, 0, 1, 2])], np.float32
)
INCREMENTS, STEP = WEIGHTS.T[:3], WEIGHTS.T[3]


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def same_sign(steps: Any, step: float) -> bool:
    return all(sign(x) == sign(step) for x in steps)


RULES: list[
    tuple[Any, Any]
] = [  # what is True of the predicted steps, up to the horizon, and the optimizer's
    (pdt_optax.paper_rule(), lambda p, d: abs(sum(p)) >= len(p) * abs(d) and same_sign(p, d)),
    (pdt_optax.bounded_rule(), lambda p, d: abs(sum(p)) <= len(p) * abs(d) and same_sign(p, d)),
    (
        pdt_optax.released_rule(),
        lambda p, d: abs(d) <= abs(sum(p)) <= (len(p) + 1) * abs(d) and same_sign([sum(p)], d),
    ),
    (pdt_optax.agree(), same_sign),
    (pdt_optax.everything(), lambda p, d: True),
]


@pytest.mark.parametrize("horizon", [1, 2, 3])
@pytest.mark.parametrize(("rule", "accepts"), RULES, ids=[str(rule) for rule, _ in RULES])
def test_a_rule_accepts_what_it_says(rule: Any, accepts: Any, horizon: int) -> None:
    increments = INCREMENTS * (np.arange(3) < horizon)[:, None]  # rows past the horizon are zero
    expected = [accepts(p[:horizon].tolist(), d) for p, d in zip(increments.T, STEP.tolist(), strict=True)]
    assert len({*expected}) == 2 or rule == pdt_optax.everything()
    for given in (horizon, jnp.int32(horizon)):
        mask = rule(jnp.asarray(increments), jnp.asarray(STEP), jnp.zeros((2, len(STEP))), STEP, given)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_shrink_is_james_and_steins(count: int) -> None:
    differences = np.array([*itertools.product([-3.0, -1.0, 0.0, 1.0, 3.0], repeat=count)], np.float32)
    differences = np.concatenate([differences, differences * 2.0**-100])  # whose squares are no float32
    expected = [
        max(0, 1 - statistics.variance(d) / (count * statistics.mean(d) ** 2)) if sum(d) else 0
        for d in differences.astype(float).tolist()
    ]
    rows = jnp.asarray(differences.T)
    mask = pdt_optax.shrink()(rows, rows[-1], rows, rows[0], 2)
    np.testing.assert_allclose(mask, expected, rtol=1e-5, atol=1e-5)
    assert mask[jnp.all(rows == rows[0], axis=0) & (rows[0] != 0)].min() == 1


def test_shares_are_of_each_leaf_and_of_all_weights() -> None:
    masks = [
        jnp.array([[True, False, True], [False, False, True]]),  # two leaves of three weights
        jnp.array([0.25, 0.5, 0.25, 1.0]),
        jnp.array([True]),
        jnp.zeros(0),
    ]
    shares, share = mean_weights(masks, [2, 1, 1, 1])
    np.testing.assert_allclose(shares, [2 / 3, 1 / 3, 1 / 2, 1, 0], rtol=1e-7)
    assert float(share) == pytest.approx((2 + 1 + 2 + 1) / 11)
    assert shares.dtype == share.dtype == jnp.float32
    shares, share = mean_weights([jnp.array([True])], [1])
    assert (shares.tolist(), float(share)) == ([1], 1)
    one = mean_weight(jnp.array([True]))
    assert (float(one), one.shape) == (1, ())


class Positive(pdt_optax.Rule):
    """Where the optimizer's step is positive; it must be given all that a rule is given."""

    def __call__(self, increments, step, differences, reference, horizon):
        assert (increments.shape, differences.shape, reference.shape, horizon) == (
            (5, 4000),
            (3, 4000),
            (4000,),
            5,
        )
        return step > 0


def draw(rule: Any, epoch: int = 3, leaf: int = 0) -> Any:
    step = jnp.arange(4000.0) - 999  # a quarter is not positive
    mask = rule.at(epoch, leaf)(jnp.ones((5, 4000)), step, jnp.ones((3, 4000)), step, 5)
    assert (mask.shape, mask.dtype) == ((4000,), bool)
    return mask


@pytest.mark.parametrize("source", [{"ratio": 0.75}, {"like": Positive()}], ids=["ratio", "like"])
def test_a_random_subset_has_the_share_and_is_drawn_anew(source: Any) -> None:
    masks = [
        draw(pdt_optax.random_subset(**source)),
        draw(pdt_optax.random_subset(**source, seed=1)),
        draw(pdt_optax.random_subset(**source), epoch=4),
        draw(pdt_optax.random_subset(**source), leaf=1),
    ]
    np.testing.assert_array_equal(masks[0], draw(pdt_optax.random_subset(**source)))
    for mask in masks:
        assert float(jnp.mean(mask)) == pytest.approx(0.75, abs=0.04)  # 6 standard deviations
    for one, other in itertools.combinations(masks, 2):  # independent: 0.75^2 + 0.25^2 of them alike
        assert float(jnp.mean(one == other)) == pytest.approx(0.625, abs=0.05)


@pytest.mark.parametrize(("ratio", "share"), [(0, 0), (0.0, 0), (1, 1), (1.0, 1)])
def test_a_random_subset_of_none_and_of_all(ratio: float, share: int) -> None:
    assert jnp.all(draw(pdt_optax.random_subset(ratio=ratio)) == share)


def test_a_random_subset_asks_the_rule_it_is_like_whether_it_suits_the_model() -> None:
    rule = pdt_optax.random_subset(like=pdt_optax.shrink())
    rule.check(pdt_optax.drift())
    with pytest.raises(ValueError, match=r"Got dynamics=dmd\(rank=2"):
        rule.check(pdt_optax.dmd(rank=2))
    with pytest.raises(ValueError, match="`seed` must be a whole number"):
        pdt_optax.random_subset(ratio=0.5, seed=True)


def test_a_gradient_stops_at_a_share() -> None:
    weights = jnp.array([0.5, 1.0])
    assert jnp.all(jax.grad(lambda w: mean_weight(w))(weights) == 0)
