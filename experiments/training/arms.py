"""Arms: what a run does besides its optimizer, from nothing over PDT to the controls.

An arm is a frozen description with a name. Given the recipe of a run (its
optimizer, its schedule, its steps per epoch) it says what it means
(`settings`, hashed into the record's key) and how it is done (`method`).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

import pdt_optax
from experiments.training.optimizers import OPTIMIZERS, Linear, Schedule, Trapezoid, Warmup

BASELINE = "baseline"


class Recipe(NamedTuple):
    """What an arm may know of its run."""

    optimizer: str
    schedule: Schedule
    epochs: int
    steps_per_epoch: int

    def inner(self) -> optax.GradientTransformation:
        """The optimizer itself."""
        return OPTIMIZERS[self.optimizer](self.schedule, True)


class Method(NamedTuple):
    """How an arm is done.

    Attributes:
      tx: the transformation that the training steps use.
      schedule: the learning rate that it follows.
      begin: None, or what the arm keeps beside the steps, given the initial
        parameters and the state.
      end_epoch: None, or called after an epoch with the parameters, the state,
        what the arm keeps, and the mean loss; returns all but the loss anew,
        and a `PDTReport` or None. It may donate what it is given, and is on the clock.
      evaluated: None, or which weights to evaluate, given the parameters, the
        state and what the arm keeps.
      made: the `pdt` or `Predictor` of the arm, if it is PDT.
      refreshes: whether the statistics of BatchNorm are estimated anew after a
        jump, from a pass over the epoch's batches.
      validates: whether `end_epoch` gets the validation loss of the epoch's
        last weights in place of its mean training loss.
    """

    tx: optax.GradientTransformation
    schedule: Schedule
    begin: Callable[[Any, Any], Any] | None = None
    end_epoch: Callable[[Any, Any, Any, jax.Array], tuple[Any, Any, Any, Any]] | None = None
    evaluated: Callable[[Any, Any, Any], Any] | None = None
    made: pdt_optax.PDT | pdt_optax.Predictor | None = None
    refreshes: bool = False
    validates: bool = False


@dataclasses.dataclass(frozen=True)
class Arm:
    """The optimizer alone.

    Attributes:
      name: letters, digits, "-", "_" and "."; records are named by it.
    """

    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]*", self.name):
            raise ValueError(
                "`name` must be letters, digits, hyphens, underscores and dots, since records are named by it. "
                f"Got {self.name!r}."
            )

    def fits(self, optimizer: str) -> bool:
        """Whether there is such an arm for an optimizer, by its name in `optimizers`."""
        del optimizer
        return True

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        """What the arm means in this run; values whose `repr` says all."""
        del recipe
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "name"}

    def method(self, recipe: Recipe) -> Method:
        """How the arm is done in this run."""
        return Method(recipe.inner(), recipe.schedule)


@dataclasses.dataclass(frozen=True)
class Predictive(Arm):
    """PDT: beside the optimizer where predictions are jumps, around it where its updates deliver them.

    Attributes:
      given: the settings of `pdt_optax.pdt` as pairs, or a function of the
        recipe that returns them, for rules that know the learning rates.
    """

    given: tuple[tuple[str, Any], ...] | Callable[[Recipe], Mapping[str, Any]]

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        return dict(self.given(recipe) if callable(self.given) else self.given)

    def method(self, recipe: Recipe) -> Method:
        settings = self.settings(recipe)
        if settings.get("deliver") in ("auto", "gradual"):
            return around(recipe, settings)
        predictor = pdt_optax.Predictor(**settings)
        guarded = predictor.guard is not None

        def begin(params: Any, opt_state: Any) -> pdt_optax.History:
            return predictor.init(params, opt_state if guarded else None)

        def end_epoch(params: Any, opt_state: Any, history: Any, value: jax.Array) -> tuple[Any, ...]:
            judged = opt_state if guarded else None
            params, history, report = predictor.end_epoch(
                params, history, opt_state=judged, value=value, donate=True
            )
            return params, history.opt_state if guarded else opt_state, history, report

        return Method(recipe.inner(), recipe.schedule, begin, end_epoch, made=predictor)


def around(recipe: Recipe, settings: Mapping[str, Any]) -> Method:
    """PDT around the optimizer: its updates deliver the predictions."""
    return _around(pdt_optax.pdt(recipe.inner(), **settings), recipe.schedule)


def _around(tx: pdt_optax.PDT, schedule: Schedule) -> Method:
    def end_epoch(params: Any, opt_state: Any, kept: Any, value: jax.Array) -> tuple[Any, ...]:
        params, opt_state, report = tx.end_epoch(params, opt_state, value=value, donate=True)
        return params, opt_state, kept, report

    return Method(tx, schedule, end_epoch=end_epoch, made=tx)


@dataclasses.dataclass(frozen=True)
class PredictiveAround(Arm):
    """PDT around an arm that changes the optimizer: its updates deliver the predictions.

    Attributes:
      of: that arm; all that it does, it does in its updates.
      given: the settings of `pdt_optax.pdt` as pairs.
    """

    of: Arm
    given: tuple[tuple[str, Any], ...]

    def fits(self, optimizer: str) -> bool:
        return self.of.fits(optimizer)

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        return {"of": self.of.name, **self.of.settings(recipe), **dict(self.given)}

    def method(self, recipe: Recipe) -> Method:
        inner = self.of.method(recipe)
        if inner.begin or inner.end_epoch:
            raise ValueError(f"The arm inside must do all in its updates. {self.of.name} does more.")
        tx = pdt_optax.pdt(inner.tx, **dict(self.given))
        method = _around(tx, inner.schedule)
        if inner.evaluated is None:
            return method
        chosen = inner.evaluated
        return method._replace(evaluated=lambda params, state, kept: chosen(params, state.inner_state, kept))


def predictive(name: str, **settings: Any) -> Predictive:
    """PDT with these settings over those of the preset `drift`."""
    return Predictive(name, tuple({**pdt_optax.presets.drift, **settings}.items()))


def preset(name: str) -> Arm:
    """The preset of `pdt_optax` with this name, or the baseline."""
    return Arm(name) if name == BASELINE else Predictive(name, tuple(pdt_optax.presets.named(name).items()))


class AverageState(NamedTuple):
    """The wrapped optimizer's state, an average of the weights so far, and how many went into it."""

    inner_state: Any
    average: Any
    seen: jax.Array


@dataclasses.dataclass(frozen=True)
class Ema(Arm):
    """The baseline, evaluated at an exponential moving average of its weights.

    Attributes:
      memory: how far back the average looks, in epochs.
    """

    memory: float = 1.0

    def method(self, recipe: Recipe) -> Method:
        least = min(1.0, 1 / (self.memory * recipe.steps_per_epoch))

        tx = recipe.inner()

        def init(params: Any) -> AverageState:
            return AverageState(tx.init(params), jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AverageState]:
            updates, inner_state = tx.update(updates, state.inner_state, params)
            new = optax.apply_updates(params, updates)
            # A plain mean first: no trace of the initial weights.
            weight = jnp.maximum(1 / (state.seen + 1.0), least)
            average = jax.tree.map(lambda a, w: a + weight * (w - a), state.average, new)
            return updates, AverageState(inner_state, average, state.seen + 1)

        averaging = optax.GradientTransformation(init, update)
        return Method(averaging, recipe.schedule, evaluated=lambda params, state, kept: state.average)


@dataclasses.dataclass(frozen=True)
class Lawa(Arm):
    """The baseline, evaluated at the mean of the weights at its last epochs' ends.

    References:
      Kaddour, Stop wasting my time! Saving days of ImageNet and BERT training
      with latest weight averaging, 2022.
    """

    snapshots: int = 5

    def method(self, recipe: Recipe) -> Method:
        def begin(params: Any, state: Any) -> tuple[tuple[Any, ...], jax.Array]:
            del state
            copies = tuple(jax.tree.map(jnp.copy, params) for _ in range(self.snapshots))
            return copies, jnp.zeros((), jnp.int32)

        def end_epoch(params: Any, state: Any, kept: Any, value: jax.Array) -> tuple[Any, ...]:
            del value
            snapshots, seen = kept
            return params, state, ((*snapshots[1:], jax.tree.map(jnp.copy, params)), seen + 1), None

        def evaluated(params: Any, state: Any, kept: Any) -> Any:
            del params, state
            snapshots, seen = kept
            count = jnp.clip(seen, 1, self.snapshots)
            real = jnp.arange(self.snapshots) >= self.snapshots - count
            return jax.tree.map(lambda *w: jnp.tensordot(real / count, jnp.stack(w), 1), *snapshots)

        return Method(recipe.inner(), recipe.schedule, begin, end_epoch, evaluated)


@dataclasses.dataclass(frozen=True)
class Lookahead(Arm):
    """`optax.lookahead` around the optimizer, evaluated at its slow weights."""

    sync_period: int = 5
    slow_step_size: float = 0.5

    def method(self, recipe: Recipe) -> Method:
        lookahead: Any = optax.lookahead(recipe.inner(), self.sync_period, self.slow_step_size)

        # The slow weights live in the state, so that the trainer sees the fast ones alone.
        def init(params: Any) -> Any:
            slow = jax.tree.map(jnp.copy, params)
            state = lookahead.init(optax.LookaheadParams(fast=params, slow=slow))
            return AverageState(state, slow, jnp.zeros((), jnp.int32))

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            pair = optax.LookaheadParams(fast=params, slow=state.average)
            both, inner_state = lookahead.update(updates, state.inner_state, pair)
            slow = optax.apply_updates(state.average, both.slow)
            return both.fast, AverageState(inner_state, slow, state.seen + 1)

        tx = optax.GradientTransformation(init, update)
        return Method(tx, recipe.schedule, evaluated=lambda params, state, kept: state.average)


@dataclasses.dataclass(frozen=True)
class ScheduleFree(Arm):
    """`optax.contrib.schedule_free`: a constant rate after a warmup, averaging instead of a first moment.

    Attributes:
      rate: the peak rate as a multiple of the run's.
      warmup: the share of all steps that it takes to reach it.
      b1: how far the gradients are taken from the fast weights.
    """

    rate: float = 1.0
    warmup: float = 0.05
    b1: float = 0.9

    def method(self, recipe: Recipe) -> Method:
        steps = recipe.epochs * recipe.steps_per_epoch
        schedule = Warmup(self.rate * recipe.schedule.peak, max(1, round(self.warmup * steps)))
        inner = OPTIMIZERS[recipe.optimizer](schedule, False)
        tx = optax.contrib.schedule_free(inner, schedule, b1=self.b1)

        def evaluated(params: Any, state: Any, kept: Any) -> Any:
            del kept
            return optax.contrib.schedule_free_eval_params(state, params)

        return Method(tx, schedule, evaluated=evaluated)


@dataclasses.dataclass(frozen=True)
class Shaped(Arm):
    """The optimizer alone, at another shape of the learning rate; a warm-up of the run's schedule is kept.

    Attributes:
      shape: a name in `SHAPES`.
    """

    shape: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in SHAPES:
            raise ValueError(f"There is no shape {self.shape!r}. There are {', '.join(SHAPES)}.")

    def method(self, recipe: Recipe) -> Method:
        steps = recipe.epochs * recipe.steps_per_epoch
        schedule = SHAPES[self.shape](recipe.schedule.peak, steps, recipe.schedule.rising)
        return Method(OPTIMIZERS[recipe.optimizer](schedule, True), schedule)


SHAPES: dict[str, Callable[[float, int, int], Schedule]] = {"linear": Linear, "trapezoid": Trapezoid}


@dataclasses.dataclass(frozen=True)
class AdEMAMix(Arm):
    """`optax.contrib.ademamix` in AdamW's place: Adam with a second, slow mean of the gradients.

    With m1 and v as in Adam, and a slow mean m2 <- b3 m2 + (1 - b3) g, a step is

        -rate ((m1 + alpha m2) / (sqrt(v) + eps) + weight decay w).

    alpha rises linearly from 0 over the run, and b3 from b1 so that the half-life of
    m2 rises linearly, as in the source.

    Attributes:
      alpha: at the run's end.
      memory: the steps that m2 looks back at the run's end, 1 / (1 - b3), as a share of the run's.

    References:
      Pagliardini, Ablin and Grangier, The AdEMAMix optimizer: better, faster, older, 2024.
    """

    alpha: float = 5.0
    memory: float = 0.1

    def fits(self, optimizer: str) -> bool:
        return optimizer == "adamw"

    def method(self, recipe: Recipe) -> Method:
        if not self.fits(recipe.optimizer):
            raise ValueError(
                "AdEMAMix takes the place of AdamW, and no other optimizer's: train it on pairs with adamw. "
                f"Got {recipe.optimizer}."
            )
        steps, b1 = recipe.epochs * recipe.steps_per_epoch, 0.9
        b3 = max(b1, 1 - 1 / max(1.0, self.memory * steps))

        def slow(count: jax.typing.ArrayLike) -> jax.Array:
            """The logs' harmonic interpolation is linear in the half-life log(0.5) / log(b)."""
            share = jnp.minimum(jnp.asarray(count) / steps, 1.0)
            return jnp.exp(1 / ((1 - share) / math.log(b1) + share / math.log(b3)))

        tx = optax.contrib.ademamix(
            recipe.schedule,
            b1=b1,
            b3=slow,
            alpha=lambda count: self.alpha * jnp.minimum(count / steps, 1.0),
            weight_decay=1e-4,  # optax.adamw's
        )
        return Method(tx, recipe.schedule)


class SnooState(NamedTuple):
    """The wrapped optimizer's state, the slow weights, their momentum, and the steps so far."""

    inner_state: Any
    slow: Any
    momentum: Any
    seen: jax.Array


@dataclasses.dataclass(frozen=True)
class Snoo(Arm):
    """Step-K Nesterov outer optimizer: every `period` steps, a Nesterov step from where the last one ended.

    With the slow weights s and the fast ones w, at every K-th step

        g = s - w;  b <- mu b + g;  s <- s - eta (g + mu b);  w <- s.

    Attributes:
      period: K, in steps.
      rate: eta, of the outer steps.
      momentum: mu.

    References:
      Kallusky et al., SNOO: Step-K Nesterov outer optimizer, 2025.
    """

    period: int = 30
    rate: float = 0.7
    momentum: float = 0.5

    def method(self, recipe: Recipe) -> Method:
        inner, eta, mu = recipe.inner(), self.rate, self.momentum

        def init(params: Any) -> SnooState:
            slow = jax.tree.map(jnp.copy, params)
            return SnooState(
                inner.init(params), slow, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32)
            )

        def outer(fast: Any, slow: Any, momentum: Any) -> tuple[Any, Any, Any]:
            momentum = jax.tree.map(lambda b, s, w: mu * b + (s - w), momentum, slow, fast)
            slow = jax.tree.map(lambda s, w, b: s - eta * ((s - w) + mu * b), slow, fast, momentum)
            return slow, slow, momentum

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, SnooState]:
            updates, inner_state = inner.update(updates, state.inner_state, params)
            fast = optax.apply_updates(params, updates)
            seen = state.seen + 1
            # A select, not a branch: that would have to copy what it passes through.
            due = seen % self.period == 0
            after = outer(fast, state.slow, state.momentum)
            fast, slow, momentum = jax.tree.map(
                lambda new, old: jnp.where(due, new, old), after, (fast, state.slow, state.momentum)
            )
            return optax.tree.sub(fast, params), SnooState(inner_state, slow, momentum, seen)

        return Method(optax.GradientTransformation(init, update), recipe.schedule)
