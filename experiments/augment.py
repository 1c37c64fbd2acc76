"""Augmentations on the device: pure functions of float images (n, height, width, channels) and a key."""

import jax
import jax.numpy as jnp

_GREY = jnp.array([0.299, 0.587, 0.114])


def random_crop(
    x: jax.Array, key: jax.Array, *, least: float = 0.08, ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> jax.Array:
    """Random-resized crops: a part of each image, of random area and shape, resized to the whole (bilinear).

    Args:
      x: images.
      key: of the draw, one crop for each image.
      least: the least share of the area; the greatest is 1.
      ratio: the range of width / height, drawn evenly in its logarithm.
    """
    n, height, width, _ = x.shape
    of_area, of_ratio, of_place = jax.random.split(key, 3)
    area = jax.random.uniform(of_area, (n,), minval=least, maxval=1.0)
    shape = jnp.exp(jax.random.uniform(of_ratio, (n,), minval=jnp.log(ratio[0]), maxval=jnp.log(ratio[1])))
    sides = jnp.minimum(jnp.stack([jnp.sqrt(area / shape), jnp.sqrt(area * shape)], 1), 1.0)
    corners = jax.random.uniform(of_place, (n, 2)) * (1 - sides)
    size = jnp.array([height, width])

    def crop(image: jax.Array, side: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), 1 / side, -corner * size / side, "linear", antialias=False
        )

    return jax.vmap(crop)(x, sides, corners)


def random_flip(x: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors each image, left to right, with probability 1/2."""
    flips = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
    return jnp.where(flips, x[:, :, ::-1], x)


def random_colours(x: jax.Array, key: jax.Array) -> jax.Array:
    """Brightness, contrast and saturation within 40%, with probability 0.8; all grey with probability 0.2.

    Args:
      x: images of three channels in [-1, 1].
      key: of the draw.
    """
    keys = jax.random.split(key, 5)
    brightness, contrast, saturation = (
        jax.random.uniform(k, (x.shape[0], 1, 1, 1), minval=0.6, maxval=1.4) for k in keys[:3]
    )

    def grey(x: jax.Array) -> jax.Array:
        return jnp.sum(x * _GREY, -1, keepdims=True)

    original, x = x, (x + 1) / 2
    x = jnp.clip(x * brightness, 0, 1)
    x = jnp.clip((x - grey(x).mean((1, 2), keepdims=True)) * contrast + grey(x).mean((1, 2), keepdims=True), 0, 1)
    x = jnp.clip((x - grey(x)) * saturation + grey(x), 0, 1) * 2 - 1
    x = jnp.where(jax.random.bernoulli(keys[3], 0.8, (x.shape[0], 1, 1, 1)), x, original)
    drained = jax.random.bernoulli(keys[4], 0.2, (x.shape[0], 1, 1, 1))
    return jnp.where(drained, grey(x), x)


def view(x: jax.Array, key: jax.Array) -> jax.Array:
    """A view for SimSiam: a random-resized crop of at least a fifth, flip, colours (without hue or blur)."""
    crop, flip, colours = jax.random.split(key, 3)
    return random_colours(random_flip(random_crop(x, crop, least=0.2), flip), colours)
