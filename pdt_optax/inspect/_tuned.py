"""What the default was worth on tuned tasks, and what that says of another run.

The figures come from committed records of training: `python -m experiments.tuned.expected` writes the file.
"""

import functools
import importlib.resources
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special  # which jax brings along

STRAIGHT = 0.1  # the alignment above which persistence is compared with it


class Pair(NamedTuple):
    """A task and its optimizer at the best learning rate; means over seeds.

    Attributes:
      name: as in docs/what-works.md.
      persistence, alignment: of plain training, over the epochs from the seventh on.
      effective: what the default was worth: its effective schedule, a multiple of the epochs.
      low, high: of its 95% interval over seeds.
    """

    name: str
    persistence: float
    alignment: float
    effective: float
    low: float
    high: float


class Expected(NamedTuple):
    """What the default is worth, as tuned tasks with such a path have it: a multiple of the epochs.

    Attributes:
      value: 1.25 says that plain training would take 1.25 times the epochs. NaN where no tuned task's path
        is like this one: none is as straight, none turns as much, or none `slows`.
      low, high: between them lie 95 of 100 tasks, if they are like the tuned ones.
      nearest: what the three tasks with the most similar paths were worth, the least and the most.
    """

    value: float
    low: float
    high: float
    nearest: tuple[float, float]


@functools.cache
def pairs() -> tuple[Pair, ...]:
    """The tuned tasks, as the package ships them."""
    text = importlib.resources.files("pdt_optax.inspect").joinpath("tuned.json").read_text("utf-8")
    return tuple(Pair(**pair) for pair in json.loads(text)["pairs"])


def expected(alignment: float, known: Sequence[Pair] | None = None) -> Expected:
    """What tasks with such an alignment are worth: a line through the logs of the tuned ones, by least squares.

    Args:
      alignment: the mean cosine of the path of plain training, from the seventh epoch on.
      known: the tasks to go by.
    """
    known = pairs() if known is None else known
    x, y = np.array([pair.alignment for pair in known]), np.log([pair.effective for pair in known])
    worth = [known[i].effective for i in np.argsort(abs(x - alignment))[:3]]
    nearest = (min(worth), max(worth))
    if not x.min() <= alignment <= x.max():  # a line is not to be trusted beyond its points
        return Expected(math.nan, math.nan, math.nan, nearest)
    slope, level = np.polyfit(x, y, 1)
    left = len(x) - 2
    spread = math.sqrt(np.sum((y - slope * x - level) ** 2) / left)
    distance = (alignment - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2)
    half = scipy.special.stdtrit(left, 0.975) * spread * math.sqrt(1 + 1 / len(x) + distance)
    low, value, high = (math.exp(level + slope * alignment + side * half) for side in (-1, 0, 1))
    return Expected(value, low, high, nearest)


def slows(persistence: float, alignment: float) -> bool:
    """Whether the optimizer keeps its direction and moves far less than it did, as on no tuned task.

    Persistence is alignment times how long a motion is against the mean of those before it. Here that length
    is less than half of what it is on any tuned task.

    Args:
      persistence, alignment: of the path of plain training, from the seventh epoch on.
    """
    straight = [pair for pair in pairs() if pair.alignment > STRAIGHT]
    least = min(pair.persistence / pair.alignment for pair in straight)
    return alignment > STRAIGHT and persistence < least / 2 * alignment


def left_out() -> list[tuple[Pair, Expected]]:
    """Each tuned task between the outermost two, and what the others make of its path: how far to trust the line."""
    known = sorted(pairs(), key=lambda pair: pair.alignment)
    return [(pair, expected(pair.alignment, [p for p in known if p is not pair])) for pair in known[1:-1]]
