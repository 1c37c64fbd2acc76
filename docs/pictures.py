"""The example pictures of `pdt_optax.plot`: one real run, drawn in every way.

python docs/pictures.py    # 20 seconds; writes docs/images/*.png

An MLP on scikit-learn's handwritten digits, AdamW, 40 epochs of a cosine
schedule: plain, with the released code's rule, with the preset `drift`, and with the recommended one.
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import optax
from matplotlib import pyplot
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits

import pdt_optax
from pdt_optax import plot
from pdt_optax.inspect import report
from pdt_optax.inspect._page import worth

EPOCHS, BATCH_SIZE, TRAINED_ON = 40, 64, 1437
IMAGES = Path(__file__).parent / "images"


class Run(NamedTuple):
    """A run's weights at the start and after each epoch, its reports, and the paths of its leaves."""

    weights: list[Any]
    reports: list[pdt_optax.PDTReport]
    paths: list[str]


def data() -> tuple[jax.Array, jax.Array]:
    """(1437, 64) images in [0, 1] and their labels."""
    images, labels = load_digits(return_X_y=True)
    return jnp.asarray(images[:TRAINED_ON] / 16, jnp.float32), jnp.asarray(labels[:TRAINED_ON], jnp.int32)


def init(seed: int) -> dict[str, Any]:
    """64-128-64-10, He initialization."""
    he, sizes = jax.nn.initializers.he_normal(), (64, 128, 64, 10)
    return {
        f"dense{i}": {"bias": jnp.zeros(n), "kernel": he(jax.random.fold_in(jax.random.key(seed), i), (m, n))}
        for i, (m, n) in enumerate(itertools.pairwise(sizes))
    }


def loss(params: dict[str, Any], images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of a ReLU network."""
    *hidden, last = params.values()
    for layer in hidden:
        images = jax.nn.relu(images @ layer["kernel"] + layer["bias"])
    logits = images @ last["kernel"] + last["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(images: jax.Array, labels: jax.Array, seed: int = 0, **settings: Any) -> Run:
    """Trains under `pdt` with the given settings; `dry_run=True` is plain training."""
    steps = len(images) // BATCH_SIZE
    tx = pdt_optax.pdt(optax.adamw(optax.cosine_decay_schedule(3e-3, EPOCHS * steps)), **settings)

    @jax.jit
    def train_epoch(params: Any, state: Any, key: jax.Array) -> Any:
        def step(carry: Any, batch: jax.Array) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, images[batch], labels[batch])
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        order = jax.random.permutation(key, len(images))[: steps * BATCH_SIZE]
        return jax.lax.scan(step, (params, state), order.reshape(steps, BATCH_SIZE))[0]

    params: Any = init(seed)
    state, weights, reports = tx.init(params), [params], []
    for epoch in range(EPOCHS):
        params, state = train_epoch(params, state, jax.random.fold_in(jax.random.key(seed), epoch))
        params, state, report = tx.end_epoch(params, state)
        weights.append(params)
        reports.append(report)
    return Run(weights, reports, pdt_optax.leaf_paths(state))


def save(name: str, axes: Any) -> None:
    """Writes the figure of some axes."""
    axes.figure.savefig(IMAGES / f"{name}.png", dpi=100, metadata={"Software": None})
    pyplot.close(axes.figure)


def two_passes() -> Any:
    """What a boundary reads and writes: a diagram."""
    _, ax = pyplot.subplots(figsize=(9, 3.2), layout="constrained")
    ax.set(xlim=(0, 18), ylim=(0, 6))
    ax.axis("off")

    def column(x: float, label: str, color: str = "0.85") -> None:
        ax.add_patch(Rectangle((x, 1), 0.6, 4, facecolor=color, edgecolor="black"))
        ax.text(x + 0.3, 0.9, label, ha="center", va="top")

    def arrow(x: float, to: float, label: str) -> None:
        ax.annotate("", (to, 3), (x, 3), arrowprops={"arrowstyle": "->", "lw": 1.5})
        ax.text((x + to) / 2, 3.15, label, ha="center", va="bottom", fontsize="small")

    for i, label in enumerate(("$w_{t-4}$", "$w_{t-3}$", "$w_{t-2}$", "$w_{t-1}$", "$w_t$")):
        column(i * 0.9, label)
    arrow(4.5, 7.1, "1. measure\nreads all once")
    for i in range(25):
        corner = (7.3 + 0.32 * (i % 5), 2.2 + 0.32 * (i // 5))
        ax.add_patch(Rectangle(corner, 0.32, 0.32, facecolor="white", edgecolor="black"))
    ax.text(8.1, 2.0, "window x window\nnumbers: the model", ha="center", va="top", fontsize="small")
    arrow(9.1, 12.3, "2. assemble\nreads all once more,\nwrites once")
    column(12.5, "new $w_t$")
    accepted = (1.4, 2.0, 2.4, 3.4, 4.2)
    for y in accepted:
        ax.add_patch(Rectangle((12.5, y), 0.6, 0.25, facecolor="#0072B2"))
    ax.text(13.4, 3.6, "dark: accepted, moved\nto the prediction", va="center", fontsize="small")
    ax.text(13.4, 2.2, "light: the optimizer's,\nbit for bit", va="center", fontsize="small")
    ax.text(2.1, 5.2, "one bar: all weights at an epoch's end", ha="center", fontsize="small")
    return ax


def main() -> None:
    """Trains the runs and draws all pictures."""
    matplotlib.use("agg")
    matplotlib.rcParams.update(
        {"figure.figsize": (6.4, 4.2), "axes.spines.top": False, "axes.spines.right": False}
    )
    IMAGES.mkdir(exist_ok=True)
    images, labels = data()
    released = train(images, labels, **pdt_optax.presets.released)
    drift = train(images, labels, **pdt_optax.presets.drift)
    recommended = train(images, labels)
    plain = train(images, labels, dry_run=True)
    rank4 = train(images, labels, dry_run=True, dynamics=pdt_optax.dmd(rank=4), window=8)
    now, model, rule = 20, pdt_optax.dmd(rank=2), pdt_optax.agree()
    window, params = plain.weights[now - 5 : now], plain.weights[now]

    save("two_passes", two_passes())
    save("eigenvalues", plot.eigenvalues(rank4.reports))
    save("singular_values", plot.singular_values(released.reports))
    save("accepted_share", plot.accepted_share(drift.reports))
    save("accepted_share_per_leaf", plot.accepted_share_per_leaf(released.reports, released.paths))
    save("persistence", plot.persistence(plain.reports))
    _, ax = pyplot.subplots(layout="constrained")
    worth(report(plain.weights), ax)
    save("inspect", ax)
    prediction = pdt_optax.predict_and_mask(window, params, dynamics=model, accept=rule, horizon=5)
    save("mask", plot.mask(prediction, "dense1/kernel"))
    ax = plot.trajectories(
        window,
        params,
        dynamics=pdt_optax.drift(),
        accept=pdt_optax.released_rule(),
        horizon=5,
        leaf="dense1/kernel",
        weights=10,
        future=plain.weights[now + 1 : now + 6],
    )
    save("trajectories", ax)
    ax = plot.forecast_error(plain.weights, dynamics=pdt_optax.drift(), label="drift")
    plot.forecast_error(plain.weights, dynamics=pdt_optax.dmd(), label="DMD, rank 1 or 2", ax=ax)
    plot.forecast_error(plain.weights, dynamics=pdt_optax.dmd(rank=4), label="DMD, rank 4", ax=ax)
    save("forecast_error", ax)
    runs = {"plain": plain.weights, "PDT, recommended": recommended.weights}
    save("loss_surface", plot.loss_surface(lambda p: loss(p, images, labels), runs))
    ax = plot.loss_surface(lambda p: loss(p, images, labels), plain.weights, plane="random")
    save("loss_surface_random", ax)


if __name__ == "__main__":
    main()
