"""What a history keeps of the motion: the optimizer's own, and what is delivered to it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdt_optax._slow import Pull


class Motion(NamedTuple):
    """What a running model remembers of the optimizer's own motion.

    Attributes:
      mean: of a boundary's displacement, in float32 or wider, a tree like the
        snapshots; at a boundary, the list of its leaves.
      pull: see `Pull`.
    """

    mean: optax.Params
    pull: Pull


class Delivery(NamedTuple):
    """What the coming updates add to the weights, in equal parts.

    Attributes:
      displacement: in all, a tree like the snapshots with a `MaskedNode` for
        each leaf of less than 32 bits, which is moved at once; at a boundary,
        the list of its leaves.
      parts: (), int32; in how many updates.
    """

    displacement: optax.Params
    parts: jax.Array

    def part(self, updates_seen: jax.Array) -> jax.Array:
        """The part of the displacement that the next update adds, after so many: (), float32."""
        return jnp.where(updates_seen < self.parts, 1 / jnp.maximum(self.parts, 1), 0).astype(jnp.float32)

    def share(self, updates_seen: jax.Array) -> jax.Array:
        """The share of the displacement that so many updates have added: (), float32."""
        done = jnp.minimum(updates_seen, self.parts) / jnp.maximum(self.parts, 1)
        return jnp.where(self.parts > 0, done, 0).astype(jnp.float32)


def is_gradual(leaf: jax.Array) -> bool:
    """Whether a leaf can take a displacement in parts: in less than 32 bits they would be rounded away."""
    return leaf.dtype.itemsize >= 4
