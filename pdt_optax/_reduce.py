"""Sums over all weights: in the widest float, at the speed of memory, wherever the weights lie."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

R = TypeVar("R")
Leaf = Sequence[jax.Array]  # arrays of one shape, split alike
Leaves = Sequence[Leaf]
Measure = Callable[[Leaves, Sequence[float]], jax.Array]


# Precision: where float64 is to be had, sums over all weights and the small algebra use it.


def has_float64() -> bool:
    """Whether the default backend has float64 linear algebra (a TPU does not)."""
    return jax.default_backend() != "tpu"


@contextlib.contextmanager
def widest_float() -> Iterator[Any]:
    """Context in which the yielded dtype is usable, whatever `jax_enable_x64` says.

    Cast results back *inside* the context: a float64 array that leaves it
    silently becomes float32 at its next use, and complex128 escapes.
    """
    if has_float64():
        with jax.enable_x64(True):
            yield jnp.float64
    else:
        yield jnp.float32


def in_widest_float(f: Callable[..., R]) -> Callable[..., R]:
    """`f(*arrays)`, always traced inside `widest_float`: under `vmap` too.

    vmap would otherwise trace `f` anew after the context has ended, when
    float64 can no longer be made. Gradients stop at its arguments.
    """

    @custom_vmap
    def traced(*args: Any) -> R:
        with widest_float():
            return f(*args)

    @traced.def_vmap
    def _(axis_size: int, batched: Sequence[object], *args: Any) -> tuple[R, object]:
        axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))
        outputs = in_widest_float(jax.vmap(f, in_axes=axes, axis_size=axis_size))(*args)
        return outputs, jax.tree.map(lambda _: True, outputs)

    return lambda *args: traced(*jax.lax.stop_gradient(args))


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
    """Context, and decorator, in which ranks and types promote as jax does unless `jax_numpy_*_promotion` say otherwise.

    Those settings are for the user's code. Ours is traced under the usual ones.
    """
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


# Speed.

# Numbers summed one after another; the sums of such rows are then added up.
_ROW = 16384
_LANES = 8


def totals(columns: Sequence[jax.Array]) -> list[jax.Array]:
    """The sum of each of several (n,) arrays, in one pass over whatever they are made of.

    One reduction with several results: XLA's CPU backend has no other way to
    read its inputs once, and makes vector code of it, but not of a reduction
    with a single result.
    """
    rows, tail = divmod(columns[0].size, _ROW)
    zeros = tuple(jnp.zeros((), x.dtype) for x in columns)

    def add(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(x + y for x, y in zip(a, b, strict=True))

    ends = lax.reduce(tuple(x[rows * _ROW :] for x in columns), zeros, add, (0,))
    if not rows:
        return list(ends)
    table = tuple(x[: rows * _ROW].reshape(rows, _ROW) for x in columns)
    sums = lax.reduce(table, zeros, add, (1,))
    return [jnp.sum(x) + end for x, end in zip(sums, ends, strict=True)] if tail else [*map(jnp.sum, sums)]


def total(x: jax.Array) -> jax.Array:
    """The sum of an (n,) array."""
    length = x.size // _LANES
    lanes = [x[i * length : (i + 1) * length] for i in range(_LANES)]
    return sum(totals(lanes), start=jnp.sum(x[_LANES * length :]))


# Place: on one device, split over a mesh, inside `shard_map`.


def on_one_device(tree: object) -> bool:
    """Whether it is sure, while tracing too, that no array of a tree is on more than one device."""

    def sure(x: object) -> bool:
        if isinstance(x, Tracer):
            return jax.device_count() == 1
        return not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1

    return all(map(sure, jax.tree.leaves(tree)))


def over_shards(measure: Measure, leaves: Leaves) -> jax.Array:
    """`measure` of what each device holds, added up by one all-reduce.

    Args:
      measure: of leaves and, for each, a factor for its share in the result: a
        leaf of which several devices hold the same piece counts once.
        Elementwise sums over the weights, in the widest float.
      leaves: the arrays of each leaf.

    Returns:
      What `measure` returns for whole leaves, the same on every device.
    """
    leaves = [tuple(leaf) for leaf in leaves]
    types = [jax.typeof(leaf[-1]) for leaf in leaves]
    if jax.sharding.get_abstract_mesh().manual_axes:
        split = [t.manual_axis_type.varying for t in types]
        sizes = {name: lax.axis_size(name) for names in split for name in names}
        return _reduced(measure, leaves, split, sizes)
    shardings = [t.sharding for t in types]
    if any(name for s in shardings for name in s.spec):
        return _over_explicit_axes(measure, leaves, shardings)
    if jax.device_count() == 1:
        return measure(leaves, [1.0] * len(leaves))
    return _over_automatic_axes(measure, leaves)


def all_finite(leaves: Sequence[jax.Array]) -> jax.Array:
    """Whether every number of all leaves is finite, on whatever device it lies: (), bool."""
    with widest_float() as wide:

        def measure(leaves: Leaves, shares: Sequence[float]) -> jax.Array:
            counts = [
                share * total(~jnp.isfinite(x.reshape(-1))).astype(wide)
                for (x,), share in zip(leaves, shares, strict=True)
            ]
            return jnp.stack([sum(counts, start=jnp.zeros((), wide))])

        return over_shards(measure, [(lax.stop_gradient(x),) for x in leaves])[0] == 0


def _reduced(measure: Measure, leaves: Leaves, split: Sequence[Any], sizes: dict[Any, int]) -> jax.Array:
    """`measure` over the shards of a device, summed over the axes that any leaf is split over."""
    axes = tuple(sorted({name for names in split for name in names}))
    shares = [1 / math.prod(sizes[name] for name in axes if name not in names) for names in split]
    with widest_float():
        result = measure(leaves, shares)
        return lax.psum(result, axes) if axes else result


def _axes(spec: PartitionSpec) -> frozenset[str]:
    """The mesh axes that a spec splits over."""
    names = (name if isinstance(name, tuple) else (name,) for name in spec if name is not None)
    return frozenset(x for group in names for x in group)


def _over_explicit_axes(measure: Measure, leaves: Leaves, shardings: Sequence[NamedSharding]) -> jax.Array:
    mesh = next(s.mesh for s in shardings if _axes(s.spec))
    specs = [tuple(s.spec for _ in leaf) for s, leaf in zip(shardings, leaves, strict=True)]
    split = [_axes(s.spec) for s in shardings]

    @jax.shard_map(mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec(), check_vma=False)
    def reduced(leaves: Leaves) -> jax.Array:
        return _reduced(measure, leaves, split, dict(mesh.shape))

    return reduced(leaves)


def _over_automatic_axes(measure: Measure, leaves: Leaves) -> jax.Array:
    """How leaves are split is not known before XLA partitions the program: it asks then."""
    arrays, treedef = jax.tree.flatten(leaves)
    grouped: Callable[[Sequence[Any]], list[Any]] = treedef.unflatten

    def whole(*arrays: jax.Array) -> jax.Array:
        with widest_float():
            return measure(grouped(arrays), [1.0] * len(leaves))

    def partition(mesh: Any, arguments: Any, result: Any) -> Any:
        del result
        split = [_axes(leaf[-1].sharding.spec) for leaf in grouped(arguments)]

        def local(*arrays: jax.Array) -> jax.Array:
            return _reduced(measure, grouped(arrays), split, dict(mesh.shape))

        alike = tuple(leaf[-1].sharding for leaf in grouped(arguments) for _ in leaf)
        return mesh, local, NamedSharding(mesh, PartitionSpec()), alike

    def rule(mesh: Any, arguments: Any, result: Any) -> SdyShardingRule:
        del mesh
        operands = (_factors(f"leaf{i}_", x) for i, leaf in enumerate(grouped(arguments)) for x in leaf)
        return SdyShardingRule(tuple(operands), (_factors("result_", result[0]),))

    partitioned = custom_partitioning(whole)
    partitioned.def_partition(partition, sharding_rule=rule)
    batched = custom_vmap(lambda *arrays: partitioned(*arrays))

    @batched.def_vmap
    def _(axis_size: int, which: Sequence[bool], *arrays: jax.Array) -> tuple[jax.Array, bool]:
        axes = tuple(0 if b else None for b in which)
        return jax.vmap(whole, in_axes=axes, axis_size=axis_size)(*arrays), True

    return batched(*arrays)


def _factors(prefix: str, array: Any) -> ArrayMapping:
    return ArrayMapping(*(f"{prefix}{axis}" for axis in range(len(array.shape))))
