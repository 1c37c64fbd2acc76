"""The report of an epoch's end. No field is ever NaN because something is not known: flags say what is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Value(NamedTuple):
    """An epoch's value.

    Attributes:
      mean: (), float32; 0 if none came.
      given: (), bool; whether one came.
    """

    mean: jax.Array
    given: jax.Array

    @classmethod
    def none(cls) -> "Value":
        return cls(jnp.zeros((), jnp.float32), jnp.array(False))


class PDTReport(NamedTuple):
    """What happened at an epoch's end; the same structure whether or not it predicted.

    Attributes:
      epoch: (), int32; its number, from 0. An epoch that the guard took back does not
        count. Where it stands still, the state that `end_epoch` returned was not put back.
      update_count: (), int32; how many updates the epoch had; 0 beside an optimizer, where none are seen.
      predicted: (), bool; a prediction was made and its accepted weights moved, or
        with `gradual` will be moved by the coming updates (with `dry_run`: would).
      finite: (), bool; False if a prediction was due but dropped, because it or
        the window held a number that was not finite.
      horizon: (), int32, snapshots ahead; 0 without a prediction.
      continued: (), bool; with `every`: the epoch began at the weights that the last
        one's end left. False if something else moved them in between, such as another
        wrapper around this one; then nothing was predicted.
      accepted_share: (), float32; of the predicted weights, those that the prediction
        moves; 0 without one. Weights that the optimizer never moves count as not accepted.
      accepted_share_per_leaf: (leaves,), float32, in the order of `leaf_paths`.
      singular_values, eigenvalues: (window - 1,); 0 without a prediction, past
        `rank`, and where the model does not need them: `drift` has no singular values,
        and one eigenvalue, 1.
      rank: (), int32; 0 without a prediction.
      mean_value: (), float32; the epoch's `value` (its loss); 0 if none came.
      has_value: (), bool; whether one came.
      value_missing: (), bool; the guard or the schedule needed the epoch's
        value and none came, so neither of them judged it.
      rolled_back: (), bool; the guard took the last jump back, and this epoch with it.
      persistence: (), float32; how much of its past mean motion the optimizer went on
        doing by itself in this epoch, over all predicted weights: above 0 the path goes
        on, below it turns back. 0 unless the model is a running one, and in the first epoch.
      persistence_per_leaf: (leaves,), float32; the same for each leaf.
      alignment: (), float32; the cosine of the epoch's own motion with the past mean
        motion, which the gain follows. 0 where nothing moved, or in the first epoch.
      gain: (), float32; of a running model, how much of the mean motion it adds; else 0.
      gradual: (), bool; the coming updates deliver the displacement in equal parts;
        otherwise the weights jump at the epoch's end.
      delivered_share: (), float32; of the displacement before this one, how much the
        epoch's updates delivered; below 1 the epoch was shorter than the one before it,
        and the rest was dropped. 1 where there was nothing to deliver.
    """

    epoch: jax.Array
    update_count: jax.Array
    predicted: jax.Array
    finite: jax.Array
    horizon: jax.Array
    continued: jax.Array
    accepted_share: jax.Array
    accepted_share_per_leaf: jax.Array
    singular_values: jax.Array
    eigenvalues: jax.Array
    rank: jax.Array
    mean_value: jax.Array
    has_value: jax.Array
    value_missing: jax.Array
    rolled_back: jax.Array
    persistence: jax.Array
    persistence_per_leaf: jax.Array
    alignment: jax.Array
    gain: jax.Array
    gradual: jax.Array
    delivered_share: jax.Array


def no_report(spectrum: int, leaves: int, value: Value | None = None) -> PDTReport:
    """The report of an epoch without a prediction."""
    value = Value.none() if value is None else value
    return PDTReport(
        epoch=jnp.zeros((), jnp.int32),
        update_count=jnp.zeros((), jnp.int32),
        predicted=jnp.array(False),
        finite=jnp.array(True),
        horizon=jnp.zeros((), jnp.int32),
        continued=jnp.array(True),
        accepted_share=jnp.zeros((), jnp.float32),
        accepted_share_per_leaf=jnp.zeros(leaves, jnp.float32),
        singular_values=jnp.zeros(spectrum, jnp.float32),
        eigenvalues=jnp.zeros(spectrum, jnp.complex64),
        rank=jnp.zeros((), jnp.int32),
        mean_value=value.mean,
        has_value=value.given,
        value_missing=jnp.array(False),
        rolled_back=jnp.array(False),
        persistence=jnp.zeros((), jnp.float32),
        persistence_per_leaf=jnp.zeros(leaves, jnp.float32),
        alignment=jnp.zeros((), jnp.float32),
        gain=jnp.zeros((), jnp.float32),
        gradual=jnp.array(False),
        delivered_share=jnp.ones((), jnp.float32),
    )
