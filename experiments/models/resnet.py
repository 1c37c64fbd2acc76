"""Residual networks in torchvision's layout: ResNet-50, ResNet-18, and a small member of the family for 32 x 32 images.

References:
  He et al., Deep residual learning for image recognition, 2015.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.alexnet import max_pool

# 0.9 is PyTorch's default, and quick enough for an epoch of only tens of steps.
_norm = functools.partial(nnx.BatchNorm, momentum=0.9)


def _conv(features_in: int, features: int, kernel: int, stride: int, dtype: Any, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        features_in,
        features,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        rngs=rngs,
    )


class _Block(nnx.Module):
    """Convolutions with BatchNorm, and a way around them.

    Two 3 x 3 ones; or, as a bottleneck, 1 x 1, 3 x 3 and 1 x 1, the last to four times
    the features. The first 3 x 3 one has the stride.
    """

    def __init__(
        self, features_in: int, features: int, stride: int, bottleneck: bool, dtype: Any, rngs: nnx.Rngs
    ):
        conv = functools.partial(_conv, dtype=dtype, rngs=rngs)
        if bottleneck:
            out = 4 * features
            convs = [
                conv(features_in, features, 1, 1),
                conv(features, features, 3, stride),
                conv(features, out, 1, 1),
            ]
        else:
            out = features
            convs = [conv(features_in, features, 3, stride), conv(features, features, 3, 1)]
        self.convs = nnx.List(convs)
        self.norms = nnx.List([_norm(c.out_features, dtype=dtype, rngs=rngs) for c in convs])
        same = features_in == out and stride == 1
        self.around = nnx.data(None if same else conv(features_in, out, 1, stride))
        self.around_norm = nnx.data(None if same else _norm(out, dtype=dtype, rngs=rngs))

    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y if i == 0 else jax.nn.relu(y)), use_running_average=not training)
        if self.around is not None and self.around_norm is not None:
            x = self.around_norm(self.around(x), use_running_average=not training)
        return jax.nn.relu(x + y)


class ResNet(nnx.Module):
    """A residual network. The defaults are ResNet-50: 25,557,032 parameters for 1,000 classes.

    Args:
      classes: number of outputs; None for the features alone.
      stages: blocks in each stage; all stages but the first halve the image.
      bottleneck: whether the blocks are bottlenecks.
      width: features of the first stage; each later one doubles them.
      stem: "imagenet", 7 x 7 of stride 2 and a max pool; or "cifar", 3 x 3, for small images.
      dtype: what it computes in; weights and what it returns are float32.
      rngs: of the initial weights.

    Attributes:
      features: how many there are before the classes.

    Inputs are (n, height, width, 3).
    """

    def __init__(
        self,
        classes: int | None,
        *,
        stages: Sequence[int] = (3, 4, 6, 3),
        bottleneck: bool = True,
        width: int = 64,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.pools = stem == "imagenet"
        self.stem = _conv(3, width, kernel, stride, dtype, rngs)
        self.norm = _norm(width, dtype=dtype, rngs=rngs)
        blocks, self.features = [], width
        for stage, count in enumerate(stages):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(_Block(self.features, width * 2**stage, stride, bottleneck, dtype, rngs))
                self.features = width * 2**stage * (4 if bottleneck else 1)
        self.blocks = nnx.List(blocks)
        self.out = nnx.data(None if classes is None else nnx.Linear(self.features, classes, rngs=rngs))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, classes), or features (n, features); trains BatchNorm if there is a key."""
        training = key is not None
        x = jax.nn.relu(self.norm(self.stem(x), use_running_average=not training))
        if self.pools:  # after ReLU a border of zeros is as good as one of -inf
            x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)
        for block in self.blocks:
            x = block(x, training)
        x = x.astype(jnp.float32).mean((1, 2))
        return x if self.out is None else self.out(x)


resnet50 = ResNet
resnet18 = functools.partial(ResNet, stages=(2, 2, 2, 2), bottleneck=False)
# For 32 x 32 images: 511,514 parameters for 10 classes; an epoch of 2,000 takes under a second on one CPU core.
resnet14_mini = functools.partial(ResNet, stages=(1, 1, 1, 1), width=16)
