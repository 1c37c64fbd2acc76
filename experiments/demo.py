"""AlexNet on real digits, with PDT and without: a table and a picture in minutes, on two CPU cores.

Before it starts it tells how long it will take, from a second's work on this machine.
"""

import math
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from experiments import cifar_alexnet, command

# At the learning rate that was the best for the baseline; nothing is saved, since nothing is lost in a minute.
RUNS = (
    *("--data", "digits", "--width", "0.125", "--image-size", "64", "--batch-size", "64"),
    *("--optimizer", "adamw", "--learning-rate", "1e-3", "--epochs", "20", "--seeds", "0"),
    *("--rules", "recommended", "released", "--fresh", "--save-every", "0"),
)
# On two idle cores: of the runs, nothing compiled before; and `rounds` there.
SECONDS, ROUNDS = 40.0, 600.0


def rounds(seconds: float = 1.0) -> float:
    """How often this machine does, in that time, a little of what compiling and training do, per second."""
    square = jnp.ones((512, 512))
    product = jax.jit(lambda x: x @ x)
    product(square).block_until_ready()
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        sum(range(100_000))
        product(square).block_until_ready()
        count += 1
    return count / passed


def told(speed: float) -> str:
    """How long the runs take on a machine of so many rounds a second."""
    seconds = SECONDS * ROUNDS / speed
    if seconds < 90:
        return f"about {10 * math.ceil(seconds / 10)} seconds"
    return f"about {math.ceil(seconds / 60)} minutes"


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    p = command.Parser("experiments.demo", __doc__)
    p.add_argument("--out", type=command.output, default="runs/demo", help="folder for the results")
    args = p.parse_args(argv)
    print(f"This takes {told(rounds())} on this machine, less once it is compiled.", flush=True)
    return cifar_alexnet.main([*RUNS, "--out", str(args.out)])


if __name__ == "__main__":
    sys.exit(main())
