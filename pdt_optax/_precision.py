"""Where float64 is to be had, sums over all weights and the small algebra use it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


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
