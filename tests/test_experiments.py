"""The experiments: models, data, the trainer, records and what the command line does."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx

from experiments import cifar_alexnet, toy
from experiments.data import datasets
from experiments.models import alexnet
from experiments.training import records
from experiments.training.arms import BASELINE, preset
from experiments.training.trainer import Config
from experiments.training.workloads import AlexNetImages
from experiments.views import report

TINY = ["--data", "digits", "--width", "0.05", "--image-size", "63", "--batch-size", "512"]


def config(rule: str = BASELINE, epochs: int = 7, seed: int = 0) -> Config:
    return Config(
        workload=AlexNetImages(data="digits", image_size=63, width=0.05, batch_size=512),
        arm=preset(rule),
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="cosine",
        epochs=epochs,
        seed=seed,
    )


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (lambda: alexnet.linear(576, 256, rngs=nnx.Rngs(0)), 576),
        (lambda: alexnet.conv(16, 256, 3, rngs=nnx.Rngs(0)), 16 * 9),
    ],
    ids=["linear", "conv"],
)
def test_layers_start_from_pytorchs_uniform_weights_and_biases(layer, inputs):
    bound = inputs**-0.5
    for values in jax.tree.leaves(nnx.state(layer())):
        assert float(jnp.abs(values).max()) <= bound * (1 + 1e-6)
        assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_max_pool_is_reduce_window():
    x = jax.random.normal(jax.random.key(0), (2, 15, 16, 3))
    expected = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(alexnet.max_pool(x, 3, 2), expected)


@pytest.mark.parametrize("size", [3, 7])
def test_adaptive_mean_pool_averages_the_bins(size):
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    pooled = alexnet.adaptive_mean_pool(jnp.asarray(x), 6)
    for i in range(6):
        for j in range(6):
            rows = slice(i * size // 6, math.ceil((i + 1) * size / 6))
            columns = slice(j * size // 6, math.ceil((j + 1) * size / 6))
            np.testing.assert_allclose(pooled[:, i, j], x[:, rows, columns].mean((1, 2)), atol=1e-6)


def test_digits_are_split_once_and_for_all():
    first, second = datasets.load("digits"), datasets.load("digits")
    assert first.train.inputs.shape == (1437, 8, 8, 1)
    assert first.test.inputs.shape == (360, 8, 8, 1)
    assert first.train.inputs.dtype == np.uint8
    assert first.train.inputs.max() == 255
    np.testing.assert_array_equal(first.train.targets, second.train.targets)
    assert np.bincount(first.test.targets).min() >= 34  # stratified


def write_idx(path, array):
    import gzip

    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_fashion_mnist_is_read_from_a_folder_of_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 28, 28), np.uint8), np.arange(5, dtype=np.uint8)
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
    loaded = datasets.load("fashion_mnist", datasets.Where(tmp_path))
    np.testing.assert_array_equal(loaded.train.inputs[..., 0], images)
    np.testing.assert_array_equal(loaded.test.targets, labels)

    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(
        datasets.DataUnavailableError, match=r"t10k-labels-idx1-ubyte\.gz is missing or broken"
    ):
        datasets.load("fashion_mnist", datasets.Where(tmp_path))


def test_cifar10_is_read_through_tfds():
    with tfds.testing.mock_data(num_examples=7):
        loaded = datasets.load("cifar10")
    assert loaded.train.inputs.shape == (7, 32, 32, 3)
    assert loaded.train.inputs.dtype == np.uint8
    assert loaded.train.targets.dtype == np.int32


def test_prepare_scales_to_one_and_repeats_grey():
    images = jnp.array([0, 255], jnp.uint8).reshape(2, 1, 1, 1)
    x = datasets.prepare(images, 4)
    assert x.shape == (2, 4, 4, 3)
    np.testing.assert_allclose(x[0], -1)
    np.testing.assert_allclose(x[1], 1)


# What the command leaves after these arguments; two tests look at it.
COMMAND = [
    *TINY,
    *[
        "--optimizer",
        "adamw",
        "--lr",
        "1e-3",
        "--epochs",
        "7",
        "--seeds",
        "0",
        "--rules",
        "recommended",
        "drift",
        "--save-every",
        "0",
    ],
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    assert cifar_alexnet.main([*COMMAND, "--out", str(folder)]) == 0
    return folder


def test_a_run_is_recorded_and_pdt_starts_like_the_baseline(recorded):
    baseline, predicted = config(), config(rule="drift")
    plain, pdt = records.read(recorded, baseline), records.read(recorded, predicted)
    assert plain.complete
    assert pdt.complete
    first = json.loads(records.path_of(recorded, predicted).read_text().splitlines()[0])
    assert first["config"]["settings"]["accept"] == {"name": "agree"}
    assert first["made"].keys() == {"commit", "date", "machine", "python", "jax"}
    # Burn-in is the optimizer alone; the first jump ends epoch 6 and shows in epoch 7.
    assert [e["predicted"] for e in pdt.epochs] == [False] * 5 + [True, False]
    assert [e["train_loss"] for e in pdt.epochs[:6]] == [e["train_loss"] for e in plain.epochs[:6]]
    assert pdt.epochs[6]["train_loss"] != plain.epochs[6]["train_loss"]
    assert pdt.epochs[5]["accepted_share"] > 0
    assert pdt.epochs[5]["validation_loss"] != plain.epochs[5]["validation_loss"]
    assert plain.epochs[-1]["train_loss"] < plain.epochs[0]["train_loss"]


def test_the_default_starts_like_the_baseline_and_is_delivered_with_the_next_epochs_updates(recorded):
    plain, pdt = (records.read(recorded, config(rule=rule)) for rule in (BASELINE, "recommended"))
    assert pdt.fields["settings"]["dynamics"] == {"name": "slow_drift"}
    assert [e["predicted"] for e in pdt.epochs] == [False] * 5 + [True, True]
    assert pdt.epochs[5]["accepted_share"] == 1
    # Nothing has moved when the first prediction is made.
    for field in ("train_loss", "validation_loss"):
        assert [e[field] for e in pdt.epochs[:6]] == [e[field] for e in plain.epochs[:6]]
        assert pdt.epochs[6][field] != plain.epochs[6][field]


def test_the_key_follows_the_meaning_of_a_rule(monkeypatch):
    before = config(rule="recommended").key
    assert config(rule="recommended").key == before
    assert config(rule="recommended", seed=1).key != before
    from pdt_optax import presets

    changed = {**presets.recommended, "horizon": 4}
    monkeypatch.setitem(presets._BY_NAME, "recommended", changed)
    assert config(rule="recommended").key != before


def run_of(rule, losses, accuracies, seconds=1.0, pdt=0.0, seed=0):
    epochs = [
        {
            "epoch": i + 1,
            "train_loss": loss,
            "validation_accuracy": accuracy,
            "train_seconds": seconds,
            "pdt_seconds": pdt,
            "predicted": rule != BASELINE,
            "accepted_share": 0.5,
        }
        for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    return records.Run(config(rule=rule, seed=seed, epochs=len(losses)).fields, epochs)


def test_times_are_first_crossings_with_pdt_on_the_clock_and_misses_infinite():
    baseline = run_of(BASELINE, [4, 3, 1, 2], [0.5, 0.9, 0.9, 0.8])
    faster = run_of("released", [4, 1, 1, 1], [0.5, 0.8, 0.95, 0.9], pdt=0.5)
    result = report.compare(faster, baseline)
    assert result.to_loss == (2, 3.0)
    assert result.to_accuracy == (3, 4.5)
    # The baseline's time is its own first crossing: epochs 3 and 2, not its whole run.
    assert result.loss_ratio == pytest.approx(3.0 / 3.0)
    assert result.accuracy_ratio == pytest.approx(4.5 / 2.0)
    assert result.pdt_seconds == pytest.approx(2.0)

    never = run_of("paper", [4, 3, 2, 2], [0.5] * 4)
    assert report.compare(never, baseline).to_loss == (math.inf, math.inf)
    other = [run_of(BASELINE, [2, 1], [0.5, 0.6], seed=1), run_of("paper", [1, 1], [0.6, 0.6], seed=1)]
    row = report.rows([baseline, never, *other])[1]
    assert row.loss_epochs == "never (1 of 2 did)"
    assert row.loss_saved == "-"


def test_a_stopped_run_is_shown_as_stopped_and_needs_its_baseline():
    baseline = run_of(BASELINE, [4, 3, 1], [0.5, 0.9, 0.9])
    stopped = run_of("paper", [4, 3, 1], [0.5, 0.9, 0.9])
    stopped = stopped._replace(epochs=stopped.epochs[:2])
    assert report.rows([baseline, stopped])[1].rule == "paper (stopped at epoch 2)"
    assert report.rows([stopped]) == []


def test_the_command_writes_records_table_and_picture_and_reuses_them(recorded, capsys):
    assert (recorded / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = (recorded / "table.md").read_text().splitlines()
    assert len(table) == 5
    assert table[2].startswith("| baseline | 1 | ")
    assert table[3].startswith("| recommended | 1 | ")
    assert table[4].startswith("| drift | 1 | ")
    assert len(list(recorded.glob("*.jsonl"))) == 3
    before = {p: p.read_bytes() for p in recorded.glob("*.jsonl")}
    assert cifar_alexnet.main([*COMMAND, "--out", str(recorded)]) == 0
    assert "3 runs, 3 already recorded" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in recorded.glob("*.jsonl")} == before


def test_ctrl_c_keeps_the_epochs_already_run(recorded, tmp_path, monkeypatch):
    def interrupted(c, *_):
        for epoch in records.read(recorded, c).epochs:
            if c.rule != BASELINE and epoch["epoch"] == 3:
                raise KeyboardInterrupt
            yield epoch

    monkeypatch.setattr(records, "train", interrupted)
    assert cifar_alexnet.main([*COMMAND, "--out", str(tmp_path)]) == 130
    assert "recommended (stopped at epoch 2)" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "curves.png").exists()
    assert len(next(tmp_path.glob("recommended*")).read_text().splitlines()) == 3


def test_toy_draws_both_pictures_and_prints_the_steps(tmp_path, capsys):
    assert toy.main(["--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for line in ("gradient descent: 53 steps", "three times faster: 25 steps", "PDT: 27 steps"):
        assert line in printed
    assert {p.name for p in tmp_path.iterdir()} == {"trajectory.png", "loss.png"}
