"""Vision transformers: ViT-Base, ViT-Huge, and a small member of the family for 32 x 32 images.

References:
  Dosovitskiy et al., An image is worth 16x16 words, 2020.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

_linear = functools.partial(nnx.Linear, kernel_init=nnx.initializers.xavier_uniform())
_norm = functools.partial(nnx.LayerNorm, epsilon=1e-6)


class _Layer(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, features: int, heads: int, dtype: Any, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1 = _norm(features, dtype=dtype, rngs=rngs)
        self.qkv = _linear(features, 3 * features, dtype=dtype, rngs=rngs)
        self.mix = _linear(features, features, dtype=dtype, rngs=rngs)
        self.norm2 = _norm(features, dtype=dtype, rngs=rngs)
        self.up = _linear(features, 4 * features, dtype=dtype, rngs=rngs)
        self.down = _linear(4 * features, features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, length, features = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, features // self.heads)
        mixed = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))
        x = x + self.mix(mixed.reshape(n, length, features))
        return x + self.down(jax.nn.gelu(self.up(self.norm2(x)), approximate=False))


@nnx.remat
def _recomputed(layer: _Layer, x: jax.Array) -> jax.Array:
    return layer(x)


class ViT(nnx.Module):
    """A vision transformer that classifies from a class token.

    The defaults are ViT-Base with 16 x 16 patches. Parameters at 224 x 224, by what is counted:

    |                                    | ViT-Base   | ViT-Huge    |
    |------------------------------------|------------|-------------|
    | torchvision's layout, 1000 classes | 86,567,656 | 632,045,800 |
    | with `pooler`, without the classes | 86,389,248 | 632,404,480 |

    The paper's 86.4 M and 632 M are the second row: a pooler, as Hugging Face's `ViTModel` has.

    Args:
      classes: number of outputs.
      image_size: height and width, a multiple of `patch`.
      patch: size of the square patches.
      features, depth, heads: of the transformer.
      pooler: put a dense tanh layer between the class token and the classes.
      recompute: keep only what enters each layer, and compute the rest anew for the
        gradient: a third more computation for a fraction of the memory.
      dtype: what it computes in; weights and logits are float32.
      rngs: of the initial weights.

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
        pooler: bool = False,
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
            3, features, (patch, patch), strides=patch, padding="VALID", dtype=dtype, rngs=rngs
        )
        self.token = nnx.Param(jnp.zeros((1, 1, features)))
        length = (image_size // patch) ** 2 + 1
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (length, features)))
        self.layers = nnx.List([_Layer(features, heads, dtype, rngs) for _ in range(depth)])
        self.norm = _norm(features, dtype=dtype, rngs=rngs)
        self.pooler = nnx.data(_linear(features, features, dtype=dtype, rngs=rngs) if pooler else None)
        self.out = _linear(features, classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits (n, classes)."""
        del key
        x = self.embed(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], 1) + self.positions[...].astype(x.dtype)
        for layer in self.layers:
            x = _recomputed(layer, x) if self.recompute else layer(x)
        x = self.norm(x[:, 0])
        x = x if self.pooler is None else jnp.tanh(self.pooler(x))
        return self.out(x).astype(jnp.float32)


vit_base = functools.partial(ViT, pooler=True)
vit_huge = functools.partial(ViT, patch=14, features=1280, depth=32, heads=16, pooler=True)
# For 32 x 32 images: 126,154 parameters for 10 classes; an epoch of 2,000 takes under a second on one CPU core.
vit_mini = functools.partial(ViT, image_size=32, patch=8, features=48, depth=4, heads=3, pooler=True)
