"""An ordinary training step, wrapped and unwrapped, in place.

`adamw-10M`: the optimizer alone on one leaf of 10 M weights, in the `end_epoch`
form, where nothing the size of the weights may happen in a step.
`vit`: the whole step of the bench's small ViT, which has many leaves, in the
`end_epoch` form: its snapshots in the state, and detached.
`alexnet`: forward, backward and AdamW on AlexNet, batch 128, in the `every` form,
where the boundary is in the graph and an ordinary step passes it by.
"""

import functools
import sys
from collections.abc import Sequence
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
        for _ in range(16):
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
    p.add_argument("--pairs", type=command.whole(1), default=15, help="timed pairs of the optimizer alone")
    args = p.parse_args(argv)
    bare = optax.adamw(1e-3)
    figures: dict[str, Any] = {}
    recommended = preset("recommended")
    vits = {
        "unwrapped": Vit(preset(BASELINE), False),
        "wrapped": Vit(recommended, False),
        "detached": Vit(recommended, True),
    }
    seconds = {arm: [s / 16 for s in all_] for arm, all_ in measure.interleaved(vits, args.pairs).items()}
    figures["vit"] = {arm: measure.summary(s) for arm, s in seconds.items()} | {
        f"ratio_{arm}": measure.median_ratio(seconds[arm], seconds["unwrapped"])
        for arm in ("wrapped", "detached")
    }
    figures["vit"]["arrays"] = {arm: len(jax.tree.leaves(vit.state)) for arm, vit in vits.items()}
    print("vit", figures["vit"], flush=True)
    del vits
    # So many updates to an epoch that none ends here.
    within = pdt_optax.pdt(bare, every=1_000_000)
    for name, make, wrapped, pairs in (
        ("adamw-10M", adamw_10m, pdt_optax.pdt(bare), args.pairs),
        *(
            (
                f"alexnet-{size}",
                functools.partial(alexnet, image_size=size, batch_size=args.batch_size),
                within,
                args.repeats,
            )
            for size in args.image_sizes
        ),
    ):
        seconds = measure.interleaved({"unwrapped": make(bare), "wrapped": make(wrapped)}, pairs)
        figures[name] = {arm: measure.summary(s) for arm, s in seconds.items()}
        figures[name]["ratio"] = measure.median_ratio(seconds["wrapped"], seconds["unwrapped"])
        print(name, figures[name], flush=True)
    measure.write(args.out, "step", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
