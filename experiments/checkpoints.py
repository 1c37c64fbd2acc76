"""A run's checkpoints: saved by Orbax after an epoch, and taken up where the run broke off."""

import argparse
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

import pdt_optax
from experiments.devices import is_first


class Saving(NamedTuple):
    """When a run is saved, and what becomes of its checkpoints.

    Attributes:
      every: save after every so many epochs; 0 for never.
      resume: take up the latest; else start anew.
      keep: leave the last one, of the trained weights, when the run is complete.
      wait: until a checkpoint is on disk; else it is written while the next epoch trains.
    """

    every: int = 0
    resume: bool = True
    keep: bool = False
    wait: bool = False


def add_arguments(parser: argparse._ActionsContainer, every: int) -> None:
    """`--resume`, `--save-every` and `--keep-checkpoints`."""
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with a run that broke off from its last checkpoint",
    )
    parser.add_argument(
        "--save-every",
        type=int,
        default=every,
        metavar="EPOCHS",
        help="epochs between checkpoints; 0 for none",
    )
    parser.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="keep the last checkpoint, with the trained weights, of a complete run",
    )


def saving(args: argparse.Namespace, wait: bool = False) -> Saving:
    """What the arguments say.

    Raises:
      ValueError: if the number of epochs is negative.
    """
    if args.save_every < 0:
        raise ValueError(f"`--save-every` counts epochs, or is 0 for no checkpoints. Got {args.save_every}.")
    return Saving(args.save_every, args.resume, args.keep_checkpoints, wait)


class Saved(NamedTuple):
    """What a run needs to go on as if it had never stopped.

    Attributes:
      state: weights, optimizer and PDT state, BatchNorm's statistics.
      position: in the data, as plain values: epochs trained, and the keys of
        the data's order and of the dropout.
      epochs: the records so far.
    """

    state: Any
    position: dict[str, Any]
    epochs: list[dict[str, Any]]


class Checkpoints:
    """The checkpoints of one run, in a folder of their own; a context that ends with the run."""

    def __init__(self, folder: Path, saving: Saving):
        self.folder, self.saving = folder, saving

    def __enter__(self) -> "Checkpoints":
        if not self.saving.resume:
            self._remove()
        # Two, so that one is whole whenever the process dies.
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        self.manager = ocp.CheckpointManager(self.folder.absolute(), options=options)
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.manager.close()
        if kind is None and not self.saving.keep:
            self._remove()

    def _remove(self) -> None:
        if is_first():
            shutil.rmtree(self.folder, ignore_errors=True)

    def latest(self, like: Any, tx: Any) -> Saved | None:
        """The latest checkpoint, its state in the shapes and on the devices of `like`; None without one.

        Raises:
          ValueError: if another version of `pdt_optax` made it.
        """
        epoch = self.manager.latest_step()
        if epoch is None:
            return None
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        saved = self.manager.restore(
            epoch,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target),
                progress=ocp.args.JsonRestore(),
            ),
        )
        if isinstance(tx, pdt_optax.PDT):
            pdt_optax.check_saved(tx, saved["state"].opt_state)
        return Saved(saved["state"], **saved["progress"])

    def save(self, epoch: int, saved: Saved, last: bool) -> None:
        """Saves after an epoch, counted from 1, if it is time."""
        if not self.saving.keep if last else epoch % self.saving.every:
            return
        self.manager.save(
            epoch,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(saved.state),
                progress=ocp.args.JsonSave({"position": saved.position, "epochs": saved.epochs}),
            ),
        )
        if self.saving.wait:
            self.manager.wait_until_finished()


def trained(folder: Path) -> dict[str, Any]:
    """The state in a run's latest checkpoint, as nested dicts of arrays on one device, wherever it was trained."""
    handlers = {"state": ocp.StandardCheckpointHandler()}
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.CheckpointManager(folder.absolute(), item_handlers=handlers) as manager:
        epoch = manager.latest_step()
        shapes = manager.item_metadata(epoch)["state"].tree
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return manager.restore(epoch, args=args)["state"]
