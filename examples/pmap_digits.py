"""PDT under `jax.pmap`: a copy of weights and state on every device, gradients averaged over them.

python examples/pmap_digits.py
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import pdt_optax

BATCH_SIZE = 64


class Epoch(NamedTuple):
    """What an epoch came to: the mean training loss, held-out accuracy, and the share of weights that moved."""

    loss: float
    accuracy: float
    accepted_share: float


def logits(params: Any, x: jax.Array) -> jax.Array:
    """One hidden layer, for 8 x 8 images as rows of 64."""
    return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def init(key: jax.Array) -> Any:
    """Its weights."""
    he, keys = jax.nn.initializers.he_normal(), jax.random.split(key)
    return {
        "w1": he(keys[0], (64, 128)),
        "b1": jnp.zeros(128),
        "w2": he(keys[1], (128, 10)),
        "b2": jnp.zeros(10),
    }


def main(epochs: int = 20) -> list[Epoch]:
    """Trains on 1,437 handwritten digits, and tests on the other 360."""
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)
    (x, x_test), (y, y_test) = jnp.split(x, [1437]), jnp.split(y, [1437])
    devices = jax.local_device_count()
    tx, history = pdt_optax.pdt(optax.adamw(2e-3)), []

    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

        value, grads = jax.lax.pmean(jax.value_and_grad(loss)(params), "devices")
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    # Every device does the same with the same weights: nothing is sent at an epoch's end.
    train_step = jax.pmap(step, axis_name="devices", donate_argnums=(0, 1))
    end_epoch = jax.pmap(tx.end_epoch, donate_argnums=(0, 1))
    params = init(jax.random.key(0))
    # The loop.
    params, state = (
        jax.tree.map(lambda a: jnp.stack([a] * devices), tree) for tree in (params, tx.init(params))
    )
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.key(epoch), len(x))
        losses = []
        for batch in order[: len(x) // BATCH_SIZE * BATCH_SIZE].reshape(-1, devices, BATCH_SIZE // devices):
            params, state, loss = train_step(params, state, x[batch], y[batch])
            losses.append(loss[0])
        params, state, report = end_epoch(params, state)
        first: Any = jax.tree.map(lambda a: a[0], params)
        accuracy = (logits(first, x_test).argmax(-1) == y_test).mean()
        mean = float(jnp.stack(losses).mean())
        history.append(Epoch(mean, float(accuracy), float(report.accepted_share[0])))
        print(f"epoch {epoch:2}: " + "  ".join(f"{k} {v:.4f}" for k, v in history[-1]._asdict().items()))
    return history


if __name__ == "__main__":
    main()
