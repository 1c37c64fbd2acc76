"""Records on disk: one JSON-lines file per run, named by the hash of its config."""

import contextlib
import json
import zipfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pdt_optax
from experiments.data.datasets import Dataset
from experiments.training.arms import BASELINE
from experiments.training.checkpoints import Checkpoints, Saving, UnreadableError
from experiments.training.devices import ONE_DEVICE, Devices, is_first, wait_for_all
from experiments.training.trainer import Config, operations, train
from experiments.training.watch import ARRAYS

Record = dict[str, Any]

# What tables and pictures take from every epoch.
NUMBERS = (
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
    "train_seconds",
    "pdt_seconds",
    "predicted",
    "accepted_share",
    "horizon",
)


class Run(NamedTuple):
    """A config's plain fields and what it recorded, one record per epoch."""

    fields: dict[str, Any]
    epochs: list[Record]

    @property
    def rule(self) -> str:
        return self.fields["rule"]

    @property
    def seed(self) -> int:
        return self.fields["seed"]

    @property
    def complete(self) -> bool:
        """Whether all epochs are there."""
        return len(self.epochs) == self.fields["epochs"]


def path_of(folder: Path, config: Config) -> Path:
    """Where the records of a config lie."""
    return folder / f"{config.rule}-seed{config.seed}-{config.key}.jsonl"


def read(folder: Path, config: Config) -> Run:
    """What is on disk for a config; no epochs if nothing is.

    Raises:
      UnreadableError: if that is not a record of this config.
    """
    path = path_of(folder, config)
    run = _read(path, config) if path.exists() else None
    return run or Run(config.fields, [])


def place(folders: Sequence[Path], configs: Sequence[Config]) -> Path:
    """The first folder that has all of some runs, else the first of all: their seconds are compared, as of one machine."""
    return next((f for f in folders if all(read(f, c).complete for c in configs)), folders[0])


def arrays(folder: Path, config: Config) -> dict[str, np.ndarray]:
    """What a watched run left beside its record; empty if nothing. Nothing in the file is ever executed.

    Raises:
      UnreadableError: if that is something else.
    """
    path = path_of(folder, config).with_suffix(".npz")
    if not path.exists():
        return {}
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = dict(file)
        for name, array in found.items():
            if (array.ndim, array.dtype.kind) != ARRAYS.get(name):
                raise ValueError(f"{name} is {array.dtype}{list(array.shape)}")
        for kind in ("mask", "landscape"):
            names = {name for name in ARRAYS if name.startswith(kind)}
            if names & found.keys() and names - found.keys():
                raise ValueError(f"without {', '.join(sorted(names - found.keys()))}")
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise UnreadableError(
            f"{path} is not what a watched run leaves ({e}): move it and its record away."
        ) from None
    return found


def read_all(folder: Path) -> list[Run]:
    """All runs in a folder, by seed, then by rule: the baseline, the presets, all others."""
    runs = [run for path in folder.glob("*.jsonl") if (run := _read(path))]
    known = [BASELINE, *pdt_optax.presets.names()]
    return sorted(runs, key=lambda run: (run.seed, [run.rule != rule for rule in known], run.rule))


def _read(path: Path, config: Config | None = None) -> Run | None:
    try:
        # A process may die while it writes: then the last line has no end.
        lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        return _run(lines, config) if lines else None
    except (ValueError, RecursionError) as e:
        raise UnreadableError(f"{path} is not the record of a run ({e}): mend it, or move it away.") from None


def _run(lines: Sequence[Any], config: Config | None) -> Run:
    """The run of a file's lines; a ValueError says what they are instead."""
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict):
            raise ValueError(f"line {number} is {type(line).__name__}, no object")
    fields, *epochs = lines
    expected = json.loads(json.dumps(config.fields)) if config else {}
    wrong = [name for name, value in expected.items() if fields.get(name) != value]
    named = isinstance(fields.get("rule"), str) and _numbers(fields, ("seed", "epochs"))
    counted = "flops" not in fields or _numbers(fields["flops"], ("step", "boundary"))
    if wrong or not named or not counted:
        raise ValueError(f"line 1 is not its config, by {', '.join(wrong) or 'its fields'}")
    names = NUMBERS + ("probe_loss",) * bool(config and config.workload.probe_examples)
    for number, epoch in enumerate(epochs, start=1):
        if epoch.get("epoch") != number or number > fields["epochs"] or not _numbers(epoch, names):
            raise ValueError(f"line {number + 1} is not one of epoch {number} of {fields['epochs']}")
    shares = [e["shares"] for e in epochs if "shares" in e]
    if not all(_numbers(s, s) and s.keys() == shares[0].keys() for s in shares):
        raise ValueError("accepted shares are not of the same leaves at every jump")
    return Run(fields, epochs)


def _numbers(values: Any, names: Iterable[str]) -> bool:
    """Whether these are numbers under these names, and perhaps others."""
    return isinstance(values, dict) and all(isinstance(values.get(n), (int, float)) for n in names)


def record(
    folder: Path,
    config: Config,
    dataset: Dataset,
    devices: Devices = ONE_DEVICE,
    saving: Saving | None = None,
) -> Generator[Record]:
    """Trains a config, writing each epoch's record as soon as it is there, and yields it.

    The first line of the file is the config; numbers keep six digits, and those
    that are not finite are written as NaN and Infinity, as Python's json does.
    Of several processes, the first writes. Checkpoints lie beside the records; a
    watched run has none, since it must be seen from its start, and its arrays
    are written before its last epoch's record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, config)
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if saving and saving.every and not config.watch:
            checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints" / path.stem, saving))
        file = stack.enter_context(path.open("w")) if is_first() else None
        kept: dict[str, np.ndarray] = {}
        for line in _lines(config, dataset, devices, checkpoints, kept):
            if file:
                if line.get("epoch") == config.epochs and kept:
                    np.savez_compressed(path.with_suffix(".npz"), **kept)  # pyright: ignore[reportArgumentType]
                file.write(json.dumps(line) + "\n")
                file.flush()
            if "epoch" in line:
                yield line
    wait_for_all()


def _lines(
    config: Config,
    dataset: Dataset,
    devices: Devices,
    checkpoints: Checkpoints | None,
    arrays: dict[str, np.ndarray],
) -> Iterator[Record]:
    spread = {} if devices.mesh is None else {"devices": str(devices)}
    counted = {"flops": operations(config)} if "flops" in config.watch else {}
    yield config.fields | {"settings": {k: repr(v) for k, v in config.settings.items()}} | spread | counted
    for epoch in train(config, dataset, devices, checkpoints, arrays):
        yield {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in epoch.items()}
