"""Predictive Differential Training for any Optax optimizer."""

from pdt_optax import presets
from pdt_optax._memory import Memory, memory
from pdt_optax._pdt import PDT, check_saved, end_epoch, leaf_paths, pdt
from pdt_optax._predict import Prediction, predict_and_mask
from pdt_optax._recorder import Recorder
from pdt_optax._saved import resize_window
from pdt_optax._snapshots import snapshots
from pdt_optax._state import Detached, PDTReport, PDTState, attach, detach
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
    "Detached",
    "Dynamics",
    "Forecast",
    "Memory",
    "PDTReport",
    "PDTState",
    "Prediction",
    "Recorder",
    "Rule",
    "Schedule",
    "adaptive",
    "agree",
    "attach",
    "bounded_rule",
    "check_saved",
    "detach",
    "dmd",
    "drift",
    "end_epoch",
    "everything",
    "fixed",
    "leaf_paths",
    "memory",
    "paper_rule",
    "pdt",
    "predict_and_mask",
    "presets",
    "random_subset",
    "released_rule",
    "released_schedule",
    "resize_window",
    "rollback",
    "shrink",
    "snapshots",
]
