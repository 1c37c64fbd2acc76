"""What optax asks of its own optimizers holds for each of them wrapped: those of optax and of optax.contrib.

They are found by looking through the two modules, so that a new one in a later optax fails
`test_no_optimizer_is_left_out` until it has its arguments here.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import pdt_optax

RATE = "learning_rate"
# Arguments at which each solves the problems below within 30,000 steps by itself.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "acprop": {RATE: 1e-3},
    "adabelief": {RATE: 1e-2},
    "adadelta": {RATE: 5e-2},
    "adafactor": {RATE: 5e-3},
    "adagrad": {RATE: 1.0},
    "adam": {RATE: 1e-1},
    "adamax": {RATE: 1e-1},
    "adamaxw": {RATE: 1e-1},
    "adamw": {RATE: 1e-1},
    "adan": {RATE: 1e-1},
    "ademamix": {RATE: 1e-3},
    "adopt": {RATE: 1e-2},
    "amsgrad": {RATE: 1e-1},
    "cocob": {},
    "dadapt_adamw": {RATE: 1e-1},
    "dog": {RATE: 1.0},
    "dowg": {RATE: 1.0},
    "dpsgd": {RATE: 1e-3, "l2_norm_clip": 100.0, "noise_multiplier": 1e-4, "seed": 0},
    "fromage": {RATE: 5e-3},
    "galore": {RATE: 1e-2, "rank": 8},
    "lamb": {RATE: 1e-3},
    "lars": {RATE: 1.0},
    "lbfgs": {},
    "lion": {RATE: 1e-2, "weight_decay": 1e-4},
    "madgrad": {RATE: 1e-2},
    "mechanize": {"base_optimizer": optax.sgd(1e-1), "weight_decay": 0.0},
    "momo": {RATE: 1e-1},
    "momo_adam": {RATE: 1e-1},
    "muon": {RATE: 1e-2},
    "nadam": {RATE: 1e-2},
    "nadamw": {RATE: 1e-2},
    "noisy_sgd": {RATE: 1e-3, "eta": 1e-4, "key": 0},
    "novograd": {RATE: 1e-3},
    "optimistic_adam": {RATE: 2e-3},
    "optimistic_adam_v2": {RATE: 2e-3},
    "optimistic_gradient_descent": {RATE: 2e-3, "alpha": 0.7, "beta": 0.1},
    "polyak_sgd": {"max_learning_rate": 1.0},
    "prodigy": {RATE: 1e-1},
    "radam": {RATE: 5e-3},
    "reduce_on_plateau": {},
    "rmsprop": {RATE: 5e-3},
    "rprop": {RATE: 1e-1},
    "sam": {"optimizer": optax.sgd(1e-3, momentum=0.9), "adv_optimizer": optax.sgd(1e-4)},
    "schedule_free": {"base_optimizer": optax.sgd(1e-2), RATE: 1e-2},
    "schedule_free_adamw": {RATE: 1e-2, "warmup_steps": 5000},
    "schedule_free_sgd": {RATE: 1e-2, "warmup_steps": 5000},
    "sgd": {RATE: 1e-3, "momentum": 0.9},
    "sign_sgd": {RATE: 1e-2},
    "signum": {RATE: 1e-2},
    "simplified_ademamix": {RATE: 1e-3},
    "sm3": {RATE: 1.0},
    "sophia": {RATE: 1e-2},
    "yogi": {RATE: 1e-1},
}
# Functions of optax.contrib that make no optimizer.
PARTS = {
    "differentially_private_aggregate",  # of `dpsgd`
    "hutchinson_estimator_diag_hessian",  # of `sophia`
    "normalize",  # of gradients
    "schedule_free_eval_params",
    "split_real_and_imaginary",  # tests/test_situations.py has it
}
# What `update` needs besides gradients, state and weights.
EXTRA = {
    "lbfgs": {"value", "grad", "value_fn"},
    "momo": {"value"},
    "momo_adam": {"value"},
    "polyak_sgd": {"value"},
    "reduce_on_plateau": {"value"},
    "sophia": {"obj_fn"},
}
# What an optimizer does not do by itself, it does not do wrapped.
CANNOT = {
    "map_params": {"lbfgs"},
    "ignore arguments": {"lbfgs", "sam"},
    "inject hyperparameters": {"reduce_on_plateau"},
    "accumulate": {"dpsgd"},  # the gradients of examples
}
# Arguments that are no hyperparameters to change as it trains.
FIXED = {
    "clip_value_fn", "key", "memory_size", "min_dim_size_to_factor", "ns_steps", "num_betas", "opaque_mode", "rank",
    "reset_state", "seed", "sync_period", "update_proj_gap", "warmup_steps",
}  # fmt: skip
# In `make test`; the others in `make test-all`.
SAMPLE = {"adamw", "momo"}
# The default around `end_epoch`, and its jumps inside `update`.
FORMS = ("gradual", "every")

Loss = Callable[[Any], jax.Array]


@pytest.fixture(autouse=True)
def _known_warnings() -> Iterator[None]:
    """`optimistic_adam` warns that `optimistic_adam_v2` takes its place, and `pdt` of optimizers with a slow mean."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "`inner` keeps a slow mean of its own")
        yield


def found() -> set[str]:
    """The names of all optimizers, and of `PARTS`."""

    def module(f: object) -> str:
        return getattr(f.func if isinstance(f, functools.partial) else f, "__module__", "")

    aliases = {n for n, f in vars(optax).items() if module(f) == "optax._src.alias"}
    contributed = {n for n, f in vars(contrib).items() if inspect.isfunction(f)}
    return {n for n in aliases | contributed if not n.startswith("scale_by_")}


def factory(name: str) -> Callable[..., Any]:
    # It scales another one's updates. A prediction can raise the loss for some steps, and ten such steps are its plateau:
    # it is to compare the means of epochs.
    if name == "reduce_on_plateau":
        return lambda: optax.chain(optax.sgd(1e-3), contrib.reduce_on_plateau(accumulation_size=EPOCH))
    return getattr(contrib if hasattr(contrib, name) else optax, name)


def make(name: str) -> optax.GradientTransformation:
    return factory(name)(**ARGUMENTS[name])


def wrapped(name: str, form: str, inner: Any = None, epoch: int = 2, **settings: Any) -> Any:
    """The default, jumps, or jumps inside `update`, around the optimizer of this name or `inner`, made of it."""
    if name == "lbfgs":  # it remembers the loss of the weights that a jump leaves
        settings |= {"deliver": "jump", "after_jump": pdt_optax.forget_value}
    elif form != "gradual":
        settings["deliver"] = "jump"
    return pdt_optax.pdt(inner or make(name), every=epoch if form == "every" else None, **settings)


def step(name: str, tx: Any, loss: Loss, params: Any, state: Any, **more: Any) -> tuple[Any, Any]:
    value, grads = jax.value_and_grad(loss)(params)
    known = {"value": value, "grad": grads, "value_fn": loss, "obj_fn": loss}
    more |= {key: known[key] for key in EXTRA.get(name, ())}
    if name == "dpsgd":  # it takes a gradient for each example: here of one
        grads = jax.tree.map(lambda x: x[None], grads)
    updates, state = tx.update(grads, state, params, **more)
    return optax.apply_updates(params, updates), state


def bowl(params: Any) -> jax.Array:
    return sum((jnp.sum(jnp.square(x - 0.3)) for x in jax.tree.leaves(params)), jnp.zeros(()))


def start(dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    return {"v": jnp.array([1.0, -2.0], dtype), "w": jnp.array([[0.5, 1.0], [-1.0, 2.0], [0.1, 0.2]], dtype)}


def train(name: str, tx: Any, params: Any, steps: int = 2, **more: Any) -> tuple[Any, Any]:
    """The weights and the state after five epochs: the last three of them end with a prediction."""
    state = jax.jit(tx.init)(params)
    run = jax.jit(lambda params, state: step(name, tx, bowl, params, state, **more))

    def epoch(params: Any, state: Any) -> tuple[Any, Any]:
        for _ in range(steps):
            params, state = run(params, state)
        if isinstance(tx, pdt_optax.PDT) and state.last_report is None:
            params, state, _ = tx.end_epoch(params, state)
        return params, state

    params, state = epoch(params, state)
    with jax.no_tracing():  # all is compiled in the first
        for _ in range(4):
            params, state = epoch(params, state)
    assert optax.tree.get(state, "predictions_made") == 3
    return params, state


def types(tree: Any) -> list[Any]:
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


def quick(*values: Any, sampled: bool = True) -> Any:
    """The values of a test, in `make test` if the first of them is in the sample."""
    return pytest.param(*values, marks=() if values[0] in SAMPLE and sampled else pytest.mark.slow)


def each(besides: str = "") -> list[Any]:
    return [quick(name) for name in ARGUMENTS if name not in CANNOT.get(besides, ())]


def test_no_optimizer_is_left_out() -> None:
    """A new one gets its arguments in ARGUMENTS, or its name in PARTS if it is no optimizer."""
    assert found() == {*ARGUMENTS, *PARTS}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", each())
def test_nothing_recompiles_types_are_kept_and_extra_arguments_pass(name: str, form: str, dtype: str) -> None:
    """Types of weights and state: through updates, predictions and `optax.tree.map_params`."""
    tx = wrapped(name, form, start=2)
    before = jax.jit(tx.init)(start(dtype))
    if name not in CANNOT["map_params"]:
        before = optax.tree.map_params(tx, lambda x: x, before)
    more = {} if name in CANNOT["ignore arguments"] else {"an_argument_that_nobody_expects": 1}
    params, after = train(name, tx, start(dtype), **more)
    assert types(params) == types(start(dtype))
    assert types(after) == types(before)
    chex.assert_tree_all_finite(params)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", each(besides="inject hyperparameters"))
def test_hyperparameters_are_injected(name: str, form: str) -> None:
    """`inject_hyperparams` inside changes nothing but that the state holds them."""
    arguments = ARGUMENTS[name]
    given = {k: x for k, x in arguments.items() if not isinstance(x, int | float)}
    bound = functools.partial(factory(name), **given)
    fixed = FIXED & {*inspect.signature(factory(name)).parameters}
    inject = optax.inject_hyperparams(bound, static_args=fixed)
    injected = inject(**{k: x for k, x in arguments.items() if k not in given})
    with jax.enable_x64(True):  # or the two, compiled apart, round apart
        params, state = train(name, wrapped(name, form, injected, start=2), start(jnp.float64))
        expected, plain = train(name, wrapped(name, form, start=2), start(jnp.float64))
        chex.assert_trees_all_close(params, expected, rtol=1e-4, atol=1e-6)
        assert types(state.inner_state.inner_state) == types(plain.inner_state)
        if isinstance(arguments.get(RATE), float):
            assert jnp.float32(optax.tree.get(state, RATE)) == jnp.float32(arguments[RATE])


@pytest.mark.parametrize("name", each(besides="accumulate"))
def test_gradients_are_accumulated(name: str) -> None:
    """Around `MultiSteps` and inside it: three equal gradients are one."""
    expected, _ = train(name, wrapped(name, "jump", start=2), start())
    around = wrapped(name, "jump", optax.MultiSteps(make(name), 3), start=2)
    inside = optax.MultiSteps(wrapped(name, "every", start=2), 3)
    for tx in (around, inside):
        params, _ = train(name, tx, start(), steps=6)
        chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)


def parabola() -> tuple[Any, Any, Loss]:
    end = jnp.array([1.0, -1.0, 1.0])
    return jnp.array([-1.0, 10.0, 1.0]), end, lambda w: jnp.sum(jnp.square(w - end))


def matrix_parabola() -> tuple[Any, Any, Loss]:
    end = jnp.array([[3.0, -2.0], [1.0, 4.0]])
    return jnp.zeros((2, 2)), end, lambda w: jnp.sum(jnp.square(w - end))


def rosenbrock() -> tuple[Any, Any, Loss]:
    return jnp.zeros(2), jnp.ones(2), lambda w: (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2


STEPS, EPOCH = 30_000, 100
# At a constant rate these do not get there by themselves.
UNSOLVED = {("rprop", matrix_parabola), ("sign_sgd", rosenbrock), ("signum", rosenbrock)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        quick(name, problem, sampled=name == "adamw" and problem is parabola)
        for name in ARGUMENTS
        for problem in (parabola, matrix_parabola, rosenbrock)
        if (name, problem) not in UNSOLVED
    ],
)
def test_converges(name: str, problem: Callable[[], tuple[Any, Any, Loss]], form: str) -> None:
    """30,000 steps at a constant rate end where those of the optimizer alone do."""
    tx = wrapped(name, form, epoch=EPOCH)
    params, end, loss = problem()

    def epoch(carry: Any, _: None) -> tuple[Any, None]:
        steps = jax.lax.scan(lambda c, _: (step(name, tx, loss, *c), None), carry, length=EPOCH)
        return (steps[0] if form == "every" else tx.end_epoch(*steps[0])[:2]), None

    run = jax.jit(lambda carry: jax.lax.scan(epoch, carry, length=STEPS // EPOCH)[0])
    params, state = run((params, tx.init(params)))
    assert state.history.clock.predictions_made > 250
    if name.startswith("schedule_free"):
        params = contrib.schedule_free_eval_params(state.inner_state, params)
    np.testing.assert_allclose(params, end, rtol=3e-2, atol=3e-2)
