"""What `predict_and_mask` tells models and rules, and what it makes of their answers."""

import dataclasses
import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pdt_optax
from pdt_optax import _predict
from pdt_optax._reduce import all_finite, total, totals
from pdt_optax.dynamics import Fit, Forecast

# Two snapshots, and what training made of the newer; their products are whole numbers.
OLDER, NEWEST, TRAINED = np.array([[1.0, 5.0], [3.0, 4.0], [6.0, 8.0]])


@dataclasses.dataclass(frozen=True)
class Echo(pdt_optax.Dynamics):
    """Expects no motion, and answers with what it was told."""

    fit: Fit = "past"
    minimum_window: int = 1

    def __call__(
        self, gram: jax.Array, horizon: int, *, size: int, epsilon: float, epoch: jax.Array
    ) -> Forecast:
        window = len(gram)
        return Forecast(
            increments=jnp.zeros((horizon, window), gram.dtype),
            singular_values=gram[0, 1:],
            rank=jnp.asarray(size),
            eigenvalues=jnp.full(window - 1, epsilon + 1j * epoch),
        )


@dataclasses.dataclass(frozen=True)
class Lengths(Echo):
    """Needs no inner products."""

    needs_gram: ClassVar[bool] = False


class Told(pdt_optax.Rule):
    """Weighs a leaf by the epoch and the leaf that it was told."""

    def at(self, epoch: Any, leaf: Any) -> Any:
        return lambda increments, step, *_: jnp.full_like(step, (4 * epoch + leaf) / 64)


def predict(
    dynamics: Any = Echo(), accept: Any = None, leaves: int = 1, dtypes: Any = (), **settings: Any
) -> Any:
    """Of trees of so many equal leaves, or of one for each type."""
    types = dtypes or ("float32",) * leaves
    *snapshots, params = ([jnp.asarray(x, dtype) for dtype in types] for x in (OLDER, NEWEST, TRAINED))
    accept = accept or pdt_optax.everything()
    return pdt_optax.predict_and_mask(
        snapshots, params, dynamics=dynamics, accept=accept, horizon=2, **settings
    )


@pytest.mark.parametrize(("dynamics", "products"), [(Echo(), NEWEST @ (NEWEST - OLDER)), (Lengths(), 0)])
def test_a_model_is_told_the_products_it_needs(dynamics: Any, products: float) -> None:
    """`needs_gram` is optional; who has none is told all."""
    assert predict(dynamics).singular_values == pytest.approx(products)


@pytest.mark.parametrize(
    ("dtypes", "epsilon", "coefficients"),
    [
        (("float32", "float32"), 2.0**-23, jnp.float32),
        (("bfloat16", "bfloat16"), 2.0**-23, jnp.float32),  # predictions are computed in float32
        (("float64", "float64"), 2.0**-52, jnp.float64),
        (("float32", "float64"), 2.0**-23, jnp.float64),
        (("float64", "bfloat16"), 2.0**-23, jnp.float64),
    ],
)
def test_the_precision_is_the_coarsest_leafs_and_coefficients_are_the_finests(
    dtypes: Any, epsilon: float, coefficients: Any
) -> None:
    with jax.enable_x64(True):
        told = predict(dtypes=dtypes, step=7)
    assert told.coefficients.dtype == coefficients
    assert told.rank == 4
    assert told.eigenvalues.tolist() == [complex(epsilon, 7)]
    assert all(new.dtype == dtype for new, dtype in zip(told.params, dtypes, strict=True))


@pytest.mark.parametrize(
    ("dtypes", "finite"),
    [
        (("float32",), True),
        (("float16",), False),
        (("bfloat16", "float16"), False),
        (("float32", "bfloat16"), True),
    ],
)
def test_what_the_smallest_type_may_not_hold_is_not_finite(dtypes: Any, finite: bool) -> None:
    """Weights of 30,000 each have a length of more than half of what float16 reaches."""
    weights = [jnp.full(2, 30_000.0, dtype) for dtype in dtypes]
    settings: Any = {"dynamics": Echo(), "accept": pdt_optax.everything(), "horizon": 1}
    told = pdt_optax.predict_and_mask([weights] * 2, weights, **settings)
    assert bool(told.finite) == finite
    assert all(bool(mask.all()) == finite for mask in told.mask)


@pytest.mark.parametrize("shape", [(), (1,), (0,)])
def test_a_model_is_told_how_many_weights_there_are_and_never_none(shape: Any) -> None:
    weights = jnp.ones(shape)
    settings: Any = {"dynamics": Echo(), "accept": pdt_optax.agree(), "horizon": 1}
    assert pdt_optax.predict_and_mask([weights] * 2, weights, **settings).rank == 1


def test_what_is_not_predicted_has_no_mask() -> None:
    weights = {"a": jnp.ones(2), "count": jnp.array(3)}
    settings: Any = {"dynamics": Echo(), "accept": pdt_optax.agree(), "horizon": 1}
    told = pdt_optax.predict_and_mask([weights] * 2, weights, **settings)
    assert told.mask["count"] == optax.MaskedNode()
    assert told.accepted_share_per_leaf.shape == (1,)


@pytest.mark.parametrize("name", ["increments", "singular_values", "eigenvalues"])
def test_a_model_must_answer_in_the_right_shapes(name: str) -> None:
    class Wrong(Echo):
        def __call__(self, *args: Any, **settings: Any) -> Forecast:
            answer = super().__call__(*args, **settings)
            return answer._replace(**{name: jnp.ones((7, 7))})

    shape = (2, 2) if name == "increments" else (1,)
    with pytest.raises(
        ValueError, match=rf"(?s)whose `{name}` has the shape {re.escape(str(shape))}.*\(7, 7\)"
    ):
        predict(Wrong())


def test_an_epoch_that_is_not_told_is_the_first() -> None:
    assert predict().eigenvalues.tolist() == [complex(2.0**-23, 0)]


@pytest.mark.parametrize("together", [True, False])
def test_a_rule_is_told_the_epoch_and_the_leaf(together: bool) -> None:
    """Where small leaves are computed together, and where each is alone."""
    *snapshots, params = ([jnp.asarray(x, jnp.float32)] * 3 for x in (OLDER, NEWEST, TRAINED))
    settings: Any = {"dynamics": Echo(), "accept": Told(), "horizon": 2}
    told_as: Any = ({}, 0), ({"step": 0}, 0), ({"step": 5}, 5)
    for given, step in told_as:
        if together:
            told: Any = pdt_optax.predict_and_mask(snapshots, params, **settings, **given)
        else:
            told = _predict.predict(tuple(snapshots), params, step, **settings, together=False)
        for leaf, mask in enumerate(told.mask):
            np.testing.assert_array_equal(mask, np.full(2, (4 * step + leaf) / 64))
        # Weighed between what training made of them and the prediction, which is the newest snapshot.
        for new, mask in zip(told.params, told.mask, strict=True):
            np.testing.assert_array_equal(new, TRAINED + mask * (NEWEST - TRAINED))


def test_what_is_refused_says_why() -> None:
    class Least(Told):
        minimum_window = 1

    weights = jnp.ones(2)
    settings: Any = {"dynamics": Echo(), "accept": Least()}
    with pytest.raises(ValueError, match=r"`window` must be at least 2: Echo\(.*\) with .*Got window=1"):
        pdt_optax.predict_and_mask([weights], weights, horizon=1, **settings)
    reason = r"whole number >= 1: a prediction looks at least one snapshot ahead\. Got horizon=0"
    with pytest.raises(ValueError, match=reason):
        pdt_optax.predict_and_mask([weights] * 2, weights, horizon=0, **settings)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 16_383, 16_384, 16_385, 40_000])
def test_sums_of_several_columns_in_one_pass(size: int) -> None:
    """Rows of 16,384 numbers, and what is left of them: every number once. Of whole numbers sums are exact."""
    columns = [np.random.default_rng(i).integers(-9, 9, size) for i in range(3)]
    whole = [jnp.asarray(x, jnp.float32) for x in columns]
    assert [float(x) for x in totals(whole)] == [x.sum() for x in columns]
    assert float(total(whole[0])) == columns[0].sum()


def test_whatever_is_not_finite_is_found() -> None:
    leaves = [jnp.ones((3, 4)), jnp.zeros(20)]
    assert all_finite(leaves)
    for leaf, at in ((0, 0), (0, 11), (1, 0), (1, 19)):
        for bad in (np.nan, np.inf, -np.inf):
            broken = [np.array(x) for x in leaves]
            broken[leaf].flat[at] = bad
            assert not all_finite([*map(jnp.asarray, broken)])
    two = [leaves[0].at[0, 0].set(jnp.nan).at[1, 1].set(jnp.inf), leaves[1]]
    assert not all_finite(two)
    assert all_finite([])


@pytest.mark.parametrize(("y", "finite"), [(8_800.0, True), (8_900.0, False)])
def test_each_type_has_a_bound_of_its_own(y: float, finite: bool) -> None:
    """10,000 + 0.5 * 10,000 + 2 y is to be below half of the largest float16, however long those of float32 are."""
    lengths = np.array([[1e30, 1e30], [10_000.0, y]])
    with jax.enable_x64(True):
        grams = jnp.stack([jnp.diag(row**2) for row in lengths])
        got = _predict._stays_finite(grams, jnp.array([[0.5, -2.0]]), [jnp.float32, jnp.float16])
    assert got == finite
