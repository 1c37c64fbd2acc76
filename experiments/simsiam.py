"""SimSiam: two views of an image, a predictor, a stopped gradient; and a linear probe of what it learnt.

References:
  Chen and He, Exploring simple siamese representation learning, 2021.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import augment
from experiments.resnet import ResNet


class SimSiam(nnx.Module):
    """A ResNet-18 for small images, a three-layer projector and a two-layer predictor.

    Args:
      stages, width: of the ResNet; the defaults are ResNet-18.
      projection: features of the projector's layers.
      bottleneck: hidden features of the predictor.
      dtype: what the ResNet computes in; weights are float32.
      rngs: of the initial weights.
    """

    def __init__(
        self,
        *,
        stages: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        projection: int = 2048,
        bottleneck: int = 512,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.backbone = ResNet(
            None, stages=stages, bottleneck=False, width=width, stem="cifar", dtype=dtype, rngs=rngs
        )
        widths = [self.backbone.features, *3 * [projection]]
        self.projector = nnx.List(
            # BatchNorm's shift makes a bias needless.
            [nnx.Linear(i, o, use_bias=False, rngs=rngs) for i, o in zip(widths, widths[1:], strict=False)]
        )
        self.norms = nnx.List([nnx.BatchNorm(projection, momentum=0.9, rngs=rngs) for _ in range(3)])
        self.narrow = nnx.Linear(projection, bottleneck, use_bias=False, rngs=rngs)
        self.narrow_norm = nnx.BatchNorm(bottleneck, momentum=0.9, rngs=rngs)
        self.widen = nnx.Linear(bottleneck, projection, rngs=rngs)

    def encode(self, x: jax.Array) -> jax.Array:
        """Features for a probe: (n, features), in evaluation mode."""
        return self.backbone.encode(x)

    def _project(self, x: jax.Array, training: bool) -> tuple[jax.Array, jax.Array]:
        z = self.backbone.encode(x, training)
        for i, (layer, norm) in enumerate(zip(self.projector, self.norms, strict=True)):
            z = norm(layer(z), use_running_average=not training)
            z = z if i == 2 else jax.nn.relu(z)
        p = jax.nn.relu(self.narrow_norm(self.narrow(z), use_running_average=not training))
        return z, self.widen(p)

    def losses(self, x: jax.Array, key: jax.Array, training: bool) -> jax.Array:
        """The loss of each image, (n,), in [-1, 1]: of two views, each predicts where the other went."""
        keys = jax.random.split(key)
        (z1, p1), (z2, p2) = (self._project(augment.view(x, k), training) for k in keys)
        return negative_cosine(p1, z2) / 2 + negative_cosine(p2, z1) / 2


def negative_cosine(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Minus the cosine between rows, (n,); no gradient reaches `target`."""

    def unit(x: jax.Array) -> jax.Array:
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)

    return -jnp.sum(unit(prediction) * unit(jax.lax.stop_gradient(target)), axis=-1)


def linear_probe(
    features: np.ndarray,
    targets: np.ndarray,
    test_features: np.ndarray,
    test_targets: np.ndarray,
    *,
    ridge: float = 1e-3,
) -> float:
    """Accuracy of the linear classifier on frozen features, by regularised least squares to one-hot targets.

    It is solved exactly, so that the figure says something of the features and
    nothing of a probe's own training. Features are standardised.

    Args:
      features, targets: (n, d) and (n,), what it is fitted to.
      test_features, test_targets: likewise, what it is judged on.
      ridge: weight of the penalty, relative to n.
    """
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    x, x_test = ((f.astype(np.float64) - mean) / deviation for f in (features, test_features))
    onehot = np.eye(int(targets.max()) + 1)[targets]
    centre = onehot.mean(0)
    gram = x.T @ x + ridge * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (onehot - centre))
    return float(np.mean((x_test @ weights + centre).argmax(1) == test_targets))
