"""Nothing that is read is executed, and no name leads out of a folder."""

import ast
import contextlib
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import jax.numpy as jnp
import numpy as np
import pytest

import pdt_optax
from experiments.data import datasets
from experiments.paper import views
from experiments.paper.setups import RULES, setups
from experiments.training import checkpoints, records, watch
from experiments.training.arms import BASELINE, Arm, preset
from experiments.training.checkpoints import Checkpoints, Saved, Saving
from experiments.training.trainer import Config
from experiments.training.workloads import Small, Workload, check_name
from experiments.tuned.setups import ARMS, PAIRS
from experiments.views import page
from tests.test_experiments import config

ROOT = Path(pdt_optax.__file__).parents[1]
SOURCES = sorted(
    path for name in ("pdt_optax", "experiments", "benchmarks") for path in (ROOT / name).rglob("*.py")
)

# What runs, or may run, what it reads.
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
MODULES |= {"code", "codeop", "ctypes", "imp", "runpy", "torch", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
SHELLS = {"os.system", "os.popen"}


def dotted(node: ast.AST) -> str:
    """Such as "np.load" of that expression."""
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def executing(source: str) -> list[str]:
    """Whatever in a source unpickles, evaluates, or hands a text to a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{a.name}" for a in node.names}
            found += sorted(names & SHELLS) + [str(node.module)] * (
                (node.module or "").split(".")[0] in MODULES
            )
            found += [a.name for a in node.names if f"{node.module}.{a.name}" == "numpy.load"]
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            given = {k.arg: k.value for k in node.keywords}
            safe = isinstance(no := given.get("allow_pickle"), ast.Constant) and no.value is False
            loads = name in ("np.load", "numpy.load", "jnp.load", "jax.numpy.load")
            shell = "shell" in given or name.startswith(("os.spawn", "os.exec"))
            if name in CALLS | SHELLS or shell or (loads and not safe):
                found.append(name)
    return found


def test_nothing_unpickles_or_evaluates() -> None:
    assert len(SOURCES) > 60
    assert {str(path): found for path in SOURCES if (found := executing(path.read_text()))} == {}


EXECUTING = [
    "import pickle",
    "import torch.serialization",
    "from yaml import safe_load",
    "from numpy import load",
    "from os import system",
    "eval('1')",
    "exec(text)",
    "__import__(name)",
    "np.load(path)",
    "np.load(path, allow_pickle=True)",
    "np.load(path, allow_pickle=flag)",
    "os.system(text)",
    "subprocess.run(text, shell=True)",
]


def test_the_check_finds() -> None:
    assert [source for source in EXECUTING if not executing(source)] == []


# Files that were made to do something.


class Crafted:
    """Whose unpickling creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_the_crafted_object_would_create_its_file(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Crafted(tmp_path / "created")))
    assert (tmp_path / "created").exists()


def watched(folder: Path) -> tuple[Path, Config]:
    run = setups("smoke")["alexnet-sgd-0.05"].config(preset("released"), 0)
    path = records.path_of(folder, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, run


def test_an_object_array_beside_a_record_is_refused(tmp_path: Path) -> None:
    path, run = watched(tmp_path)
    arrays: Any = {
        "mask": np.zeros((1, *watch.BAND), np.uint8),
        "mask_names": np.array([Crafted(tmp_path / "created")], dtype=object),
        "mask_epoch": np.array(3),
    }
    np.savez(path.with_suffix(".npz"), **arrays)
    with pytest.raises(checkpoints.UnreadableError, match=rf"{path.stem}\.npz is not .*allow_pickle=False"):
        records.arrays(tmp_path, run)
    path.with_suffix(".npz").write_bytes(pickle.dumps(Crafted(tmp_path / "created")))
    with pytest.raises(checkpoints.UnreadableError, match=rf"{path.stem}\.npz is not .*pickle"):
        records.arrays(tmp_path, run)
    assert not (tmp_path / "created").exists()


def expressions(created: Path) -> list[str]:
    """Texts that would create a file if they were evaluated, in this language or that."""
    return [
        f"__import__('pathlib').Path({str(created)!r}).touch()",
        f"$(touch {created})",
        f"!!python/object/apply:pathlib.Path.touch [{created}]",
    ]


def test_an_expression_in_a_record_is_a_text(tmp_path: Path) -> None:
    created = tmp_path / "created"
    run = config(BASELINE, epochs=1)
    path = records.path_of(tmp_path, run)
    epoch = {"epoch": 1} | dict.fromkeys(records.NUMBERS, 0.5)
    for text in expressions(created):
        first = {"config": run.fields, "devices": text}
        path.write_text("".join(json.dumps(line) + "\n" for line in (first, epoch)))
        assert records.read(tmp_path, run).about["devices"] == text
        other = {"config": run.fields | {"rule": text}}
        for lines in ([first, epoch | {"train_loss": text}], [other, epoch]):
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            with pytest.raises(checkpoints.UnreadableError):
                records.read(tmp_path, run)
        path.write_text(text + "\n")  # a line of its own
        with pytest.raises(checkpoints.UnreadableError):
            records.read(tmp_path, run)
    assert not created.exists()


PROGRESS: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "a key": lambda progress, text: progress["position"].update(order_key=text),
    "part of a key": lambda progress, text: progress["position"].update(dropout_key=[0, text]),
    "the epochs": lambda progress, text: progress.update(epochs=text),
    "an epoch": lambda progress, text: progress.update(epochs=[{"epoch": text}]),
    "no position": lambda progress, text: progress.pop("position"),
    "everything": lambda progress, text: progress.clear(),
}


def restored(folder: Path) -> Saved | None:
    with Checkpoints(folder, Saving(every=1, keep=True, wait=True)) as manager:
        return manager.latest({"w": jnp.zeros(3)}, None)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with one checkpoint."""
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, Saving(every=1, keep=True, wait=True)) as manager:
        position = {"epochs": 1, "order_key": [0, 1], "dropout_key": [2, 3]}
        manager.save(1, Saved({"w": jnp.arange(3.0)}, position, [{"epoch": 1}]), last=False)
    return folder


def test_a_checkpoint_that_was_not_touched_is_taken(saved: Path) -> None:
    found = restored(saved)
    assert found is not None
    np.testing.assert_array_equal(found.state["w"], np.arange(3.0))


@pytest.mark.parametrize("which", PROGRESS)
def test_an_expression_in_a_checkpoints_progress_is_refused(which: str, saved: Path, capsys: Any) -> None:
    created, path = saved.parent / "created", saved / "1" / "progress" / "metadata"
    untouched = path.read_text()
    for text in expressions(created):
        progress = json.loads(untouched)
        PROGRESS[which](progress, text)
        path.write_text(json.dumps(progress))
        with pytest.raises(checkpoints.UnreadableError, match=r"No checkpoint in .* can be read"):
            restored(saved)
        assert f"{saved / '1'} cannot be read" in capsys.readouterr().err
    assert not created.exists()


def test_a_checkpoints_metadata_imports_and_evaluates_nothing(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax writes names of classes and Python's tuples there."""
    created = saved.parent / "created"
    (saved.parent / "imported.py").write_text(f"__import__('pathlib').Path({str(created)!r}).touch()")
    monkeypatch.syspath_prepend(saved.parent)
    of_checkpoint, of_state = saved / "1" / "_CHECKPOINT_METADATA", saved / "1" / "state" / "_METADATA"
    about = json.loads(of_checkpoint.read_text())
    about["item_handlers"] = dict.fromkeys(about["item_handlers"], "imported.Handler")
    of_checkpoint.write_text(json.dumps(about))
    tree = json.loads(of_state.read_text())
    for text in (*expressions(created), "imported.Value"):
        (leaf,) = tree["tree_metadata"].values()
        leaf["value_metadata"]["value_type"] = text
        of_state.write_text(
            json.dumps(tree | {"tree_metadata": {f"({text},)": leaf}, "custom_metadata": text})
        )
        with contextlib.suppress(checkpoints.UnreadableError):  # or it is not looked at
            restored(saved)
    assert not created.exists()


# Names that lead out of a folder.

OUT = ("../elsewhere", "/elsewhere", "a/../../elsewhere", "a/b", "a\\b", "a\0b", "a\n", "~/a b")


def refuses(use: Callable[[str], Any], name: str) -> None:
    with pytest.raises(ValueError) as refused:
        use(name)
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize("name", OUT, ids=repr)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    """By all that looks names up or takes new ones."""
    for use in (Arm, preset, datasets.load, lambda name: check_name("name", name, ARMS)):
        refuses(use, name)


def below(kind: type) -> set[type]:
    """A class of the experiments and all that inherit from it."""
    return {kind}.union(*(below(c) for c in kind.__subclasses__() if c.__module__.startswith("experiments")))


def test_every_name_that_a_run_has_is_checked() -> None:
    """Whatever a run is made of, its texts are names."""
    runs = [config(), *(dataclasses.replace(config(), arm=arm) for arm in ARMS.values())]
    runs += [dataclasses.replace(config(), workload=pair.workload) for pair in PAIRS.values()]
    runs += [run for view in views.VIEWS.values() for *_, run in view.configs("smoke")]
    runs += [run for *_, run in views.VIEWS["table1"].configs("paper")]
    parts = {type(part): part for run in runs for part in (run, run.workload, run.arm)}
    assert parts.keys() == {Config} | below(Arm) | below(Workload) - {Workload, Small}
    for kind, part in parts.items():
        for name, hint in get_type_hints(kind).items():
            if hint is str:
                refuses(lambda text, part=part, name=name: dataclasses.replace(part, **{name: text}), OUT[0])
            elif hint == tuple[str, ...]:
                refuses(
                    lambda text, part=part, name=name: dataclasses.replace(part, **{name: (text,)}), OUT[0]
                )


def test_a_view_of_an_unknown_setup_is_refused() -> None:
    view = dataclasses.replace(
        views.VIEWS["fig4"], rows=lambda scale: [views.Row("AlexNet", "../../elsewhere")]
    )
    with pytest.raises(KeyError, match=r"\.\./\.\./elsewhere"):
        view.configs("smoke", ["released"])


def test_all_records_lie_in_their_folder(tmp_path: Path) -> None:
    arms = [
        *ARMS.values(),
        *(c.arm for view in views.VIEWS.values() for *_, c in view.configs("paper", RULES)),
    ]
    for arm in dict.fromkeys(arms):
        path = records.path_of(tmp_path, dataclasses.replace(config(), arm=arm))
        assert path.parent == tmp_path
        assert path.resolve().is_relative_to(tmp_path.resolve())
        assert path.with_suffix(".npz").stem == path.stem


def test_a_crafted_view_puts_no_markup_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "fig4").mkdir()
    bad = '"><script>alert(1)</script>'
    parts = [f"# {bad}", f"> {bad}", f"`{bad}`: {bad}", bad, f"- {bad}", f"![{bad}]({bad})", f"## {bad}"]
    table = f"| {bad} |\n| --- |\n| {bad} |"
    (tmp_path / "fig4" / "table.md").write_text("\n\n".join([*parts, table]))
    page.write_index(tmp_path, {"fig4": "fig4"}, "", bad, bad)
    assert "<script" not in (tmp_path / "index.html").read_text()
