"""Shapes of the small matrices and of the leaves, checked while a program is traced: it costs nothing when it runs."""

from collections.abc import Sequence

import jax
import numpy as np


def expect(name: str, array: jax.Array | np.ndarray, *shape: int | None) -> None:
    """Raises ValueError unless an array has this shape; None stands for any length.

    >>> import jax.numpy as jnp
    >>> expect("increments", jnp.zeros((3, 5)), None, 5)
    >>> expect("increments", jnp.zeros((5, 3)), None, 5)
    Traceback (most recent call last):
    ValueError: `increments` must have the shape (any, 5): one that is swapped would broadcast. Got (5, 3).
    """
    got = np.shape(array)
    if len(got) != len(shape) or any(w is not None and w != g for w, g in zip(shape, got, strict=True)):
        told = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(
            f"`{name}` must have the shape ({told}): one that is swapped would broadcast. Got {got}."
        )


def expect_alike(name: str, leaf: Sequence[jax.Array]) -> None:
    """Raises ValueError unless all arrays of a leaf, its snapshots and its weights, have one shape."""
    *others, weights = leaf
    for array in others:
        if array.shape != weights.shape:
            raise ValueError(
                f"`{name}` must be the arrays of one leaf after the other, all of one shape: they are flattened and "
                f"would be paired wrongly. Got {array.shape} beside weights of {weights.shape}."
            )
