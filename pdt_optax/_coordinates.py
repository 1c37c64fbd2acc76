"""A window of weights in orthonormal coordinates, from its Gram matrix or from a QR: `window` x `window` numbers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdt_optax._shapes import expect


class Window(NamedTuple):
    """A window in orthonormal coordinates: Gram = coordinates^T coordinates.

    Attributes:
      older, newer: (window, window - 1), w_0..w_(n-1) and w_1..w_n as
        combinations of the difference basis.
      coordinates: (window, window), the difference basis in an orthonormal one.
      left, singular_values, right: thin SVD of w_0..w_(n-1) in coordinates.
      noise: (), what the Gram matrix's own rounding can put into a singular value.
    """

    older: jax.Array
    newer: jax.Array
    coordinates: jax.Array
    left: jax.Array
    singular_values: jax.Array
    right: jax.Array
    noise: jax.Array


def factor(gram: jax.Array) -> Window:
    """The window whose difference basis has this Gram matrix, (window, window)."""
    expect("gram", gram, len(gram), len(gram))
    # Scale to unit diagonal before factoring: the weights are 1e3 to 1e5 times
    # longer than their differences, and an eigensolver's error is absolute.
    # An eigenvalue factor, not Cholesky: repeated snapshots make it singular.
    length = jnp.sqrt(jnp.diagonal(gram))
    inverse = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
    eigenvalues, vectors = jnp.linalg.eigh(gram * inverse[:, None] * inverse)
    coordinates = jnp.sqrt(jnp.maximum(eigenvalues, 0))[:, None] * vectors.T * length
    # Rounding in the scaled Gram matrix is relative to the columns' lengths and
    # shows as its square root; 64 covers what random windows of known rank showed.
    noise = 64 * jnp.finfo(gram.dtype).eps ** 0.5 * jnp.max(length[1:])
    return in_coordinates(coordinates, noise)


def in_coordinates(coordinates: jax.Array, noise: jax.Array) -> Window:
    """The window whose difference basis has these coordinates, (window, window), in an orthonormal one."""
    window = coordinates.shape[1]
    expect("coordinates", coordinates, window, window)
    # w_j = w_n - sum of the differences after j.
    from_basis = -np.tri(window, k=-1)
    from_basis[0] = 1.0
    points = jnp.asarray(from_basis, coordinates.dtype)
    older, newer = points[:, :-1], points[:, 1:]
    left, singular_values, right_t = jnp.linalg.svd(coordinates @ older, full_matrices=False)
    return Window(older, newer, coordinates, left, singular_values, right_t.T, noise)
