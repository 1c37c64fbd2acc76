"""Real images: digits, Fashion-MNIST and CIFAR-10 as uint8 arrays, ImageNet as a stream. Never a silent stand-in."""

import argparse
import contextlib
import gzip
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command import RefusedError, whole

# The data sets and how many examples each has to train on.
EXAMPLES = {"cifar10": 50_000, "fashion_mnist": 60_000, "digits": 1_437}
NAMES = tuple(EXAMPLES)
CLASSES = 10
SHAPES = {"cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1), "digits": (8, 8, 1)}
STREAMED = "imagenet2012"

_MANUAL = (
    "get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org into its downloads/manual; then "
    "--download prepares them, which needs TensorFlow"
)

# Where Debian's package dataset-fashion-mnist puts its IDX files.
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class DataUnavailableError(RefusedError):
    """The data is not on this machine; the message names the ways to get it."""


class Where(NamedTuple):
    """Where data is, and how it is read.

    Attributes:
      data_dir: the TFDS data directory (default ~/tensorflow_datasets); for
        fashion_mnist, a folder with the four IDX .gz files.
      download: let TFDS fetch and prepare what is not there yet.
      workers: processes that decode a streamed data set; 0 for threads of this one.
    """

    data_dir: Path | None = None
    download: bool = False
    workers: int = 0


DEFAULT = Where()


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """`--data-dir` and `--download`."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="TFDS data directory, or the folder of Fashion-MNIST's four IDX .gz files",
    )
    parser.add_argument("--download", action="store_true", help="let TFDS fetch what is not there yet")


def add_workers(parser: argparse._ActionsContainer) -> None:
    """`--workers`."""
    parser.add_argument(
        "--workers",
        type=whole(0),
        default=0,
        help="processes that decode ImageNet's images, for each process of a run; 0: threads",
    )


class Split(NamedTuple):
    """What a model sees and what it should say.

    Attributes:
      inputs: (n, ...), uint8; images are (n, height, width, channels).
      targets: (n, ...), int32, the right classes: one an image, or one a position.
    """

    inputs: np.ndarray
    targets: np.ndarray

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.targets)

    def first(self, count: int) -> "Split":
        """The first `count` examples."""
        return Split(self.inputs[:count], self.targets[:count])

    def spec(self, batch_size: int) -> Any:
        """A `Split` of the shapes of a batch."""
        return Split(*(jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for x in self))  # pyright: ignore[reportArgumentType]


class Dataset(NamedTuple):
    """A training split and a held-out one: each a `Split`, in memory, or both an `imagenet.Stream`."""

    train: Any
    test: Any


def load(name: str, where: Where = DEFAULT, image_size: int = 224) -> Dataset:
    """Opens a data set by name.

    Args:
      name: one of `NAMES`, or `STREAMED`.
      where: it is.
      image_size: of the images of a stream; those in memory have their own.

    Raises:
      DataUnavailableError: if the data is not to be had.
    """
    data_dir, download, workers = where
    if name == "digits":
        return _digits()
    if name == "fashion_mnist":
        folder = (
            _DEBIAN_FASHION_MNIST if data_dir is None else data_dir
        )  # one that is named is used, or refused
        if (folder / "train-images-idx3-ubyte.gz").exists():
            return _idx(folder)
        hint = "on Debian `apt-get install dataset-fashion-mnist`, or --data-dir FOLDER with the four IDX .gz files"
        return _tfds(name, data_dir, download, hint)
    if name == "cifar10":
        hint = "a machine with another copy: --data-dir DIR, or try --data digits, which needs no download"
        return _tfds(name, data_dir, download, hint)
    if name == STREAMED:
        from experiments.data.imagenet import Stream  # which imports grain

        parts = (
            _tfds_source(name, part, data_dir, download, _MANUAL, ("image",))
            for part in ("train", "validation")
        )
        return Dataset(*(Stream(source, image_size, workers) for source in parts))
    raise ValueError(f"There is no data set {name!r}. The data sets are {', '.join(NAMES)}.")


def missing(name: str, where: Where = DEFAULT) -> str:
    """Why a data set cannot be had; nothing if it can."""
    try:
        load(name, where._replace(download=False))
    except DataUnavailableError as e:
        return str(e)
    return ""


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
        source = _tfds_source(name, part, data_dir, download, hint)
        rows = [source[i] for i in range(len(source))]
        return Split(np.stack([r["image"] for r in rows]), np.array([r["label"] for r in rows], np.int32))

    return Dataset(split("train"), split("test"))


def _tfds_source(
    name: str, part: str, data_dir: Path | None, download: bool, hint: str, encoded: tuple[str, ...] = ()
) -> Any:
    """Random access to the examples of a part of a data set; those of their fields that stay `encoded` are bytes.

    Raises:
      DataUnavailableError: if the data is not to be had.
    """
    with _quiet():
        import tensorflow_datasets as tfds

        try:
            if download:
                builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
                builder.download_and_prepare(file_format="array_record")
            decoders: Any = {field: tfds.decode.SkipDecoding() for field in encoded} or None
            return tfds.data_source(name, split=part, data_dir=data_dir, decoders=decoders, download=False)
        except Exception as e:  # TFDS raises many kinds; all mean that the data is not there
            folder = data_dir or "~/tensorflow_datasets"
            failed = f"could not be downloaded ({type(e).__name__})" if download else "is not there yet"
            by_hand = download or name == STREAMED
            ways = hint if by_hand else f"add --download to fetch it through TFDS, or {hint}"
            raise DataUnavailableError(f"{name} {failed} (looked in {folder}): {ways}.") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS and urllib3 log every retry of a failing download."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
