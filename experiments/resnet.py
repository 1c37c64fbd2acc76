"""Residual networks in torchvision's layout: ResNet-50 and ResNet-18, and small members of the family.

References:
  He et al., Deep residual learning for image recognition, 2015.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

_kernel_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(
    features_in: int, features: int, kernel: int, stride: int, rngs: nnx.Rngs, *, dtype: Any
) -> nnx.Conv:
    return nnx.Conv(
        features_in,
        features,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        kernel_init=_kernel_init,
        dtype=dtype,
        rngs=rngs,
    )


class Block(nnx.Module):
    """Convolutions with BatchNorm, and a way around them.

    Two 3 x 3 ones; or, as a bottleneck, 1 x 1, 3 x 3 and 1 x 1, the last to four times
    the features. The 3 x 3 one has the stride, as in torchvision.
    """

    def __init__(
        self, features_in: int, features: int, stride: int, bottleneck: bool, rngs: nnx.Rngs, dtype: Any
    ):
        layer = functools.partial(_conv, rngs=rngs, dtype=dtype)
        if bottleneck:
            out = 4 * features
            convs = [
                layer(features_in, features, 1, 1),
                layer(features, features, 3, stride),
                layer(features, out, 1, 1),
            ]
        else:
            out = features
            convs = [layer(features_in, features, 3, stride), layer(features, features, 3, 1)]
        self.convs = nnx.List(convs)
        self.norms = nnx.List(
            [nnx.BatchNorm(c.out_features, momentum=0.9, dtype=dtype, rngs=rngs) for c in convs]
        )
        same = features_in == out and stride == 1
        self.around = nnx.data(None if same else layer(features_in, out, 1, stride))
        self.around_norm = nnx.data(
            None if same else nnx.BatchNorm(out, momentum=0.9, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        y = x
        last = len(self.convs) - 1
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y), use_running_average=not training)
            y = y if i == last else jax.nn.relu(y)
        if self.around is not None and self.around_norm is not None:
            x = self.around_norm(self.around(x), use_running_average=not training)
        return jax.nn.relu(x + y)


class ResNet(nnx.Module):
    """A residual network.

    Args:
      classes: number of outputs; None for features alone, which `encode` gives in any case.
      stages: blocks in each stage; all stages but the first halve the image.
      bottleneck: whether the blocks are bottlenecks.
      width: features of the first stage; each later one doubles them.
      stem: "imagenet", 7 x 7 of stride 2 and a max pool; or "cifar", 3 x 3, for small images.
      dtype: what it computes in; weights and logits are float32.
      rngs: of the initial weights.

    The defaults are ResNet-50: 25,557,032 parameters for 1,000 classes. Inputs are (n, height, width, 3).
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
        self.stem = _conv(3, width, kernel, stride, rngs, dtype=dtype)
        self.norm = nnx.BatchNorm(width, momentum=0.9, dtype=dtype, rngs=rngs)
        blocks, features_in = [], width
        for stage, count in enumerate(stages):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Block(features_in, width * 2**stage, stride, bottleneck, rngs, dtype))
                features_in = width * 2**stage * (4 if bottleneck else 1)
        self.blocks = nnx.List(blocks)
        self.features = features_in
        self.out = nnx.data(None if classes is None else nnx.Linear(features_in, classes, rngs=rngs))

    def encode(self, x: jax.Array, training: bool = False) -> jax.Array:
        """Features (n, self.features), float32."""
        x = jax.nn.relu(self.norm(self.stem(x), use_running_average=not training))
        if self.pools:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x, training)
        return x.astype(jnp.float32).mean((1, 2))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, classes); trains BatchNorm if there is a key."""
        features = self.encode(x, key is not None)
        return features if self.out is None else self.out(features)
