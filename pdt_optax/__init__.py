"""Predictive Differential Training for any Optax optimizer."""

from pdt_optax import presets
from pdt_optax._pdt import PDT, end_epoch, leaf_paths, pdt
from pdt_optax._predict import Prediction, predict_and_mask
from pdt_optax._recorder import Recorder
from pdt_optax._state import PDTReport, PDTState
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
from pdt_optax.guard import rollback
from pdt_optax.schedule import Schedule, adaptive, fixed, released_schedule

__version__ = "0.1.0"

__all__ = [
    "PDT",
    "Dynamics",
    "Forecast",
    "PDTReport",
    "PDTState",
    "Prediction",
    "Recorder",
    "Rule",
    "Schedule",
    "adaptive",
    "agree",
    "bounded_rule",
    "dmd",
    "drift",
    "end_epoch",
    "everything",
    "fixed",
    "leaf_paths",
    "paper_rule",
    "pdt",
    "predict_and_mask",
    "presets",
    "random_subset",
    "released_rule",
    "released_schedule",
    "rollback",
    "shrink",
]
