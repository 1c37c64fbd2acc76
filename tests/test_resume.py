"""Runs that break off: they go on from their last checkpoint to the last bit, on whatever devices."""

import argparse
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pytest

import pdt_optax
from experiments import cifar_alexnet
from experiments.training import checkpoints, devices, records
from experiments.training.arms import BASELINE, Arm, Ema, Lawa, Predictive, predictive, preset
from experiments.training.checkpoints import Saving
from experiments.training.rules import Refreshed
from experiments.training.trainer import Config
from experiments.tuned.setups import PAIRS
from tests.test_bench import tiny

ARMS = {
    "baseline": Arm(BASELINE),
    "recommended": preset("recommended"),
    "drift": preset("drift"),
    "guarded": predictive(
        "guarded",
        guard=pdt_optax.rollback(tolerance=0.0),
        schedule=pdt_optax.adaptive(longest_horizon=30),
        accept=pdt_optax.everything(),
        horizon=30,
    ),
    "refreshed": Refreshed("refreshed", tuple(pdt_optax.presets.drift.items())),
    "ema": Ema("ema"),
    "lawa": Lawa("lawa"),
}
DATA = tiny(PAIRS["resnet-adamw"]).load()
SECONDS = ("train_seconds", "pdt_seconds", "compile_seconds")


def config(arm: str) -> Config:
    return Config(tiny(PAIRS["resnet-adamw"]), ARMS[arm], "adamw", 3e-3, "cosine", epochs=10, seed=0)


def kept(folder: Path, c: Config) -> Any:
    """The arrays in the last checkpoint."""
    return checkpoints.trained(folder / "checkpoints" / records.path_of(folder, c).stem)


def without_seconds(path: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, path.read_text().splitlines()[1:])
    return [{k: v for k, v in e.items() if k not in SECONDS} for e in lines]


def until(run: Generator[dict[str, Any]], epoch: int) -> None:
    """Trains until an epoch is recorded, and breaks off."""
    while next(run)["epoch"] < epoch:
        pass
    run.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """From an arm's name to the folder of its run, trained once and without interruption."""

    @functools.cache
    def trained(arm: str) -> Path:
        folder = tmp_path_factory.mktemp(arm)
        until(records.record(folder, config(arm), DATA, saving=Saving(every=1, keep=True)), 10)
        return folder

    return trained


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the guarded run, with a checkpoint after each of its seven epochs; the last two are there."""
    folder = tmp_path_factory.mktemp("broken")
    until(records.record(folder, config("guarded"), DATA, saving=Saving(every=1, keep=True, wait=True)), 7)
    return folder


def ends_as(whole: Path, folder: Path, arm: str) -> list[dict[str, Any]]:
    """Trains a run that was broken off to its end: the records and all arrays are those of the whole one."""
    c = config(arm)
    until(records.record(folder, c, DATA, saving=Saving(every=2, keep=True)), c.epochs)
    recorded = without_seconds(records.path_of(whole, c))
    assert len(recorded) == c.epochs
    assert without_seconds(records.path_of(folder, c)) == recorded
    chex.assert_trees_all_equal(kept(folder, c), kept(whole, c))
    return recorded


# The guarded arm's state has all that a window's can have, the default's is in the optimizer's, the others' are of other kinds.
@pytest.mark.parametrize(
    "arm",
    [pytest.param(arm, marks=[pytest.mark.slow] * (arm not in ("guarded", "recommended"))) for arm in ARMS],
)
def test_a_run_that_broke_off_goes_on_to_the_last_bit(
    arm: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    c, saving = config(arm), Saving(every=2, keep=True)
    for wait, stop in ((False, 3), (True, 7), (False, 8)):  # once in a window, before and after jumps
        until(records.record(tmp_path, c, DATA, saving=saving._replace(wait=wait)), stop)
        assert len(records.read(tmp_path, c).epochs) == stop
    recorded = ends_as(whole(arm), tmp_path, arm)
    if isinstance(c.arm, Predictive):
        assert any(e["predicted"] for e in recorded)


def test_sigterm_saves_the_epoch_and_ends_the_run(whole: Callable[[str], Path], tmp_path: Path) -> None:
    c = config("guarded")
    run = records.record(tmp_path, c, DATA, saving=Saving(every=c.epochs))
    assert next(run)["epoch"] == 1
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        next(run)
    assert stopped.value.code == 128 + signal.SIGTERM
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert [p.name for p in folder.iterdir()] == [str(2 * c.workload.epoch_steps)]
    ends_as(whole("guarded"), tmp_path, "guarded")


@pytest.mark.slow
def test_without_resume_a_run_starts_anew_and_its_checkpoints_go_with_it(tmp_path: Path) -> None:
    c = config("guarded")
    until(records.record(tmp_path, c, DATA, saving=Saving(every=1)), 4)
    again = records.record(tmp_path, c, DATA, saving=Saving(every=1))
    resumed = next(again)
    again.close()
    assert resumed["compile_seconds"] == records.read(tmp_path, c).epochs[0]["compile_seconds"]
    anew = records.record(tmp_path, c, DATA, saving=Saving(every=1, resume=False))
    assert next(anew)["compile_seconds"] != resumed["compile_seconds"]
    assert len(records.read(tmp_path, c).epochs) == 1
    for _ in anew:
        pass
    assert list((tmp_path / "checkpoints").iterdir()) == []


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "overwritten": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    damage: str, whole: Callable[[str], Path], broken_off: Path, tmp_path: Path, capsys: Any
) -> None:
    c = config("guarded")
    broken, spare = tmp_path / "broken", tmp_path / "spare"
    for copy in (broken, spare):
        shutil.copytree(broken_off, copy)
    folder = broken / "checkpoints" / records.path_of(broken, c).stem
    before, last = sorted(folder.iterdir(), key=lambda p: int(p.name))
    for path in last.rglob("*"):
        if path.is_file() and path.stat().st_size:
            DAMAGE[damage](path)
    ends_as(whole("guarded"), broken, "guarded")
    error = capsys.readouterr().err
    assert f"{last} cannot be read" in error
    assert f"{before} cannot be read" not in error

    for path in (spare / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size:
            DAMAGE[damage](path)
    with pytest.raises(checkpoints.UnreadableError, match="remove it, or start anew with --no-resume"):
        next(records.record(spare, c, DATA, saving=Saving(every=1)))


def test_a_record_that_ends_in_half_a_line_is_read_up_to_it(tmp_path: Path) -> None:
    c = config("baseline")
    path = records.path_of(tmp_path, c)
    header = json.dumps({"config": c.fields})
    epoch = json.dumps({"epoch": 1} | dict.fromkeys((*records.NUMBERS, "probe_loss"), 0.5))
    for text, count in (
        ("", 0),
        (header[:15], 0),
        (f"{header}\n", 0),
        (f"{header}\n{epoch}\n{epoch[:9]}", 1),
    ):
        path.write_text(text)
        assert len(records.read(tmp_path, c).epochs) == count
    path.write_text("")
    assert records.read_all(tmp_path) == []


SIZE = "--width 0.05 --image-size 63 --batch-size 512"
TINY = f"--data digits {SIZE} --rules --optimizer adamw --lr 1e-3".split()


COMMAND = (sys.executable, "-m", "experiments.cifar_alexnet", *TINY, "--seeds", "0")
CPU = os.environ | {"JAX_PLATFORMS": "cpu"}
ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_signal_at_the_first_epoch(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    """The command itself, ended as soon as it has recorded something, and started again."""
    arguments = ["--epochs", "4", "--out"]
    running = subprocess.Popen(
        [*COMMAND, *arguments, str(tmp_path / "ended")],
        env=CPU,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started = time.monotonic()
    while not any(p.read_text().count("\n") > 1 for p in (tmp_path / "ended").glob("*.jsonl")):
        assert running.poll() is None
        assert time.monotonic() - started < 240
        time.sleep(0.02)
    running.send_signal(sent)
    assert running.wait() == code
    for folder in ("ended", "whole"):
        assert cifar_alexnet.main([*TINY, "--seeds", "0", *arguments, str(tmp_path / folder)]) == 0
    (ended,), (whole,) = (list((tmp_path / folder).glob("*.jsonl")) for folder in ("ended", "whole"))
    assert without_seconds(ended) == without_seconds(whole)


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
runpy.run_module("experiments.cifar_alexnet", run_name="__main__")
"""


@pytest.mark.slow
def test_a_full_disk_ends_no_run(tmp_path: Path) -> None:
    """Files can grow to 300 kB here, a checkpoint's would be larger: the run goes on and says so."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *TINY, "--seeds", "0", "--epochs", "3", "--out", str(tmp_path)],
        env=CPU,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "could not be written" in done.stderr
    assert "the run goes on" in done.stderr
    (path,) = tmp_path.glob("*.jsonl")
    assert len(without_seconds(path)) == 3


@pytest.mark.slow
def test_two_processes_under_slurm_train_as_one_does(tmp_path: Path) -> None:
    """Started as srun starts them, each with its rows of the batch; the first writes."""
    arguments = [*TINY, "--epochs", "2", "--seeds", "0"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[1]
    running = []
    for i in range(2):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i),
            "SLURM_STEP_NUM_NODES": "1",
            "JAX_COORDINATOR_PORT": str(port),
        }
        command = [
            sys.executable,
            "-m",
            "experiments.cifar_alexnet",
            *arguments,
            "--out",
            str(tmp_path / "two"),
        ]
        running.append(
            subprocess.Popen(
                command, env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        ended = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, ended, strict=True):
        assert process.returncode == 0, errors[-5000:]
    assert "of 2 processes, data=2" in " ".join(ended[0][0].split())
    assert "train loss" not in ended[1][0]
    assert cifar_alexnet.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    for one in (tmp_path / "one").glob("*.jsonl"):
        first, *alone = map(json.loads, one.read_text().splitlines())
        header, *together = map(json.loads, (tmp_path / "two" / one.name).read_text().splitlines())
        assert header["devices"].endswith("data=2")
        assert first == {k: v for k, v in header.items() if k != "devices"} | {"made": first["made"]}
        np.testing.assert_allclose(
            [e["train_loss"] for e in together], [e["train_loss"] for e in alone], rtol=1e-4
        )


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data=4", r"must use all devices: its sizes multiply to their number, 1. Got data=4"),
        ("data", r"such as data=4,model=2. Got 'data'"),
        ("data=0", r"such as data=4,model=2. Got 'data=0'"),
        ("rows=1", r"sizes of the axes data, fsdp, model, each at most once.* Got 'rows=1'"),
        ("data=1,data=1", r"each at most once"),
        ("fsdp=2,model=2", r"over `fsdp` or over `model`.* Got 'fsdp=2,model=2'"),
    ],
)
def test_a_mesh_must_be_one_of_all_devices(mesh: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        devices.devices(mesh)


def test_what_the_options_mean() -> None:
    parser = argparse.ArgumentParser()
    devices.add_arguments(parser)
    checkpoints.add_arguments(parser, every=3)
    args = parser.parse_args([])
    assert checkpoints.saving(args) == Saving(every=3)
    assert checkpoints.saving(parser.parse_args(["--no-resume", "--keep-checkpoints"])) == Saving(
        3, False, True
    )
