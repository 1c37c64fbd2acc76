"""States of `pdt` with other counters, and predictors of a window, shared by the tests."""

from collections.abc import Mapping
from typing import Any

import optax

import pdt_optax

# A model that sees a window of snapshots and jumps: `presets.drift`, its first prediction as early as can be.
WINDOWED: Mapping[str, Any] = {"dynamics": pdt_optax.drift(), "own_motion": False, "deliver": "jump"}


def windowed(inner: optax.GradientTransformation, **settings: Any) -> Any:
    """`pdt` with `WINDOWED` where nothing else is said."""
    return pdt_optax.pdt(inner, **{**WINDOWED, **settings})


def with_clock(state: Any, **counters: Any) -> Any:
    """The state with other numbers in its history's clock."""
    clock = state.history.clock._replace(**counters)
    return state._replace(history=state.history._replace(clock=clock))
