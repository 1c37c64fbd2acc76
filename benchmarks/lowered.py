"""The program of a boundary, to be read: what it allocates, sends and computes."""

from typing import Any

import jax
import jax.numpy as jnp

from pdt_optax import Predictor
from pdt_optax._compiled import end_apart
from pdt_optax._predictor import at_boundary


def lower(predictor: Predictor, params: Any) -> Any:
    """The donated `end_epoch` of a predictor without a guard, lowered for parameters, or for their shapes."""
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))
    history: Any = jax.eval_shape(predictor.init, params) if abstract else predictor.init(params)
    now, plan = at_boundary(predictor, params, history, [])
    spent, kept = (now.window, ()) if predictor.shifts else predictor.storage.split(now.window)
    seen, value, missing = (jax.ShapeDtypeStruct((), t) for t in (jnp.int32, jnp.float32, jnp.bool_))
    return end_apart.lower(now._replace(window=spent), None, kept, seen, value, missing, plan=plan)
