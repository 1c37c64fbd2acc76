"""What a run at the paper's scale on ImageNet will take, told without allocating anything.

`python -m experiments.run table1 --scale paper --dry-run` prints it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend.core import Var
from jax.sharding import AbstractMesh, AxisType

import pdt_optax
from experiments.data.datasets import Split
from experiments.training.devices import ONE_DEVICE, Devices, check_batch
from experiments.training.flops import lowered_flops
from experiments.training.trainer import Config, _program
from experiments.training.workloads import Resized


class DryRun(NamedTuple):
    """What a run will take; printed as a table.

    Attributes:
      parameters: of the model.
      devices: how many share the batch, and the weights along `fsdp`.
      batch: shapes and shardings of a batch.
      memory: of weights, optimizer and snapshots on one device, bytes.
      activations: that a step, or a part of it that is accumulated, keeps for its gradient on one device, bytes, as JAX
        writes it: XLA may keep less. What a recomputed layer
        needs for itself is not counted: 5.8 GB for one of ViT-Huge at 200 images.
      operations: floating-point ones of a step over all devices, by XLA's count.
      step: the lowered training step.
    """

    parameters: int
    devices: int
    batch: Split
    memory: pdt_optax.Memory
    activations: int
    operations: float
    step: jax.stages.Lowered

    @property
    def device(self) -> int:
        """About what a device must hold, bytes: the run, and a step's gradients or a prediction."""
        memory = self.memory
        return memory.device - memory.boundary + max(memory.boundary, memory.params + self.activations)

    def __str__(self) -> str:
        rows = [
            ("parameters", f"{self.parameters:,}"),
            (
                "batch",
                f"{self.batch.inputs.dtype}{list(self.batch.inputs.shape)} over {self.devices} devices",
            ),
            ("operations in a step", f"{self.operations / 1e12:,.1f} T"),
            ("on each device:", ""),
            ("  weights", _gigabytes(self.memory.params)),
            ("  optimizer", _gigabytes(self.memory.optimizer)),
            ("  snapshots", _gigabytes(self.memory.snapshots)),
            ("  a prediction", _gigabytes(self.memory.boundary)),
            ("  or gradients", _gigabytes(self.memory.params)),
            ("  and activations", _gigabytes(self.activations)),
            ("  in all, about", _gigabytes(self.device)),
        ]
        return "\n".join(f"{name:<22}{value}".rstrip() for name, value in rows)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:8.2f} GB"


def dry_run(config: Config, spread: Devices = ONE_DEVICE) -> DryRun:
    """Builds a run from its shapes alone.

    Args:
      config: of an arm that is PDT.
      spread: devices that need not be here, over an abstract mesh.

    Raises:
      ValueError: if the devices do not share the batch out.
    """
    workload, method = config.workload, config.arm.method(config.recipe)
    assert isinstance(workload, Resized)
    assert method.made is not None
    check_batch(workload.batch_size, spread, workload.accumulate)
    alone, key = _program(config.program), jax.eval_shape(lambda: jax.random.key(0))
    plain: Any = jax.eval_shape(alone.init, key)
    params, program, state = plain.params, alone, plain
    if spread.mesh is not None:
        program = _program(config.program, spread)
        state = jax.eval_shape(program.init, key)
    state = spread.placed(state._replace(kept=None))
    batch = spread.placed(workload.spec(workload.batch_size), batch=True)
    step: Any = program.step
    lowered = step.trace(state, *batch, None, key).lower(lowering_platforms=("cuda",))
    memory = pdt_optax.memory(method.made, params, optimizer=method.tx)
    on_each = sum(math.prod(_shard(x)) * x.dtype.itemsize for x in jax.tree.leaves(state.params))
    sizes = ("params", "optimizer", "snapshots", "backup", "boundary")
    each: Any = {name: round(getattr(memory, name) * on_each / memory.params) for name in sizes}
    part = workload.spec(workload.batch_size // workload.accumulate)
    return DryRun(
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(params)),
        devices=1 if spread.mesh is None else spread.mesh.size,
        batch=batch,
        memory=memory._replace(**each),
        activations=_residuals(alone.loss, params, plain.rest, *part, key) // spread.batch_shards,
        operations=lowered_flops(lowered),
        step=lowered,
    )


def abstract(sizes: Mapping[str, int]) -> Devices:
    """Devices along the axes of a mesh, none of which need be here."""
    if math.prod(sizes.values()) == 1:
        return ONE_DEVICE
    return Devices(AbstractMesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes)))


def _shard(x: Any) -> tuple[int, ...]:
    """What one device has of an array."""
    return x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)


def _residuals(loss: Callable[..., Any], params: Any, *args: Any) -> int:
    """Bytes that a gradient by `params` keeps between its two passes, the arguments left out."""

    def forward(params: Any, *args: Any) -> Any:
        return jax.vjp(lambda params: loss(params, *args), params, has_aux=True)[1]

    program: Any = jax.make_jaxpr(forward)(params, *args).jaxpr
    kept: Any = {v for v in program.outvars if isinstance(v, Var)} - set(program.invars)
    return sum(v.aval.size * v.aval.dtype.itemsize for v in kept)
