"""The paper's views: its numbers, what is planned, how claims are judged, and a few of them end to end."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pdt_optax
from experiments import run
from experiments.data import datasets
from experiments.paper import claims, setups
from experiments.paper.figures import PAPER
from experiments.paper.setups import SCALES, SEEDS
from experiments.paper.views import VIEWS
from experiments.training import loggers, records, rules, timing, trainer, watch
from experiments.training.arms import BASELINE, Arm, preset
from experiments.training.workloads import Resized
from experiments.views.view import Found

TABLES = [name for name in PAPER if name.startswith("table")]


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_tables_are_whole_and_agree_with_themselves(name):
    rows = {}
    for row in PAPER[name]["rows"]:
        rows.setdefault(row["row"], {})[row["method"]] = row
    assert list(rows) == [row.label for row in VIEWS[name].rows("paper")]
    for pair in rows.values():
        assert list(pair) == ["baseline", "PDT"]
        for saved, time in (("saved_loss", "ttb_loss"), ("saved_accuracy", "ttb_accuracy")):
            if saved in pair["PDT"]:
                before, after = (np.ravel(pair[method][time])[0] for method in pair)
                # The paper's own, but for rows that it rounded or averaged otherwise.
                assert 100 * (1 - after / before) == pytest.approx(pair["PDT"][saved], abs=1.0)


def test_rows_that_the_papers_tables_share_are_the_same():
    def lines(table, label):
        return [{k: v for k, v in r.items() if k != "row"} for r in PAPER[table]["rows"] if r["row"] == label]

    for row in VIEWS["table7"].rows("paper"):
        assert lines("table7", row.label) == lines("table2", row.label)
    assert lines("table6", "lr 0.1") == lines("table2", "SGD, lr 0.1")
    assert lines("table4", "i.i.d.") == lines("table5", "batch 128, lr 0.05")


def test_a_variant_is_a_preset_with_one_part_changed():
    recipe = setups.setups("smoke")["alexnet-sgd-0.1"].config(Arm(BASELINE), 0).recipe
    changed = {}
    for name, arm in setups.VARIANTS.items():
        of, before = arm.settings(recipe), preset(name.split("-")[0]).settings(recipe)
        changed[name] = {part: value for part, value in of.items() if before.get(part) != value}
        assert before.keys() <= of.keys()
    assert {name: list(parts) for name, parts in changed.items()} == {
        "recommended-guarded": ["guard"],
        "paper-guarded": ["guard"],
        "paper-current": ["dynamics"],
        "paper-held": ["dynamics"],
        "paper-scheduled": ["schedule"],
        "paper-adaptive": ["schedule"],
        "released-scheduled": ["schedule"],
        "released-adaptive": ["schedule"],
    }
    exact = {"rank": None, "modes": "exact", "displacement": False}
    assert changed["paper-current"]["dynamics"] == pdt_optax.dmd(**exact, fit="current")
    assert changed["paper-held"]["dynamics"] == rules.held_dmd(**exact, fit="past")
    shown = {arm.name for _, _, c in VIEWS["table6"].configs("smoke") for arm in [c.arm]}
    assert shown > setups.VARIANTS.keys()
    for table in ("table2", "table4", "table6"):
        assert {c.arm.name for _, _, c in VIEWS[table].configs("paper")} == set(setups.EVERYTHING)


@pytest.mark.parametrize("scale", SCALES)
def test_every_view_is_planned_and_all_setups_are_shown(scale):
    known = setups.setups(scale)
    used = {row.setup for view in VIEWS.values() for row in view.rows(scale)}
    assert used == set(known)
    for view in VIEWS.values():
        for row, setup, config in view.configs(scale):
            assert setup == known[row.setup]
            assert config.epochs > 6 or scale != "smoke"  # or nothing would be predicted
    configs = [c for view in VIEWS.values() for _, _, c in view.configs(scale)]
    assert len({c.key for c in configs}) == len({(c.program, c.arm.name, c.seed) for c in configs})


def test_views_share_runs():
    def keys(name):
        return {config.key for _, _, config in VIEWS[name].configs("paper", setups.RULES)}

    assert keys("table7") < keys("table2")
    assert keys("fig4") < keys("table1") == keys("fig10")
    assert keys("fig9") == keys("fig11") == keys("fig12") < keys("fig4") < keys("table1")
    assert keys("fig4") < keys("table6")
    assert keys("fig1") < keys("table2")


def test_the_papers_scale_has_the_papers_settings():
    setup = setups.setups("paper")["alexnet-sgd-0.05"]
    workload = setup.workload
    assert isinstance(workload, Resized)
    assert (workload.batch_size, setup.learning_rate, setup.epochs, workload.image_size) == (
        256,
        0.05,
        60,
        128,
    )
    assert (workload.train_examples, workload.epoch_steps) == (50_000, 195)
    rates = [setup.config(Arm(BASELINE), 0).recipe.schedule(step) for step in (0, 60 * 195 // 2, 60 * 195)]
    np.testing.assert_allclose(rates, [0.05, 0.051 / 2, 0.001], rtol=1e-5)


def test_the_papers_scale_follows_the_released_scripts():
    setups_of = setups.setups("paper")
    cosines = {s.schedule for s in setups_of.values() if s.optimizer == "sgd" and s.schedule != "constant"}
    assert cosines == {"floored_cosine"}
    by_part = {
        row.label: isinstance(config.arm, rules.PartByPart)
        for row, _, config in VIEWS["table1"].configs("paper", ["released"])
    }
    assert by_part == {label: label == "ViT-Huge" for label in by_part}
    # Fig. 12: of jumps at the ends of epochs 6, 8, ..., the one of epoch 20.
    seen: dict[str, np.ndarray] = {}
    weights = {"w": jnp.ones(3)}
    watched = watch.Watch(("mask",), setups_of["alexnet-sgd-0.05"].epochs, weights, seen)
    tx = pdt_optax.pdt(optax.sgd(0.1))
    report = tx.end_epoch(weights, tx.init(weights))[2]
    for epoch in range(1, 25):
        jumped = report._replace(predicted=jnp.array(epoch >= 6 and epoch % 2 == 0))
        watched.after_end(epoch, watched.before_end(weights), weights, jumped)
    assert seen["mask_epoch"] == 20


def test_the_list_says_claim_command_cost_and_status_and_small_is_within_its_budget(tmp_path, capsys):
    assert run.main(["--list", "--scale", "small", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for view in VIEWS.values():
        assert view.claim in printed
        assert f"python -m experiments.run {view.name} --scale small" in printed
    together = re.search(r"together +(\d+) min  0 of (\d+) runs", printed)
    assert together
    assert int(together[1]) <= 8 * 60
    assert max(setup.seconds for setup in setups.setups("small").values()) <= 30


def test_noise_has_the_shapes_of_the_data():
    workloads = [setup.workload for scale in SCALES for setup in setups.setups(scale).values()]
    assert {w.data for w in workloads if isinstance(w, Resized)} <= {*datasets.SHAPES, datasets.STREAMED}
    # The other data sets may not be on this machine.
    digits = next(w for w in workloads if isinstance(w, Resized) and w.data == "digits")
    for noise, real in zip(timing.noise(digits), digits.load(), strict=True):
        assert noise.inputs.shape == real.inputs.shape
        assert noise.inputs.dtype == real.inputs.dtype
        assert noise.targets.shape == real.targets.shape
        assert noise.targets.dtype == real.targets.dtype
        assert set(noise.targets) == set(real.targets)


def test_an_epochs_time_is_told_from_a_few_steps(tmp_path, capsys):
    line = ["fig9", "--scale", "smoke", "--time", "2", "--out", str(tmp_path)]
    assert run.main(line) == 0
    printed = capsys.readouterr().out
    number = r"([\d,.]+)"
    found = re.findall(
        rf"^alexnet-sgd-[\d.]+, released, 7 epochs of 8 steps\n  a step {number} ms, an epoch {number} s, "
        rf"a prediction at its end {number} ms; compiling {number} s$",
        printed,
        re.MULTILINE,
    )
    [(step, epoch, prediction, _)] = found
    assert float(epoch) == pytest.approx(8 * float(step) / 1e3, abs=0.06)
    assert float(prediction) > 0
    assert list(tmp_path.iterdir()) == []


# How claims are judged, on hand-made records.


def run_of(rule, losses, accuracy=0.8, seed=0, rate=0.1, batch=32):
    config = {"rule": rule, "seed": seed, "epochs": len(losses), "optimizer": "sgd"}
    config |= {"learning_rate": rate, "batch_size": batch}
    epochs = [
        {
            "epoch": i + 1,
            "train_loss": loss,
            "validation_accuracy": accuracy,
            "train_seconds": 1.0,
            "pdt_seconds": 0.0,
            "predicted": False,
        }
        for i, loss in enumerate(losses)
    ]
    return records.Run(config, epochs)


def found(faster, rate=0.1, batch=32, accuracy=0.8):
    losses = [2, 1, 1] if faster else [3, 2, 2]
    pair = (run_of(BASELINE, [3, 2, 1], 0.8, 0, rate, batch), run_of("x", losses, accuracy, 0, rate, batch))
    return Found(list(pair), {})


def test_a_row_holds_if_every_seed_is_faster_and_accuracy_is_kept():
    def judged(runs):
        found = claims.judge(runs, "x")
        assert found is not None
        return found

    assert judged(found(True).runs) == (True, pytest.approx(1 / 3), 0)
    assert judged(found(False).runs) == (False, -math.inf, 0)
    assert judged(found(True, accuracy=0.7901).runs).holds
    assert judged(found(True, accuracy=0.785).runs) == (False, pytest.approx(1 / 3), pytest.approx(-0.015))
    missed = [run_of(BASELINE, [3, 2, 1], seed=1), run_of("x", [3, 2, 2], seed=1)]
    assert judged([*found(True).runs, *missed]).saved == -math.inf
    slow = [run_of(BASELINE, [3, 2, 1]), run_of("x", [2, 1, 1])]
    for epoch in slow[1].epochs:  # 2 epochs of 1.6 seconds against 3 of one
        epoch["pdt_seconds"] = 0.6
    assert judged(slow) == (False, pytest.approx(1 - 3.2 / 3), 0)
    assert claims.judge(found(True).runs, "y") is None


def test_verdicts_tell_low_learning_rates_apart():
    def said(*rows):
        verdicts = claims.verdicts({str(i): found(*row) for i, row in enumerate(rows)})
        return [verdict.split("; ")[0] for verdict in verdicts]

    assert said((True,)) == ["x: holds"]
    assert said((False,)) == ["x: does not hold"]
    assert said((True, 0.1), (True, 0.2)) == ["x: holds (all 2 rows)"]
    assert said((True, 0.1), (False, 0.2)) == ["x: holds only at low learning rates (1 of 2 rows)"]
    assert said((False, 0.1), (True, 0.2)) == ["x: holds in 1 of 2 rows"]
    assert said((True, 0.1), (False, 0.2), (True, 0.1, 64), (True, 0.2, 64)) == [
        "x: holds only at low learning rates (3 of 4 rows)"
    ]
    assert said((True, 0.1), (False, 0.1, 64)) == ["x: holds in 1 of 2 rows"]


def test_verdicts_give_the_figures():
    rows = {"a": found(True), "b": found(False), "c": found(True, accuracy=0.81)}
    assert claims.verdicts(rows) == [
        "x: holds in 2 of 3 rows; time saved 33 to 33%, median 33; a seed never gets there in 1 of 3 rows; "
        "accuracy +0.0 to +1.0 points, median +0.0"
    ]
    assert claims.verdicts({"a": found(True)}) == ["x: holds; time saved 33%; accuracy +0.0 points"]
    assert claims.verdicts({"a": found(False)}) == [
        "x: does not hold; a seed never gets there; accuracy +0.0 points"
    ]


# What runs are watched for.


def test_a_landscape_is_the_plane_of_the_path_and_the_loss_on_it():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(50, 2)))[0].T
    centre, inside = rng.normal(size=50), rng.normal(size=(9, 2)) * [3, 1]
    path = (centre + inside @ axes).astype(np.float32)
    seen = watch.landscape(path, lambda w: float(np.sum((w - centre) ** 2)))
    assert seen["landscape_explained"].sum() == pytest.approx(1, abs=1e-5)
    points, x, y = (seen[f"landscape_{name}"] for name in ("points", "x", "y"))
    np.testing.assert_allclose(points[-1], 0, atol=1e-5)
    for a, b in ((points, path),):  # distances in the plane are those in weight space
        np.testing.assert_allclose(
            np.linalg.norm(a - a[0], axis=1), np.linalg.norm(b - b[0], axis=1), rtol=1e-4
        )
    assert (x[0] < points[:, 0].min()) & (x[-1] > points[:, 0].max())
    # The loss is the squared distance to the centre, which lies in the plane.
    i, j = np.unravel_index(seen["landscape_loss"].argmin(), seen["landscape_loss"].shape)
    grid = np.stack(np.meshgrid(x, y), -1)
    away = seen["landscape_loss"] - seen["landscape_loss"][i, j]
    assert away.max() > 0
    np.testing.assert_allclose(np.diff(seen["landscape_loss"], 2, 0), 2 * (y[1] - y[0]) ** 2, rtol=1e-2)
    assert grid.shape[:2] == seen["landscape_loss"].shape


def test_a_path_is_laid_into_another_runs_plane():
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(20_000, 3)))[0].T
    centre = rng.normal(size=20_000)
    inside = {"one": rng.normal(size=(9, 3)) * [3, 1, 0], "other": rng.normal(size=(12, 3)) * [3, 1, 0.5]}
    paths = {name: (centre + points @ axes).astype(np.float32) for name, points in inside.items()}
    one, other = (
        {**watch.landscape(path, lambda w: 1.0), "path_sketch": watch.sketch(path)} for path in paths.values()
    )
    laid = watch.in_plane_of(one, other)
    # Exactly, with the weights at hand: the plane's directions are sums of the points.
    away = paths["one"] - paths["one"][-1]
    exact = (paths["other"] - paths["one"][-1]) @ (one["path_axes"] @ away).T
    lengths = np.linalg.norm(exact, axis=1)
    assert np.linalg.norm(laid - exact, axis=1).max() < 0.1 * lengths.max()
    assert np.linalg.norm(watch.in_plane_of(one, one) - one["landscape_points"], axis=1).max() < 0.1 * 6


def test_a_run_that_diverged_is_shown_up_to_there():
    arrays = {}
    weights = [{"w": jnp.array([x, x**2, 1.0])} for x in (0.0, 1.0, 2.0, np.nan)]
    watched = watch.Watch(("landscape",), 3, weights[0], arrays)
    report = pdt_optax.pdt(optax.sgd(0.1)).end_epoch(
        weights[0], pdt_optax.pdt(optax.sgd(0.1)).init(weights[0])
    )[2]
    for epoch, w in enumerate(weights[1:], start=1):
        watched.after_end(epoch, watched.before_end(w), w, report)
    watched.finish(weights[-1], lambda w: float(jnp.sum(w["w"] ** 2)))
    assert arrays["landscape_points"].shape == (3, 2)
    assert not arrays["landscape_jumped"].any()
    assert np.isfinite(arrays["landscape_loss"]).all()


def test_a_band_keeps_shares_and_their_places():
    cells = watch.BAND[0] * watch.BAND[1]
    mask = np.zeros(4 * cells, bool)
    mask[: 2 * cells : 4] = True
    band = watch._band(mask).ravel()
    np.testing.assert_array_equal(band[: cells // 2], 64)  # a quarter
    np.testing.assert_array_equal(band[cells // 2 :], 0)
    small = watch._band(np.array([True, False])).ravel()
    np.testing.assert_array_equal(small, np.repeat([255, 0], cells // 2))


def test_predictions_pause_while_values_rise():
    tx = pdt_optax.pdt(optax.sgd(0.1), window=2, start=2, schedule=rules.while_falling())
    params = jnp.ones(3)
    state = tx.init(params)
    predicted = []
    for value in (9, 8, 7, 6, 5, 6, 7, 8, 7, 6, 5):
        updates, state = tx.update(params, state, params)
        params, state, report = tx.end_epoch(optax.apply_updates(params, updates), state, value=value)
        predicted.append(bool(report.predicted))
    assert predicted == [False, False, True, False, True, False, False, False, True, False, True]


def test_operations_of_a_step_and_a_boundary():
    setup = setups.setups("smoke")["fcnet-2"]
    plain, pdt = (trainer.operations(setup.config(preset(rule), 0)) for rule in (BASELINE, "released"))
    assert plain["boundary"] == 0
    assert pdt["step"] == pytest.approx(plain["step"], rel=1e-3)
    weights = 192 * 32 + 32 + 32 * 10 + 10
    # Forward and both gradients, but that of the images, two operations for each weight and image.
    assert plain["step"] == pytest.approx(32 * 2 * (2 * 192 * 32 + 3 * 32 * 10), rel=0.3)
    # Inner products of five differences and as many passes to predict: tens of operations a weight.
    assert 20 * weights < pdt["boundary"] < 300 * weights


def test_batches_of_one_class_reach_the_steps(monkeypatch):
    setup = setups.setups("smoke")["alexnet-classes"]
    workload = setup.workload
    order = workload.order(workload.load().train.targets, jax.random.key(0))
    assert all(len(set(workload.load().train.targets[np.asarray(batch)])) == 1 for batch in order)
    iid = setups.setups("smoke")["alexnet-iid"].workload
    assert dataclasses.replace(workload, scheme="shuffled") == iid


@pytest.mark.slow  # `make smoke` trains it, too
def test_simsiam_is_trained_on_its_own_loss_and_probed():
    setup = setups.setups("smoke")["simsiam"]._replace(epochs=3)
    epochs = list(trainer.train(setup.config(Arm(BASELINE), 0), setup.workload.load()))
    losses = [e["train_loss"] for e in epochs]
    assert -1 <= losses[-1] < losses[0] <= 1
    assert epochs[-1]["validation_accuracy"] > 0.3  # of ten digits, from their features


# End to end.


def cells(table):
    return [
        [c.strip() for c in line.strip("|").split("|")] for line in table.splitlines() if line[:2] == "| "
    ]


def test_views_are_trained_once_drawn_and_put_on_a_page(tmp_path, capsys):
    arguments = ["fig4", "fig7", "fig9", "fig11", "fig12"]
    arguments += ["--scale", "smoke", "--jobs", "0", "--out", str(tmp_path), "--save-every", "0"]
    assert run.main(arguments) == 0
    capsys.readouterr()
    folder = tmp_path / "smoke"

    # The table says what the records say.
    setup = setups.setups("smoke")["alexnet-sgd-0.05"]
    place = folder / "records" / "alexnet-sgd-0.05"
    watched = setup.config(preset("released"), SEEDS[0])
    record, base = (records.read(place, c) for c in (watched, setup.config(Arm(BASELINE), SEEDS[0])))
    (line,) = (
        row
        for row in cells((folder / "fig4" / "table.md").read_text())
        if row[:3] == ["AlexNet", "here", "released"]
    )
    assert line[3] == "1"
    assert line[4] == f"{record.epochs[-1]['validation_accuracy']:.4f}"
    assert line[5] == f"{min(e['train_loss'] for e in record.epochs):.2g}"
    best = min(e["train_loss"] for e in base.epochs)
    reached = [e["epoch"] for e in record.epochs if e["train_loss"] <= best]
    assert line[6] == (f"{reached[0]:.1f}" if reached else "never")
    assert "holds: the same steps" in (folder / "fig7" / "table.md").read_text()

    # Shares and operations of a watched run.
    (jump,) = (e for e in record.epochs if e["predicted"])
    assert set(record.about["flops"]) == {"step", "boundary"}
    assert list(jump["shares"]) == [f"{layer}/{kind}" for layer in
        ("conv1", "conv2", "conv3", "conv4", "conv5", "fc1", "fc2", "fc3") for kind in ("bias", "kernel")]  # fmt: skip
    arrays = records.arrays(place, watched)
    assert arrays["mask"].shape == (16, *watch.BAND)
    for name, band in zip(arrays["mask_names"], arrays["mask"], strict=True):
        if name == "fc1/kernel":
            assert band.mean() / 255 == pytest.approx(jump["shares"][str(name)], abs=0.01)

    # A page that needs nothing else, and all of whose pictures are there.
    page = (folder / "index.html").read_text()
    assert not re.search(r"https?://|<script|<link", page)
    assert all((folder / picture).exists() for picture in re.findall(r'src="([^"]*)"', page))
    assert page.count("<section") == 5
    assert all(
        f"{name}: {VIEWS[name].title}</h2>" in page for name in ("fig4", "fig7", "fig9", "fig11", "fig12")
    )

    before = {p: p.read_bytes() for p in (folder / "records").rglob("*.jsonl")}
    assert run.main([*arguments, "--rule", "released"]) == 0
    assert f"{len(before)} runs, {len(before)} already recorded" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in (folder / "records").rglob("*.jsonl")} == before

    # Packed, they are the same runs and the same page.
    assert run.main(["pack", "--out", str(tmp_path)]) == 0
    assert {p.name for p in (folder / "records").iterdir()} == {f"{place.name}.jsonl", f"{place.name}.npz"}
    again = records.read(place, watched)
    assert (again.epochs, again.about, again.fields) == (record.epochs, record.about, record.fields)
    packed = records.arrays(place, watched)
    assert packed.keys() == arrays.keys()
    assert all((packed[name] == arrays[name]).all() for name in arrays)
    assert run.main([*arguments, "--page"]) == 0
    assert (folder / "index.html").read_text() == page


def test_any_logger_that_takes_a_dict_gets_the_scalars(tmp_path):
    logged = []
    loggers.log_run(lambda values, step: logged.append((step, values)), run_of("x", [3, 2]))
    assert [step for step, _ in logged] == [1, 2]
    assert logged[1][1]["train_loss"] == 2
    assert logged[1][1]["predicted"] == 0
    pytest.importorskip("tensorboardX")
    with loggers.tensorboard(tmp_path) as log:
        loggers.log_run(log, run_of("x", [3, 2]))
    assert next(tmp_path.glob("events.*")).stat().st_size > 100
