"""Trees of parameters with the leaf shapes of real models."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.alexnet import AlexNet

Shapes = dict[str, tuple[int, ...]]

# Widths of AlexNet whose parameters come closest to these sizes; 57 M is the original.
ALEXNETS = {"1M": 0.13, "4M": 0.263, "16M": 0.5295, "57M": 1.0}


def alexnet(size: str) -> Shapes:
    """AlexNet's leaves at one of the sizes in `ALEXNETS`."""
    model = nnx.eval_shape(lambda: AlexNet(10, width=ALEXNETS[size], rngs=nnx.Rngs(0)))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))
    return {jax.tree_util.keystr(path): x.shape for path, x in leaves}


def vit_huge() -> Shapes:
    """ViT-H/14 at 224 x 224 (Dosovitskiy et al., 2021): 632,045,800 parameters in 392 leaves."""
    d, mlp = 1280, 5120
    block = {
        "norm1/scale": (d,),
        "norm1/bias": (d,),
        "qkv/kernel": (d, 3 * d),
        "qkv/bias": (3 * d,),
        "out/kernel": (d, d),
        "out/bias": (d,),
        "norm2/scale": (d,),
        "norm2/bias": (d,),
        "up/kernel": (d, mlp),
        "up/bias": (mlp,),
        "down/kernel": (mlp, d),
        "down/bias": (d,),
    }
    rest = {
        "class": (1, 1, d),
        "positions": (1, 257, d),
        "patches/kernel": (14, 14, 3, d),
        "patches/bias": (d,),
        "norm/scale": (d,),
        "norm/bias": (d,),
        "head/kernel": (d, 1000),
        "head/bias": (1000,),
    }
    return rest | {f"block{i}/{name}": shape for i in range(32) for name, shape in block.items()}


def many_small(leaves: int = 400, size: int = 1280) -> Shapes:
    """So many vectors, as the biases and norms of a deep transformer."""
    return {f"leaf{i}": (size,) for i in range(leaves)}


def count(shapes: Shapes) -> int:
    """How many parameters there are."""
    return sum(math.prod(shape) for shape in shapes.values())


def random_walk(shapes: Shapes, steps: int, seed: int = 0) -> list[dict[str, jax.Array]]:
    """`steps` trees of float32: weights of a layer's usual size, then small steps with some persistence.

    One jitted call a tree: the host never holds a copy.
    """

    @jax.jit
    def start(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(shapes))
        return {
            n: 0.02 * jax.random.normal(k, s, jnp.float32)
            for (n, s), k in zip(shapes.items(), keys, strict=True)
        }

    @jax.jit
    def step(tree: Any, velocity_key: jax.Array, key: jax.Array) -> Any:
        keys = zip(
            jax.random.split(velocity_key, len(shapes)), jax.random.split(key, len(shapes)), strict=True
        )
        return {
            name: x + 1e-3 * (jax.random.normal(v, x.shape) + jax.random.normal(k, x.shape))
            for (name, x), (v, k) in zip(tree.items(), keys, strict=True)
        }

    key, velocity = jax.random.split(jax.random.key(seed))
    trees = [start(key)]
    for i in range(1, steps):
        trees.append(step(trees[-1], velocity, jax.random.fold_in(key, i)))
    return jax.block_until_ready(trees)
