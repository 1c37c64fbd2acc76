"""The one trainer: a config in, one record per epoch out."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pdt_optax
from experiments.arms import Arm, Method, Recipe
from experiments.data import Dataset, Split
from experiments.optimizers import OPTIMIZERS, SCHEDULES, Schedule
from experiments.workloads import Workload


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run depends on.

    Attributes:
      workload: data, model and batch size.
      arm: what is done besides the optimizer; "baseline" is nothing.
      optimizer, learning_rate, schedule: names in `optimizers`, and the peak rate.
      epochs: of `workload.epoch_steps` steps each.
      seed: of the initial weights, the data order and the dropout.
    """

    workload: Workload
    arm: Arm
    optimizer: str
    learning_rate: float
    schedule: str
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        _check_name("optimizer", self.optimizer, OPTIMIZERS)
        _check_name("schedule", self.schedule, SCHEDULES)
        for name in ("learning_rate", "epochs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive. Got {getattr(self, name)}.")

    @property
    def rule(self) -> str:
        """The arm's name."""
        return self.arm.name

    @property
    def recipe(self) -> Recipe:
        """What the arm may know of the run."""
        steps = self.workload.epoch_steps
        schedule = SCHEDULES[self.schedule](self.learning_rate, self.epochs * steps)
        return Recipe(self.optimizer, schedule, self.epochs, steps)

    @property
    def settings(self) -> dict[str, Any]:
        """What the arm means here; empty for the baseline."""
        return self.arm.settings(self.recipe)

    @property
    def fields(self) -> dict[str, Any]:
        """The config as plain values, without the arm's settings."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[2:]}
        return self.workload.fields | {"rule": self.rule} | own

    @property
    def key(self) -> str:
        """A hash of the config and of what its arm means today."""
        text = json.dumps(self.fields | {"settings": repr(self.settings)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_name(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"There is no {name} {value!r}. There are {', '.join(known)}.")


class _State(NamedTuple):
    """What a run carries from step to step: weights, optimizer state, the rest of the model, summed loss."""

    params: Any
    opt_state: Any
    rest: Any
    losses: jax.Array


class _Program(NamedTuple):
    """A config's functions, seeds apart; every seed of a config shares their compiled code."""

    method: Method
    init: Callable[[jax.Array], _State]
    step: Callable[..., _State]
    refresh: Callable[..., _State]
    evaluate: Callable[..., jax.Array]
    evaluated: Callable[[Any, Any], Any]


@functools.lru_cache(maxsize=1)
def _program(config: Config) -> _Program:
    workload, method = config.workload, config.arm.method(config.recipe)
    graph = nnx.split(nnx.eval_shape(lambda: workload.model(nnx.Rngs(0))), nnx.Param, ...)[0]

    def init(key: jax.Array) -> _State:
        _, params, rest = nnx.split(workload.model(nnx.Rngs(key)), nnx.Param, ...)
        return _State(params, method.tx.init(params), rest, jnp.zeros(()))

    def losses(params: Any, rest: Any, x: jax.Array, y: jax.Array, key: Any = None) -> Any:
        model = nnx.merge(graph, params, rest, copy=True)  # the model may change the rest
        logits = model(workload.prepare(x), key)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
        return values, (logits, nnx.split(model, nnx.Param, ...)[2])

    def step(state: _State, inputs: jax.Array, targets: jax.Array, index: jax.Array, key: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            values, (_, rest) = losses(params, state.rest, inputs[index], targets[index], key)
            return values.mean(), rest

        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = method.tx.update(grads, state.opt_state, state.params)
        return _State(optax.apply_updates(state.params, updates), opt_state, rest, state.losses + value)

    def refresh(
        state: _State, inputs: jax.Array, targets: jax.Array, index: jax.Array, key: jax.Array
    ) -> Any:
        _, (_, rest) = losses(state.params, state.rest, inputs[index], targets[index], key)
        return state._replace(rest=rest)

    def evaluate(params: Any, rest: Any, inputs: jax.Array, targets: jax.Array, start: jax.Array) -> Any:
        x, y = (jax.lax.dynamic_slice_in_dim(a, start, _evaluation_size(a)) for a in (inputs, targets))
        values, (logits, _) = losses(params, rest, x, y)
        real = y >= 0
        return jnp.stack([jnp.sum(values * real), jnp.sum((logits.argmax(-1) == y) & real)])

    evaluated = jax.jit(method.evaluated) if method.evaluated else lambda params, _: params
    step, refresh = (jax.jit(f, donate_argnums=0) for f in (step, refresh))
    return _Program(method, init, step, refresh, jax.jit(evaluate), evaluated)


def train(config: Config, dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Trains a model and yields one record after each epoch.

    Compilation is done and timed beforehand; the clock of an epoch runs over
    its training steps and, apart, over all that the arm does at its end.

    Yields:
      Dictionaries of plain numbers: `epoch` (from 1), `train_loss` (mean over
      the epoch's batches, dropout on), `validation_loss`, `validation_accuracy`,
      `learning_rate` (of the epoch's last step), `train_seconds`, `pdt_seconds`,
      `compile_seconds` (in the first record, else 0), `predicted`,
      `accepted_share`, `horizon`; and, where the workload has a probe,
      `probe_loss`: at the epoch's end on the first training examples, at the
      weights that are validated.

    Raises:
      ValueError: if the data is not of the size that the workload expects.
    """
    workload, steps = config.workload, config.workload.epoch_steps
    examples = len(dataset.train.targets)
    if examples != workload.train_examples or steps * workload.batch_size > examples:
        raise ValueError(
            "The data must have the training examples that the workload takes: "
            f"{max(workload.train_examples, steps * workload.batch_size)}. Got {examples}."
        )
    program = _program(dataclasses.replace(config, seed=0))
    method = program.method

    model_key, order_key, dropout_key = jax.random.split(jax.random.key(config.seed), 3)
    state = program.init(model_key)
    inputs, targets = (jax.device_put(x) for x in dataset.train)
    validation = _evaluation_arrays(dataset.test)
    probe = _evaluation_arrays(dataset.train.first(workload.probe_examples))

    # What the steps do not need stays out of their way between two epochs' ends.
    def detach(state: _State) -> tuple[_State, Any]:
        if not isinstance(method.tx, pdt_optax.PDT):
            return state, None
        opt_state, detached = pdt_optax.detach(state.opt_state)
        return state._replace(opt_state=opt_state), detached

    def end_epoch(state: _State, detached: Any, batches: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
        value, report = state.losses / steps, None
        if method.end_epoch is not None:
            opt_state = pdt_optax.attach(state.opt_state, detached) if detached else state.opt_state
            params, opt_state, report = method.end_epoch(state.params, opt_state, value)
            state = state._replace(params=params, opt_state=opt_state)
            if method.refreshes and report.predicted:
                for index, key in zip(*batches, strict=True):
                    state = program.refresh(state, inputs, targets, index, key)
        state, detached = detach(state._replace(losses=jnp.zeros(())))
        return state, detached, value, report

    def evaluate(state: _State) -> dict[str, float]:
        weights = program.evaluated(state.params, state.opt_state)
        loss, accuracy = _means(program.evaluate, weights, state.rest, validation)
        probed = {"probe_loss": _means(program.evaluate, weights, state.rest, probe)[0]} if probe else {}
        return {"validation_loss": loss, "validation_accuracy": accuracy} | probed

    def epoch_batches(epoch: int) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(order_key, epoch)
        order = jax.random.permutation(key, examples)[: steps * workload.batch_size]
        return order.reshape(steps, -1), jax.random.split(jax.random.fold_in(dropout_key, epoch), steps)

    state, detached = detach(state)

    # One rehearsal on copies compiles everything.
    started = time.perf_counter()
    batches = epoch_batches(0)
    copy, detached_copy = jax.tree.map(jnp.copy, (state, detached))
    rehearsal = program.step(copy, inputs, targets, batches[0][0], batches[1][0])
    rehearsal, *_ = end_epoch(rehearsal, detached_copy, batches)
    evaluate(rehearsal)
    del rehearsal, copy, detached_copy
    compile_seconds = time.perf_counter() - started

    for epoch in range(config.epochs):
        started = time.perf_counter()
        batches = epoch_batches(epoch)
        for index, key in zip(*batches, strict=True):
            state = program.step(state, inputs, targets, index, key)
        jax.block_until_ready(state.losses)
        trained = time.perf_counter()
        state, detached, value, report = jax.block_until_ready(end_epoch(state, detached, batches))
        ended = time.perf_counter()
        yield {
            "epoch": epoch + 1,
            "train_loss": float(value),
            **evaluate(state),
            "learning_rate": _rate(method.schedule, (epoch + 1) * steps - 1),
            "train_seconds": trained - started,
            "pdt_seconds": ended - trained if method.end_epoch is not None else 0.0,
            "compile_seconds": compile_seconds if epoch == 0 else 0.0,
            "predicted": bool(report.predicted) if report is not None else False,
            "accepted_share": float(report.accepted_share) if report is not None else 0.0,
            "horizon": int(report.horizon) if report is not None else 0,
        }


def memory(config: Config) -> pdt_optax.Memory | None:
    """What the run will hold besides data, gradients and activations; None if its arm is not PDT."""
    tx = config.arm.method(config.recipe).tx
    if not isinstance(tx, pdt_optax.PDT):
        return None
    model = nnx.eval_shape(lambda: config.workload.model(nnx.Rngs(0)))
    return pdt_optax.memory(nnx.as_pure(nnx.state(model, nnx.Param)), tx)


def _rate(schedule: Schedule, step: int) -> float:
    return float(np.asarray(schedule(step)))


def _evaluation_size(array: jax.Array) -> int:
    return min(len(array), 512)


def _evaluation_arrays(split: Split) -> tuple[int, jax.Array, jax.Array] | None:
    """How many targets there are, and a split padded to batches of one shape; None if it is empty."""
    if len(split.targets) == 0:
        return None
    padding = -len(split.targets) % min(len(split.targets), 512)

    def pad(x: np.ndarray, value: int) -> jax.Array:
        widths = [(0, padding)] + [(0, 0)] * (x.ndim - 1)
        return jax.device_put(np.pad(x, widths, constant_values=value))

    return split.targets.size, pad(split.inputs, 0), pad(split.targets, -1)


def _means(evaluate: Callable[..., jax.Array], params: Any, rest: Any, arrays: Any) -> tuple[float, float]:
    """Mean loss and accuracy over a split."""
    count, inputs, targets = arrays
    starts = range(0, len(targets), _evaluation_size(targets))
    totals = np.sum([evaluate(params, rest, inputs, targets, i) for i in starts], axis=0)
    return float(totals[0] / count), float(totals[1] / count)
