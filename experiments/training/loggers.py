"""Scalars for whatever logger takes a dict: `log(scalars(report), step)`."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.training.records import Run

Log = Callable[[Mapping[str, float], int], None]


def scalars(report: Any) -> dict[str, float]:
    """The numbers of a `PDTReport`, of an epoch's record, or of any NamedTuple or dict; arrays and texts are left out.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> tx = pdt_optax.pdt(optax.sgd(0.1))
      >>> params, state, report = tx.end_epoch(jnp.ones(2), tx.init(jnp.ones(2)), value=0.5)
      >>> scalars(report)["mean_value"]
      0.5
    """
    fields = report._asdict() if hasattr(report, "_asdict") else report
    kinds = (bool, int, float, np.generic, np.ndarray, jax.Array)
    return {k: float(v) for k, v in fields.items() if isinstance(v, kinds) and np.ndim(v) == 0}


def log_run(log: Log, run: Run) -> None:
    """All epochs of a record."""
    for epoch in run.epochs:
        log(scalars(epoch), epoch["epoch"])


def writer() -> Any:
    """tensorboardX's writer, which needs no TensorFlow.

    Raises:
      ValueError: if tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError("`--tensorboard` needs tensorboardX: pip install tensorboardX.") from None
    return SummaryWriter


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[Log]:
    """A log that writes one run's event file, in place of those that are there."""
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with writer()(str(folder)) as open_writer:

        def log(values: Mapping[str, float], step: int) -> None:
            for name, value in values.items():
                open_writer.add_scalar(name, value, step)

        yield log
