"""Slow drift: the mean of the optimizer's own motion goes on."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from pdt_optax._shapes import expect
from pdt_optax.dynamics import Dynamics, Fit, Forecast
from pdt_optax.schedule import is_number

# The logarithm of the gain grows by up to _FASTER at a boundary, all of it where the cosine of the path is
# _WIDTH above _ALIGNED, and falls as fast below it. See docs/what-works.md for what else was tried.
_ALIGNED = 0.15
_WIDTH = 0.1
_FASTER = 0.2


class Pull(NamedTuple):
    """What a running mean knows besides the mean itself.

    Attributes:
      weight: (), float32; what all motion so far weighs in the mean, in units of the newest; 0 before any.
      gain: (), float32; how much of the mean motion the next prediction adds.
    """

    weight: Array
    gain: Array


@dataclasses.dataclass(frozen=True)
class slow_drift(Dynamics):  # noqa: N801 - used like a function, printed like a value
    r"""Every weight goes on with the mean of the optimizer's own motion.

    At the end of epoch n the optimizer has moved the weights by d_n, without
    what was delivered to them. The mean of this motion is exponential,

        m_n = m_(n-1) + k_n (d_n - m_(n-1)),

    with k_n such that it looks back on about `memory` epochs and is unbiased
    from the first. The prediction adds gain * m_n, less what would make the
    weights longer: extrapolating their growth ruins runs. Weights
    that the optimizer never moved are left alone.

    The gain follows the path: while the optimizer goes on in the direction of
    its past mean motion although that is delivered to it, which is while the
    cosine of d_n and m_(n-1) is above 0.15, the gain grows, up to `most_gain`.
    Otherwise it falls back to `gain`.

    A history keeps the mean itself and the newest snapshot: it needs no window
    of them. `predict_and_mask` computes the same mean from a window, with the
    smallest gain.

    Args:
      memory: how far back the mean looks: a share of the epochs so far if below
        1 (at least two epochs), else that many epochs.
      gain: of the mean motion, the smallest; 1 doubles the speed of what persists.
      most_gain: the largest.
      outward: whether the prediction may make the weights longer.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> import jax.numpy as jnp, pdt_optax
      >>> snapshots, params = [jnp.array([4.0, 1.0]), jnp.array([3.0, 2.0])], jnp.array([2.0, 3.0])
      >>> rest = {"accept": pdt_optax.everything(), "horizon": 1, "step": 5}
      >>> outward = pdt_optax.slow_drift(outward=True)
      >>> pdt_optax.predict_and_mask(snapshots, params, dynamics=outward, **rest).params
      Array([1., 4.], dtype=float32)
      >>> held = pdt_optax.slow_drift()  # the same length to first order
      >>> [round(float(w), 3) for w in pdt_optax.predict_and_mask(snapshots, params, dynamics=held, **rest).params]
      [0.846, 3.769]
    """

    memory: float = 0.35
    gain: float = 1.0
    most_gain: float = 3.5
    outward: bool = False

    fit: ClassVar[Fit] = "current"  # pyright: ignore[reportIncompatibleVariableOverride]
    minimum_window: ClassVar[int] = 1  # pyright: ignore[reportIncompatibleVariableOverride]
    moved_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (is_number(self.memory) and 0 < self.memory < jnp.inf):
            raise ValueError(
                "`memory` must be positive: a share of the epochs so far below 1, else a number of epochs. "
                f"Got memory={self.memory!r}."
            )
        if not (
            is_number(self.gain) and is_number(self.most_gain) and 0 < self.gain <= self.most_gain < jnp.inf
        ):
            raise ValueError(
                "`gain` must be positive and at most `most_gain`: it grows from the one to the other. "
                f"Got gain={self.gain!r}, most_gain={self.most_gain!r}."
            )

    def start(self) -> Pull:
        """Before the first epoch."""
        return Pull(jnp.zeros((), jnp.float32), jnp.full((), self.gain, jnp.float32))

    def rate(self, weight: Array, epochs: Any) -> tuple[Array, Array]:
        """How much of the newest motion goes into the mean, k_n; and the weight of all, itself included.

        Args:
          weight: of all motion before it.
          epochs: trained so far, the newest included.
        """
        far = self.memory if self.memory >= 1 else jnp.maximum(self.memory * epochs, 2.0)
        weight = (1 - 1 / far) * weight + 1
        return 1 / weight, weight

    def next_gain(self, gain: Array, alignment: Array) -> Array:
        """The gain after an epoch to which the mean motion was delivered, by the cosine of its own motion with that."""
        above = jnp.clip((alignment - _ALIGNED) / _WIDTH, -1, 1)
        return jnp.clip(gain * jnp.exp(_FASTER * above), self.gain, self.most_gain)

    def inward(self, along: Array, square: Array) -> Array:
        """The coefficient of the weights that keeps a motion from making them longer.

        Args:
          along: inner product of the motion and the weights.
          square: of the weights with themselves; both over the weights that ever moved.
        """
        longer = 0.0 if self.outward else jnp.maximum(along, 0)
        return -longer / jnp.where(square > 0, square, 1)

    def __call__(self, gram: Array, horizon: int, *, size: int, epsilon: float, epoch: Array) -> Forecast:
        del size, epsilon
        count = gram.shape[0] - 1
        expect("gram", gram, count + 1, count + 1)
        weight, coefficients = jnp.zeros((), gram.dtype), jnp.zeros(count, gram.dtype)
        for j in range(count):  # oldest first, as at the ends of their epochs
            k, weight = self.rate(weight, jnp.maximum(epoch + 2 - count + j, 1))
            coefficients = ((1 - k) * coefficients).at[j].set(k)
        held = self.inward(coefficients @ gram[1:, 0], gram[0, 0])
        step = self.gain * jnp.concatenate([held[None], coefficients])
        eigenvalues = jnp.zeros(count, jnp.complex64).at[0].set(1)
        return Forecast(
            jnp.broadcast_to(step, (horizon, count + 1)),
            jnp.zeros(count),
            jnp.ones((), jnp.int32),
            lax.convert_element_type(eigenvalues, jnp.complex64),
        )
