"""Many runs: what is not recorded yet is trained, side by side, under one progress bar."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments import command
from experiments.training import checkpoints, devices, pool, records
from experiments.training.arms import Predictive
from experiments.training.trainer import Config, memory


class How(NamedTuple):
    """How runs are trained.

    Attributes:
      jobs: so many side by side; 0 for one after the other, on `devices`.
      saving: when they are saved.
      fresh: even if they are recorded.
      load: the data of a workload.
    """

    jobs: int
    devices: devices.Devices
    saving: checkpoints.Saving
    fresh: bool = False
    load: pool.Load = pool.load


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
        "accelerators or a --mesh (default: 2, with those 0)",
    )


def how(args: argparse.Namespace, spread: devices.Devices) -> How:
    """What the arguments say.

    Raises:
      ValueError: if they contradict each other.
    """
    together = args.mesh is not None or jax.process_count() > 1
    jobs = args.jobs if args.jobs is not None else 2 if jax.default_backend() == "cpu" and not together else 0
    if jobs > 0 and together:
        raise ValueError(
            "`--jobs` puts runs side by side on the cores of one machine; a mesh or several processes take them one "
            f"after the other: leave it out. Got --jobs {jobs}."
        )
    # A run's seconds are compared: nothing is written while it trains.
    saving = checkpoints.saving(args, wait=True)
    fresh = getattr(args, "fresh", False)
    saving = saving._replace(resume=saving.resume and not fresh)
    return How(jobs, spread if jobs == 0 else devices.ONE_DEVICE, saving, fresh)


def train(
    plan: Iterable[Planned], how: How, console: Console, done: Callable[[Planned], None] | None = None
) -> None:
    """Trains what is not recorded yet, with a progress bar over runs and epochs; calls `done` for each that is recorded."""
    runs = list({p.config: p for p in plan}.values())  # two parts of a plan may share a run
    recorded = devices.as_the_first([records.read(p.folder, p.config).complete for p in runs])
    left = [p for p, complete in zip(runs, recorded, strict=True) if how.fresh or not complete]
    console.print(f"{len(runs)} runs, {len(runs) - len(left)} already recorded.")
    for p in runs:
        if done and p not in left:
            done(p)
    if not left:
        return
    predictive = {p.config.program: p.config for p in left if isinstance(p.config.arm, Predictive)}
    needed = [m for m in map(memory, predictive.values()) if m]
    if needed:
        largest = max(needed, key=lambda m: m.device)
        console.print(f"The largest of them holds, besides data, gradients and activations:\n{largest}")
    for workload in dict.fromkeys(p.config.workload for p in left):
        how.load(workload)  # missing data is the user's to hear of, once
        devices.check_batch(workload.batch_size, how.devices)
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
    tasks = [pool.Task(p.folder, p.config, how.saving) for p in left]
    # The estimate weighs runs by their known cost and learns the machine's speed from ten minutes.
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        bar = progress.add_task("starting", total=sum(p.seconds for p in left), done=0, runs=len(left))

        def trained(task: pool.Task, epoch: int) -> None:
            config = task.config
            shares[config] = epoch / config.epochs
            seconds = sum(share * planned[c].seconds for c, share in shares.items())
            name = f"{task.folder.name} {config.rule} seed {config.seed}, epoch {epoch} of {config.epochs}"
            progress.update(bar, completed=seconds, description=name)

        for count, task in enumerate(
            pool.train_all(tasks, how.jobs, how.devices, trained, how.load), start=1
        ):
            name = f"{task.folder.name} {task.config.rule} seed {task.config.seed}"
            progress.update(bar, done=count)
            if not console.is_terminal:  # a log shows no bar
                console.print(f"{count}/{len(left)} {name}", highlight=False)
            if done:
                done(planned[task.config])
