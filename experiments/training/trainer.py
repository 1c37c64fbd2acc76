"""The one trainer: a config in, one record per epoch out."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pdt_optax
from experiments.data.datasets import Dataset
from experiments.models import simsiam
from experiments.training import feed, watch
from experiments.training.arms import Arm, Method, Recipe
from experiments.training.checkpoints import Checkpoints, Saved
from experiments.training.devices import ONE_DEVICE, Devices, check_batch, padded, resized
from experiments.training.flops import flops
from experiments.training.optimizers import OPTIMIZERS, SCHEDULES, Schedule
from experiments.training.plain import changed, plain
from experiments.training.workloads import Workload, check_name


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run depends on.

    Attributes:
      workload: data, model and batch size.
      arm: what is done besides the optimizer; "baseline" is nothing.
      optimizer, learning_rate, schedule: names in `optimizers`, and the peak rate.
      epochs: of `workload.epoch_steps` steps each.
      seed: of the initial weights, the data order and the dropout.
      watch: what is kept besides the usual records, names in `watch.KINDS`.
    """

    workload: Workload
    arm: Arm
    optimizer: str
    learning_rate: float
    schedule: str
    epochs: int
    seed: int
    watch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        check_name("schedule", self.schedule, SCHEDULES)
        for kind in self.watch:
            check_name("watch", kind, watch.KINDS)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"`learning_rate` must be positive and finite. Got {self.learning_rate}.")
        if not (isinstance(self.epochs, int) and self.epochs > 0):
            raise ValueError(f"`epochs` must be a whole number of 1 or more. Got {self.epochs!r}.")
        if not (isinstance(self.seed, int) and 0 <= self.seed < 2**32):
            raise ValueError(
                f"`seed` must be a whole number from 0 to 2**32 - 1: jax takes others for one of these. Got {self.seed!r}."
            )

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
        """The config as plain values, those at their defaults left out: all that a record's key is made of."""
        own = {name: value for name, value in changed(self).items() if name not in ("workload", "arm")}
        unchanged = {f.name for f in dataclasses.fields(self.arm)} - changed(self.arm).keys()
        settings = {name: value for name, value in self.settings.items() if name not in unchanged}
        return plain(self.workload.fields | {"rule": self.rule} | own | {"settings": settings})

    @property
    def program(self) -> "Config":
        """What of the config is compiled."""
        return dataclasses.replace(self, seed=0, watch=())

    @property
    def key(self) -> str:
        """A hash of the config and of what its arm means today."""
        return key_of(self.fields)


def key_of(fields: Mapping[str, Any]) -> str:
    """A hash of a config's plain values."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


class _State(NamedTuple):
    """What a run carries: weights, optimizer state, the rest of the model, summed loss.

    And what its arm keeps between epochs, such as a history of snapshots: None while steps run.
    """

    params: Any
    opt_state: Any
    rest: Any
    losses: jax.Array
    kept: Any = None


class _Program(NamedTuple):
    """A config's functions, seeds apart; every seed of a config shares their compiled code."""

    method: Method
    init: Callable[..., _State]
    loss: Callable[..., Any]
    step: Callable[..., _State]
    refresh: Callable[..., _State]
    evaluate: Callable[..., jax.Array]
    evaluated: Callable[[Any, Any, Any], Any]
    features: Callable[[Any, Any, jax.Array], jax.Array] | None
    size: int  # of the weights, without what they are padded with


@functools.lru_cache(maxsize=1)
def _program(config: Config, devices: Devices = ONE_DEVICE) -> _Program:
    workload, method = config.workload, config.arm.method(config.recipe)
    graph, shapes, _ = nnx.split(nnx.eval_shape(lambda: workload.model(nnx.Rngs(0))), nnx.Param, ...)

    def init(key: jax.Array, parts: int = devices.parts) -> _State:
        _, params, rest = nnx.split(workload.model(nnx.Rngs(key)), nnx.Param, ...)
        params = jax.tree.map(lambda x: resized(x, padded(x.shape, parts)), params)
        params, rest, losses = devices.weights((params, rest, jnp.zeros(())))
        opt_state, kept = start(params) if devices.mesh is None else jax.jit(start)(params)
        return _State(params, opt_state, rest, losses, kept)

    def start(params: Any) -> Any:
        opt_state = method.tx.init(params)
        return devices.weights((opt_state, method.begin(params, opt_state) if method.begin else None))

    def losses(params: Any, rest: Any, x: jax.Array, y: jax.Array, key: Any = None) -> Any:
        # The model may change the rest.
        model = nnx.merge(graph, devices.whole(params, shapes), rest, copy=True)
        values, right = workload.losses(model, x, y, key)
        return values, (right, nnx.split(model, nnx.Param, ...)[2])

    def batch(inputs: jax.Array, targets: jax.Array, index: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return (inputs, targets) if index is None else (inputs[index], targets[index])

    def loss(params: Any, rest: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        values, (_, rest) = losses(params, rest, x, y, key)
        return values.mean(), rest

    def gradient(params: Any, rest: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        """The mean loss of a batch and its gradient, and the rest of the model after it."""
        of_batch, count = jax.value_and_grad(loss, has_aux=True), workload.accumulate
        if count == 1:
            (value, rest), grads = of_batch(params, rest, x, y, key)
            return (value, grads), rest

        def add(carry: Any, part: Any) -> Any:
            sums, rest = carry
            (value, rest), grads = of_batch(params, rest, *part)
            return (devices.weights(jax.tree.map(jnp.add, sums, (value, grads))), rest), None

        # Every so many-th example: of each part, a device has as much as of the whole.
        x, y = (z.reshape(-1, count, *z.shape[1:]).swapaxes(0, 1) for z in (x, y))
        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        (sums, rest), _ = jax.lax.scan(add, (zeros, rest), (x, y, jax.random.split(key, count)))
        return jax.tree.map(lambda z: z / count, sums), rest

    def step(state: _State, inputs: jax.Array, targets: jax.Array, index: Any, key: jax.Array) -> _State:
        x, y = batch(inputs, targets, index)
        (value, grads), rest = gradient(state.params, state.rest, x, y, key)
        updates, opt_state = method.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return devices.weights(_State(params, opt_state, rest, state.losses + value))

    def refresh(state: _State, inputs: jax.Array, targets: jax.Array, index: Any, key: jax.Array) -> _State:
        _, (_, rest) = losses(state.params, state.rest, *batch(inputs, targets, index), key)
        return state._replace(rest=devices.weights(rest))

    def evaluate(params: Any, rest: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        values, (right, _) = losses(params, rest, x, y)
        real = y >= 0
        return devices.everywhere(jnp.stack([jnp.sum(values * real), jnp.sum(right * real)]))

    def features(params: Any, rest: Any, x: jax.Array) -> jax.Array:
        assert workload.features is not None
        model = nnx.merge(graph, devices.whole(params, shapes), rest, copy=True)
        return devices.everywhere(workload.features(model, x))

    evaluated = jax.jit(method.evaluated) if method.evaluated else lambda params, *_: params
    step, refresh = (jax.jit(f, donate_argnums=0) for f in (step, refresh))
    probed = jax.jit(features) if workload.features else None
    size = sum(x.size for x in jax.tree.leaves(shapes))
    return _Program(method, init, loss, step, refresh, jax.jit(evaluate), evaluated, probed, size)


def train(
    config: Config,
    dataset: Dataset,
    devices: Devices = ONE_DEVICE,
    checkpoints: Checkpoints | None = None,
    arrays: dict[str, np.ndarray] | None = None,
) -> Iterator[dict[str, Any]]:
    """Trains a model and yields one record after each epoch.

    Compilation is done and timed beforehand; the clock of an epoch runs over
    its training steps and, apart, over all that the arm does at its end. With
    `checkpoints`, the run goes on from the latest, at the step after it and with the
    batches that would have come: the records up to it come first.

    Yields:
      Dictionaries of plain numbers: `epoch` (from 1), `train_loss` (mean over
      the epoch's batches, dropout on), `validation_loss`, `validation_accuracy`,
      `learning_rate` (of the epoch's last step), `train_seconds`, `pdt_seconds`,
      `compile_seconds` (in the first record, else 0), `predicted`,
      `accepted_share`, `horizon`; of a running mean `persistence`, `alignment` and
      `gain`; and, where the workload has a probe,
      `probe_loss`: at the epoch's end on the first training examples, at the
      weights that are validated. Whatever else the config watches is in the records
      or, before the last of them, in `arrays`.

    Raises:
      ValueError: if the data is not of the size that the workload expects, or
        the devices cannot share a batch evenly.
    """
    with contextlib.ExitStack() as stack:
        yield from _train(config, dataset, devices, checkpoints, {} if arrays is None else arrays, stack)


def _train(
    config: Config,
    dataset: Dataset,
    devices: Devices,
    checkpoints: Checkpoints | None,
    arrays: dict[str, np.ndarray],
    stack: contextlib.ExitStack,
) -> Iterator[dict[str, Any]]:
    workload, steps = config.workload, config.workload.epoch_steps
    examples = dataset.train.examples
    if examples != workload.train_examples or steps * workload.batch_size > examples:
        raise ValueError(
            "The data must have the training examples that the workload takes: "
            f"{max(workload.train_examples, steps * workload.batch_size)}. Got {examples}."
        )
    check_batch(workload.batch_size, devices, workload.accumulate)
    program = _program(config.program, devices)
    method = program.method

    model_key, order_key, dropout_key = jax.random.split(jax.random.key(config.seed), 3)
    state = program.init(model_key)
    epochs: list[dict[str, Any]] = []
    start, seconds = 0, 0.0  # steps of the first epoch that are trained already, and what they took

    def shaped(parts: int) -> Any:
        return jax.eval_shape(functools.partial(program.init, parts=parts), model_key)

    if checkpoints and (saved := checkpoints.latest(state, method.made, shaped)):
        state, epochs = saved.state, saved.epochs
        start, seconds = saved.position.get("steps", 0), saved.position.get("seconds", 0.0)
        order_key, dropout_key = (_key(saved.position[name]) for name in ("order_key", "dropout_key"))
    yield from epochs
    if len(epochs) == config.epochs:
        return

    batches = feed.training(dataset.train, workload, devices, order_key, stack)
    validation = feed.evaluation(dataset.test, devices, stack)
    training = feed.evaluation(dataset.train, devices, stack) if program.features else None
    probe = feed.evaluation(dataset.train.first(workload.probe_examples), devices, stack)
    points = feed.evaluation(dataset.train.first(watch.POINTS), devices, stack) if config.watch else None

    def keys_of(epoch: int) -> jax.Array:
        return jax.random.split(jax.random.fold_in(dropout_key, epoch), steps)

    def end_epoch(state: _State, kept: Any, epoch: int) -> tuple[Any, ...]:
        value, report = state.losses / steps, None
        if method.end_epoch is not None:
            judged = jnp.asarray(evaluate(state, kept)["validation_loss"]) if method.validates else value
            params, opt_state, kept, report = method.end_epoch(state.params, state.opt_state, kept, judged)
            state = state._replace(params=params, opt_state=opt_state)
            if method.refreshes and report.predicted:
                for batch, key in zip(batches.epoch(epoch), keys_of(epoch), strict=True):
                    state = program.refresh(state, *batch, key)
        return state._replace(losses=jnp.zeros_like(value)), kept, value, report

    def evaluate(state: _State, kept: Any) -> dict[str, float]:
        weights = program.evaluated(state.params, state.opt_state, kept)
        loss, accuracy = _means(program.evaluate, weights, state.rest, validation)
        if program.features:
            x, x_test = (
                _features(program.features, weights, state.rest, part) for part in (training, validation)
            )
            accuracy = simsiam.linear_probe(x, dataset.train.targets, x_test, dataset.test.targets)
        probed = {"probe_loss": _means(program.evaluate, weights, state.rest, probe)[0]} if probe else {}
        return {"validation_loss": loss, "validation_accuracy": accuracy} | probed

    def loss_at(weights: Any) -> float:
        return _means(program.evaluate, weights, state.rest, points)[0]

    def save(state: _State, step: int, seconds: float) -> None:
        """Saves the run as it is, so many steps after its last record."""
        assert checkpoints is not None
        keys = {"order_key": _numbers(order_key), "dropout_key": _numbers(dropout_key)}
        position = {"epochs": len(epochs), "steps": step, "seconds": seconds, "parts": devices.parts, **keys}
        last = len(epochs) == config.epochs
        saved = Saved(devices.shared(state._replace(kept=kept)), position, epochs)
        checkpoints.save(len(epochs) * steps + step, saved, last)

    # A report counts what weights are padded with, too, which never moves.
    padding = sum(x.size for x in jax.tree.leaves(state.params)) / program.size
    watched = watch.Watch(config.watch, config.epochs, state.params, arrays)
    state, kept = state._replace(kept=None), state.kept  # out of the steps' way

    # One rehearsal on copies compiles everything.
    started = time.perf_counter()
    rehearsal, kept_copy = jax.tree.map(jnp.copy, (state, kept))
    rehearsal = program.step(rehearsal, *batches.peek(len(epochs), start), keys_of(0)[0])
    rehearsal, kept_copy, *_ = end_epoch(rehearsal, kept_copy, 0)
    evaluate(rehearsal, kept_copy)
    del rehearsal, kept_copy
    compile_seconds = time.perf_counter() - started

    for epoch in range(len(epochs), config.epochs):
        started = time.perf_counter() - seconds
        ahead = zip(batches.epoch(epoch, start), keys_of(epoch)[start:], strict=True)
        for step, (batch, key) in enumerate(ahead, start + 1):
            state = program.step(state, *batch, key)
            if checkpoints and step < steps and checkpoints.due_within(step):
                jax.block_until_ready(state.losses)
                seconds = time.perf_counter() - started
                save(state, step, seconds)
                started = time.perf_counter() - seconds
        start, seconds = 0, 0.0
        jax.block_until_ready(state.losses)
        trained = time.perf_counter()
        before = watched.before_end(state.params)
        began = time.perf_counter()
        state, kept, value, report = jax.block_until_ready(end_epoch(state, kept, epoch))
        ended = time.perf_counter()
        record = {
            "epoch": epoch + 1,
            "train_loss": float(value),
            **evaluate(state, kept),
            "learning_rate": _rate(method.schedule, (epoch + 1) * steps - 1),
            "train_seconds": trained - started,
            "pdt_seconds": ended - began if method.end_epoch is not None else 0.0,
            "compile_seconds": compile_seconds if epoch == 0 else 0.0,
            "predicted": bool(report.predicted) if report is not None else False,
            "accepted_share": float(report.accepted_share) * padding if report is not None else 0.0,
            "horizon": int(report.horizon) if report is not None else 0,
            **_motion(report),
            **watched.after_end(epoch + 1, before, state.params, report),
        }
        epochs.append(record)
        if epoch + 1 == config.epochs:
            watched.finish(state.params, loss_at)
        if checkpoints:
            save(state, 0, 0.0)
        yield record


def _numbers(key: jax.Array) -> list[int]:
    return jax.random.key_data(key).tolist()


def _key(numbers: Sequence[int]) -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(numbers, jnp.uint32))


def memory(config: Config) -> pdt_optax.Memory | None:
    """What the run will hold besides data, gradients and activations; None if its arm is not PDT."""
    method = config.arm.method(config.recipe)
    if method.made is None:
        return None
    model = nnx.eval_shape(lambda: config.workload.model(nnx.Rngs(0)))
    return pdt_optax.memory(method.made, nnx.state(model, nnx.Param), optimizer=method.tx)


def operations(config: Config) -> dict[str, float]:
    """Floating-point operations of a training step and of an epoch's end, told from shapes. See `flops.flops`."""
    program, workload = _program(config.program), config.workload
    state: Any = jax.eval_shape(program.init, jax.random.key(0))
    inputs, targets = workload.load().train.spec(workload.batch_size)
    end = program.method.end_epoch
    return {
        "step": flops(
            lambda s, x, y, k: program.step(s, x, y, None, k), state, inputs, targets, jax.random.key(0)
        ),
        "boundary": flops(end, state.params, state.opt_state, state.kept, state.losses) if end else 0.0,
    }


def _motion(report: Any) -> dict[str, float]:
    """What a running mean says of the path; empty for all else."""
    if report is None or not float(report.gain) > 0:
        return {}
    names = ("persistence", "alignment", "gain")
    return {name: float(np.nan_to_num(getattr(report, name))) for name in names}


def _rate(schedule: Schedule, step: int) -> float:
    return float(np.asarray(schedule(step)))


def _features(features: Callable[..., jax.Array], params: Any, rest: Any, batches: Any) -> np.ndarray:
    """Of each example of a split, (n, d)."""
    return np.concatenate([features(params, rest, x) for x, _ in batches.batches])[: batches.targets]


def _means(evaluate: Callable[..., jax.Array], params: Any, rest: Any, batches: Any) -> tuple[float, float]:
    """Mean loss and accuracy over a split."""
    totals = np.sum([evaluate(params, rest, *batch) for batch in batches.batches], axis=0)
    return float(totals[0] / batches.targets), float(totals[1] / batches.targets)
