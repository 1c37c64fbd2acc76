"""Runs side by side: each worker process trains on one core and writes its own records."""

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from experiments.command import RefusedError
from experiments.data.datasets import Dataset, Where
from experiments.training import records
from experiments.training.checkpoints import Saving
from experiments.training.devices import ONE_DEVICE, Devices
from experiments.training.trainer import Config
from experiments.training.workloads import Workload

# XLA on one thread: two runs side by side finish sooner than one after the other
# on two threads, and their seconds can be compared.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class Task(NamedTuple):
    """A run to train, the folder for its record, when to save it, and where its data is."""

    folder: Path
    config: Config
    saving: Saving | None = None
    where: Where = Where()


@functools.lru_cache(maxsize=1)
def load(workload: Workload, where: Where) -> Dataset:
    """The data of a workload, once for the runs that follow each other."""
    return workload.load(where)


class WorkerError(RefusedError):
    """A worker process ended before its work did."""


def train_all(
    tasks: Sequence[Task],
    jobs: int,
    devices: Devices = ONE_DEVICE,
    trained: Callable[[Task, int], None] = lambda task, epoch: None,
) -> Iterator[Task]:
    """Trains all tasks, yielding each when its record is on disk.

    Neighbours that differ only in their seed go to the same worker and share
    compiled code. Stopping the iteration ends the workers; the records that
    they finished stay.

    Args:
      tasks: what to train.
      jobs: worker processes; 0 trains in this process, on as many threads as it has.
      devices: of this process.
      trained: called after each epoch of each task, with the epoch's number.

    Raises:
      WorkerError: if a worker ends early.
    """
    groups = [list(g) for _, g in itertools.groupby(tasks, lambda t: t.config.program)]
    if jobs == 0:
        for task in itertools.chain.from_iterable(groups):
            for epoch in _train(task, devices):
                trained(task, epoch)
            yield task
        return
    with _workers(min(jobs, len(groups))) as idle:
        busy: dict[Connection, list[Task]] = {}  # and what each still has to do
        while groups or busy:
            while groups and idle:
                connection = idle.pop()
                busy[connection] = groups.pop(0)
                connection.send(busy[connection])
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                try:
                    told = connection.recv()
                except EOFError:
                    told = "it said why, or was killed"
                if isinstance(told, str):
                    raise WorkerError(f"A worker process ended early ({told}); finished runs are kept.")
                if told is not None:
                    trained(busy[connection][0], told)
                    continue
                yield busy[connection].pop(0)
                if not busy[connection]:
                    del busy[connection]
                    idle.append(connection)


@contextlib.contextmanager
def _workers(count: int) -> Iterator[list[Connection]]:
    """Connections to `count` new processes, which end with the block."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=_work, args=(theirs,), daemon=True) for _, theirs in pipes]
    scratch = tempfile.TemporaryDirectory(prefix="compiled-")
    cache = {  # runs that differ in their seed compile once, in the user's own cache if there is one
        "JAX_COMPILATION_CACHE_DIR": scratch.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
    }
    environment = {  # read when a worker imports jax
        "OPENBLAS_NUM_THREADS": "1",  # of eigenvalue decompositions
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip(),
    }
    try:
        with mock.patch.dict(os.environ, cache | os.environ | environment):
            for process in processes:
                process.start()
        for _, theirs in pipes:
            theirs.close()  # or its end would never be seen when the worker dies
        yield [ours for ours, _ in pipes]
    finally:
        for process in processes:
            process.terminate()
            process.join()
        scratch.cleanup()


def _work(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    while True:
        for task in connection.recv():
            try:
                for epoch in _train(task):
                    connection.send(epoch)
                connection.send(None)
            except (RefusedError, ValueError, OSError) as e:
                connection.send(str(e))


def _train(task: Task, devices: Devices = ONE_DEVICE) -> Iterator[int]:
    """Trains a task and yields the number of each epoch."""
    dataset = load(task.config.workload, task.where)
    for line in records.record(task.folder, task.config, dataset, devices, task.saving):
        yield line["epoch"]
