"""States of `pdt` with other counters, shared by the tests."""

from typing import Any


def with_clock(state: Any, **counters: Any) -> Any:
    """The state with other numbers in its history's clock."""
    clock = state.history.clock._replace(**counters)
    return state._replace(history=state.history._replace(clock=clock))
