"""The history of a run: its last snapshots, the clock and the guard's backup; and taking up a saved one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from pdt_optax import _layout
from pdt_optax._layout import Column, Tree
from pdt_optax._moment import Backup, Clock, Moment
from pdt_optax._motion import Delivery, Motion, is_gradual
from pdt_optax._reduce import usual_promotion
from pdt_optax._settings import Settings
from pdt_optax._slow import Pull, slow_drift
from pdt_optax.schedule import Pace

# Of what a `History` holds and means; it grows when a saved one could be misread.
VERSION = 5

Kind = TypeVar("Kind")


class History(NamedTuple):
    """What a `Predictor` remembers of a run: a pytree of arrays, to be saved with the parameters.

    Attributes:
      snapshots: `window` trees like the parameters, oldest to newest, with a
        `MaskedNode` for each leaf that is never predicted. Until `window` were
        taken, the oldest repeat the initial weights.
      motion: the mean of the optimizer's own motion, for a running model such as
        `slow_drift`; else None.
      delivery: what the coming updates add to the weights, where `pdt` delivers
        predictions in parts; else None.
      clock: counters, and the schedule's numbers.
      backup: what the guard would bring back, None without one.
      version: (VERSION,), int8, zeros. The length says which version of this
        library made the history, so that nobody waits for the device to read it.
    """

    snapshots: tuple[optax.Params, ...]
    motion: Motion | None
    delivery: Delivery | None
    clock: Clock
    backup: Backup | None
    version: jax.Array

    @property
    def opt_state(self) -> optax.OptState:
        """Under a guard, the optimizer's state to go on with: a copy, so that a step may donate it.

        Of a `Predictor`. In the state of `pdt`, which has it as `inner_state`, these are its leaves alone.

        Raises:
          ValueError: without a guard: only a guard keeps one.
        """
        if self.backup is None:
            raise ValueError(
                "`history.opt_state` exists only with a guard, which may bring the optimizer's state back: "
                "go on with your own. Got a history without a backup."
            )
        return jax.tree.map(own_copy, self.backup.optimizer_before)

    def moment(self, weights: Column, opt_state: Column) -> Moment:
        """What a boundary works on: the list of its leaves in place of each tree, whatever the containers."""
        backup = self.backup
        if backup is not None:
            (armed,) = jax.tree.leaves(backup.armed)
            backup = Backup(armed.astype(bool), *map(jax.tree.leaves, backup[1:]))
        held, seen, plain, made, *pace, settings = jax.tree.leaves(self.clock)
        clock = Clock(held, seen, plain, made, Pace(*pace), settings)
        window = tuple(map(jax.tree.leaves, self.snapshots))
        return Moment(weights, window, self._motion(), self._delivery(), opt_state, backup, clock)

    def _motion(self) -> Motion | None:
        if self.motion is None:
            return None
        weight, gain = jax.tree.leaves(self.motion.pull)
        return Motion(jax.tree.leaves(self.motion.mean), Pull(weight, gain))

    def _delivery(self) -> Delivery | None:
        if self.delivery is None:
            return None
        *displacement, parts = jax.tree.leaves(self.delivery)
        return Delivery(displacement, parts)

    def after(self, moment: Moment) -> "History":
        """This history after a boundary, in the containers that it had before."""
        new = History(
            moment.window, moment.motion, moment.delivery, moment.clock, moment.backup, self.version
        )
        return _layout.refill(self, new)

    def refill(self, opt_state: Tree, moment: Moment) -> Tree:
        """The optimizer's state after a boundary, which a guard may have brought back."""
        return opt_state if self.backup is None else _layout.refill(opt_state, moment.opt_state)

    @property
    def weights(self) -> optax.Params:
        """A tree with the weights that a boundary may write: all floating leaves under a guard."""
        return self.snapshots[-1] if self.backup is None else self.backup.weights_before


def own_copy(x: Tree) -> Tree:
    return jnp.array(x, copy=True) if isinstance(x, jax.Array) else x


@usual_promotion()
def start(
    params: optax.Params, opt_state: optax.OptState | None, settings: Settings, *, gradual: bool = False
) -> History:
    """The history before the first epoch; `gradual` if predictions are delivered in parts."""
    newest = _layout.snapshot(params, settings.exclude)

    def nothing(x: jax.Array) -> jax.Array:
        # Zeros made of the weights: under jit on a mesh, XLA would put constants on every device whole.
        zero = jnp.abs(x.astype(jnp.promote_types(x.dtype, jnp.float32)) * 0)
        return jnp.where(zero == 0, zero, 0)

    motion, delivery, model = None, None, settings.dynamics
    if isinstance(model, slow_drift):
        motion = Motion(jax.tree.map(nothing, newest), model.start())
    if gradual:
        in_parts = jax.tree.map(lambda x: nothing(x) if is_gradual(x) else optax.MaskedNode(), newest)
        delivery = Delivery(in_parts, jnp.zeros((), jnp.int32))
    backup = None
    if settings.guard is not None:
        backup = Backup(jnp.array(False), _layout.snapshot(params), jax.tree.map(own_copy, opt_state))
    return History(
        snapshots=settings.storage.start(newest, settings.window),
        motion=motion,
        delivery=delivery,
        clock=Clock.start(settings),
        backup=backup,
        version=jnp.zeros(VERSION, jnp.int8),
    )


def find(tree: object, kind: type[Kind]) -> Kind:
    """The one `History` (or `kind`) in a tree, such as an optimizer's state.

    Raises:
      ValueError: if there is none, or more than one.
    """
    found = all_of(tree, kind)
    if len(found) != 1:
        way_out = (
            "Hand over the part that belongs to this wrapper, such as opt_state.inner_states['name'] of a partition."
            if found
            else "Is the optimizer wrapped, and do the parameters come before the state? Restore a saved state into the "
            "shapes of a new one, jax.eval_shape(tx.init, params); the state of an optimizer alone is taken up by "
            "tx.init(params)._replace(inner_state=state)."
        )
        raise ValueError(
            "The state must hold exactly one history of snapshots: that of a `Predictor`, or the state of one "
            f"`pdt` wrapper, as `init` returned it. {way_out} Found {len(found)} in {type(tree).__name__}."
        )
    return found[0]


def all_of(tree: object, kind: type[Kind]) -> list[Kind]:
    return [x for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)) if isinstance(x, kind)]


def replaced(tree: Tree, kind: type[Kind], change: Callable[[Kind], Kind]) -> Tree:
    """`tree` with what `change` makes of each `kind` in it."""
    return jax.tree.map(
        lambda x: change(x) if isinstance(x, kind) else x, tree, is_leaf=lambda x: isinstance(x, kind)
    )


TAKE_UP = "Take it up: state = pdt_optax.adopt(made, state, params)."


def check(saved: Mapping[str, Any], settings: Settings) -> None:
    """Raises ValueError if the fields of a history are not those of a predictor with these settings.

    Reads shapes alone: they are there while tracing, and in a checkpoint's metadata.
    """
    versions = [tuple(x.shape) for x in jax.tree.leaves(saved["version"]) if hasattr(x, "shape")]
    if versions and len(versions[0]) > 1:
        raise ValueError(
            f"The state holds {versions[0][0]} members, made under `vmap` or `pmap`: end their epochs under it, too: "
            "jax.vmap(tx.end_epoch)(params, opt_state)."
        )
    if versions and versions != [(VERSION,)]:
        got = versions[0][0] if versions[0] else 1
        raise ValueError(
            "The state must be of the version that this pdt_optax reads: restore it with the pdt_optax that saved "
            "it, or go on without its snapshots: tx.init(params)._replace(inner_state=saved.inner_state). "
            f"Expected version {VERSION}, got {got}."
        )
    running = isinstance(settings.dynamics, slow_drift)
    if running != (saved.get("motion") is not None):
        kinds = ["a model that sees a window of snapshots", "a model that keeps a mean of the motion"]
        raise ValueError(
            f"The state must come from the `init` of a predictor with the same kind of `dynamics`. {TAKE_UP} "
            f"Expected the state of {kinds[running]}; got that of {kinds[not running]}."
        )
    held, window = len(saved["snapshots"]), settings.window
    if held != window:
        raise ValueError(
            "The state must hold as many snapshots as its predictor's `window`: give it another window by "
            f"pdt_optax.resize_window(state, {window}), or set window={held}. Got {held} snapshots, {window=}."
        )
    expected, got = ("no guard" if x is None else "a guard" for x in (settings.guard, saved["backup"]))
    if expected != got:
        raise ValueError(
            "The state must come from the `init` of a predictor like this one: it holds a backup only where "
            f"`guard` is set. {TAKE_UP} Expected the state of {expected}; got that of {got}."
        )
    newest, oldest = (jax.tree.leaves(saved["snapshots"][i])[:1] for i in (-1, 0))
    for new, old in zip(newest, oldest, strict=True):
        if hasattr(old, "dtype") and old.dtype != settings.storage.older_dtype(new):
            raise ValueError(
                f"The state must keep its snapshots as its predictor does: `snapshot_dtype` differs. {TAKE_UP} "
                f"Expected older snapshots of {settings.storage.older_dtype(new)}, got {old.dtype}."
            )
