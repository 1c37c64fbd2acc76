"""PDT beside a Flax nnx loop: an `nnx.Optimizer`, and a jitted step that updates model and optimizer in place.

python examples/nnx_digits.py
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

import pdt_optax

BATCH_SIZE = 64


class Epoch(NamedTuple):
    """What an epoch came to: the mean training loss, held-out accuracy, and the share of weights that jumped."""

    loss: float
    accuracy: float
    accepted_share: float


class MLP(nnx.Module):
    """One hidden layer, for 8 x 8 images as rows of 64."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.hidden(x)))


@nnx.jit(donate_argnames=("model", "optimizer"))
def train_step(model: MLP, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
    """One step; returns the loss."""

    def loss(model: MLP) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


def main(epochs: int = 20) -> list[Epoch]:
    """Trains on 1,437 handwritten digits, and tests on the other 360."""
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)
    (x, x_test), (y, y_test) = jnp.split(x, [1437]), jnp.split(y, [1437])
    history = []

    # The loop.
    model = MLP(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(2e-3), wrt=nnx.Param)
    predictor = pdt_optax.Predictor()
    snapshots = predictor.init(nnx.state(model, nnx.Param))
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.key(epoch), len(x))
        batches = order[: len(x) // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE)
        losses = [train_step(model, optimizer, x[batch], y[batch]) for batch in batches]
        loss = jnp.stack(losses).mean()
        params, snapshots, report = predictor.end_epoch(
            nnx.state(model, nnx.Param), snapshots, value=loss, donate=True
        )
        nnx.update(model, params)
        accuracy = (model(x_test).argmax(-1) == y_test).mean()
        history.append(Epoch(float(loss), float(accuracy), float(report.accepted_share)))
        print(f"epoch {epoch:2}: " + "  ".join(f"{k} {v:.4f}" for k, v in history[-1]._asdict().items()))
    return history


if __name__ == "__main__":
    main()
