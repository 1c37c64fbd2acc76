"""Which examples make up an epoch's batches: i.i.d., or one class at a time."""

import jax
import jax.numpy as jnp
import numpy as np


def shuffled(labels: np.ndarray, key: jax.Array, batch_size: int) -> jax.Array:
    """The i.i.d. scheme: every example at most once, in random order.

    Args:
      labels: (n,), of the examples.
      key: of the order.
      batch_size: examples in a batch.

    Returns:
      Indices, (n // batch_size, batch_size).
    """
    steps = len(labels) // batch_size
    return jax.random.permutation(key, len(labels))[: steps * batch_size].reshape(steps, batch_size)


def single_class(labels: np.ndarray, key: jax.Array, batch_size: int) -> jax.Array:
    """The non-i.i.d. scheme of A.8: each batch is of one class, the batches come in random order.

    There are as many batches as in the i.i.d. scheme. Every example comes at most
    once, but for the batches that are made of what is left over of the classes:
    they are those with the most left, filled up with examples of the same class.

    Args:
      labels: (n,), of the examples, from 0; concrete, since they say how many batches a class has.
      key: of both orders.
      batch_size: examples in a batch.

    Returns:
      Indices, (n // batch_size, batch_size).
    """
    of_examples, of_batches = jax.random.split(key)
    counts = np.bincount(labels)
    batches, left = np.divmod(counts, batch_size)
    batches[np.argsort(-left, kind="stable")[: len(labels) // batch_size - batches.sum()]] += 1
    # By class, and at random within each.
    order = jax.random.permutation(of_examples, len(labels))
    order = order[jnp.argsort(jnp.asarray(labels)[order], stable=True)]
    firsts = np.cumsum(counts) - counts
    places = [
        first + np.arange(size * batch_size) % max(count, 1)
        for first, count, size in zip(firsts, counts, batches, strict=True)
    ]
    return jax.random.permutation(of_batches, order[np.concatenate(places)].reshape(-1, batch_size))
