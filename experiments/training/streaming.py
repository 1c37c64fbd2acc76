"""Batches of a stream on the devices: decoded by threads or processes, and put there ahead of time."""

import contextlib
import os
from collections.abc import Iterator

import grain
import jax
from absl import flags

from experiments.data.datasets import Split
from experiments.data.imagenet import Stream
from experiments.training.devices import Devices
from experiments.training.feed import Batch, Pair
from experiments.training.workloads import Workload

AHEAD = 2  # batches that lie on the devices before they are needed


class Reader:
    """Consecutive batches, repeated without end, until the stack ends."""

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

    def read(self, start: int, count: int) -> Iterator[Pair]:
        """Some batches, counted from 0; those after the last ones read are there already."""
        if self.iterator is None or self.next != start:
            self.close()
            self.iterator, self.next = self._from(start), start
        for _ in range(count):
            batch, self.held = self.held or next(self.iterator), None
            self.next += 1
            yield batch

    def peek(self, start: int) -> Pair:
        """A batch that stays the next one."""
        (self.held,) = self.read(start, 1)
        self.next = start
        return self.held

    def _from(self, start: int) -> grain.DatasetIterator[Pair]:
        if self.workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain asks them for its workers
        # A thread makes a whole batch: few are enough, and each takes memory.
        threads = 1 if self.workers else os.cpu_count() or 1
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        data = self.batches[start:].to_iter_dataset(options)
        data = data.mp_prefetch(grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=2))
        put = self.devices.put_part
        placed = data.map(lambda split: (put(split.inputs), put(split.targets)))
        return iter(grain.experimental.ThreadPrefetchIterDataset(placed, prefetch_buffer_size=AHEAD))

    def close(self) -> None:
        """Ends threads and processes; the next `read` starts new ones."""
        if self.iterator is not None:
            self.iterator.close()
            self.iterator = self.held = None


class Streamed:
    """The training batches of a stream."""

    def __init__(
        self,
        split: Stream,
        workload: Workload,
        devices: Devices,
        key: jax.Array,
        stack: contextlib.ExitStack,
    ):
        batches = split.shuffled(workload.batch_size, int(jax.random.bits(key)), *devices.part)
        self.reader, self.steps = Reader(batches, split.workers, devices, stack), workload.epoch_steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for inputs, targets in self.reader.read(epoch * self.steps + start, self.steps - start):
            yield inputs, targets, None

    def peek(self, epoch: int, start: int = 0) -> Batch:
        inputs, targets = self.reader.peek(epoch * self.steps + start)
        return inputs, targets, None


class Passes:
    """All batches of a stream, each time that it is iterated over."""

    def __init__(self, split: Stream, size: int, devices: Devices, stack: contextlib.ExitStack):
        batches = split.in_order(size, *devices.part)
        self.count, self.reader = len(batches), Reader(batches, split.workers, devices, stack)

    def __iter__(self) -> Iterator[Pair]:
        start = -(-self.reader.next // self.count) * self.count  # a pass that broke off is not taken up
        return self.reader.read(start, self.count)
