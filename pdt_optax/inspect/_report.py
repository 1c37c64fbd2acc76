"""The report on a run: what was measured of it, what that says, and what to do next."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pdt_optax._decompose import Modes
from pdt_optax._recorder import Recorder
from pdt_optax._report import PDTReport
from pdt_optax.inspect._measure import SETTLED, Measured, evenly_spaced, gains, measure, settled
from pdt_optax.inspect._read import Saved, read
from pdt_optax.inspect._tuned import Expected, expected, pairs, slows

FEWEST = 3  # steps: two motions, to compare one with the other
ENOUGH = SETTLED + 4  # motions that a verdict takes

Unit = Literal["steps", "epochs"]
Run = str | os.PathLike[str] | Recorder | Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Report:
    """What the path of a run says of PDT. `print` shows it as tables, `save` writes it as a page with pictures.

    Attributes:
      source: what was looked at.
      steps: of the weights that were looked at. What follows has one number for each but the first.
      notes: what a reader must know of them.
      reports: as `end_epoch` returns them in a dry run; arrays with the steps in front.
      paths: of the leaves, in the order of `persistence_per_leaf`.
      gain: that the default reaches on this path.
      forecast_errors: by model, how far its forecast of a step was from what came, over how far the weights
        moved: 0 is perfect, 1 is as good as a forecast that nothing moves.
      modes: of the last weights; None where there are too few.
      expected: what the default is worth, as nine tuned tasks have it; None where it is too early to tell, or the
        run delivered its predictions.
      verdict, advice: in a few sentences.
      unit: what is counted: the steps that checkpoints have, or a record's epochs.
    """

    source: str
    steps: tuple[int, ...]
    notes: tuple[str, ...]
    reports: PDTReport
    paths: list[str]
    gain: np.ndarray
    forecast_errors: dict[str, np.ndarray]
    modes: Modes | None
    expected: Expected | None
    verdict: str
    advice: str
    unit: Unit

    @property
    def settled_from(self) -> int:
        """The first motion that a prediction can be delivered to, or the first with a persistence if there are too few."""
        return SETTLED if len(self.steps) - 1 > SETTLED else 1

    @property
    def span(self) -> str:
        """How much was looked at, in words."""
        # The first epoch of a record begins at weights that it does not have.
        return _span(self.steps[1:] if self.unit == "epochs" else self.steps, self.unit)

    def __str__(self) -> str:
        from pdt_optax.inspect._terminal import text

        return text(self)

    def html(self) -> str:
        """One page, complete in itself: tables, pictures and what they mean."""
        from pdt_optax.inspect._page import page

        return page(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the page to a file."""
        Path(path).write_text(self.html(), "utf-8")


def report(
    run: Run, *, params: str | None = None, first: int | None = None, last: int | None = None
) -> Report:
    """Looks at the path of a run, and says whether PDT is likely to help it.

    The weights that it takes are those that an optimizer by itself went
    through, saved at even distances, such as at the end of every epoch. Nothing
    is trained.

    Args:
      run: a folder of Orbax checkpoints or `.npz` files; a `Recorder`, or the
        file that its `save` wrote; or a list of trees like the parameters.
      params: where in a checkpoint the parameters lie, such as "params"; by
        default they are looked for.
      first: the first step to look at, by default the first there is; of a list
        an index, of a record an epoch, counted from 1.
      last: the last step to look at, likewise.

    Raises:
      FileNotFoundError: if there is nothing at a path.
      ImportError: if what a folder or the tables take is not installed.
      ValueError: for fewer than three evenly spaced steps, for weights that do
        not match, are not finite or never move, or a folder that cannot be read.

    Example:
      Two weights that slow down alike:

      >>> import jax.numpy as jnp, pdt_optax
      >>> path = [{"w": jnp.array([4.0, 3.0]) * 0.9**epoch} for epoch in range(16)]
      >>> found = pdt_optax.inspect.report(path)
      >>> [round(float(x), 2) for x in found.reports.persistence[[1, 5, 14]]]  # of the mean, which was faster
      [0.9, 0.82, 0.68]
      >>> round(float(found.reports.alignment[-1]), 2)  # its direction stays
      1.0
    """
    if isinstance(run, str | os.PathLike):
        run = read(run, params)
    elif params is not None:
        raise ValueError(f"`params` is for a folder of checkpoints. Got params={params!r}, and no folder.")
    if isinstance(run, Recorder) and run.reports.gain.any():  # of a running mean
        return _of_record(run, first, last)
    saved = run if isinstance(run, Saved) else _of_weights(run)
    saved, notes = _evenly(saved, first, last)
    found = measure(saved.weights())
    if not np.any(found.reports.alignment):
        raise ValueError(
            "The weights must move from step to step, or there is no path to measure. They are the same at all of "
            f"{_span(saved.steps)}, or stood still after the first."
        )
    if found.thinned > 1:
        notes.append(f"The modes are of every {found.thinned}th weight of each leaf.")
    return _judged(saved.source, saved.steps, notes, found)


def _of_weights(run: Any) -> Saved:
    trees, source, start = run, "weights in memory", 0
    if isinstance(run, Recorder):
        trees, source, start = run.history(), "the weights that a Recorder kept", 1
        if not trees:
            raise ValueError(
                "A record must hold a persistence or weights: record the default or a dry run of it, or a "
                f"Recorder(weights_per_leaf=...). Got {len(run)} epochs of another model without weights."
            )
    if not isinstance(trees, list | tuple):
        raise TypeError(
            "`run` must be a folder, a `Recorder`, its file, or a list of trees like the parameters. "
            f"Got {type(run).__name__}."
        )
    return Saved(source, tuple(range(start, start + len(trees))), lambda step: trees[step - start])


def _evenly(saved: Saved, first: int | None, last: int | None) -> tuple[Saved, list[str]]:
    """The steps that were asked for, of those the longest stretch at even distances; and what must be said of that."""
    asked = [s for s in saved.steps if (first is None or s >= first) and (last is None or s <= last)]
    steps = evenly_spaced(asked)
    if len(steps) < FEWEST:
        raise ValueError(
            f"A path takes at least {FEWEST} steps at even distances, better {ENOUGH + 1} and more: save the weights at "
            "the end of every epoch, with Orbax by CheckpointManagerOptions(max_to_keep=None). "
            f"Got {len(asked)}{': ' if asked else ''}{', '.join(map(str, asked[:8]))}{', ...' * (len(asked) > 8)}."
        )
    notes = [saved.note] if saved.note else []
    if left := len(asked) - len(steps):
        notes.append(
            f"Looked at: {_span(steps)}, evenly spaced. {left} other step{'s' * (left > 1)} left out."
        )
    return saved._replace(steps=steps), notes


def _of_record(recorder: Recorder, first: int | None, last: int | None) -> Report:
    """Of the reports that a run made itself."""
    epochs = np.arange(1, len(recorder) + 1)
    chosen = (epochs >= (first or 1)) & (epochs <= (last or len(recorder)))
    if chosen.sum() < FEWEST:
        raise ValueError(
            f"A path takes at least {FEWEST} epochs. Got {chosen.sum()} of {len(recorder)} recorded."
        )
    reports: Any = PDTReport(*(x[chosen] for x in recorder.reports))
    weights = [tree for tree, used in zip(recorder.history(), chosen, strict=False) if used]
    notes: list[str] = []
    if not _delivered(reports):
        notes.append("Read as a dry run: these reports look like one.")
    errors, modes = {}, None
    if weights:
        found = measure(weights)
        errors = {model: np.concatenate([[np.nan], of]) for model, of in found.errors.items()}
        modes = found.modes
        notes.append("Forecasts and modes are of the weights that the Recorder kept.")
    steps = (int(epochs[chosen][0]) - 1, *map(int, epochs[chosen]))
    found = Measured(reports, recorder.paths, errors, modes, 1)
    return _judged("a Recorder's reports", steps, notes, found, "epochs")


def _span(steps: Sequence[int], unit: Unit = "steps") -> str:
    return f"{len(steps)} {unit} from {steps[0]} to {steps[-1]}"


def _delivered(reports: PDTReport) -> bool:
    """Whether a run is known to have delivered its predictions: only then does the gain grow, or a part get dropped."""
    gain = np.asarray(reports.gain)
    return bool(gain.max() > gain.min() or np.any(np.asarray(reports.delivered_share) < 1))


def _judged(
    source: str, steps: tuple[int, ...], notes: list[str], found: Measured, unit: Unit = "steps"
) -> Report:
    alignment = settled(found.reports.alignment)
    delivered = _delivered(found.reports)
    worth = None if delivered or len(steps) <= ENOUGH else expected(alignment)
    slow = slows(settled(found.reports.persistence), alignment)
    if worth is not None and slow:
        worth = worth._replace(value=math.nan, low=math.nan, high=math.nan)
    verdict, advice = _verdict(worth, alignment, slow, len(steps) - 1, delivered)
    reached = np.asarray(found.reports.gain) if delivered else gains(found.reports)
    return Report(
        source,
        steps,
        tuple(notes),
        found.reports,
        found.paths,
        reached,
        found.errors,
        found.modes,
        worth,
        verdict,
        advice,
        unit,
    )


def _verdict(
    worth: Expected | None, alignment: float, slow: bool, motions: int, delivered: bool
) -> tuple[str, str]:
    tune = "Tune the plain optimizer's learning rate first: at one that is too low every path is straight."
    compare = (
        "wrap it, `tx = pdt_optax.pdt(optimizer)`, and compare it at the same rate with a plain run, and with a plain "
        "run that is a quarter longer."
    )
    if delivered:
        return (
            "This run delivered its predictions, so its path does not tell what plain training would do.",
            "Compare its loss with that of a plain run. To look before anything is delivered, record a dry run: "
            "`pdt_optax.pdt(optimizer, dry_run=True)`.",
        )
    if worth is None:
        return (
            f"It is too early to tell: {motions} motions were measured, and a verdict takes {ENOUGH}, since the default "
            f"begins after {SETTLED}.",
            "Save the weights at the end of every epoch, or every few hundred steps if there are few epochs, and look "
            "again.",
        )
    if math.isnan(worth.value):
        if alignment > max(pair.alignment for pair in pairs()):
            return (
                "What PDT is worth here cannot be told: the path is straighter than that of any of nine tuned tasks. Most "
                "such paths are those of a learning rate that is too low, or of a loss that is near zero already.",
                f"{tune} Then {compare}",
            )
        if slow:
            return (
                "What PDT is worth here cannot be told: the optimizer keeps its direction, and moves far less than it did. No "
                "tuned task ends like this. It happens where the loss is near zero already, and there the default can end "
                "higher than the optimizer alone.",
                "Look at the train loss first. If it is near zero, it is not what limits this run, and a lower one buys "
                f"little. If it still falls, {compare}",
            )
        low, high = worth.nearest
        return (
            "PDT has little to work with here: the path keeps its direction less than that of any of nine tuned tasks. "
            f"On the nearest three of them it was worth {low:.2f} to {high:.2f} times their epochs.",
            f"{tune} If the path stays like this, expect little.",
        )
    told = (
        f"plain training would take about {worth.value:.2f} times the epochs ({worth.low:.2f} to {worth.high:.2f}) to "
        "end where the default ends, going by nine tuned tasks of 40 epochs"
    )
    certain = "is likely to" if worth.low > 1 else "may"
    return f"PDT {certain} help this run: {told}.", f"{tune} Then {compare}"
