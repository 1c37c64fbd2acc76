"""SimSiam: two views of an image, a predictor, a stopped gradient; and a linear probe of what it learnt.

References:
  Chen and He, Exploring simple siamese representation learning, 2021.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data import augment
from experiments.models.resnet import ResNet, resnet18

_norm = functools.partial(nnx.BatchNorm, momentum=0.9)


class SimSiam(nnx.Module):
    """A backbone, a projector with BatchNorm after every layer, and a predictor with a bottleneck.

    The defaults are the authors' for CIFAR-10: ResNet-18 with a stem for small images, and two
    layers in the projector; 18,516,032 parameters.

    Args:
      backbone: from images to features (n, backbone.features); None for the default.
      layers: of the projector.
      projection: features of each of them.
      bottleneck: hidden features of the predictor.
      dtype: what the default backbone computes in; weights are float32.
      rngs: of the initial weights.
    """

    def __init__(
        self,
        backbone: ResNet | None = None,
        *,
        layers: int = 2,
        projection: int = 2048,
        bottleneck: int = 512,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone or resnet18(None, stem="cifar", dtype=dtype, rngs=rngs)
        widths = itertools.pairwise([self.backbone.features] + [projection] * layers)
        # BatchNorm takes a bias out again, and the last one neither scales nor shifts.
        self.projector = nnx.List([nnx.Linear(i, o, use_bias=False, rngs=rngs) for i, o in widths])
        self.norms = nnx.List([_norm(projection, rngs=rngs) for _ in range(layers - 1)])
        self.last_norm = _norm(projection, use_bias=False, use_scale=False, rngs=rngs)
        self.narrow = nnx.Linear(projection, bottleneck, use_bias=False, rngs=rngs)
        self.narrow_norm = _norm(bottleneck, rngs=rngs)
        self.widen = nnx.Linear(bottleneck, projection, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Projections and predictions, each (n, projection); trains BatchNorm if there is a key."""
        average = key is None
        z = self.backbone(x, key)
        for layer, norm in zip(self.projector, [*self.norms, self.last_norm], strict=True):
            z = norm(layer(z), use_running_average=average)
            z = z if norm is self.last_norm else jax.nn.relu(z)
        p = jax.nn.relu(self.narrow_norm(self.narrow(z), use_running_average=average))
        return z, self.widen(p)


def negative_cosine(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Minus the cosine between rows, (n,); no gradient reaches `target`."""

    def unit(x: jax.Array) -> jax.Array:
        # Not by the norm, whose gradient at a row of zeros is NaN.
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-16))

    return -jnp.sum(unit(prediction) * unit(jax.lax.stop_gradient(target)), axis=-1)


def losses(model: SimSiam, x: jax.Array, key: jax.Array, *, training: bool) -> jax.Array:
    """The loss of each image, (n,), in [-1, 1]: of two views, each predicts where the other went."""
    (z1, p1), (z2, p2) = (
        model(augment.view(x, view), view if training else None) for view in jax.random.split(key)
    )
    return (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2


def linear_probe(
    features: np.ndarray, targets: np.ndarray, test_features: np.ndarray, test_targets: np.ndarray
) -> float:
    """Accuracy of a linear classifier on frozen features: ridge regression to the classes.

    It is solved exactly, so that the figure says nothing of a probe's own training.

    Args:
      features, targets: (n, d) and (n,), what it is fitted to; features are standardised by them.
      test_features, test_targets: likewise, what it is judged on.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1e-3 * len(features)))
    return float(probe.fit(features, targets).score(test_features, test_targets))
