"""An independent oracle: the paper's equations in float64 NumPy, written out literally.

It shares nothing with the library's way of computing: raw snapshots instead of
differences, an SVD of the N x (h-1) matrix instead of a Gram matrix, complex
eigenvectors and a pseudo-inverse instead of powers of a real matrix.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import pdt_optax

Vector = np.ndarray  # (N,)
Matrix = np.ndarray


class Oracle(NamedTuple):
    """What the equations give, for all N weights.

    Attributes:
      weights: (N,), float64, after the accepted weights moved.
      mask: (N,), bool, or weights in [0, 1] for `shrink`.
      predictions: (horizon, N); row k is pred(k + 1).
      reference: (N,), the weights that the prediction starts from.
      singular_values: (h - 1,), descending.
      rank: modes that the model uses.
      eigenvalues: (rank,), complex, in no order; none for `drift`.
    """

    weights: Vector
    mask: Vector
    predictions: Matrix
    reference: Vector
    singular_values: Vector
    rank: int
    eigenvalues: Vector


class Model(NamedTuple):
    """DMD's modes (N, rank) and eigenvalues (rank,), and the (h - 1,) singular values."""

    modes: Matrix
    eigenvalues: Vector
    singular_values: Vector


def flatten(tree: Any) -> Vector:
    """All floating weights of a tree, one after another; float64 only if all of them are."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    leaves = [leaf for leaf in leaves if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)]
    dtype = np.float64 if all(leaf.dtype == np.float64 for leaf in leaves) else np.float32
    return np.concatenate([leaf.ravel().astype(dtype) for leaf in leaves])


def truncated_rank(
    s: Vector, rank: str | int | float | None, n_weights: int, longest_step: float, dtype: np.dtype
) -> int:
    """How many of the singular values `s` the model keeps."""
    # Singular values at the level of rounding are noise whatever the rule says.
    available = int(np.sum(s > max(np.finfo(dtype).eps * s[0], 1e-6 * longest_step)))
    if rank is None:
        return available
    if rank == "gavish-donoho":
        beta = len(s) / n_weights
        omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
        lower_median = np.sort(s)[(len(s) - 1) // 2]
        return min(available, max(1, int(np.sum(s > omega * lower_median))))
    if isinstance(rank, float):
        share = np.cumsum(s**2) / np.sum(s**2)
        return min(available, int(np.argmax(share >= rank)) + 1)
    assert isinstance(rank, int)
    return min(available, rank)


def fit_dmd(window: Matrix, rank: str | int | float | None, modes: str, dtype: np.dtype) -> Model:
    """Modes and eigenvalues of the best linear map from each column of `window` to the next."""
    X, Y = window[:, :-1], window[:, 1:]
    U, s, Vh = np.linalg.svd(X, full_matrices=False)
    longest_step = np.linalg.norm(Y - X, axis=0).max()
    r = truncated_rank(s, rank, len(window), float(longest_step), dtype)
    U, V, S_inv = U[:, :r], Vh[:r].T, np.diag(1 / s[:r])
    A_tilde = U.T @ Y @ V @ S_inv
    eigenvalues, W = np.linalg.eig(A_tilde)
    Phi = U @ W if modes == "projected" else Y @ V @ S_inv @ W
    return Model(Phi, eigenvalues, s)


def predict(model: Model, w: Vector, horizon: int, displacement: bool) -> Matrix:
    """Eq. 5 for 1, ..., horizon steps, or w plus the displacement that it predicts."""
    Phi, eigenvalues, _ = model
    amplitudes = np.linalg.pinv(Phi) @ w
    predictions = []
    for k in range(1, horizon + 1):
        if displacement:
            predictions.append(w + np.real(Phi @ ((eigenvalues**k - 1) * amplitudes)))
        else:
            predictions.append(np.real(Phi @ (eigenvalues**k * amplitudes)))
    return np.stack(predictions)


def eq_6(predictions: Matrix, reference: Vector, step: Vector) -> Vector:
    return np.abs(predictions[-1] - reference) >= len(predictions) * np.abs(step)


def eq_7(predictions: Matrix, reference: Vector, step: Vector) -> Vector:
    trajectory = np.vstack([reference, predictions])
    return np.all(np.sign(np.diff(trajectory, axis=0)) == np.sign(step), axis=0)


def eq_8(predictions: Matrix, reference: Vector, step: Vector) -> Vector:
    return np.abs(predictions[-1] - reference) <= len(predictions) * np.abs(step)


def released_band(predictions: Matrix, reference: Vector, step: Vector) -> Vector:
    moved = predictions[-1] - reference
    long_enough = np.abs(step) <= np.abs(moved)
    short_enough = np.abs(moved) <= (len(predictions) + 1) * np.abs(step)
    return long_enough & short_enough & (np.sign(moved) == np.sign(step))


def james_stein(differences: Matrix) -> Vector:
    """The positive-part shrinkage factor of each weight's mean velocity; differences are (N, n)."""
    mean = differences.mean(axis=1)
    noise = differences.var(axis=1, ddof=1) / differences.shape[1]
    moving = mean != 0
    return np.where(moving, np.maximum(0, 1 - noise / np.where(moving, mean, 1) ** 2), 0)


def acceptance(accept: Any, predictions: Matrix, reference: Vector, step: Vector, window: Matrix) -> Vector:
    """The mask of the rule `accept`, which only names it: nothing of the library is called."""
    arguments = predictions, reference, step
    match accept:
        case pdt_optax.paper_rule():
            return eq_6(*arguments) & eq_7(*arguments)
        case pdt_optax.bounded_rule():
            return eq_8(*arguments) & eq_7(*arguments)
        case pdt_optax.released_rule():
            return released_band(*arguments)
        case pdt_optax.agree():
            return eq_7(*arguments)
        case pdt_optax.shrink():
            return james_stein(np.diff(window, axis=1))
        case pdt_optax.everything():
            return np.ones(len(reference), bool)
    raise NotImplementedError(accept)


def predict_and_mask(
    snapshots: Sequence[Vector], params: Vector, dynamics: Any, accept: Any, horizon: int
) -> Oracle:
    """`pdt_optax.predict_and_mask` on flat vectors, snapshots oldest to newest.

    `dynamics` and `accept` are the library's own, used for their fields and names only.
    """
    seen = [*snapshots] if dynamics.fit == "past" else [*snapshots[1:], params]
    window = np.stack([np.asarray(w, np.float64) for w in seen], axis=1)  # N x h
    reference = window[:, -1]
    step = np.asarray(params, np.float64) - np.asarray(snapshots[-1], np.float64)

    if isinstance(dynamics, pdt_optax.drift):
        velocity = np.diff(window, axis=1).mean(axis=1)
        predictions = np.stack([reference + k * velocity for k in range(1, horizon + 1)])
        singular_values = np.linalg.svd(window[:, :-1], compute_uv=False)
        rank, eigenvalues = 1, np.zeros(0, complex)
    else:
        model = fit_dmd(window, dynamics.rank, dynamics.modes, params.dtype)
        predictions = predict(model, reference, horizon, dynamics.displacement)
        singular_values, eigenvalues = model.singular_values, model.eigenvalues
        rank = len(eigenvalues)

    mask = acceptance(accept, predictions, reference, step, window)
    weights = params + mask * (predictions[-1] - params)
    return Oracle(weights, mask, predictions, reference, singular_values, rank, eigenvalues)
