"""The benchmark: workloads, arms, resuming, its arithmetic on hand-made records, its command line."""

import dataclasses
import functools
import json
import math
import multiprocessing
import os
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pdt_optax
from experiments import run
from experiments.data import text
from experiments.training import pool, records, trainer
from experiments.training.arms import (
    BASELINE,
    AdEMAMix,
    Arm,
    Ema,
    Lawa,
    Lookahead,
    Predictive,
    PredictiveAround,
    Recipe,
    ScheduleFree,
    Shaped,
    Snoo,
    preset,
)
from experiments.training.devices import ONE_DEVICE
from experiments.training.optimizers import OPTIMIZERS, Constant, Cosine, WarmupCosine
from experiments.training.trainer import Config
from experiments.training.workloads import Images
from experiments.tuned import setups, tables
from experiments.tuned import views as tuned
from experiments.tuned.setups import PAIRS, Pair
from experiments.views import report

TINY_SIZES = {
    "mlp": {"hidden": (16,)},
    "cnn": {"channels": (4, 8)},
    "vit": {"patch": 14, "features": 8, "depth": 1, "heads": 2},
    "resnet": {"channels": (4, 8)},
    "char_lm": {"features": 16, "depth": 1, "heads": 2},
    "char_gru": {"features": 16},
    "autoencoder": {"hidden": 32, "code": 8},
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
    chance = 1 / 96 if name.startswith("char_") else 1 / 10
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
    assert [len(s.inputs) for s in PAIRS["char_gru-clipped_adam"].workload.load()] == [60_000, 256]
    assert set(text.TRAIN) < set(text.LONG)
    assert not set(text.LONG) & set(text.VALIDATION)
    assert "".join(text.ALPHABET[i] for i in text.encode("é\tdef f():\n")) == "def f():\n"
    windows = [PAIRS["char_lm-adamw"].workload.examples, PAIRS["char_lm-adamw"].workload.validation_examples]
    assert [len(s.inputs) for s in PAIRS["char_lm-adamw"].workload.load()] == windows


def test_the_recurrent_net_is_the_equations_of_a_gated_recurrent_unit():
    workload: Any = dataclasses.replace(
        PAIRS["char_gru-clipped_adam"].workload, length=5, size=(("features", 3),)
    )
    model = workload.model(nnx.Rngs(0))
    tokens = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    names = ("embed", "inputs", "recurrent", "out")
    of: dict[str, Any] = {
        name: jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(getattr(model, name)))) for name in names
    }

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    state, expected = np.zeros((2, 3)), []
    for x in of["embed"]["embedding"][tokens].swapaxes(0, 1):
        r, z, n = np.split(x @ of["inputs"]["kernel"] + of["inputs"]["bias"], 3, axis=1)
        r_h, z_h, n_h = np.split(state @ of["recurrent"]["kernel"] + of["recurrent"]["bias"], 3, axis=1)
        r, z = sigmoid(r + r_h), sigmoid(z + z_h)
        state = z * state + (1 - z) * np.tanh(n + r * n_h)
        expected.append(state @ of["out"]["kernel"] + of["out"]["bias"])
    np.testing.assert_allclose(model(jnp.asarray(tokens)), np.stack(expected, 1), rtol=1e-5, atol=1e-5)


def test_the_autoencoders_score_is_the_explained_share_of_each_images_variance():
    workload = dataclasses.replace(PAIRS["autoencoder-adam"].workload)
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    images[3] = 0  # as padding is
    pixels = (images.reshape(4, -1) / 255 - 0.5) / 0.5
    # Half of the way from the mean to the pixels: a quarter of the variance is left.
    near = pixels.mean(1, keepdims=True) / 2 + pixels / 2
    far = np.full_like(pixels, 9.0)
    for said, score in ((near, 0.75), (far, 0.0)):
        losses, scores = workload.losses(
            lambda x, key, said=said: jnp.asarray(said, x.dtype), jnp.asarray(images), jnp.zeros(4, int), None
        )
        np.testing.assert_allclose(losses, np.square(said - pixels).mean(1), rtol=1e-5)
        np.testing.assert_allclose(scores, [score] * 3 + [0], atol=1e-5)


def test_warm_up_takes_a_twentieth_of_the_steps_and_the_cosine_ends_at_zero():
    for steps in (100, 3):
        schedule = WarmupCosine(0.2, steps)
        warmup = max(1, steps // 20)
        rates = [float(schedule(i)) for i in range(steps + 1)]
        assert rates[0] == 0
        assert rates[warmup] == max(rates) == pytest.approx(0.2)
        assert rates[steps] == pytest.approx(0, abs=1e-9)
        middle = (warmup + steps) // 2
        expected = 0.1 * (1 + math.cos(math.pi * (middle - warmup) / (steps - warmup)))
        assert rates[middle] == pytest.approx(expected, rel=1e-5)


def test_clipping_comes_before_adam():
    """Gradients of different length and equal direction give equal steps, once both are clipped; short ones are kept."""
    tx = OPTIMIZERS["clipped_adam"](0.1, True)
    params = jnp.zeros(2)
    states = []
    for scale in (1.0, 3.0, 0.1):
        _, state = tx.update(scale * jnp.array([3.0, 4.0]), tx.init(params), params)
        mean: Any = optax.tree.get(state, "mu")
        states.append(np.asarray(mean))
    np.testing.assert_allclose(states[0], [0.06, 0.08], rtol=1e-5)
    np.testing.assert_allclose(states[1], states[0], rtol=1e-5)
    np.testing.assert_allclose(states[2], [0.03, 0.04], rtol=1e-5)


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


def test_ademamix_is_its_equations_with_both_coefficients_warmed_up():
    """Pagliardini et al., Alg. 1 and their schedules, in float64; one weight decay, as optax.adamw's."""
    steps, rate, alpha, decay, eps = 20, 0.01, 5.0, 1e-4, 1e-8
    method = AdEMAMix("ademamix", memory=0.25).method(Recipe("adamw", Constant(rate, steps), 4, 5))
    start = np.array([1.0, -2.0, 0.5])
    grads = np.random.default_rng(0).normal(size=(steps, 3))
    params: Any = jnp.asarray(start, jnp.float32)
    state = method.tx.init(params)

    w, m1, m2, v = start, np.zeros(3), np.zeros(3), np.zeros(3)
    b1, b2, b3_end = 0.9, 0.999, 1 - 1 / 5
    b3_end = max(b1, b3_end)
    for t, g in enumerate(grads):
        updates, state = method.tx.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        share = t / steps
        b3 = math.exp(
            math.log(b1) * math.log(b3_end) / ((1 - share) * math.log(b3_end) + share * math.log(b1))
        )
        m1, m2, v = b1 * m1 + (1 - b1) * g, b3 * m2 + (1 - b3) * g, b2 * v + (1 - b2) * g**2
        mean, square = m1 / (1 - b1 ** (t + 1)), v / (1 - b2 ** (t + 1))
        w = w - rate * ((mean + share * alpha * m2) / (np.sqrt(square) + eps) + decay * w)
        np.testing.assert_allclose(params, w, rtol=2e-5, atol=2e-6)


def test_ademamix_looks_back_a_tenth_of_the_run_at_its_end_and_takes_adamws_place_alone():
    method = AdEMAMix("ademamix").method(Recipe("adamw", Constant(0.01, 1000), 10, 100))
    state: Any = method.tx.init(jnp.zeros(1))
    update = jax.jit(method.tx.update)
    slow = []
    for t in range(1001):
        before, g = float(state[0].m2[0]), (-1.0) ** t
        _, state = update(jnp.full(1, g), state, jnp.zeros(1))
        slow.append((float(state[0].m2[0]) - g) / (before - g))  # b3
    assert slow[0] == pytest.approx(0.9, rel=1e-3)
    assert slow[1000] == pytest.approx(0.99, rel=1e-3)
    # The half-life is linear in between.
    half = [math.log(0.5) / math.log(slow[t]) for t in (0, 500, 1000)]
    assert half[1] == pytest.approx((half[0] + half[2]) / 2, rel=0.05)
    with pytest.raises(ValueError, match="takes the place of AdamW"):
        AdEMAMix("ademamix").method(Recipe("sgd", Constant(0.1, 10), 1, 10))


def test_snoo_is_nesterov_on_what_its_period_moved():
    arm = Snoo("snoo", period=3, rate=0.7, momentum=0.5)
    path, _ = quadratic_path(arm, 12, 4)
    fast = slow = np.array([1.0, -2.0])
    b = np.zeros(2)
    for step, weights in enumerate(path, start=1):
        fast = fast - 0.1 * fast
        if step % 3 == 0:
            g = slow - fast
            b = 0.5 * b + g
            slow = slow - 0.7 * (g + 0.5 * b)
            fast = slow
        np.testing.assert_allclose(weights, fast, rtol=1e-5)
    # A unit step without momentum is the optimizer alone.
    plain, _ = quadratic_path(Arm(BASELINE), 12, 4)
    same, _ = quadratic_path(Snoo("snoo", period=3, rate=1.0, momentum=0.0), 12, 4)
    np.testing.assert_allclose(same, plain, rtol=1e-6)


def test_random_order_is_the_default_but_for_the_order(monkeypatch):
    """In the order in which they came, the control's displacements are those that the default delivers."""
    recipe = Recipe("sgd", Cosine(0.2, 36), 12, 3)
    curvature = {"a": jnp.array([0.1, 0.3, 1.0]), "b": jnp.array([[0.5], [0.2]])}

    @jax.jit
    def gradient(params: Any) -> Any:
        return jax.tree.map(lambda c, w: c * (w - 1), curvature, params)

    def trained(name: str) -> Any:
        method = setups.ARMS[name].method(recipe)
        params = jax.tree.map(lambda c: 2 - 3 * c, curvature)
        state = method.tx.init(params)
        kept = None if method.begin is None else method.begin(params, state)
        update = jax.jit(method.tx.update)
        assert method.end_epoch is not None
        for _ in range(recipe.epochs):
            for _ in range(recipe.steps_per_epoch):
                updates, state = update(gradient(params), state, params)
                params = optax.apply_updates(params, updates)
            params, state, kept, _ = method.end_epoch(params, state, kept, jnp.float32(0))
        return params

    default, shuffled = trained("recommended"), trained("random-order")
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(shuffled, default, rtol=1e-3)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.linspace(0, 0.5, shape[0]))
    jax.clear_caches()
    chex.assert_trees_all_close(trained("random-order"), default, rtol=2e-5)


def test_other_shapes_of_the_schedule_keep_its_peak_and_its_warm_up():
    def rates(shape, schedule):
        found = Shaped(shape, shape).method(Recipe("sgd", schedule, 10, 10)).schedule
        return [float(found(i)) for i in range(101)]

    linear, trapezoid = (rates(shape, Cosine(0.2, 100)) for shape in ("linear", "trapezoid"))
    np.testing.assert_allclose(linear, 0.2 * (1 - np.arange(101) / 100), rtol=1e-5, atol=1e-8)
    expected = np.interp(np.arange(101), [0, 80, 100], [0.2, 0.2, 0])
    np.testing.assert_allclose(trapezoid, expected, rtol=1e-5, atol=1e-8)
    linear, trapezoid = (rates(shape, WarmupCosine(0.2, 100)) for shape in ("linear", "trapezoid"))
    np.testing.assert_allclose(
        linear, np.interp(np.arange(101), [0, 5, 100], [0, 0.2, 0]), rtol=1e-5, atol=1e-8
    )
    expected = np.interp(np.arange(101), [0, 5, 80, 100], [0, 0.2, 0.2, 0])
    np.testing.assert_allclose(trapezoid, expected, rtol=1e-5, atol=1e-8)
    # The training follows it.
    method = Shaped("linear", "linear").method(Recipe("sgd", Cosine(0.2, 10), 1, 10))
    update: Any = method.tx.update(jnp.ones(1), method.tx.init(jnp.ones(1)), jnp.ones(1))[0]
    assert float(update[0]) == pytest.approx(-0.2)


@pytest.mark.filterwarnings("ignore:`inner` keeps a slow mean of its own")
@pytest.mark.parametrize(
    "arm", [a for a in (*setups.FINAL, *setups.AROUND) if a.name != BASELINE], ids=lambda a: a.name
)
def test_every_final_arm_trains(arm):
    of = config(arm, epochs=7) if arm.fits("momentum") else config(arm, epochs=7, optimizer="adamw")
    epochs = list(trainer.train(of, TINY.load()))
    assert epochs[-1]["validation_loss"] < 0.95 * epochs[0]["validation_loss"]
    assert any(e["predicted"] for e in epochs) == isinstance(arm, (Predictive, PredictiveAround))


def aware(recipe: Recipe, factor: int = 10):
    return {**pdt_optax.presets.drift, "horizon": 1 + int(factor * recipe.schedule(0))}


def test_an_arm_may_depend_on_the_recipe_and_the_key_hashes_what_it_means():
    run = config(Predictive("aware", aware))
    assert run.settings["horizon"] == 2
    assert run.key == config(Predictive("aware", aware)).key
    assert run.key != config(Predictive("aware", tuple(pdt_optax.presets.drift.items()))).key
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


def test_ratios_are_to_the_baselines_first_crossing_and_one_miss_is_infinite():
    baselines = {1.0: [run_of([3, 2, 1, 2], [0.2, 0.8, 0.7, 0.7], seed) for seed in (0, 1)]}
    arm = [run_of([1, 1, 1, 1], [0.1, 0.1, 0.1, 0.9], seed, "x", seconds=2.0) for seed in (0, 1)]
    for slow in arm:
        for epoch in slow.epochs:
            epoch["pdt_seconds"] = 0.5
    s = tables.score({1.0: arm}, baselines)
    assert s is not None
    assert (s.seeds, s.loss_epochs, s.loss_seconds) == (2, 1, 2.5)
    assert s.loss_epochs_ratio == pytest.approx(1 / 3)
    assert s.overhead == 0.25
    assert s.loss_time_ratio == pytest.approx(1.25 / 3)
    assert (s.accuracy_epochs_ratio, s.accuracy_time_ratio) == (2, 2.5)
    assert s.gain == pytest.approx(0.2)
    assert s.gain_interval == pytest.approx(0, abs=1e-12)
    assert math.isnan(s.effective.value)  # without other lengths of the baseline's schedule

    missed = [arm[0], run_of([2, 2, 2, 2], [0.9] * 4, 1, "x")]
    s = tables.score({1.0: missed}, baselines)
    assert s is not None
    assert s.loss_epochs == s.loss_time_ratio == math.inf
    assert s.accuracy_epochs == 2.5
    assert tables.score({1.0: [run_of([1], [1], seed=7)]}, baselines) is None


def test_the_rise_after_a_jump_is_the_greatest_and_the_dip_at_one_the_mean():
    run = run_of([4, 2, 3, 1, 2, 8], [0.1, 0.5, 0.4, 0.7, 0.4, 0.9], 0, "x", jumps=(2, 4))
    s = tables.score({1.0: [run]}, {1.0: [run_of([4, 3], [0.1, 0.2])]})
    assert s is not None
    assert s.rise == 4  # 8 / 2, not 1 / 3
    assert s.dip == pytest.approx(-0.2)  # of 0.5 to 0.4 and 0.7 to 0.4
    s = tables.score({1.0: [run_of([4, 3], [0.1, 0.2])]}, {1.0: [run_of([4, 3], [0.1, 0.2])]})
    assert s is not None
    assert math.isnan(s.rise)
    assert math.isnan(s.dip)


def page_of(table: tables.Scores) -> str:
    return "\n".join(
        f"## {title}\n\n{report.markdown(lines)}" for title, lines in tables.all_tables(table).items()
    )


def test_the_summary_is_the_median_and_the_worst_pair():
    baseline = [run_of([2, 1], [0.5, 0.9])]
    fast, slow = [run_of([1, 1], [0.9, 0.95], rule="x")], [run_of([2, 2], [0.5, 0.8], rule="x")]
    pairs = {
        name: {BASELINE: {1.0: baseline}, "x": {1.0: runs}}
        for name, runs in (("a", fast), ("b", fast), ("c", slow))
    }
    table = tables.scores(pairs)
    median, worst = tables.summary_rows(table)[2:]
    column = tables.SUMMARY_HEADER.index
    saved, gain, effective = (
        column(name) for name in ("epochs saved", "difference in points", "effective schedule")
    )
    assert (*median[:3], median[saved], median[gain]) == ("x", "3", "median", "50%", "+5.00")
    assert (worst[2], worst[saved], worst[gain]) == ("worst", "never", "-10.00")
    assert (median[effective], worst[effective]) == ("-", "-")
    page = page_of(table)
    assert page.count("## ") == 4
    assert "never" in page
    assert "| effective schedule |" not in page  # nothing is known of it

    # A baseline of half the schedule ends at 2, one of the full one at 1; the arm ends where it ends, or beyond.
    for arms in pairs.values():
        arms[BASELINE][0.5] = [run_of([2], [0.5])]
    pairs["b"]["x"] = {1.0: [run_of([1, 0.1], [0.9, 0.95], rule="x")]}
    median, worst = tables.summary_rows(tables.scores(pairs))[2:]
    assert (median[effective], worst[effective]) == ("1.00", "0.50")
    assert "| ≥ 2.00 |" in page_of(tables.scores(pairs))


def test_the_search_takes_the_best_two_to_the_other_seeds():
    seeds = (1, 2, 3)
    truth = {0.5: 5.0, 1: 3.0, 2: 1.0, 4: 2.0, 8: math.nan}

    def search(loss, grid):
        known: dict[float, dict[int, float]] = {rate: {} for rate in grid}
        asked = []
        while True:
            runs, best = tuned.next_runs(known, seeds)
            if best is not None:
                return best, asked
            assert runs
            for rate, seed in runs:
                asked.append((rate, seed))
                known.setdefault(rate, {})[seed] = loss(rate, seed)

    first = [(rate, 1) for rate in (0.5, 1, 2, 4)]
    later = [(2, 2), (2, 3), (4, 2), (4, 3)]
    assert search(lambda rate, seed: truth[rate], (0.5, 1, 2, 4)) == (2, first + later)
    # The mean over seeds decides, and the second best may lie at the edge: there is one more.
    fooled = {(4, 2): 0.1, (4, 3): 0.1}
    best, asked = search(lambda rate, seed: fooled.get((rate, seed), truth[rate]), (0.5, 1, 2, 4))
    assert (best, asked) == (4, [*first, *later, (8, 1)])
    # From the edge on, and a loss that is not finite is the worst.
    best, asked = search(lambda rate, seed: truth[rate], (0.5, 1))
    assert (best, asked[2:4], asked[4:]) == (2, [(2, 1), (4, 1)], later)
    assert tuned.next_runs({1: {1: math.nan}, 2: {1: 1.0}, 4: {1: math.inf}}, (1,)) == ([], 2)


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
    assert run_view("tune", tmp_path, "--seeds", "1", "--arms", BASELINE) == 0
    rate = json.loads((folder / "rates.json").read_text())["mlp-sgd"]
    rates = [float(rate) for rate in rate["mean_final_train_loss"]]
    assert min(rates) < rate["learning_rate"] < max(rates)
    assert max(rates) > 0.8  # this toy wants more: the grid was extended
    assert rate["runs"] == len(rates) == len(trained)

    final = (tmp_path, "--seeds", "0", "--arms", "recommended", "ema")
    assert run_view("tuned", *final) == 2
    assert "tune --workloads mlp-sgd --arms ema" in capsys.readouterr().err.replace("\n", " ")
    assert run_view("tune", tmp_path, "--seeds", "1", "--arms", "ema") == 0
    ema = json.loads((folder / "rates.json").read_text())["mlp-sgd"]["arms"]["ema"]
    factors = [float(of) / rate["learning_rate"] for of in ema["final_probe_losses"]]
    assert {0.5, 1, 2, 4} <= set(factors)
    assert min(factors) < ema["learning_rate"] / rate["learning_rate"] < max(factors)
    rates = [*rates, *factors]
    assert len(trained) == len(rates)

    assert run_view("tuned", *final) == 0
    # Three arms at full length, the baseline on a shorter schedule, too.
    assert len(trained) - len(rates) == 3 + 1
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
    assert "4 runs, 4 already recorded" in capsys.readouterr().out
    assert run_view("tuned", *final, "--page") == 0
    assert len(trained) == count
    assert (folder / "table.md").read_text() == table

    # Packed, they are the same runs.
    assert run.main(["pack", "--out", str(tmp_path)]) == 0
    assert f"{count} runs packed" in capsys.readouterr().out
    assert [p.name for p in (folder / "records").iterdir()] == ["mlp-sgd.jsonl"]
    assert run_view("tune", tmp_path, "--seeds", "1", "--arms", "ema") == run_view("tuned", *final) == 0
    assert len(trained) == count
    assert (folder / "table.md").read_text() == table


def test_tuning_a_peer_alone_keeps_the_rate_that_the_baseline_has(tiny_pair, tmp_path):
    rates = tmp_path / "tuned" / "rates.json"
    rates.parent.mkdir()
    rates.write_text(json.dumps({tiny_pair.name: {"learning_rate": 1.6}}))
    assert run_view("tune", tmp_path, "--seeds", "1", "--arms", "ema") == 0
    entry = json.loads(rates.read_text())[tiny_pair.name]
    assert entry["learning_rate"] == 1.6
    assert entry["arms"]["ema"]["runs"] >= 4
    trained = records.read_all(tmp_path / "tuned" / "records" / tiny_pair.name)
    assert {run.rule for run in trained} == {"ema"}


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
    return pdt_optax.presets.drift


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


def test_without_a_view_it_lists_pairs_arms_and_whose_runs_there_are(capsys):
    assert run.main([]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"guard +\d+ min  24 of 24 runs recorded \(24 committed, 0 of this machine\)", printed)
    assert all(name in printed for name in (*PAIRS, "random-mask", "agree-h3", "runaway"))


def test_presets_are_arms():
    assert preset("released").settings(config().recipe) == dict(pdt_optax.presets.released)
