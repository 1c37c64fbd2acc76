"""Ideas that were tried against the library's rules and did not earn a place in it.

They stay here, small, so that their records in the screen can be made again:
acceptance rules, models of the dynamics, and what else could happen at a jump.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

import pdt_optax
from experiments.training.arms import Method, Predictive, Recipe, around
from experiments.training.watch import leaf_names
from pdt_optax.schedule import Pace


def _sum(rows: Iterable[Any]) -> Any:
    return functools.reduce(operator.add, list(rows))


@dataclasses.dataclass(frozen=True)
class votes(pdt_optax.Rule):  # noqa: N801
    """At least `least` of the window's differences, the last among them, have the sign of their mean."""

    least: int

    def __call__(self, increments, step, differences, reference, horizon):
        sign = jnp.sign(_sum(differences))
        count = _sum([(jnp.sign(d) == sign).astype(jnp.int32) for d in differences])
        return (count >= self.least) & (jnp.sign(step) == sign)


@dataclasses.dataclass(frozen=True)
class signal_to_noise(pdt_optax.Rule):  # noqa: N801
    """The window's mean difference is at least `least` standard errors from 0."""

    least: float
    minimum_window = 3

    def __call__(self, increments, step, differences, reference, horizon):
        count = len(differences)
        mean = _sum(differences) / count
        variance = _sum([(d - mean) ** 2 for d in differences]) / (count - 1)
        return count * mean**2 > self.least**2 * variance


@dataclasses.dataclass(frozen=True)
class backtest(pdt_optax.Rule):  # noqa: N801
    """The mean of the earlier differences would have predicted the last within `error` of its size."""

    error: float
    minimum_window = 3

    def __call__(self, increments, step, differences, reference, horizon):
        *earlier, last = list(differences)
        return jnp.abs(_sum(earlier) / len(earlier) - last) <= self.error * jnp.abs(last)


@dataclasses.dataclass(frozen=True)
class until(pdt_optax.Rule):  # noqa: N801
    """Another rule, but nothing from epoch `end` on."""

    rule: pdt_optax.Rule
    end: int

    def at(self, epoch: Any, leaf: Any) -> Any:
        rule = self.rule.at(epoch, leaf)

        def stopped(*given: Any) -> jax.Array:
            mask = rule(*given)
            return jnp.where(epoch < self.end, mask, jnp.zeros_like(mask))

        return stopped


Kind = Literal["plain", "total", "forward-backward", "disc"]


def _rank_one(differences: jax.Array, kind: Kind) -> tuple[jax.Array, jax.Array]:
    """A rank-1 model from the Gram matrix of the differences: its eigenvalue, and the newest as a sum of the older.

    Returns:
      The eigenvalue, (), and what the model sees of the last difference, (n - 1,): coefficients
      of all differences but the last.
    """
    older, cross, newer = differences[:-1, :-1], differences[:-1, 1:], differences[1:, 1:]
    if kind == "total":
        direction = jnp.linalg.eigh(older + newer)[1][:, -1]
        projection = jnp.outer(direction, direction)
        older, cross = projection @ older @ projection, projection @ cross @ projection
    values, vectors = jnp.linalg.eigh(older)
    right, square = vectors[:, -1], jnp.where(values[-1] > 0, values[-1], 1)
    seen = right @ cross  # U^T Y, times the singular value
    eigenvalue = seen @ right / square
    if kind == "forward-backward":
        length = seen @ seen
        backward = square * (right @ seen) / jnp.where(length > 0, length, 1)
        ratio = eigenvalue / jnp.where(backward != 0, backward, 1)
        eigenvalue = jnp.sign(eigenvalue) * jnp.sqrt(jnp.abs(ratio))
    elif kind == "disc":
        eigenvalue = jnp.clip(eigenvalue, 0, 1)
    return eigenvalue, right * (right @ differences[:-1, -1]) / square


@dataclasses.dataclass(frozen=True)
class difference_dmd(pdt_optax.Dynamics):  # noqa: N801
    """DMD on the differences alone, rank 1: a direction and one eigenvalue.

    Attributes:
      kind: "plain"; "total" least squares (Hemati et al., 2017); "forward-backward"
        (Dawson et al., 2016); "disc": plain, with the eigenvalue held to [0, 1].
    """

    kind: Kind
    fit: Literal["past", "current"] = "current"
    minimum_window = 3

    def __call__(
        self, gram: jax.Array, horizon: int, *, size: int, epsilon: float, epoch: jax.Array
    ) -> pdt_optax.Forecast:
        rest = pdt_optax.drift()(gram, horizon, size=size, epsilon=epsilon, epoch=epoch)
        eigenvalue, last = _rank_one(gram[1:, 1:], self.kind)
        powers = eigenvalue ** jnp.arange(1, horizon + 1)
        increments = jnp.zeros_like(rest.increments).at[:, 1:-1].set(powers[:, None] * last)
        eigenvalues = rest.eigenvalues.at[0].set(eigenvalue.astype(jnp.complex64))
        return rest._replace(increments=increments, eigenvalues=eigenvalues)


@dataclasses.dataclass(frozen=True)
class hybrid(pdt_optax.Dynamics):  # noqa: N801
    """`difference_dmd` where it would have predicted the last difference better than the mean of the others; else drift."""

    kind: Kind = "disc"
    fit: Literal["past", "current"] = "current"
    minimum_window = 4

    def __call__(
        self, gram: jax.Array, horizon: int, *, size: int, epsilon: float, epoch: jax.Array
    ) -> pdt_optax.Forecast:
        known = {"size": size, "epsilon": epsilon, "epoch": epoch}
        by_dmd, by_drift = (
            difference_dmd(self.kind)(gram, horizon, **known),
            pdt_optax.drift()(gram, horizon, **known),
        )
        differences = gram[1:, 1:]
        count = len(differences)
        eigenvalue, last = _rank_one(differences[:-1, :-1], self.kind)

        def error(prediction: jax.Array) -> jax.Array:
            residual = jnp.zeros(count, gram.dtype).at[: len(prediction)].set(-prediction).at[-1].set(1)
            return residual @ differences @ residual

        better = error(eigenvalue * last) < error(jnp.full(count - 1, 1 / (count - 1), gram.dtype))
        return jax.tree.map(functools.partial(jnp.where, better), by_dmd, by_drift)


@dataclasses.dataclass(frozen=True)
class held_dmd(pdt_optax.dmd):  # noqa: N801
    """`dmd` whose eigenvalues beyond the unit circle are moved back to it: no mode grows."""

    def fitted(self, w: Any, size: int, epsilon: float) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        keep, operator, modes, amplitudes = super().fitted(w, size, epsilon)
        finite = jnp.all(jnp.isfinite(operator))
        eigenvalues, vectors = jnp.linalg.eig(jnp.where(finite, operator, 0))
        held = eigenvalues / jnp.maximum(jnp.abs(eigenvalues), 1)
        # Real again: eigenvalues come in conjugate pairs, and are held in pairs.
        at_most_one = jnp.real(jnp.linalg.solve(vectors.T, (vectors * held).T).T)
        return keep, jnp.where(finite, at_most_one, operator), modes, amplitudes


@dataclasses.dataclass(frozen=True)
class AtJump(Predictive):
    """PDT, and something more at every jump.

    Attributes:
      moments: "reset" sets the optimizer's moments to zero.
      advance: the learning-rate schedule's count moves on by so many epochs.
    """

    moments: Literal["keep", "reset"] = "keep"
    advance: int = 0

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        return super().settings(recipe) | {"moments": self.moments, "advance": self.advance}

    def method(self, recipe: Recipe) -> Method:
        method = Predictive(self.name, self.given).method(recipe)
        assert method.end_epoch is not None
        predict = method.end_epoch

        def end_epoch(params: Any, state: Any, history: Any, value: jax.Array) -> tuple[Any, ...]:
            params, state, history, report = predict(params, state, history, value)
            if self.moments == "reset":
                state = optax.tree.map_params(method.tx, lambda m: jnp.where(report.predicted, 0, m), state)
            if self.advance:
                ahead = jnp.where(report.predicted, self.advance * recipe.steps_per_epoch, 0)
                state = _advanced(state, ahead)
            return params, state, history, report

        return method._replace(end_epoch=jax.jit(end_epoch))


def _advanced(state: Any, steps: jax.Array) -> Any:
    def is_schedule(x: Any) -> bool:
        return isinstance(x, optax.ScaleByScheduleState)

    def move(x: Any) -> Any:
        return x._replace(count=x.count + steps) if is_schedule(x) else x

    return jax.tree.map(move, state, is_leaf=is_schedule)


@dataclasses.dataclass(frozen=True)
class Shuffled(Predictive):
    """A control for `slow_drift`: its displacements, but from the optimizer's own past in random order.

    When, how far and how they are delivered is as predicted. The direction is the same
    exponential mean, which weighs not the newest displacements most, but random ones.

    Attributes:
      seed: of the orders.
    """

    seed: int = 0

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        return super().settings(recipe) | {"displacements": f"in random order, seed {self.seed}"}

    def method(self, recipe: Recipe) -> Method:
        settings = super().settings(recipe)
        predicts = around(recipe, settings)
        tx, model = predicts.made, settings["dynamics"]
        assert isinstance(tx, pdt_optax.PDT)

        def begin(params: Any, state: Any) -> Any:
            del state
            past = jax.tree.map(lambda w: jnp.zeros((recipe.epochs, *w.shape), w.dtype), params)
            return past, jnp.zeros(recipe.epochs), model.start().weight

        def end_epoch(params: Any, state: Any, kept: Any, value: jax.Array) -> tuple[Any, ...]:
            past, shares, weight = kept
            clock, delivered = state.history.clock, state.history.delivery
            epoch = clock.snapshots_seen - 1
            share = delivered.share(state.this_epoch.updates_seen)
            newest = state.history.snapshots[-1]
            own = jax.tree.map(lambda w, s, d: w - s - share * d, params, newest, delivered.displacement)
            past = jax.tree.map(lambda all_, d: all_.at[epoch].set(d), past, own)
            k, weight = model.rate(weight, epoch + 1)
            shares = ((1 - k) * shares).at[epoch].set(k)
            params, state, report = tx.end_epoch(params, state, value=value)

            places = jax.random.uniform(jax.random.fold_in(jax.random.key(self.seed), epoch), shares.shape)
            order = jnp.argsort(jnp.where(jnp.arange(recipe.epochs) <= epoch, places, 1.0))
            mean = jax.tree.map(lambda of: jnp.tensordot(shares, of[order], 1), past)
            held = model.inward(optax.tree.vdot(mean, params), optax.tree.vdot(params, params))
            mean = jax.tree.map(lambda m, w: m + held * w, mean, params)
            predicted = state.history.delivery.displacement
            length = optax.tree.norm(predicted) / jnp.maximum(optax.tree.norm(mean), 1e-30)
            shuffled = state.history.delivery._replace(displacement=optax.tree.scale(length, mean))
            state = state._replace(history=state.history._replace(delivery=shuffled))
            return params, state, (past, shares, weight), report

        return predicts._replace(begin=begin, end_epoch=jax.jit(end_epoch))


@dataclasses.dataclass(frozen=True)
class Refreshed(Predictive):
    """PDT, with BatchNorm's statistics estimated anew after every jump."""

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        return super().settings(recipe) | {"statistics": "refreshed"}

    def method(self, recipe: Recipe) -> Method:
        return Predictive(self.name, self.given).method(recipe)._replace(refreshes=True)


@dataclasses.dataclass(frozen=True)
class while_falling(pdt_optax.Schedule):  # noqa: N801
    """A schedule: predictions go on while the epochs' values fall, and pause while they rise."""

    needs_value = True

    def next(self, pace: Pace, value: jax.Array, jumped: jax.Array) -> Pace:
        del jumped
        rises = value > pace.value_before
        return pace._replace(interval_now=jnp.where(rises, jnp.iinfo(jnp.int32).max, 1))


@dataclasses.dataclass(frozen=True)
class Validated(Predictive):
    """PDT whose schedule and guard judge epochs by their validation loss."""

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        return super().settings(recipe) | {"judged by": "validation loss"}

    def method(self, recipe: Recipe) -> Method:
        return Predictive(self.name, self.given).method(recipe)._replace(validates=True)


@dataclasses.dataclass(frozen=True)
class LeafByLeaf(Predictive):
    """PDT with a model of its own for every leaf, instead of one for all."""

    groups: ClassVar[str] = "leaf"

    def group(self, leaf: str) -> str:
        """The leaves that one model is fitted to, by the name of one of them."""
        return leaf

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        return super().settings(recipe) | {"groups": self.groups}

    def method(self, recipe: Recipe) -> Method:
        settings = super().settings(recipe)
        predictor = pdt_optax.Predictor(**settings, dry_run=True)  # the clock and the window
        choice = {name: settings[name] for name in ("dynamics", "accept", "horizon")}

        def end_epoch(params: Any, state: Any, history: Any, value: jax.Array) -> tuple[Any, ...]:
            epoch, window = history.clock.snapshots_seen - 1, history.snapshots
            _, history, report = predictor.end_epoch(params, history, value=value)
            tree = jax.tree.structure(params)
            columns = [dict(zip(leaf_names(w), jax.tree.leaves(w), strict=True)) for w in (*window, params)]
            moved = dict(columns[-1])
            for group in dict.fromkeys(map(self.group, moved)):
                members = [name for name in moved if self.group(name) == group]
                *old, new = ({name: column[name] for name in members} for column in columns)
                after: Any = pdt_optax.predict_and_mask(old, new, step=epoch, **choice).params
                moved |= {name: jnp.where(report.predicted, after[name], new[name]) for name in members}
            params = tree.unflatten(moved.values())
            copy = jax.tree.map(jnp.copy, params)
            return params, state, history._replace(snapshots=(*history.snapshots[:-1], copy)), report

        method = Predictive(self.name, self.given).method(recipe)
        return method._replace(end_epoch=jax.jit(end_epoch), made=predictor)


@dataclasses.dataclass(frozen=True)
class PartByPart(LeafByLeaf):
    """PDT with a model for each part of each layer, such as an attention, and one for each module outside the layers.

    So does the released code for ViT-Huge.
    """

    groups: ClassVar[str] = "parts of layers"

    def group(self, leaf: str) -> str:
        module, *within = leaf.split("/")
        return "/".join([module, *within[:2]]) if within and within[0].isdigit() else module
