"""A training run killed by SIGKILL at random moments, and resumed from whatever lies on disk.

Trains AlexNet on digits with PDT, a checkpoint every second epoch, once without
interruption. Then, for each kill, starts it anew, kills it at a random moment of
its running time, starts it again, and compares the final weights, optimizer and
PDT state bit for bit with those of the uninterrupted run. Writes a JSON record.

python -m benchmarks.kills
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import track

from benchmarks import measure
from experiments import command
from experiments.training import checkpoints

EPOCHS = 40
RUN = (
    "--data digits --width 0.05 --image-size 63 --batch-size 256 --optimizer adamw --learning-rate 1e-3 "
    f"--epochs {EPOCHS} --seeds 0 --rules recommended --save-every 2 --keep-checkpoints"
).split()


def start(out: Path, cache: Path) -> subprocess.Popen[bytes]:
    """The run, or its continuation."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.cifar_alexnet", *RUN, "--out", str(out)],
        env=os.environ
        | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        stdout=subprocess.DEVNULL,
    )


def finish(out: Path, cache: Path) -> None:
    """Runs it to its end."""
    if code := start(out, cache).wait():
        raise RuntimeError(f"The run must end by itself. It ended with {code} in {out}.")


def final(out: Path) -> dict[str, Any]:
    """The last checkpoints of all runs, as they lie on disk."""
    return {folder.name: checkpoints.trained(folder) for folder in sorted((out / "checkpoints").iterdir())}


def lies(out: Path) -> dict[str, int]:
    """What a killed run left: recorded epochs, whole checkpoints, and half-written ones."""
    saved = [p for folder in (out / "checkpoints").glob("*") for p in folder.iterdir()]
    return {
        "epochs": sum(max(0, p.read_text().count("\n") - 1) for p in out.glob("*.jsonl")),
        "checkpoints": sum(p.name.isdecimal() for p in saved),
        "unfinished_checkpoints": sum(not p.name.isdecimal() for p in saved),
    }


def survives(out: Path, cache: Path, after: float, expected: dict[str, Any]) -> dict[str, Any] | None:
    """One kill, so many seconds after the start: what it left, and whether the resumed run came to the same end.

    None if the run had ended before.
    """
    running = start(out, cache)
    time.sleep(after)
    running.send_signal(signal.SIGKILL)
    if running.wait() != -signal.SIGKILL:
        return None
    left = lies(out)
    finish(out, cache)
    states = final(out)
    same = jax.tree.structure(states) == jax.tree.structure(expected) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(expected), strict=True)
    )
    return {"after_seconds": round(after, 2), **left, "same_to_the_last_bit": same}


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0 if every run survived, else 1."""
    p = measure.parser("kills", __doc__)
    p.add_argument("--kills", type=command.whole(1), default=20, help="how many")
    p.add_argument("--seed", type=command.whole(0), default=0, help="of their moments")
    args = p.parse_args(argv)
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        folder, cache = Path(scratch), Path(scratch) / "compiled"
        finish(folder / "first", cache)  # compiles
        started = time.monotonic()
        finish(folder / "whole", cache)
        seconds = time.monotonic() - started
        expected = final(folder / "whole")
        kills = []
        for _ in track(range(args.kills), description="kills"):
            kill = None
            while kill is None:  # a run may be quicker than the first was
                out = Path(tempfile.mkdtemp(dir=folder))
                kill = survives(out, cache, moments.uniform(0, seconds), expected)
            kills.append(kill)
    survived = sum(kill["same_to_the_last_bit"] for kill in kills)
    result = {
        "run": " ".join(RUN),
        "uninterrupted_seconds": round(seconds, 1),
        "arrays_compared": len(jax.tree.leaves(expected)),
        "killed": len(kills),
        "killed_while_a_checkpoint_was_written": sum(kill["unfinished_checkpoints"] > 0 for kill in kills),
        "survived": survived,
        "kills": kills,
    }
    measure.write(args.out, "kills", result)
    print(f"{survived} of {args.kills} runs came to the same end, bit for bit.")
    return int(survived < args.kills)


if __name__ == "__main__":
    sys.exit(main())
