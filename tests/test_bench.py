"""The benchmark: workloads, arms, resuming, its arithmetic on hand-made records, its command line."""

import dataclasses
import functools
import json
import math
import multiprocessing
import os
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx

import pdt_optax
from experiments import run
from experiments.data import text
from experiments.training import pool, records, trainer
from experiments.training.arms import (
    BASELINE,
    Arm,
    Ema,
    Lawa,
    Lookahead,
    Predictive,
    Recipe,
    ScheduleFree,
    preset,
)
from experiments.training.devices import ONE_DEVICE
from experiments.training.optimizers import Constant, Cosine
from experiments.training.trainer import Config
from experiments.training.workloads import Images
from experiments.tuned import setups, tables
from experiments.tuned import views as tuned
from experiments.tuned.setups import PAIRS, Pair

TINY_SIZES = {
    "mlp": {"hidden": (16,)},
    "cnn": {"channels": (4, 8)},
    "vit": {"patch": 14, "features": 8, "depth": 1, "heads": 2},
    "resnet": {"channels": (4, 8)},
    "char_lm": {"features": 16, "depth": 1, "heads": 2},
}

# Digits stand in for Fashion-MNIST, which not every machine has.
TINY = Images(
    workload="mlp",
    data="digits",
    examples=256,
    validation_examples=100,
    batch_size=64,
    size=(("pixels", 64), ("hidden", (16,))),
)


def tiny(pair: Pair):
    """A pair's workload at a size for tests, on data that every machine has."""
    workload = pair.workload
    changes: dict[str, Any] = {"examples": 512, "validation_examples": 100, "batch_size": 32}
    size = dict(workload.size) | TINY_SIZES[workload.workload]
    if isinstance(workload, Images):
        changes["data"] = "digits"
        image = {"pixels": 64, "image_size": 8, "patch": 4 if workload.workload == "vit" else 2}
        size |= {name: value for name, value in image.items() if name in size}
    if workload.steps is not None:
        changes["steps"] = 16
    return dataclasses.replace(workload, **changes, size=tuple(size.items()))


def config(arm: Arm | None = None, epochs: int = 3, seed: int = 0, optimizer: str = "momentum") -> Config:
    return Config(TINY, arm or Arm(BASELINE), optimizer, 0.1, "cosine", epochs, seed)


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_learns_at_a_tiny_size(name):
    pair = PAIRS[name]
    workload = tiny(pair)
    rate = 5e-2 if pair.optimizer in ("sgd", "momentum") else 5e-3
    run = Config(workload, Arm(BASELINE), pair.optimizer, rate, "constant", 3, 0)
    epochs = list(trainer.train(run, workload.load()))
    assert epochs[-1]["train_loss"] < 0.95 * epochs[0]["train_loss"]
    assert epochs[-1]["validation_loss"] < epochs[0]["validation_loss"]
    assert epochs[-1]["probe_loss"] < epochs[0]["probe_loss"]
    chance = 1 / 96 if name.startswith("char_lm") else 1 / 10
    assert epochs[-1]["validation_accuracy"] > 1.5 * chance


def test_batch_norm_statistics_are_those_of_the_training_batches():
    """One step moves each mean a tenth of the way, 1 - 0.9, to the mean of the batch."""
    workload = tiny(PAIRS["resnet-adamw"])
    run = Config(workload, Arm(BASELINE), "adamw", 1e-3, "constant", 1, 0)
    program = trainer._program(run)
    state = program.init(jax.random.key(0))
    inputs, targets = map(jnp.asarray, workload.load().train)
    index = jnp.arange(32)
    model = workload.model(nnx.Rngs(jax.random.key(0)))
    expected = 0.1 * model.stem(workload.prepare(inputs[index])).mean((0, 1, 2))
    after = program.step(state, inputs, targets, index, jax.random.key(1))
    np.testing.assert_allclose(after.rest["norm"]["mean"][...], expected, rtol=1e-4, atol=1e-6)
    # Evaluation uses them: other statistics give another loss.
    fresh = jax.tree.map(jnp.zeros_like, after.rest)
    used = program.evaluate(after.params, after.rest, inputs, targets)
    assert float(used[0]) != float(program.evaluate(after.params, fresh, inputs, targets)[0])


def test_statistics_refreshed_after_a_jump_are_those_of_its_weights():
    """One pass moves each mean a tenth of the way to that of the batch, and nothing else changes."""
    workload = tiny(PAIRS["resnet-adamw"])
    arms = setups.STATISTICS
    kept, refreshed = (
        list(trainer.train(Config(workload, arm, "adamw", 1e-3, "constant", 7, 0), workload.load()))
        for arm in arms
    )
    assert [e["train_loss"] for e in kept] == [e["train_loss"] for e in refreshed]
    differs = [a["validation_loss"] != b["validation_loss"] for a, b in zip(kept, refreshed, strict=True)]
    assert differs == [e["predicted"] or i > 5 for i, e in enumerate(kept)]
    assert any(differs)

    program = trainer._program(Config(workload, arms[1], "adamw", 1e-3, "constant", 1, 0))
    state = program.init(jax.random.key(0))
    inputs, targets = map(jnp.asarray, workload.load().train)
    index = jnp.arange(32)
    model = workload.model(nnx.Rngs(jax.random.key(0)))
    weights = jax.tree.map(np.asarray, state.params)
    after = program.refresh(state, inputs, targets, index, jax.random.key(1))
    expected = 0.1 * model.stem(workload.prepare(inputs[index])).mean((0, 1, 2))
    np.testing.assert_allclose(after.rest["norm"]["mean"][...], expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_equal(after.params, weights)


def test_characters_are_windows_whose_targets_are_one_ahead():
    dataset = text.load(64)
    for split in dataset:
        np.testing.assert_array_equal(split.inputs[:, 1:], split.targets[:, :-1])
        np.testing.assert_array_equal(split.inputs[1:, 0], split.targets[:-1, -1])
        assert split.inputs.max() < len(text.ALPHABET)
    assert 280_000 < dataset.train.inputs.size < 350_000
    assert "".join(text.ALPHABET[i] for i in text.encode("é\tdef f():\n")) == "def f():\n"
    windows = [PAIRS["char_lm-adamw"].workload.examples, PAIRS["char_lm-adamw"].workload.validation_examples]
    assert [len(s.inputs) for s in PAIRS["char_lm-adamw"].workload.load()] == windows


def quadratic_path(arm: Arm, steps: int, steps_per_epoch: int):
    """Weights after each step of an arm on a quadratic, and the weights that it evaluates after each epoch."""
    method = arm.method(Recipe("sgd", Constant(0.1, steps), steps // steps_per_epoch, steps_per_epoch))
    params = jnp.array([1.0, -2.0])
    state = method.tx.init(params)
    kept = method.begin(params, state) if method.begin else None
    path, evaluated = [], []
    for i in range(steps):
        updates, state = method.tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
        if (i + 1) % steps_per_epoch == 0:
            if method.end_epoch is not None:
                params, state, kept, _ = method.end_epoch(params, state, kept, jnp.zeros(()))
            if method.evaluated is not None:
                evaluated.append(np.asarray(method.evaluated(params, state, kept)))
        path.append(np.asarray(params))
    return np.array(path), np.array(evaluated)


def test_averages_are_evaluated_and_leave_training_alone():
    plain, _ = quadratic_path(Arm(BASELINE), 12, 2)
    path, averages = quadratic_path(Ema("ema", memory=2.0), 12, 2)
    np.testing.assert_array_equal(path, plain)
    np.testing.assert_allclose(averages[1], plain[:4].mean(0), rtol=1e-6)  # a plain mean while it fills
    mean = plain[:4].mean(0)
    for weights in plain[4:]:
        mean = mean + (weights - mean) / 4
    np.testing.assert_allclose(averages[-1], mean, rtol=1e-6)

    path, averages = quadratic_path(Lawa("lawa", snapshots=3), 12, 2)
    np.testing.assert_array_equal(path, plain)
    ends = plain[1::2]
    np.testing.assert_allclose(averages[1], ends[:2].mean(0), rtol=1e-6)
    np.testing.assert_allclose(averages[-1], ends[-3:].mean(0), rtol=1e-6)


def test_lookahead_is_optax_lookahead():
    path, evaluated = quadratic_path(Lookahead("lookahead"), 10, 5)
    tx: Any = optax.lookahead(optax.sgd(0.1), 5, 0.5)
    pair: Any = optax.LookaheadParams.init_synced(jnp.array([1.0, -2.0]))
    state = tx.init(pair)
    for weights in path:
        updates, state = tx.update(pair.fast, state, pair)
        pair = optax.apply_updates(pair, updates)
        np.testing.assert_allclose(pair.fast, weights, rtol=1e-6)
    np.testing.assert_allclose(evaluated[-1], pair.slow, rtol=1e-6)


def test_schedule_free_follows_a_constant_rate_without_momentum():
    method = ScheduleFree("schedule-free", rate=2.0).method(Recipe("momentum", Cosine(0.1, 100), 10, 10))
    assert float(method.schedule(99)) == pytest.approx(0.2)
    state = method.tx.init(jnp.ones(2))
    momentum = [x for x in jax.tree.leaves(state) if jnp.shape(x) == (2,)]
    assert len(momentum) == 1  # only the fast weights
    _, evaluated = quadratic_path(ScheduleFree("schedule-free"), 40, 4)
    assert np.abs(evaluated[-1]).max() < 0.3


@pytest.mark.parametrize("arm", [a for a in setups.FINAL if a.name != BASELINE], ids=lambda a: a.name)
def test_every_final_arm_trains(arm):
    epochs = list(trainer.train(config(arm, epochs=7), TINY.load()))
    assert epochs[-1]["validation_loss"] < 0.95 * epochs[0]["validation_loss"]
    assert any(e["predicted"] for e in epochs) == isinstance(arm, Predictive)


def aware(recipe: Recipe, factor: int = 10):
    return {**pdt_optax.presets.recommended, "horizon": 1 + int(factor * recipe.schedule(0))}


def test_an_arm_may_depend_on_the_recipe_and_the_key_hashes_what_it_means():
    run = config(Predictive("aware", aware))
    assert run.settings["horizon"] == 2
    assert run.key == config(Predictive("aware", aware)).key
    assert run.key != config(Predictive("aware", tuple(pdt_optax.presets.recommended.items()))).key
    assert config(Ema("ema")).key != config(Ema("ema", memory=2.0)).key
    assert "0x" not in repr([config(arm).settings for arm in setups.ARMS.values()])


def test_seeds_share_compiled_code_and_differ():
    losses = [[e["train_loss"] for e in trainer.train(config(seed=seed), TINY.load())] for seed in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1]
    program: Any = trainer._program(config(seed=3).program, ONE_DEVICE)
    assert (program.step._cache_size(), program.evaluate._cache_size()) == (1, 2)  # validation, probe


# Hand-made records.


def run_of(losses, accuracies, seed=0, rule=BASELINE, seconds=1.0, jumps=()):
    epochs = [
        {
            "epoch": i + 1,
            "train_loss": loss,
            "probe_loss": loss,
            "validation_accuracy": accuracy,
            "train_seconds": seconds,
            "pdt_seconds": 0.0,
            "predicted": i in jumps,
        }
        for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    return records.Run({"rule": rule, "seed": seed, "epochs": len(losses)}, epochs)


def test_paired_interval_is_students():
    values = [0.1, 0.3, -0.2, 0.4, 0.2]
    mean, half = tables.paired_interval(values)
    low, high = scipy.stats.t.interval(0.95, 4, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert tables.paired_interval([0.5]) == (0.5, math.inf)


def test_ratios_are_to_the_baselines_first_crossing_and_one_miss_is_infinite():
    baselines = [run_of([3, 2, 1, 2], [0.2, 0.8, 0.7, 0.7], seed) for seed in (0, 1)]
    arm = [run_of([1, 1, 1, 1], [0.1, 0.1, 0.1, 0.9], seed, "x", seconds=2.0) for seed in (0, 1)]
    s = tables.score({1.0: arm}, baselines)
    assert s is not None
    assert (s.seeds, s.loss_epochs, s.loss_seconds) == (2, 1, 2)
    assert s.loss_epochs_ratio == pytest.approx(1 / 3)
    assert s.loss_seconds_ratio == pytest.approx(2 / 3)
    assert (s.accuracy_epochs_ratio, s.accuracy_seconds_ratio) == (2, 4)
    assert s.gain == pytest.approx(0.2)
    assert s.gain_interval == pytest.approx(0, abs=1e-12)
    assert math.isnan(s.budget)

    missed = [arm[0], run_of([2, 2, 2, 2], [0.9] * 4, 1, "x")]
    s = tables.score({1.0: missed}, baselines)
    assert s is not None
    assert s.loss_epochs == s.loss_seconds_ratio == math.inf
    assert s.accuracy_epochs == 2.5
    assert tables.score({1.0: [run_of([1], [1], seed=7)]}, baselines) is None


def test_the_rise_after_a_jump_is_the_greatest_and_the_dip_at_one_the_mean():
    run = run_of([4, 2, 3, 1, 2, 8], [0.1, 0.5, 0.4, 0.7, 0.4, 0.9], 0, "x", jumps=(2, 4))
    s = tables.score({1.0: [run]}, [run_of([4, 3], [0.1, 0.2])])
    assert s is not None
    assert s.rise == 4  # 8 / 2, not 1 / 3
    assert s.dip == pytest.approx(-0.2)  # of 0.5 to 0.4 and 0.7 to 0.4
    s = tables.score({1.0: [run_of([4, 3], [0.1, 0.2])]}, [run_of([4, 3], [0.1, 0.2])])
    assert s is not None
    assert math.isnan(s.rise)
    assert math.isnan(s.dip)


def test_the_equal_quality_budget_takes_loss_and_accuracy_over_all_seeds():
    baselines = [run_of([2, 1.0], [0.5, 0.800], 0), run_of([2, 2.0], [0.5, 0.900], 1)]

    def shorter(losses, accuracies):
        return [
            run_of([loss], [a], seed) for seed, (loss, a) in enumerate(zip(losses, accuracies, strict=True))
        ]

    good = shorter([1.5, 1.5], [0.799, 0.899])  # mean loss equal, 0.1 points lost
    high_loss = shorter([1.5, 1.6], [0.9, 0.9])
    low_accuracy = shorter([1.0, 1.0], [0.798, 0.899])

    def budget(runs):
        return tables.equal_quality_budget(runs, baselines)

    assert budget({1.0: baselines}) == 1.0
    assert budget({0.4: high_loss, 0.5: good, 0.75: low_accuracy, 1.0: baselines}) == 0.5
    assert budget({0.4: low_accuracy, 1.0: shorter([3, 3], [0.9, 0.9])}) == math.inf
    assert budget({0.4: shorter([math.nan, 0], [1, 1]), 1.0: baselines}) == 1.0


def test_divergence_is_counted():
    baseline = run_of([2, 1], [0, 0])
    for last, expected in ((2.0, False), (2.01, True), (math.nan, True), (math.inf, True)):
        assert tables.diverged(run_of([1, last], [0, 0]), baseline) == expected


def test_the_summary_is_the_median_and_the_worst_pair():
    baseline = [run_of([2, 1], [0.5, 0.9])]
    fast, slow = [run_of([1, 1], [0.9, 0.95], rule="x")], [run_of([2, 2], [0.5, 0.8], rule="x")]
    pairs = {
        name: {BASELINE: {1.0: baseline}, "x": {1.0: runs}}
        for name, runs in (("a", fast), ("b", fast), ("c", slow))
    }
    table = tables.scores(pairs)
    median, worst = tables.summary_rows(table)[2:]
    assert median[:4] == ("x", "3", "median", "50%")
    assert worst[2:4] == ("worst", "never")
    assert (median[7], worst[7]) == ("+5.00", "-10.00")
    assert list(tables.all_tables(table)) == ["Over all pairs", "a", "b", "c"]
    assert "never" in tables.all_tables(table)["c"][2]


def test_the_grid_grows_until_the_best_rate_lies_inside():
    assert tuned.wider_grid([1, 2, 4], 2) == [1, 2, 4]
    assert tuned.wider_grid([1, 2, 4], 4) == [1, 2, 4, 8]
    assert tuned.wider_grid([1, 2, 4], 1) == [0.5, 1, 2, 4]


# The command line, in this process and at a tiny size.


@pytest.fixture
def tiny_pair(monkeypatch):
    pair = Pair(TINY, "sgd", (0.4, 0.8), seconds=1, epochs=5)
    monkeypatch.setattr(setups, "SHARES", (0.6,))
    monkeypatch.setattr(setups, "PAIRS", {pair.name: pair})
    return pair


def run_view(what, folder, *arguments):
    return run.main([what, "--workloads", "mlp", "--jobs", "0", "--out", str(folder), *arguments])


def test_tune_then_a_view_and_every_run_is_trained_once(tiny_pair, tmp_path, monkeypatch, capsys):
    trained = []
    train = records.train

    def counted(run, *rest):
        trained.append(run)
        return train(run, *rest)

    monkeypatch.setattr(records, "train", counted)
    folder = tmp_path / "tuned"
    assert run_view("tune", tmp_path, "--seeds", "1") == 0
    rate = json.loads((folder / "rates.json").read_text())["mlp-sgd"]
    rates = [float(rate) for rate in rate["mean_final_train_loss"]]
    assert min(rates) < rate["learning_rate"] < max(rates)
    assert max(rates) > 0.8  # this toy wants more: the grid was extended
    assert rate["runs"] == len(rates) == len(trained)

    final = (tmp_path, "--seeds", "0", "--arms", "recommended", "ema")
    assert run_view("tuned", *final) == 0
    # Three arms at full length, two of them on a shorter schedule.
    assert len(trained) - len(rates) == 3 + 2
    assert len(set(trained)) == len(trained)
    assert {run.epochs for run in trained} == {3, 5}
    assert {p.name for p in folder.iterdir()} == {
        "records", "rates.json", "table.md", "summary.png", "mlp-sgd.png", "index.html"
    }  # fmt: skip
    table = (folder / "table.md").read_text()
    assert "| ema | 1 |" in table
    count = len(trained)
    capsys.readouterr()
    assert run_view("tuned", *final) == 0
    assert "5 runs, 5 already recorded" in capsys.readouterr().out
    assert run_view("tuned", *final, "--page") == 0
    assert len(trained) == count
    assert (folder / "table.md").read_text() == table

    # Packed, they are the same runs.
    assert run.main(["pack", "--out", str(tmp_path)]) == 0
    assert f"{count} runs packed" in capsys.readouterr().out
    assert [p.name for p in (folder / "records").iterdir()] == ["mlp-sgd.jsonl"]
    assert run_view("tune", tmp_path, "--seeds", "1") == run_view("tuned", *final) == 0
    assert len(trained) == count
    assert (folder / "table.md").read_text() == table


def test_ctrl_c_keeps_finished_runs(tiny_pair, tmp_path, monkeypatch, capsys):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "rates.json").write_text(json.dumps({"mlp-sgd": {"learning_rate": 0.1}}))
    stopping = True

    def train(run, *_):
        for epoch in range(1, run.epochs + 1):
            if stopping and run.seed == 2 and epoch == 3:
                raise KeyboardInterrupt
            yield {"epoch": epoch} | dict.fromkeys((*records.NUMBERS, "probe_loss"), 0.5)

    monkeypatch.setattr(records, "train", train)
    arguments = ("screen", tmp_path, "--arms", BASELINE, "--seeds", "1", "2")
    assert run_view(*arguments) == 130
    stopping = False
    capsys.readouterr()
    assert run_view(*arguments) == 0
    assert "2 runs, 1 already recorded" in capsys.readouterr().out
    assert (tmp_path / "tuned" / "screen" / "table.md").exists()


@pytest.mark.slow
def test_workers_train_and_write_records(tmp_path):
    # A partial is not equal to its copy in another process; what comes back is the caller's task.
    arms = (Arm(BASELINE), Predictive("function", functools.partial(aware, factor=10)))
    tasks = [pool.Task(tmp_path, config(arm, epochs=1, seed=seed)) for arm in arms for seed in (1, 2)]
    epochs = []
    done = pool.train_all(tasks, 2, trained=lambda task, epoch: epochs.append((tasks.index(task), epoch)))
    assert sorted(done, key=tasks.index) == tasks
    assert sorted(epochs) == [(i, 1) for i in range(len(tasks))]
    assert all(records.read(tmp_path, task.config).complete for task in tasks)


def dying(recipe: Recipe):
    del recipe
    if multiprocessing.parent_process():
        os._exit(1)
    return pdt_optax.presets.recommended


@pytest.mark.slow
def test_a_worker_that_ends_early_is_reported(tmp_path):
    """By what it was refused, or by its death."""
    (tmp_path / "file").write_text("")
    refused = pool.Task(tmp_path / "file", config(epochs=1))
    with pytest.raises(pool.WorkerError, match=r"File exists: .*finished runs are kept"):
        list(pool.train_all([refused], 1))
    dead = pool.Task(tmp_path, config(Predictive("dying", dying), epochs=1))
    with pytest.raises(pool.WorkerError, match=r"or was killed\); finished runs are kept"):
        list(pool.train_all([dead], 1))


def test_the_list_names_pairs_and_arms(capsys):
    assert run.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*PAIRS, "random-mask", "agree-h3", "runaway"))


def test_presets_are_arms():
    assert preset("released").settings(config().recipe) == dict(pdt_optax.presets.released)
