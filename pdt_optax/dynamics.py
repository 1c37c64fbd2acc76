"""Models of the training dynamics: from a small Gram matrix to a forecast.

A model sees a window of weights w_0, ..., w_n (n + 1 = `window`), oldest to
newest, and never touches the weights themselves: it reads the Gram matrix of
the *difference basis* [w_n, w_1 - w_0, ..., w_n - w_(n-1)] and answers with
coefficients in that same basis. Everything here is `window` x `window`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from pdt_optax._coordinates import Window, factor
from pdt_optax._reduce import has_float64
from pdt_optax._shapes import expect

Fit = Literal["past", "current"]


class Forecast(NamedTuple):
    """What a model of the dynamics says about the coming `horizon` snapshots.

    Attributes:
      increments: (horizon, window); row k holds the difference-basis
        coefficients of predicted step k + 1, pred(k + 1) - pred(k), where
        pred(0) is the newest weights that the model saw.
      singular_values: (window - 1,), descending: those of w_0, ..., w_(n-1);
        0 from a model that does not need them.
      rank: (), int32; how many modes the model uses.
      eigenvalues: (window - 1,), complex, by falling modulus, 0 past `rank`
        and where the platform has no eigenvalue solver (TPU).
    """

    increments: Array
    singular_values: Array
    rank: Array
    eigenvalues: Array


class Dynamics:
    """Base of the models of the dynamics: hashable, such as a frozen dataclass, and callable.

    Attributes:
      fit: "past": fit to the snapshots alone; "current": the newest weights included.
      minimum_window: the fewest snapshots that the model can be fitted to.
      needs_gram: False computes only the diagonal of the Gram matrix, which
        costs a CPU half as much.
      moved_only: True leaves weights that did not move in the window out of
        the reference, so that they stay where they are. `fit` is "current" then.
    """

    fit: Fit = "past"
    minimum_window: int = 2
    needs_gram: ClassVar[bool] = True
    moved_only: ClassVar[bool] = False

    def __call__(self, gram: Array, horizon: int, *, size: int, epsilon: float, epoch: Array) -> Forecast:
        """Forecasts from the (window, window) Gram matrix of the difference basis.

        Args:
          gram: (window, window), float64 where the platform has it; 0 off the
            diagonal for a model that does not need it.
          horizon: how many snapshots to predict ahead.
          size: how many weights the inner products ran over.
          epsilon: machine epsilon of the weights.
          epoch: (), int32; the epoch just trained, counted from 0.
        """
        raise NotImplementedError


def check_fit(fit: str) -> None:
    """Raises ValueError unless `fit` is one of the two."""
    if fit not in ("past", "current"):
        raise ValueError(
            '`fit` must be "past" (model the snapshots) or "current" (include the newest weights). '
            f"Got {fit=}."
        )


def seen_columns(window: int, fit: Fit) -> list[int]:
    """Which of the columns `[reference, *window differences]` a model sees: its reference and `window` - 1 of them."""
    first = 1 if fit == "past" else 2
    return [0, *range(first, first + window - 1)]


Rank = Literal["gavish-donoho"] | int | float | None


def _gavish_donoho(singular_values: Array, size: int) -> Array:
    """Gavish and Donoho (2014), Eq. 5: keep s > omega(beta) * median(s), at least one.

    The lower of two middle values serves as the median, as in the released
    code: with four singular values the rank is always 1 or 2.
    """
    count = singular_values.shape[0]
    beta = count / size
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    median = singular_values[count // 2]  # descending, so this is the lower middle
    return (singular_values > omega * median).at[0].set(True)


def _kept(rank: Rank, window: Window, size: int, epsilon: float) -> Array:
    """Which singular values a rank rule keeps: (window - 1,), bool, a prefix."""
    singular_values = window.singular_values
    # Below the rounding of the weights or of the Gram matrix a singular value
    # says nothing, whatever the rule.
    significant = singular_values > jnp.maximum(epsilon * singular_values[0], window.noise)
    order = jnp.arange(singular_values.shape[0])
    if rank is None:
        return significant
    if isinstance(rank, str):
        return significant & _gavish_donoho(singular_values, size)
    if isinstance(rank, int):
        return significant & (order < rank)
    energy = jnp.cumsum(singular_values**2)
    enough = jnp.sum(energy < rank * energy[-1]) + 1
    return significant & (order < enough)


def _modulus_order(operator: Array, rank: Array) -> Array:
    if not has_float64():
        return jnp.zeros(operator.shape[0], jnp.complex64)
    finite = jnp.all(jnp.isfinite(operator))
    eigenvalues = jnp.linalg.eigvals(jnp.where(finite, operator, 0))
    eigenvalues = eigenvalues[jnp.argsort(-jnp.abs(eigenvalues))]
    known = finite & (jnp.arange(eigenvalues.shape[0]) < rank)
    return jnp.where(known, eigenvalues, 0)


@dataclasses.dataclass(frozen=True)
class dmd(Dynamics):  # noqa: N801 - used like a function, printed like a value
    r"""Dynamic Mode Decomposition (Eqs. 3 to 5): the best linear map, by least squares.

    With X = [w_0, ..., w_(n-1)], Y = [w_1, ..., w_n] and X = U S V^T cut to
    `rank`, A~ = U^T Y V S^-1 is the map in the coordinates of U. Predictions
    are powers of the real A~; no complex number is on the path.

    Args:
      rank: how many modes to keep: `"gavish-donoho"` (the optimal hard
        threshold for unknown noise, with the lower median of the released
        code), an int, a fraction in (0, 1) of the energy, the sum of the
        squared singular values, or None for every singular value above the
        working precision: the machine epsilon of the weights times the largest,
        and 1e-6 of the longest difference (the Gram matrix's own rounding).
      modes: `"projected"`, U W for the eigenvectors W of A~, or `"exact"`,
        Y V S^-1 W, the eigenvectors of A = Y X^+ itself.
      fit: `"past"`: the model sees all snapshots and starts from the newest of
        them, the weights that the epoch just trained started from (Alg. 1).
        `"current"`: the newest `window` - 1 snapshots and the weights after
        the epoch, from which it starts.
      displacement: True adds the predicted displacement
        Phi (Lambda^k - I) Phi^+ w to w, so the part of w outside the modes
        stays; False predicts Phi Lambda^k Phi^+ w itself (Eq. 5).

    Raises:
      ValueError: for an unknown `rank`, `modes` or `fit`.

    Example:
      >>> import pdt_optax
      >>> pdt_optax.dmd(rank=2)
      dmd(rank=2, modes='projected', fit='past', displacement=True)

    References:
      Schmid, Dynamic mode decomposition of numerical and experimental data,
      2010; Tu et al., On dynamic mode decomposition, 2014; Gavish and Donoho,
      The optimal hard threshold for singular values is 4/sqrt(3), 2014.
    """

    rank: Rank = "gavish-donoho"
    modes: Literal["projected", "exact"] = "projected"
    fit: Fit = "past"
    displacement: bool = True

    def __post_init__(self) -> None:
        check_fit(self.fit)
        if self.modes not in ("projected", "exact"):
            raise ValueError(f'`modes` must be "projected" or "exact". Got modes={self.modes!r}.')
        rank: Any = self.rank
        known = rank is None or rank == "gavish-donoho"
        whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
        fraction = isinstance(rank, float) and 0 < rank < 1
        if not (known or whole or fraction):
            raise ValueError(
                '`rank` must be "gavish-donoho", a whole number of modes >= 1, a fraction of the '
                f"energy between 0 and 1, or None for the numerical rank. Got {rank=}."
            )

    @property
    def minimum_window(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.rank + 1 if isinstance(self.rank, int) else 2

    def fitted(self, w: Window, size: int, epsilon: float) -> tuple[Array, Array, Array, Array]:
        """The linear map (Eqs. 3 and 4), in coordinates of its modes.

        Returns:
          Which singular values are kept, (window - 1,), bool; A~, (window - 1,
          window - 1), 0 outside them; the modes' basis in the difference basis,
          (window, window - 1); and the newest weights in it, (window - 1,).
        """
        keep = _kept(self.rank, w, size, epsilon)
        inverse = jnp.where(keep, 1 / jnp.where(keep, w.singular_values, 1), 0)
        whiten = w.right * inverse  # V S^-1, zero columns past the rank
        left = w.left * keep
        operator = left.T @ (w.coordinates @ w.newer) @ whiten  # A~, Eq. 4 in coordinates
        newest = w.coordinates[:, 0]
        if self.modes == "projected":
            return keep, operator, w.older @ whiten, left.T @ newest
        modes = w.newer @ whiten
        return keep, operator, modes, jnp.linalg.pinv(w.coordinates @ modes, rtol=1e-7) @ newest

    def __call__(self, gram: Array, horizon: int, *, size: int, epsilon: float, epoch: Array) -> Forecast:
        del epoch
        w = factor(gram)
        keep, operator, modes, amplitudes = self.fitted(w, size, epsilon)

        # pred(k + 1) - pred(k) = Phi Lambda^k (Lambda - I) Phi^+ w.
        motion = operator @ amplitudes - amplitudes
        increments = []
        for _ in range(horizon):
            increments.append(modes @ motion)
            motion = operator @ motion
        if not self.displacement:  # the first step also drops what the modes miss of w
            increments[0] = (modes @ (operator @ amplitudes)).at[0].add(-1)
        rank = jnp.sum(keep, dtype=jnp.int32)
        return Forecast(jnp.stack(increments), w.singular_values, rank, _modulus_order(operator, rank))


@dataclasses.dataclass(frozen=True)
class drift(Dynamics):  # noqa: N801 - used like a function, printed like a value
    """Every weight keeps the mean velocity of the window: pred(k) = w_n + k (w_n - w_0) / n.

    The Koopman model with one defective eigenvalue at one: it has far less
    variance than DMD on the few, noisy snapshots of real training, whose
    fitted eigenvalues are biased towards decay.

    With `learning_rate` it is the velocity per unit of learning rate that
    stays: a jump near the end of a schedule then does not assume the speed of
    its middle, and none reaches past its end.

    Args:
      fit: as in `dmd`; the default starts from the newest weights.
      learning_rate: the schedule given to the optimizer, a function of the
        update count.
      steps_per_epoch: how many updates an epoch has; goes with `learning_rate`.

    Raises:
      ValueError: for an unknown `fit`, or one of the other two without the other.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> snapshots, params = [jnp.array([0.0]), jnp.array([1.0])], jnp.array([2.0])
      >>> rest = {"accept": pdt_optax.agree(), "horizon": 3, "step": 5}
      >>> pdt_optax.predict_and_mask(snapshots, params, dynamics=pdt_optax.drift(), **rest).params
      Array([5.], dtype=float32)
      >>> halving = optax.exponential_decay(0.1, 10, 0.5)  # per epoch of 10 updates
      >>> slowing = pdt_optax.drift(learning_rate=halving, steps_per_epoch=10)
      >>> pdt_optax.predict_and_mask(snapshots, params, dynamics=slowing, **rest).params
      Array([2.875], dtype=float32)
    """

    needs_gram: ClassVar[bool] = False
    fit: Fit = "current"
    learning_rate: Callable[[Any], Any] | None = None
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        check_fit(self.fit)
        if (self.learning_rate is None) != (self.steps_per_epoch is None):
            raise ValueError(
                "`learning_rate` is a schedule over updates, so `drift` needs `steps_per_epoch` with it, and "
                f"the other way round. Got {self.learning_rate=}, {self.steps_per_epoch=}."
            )
        if self.learning_rate is not None and not callable(self.learning_rate):
            raise ValueError(
                "`learning_rate` must be a schedule, a function of the update count; for a constant rate "
                f"leave it out. Got {self.learning_rate!r}."
            )
        steps = self.steps_per_epoch
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise ValueError(f"`steps_per_epoch` must be a whole number >= 1. Got {steps!r}.")

    def __call__(self, gram: Array, horizon: int, *, size: int, epsilon: float, epoch: Array) -> Forecast:
        del size, epsilon  # and of the Gram matrix only its size is read
        window = gram.shape[0]
        expect("gram", gram, window, window)
        newest = epoch if self.fit == "current" else epoch - 1  # the last epoch in the window
        past = self._rates(newest + jnp.arange(2 - window, 1), gram.dtype)
        coming = self._rates(newest + jnp.arange(1, horizon + 1), gram.dtype)
        travelled = past.sum()
        per_difference = coming / jnp.where(travelled > 0, travelled, 1)
        increments = jnp.broadcast_to(per_difference[:, None], (horizon, window)).at[:, 0].set(0)
        eigenvalues = jnp.zeros(window - 1, jnp.complex64).at[0].set(1)
        eigenvalues = lax.convert_element_type(eigenvalues, jnp.complex64)
        return Forecast(increments, jnp.zeros(window - 1), jnp.ones((), jnp.int32), eigenvalues)

    def _rates(self, epochs: Array, dtype: DTypeLike) -> Array:
        """The learning rate in the middle of each epoch; 1 without a schedule."""
        if self.learning_rate is None or self.steps_per_epoch is None:
            return jnp.ones(epochs.shape, dtype)
        rate: Any = self.learning_rate
        counts = jnp.maximum((epochs + 0.5) * self.steps_per_epoch, 0).astype(jnp.int32)
        # Past its end a schedule can round to just below zero.
        return jax.vmap(lambda count: jnp.maximum(jnp.asarray(rate(count), dtype), 0))(counts)
