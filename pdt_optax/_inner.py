"""The optimizer that is wrapped: what it is handed, and what it must forget after a jump."""

import inspect
import warnings
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from pdt_optax._slow import slow_drift

State = TypeVar("State")

# They remember the loss and the gradient of the weights that they left.
_CACHES = (optax.ScaleByBacktrackingLinesearchState, optax.ScaleByZoomLinesearchState)
# Their path persists by a slow mean of their own.
_SLOW = (optax.contrib.ScheduleFreeState, optax.contrib.ScaleByAdemamixState)


def with_extra_args(inner: Any) -> optax.GradientTransformationExtraArgs:
    """As optax does it, and an object that takes keywords gets them, such as `optax.MultiSteps`."""
    kinds = {x.kind for x in inspect.signature(inner.update).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return optax.GradientTransformationExtraArgs(inner.init, inner.update)
    return optax.with_extra_args_support(inner)


def _caches(x: object) -> bool:
    return isinstance(x, _CACHES)


def check_cached(opt_state: object) -> None:
    """Raises ValueError if an optimizer remembers a loss that a prediction would make untrue."""
    for x in jax.tree.leaves(opt_state, is_leaf=_caches):
        if _caches(x):
            raise ValueError(
                "`inner` remembers the loss and the gradient of the weights that it left, and a prediction moves them "
                "on. Make it forget them: pdt_optax.pdt(inner, deliver='jump', after_jump=pdt_optax.forget_value). "
                f"Found {type(x).__name__}."
            )


def warn_of_slow_mean(dynamics: object, opt_state: object) -> None:
    """Warns of an optimizer around which `slow_drift` was found to harm."""

    def slow(x: object) -> bool:
        return isinstance(x, _SLOW)

    found = {type(x).__name__ for x in jax.tree.leaves(opt_state, is_leaf=slow) if slow(x)}
    if found and isinstance(dynamics, slow_drift):
        warnings.warn(
            f"`inner` keeps a slow mean of its own ({', '.join(sorted(found))}), and its path persists because of it. "
            "Around such an optimizer the default ended at a higher loss, at the weights that it evaluates, than the "
            "optimizer alone, on every task that was tried. Use it without `pdt`.",
            stacklevel=3,
        )


def forget_value(opt_state: State) -> State:
    """An optimizer's state that no longer knows the loss of the weights: `optax.value_and_grad_from_state` computes it anew.

    For `pdt(optax.lbfgs(), deliver="jump", after_jump=forget_value)` and line
    searches; beside a `Predictor` call it after a prediction.

    Args:
      opt_state: any; what is not the state of a line search stays as it is.

    Example:
      >>> import jax, jax.numpy as jnp, optax, pdt_optax
      >>> loss, params = lambda w: jnp.sum((w - 1) ** 2), jnp.zeros(2)
      >>> tx = optax.lbfgs()
      >>> state = tx.init(params)
      >>> value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
      >>> updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
      >>> elsewhere = jnp.array([3.0, 1.0])  # not where the optimizer went
      >>> float(optax.value_and_grad_from_state(loss)(elsewhere, state=state)[0]) < 0.2  # as at what it left
      True
      >>> float(optax.value_and_grad_from_state(loss)(elsewhere, state=pdt_optax.forget_value(state))[0])
      4.0
    """

    def forgotten(x: State) -> State:
        return x._replace(value=jnp.full_like(x.value, jnp.inf)) if isinstance(x, _CACHES) else x

    return jax.tree.map(forgotten, opt_state, is_leaf=_caches)
