"""Predictive Differential Training for any Optax optimizer."""

from pdt_optax import presets
from pdt_optax._pdt import PDT, PDTReport, PDTState, end_epoch, leaf_paths, pdt
from pdt_optax._predict import Prediction, predict_and_mask
from pdt_optax.accept import (
    Rule,
    agree,
    bounded_rule,
    everything,
    paper_rule,
    random_subset,
    released_rule,
    shrink,
)
from pdt_optax.dynamics import Dynamics, Forecast, dmd, drift

__version__ = "0.1.0"

__all__ = [
    "PDT",
    "Dynamics",
    "Forecast",
    "PDTReport",
    "PDTState",
    "Prediction",
    "Rule",
    "agree",
    "bounded_rule",
    "dmd",
    "drift",
    "end_epoch",
    "everything",
    "leaf_paths",
    "paper_rule",
    "pdt",
    "predict_and_mask",
    "presets",
    "random_subset",
    "released_rule",
    "shrink",
]
