"""The one trainer: a config in, one record per epoch out."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pdt_optax
from experiments.arms import Arm, Method, Recipe
from experiments.checkpoints import Checkpoints, Saved
from experiments.data import Dataset, Split
from experiments.devices import ONE_DEVICE, Devices, check_batch
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
def _program(config: Config, devices: Devices = ONE_DEVICE) -> _Program:
    workload, method = config.workload, config.arm.method(config.recipe)
    graph = nnx.split(nnx.eval_shape(lambda: workload.model(nnx.Rngs(0))), nnx.Param, ...)[0]

    def init(key: jax.Array) -> _State:
        _, params, rest = nnx.split(workload.model(nnx.Rngs(key)), nnx.Param, ...)
        params, rest, losses = devices.weights((params, rest, jnp.zeros(())))
        opt_state = method.tx.init(params) if devices.mesh is None else jax.jit(start)(params)
        return _State(params, opt_state, rest, losses)

    def start(params: Any) -> Any:
        return devices.weights(method.tx.init(params))

    def losses(params: Any, rest: Any, x: jax.Array, y: jax.Array, key: Any = None) -> Any:
        model = nnx.merge(graph, params, rest, copy=True)  # the model may change the rest
        logits = model(workload.prepare(x), key)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
        return values, (logits, nnx.split(model, nnx.Param, ...)[2])

    def batch(inputs: jax.Array, targets: jax.Array, index: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return (inputs, targets) if index is None else (inputs[index], targets[index])

    def step(state: _State, inputs: jax.Array, targets: jax.Array, index: Any, key: jax.Array) -> _State:
        def loss(params: Any) -> Any:
            values, (_, rest) = losses(params, state.rest, *batch(inputs, targets, index), key)
            return values.mean(), rest

        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = method.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return devices.weights(_State(params, opt_state, rest, state.losses + value))

    def refresh(state: _State, inputs: jax.Array, targets: jax.Array, index: Any, key: jax.Array) -> _State:
        _, (_, rest) = losses(state.params, state.rest, *batch(inputs, targets, index), key)
        return state._replace(rest=devices.weights(rest))

    def evaluate(params: Any, rest: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        values, (logits, _) = losses(params, rest, x, y)
        real = y >= 0
        sums = jnp.stack([jnp.sum(values * real), jnp.sum((logits.argmax(-1) == y) & real)])
        return devices.everywhere(sums)

    evaluated = jax.jit(method.evaluated) if method.evaluated else lambda params, _: params
    step, refresh = (jax.jit(f, donate_argnums=0) for f in (step, refresh))
    return _Program(method, init, step, refresh, jax.jit(evaluate), evaluated)


def train(
    config: Config,
    dataset: Dataset,
    devices: Devices = ONE_DEVICE,
    checkpoints: Checkpoints | None = None,
) -> Iterator[dict[str, Any]]:
    """Trains a model and yields one record after each epoch.

    Compilation is done and timed beforehand; the clock of an epoch runs over
    its training steps and, apart, over all that the arm does at its end. With
    `checkpoints`, the run goes on from the latest: the records up to it come first.

    Yields:
      Dictionaries of plain numbers: `epoch` (from 1), `train_loss` (mean over
      the epoch's batches, dropout on), `validation_loss`, `validation_accuracy`,
      `learning_rate` (of the epoch's last step), `train_seconds`, `pdt_seconds`,
      `compile_seconds` (in the first record, else 0), `predicted`,
      `accepted_share`, `horizon`; and, where the workload has a probe,
      `probe_loss`: at the epoch's end on the first training examples, at the
      weights that are validated.

    Raises:
      ValueError: if the data is not of the size that the workload expects, or
        the devices cannot share a batch evenly.
    """
    workload, steps = config.workload, config.workload.epoch_steps
    examples = len(dataset.train.targets)
    if examples != workload.train_examples or steps * workload.batch_size > examples:
        raise ValueError(
            "The data must have the training examples that the workload takes: "
            f"{max(workload.train_examples, steps * workload.batch_size)}. Got {examples}."
        )
    check_batch(workload.batch_size, devices)
    program = _program(dataclasses.replace(config, seed=0), devices)
    method = program.method

    model_key, order_key, dropout_key = jax.random.split(jax.random.key(config.seed), 3)
    state = program.init(model_key)
    epochs: list[dict[str, Any]] = []
    if checkpoints and (saved := checkpoints.latest(state, method.tx)):
        state, epochs = saved.state, saved.epochs
        order_key, dropout_key = (_key(saved.position[name]) for name in ("order_key", "dropout_key"))
    yield from epochs
    if len(epochs) == config.epochs:
        return

    batches = _Batches(dataset.train, devices)
    validation = _evaluation_batches(dataset.test, devices)
    probe = _evaluation_batches(dataset.train.first(workload.probe_examples), devices)

    # What the steps do not need stays out of their way between two epochs' ends.
    def detach(state: _State) -> tuple[_State, Any]:
        if not isinstance(method.tx, pdt_optax.PDT):
            return state, None
        opt_state, detached = pdt_optax.detach(state.opt_state)
        return state._replace(opt_state=opt_state), detached

    def attach(state: _State, detached: Any) -> _State:
        return state._replace(opt_state=pdt_optax.attach(state.opt_state, detached)) if detached else state

    def end_epoch(state: _State, detached: Any, order: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
        value, report = state.losses / steps, None
        if method.end_epoch is not None:
            state = attach(state, detached)
            params, opt_state, report = method.end_epoch(state.params, state.opt_state, value)
            state = state._replace(params=params, opt_state=opt_state)
            if method.refreshes and report.predicted:
                for index, key in zip(*order, strict=True):
                    state = program.refresh(state, *batches(index), key)
        state, detached = detach(state._replace(losses=jnp.zeros_like(value)))
        return state, detached, value, report

    def evaluate(state: _State) -> dict[str, float]:
        weights = program.evaluated(state.params, state.opt_state)
        loss, accuracy = _means(program.evaluate, weights, state.rest, validation)
        probed = {"probe_loss": _means(program.evaluate, weights, state.rest, probe)[0]} if probe else {}
        return {"validation_loss": loss, "validation_accuracy": accuracy} | probed

    def epoch_order(epoch: int) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(order_key, epoch)
        order = jax.random.permutation(key, examples)[: steps * workload.batch_size]
        return order.reshape(steps, -1), jax.random.split(jax.random.fold_in(dropout_key, epoch), steps)

    state, detached = detach(state)

    # One rehearsal on copies compiles everything.
    started = time.perf_counter()
    order = epoch_order(0)
    copy, detached_copy = jax.tree.map(jnp.copy, (state, detached))
    rehearsal = program.step(copy, *batches(order[0][0]), order[1][0])
    rehearsal, *_ = end_epoch(rehearsal, detached_copy, order)
    evaluate(rehearsal)
    del rehearsal, copy, detached_copy
    compile_seconds = time.perf_counter() - started

    for epoch in range(len(epochs), config.epochs):
        started = time.perf_counter()
        order = epoch_order(epoch)
        for index, key in zip(*order, strict=True):
            state = program.step(state, *batches(index), key)
        jax.block_until_ready(state.losses)
        trained = time.perf_counter()
        state, detached, value, report = jax.block_until_ready(end_epoch(state, detached, order))
        ended = time.perf_counter()
        record = {
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
        epochs.append(record)
        if checkpoints:
            position = {
                "epochs": epoch + 1,
                "order_key": _numbers(order_key),
                "dropout_key": _numbers(dropout_key),
            }
            last = epoch + 1 == config.epochs
            checkpoints.save(epoch + 1, Saved(attach(state, detached), position, epochs), last)
        yield record


def _numbers(key: jax.Array) -> list[int]:
    return jax.random.key_data(key).tolist()


def _key(numbers: Sequence[int]) -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(numbers, jnp.uint32))


class _Batches:
    """The training data, as arguments of a step.

    One process keeps it all on its devices, where a step picks its batch. Of
    several, each hands its devices their rows of every batch.
    """

    def __init__(self, split: Split, devices: Devices):
        self.split, self.devices = split, devices
        if jax.process_count() == 1:
            self.resident = devices.everywhere(jax.device_put(tuple(split)))

    def __call__(self, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Inputs, targets, and the numbers of the batch's examples in them; None for all."""
        if jax.process_count() == 1:
            return (*self.resident, self.devices.index(index))
        inputs, targets = (self.devices.batch(x, np.asarray(index)) for x in self.split)
        return inputs, targets, None


def memory(config: Config) -> pdt_optax.Memory | None:
    """What the run will hold besides data, gradients and activations; None if its arm is not PDT."""
    tx = config.arm.method(config.recipe).tx
    if not isinstance(tx, pdt_optax.PDT):
        return None
    model = nnx.eval_shape(lambda: config.workload.model(nnx.Rngs(0)))
    return pdt_optax.memory(nnx.as_pure(nnx.state(model, nnx.Param)), tx)


def _rate(schedule: Schedule, step: int) -> float:
    return float(np.asarray(schedule(step)))


def _evaluation_batches(
    split: Split, devices: Devices
) -> tuple[int, list[tuple[jax.Array, jax.Array]]] | None:
    """How many targets there are, and a split as batches of one shape, padded; None if it is empty."""
    examples, shards = len(split.targets), devices.batch_shards
    if examples == 0:
        return None
    size = -(-min(examples, 512) // shards) * shards

    def batches(x: np.ndarray, value: int) -> list[jax.Array]:
        widths = [(0, -examples % size)] + [(0, 0)] * (x.ndim - 1)
        padded = np.pad(x, widths, constant_values=value)
        return [devices.batch(part) for part in np.split(padded, len(padded) // size)]

    return split.targets.size, list(zip(batches(split.inputs, 0), batches(split.targets, -1), strict=True))


def _means(evaluate: Callable[..., jax.Array], params: Any, rest: Any, batches: Any) -> tuple[float, float]:
    """Mean loss and accuracy over a split."""
    count, arrays = batches
    totals = np.sum([evaluate(params, rest, *batch) for batch in arrays], axis=0)
    return float(totals[0] / count), float(totals[1] / count)
