"""What is measured of a path through weight space: by the library's own predictor, model and modes, as in training."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pdt_optax import _layout, presets
from pdt_optax._decompose import Modes, decompose
from pdt_optax._predict import predict_and_mask
from pdt_optax._predictor import Predictor
from pdt_optax._recorder import Recorder
from pdt_optax._report import PDTReport
from pdt_optax.accept import everything
from pdt_optax.dynamics import dmd

WINDOW = presets.drift["window"]  # of weights that the models with a window see
RANK = 4  # modes at most
MODES_SEE = 8  # weights, the last ones
MODES_WEIGHTS = 5_000_000  # of each of them; of larger models evenly spread ones
SETTLED = presets.recommended["start"] + 1  # motions before the first that a prediction can be delivered to
MODELS = ("the default", "drift", "DMD")
_WINDOWED = {"drift": presets.drift["dynamics"], "DMD": dmd(fit="current")}


class Measured(NamedTuple):
    """What a path says.

    Attributes:
      reports: what `end_epoch` reports of each step but the first, of a dry run: arrays with steps in front.
      paths: of the leaves.
      errors: by model of `MODELS`, (steps - 1,): how far its forecast of a step was from what came, over how far
        the weights moved: 1 is as good as a forecast that nothing moves. NaN until all models have what they see.
      modes: of the last weights; None if there are fewer than three.
      thinned: the modes are of every so many weights of each leaf.
    """

    reports: PDTReport
    paths: list[str]
    errors: dict[str, np.ndarray]
    modes: Modes | None
    thinned: int


def measure(weights: Iterable[Any]) -> Measured:
    """Follows a path, with a few of its weights in memory at a time."""
    onlooker = Predictor(**presets.recommended, dry_run=True)
    # As it predicts with the smallest gain, when the mean motion goes on; from the first mean on, not from the sixth.
    steady = dataclasses.replace(
        presets.recommended["dynamics"], most_gain=presets.recommended["dynamics"].gain
    )
    default = Predictor(**{**presets.recommended, "dynamics": steady, "start": 1})
    recorder, errors = Recorder(), {model: [] for model in MODELS}
    recent: deque[Any] = deque(maxlen=WINDOW + 1)
    last: deque[Any] = deque(maxlen=MODES_SEE)
    history, forecasts, thinned = None, {}, 1
    for tree in weights:
        now = _layout.floating(jax.tree.map(_layout.as_array, tree))
        if recent:
            moved = _distance(recent[-1], now)
            for model in MODELS:
                wrong = _distance(forecasts[model], now) if forecasts else jnp.nan
                errors[model].append(wrong / moved if moved > 0 else jnp.nan)
        recent.append(now)
        if history is None:
            history = onlooker.init(now)
            thinned = -(-sum(x.size for x in jax.tree.leaves(now)) // MODES_WEIGHTS)
        else:
            forecast, *_ = default.end_epoch(now, history)
            _, history, report = onlooker.end_epoch(now, history)
            recorder.add(report, history)
            forecasts = {MODELS[0]: forecast, **_windowed([*recent])} if len(recent) > WINDOW else {}
        last.append(_thin(now, thinned))
    modes = None
    if len(last) > 2 and any(
        np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (last[0], last[-1])), strict=True)
    ):
        modes = decompose([*last], dynamics=dmd(rank=min(RANK, len(last) - 1), modes="exact"))
    found = {model: np.array(of, float) for model, of in errors.items()}
    return Measured(recorder.reports, recorder.paths, found, modes, thinned)


def _windowed(recent: Sequence[Any]) -> dict[str, Any]:
    """The next weights, by each model that sees a window."""
    *snapshots, now = recent
    rest = {"accept": everything(), "horizon": 1}
    return {
        model: predict_and_mask(snapshots, now, dynamics=dynamics, **rest).params
        for model, dynamics in _WINDOWED.items()
    }


@jax.jit
def _distance(a: Any, b: Any) -> jax.Array:
    wide = [
        jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree) for tree in (a, b)
    ]
    return optax.tree.norm(optax.tree.sub(*wide))


def _thin(tree: Any, every: int) -> Any:
    """Every so many weights of each leaf, longer by as much as there are fewer: inner products stay about the same."""
    return tree if every == 1 else jax.tree.map(lambda x: x.reshape(-1)[::every] * every**0.5, tree)


def gains(reports: PDTReport) -> np.ndarray:
    """(steps - 1,): the gain that the default reaches, by its own rule, if these are its path's cosines."""
    model = presets.recommended["dynamics"]
    gain, found = jnp.float32(model.gain), []
    extrapolated = [False, *np.asarray(reports.predicted, bool)[:-1]]
    for judged, alignment in zip(extrapolated, np.asarray(reports.alignment), strict=True):
        gain = model.next_gain(gain, alignment) if judged else gain
        found.append(float(gain))
    return np.array(found)


def evenly_spaced(steps: Sequence[int]) -> tuple[int, ...]:
    """The longest stretch of steps with one distance between them; of several as long, the last."""
    best, start = tuple(steps[:1]), 0
    for _, group in itertools.groupby(np.diff(steps)):
        end = start + len([*group])
        if end - start + 1 >= len(best):
            best = tuple(steps[start : end + 1])
        start = end
    return best


def settled(numbers: Any) -> float:
    """The mean from the first motion that a prediction can be delivered to; NaN if nothing is known from there."""
    known = np.asarray(numbers, float)[SETTLED:]
    known = known[np.isfinite(known)]
    return float(known.mean()) if known.size else float("nan")
