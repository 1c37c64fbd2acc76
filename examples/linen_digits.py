"""PDT in a Flax linen loop: a `TrainState`, and a jitted step that updates it in place.

python examples/linen_digits.py
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import pdt_optax

BATCH_SIZE = 64


class Epoch(NamedTuple):
    """What an epoch came to: the mean training loss, held-out accuracy, and the share of weights that jumped."""

    loss: float
    accuracy: float
    accepted_share: float


class MLP(nn.Module):
    """One hidden layer, for 8 x 8 images as rows of 64."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x)))


def train_step(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array]:
    """One step; returns the loss too."""

    def loss(params: Any) -> jax.Array:
        logits = state.apply_fn({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value


def main(epochs: int = 20) -> list[Epoch]:
    """Trains on 1,437 handwritten digits, and tests on the other 360."""
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)
    (x, x_test), (y, y_test) = jnp.split(x, [1437]), jnp.split(y, [1437])
    history = []

    # The loop.
    model = MLP()
    tx = pdt_optax.pdt(optax.adamw(2e-3))
    params = model.init(jax.random.key(0), x[:1])["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    step: Any = jax.jit(train_step, donate_argnames="state")
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.key(epoch), len(x))
        losses = []
        for batch in order[: len(x) // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE):
            state, loss = step(state, x[batch], y[batch])
            losses.append(loss)
        loss = jnp.stack(losses).mean()
        params, opt_state, report = tx.end_epoch(state.params, state.opt_state, value=loss, donate=True)
        state = state.replace(params=params, opt_state=opt_state)
        accuracy = (state.apply_fn({"params": state.params}, x_test).argmax(-1) == y_test).mean()
        history.append(Epoch(float(loss), float(accuracy), float(report.accepted_share)))
        print(f"epoch {epoch:2}: " + "  ".join(f"{k} {v:.4f}" for k, v in history[-1]._asdict().items()))
    return history


if __name__ == "__main__":
    main()
