"""A run's reports and a few of its weights, collected without waiting for the device."""

import functools
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pdt_optax import _history, _layout
from pdt_optax._report import PDTReport
from pdt_optax.schedule import count

_FORMAT = "pdt_optax.Recorder 5"


class Recorder:
    """Collects the reports of a run and, if asked, a subsample of its weights.

    `add` starts a copy of a few numbers and returns; nothing waits for the
    device before they are read. With the window in host memory
    (`snapshot_device`) a subsample brings the newest snapshot to the device.

    Args:
      weights_per_leaf: how many weights of each predicted leaf to keep at every
        epoch, drawn once at random, all of a smaller leaf; 0 for none.
      seed: of the draw.

    Attributes:
      paths: of the predicted leaves, in the order of `accepted_share_per_leaf`.
      sizes: of the predicted leaves, how many weights each has.
      indices: by path, (kept,), int: the flat indices of the weights that are kept.

    Raises:
      ValueError: for a negative `weights_per_leaf`.

    Example:
      >>> import jax.numpy as jnp, optax, pdt_optax
      >>> from tqdm import trange
      >>> tx = pdt_optax.pdt(optax.sgd(0.1), dynamics=pdt_optax.drift(), window=2)
      >>> params = {"w": jnp.ones((3, 4))}
      >>> opt_state = tx.init(params)
      >>> recorder = pdt_optax.Recorder(weights_per_leaf=5)
      >>> progress = trange(4, disable=True)
      >>> for epoch in progress:
      ...     params["w"] *= 0.9  # by training
      ...     params, opt_state, report = tx.end_epoch(params, opt_state)
      ...     recorder.add(report, opt_state)
      ...     progress.set_postfix(recorder.latest())
      >>> recorder.reports.predicted
      array([False, False,  True, False])
      >>> recorder.weights["w"].shape
      (4, 5)
    """

    def __init__(self, *, weights_per_leaf: int = 0, seed: int = 0):
        self._per_leaf = count("weights_per_leaf", weights_per_leaf, 0, "it counts the weights to keep")
        self._seed = seed
        self._rows: list[tuple[Any, list[Any]]] = []  # a report, and weights by leaf
        self.paths: list[str] = []
        self.sizes: list[int] = []
        self.indices: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        """The epochs recorded."""
        return len(self._rows)

    def add(self, report: PDTReport, state: object) -> None:
        """Records an epoch.

        Args:
          report: of its end; with `every`, `opt_state.last_report`.
          state: after it: a `History`, the state of `pdt`, or a tree around
            either. It may be donated afterwards.

        Raises:
          TypeError: if `report` is not a `PDTReport`.
          ValueError: if `state` does not hold exactly one history, or its
            leaves are not those of the epochs before.
        """
        if not isinstance(report, PDTReport):
            raise TypeError(
                "`report` must be a `PDTReport`, as `end_epoch` returns it last and `last_report` holds it with "
                f"`every`. Got {type(report).__name__}."
            )
        newest = _history.find(state, _history.History).snapshots[-1]
        paths, leaves = _layout.leaf_names(newest), jax.tree.leaves(newest)
        if not self._rows:
            self.paths, self.sizes = paths, [x.size for x in leaves]
            if self._per_leaf:
                named = enumerate(zip(paths, leaves, strict=True))
                self.indices = {path: self._draw(i, x.size) for i, (path, x) in named}
        elif paths != self.paths:
            raise ValueError(
                f"All epochs of a record must be of one model. Expected the leaves {self.paths}, got {paths}."
            )
        leaves = leaves if self._per_leaf else []
        kept = zip(self.indices.values(), leaves, strict=True)
        columns = [np.unravel_index(index, x.shape or (1,)) for index, x in kept]
        meshes = [x.sharding.mesh for x in leaves if isinstance(x.sharding, NamedSharding)]
        report = PDTReport(*jax.tree.leaves(report))  # without nnx's Variables
        row = _take(report, leaves, columns, NamedSharding(meshes[0], PartitionSpec()) if meshes else None)
        for x in jax.tree.leaves(row):
            x.copy_to_host_async()
        self._rows.append(row)

    def latest(self) -> dict[str, str]:
        """For a progress bar: the newest epoch whose numbers are there, its value and accepted share.

        Never waits: while the device is behind, they are of an earlier epoch.
        """
        for epoch in range(len(self), 0, -1):
            report = self._rows[epoch - 1][0]
            if all(isinstance(x, np.ndarray) or x.is_ready() for x in report):
                value, share = float(report.mean_value), float(report.accepted_share)
                known = {"value": f"{value:.4g}"} if np.isfinite(value) else {}
                return {"ended": str(epoch), **known, "accepted": f"{share:.0%}"}
        return {}

    @property
    def reports(self) -> PDTReport:
        """All reports as one: NumPy arrays with an axis of epochs in front. Waits for the device.

        Raises:
          ValueError: if nothing was recorded.
        """
        if not self._rows:
            raise ValueError("Nothing is recorded yet: call `add` at the end of each epoch. Got 0 epochs.")
        return jax.tree.map(lambda *x: np.stack(x), *(report for report, _ in self._rows))

    def hints(self) -> list[str]:
        """What the reports say that you may want to change, in sentences; empty if nothing. Waits for the device.

        Raises:
          ValueError: if nothing was recorded.

        Example:
          >>> import jax.numpy as jnp, pdt_optax
          >>> predictor, recorder = pdt_optax.Predictor(), pdt_optax.Recorder()
          >>> params = {"base": jnp.ones(93), "lora": jnp.ones(7)}
          >>> history = predictor.init(params)
          >>> for epoch in range(7):
          ...     params = params | {"lora": 0.9 * params["lora"]}  # the base is frozen
          ...     params, history, report = predictor.end_epoch(params, history)
          ...     recorder.add(report, history)
          >>> recorder.hints()[0].split(". ")[0]
          "93% of the weights were never moved, in 1 of 2 leaves: 'base'"
        """
        r, found = self.reports, []
        if r.predicted.any():
            still = ~r.accepted_share_per_leaf[r.predicted].any(0)
            share = np.sum(np.where(still, self.sizes, 0)) / max(1, sum(self.sizes))
            names = [repr(path) for path, x in zip(self.paths, still, strict=True) if x]
            if share >= 0.1:
                shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                found.append(
                    f"{share:.0%} of the weights were never moved, in {len(names)} of {len(still)} leaves: {shown}. If "
                    "they are frozen, leave them out by `exclude`, which saves their snapshots."
                )
        else:
            found.append(
                f"Nothing was predicted in {len(self)} epochs. By default the first five fill the memory (`start`); a "
                "window of snapshots has to fill, too."
            )
        again = np.append(False, (np.diff(r.epoch) == 0) & ~r.rolled_back[:-1])
        seen = r.update_count.any()
        counted = (
            (
                again,
                "had the number of the one before: put back the state that `end_epoch` returns, as in "
                "`optimizer.opt_state = opt_state` with Flax nnx; with `every`, record once an epoch",
            ),
            (
                seen & (r.update_count == 0) & ~again,
                "had no update: call `end_epoch` once an epoch",
            ),
            (
                r.update_count == 1,
                "had a single update: if that is a batch, call `end_epoch` after the last batch of an epoch",
            ),
            (
                r.value_missing,
                "had no value, so that neither the guard nor the schedule judged them: pass `value`",
            ),
            (~r.finite, "predicted nothing, since the weights or the prediction were not finite"),
            (
                ~r.continued,
                "did not begin at the weights that the last one ended with, and predicted nothing: put "
                "`pdt` outside of what moves weights on its own, and call `restart` after you set some",
            ),
            (r.delivered_share < 1, "were shorter than the one before, which dropped part of a prediction"),
        )
        found += [f"{int(x.sum())} of {len(x)} epochs {text}." for x, text in counted if x.any()]
        return found

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """By path, (epochs, kept), float32 or float64: the kept weights after each epoch's end, jumps included.

        Waits for the device. Empty without `weights_per_leaf`.
        """
        columns = zip(*(kept for _, kept in self._rows), strict=True)
        return {path: np.stack(column) for path, column in zip(self.indices, columns, strict=True)}

    def history(self) -> list[dict[str, np.ndarray]]:
        """The kept weights as one tree an epoch, for `predict_and_mask` and `pdt_optax.plot`."""
        return [dict(zip(self.indices, map(np.asarray, kept), strict=True)) for _, kept in self._rows if kept]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to one `.npz` file, whole or not at all. Waits for the device.

        Raises:
          ValueError: if nothing was recorded.
        """
        arrays = {f"report/{name}": x for name, x in self.reports._asdict().items()}
        arrays |= {f"weights/{p}": x for p, x in self.weights.items()}
        arrays |= {f"indices/{p}": x for p, x in self.indices.items()}
        path = Path(path)
        unfinished = path.with_name(f"{path.name}.unfinished")
        most, seed = self._per_leaf, self._seed
        with unfinished.open("wb") as file:
            np.savez(
                file,
                format=_FORMAT,
                paths=self.paths,
                sizes=self.sizes,
                weights_per_leaf=most,
                seed=seed,
                **arrays,
            )
        unfinished.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recorder":
        """Reads what `save` wrote; recording can go on. Nothing in the file is ever executed.

        Raises:
          OSError: if there is no such file.
          ValueError: if it is not a record of this version.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
                if str(found["format"]) != _FORMAT:
                    raise ValueError(f"format {found['format']}, expected {_FORMAT}")
                recorder = cls(weights_per_leaf=int(found["weights_per_leaf"]), seed=int(found["seed"]))
                recorder.paths, recorder.sizes = found["paths"].tolist(), found["sizes"].tolist()
                kept = recorder.paths if recorder._per_leaf else []
                recorder.indices = {p: found[f"indices/{p}"] for p in kept}
                reports = [found[f"report/{name}"] for name in PDTReport._fields]
                weights = [found[f"weights/{p}"] for p in kept]
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as e:
            raise ValueError(
                f"`path` must be a file that `Recorder.save` wrote. Got {os.fspath(path)!r} ({e})."
            ) from e
        for row in zip(*reports, *weights, strict=True):
            x: list[Any] = [np.asarray(number) for number in row]
            recorder._rows.append((PDTReport(*x[: len(reports)]), x[len(reports) :]))
        return recorder

    def _draw(self, leaf: int, size: int) -> np.ndarray:
        random = np.random.default_rng([self._seed, leaf])
        return np.sort(random.choice(size, min(size, self._per_leaf), replace=False))


@functools.partial(jax.jit, static_argnames="whole")
def _take(
    report: PDTReport, leaves: list[Any], columns: list[Any], whole: NamedSharding | None
) -> tuple[PDTReport, list[jax.Array]]:
    """A copy of a report, since the next step may donate the state that holds it, and the chosen weights.

    On a mesh the chosen weights are `whole` on every device, and so on every process.
    """

    def pick(x: jax.Array, column: Any) -> jax.Array:
        x = jnp.atleast_1d(jax.device_put(x, jax.memory.Space.Device))
        chosen = x.at[tuple(column)].get(mode="promise_in_bounds", out_sharding=whole)
        return chosen.astype(jnp.promote_types(x.dtype, jnp.float32))

    return jax.tree.map(jnp.copy, report), [pick(x, c) for x, c in zip(leaves, columns, strict=True)]
