"""Where float64 is to be had, sums over all weights and the small algebra use it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


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


def in_widest_float(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f(*arrays)`, always traced inside `widest_float`: under `vmap` too.

    vmap would otherwise trace `f` anew after the context has ended, when
    float64 can no longer be made. Gradients stop at its arguments.
    """

    @custom_vmap
    def traced(*args: Any) -> Any:
        with widest_float():
            return f(*args)

    @traced.def_vmap
    def _(axis_size: int, batched: Any, *args: Any) -> Any:
        axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))
        outputs = in_widest_float(jax.vmap(f, in_axes=axes, axis_size=axis_size))(*args)
        return outputs, jax.tree.map(lambda _: True, outputs)

    return lambda *args: traced(*jax.lax.stop_gradient(args))
