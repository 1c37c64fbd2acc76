"""The benchmark's small models: each trains in seconds on one CPU core.

All are called as `model(x, key)` to train, where BatchNorm updates its
statistics, and as `model(x)` to evaluate. Convolutions with strides stand
where pools would: the gradient of a max-pool is slow on XLA's CPU backend.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx


class MLP(nnx.Module):
    """Dense layers with ReLU on flattened images."""

    def __init__(self, *, pixels: int, hidden: Sequence[int], classes: int, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [nnx.Linear(i, o, rngs=rngs) for i, o in itertools.pairwise([pixels, *hidden, classes])]
        )

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, classes) of images (n, height, width, channels)."""
        del key
        *hidden, last = self.layers
        x = x.reshape(x.shape[0], -1)
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return last(x)


def _conv(features_in: int, features: int, rngs: nnx.Rngs, stride: int = 1, kernel: int = 3) -> nnx.Conv:
    return nnx.Conv(features_in, features, (kernel, kernel), strides=stride, rngs=rngs)


class ConvNet(nnx.Module):
    """Convolutions of stride 2 with ReLU, then a dense layer on what is left of the image."""

    def __init__(self, *, image_size: int, channels: Sequence[int], classes: int, rngs: nnx.Rngs):
        self.convs = nnx.List([_conv(i, o, rngs, stride=2) for i, o in itertools.pairwise([1, *channels])])
        side = image_size
        for _ in channels:
            side = -(-side // 2)
        self.out = nnx.Linear(side**2 * channels[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, classes) of images (n, height, width, 1)."""
        del key
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return self.out(x.reshape(x.shape[0], -1))


class _Residual(nnx.Module):
    """Two 3 x 3 convolutions with BatchNorm, and a way around them (He et al., 2015)."""

    def __init__(self, features_in: int, features: int, stride: int, rngs: nnx.Rngs):
        # 0.9: an epoch has only tens of steps.
        self.norm1 = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.norm2 = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.conv1 = _conv(features_in, features, rngs, stride)
        self.conv2 = _conv(features, features, rngs)
        same = features_in == features and stride == 1
        self.around = nnx.data(None if same else _conv(features_in, features, rngs, stride, kernel=1))

    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        y = jax.nn.relu(self.norm1(self.conv1(x), use_running_average=not training))
        y = self.norm2(self.conv2(y), use_running_average=not training)
        return jax.nn.relu(y + (x if self.around is None else self.around(x)))


class ResNet(nnx.Module):
    """A BatchNorm ResNet: a stem on patches, one residual block per stage, each later stage at half the size."""

    def __init__(self, *, patch: int, channels: Sequence[int], classes: int, rngs: nnx.Rngs):
        self.stem = _conv(1, channels[0], rngs, stride=patch, kernel=patch)
        self.norm = nnx.BatchNorm(channels[0], momentum=0.9, rngs=rngs)
        widths = itertools.pairwise([channels[0], *channels])
        self.blocks = nnx.List([_Residual(i, o, 1 if n == 0 else 2, rngs) for n, (i, o) in enumerate(widths)])
        self.out = nnx.Linear(channels[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, classes) of images (n, height, width, 1); trains BatchNorm if there is a key."""
        training = key is not None
        x = jax.nn.relu(self.norm(self.stem(x), use_running_average=not training))
        for block in self.blocks:
            x = block(x, training)
        return self.out(x.mean((1, 2)))


class _Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, features: int, heads: int, causal: bool, rngs: nnx.Rngs):
        self.heads = heads
        self.causal = causal
        self.norm1 = nnx.LayerNorm(features, rngs=rngs)
        self.qkv = nnx.Linear(features, 3 * features, rngs=rngs)
        self.mix = nnx.Linear(features, features, rngs=rngs)
        self.norm2 = nnx.LayerNorm(features, rngs=rngs)
        self.up = nnx.Linear(features, 4 * features, rngs=rngs)
        self.down = nnx.Linear(4 * features, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, length, features = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, features // self.heads)
        mixed = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0), is_causal=self.causal)
        x = x + self.mix(mixed.reshape(n, length, features))
        return x + self.down(jax.nn.gelu(self.up(self.norm2(x))))


def _positions(length: int, features: int, rngs: nnx.Rngs) -> nnx.Param[jax.Array]:
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), (length, features)))


class ViT(nnx.Module):
    """A vision transformer: square patches, learned positions, mean over the patches."""

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        features: int,
        depth: int,
        heads: int,
        classes: int,
        rngs: nnx.Rngs,
    ):
        self.patch = patch
        self.embed = nnx.Linear(patch**2, features, rngs=rngs)
        self.positions = _positions((image_size // patch) ** 2, features, rngs)
        self.blocks = nnx.List([_Block(features, heads, False, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.out = nnx.Linear(features, classes, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, classes) of images (n, height, width, 1)."""
        del key
        n, side = x.shape[0], x.shape[1] // self.patch
        patches = x.reshape(n, side, self.patch, side, self.patch).swapaxes(2, 3)
        x = self.embed(patches.reshape(n, side**2, self.patch**2)) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x).mean(1))


class CharacterModel(nnx.Module):
    """A causal transformer over characters."""

    def __init__(
        self, *, length: int, features: int, depth: int, heads: int, characters: int, rngs: nnx.Rngs
    ):
        self.embed = nnx.Embed(characters, features, rngs=rngs)
        self.positions = _positions(length, features, rngs)
        self.blocks = nnx.List([_Block(features, heads, True, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.out = nnx.Linear(features, characters, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, length, characters) of the next characters of (n, length)."""
        del key
        x = self.embed(x) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


class CharacterGRU(nnx.Module):
    """A gated recurrent layer over characters (Cho et al., 2014), from a state of zeros at each window's start."""

    def __init__(self, *, length: int, features: int, characters: int, rngs: nnx.Rngs):
        del length  # the same at every position
        self.embed = nnx.Embed(characters, features, rngs=rngs)
        self.inputs = nnx.Linear(features, 3 * features, rngs=rngs)
        orthogonal = nnx.initializers.orthogonal()
        self.recurrent = nnx.Linear(features, 3 * features, kernel_init=orthogonal, rngs=rngs)
        self.out = nnx.Linear(features, characters, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, length, characters) of the next characters of (n, length)."""
        del key
        inputs = self.inputs(self.embed(x)).swapaxes(0, 1)  # (length, n, 3 features), outside of the loop
        start = jnp.zeros((x.shape[0], self.out.in_features))
        kernel, bias = self.recurrent.kernel[...], self.recurrent.bias
        assert bias is not None

        def step(state: jax.Array, given: jax.Array) -> tuple[jax.Array, jax.Array]:
            reset, keep, new = jnp.split(given, 3, axis=-1)
            reset_by, keep_by, new_by = jnp.split(state @ kernel + bias[...], 3, axis=-1)
            reset, keep = jax.nn.sigmoid(reset + reset_by), jax.nn.sigmoid(keep + keep_by)
            state = keep * state + (1 - keep) * jnp.tanh(new + reset * new_by)
            return state, state

        _, states = jax.lax.scan(step, start, inputs)
        return self.out(states.swapaxes(0, 1))


class Autoencoder(nnx.Module):
    """Dense layers with GELU to a linear code and back."""

    def __init__(self, *, pixels: int, hidden: int, code: int, rngs: nnx.Rngs):
        self.encode = nnx.List([nnx.Linear(pixels, hidden, rngs=rngs), nnx.Linear(hidden, code, rngs=rngs)])
        self.decode = nnx.List([nnx.Linear(code, hidden, rngs=rngs), nnx.Linear(hidden, pixels, rngs=rngs)])

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Pixels (n, pixels) anew from pixels (n, pixels)."""
        del key
        for first, second in (self.encode, self.decode):
            x = second(jax.nn.gelu(first(x)))
        return x
