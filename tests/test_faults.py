"""What goes wrong in the middle of training: gradients that are not finite, spikes, a learning rate that explodes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pdt_optax
from tests.states import WINDOWED

EPOCHS, STEPS, RATE = 16, 4, 0.05
JUMP = 7  # a prediction ends this epoch, counted from 0, and the next one goes wrong
X = jax.random.normal(jax.random.key(0), (64, 10))
Y = X @ jnp.linspace(-1, 1, 10) + 0.1 * jax.random.normal(jax.random.key(1), (64,))

# What becomes of a gradient at one step, or all along one epoch.
FAULTS = {
    "none": lambda gradient, first: gradient,
    "nan": lambda gradient, first: gradient.at[3].set(jnp.nan) if first else gradient,
    "infinity": lambda gradient, first: gradient.at[3].set(-jnp.inf) if first else gradient,
    "spike": lambda gradient, first: 1e4 * gradient if first else gradient,
    "learning rate": lambda gradient, first: 1e6 * gradient,
}


KINDS = {"windowed": WINDOWED, "gradual": {"deliver": "gradual"}, "jump": {"deliver": "jump"}}


def loss(w):
    return jnp.mean((X @ w - Y) ** 2)


slope = jax.jit(jax.value_and_grad(loss))


def train(tx, end_epoch, fault):
    """The weights after each epoch, the reports, and the last loss."""
    w = jnp.zeros(10)
    state = tx.init(w)
    weights, reports = [], []
    for epoch in range(EPOCHS):
        values = []
        for step in range(STEPS):
            value, gradient = slope(w)
            if epoch == JUMP + 1:
                gradient = FAULTS[fault](gradient, step == 0)
            updates, state = tx.update(gradient, state, w)
            w = optax.apply_updates(w, updates)
            values.append(value)
        w, state, report = end_epoch(w, state, jnp.mean(jnp.stack(values)))
        reports.append(report)
        weights.append(np.asarray(w))
    return weights, reports, float(loss(w))


def guarded(inner, kind):
    tx = pdt_optax.pdt(inner, start=5, guard=pdt_optax.rollback(), **KINDS[kind])
    return tx, lambda w, state, value: tx.end_epoch(w, state, value=value)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        *((fault, "windowed") for fault in ("nan", "infinity", "spike", "learning rate")),
        ("nan", "gradual"),
        ("spike", "gradual"),
        ("infinity", "jump"),
        ("learning rate", "jump"),
    ],
)
def test_the_guard_goes_on_from_before_the_jump(fault, kind):
    """Whatever ruins the epoch after a jump, it is taken back, and training ends as well as without the fault."""
    _, reports, best = train(*guarded(optax.sgd(RATE), kind), "none")
    assert bool(reports[JUMP].predicted)
    assert not any(bool(r.rolled_back) for r in reports)
    weights, reports, end = train(*guarded(optax.sgd(RATE), kind), fault)
    assert [bool(r.rolled_back) for r in reports] == [epoch == JUMP + 1 for epoch in range(EPOCHS)]
    # What comes back are the optimizer's own weights at the end of the epoch before: one epoch from the last plain one.
    before, _, _ = train(*unjumped(optax.sgd(RATE), kind), "none")
    np.testing.assert_array_equal(weights[JUMP + 1], before[JUMP])
    assert all(np.isfinite(w).all() for w in weights)
    # The default predicts at every epoch's end: the lost epoch and the plain one after it are two predictions less.
    assert end == pytest.approx(best, rel=0.05 if kind == "windowed" else 0.1)


def unjumped(inner, kind):
    """As `guarded`, but for the jump at the end of epoch `JUMP`, of which only the report is taken."""
    tx, end_epoch = guarded(inner, kind)
    epochs = iter(range(EPOCHS))

    def end(w, state, value):
        moved, after, report = end_epoch(w, state, value)
        return (w if next(epochs) == JUMP else moved), after, report

    return tx, end


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("nan", "windowed"), ("infinity", "windowed"), ("nan", "gradual"), ("infinity", "jump")],
)
def test_a_step_that_the_optimizer_skips_is_none_of_pdts_concern(fault, kind):
    inner = optax.apply_if_finite(optax.sgd(RATE), max_consecutive_errors=3)
    tx = pdt_optax.pdt(inner, start=5, **KINDS[kind])

    def end_epoch(w, state, value):
        return tx.end_epoch(w, state, value=value)

    _, usual, best = train(tx, end_epoch, "none")
    weights, reports, end = train(tx, end_epoch, fault)
    assert all(np.isfinite(w).all() for w in weights)
    assert [bool(r.predicted) for r in reports] == [bool(r.predicted) for r in usual]
    assert end == pytest.approx(best, rel=0.05)


# What is delivered in parts goes on to the end of its epoch: see test_not_finite_delivers_nothing.
@pytest.mark.parametrize(("fault", "kind"), [("nan", "windowed"), ("infinity", "windowed"), ("nan", "jump")])
def test_unguarded_pdt_neither_hides_nor_spreads_what_is_not_finite(fault, kind):
    """The weight that the optimizer lost stays lost, and no prediction touches the others while it is in the window."""
    inner = optax.sgd(RATE)
    tx = pdt_optax.pdt(inner, start=5, **KINDS[kind])
    w: Any = jnp.zeros(10)
    reports, state = [], tx.init(w)
    bare: Any = None
    bare_state: Any = None
    for epoch in range(EPOCHS):
        if epoch == JUMP + 1:
            w = w.at[3].set(FAULTS[fault](jnp.zeros(10), True)[3])
            bare, bare_state = w, inner.init(w)
        gradient = slope(jnp.nan_to_num(w, posinf=0, neginf=0))[1]
        updates, state = tx.update(gradient, state, w)
        w = optax.apply_updates(w, updates)
        if bare is not None:
            updates, bare_state = inner.update(gradient, bare_state, bare)
            bare = optax.apply_updates(bare, updates)
        w, state, report = tx.end_epoch(w, state, value=0.0)
        reports.append(report)
        if bare is not None:
            np.testing.assert_array_equal(w, bare)
    assert bool(reports[JUMP].predicted)
    assert not any(bool(r.predicted) for r in reports[JUMP + 1 :])
