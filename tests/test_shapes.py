"""A small matrix or a leaf whose rows and columns are swapped is refused where it would have broadcast."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdt_optax
from pdt_optax import _passes, _predict, _shapes
from pdt_optax._coordinates import factor, in_coordinates
from pdt_optax._passes import accepted, assemble, gram_matrix
from pdt_optax._predict import _stays_finite
from pdt_optax._window import WHOLE
from pdt_optax.accept import mean_weights
from pdt_optax.dynamics import dmd

WINDOW = 3
RULE = pdt_optax.everything()


def points(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """A leaf's snapshots and its weights."""
    return [
        jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) + i for i, shape in enumerate(shapes)
    ]


def assembled(increments: tuple[int, ...], displacement: tuple[int, ...]) -> Any:
    given = jnp.ones(increments), jnp.ones(displacement), RULE, 1, jnp.array(True)
    rest = {"moved_only": False, "whole_mask": False}
    return assemble(points(*[(4,)] * 4), WHOLE, "current", *given, **rest)


def judged(increments: tuple[int, ...], differences: tuple[int, ...], reference: tuple[int, ...]) -> Any:
    ones = jnp.ones
    return accepted(RULE, ones(increments), ones(4), ones(differences), ones(reference), 1)


def forecast(model: Any, gram: tuple[int, ...]) -> Any:
    rest = {"size": 9, "epsilon": 1e-7, "epoch": jnp.int32(4)}
    return model(jnp.ones(gram), 1, **rest)


@dataclasses.dataclass(frozen=True)
class Cut(dmd):
    """One of what it returns is longer than `decompose` reads."""

    which: int = 2

    def fitted(self, w: Any, size: int, epsilon: float) -> Any:
        found = list(super().fitted(w, size, epsilon))
        x = found[self.which]
        found[self.which] = x.T if self.which == 2 else jnp.append(x, x[-1:], axis=0)
        return tuple(found)


def decomposed(dynamics: dmd) -> Any:
    run = [{"w": jnp.array([0.5**t, (-1.0) ** t, 0.0])} for t in range(WINDOW)]
    return pdt_optax.decompose(run, dynamics=dynamics)


# What is called, what it takes, what is swapped, and of it the name and the shape that is expected and that comes.
CASES: dict[str, tuple[Callable[..., Any], Any, Any, str]] = {
    "increments": (assembled, ((1, 3), (3,)), ((3, 1), (3,)), "`increments` .* (any, 3): .* (3, 1)."),
    "displacement": (assembled, ((1, 3), (3,)), ((1, 3), (3, 1)), "`displacement` .* (3): .* (3, 1)."),
    "bound": (
        lambda *shape: _stays_finite(jnp.ones((1, 3, 3)), jnp.ones(shape), [jnp.float32]),
        (1, 3), (3, 1), "`increments` .* (any, 3): .* (3, 1).",
    ),
    "grams": (
        lambda *shape: _stays_finite(jnp.ones(shape), jnp.ones((1, 3)), [jnp.float32]),
        (1, 3, 3), (3, 3, 1), "`grams` .* (1, 1, 1): .* (3, 3, 1).",
    ),
    "rule's increments": (judged, ((1, 4), (2, 4), (4,)), ((4, 1), (2, 4), (4,)), "`increments` .* (any, 4): .* (4, 1)."),
    "rule's differences": (judged, ((1, 4), (2, 4), (4,)), ((1, 4), (4, 2), (4,)), "`differences` .* (any, 4): .* (4, 2)."),
    "rule's reference": (judged, ((1, 4), (2, 4), (4,)), ((1, 4), (2, 4), (4, 1)), "`reference` .* (4): .* (4, 1)."),
    "leaves": (
        lambda *shape: gram_matrix([points((2, 3), (2, 3), (2, 3), shape)], WHOLE, "current"),
        (2, 3), (3, 2), "`leaves` .* of one shape: .* (2, 3) beside weights of (3, 2).",
    ),
    "gram of dmd": (lambda *shape: factor(jnp.ones(shape)), (3, 3), (3, 2), "`gram` .* (3, 3): .* (3, 2)."),
    "gram of drift": (
        functools.partial(forecast, pdt_optax.drift()), ((3, 3),), ((3, 1),), "`gram` .* (3, 3): .* (3, 1).",
    ),
    "gram of slow_drift": (
        functools.partial(forecast, pdt_optax.slow_drift()), ((3, 3),), ((3, 1),), "`gram` .* (3, 3): .* (3, 1).",
    ),
    "coordinates": (
        lambda *shape: in_coordinates(jnp.ones(shape), jnp.zeros(())), (3, 3), (4, 3), "`coordinates` .* (3, 3): .* (4, 3).",
    ),
    "kept": (decomposed, (dmd(rank=None),), (Cut(rank=None, which=0),), "`keep` .* (2): .* (3,)."),
    "operator": (decomposed, (dmd(rank=None),), (Cut(rank=None, which=1),), "`operator` .* (2, 2): .* (3, 2)."),
    "modes": (decomposed, (dmd(rank=None),), (Cut(rank=None),), "`basis` .* (3, 2): .* (2, 3)."),
    "newest": (decomposed, (dmd(rank=None),), (Cut(rank=None, which=3),), "`newest` .* (2): .* (3,)."),
    "masks": (
        lambda *shape: mean_weights([jnp.ones(shape, bool)], [2]), (2, 4), (4, 2), "`mask` .* (2, any): .* (4, 2).",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_swapped_is_refused(case: str) -> None:
    function, right, swapped, message = CASES[case]
    function(*right)
    pattern = ".*".join(map(re.escape, message.split(" .* ")))
    with pytest.raises(ValueError, match=f"^{pattern}$"):
        function(*swapped)


def test_what_is_swapped_would_have_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks a bound is computed from the wrong numbers, and a Gram matrix from mispaired weights."""
    for module in (_passes, _predict):
        monkeypatch.setattr(module, "expect", lambda *_: None)
    monkeypatch.setattr(_passes, "expect_alike", lambda *_: None)
    for case in ("bound", "rule's increments", "leaves"):
        function, _, swapped, _ = CASES[case]
        function(*swapped)


def test_they_cost_nothing_when_the_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def program() -> str:
        walk = [{"w": x} for x in points(*[(2, 3)] * (WINDOW + 1))]
        predict = functools.partial(
            pdt_optax.predict_and_mask, dynamics=dmd(), accept=pdt_optax.agree(), horizon=2
        )
        jax.clear_caches()
        return str(jax.make_jaxpr(predict)(walk[:-1], walk[-1]))

    checked, calls = program(), []
    for module in (_passes, _predict):
        monkeypatch.setattr(module, "expect", lambda *given: calls.append(given))
    assert program() == checked
    assert calls
    assert _shapes.expect not in (_passes.expect, _predict.expect)
