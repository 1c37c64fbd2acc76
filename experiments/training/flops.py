"""Floating-point operations of a computation, by XLA's own count."""

from collections.abc import Callable
from typing import Any

import jax


def flops(f: Callable[..., Any], *args: Any) -> float:
    """Operations of one call of `f`, before XLA optimises it; nothing is computed or compiled.

    A multiplication and an addition are two. The count is that of the program as
    written, so it is the same on every backend. A loop's body counts once, and a
    call of a library, such as an eigenvalue decomposition, not at all.

    Args:
      f: a function of arrays, jitted or not.
      args: its arguments, or `jax.ShapeDtypeStruct`s in their place.

    Raises:
      NotImplementedError: if the backend does not count.
    """
    jitted: Any = f if hasattr(f, "lower") else jax.jit(f)
    return lowered_flops(jitted.lower(*args))


def lowered_flops(lowered: jax.stages.Lowered) -> float:
    """The same of a computation that is lowered already, over all devices."""
    cost: Any = lowered.cost_analysis()
    if not cost:
        raise NotImplementedError(f"XLA counts no operations on {jax.default_backend()}.")
    return cost["flops"]
