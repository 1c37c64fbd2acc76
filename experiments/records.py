"""Records on disk: one JSON-lines file per run, named by the hash of its config."""

import contextlib
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pdt_optax
from experiments.arms import BASELINE
from experiments.checkpoints import Checkpoints, Saving
from experiments.data import Dataset
from experiments.devices import ONE_DEVICE, Devices, is_first, wait_for_all
from experiments.training import Config, train

Record = dict[str, Any]


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
    """What is on disk for a config; no epochs if nothing is."""
    path = path_of(folder, config)
    run = _read(path) if path.exists() else None
    return run or Run(config.fields, [])


def read_all(folder: Path) -> list[Run]:
    """All runs in a folder, by seed, then by rule: the baseline, the presets, all others."""
    runs = [run for path in folder.glob("*.jsonl") if (run := _read(path))]
    known = [BASELINE, *pdt_optax.presets.names()]
    return sorted(runs, key=lambda run: (run.seed, [run.rule != rule for rule in known], run.rule))


def _read(path: Path) -> Run | None:
    # A process may die while it writes: then the last line has no end.
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return Run(lines[0], lines[1:]) if lines else None


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
    Of several processes, the first writes. Checkpoints lie beside the records.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, config)
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if saving and saving.every:
            checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints" / path.stem, saving))
        file = stack.enter_context(path.open("w")) if is_first() else None
        for line in _lines(config, dataset, devices, checkpoints):
            if file:
                file.write(json.dumps(line) + "\n")
                file.flush()
            if "epoch" in line:
                yield line
    wait_for_all()


def _lines(
    config: Config, dataset: Dataset, devices: Devices, checkpoints: Checkpoints | None
) -> Iterator[Record]:
    spread = {} if devices.mesh is None else {"devices": str(devices)}
    yield config.fields | {"settings": {k: repr(v) for k, v in config.settings.items()}} | spread
    for epoch in train(config, dataset, devices, checkpoints):
        yield {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in epoch.items()}
