"""Workloads: real data, a model and a batch size. The small ones take seconds a run."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.data import batches, datasets, text
from experiments.data.datasets import Dataset, Split, Where
from experiments.models import alexnet, resnet, simsiam, small, vit
from experiments.training.plain import changed


def check_name(name: str, value: str, known: Iterable[str]) -> None:
    """Raises ValueError if a name is not known."""
    if value not in known:
        raise ValueError(f"There is no {name} {value!r}. There are {', '.join(known)}.")


Model = Any  # an nnx.Module; pyright does not know that those of ours can be called


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained on what.

    Attributes:
      batch_size: examples per step.
      accumulate: parts of a batch whose gradients are summed one after the other, for want of memory.
    """

    batch_size: int
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(
                "`accumulate` must divide `batch_size`: the parts of a batch are of one size. "
                f"Got {self.accumulate}, {self.batch_size}."
            )
        if self.batch_size <= 0:
            raise ValueError(f"`batch_size` must be positive. Got {self.batch_size}.")
        if self.batch_size > self.train_examples:
            raise ValueError(
                "`batch_size` must not exceed the number of training examples. "
                f"Got {self.batch_size}, {self.train_examples} examples."
            )

    @property
    def train_examples(self) -> int:
        """How many examples there are to train on."""
        raise NotImplementedError

    @property
    def epoch_steps(self) -> int:
        """Steps in an epoch; by default each example once, less a last, smaller batch."""
        return self.train_examples // self.batch_size

    @property
    def probe_examples(self) -> int:
        """How many training examples every epoch's end is evaluated on; 0 for none."""
        return 0

    @property
    def fields(self) -> dict[str, Any]:
        """What the workload is, for records; what is at its default is left out."""
        return changed(self)

    def load(self, where: Where = datasets.DEFAULT) -> Dataset:
        """The data. See `datasets.load`."""
        raise NotImplementedError

    def model(self, rngs: nnx.Rngs) -> Model:
        """A new model: called with prepared inputs for logits, and with a key when it trains."""
        raise NotImplementedError

    def prepare(self, inputs: jax.Array) -> jax.Array:
        """From stored inputs to what the model takes."""
        raise NotImplementedError

    def losses(
        self, model: Model, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """The loss at each target, and whether the model says it, or a score in [0, 1]; negative targets are padding."""
        logits = model(self.prepare(inputs), key)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
        return values, logits.argmax(-1) == targets

    @property
    def features(self) -> Callable[[Model, jax.Array], jax.Array] | None:
        """From a model and inputs to the features that a linear probe judges; None if the model itself classifies."""
        return None

    def order(self, targets: np.ndarray, key: jax.Array) -> jax.Array:
        """The examples of an epoch's batches, (steps or more, batch_size)."""
        return batches.shuffled(targets, key, self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlexNetImages(Workload):
    """AlexNet on an image data set, the paper's main experiment.

    Attributes:
      data: the data set's name.
      image_size: images are resized to this.
      width: scales AlexNet's features.
    """

    data: str
    image_size: int
    width: float

    def __post_init__(self) -> None:
        check_name("data set", self.data, datasets.NAMES)
        if not 0 < self.width < math.inf:
            raise ValueError(f"`width` must be positive and finite. Got {self.width}.")
        if self.image_size < alexnet.AlexNet.smallest_image:
            raise ValueError(
                f"`image_size` must be at least {alexnet.AlexNet.smallest_image}: AlexNet's strides and pools "
                f"leave nothing of a smaller image. Got {self.image_size}."
            )
        super().__post_init__()

    @property
    def train_examples(self) -> int:
        return datasets.EXAMPLES[self.data]

    def load(self, where: Where = datasets.DEFAULT) -> Dataset:
        return datasets.load(self.data, where)

    def model(self, rngs: nnx.Rngs) -> Model:
        return alexnet.AlexNet(datasets.CLASSES, width=self.width, rngs=rngs)

    def prepare(self, inputs: jax.Array) -> jax.Array:
        return datasets.prepare(inputs, self.image_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Small(Workload):
    """One of the benchmark's workloads: a part of a data set, held-out data, a small model.

    Attributes:
      workload: its name, which is its model's in `MODELS`.
      examples, validation_examples: the first so many of each split.
      steps: in an epoch, each on examples drawn without replacement; None for a
        pass over all of them, which may be too long to stand between two snapshots.
      size: the model's settings, as pairs.
    """

    workload: str
    examples: int
    validation_examples: int
    steps: int | None = None
    size: tuple[tuple[str, Any], ...]

    def __post_init__(self) -> None:
        check_name("workload", self.workload, MODELS)
        super().__post_init__()

    @property
    def train_examples(self) -> int:
        return self.examples

    @property
    def epoch_steps(self) -> int:
        return super().epoch_steps if self.steps is None else self.steps

    @property
    def probe_examples(self) -> int:
        return min(self.examples, 1_000)

    @property
    def fields(self) -> dict[str, Any]:
        return super().fields | {"size": dict(self.size)}

    def parts(self, dataset: Dataset) -> Dataset:
        """The parts of a whole data set that the workload takes."""
        return Dataset(dataset.train.first(self.examples), dataset.test.first(self.validation_examples))

    def model(self, rngs: nnx.Rngs) -> Model:
        return MODELS[self.workload](**dict(self.size), rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Small):
    """Image classification.

    Attributes:
      data: the data set's name.
    """

    data: str

    known: ClassVar[tuple[str, ...]] = datasets.NAMES

    def __post_init__(self) -> None:
        check_name("data set", self.data, self.known)
        super().__post_init__()

    def load(self, where: Where = datasets.DEFAULT) -> Dataset:
        return self.parts(datasets.load(self.data, where))

    def prepare(self, inputs: jax.Array) -> jax.Array:
        return datasets.scale(inputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(Images):
    """Images from a narrow code of themselves; the loss is the mean squared error of pixels in [-1, 1].

    Its "accuracy" is a score: of the variance of an image's pixels about their mean,
    the share that the reconstruction explains, at least 0; the mean over images.
    """

    def losses(
        self, model: Model, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        del targets
        pixels = self.prepare(inputs).reshape(inputs.shape[0], -1)
        errors = jnp.square(model(pixels, key) - pixels).mean(-1)
        variances = pixels.var(-1)
        # An image of one color, as padding is, has no variance to explain.
        score = 1 - errors / jnp.where(variances > 0, variances, jnp.inf)
        return errors, jnp.where(variances > 0, jnp.maximum(score, 0), 0)


SCHEMES = {"shuffled": batches.shuffled, "single_class": batches.single_class}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resized(Images):
    """Images at the size and in the three channels that the paper's networks take.

    Attributes:
      image_size: images are resized to this.
      scheme: which examples make up a batch, a name in `SCHEMES`.
    """

    image_size: int
    scheme: str = "shuffled"

    def __post_init__(self) -> None:
        check_name("scheme", self.scheme, SCHEMES)
        super().__post_init__()

    @property
    def probe_examples(self) -> int:
        return 0

    classes: ClassVar[int] = datasets.CLASSES

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image, as it is stored or comes."""
        return datasets.SHAPES[self.data]

    def spec(self, count: int) -> Any:
        """A `Split` of the shapes of so many examples."""
        images: Any = jax.ShapeDtypeStruct((count, *self.shape), np.uint8)
        labels: Any = jax.ShapeDtypeStruct((count,), np.int32)
        return Split(images, labels)

    def prepare(self, inputs: jax.Array) -> jax.Array:
        return datasets.prepare(inputs, self.image_size)

    def order(self, targets: np.ndarray, key: jax.Array) -> jax.Array:
        return SCHEMES[self.scheme](targets, key, self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNet(Resized):
    """ImageNet, streamed: random-resized crops mirrored at random to train on, the centre to validate on.

    Attributes:
      smoothing: of the labels in training: the share that is spread over all classes.
    """

    smoothing: float = 0.0

    known = (datasets.STREAMED,)
    classes = 1_000

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"`smoothing` must be a share from 0 to less than 1. Got {self.smoothing}.")
        if self.scheme != "shuffled":
            raise ValueError(f"A streamed data set is shuffled as a whole. Got scheme={self.scheme!r}.")

    def load(self, where: Where = datasets.DEFAULT) -> Dataset:
        return self.parts(datasets.load(self.data, where, self.image_size))

    def losses(
        self, model: Model, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        if key is None or self.smoothing == 0:
            return super().losses(model, inputs, targets, key)
        logits = model(self.prepare(inputs), key)
        labels = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), self.smoothing)
        return optax.softmax_cross_entropy(logits, labels), logits.argmax(-1) == targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Siamese(Resized):
    """SimSiam's loss on two views of each image; its accuracy is a linear probe's."""

    def losses(
        self, model: Model, inputs: jax.Array, targets: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        training = key is not None
        views = jax.random.key(0) if key is None else key  # the same views at every evaluation
        values = simsiam.losses(model, self.prepare(inputs), views, training=training)
        return values, jnp.zeros(targets.shape, bool)

    @property
    def features(self) -> Callable[[Model, jax.Array], jax.Array]:
        return lambda model, inputs: model.backbone(self.prepare(inputs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Characters(Small):
    """Next-character prediction; accuracy is the share of characters predicted.

    Attributes:
      length: of a window, in characters.
    """

    length: int

    def load(self, where: Where = datasets.DEFAULT) -> Dataset:
        del where
        return self.parts(text.load(self.length))

    def model(self, rngs: nnx.Rngs) -> Model:
        return MODELS[self.workload](length=self.length, **dict(self.size), rngs=rngs)

    def prepare(self, inputs: jax.Array) -> jax.Array:
        return inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongText(Characters):
    """Next-character prediction on ten times the text, most of which a run sees once or never."""

    def load(self, where: Where = datasets.DEFAULT) -> Dataset:
        del where
        return self.parts(text.load(self.length, text.LONG))


def _simsiam(*, rngs: nnx.Rngs, backbone: str, **size: Any) -> Model:
    features = {"resnet18": functools.partial(resnet.resnet18, stem="cifar"), "mini": resnet.resnet14_mini}
    own = {name: size.pop(name) for name in ("stages", "width") if name in size}
    return simsiam.SimSiam(features[backbone](None, **own, rngs=rngs), **size, rngs=rngs)


MODELS: Mapping[str, Callable[..., Model]] = {
    "mlp": functools.partial(small.MLP, classes=datasets.CLASSES),
    "cnn": functools.partial(small.ConvNet, classes=datasets.CLASSES),
    "vit": functools.partial(small.ViT, classes=datasets.CLASSES),
    "resnet": functools.partial(small.ResNet, classes=datasets.CLASSES),
    "fcnet": functools.partial(alexnet.FCNet, datasets.CLASSES),
    "fcn": functools.partial(alexnet.FCN, datasets.CLASSES),
    "alexnet": functools.partial(alexnet.AlexNet, datasets.CLASSES),
    "resnet_mini": functools.partial(resnet.resnet14_mini, datasets.CLASSES),
    "vit_mini": functools.partial(vit.vit_mini, datasets.CLASSES),
    "resnet50": functools.partial(resnet.resnet50, 1_000),
    "vit_base": functools.partial(vit.vit_base, 1_000),
    "vit_huge": functools.partial(vit.vit_huge, 1_000),
    "simsiam": _simsiam,
    "autoencoder": small.Autoencoder,
    "char_gru": functools.partial(small.CharacterGRU, characters=len(text.ALPHABET)),
    "char_lm": functools.partial(small.CharacterModel, characters=len(text.ALPHABET)),
}
