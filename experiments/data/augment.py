"""Augmentations on the device: pure functions of images (n, height, width, channels) and a key."""

import jax
import jax.numpy as jnp


def random_crop(
    x: jax.Array, key: jax.Array, *, least: float = 0.08, ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> jax.Array:
    """Random-resized crops: a part of each image, of random area and shape, resized to the whole (bilinear).

    Args:
      x: images, floating.
      key: of the draw, one crop for each image.
      least: the least share of the area; the greatest is 1. Crops that would be wider
        or higher than the image are cut to it.
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
      key: of the draw, another one for each image.
    """

    def grey(x: jax.Array) -> jax.Array:
        return jnp.sum(x * jnp.array([0.299, 0.587, 0.114]), -1, keepdims=True)

    def blend(x: jax.Array, towards: jax.Array | float, share: jax.Array) -> jax.Array:
        return jnp.clip(towards + (x - towards) * share, 0, 1)

    each = (x.shape[0], 1, 1, 1)
    of_shares, of_use, of_grey = jax.random.split(key, 3)
    brightness, contrast, saturation = jax.random.uniform(of_shares, (3, *each), minval=0.6, maxval=1.4)
    y = blend((x + 1) / 2, 0.0, brightness)
    y = blend(y, grey(y).mean((1, 2), keepdims=True), contrast)
    y = blend(y, grey(y), saturation)
    x = jnp.where(jax.random.bernoulli(of_use, 0.8, each), 2 * y - 1, x)
    return jnp.where(jax.random.bernoulli(of_grey, 0.2, each), grey(x), x)


def view(x: jax.Array, key: jax.Array) -> jax.Array:
    """A view for SimSiam: a random-resized crop of at least a fifth, flip, colours (without hue and blur)."""
    crop, flip, colours = jax.random.split(key, 3)
    return random_colours(random_flip(random_crop(x, crop, least=0.2), flip), colours)
