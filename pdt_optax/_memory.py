"""What a configuration will hold in memory, told before anything is allocated."""

import functools
from typing import Any, NamedTuple

import jax
import optax

from pdt_optax import _layout
from pdt_optax._predict import predict, stacks
from pdt_optax._predictor import Predictor
from pdt_optax._saved import predictor_of
from pdt_optax._transformation import PDT
from pdt_optax.accept import everything


class Memory(NamedTuple):
    """Bytes, summed over all devices; printed as a table.

    Attributes:
      params: of the parameters.
      optimizer: of the inner optimizer's state.
      snapshots: of the window, and of a running mean and what is delivered.
      snapshots_on_host: whether they wait in host memory.
      backup: of the guard's weights and optimizer state.
      boundary: what `end_epoch(..., donate=True)` needs beyond all this while
        it predicts: the mask, copies of the small leaves that are computed
        together, older snapshots that are moved along, and the window if it waits in host memory.
        Without `donate` it is two copies of the weights more.
    """

    params: int
    optimizer: int
    snapshots: int
    snapshots_on_host: bool
    backup: int
    boundary: int

    @property
    def device(self) -> int:
        """The most there is at a time on the devices."""
        return sum(self[:3]) - self.host + self.backup + self.boundary

    @property
    def host(self) -> int:
        """What waits in host memory."""
        return self.snapshots if self.snapshots_on_host else 0

    def __str__(self) -> str:
        rows = [
            ("parameters", self.params),
            ("optimizer", self.optimizer),
            ("snapshots on the host" if self.snapshots_on_host else "snapshots", self.snapshots),
            ("backup", self.backup),
            ("at a prediction", self.boundary),
            ("at most, on the devices", self.device),
        ]
        return "\n".join(f"{name:<24}{_readable(size):>10}" for name, size in rows if size)


def _readable(size: float) -> str:
    scale, unit = next((x for x in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= x[0]), (1, "B"))
    return f"{size / scale:.3g} {unit}"


def _bytes(tree: object) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))


def memory(
    made: PDT | Predictor, params: Any, *, optimizer: optax.GradientTransformation | None = None
) -> Memory:
    """What training with PDT will hold, from the shapes of the parameters alone.

    Args:
      made: what `pdt(...)` returned, or a `Predictor`.
      params: the parameters, or `jax.ShapeDtypeStruct`s in their place.
      optimizer: the one beside a `Predictor`, whose state is then told, too.

    Returns:
      A `Memory`. Gradients and activations are not in it.

    Raises:
      TypeError: if `made` is something else.
      ValueError: if there is nothing to predict.

    Example:
      >>> import jax, jax.numpy as jnp, optax, pdt_optax
      >>> params = {"kernel": jax.ShapeDtypeStruct((4096, 14000), jnp.float32)}
      >>> print(pdt_optax.memory(pdt_optax.pdt(optax.adamw(1e-3)), params))
      parameters                  229 MB
      optimizer                   459 MB
      snapshots                   688 MB
      at most, on the devices    1.38 GB
    """
    predictor = predictor_of(made)
    if isinstance(made, Predictor):
        opt_state: Any = jax.eval_shape((optimizer or optax.identity()).init, params)
        history = jax.eval_shape(made.init, params, opt_state if predictor.guard else None)
    else:
        state: Any = jax.eval_shape(made.init, params)
        opt_state, history = state.inner_state, state.history
    kept = (history.snapshots, history.motion, history.delivery)
    weights = _layout.take(history.snapshots[-1], params)
    window = tuple(map(jax.tree.leaves, history.snapshots))
    model, rule, storage = predictor.dynamics, predictor.rule, predictor.storage
    if history.motion is None:
        ahead = functools.partial(predict, dynamics=model, accept=rule, horizon=predictor.schedule.longest)
        masks = jax.eval_shape(
            lambda w, x: ahead(storage.at_hand(w), x, 0, storage=storage).mask, window, weights
        )
    elif isinstance(rule, everything):
        masks = []
    else:
        masks = [jax.eval_shape(lambda x: rule.at(0, 0)(x[None], x, x[None], x, 1), x) for x in weights]
        masks += jax.tree.leaves(history.motion.mean)  # which the mask is computed from once more
    together = [i for stack in stacks(weights, together=True) if len(stack) > 1 for i in stack]
    columns = [*window, *(jax.tree.leaves(x.mean) for x in [history.motion] if x), weights]
    copied = [column[i] for column in columns for i in together]
    shifted = window[1:] if predictor.shifts else ()  # which come in new memory
    snapshots = _bytes(kept)
    return Memory(
        params=_bytes(params),
        optimizer=_bytes(opt_state),
        snapshots=snapshots,
        snapshots_on_host=storage.host,
        backup=_bytes(history.backup),
        boundary=_bytes(masks) + _bytes(copied) + _bytes(shifted) + (snapshots if storage.host else 0),
    )
