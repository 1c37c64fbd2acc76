"""Algorithm 1 to the letter: its clock, the line that contradicts its text, and Eq. 5 against powers of A."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pdt_optax
from experiments import toy
from pdt_optax import presets


def predicts_by_algorithm_1(start: int, interval: int, epochs: int) -> list[int]:
    """Lines 1 to 21: the epochs, counted from 0, that end in a prediction."""
    plain, predicted = 0, []
    for t in range(epochs):
        if t >= start and plain >= interval:
            predicted.append(t)
            plain = 0
        else:
            plain += 1
    return predicted


def predicts(settings: Any, epochs: int) -> list[int]:
    params = jnp.ones(2)
    predictor = pdt_optax.Predictor(**settings)
    history, predicted = predictor.init(params), []
    for t in range(epochs):
        params, history, report = predictor.end_epoch(0.9 * params, history)
        predicted += [t] * bool(report.predicted)
    return predicted


def test_the_papers_preset_predicts_when_algorithm_1_does():
    assert predicts(presets.paper, 14) == predicts_by_algorithm_1(5, 1, 14) == [5, 7, 9, 11, 13]


@pytest.mark.parametrize(("start", "interval"), [(5, 0), (5, 3), (5, 5), (5, 6), (5, 10), (8, 10), (12, 2)])
def test_a_longer_interval_is_waited_for_before_the_first_prediction_too(start, interval):
    """The counter c_e starts at 0: with T_0 = 5 and T_i = 10 the first prediction ends epoch 10."""
    settings = {**presets.paper, "interval": interval, "start": max(start, interval)}
    assert predicts(settings, 30) == predicts_by_algorithm_1(start, interval, 30)


@dataclasses.dataclass(frozen=True)
class FirstStepOf(pdt_optax.Rule):
    """Line 13 as printed: where a rule accepts, the weights of the first predicted step, w_pred(t)."""

    rule: pdt_optax.Rule

    def __call__(self, increments, step, differences, reference, horizon):
        accepted = self.rule(increments, step, differences, reference, horizon)
        whole = increments.sum(0)
        return jnp.where(accepted & (whole != 0), increments[0] / jnp.where(whole != 0, whole, 1), 0)


def test_line_13_as_printed_gains_nothing():
    """The toy takes 53 steps without PDT. w_pred(t) is where w_opt(t) already is."""
    counts = []
    for accept in (pdt_optax.paper_rule(), FirstStepOf(pdt_optax.paper_rule())):
        tx = pdt_optax.pdt(optax.sgd(toy.LEARNING_RATE), **{**presets.paper, "accept": accept})
        counts.append(toy.descend(tx).steps)
    assert counts == [42, 53]


@pytest.mark.parametrize("seed", range(5))
def test_eq_5_is_powers_of_a(seed):
    """w(t - 1) is the newest snapshot, so it lies in the modes' span: both forms, and ours, are the same prediction."""
    rng = np.random.default_rng(seed)
    size, window, horizon = 7, 5, 5
    walk = np.cumsum(rng.normal(size=(window, size)), axis=0).T
    older, newer, newest = walk[:, :-1], walk[:, 1:], walk[:, -1]
    a = newer @ np.linalg.pinv(older)
    eigenvalues, vectors = np.linalg.eig(a)
    kept = np.argsort(-abs(eigenvalues))[: window - 1]
    modes, eigenvalues = vectors[:, kept], eigenvalues[kept]
    amplitudes = np.linalg.pinv(modes) @ newest
    with jax.enable_x64(True):
        got = pdt_optax.predict_and_mask(
            [jnp.asarray(w) for w in walk.T],
            jnp.asarray(newest + rng.normal(size=size)),
            dynamics=presets.paper["dynamics"],
            accept=pdt_optax.everything(),
            horizon=horizon,
            step=5,
        )
    by_powers = np.linalg.matrix_power(a, horizon) @ newest
    by_modes = modes @ (eigenvalues**horizon * amplitudes)
    scale = np.linalg.norm(by_powers)
    np.testing.assert_allclose(by_modes.imag / scale, 0, atol=1e-9)
    np.testing.assert_allclose(by_modes.real / scale, by_powers / scale, atol=1e-9)
    np.testing.assert_allclose(np.asarray(got.params) / scale, by_powers / scale, atol=1e-7)
    for k in range(1, horizon + 1):  # so Eq. 7 sees the same signs
        step = np.linalg.matrix_power(a, k) @ newest - np.linalg.matrix_power(a, k - 1) @ newest
        step_of_modes = (modes @ ((eigenvalues**k - eigenvalues ** (k - 1)) * amplitudes)).real
        np.testing.assert_array_equal(np.sign(step), np.sign(step_of_modes))
