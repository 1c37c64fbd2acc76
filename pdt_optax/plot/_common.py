"""What all pictures share: matplotlib, colours, axes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from pdt_optax import _layout

try:
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator
except ImportError as e:
    raise ImportError(
        "`pdt_optax.plot` needs matplotlib: pip install 'pdt-optax[plot]', in a checkout '.[plot]'."
    ) from e

Weights = Sequence[optax.Params]

# Okabe and Ito's palette: told apart by colour-blind readers and in grey print.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "0.6"
LINES = (("#000000", "-", "o"), (VERMILION, "--", "s"), (BLUE, "-.", "^"), ("#009E73", ":", "D"))


def axes(ax: Axes | None) -> Axes:
    return pyplot.subplots(layout="constrained")[1] if ax is None else ax


def colorbar(ax: Axes, drawn: Any, label: str, **options: Any) -> None:
    figure: Any = ax.figure
    figure.colorbar(drawn, ax=ax, label=label, **options)


def whole_epochs(ax: Axes) -> Axes:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def flat(tree: Any) -> np.ndarray:
    """All floating leaves as one float64 vector."""
    leaves = jax.tree.leaves(_layout.floating(tree))
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])
