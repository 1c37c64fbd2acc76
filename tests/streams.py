"""A small data set in ImageNet's format, and runs on it; as a command, one process of such a run.

With --dies it kills itself where it would save after that step.
"""

import argparse
import io
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered

from experiments.data import datasets
from experiments.data.datasets import STREAMED, Where
from experiments.training import checkpoints, devices, records
from experiments.training.arms import Arm, preset
from experiments.training.checkpoints import Saving
from experiments.training.trainer import Config
from experiments.training.workloads import ImageNet

EXAMPLES = {"train": 300, "validation": 70}
BATCH, STEPS = 42, 7

with registered.skip_registration():  # TFDS has the original by this name

    class Imagenet2012(tfds.core.GeneratorBasedBuilder):
        """JPEGs of many sizes made from Fashion-MNIST, or from digits where that is not there."""

        VERSION = tfds.core.Version("5.1.0")

        def _info(self) -> tfds.core.DatasetInfo:
            features: Any = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=1000),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            del dl_manager
            try:
                data = datasets.load("fashion_mnist")
            except datasets.DataUnavailableError:
                data = datasets.load("digits")
            parts = {"train": data.train, "validation": data.test}
            return {name: self._generate_examples(parts[name].first(n)) for name, n in EXAMPLES.items()}

        def _generate_examples(self, split: Any) -> Any:
            for i, (pixels, label) in enumerate(zip(*split, strict=True)):
                file, size = io.BytesIO(), (40 + i % 20, 60 - i % 25)
                Image.fromarray(pixels[..., 0]).convert("RGB").resize(size).save(file, "JPEG")
                file.seek(0)
                yield f"{i:05}", {"image": file, "label": int(label), "file_name": f"{i}.JPEG"}


def build(folder: Path) -> Path:
    """The data set in a TFDS data directory."""
    Imagenet2012(data_dir=folder, file_format="array_record").download_and_prepare(file_format="array_record")
    return folder


SIZES: dict[str, dict[str, Any]] = {
    "resnet50": {"width": 8},
    "vit_base": {"image_size": 32, "patch": 8, "features": 20, "depth": 2, "heads": 2},
    "quick": {"width": 4, "stages": (1, 1)},
}


def config(model: str, arm: Arm | None = None, epochs: int = 2, **changes: Any) -> Config:
    """A run of `EXAMPLES` in `STEPS` steps an epoch."""
    workload = ImageNet(
        workload="resnet50" if model == "quick" else model,
        data=STREAMED,
        examples=EXAMPLES["train"],
        validation_examples=EXAMPLES["validation"],
        batch_size=BATCH,
        image_size=32,
        size=tuple(SIZES[model].items()),
        **changes,
    )
    return Config(workload, arm or preset("recommended"), "momentum", 0.02, "warmup_cosine", epochs, seed=3)


def weights(folder: Path, c: Config) -> Any:
    """All arrays that a run has left."""
    return checkpoints.trained(folder / "checkpoints" / records.path_of(folder, c).stem)


def dying(step: int, death: Any) -> Any:
    """`Checkpoints.save` of a process that dies where it would save after a step."""
    save = checkpoints.Checkpoints.save

    def dies(self: Any, at: int, *rest: Any) -> None:
        if at == step:
            death()
        save(self, at, *rest)

    return dies


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=SIZES)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--dies", type=int)
    devices.add_arguments(parser)
    args = parser.parse_args()
    if args.dies:
        checkpoints.Checkpoints.save = dying(args.dies, lambda: os.kill(os.getpid(), signal.SIGKILL))
    spread, c = devices.start(args), config(args.model)
    dataset = c.workload.load(Where(args.data, workers=args.workers))
    for _ in records.record(args.out, c, dataset, spread, Saving(every=1, keep=True, wait=True, steps=3)):
        pass
    assert np.isfinite(records.read(args.out, c).epochs[-1]["train_loss"]) or not devices.is_first()
