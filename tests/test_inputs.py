"""What reaches the models: augmentations, orders of batches, crops of ImageNet's images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.data import augment, batches, imagenet


def ramp(n=64, height=16, width=24):
    """Images whose two channels are the pixel's row and column; a third is 0."""
    rows, columns = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    return jnp.broadcast_to(jnp.stack([rows, columns, 0 * rows], -1), (n, height, width, 3))


def test_a_crop_is_a_part_of_the_image_stretched_to_the_whole():
    x = ramp()
    y = jax.jit(augment.random_crop)(x, jax.random.key(0))
    inner = y[:, 4:-4, 6:-6]  # the borders may repeat the outermost pixel
    high, wide = jnp.diff(inner[..., 0], axis=1), jnp.diff(inner[..., 1], axis=2)
    np.testing.assert_allclose(high, jnp.broadcast_to(high[:, :1, :1], high.shape), atol=1e-3)
    np.testing.assert_allclose(wide, jnp.broadcast_to(wide[:, :1, :1], wide.shape), atol=1e-3)
    sides = jnp.stack([high[:, 0, 0], wide[:, 0, 0]])
    area, ratio = sides.prod(0), sides[1] / sides[0]
    assert area.min() > 0.08 * 0.999
    assert sides.max() <= 1 + 1e-5
    assert area.std() > 0.15
    assert ratio.min() > 3 / 4 * 0.999
    assert ratio.max() < 4 / 3 * 1.001
    assert jnp.unique(area).size == len(x)  # a crop for each image
    whole = jax.jit(functools.partial(augment.random_crop, least=1.0, ratio=(1, 1)))
    np.testing.assert_allclose(whole(x, jax.random.key(0)), x, atol=1e-4)


def test_half_of_the_images_are_mirrored():
    x = ramp(400)
    y = jax.jit(augment.random_flip)(x, jax.random.key(0))
    same = (y == x).all((1, 2, 3))
    np.testing.assert_array_equal(y[~same], x[~same][:, :, ::-1])
    assert 160 < same.sum() < 240


def test_colours_change_within_their_range_and_some_turn_grey():
    x = jax.random.uniform(jax.random.key(0), (400, 4, 4, 3), minval=-0.5, maxval=0.5)
    colours = jax.jit(augment.random_colours)
    y = colours(x, jax.random.key(1))
    assert jnp.abs(y).max() <= 1
    grey = jnp.ptp(y, axis=-1).max((1, 2)) < 1e-6
    untouched = (y == x).all((1, 2, 3))
    assert 50 < grey.sum() < 110  # a fifth
    assert 40 < untouched.sum() < 90  # a fifth of the others
    # Of a grey image brightness and contrast change two numbers: the mean, and the scale around it.
    grey = jnp.broadcast_to(x[..., :1], x.shape)
    z = colours(grey, jax.random.key(1))
    share = (z.mean((1, 2, 3)) + 1) / (grey.mean((1, 2, 3)) + 1)
    assert 0.6 - 1e-5 <= share.min() < 0.7
    assert 1.3 < share.max() <= 1.4 + 1e-5


def test_two_views_differ_and_repeat_by_their_key():
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1)
    view = jax.jit(augment.view)
    np.testing.assert_array_equal(view(x, jax.random.key(1)), view(x, jax.random.key(1)))
    assert (view(x, jax.random.key(1)) != view(x, jax.random.key(2))).any()


LABELS = np.random.default_rng(0).choice(5, 1000, p=[0.4, 0.3, 0.15, 0.1, 0.05]).astype(np.int32)


@pytest.mark.parametrize("size", [32, 64])
def test_batches_of_one_class_cover_the_classes_in_random_order(size):
    index = np.asarray(batches.single_class(LABELS, jax.random.key(0), size))
    assert index.shape == np.asarray(batches.shuffled(LABELS, jax.random.key(0), size)).shape
    classes = LABELS[index]
    assert (classes == classes[:, :1]).all()
    counts, of_class = np.bincount(LABELS), np.bincount(classes[:, 0], minlength=5)
    assert (of_class >= counts // size).all()
    assert (of_class <= -(-counts // size)).all()
    for batch in index if counts.min() >= size else []:
        assert np.unique(batch).size == size
    # Only the batches of leftovers repeat examples.
    repeated = index.size - np.unique(index).size
    assert repeated == np.maximum(of_class * size - counts, 0).sum()
    assert np.count_nonzero(np.diff(classes[:, 0])) > len(classes) / 3  # in class order there would be 4
    other = np.asarray(batches.single_class(LABELS, jax.random.key(1), size))
    assert (np.sort(index, axis=None) != np.sort(other, axis=None)).any()
    np.testing.assert_array_equal(index, batches.single_class(LABELS, jax.random.key(0), size))


def test_shuffled_batches_hold_every_example_once_and_mix_classes():
    index = np.asarray(batches.shuffled(LABELS, jax.random.key(0), 50))
    np.testing.assert_array_equal(np.sort(index, axis=None), np.arange(1000))
    assert all(np.unique(LABELS[batch]).size > 2 for batch in index)


def test_validation_takes_the_centre_and_training_parts_of_many_sizes():
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    assert imagenet.centre_box(32, 64) == (18, 2, 46, 30)
    np.testing.assert_array_equal(
        imagenet.resized(Image.fromarray(image), (18, 2, 46, 30), 28), image[2:30, 18:46]
    )
    rng = np.random.default_rng(0)
    boxes = np.array([imagenet.random_box(32, 64, rng) for _ in range(300)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 64).all()
    assert (boxes[:, 3] <= 32).all()
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert 0.08 <= (wide * high).min() / (32 * 64) < 0.15
    assert (wide * high).max() / (32 * 64) > 0.5
    assert (wide / high).min() >= 0.75
    assert (wide / high).max() <= 4 / 3 + 1e-9
