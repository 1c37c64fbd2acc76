"""An ordinary training step, wrapped and unwrapped, in place.

`adamw-10M`: the optimizer alone on one leaf of 10 M weights, in the `end_epoch`
form, where nothing the size of the weights may happen in a step.
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
from experiments.models import AlexNet


def adamw_10m(tx: Any) -> measure.InPlace:
    """One AdamW step on a leaf of 10 M weights."""
    params = {"w": jnp.full(10_000_000, 0.5, jnp.float32)}
    grads = {"w": jnp.full(10_000_000, 1e-3, jnp.float32)}

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return measure.InPlace(step, (params, tx.init(params), grads), (0, 1))


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


def main(argv: Sequence[str] | None = None) -> int:
    p = measure.parser("step", __doc__)
    p.add_argument("--image-size", type=int, default=128)
    p.add_argument("--batch-size", type=int, default=128)
    p.add_argument("--pairs", type=int, default=15, help="timed pairs of the optimizer alone")
    args = p.parse_args(argv)
    bare = optax.adamw(1e-3)
    figures = {}
    for name, make, wrapped, pairs in (
        ("adamw-10M", adamw_10m, pdt_optax.pdt(bare), args.pairs),
        # So many updates to an epoch that none ends here.
        (
            "alexnet",
            functools.partial(alexnet, image_size=args.image_size, batch_size=args.batch_size),
            pdt_optax.pdt(bare, every=1_000_000),
            args.repeats,
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
