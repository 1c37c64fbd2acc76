"""What a boundary costs on more and more devices, from the compiled program: no clock.

Weak scaling: every device holds the same number of weights, split over the mesh
(`fsdp`) or copied (`replicated`), on so many simulated CPU devices. For each
count, in a process of its own: the all-reduces of the boundary's program and
their bytes, any other collective, and the floating-point operations and bytes of
memory traffic of one device, all from XLA; and what the prediction on the mesh
differs from the same on one device: the displacement, relative to its length,
and the share of weights whose acceptance agrees. Writes a JSON record.

python -m benchmarks.scaling
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.progress import track

import pdt_optax
from benchmarks import measure
from benchmarks.lowered import lower
from experiments import command

PRESETS = ("recommended", "drift", "released")
LAYOUTS = ("fsdp", "replicated")
ROWS, COLUMNS = 1024, 64  # of each of two matrices, on each device
COLLECTIVE = r"= (\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def walk(shapes: dict[str, tuple[int, ...]], steps: int = 7) -> list[dict[str, np.ndarray]]:
    """Weights that drift and shake, from float32 to float32."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    velocity = {name: 1e-2 * rng.normal(size=shape) for name, shape in shapes.items()}
    trees = []
    for _ in range(steps):
        weights = {n: w + velocity[n] + 1e-2 * rng.normal(size=w.shape) for n, w in weights.items()}
        trees.append({n: np.asarray(w, np.float32) for n, w in weights.items()})
    return trees


def collectives(text: str) -> dict[str, Any]:
    """Those of a compiled program, and the bytes that each device puts into them."""
    found = re.findall(COLLECTIVE, text)
    size = {"f64": 8, "f32": 4, "s32": 4}
    bytes_ = [
        size[shape.split("[")[0]]
        * int(np.prod([int(n) for n in re.findall(r"\d+", shape.split("[")[1].split("]")[0])]))
        for shape, kind in found
        if kind == "all-reduce"
    ]
    return {"all_reduce_bytes": bytes_, "other_collectives": sum(kind != "all-reduce" for _, kind in found)}


def last(predictor: pdt_optax.Predictor, trees: Sequence[Any], place: Any) -> Any:
    """The weights after the last of the epochs that end with these weights, and the last report."""
    params, report = place(trees[0]), None
    history = predictor.init(params)
    for tree in trees[1:]:
        params, history, report = predictor.end_epoch(place(tree), history)
    return {n: np.asarray(x, np.float64) for n, x in params.items()}, report


def differences(predictor: pdt_optax.Predictor, trees: Sequence[Any], place: Any) -> dict[str, float]:
    """Between a prediction on the mesh and on one device."""
    moved, masks = [], []
    for where in (place, lambda tree: jax.tree.map(jnp.asarray, tree)):
        params, report = last(predictor, trees, where)
        assert report.predicted
        displacement = np.concatenate([(params[n] - trees[-1][n]).ravel() for n in params])
        moved.append(displacement)
        masks.append(displacement != 0)
    return {
        "displacement": float(np.linalg.norm(moved[0] - moved[1]) / np.linalg.norm(moved[1])),
        "masks_agree": float(np.mean(masks[0] == masks[1])),
    }


def figures(layout: str, preset: str, run: bool) -> dict[str, Any]:
    """Of one boundary on all devices of this process."""
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,))
    rows = ROWS * devices if layout == "fsdp" else ROWS
    spec = P("data") if layout == "fsdp" else P()
    shapes = {"first": (rows, COLUMNS), "second": (rows, COLUMNS), "bias": (COLUMNS,)}
    specs = {"first": spec, "second": spec, "bias": P()}

    def place(tree: Any) -> Any:
        return {n: jax.device_put(x, NamedSharding(mesh, specs[n])) for n, x in tree.items()}

    predictor = pdt_optax.Predictor(**pdt_optax.presets.named(preset))
    trees = walk(shapes)
    compiled = lower(predictor, place(trees[0])).compile()
    cost = compiled.cost_analysis()
    result = collectives(compiled.as_text())
    result |= {"flops": cost["flops"], "bytes_accessed": cost["bytes accessed"]}
    return result | differences(predictor, trees, place) if run else result


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    p = measure.parser("scaling", __doc__)
    p.add_argument(
        "--devices", type=command.whole(1), nargs="+", default=[1, 2, 4, 8, 64, 1024], help="how many, each"
    )
    p.add_argument("--here", action="store_true", help="print the figures of this process's devices alone")
    args = p.parse_args(argv)
    if args.here:
        run = jax.device_count() <= 16  # more would share two cores
        print(json.dumps({f"{x} {y}": figures(x, y, run) for x in LAYOUTS for y in PRESETS}))
        return 0
    results = {}
    for count in track(args.devices, description="devices"):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.scaling", "--here"],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            check=True,
        )
        results[count] = json.loads(done.stdout)
    weights = ROWS * COLUMNS * 2 + COLUMNS
    measure.write(args.out, "scaling", {"weights_per_device": weights, "devices": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
