"""The boundary between two epochs against kernels that move the same bytes.

On AlexNet's leaves at several sizes, in place. `boundary` is `end_epoch` with a
prediction, all of it, by the recommended settings, and `boundary-gradual` the same
where updates deliver the prediction. `reference-read` sums the three arrays that
their first pass reads (weights, newest snapshot, mean), `reference-write` scales the
three in place.

For models that see a window: `reference-gram` sums the six arrays that the Gram
pass reads, `reference-assembly` writes a weighted sum of them over one. `gram` (for
`dmd`), `lengths` (of it only the diagonal, for `drift`), `algebra` (what is `window`
x `window`), `assembly` and `snapshot` are the library's own passes.
`boundary-drift` is `end_epoch` by the preset `drift`, `boundary-bfloat16` keeps its
window as bfloat16 differences, `boundary-dmd` has `dmd` for the dynamics. `small` is
a tree of 400 vectors of 1,280 weights beside one leaf of their size.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pdt_optax
from benchmarks import measure, trees
from benchmarks.lowered import lower
from experiments import command
from pdt_optax import History
from pdt_optax._compiled import own
from pdt_optax._history import replaced
from pdt_optax._passes import assemble, gram_matrix
from pdt_optax._reduce import widest_float
from pdt_optax._window import WHOLE

Trees = list[dict[str, jax.Array]]


def _reference_gram(walk: Trees) -> Callable[[], Any]:
    @jax.jit
    def add_up(walk: Trees) -> Any:
        return [
            jnp.sum(sum(xs, start=jnp.float32(0))) for xs in zip(*(t.values() for t in walk), strict=True)
        ]

    return lambda: add_up(walk)


def _reference_assembly(walk: Trees) -> Callable[[], Any]:
    def weigh(newest: Any, older: Trees) -> Any:
        def leaf(*xs: jax.Array) -> jax.Array:
            return sum((0.1 * (i + 1) * x for i, x in enumerate(xs)), start=jnp.float32(0))

        return (jax.tree.map(leaf, newest, *older),)

    return measure.InPlace(weigh, (walk[-1], walk[:-1]), (0,))


def _reference_write(walk: Trees) -> Callable[[], Any]:
    def scale(*three: Any) -> Any:
        return jax.tree.map(lambda x: 0.999 * x, three)

    return measure.InPlace(scale, tuple(walk[-3:]), (0, 1, 2))


def _gram(walk: Trees, diagonal: bool) -> Callable[[], Any]:
    @jax.jit
    def gram(walk: Trees) -> Any:
        with widest_float():
            both = gram_matrix(
                list(zip(*(t.values() for t in walk), strict=True)), WHOLE, "current", diagonal
            )
            return jax.tree.map(lambda x: x.astype(jnp.float32), both)

    return lambda: gram(walk)


def _algebra(dynamics: Any) -> Callable[[], Any]:
    gram = np.diag(np.arange(1.0, 6)) + 0.1

    @jax.jit
    def small(gram: jax.Array) -> Any:
        with widest_float() as wide:
            forecast = dynamics(gram.astype(wide), 1, size=10**6, epsilon=1e-7, epoch=jnp.int32(9))
            return jax.tree.map(lambda x: x.astype(jnp.complex64), forecast)

    return lambda: small(jnp.asarray(gram, jnp.float32))


def _assembly(walk: Trees) -> Callable[[], Any]:
    settings = pdt_optax.presets.drift
    window = len(walk) - 1
    increments = jnp.full((settings["horizon"], window), 1 / (window - 1)).at[:, 0].set(0)

    def step(newest: Any, older: Trees, increments: jax.Array) -> Any:
        new = {}
        for name in newest:
            points = (*(t[name] for t in older), newest[name])
            new[name], _ = assemble(
                points,
                WHOLE,
                "current",
                increments,
                increments.sum(0),
                settings["accept"],
                settings["horizon"],
                jnp.array(True),
                moved_only=False,
                whole_mask=False,
            )
        return (new,)

    return measure.InPlace(step, (walk[-1], walk[:-1], increments), (0,))


def _snapshot(walk: Trees) -> Callable[[], Any]:
    def copy(oldest: Any, newest: Any, value: jax.Array) -> Any:
        return (own(newest, oldest, [value] * len(newest), value >= 0),)

    return measure.InPlace(copy, ([*walk[0].values()], [*walk[-1].values()], jnp.float32(0)), (0,))


class _Boundary:
    """`end_epoch` with a prediction at each call, on its own results."""

    def __init__(self, walk: Trees, made: pdt_optax.PDT | pdt_optax.Predictor):
        self.made = made
        self.params = jax.tree.map(jnp.copy, walk[-1])
        self.state: Any = made.init(self.params)
        for snapshot in walk[:-1]:
            _, self.state, _ = made.end_epoch(jax.tree.map(jnp.copy, snapshot), self.state)

    def __call__(self) -> Any:
        def due(history: History) -> History:
            clock = history.clock._replace(
                snapshots_held=jnp.int32(len(history.snapshots)),
                snapshots_seen=jnp.int32(9),
                predictions_made=jnp.int32(0),
            )
            return history._replace(clock=clock)

        state = replaced(self.state, History, due)
        self.params, self.state, report = self.made.end_epoch(self.params, state, donate=True)
        return self.params, self.state, report

    def temporary_bytes(self) -> int:
        """What the boundary allocates beyond its arguments and results."""
        compiled = lower(self.made, self.params).compile()
        return compiled.memory_analysis().temp_size_in_bytes


def figures(shapes: trees.Shapes, repeats: int) -> dict[str, Any]:
    """All kernels on one tree, taken in turns, and the ratios that matter."""
    walk = trees.random_walk(shapes, 6)
    predictor, drift = pdt_optax.Predictor, pdt_optax.presets.drift
    boundary = _Boundary(walk, predictor())
    calls = {
        "reference-read": _reference_gram(walk[-3:]),
        "reference-write": _reference_write(walk),
        "reference-gram": _reference_gram(walk),
        "reference-assembly": _reference_assembly(walk),
        "gram": _gram(walk, diagonal=False),
        "lengths": _gram(walk, diagonal=True),
        "algebra": _algebra(pdt_optax.drift()),
        "algebra-dmd": _algebra(pdt_optax.dmd(fit="current")),
        "assembly": _assembly(walk),
        "snapshot": _snapshot(walk),
        "boundary": boundary,
        "boundary-gradual": _Boundary(walk, pdt_optax.pdt(optax.identity())),
        "boundary-drift": _Boundary(walk, predictor(**drift)),
        "boundary-bfloat16": _Boundary(walk, predictor(**drift, snapshot_dtype="bfloat16")),
        "boundary-dmd": _Boundary(walk, predictor(**{**drift, "dynamics": pdt_optax.dmd(fit="current")})),
    }
    assert all(bool(call()[2].predicted) for name, call in calls.items() if name.startswith("boundary"))
    seconds = measure.interleaved(calls, repeats)
    three, both = (
        [a + b for a, b in zip(seconds[f"reference-{first}"], seconds[f"reference-{second}"], strict=True)]
        for first, second in (("read", "write"), ("gram", "assembly"))
    )
    largest = 4 * max(jax.tree.leaves(jax.tree.map(lambda x: x.size, walk[0])))
    return {
        "parameters": trees.count(shapes),
        "leaves": len(shapes),
        **{name: measure.summary(s) for name, s in seconds.items()},
        "gram_to_reference": measure.median_ratio(seconds["gram"], seconds["reference-gram"]),
        "lengths_to_reference": measure.median_ratio(seconds["lengths"], seconds["reference-gram"]),
        "assembly_to_reference": measure.median_ratio(seconds["assembly"], seconds["reference-assembly"]),
        "boundary_to_references": measure.median_ratio(seconds["boundary"], three),
        "boundary_gradual_to_references": measure.median_ratio(seconds["boundary-gradual"], three),
        "boundary_drift_to_references": measure.median_ratio(seconds["boundary-drift"], both),
        "boundary_dmd_to_references": measure.median_ratio(seconds["boundary-dmd"], both),
        "temporary_mib": round(boundary.temporary_bytes() / 2**20, 1),
        "largest_leaf_mib": round(largest / 2**20, 1),
    }


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    p = measure.parser("boundary", __doc__)
    p.add_argument("--sizes", nargs="+", choices=list(trees.ALEXNETS), default=list(trees.ALEXNETS))
    args = p.parse_args(argv)
    alike = functools.partial(figures, repeats=args.repeats)
    results: dict[str, Any] = {}
    for size in args.sizes:
        results[size] = alike(trees.alexnet(size))
        print(size, results[size], flush=True)
    results["small"] = alike(trees.many_small())
    results["small-in-one-leaf"] = alike(trees.many_small(1, 400 * 1280))
    measure.write(args.out, "boundary", {"trees": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
