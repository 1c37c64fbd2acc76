"""Saved weights of a run, read one step at a time: Orbax checkpoints, and `.npz` files."""

import itertools
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pdt_optax import _layout
from pdt_optax._recorder import Recorder
from pdt_optax._saved import _with_fields

# A tree with one of these keys holds more than parameters.
_BESIDE = {"batch_stats", "epoch", "key", "opt_state", "optimizer", "optimizer_state", "rng", "rngs", "step"}
_UNFINISHED = ".orbax-checkpoint-tmp"

Keys = tuple[str, ...]


class Saved(NamedTuple):
    """Weights that were saved at several steps of a run.

    Attributes:
      source: what they are read from, for people.
      steps: of the run, rising.
      load: reads the weights of one step: a tree of arrays.
      note: what else a reader of the report must know; empty if nothing.
    """

    source: str
    steps: tuple[int, ...]
    load: Callable[[int], Any]
    note: str = ""

    def weights(self) -> Iterator[Any]:
        """The weights of each step, read when it is their turn.

        Raises:
          ValueError: if a tree has other leaves than the first, or holds a number that is not finite.
        """
        first: dict[str, str] = {}
        for step in self.steps:
            tree = self.load(step)
            named = dict(zip(_layout.leaf_names(tree), jax.tree.leaves(tree), strict=True))
            found = {name: _layout.describe(x) for name, x in named.items()}
            first = first or found
            if found != first:
                different = [name for name in first | found if first.get(name) != found.get(name)]
                raise ValueError(
                    f"All steps must hold the weights of one model. Step {step} differs from step {self.steps[0]} at "
                    f"{_listed(different)}: name the folder of one run, or choose steps by `first` and `last` (--from, --to)."
                )
            for name, x in named.items():
                # In float32, since NumPy cannot judge a bfloat16.
                if _layout.is_floating(x) and not np.isfinite(np.asarray(x, np.float32)).all():
                    raise ValueError(
                        f"All weights must be finite, or there is no path to measure. {name!r} at step {step} is not: "
                        f"the run had diverged. Look at the steps before: last={step - 1} (--to {step - 1})."
                    )
            yield tree


def read(path: str | os.PathLike[str], params: str | None = None) -> Saved | Recorder:
    """Finds the saved weights in a folder, or reads a `Recorder`'s file.

    Args:
      path: a folder of one run's Orbax checkpoints: a `CheckpointManager`'s, or
        one with a folder for each step, whose name ends in its number; a folder
        of `.npz` files, numbered likewise; or a file that `Recorder.save` wrote.
      params: where in a checkpoint the parameters lie, such as "params" or
        "state/params"; by default they are looked for.

    Returns:
      What is read, or will be: arrays are read when it is their step's turn.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ImportError: if Orbax is needed and not installed.
      ValueError: if nothing can be read there, or the parameters cannot be told from the rest.

    Example:
      >>> import tempfile, numpy as np, pdt_optax
      >>> folder = tempfile.mkdtemp()
      >>> for epoch in range(3):
      ...     np.savez(f"{folder}/weights_{epoch}.npz", w=np.ones(2) * epoch)
      >>> pdt_optax.inspect.read(folder).steps
      (0, 1, 2)
    """
    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}: name a folder of checkpoints, or a file.")
    if path.is_file():
        return Recorder.load(path)
    if checkpoints := _checkpoints(path):
        return _orbax(path, checkpoints, params)
    if files := _numbered(path, sorted(path.glob("*.npz")), lambda file: file.stem):
        return _npz(path, files, params)
    held = [entry.name for entry in sorted(path.iterdir())]
    raise ValueError(
        "The folder must hold a run's Orbax checkpoints or .npz files, one for each step. "
        f"{path} holds {_listed(held) or 'nothing'}."
    )


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _numbered(folder: Path, paths: Sequence[Path], name: Callable[[Path], str]) -> dict[int, Path]:
    """Paths by the last number in their names, rising."""
    found: dict[int, Path] = {}
    for path in paths:
        numbers = re.findall(r"\d+", name(path))
        if not numbers:
            raise ValueError(
                "The name of each step must have its number, such as weights_0010.npz, or their order is not known. "
                f"Got {path.name!r} in {folder}."
            )
        step = int(numbers[-1])
        if step in found:
            raise ValueError(
                "Each step must be there once, or two runs would be taken for one: name the folder of one run. "
                f"Got step {step} as {found[step].name!r} and as {path.name!r} in {folder}."
            )
        found[step] = path
    return dict(sorted(found.items()))


# Which of the saved arrays are the parameters.


def _where(tree: Any, params: str | None) -> Keys:
    """The keys under which the parameters lie in a tree; none if it holds nothing else."""
    if params is not None:
        keys = tuple(params.split("/"))
        for i, key in enumerate(keys):
            inner = _at(tree, keys[:i])
            if not isinstance(inner, Mapping) or key not in inner:
                known = _listed(list(inner)) if isinstance(inner, Mapping) else "no keys"
                raise ValueError(
                    f"`params` must say where the parameters lie in a checkpoint. Got {params!r}; "
                    f"{'/'.join(keys[:i]) or 'the checkpoint'} has {known}."
                )
        return keys
    found = [*_called_params(tree)]
    more = isinstance(tree, Mapping) and not _BESIDE.isdisjoint(tree)
    if len(found) > 1 or (more and not found):
        places = ["/".join(keys) for keys in found] or list(tree)
        raise ValueError(
            "It must be clear which of the saved arrays are the parameters: say where they lie, such as "
            f"params={places[0]!r} (--params {places[0]}). Got {_listed(places)}."
        )
    return found[0] if found else ()


def _called_params(tree: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Where subtrees called "params" lie, the innermost of nested ones, outside all that is not weights."""
    if isinstance(tree, Mapping):
        for key in (key for key in tree if key not in _BESIDE):
            inner = [*_called_params(tree[key], (*keys, key))]
            yield from inner or [(*keys, key)] * (key == "params")


def _at(tree: Any, keys: Sequence[str]) -> Any:
    return _at(tree[keys[0]], keys[1:]) if keys else tree


# .npz files.


def _npz(folder: Path, files: Mapping[int, Path], params: str | None) -> Saved:
    if params is not None:
        raise ValueError(
            f"`params` is for checkpoints: a .npz file holds the parameters alone. Got {params!r}."
        )

    def load(step: int) -> Any:
        try:
            with np.load(files[step], allow_pickle=False) as file:
                tree = dict(file)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as e:
            raise ValueError(f"{files[step]} is damaged, or not a .npz file of arrays: leave it out.") from e
        if "format" in tree and "paths" in tree:
            raise ValueError(
                f"{files[step]} is a `Recorder`'s file, a whole run: name the file in place of the folder."
            )
        return tree

    return Saved(f"{len(files)} .npz files in {folder}", tuple(files), load)


# Orbax checkpoints.


def _checkpoints(folder: Path) -> dict[int, dict[str, Path]]:
    """The saved trees by step and item; one that is a step by itself has the item ""."""
    found = itertools.chain.from_iterable(folder.glob(f"{'*/' * depth}_METADATA") for depth in range(3))
    trees = sorted(path.parent for path in found if _UNFINISHED not in str(path.relative_to(folder)))
    if folder in trees:
        raise ValueError(
            "A path takes the checkpoints of several steps, and this folder is one of them: name the folder that it "
            f"lies in. Got {folder}."
        )
    tops = sorted({folder / tree.relative_to(folder).parts[0] for tree in trees})
    return {
        step: {"" if tree == top else tree.name: tree for tree in trees if top in (tree, tree.parent)}
        for step, top in _numbered(folder, tops, lambda path: path.name).items()
    }


def _orbax(folder: Path, steps: Mapping[int, Mapping[str, Path]], params: str | None) -> Saved:
    try:
        import orbax.checkpoint as ocp
        from etils import epath
    except ImportError as e:
        raise ImportError(
            "To read checkpoints takes Orbax: pip install 'pdt-optax[inspect]', in a checkout '.[inspect]'."
        ) from e
    handler = ocp.PyTreeCheckpointHandler()

    def attempt(step: int, read: Callable[..., Any], path: Path, **options: Any) -> Any:
        try:
            return read(epath.Path(path), **options)
        except Exception as e:  # damage shows in as many ways as there are files
            line = (str(e).splitlines() or [type(e).__name__])[0]
            raise ValueError(f"The checkpoint of step {step} in {folder} cannot be read ({line}).") from e

    def shapes(step: int) -> Any:
        """What a step holds, told by its metadata; by item if it has several."""
        found = {item: attempt(step, handler.metadata, path) for item, path in steps[step].items()}
        trees = {item: getattr(tree, "tree", tree) for item, tree in found.items()}
        return trees if len(trees) > 1 else next(iter(trees.values()))

    def load(step: int) -> Any:
        """The parameters alone: an optimizer's state is larger."""
        tree, items = shapes(step), steps[step]
        keys = _where(tree, params)
        if len(items) > 1 and not keys:
            raise ValueError(
                f"`params` must say which item the parameters are. Got a step with {_listed([*items])}."
            )
        item, inner = (keys[0], keys[1:]) if len(items) > 1 else (next(iter(items)), keys)
        part = _at(tree, keys)
        for key in reversed(inner):
            part = {key: part}
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), part)
        restore = ocp.args.PyTreeRestore(item=part, restore_args=args, partial_restore=True)
        return _at(attempt(step, handler.restore, items[item], args=restore), inner)

    predicted = any(_with_fields(shapes(next(iter(steps))), {"snapshots", "version"}))
    note = (
        "These checkpoints hold a history of PDT. If it predicted, what is measured here is the path with its "
        "predictions in it: inspect a plain run, or one with dry_run=True."
    )
    return Saved(f"{len(steps)} checkpoints in {folder}", tuple(steps), load, note if predicted else "")
