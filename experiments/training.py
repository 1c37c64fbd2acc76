"""The one trainer: a config in, one record per epoch out."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pdt_optax
from experiments import models
from experiments.data import CLASSES, Dataset, Split, prepare

BASELINE = "baseline"

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "rmsprop": optax.rmsprop,
    "lamb": optax.lamb,
}

SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "cosine": optax.cosine_decay_schedule,
    "constant": lambda rate, _: optax.constant_schedule(rate),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run depends on.

    Attributes:
      data: the data set's name.
      rule: a preset of `pdt_optax`, or "baseline" for the optimizer alone.
      optimizer, learning_rate, schedule: names in this module, and the peak rate.
      epochs, batch_size: a last, smaller batch is dropped.
      image_size, width: of AlexNet.
      seed: of the initial weights, the data order and the dropout.
    """

    data: str
    rule: str
    optimizer: str
    learning_rate: float
    schedule: str
    epochs: int
    batch_size: int
    image_size: int
    width: float
    seed: int

    def __post_init__(self) -> None:
        _check_name("rule", self.rule, (BASELINE, *pdt_optax.presets.names()))
        _check_name("optimizer", self.optimizer, OPTIMIZERS)
        _check_name("schedule", self.schedule, SCHEDULES)
        for name in ("learning_rate", "epochs", "batch_size", "width"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive. Got {getattr(self, name)}.")
        if self.image_size < models.AlexNet.smallest_image:
            raise ValueError(
                f"`image_size` must be at least {models.AlexNet.smallest_image}: AlexNet's strides and pools "
                f"leave nothing of a smaller image. Got {self.image_size}."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of `pdt`; empty for the baseline."""
        return {} if self.rule == BASELINE else dict(pdt_optax.presets.named(self.rule))

    @property
    def key(self) -> str:
        """A hash of the config and of what its rule means today."""
        text = json.dumps(dataclasses.asdict(self) | {"settings": repr(self.settings)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_name(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"There is no {name} {value!r}. There are {', '.join(known)}.")


def train(config: Config, dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Trains a model and yields one record after each epoch.

    Compilation is done and timed beforehand; the clock of an epoch runs over
    its training steps and, apart, over all that PDT does at its end.

    Yields:
      Dictionaries of plain numbers: `epoch` (from 1), `train_loss` (mean over
      the epoch's batches, dropout on), `validation_loss`, `validation_accuracy`,
      `learning_rate` (of the epoch's last step), `train_seconds`, `pdt_seconds`,
      `compile_seconds` (in the first record, else 0), `predicted`,
      `accepted_share`, `horizon`.

    Raises:
      ValueError: if the data has fewer examples than a batch.
    """
    steps = len(dataset.train.labels) // config.batch_size
    if steps == 0:
        raise ValueError(
            "`batch_size` must not exceed the number of training examples. "
            f"Got batch_size={config.batch_size}, {len(dataset.train.labels)} examples."
        )
    schedule = SCHEDULES[config.schedule](config.learning_rate, config.epochs * steps)
    inner = OPTIMIZERS[config.optimizer](schedule)
    tx = pdt_optax.pdt(inner, **config.settings) if config.settings else inner

    model_key, order_key, dropout_key = jax.random.split(jax.random.key(config.seed), 3)
    model = models.AlexNet(CLASSES, width=config.width, rngs=nnx.Rngs(model_key))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    opt_state = tx.init(params)
    images, labels = (jax.device_put(x) for x in dataset.train)

    def loss_fn(params: Any, index: jax.Array, key: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params, rest)(prepare(images[index], config.image_size), key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[index]).mean()

    def step(params: Any, opt_state: Any, losses: jax.Array, index: jax.Array, key: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss_fn)(params, index, key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses + value

    jitted_step = jax.jit(step, donate_argnums=(0, 1, 2))
    evaluate = _evaluator(graph, rest, dataset.test, config)

    def end_epoch(params: Any, opt_state: Any, value: jax.Array) -> Any:
        if not isinstance(tx, pdt_optax.PDT):
            return params, opt_state, None
        return tx.end_epoch(params, opt_state, value=value, donate=True)

    def epoch_batches(epoch: int) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(order_key, epoch)
        order = jax.random.permutation(key, len(labels))[: steps * config.batch_size]
        return order.reshape(steps, -1), jax.random.split(jax.random.fold_in(dropout_key, epoch), steps)

    # One rehearsal on copies compiles everything.
    started = time.perf_counter()
    batches = epoch_batches(0)
    rehearsal = jitted_step(
        *jax.tree.map(jnp.copy, (params, opt_state)), jnp.zeros(()), batches[0][0], batches[1][0]
    )
    rehearsal = end_epoch(rehearsal[0], rehearsal[1], rehearsal[2] / steps)
    jax.block_until_ready((evaluate(rehearsal[0]), rehearsal))
    del rehearsal
    compile_seconds = time.perf_counter() - started

    for epoch in range(config.epochs):
        started = time.perf_counter()
        loss = jnp.zeros(())
        for index, key in zip(*epoch_batches(epoch), strict=True):
            params, opt_state, loss = jitted_step(params, opt_state, loss, index, key)
        value = jax.block_until_ready(loss / steps)
        trained = time.perf_counter()
        params, opt_state, report = jax.block_until_ready(end_epoch(params, opt_state, value))
        ended = time.perf_counter()
        validation_loss, accuracy = evaluate(params)
        yield {
            "epoch": epoch + 1,
            "train_loss": float(value),
            "validation_loss": float(validation_loss),
            "validation_accuracy": float(accuracy),
            "learning_rate": float(np.asarray(schedule((epoch + 1) * steps - 1))),
            "train_seconds": trained - started,
            "pdt_seconds": ended - trained if report is not None else 0.0,
            "compile_seconds": compile_seconds if epoch == 0 else 0.0,
            "predicted": bool(report.predicted) if report is not None else False,
            "accepted_share": float(report.accepted_share) if report is not None else 0.0,
            "horizon": int(report.horizon) if report is not None else 0,
        }


def _evaluator(graph: Any, rest: Any, split: Split, config: Config) -> Callable[[Any], tuple[float, float]]:
    """Mean loss and accuracy over a split, in batches of one shape."""
    count = len(split.labels)
    size = min(count, 512)
    padding = -count % size
    images = jax.device_put(np.pad(split.images, [(0, padding), (0, 0), (0, 0), (0, 0)]))
    labels = jax.device_put(np.pad(split.labels, (0, padding), constant_values=-1))

    @jax.jit
    def batch(params: Any, start: jax.Array) -> jax.Array:
        x, y = (jax.lax.dynamic_slice_in_dim(a, start, size) for a in (images, labels))
        logits = nnx.merge(graph, params, rest)(prepare(x, config.image_size))
        real = y >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
        return jnp.stack([jnp.sum(losses * real), jnp.sum((logits.argmax(-1) == y) & real)])

    def evaluate(params: Any) -> tuple[float, float]:
        totals = np.sum([batch(params, i) for i in range(0, count, size)], axis=0)
        return totals[0] / count, totals[1] / count

    return evaluate
