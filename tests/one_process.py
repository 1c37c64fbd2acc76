"""One of several processes that train together: run by test_sharding.py. Prints losses and weights as JSON.

With --dies it kills itself in the middle of an epoch.
"""

import argparse
import json
import os
import signal
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import pdt_optax
from experiments.training import devices
from tests.states import WINDOWED

FSDP = {"first": P("data"), "bias": P(), "second": P(None, "data")}
REPLICATED = {name: P() for name in FSDP}
# Of `train`: how the weights lie, and how they are predicted.
RUNS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (REPLICATED, {**WINDOWED, "window": 3, "start": 3, "horizon": 3}),
    (FSDP, {**WINDOWED, "window": 3, "start": 3, "horizon": 3}),
    (FSDP, {"start": 3, "deliver": "gradual"}),
]


def train(specs: dict[str, Any], settings: dict[str, Any], dies: bool = False) -> dict[str, Any]:
    """A small regression, its batch split over all devices, its weights as `specs` say."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8)).astype(np.float32), rng.normal(size=(64, 4)).astype(np.float32)
    shapes = {"first": (8, 16), "bias": (16,), "second": (16, 4)}
    values = {n: (0.3 * rng.normal(size=s)).astype(np.float32) for n, s in shapes.items()}

    def put(value: np.ndarray, spec: Any) -> jax.Array:
        return jax.make_array_from_callback(
            value.shape, NamedSharding(mesh, spec), lambda index: value[index]
        )

    params: Any = {n: put(v, specs[n]) for n, v in values.items()}
    inputs, targets = put(x, P("data")), put(y, P("data"))
    tx = pdt_optax.pdt(optax.adam(0.01), guard=pdt_optax.rollback(), **settings)
    state: Any = jax.jit(tx.init)(params)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        hidden = jax.numpy.tanh(x @ params["first"] + params["bias"])
        return ((hidden @ params["second"] - y) ** 2).mean()

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    losses, shares, value = [], [], None
    for epoch in range(10):
        for i in range(4):
            if dies and (epoch, i) == (6, 2):
                jax.block_until_ready(params)
                os.kill(os.getpid(), signal.SIGKILL)
            params, state, value = step(params, state, inputs, targets)
        # The epoch after the first jump looks bad: the guard takes it back, on every process.
        judged = value if epoch != 4 else 100.0
        params, state, report = tx.end_epoch(params, state, value=judged, donate=True)
        losses.append(float(value))  # pyright: ignore[reportArgumentType]
        shares.append([float(report.accepted_share), bool(report.predicted), bool(report.rolled_back)])
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(params)
    return {
        "losses": losses,
        "reports": shares,
        "weights": {
            n: np.asarray(w.addressable_data(0), np.float64).ravel().tolist() for n, w in whole.items()
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--dies", action="store_true")
    devices.add_arguments(parser)
    args = parser.parse_args()
    devices.start(args)
    print(json.dumps([train(*run, args.dies) for run in RUNS]))
