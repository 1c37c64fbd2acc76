"""The data of a run as batches on its devices; those from memory are made here."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import jax
import numpy as np

from experiments.data.datasets import Split
from experiments.training.devices import Devices
from experiments.training.workloads import Workload

if TYPE_CHECKING:
    from experiments.data.imagenet import Stream

Pair = tuple[jax.Array, jax.Array]  # inputs and targets
# The same, and the numbers of the batch's examples in them; None for all.
Batch = tuple[jax.Array, jax.Array, jax.Array | None]

EVALUATED = 512  # examples in a batch that is only evaluated, at most


class Training(Protocol):
    """The training batches of a run, as arguments of a step."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, counted from 0, from a step on."""
        ...

    def peek(self, epoch: int, start: int = 0) -> Batch:
        """The first of them, to compile a step with."""
        ...


class Evaluation(NamedTuple):
    """A split in batches of one shape, padded with targets of -1, and how many targets there are without those."""

    targets: int
    batches: Iterable[Pair]


def training(
    split: "Split | Stream",
    workload: Workload,
    devices: Devices,
    key: jax.Array,
    stack: contextlib.ExitStack,
) -> Training:
    """The training batches of a workload, in an order that the key and the epoch decide; read until the stack ends."""
    if isinstance(split, Split):
        return _InMemory(split, workload, devices, key)
    from experiments.training import streaming  # which imports grain

    return streaming.Streamed(split, workload, devices, key, stack)


def evaluation(split: "Split | Stream", devices: Devices, stack: contextlib.ExitStack) -> Evaluation | None:
    """A split to be evaluated, read until the stack ends; None if it is empty."""
    examples, shards = split.examples, devices.batch_shards
    if examples == 0:
        return None
    size = -(-min(examples, EVALUATED) // shards) * shards
    if not isinstance(split, Split):
        from experiments.training import streaming

        return Evaluation(examples, streaming.Passes(split, size, devices, stack))

    def batches(x: np.ndarray, value: int) -> list[jax.Array]:
        widths = [(0, -examples % size)] + [(0, 0)] * (x.ndim - 1)
        padded = np.pad(x, widths, constant_values=value)
        return [devices.batch(part) for part in np.split(padded, len(padded) // size)]

    pairs = zip(batches(split.inputs, 0), batches(split.targets, -1), strict=True)
    return Evaluation(split.targets.size, list(pairs))


class _InMemory:
    """One process keeps all data on its devices, where a step picks its batch. Of several, each hands its
    devices their rows of every batch.
    """

    def __init__(self, split: Split, workload: Workload, devices: Devices, key: jax.Array):
        self.split, self.workload, self.devices, self.key = split, workload, devices, key
        if jax.process_count() == 1:
            self.resident = devices.everywhere(jax.device_put(tuple(split)))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = self.workload.order(self.split.targets, jax.random.fold_in(self.key, epoch))
        for index in order[start : self.workload.epoch_steps]:
            if jax.process_count() == 1:
                yield *self.resident, self.devices.index(index)
            else:
                inputs, targets = (self.devices.batch(x, np.asarray(index)) for x in self.split)
                yield inputs, targets, None

    def peek(self, epoch: int, start: int = 0) -> Batch:
        return next(self.epoch(epoch, start))
