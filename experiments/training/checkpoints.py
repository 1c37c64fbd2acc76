"""A run's checkpoints: saved by Orbax after an epoch, or within one, and taken up where the run broke off."""

import argparse
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

import pdt_optax
from experiments.command import RefusedError, whole
from experiments.training.devices import all_agree, as_the_first, is_first, resized


class Saving(NamedTuple):
    """When a run is saved, and what becomes of its checkpoints.

    Attributes:
      every: save after every so many epochs; 0 for never.
      resume: take up the latest; else start anew.
      keep: leave the last one, of the trained weights, when the run is complete.
      wait: until a checkpoint is on disk; else it is written while the run goes on.
      steps: save after every so many steps of an epoch, too; 0 for its end alone.
    """

    every: int = 0
    resume: bool = True
    keep: bool = False
    wait: bool = False
    steps: int = 0


def add_arguments(parser: argparse._ActionsContainer, every: int) -> None:
    """`--resume`, `--save-every`, `--save-steps` and `--keep-checkpoints`."""
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with a run that broke off from its last checkpoint",
    )
    parser.add_argument(
        "--save-every",
        type=whole(0),
        default=every,
        metavar="EPOCHS",
        help="epochs between checkpoints; 0 for none",
    )
    parser.add_argument(
        "--save-steps",
        type=whole(0),
        default=0,
        metavar="STEPS",
        help="save after every so many steps of an epoch, too, and after SIGTERM; 0 for its end alone",
    )
    parser.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="keep the last checkpoint, with the trained weights, of a complete run",
    )


def saving(args: argparse.Namespace, wait: bool = False) -> Saving:
    """What the arguments say."""
    return Saving(args.save_every, args.resume, args.keep_checkpoints, wait, args.save_steps)


class Saved(NamedTuple):
    """What a run needs to go on as if it had never stopped.

    Attributes:
      state: weights, optimizer and PDT state, BatchNorm's statistics.
      position: in the data, as plain values: epochs trained, steps of the next one and the seconds that they
        took, and the keys of the data's order and of the dropout. The batches are functions of these.
      epochs: the records so far.
    """

    state: Any
    position: dict[str, Any]
    epochs: list[dict[str, Any]]


class UnreadableError(RefusedError):
    """A file of a run, or its last checkpoint, cannot be read; the message names it."""


class Stopped(SystemExit):
    """SIGTERM came: the run was saved, and the process ends with the signal's code."""


class Checkpoints:
    """The checkpoints of one run, in a folder of their own; a context that ends with the run.

    Within it SIGTERM waits until the run can be saved: at the end of the epoch, or after `saving.steps` steps.
    """

    def __init__(self, folder: Path, saving: Saving):
        self.folder, self.saving = folder, saving
        self.terminated = False

    def __enter__(self) -> "Checkpoints":
        if not self.saving.resume:
            self._remove()
        # Two, so that one is whole whenever the process dies.
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        self.manager = ocp.CheckpointManager(self.folder.absolute(), options=options)
        self.handler = None
        if threading.current_thread() is threading.main_thread():
            self.handler = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self.handler is not None:
            signal.signal(signal.SIGTERM, self.handler)
        self._attempt(self.manager.close, "The last checkpoint")
        if kind is None and not self.saving.keep:
            self._remove()

    def _terminate(self, *_: Any) -> None:
        self.terminated = True

    def _remove(self) -> None:
        if is_first():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _attempt(self, save: Callable[[], Any], what: str) -> None:
        """A checkpoint that cannot be written must not end the run that it should save."""
        try:
            save()
        except Exception as e:  # Orbax passes on what file systems raise, of many kinds
            lines = str(e).splitlines() or [type(e).__name__]
            print(
                f"{what} of {self.folder} could not be written ({lines[0]}); the run goes on, those before it stay.",
                file=sys.stderr,
            )

    def latest(
        self,
        like: Any,
        made: pdt_optax.PDT | pdt_optax.Predictor | None,
        shaped: Callable[[int], Any] | None = None,
    ) -> Saved | None:
        """The latest checkpoint that can be read, its state in the shapes and on the devices of `like`; None without any.

        One that is damaged is named on stderr, and the one before it taken.

        Args:
          like: the state.
          made: what is checked to be of this version.
          shaped: the shapes of the state where weights are split into so many parts, and padded for it.

        Raises:
          UnreadableError: if there are some, and none can be read.
          ValueError: if another version of `pdt_optax` made it.
        """
        found = sorted(self.manager.all_steps(), reverse=True)
        for step in found:
            saved, problem = self._restored(step, like, shaped)
            if all_agree(saved is not None) and saved:
                if made is not None:
                    pdt_optax.check_saved(made, saved.state)
                return saved
            print(f"{self.folder / str(step)} cannot be read ({problem}).", file=sys.stderr)
        if found:
            raise UnreadableError(
                f"No checkpoint in {self.folder} can be read: remove it, or start anew with --no-resume."
            )
        return None

    def _restored(
        self, step: int, like: Any, shaped: Callable[[int], Any] | None
    ) -> tuple[Saved | None, str]:
        try:
            progress = self._item(step, "progress", ocp.args.JsonRestore())
            position, epochs = progress["position"], progress["epochs"]
            keys = np.array([position["order_key"], position["dropout_key"]])
            numbered = [e["epoch"] for e in epochs] == list(range(1, position["epochs"] + 1))
            if keys.dtype.kind not in "iu" or not numbered or not isinstance(position.get("steps", 0), int):
                raise ValueError("its progress is not that of a run")
            shapes = shaped(position.get("parts", 1)) if shaped else like
            return Saved(self._state(step, shapes, like), position, epochs), ""
        except Exception as e:  # damage shows in as many ways as there are files
            return None, (str(e).splitlines() or [type(e).__name__])[0]

    def _item(self, step: int, name: str, args: Any) -> Any:
        return self.manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]

    def _state(self, step: int, shapes: Any, like: Any) -> Any:
        """The state in a checkpoint, which has these shapes, in those of `like`."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        if [x.shape for x in jax.tree.leaves(shapes)] == [x.shape for x in jax.tree.leaves(like)]:
            return self._item(step, "state", ocp.args.StandardRestore(target))

        # Padded for other devices: those here have it whole until it is padded for them.
        def whole(x: Any, of: Any) -> Any:
            here = of.sharding
            spread = NamedSharding(here.mesh, PartitionSpec()) if isinstance(here, NamedSharding) else here
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread)

        found = self._item(step, "state", ocp.args.StandardRestore(jax.tree.map(whole, shapes, target)))
        return jax.tree.map(
            lambda x, of: jax.jit(resized, static_argnums=1, out_shardings=of.sharding)(x, of.shape),
            found,
            target,
        )

    def due_within(self, step: int) -> bool:
        """Whether a run is saved after a step of an epoch."""
        return self.saving.steps > 0 and step % self.saving.steps == 0

    def save(self, step: int, saved: Saved, last: bool) -> None:
        """Saves a run after so many steps, if it is time: always within an epoch, else after every so many.

        Raises:
          Stopped: after that, if SIGTERM came.
        """
        (stop,) = as_the_first([self.terminated])
        ended = saved.position.get("steps", 0) == 0
        due = not ended or (self.saving.keep if last else saved.position["epochs"] % self.saving.every == 0)
        if stop or due:
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(saved.state),
                progress=ocp.args.JsonSave({"position": saved.position, "epochs": saved.epochs}),
            )

            def save() -> None:
                self.manager.save(step, args=args)
                if self.saving.wait or stop:
                    self.manager.wait_until_finished()

            self._attempt(save, f"The checkpoint after step {step}")
        if stop:
            raise Stopped(128 + signal.SIGTERM)


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
