"""What an epoch takes here, told by the trainer itself from a few steps on noise in the shape of the data."""

import contextlib
import dataclasses
import itertools
import statistics
import time
from typing import NamedTuple

import jax
import numpy as np

from experiments.data.datasets import Dataset, Split, Where
from experiments.training import feed
from experiments.training.devices import ONE_DEVICE, Devices
from experiments.training.trainer import Config, train
from experiments.training.workloads import ImageNet, Resized

# At most; the first that ends in a prediction is the last.
EPOCHS = 12


class Timing(NamedTuple):
    """Seconds.

    Attributes:
      compiling: of all that a run compiles.
      step: of a training step, the median over short epochs.
      prediction: what the end of an epoch takes that predicts; NaN if none did.
      epoch: an epoch of the run's own length, without its end.
    """

    compiling: float
    step: float
    prediction: float
    epoch: float

    def __str__(self) -> str:
        return (
            f"a step {1e3 * self.step:,.1f} ms, an epoch {self.epoch:,.1f} s, a prediction at its end "
            f"{1e3 * self.prediction:,.1f} ms; compiling {self.compiling:,.0f} s"
        )


def noise(workload: Resized) -> Dataset:
    """Random bytes and labels, in the shapes and numbers of a workload's data."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = rng.integers(256, size=(count, *workload.shape), dtype=np.uint8)
        return Split(images, rng.integers(workload.classes, size=count, dtype=np.int32))

    return Dataset(split(workload.examples), split(workload.validation_examples))


def images_a_second(workload: ImageNet, where: Where, batches: int, devices: Devices = ONE_DEVICE) -> float:
    """What the data pipeline delivers to the devices by itself, from its second batch on."""
    with contextlib.ExitStack() as stack:
        source = workload.load(where).train
        delivered = feed.training(source, workload, devices, jax.random.key(0), stack).epoch(0)
        jax.block_until_ready(next(delivered))
        started = time.perf_counter()
        for batch in itertools.islice(delivered, batches):
            jax.block_until_ready(batch)
        seconds = time.perf_counter() - started
    return min(batches, workload.epoch_steps - 1) * workload.batch_size / seconds


def time_steps(config: Config, steps: int, devices: Devices = ONE_DEVICE) -> Timing:
    """Trains on noise, in epochs of so many steps, until one ends in a prediction."""
    workload = config.workload
    assert isinstance(workload, Resized)
    batch = workload.batch_size
    short = dataclasses.replace(
        workload, examples=steps * batch, validation_examples=batch, scheme="shuffled"
    )
    short_run = dataclasses.replace(config, workload=short, watch=(), epochs=min(config.epochs, EPOCHS))
    epochs = []
    for epoch in train(short_run, noise(short), devices):
        epochs.append(epoch)
        if epoch["predicted"]:
            break
    step = statistics.median(epoch["train_seconds"] / steps for epoch in epochs)
    return Timing(
        compiling=epochs[0]["compile_seconds"],
        step=step,
        prediction=epochs[-1]["pdt_seconds"] if epochs[-1]["predicted"] else float("nan"),
        epoch=step * workload.epoch_steps,
    )
