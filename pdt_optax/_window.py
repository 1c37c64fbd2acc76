"""How the state keeps its window: whole snapshots or their differences, on the device or in host memory."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import DTypeLike

from pdt_optax._layout import Column, Tree

Window = tuple[Column, ...]  # oldest to newest


@dataclasses.dataclass(frozen=True)
class Storage:
    """What stands in the state for the window's snapshots.

    Attributes:
      dtype: None: all of them whole, in the parameters' own types. Otherwise
        the newest is whole and each older one is its difference to the next
        newer one, in this type.
      host: whether they wait in host memory from boundary to boundary.
    """

    dtype: str | None = None
    host: bool = False

    def start(self, newest: optax.Params, window: int) -> tuple[optax.Params, ...]:
        """The window before the first epoch: `window` times the initial weights, whose copy is `newest`."""

        def older(x: jax.Array) -> jax.Array:
            return jnp.copy(x) if self.dtype is None else lax.full_like(x, 0, self.dtype)

        return self.parked((*(jax.tree.map(older, newest) for _ in range(window - 1)), newest))

    def parked(self, window: Tree) -> Tree:
        """Moved to where the window waits for the next boundary."""
        return jax.device_put(window, jax.memory.Space.Host) if self.host else window

    def at_hand(self, window: Tree) -> Tree:
        """Moved to where one can compute with it."""
        return jax.device_put(window, jax.memory.Space.Device) if self.host else window

    def push(self, window: Window, newest: Column, shift: Column | None = None) -> Window:
        """The window with its oldest snapshot dropped and `newest` behind the others, those moved by `shift`."""
        if self.dtype is None:
            older = window[1:]
            if shift is not None:
                older = [
                    [(s + x).astype(s.dtype) for s, x in zip(c, shift, strict=True)]
                    for c in self.at_hand(older)
                ]
                older = self.parked(tuple(older))
            return (*older, self.parked(newest))
        old = self.at_hand(window[-1])
        if shift is not None:
            old = [o + x for o, x in zip(old, shift, strict=True)]
        difference = [(n - o).astype(self.dtype) for o, n in zip(old, newest, strict=True)]
        return (*window[1:-1], *self.parked((difference, newest)))

    def replace_newest(self, window: Window, newest: Column) -> Window:
        """The window with another newest snapshot."""
        if self.dtype is None:
            return (*window[:-1], self.parked(newest))
        last, replaced = self.at_hand(window[-2:])
        columns = zip(last, newest, replaced, strict=True)
        last = [(d.astype(x.dtype) + (x - r)).astype(self.dtype) for d, x, r in columns]
        return (*window[:-2], *self.parked((last, newest)))

    def moved_to(self, window: Window, newest: Column) -> Window:
        """The window with all of its snapshots moved as the newest is."""
        if self.dtype is not None:
            return (*window[:-1], self.parked(newest))
        *older, last = self.at_hand(window)
        shift = [n - x for n, x in zip(newest, last, strict=True)]
        older = [[s + x for s, x in zip(column, shift, strict=True)] for column in older]
        return self.parked((*older, newest))

    def whole(self, window: Window) -> Window:
        """Whole snapshots; those that are kept as differences to the precision of these."""
        if self.dtype is None:
            return window
        *differences, newest = window
        snapshots = [newest]
        for column in reversed(differences):
            snapshots.append([x - d.astype(x.dtype) for x, d in zip(snapshots[-1], column, strict=True)])
        return tuple(reversed(snapshots))

    # A boundary replaces some columns of the window and keeps the others, which
    # need not pass through it. `window` = 2 keeps none.

    def split(self, window: Window) -> tuple[Window, Window]:
        """The columns that the next `push` replaces, and those it keeps."""
        return (window[:1], window[1:]) if self.dtype is None else ((window[0], window[-1]), window[1:-1])

    def join(self, spent: Window, kept: Window) -> Window:
        """What `split` took apart."""
        return (*spent[:1], *kept, *spent[1:])

    def pushed(self, window: Window) -> Window:
        """The columns of a window that the last `push` made."""
        return window[-1:] if self.dtype is None else window[-2:]

    def older_dtype(self, param: jax.Array) -> np.dtype:
        """The type of a leaf's older snapshots."""
        return param.dtype if self.dtype is None else jnp.dtype(self.dtype)

    def differences(
        self, snapshots: Sequence[jax.Array], param: jax.Array, dtype: DTypeLike
    ) -> list[jax.Array]:
        """A leaf's `window` consecutive differences, the last up to `param`, oldest first, in `dtype`.

        Consecutive weights are so close that their float32 difference is exact
        (Sterbenz); snapshots that are kept as differences hold them rounded.
        """
        *older, newest = (x.astype(dtype) for x in (*snapshots, param))
        if self.dtype is None:
            return [new - old for old, new in zip(older, (*older[1:], newest), strict=True)]
        return [*older[:-1], newest - older[-1]]


WHOLE = Storage()
