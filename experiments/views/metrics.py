"""What a run gained over its baseline: one definition of each figure, over recorded runs.

Tables, pictures, claims and pages take their figures from here. Every
comparison is with the baseline of the same seed. Nothing here trains.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

from experiments.training.records import Record, Run

# An arm's complete runs by the share of the full schedule that they trained.
Runs = Mapping[float, Sequence[Run]]

RISE = 2.0  # a run whose final train loss is more than so many times its baseline's has diverged


def last(run: Run, field: str) -> float:
    """A figure of the last epoch."""
    return run.epochs[-1][field]


def total(run: Run, field: str) -> float:
    """A figure summed over the epochs."""
    return sum(e[field] for e in run.epochs)


def paired(runs: Sequence[Run], baselines: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Each run with the baseline of its seed; runs without one are left out."""
    of_seed = {run.seed: run for run in baselines}
    return [(run, of_seed[run.seed]) for run in runs if run.seed in of_seed]


# Time to a target.


class Crossing(NamedTuple):
    """When a run first reached a target: epochs and training seconds, infinite if it never did."""

    epochs: float
    seconds: float


def clock(run: Run) -> np.ndarray:
    """(epochs,), seconds from the start: training steps and all that the arm does at epochs' ends, compilation apart.

    >>> clock(Run({}, [{"train_seconds": 2.0, "pdt_seconds": 0.5}] * 3)).tolist()
    [2.5, 5.0, 7.5]
    """
    return np.cumsum([e["train_seconds"] + e["pdt_seconds"] for e in run.epochs])


def first_crossing(run: Run, reached: Callable[[Record], bool]) -> Crossing:
    """The first epoch whose record has reached the target."""
    for record, seconds in zip(run.epochs, clock(run), strict=True):
        if reached(record):
            return Crossing(record["epoch"], float(seconds))
    return Crossing(math.inf, math.inf)


def to_best(run: Run, baseline: Run, field: str) -> Crossing:
    """When a run is first as good as the baseline's best: the least, of an accuracy the greatest."""
    sign = -1 if field.endswith("accuracy") else 1
    best = min(sign * e[field] for e in baseline.epochs)
    return first_crossing(run, lambda e: sign * e[field] <= best)


def overhead(run: Run) -> float:
    """Seconds at the ends of epochs over those of training steps.

    >>> overhead(Run({}, [{"train_seconds": 2.0, "pdt_seconds": 0.5}]))
    0.25
    """
    return total(run, "pdt_seconds") / total(run, "train_seconds")


def epochs_ratio(run: Run, baseline: Run, field: str) -> float:
    """Epochs to the baseline's best over the baseline's own first crossing; what is saved is 1 less this."""
    return to_best(run, baseline, field).epochs / to_best(baseline, baseline, field).epochs


def time_ratio(run: Run, baseline: Run, field: str) -> float:
    """`epochs_ratio`, the run's epochs longer by its `overhead`; the *time saved* is 1 less this.

    It counts no seconds of different runs against each other, so that it is the
    same on a machine whose speed drifts. What an arm adds to the training steps
    themselves is not in it: `benchmarks.step` measures that.
    """
    return epochs_ratio(run, baseline, field) * (1 + overhead(run))


# The end of a run.


def diverged(run: Run, baseline: Run) -> bool:
    """Whether the final train loss is not finite, or more than twice the baseline's."""
    return not last(run, "train_loss") <= RISE * last(baseline, "train_loss")


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences and the half width of its 95% t-interval; infinite for one pair.

    >>> mean, half = paired_interval([0.01, 0.02, 0.03])
    >>> f"{mean:.3f} ± {half:.3f}"
    '0.020 ± 0.025'
    """
    count = len(differences)
    if count < 2:
        return float(np.mean(differences)), math.inf
    quantile = scipy.special.stdtrit(count - 1, 0.975)
    return float(np.mean(differences)), float(quantile * np.std(differences, ddof=1) / math.sqrt(count))


def accuracy_difference(pairs: Sequence[tuple[Run, Run]]) -> tuple[float, float]:
    """Final validation accuracy less the baseline's, and the half width of the paired 95% interval."""
    return paired_interval(
        [last(r, "validation_accuracy") - last(b, "validation_accuracy") for r, b in pairs]
    )


# The effective schedule.


class Length(NamedTuple):
    """A length of the baseline's schedule, in epochs.

    Attributes:
      bound: 0 if the length is known, 1 if it is no less than this, -1 if it is no more.
    """

    epochs: float
    bound: int = 0


def equal_length(
    loss: float, lengths: Sequence[float], losses: Sequence[float], beyond: float = 1.0
) -> Length | None:
    """The length of the baseline's schedule that ends at a loss.

    Log loss is linear in log epochs between the lengths that were trained. A longer
    schedule that ends higher counts as if it ended like the best shorter one (a
    running minimum), and of lengths that end alike the shortest is meant. Below the
    first and above the last length the outer segment goes on, for `beyond` times its
    own width in log epochs, and not at all if it does not fall: a loss that lies
    further out gives the end as a bound.

    Args:
      loss: to look up; one that is not finite lies beyond the shortest length.
      lengths: of the baseline's schedules, in epochs, rising.
      losses: at which they end.
      beyond: how far to extrapolate, in steps from one length to the next.

    Returns:
      The length; None if fewer than two of the baseline's losses are positive and finite.

    Losses that fall with the square of the epochs:

    >>> lengths, losses = (30, 40, 80), (16.0, 9.0, 2.25)
    >>> equal_length(4.0, lengths, losses)
    Length(epochs=60.0, bound=0)
    >>> equal_length(1.0, lengths, losses)
    Length(epochs=120.0, bound=0)
    >>> equal_length(0.1, lengths, losses)
    Length(epochs=160.0, bound=1)
    """
    known = [(n, x) for n, x in zip(lengths, losses, strict=True) if 0 < x < math.inf]
    if len(known) < 2:
        return None
    x, y = np.log(np.array(known).T)
    y = np.minimum.accumulate(y)
    target = math.log(loss) if 0 < loss < math.inf else math.inf if loss != 0 else -math.inf

    def outside(end: int, inner: int) -> Length:
        """Beyond an end, along the segment to its inner neighbour."""
        side = 1 if end else -1
        if y[end] == y[inner]:
            return Length(_rounded(x[end]), side)
        steps = (target - y[end]) / (y[end] - y[inner])
        reached = x[end] + min(steps, beyond) * (x[end] - x[inner])
        return Length(_rounded(reached), side if steps > beyond else 0)

    if target > y[0]:
        return outside(0, 1)
    if target < y[-1]:
        return outside(-1, -2)
    after = int(np.argmax(y <= target))
    if y[after] == target:
        return Length(_rounded(x[after]))
    share = (target - y[after - 1]) / (y[after] - y[after - 1])
    return Length(_rounded(x[after - 1] + share * (x[after] - x[after - 1])))


def _rounded(log: float) -> float:
    return float(f"{math.exp(log):.9g}")


class Effective(NamedTuple):
    """An effective schedule: the geometric mean over seeds and its paired 95% t-interval, taken on logs.

    Attributes:
      value: NaN if it is not known.
      low, high: of the interval; infinitely wide for one seed.
      bound: 1 if in some seed the value is no less than what is averaged, -1 if no
        more, 0 if all are known. Bounds on both sides count as the more frequent one.
    """

    value: float
    low: float
    high: float
    bound: int


UNKNOWN = Effective(math.nan, math.nan, math.nan, 0)


def effective_schedule(
    runs: Sequence[Run],
    baselines: Runs,
    field: str = "train_loss",
    *,
    per_second: bool = False,
    beyond: float = 1.0,
) -> Effective:
    """How long a schedule the baseline needs for what the arm ends at, over the arm's own.

    1.25 says that 40 epochs of the arm are worth 50 of the baseline. Each run is
    looked up among the baselines of its own seed by `equal_length`. Per second,
    the arm's own schedule is longer by its `overhead`, the seconds at the ends of
    epochs. No seconds of different runs are compared, which would be those of the
    machine's other work, too; what an arm adds to a step is told by `benchmarks.step`.

    Args:
      runs: of the arm, at full length.
      baselines: by their share of the full schedule, 1.0 among them.
      field: the loss at the last epoch: `train_loss`, `probe_loss` at the evaluated
        weights, or `validation_loss`, which is known where it still falls (see
        `still_falls`).
      per_second: with the arm's overhead in its own schedule.
      beyond: see `equal_length`.
    """
    if field == "validation_loss" and not still_falls(baselines):
        return UNKNOWN
    full = {run.seed: run for run in baselines.get(1.0, ())}
    by_seed = {
        seed: [b for _, of in sorted(baselines.items()) for b in of if b.seed == seed] for seed in full
    }
    ratios, bounds = [], []
    for run in runs:
        curve = [(b.fields["epochs"], last(b, field)) for b in by_seed.get(run.seed, ())]
        length = equal_length(last(run, field), *zip(*curve, strict=True), beyond=beyond) if curve else None
        if length is None:
            continue
        own: float = run.fields["epochs"]
        if per_second:
            own *= 1 + overhead(run)
        ratios.append(math.log(length.epochs / own))
        bounds.append(length.bound)
    if not ratios:
        return UNKNOWN
    mean, half = paired_interval(ratios)
    low, high = (0.0, math.inf) if math.isinf(half) else (math.exp(mean - half), math.exp(mean + half))
    bound = (1 if sum(bounds) >= 0 else -1) if any(bounds) else 0
    return Effective(math.exp(mean), low, high, bound)


def still_falls(baselines: Runs, field: str = "validation_loss") -> bool:
    """Whether the baseline's mean final loss is lower at the longest schedule, twice the full one or more, than at it.

    Means are over the seeds that have both. Without a schedule of twice the length it is not known, and False.
    """
    longest = max(baselines, default=0.0)
    pairs = paired(baselines.get(longest, ()), baselines.get(1.0, ()))
    if longest < 2 or not pairs:
        return False
    ends = np.array([[last(run, field) for run in pair] for pair in pairs])
    return bool(ends[:, 0].mean() < ends[:, 1].mean())
