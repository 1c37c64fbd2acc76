"""What a run at the paper's scale on ImageNet will take, told without allocating anything.

`python -m experiments.run table1 --scale paper --dry-run` prints it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.extend.core import Var
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import pdt_optax
from experiments.data import datasets
from experiments.data.datasets import Split
from experiments.training.flops import lowered_flops


class State(NamedTuple):
    """What a step carries on: weights, optimizer state and the rest of the model."""

    params: Any
    opt_state: Any
    rest: Any


class DryRun(NamedTuple):
    """What a run will take; printed as a table.

    Attributes:
      parameters: of the model.
      devices: the batch is split over them, and all else is on each.
      batch: shapes and shardings of a batch.
      memory: of weights, optimizer and snapshots on one device, bytes.
      activations: that a step keeps for its gradient on one device, bytes, as JAX
        writes it: XLA may keep less. What a recomputed layer
        needs for itself is not counted: 5.8 GB for one of ViT-Huge at 200 images.
      operations: floating-point ones of a step over all devices, by XLA's count.
      step: the lowered training step, (state, batch, key) to (state, loss).
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


def _loss(graph: Any, params: Any, rest: Any, batch: Split, key: jax.Array) -> tuple[jax.Array, Any]:
    model = nnx.merge(graph, params, rest, copy=True)  # the model may change the rest
    logits = model(datasets.scale(jnp.asarray(batch.inputs)), key)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean()
    return loss, nnx.split(model, nnx.Param, ...)[2]


def training_step(graph: Any, tx: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    """A step of a classifier on uint8 images: (state, batch, key) to (state, loss)."""

    def step(state: State, batch: Split, key: jax.Array) -> tuple[State, jax.Array]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            return _loss(graph, params, state.rest, batch, key)

        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state, rest), value

    return step


def dry_run(
    model: Callable[..., Any],
    tx: optax.GradientTransformation,
    made: pdt_optax.PDT | pdt_optax.Predictor,
    batch: Split,
    *,
    devices: int = 1,
) -> DryRun:
    """Builds model, optimizer, batch and step of a run from their shapes alone.

    Args:
      model: makes it, from `rngs`.
      tx: the optimizer.
      made: the `Predictor` beside it, or `tx` itself if `pdt` made it.
      batch: `jax.ShapeDtypeStruct`s of uint8 images and of labels.
      devices: that share the batch; weights, optimizer and snapshots are on each. None is needed here.

    Raises:
      ValueError: if the devices do not share the batch out.
    """
    size = batch.inputs.shape[0]
    if size % devices:
        raise ValueError(f"The batch must be a multiple of `devices`. Got {size} examples, {devices=}.")
    mesh = AbstractMesh((devices,), ("data",), axis_types=(AxisType.Auto,))

    def placed(tree: Any, *spec: str) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    graph, params, rest = nnx.split(nnx.eval_shape(lambda: model(rngs=nnx.Rngs(0))), nnx.Param, ...)
    state = State(params, jax.eval_shape(tx.init, params), rest)
    key: Any = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.jit(training_step(graph, optax.with_extra_args_support(tx)), donate_argnums=0).trace(
        placed(state), placed(batch, "data"), key
    )
    lowered = traced.lower(lowering_platforms=("cuda",))
    return DryRun(
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(params)),
        devices=devices,
        batch=placed(batch, "data"),
        memory=pdt_optax.memory(made, params, optimizer=tx),
        activations=_residuals(functools.partial(_loss, graph), params, rest, batch, key) // devices,
        operations=lowered_flops(lowered),
        step=lowered,
    )


def _residuals(loss: Callable[..., Any], params: Any, *args: Any) -> int:
    """Bytes that a gradient by `params` keeps between its two passes, the arguments left out."""

    def forward(params: Any, *args: Any) -> Any:
        return jax.vjp(lambda params: loss(params, *args), params, has_aux=True)[1]

    program: Any = jax.make_jaxpr(forward)(params, *args).jaxpr
    kept: Any = {v for v in program.outvars if isinstance(v, Var)} - set(program.invars)
    return sum(v.aval.size * v.aval.dtype.itemsize for v in kept)
