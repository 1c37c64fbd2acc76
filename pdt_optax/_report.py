"""The report of an epoch's end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class PDTReport(NamedTuple):
    """What happened at an epoch's end; the same structure whether or not it predicted.

    Attributes:
      predicted: (), bool; a prediction was made and its accepted weights moved, or
        with `gradual` will be moved by the coming updates (with `dry_run`: would).
      finite: (), bool; False if a prediction was due but dropped, because it or
        the window held a number that was not finite.
      horizon: (), int32, snapshots ahead; 0 without a prediction.
      accepted_share: (), float32; 0 without a prediction.
      accepted_share_per_leaf: (leaves,), float32, in the order of `leaf_paths`.
      singular_values, eigenvalues: (window - 1,); NaN without a prediction, and
        where the model does not need them: `drift` has no singular values, and
        one eigenvalue, 1.
      rank: (), int32; 0 without a prediction.
      mean_value: (), float32; the epoch's `value` (its loss), NaN if none came.
      value_missing: (), bool; the guard or the schedule needed the epoch's
        value and none came, so neither of them judged it.
      rolled_back: (), bool; the guard took the last jump back, and this epoch with it.
      persistence: (), float32; how much of its past mean motion the optimizer went on
        doing by itself in this epoch, over all predicted weights: above 0 the path goes
        on, below it turns back. NaN unless the model is a running one, and in the first epoch.
      persistence_per_leaf: (leaves,), float32, likewise.
      alignment: (), float32; the cosine of the epoch's own motion with the past mean
        motion, which the gain follows. NaN where `persistence` is.
      gain: (), float32; of a running model, how much of the mean motion it adds; else NaN.
      gradual: (), bool; the coming updates deliver the displacement in equal parts;
        otherwise the weights jump at the epoch's end.
      delivered_share: (), float32; of the displacement before this one, how much the
        epoch's updates delivered; below 1 the epoch was shorter than the one before it,
        and the rest was dropped. NaN where weights jump.
    """

    predicted: jax.Array
    finite: jax.Array
    horizon: jax.Array
    accepted_share: jax.Array
    accepted_share_per_leaf: jax.Array
    singular_values: jax.Array
    eigenvalues: jax.Array
    rank: jax.Array
    mean_value: jax.Array
    value_missing: jax.Array
    rolled_back: jax.Array
    persistence: jax.Array
    persistence_per_leaf: jax.Array
    alignment: jax.Array
    gain: jax.Array
    gradual: jax.Array
    delivered_share: jax.Array


def no_report(spectrum: int, leaves: int, value: jax.typing.ArrayLike = jnp.nan) -> PDTReport:
    """The report of an epoch without a prediction."""
    return PDTReport(
        predicted=jnp.array(False),
        finite=jnp.array(True),
        horizon=jnp.zeros((), jnp.int32),
        accepted_share=jnp.zeros((), jnp.float32),
        accepted_share_per_leaf=jnp.zeros(leaves, jnp.float32),
        singular_values=jnp.full(spectrum, jnp.nan, jnp.float32),
        eigenvalues=jnp.full(spectrum, jnp.nan, jnp.complex64),
        rank=jnp.zeros((), jnp.int32),
        mean_value=jnp.asarray(value, jnp.float32),
        value_missing=jnp.array(False),
        rolled_back=jnp.array(False),
        persistence=jnp.full((), jnp.nan, jnp.float32),
        persistence_per_leaf=jnp.full(leaves, jnp.nan, jnp.float32),
        alignment=jnp.full((), jnp.nan, jnp.float32),
        gain=jnp.full((), jnp.nan, jnp.float32),
        gradual=jnp.array(False),
        delivered_share=jnp.full((), jnp.nan, jnp.float32),
    )
