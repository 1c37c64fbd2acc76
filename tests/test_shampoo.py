"""Shampoo against a float64 transcription of the paper's equations in NumPy."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import fractional_matrix_power

import pdt_optax
from experiments.training.shampoo import scale_by_shampoo, shampoo

SHAPES = {"matrix": (4, 7), "wide": (3, 12), "tensor": (2, 3, 4), "vector": (5,), "long": (11,), "scalar": ()}
LARGEST = 8


def gradients(steps, dtype: Any = np.float64):
    rng = np.random.default_rng(0)
    return [{name: rng.normal(size=s).astype(dtype) for name, s in SHAPES.items()} for _ in range(steps)]


class Reference:
    """Algorithm 2: H_i = epsilon I + sum G^(i), update G x_1 H_1^(-1/2k) ... x_k H_k^(-1/2k)."""

    def __init__(self, epsilon, every=1):
        self.epsilon, self.every, self.count, self.h, self.roots = epsilon, every, 0, {}, {}

    def update(self, grads):
        out = {}
        for name, grad in grads.items():
            g = np.atleast_1d(grad)
            sizes = range(g.ndim)
            h = self.h.setdefault(name, [self.epsilon * np.eye(d) for d in g.shape])
            for i in sizes:
                unfolded = np.moveaxis(g, i, 0).reshape(g.shape[i], -1)
                product = unfolded @ unfolded.T
                h[i] = h[i] + (product if g.shape[i] <= LARGEST else np.diag(np.diag(product)))
            if self.count % self.every == 0:
                self.roots[name] = [fractional_matrix_power(m, -1 / (2 * g.ndim)) for m in h]
            for i in sizes:
                unfolded = np.moveaxis(g, i, 0)
                g = np.moveaxis(np.tensordot(self.roots[name][i], unfolded, (1, 0)), 0, i)
            out[name] = g.reshape(grad.shape)
        self.count += 1
        return out


@pytest.mark.parametrize(("dtype", "tolerance", "every"), [(np.float64, 1e-10, 3), (np.float32, 2e-4, 1)])
def test_updates_are_the_papers(dtype, tolerance, every):
    with jax.enable_x64(True):
        tx: Any = scale_by_shampoo(epsilon=1e-2, largest=LARGEST, every=every)
        steps = gradients(5, dtype)
        state: Any = tx.init(steps[0])
        update: Any = jax.jit(tx.update)
        reference = Reference(1e-2, every)
        for grads in steps:
            updates, state = update(grads, state)
            chex.assert_trees_all_equal_dtypes(updates, grads)
            chex.assert_trees_all_close(updates, reference.update(grads), rtol=tolerance, atol=tolerance)
    assert update._cache_size() == 1
    assert [h.shape for h in state.statistics["wide"]] == [(3, 3), (12,)]


def test_a_grafted_update_has_the_gradients_norm_and_shampoos_direction():
    grads = gradients(1, np.float32)[0] | {"matrix": np.zeros((4, 7), np.float32)}
    plain: Any = scale_by_shampoo(largest=LARGEST)
    grafted: Any = scale_by_shampoo(largest=LARGEST, graft=True)
    expected, updates = (jax.jit(tx.update)(grads, tx.init(grads))[0] for tx in (plain, grafted))
    np.testing.assert_array_equal(updates["matrix"], 0)
    for name in SHAPES.keys() - {"matrix"}:
        scale = np.linalg.norm(grads[name]) / np.linalg.norm(expected[name])
        np.testing.assert_allclose(updates[name], expected[name] * scale, rtol=1e-4, atol=1e-6)


def test_the_first_update_of_a_matrix_is_its_orthogonal_factor():
    with jax.enable_x64(True):
        grad = np.random.default_rng(0).normal(size=(5, 5))
        u, _, v = np.linalg.svd(grad)
        tx: Any = scale_by_shampoo(epsilon=1e-14)
        update, _ = tx.update(grad, tx.init(grad))
        np.testing.assert_allclose(update, u @ v, atol=1e-9)


def test_rate_and_momentum_are_sgds():
    grads = gradients(3, np.float32)
    tx: Any = shampoo(0.1, momentum=0.9, largest=LARGEST)
    plain: Any = scale_by_shampoo(largest=LARGEST)
    state, plain_state, trace = tx.init(grads[0]), plain.init(grads[0]), 0.0
    update, precondition = jax.jit(tx.update), jax.jit(plain.update)
    for grad in grads:
        updates, state = update(grad, state)
        preconditioned, plain_state = precondition(grad, plain_state)
        trace = 0.9 * trace + preconditioned["matrix"]
        np.testing.assert_allclose(updates["matrix"], -0.1 * trace, rtol=1e-5)


def test_pdt_wraps_it():
    tx: Any = pdt_optax.pdt(shampoo(0.1, momentum=0.9))
    params: Any = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    state, update = tx.init(params), jax.jit(tx.update)
    for epoch in range(8):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
        params, state, report = tx.end_epoch(params, state)
        assert bool(report.predicted) == (epoch >= 5)
    assert jnp.isfinite(params["w"]).all()


def test_settings_that_cannot_be_are_told():
    with pytest.raises(ValueError, match=r"`epsilon` positive.*epsilon=0"):
        scale_by_shampoo(epsilon=0)
