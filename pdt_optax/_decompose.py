"""The Koopman modes of a window, for people who study dynamics."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pdt_optax import _layout
from pdt_optax._coordinates import in_coordinates
from pdt_optax._predict import check_model
from pdt_optax._reduce import widest_float
from pdt_optax._shapes import expect
from pdt_optax.accept import everything
from pdt_optax.dynamics import dmd

_EXACT = dmd(rank=None, modes="exact")


class Modes(NamedTuple):
    """What `decompose` returns: w(t + k) is about the sum over modes of amplitude eigenvalue^k mode.

    Attributes:
      modes: `rank` trees like the parameters, complex, each of length 1 over
        all weights: which weights move together. A `MaskedNode` stands for
        each leaf that is not floating point.
      eigenvalues: (rank,), complex, by falling modulus: what a mode is
        multiplied with from one snapshot to the next.
      amplitudes: (rank,), complex: how much of each mode the newest weights hold.
      growth: (rank,): the eigenvalues' moduli; a mode with less than 1 decays.
      period: (rank,): of its oscillation, in snapshots (epochs); inf where it has none.
      singular_values: (window - 1,), of the snapshots but the newest, descending.
      reconstruction_error: (), how far the modes, started at the oldest
        snapshot, miss the snapshots, relative to how far these moved from it.
    """

    modes: tuple[Any, ...]
    eigenvalues: np.ndarray
    amplitudes: np.ndarray
    growth: np.ndarray
    period: np.ndarray
    singular_values: np.ndarray
    reconstruction_error: float


def decompose(snapshots: Sequence[optax.Params], *, dynamics: dmd = _EXACT) -> Modes:
    """Koopman modes of the training dynamics (Eqs. 3 to 5), by Dynamic Mode Decomposition.

    Args:
      snapshots: at least two trees like the parameters, oldest to newest, such
        as `pdt_optax.snapshots(tx, opt_state)` or `Recorder.history()`.
      dynamics: how many modes, and which: `dmd(...)`; by default all exact ones.

    Returns:
      `Modes`, in NumPy arrays.

    Raises:
      TypeError: if `dynamics` is not `dmd(...)`.
      ValueError: for too few snapshots, trees that do not match, numbers that are
        not finite, or weights that never moved.

    Example:
      A weight that halves, one that turns around at every epoch, and one at rest:

      >>> import jax.numpy as jnp, pdt_optax
      >>> run = [{"w": jnp.array([0.5**t, (-1.0) ** t, 0.0])} for t in range(5)]
      >>> modes = pdt_optax.decompose(run)
      >>> print(modes.growth.round(3), modes.period)
      [1.  0.5] [ 2. inf]
      >>> print(abs(modes.modes[1]["w"]).round(3))
      [1. 0. 0.]

    References:
      Schmid, Dynamic mode decomposition of numerical and experimental data,
      2010; Tu et al., On dynamic mode decomposition, 2014.
    """
    if not isinstance(dynamics, dmd):
        raise TypeError(f"`dynamics` must be `dmd(...)`: other models have no modes. Got {dynamics!r}.")
    check_model(dynamics, everything(), len(snapshots))
    like = _layout.floating(snapshots[-1])
    with widest_float() as wide:
        columns = [
            [x.astype(wide) for x in _layout.take(like, tree, f"snapshots[{i}]")]
            for i, tree in enumerate(snapshots)
        ]
        leaves = [
            jnp.stack([w[-1], *(new - old for old, new in itertools.pairwise(w))], axis=-1)
            for w in zip(*columns, strict=True)
        ]
        # Orthonormal coordinates by QR, leaf by leaf: a Gram matrix would square the
        # condition number, which a forecast's tolerance allows and this one's does not.
        flat = [leaf.reshape(-1, len(snapshots)) for leaf in leaves]
        triangles = [jnp.linalg.qr(leaf, mode="r") for leaf in flat if leaf.size]
        coordinates = jnp.linalg.qr(
            jnp.concatenate([*triangles, jnp.zeros((len(snapshots),) * 2, wide)]), mode="r"
        )
        if not bool(jnp.all(jnp.isfinite(coordinates))):
            raise ValueError("The snapshots must be finite, or they have no modes. Got one that is not.")
        epsilon = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(like))).eps)
        window = in_coordinates(coordinates, jnp.zeros((), wide))
        size = max(1, sum(leaf.shape[0] for leaf in flat))
        keep, operator, basis, newest = map(np.asarray, dynamics.fitted(window, size, epsilon))
        most = len(snapshots) - 1
        shapes = {"keep": (keep, most), "operator": (operator, most, most)}
        shapes |= {"basis": (basis, most + 1, most), "newest": (newest, most)}
        for name, (array, *shape) in shapes.items():  # those that are too long would be cut
            expect(name, array, *shape)
        rank = int(keep.sum())
        if not np.asarray(coordinates)[:, 1:].any():
            raise ValueError("The snapshots must differ, or there is no motion to decompose. Got equal ones.")
        eigenvalues, vectors = np.linalg.eig(operator[:rank, :rank])
        order = np.argsort(-abs(eigenvalues), kind="stable")
        eigenvalues, vectors = eigenvalues[order].astype(complex), vectors[:, order]
        combined = basis[:, :rank] @ vectors  # the modes in the difference basis
        placed = np.asarray(coordinates) @ combined
        length = np.linalg.norm(placed, axis=0)
        combined, placed = combined / length, placed / length
        amplitudes = np.linalg.solve(vectors, newest[:rank]) * length
        points = np.asarray(coordinates) @ np.concatenate([window.older, window.newer[:, -1:]], axis=1)
        first = np.linalg.lstsq(placed, points[:, 0], rcond=None)[0]
        rebuilt = placed @ (first[:, None] * eigenvalues[:, None] ** np.arange(len(snapshots)))
        error = np.linalg.norm(rebuilt - points) / np.linalg.norm(points - points[:, :1])

        complexes = [np.result_type(x.dtype, np.complex64) for x in jax.tree.leaves(like)]
        modes = [
            [
                np.tensordot(np.asarray(leaf), c, 1).astype(kind)
                for leaf, kind in zip(leaves, complexes, strict=True)
            ]
            for c in combined.T
        ]
    turn = abs(np.angle(eigenvalues))
    return Modes(
        modes=tuple(_layout.refill(like, mode) for mode in modes),
        eigenvalues=eigenvalues,
        amplitudes=amplitudes,
        growth=abs(eigenvalues),
        period=np.divide(2 * np.pi, turn, out=np.full(rank, np.inf), where=turn > 0),
        singular_values=np.asarray(window.singular_values),
        reconstruction_error=float(error),
    )
