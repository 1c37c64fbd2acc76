"""Many runs: what is not recorded yet is trained, side by side, under one progress bar."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments import command
from experiments.data.datasets import DataUnavailableError, Where
from experiments.training import checkpoints, devices, pool, records
from experiments.training.arms import Predictive
from experiments.training.trainer import Config, memory
from experiments.training.workloads import Workload


class How(NamedTuple):
    """How runs are trained.

    Attributes:
      jobs: so many side by side; 0 for one after the other, on `devices`.
      saving: when they are saved.
      fresh: even if they are recorded.
      where: their data is.
    """

    jobs: int
    devices: devices.Devices
    saving: checkpoints.Saving
    fresh: bool = False
    where: Where = Where()


class Planned(NamedTuple):
    """A run, the folder of its record, and the seconds it is thought to take."""

    folder: Path
    config: Config
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--jobs`."""
    parser.add_argument(
        "--jobs",
        type=command.whole(0),
        help="runs side by side, one CPU core each; 0: one after the other, each on all devices, as with "
        "accelerators, a --mesh or --workers (default: 2, with those 0)",
    )


def where(args: argparse.Namespace) -> Where:
    """Where the arguments say that data is."""
    return Where(args.data_dir, args.download, args.workers)


def how(args: argparse.Namespace, spread: devices.Devices) -> How:
    """What the arguments say.

    Raises:
      ValueError: if they contradict each other.
    """
    together = args.mesh is not None or jax.process_count() > 1
    alone = together or args.workers > 0 or jax.default_backend() != "cpu"
    jobs = args.jobs if args.jobs is not None else 0 if alone else 2
    if jobs > 0 and args.workers > 0:
        raise ValueError(
            "`--workers` decode for one run at a time: processes that `--jobs` starts can start no others. Leave one of "
            f"them out. Got --jobs {jobs}, --workers {args.workers}."
        )
    if jobs > 0 and together:
        raise ValueError(
            "`--jobs` puts runs side by side on the cores of one machine; a mesh or several processes take them one "
            f"after the other: leave it out. Got --jobs {jobs}."
        )
    # A run's seconds are compared: nothing is written while it trains.
    saving = checkpoints.saving(args, wait=True)
    fresh = getattr(args, "fresh", False)
    saving = saving._replace(resume=saving.resume and not fresh)
    return How(jobs, spread if jobs == 0 else devices.ONE_DEVICE, saving, fresh, where(args))


def train(
    plan: Iterable[Planned], how: How, console: Console, done: Callable[[Planned], None] | None = None
) -> list[str]:
    """Trains what is not recorded yet, with a progress bar over runs and epochs; calls `done` for each that is recorded.

    Returns:
      A sentence for each reason why rows are left out: a data set that is not here, or a batch that
      the devices cannot share. All others are trained.
    """
    runs = list({p.config: p for p in plan}.values())  # two parts of a plan may share a run
    recorded = devices.as_the_first([records.read(p.folder, p.config).complete for p in runs])
    left = [p for p, complete in zip(runs, recorded, strict=True) if how.fresh or not complete]
    console.print(f"{len(runs)} runs, {len(runs) - len(left)} already recorded.")
    for p in runs:
        if done and p not in left:
            done(p)
    left, waiting = _at_hand(left, how)
    for told in waiting:
        console.print(told, style="yellow", highlight=False, soft_wrap=True)
    if not left:
        return waiting
    predictive = {p.config.program: p.config for p in left if isinstance(p.config.arm, Predictive)}
    needed = [m for m in map(memory, predictive.values()) if m]
    if needed:
        largest = max(needed, key=lambda m: m.device)
        console.print(f"The largest of them holds, besides data, gradients and activations:\n{largest}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.fields[runs]} runs"),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("to go"),
    )
    planned = {p.config: p for p in left}
    shares = dict.fromkeys(planned, 0.0)  # of each run, how much is trained
    tasks = [pool.Task(p.folder, p.config, how.saving, how.where) for p in left]
    # The estimate weighs runs by their known cost and learns the machine's speed from ten minutes.
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        bar = progress.add_task("starting", total=sum(p.seconds for p in left), done=0, runs=len(left))

        def trained(task: pool.Task, epoch: int) -> None:
            config = task.config
            shares[config] = epoch / config.epochs
            seconds = sum(share * planned[c].seconds for c, share in shares.items())
            name = f"{task.folder.name} {config.rule} seed {config.seed}, epoch {epoch} of {config.epochs}"
            progress.update(bar, completed=seconds, description=name)

        for count, task in enumerate(pool.train_all(tasks, how.jobs, how.devices, trained), start=1):
            name = f"{task.folder.name} {task.config.rule} seed {task.config.seed}"
            progress.update(bar, done=count)
            if not console.is_terminal:  # a log shows no bar
                console.print(f"{count}/{len(left)} {name}", highlight=False)
            if done:
                done(planned[task.config])
    return waiting


def _at_hand(left: Sequence[Planned], how: How) -> tuple[list[Planned], list[str]]:
    """The runs that can be trained here, and a sentence for each reason why others cannot."""
    missing: dict[Workload, str] = {}
    for workload in dict.fromkeys(p.config.workload for p in left):
        try:
            devices.check_batch(workload.batch_size, how.devices, workload.accumulate)
            pool.load(workload, how.where)
            found, told = True, "another process does not find its data."
        except (DataUnavailableError, ValueError) as e:
            found, told = False, str(e)
        if not devices.all_agree(found):
            missing[workload] = told
    rows: dict[str, list[str]] = {}
    for p in left:
        if told := missing.get(p.config.workload):
            rows.setdefault(told, []).append(p.folder.name)
    waiting = [f"{', '.join(dict.fromkeys(names))} left out: {told}" for told, names in rows.items()]
    return [p for p in left if p.config.workload not in missing], waiting
