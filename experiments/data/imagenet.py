"""ImageNet-1K through TFDS and grain: random access, decoded and cropped on the host, split over processes."""

import math
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from experiments.data.datasets import DataUnavailableError, Split

NAME = "imagenet2012"
CLASSES = 1000
EXAMPLES = 1_281_167


def spec(batch_size: int, size: int = 224) -> Any:
    """A `Split` of the shapes of a batch."""
    images: Any = jax.ShapeDtypeStruct((batch_size, size, size, 3), np.uint8)
    labels: Any = jax.ShapeDtypeStruct((batch_size,), np.int32)
    return Split(images, labels)


def batches(
    split: str,
    *,
    batch_size: int,
    training: bool,
    size: int = 224,
    seed: int = 0,
    data_dir: Path | None = None,
    process: int | None = None,
    processes: int | None = None,
) -> grain.MapDataset[Split]:
    """The batches of this process, in an order that is a function of the seed and the epoch.

    Its length is an epoch's number of batches; `.repeat(epochs).to_iter_dataset()` gives
    epochs after each other, each in another order and with other crops, prefetched by threads.

    Args:
      split: "train" or "validation", or a part of one as TFDS writes it.
      batch_size: examples in a batch over all processes.
      training: shuffled, in random-resized crops and flipped at random; otherwise the centre.
      size: height and width of the images.
      seed: of orders and crops.
      data_dir: the TFDS data directory (default ~/tensorflow_datasets).
      process, processes: this one and how many there are, as JAX counts them by default.

    Returns:
      A `grain.MapDataset` of `Split`s: (batch_size / processes, size, size, 3), uint8, and
      their labels, int32. Every process has as many; what is over, less than a batch, is left out.

    Raises:
      DataUnavailableError: if ImageNet is not prepared there.
      ValueError: if the processes do not share the batch out.
    """
    process = jax.process_index() if process is None else process
    processes = jax.process_count() if processes is None else processes
    if batch_size % processes:
        raise ValueError(f"`batch_size` must be a multiple of `processes`. Got {batch_size=}, {processes=}.")
    try:
        source: Any = tfds.data_source(NAME, split=split, data_dir=data_dir, download=False)
    except Exception:  # TFDS raises many kinds; all mean that the data is not there
        raise DataUnavailableError(
            f"{NAME} is not prepared in {data_dir or '~/tensorflow_datasets'}: get ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar from image-net.org into its downloads/manual, and run "
            f"`tfds build {NAME} --file_format=array_record`, which needs TensorFlow."
        ) from None

    def crop(example: dict[str, np.ndarray], rng: np.random.Generator) -> Split:
        image = example["image"]
        height, width, _ = image.shape
        if training:
            pixels = resized(image, random_box(height, width, rng), size)
            pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
        else:
            pixels = resized(image, centre_box(height, width), size)
        return Split(pixels, np.asarray(example["label"], np.int32))

    data = grain.MapDataset.source(source).seed(seed)
    data = data.shuffle() if training else data
    whole = len(data) // batch_size * batch_size
    return data[process:whole:processes].random_map(crop).batch(batch_size // processes, drop_remainder=True)


def resized(image: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The part of an image (height, width, 3) in (left, top, right, bottom), bilinear with antialiasing."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box))


def random_box(height: int, width: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Of 8% to 100% of the area and of a ratio of sides from 3/4 to 4/3: (left, top, right, bottom).

    What sticks out of the image is drawn again; after ten times it is the central square.
    """
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    return centre_box(height, width, share=1)


def centre_box(height: int, width: int, *, share: float = 224 / 256) -> tuple[float, float, float, float]:
    """The central square, of a share of the shorter side: (left, top, right, bottom)."""
    side = share * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
