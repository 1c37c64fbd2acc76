"""What `update` adds to the optimizer's updates where predictions are delivered in parts."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from pdt_optax import _layout
from pdt_optax._boundary import project
from pdt_optax._compiled import jump
from pdt_optax._motion import Delivery
from pdt_optax._reduce import usual_promotion
from pdt_optax._settings import Settings


def delivered(
    updates: optax.Updates,
    delivery: Delivery,
    seen: jax.Array,
    params: optax.Params | None,
    settings: Settings,
) -> optax.Updates:
    """The updates with their part of what is delivered to the weights, after `seen` of an epoch's updates."""
    if settings.project is None:
        return _parts(updates, delivery, seen)
    if params is None:
        raise ValueError(
            "`update` needs `params` with `project`, to see where the weights will be: "
            "tx.update(grads, opt_state, params). Got params=None."
        )
    return _within(updates, delivery, seen, params, settings)


@usual_promotion()
def _parts(updates: optax.Updates, delivery: Delivery, seen: jax.Array) -> optax.Updates:
    """The updates with their part of what is delivered to the weights."""
    part, like = delivery.part(seen), delivery.displacement
    leaves = _layout.take(like, updates, "updates", types=False)
    # Chosen, not added as 0: until there is something to deliver, the updates are the inner optimizer's to the last bit.
    pairs = zip(leaves, jax.tree.leaves(like), strict=True)
    moved = [jnp.where(part > 0, (u + part * x).astype(u.dtype), u) for u, x in pairs]
    return _layout.put(like, updates, moved)


@usual_promotion()
def _within(
    updates: optax.Updates, delivery: Delivery, seen: jax.Array, params: optax.Params, settings: Settings
) -> optax.Updates:
    """As `_parts`, and what it leads to passes through `project`."""
    moved, like = _parts(updates, delivery, seen), delivery.displacement
    weights, steps, own = (
        _layout.take(like, tree, name, types=False)
        for tree, name in ((params, "params"), (moved, "updates"), (updates, "updates"))
    )
    landed: Any = optax.apply_updates(cast(Any, weights), cast(Any, steps))
    within = jax.tree.leaves(project(settings, jax.tree.structure(like), landed))
    on = delivery.part(seen) > 0
    four = zip(steps, weights, landed, within, own, strict=True)
    steps = [jnp.where(on, jump(u, w, x, y), o) for u, w, x, y, o in four]
    return _layout.put(like, updates, steps)
