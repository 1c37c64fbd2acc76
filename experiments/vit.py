"""Vision transformers: ViT-Base and ViT-Huge, and small members of the family.

References:
  Dosovitskiy et al., An image is worth 16x16 words, 2020.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

_kernel_init = nnx.initializers.truncated_normal(0.02)


class Layer(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, features: int, heads: int, rngs: nnx.Rngs, dtype: Any):
        def linear(features_in: int, features: int) -> nnx.Linear:
            return nnx.Linear(features_in, features, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)

        self.heads = heads
        self.norm1 = nnx.LayerNorm(features, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.qkv = linear(features, 3 * features)
        self.mix = linear(features, features)
        self.norm2 = nnx.LayerNorm(features, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.up = linear(features, 4 * features)
        self.down = linear(4 * features, features)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, length, features = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, features // self.heads)
        mixed = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))
        x = x + self.mix(mixed.reshape(n, length, features))
        return x + self.down(jax.nn.gelu(self.up(self.norm2(x)), approximate=False))


@nnx.remat
def _recomputed(layer: Layer, x: jax.Array) -> jax.Array:
    return layer(x)


class ViT(nnx.Module):
    """A vision transformer with a class token, and a dense tanh layer between it and the classes.

    Args:
      classes: number of outputs.
      image_size: height and width, a multiple of `patch`.
      patch: size of the square patches.
      features, depth, heads: of the transformer.
      recompute: keep only what enters each layer, and compute the rest anew for the
        gradient: a third more computation for a fraction of the memory.
      dtype: what it computes in; weights and logits are float32.
      rngs: of the initial weights.

    The defaults are ViT-Base. The paper's 86.4 M are the 86,389,248 parameters without the
    classes' own layer; ViT-Huge (patch 14, 1280 features, 32 layers, 16 heads) has 632,404,480.
    Inputs are (n, image_size, image_size, 3).

    Raises:
      ValueError: if the patches do not tile the image, or the heads do not share the features out.
    """

    def __init__(
        self,
        classes: int,
        *,
        image_size: int = 224,
        patch: int = 16,
        features: int = 768,
        depth: int = 12,
        heads: int = 12,
        recompute: bool = False,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        if image_size % patch or features % heads:
            raise ValueError(
                "`patch` must divide `image_size`, and `heads` must divide `features`. "
                f"Got {patch=}, {image_size=}, {heads=}, {features=}."
            )
        self.recompute = recompute
        self.embed = nnx.Conv(
            3,
            features,
            (patch, patch),
            strides=patch,
            padding="VALID",
            kernel_init=_kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.token = nnx.Param(jnp.zeros((1, 1, features)))
        length = (image_size // patch) ** 2 + 1
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (length, features)))
        self.layers = nnx.List([Layer(features, heads, rngs, dtype) for _ in range(depth)])
        self.norm = nnx.LayerNorm(features, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.pooler = nnx.Linear(features, features, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(features, classes, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, classes)."""
        del key
        x = self.embed(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], 1) + self.positions[...].astype(x.dtype)
        for layer in self.layers:
            x = _recomputed(layer, x) if self.recompute else layer(x)
        return self.out(jnp.tanh(self.pooler(self.norm(x[:, 0])))).astype(jnp.float32)
