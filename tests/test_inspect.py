"""The report on a run: what it reads, what it measures, and what it says."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import rich.console
import scipy.stats

import pdt_optax
import pdt_optax.inspect
from experiments.tuned import expected
from pdt_optax.inspect import __main__ as command
from pdt_optax.inspect import _measure, _tuned, read, report
from tests.states import windowed
from tests.training import epoch_weights

MEMORY = 0.35  # of the default


@pytest.fixture(scope="module")
def path() -> list[Any]:
    """Real training: digits, AdamW, the weights at the start and after each of 30 epochs."""
    return epoch_weights("adamw")


@pytest.fixture(scope="module")
def found(path: list[Any]) -> pdt_optax.inspect.Report:
    return report(path)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def means(path: list[np.ndarray]) -> list[np.ndarray]:
    """In float64, of `slow_drift`'s own formulas: the mean motion after each epoch."""
    mean, weight, found = np.zeros_like(path[0]), 0.0, []
    for epoch, (old, new) in enumerate(itertools.pairwise(path), start=1):
        weight = (1 - 1 / max(MEMORY * epoch, 2)) * weight + 1
        mean = mean + (new - old - mean) / weight
        found.append(mean)
    return found


# What is measured.


def test_persistence_and_cosine_are_those_of_the_formulas(path, found):
    run = [flat(tree) for tree in path]
    pairs = list(zip(means(run), np.diff(run, axis=0)[1:], strict=False))
    persistence = [step @ mean / (mean @ mean) for mean, step in pairs]
    cosine = [step @ mean / np.linalg.norm(step) / np.linalg.norm(mean) for mean, step in pairs]
    np.testing.assert_allclose(found.reports.persistence[1:], persistence, rtol=1e-5)
    np.testing.assert_allclose(found.reports.alignment[1:], cosine, rtol=1e-5)
    assert found.reports.persistence[0] == 0  # not known
    leaf = found.paths.index("dense_0/kernel")
    run = [flat(tree["dense_0"]["kernel"]) for tree in path]
    pairs = zip(means(run), np.diff(run, axis=0)[1:], strict=False)
    persistence = [step @ mean / (mean @ mean) for mean, step in pairs]
    np.testing.assert_allclose(found.reports.persistence_per_leaf[1:, leaf], persistence, rtol=1e-5)


def test_the_gain_is_the_one_of_training(found):
    gain, expected = 1.0, []
    for motion, alignment in enumerate(found.reports.alignment):
        if motion > 5:  # the sixth epoch's end is the first to predict
            gain = np.clip(gain * np.exp(0.2 * np.clip((alignment - 0.15) / 0.1, -1, 1)), 1, 3.5)
        expected.append(gain)
    np.testing.assert_allclose(found.gain, expected, rtol=1e-5)


def test_forecast_errors_are_those_of_the_forecasts(path, found):
    run = [flat(tree) for tree in path]
    for motion in (5, 12, 29):
        now, came = run[motion], run[motion + 1]
        moved = np.linalg.norm(came - now)
        mean = means(run[: motion + 1])[-1]
        default = now + mean - max(mean @ now, 0) / (now @ now) * now
        drift = now + (now - run[motion - 4]) / 4
        for model, forecast in (("the default", default), ("drift", drift)):
            expected = np.linalg.norm(forecast - came) / moved
            assert found.forecast_errors[model][motion] == pytest.approx(expected, rel=1e-4), model
    assert all(np.isnan(errors[:5]).all() for errors in found.forecast_errors.values())


def test_a_linear_system_is_known_to_dmd():
    """Two modes, one that turns: forecast to rounding, and told with their factors, periods and layers."""
    turn = 0.9 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    state, path = np.array([1.0, 2.0]), []
    for step in range(16):
        path.append({"a": jnp.asarray(state, jnp.float32), "b": jnp.float32(3 * 0.6**step) * jnp.ones(1)})
        state = turn @ state
    found = report(path)
    assert found.modes is not None
    assert found.forecast_errors["DMD"][-1] < 0.05
    np.testing.assert_allclose(found.modes.growth, [0.9, 0.9, 0.6], rtol=1e-3)
    text = str(found)
    assert re.search(rf"0\.900 +{2 * np.pi / 0.5:.1f} steps +\d+% +a 100%", text)
    assert re.search(r"0\.600 +- +\d+% +b 100%", text)


def test_modes_of_large_models_are_of_evenly_spread_weights(path, monkeypatch):
    whole = report(path).modes
    monkeypatch.setattr(_measure, "MODES_WEIGHTS", 2_000)
    thinned = report(path)
    assert whole is not None
    assert thinned.modes is not None
    assert thinned.notes == ("The modes are of every 4th weight of each leaf.",)
    assert sum(x.size for x in jax.tree.leaves(thinned.modes.modes[0])) < 2_000
    np.testing.assert_allclose(thinned.modes.growth[:2], whole.growth[:2], rtol=0.05)


def test_leaves_that_rest_or_are_no_weights_do_not_matter(path, found):
    more = [tree | {"rest": np.ones(3, np.float32), "step": np.int32(i)} for i, tree in enumerate(path)]
    again = report(more)
    np.testing.assert_allclose(again.reports.persistence, found.reports.persistence, rtol=1e-5)
    assert re.search(r"rest +-", str(again))
    assert "step" not in again.paths


def test_a_report_is_text_in_a_notebook_too(found, monkeypatch):
    monkeypatch.setattr(
        rich.console, "_is_jupyter", lambda: True
    )  # where rich would display and write nothing
    assert found.verdict in " ".join(str(found).split())


@pytest.mark.slow
def test_narrow_weights(path):
    narrow = [jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree) for tree in path]
    assert np.isfinite(report(narrow).reports.persistence[1:]).all()


# What is read.


def save_manager(folder: Path, path: list[Any]) -> None:
    """A training state a step, as a `CheckpointManager` saves it."""
    optimizer = optax.adam(1e-3)
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=None)) as manager:
        for epoch, params in enumerate(path):
            state = {"params": params, "opt_state": optimizer.init(params), "step": epoch}
            manager.save(epoch, args=ocp.args.StandardSave(state))


def save_items(folder: Path, path: list[Any]) -> None:
    """The parameters as an item of their own, beside another one."""
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(step_prefix="ckpt")) as manager:
        for epoch, params in enumerate(path):
            items = {"weights": ocp.args.PyTreeSave(params), "other": ocp.args.PyTreeSave({"x": np.ones(2)})}
            manager.save(epoch, args=ocp.args.Composite(**items))


def save_single(folder: Path, path: list[Any]) -> None:
    """The parameters alone, a `PyTreeCheckpointer`'s folder for each step."""
    for epoch, params in enumerate(path):
        ocp.PyTreeCheckpointer().save(folder / f"epoch_{epoch}", params)


def save_npz(folder: Path, path: list[Any]) -> None:
    folder.mkdir()
    for epoch, params in enumerate(path):
        named = {f"{layer}/{name}": x for layer, of in params.items() for name, x in of.items()}
        np.savez(folder / f"weights_{epoch:04}.npz", **named)


@pytest.mark.parametrize(
    ("save", "options"),
    [
        (save_manager, []),
        pytest.param(save_items, ["--params", "weights"], marks=pytest.mark.slow),
        pytest.param(save_single, [], marks=pytest.mark.slow),
        (save_npz, []),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_the_command_on_saved_weights(save, options, path, tmp_path, capsys):
    """Of real training, in each way that weights are saved: the tables, the page, and the same figures as in memory."""
    save(tmp_path / "run", path[:13])
    page = tmp_path / "report.html"
    assert command.main([str(tmp_path / "run"), "--html", str(page), *options]) == 0
    printed = capsys.readouterr().out
    alike = report(path[:13])
    assert alike.verdict in " ".join(printed.split())
    assert printed.splitlines()[-1] == f"Pictures: {page}"
    assert re.search(r"dense_1/kernel +0\.\d\d", printed)
    written = page.read_text()
    assert written.count("data:image/svg+xml") == 6
    assert not re.search(r"(src|href)=.http", written)  # complete in itself
    saved = read(tmp_path / "run", *options[1:])
    assert isinstance(saved, pdt_optax.inspect.Saved)
    for loaded, tree in zip(saved.weights(), path, strict=False):
        assert flat(loaded).tolist() == flat(tree).tolist()


def test_steps_are_chosen_and_evenly_spaced(path, tmp_path):
    save_npz(tmp_path / "run", path[:12])
    (tmp_path / "run" / "weights_0003.npz").unlink()
    found = report(tmp_path / "run", first=1, last=10)
    assert found.steps == (4, 5, 6, 7, 8, 9, 10)
    assert found.notes == ("Looked at: 7 steps from 4 to 10, evenly spaced. 2 other steps left out.",)
    assert "It is too early to tell: 6 motions were measured" in found.verdict


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ((), ()),
        ((3,), (3,)),
        ((0, 10, 20, 25), (0, 10, 20)),
        ((1, 2, 3, 10, 20, 30), (10, 20, 30)),
        ((1, 5), (1, 5)),
    ],
)
def test_evenly_spaced(steps, kept):
    assert _measure.evenly_spaced(steps) == kept


def test_checkpoints_of_a_run_with_pdt_are_noted(path, tmp_path):
    history = pdt_optax.Predictor().init(path[0])
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for epoch in range(3):
            manager.save(epoch, args=ocp.args.StandardSave({"params": path[epoch], "history": history}))
    assert any("hold a history of PDT" in note for note in report(tmp_path / "run").notes)


# A record.


def record(path: list[Any], weights: int = 0, **settings: Any) -> pdt_optax.Recorder:
    """As training records it, with the optimizer's own path given."""
    tx = pdt_optax.pdt(optax.identity(), **settings)
    state, recorder, params = tx.init(path[0]), pdt_optax.Recorder(weights_per_leaf=weights), path[0]
    for old, new in itertools.pairwise(path):
        updates, state = tx.update(jax.tree.map(jnp.subtract, new, old), state, params)
        params, state, told = tx.end_epoch(optax.apply_updates(params, updates), state)
        recorder.add(told, state)
    return recorder


def test_a_record_of_a_dry_run_says_what_its_weights_say(path, found, tmp_path):
    recorder = record(path, weights=500, dry_run=True)
    recorder.save(tmp_path / "run.npz")
    of_file = report(tmp_path / "run.npz")
    np.testing.assert_allclose(of_file.reports.persistence, found.reports.persistence, rtol=1e-4)
    assert of_file.steps == found.steps
    assert of_file.verdict == found.verdict
    assert of_file.modes is not None
    assert np.isfinite(of_file.forecast_errors["drift"][6:]).all()
    assert np.isnan(
        of_file.forecast_errors["drift"][:6]
    ).all()  # the weights before the first epoch are not kept
    part = report(recorder, first=11, last=30)
    assert part.steps == tuple(range(10, 31))
    np.testing.assert_array_equal(part.reports.gain, of_file.reports.gain[10:])


def test_a_record_that_delivered_is_no_plain_path(path):
    found = report(record(path))
    assert found.verdict.startswith("This run delivered its predictions")
    assert found.expected is None
    assert found.modes is None
    np.testing.assert_array_equal(found.gain, found.reports.gain)
    assert "Which layers go on?" in str(found)
    assert found.html().count("data:image/svg+xml") == 3


def test_a_record_of_a_windowed_model_is_looked_at_by_its_weights(path):
    tx, recorder = windowed(optax.identity(), dry_run=True), pdt_optax.Recorder(weights_per_leaf=10**6)
    state = tx.init(path[0])
    for params in path[1:]:
        _, state, told = tx.end_epoch(params, state)
        recorder.add(told, state)
    np.testing.assert_allclose(
        report(recorder).reports.persistence, report(path[1:]).reports.persistence, rtol=1e-4
    )


# What it refuses.


def save(folder: Path, name: str, **arrays: Any) -> None:
    np.savez(folder / name, **(arrays or {"w": np.ones(2)}))


def several(folder: Path, **changed: Any) -> None:
    """Files of three steps, the last of them changed."""
    for step in range(2):
        save(folder, f"w{step}.npz", w=np.ones(2) * step)
    save(folder, "w2.npz", **changed)


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (lambda folder: None, r"must hold a run's Orbax checkpoints or .npz files.* holds nothing"),
    "something else": (lambda folder: (folder / "a.txt").write_text("a"), r"holds 'a.txt'"),
    "one": (lambda folder: save(folder, "w1.npz"), r"at least 3 steps .*max_to_keep=None.* Got 1: 1\."),
    "no number": (lambda folder: save(folder, "w.npz"), r"must have its number, such as weights_0010.npz"),
    "a step twice": (lambda folder: [save(folder, f"{n}1.npz") for n in "ab"], r"step 1 as 'a1.npz' and as 'b1.npz'"),
    "another shape": (lambda folder: several(folder, w=np.ones(3)), r"Step 2 differs from step 0 at 'w'"),
    "another leaf": (lambda folder: several(folder, v=np.ones(2)), r"Step 2 differs from step 0 at 'w', 'v'"),
    "not finite": (
        lambda folder: several(folder, w=np.array([1, np.nan])),
        r"'w' at step 2 is not: the run had diverged.* last=1 \(--to 1\)",
    ),
    "the same": (lambda folder: [save(folder, f"w{i}.npz") for i in range(4)], r"The weights must move"),
    "damaged": (lambda folder: [several(folder), (folder / "w2.npz").write_text("x")], r"w2.npz is damaged, or not"),
    "a record": (
        lambda folder: [several(folder), save(folder, "w0.npz", format=np.array("x"), paths=np.array(["a"]))],
        r"name the file in place of the folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_looked_at_is_told_in_a_sentence(case, tmp_path, capsys):
    make, message = REFUSED[case]
    make(tmp_path)
    assert command.main([str(tmp_path), "--html", str(tmp_path / "report.html")]) == 2
    told = capsys.readouterr()
    assert re.search(message, told.err)
    assert told.err.startswith("error: ")
    assert told.out == ""
    assert not (tmp_path / "report.html").exists()


def test_checkpoints_that_cannot_be_looked_at(tmp_path):
    saver, weights = ocp.PyTreeCheckpointer(), {"w": np.ones(2, np.float32)}
    whole = {"params": weights, "step": np.int32(1)}
    for step in range(3):
        saver.save(tmp_path / "state" / str(step), {"weights": weights, "step": step})
        saver.save(tmp_path / "two" / str(step), {"a": whole, "b": whole})
        saver.save(tmp_path / "broken" / str(step), whole)
    for name, message in (
        ("state", r"It must be clear which .* params='(weights|step)' \(--params (weights|step)\)"),
        ("two", r"Got 'a/params', 'b/params'\."),
        ("two/1", r"this folder is one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            report(tmp_path / name)
    with pytest.raises(ValueError, match=r"Got 'a/x'; a has 'params', 'step'\."):
        report(tmp_path / "two", params="a/x")
    for file in (tmp_path / "broken" / "1").rglob("*"):
        if file.is_file() and file.name != "_METADATA":
            file.unlink()
    with pytest.raises(ValueError, match=r"The checkpoint of step 1 in .*broken cannot be read"):
        report(tmp_path / "broken")
    with ocp.CheckpointManager(tmp_path / "items") as manager:
        items = {name: ocp.args.PyTreeSave(weights) for name in ("x", "y")}
        for step in range(3):
            manager.save(step, args=ocp.args.Composite(**items))
    with pytest.raises(ValueError, match=r"`params` must say which item the parameters are. Got .*'x', 'y'"):
        report(tmp_path / "items")


def test_arguments_that_do_not_fit(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is nothing at"):
        report(tmp_path / "none")
    with pytest.raises(TypeError, match=r"`run` must be a folder, .* Got int\."):
        report(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`params` is for a folder of checkpoints"):
        report(path, params="params")
    save(tmp_path, "w1.npz")
    with pytest.raises(ValueError, match=r"a \.npz file holds the parameters alone"):
        report(tmp_path, params="params")
    with pytest.raises(ValueError, match=r"must be a file that `Recorder\.save` wrote"):
        report(tmp_path / "w1.npz")
    recorder = record(path[:5], dry_run=True)
    with pytest.raises(ValueError, match=r"at least 3 epochs\. Got 2 of 4 recorded"):
        report(recorder, last=2)
    tx = windowed(optax.identity())
    state, empty = tx.init(path[0]), pdt_optax.Recorder()
    empty.add(tx.end_epoch(path[0], state)[2], state)
    with pytest.raises(ValueError, match="A record must hold a persistence or weights"):
        report(empty)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("rich", "pip install 'pdt-optax[inspect]'"),
        ("matplotlib", "pip install 'pdt-optax[inspect]'"),
        ("orbax", "pip install 'pdt-optax[inspect]'"),
    ],
)
def test_what_is_not_installed_is_named(module, message, path, tmp_path, capsys, monkeypatch):
    (save_single if module == "orbax" else save_npz)(tmp_path / "run", path[:4])
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("_terminal", "_page"):
        monkeypatch.delitem(sys.modules, f"pdt_optax.inspect.{name}", raising=False)
    for name in [name for name in sys.modules if name.startswith("pdt_optax.plot")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(pdt_optax, "plot", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    assert command.main([str(tmp_path / "run"), "--html", str(tmp_path / "report.html")]) == 2
    assert message in capsys.readouterr().err


def test_importing_the_library_does_not_import_it():
    code = "import sys, pdt_optax; early = 'pdt_optax.inspect' in sys.modules; pdt_optax.inspect.report; sys.exit(early)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What it says.


def test_the_line_through_the_tuned_tasks_is_that_of_least_squares():
    x, y = np.array([(p.alignment, np.log(p.effective)) for p in _tuned.pairs()]).T
    line: Any = scipy.stats.linregress(x, y)
    for at in (0.05, 0.2, 0.4):
        assert np.log(_tuned.expected(at).value) == pytest.approx(line.intercept + line.slope * at, rel=1e-9)
    beyond = _tuned.expected(0.9)
    assert np.isnan(beyond.value)
    straightest = sorted(_tuned.pairs(), key=lambda pair: pair.alignment)[-3:]
    assert beyond.nearest == (min(p.effective for p in straightest), max(p.effective for p in straightest))


def test_the_interval_holds_as_often_as_it_says():
    """Tasks made at random from a line with noise: 95 of 100 new ones lie in it."""
    random, inside = np.random.default_rng(0), []
    for _ in range(1000):
        x = random.uniform(0, 0.5, 10)
        y = np.exp(0.1 + 1.5 * x + 0.1 * random.normal(size=10))
        *known, new = [_tuned.Pair("", 0, a, b, 0, 0) for a, b in zip(x, y, strict=True)]
        told = _tuned.expected(new.alignment, known)
        if np.isfinite(told.value):
            inside.append(told.low <= new.effective <= told.high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_the_tuned_tasks_are_what_the_records_say():
    assert expected.FILE.read_text() == expected.written(expected.known())


def test_tasks_that_are_not_recorded_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(expected, "FILE", tmp_path / "tuned.json")
    assert expected.main(["--write", "--out", str(tmp_path)]) == 2
    assert "Plain training of mlp-sgd must be recorded first" in capsys.readouterr().err
    assert not expected.FILE.exists()


def test_verdicts():
    """A path may be straight, straighter than all that is known, at random, or turn back; and between the first and the third."""
    random = np.random.default_rng(0)
    noise = np.cumsum(random.normal(size=(40, 3000)), axis=0).astype(np.float32)
    for speed, verdict in (
        (0.4, "PDT is likely to help this run: plain training would take about"),
        (0.2, "PDT may help this run: plain training would take about"),
        (3.0, "What PDT is worth here cannot be told: the path is straighter than that of any of nine"),
    ):
        found = report([{"w": row + np.float32(speed * i)} for i, row in enumerate(noise)])
        assert found.verdict.startswith(verdict), (speed, _measure.settled(found.reports.alignment))
        assert found.advice.startswith("Tune the plain optimizer's learning rate first")
    # The direction of the first of them, and steps that shrink.
    motion = (random.normal(size=(40, 3000)) + 0.4) * np.minimum(1, 0.6 ** (np.arange(40) - 10.0))[:, None]
    slows = report([{"w": row} for row in np.cumsum(motion, axis=0).astype(np.float32)])
    assert slows.verdict.startswith(
        "What PDT is worth here cannot be told: the optimizer keeps its direction, and moves"
    )
    assert slows.expected is not None
    assert np.isnan(slows.expected.value)
    back = report([{"w": row + np.float32(10 * (-1) ** i)} for i, row in enumerate(noise)])
    assert back.verdict.startswith("PDT has little to work with here")
