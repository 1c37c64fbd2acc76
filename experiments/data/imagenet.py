"""ImageNet-1K through TFDS and grain: random access, decoded and cropped on the host, split over processes."""

import dataclasses
import io
import math
from typing import Any

import grain
import jax
import numpy as np
from PIL import Image

from experiments.data.datasets import Split


@dataclasses.dataclass(frozen=True)
class Stream:
    """A split that is too large for memory: its batches are functions of their numbers, read when they are asked for.

    So any batch is to be had without those before it, and a run goes on from any step.

    Attributes:
      source: random access to examples, dictionaries of an `image`, a JPEG's bytes, and a `label`.
      image_size: height and width of the images in batches.
      workers: processes that decode; 0 for threads of this one.
      count: only the first so many examples; None for all.
    """

    source: Any
    image_size: int
    workers: int = 0
    count: int | None = None

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.source) if self.count is None else min(self.count, len(self.source))

    def first(self, count: int) -> "Stream":
        """The first `count` examples."""
        return dataclasses.replace(self, count=count)

    def spec(self, batch_size: int) -> Any:
        """A `Split` of the shapes of a batch."""
        images: Any = jax.ShapeDtypeStruct((batch_size, self.image_size, self.image_size, 3), np.uint8)
        labels: Any = jax.ShapeDtypeStruct((batch_size,), np.int32)
        return Split(images, labels)

    def shuffled(self, batch_size: int, seed: int, part: int = 0, parts: int = 1) -> grain.MapDataset[Split]:
        """An epoch's batches; repeated, every epoch has another order and other crops.

        Args:
          batch_size: examples in a batch, over all parts.
          seed: of orders, of random-resized crops, and of which are mirrored.
          part, parts: which part of every batch is read, and of how many: its examples `part`, `part + parts`, ...
            Whatever the parts, the batches hold the same examples, cropped alike.

        Returns:
          `Split`s: (batch_size / parts, size, size, 3), uint8, and their labels, int32.
          What is over, less than a batch, is left out of the epoch.
        """
        whole = self.examples // batch_size * batch_size
        data = grain.MapDataset.source(self.source)[: self.examples].seed(seed).shuffle()
        data = data.random_map(self._random)[part:whole:parts]
        return data.batch(batch_size // parts, drop_remainder=True)

    def in_order(self, batch_size: int, part: int = 0, parts: int = 1) -> grain.MapDataset[Split]:
        """All examples once, of each the centre; the last batch is filled up with black images of label -1."""
        padded = -(-self.examples // batch_size) * batch_size
        return grain.MapDataset.range(part, padded, parts).map(self._central).batch(batch_size // parts)

    def _random(self, example: dict[str, Any], rng: np.random.Generator) -> Split:
        image = decoded(example["image"])
        pixels = resized(image, random_box(image.height, image.width, rng), self.image_size)
        return Split(
            pixels[:, ::-1] if rng.random() < 0.5 else pixels, np.asarray(example["label"], np.int32)
        )

    def _central(self, number: int) -> Split:
        if number >= self.examples:
            return Split(np.zeros((self.image_size, self.image_size, 3), np.uint8), np.asarray(-1, np.int32))
        example = self.source[number]
        image = decoded(example["image"])
        pixels = resized(image, centre_box(image.height, image.width), self.image_size)
        return Split(pixels, np.asarray(example["label"], np.int32))


def decoded(data: bytes) -> Image.Image:
    """An image in three channels."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def resized(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The part of an image in (left, top, right, bottom), bilinear with antialiasing: (size, size, 3)."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


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
