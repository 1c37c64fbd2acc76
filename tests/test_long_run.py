"""2,000 epochs: nothing compiles after the first boundaries, nothing piles up, counters go on."""

import gc
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pdt_optax
from tests.states import WINDOWED, with_clock

EPOCHS = 2_000
compiled: list[str] = []


@jax.monitoring.register_event_duration_secs_listener
def _(event: str, duration_secs: float, **kwargs: Any) -> None:
    if "backend_compile" in event:
        compiled.append(event)


def resident() -> int:
    """Memory of this process, bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"deliver": "jump", "guard": pdt_optax.rollback(), "schedule": pdt_optax.adaptive()},
        {"every": 3},
        {**WINDOWED, "guard": pdt_optax.rollback(), "schedule": pdt_optax.adaptive()},
    ],
    ids=["end_epoch", "guarded", "every", "windowed, guarded"],
)
def test_2000_epochs(settings: dict[str, Any]) -> None:
    tx: Any = pdt_optax.pdt(optax.adam(1e-3), **settings)
    target = jnp.linspace(-1.0, 1.0, 2_000)
    params: Any = {"w": jnp.zeros(2_000), "b": jnp.zeros(())}
    state: Any = jax.jit(tx.init)(params)

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> Any:
        def loss(p: Any) -> jax.Array:
            return jnp.mean((p["w"] + p["b"] - target + 0.1 * jax.random.normal(key, target.shape)) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state, value

    value, jumps, live, memory = jnp.zeros(()), 0, [], []
    for epoch in range(EPOCHS):
        for i in range(3):
            params, state, value = step(params, state, jax.random.key(3 * epoch + i))
        if "every" not in settings:
            params, state, report = tx.end_epoch(params, state, donate=True)
        else:
            report = state.last_report
        jumps += int(report.predicted)
        if epoch == 20:
            compiled.clear()
        if epoch in (100, EPOCHS - 1):
            gc.collect()
            live.append(len(jax.live_arrays()))
            memory.append(resident())
    assert compiled == []
    assert live[1] <= live[0]
    assert memory[1] - memory[0] < 20e6  # 1,900 epochs that kept a copy of the weights would be 15 MB a kind
    taken_back = "guard" in settings
    assert int(state.history.clock.snapshots_seen) == EPOCHS + 1 or taken_back
    assert int(state.history.clock.predictions_made) == jumps
    assert jumps > EPOCHS // 4 or taken_back
    assert float(value) < 0.02
    assert np.isfinite(np.asarray(params["w"])).all()


@pytest.mark.parametrize("settings", [{**WINDOWED, "window": 2}, {}], ids=["windowed", "default"])
def test_counters_stay_at_their_largest(settings: Any) -> None:
    """An int32 that is full stays full: epochs go on being counted as late ones."""
    full = jnp.int32(2**31 - 1)
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), **settings)
    params: Any = {"w": jnp.ones(3)}
    names = ("snapshots_seen", "plain_epochs", "predictions_made")
    state: Any = with_clock(tx.init(params), **dict.fromkeys(names, full))
    state = state._replace(this_epoch=state.this_epoch._replace(updates_seen=full))
    for _ in range(4):
        updates, state = tx.update({"w": jnp.ones(3)}, state, params)
        assert int(state.this_epoch.updates_seen) >= 0
        params = optax.apply_updates(params, updates)
        params, state, _ = tx.end_epoch(params, state)
        assert all(int(getattr(state.history.clock, name)) >= 0 for name in names)
