"""An ordinary training step, wrapped and unwrapped, in place.

`adamw-10M`: the optimizer alone on one leaf of 10 M weights, in the `end_epoch`
form, where nothing the size of the weights may happen in a step.
`vit`: the whole step of the bench's small ViT, which has many leaves, in the
`end_epoch` form: its snapshots in the state, and detached.
`alexnet`: forward, backward and AdamW on AlexNet, batch 128, in the `end_epoch` form
and in the `every` form, where the boundary is in the graph and an ordinary step passes it by.

A device that is handed its steps before it is done with the last, as in training on
a GPU, hides what they cost to hand over: `--queued` steps are timed as one.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import pdt_optax
from benchmarks import measure
from experiments import bench_configs, command, training
from experiments.arms import BASELINE, Arm, preset
from experiments.models import AlexNet
from experiments.training import Config


def adamw_10m(tx: Any) -> measure.InPlace:
    """One AdamW step on a leaf of 10 M weights."""
    params = {"w": jnp.full(10_000_000, 0.5, jnp.float32)}
    grads = {"w": jnp.full(10_000_000, 1e-3, jnp.float32)}

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return measure.InPlace(step, (params, tx.init(params), grads), (0, 1))


def queued(step: Callable[[], Any], count: int) -> Callable[[], Any]:
    """So many steps, handed over one after the other."""

    def steps() -> Any:
        for _ in range(count - 1):
            step()
        return step()

    return steps


def per_step(
    steps: dict[str, Callable[[], Any]], repeats: int, count: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Figures of a step, and the seconds they are of, from steps that are taken in turns, so many at a time."""
    taken = measure.interleaved({arm: queued(step, count) for arm, step in steps.items()}, repeats)
    seconds = {arm: [s / count for s in all_] for arm, all_ in taken.items()}
    return {arm: measure.summary(s) for arm, s in seconds.items()}, seconds


class Vit:
    """One training step of the bench's `vit-adamw` pair."""

    def __init__(self, arm: Arm, detached: bool):
        pair = bench_configs.PAIRS["vit-adamw"]
        config = Config(pair.workload, arm, "adamw", 1e-3, "constant", epochs=1, seed=0)
        program = training._program.__wrapped__(config)
        self.step = program.step
        self.state = program.init(jax.random.key(0))
        if detached:
            self.state = self.state._replace(opt_state=pdt_optax.detach(self.state.opt_state)[0])
        inputs, targets = map(jnp.asarray, pair.workload.load().train)
        self.given = (inputs, targets, jnp.arange(pair.workload.batch_size), jax.random.key(1))

    def __call__(self) -> Any:
        self.state = self.step(self.state, *self.given)
        return self.state.losses


def alexnet(tx: Any, image_size: int, batch_size: int) -> measure.InPlace:
    """One training step of AlexNet."""
    graph, params, rest = nnx.split(AlexNet(10, rngs=nnx.Rngs(0)), nnx.Param, ...)
    images = jax.random.normal(jax.random.key(1), (batch_size, image_size, image_size, 3))
    labels = jnp.arange(batch_size) % 10

    def step(params: Any, state: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            model: Any = nnx.merge(graph, params, rest)
            logits = model(images, key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return measure.InPlace(step, (params, tx.init(params), images, labels, jax.random.key(2)), (0, 1))


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    p = measure.parser("step", __doc__)
    p.add_argument(
        "--image-sizes",
        type=command.whole(AlexNet.smallest_image),
        nargs="+",
        default=[128, 224],
        help="AlexNet's inputs",
    )
    p.add_argument("--batch-size", type=command.whole(1), default=128)
    p.add_argument("--queued", type=command.whole(1), default=1, help="steps that are timed as one")
    p.add_argument("--pairs", type=command.whole(1), default=15, help="timed pairs of the optimizer alone")
    args = p.parse_args(argv)
    figures: dict[str, Any] = {"queued": args.queued}
    recommended = preset("recommended")
    vits = {
        "unwrapped": Vit(preset(BASELINE), False),
        "wrapped": Vit(recommended, False),
        "detached": Vit(recommended, True),
    }
    figures["vit"], seconds = per_step({**vits}, args.pairs, max(16, args.queued))
    for arm in ("wrapped", "detached"):
        figures["vit"][f"ratio_{arm}"] = measure.median_ratio(seconds[arm], seconds["unwrapped"])
    figures["vit"]["arrays"] = {arm: len(jax.tree.leaves(vit.state)) for arm, vit in vits.items()}
    print("vit", figures["vit"], flush=True)
    del vits
    bare = optax.adamw(1e-3)
    end_epoch = pdt_optax.pdt(bare)
    every = pdt_optax.pdt(bare, every=1_000_000)  # so many updates to an epoch that none ends here
    for name, make, txs, pairs in (
        ("adamw-10M", adamw_10m, {"unwrapped": bare, "wrapped": end_epoch}, args.pairs),
        *(
            (
                f"alexnet-{size}",
                functools.partial(alexnet, image_size=size, batch_size=args.batch_size),
                {"unwrapped": bare, "end_epoch": end_epoch, "wrapped": every},
                args.repeats,
            )
            for size in args.image_sizes
        ),
    ):
        figures[name], seconds = per_step({arm: make(tx) for arm, tx in txs.items()}, pairs, args.queued)
        figures[name]["ratio"] = measure.median_ratio(seconds["wrapped"], seconds["unwrapped"])
        if "end_epoch" in seconds:
            figures[name]["ratio_end_epoch"] = measure.median_ratio(
                seconds["end_epoch"], seconds["unwrapped"]
            )
        print(name, figures[name], flush=True)
    measure.write(args.out, "step", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
