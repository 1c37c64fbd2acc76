"""What the tests ask of two trees, by chex."""

from typing import Any

import chex
import jax
import jax.numpy as jnp


def assert_same(a: Any, b: Any) -> None:
    """Equal bit for bit, in structure, shapes, types and values."""
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    chex.assert_trees_all_equal(a, b)


def differs(a: Any, b: Any) -> bool:
    return any(bool(jnp.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
