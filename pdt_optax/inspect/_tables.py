"""The figures of a report as rows of text, which the terminal and the page both show."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from pdt_optax import _layout
from pdt_optax._decompose import Modes
from pdt_optax.inspect._measure import MODELS

if TYPE_CHECKING:
    from pdt_optax.inspect._report import Report

MOST_LEAVES = 12


class Table(NamedTuple):
    """A table: what it shows, a sentence on how to read it, and its rows, the header first."""

    title: str
    reading: str
    rows: list[tuple[str, ...]]


def tables(report: "Report") -> list[Table]:
    """All of a report."""
    return [_over_time(report), _by_layer(report), *_modes(report)]


def _number(value: float, form: str = ".2f") -> str:
    return f"{value:{form}}" if np.isfinite(value) else "-"


def _middle(values: np.ndarray) -> float:
    known = np.asarray(values, float)[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def _over_time(report: "Report") -> Table:
    steps = report.steps[1:]
    known = np.asarray(report.reports.alignment) != 0  # not of the first motion
    path = [np.where(known, x, np.nan) for x in (report.reports.persistence, report.reports.alignment)]
    columns = [*path, report.gain]
    columns += [report.forecast_errors[model] for model in MODELS if model in report.forecast_errors]
    errors = [f"error of {model}" for model in MODELS if model in report.forecast_errors]
    rows: list[tuple[str, ...]] = [(report.unit, "persistence", "cosine", "gain", *errors)]
    for part in np.array_split(np.arange(len(steps)), min(4, len(steps))):
        name = f"{steps[part[0]]} to {steps[part[-1]]}" if len(part) > 1 else f"{steps[part[0]]}"
        rows.append((name, *(_number(_middle(np.asarray(column)[part])) for column in columns)))
    return Table(
        "Does the path go on?",
        "Persistence: how much of its past mean motion the optimizer goes on doing; above 0 there is something to "
        "predict. Cosine: whether it keeps its direction, from -1 to 1; above 0.15 the default's gain grows. "
        "Gain: how many times the mean motion the default adds. "
        + (
            "Error of a forecast one step ahead: 0 is perfect, 1 is as good as nothing moves. "
            if errors
            else ""
        )
        + "Medians.",
        rows,
    )


def names(paths: list[str]) -> list[str]:
    """Of leaves, without what Flax nnx adds to each."""
    return [path.removesuffix("/value") for path in paths]


def by_leaf(report: "Report") -> np.ndarray:
    """(leaves,): the mean persistence of each from the first motion that it can be delivered to; NaN if it never moves."""
    late = np.asarray(report.reports.persistence_per_leaf, float)[report.settled_from :]
    return np.where(late.any(0), late.mean(0), np.nan)


def _by_layer(report: "Report") -> Table:
    means, leaves = by_leaf(report), names(report.paths)
    order = sorted(range(len(leaves)), key=lambda i: -np.nan_to_num(means[i], nan=-np.inf))
    half, left = MOST_LEAVES // 2, len(order) - MOST_LEAVES
    rows: list[tuple[str, ...]] = [("weights", "persistence")]
    rows += [(leaves[i], _number(means[i])) for i in (order if left <= 0 else order[:half])]
    if left > 0:
        rows += [(f"... {left} between them ...", "")]
        rows += [(leaves[i], _number(means[i])) for i in order[-half:]]
    return Table("Which layers go on?", "Means over the later steps; a - has never moved.", rows)


class Mode(NamedTuple):
    """A mode of the last weights; a pair of complex ones counts as one.

    Attributes:
      growth, period: as `Modes` has them.
      moves: the length of its next step, over the sum of all modes'.
      leaves: by path, which share of its squared length lies there; the largest first.
    """

    growth: float
    period: float
    moves: float
    leaves: dict[str, float]


def modes_of(found: Modes) -> list[Mode]:
    """The modes, by falling growth."""
    lengths = abs(found.amplitudes) * abs(found.eigenvalues - 1)
    modes = []
    for i, eigenvalue in enumerate(found.eigenvalues):
        if eigenvalue.imag < 0:  # of a pair
            continue
        squares = np.array([np.sum(np.abs(x) ** 2) for x in jax.tree.leaves(found.modes[i])])
        paths = names(_layout.leaf_names(found.modes[i]))
        leaves = sorted(
            zip(paths, (squares / squares.sum()).tolist(), strict=True), key=lambda leaf: -leaf[1]
        )
        moves = lengths[i] / lengths.sum() * (2 if eigenvalue.imag > 0 else 1)
        modes.append(Mode(float(found.growth[i]), float(found.period[i]), float(moves), dict(leaves)))
    return modes


def _modes(report: "Report") -> list[Table]:
    if report.modes is None:
        return []
    rows: list[tuple[str, ...]] = [("factor a step", "turns in", "of the motion", "mostly in")]
    for mode in modes_of(report.modes):
        where = ", ".join(f"{leaf} {share:.0%}" for leaf, share in [*mode.leaves.items()][:2])
        turns = f"{mode.period:.1f} steps" if np.isfinite(mode.period) else "-"
        rows.append((f"{mode.growth:.3f}", turns, f"{mode.moves:.0%}", where))
    missed = report.modes.reconstruction_error
    return [
        Table(
            "How does it move?",
            "The modes of the last steps: what each is multiplied with from one step to the next, below 1 it fades; "
            f"and in how many steps it turns around once. Together they miss {missed:.0%} of the motion.",
            rows,
        )
    ]
