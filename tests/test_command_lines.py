"""Every command line, given what it cannot do: exit code 2 and one line on stderr, with rule, reason and value.

Nothing here trains: what is refused is refused before.
"""

import argparse
import dataclasses
import importlib
import io
import json
import math
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pdt_optax
from experiments import command
from experiments.models.alexnet import AlexNet
from experiments.paper import setups
from experiments.training import records, watch
from experiments.training.arms import BASELINE, preset
from experiments.training.trainer import Config
from experiments.training.workloads import AlexNetImages
from experiments.tuned.setups import PAIRS, SHARES

# Each command line, and what it cannot do without.
COMMANDS = {
    "experiments.cifar_alexnet": "--data digits",
    "experiments.run": "fig4",
    "experiments.demo": "",
    "experiments.large": "",
    "experiments.toy": "",
    "benchmarks.boundary": "",
    "benchmarks.huge": "",
    "benchmarks.kills": "",
    "benchmarks.peers": "",
    "benchmarks.processes": "",
    "benchmarks.recorder": "",
    "benchmarks.report": "",
    "benchmarks.scaling": "",
    "benchmarks.step": "",
    "benchmarks.storage": "",
}


def main(name: str) -> Callable[[list[str]], int]:
    return importlib.import_module(name).main


def refused(line: str, message: str, capsys: Any, folder: Path) -> None:
    """Runs a line, in which {out} and others are paths in a folder, and asserts what it says and that nothing is lost."""
    name, *arguments = line.split()
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    around = set(folder.iterdir()) | {folder / "out"}
    paths = {"out": folder / "out", "file": folder / "file"}
    assert main(name)([a.format_map(paths) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.splitlines()) == 1
    assert before == {p: p.read_bytes() for p in before}
    assert set(folder.iterdir()) <= around


# Every option is checked by what `command` has for all of them; what has a rule of its own has a case below.

LEAST = {  # of whole numbers, where it is not 1
    "--seeds": 0,
    "--seed": 0,
    "--jobs": 0,
    "--save-every": 0,
    "--save-steps": 0,
    "--workers": 0,
    "--process-id": 0,
    "--image-sizes": AlexNet.smallest_image,
}

OWN = {
    "experiments.cifar_alexnet": {"--data-dir", "--image-size", "--width", "--learning-rate", "--mesh", "--coordinator"},
    "experiments.large": {"--data-dir"},
    "experiments.run": {"VIEW", "--data-dir", "--rule", "--workloads", "--arms", "--out", "--mesh", "--coordinator"},
}  # fmt: skip


def parser(name: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """What a command line parses with."""
    found: list[argparse.ArgumentParser] = []

    def parse_args(self: Any, *_: Any) -> Any:
        found.append(self)
        raise command.RefusedError("no")

    with monkeypatch.context() as patched:
        patched.setattr(command.Parser, "parse_args", parse_args)
        assert main(name)([]) == 2
    return found[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_checked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = set()
    for action in parser(name, monkeypatch)._actions:
        option = (*action.option_strings, str(action.metavar))[0]
        if action.nargs == 0 or action.choices is not None:
            continue
        kind: Any = action.type
        if getattr(kind, "__module__", "") != command.__name__:  # as int, float, Path, or a text
            own.add(option)
        elif kind is not command.output:
            least = 11 if (name, option) == ("benchmarks.storage", "--epochs") else LEAST.get(option, 1)
            assert kind(str(least)) == least
            with pytest.raises(argparse.ArgumentTypeError):
                kind(str(least - 1))
    assert own == OWN.get(name, set())
    lines = [line for line, *_ in CASES if isinstance(line, str) and line.startswith(name)]
    assert all(any(o in line for line in lines) for o in own - {"VIEW", "--data-dir"})


def test_all_command_lines_are_here() -> None:
    root = Path(pdt_optax.__file__).parents[1]
    found = {
        f"{folder}.{path.stem}"
        for folder in ("experiments", "benchmarks")
        for path in (root / folder).glob("*.py")
        if "__main__" in path.read_text()
    }
    assert found == {*COMMANDS, "benchmarks.mutants", "benchmarks.mutant_types"}  # the first is mutmut's


def test_types_of_mutants_need_mutants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused("benchmarks.mutant_types", r"no mutants in \S+: run `make mutants` first\.$", capsys, tmp_path)


def test_whole_numbers() -> None:
    p = command.Parser("experiments.run", None)
    p.add_argument("--count", type=command.whole(2, 5))
    p.add_argument("--any", type=command.whole(0))
    p.add_argument("--seed", type=command.seed)
    for text in ("2", "5"):
        assert p.parse_args(["--count", text]).count == int(text)
    assert p.parse_args(["--any", str(2**31 - 1), "--seed", str(2**32 - 1)]).seed == 2**32 - 1
    refused = {"--count": (2, 5, "1", "6", "-3"), "--any": (0, 2**31 - 1, str(2**31)),
               "--seed": (0, 2**32 - 1, "-1", str(2**32))}  # fmt: skip
    for option, (least, most, *texts) in refused.items():
        for text in texts:
            message = re.escape(f"argument {option}: must be from {least} to {most}. Got {text}.")
            with pytest.raises(command.RefusedError, match=f"^{message}$"):
                p.parse_args([f"{option}={text}"])
    for text in ("many", "1.5", "3.0", "1e0", "0x3", "nan", "", "3" * 5_000):
        with pytest.raises(
            command.RefusedError, match=f"^argument --count: invalid whole number value: '{text}'$"
        ):
            p.parse_args(["--count", text])


def test_a_folder_for_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.output(tmp_path / "not" / "yet") == tmp_path / "not" / "yet"
    (tmp_path / "file").write_text("the user's own")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            command.RefusedError, match=rf"a file is in the way: {tmp_path}/file\. Got '{path}'"
        ):
            command.output(path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root, all can be
    with pytest.raises(
        command.RefusedError, match=rf"can be written; {tmp_path} cannot\. Got '{tmp_path}/out'"
    ):
        command.output(tmp_path / "out")


def test_numbers_of_a_run() -> None:
    config = next(cifar_records(Path()))[1]
    for value in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"`learning_rate` must be positive and finite\. Got {value}"):
            dataclasses.replace(config, learning_rate=value)
        with pytest.raises(ValueError, match=rf"`width` must be positive and finite\. Got {value}"):
            dataclasses.replace(config.workload, width=value)
    for value in (62, -63):
        with pytest.raises(ValueError, match=rf"`image_size` must be at least 63: .*Got {value}"):
            dataclasses.replace(config.workload, image_size=value)


CIFAR, RUN = "experiments.cifar_alexnet --data digits", "experiments.run"
COORDINATED = "--coordinator localhost:1 --processes 2 --process-id"

CASES = [
    # Every command line.
    *(
        (f"{name} {given} --out {{file}}", r"a file is in the way: \S+/file\. Got '\S+/file'")
        for name, given in COMMANDS.items()
    ),
    (f"{RUN} table1 --dry-run --devices 0", r"argument --devices: must be from 1 to \d+\. Got 0\."),
    # Numbers with a rule of their own.
    (f"{CIFAR} --learning-rate nan", r"`learning_rate` must be positive and finite\. Got nan"),
    (f"{CIFAR} --lr fast", r"--learning-rate/--lr: invalid float value: 'fast'"),
    (f"{CIFAR} --width 0", r"`width` must be positive and finite\. Got 0"),
    (f"{CIFAR} --image-size 32", r"`image_size` must be at least 63: .*Got 32"),
    (f"{CIFAR} --batch-size 5000", r"`batch_size` must not exceed .*Got 5000, 1437 examples"),
    pytest.param(f"{RUN} table1 --scale paper --dry-run --devices 7",
                 r"multiple of the parts .*Got 600, 7 parts", marks=pytest.mark.slow),  # it looks at AlexNet first
    # Names, unknown ones and ways out of a folder.
    ("experiments.cifar_alexnet --data ../digits", r"--data: invalid choice: '\.\./digits' \(choose from .*digits"),
    (f"{CIFAR} --precision 8", r"unrecognized arguments: --precision 8"),
    (f"{RUN} tune --workloads ../mlp", r"There is no workload '\.\./mlp'\. There are mlp-sgd, "),
    (f"{RUN} tuned --arms /paper --out {{out}}", r"There is no arm '/paper'\. There are baseline, recommended"),
    (f"{RUN} tuned --page --workloads mlp --out {{out}}", r"no tuned learning rate for mlp-sgd.* in .*run tune --work"),
    (f"{RUN} --page", r"Name a view, or all of the paper's: there are all, fig1, "),
    (f"{RUN} fig4 pack", r"`pack` stands alone\. Got fig4 pack\."),
    # What is not for a view.
    (f"{RUN} screen --scale small", r"`--scale` is not for screen, which takes `--workloads`, `--arms`, .*Got --scale small\."),
    (f"{RUN} tuned --dry-run", r"`--dry-run` is not for tuned, .*Got --dry-run\."),
    (f"{RUN} tune --arms released", r"Only ema, .*have a learning rate of their own; .*Got released\."),
    (f"{RUN} fig4 tuned --workloads mlp cnn", r"`--workloads` is not for fig4, which takes `--scale`, .*Got --workloads mlp cnn\."),
    (f"{RUN} ../fig4", r"There is no view '\.\./fig4'\. There are all, fig1"),
    (f"{RUN} fig4 --rule ../paper", r"There is no rule '\.\./paper'\. The rules are paper"),
    # Devices and processes.
    *((f"{first} --mesh data=3", r"sizes multiply to their number, 1\. Got data=3")
      for first in (CIFAR, f"{RUN} tune", f"{RUN} fig4")),
    *((f"{first} --coordinator localhost:1", r"go together: each process must know all three\. Got localhost:1, None")
      for first in (CIFAR, f"{RUN} tune", f"{RUN} fig4")),
    (f"{CIFAR} {COORDINATED} 2", r"counts from 0 to `--processes` - 1\. Got 2 of 2"),
    *((f"{CIFAR} {COORDINATED} 1".replace("localhost:1", address), rf"must be HOST:PORT\. Got '{address}'")
      for address in ("localhost", ":1234", "localhost:65536", "localhost:http")),
    (f"{RUN} tune --mesh data=1 --jobs 2", r"`--jobs` puts runs side by side .*Got --jobs 2"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), CASES)
def test_one_sentence_and_exit_code_2(line: str, message: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("the user's own")
    (tmp_path / "out").mkdir()
    if "--arms" in line:
        (tmp_path / "out" / "tuned").mkdir()
        (tmp_path / "out" / "tuned" / "rates.json").write_text(
            json.dumps({name: {"learning_rate": 0.1} for name in PAIRS})
        )
    refused(line, message, capsys, tmp_path)


def test_missing_data_is_told_with_the_ways_to_it(tmp_path: Path, capsys: Any) -> None:
    line = "experiments.cifar_alexnet --data cifar10 --data-dir {out}"
    ways = r"cifar10 is not there yet \(looked in \S+/out\): add --download .*--data-dir DIR, .*--data digits"
    refused(line, ways, capsys, tmp_path)


def test_a_port_in_use(tmp_path: Path, capsys: Any) -> None:
    with socket.create_server(("", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        line = f"{CIFAR} --coordinator {address} --processes 2 --process-id 0"
        refused(line, rf"free to listen at `--coordinator`\. Got '{address}' \(.*in use", capsys, tmp_path)


# Records that are not what a run writes.


def lines_of(config: Config) -> list[Any]:
    """A complete record, as a run writes it."""
    numbers = dict.fromkeys((*records.NUMBERS, "compile_seconds", "probe_loss"), 0.5)
    flops = {"flops": {"step": 1.0, "boundary": 1.0}} if "flops" in config.watch else {}
    epochs = ({"epoch": i + 1, **numbers, "predicted": False} for i in range(config.epochs))
    return [{"config": config.fields} | flops, *epochs]


def write(folder: Path, config: Config, damage: Callable[[list[Any]], Any] | None = None) -> Path:
    """A config's record; damaged as text or as what the lines hold."""
    folder.mkdir(parents=True, exist_ok=True)
    path, lines = records.path_of(folder, config), lines_of(config)
    broken = damage(lines) if damage else None
    if isinstance(broken, bytes):
        path.write_bytes(broken)
    else:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def changed(number: int, **fields: Any) -> Callable[[list[Any]], None]:
    """A line, of the first its config, with other fields; None takes one away."""

    def change(lines: list[Any]) -> None:
        line = lines[number] if number else lines[0]["config"]
        line |= fields
        for name in [n for n, value in line.items() if value is None]:
            del line[name]

    return change


DAMAGE: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "not JSON": (lambda lines: b"rule: baseline\n", "Expecting value"),
    "not text": (lambda lines: b"\xff\xfe\x00\n", "can't decode byte"),
    "cut within": (lambda lines: b'{"rule": "base\n' * 2, "Invalid control character|Unterminated"),
    "an empty line": (lambda lines: b"\n", "Expecting value"),
    "too deep": (lambda lines: b"[" * 200_000 + b"\n", "recursion"),
    "a number of 5,000 digits": (lambda lines: b"1" * 5_000 + b"\n", "4300"),
    "a list": (lambda lines: lines.insert(0, [1, 2]), "line 1 is list, no object"),
    "a text": (lambda lines: lines.insert(1, "epoch"), "line 2 is str, no object"),
    "nothing": (lambda lines: lines.append(None), "is NoneType, no object"),
    "no config": (lambda lines: lines.pop(0), "line 1 is without its config"),
    "not made": (lambda lines: lines[0].update(made={"commit": "a"}), "line 1 does not say where it was made"),
    "another config": (changed(0, learning_rate=0.123), "line 1 is not its config, by learning_rate"),
    "another rule": (changed(0, rule="../../elsewhere"), "line 1 is not its config, by rule"),
    "no epochs": (changed(0, epochs=None), "line 1 is not its config, by epochs"),
    "a text for a number": (changed(1, train_loss="low"), "line 2 is not one of epoch 1"),
    "a number is missing": (changed(1, validation_accuracy=None), "line 2 is not one of epoch 1"),
    "an epoch is missing": (lambda lines: lines.pop(1), "line 2 is not one of epoch 1"),
    "an epoch twice": (lambda lines: lines.insert(1, lines[1]), "line 3 is not one of epoch 2"),
    "an epoch too many": (lambda lines: lines.append(lines[-1] | {"epoch": len(lines)}), "is not one of epoch"),
    "shares of nothing": (changed(1, shares=[0.5]), "accepted shares"),
    "other leaves": (
        lambda lines: (changed(1, shares={"a": 0.5})(lines), changed(2, shares={"b": 0.5})(lines))[:0],
        "accepted shares",
    ),
}  # fmt: skip


def cifar_records(out: Path) -> Iterator[tuple[Path, Config]]:
    workload = AlexNetImages(data="digits", image_size=63, width=0.05, batch_size=512)
    for rule in (BASELINE, "released"):
        yield out, Config(workload, preset(rule), "adamw", 1e-3, "cosine", 2, 0)


def tuned_records(out: Path) -> Iterator[tuple[Path, Config]]:
    (out / "tuned").mkdir()
    (out / "tuned" / "rates.json").write_text(json.dumps({"mlp-sgd": {"learning_rate": 0.1}}))
    pair = PAIRS["mlp-sgd"]
    for rule in (BASELINE, "released"):
        for share in (1.0, *(SHARES if rule == BASELINE else ())):
            epochs = round(share * pair.epochs)
            config = Config(pair.workload, preset(rule), "sgd", 0.1, "cosine", epochs, 0)
            yield out / "tuned" / "records" / "mlp-sgd", config


def run_records(out: Path) -> Iterator[tuple[Path, Config]]:
    setup = setups.setups("smoke")["alexnet-sgd-0.05"]
    for rule in (BASELINE, "released"):
        config = setup.config(preset(rule), 0)
        yield out / "smoke" / "records" / "alexnet-sgd-0.05", config


READERS = {
    f"{CIFAR} --image-size 63 --width 0.05 --batch-size 512 --optimizer adamw --lr 1e-3 --epochs 2 --seeds 0 "
    "--rules released --out {out}": cifar_records,
    f"{RUN} tuned --page --workloads mlp-sgd --arms released --seeds 0 --out {{out}}": tuned_records,
    f"{RUN} fig12 --page --scale smoke --rule released --seeds 0 --out {{out}}": run_records,
}
SHORT = ["cifar_alexnet", "tuned", "run"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_records_that_are_none(damage: str, tmp_path: Path) -> None:
    change, reason = DAMAGE[damage]
    folder, config = next(cifar_records(tmp_path))
    assert records.read(folder, config).epochs == []
    write(folder, config)
    assert records.read(folder, config).complete
    path = write(folder, config, change)
    before = path.read_bytes()
    message = f"^{re.escape(str(path))} is not the record of a run .*({reason}).*move it away.$"
    with pytest.raises(records.UnreadableError, match=message):
        records.read(folder, config)
    assert path.read_bytes() == before


PACKED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "without a config": (lambda line: line.pop("config"), "KeyError"),
    "no columns": (lambda line: line.pop("epochs"), "KeyError"),
    "columns in a list": (lambda line: line.update(epochs=[1, 2]), "AttributeError"),
    "a value too few": (lambda line: line["epochs"].update(train_loss=[0.5]), "its train_loss has 1 values, not 2"),
    "a text for a number": (lambda line: line["epochs"].update(train_loss="low"), "line 2 is not one of epoch 1"),
    "a column is missing": (lambda line: line["epochs"].pop("train_loss"), "line 2 is not one of epoch 1"),
}  # fmt: skip


@pytest.mark.parametrize("damage", PACKED)
def test_packed_runs_that_are_none(damage: str, tmp_path: Path) -> None:
    change, reason = PACKED[damage]
    folder, config = next(cifar_records(tmp_path / "out"))
    write(folder, config)
    before = records.read(folder, config)
    assert records.pack_all(tmp_path) == 1
    path = records.packed(folder)
    assert not folder.exists()
    assert records.read(folder, config) == before
    assert records.read_all(folder) == [before]
    change(line := json.loads(path.read_text()))
    path.write_text(json.dumps(line) + "\n")
    text = path.read_bytes()
    message = rf"^{re.escape(str(path))} is not a file of packed runs .*({reason}).*move it away.$"
    for reading in (lambda: records.read(folder, config), lambda: records.read_all(folder)):
        with pytest.raises(records.UnreadableError, match=message):
            reading()
    assert path.read_bytes() == text
    write(folder, config)
    with pytest.raises(records.UnreadableError, match=message):
        records.pack_all(tmp_path)
    assert path.read_bytes() == text


def test_a_run_trained_anew_stands_over_the_packed_one(tmp_path: Path) -> None:
    folder, config = next(cifar_records(tmp_path / "out"))
    other = dataclasses.replace(config, seed=1)
    for of in (config, other):
        write(folder, of)
    records.pack_all(tmp_path)
    write(folder, config, changed(1, train_loss=0.25))
    for packs in (0, 1):
        assert records.read(folder, config).epochs[0]["train_loss"] == 0.25
        assert records.read(folder, other).epochs[0]["train_loss"] == 0.5
        assert len(records.read_all(folder)) == 2
        assert records.pack_all(tmp_path) == 1 - packs
    write(folder, config, lambda lines: lines.pop())  # broken off: it stays as it is
    assert records.pack_all(tmp_path) == 0
    assert not records.read(folder, config).complete


@pytest.mark.parametrize("reader", READERS, ids=SHORT)
def test_a_command_that_reads_such_a_record(reader: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    written = list(READERS[reader](tmp_path / "out"))
    for folder, config in written:
        write(folder, config)
    path = write(*written[0], DAMAGE["another rule"][0])
    refused(reader, f"{path} is not the record of a run .*move it away", capsys, tmp_path)


def test_the_record_of_a_run_without_a_config(tmp_path: Path) -> None:
    """What `read_all` finds: every file by itself."""
    folder, config = next(cifar_records(tmp_path))
    write(folder, config)
    assert [run.complete for run in records.read_all(folder)] == [True]
    write(folder, config, changed(0, seed="zero"))
    with pytest.raises(records.UnreadableError, match="line 1 is not its config"):
        records.read_all(folder)


ARRAYS = {
    "mask": np.zeros((2, *watch.BAND), np.uint8),
    "mask_names": np.array(["a/kernel", "b/kernel"]),
    "mask_epoch": np.array(3),
}


def without(name: str) -> Callable[[Path], None]:
    return lambda path: np.savez(path, allow_pickle=False, **{k: v for k, v in ARRAYS.items() if k != name})


def with_(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, allow_pickle=False, **(ARRAYS | arrays))


DAMAGED_ARRAYS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "No data left"),
    "not a zip": (lambda path: path.write_bytes(b"mask" * 99), "pickled|magic"),
    "one array": (lambda path: path.write_bytes(npy()), "."),
    "cut": (lambda path: (with_()(path), path.write_bytes(path.read_bytes()[:-40])), "zip"),
    "a name is missing": (without("mask_names"), "without mask_names"),
    "another shape": (with_(mask=np.zeros(3, np.uint8)), r"mask is uint8\[3\]"),
    "texts for numbers": (with_(mask_epoch=np.array("three")), r"mask_epoch is <U5\[\]"),
    "another name": (with_(other=np.zeros(3)), r"other is float64\[3\]"),
}


def npy() -> bytes:
    """One array, as `np.save` writes it."""
    np.save(file := io.BytesIO(), np.zeros(3), allow_pickle=False)
    return file.getvalue()


@pytest.mark.parametrize("damage", DAMAGED_ARRAYS)
def test_arrays_that_are_none(damage: str, tmp_path: Path) -> None:
    change, reason = DAMAGED_ARRAYS[damage]
    folder, config = list(run_records(tmp_path))[-1]
    path = write(folder, config).with_suffix(".npz")
    assert records.arrays(folder, config) == {}
    with_()(path)
    assert records.arrays(folder, config).keys() == ARRAYS.keys()
    change(path)
    with pytest.raises(
        records.UnreadableError, match=f"^{path} is not what a watched run leaves .*{reason}.*$"
    ):
        records.arrays(folder, config)


def test_a_page_of_such_arrays(tmp_path: Path, capsys: Any) -> None:
    path = [write(*written).with_suffix(".npz") for written in run_records(tmp_path / "out")][-1]
    path.write_bytes(b"mask")
    refused(list(READERS)[2], f"{path} is not what a watched run leaves ", capsys, tmp_path)


NOT_OBJECTS = {
    "cut": ('{"a": 1', "is not JSON"),
    "nothing": ("", "is not JSON"),
    "too deep": ("[" * 200_000, "is not JSON"),
    "a list": ("[1, 2]", "must hold an object with a, b. Got list"),
    "empty": ("{}", "must hold an object with a, b. Got an empty one"),
    "a key is missing": ('{"a": 1, "c": 2}', "must hold an object with a, b. Got a, c"),
}


@pytest.mark.parametrize("kind", NOT_OBJECTS)
def test_what_is_no_object(kind: str, tmp_path: Path) -> None:
    text, reason = NOT_OBJECTS[kind]
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(command.RefusedError, match=f"^{path} {reason}.*: mend it, or move it away.$"):
        command.read_json(path, "a", "b")


@pytest.mark.parametrize("what", ["tune", "tuned --page"])
def test_tuned_rates_that_are_none(what: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out" / "tuned").mkdir(parents=True)
    (tmp_path / "out" / "tuned" / "rates.json").write_text("[1, 2]")
    line = f"{RUN} {what} --workloads mlp-sgd --out {{out}}"
    refused(line, r"rates\.json must hold an object", capsys, tmp_path)


def test_a_tuned_rate_that_is_none(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out" / "tuned").mkdir(parents=True)
    line = f"{RUN} tuned --page --workloads mlp-sgd --out {{out}}"
    for entry in (None, 0.1, {}, *({"learning_rate": rate} for rate in ("0.1", -1, 1e999))):
        (tmp_path / "out" / "tuned" / "rates.json").write_text(json.dumps({"mlp-sgd": entry}))
        refused(line, r"`learning_rate` of mlp-sgd in .*must be positive and finite\. Got", capsys, tmp_path)


def test_a_view_that_is_none(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "out" / "smoke" / "fig11" / "table.md"
    path.parent.mkdir(parents=True)
    line = f"{RUN} fig12 --page --scale smoke --out {{out}}"
    for text in (b"", b"# Fig. 11\n", b"\xff\xfe\x00"):
        path.write_bytes(text)
        refused(line, rf"{path} is not what a view writes.*draw fig11 again", capsys, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"No such file.*boundary\.json"),
        ("{}", r"boundary\.json must hold an object with machine, trees\. Got an empty one"),
        ('{"machine": {}, "trees": {"1M": {}}}', r"must be those that the other benchmarks write\. Got KeyError"),
    ],
    ids=["missing", "empty", "others"],
)  # fmt: skip
def test_figures_that_are_none(text: str | None, message: str, tmp_path: Path, capsys: Any) -> None:
    from benchmarks.measure import RESULTS

    (tmp_path / "out").mkdir()
    for name in ("peers", "step", "storage", "huge"):
        (tmp_path / "out" / f"{name}.json").write_bytes((RESULTS / f"{name}.json").read_bytes())
    if text is not None:
        (tmp_path / "out" / "boundary.json").write_text(text)
    refused("benchmarks.report --out {out}", message, capsys, tmp_path)


def test_files_in_the_place_of_folders(tmp_path: Path, capsys: Any) -> None:
    """Deeper in --out, where only the run itself looks."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoints").write_text("the user's own")
    line = next(iter(READERS)) + " --epochs 3"
    refused(line, r"checkpoints", capsys, tmp_path)


# Exit codes.


def test_every_help_says_the_exit_codes(capsys: Any) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main(name)(["--help"])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert said.startswith(f"usage: python -m {name}")
        assert said.endswith(command.EXIT_CODES)


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (command.RefusedError("no"), 2),
        (ValueError("no"), 2),
        (PermissionError(13, "no", "file"), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_what_ends_a_command(raised: BaseException, code: int, capsys: Any) -> None:
    @command.line
    def ended(argv: Any) -> int:
        raise raised

    assert ended([]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("raised", [SystemExit(143), RuntimeError("a defect")], ids=repr)
def test_what_passes_through(raised: BaseException) -> None:
    @command.line
    def ended(argv: Any) -> int:
        raise raised

    with pytest.raises(type(raised)) as passed:
        ended([])
    assert passed.value is raised
