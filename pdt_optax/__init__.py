"""Predictive Differential Training for any Optax optimizer."""

import importlib
from typing import Any

from pdt_optax import presets
from pdt_optax._compiled import Epoch
from pdt_optax._decompose import Modes, decompose
from pdt_optax._history import History
from pdt_optax._inner import forget_value
from pdt_optax._memory import Memory, memory
from pdt_optax._moment import Backup, Clock
from pdt_optax._motion import Delivery, Motion
from pdt_optax._predict import Prediction, predict_and_mask
from pdt_optax._predictor import Predictor
from pdt_optax._recorder import Recorder
from pdt_optax._report import PDTReport
from pdt_optax._saved import adopt, check_saved, leaf_paths, resize_window, restart, snapshots
from pdt_optax._slow import slow_drift
from pdt_optax._transformation import PDT, PDTState, end_epoch, pdt
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
from pdt_optax.guard import Guard, rollback
from pdt_optax.schedule import Pace, Schedule, adaptive, fixed, released_schedule

__version__ = "0.1.0"

__all__ = [
    "PDT",
    "Backup",
    "Clock",
    "Delivery",
    "Dynamics",
    "Epoch",
    "Forecast",
    "Guard",
    "History",
    "Memory",
    "Modes",
    "Motion",
    "PDTReport",
    "PDTState",
    "Pace",
    "Prediction",
    "Predictor",
    "Recorder",
    "Rule",
    "Schedule",
    "adaptive",
    "adopt",
    "agree",
    "bounded_rule",
    "check_saved",
    "decompose",
    "dmd",
    "drift",
    "end_epoch",
    "everything",
    "fixed",
    "forget_value",
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
    "restart",
    "rollback",
    "shrink",
    "slow_drift",
    "snapshots",
]


def __getattr__(name: str) -> Any:
    """`pdt_optax.plot` and `pdt_optax.inspect`, loaded when they are first used: they need matplotlib, and more."""
    if name in ("plot", "inspect"):
        return importlib.import_module(f"pdt_optax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
