"""The bench's MLP with PDT, trained by four processes and by one: losses and weights compared.

Starts `experiments.bench` on this machine as four processes, each with its rows of
every batch, with the weights copied (`data=4`) and split (`fsdp=4`), and as one.
Writes, to JSON, how far losses, accepted shares and final weights are apart.

python -m benchmarks.processes
"""

import json
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

PAIR = "mlp-sgd"
# Far below the tuned one, where training is chaotic: there a millionth more of each weight is 13% more loss
# after 20 steps, and no two roundings stay together.
RATE = 0.02
RUN = f"screen --workloads {PAIR} --arms recommended --seeds 0 --keep-checkpoints --save-every 10 --jobs 0".split()


def train(out: Path, processes: int, mesh: str) -> None:
    """Runs the command as so many processes on loopback."""
    out.mkdir()
    (out / "tuned.json").write_text(json.dumps({PAIR: {"learning_rate": RATE}}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "experiments.bench", *RUN, "--out", str(out), "--mesh", mesh]
    together = ["--coordinator", coordinator, "--processes", str(processes), "--process-id"]
    running = [
        subprocess.Popen(
            [*command, *([*together, str(i)] if processes > 1 else [])], stdout=subprocess.DEVNULL
        )
        for i in range(processes)
    ]
    if max(map(subprocess.Popen.wait, running)) != 0:
        raise RuntimeError(f"A process of {processes} with --mesh {mesh} failed; its own message is above.")


def result(out: Path) -> Any:
    """The epochs' records of the run with PDT, and its final weights."""
    folder = out / "records" / PAIR
    run = next(run for run in records.read_all(folder) if run.rule == "recommended")
    saved = next((folder / "checkpoints").glob("recommended-*"))
    return run.epochs, jax.tree.leaves(checkpoints.trained(saved)["params"])


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
        runs = {"one": (1, "data=1"), "data": (4, "data=4"), "fsdp": (4, "fsdp=4")}
        for name, how in track(runs.items(), description="runs"):
            train(folder / name, *how)
        figures = {
            f"4 processes, {axis}=4": apart(folder / axis, folder / "one") for axis in ("data", "fsdp")
        }
    measure.write(args.out, "processes", {"run": " ".join(RUN), "learning_rate": RATE, **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
