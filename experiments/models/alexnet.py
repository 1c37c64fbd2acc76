"""The paper's networks for CIFAR-10 in Flax nnx: FCNet, FCN and AlexNet.

All models are called as `model(x, key)` to train, as `model(x)` to evaluate,
and return float32 logits. `dtype` is what they compute in; weights are float32.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# PyTorch's defaults, which the paper trains from: U(-a, a) with a = fan_in^(-1/2),
# for weights and biases alike.
_kernel_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _bias_init(fan_in: int) -> nnx.Initializer:
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    features_in: int,
    features: int,
    kernel: int,
    rngs: nnx.Rngs,
    *,
    stride: int = 1,
    pad: int = 0,
    dtype: Any = None,
) -> nnx.Conv:
    """A square convolution, initialised as PyTorch does."""
    return nnx.Conv(
        features_in,
        features,
        (kernel, kernel),
        strides=stride,
        padding=pad,
        kernel_init=_kernel_init,
        bias_init=_bias_init(features_in * kernel**2),
        dtype=dtype,
        rngs=rngs,
    )


def linear(features_in: int, features: int, rngs: nnx.Rngs, *, dtype: Any = None) -> nnx.Linear:
    """A dense layer, initialised as PyTorch does."""
    return nnx.Linear(
        features_in,
        features,
        kernel_init=_kernel_init,
        bias_init=_bias_init(features_in),
        dtype=dtype,
        rngs=rngs,
    )


def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Max pooling of (n, h, w, c) without padding, as the maximum of shifted slices.

    The gradient of `reduce_window` costs 20 times its forward pass on XLA's CPU backend.
    """
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    shifted = [
        x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    return functools.reduce(jnp.maximum, shifted)


def halve(x: jax.Array) -> jax.Array:
    """2 x 2 max pooling of (n, h, w, c) without padding; an odd last row or column is left out.

    Written as a reshape, its gradient costs a third of that of `reduce_window` on XLA's CPU backend.
    """
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def adaptive_mean_pool(x: jax.Array, size: int) -> jax.Array:
    """(n, h, w, c) to (n, size, size, c): bin i averages rows floor(i h / size) to ceil((i + 1) h / size)."""

    def averaging(n: int) -> np.ndarray:
        rows = np.zeros((size, n), np.float32)
        for i in range(size):
            start, stop = i * n // size, -(-(i + 1) * n // size)
            rows[i, start:stop] = 1 / (stop - start)
        return rows

    return jnp.einsum("nhwc,ih,jw->nijc", x, averaging(x.shape[1]), averaging(x.shape[2]))


class AlexNet(nnx.Module):
    """AlexNet in torchvision's layout: 57,044,810 parameters for 10 classes.

    Args:
      classes: number of outputs.
      width: scales every layer's features; 1.0 is the original.
      dtype: what it computes in; weights and logits are float32.
      rngs: of the initial weights.

    Inputs are (n, height, width, 3), at least 63 x 63.

    References:
      Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014.
    """

    smallest_image = 63

    def __init__(self, classes: int, *, width: float = 1.0, dtype: Any = None, rngs: nnx.Rngs):
        c1, c2, c3, c4, c5, hidden = (
            max(1, round(width * features)) for features in (64, 192, 384, 256, 256, 4096)
        )
        self.conv1 = conv(3, c1, 11, rngs, stride=4, pad=2, dtype=dtype)
        self.conv2 = conv(c1, c2, 5, rngs, pad=2, dtype=dtype)
        self.conv3 = conv(c2, c3, 3, rngs, pad=1, dtype=dtype)
        self.conv4 = conv(c3, c4, 3, rngs, pad=1, dtype=dtype)
        self.conv5 = conv(c4, c5, 3, rngs, pad=1, dtype=dtype)
        self.fc1 = linear(c5 * 6 * 6, hidden, rngs, dtype=dtype)
        self.fc2 = linear(hidden, hidden, rngs, dtype=dtype)
        self.fc3 = linear(hidden, classes, rngs, dtype=dtype)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, classes); with `key` in training mode, without in evaluation mode."""

        def dropout(x: jax.Array, layer: int) -> jax.Array:
            rngs = None if key is None else jax.random.fold_in(key, layer)
            return self.dropout(x, deterministic=key is None, rngs=rngs)

        x = max_pool(jax.nn.relu(self.conv1(x)), 3, 2)
        x = max_pool(jax.nn.relu(self.conv2(x)), 3, 2)
        x = jax.nn.relu(self.conv3(x))
        x = jax.nn.relu(self.conv4(x))
        x = max_pool(jax.nn.relu(self.conv5(x)), 3, 2)
        x = adaptive_mean_pool(x, 6).reshape(x.shape[0], -1)
        x = jax.nn.relu(self.fc1(dropout(x, 0)))
        x = jax.nn.relu(self.fc2(dropout(x, 1)))
        return self.fc3(x).astype(jnp.float32)


class FCNet(nnx.Module):
    """Dense layers with ReLU on flattened images: the networks of Fig. 2.

    Args:
      classes: number of outputs.
      depth: layers, 2, 4 or 6.
      pixels: values in an image; the paper's 3 x 128 x 128.
      width: scales the hidden layers' features.
      dtype: what it computes in; weights and logits are float32.
      rngs: of the initial weights.

    Raises:
      ValueError: for another depth.
    """

    hidden = {2: (256,), 4: (512, 512, 256), 6: (512, 512, 512, 512, 256)}  # noqa: RUF012

    def __init__(
        self,
        classes: int,
        *,
        depth: int,
        pixels: int = 3 * 128 * 128,
        width: float = 1.0,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        if depth not in self.hidden:
            raise ValueError(f"`depth` must be one of the paper's: 2, 4 or 6. Got {depth}.")
        widths = [max(1, round(width * features)) for features in self.hidden[depth]]
        self.layers = nnx.List(
            [linear(i, o, rngs, dtype=dtype) for i, o in itertools.pairwise([pixels, *widths, classes])]
        )

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, classes) of images (n, height, width, channels)."""
        del key
        *hidden, last = self.layers
        x = x.reshape(x.shape[0], -1)
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return last(x).astype(jnp.float32)


class FCN(nnx.Module):
    """A fully convolutional network: 3,918,858 parameters for 10 classes.

    Five blocks of a 3 x 3 convolution, BatchNorm, ReLU and 2 x 2 max pooling, a 1 x 1
    convolution to the classes, and its mean over the image.

    Args:
      classes: number of outputs.
      channels: of the blocks.
      width: scales them.
      dtype: what it computes in; weights and logits are float32.
      rngs: of the initial weights.

    Inputs are (n, height, width, 3), at least 32 x 32 for five blocks.
    """

    def __init__(
        self,
        classes: int,
        *,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        width: float = 1.0,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        channels = [max(1, round(width * features)) for features in channels]
        self.convs = nnx.List(
            [conv(i, o, 3, rngs, pad=1, dtype=dtype) for i, o in itertools.pairwise([3, *channels])]
        )
        self.norms = nnx.List(
            [nnx.BatchNorm(features, momentum=0.9, dtype=dtype, rngs=rngs) for features in channels]
        )
        self.out = conv(channels[-1], classes, 1, rngs, dtype=dtype)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, classes); trains BatchNorm if there is a key."""
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = halve(jax.nn.relu(norm(layer(x), use_running_average=key is None)))
        return self.out(x).astype(jnp.float32).mean((1, 2))
