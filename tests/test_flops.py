"""XLA's count of operations against known ones."""

import jax
import jax.numpy as jnp
import optax
import pytest

import pdt_optax
from experiments.training.flops import flops
from tests.states import windowed


def test_a_product_of_matrices_is_two_operations_a_multiplication():
    a, b = jax.ShapeDtypeStruct((512, 256), jnp.float32), jax.ShapeDtypeStruct((256, 128), jnp.float32)
    assert flops(jnp.matmul, a, b) == 2 * 512 * 256 * 128
    assert flops(jax.jit(jnp.matmul), a, b) == 2 * 512 * 256 * 128
    x, w = (
        jax.ShapeDtypeStruct((2, 16, 10, 10), jnp.float32),
        jax.ShapeDtypeStruct((8, 16, 3, 3), jnp.float32),
    )
    assert flops(lambda x, w: jax.lax.conv(x, w, (1, 1), "VALID"), x, w) == 2 * (2 * 8 * 8 * 8) * (16 * 9)


@pytest.mark.parametrize(
    ("make", "least", "most"),
    [
        # 4 differences, 10 of their inner products, the increments, the mask: tens of operations a weight.
        (windowed, 40, 80),
        # 4 columns and their products, and what they make together.
        (pdt_optax.pdt, 15, 60),
    ],
)
def test_a_prediction_counts_and_grows_with_the_weights(make, least, most):
    tx = make(optax.sgd(0.1))

    def count(n):
        params = {"w": jax.ShapeDtypeStruct((n,), jnp.float32)}
        return flops(tx.end_epoch, params, jax.eval_shape(tx.init, params))

    assert least < (count(200_000) - count(100_000)) / 100_000 < most
