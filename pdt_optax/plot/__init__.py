"""Pictures of a run's dynamics, one function each (extra `plot`).

- `eigenvalues`: of the fitted models, in the unit circle, over time
- `singular_values`: of the windows over time, and which of them a model used
- `accepted_share`: over time
- `accepted_share_per_leaf`: by layer and over time
- `persistence`: whether the path goes on, over time
- `mask`: of one layer at one prediction
- `trajectories`: of a few weights: what they did, what was predicted, what was accepted
- `forecast_error`: how far ahead a run can be predicted
- `loss_surface`: in a plane, with the run's path on it

Each takes reports or weights and an optional `Axes`, draws, and returns the
`Axes`; without one it makes a figure. *Reports* are a sequence of `PDTReport`,
one an epoch, or one whose arrays have an axis of epochs in front, such as
`Recorder.reports` or what `scan` stacks. *Weights* are trees like the
parameters, such as `snapshots(tx, opt_state)` or `Recorder.history()`.

Colours are told apart by colour-blind readers and in grey print.
"""

from pdt_optax.plot._common import Weights
from pdt_optax.plot._reports import (
    Reports,
    accepted_share,
    accepted_share_per_leaf,
    eigenvalues,
    persistence,
    singular_values,
)
from pdt_optax.plot._surface import loss_surface
from pdt_optax.plot._weights import forecast_error, mask, trajectories

__all__ = [
    "Reports",
    "Weights",
    "accepted_share",
    "accepted_share_per_leaf",
    "eigenvalues",
    "forecast_error",
    "loss_surface",
    "mask",
    "persistence",
    "singular_values",
    "trajectories",
]
