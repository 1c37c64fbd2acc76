"""Every command line, given what it cannot do: exit code 2 and one line on stderr, with rule, reason and value.

Nothing here trains: what is refused is refused before.
"""

import importlib
import io
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pdt_optax
from experiments import command, records, setups, views, watch
from experiments.arms import BASELINE, preset
from experiments.bench_configs import PAIRS, SHARES
from experiments.training import Config
from experiments.workloads import AlexNetImages

# Each command line, and what it cannot do without.
COMMANDS = {
    "experiments.cifar_alexnet": "--data digits",
    "experiments.bench": "tune",
    "experiments.run": "fig4",
    "experiments.toy": "",
    "experiments.dry_run": "resnet50",
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


# Numbers: one too few, one too many, a word, a fraction.

WHOLE = [
    ("experiments.cifar_alexnet", "--epochs", 1),
    ("experiments.cifar_alexnet", "--batch-size", 1),
    ("experiments.cifar_alexnet", "--seeds", 0),
    ("experiments.cifar_alexnet", "--save-every", 0),
    ("experiments.cifar_alexnet", "--lost-after", 1),
    ("experiments.bench", "--seeds", 0),
    ("experiments.bench", "--jobs", 0),
    ("experiments.bench", "--save-every", 0),
    ("experiments.bench", "--lost-after", 1),
    ("experiments.run", "--seeds", 0),
    ("experiments.run", "--jobs", 0),
    ("experiments.run", "--save-every", 0),
    ("experiments.run", "--lost-after", 1),
    ("experiments.run", "--devices", 1),
    ("experiments.run", "--time", 1),
    ("experiments.dry_run", "--devices", 1),
    ("experiments.dry_run", "--batch-size", 1),
    *((name, "--repeats", 1) for name in COMMANDS if name.startswith("benchmarks")),
    ("benchmarks.kills", "--kills", 1),
    ("benchmarks.kills", "--seed", 0),
    ("benchmarks.peers", "--repeats-peers", 1),
    ("benchmarks.scaling", "--devices", 1),
    ("benchmarks.step", "--batch-size", 1),
    ("benchmarks.step", "--pairs", 1),
    ("benchmarks.step", "--image-sizes", 63),
    ("benchmarks.storage", "--epochs", 11),
]


@pytest.mark.parametrize("value", ["too few", "too many", "many", "1.5"])
@pytest.mark.parametrize(("name", "option", "least"), WHOLE)
def test_whole_numbers(name: str, option: str, least: int, value: str, tmp_path: Path, capsys: Any) -> None:
    most = 2**32 - 1 if option == "--seeds" else 2**31 - 1
    given = {"too few": str(least - 1), "too many": str(most + 1)}.get(value, value)
    message = f"argument {option}: must be from {least} to {most}. Got {given}"
    if given == value:
        message = f"argument {option}: invalid whole number value: '{value}'"
    refused(f"{name} {COMMANDS[name]} {option} {given}", re.escape(message), capsys, tmp_path)


CIFAR, BENCH, RUN = "experiments.cifar_alexnet --data digits", "experiments.bench", "experiments.run"
COORDINATED = "--processes 2 --process-id"

CASES = [
    # Numbers with a rule of their own.
    (f"{CIFAR} --learning-rate 0", r"`learning_rate` must be positive and finite\. Got 0"),
    (f"{CIFAR} --learning-rate -0.1", r"`learning_rate` must be positive and finite\. Got -0\.1"),
    (f"{CIFAR} --learning-rate nan", r"`learning_rate` must be positive and finite\. Got nan"),
    (f"{CIFAR} --learning-rate inf", r"`learning_rate` must be positive and finite\. Got inf"),
    (f"{CIFAR} --lr fast", r"--learning-rate/--lr: invalid float value: 'fast'"),
    (f"{CIFAR} --width 0", r"`width` must be positive and finite\. Got 0"),
    (f"{CIFAR} --width nan", r"`width` must be positive and finite\. Got nan"),
    (f"{CIFAR} --width inf", r"`width` must be positive and finite\. Got inf"),
    (f"{CIFAR} --image-size 32", r"`image_size` must be at least 63: .*Got 32"),
    (f"{CIFAR} --image-size -63", r"`image_size` must be at least 63: .*Got -63"),
    (f"{CIFAR} --batch-size 5000", r"`batch_size` must not exceed .*Got 5000, 1437 examples"),
    ("experiments.dry_run resnet50 --devices 3 --batch-size 64", r"multiple of `devices`\. Got 64 .*devices=3"),
    (f"{RUN} table1 --scale paper --dry-run --devices 7", r"multiple of `devices`\. Got 600 .*devices=7"),
    # Names, unknown ones and ways out of a folder.
    ("experiments.cifar_alexnet --data mnist", r"--data: invalid choice: 'mnist' \(choose from .*digits"),
    ("experiments.cifar_alexnet --data ../digits", r"--data: invalid choice: '\.\./digits'"),
    (f"{CIFAR} --optimizer sgdd", r"--optimizer: invalid choice: 'sgdd' \(choose from .*adamw"),
    (f"{CIFAR} --schedule linear", r"--schedule: invalid choice: 'linear' \(choose from .*cosine"),
    (f"{CIFAR} --rules best", r"--rules: invalid choice: 'best' \(choose from .*released"),
    (f"{CIFAR} --rules ../released", r"--rules: invalid choice: '\.\./released'"),
    (f"{CIFAR} --precision 8", r"unrecognized arguments: --precision 8"),
    (BENCH, r"the following arguments are required: what"),
    (f"{BENCH} train", r"what: invalid choice: 'train' \(choose from .*tune"),
    (f"{BENCH} tune --workloads rnn", r"There is no workload 'rnn'\. There are mlp-sgd, "),
    (f"{BENCH} tune --workloads ../mlp", r"There is no workload '\.\./mlp'\. There are"),
    (f"{BENCH} final --arms best --out {{out}}", r"There is no arm 'best'\. There are baseline, paper"),
    (f"{BENCH} final --arms ../../paper --out {{out}}", r"There is no arm '\.\./\.\./paper'\. There are"),
    (f"{BENCH} final --arms /paper --out {{out}}", r"There is no arm '/paper'\. There are"),
    (f"{BENCH} table --workloads mlp --out {{out}}", r"no tuned learning rate for mlp-sgd.* in .*bench tune --work"),
    (RUN, r"Name a view, or all: there are fig1, "),
    (f"{RUN} table9", r"There is no view 'table9'\. There are all, fig1"),
    (f"{RUN} ../fig4", r"There is no view '\.\./fig4'\. There are"),
    (f"{RUN} --list /fig4", r"There is no view '/fig4'\. There are"),
    (f"{RUN} fig4 --rule best", r"There is no preset 'best'\. The presets are paper"),
    (f"{RUN} fig4 --rule ../paper", r"There is no preset '\.\./paper'\. The presets are"),
    (f"{RUN} fig4 --scale huge", r"--scale: invalid choice: 'huge' \(choose from .*smoke"),
    (f"{RUN} fig4 --scale ../smoke", r"--scale: invalid choice: '\.\./smoke'"),
    ("experiments.dry_run", r"the following arguments are required: model"),
    ("experiments.dry_run ../resnet50", r"model: invalid choice: '\.\./resnet50' \(choose from .*vit_huge"),
    ("experiments.dry_run resnet50 --preset best", r"--preset: invalid choice: 'best' \(choose from .*paper"),
    ("experiments.toy --steps 5", r"unrecognized arguments: --steps 5"),
    ("benchmarks.boundary --sizes 2M", r"--sizes: invalid choice: '2M' \(choose from .*57M"),
    ("benchmarks.peers --sizes ../1M", r"--sizes: invalid choice: '\.\./1M'"),
    ("benchmarks.storage --pairs rnn", r"--pairs: invalid choice: 'rnn' \(choose from .*mlp-sgd"),
    # Devices and processes.
    *(
        (f"{first} {arguments}", message)
        for first in (CIFAR, f"{BENCH} tune", f"{RUN} fig4")
        for arguments, message in [
            ("--mesh data=3", r"sizes multiply to their number, 1\. Got data=3"),
            ("--mesh rows=1", r"sizes of the axes data, fsdp, model, .*Got 'rows=1'"),
            ("--mesh data=-1", r"such as data=4,model=2\. Got 'data=-1'"),
            ("--mesh fsdp=2,model=2", r"over `fsdp` or over `model`: .*Got 'fsdp=2,model=2'"),
            ("--coordinator localhost:1", r"go together: each process must know all three\. Got localhost:1, None"),
            (f"--coordinator localhost:1 {COORDINATED} 2", r"counts from 0 to `--processes` - 1\. Got 2 of 2"),
            (f"--coordinator localhost:1 {COORDINATED} -1", r"counts from 0 to `--processes` - 1\. Got -1 of 2"),
            (f"--coordinator localhost {COORDINATED} 1", r"must be HOST:PORT\. Got 'localhost'"),
            (f"--coordinator :1234 {COORDINATED} 1", r"must be HOST:PORT\. Got ':1234'"),
            (f"--coordinator localhost:65536 {COORDINATED} 1", r"must be HOST:PORT\. Got 'localhost:65536'"),
            (f"--coordinator localhost:http {COORDINATED} 1", r"must be HOST:PORT\. Got 'localhost:http'"),
        ]
    ),
    (f"{BENCH} tune --mesh data=1 --jobs 2", r"`--jobs` puts runs side by side .*Got --jobs 2"),
    (f"{RUN} fig4 --mesh data=1 --jobs 2", r"`--jobs` puts runs side by side .*Got --jobs 2"),
    # Files in the way.
    *(
        (f"{name} {given} --out {{file}}{below}", r"a file is in the way: \S+/file\. Got '\S+/file")
        for name, given in COMMANDS.items()
        if name != "experiments.dry_run"
        for below in ("", "/below")
    ),
    (f"{RUN} fig4 --tensorboard {{file}} --out {{out}}", r"a file is in the way: \S+/file\. Got '\S+/file'"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), CASES)
def test_one_sentence_and_exit_code_2(line: str, message: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("the user's own")
    (tmp_path / "out").mkdir()
    if "--arms" in line:
        (tmp_path / "out" / "tuned.json").write_text(
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


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root, all can be
    refused("experiments.toy --out {out}", r"can be written; \S+ cannot\. Got '\S+/out'", capsys, tmp_path)


# Records that are not what a run writes.


def lines_of(config: Config) -> list[Any]:
    """A complete record, as a run writes it."""
    numbers = dict.fromkeys((*records.NUMBERS, "compile_seconds", "probe_loss"), 0.5)
    flops = {"flops": {"step": 1.0, "boundary": 1.0}} if "flops" in config.watch else {}
    epochs = ({"epoch": i + 1, **numbers, "predicted": False} for i in range(config.epochs))
    return [config.fields | {"settings": {}} | flops, *epochs]


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
    """A line with other fields; None takes one away."""

    def change(lines: list[Any]) -> None:
        lines[number] = {k: v for k, v in (lines[number] | fields).items() if v is not None}

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
    "no config": (lambda lines: lines.pop(0), "line 1 is not its config, by .*rule"),
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


def bench_records(out: Path) -> Iterator[tuple[Path, Config]]:
    (out / "tuned.json").write_text(json.dumps({"mlp-sgd": {"learning_rate": 0.1}}))
    pair = PAIRS["mlp-sgd"]
    for rule in (BASELINE, "released"):
        for share in (1.0, *SHARES):
            epochs = round(share * pair.epochs)
            config = Config(pair.workload, preset(rule), "sgd", 0.1, "cosine", epochs, 0)
            yield out / "records" / "mlp-sgd", config


def run_records(out: Path) -> Iterator[tuple[Path, Config]]:
    setup = setups.setups("smoke")["alexnet-sgd-0.05"]
    for rule in (BASELINE, "released"):
        config = setup.config(preset(rule), 0)
        yield views.folder_of(out, "smoke", "alexnet-sgd-0.05"), config


READERS = {
    f"{CIFAR} --image-size 63 --width 0.05 --batch-size 512 --optimizer adamw --lr 1e-3 --epochs 2 --seeds 0 "
    "--rules released --out {out}": cifar_records,
    f"{BENCH} table --workloads mlp-sgd --arms released --seeds 0 --out {{out}}": bench_records,
    f"{RUN} fig12 --page --scale smoke --rule released --seeds 0 --out {{out}}": run_records,
}
SHORT = ["cifar_alexnet", "bench", "run"]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("reader", READERS, ids=SHORT)
def test_records_that_are_none(reader: str, damage: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    written = list(READERS[reader](tmp_path / "out"))
    for folder, config in written:
        assert records.read(folder, config).epochs == []
        write(folder, config)
        assert records.read(folder, config).complete
    change, reason = DAMAGE[damage]
    path = write(*written[0], change)
    refused(reader, f"{path} is not the record of a run .*({reason}).*move it away", capsys, tmp_path)


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
def test_arrays_that_are_none(damage: str, tmp_path: Path, capsys: Any) -> None:
    path = [write(*written).with_suffix(".npz") for written in run_records(tmp_path / "out")][-1]
    change, reason = DAMAGED_ARRAYS[damage]
    change(path)
    line = list(READERS)[2]
    refused(line, f"{path} is not what a watched run leaves .*{reason}", capsys, tmp_path)


NOT_OBJECTS = {
    "cut": '{"a": 1',
    "a list": "[1, 2]",
    "a number": "5",
    "nothing": "",
    "too deep": "[" * 200_000,
}


@pytest.mark.parametrize("what", ["tune", "table"])
@pytest.mark.parametrize("text", NOT_OBJECTS.values(), ids=NOT_OBJECTS)
def test_tuned_rates_that_are_none(text: str, what: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tuned.json").write_text(text)
    line = f"{BENCH} {what} --workloads mlp-sgd --out {{out}}"
    refused(line, r"tuned\.json (is not JSON|must hold an object)", capsys, tmp_path)


@pytest.mark.parametrize("entry", [None, 0.1, {}, {"learning_rate": "0.1"}, {"learning_rate": -1}, {"learning_rate": 1e999}], ids=repr)  # fmt: skip
def test_a_tuned_rate_that_is_none(entry: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tuned.json").write_text(json.dumps({"mlp-sgd": entry}))
    line = f"{BENCH} table --workloads mlp-sgd --out {{out}}"
    refused(line, r"`learning_rate` of mlp-sgd in .*must be positive and finite\. Got", capsys, tmp_path)


@pytest.mark.parametrize("text", [*NOT_OBJECTS.values(), "{}", '{"title": 3}'], ids=[*NOT_OBJECTS, "{}", "3"])
def test_a_view_that_is_none(text: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "out" / "smoke" / "fig11" / "view.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    line = f"{RUN} fig12 --page --scale smoke --out {{out}}"
    refused(line, rf"{path} is not what a view writes \(.*draw fig11 again", capsys, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"No such file.*boundary\.json"),
        *((text, r"boundary\.json (is not JSON|must hold an object)") for text in NOT_OBJECTS.values()),
        ("{}", r"boundary\.json must hold an object with machine, trees\. Got an empty one"),
        ('{"machine": {}, "trees": {"1M": {}}}', r"must be those that the other benchmarks write\. Got KeyError"),
    ],
    ids=range(8),
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


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_says_the_exit_codes(name: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(name)(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m {name}")
    assert said.endswith(command.EXIT_CODES)


def test_all_command_lines_are_here() -> None:
    root = Path(pdt_optax.__file__).parents[1]
    found = {
        f"{folder}.{path.stem}"
        for folder in ("experiments", "benchmarks")
        for path in (root / folder).glob("*.py")
        if "__main__" in path.read_text()
    }
    assert found == {*COMMANDS, "benchmarks.mutants"}  # which is mutmut's


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
