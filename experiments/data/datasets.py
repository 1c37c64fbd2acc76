"""Real images as uint8 arrays: digits, Fashion-MNIST, CIFAR-10. Never a silent stand-in."""

import contextlib
import gzip
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command import RefusedError

# The data sets and how many examples each has to train on.
EXAMPLES = {"cifar10": 50_000, "fashion_mnist": 60_000, "digits": 1_437}
NAMES = tuple(EXAMPLES)
CLASSES = 10
SHAPES = {
    "cifar10": (32, 32, 3),
    "fashion_mnist": (28, 28, 1),
    "digits": (8, 8, 1),
    "imagenet2012": (224, 224, 3),
}

# Where Debian's package dataset-fashion-mnist puts its IDX files.
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class DataUnavailableError(RefusedError):
    """The data is not on this machine; the message names the ways to get it."""


class Split(NamedTuple):
    """What a model sees and what it should say.

    Attributes:
      inputs: (n, ...), uint8; images are (n, height, width, channels).
      targets: (n, ...), int32, the right classes: one an image, or one a position.
    """

    inputs: np.ndarray
    targets: np.ndarray

    def first(self, count: int) -> "Split":
        """The first `count` examples."""
        return Split(self.inputs[:count], self.targets[:count])


class Dataset(NamedTuple):
    """A training split and a held-out one."""

    train: Split
    test: Split


def load(name: str, data_dir: Path | None = None, download: bool = False) -> Dataset:
    """Loads a data set by name.

    Args:
      name: one of `NAMES`.
      data_dir: for fashion_mnist, a folder with the four IDX .gz files; else the
        TFDS data directory (default ~/tensorflow_datasets).
      download: let TFDS fetch and prepare what is not there yet.

    Raises:
      DataUnavailableError: if the data is not to be had.
    """
    if name == "digits":
        return _digits()
    if name == "fashion_mnist":
        # One that is named is used, or refused.
        folder = _DEBIAN_FASHION_MNIST if data_dir is None else data_dir
        if (folder / "train-images-idx3-ubyte.gz").exists():
            return _idx(folder)
        hint = "on Debian `apt-get install dataset-fashion-mnist`, or --data-dir FOLDER with the four IDX .gz files"
        return _tfds(name, data_dir, download, hint)
    if name == "cifar10":
        hint = "a machine with another copy: --data-dir DIR, or try --data digits, which needs no download"
        return _tfds(name, data_dir, download, hint)
    if name == "imagenet2012":
        raise DataUnavailableError(
            "imagenet2012 does not fit into memory, where the trainer keeps its data: --dry-run tells what a run "
            "would take, and `experiments.data.imagenet` reads it batch by batch."
        )
    raise ValueError(f"There is no data set {name!r}. The data sets are {', '.join(NAMES)}.")


def scale(images: jax.Array) -> jax.Array:
    """uint8 images to float32 in [-1, 1]: [0, 1], then (x - 0.5) / 0.5."""
    return (images.astype(jnp.float32) / 255 - 0.5) / 0.5


def prepare(images: jax.Array, size: int) -> jax.Array:
    """uint8 images to (n, size, size, 3), float32 in [-1, 1]."""
    x = scale(images)
    n, _, _, channels = x.shape
    if x.shape[1:3] != (size, size):
        x = jax.image.resize(x, (n, size, size, channels), "bilinear")
    return jnp.broadcast_to(x, (n, size, size, 3)) if channels == 1 else x


def _digits() -> Dataset:
    """1,797 handwritten 8 x 8 digits (Alpaydin and Kaynak, 1998), 1,437 to train on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.round(np.asarray(images) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(labels, np.int32)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
    return Dataset(Split(images[train], labels[train]), Split(images[test], labels[test]))


def _idx(folder: Path) -> Dataset:
    def read(name: str) -> np.ndarray:
        """An IDX file of bytes: a magic number whose last byte is the rank, the shape, the data."""
        try:
            raw = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
            shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
            return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
        except (OSError, EOFError, ValueError, IndexError) as e:
            raise DataUnavailableError(
                f"{folder / name}-ubyte.gz is missing or broken ({e}); the four IDX .gz files of Fashion-MNIST "
                "must lie in one folder."
            ) from None

    def split(name: str) -> Split:
        return Split(read(f"{name}-images-idx3")[..., None], read(f"{name}-labels-idx1").astype(np.int32))

    return Dataset(split("train"), split("t10k"))


def _tfds(name: str, data_dir: Path | None, download: bool, hint: str) -> Dataset:
    def split(part: str) -> Split:
        source: Any = tfds.data_source(name, split=part, data_dir=data_dir, download=False)
        rows = [source[i] for i in range(len(source))]
        return Split(np.stack([r["image"] for r in rows]), np.array([r["label"] for r in rows], np.int32))

    with _quiet():
        import tensorflow_datasets as tfds

        try:
            if download:
                builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
                builder.download_and_prepare(file_format="array_record")
            return Dataset(split("train"), split("test"))
        except Exception as e:  # TFDS raises many kinds; all mean that the data is not there
            where = data_dir or "~/tensorflow_datasets"
            failed = f"could not be downloaded ({type(e).__name__})" if download else "is not there yet"
            ways = hint if download else f"add --download to fetch it through TFDS, or {hint}"
            raise DataUnavailableError(f"{name} {failed} (looked in {where}): {ways}.") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS and urllib3 log every retry of a failing download."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
