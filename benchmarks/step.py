"""An ordinary training step with PDT and without, in place.

`vit`: the whole step of the bench's small ViT, which has many leaves, in a jitted
loop: with a `Predictor` beside it, and wrapped, its snapshots in the state.
`vit-nnx`: the same model in a Flax nnx loop, an `nnx.jit` step that changes model and
optimizer in place.
`vit-scan`: epochs in one `scan`, and in each a `scan` over its steps, with and without
`end_epoch` between them: the whole program, compiled once.
`adamw-10M`: the optimizer alone on one leaf of 10 M weights, wrapped, where nothing the
size of the weights may happen in a step.
`alexnet`: forward, backward and AdamW on AlexNet, batch 128, wrapped, in the `end_epoch`
form and in the `every` form, where the boundary is in the graph and an ordinary step
passes it by.

A device that is handed its steps before it is done with the last, as in training on
a GPU, hides what they cost to hand over: `--queued` steps are timed as one.
"""

import dataclasses
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
from experiments import command
from experiments.models.alexnet import AlexNet
from experiments.training import trainer
from experiments.training.arms import BASELINE, Arm, Method, Recipe, preset
from experiments.training.trainer import Config
from experiments.tuned import setups


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


VIT = setups.PAIRS["vit-adamw"]


@dataclasses.dataclass(frozen=True)
class Wrapped(Arm):
    """The optimizer inside `pdt`, whose state holds the snapshots."""

    def method(self, recipe: Recipe) -> Method:
        return Method(pdt_optax.pdt(recipe.inner()), recipe.schedule)


class Vit:
    """One training step of the bench's `vit-adamw` pair, in the trainer's jitted loop.

    With a predictor it is the step of the loop without one: what is measured is that its history is no part of it.
    """

    def __init__(self, program: Any, predictor: pdt_optax.Predictor | None = None):
        self.step, self.state = program.step, program.init(jax.random.key(0))
        self.history = None if predictor is None else predictor.init(self.state.params)
        inputs, targets = map(jnp.asarray, VIT.workload.load().train)
        self.given = (inputs, targets, jnp.arange(VIT.workload.batch_size), jax.random.key(1))

    def __call__(self) -> Any:
        self.state = self.step(self.state, *self.given)
        return self.state.losses


class NnxVit:
    """The same step in a Flax nnx loop."""

    def __init__(self, tx: optax.GradientTransformation, predictor: pdt_optax.Predictor | None = None):
        self.model = VIT.workload.model(nnx.Rngs(0))
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)
        self.history = None if predictor is None else predictor.init(nnx.state(self.model, nnx.Param))
        inputs, targets = VIT.workload.load().train
        size = VIT.workload.batch_size
        self.batch = (jnp.asarray(inputs[:size]), jnp.asarray(targets[:size]))

    def __call__(self) -> Any:
        return _nnx_step(self.model, self.optimizer, *self.batch)


@nnx.jit
def _nnx_step(model: nnx.Module, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
    def loss(model: nnx.Module) -> jax.Array:
        return VIT.workload.losses(model, x, y, jax.random.key(1))[0].mean()

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


class ScanVit:
    """Epochs in a scan, and in each a scan over its steps: with a predictor, `end_epoch` after each."""

    def __init__(self, predictor: pdt_optax.Predictor | None, epochs: int, steps: int):
        self.tx, self.predictor, self.epochs = optax.adamw(1e-3), predictor, epochs
        graph, self.params, rest = nnx.split(VIT.workload.model(nnx.Rngs(0)), nnx.Param, ...)
        inputs, targets = map(jnp.asarray, VIT.workload.load().train)
        size = VIT.workload.batch_size

        def step(carry: Any, start: jax.Array) -> Any:
            def loss(params: Any) -> jax.Array:
                model: Any = nnx.merge(graph, params, rest, copy=True)
                x, y = (jax.lax.dynamic_slice_in_dim(a, start, size) for a in (inputs, targets))
                return VIT.workload.losses(model, x, y, jax.random.key(1))[0].mean()

            params, opt_state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, opt_state = self.tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        def epoch(carry: Any, _: Any) -> Any:
            params, opt_state, history = carry
            (params, opt_state), values = jax.lax.scan(step, (params, opt_state), size * jnp.arange(steps))
            if predictor is not None:
                params, history, _ = predictor.end_epoch(params, history)
            return (params, opt_state, history), values.mean()

        self.program = jax.jit(lambda carry: jax.lax.scan(epoch, carry, length=epochs)[1])
        history: Any = None if predictor is None else predictor.init(self.params)
        self.carry = (self.params, self.tx.init(self.params), history)

    def __call__(self) -> Any:
        return self.program(self.carry)


def vit_figures(pairs: int, count: int, epochs: int = 8, steps: int = 24) -> dict[str, Any]:
    """The small ViT's three loops."""
    predictor = pdt_optax.Predictor()
    figures: dict[str, Any] = {}
    plain, wrapped = (
        trainer._program.__wrapped__(Config(VIT.workload, arm, "adamw", 1e-3, "constant", epochs=1, seed=0))
        for arm in (preset(BASELINE), Wrapped("pdt"))
    )
    jitted = {"unwrapped": Vit(plain), "beside": Vit(plain, predictor), "wrapped": Vit(wrapped)}
    figures["vit"] = compared(jitted, pairs, count)
    figures["vit"]["arrays"] = {arm: len(jax.tree.leaves(vit.state)) for arm, vit in jitted.items()}
    print("vit", figures["vit"], flush=True)
    inner = optax.adamw(1e-3)
    loops = {
        "unwrapped": NnxVit(inner),
        "beside": NnxVit(inner, predictor),
        "wrapped": NnxVit(pdt_optax.pdt(inner)),
    }
    figures["vit-nnx"] = compared(loops, pairs, count)
    print("vit-nnx", figures["vit-nnx"], flush=True)
    scans = {"unwrapped": ScanVit(None, epochs, steps), "beside": ScanVit(predictor, epochs, steps)}
    figures["vit-scan"] = compared(scans, pairs, 1) | {"epochs": epochs, "steps": steps}
    print("vit-scan", figures["vit-scan"], flush=True)
    return figures


def compared(steps: dict[str, Callable[[], Any]], pairs: int, count: int) -> dict[str, Any]:
    """Figures of each form, and its ratio to the unwrapped one in the same turns."""
    figures, seconds = per_step(steps, pairs, count)
    ratios = {f"ratio_{arm}": measure.median_ratio(s, seconds["unwrapped"]) for arm, s in seconds.items()}
    del ratios["ratio_unwrapped"]
    return figures | ratios


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
    p.add_argument("--pairs", type=command.whole(1), default=40, help="timed pairs of the optimizer alone")
    args = p.parse_args(argv)
    figures: dict[str, Any] = {"queued": args.queued}
    figures |= vit_figures(args.pairs, max(16, args.queued))
    bare = optax.adamw(1e-3)
    end_epoch = pdt_optax.pdt(bare)
    every = pdt_optax.pdt(bare, every=1_000_000)  # so many updates to an epoch that none ends here
    for name, make, txs, pairs in (
        ("adamw-10M", adamw_10m, {"unwrapped": bare, "wrapped": end_epoch}, args.pairs),
        *(
            (
                f"alexnet-{size}",
                functools.partial(alexnet, image_size=size, batch_size=args.batch_size),
                {"unwrapped": bare, "wrapped": end_epoch, "every": every},
                args.repeats,
            )
            for size in args.image_sizes
        ),
    ):
        figures[name] = compared({arm: make(tx) for arm, tx in txs.items()}, pairs, args.queued)
        print(name, figures[name], flush=True)
    measure.write(args.out, "step", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
