"""The same prediction by other means: a literal SVD, PyDMD, and the steps of the paper's released code.

All get the same window of AlexNet's weights as one (N, window) matrix, ready in
memory and in the layout that they like best, and do the whole job: fit, predict,
mask, assemble. PDT's own time is its boundary with the `released` preset, on the
tree of weights, in place.

`literal-jax` and `literal-numpy` form the thin SVD of the N x (window - 1)
matrix and powers of the reduced operator. `pydmd` fits `pydmd.DMD` with its
optimal truncation and evaluates its modes once, at the horizon. `released-steps`
follows the released code: thin SVD, Gavish-Donoho rank, complex modes, their
pseudo-inverse, displacement, band and sign; on NumPy and LAPACK, which stand in
for PyTorch.
"""

import gc
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pdt_optax
from benchmarks import measure, trees
from experiments import command

HORIZON = 5


def _omega(beta: float) -> float:
    return 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43


def _band_and_sign(displacement: Any, step: Any) -> Any:
    length, unit = abs(displacement), abs(step)
    np_ = jnp if isinstance(step, jax.Array) else np
    in_band = (unit <= length) & (length <= (HORIZON + 1) * unit)
    return in_band & (np_.sign(displacement) == np_.sign(step))


@jax.jit
def literal_jax(snapshots: jax.Array, params: jax.Array) -> jax.Array:
    """(N, window) and (N,) to the new (N,)."""
    X, Y, w = snapshots[:, :-1], snapshots[:, 1:], snapshots[:, -1]
    U, s, Vh = jnp.linalg.svd(X, full_matrices=False)
    keep = (s > _omega(X.shape[1] / X.shape[0]) * jnp.sort(s)[(len(s) - 1) // 2]).at[0].set(True)
    inverse = jnp.where(keep, 1 / jnp.where(keep, s, 1), 0)
    operator = U.T @ Y @ Vh.T * inverse * keep[:, None]
    amplitudes = keep * (U.T @ w)
    ahead = jnp.linalg.matrix_power(operator, HORIZON) @ amplitudes
    displacement = U @ (ahead - amplitudes)
    return jnp.where(_band_and_sign(displacement, params - w), w + displacement, params)


def literal_numpy(snapshots: np.ndarray, params: np.ndarray) -> np.ndarray:
    """The same in NumPy."""
    X, Y, w = snapshots[:, :-1], snapshots[:, 1:], snapshots[:, -1]
    U, s, Vh = np.linalg.svd(X, full_matrices=False)
    r = max(1, int(np.sum(s > _omega(X.shape[1] / X.shape[0]) * np.sort(s)[(len(s) - 1) // 2])))
    U, inverse, V = U[:, :r], 1 / s[:r], Vh[:r].T
    operator = U.T @ Y @ V * inverse
    amplitudes = U.T @ w
    displacement = U @ (np.linalg.matrix_power(operator, HORIZON) @ amplitudes - amplitudes)
    return np.where(_band_and_sign(displacement, params - w), w + displacement, params)


def released_steps(snapshots: np.ndarray, params: np.ndarray) -> np.ndarray:
    """The released code's way: complex modes over all weights, and their pseudo-inverse."""
    X, Y, w = snapshots[:, :-1], snapshots[:, 1:], snapshots[:, -1]
    U, s, Vh = np.linalg.svd(X, full_matrices=False)
    r = max(1, int(np.sum(s > _omega(X.shape[1] / X.shape[0]) * np.sort(s)[(len(s) - 1) // 2])))
    U, inverse, V = U[:, :r], 1 / s[:r], Vh[:r].T
    eigenvalues, E = np.linalg.eig(U.T @ Y @ V * inverse)
    modes = U.astype(np.complex64) @ E.astype(np.complex64)
    amplitudes = np.linalg.pinv(modes) @ w.astype(np.complex64)
    motion = ((eigenvalues**HORIZON - 1) * amplitudes).astype(np.complex64)
    displacement = np.real(modes @ motion)
    return np.where(_band_and_sign(displacement, params - w), w + displacement, params)


def by_pydmd(snapshots: np.ndarray, params: np.ndarray) -> np.ndarray:
    """`pydmd.DMD`, its modes evaluated once, `HORIZON` steps after the newest snapshot."""
    import pydmd

    model = pydmd.DMD(svd_rank=0, exact=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of the condition number of what it was given
        model.fit(snapshots)
    w = snapshots[:, -1]
    ahead = model.amplitudes * model.eigs ** (snapshots.shape[1] - 1 + HORIZON)
    displacement = np.real(model.modes @ ahead).astype(np.float32) - w
    return np.where(_band_and_sign(displacement, params - w), w + displacement, params)


def ours(snapshots: Sequence[Any], params: Any) -> Callable[[], Any]:
    """The boundary of the `released` preset, in place, at a prediction each time it is called."""
    predictor = pdt_optax.Predictor(**pdt_optax.presets.released)
    initial = predictor.init(params)
    held: list[Any] = [jax.tree.map(jnp.copy, params), initial]

    def call() -> Any:
        # Every call finds the same window and counters: it predicts every time.
        clock = held[1].clock._replace(
            snapshots_held=jnp.int32(len(initial.snapshots)),
            snapshots_seen=jnp.int32(6),
            predictions_made=jnp.int32(0),
        )
        held[0], held[1], report = predictor.end_epoch(held[0], held[1]._replace(clock=clock), donate=True)
        return held[0], report

    def start() -> None:
        held[1] = initial._replace(snapshots=tuple(jax.tree.map(jnp.copy, s) for s in snapshots))
        held[0] = jax.tree.map(jnp.copy, params)

    start()
    return call


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    p = measure.parser("peers", __doc__)
    p.add_argument("--sizes", nargs="+", choices=list(trees.ALEXNETS), default=list(trees.ALEXNETS))
    p.add_argument("--repeats-peers", type=command.whole(1), default=3, help="timed calls of each peer")
    args = p.parse_args(argv)
    figures = {}
    for size in args.sizes:
        shapes = trees.alexnet(size)
        walk = trees.random_walk(shapes, 6)
        flat = [np.concatenate([np.asarray(x).ravel() for x in tree.values()]) for tree in walk]
        mine = measure.interleaved({"pdt": ours(walk[:-1], walk[-1])}, args.repeats)["pdt"]
        del walk
        gc.collect()
        # LAPACK and BLAS take columns as they lie: Fortran order costs them no copy.
        snapshots = np.asfortranarray(np.stack(flat[:-1], axis=1))
        params = flat[-1]
        del flat
        rows: dict[str, Any] = {"parameters": trees.count(shapes), "pdt": measure.summary(mine)}
        for name, peer in (
            ("literal-jax", literal_jax),
            ("literal-numpy", literal_numpy),
            ("released-steps", released_steps),
            ("pydmd", by_pydmd),
        ):
            given: Any = (
                (jnp.asarray(snapshots), jnp.asarray(params)) if peer is literal_jax else (snapshots, params)
            )
            seconds = []
            for i in range(args.repeats_peers + 1):
                started = time.perf_counter()
                jax.block_until_ready(peer(*given))
                if i or peer is not literal_jax:  # the first call compiles
                    seconds.append(time.perf_counter() - started)
            del given
            gc.collect()
            rows[name] = measure.summary(seconds[-args.repeats_peers :])
            rows[name]["times_pdt"] = round(rows[name]["median_ms"] / rows["pdt"]["median_ms"], 1)
            print(size, name, rows[name], flush=True)
        figures[size] = rows
    measure.write(args.out, "peers", {"sizes": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
