"""The data of a run as batches on its devices, from memory or from a stream."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import grain
import jax
import numpy as np
from absl import flags

from experiments.data.datasets import Split
from experiments.data.imagenet import Stream
from experiments.training.devices import Devices
from experiments.training.workloads import Workload

# Inputs, targets, and the numbers of the batch's examples in them; None for all.
Batch = tuple[jax.Array, jax.Array, jax.Array | None]

AHEAD = 2  # batches of a stream that lie on the devices before they are needed
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
    batches: Iterable[tuple[jax.Array, jax.Array]]


def training(
    split: Split | Stream, workload: Workload, devices: Devices, key: jax.Array, stack: contextlib.ExitStack
) -> Training:
    """The training batches of a workload, in an order that the key and the epoch decide; read until the stack ends."""
    if isinstance(split, Stream):
        return _Streamed(split, workload, devices, key, stack)
    return _InMemory(split, workload, devices, key)


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


class _Streamed:
    def __init__(
        self, split: Stream, workload: Workload, devices: Devices, key: jax.Array, stack: contextlib.ExitStack
    ):
        batches = split.shuffled(workload.batch_size, int(jax.random.bits(key)), *devices.part)
        self.reader, self.steps = _Reader(batches, split.workers, devices, stack), workload.epoch_steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for inputs, targets in self.reader.read(epoch * self.steps + start, self.steps - start):
            yield inputs, targets, None

    def peek(self, epoch: int, start: int = 0) -> Batch:
        return *self.reader.peek(epoch * self.steps + start), None


class _Reader:
    """Consecutive batches of a stream, repeated without end: decoded and put on the devices ahead of time."""

    def __init__(
        self,
        batches: grain.MapDataset[Split],
        workers: int,
        devices: Devices,
        stack: contextlib.ExitStack,
    ):
        self.batches, self.workers, self.devices = batches.repeat(), workers, devices
        self.iterator, self.next, self.held = None, 0, None
        stack.callback(self.close)

    def read(self, start: int, count: int) -> Iterator[Split]:
        """Some batches, counted from 0; those after the last ones read are there already."""
        if self.iterator is None or self.next != start:
            self.close()
            self.iterator, self.next = self._from(start), start
        for _ in range(count):
            batch, self.held = self.held or next(self.iterator), None
            self.next += 1
            yield batch

    def peek(self, start: int) -> Split:
        """A batch that stays the next one."""
        (self.held,) = self.read(start, 1)
        self.next = start
        return self.held

    def _from(self, start: int) -> grain.DatasetIterator[Split]:
        # A thread makes a whole batch: few are enough, and each takes memory.
        if self.workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain asks them for its workers
        threads = 1 if self.workers else os.cpu_count() or 1
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        data = self.batches[start:].to_iter_dataset(options)
        data = data.mp_prefetch(grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=2))
        placed = data.map(lambda split: Split(*map(self.devices.put_part, split)))
        return iter(grain.experimental.ThreadPrefetchIterDataset(placed, prefetch_buffer_size=AHEAD))

    def close(self) -> None:
        if self.iterator is not None:
            self.iterator.close()
            self.iterator = self.held = None


def evaluation(split: Split | Stream, devices: Devices, stack: contextlib.ExitStack) -> Evaluation | None:
    """A split to be evaluated, read until the stack ends; None if it is empty."""
    examples, shards = split.examples, devices.batch_shards
    if examples == 0:
        return None
    size = -(-min(examples, EVALUATED) // shards) * shards
    if isinstance(split, Stream):
        return Evaluation(examples, _Passes(split, size, devices, stack))

    def batches(x: np.ndarray, value: int) -> list[jax.Array]:
        widths = [(0, -examples % size)] + [(0, 0)] * (x.ndim - 1)
        padded = np.pad(x, widths, constant_values=value)
        return [devices.batch(part) for part in np.split(padded, len(padded) // size)]

    return Evaluation(
        split.targets.size, list(zip(batches(split.inputs, 0), batches(split.targets, -1), strict=True))
    )


class _Passes:
    """All batches of a stream, each time that it is iterated over."""

    def __init__(self, split: Stream, size: int, devices: Devices, stack: contextlib.ExitStack):
        batches = split.in_order(size, *devices.part)
        self.count, self.reader = len(batches), _Reader(batches, split.workers, devices, stack)

    def __iter__(self) -> Iterator[Split]:
        start = -(-self.reader.next // self.count) * self.count  # a pass that broke off is not taken up
        return self.reader.read(start, self.count)
