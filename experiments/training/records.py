"""Records on disk: JSON lines while a run trains, one file per setup once its runs are packed.

A run of `FOLDER` is written to `FOLDER/RULE-seedSEED-KEY.jsonl`: a line for its config and where it is
made, and a line per epoch. `pack` moves all complete runs of the folder into `FOLDER.jsonl`, a line per
run with a list per column, and the arrays of watched runs into `FOLDER.npz`. Reading takes both.
"""

import contextlib
import functools
import itertools
import json
import os
import zipfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pdt_optax
from experiments.data.datasets import Dataset
from experiments.training.arms import BASELINE
from experiments.training.checkpoints import Checkpoints, Saving, UnreadableError
from experiments.training.devices import ONE_DEVICE, Devices, is_first, wait_for_all
from experiments.training.made import MADE, made
from experiments.training.trainer import Config, key_of, operations, train
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
    """A run: its config as plain values, one record per epoch, and what else is known of it.

    `about` has `made`, where and when it was trained, and perhaps `devices` and `flops`.
    """

    fields: Mapping[str, Any]
    epochs: list[Record]
    about: Mapping[str, Any] = {}

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


def packed(folder: Path) -> Path:
    """The file that the runs of a folder are packed into; with ".npz", that of their arrays."""
    return folder.with_name(f"{folder.name}.jsonl")


def read(folder: Path, config: Config) -> Run:
    """What is on disk for a config; no epochs if nothing is.

    Raises:
      UnreadableError: if that is not a record of this config.
    """
    path = path_of(folder, config)
    run = _read(path, config) if path.exists() else _unpacked(packed(folder), config)
    return run or Run(config.fields, [])


def place(folders: Sequence[Path], configs: Sequence[Config]) -> Path:
    """The first folder that has all of some runs, else the first of all: their seconds are compared, as of one machine."""
    return next((f for f in folders if all(read(f, c).complete for c in configs)), folders[0])


def arrays(folder: Path, config: Config) -> dict[str, np.ndarray]:
    """What a watched run left beside its record; empty if nothing. Nothing in the file is ever executed.

    Raises:
      UnreadableError: if that is something else.
    """
    path, within = path_of(folder, config).with_suffix(".npz"), ""
    if not path.exists():
        path, within = packed(folder).with_name(f"{folder.name}.npz"), f"{config.key}/"
    return _arrays(path, within)


def _arrays(path: Path, within: str) -> dict[str, np.ndarray]:
    """The arrays of one run in a file, those whose names begin with `within`."""
    if not path.exists():
        return {}
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {n.removeprefix(within): file[n] for n in dict.fromkeys(file) if n.startswith(within)}
        for name, array in found.items():
            if (array.ndim, array.dtype.kind) != ARRAYS.get(name):
                raise ValueError(f"{name} is {array.dtype}{list(array.shape)}")
        for kind in ("mask", "landscape", "path"):
            names = {name for name in ARRAYS if name.startswith(kind)}
            if names & found.keys() and names - found.keys():
                raise ValueError(f"without {', '.join(sorted(names - found.keys()))}")
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise UnreadableError(
            f"{path} is not what a watched run leaves ({e}): move it and its record away."
        ) from None
    return found


def read_all(folder: Path) -> list[Run]:
    """All runs of a folder, by seed, then by rule: the baseline, the presets, all others."""
    live = [run for path in folder.glob("*.jsonl") if (run := _read(path))]
    runs = {**_all_unpacked(packed(folder)), **{key_of(run.fields): run for run in live}}
    return sorted(runs.values(), key=lambda run: (run.seed, *_order(run)))


def _order(run: Run) -> tuple[Any, ...]:
    known = [BASELINE, *pdt_optax.presets.names()]
    return [run.rule != rule for rule in known], run.rule


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
    about, *epochs = lines
    fields = about.get("config")
    if not isinstance(fields, dict):
        raise ValueError("line 1 is without its config")
    expected = json.loads(json.dumps(config.fields)) if config else fields
    wrong = [name for name in fields | expected if fields.get(name) != expected.get(name)]
    named = isinstance(fields.get("rule"), str) and _numbers(fields, ("seed", "epochs"))
    counted = "flops" not in about or _numbers(about["flops"], ("step", "boundary"))
    if wrong or not named or not counted:
        raise ValueError(f"line 1 is not its config, by {', '.join(wrong) or 'its fields'}")
    if "made" in about and not _texts(about["made"], MADE):
        raise ValueError("line 1 does not say where it was made")
    names = NUMBERS + ("probe_loss",) * bool(config and config.workload.probe_examples)
    for number, epoch in enumerate(epochs, start=1):
        if epoch.get("epoch") != number or number > fields["epochs"] or not _numbers(epoch, names):
            raise ValueError(f"line {number + 1} is not one of epoch {number} of {fields['epochs']}")
    shares = [e["shares"] for e in epochs if "shares" in e]
    if not all(_numbers(s, s) and s.keys() == shares[0].keys() for s in shares):
        raise ValueError("accepted shares are not of the same leaves at every jump")
    return Run(fields, epochs, {name: value for name, value in about.items() if name != "config"})


def _texts(values: Any, names: Iterable[str]) -> bool:
    return isinstance(values, dict) and all(isinstance(values.get(n), str) for n in names)


# Packed runs.


def pack(folder: Path) -> int:
    """Moves the complete runs of a folder into its packed file, over those of the same config; how many.

    Files are written whole before others go: whenever the process dies, each run is in one of them.
    """
    runs: dict[Path, Run] = {}
    for path in sorted(folder.glob("*.jsonl")):
        if (run := _read(path)) and run.complete:
            runs[path] = run
    if not runs:
        return 0
    into, beside = (
        packed(folder),
        {key_of(run.fields): path.with_suffix(".npz") for path, run in runs.items()},
    )
    old, arrays_in = _all_unpacked(into), into.with_name(f"{folder.name}.npz")
    found = {key: _arrays(arrays_in, f"{key}/") for key in old.keys() - beside.keys()}
    found |= {key: _arrays(path, "") for key, path in beside.items()}
    _write_packed(into, [*old.values(), *runs.values()])
    if kept := {f"{key}/{name}": array for key, of in found.items() for name, array in of.items()}:
        half = arrays_in.with_suffix(".half.npz")
        np.savez_compressed(half, **kept)  # pyright: ignore[reportArgumentType]
        os.replace(half, arrays_in)
    for path in (*runs, *beside.values()):
        path.unlink(missing_ok=True)
    for empty in (folder / "checkpoints", folder):
        with contextlib.suppress(OSError):  # others are still there
            empty.rmdir()
    return len(runs)


def pack_all(out: Path) -> int:
    """Packs all folders of runs below a folder of results; how many runs."""
    folders = dict.fromkeys(path.parent for path in sorted(out.rglob("*-seed*-*.jsonl")))
    return sum(map(pack, folders))


def _write_packed(path: Path, runs: Iterable[Run]) -> None:
    chosen = {key_of(run.fields): run for run in runs}
    lines = []
    for key, run in sorted(chosen.items(), key=lambda item: (*_order(item[1]), item[1].seed, item[0])):
        del key
        whole = {"config": run.fields, **run.about, "epochs": _columns(run.epochs)}
        lines.append(json.dumps(whole, separators=(",", ":")) + "\n")
    if lines:
        half = path.with_suffix(".half")
        half.write_text("".join(lines))
        os.replace(half, path)


def _columns(epochs: Sequence[Record]) -> dict[str, Any]:
    """A list for each name, null where an epoch lacks it; one value alone where all are the same."""
    names = dict.fromkeys(itertools.chain.from_iterable(epochs))
    columns = {name: [e.get(name) for e in epochs] for name in names if name != "epoch"}
    return {n: c[0] if all(v == c[0] for v in c) and c[0] is not None else c for n, c in columns.items()}


def _records(columns: Mapping[str, Any], count: int) -> list[Record]:
    for name, column in columns.items():
        if isinstance(column, list) and len(column) != count:
            raise ValueError(f"its {name} has {len(column)} values, not {count}")
    values = {n: c if isinstance(c, list) else [c] * count for n, c in columns.items()}
    return [{"epoch": i + 1} | {n: v[i] for n, v in values.items() if v[i] is not None} for i in range(count)]


def _all_unpacked(path: Path) -> dict[str, Run]:
    return {key: run for key in _lines_of(path) if (run := _unpacked(path, key=key))}


def _unpacked(path: Path, config: Config | None = None, key: str = "") -> Run | None:
    """One run of a packed file; None if it is not there."""
    line = _lines_of(path).get(config.key if config else key)
    if line is None:
        return None
    try:
        about = {name: value for name, value in line.items() if name != "epochs"}
        return _run([about, *_records(line["epochs"], line["config"]["epochs"])], config)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise _not_packed(path, e) from None


def _lines_of(path: Path) -> Mapping[str, Any]:
    """The lines of a packed file by their keys; none if there is no file."""
    try:
        of = path.stat()
    except OSError:
        return {}
    return _parsed(path, of.st_mtime_ns, of.st_size)


@functools.lru_cache(maxsize=128)
def _parsed(path: Path, *changed: int) -> Mapping[str, Any]:
    del changed  # only tells a new file from an old one
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {key_of(line["config"]): line for line in lines}
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise _not_packed(path, e) from None


def _not_packed(path: Path, e: Exception) -> UnreadableError:
    return UnreadableError(f"{path} is not a file of packed runs ({e!r}): mend it, or move it away.")


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

    The first line of the file is the config, and where it is trained; numbers keep six digits, and
    those that are not finite are written as NaN and Infinity, as Python's json does.
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
    yield {"config": config.fields, "made": made()} | spread | counted
    for epoch in train(config, dataset, devices, checkpoints, arrays):
        yield {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in epoch.items()}
