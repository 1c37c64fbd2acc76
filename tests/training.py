"""Real training runs, shared by the tests: a small MLP on scikit-learn's handwritten digits."""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

Params = dict[str, dict[str, Any]]

EPOCHS = 30
BATCH_SIZE = 64
STEPS_PER_EPOCH = 1797 // BATCH_SIZE
WIDTHS = 64, 96, 10

OPTIMIZERS: Mapping[str, optax.GradientTransformation] = {
    "adamw": optax.adamw(3e-3),
    # Its last steps are thousands of times smaller than its first: the hardest windows for float32.
    "momentum-cosine": optax.sgd(optax.cosine_decay_schedule(0.05, EPOCHS * STEPS_PER_EPOCH), momentum=0.9),
}


def init_params(seed: int = 0) -> Params:
    """He initialization."""
    random = np.random.default_rng(seed)
    params = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(WIDTHS)):
        kernel = random.normal(0, np.sqrt(2 / fan_in), (fan_in, fan_out)).astype(np.float32)
        params[f"dense_{layer}"] = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(fan_out, jnp.float32)}
    return params


def loss_fn(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of a ReLU network."""
    *hidden, last = params.values()
    activations = images
    for layer in hidden:
        activations = jax.nn.relu(activations @ layer["kernel"] + layer["bias"])
    logits = activations @ last["kernel"] + last["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.cache
def epoch_weights(optimizer: str = "adamw") -> list[Params]:
    """The float32 weights at the start and after each of `EPOCHS` epochs, as NumPy arrays."""
    tx = OPTIMIZERS[optimizer]
    digits, targets = load_digits(return_X_y=True)
    images, labels = jnp.asarray(digits / 16, jnp.float32), jnp.asarray(targets, jnp.int32)
    random = np.random.default_rng(1)

    def train_step(carry, batch):
        params, opt_state = carry
        grads = jax.grad(loss_fn)(params, images[batch], labels[batch])
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    @jax.jit
    def train_epoch(carry, batches):
        return jax.lax.scan(train_step, carry, batches)[0]

    params = init_params()
    carry = params, tx.init(params)
    history = [jax.device_get(params)]
    for _ in range(EPOCHS):
        shuffled = random.permutation(len(labels))
        batches = shuffled[: STEPS_PER_EPOCH * BATCH_SIZE].reshape(STEPS_PER_EPOCH, BATCH_SIZE)
        carry = train_epoch(carry, batches)
        history.append(jax.device_get(carry[0]))
    return history
