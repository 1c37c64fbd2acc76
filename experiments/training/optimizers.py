"""Optimizers and learning-rate schedules by name.

A schedule is a frozen dataclass: it prints what it is, so that a record's key
can hash it, and equal ones share compiled code.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from experiments.training.shampoo import shampoo

# Each takes a rate and whether its first moment is on (schedule-free averaging
# takes its place); an optimizer without one ignores it.
OPTIMIZERS: dict[str, Callable[[Any, bool], optax.GradientTransformation]] = {
    "sgd": lambda rate, moment: optax.sgd(rate),
    "momentum": lambda rate, moment: optax.sgd(rate, momentum=0.9 if moment else None),
    "decayed_momentum": lambda rate, moment: optax.chain(
        optax.add_decayed_weights(1e-4, mask=_matrices), optax.sgd(rate, momentum=0.9 if moment else None)
    ),
    "adam": lambda rate, moment: optax.adam(rate, b1=0.9 if moment else 0.0),
    "clipped_adam": lambda rate, moment: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(rate, b1=0.9 if moment else 0.0)
    ),
    "adamw": lambda rate, moment: optax.adamw(rate, b1=0.9 if moment else 0.0),
    "rmsprop": lambda rate, moment: optax.rmsprop(rate),
    "lamb": lambda rate, moment: optax.lamb(rate, b1=0.9 if moment else 0.0),
    # Few and small roots: they are eigenvalue decompositions.
    "shampoo": lambda rate, moment: shampoo(rate, momentum=0.9 if moment else None, every=10, largest=512),
    "muon": lambda rate, moment: optax.contrib.muon(
        rate, beta=0.95 if moment else 0.0, adam_b1=0.9 if moment else 0.0
    ),
}


def _matrices(params: Any) -> Any:
    """Which weights are no vectors: biases and scales are not decayed."""
    return jax.tree.map(lambda w: w.ndim > 1, params)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate of each step, counted from 0; never more than `peak`."""

    peak: float

    def __call__(self, count: jax.typing.ArrayLike) -> Any:
        raise NotImplementedError

    @property
    def rising(self) -> int:
        """Steps of a warm-up before `peak`, which other shapes of a run's schedule keep."""
        return 0


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """From `peak` to 0 in `steps` steps."""

    steps: int

    def __call__(self, count: jax.typing.ArrayLike) -> Any:
        return optax.cosine_decay_schedule(self.peak, self.steps)(count)


@dataclasses.dataclass(frozen=True)
class FlooredCosine(Schedule):
    """From `peak` to 1e-3, the least rate of the paper's Table 6, in `steps` steps; constant below it."""

    steps: int

    def __call__(self, count: jax.typing.ArrayLike) -> Any:
        return optax.cosine_decay_schedule(self.peak, self.steps, alpha=min(1.0, 1e-3 / self.peak))(count)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """Always `peak`."""

    steps: int

    def __call__(self, count: jax.typing.ArrayLike) -> Any:
        return optax.constant_schedule(self.peak)(count)


@dataclasses.dataclass(frozen=True)
class Warmup(Schedule):
    """Linearly from 0 to `peak` in `warmup` steps, constant from then on."""

    warmup: int

    def __call__(self, count: jax.typing.ArrayLike) -> Any:
        return optax.warmup_constant_schedule(0.0, self.peak, self.warmup)(count)


@dataclasses.dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linearly from 0 to `peak` in the first 5% of `steps` steps, then by a cosine to 0."""

    steps: int

    def __call__(self, count: jax.typing.ArrayLike) -> Any:
        end = max(self.steps, self.rising + 1)
        return optax.warmup_cosine_decay_schedule(0.0, self.peak, self.rising, end)(count)

    @property
    def rising(self) -> int:
        return max(1, round(0.05 * self.steps))


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """Linearly from 0 to `peak` in `warmup` steps, if any, then linearly to 0 at the end of `steps`."""

    steps: int
    warmup: int = 0

    def __call__(self, count: jax.typing.ArrayLike) -> Any:
        return _piecewise(self.peak, self.steps, self.warmup, max(1, self.steps - self.warmup), count)


@dataclasses.dataclass(frozen=True)
class Trapezoid(Schedule):
    """Linearly from 0 to `peak` in `warmup` steps, if any, constant, and linearly to 0 in the last 20% of `steps`."""

    steps: int
    warmup: int = 0

    def __call__(self, count: jax.typing.ArrayLike) -> Any:
        return _piecewise(self.peak, self.steps, self.warmup, max(1, round(0.2 * self.steps)), count)


def _piecewise(peak: float, steps: int, rise: int, fall: int, count: jax.typing.ArrayLike) -> Any:
    up = count / rise if rise else 1.0
    down = jnp.maximum(steps - jnp.asarray(count), 0) / fall
    return peak * jnp.minimum(1.0, jnp.minimum(up, down))


SCHEDULES: dict[str, Callable[[float, int], Schedule]] = {
    "cosine": Cosine,
    "floored_cosine": FlooredCosine,
    "constant": Constant,
    "linear": Linear,
    "trapezoid": Trapezoid,
    "warmup_cosine": WarmupCosine,
}
