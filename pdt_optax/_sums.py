"""Sums over many numbers at the speed of memory."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Numbers summed one after another; the sums of such rows are then added up.
_ROW = 16384
_LANES = 8


def totals(columns: Sequence[jax.Array]) -> list[jax.Array]:
    """The sum of each of several (n,) arrays of one type, in one pass over whatever they are made of.

    One reduction with several results: XLA's CPU backend has no other way to
    read its inputs once, and makes vector code of it, but not of a reduction
    with a single result.
    """
    rows, tail = divmod(columns[0].size, _ROW)
    zeros = tuple(jnp.zeros((), x.dtype) for x in columns)

    def add(a: Any, b: Any) -> Any:
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
