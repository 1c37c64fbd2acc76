"""The processes and devices of a run: how it starts, and how its arrays lie on them."""

import argparse
import dataclasses
import math
import os
import socket
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from experiments import command

# What a mesh's axes split.
BATCH_AXES = ("data", "fsdp")
WEIGHT_AXES = ("fsdp", "model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--mesh` and how processes find each other."""
    group = parser.add_argument_group(
        "devices",
        "By default all devices, of all processes, split the batch. Under SLURM the processes\n"
        "that srun starts find each other; elsewhere start each with the last three options.\n"
        "All processes must see the same --out.",
    )
    group.add_argument(
        "--mesh",
        metavar="data=4,model=2",
        help="devices along each axis: `data` splits the batch, `model` the weights, `fsdp` (in its place) both",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--processes", type=command.whole(1), metavar="N", help="how many processes there are")
    group.add_argument(
        "--process-id", type=command.whole(0), metavar="I", help="which of them this is, from 0"
    )
    group.add_argument(
        "--lost-after",
        type=command.whole(1),
        default=30,
        metavar="SECONDS",
        help="when a process has been silent for so long, the others end",
    )


def start(args: argparse.Namespace) -> "Devices":
    """Joins the other processes, if there are any, and takes all devices as the arguments say.

    Raises:
      ValueError: if the arguments contradict each other or the devices there are.
    """
    given = (args.coordinator, args.processes, args.process_id)
    if any(x is not None for x in given):
        if any(x is None for x in given):
            raise ValueError(
                "`--coordinator`, `--processes` and `--process-id` go together: each process must know all three. "
                f"Got {args.coordinator}, {args.processes}, {args.process_id}."
            )
        if not 0 <= args.process_id < args.processes:
            raise ValueError(
                f"`--process-id` counts from 0 to `--processes` - 1. Got {args.process_id} of {args.processes}."
            )
        host, _, port = args.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"`--coordinator` must be HOST:PORT. Got {args.coordinator!r}.")
        if args.process_id == 0:
            try:  # where jax crashes
                socket.create_server(("", int(port))).close()
            except OSError as e:
                raise ValueError(
                    f"Process 0 must be free to listen at `--coordinator`. Got {args.coordinator!r} ({os.strerror(e.errno or 0)})."
                ) from None
    elif int(os.environ.get("SLURM_NTASKS", "1")) == 1 or "SLURM_PROCID" not in os.environ:
        return devices(args.mesh)
    # Without `given`, jax reads SLURM's environment.
    jax.distributed.initialize(*given, heartbeat_timeout_seconds=args.lost_after)
    return devices(args.mesh)


def devices(mesh: str | None = None) -> "Devices":
    """All devices, along the axes of a text such as "data=4,model=2"; by default they all split the batch.

    Raises:
      ValueError: if the text is malformed or asks for another number of devices than there are.
    """
    count = jax.device_count()
    along = {"data": count} if mesh is None else sizes(mesh)
    if math.prod(along.values()) != count:
        raise ValueError(
            f"`--mesh` must use all devices: its sizes multiply to their number, {count}. Got {mesh}."
        )
    if count == 1:
        return ONE_DEVICE
    return Devices(jax.make_mesh(tuple(along.values()), tuple(along), (AxisType.Auto,) * len(along)))


def sizes(mesh: str) -> dict[str, int]:
    """The axes that `--mesh` names, and their sizes."""
    known = dict.fromkeys((*BATCH_AXES, *WEIGHT_AXES))
    found: dict[str, int] = {}
    for part in mesh.split(","):
        name, _, size = part.partition("=")
        if name not in known or name in found or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"`--mesh` must be sizes of the axes {', '.join(known)}, each at most once, such as "
                f"data=4,model=2. Got {mesh!r}."
            )
        found[name] = int(size)
    if min(found.get(name, 1) for name in WEIGHT_AXES) > 1:
        raise ValueError(
            "`--mesh` splits weights over `fsdp` or over `model`: of weights split over both, beside a split batch, XLA "
            f"(jax 0.10 and 0.12, on CPUs) returns wrong gradients. Got {mesh!r}."
        )
    return found


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where the arrays of a run lie.

    Attributes:
      mesh: of all devices, with automatic axes; None if there is one. Abstract to tell what a run takes.
    """

    mesh: Mesh | AbstractMesh | None

    def __str__(self) -> str:
        kind = jax.devices()[0].device_kind
        if self.mesh is None:
            return f"{kind} ({jax.default_backend()})"
        shape = ",".join(f"{name}={size}" for name, size in self.mesh.shape.items())
        processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        return f"{self.mesh.size} x {kind} ({jax.default_backend()}){processes}, {shape}"

    @property
    def batch_shards(self) -> int:
        """Into how many parts a batch is split."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape.get(name, 1) for name in BATCH_AXES)

    @property
    def parts(self) -> int:
        """Into how many parts `fsdp` splits the weights."""
        return 1 if self.mesh is None else self.mesh.shape.get("fsdp", 1)

    def whole(self, tree: Any, like: Any) -> Any:
        """In jit: weights as the model has them, in the shapes of `like`; padding takes part in nothing."""

        def cut(x: Any, shape: tuple[int, ...]) -> Any:
            # Gathered first: a slice of a split dimension would move parts between all devices.
            return x if x.shape == shape else resized(self.everywhere(x), shape)

        return jax.tree.map(lambda x, y: cut(x, y.shape), tree, like)

    def weights(self, tree: Any) -> Any:
        """Arrays that every process has, split as weights are; in jit, a constraint to it."""
        return self._put(tree, self._weight_spec)

    def batch(self, array: np.ndarray, index: np.ndarray | None = None) -> jax.Array:
        """`array[index]`, or all of it, split over its first axis; a process reads the rows of its own devices alone."""
        if self.mesh is None:
            return jax.device_put(array if index is None else array[index])
        sharding = NamedSharding(self.mesh, self._batch_spec)
        rows = len(array) if index is None else len(index)

        def read(where: Any) -> np.ndarray:
            return array[where[0] if index is None else index[where[0]]]

        return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, read)

    @property
    def part(self) -> tuple[int, int]:
        """Which part of every batch this process reads, counted from 0, and of how many.

        Processes whose devices hold the same rows, as along `model`, read the same part.
        """
        if self.mesh is None:
            return 0, 1
        shards = self.batch_shards
        places = NamedSharding(self.mesh, self._batch_spec).addressable_devices_indices_map((shards,))
        mine = sorted({where[0].indices(shards)[0] for where in places.values() if where is not None})
        return mine[0] // len(mine), shards // len(mine)

    def put_part(self, array: np.ndarray) -> jax.Array:
        """A batch, split over its first axis, of which this process has read its part."""
        array = np.array(array)  # on CPUs jax would go on using the memory that a decoding process shares
        if self.mesh is None:
            return jax.device_put(array)
        shape = (len(array) * self.part[1], *array.shape[1:])
        return jax.make_array_from_process_local_data(
            NamedSharding(self.mesh, self._batch_spec), array, shape
        )

    def placed(self, tree: Any, batch: bool = False) -> Any:
        """Shapes of weights, or of a batch, with how they are split."""
        if self.mesh is None:
            return tree
        mesh = self.mesh

        def placed(x: Any) -> jax.ShapeDtypeStruct:
            spec = self._batch_spec if batch else self._weight_spec(x.shape)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

        return jax.tree.map(placed, tree)

    def shared(self, tree: Any) -> Any:
        """What lies on one device of each process, as counters do after an epoch's end, on all: else it cannot be saved."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda x: x if len(x.sharding.device_set) > 1 else self.everywhere(x), tree)

    def everywhere(self, tree: Any) -> Any:
        """Arrays that every process has, whole on each device."""
        return self._put(tree, lambda shape: PartitionSpec())

    def index(self, order: jax.Array) -> jax.Array:
        """Numbers of examples in data that lie `everywhere`, split as the batch that they pick."""
        return (
            order if self.mesh is None else jax.device_put(order, NamedSharding(self.mesh, self._batch_spec))
        )

    @property
    def _batch_spec(self) -> PartitionSpec:
        assert self.mesh is not None
        return PartitionSpec(tuple(name for name in BATCH_AXES if name in self.mesh.shape))

    def _weight_spec(self, shape: tuple[int, ...]) -> PartitionSpec:
        """The axis of the mesh that splits weights takes the longest dimension that it divides."""
        assert self.mesh is not None
        for name in WEIGHT_AXES:
            size = self.mesh.shape.get(name, 1)
            if size > 1 and (divided := [d for d, n in enumerate(shape) if n % size == 0]):
                longest = max(divided, key=lambda d: shape[d])
                return PartitionSpec(*(name if d == longest else None for d in range(len(shape))))
        return PartitionSpec()

    def _put(self, tree: Any, spec: Any) -> Any:
        mesh = self.mesh
        if mesh is None:
            return tree

        def put(x: Any) -> jax.Array:
            sharding = NamedSharding(mesh, spec(x.shape))
            if isinstance(x, Tracer):
                return jax.lax.with_sharding_constraint(x, sharding)
            return jax.make_array_from_callback(x.shape, sharding, lambda where: np.asarray(x)[where])

        return jax.tree.map(put, tree)


ONE_DEVICE = Devices(None)


def check_batch(size: int, spread: Devices, accumulate: int = 1) -> None:
    """Raises ValueError if the devices cannot share a batch evenly."""
    if size % (spread.batch_shards * accumulate):
        told = f", {accumulate} accumulated" if accumulate > 1 else ""
        raise ValueError(
            "`batch_size` must be a multiple of the parts that the mesh splits a batch into. "
            f"Got {size}, {spread.batch_shards} parts{told}."
        )


def padded(shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """The shape that a weight has in training: its longest dimension rounded up if `parts` divides none of a matrix."""
    if len(shape) < 2 or any(n % parts == 0 for n in shape):
        return shape
    longest = max(range(len(shape)), key=lambda d: shape[d])
    return tuple(-(-n // parts) * parts if d == longest else n for d, n in enumerate(shape))


def resized(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """An array without what exceeds a shape, and zeros where it is smaller."""
    if array.shape == shape:
        return array
    array = array[tuple(slice(n) for n in shape)]
    return jnp.pad(array, [(0, n - m) for m, n in zip(array.shape, shape, strict=True)])


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def wait_for_all() -> None:
    """Until every process is here, and what the first has written can be read."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all")


def as_the_first(values: list[bool]) -> list[bool]:
    """What process 0 has found: so that all take the same way."""
    if jax.process_count() == 1:
        return values
    return multihost_utils.broadcast_one_to_all(np.array(values)).tolist()


def all_agree(value: bool) -> bool:
    """Whether it is so in every process."""
    return (
        value if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(value)).all())
    )
