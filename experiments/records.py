"""Records on disk: one JSON-lines file per run, named by the hash of its config."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pdt_optax
from experiments.data import Dataset
from experiments.training import BASELINE, Config, train

Record = dict[str, Any]


class Run(NamedTuple):
    """A config and what it recorded, one record per epoch; `complete` if all epochs are there."""

    config: Config
    epochs: list[Record]

    @property
    def complete(self) -> bool:
        return len(self.epochs) == self.config.epochs


def path_of(folder: Path, config: Config) -> Path:
    """Where the records of a config lie."""
    return folder / f"{config.rule}-seed{config.seed}-{config.key}.jsonl"


def read(folder: Path, config: Config) -> Run:
    """What is on disk for a config; no epochs if nothing is."""
    path = path_of(folder, config)
    lines = path.read_text().splitlines() if path.exists() else []
    return Run(config, [json.loads(line) for line in lines[1:]])


def read_all(folder: Path) -> list[Run]:
    """All runs in a folder, by seed, then by rule."""
    runs = []
    for path in folder.glob("*.jsonl"):
        first, *lines = path.read_text().splitlines()
        fields = json.loads(first)
        del fields["settings"]
        runs.append(Run(Config(**fields), [json.loads(line) for line in lines]))
    rules = [BASELINE, *pdt_optax.presets.names()]
    return sorted(runs, key=lambda run: (run.config.seed, rules.index(run.config.rule)))


def record(folder: Path, config: Config, dataset: Dataset) -> Iterator[Record]:
    """Trains a config, writing each epoch's record as soon as it is there, and yields it.

    The first line of the file is the config; numbers that are not finite are
    written as NaN and Infinity, as Python's json does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with path_of(folder, config).open("w") as file:
        for line in _lines(config, dataset):
            file.write(json.dumps(line) + "\n")
            file.flush()
            if "epoch" in line:
                yield line


def _lines(config: Config, dataset: Dataset) -> Iterator[Record]:
    yield dataclasses.asdict(config) | {"settings": {k: repr(v) for k, v in config.settings.items()}}
    yield from train(config, dataset)
