"""PDT in an Equinox loop: the model's arrays are what is trained, and a step updates them in place.

pip install equinox
python examples/equinox_digits.py
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import pdt_optax

BATCH_SIZE = 64


class Epoch(NamedTuple):
    """What an epoch came to: the mean training loss, held-out accuracy, and the share of weights that jumped."""

    loss: float
    accuracy: float
    accepted_share: float


def make_step(tx: pdt_optax.PDT, static: Any) -> Any:
    """A jitted step on the model's arrays; `static` is the rest of the model."""

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = jax.vmap(eqx.combine(params, static))(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @eqx.filter_jit(donate="all-except-first")
    def step(batch: Any, params: Any, opt_state: Any) -> Any:
        value, grads = eqx.filter_value_and_grad(loss)(params, *batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return eqx.apply_updates(params, updates), opt_state, value

    return step


def main(epochs: int = 20) -> list[Epoch]:
    """Trains on 1,437 handwritten digits, and tests on the other 360."""
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)
    (x, x_test), (y, y_test) = jnp.split(x, [1437]), jnp.split(y, [1437])
    history = []

    # The loop.
    model = eqx.nn.MLP(64, 10, width_size=128, depth=1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    tx = pdt_optax.pdt(optax.adamw(2e-3))
    opt_state = tx.init(params)
    step = make_step(tx, static)
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.key(epoch), len(x))
        losses = []
        for batch in order[: len(x) // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE):
            params, opt_state, loss = step((x[batch], y[batch]), params, opt_state)
            losses.append(loss)
        loss = jnp.stack(losses).mean()
        params, opt_state, report = tx.end_epoch(params, opt_state, value=loss, donate=True)
        trained: Any = eqx.combine(params, static)
        accuracy = (jax.vmap(trained)(x_test).argmax(-1) == y_test).mean()
        history.append(Epoch(float(loss), float(accuracy), float(report.accepted_share)))
        print(f"epoch {epoch:2}: " + "  ".join(f"{k} {v:.4f}" for k, v in history[-1]._asdict().items()))
    return history


if __name__ == "__main__":
    main()
