"""ViT-Huge's 632,045,800 weights: the default, all in float32, predictions in place, delivered by updates.

Eight epochs whose training is one small random step in place, each with its
boundary. Prints what `pdt_optax.memory` says beforehand and the most memory
that the process ever held.
"""

import functools
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.progress import track

import pdt_optax
from benchmarks import measure, trees
from experiments import command


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    p = measure.parser("huge", __doc__)
    p.add_argument("--small", action="store_true", help="the 16 M AlexNet tree instead, to try the command")
    args = p.parse_args(argv)
    shapes = trees.alexnet("16M") if args.small else trees.vit_huge()
    tx = pdt_optax.pdt(optax.identity())
    told = pdt_optax.memory(tx, {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()})
    print(f"{trees.count(shapes):,} weights in {len(shapes)} leaves. To be held:\n{told}", flush=True)

    @functools.partial(jax.jit, static_argnums=1)
    def drawn(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """A program for each shape: one for all leaves leaves 2 GB of the compiler's memory with the process."""
        return 0.02 * jax.random.normal(key, shape)

    def trained(params: Any, state: Any, factor: jax.Array) -> Any:
        updates, state = tx.update(jax.tree.map(lambda w: 1e-3 * jnp.sin(factor * w), params), state, params)
        return optax.apply_updates(params, updates), state

    train = jax.jit(trained, donate_argnums=(0, 1))
    before = _peak_bytes()
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = jax.block_until_ready({n: drawn(k, s) for (n, s), k in zip(shapes.items(), keys, strict=True)})
    state = jax.block_until_ready(tx.init(params))
    seconds, predicted, share = [], [], 0.0
    for epoch in track(range(8), description="epochs"):
        params, state = jax.block_until_ready(train(params, state, jnp.float32(50 + epoch)))
        started = time.perf_counter()
        params, state, report = jax.block_until_ready(tx.end_epoch(params, state, donate=True))
        seconds.append(time.perf_counter() - started)
        predicted.append(bool(report.predicted))
        share = float(report.accepted_share)
    figures = {
        "parameters": trees.count(shapes),
        "leaves": len(shapes),
        "first_boundary_with_compilation_s": round(seconds[0], 2),
        "boundary_s": [round(s, 3) for s in seconds[1:]],
        "predicted": predicted[1:],
        "accepted_share": round(share, 4),
        "told_gb": round(told.device / 1e9, 2),
        "peak_resident_gb": round(_peak_bytes() / 1e9, 2),
        "resident_before_gb": round(before / 1e9, 2),
    }
    measure.write(args.out, "huge-small" if args.small else "huge", figures)
    return 0


def _peak_bytes() -> int:
    """The most memory that the process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    sys.exit(main())
