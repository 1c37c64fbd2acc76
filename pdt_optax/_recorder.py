"""A run's reports and a few of its weights, collected without waiting for the device."""

import functools
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from pdt_optax import _leaves
from pdt_optax._predict import count
from pdt_optax._state import PDTReport, find_state

_FORMAT = "pdt_optax.Recorder"
_VERSION = 1


class Recorder:
    """Collects the reports of a run and, if asked, a subsample of its weights.

    `add` dispatches one small computation and returns: it never waits for the
    device. Numbers come to the host when they are there, or when they are read.

    Args:
      weights_per_leaf: how many weights of each predicted leaf to keep at every
        epoch, drawn once at random, all of a smaller leaf; 0 for none.
      seed: of the draw.

    Attributes:
      paths: the paths of the predicted leaves, in the order of
        `accepted_share_per_leaf`; empty before the first `add`.

    Raises:
      ValueError: for a negative `weights_per_leaf`.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> from tqdm import trange
      >>> tx = pdt_optax.pdt(optax.sgd(0.1), window=2, start=2)
      >>> params = {"w": jnp.ones((3, 4))}
      >>> opt_state = tx.init(params)
      >>> recorder = pdt_optax.Recorder(weights_per_leaf=5)
      >>> progress = trange(4, disable=True)
      >>> for epoch in progress:
      ...     updates, opt_state = tx.update(params, opt_state, params)  # the gradient of |w|^2 / 2
      ...     params = optax.apply_updates(params, updates)
      ...     params, opt_state, report = tx.end_epoch(params, opt_state)
      ...     recorder.add(report, opt_state)
      ...     progress.set_postfix(recorder.latest())
      >>> recorder.reports.predicted
      array([False, False,  True, False])
      >>> recorder.weights["w"].shape
      (4, 5)
    """

    def __init__(self, *, weights_per_leaf: int = 0, seed: int = 0):
        self._weights_per_leaf = count(
            "weights_per_leaf", weights_per_leaf, 0, "it counts the weights to keep"
        )
        self._seed = seed
        self.paths: list[str] = []
        self._indices: list[np.ndarray] = []  # for each leaf, (kept, dimensions)
        self._rows: list[tuple[PDTReport, list[Any]]] = []
        self._on_host = 0  # rows before this one are NumPy arrays

    def __len__(self) -> int:
        """The epochs recorded."""
        return len(self._rows)

    def add(self, report: PDTReport, opt_state: optax.OptState) -> None:
        """Records an epoch.

        Args:
          report: of its end; with `every`, `opt_state.last_report`.
          opt_state: after it; it may hold the wrapper's state anywhere, and may
            be donated afterwards.

        Raises:
          TypeError: if `report` is none.
          ValueError: if `opt_state` does not hold exactly one state of a `pdt`
            wrapper, or its leaves are not those of the epochs before.
        """
        if not isinstance(report, PDTReport):
            raise TypeError(
                "`report` must be a `PDTReport`, as `end_epoch` returns it last and `last_report` holds it with "
                f"`every`. Got {type(report).__name__}."
            )
        newest = find_state(opt_state).snapshots[-1]
        paths, leaves = _leaves.paths(newest), _leaves.predicted(newest, newest)
        if not self._rows:
            self.paths = paths
            self._indices = [self._draw(x.shape, i) for i, x in enumerate(leaves)]
        elif paths != self.paths:
            raise ValueError(
                f"All epochs of a record must be of one model. Expected the leaves {self.paths}, got {paths}."
            )
        row = _take(report, leaves if self._weights_per_leaf else [], self._indices)
        for x in jax.tree.leaves(row):
            x.copy_to_host_async()
        self._rows.append(row)
        self._settle()

    def latest(self) -> dict[str, str]:
        """The newest numbers that have arrived, for a progress bar: epoch, value, accepted share.

        Never waits: while the device is behind, they are of an earlier epoch.
        """
        self._settle()
        if not self._on_host:
            return {}
        reports = [report for report, _ in self._rows[: self._on_host]]
        shown = {"ended": str(self._on_host)}
        if np.isfinite(reports[-1].mean_value):
            shown["value"] = f"{reports[-1].mean_value:.4g}"
        jumps = [report for report in reports if report.predicted]
        if jumps:
            shown["accepted"] = f"{jumps[-1].accepted_share:.0%}"
        return shown

    @property
    def reports(self) -> PDTReport:
        """All reports as one, NumPy arrays with an axis of epochs in front. Waits for the device.

        Raises:
          ValueError: if nothing was recorded.
        """
        if not self._rows:
            raise ValueError("Nothing is recorded yet: call `add` at the end of each epoch. Got 0 epochs.")
        self._fetch()
        return jax.tree.map(lambda *x: np.stack(x), *(report for report, _ in self._rows))

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """By path, (epochs, kept), float32 or float64: the kept weights after each epoch's end, jumps included.

        Waits for the device. Empty without `weights_per_leaf`.
        """
        self._fetch()
        columns = zip(*(kept for _, kept in self._rows), strict=True)
        return {path: np.stack(column) for path, column in zip(self.paths, columns, strict=False)}

    @property
    def indices(self) -> dict[str, np.ndarray]:
        """By path, (kept, dimensions), int: which weights are kept."""
        return dict(zip(self.paths, self._indices, strict=True)) if self._weights_per_leaf else {}

    def history(self) -> list[dict[str, np.ndarray]]:
        """The kept weights as one tree an epoch, for `predict_and_mask` and `pdt_optax.plot`."""
        weights = self.weights
        return [{path: x[i] for path, x in weights.items()} for i in range(len(self) if weights else 0)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to one `.npz` file, whole or not at all. Waits for the device.

        Raises:
          ValueError: if nothing was recorded.
        """
        arrays = {f"report/{name}": x for name, x in self.reports._asdict().items()}
        for i, x in enumerate(self.weights.values()):
            arrays |= {f"weights/{i}": x}
        for i, x in enumerate(self._indices):
            arrays |= {f"indices/{i}": x}
        head = {
            "format": np.array(_FORMAT),
            "version": np.array(_VERSION),
            "paths": np.array(self.paths, dtype=np.str_),
            "weights_per_leaf": np.array(self._weights_per_leaf),
            "seed": np.array(self._seed),
        }
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            with unfinished.open("wb") as file:
                np.savez(file, **head, **arrays)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recorder":
        """Reads what `save` wrote; recording can go on. Nothing in the file is ever executed.

        Raises:
          OSError: if there is no such file.
          ValueError: if it is not a record, is damaged, or comes from a newer version.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = dict(arrays)
            if str(found["format"]) != _FORMAT:
                raise KeyError("format")
            version = int(found["version"])
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as e:
            raise ValueError(
                f"`path` must be a file that `Recorder.save` wrote. Got {os.fspath(path)!r} ({e})."
            ) from e
        if version > _VERSION:
            raise ValueError(
                f"The record was written by a newer pdt_optax: update it to read {os.fspath(path)!r}. "
                f"Got version {version}, expected at most {_VERSION}."
            )
        try:
            return cls._from_arrays(found)
        except (ValueError, KeyError, TypeError, IndexError) as e:
            raise ValueError(f"The record in {os.fspath(path)!r} is damaged: {e}.") from e

    @classmethod
    def _from_arrays(cls, found: dict[str, np.ndarray]) -> "Recorder":
        recorder = cls(weights_per_leaf=int(found["weights_per_leaf"]), seed=int(found["seed"]))
        recorder.paths = [str(path) for path in found["paths"]]
        leaves = range(len(recorder.paths))
        recorder._indices = [found[f"indices/{i}"] for i in leaves]
        reports = PDTReport(**{name: found[f"report/{name}"] for name in PDTReport._fields})
        weights = [found[f"weights/{i}"] for i in leaves] if recorder._weights_per_leaf else []
        lengths = {len(x) for x in (*reports, *weights)}
        kept = [(w.shape[1], len(i)) for w, i in zip(weights, recorder._indices, strict=False)]
        if len(lengths) != 1 or any(a != b for a, b in kept):
            raise ValueError(f"its arrays do not have one length: {sorted(lengths)} epochs, {kept} weights")
        for i in range(lengths.pop()):
            row = PDTReport(*(np.asarray(x[i]) for x in reports)), [x[i] for x in weights]
            recorder._rows.append(row)
        recorder._on_host = len(recorder._rows)
        return recorder

    def _draw(self, shape: tuple[int, ...], leaf: int) -> np.ndarray:
        size = int(np.prod(shape))
        random = np.random.default_rng([self._seed, leaf])
        kept = np.sort(random.choice(size, min(size, self._weights_per_leaf), replace=False))
        return np.stack(np.unravel_index(kept, shape), axis=-1) if shape else np.zeros((len(kept), 0), int)

    def _settle(self) -> None:
        """Brings to the host what has been computed, without waiting."""
        while self._on_host < len(self._rows) and all(
            x.is_ready() for x in jax.tree.leaves(self._rows[self._on_host])
        ):
            self._fetch(self._on_host + 1)

    def _fetch(self, rows: int | None = None) -> None:
        for i in range(self._on_host, len(self._rows) if rows is None else rows):
            self._rows[i] = jax.tree.map(np.asarray, self._rows[i])
            self._on_host = i + 1


def _take(
    report: PDTReport, leaves: Sequence[jax.Array], indices: Sequence[np.ndarray]
) -> tuple[PDTReport, list[jax.Array]]:
    """Copies of a report and of the chosen weights, whole on every process."""
    shardings = [x.sharding for x in leaves if isinstance(x.sharding, NamedSharding)]
    whole = NamedSharding(shardings[0].mesh, PartitionSpec()) if shardings else None
    columns = [tuple(index.T) for index in indices[: len(leaves)]]
    return _copy(report, list(leaves), columns, whole)


@functools.partial(jax.jit, static_argnames="whole")
def _copy(
    report: PDTReport, leaves: list[jax.Array], columns: list[tuple[Any, ...]], whole: NamedSharding | None
) -> tuple[PDTReport, list[jax.Array]]:
    # Copies: with `every` the report is part of a state that the next step may donate.
    def pick(x: jax.Array, column: tuple[Any, ...]) -> jax.Array:
        chosen = x.at[column].get(mode="promise_in_bounds", out_sharding=whole)
        return chosen.astype(jnp.promote_types(x.dtype, jnp.float32))

    return jax.tree.map(jnp.copy, report), [pick(x, c) for x, c in zip(leaves, columns, strict=True)]
