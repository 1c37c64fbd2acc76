"""AlexNet on digits with PDT, trained by four processes and by one: losses and weights compared.

Starts `experiments.cifar_alexnet` on this machine as four processes, each with its
rows of every batch, with the weights copied (`data=4`) and split (`fsdp=4`); as one
process with four simulated devices, for the same meshes; and as one with one device.
Writes, to JSON, how far losses, accepted shares and final weights are apart.

python -m benchmarks.processes
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import track

from benchmarks import measure
from experiments import checkpoints, records

EPOCHS = 8
RUN = (
    "--data digits --width 0.05 --image-size 63 --batch-size 64 --optimizer adamw --learning-rate 1e-3 "
    f"--epochs {EPOCHS} --seeds 0 --rules recommended --keep-checkpoints --save-every {EPOCHS}"
).split()


def train(out: Path, processes: int, devices: int, mesh: str) -> None:
    """Runs the command as so many processes on loopback, each with so many simulated devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "experiments.cifar_alexnet", *RUN, "--out", str(out), "--mesh", mesh]
    together = ["--coordinator", coordinator, "--processes", str(processes), "--process-id"]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    running = [
        subprocess.Popen(
            [*command, *([*together, str(i)] if processes > 1 else [])],
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        for i in range(processes)
    ]
    if max(map(subprocess.Popen.wait, running)) != 0:
        raise RuntimeError(f"A process of {processes} with --mesh {mesh} failed; its own message is above.")


def result(out: Path) -> Any:
    """The epochs' records of the run with PDT, and its final weights."""
    run = next(run for run in records.read_all(out) if run.rule == "recommended")
    folder = next((out / "checkpoints").glob("recommended-*"))
    return run.epochs, jax.tree.leaves(checkpoints.trained(folder)["params"])


def apart(out: Path, reference: Path) -> dict[str, Any]:
    """How far two runs are apart."""
    (epochs, weights), (expected, wanted) = result(out), result(reference)

    def largest(name: str) -> float:
        return max(abs(e[name] / w[name] - 1) for e, w in zip(epochs, expected, strict=True) if w[name])

    flat, wanted_flat = (np.concatenate([np.ravel(x) for x in leaves]) for leaves in (weights, wanted))
    return {
        "train_loss": [e["train_loss"] for e in epochs],
        "train_loss_relative_by_epoch": [
            float(f"{e['train_loss'] / w['train_loss'] - 1:.2g}")
            for e, w in zip(epochs, expected, strict=True)
        ],
        "accepted_share_relative": largest("accepted_share"),
        "same_predictions": [e["predicted"] for e in epochs] == [w["predicted"] for w in expected],
        "weights_relative": float(np.linalg.norm(flat - wanted_flat) / np.linalg.norm(wanted_flat)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    args = measure.parser("processes", __doc__).parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="processes-") as scratch:
        folder = Path(scratch)
        runs = {"one device": (1, 1, "data=1")}
        for axis in ("data", "fsdp"):
            runs[f"4 processes, {axis}=4"] = (4, 1, f"{axis}=4")
            runs[f"1 process with 4 devices, {axis}=4"] = (1, 4, f"{axis}=4")
        for name, how in track(runs.items(), description="runs"):
            train(folder / name, *how)
        figures = {
            f"{name} against {other}": apart(folder / name, folder / other)
            for axis in ("data", "fsdp")
            for name in [f"4 processes, {axis}=4"]
            for other in (f"1 process with 4 devices, {axis}=4", "one device")
        }
    measure.write(args.out, "processes", {"run": " ".join(RUN), **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
