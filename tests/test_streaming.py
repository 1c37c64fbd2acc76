"""A data set in ImageNet's format, streamed: what its batches hold, and runs that break off and go on to the last bit."""

import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import run
from experiments.data import datasets
from experiments.data.datasets import STREAMED, Split, Where
from experiments.data.imagenet import Stream
from experiments.paper.setups import setups
from experiments.training import checkpoints, dry_run, records, timing, trainer
from experiments.training.arms import BASELINE, Arm, predictive
from experiments.training.checkpoints import Saving
from experiments.training.devices import check_batch
from experiments.training.optimizers import OPTIMIZERS
from experiments.training.sweep import Planned
from experiments.training.trainer import Config
from experiments.training.workloads import ImageNet, Images
from tests import streams

ROOT = Path(__file__).parents[1]
SECONDS = ("train_seconds", "pdt_seconds", "compile_seconds")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return streams.build(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def train(folder: Path) -> Stream:
    split = datasets.load(STREAMED, Where(folder), image_size=16).train
    assert isinstance(split, Stream)
    return split


def joined(batches: Any) -> Split:
    return Split(*map(np.concatenate, zip(*batches, strict=True)))


def test_an_epoch_holds_examples_once_and_the_next_one_in_another_order(train: Stream) -> None:
    data: Any = train.shuffled(64, seed=5)
    assert len(data) == 300 // 64
    repeated: Any = data.repeat()
    first, second = joined(data), joined([repeated[i] for i in range(4, 8)])
    for expected, array in zip(train.spec(64), data[0], strict=True):
        assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    labels = [train.source[i]["label"] for i in range(300)]
    counts = np.bincount(labels, minlength=10)
    for epoch in (first, second):
        assert (np.bincount(epoch.targets, minlength=10) <= counts).all()  # none comes twice
        assert len(np.unique(epoch.inputs.reshape(256, -1), axis=0)) == 256
    assert (first.targets != second.targets).any()
    # A batch is a function of its number: of the seed, too, and of nothing that was read before.
    chex.assert_trees_all_equal(repeated[6:][1], train.shuffled(64, seed=5).repeat()[7])
    other: Any = train.shuffled(64, seed=6)
    assert (other[0].targets != data[0].targets).any()


def test_parts_share_every_batch_out_cropped_alike(train: Stream) -> None:
    whole: Any = train.shuffled(60, seed=1).repeat()
    parts: Any = [train.shuffled(60, 1, part, 3).repeat() for part in range(3)]
    for number in (0, 4, 5, 11):
        together = joined([p[number] for p in parts])
        order = np.arange(60).reshape(20, 3).T.ravel()  # each part has every third example
        chex.assert_trees_all_equal(together, Split(*(x[order] for x in whole[number])))


def test_crops_are_parts_of_their_images(train: Stream) -> None:
    """Of an image that is bright on one side alone, crops are darker or brighter, and mirrored half of the time."""
    file = io.BytesIO()
    Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[None] * 4, 64, 0)).save(file, "JPEG")
    ramp = Stream([{"image": file.getvalue(), "label": 1}] * 200, image_size=16)
    crops = joined([ramp.shuffled(200, seed=0)[0]]).inputs.astype(float)[..., 0]
    slopes = (crops[:, :, -1] - crops[:, :, 0]).mean(1)
    assert 70 < (slopes < 0).sum() < 130
    assert np.abs(slopes).min() < 120  # a small part
    assert np.abs(slopes).max() > 200  # nearly all
    centre = joined([ramp.in_order(1)[0]]).inputs.astype(float)[..., 0]
    np.testing.assert_allclose(centre.mean(), 4 * 31.5, atol=3)


def test_validation_takes_every_example_once_and_fills_up(folder: Path) -> None:
    split = datasets.load(STREAMED, Where(folder), image_size=16).test
    assert isinstance(split, Stream)
    for parts in (1, 2):
        seen = [joined(split.in_order(32, part, parts)) for part in range(parts)]
        targets = np.stack([s.targets for s in seen], 1).ravel()
        assert len(targets) == 96
        np.testing.assert_array_equal(targets[:70], [split.source[i]["label"] for i in range(70)])
        assert (targets[70:] == -1).all()
    assert joined(split.first(10).in_order(10)).targets.shape == (10,)


def test_the_pipeline_is_timed_from_its_second_batch_on(folder: Path) -> None:
    workload = streams.config("quick").workload
    assert isinstance(workload, ImageNet)
    started = time.perf_counter()
    rate = timing.images_a_second(workload, Where(folder), 3)
    assert rate * (time.perf_counter() - started) > 3 * streams.BATCH  # the first takes time, too


def test_missing_imagenet_is_told_with_the_way_to_it(tmp_path: Path) -> None:
    with pytest.raises(datasets.DataUnavailableError, match=r"looked in .*image-net\.org.*--download"):
        streams.config("quick").workload.load(Where(tmp_path))


# Runs that break off.


def without_seconds(path: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, path.read_text().splitlines()[1:])
    return [{k: v for k, v in e.items() if k not in SECONDS} for e in lines]


def ends_alike(one: Path, other: Path, c: Config) -> list[dict[str, Any]]:
    """The records and all arrays of two runs are the same."""
    recorded = without_seconds(records.path_of(one, c))
    assert [e["epoch"] for e in recorded] == list(range(1, c.epochs + 1))
    assert without_seconds(records.path_of(other, c)) == recorded
    for folder in (one, other):
        (saved,) = (folder / "checkpoints").iterdir()
        assert str(c.epochs * streams.STEPS) in {p.name for p in saved.iterdir()}
    chex.assert_trees_all_equal(streams.weights(one, c), streams.weights(other, c))
    return recorded


def test_a_run_that_broke_off_within_an_epoch_sees_the_batches_that_would_have_come(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = streams.config("quick", predictive("quick", window=2, start=2), epochs=4)
    dataset = c.workload.load(Where(folder))
    saving = Saving(every=1, keep=True, wait=True, steps=3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    list(records.record(whole, c, dataset, saving=saving))

    class DeathError(Exception):
        pass

    def dies() -> None:
        raise DeathError

    for step in (streams.STEPS + 6, 3 * streams.STEPS + 3):  # the latter with a jump behind it
        with monkeypatch.context() as patched:
            patched.setattr(checkpoints.Checkpoints, "save", streams.dying(step, dies))
            with pytest.raises(DeathError):
                list(records.record(broken, c, dataset, saving=saving))
    (saved,) = (broken / "checkpoints").iterdir()
    assert sorted(int(p.name) for p in saved.iterdir()) == [2 * streams.STEPS + 6, 3 * streams.STEPS]
    list(records.record(broken, c, dataset, saving=saving))
    recorded = ends_alike(whole, broken, c)
    assert any(e["predicted"] for e in recorded)
    assert recorded[-1]["train_loss"] < recorded[0]["train_loss"]


def test_sigterm_ends_a_run_within_its_epoch(folder: Path, tmp_path: Path) -> None:
    c = streams.config("quick")
    dataset, taken = c.workload.load(Where(folder)), []
    saving = Saving(every=1, keep=True, steps=2)
    run = records.record(tmp_path, c, dataset, saving=saving)
    taken.append(next(run))
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        next(run)
    assert stopped.value.code == 128 + signal.SIGTERM
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert str(streams.STEPS + 2) in {p.name for p in saved.iterdir()}


def started(model: str, folder: Path, out: Path, processes: int, *more: str, devices: int = 1) -> list[int]:
    """The exit codes of a run's processes, of so many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "tests.streams", model, str(folder), str(out), *more]
    each = [
        ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes), "--process-id", str(i)]
        for i in range(processes)
    ]
    running = [
        subprocess.Popen(command + (place if processes > 1 else []), cwd=ROOT, env=environment)
        for place in each
    ]
    try:
        return [process.wait(timeout=1500) for process in running]
    finally:
        for process in running:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "processes"), [("resnet50", 1), ("resnet50", 2), ("vit_base", 1), ("vit_base", 2), ("quick", 2)]
)
def test_killed_and_resumed_to_the_last_bit(model: str, processes: int, folder: Path, tmp_path: Path) -> None:
    """Killed in the second epoch; with one process, decoded by workers and by threads in turn."""
    c = streams.config(model)
    workers = ["--workers", "1"] if processes == 1 else []
    assert started(model, folder, tmp_path / "whole", processes) == [0] * processes
    killed = started(
        model, folder, tmp_path / "broken", processes, *workers, "--dies", str(streams.STEPS + 6)
    )
    assert killed == [-signal.SIGKILL] * processes
    assert len(records.read(tmp_path / "broken", c).epochs) == 1
    assert started(model, folder, tmp_path / "broken", processes) == [0] * processes
    recorded = ends_alike(tmp_path / "whole", tmp_path / "broken", c)
    # Through the fifty layers of BatchNorm of a ResNet-50, rounding grows from step to step.
    if processes > 1 and model != "resnet50":
        as_one_device(recorded, c, folder)


def as_one_device(recorded: list[dict[str, Any]], c: Config, folder: Path) -> None:
    """A run is as one device trains it, but for rounding."""
    alone = list(trainer.train(c, c.workload.load(Where(folder))))
    for name in ("train_loss", "validation_loss"):
        np.testing.assert_allclose([e[name] for e in recorded], [e[name] for e in alone], rtol=2e-3)


@pytest.mark.slow
def test_weights_padded_for_three_devices_go_on_on_one(folder: Path, tmp_path: Path) -> None:
    """Nothing in the network but three blocks of one layer is divisible by 3."""
    c = streams.config("vit_base")
    more = ("--mesh", "fsdp=3", "--dies", str(streams.STEPS + 6))
    assert started("vit_base", folder, tmp_path, 1, *more, devices=3) == [-signal.SIGKILL]
    kernel = streams.weights(tmp_path, c)["params"]["layers"]["0"]["mix"]["kernel"]["value"]
    assert kernel.shape == (21, 20)
    assert (kernel[20] == 0).all()
    saving = Saving(every=1, keep=True, wait=True, steps=3)
    list(records.record(tmp_path, c, c.workload.load(Where(folder)), saving=saving))
    as_one_device(without_seconds(records.path_of(tmp_path, c)), c, folder)


# The recipes.


def test_gradients_of_parts_of_a_batch_add_up() -> None:
    workload = Images(
        workload="mlp", data="digits", examples=256, validation_examples=64, batch_size=32,
        size=(("pixels", 64), ("hidden", (16,))),
    )  # fmt: skip
    losses = []
    for accumulate in (1, 4):
        c = Config(
            dataclasses.replace(workload, accumulate=accumulate),
            Arm(BASELINE),
            "momentum",
            0.1,
            "cosine",
            3,
            0,
        )
        assert ("accumulate" in c.fields) == (accumulate > 1)
        losses.append([e["train_loss"] for e in trainer.train(c, c.workload.load())])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    with pytest.raises(ValueError, match=r"`accumulate` must divide `batch_size`.* Got 3, 32"):
        dataclasses.replace(workload, accumulate=3)
    with pytest.raises(ValueError, match=r"Got 42, 3 parts, 4 accumulated"):
        check_batch(42, dry_run.abstract({"data": 3}), 4)


def test_labels_are_smoothed_in_training_alone() -> None:
    workload = streams.config("quick", smoothing=0.1).workload
    logits = np.random.default_rng(0).normal(size=(5, 1000)).astype(np.float32)
    targets = np.array([3, 999, 0, 17, 3])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    own = -log_p[np.arange(5), targets]
    images = jnp.zeros((5, 32, 32, 3), jnp.uint8)

    def losses(key: Any) -> Any:
        return workload.losses(lambda x, key: jnp.asarray(logits), images, jnp.asarray(targets), key)[0]

    np.testing.assert_allclose(losses(None), own, rtol=1e-5)
    np.testing.assert_allclose(losses(jax.random.key(0)), 0.9 * own - 0.1 * log_p.mean(1), rtol=1e-5)


def test_matrices_decay_and_vectors_do_not() -> None:
    tx = OPTIMIZERS["decayed_momentum"](0.5, True)
    params: Any = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    updates: Any
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * 1e-4)
    assert (updates["scale"] == 0).all()


# Where data is missing.


def test_missing_data_blocks_its_own_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    there = setups("smoke")["fcnet-2"]._replace(epochs=1).config(Arm(BASELINE), 0)
    plan = [
        Planned(tmp_path / "resnet50", streams.config("quick"), 1),
        Planned(tmp_path / "fcnet-2", there, 1),
    ]
    monkeypatch.setattr(run, "_plan", lambda *_: plan)
    line = ["fig7", "--scale", "smoke", "--jobs", "0", "--out", str(tmp_path), "--data-dir", str(tmp_path)]
    assert run.main(line) == 2
    assert records.read(tmp_path / "fcnet-2", there).complete
    assert not (tmp_path / "resnet50").exists()
    told = capsys.readouterr()
    for text in (told.out, told.err):
        assert "resnet50 left out: imagenet2012 is not there yet" in text


def test_the_list_says_what_each_row_needs(tmp_path: Path, capsys: Any) -> None:
    assert run.main(["table1", "--list", "--scale", "paper", "--data-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "cifar10: FCN; AlexNet\n" in printed
    assert "imagenet2012: ResNet-50; ViT-Base; ViT-Huge\n" in printed
    assert f"imagenet2012 is not there yet (looked in {tmp_path})" in printed


def test_workers_decode_for_one_run_at_a_time(capsys: Any) -> None:
    assert run.main(["fig4", "--jobs", "2", "--workers", "2"]) == 2
    assert "Got --jobs 2, --workers 2" in capsys.readouterr().err
