"""The program of a boundary, to be read: what it allocates, sends and computes."""

from typing import Any

import jax
import jax.numpy as jnp

from pdt_optax import PDT, History, Predictor
from pdt_optax._compiled import end_apart
from pdt_optax._history import find
from pdt_optax._predictor import at_boundary
from pdt_optax._report import Value
from pdt_optax._saved import predictor_of


def lower(made: PDT | Predictor, params: Any) -> Any:
    """The donated `end_epoch` without a guard, lowered for parameters, or for their shapes."""
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))
    predictor = predictor_of(made)
    history = find(jax.eval_shape(made.init, params) if abstract else made.init(params), History)
    now, plan = at_boundary(predictor, params, history, [])
    spent, kept = predictor.spent(now.window)
    shapes: Any = (jax.ShapeDtypeStruct((), x) for x in (jnp.int32, jnp.float32, jnp.bool_))
    seen, mean, given = shapes
    return end_apart.lower(now._replace(window=spent), None, kept, seen, Value(mean, given), plan=plan)
