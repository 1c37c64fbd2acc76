"""Many devices and many processes, each in processes of their own: how many there are is settled when jax starts."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pytest

from tests import one_process


def on_eight_devices(which: str) -> None:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", which),
            str(Path(__file__).with_name("eight_devices.py")),
        ],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert "passed" in done.stdout


def test_on_eight_devices() -> None:
    on_eight_devices("not slow")


@pytest.mark.slow
def test_more_on_eight_devices() -> None:
    on_eight_devices("slow")


def start(processes: int, *arguments: str, dies: int | None = None) -> list[subprocess.Popen[str]]:
    """So many processes on loopback; one of them may die."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.one_process", "--coordinator", coordinator),
                *("--processes", str(processes), "--process-id", str(i), *arguments),
                *(["--dies"] if i == dies else []),
            ],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def train_together(processes: int) -> list[Any]:
    """What each of so many processes prints."""
    running = start(processes)
    try:
        ended = [process.communicate(timeout=180) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, ended, strict=True):
        assert process.returncode == 0, errors[-5000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in ended]


@functools.cache
def train_alone() -> list[Any]:
    """What one process prints, trained in this one."""
    return [one_process.train(*run) for run in one_process.RUNS]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_take_the_same_decisions(processes: int) -> None:
    """Data parallel and FSDP: the same on every process to the last bit, and as one process does to rounding."""
    alone = train_alone()
    for reports in (run["reports"] for run in alone):
        assert any(predicted for _, predicted, _ in reports)
        assert [rolled_back for *_, rolled_back in reports].count(True) == 1
    first, *others = train_together(processes)
    assert len(others) == processes - 1
    assert all(other == first for other in others)
    for together, single in zip(first, alone, strict=True):
        np.testing.assert_allclose(together["losses"], single["losses"], rtol=1e-5)
        chex.assert_trees_all_close(together["weights"], single["weights"], rtol=1e-4, atol=1e-5)
        assert [r[1:] for r in together["reports"]] == [r[1:] for r in single["reports"]]


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1], ids=["the coordinator", "another"])
def test_a_lost_process_ends_the_other(dies: int) -> None:
    """By SIGKILL in the middle of an epoch: the other hangs in no sum over both, but ends, and not as if all were well."""
    for seconds in (
        10,
        60,
    ):  # where even the living are silent for 10 s, so busy is the machine, a second try
        running = start(2, "--lost-after", str(seconds), dies=dies)
        try:
            died = running[dies].wait(timeout=600)
            _, errors = running[1 - dies].communicate(timeout=seconds + 60)
        finally:
            for process in running:
                process.kill()
                process.communicate()
        if died == -signal.SIGKILL:
            break
    assert died == -signal.SIGKILL
    assert running[1 - dies].returncode != 0, errors[-5000:]
