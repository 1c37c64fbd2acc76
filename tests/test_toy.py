"""The paper's toy problem (Sec. 3 and A.1), through the public wrapper: its step counts are exact.

One epoch is one step of gradient descent, and a run ends at the first step with f < 0.1.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

import pdt_optax
from tests.states import WINDOWED

START = [2.0, 2.0, 1.0, 0.5, -0.5, 1.5]
LEARNING_RATE = 0.01
THRESHOLD = 0.1

# The settings that reproduce the paper's count. Alg. 1 as printed would fit to the past.
PAPER_RUN = {
    **WINDOWED,
    "dynamics": pdt_optax.dmd(rank=None, modes="projected", fit="current"),
    "accept": pdt_optax.bounded_rule(),
    "window": 5,
    "horizon": 5,
    "interval": 1,
}


@jax.jit
def toy(weights: jax.Array) -> jax.Array:
    """The function of Sec. 3."""
    x, y, z, u, v, w = weights
    return x**2 + y**2 + jnp.sin(z) + u**2 - jnp.cos(v) + w**2 + x * y + y * jnp.sin(z) + u * v * w


toy_gradient = jax.jit(jax.grad(toy))


def steps_to_threshold(tx: optax.GradientTransformation) -> int:
    """Steps until f < THRESHOLD, the end of an epoch after each."""
    params = jnp.asarray(START, jnp.float32)
    opt_state = tx.init(params)
    for step in range(1, 101):
        updates, opt_state = tx.update(toy_gradient(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        assert isinstance(params, jax.Array)
        if isinstance(tx, pdt_optax.PDT):
            params, opt_state, _ = tx.end_epoch(params, opt_state)
        if toy(params) < THRESHOLD:
            return step
    raise AssertionError("not reached in 100 steps")


def test_gradient_descent_takes_53_steps():
    assert steps_to_threshold(optax.sgd(LEARNING_RATE)) == 53


def test_tripled_rate_of_a_subset_takes_25_steps():
    """x, y and z move first, three times as fast; u, v and w see where they went."""
    params = jnp.asarray(START, jnp.float32)
    fast = jnp.array([True, True, True, False, False, False])
    steps = 0
    while toy(params) >= THRESHOLD:
        params = jnp.where(fast, params - 3 * LEARNING_RATE * toy_gradient(params), params)
        params = jnp.where(fast, params, params - LEARNING_RATE * toy_gradient(params))
        steps += 1
    assert steps == 25


@pytest.mark.parametrize(("start", "steps"), [(6, 27), (5, 26)])
def test_pdt_takes_27_steps(start, steps):
    assert steps_to_threshold(pdt_optax.pdt(optax.sgd(LEARNING_RATE), start=start, **PAPER_RUN)) == steps
