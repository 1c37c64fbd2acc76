"""Wrong uses: each names the rule it breaks and the value that broke it."""

import dataclasses
import functools
import re
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import pdt_optax
from pdt_optax import _layout, presets
from tests.states import WINDOWED

INNER = optax.sgd(0.1)
SMALL: dict[str, Any] = {**WINDOWED, "window": 2, "start": 2, "interval": 1, "horizon": 2}
PARAMS: dict[str, Any] = {"b": jnp.ones(2), "w": jnp.arange(6.0).reshape(3, 2)}
OUTSIDE: Any = pdt_optax.pdt(INNER, **SMALL)
INSIDE: Any = pdt_optax.pdt(INNER, every=2, **SMALL)
RULE_AND_MODEL: dict[str, Any] = {"dynamics": pdt_optax.drift(), "accept": pdt_optax.agree(), "horizon": 2}


def case(error: type[Exception], call: Callable[[], Any], *parts: str, id: str) -> Any:
    """`parts` must stand in the message, in this order."""
    return pytest.param(error, call, parts, id=id)


def check(error: type[Exception], call: Callable[[], Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(error, match="(?s)" + ".*".join(re.escape(part) for part in parts)) as raised:
        call()
    assert raised.type is error


def make(**settings: Any) -> Callable[[], Any]:
    return lambda: pdt_optax.pdt(INNER, **settings)


def make_windowed(**settings: Any) -> Callable[[], Any]:
    return lambda: pdt_optax.pdt(INNER, **{**WINDOWED, **settings})


def make_around(inner: Any) -> Any:
    return pdt_optax.pdt(inner)


def end(params: Any, state: Any = None, tx: Any = OUTSIDE) -> Callable[[], Any]:
    return lambda: tx.end_epoch(params, OUTSIDE.init(PARAMS) if state is None else state)


WHOLE_NUMBERS = {
    "window": "`window` must be a whole number >= 1: a running mean takes one snapshot",
    "start": "`start` must be a whole number >= 1: it counts epochs",
    "horizon": "`horizon` must be a whole number >= 1: a prediction looks at least one snapshot ahead",
    "interval": "`interval` must be a whole number >= 0: it counts the plain epochs between two predictions",
    "every": "`every` must be a whole number >= 1: it counts calls of `update`",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}={value!r}")
        for name in WHOLE_NUMBERS
        for value in (0, -3, 2.0, True, "3", np.float32(4), None, (5,))
        if value is not None  # their default
        if not (value == 0 and name == "interval")  # a prediction at every epoch's end
    ],
)
def test_whole_numbers(name: str, value: Any) -> None:
    check(ValueError, make(**{name: value}), (WHOLE_NUMBERS[name], f"Got {name}={value!r}."))


def test_none_is_the_default() -> None:
    usual: Any = dict.fromkeys(("window", "start", "horizon", "interval", "accept", "schedule"))
    for dynamics in (pdt_optax.slow_drift(), pdt_optax.drift()):
        assert pdt_optax.Predictor(dynamics=dynamics, **usual) == pdt_optax.Predictor(dynamics=dynamics)


@pytest.mark.parametrize(
    ("error", "call", "parts"),
    [
        case(ValueError, make(window=0), WHOLE_NUMBERS["window"], "Got window=0.", id="window below 1"),
        case(
            ValueError,
            make_windowed(window=1),
            "`window` must be a whole number >= 2: a difference takes two snapshots",
            "Got window=1.",
            id="window below 2",
        ),
        case(
            ValueError,
            make(window=4, start=3),
            "`start` must be at least `window`",
            "full window",
            "start=3, window=4",
            id="start below window",
        ),
        case(
            ValueError,
            make_windowed(start=4),
            "`start` must be at least `window`",
            "start=4, window=5",
            id="start below the default window",
        ),
    ],
)
def test_ranges(error: type[Exception], call: Any, parts: tuple[str, ...]) -> None:
    check(error, call, parts)


INNER_RULE = "`inner` must be an optax gradient transformation, such as optax.adamw(1e-3). Got"
DYNAMICS_RULE = "`dynamics` must be a model of the dynamics, such as `drift()` or `dmd()`"
ACCEPT_RULE = "`accept` must be an acceptance rule, such as `agree()` or `released_rule()`"


@dataclasses.dataclass(frozen=True)
class Unhashable(pdt_optax.Rule):
    weights: Any = dataclasses.field(default_factory=lambda: [1.0])


@pytest.mark.parametrize(
    ("error", "call", "parts"),
    [
        *(
            case(TypeError, functools.partial(make_around, x), INNER_RULE, repr(x), id=f"inner {x!r}")
            for x in (None, "adam", 0.1)
        ),
        case(
            TypeError,
            lambda: make_around(optax.adamw),
            INNER_RULE,
            "function adamw",
            "Call it first",
            id="inner not called",
        ),
        case(
            TypeError,
            lambda: make_around(lambda g: g),
            INNER_RULE,
            "function",
            id="inner a function",
        ),
        *(
            case(TypeError, make(dynamics=x), DYNAMICS_RULE, f"Got {x!r}.", id=f"dynamics {x!r}")
            for x in (pdt_optax.drift, pdt_optax.dmd, "drift", None, pdt_optax.agree())
        ),
        *(
            case(TypeError, make(accept=x), ACCEPT_RULE, f"Got {x!r}.", id=f"accept {x!r}")
            for x in (pdt_optax.agree, pdt_optax.shrink, "agree")
        ),
        case(
            TypeError,
            make(accept=Unhashable()),
            "`accept` must be hashable",
            "Unhashable(weights=[1.0])",
            id="accept unhashable",
        ),
        case(
            TypeError,
            make(dynamics=pdt_optax.dmd(rank=None), accept=pdt_optax.agree),
            ACCEPT_RULE,
            "agree",
            id="accept not called",
        ),
    ],
)
def test_what_is_no_part(error: type[Exception], call: Any, parts: tuple[str, ...]) -> None:
    check(error, call, parts)


@dataclasses.dataclass(frozen=True)
class Second(pdt_optax.Rule):
    """Looks at two differences."""

    minimum_window = 3


SHRINK_RULE = "`shrink()` weighs the window's mean velocity against its noise, and only `drift()`"


@pytest.mark.parametrize(
    ("error", "call", "parts"),
    [
        case(
            ValueError,
            make_windowed(accept=pdt_optax.shrink(), window=2),
            "`window` must be at least 3",
            "shrink()",
            "Got window=2.",
            id="shrink with window 2",
        ),
        case(
            ValueError,
            make_windowed(accept=pdt_optax.random_subset(like=pdt_optax.shrink()), window=2),
            "`window` must be at least 3",
            "like=shrink()",
            "Got window=2.",
            id="random_subset like shrink with window 2",
        ),
        case(
            ValueError,
            make(dynamics=pdt_optax.dmd(rank=4), window=3),
            "`window` must be at least 5",
            "dmd(rank=4",
            "Got window=3.",
            id="dmd of rank 4 with window 3",
        ),
        case(
            ValueError,
            make(dynamics=pdt_optax.dmd(rank=2), accept=pdt_optax.shrink()),
            SHRINK_RULE,
            "Got dynamics=dmd(rank=2",
            id="shrink with dmd",
        ),
        *(
            # One mean says nothing of its noise, however many snapshots lie around.
            case(
                ValueError,
                make(accept=rule, window=window, start=5),
                SHRINK_RULE,
                "Got dynamics=slow_drift(",
                id=f"{rule} with slow_drift, window {window}",
            )
            for rule in (pdt_optax.shrink(), pdt_optax.random_subset(like=pdt_optax.shrink()))
            for window in (1, 4)
        ),
        *(
            case(
                ValueError,
                make(accept=Second(), window=window, start=5),
                "`accept` must need at most one difference: slow_drift(",
                "Got Second(), which needs 2.",
                id=f"a rule of two differences with slow_drift, window {window}",
            )
            for window in (1, 4)
        ),
        case(
            ValueError,
            make(dynamics=pdt_optax.dmd(), accept=pdt_optax.random_subset(like=pdt_optax.shrink())),
            SHRINK_RULE,
            "Got dynamics=dmd(",
            id="random_subset like shrink with dmd",
        ),
    ],
)
def test_parts_that_do_not_fit(error: type[Exception], call: Any, parts: tuple[str, ...]) -> None:
    check(error, call, parts)


def test_half_a_transformation() -> None:
    half: Any = types.SimpleNamespace(init=lambda params: ())
    check(TypeError, lambda: pdt_optax.pdt(half), (INNER_RULE, "namespace(init="))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (jnp.ones((2, 3)), "float32[2, 3]"),
        (np.float64(2), "float64[]"),
        (3, "3"),
        (None, "None"),
        ("w", "'w'"),
        (np.dtype("float32"), "dtype('float32')"),
        ({"a": 1, "b": (2.0, None)}, "PyTreeDef({'a': *, 'b': (*, None)})"),
    ],
    ids=["array", "NumPy", "int", "None", "text", "type", "tree"],
)
def test_how_a_value_is_named(given: Any, told: str) -> None:
    assert _layout.describe(given) == told


def test_bools_of_numpy_leave_out_as_those_of_python_do() -> None:
    labels = {"b": np.bool_(True), "w": np.bool_(False)}
    assert pdt_optax.leaf_paths(pdt_optax.pdt(INNER, exclude=labels).init(PARAMS)) == ["w"]


@pytest.mark.parametrize("leaf", [jnp.tanh, "text"], ids=["a function", "text"])
def test_a_leaf_that_is_no_array(leaf: Any) -> None:
    parts = ("`params` must hold only arrays, and 'f' is not one.", "eqx.filter(model, eqx.is_array)", "Got ")
    check(TypeError, lambda: pdt_optax.pdt(INNER).init({**PARAMS, "f": leaf}), parts)


def test_the_hint_is_only_for_what_can_be_called() -> None:
    for inner, hinted in ((0.1, False), (optax.adamw, True)):
        with pytest.raises(TypeError) as caught:
            make_around(inner)
        assert str(caught.value).endswith(f"Got {inner!r}." + " Call it first: it makes one." * hinted)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "3"], ids=repr)
def test_steps_of_drift(steps: Any) -> None:
    check(
        ValueError,
        lambda: pdt_optax.drift(learning_rate=abs, steps_per_epoch=steps),
        ("`steps_per_epoch` must be a whole number >= 1.", f"Got {steps!r}."),
    )


RANK_RULE = '`rank` must be "gavish-donoho", a whole number of modes >= 1, a fraction of the energy between'
SHARE_RULE = "`random_subset` takes its share either from `ratio` or from the rule `like`: give exactly one."


@pytest.mark.parametrize("rank", [0, -1, True, 0.0, 1.0, 2.5, float("nan"), "gavish", [2]], ids=repr)
def test_rank_of_dmd(rank: Any) -> None:
    check(ValueError, lambda: pdt_optax.dmd(rank=rank), (RANK_RULE, f"Got rank={rank!r}."))


@dataclasses.dataclass(frozen=True)
class UnhashableModel(pdt_optax.Dynamics):
    fit: Any = "current"
    minimum_window: int = 2
    weights: Any = dataclasses.field(default_factory=lambda: [1.0])

    def __call__(self, gram: Any, horizon: int, **known: Any) -> Any: ...


def test_an_unhashable_model() -> None:
    call = make(dynamics=UnhashableModel())
    check(TypeError, call, ("`dynamics` must be hashable", "UnhashableModel(fit="))


@pytest.mark.parametrize("rank", [1, 2, 0.5, "gavish-donoho", None], ids=repr)
def test_ranks_that_dmd_takes(rank: Any) -> None:
    assert pdt_optax.dmd(rank=rank).rank == rank


@pytest.mark.parametrize("model", [pdt_optax.dmd, pdt_optax.drift], ids=["dmd", "drift"])
@pytest.mark.parametrize("fit", ["now", None, 1], ids=repr)
def test_fit(model: Any, fit: Any) -> None:
    rule = '`fit` must be "past" (model the snapshots) or "current"'
    check(ValueError, lambda: model(fit=fit), (rule, f"Got fit={fit!r}."))


@pytest.mark.parametrize("modes", ["both", None, True], ids=repr)
def test_modes_of_dmd(modes: Any) -> None:
    rule = '`modes` must be "projected" or "exact"'
    check(ValueError, lambda: pdt_optax.dmd(modes=modes), (rule, f"Got modes={modes!r}."))


@pytest.mark.parametrize(
    ("error", "call", "parts"),
    [
        case(
            ValueError, lambda: pdt_optax.random_subset(), SHARE_RULE, "ratio=None, like=None", id="neither"
        ),
        case(
            ValueError,
            lambda: pdt_optax.random_subset(ratio=0.5, like=pdt_optax.agree()),
            SHARE_RULE,
            "ratio=0.5, like=agree()",
            id="both",
        ),
        *(
            case(
                ValueError,
                lambda ratio=ratio: pdt_optax.random_subset(ratio=ratio),
                "`ratio` must be a share, a number between 0 and 1.",
                f"Got ratio={ratio}.",
                id=f"ratio {ratio}",
            )
            for ratio in (1.5, -0.1, float("nan"), float("inf"))
        ),
        case(
            TypeError,
            lambda: pdt_optax.random_subset(like="agree"),  # pyright: ignore[reportArgumentType]
            "`like` must be an acceptance rule",
            "Got 'agree'.",
            id="like a string",
        ),
    ],
)
def test_random_subset(error: type[Exception], call: Any, parts: tuple[str, ...]) -> None:
    check(error, call, parts)


@pytest.mark.parametrize("ratio", ["half", [0.5]], ids=repr)
def test_ratio_that_is_no_number(ratio: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"`ratio` must be a share.*" + re.escape(str(ratio))):
        pdt_optax.random_subset(ratio=ratio)


def test_like_that_was_not_called() -> None:
    """`like=agree` for `like=agree()` is an error where it is written, as for `accept`."""
    with pytest.raises(TypeError, match=r"`like` must be an acceptance rule.*agree"):
        pdt_optax.random_subset(like=pdt_optax.agree)  # pyright: ignore[reportArgumentType]


STRUCTURE_RULE = "must have the leaves that it had at `init`."
SHAPE_RULE = "Each leaf of `params` must keep the shape and dtype that it had at `init`."


def other_params() -> list[Any]:
    return [
        case(
            ValueError,
            end({"w": PARAMS["w"]}),
            "`params` " + STRUCTURE_RULE,
            "Missing (1 of 2 leaves): 'b'.",
            id="a leaf missing",
        ),
        case(
            ValueError,
            end({**PARAMS, "c": jnp.ones(1)}),
            "`params` " + STRUCTURE_RULE,
            "Unknown (1 of 3 leaves): 'c'.",
            id="a leaf more",
        ),
        case(
            ValueError,
            end(None),
            "`params` " + STRUCTURE_RULE,
            "Missing (2 of 2 leaves): 'b', 'w'.",
            id="None",
        ),
        case(
            ValueError,
            end(list(PARAMS.values())),
            "`params` " + STRUCTURE_RULE,
            "Missing (2 of 2 leaves): 'b', 'w'. Unknown (2 of 2 leaves): '0', '1'.",
            id="a list",
        ),
        case(
            ValueError,
            end({**PARAMS, "b": jnp.ones(3)}),
            SHAPE_RULE,
            "Expected float32[2] at 'b', got float32[3].",
            id="another shape",
        ),
        case(
            ValueError,
            end({**PARAMS, "b": jnp.ones(2, jnp.bfloat16)}),
            SHAPE_RULE,
            "Expected float32[2] at 'b', got bfloat16[2].",
            id="another dtype",
        ),
        case(
            ValueError,
            lambda: INSIDE.update(PARAMS, INSIDE.init(PARAMS), {**PARAMS, "b": jnp.ones(1)}),
            SHAPE_RULE,
            "Expected float32[2] at 'b', got float32[1].",
            id="another shape in update",
        ),
        case(
            ValueError,
            lambda: INSIDE.update({"w": PARAMS["w"]}, INSIDE.init(PARAMS), PARAMS),
            "`updates` " + STRUCTURE_RULE,
            "Missing (1 of 2 leaves): 'b'.",
            id="updates without a leaf",
        ),
        case(
            ValueError,
            lambda: INSIDE.update(PARAMS, INSIDE.init(PARAMS)),
            "`update` needs `params` when `every` is set",
            "Got params=None, every=2.",
            id="update without params",
        ),
    ]


@pytest.mark.parametrize(("error", "call", "parts"), other_params())
def test_params_that_do_not_match(error: type[Exception], call: Any, parts: tuple[str, ...]) -> None:
    check(error, call, parts)


STATE_RULE = "The state must come from the `init` of a wrapper like this one: it holds a report only where"
GUARD_RULE = "The state must come from the `init` of a predictor like this one: it holds a backup only where"
KIND_RULE = "The state must come from the `init` of a predictor with the same kind of `dynamics`."
WINDOW_RULE = "The state must hold as many snapshots as its predictor's `window`"
VERSION_RULE = "The state must be of the version that this pdt_optax reads"
SAVED_RULE = "`saved` must hold exactly one history of snapshots"
OWN: Any = OUTSIDE.init(PARAMS)
NEWER = OWN._replace(history=OWN.history._replace(version=jnp.zeros(99, jnp.int8)))
FIRST = OWN._replace(history=OWN.history._replace(version=jnp.zeros((), jnp.int8)))  # it was a number then
FOUND_RULE = "The state must hold exactly one history of snapshots"
CHAIN = optax.chain(optax.clip(1.0), OUTSIDE)
TWICE = optax.chain(OUTSIDE, OUTSIDE)


@pytest.mark.parametrize(
    ("error", "call", "parts"),
    [
        case(
            ValueError,
            lambda: INSIDE.end_epoch(PARAMS, INSIDE.init(PARAMS)),
            "`end_epoch` is not for a wrapper that ends its epochs inside `update`",
            "Got every=2.",
            id="end_epoch with every",
        ),
        case(
            ValueError,
            end(PARAMS, INSIDE.init(PARAMS)),
            STATE_RULE,
            "Expected the state of a wrapper without `every`; got that of one with it.",
            id="the state of a wrapper with every",
        ),
        case(
            ValueError,
            lambda: make_windowed(window=3)().end_epoch(PARAMS, OUTSIDE.init(PARAMS)),
            WINDOW_RULE,
            "pdt_optax.resize_window(state, 3), or set window=2.",
            "Got 2 snapshots, window=3.",
            id="the state of another window",
        ),
        case(
            ValueError,
            lambda: pdt_optax.pdt(INNER, **SMALL).end_epoch(PARAMS, NEWER),
            VERSION_RULE,
            "Expected version 5, got 99.",
            id="the state of another version",
        ),
        case(
            ValueError,
            lambda: pdt_optax.pdt(INNER, **SMALL).end_epoch(PARAMS, FIRST),
            VERSION_RULE,
            "Expected version 5, got 1.",
            id="the state of the first version",
        ),
        case(
            ValueError,
            lambda: pdt_optax.check_saved(OUTSIDE, {"opt_state": NEWER._asdict()}),
            VERSION_RULE,
            "Expected version 5, got 99.",
            id="a saved state of another version",
        ),
        case(
            ValueError,
            lambda: pdt_optax.check_saved(OUTSIDE, [INSIDE.init(PARAMS)]),
            STATE_RULE,
            "Expected the state of a wrapper without `every`; got that of one with it.",
            id="a saved state of a wrapper with every",
        ),
        case(
            ValueError,
            lambda: pdt_optax.check_saved(OUTSIDE, {"opt_state": INNER.init(PARAMS)}),
            SAVED_RULE,
            "tx.init(params)._replace(inner_state=saved)",
            "Found 0 in dict",
            id="a saved state without pdt",
        ),
        case(
            ValueError,
            lambda: pdt_optax.check_saved(
                make(dynamics=pdt_optax.slow_drift(memory=4), horizon=3)(), make()().init(PARAMS)
            ),
            "Saved with another dynamics, schedule; now dynamics=slow_drift(memory=4, gain=1.0, most_gain=3.5, outward=False), "
            "schedule=fixed(horizon=3, interval=0).",
            id="a saved state of other settings",
        ),
        case(
            ValueError,
            lambda: pdt_optax.resize_window(OUTSIDE.init(PARAMS), 1),
            "`window` must be a whole number >= 2: a difference takes two snapshots",
            "Got window=1.",
            id="resized to one snapshot",
        ),
        case(
            ValueError,
            lambda: pdt_optax.resize_window(make()().init(PARAMS), 0),
            "`window` must be a whole number >= 1",
            "Got window=0.",
            id="resized to none",
        ),
        case(
            TypeError,
            lambda: pdt_optax.end_epoch(CHAIN, PARAMS, CHAIN.init(PARAMS)),  # pyright: ignore[reportArgumentType]
            "`pdt_tx` must be what `pdt_optax.pdt(...)` returned; a chain",
            "Got GradientTransformationExtraArgs",
            id="a chain",
        ),
        case(
            TypeError,
            lambda: pdt_optax.end_epoch(None, PARAMS, OUTSIDE.init(PARAMS)),  # pyright: ignore[reportArgumentType]
            "`pdt_tx` must be what `pdt_optax.pdt(...)` returned",
            "Got None.",
            id="None",
        ),
        case(
            TypeError,
            lambda: OUTSIDE.end_epoch(*[TrainState.create(apply_fn=None, params=PARAMS, tx=OUTSIDE)] * 2),
            "Pass the parts of the state, and put back both: params, opt_state, report = "
            "tx.end_epoch(state.params, state.opt_state); state = state.replace(params=params, opt_state=opt_state). "
            "Got a whole TrainState.",
            id="a whole TrainState",
        ),
        case(
            ValueError,
            end(PARAMS, INNER.init(PARAMS)),
            FOUND_RULE,
            "as `init` returned it. Is the optimizer wrapped, and do the parameters come before the state? Restore a "
            "saved state into the shapes of a new one, jax.eval_shape(tx.init, params); the state of an optimizer "
            "alone is taken up by tx.init(params)._replace(inner_state=state). Found 0 in tuple",
            id="no state",
        ),
        case(
            ValueError,
            end(PARAMS, TWICE.init(PARAMS)),
            FOUND_RULE,
            "as `init` returned it. Hand over the part that belongs to this wrapper, such as "
            "opt_state.inner_states['name'] of a partition. Found 2 in tuple",
            id="two states",
        ),
        case(
            ValueError,
            end(PARAMS, make(deliver="jump")().init(PARAMS)),
            KIND_RULE,
            "Expected the state of a model that sees a window of snapshots; "
            "got that of a model that keeps a mean of the motion.",
            id="the state of a running model",
        ),
        case(
            ValueError,
            end(PARAMS, tx=make(deliver="jump")()),
            KIND_RULE,
            "Expected the state of a model that keeps a mean of the motion; "
            "got that of a model that sees a window of snapshots.",
            id="the state of a model with a window",
        ),
        case(
            ValueError,
            lambda: pdt_optax.leaf_paths(INNER.init(PARAMS)),
            FOUND_RULE,
            "Found 0 in tuple",
            id="leaf_paths of no state",
        ),
    ],
)
def test_wrappers_and_states(error: type[Exception], call: Any, parts: tuple[str, ...]) -> None:
    check(error, call, parts)


@pytest.mark.parametrize("window", [2, 3], ids=["without every", "of another window"])
def test_the_state_of_another_wrapper_in_update(window: int) -> None:
    """The reverse: a wrapper with `every` says so when a state is not its own."""
    every = None if window == 2 else 2
    state = pdt_optax.pdt(INNER, **{**SMALL, "window": window, "start": 3, "every": every}).init(PARAMS)
    with pytest.raises(ValueError, match=r"The state must (come from|hold as many)"):
        INSIDE.update(PARAMS, state, PARAMS)


@pytest.mark.parametrize(
    ("error", "call", "parts"),
    [
        *(
            case(
                ValueError,
                lambda n=n, rank=rank: pdt_optax.predict_and_mask(
                    [PARAMS] * n, PARAMS, **{**RULE_AND_MODEL, "dynamics": pdt_optax.dmd(rank=rank)}
                ),
                f"`window` must be at least {need}",
                f"Got window={n}.",
                id=f"{n} snapshots for rank {rank}",
            )
            for n, rank, need in [(0, None, 2), (1, None, 2), (3, 3, 4)]
        ),
        case(
            ValueError,
            lambda: pdt_optax.predict_and_mask([PARAMS] * 2, {"w": PARAMS["w"]}, **RULE_AND_MODEL),
            "`params` " + STRUCTURE_RULE,
            "Missing (1 of 2 leaves): 'b'.",
            id="params of another structure",
        ),
        case(
            ValueError,
            lambda: pdt_optax.predict_and_mask([{"w": PARAMS["w"]}, PARAMS], PARAMS, **RULE_AND_MODEL),
            "`snapshots[0]` " + STRUCTURE_RULE,
            "Missing (1 of 2 leaves): 'b'.",
            id="a snapshot of another structure",
        ),
        case(
            ValueError,
            lambda: pdt_optax.predict_and_mask([PARAMS] * 2, PARAMS, **{**RULE_AND_MODEL, "horizon": 0}),
            WHOLE_NUMBERS["horizon"],
            "Got horizon=0.",
            id="horizon 0",
        ),
        case(
            TypeError,
            lambda: pdt_optax.predict_and_mask(
                [PARAMS] * 2, PARAMS, **{**RULE_AND_MODEL, "dynamics": pdt_optax.drift}
            ),
            DYNAMICS_RULE,
            "drift",
            id="dynamics not called",
        ),
        case(
            TypeError,
            lambda: pdt_optax.predict_and_mask(
                [PARAMS] * 2, PARAMS, **{**RULE_AND_MODEL, "accept": pdt_optax.agree}
            ),
            ACCEPT_RULE,
            "agree",
            id="accept not called",
        ),
        case(
            ValueError,
            lambda: pdt_optax.predict_and_mask(
                [{"n": jnp.arange(3)}] * 2, {"n": jnp.arange(3)}, **RULE_AND_MODEL
            ),
            "There is nothing to predict: the snapshots have no floating-point leaf",
            "Got 2 snapshots of 0 leaves.",
            id="nothing to predict",
        ),
        case(
            ValueError,
            lambda: presets.named("fast"),
            "There is no preset 'fast'.",
            "paper, released, drift, recommended",
            id="unknown preset",
        ),
    ],
)
def test_predict_and_mask_and_presets(error: type[Exception], call: Any, parts: tuple[str, ...]) -> None:
    check(error, call, parts)


def labelled(labels: Any) -> Callable[[], Any]:
    return lambda: pdt_optax.pdt(INNER, exclude=labels, **SMALL).init(PARAMS)


BOOL_RULE = "`exclude` must say True (never predicted) or False for each leaf."
TREE_RULE = "`exclude` must be a tree of bools with the structure of the parameters, or a prefix of it"


@pytest.mark.parametrize(
    ("error", "call", "parts"),
    [
        case(ValueError, labelled(lambda path: "x"), BOOL_RULE, "Got 'x' at 'b'.", id="function, string"),
        case(ValueError, labelled(lambda path: 1), BOOL_RULE, "Got 1 at 'b'.", id="function, int"),
        case(ValueError, labelled({"b": False, "w": 1}), BOOL_RULE, "Got 1 at 'w'.", id="tree with an int"),
        case(ValueError, labelled("w"), BOOL_RULE, "Got 'w' at 'b'.", id="a string"),
        case(ValueError, labelled({"b": True, "c": False}), TREE_RULE, "('b', 'w')", id="another key"),
        case(ValueError, labelled({"b": True}), TREE_RULE, "children", id="a key missing"),
        case(ValueError, labelled({"b": {"x": True}, "w": False}), TREE_RULE, "['b']", id="too deep"),
    ],
)
def test_labels(error: type[Exception], call: Any, parts: tuple[str, ...]) -> None:
    check(error, call, parts)


def test_labels_function_that_returns_nothing() -> None:
    with pytest.raises(ValueError, match=re.escape(BOOL_RULE) + r".*None at 'b'"):
        labelled(lambda path: None)()


@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.parametrize(
    ("params", "labels"),
    [({"n": jnp.arange(3)}, None), (PARAMS, True)],
    ids=["no float leaf", "all left out"],
)
def test_nothing_to_predict(params: Any, labels: Any, every: int | None) -> None:
    """At `init` or at the first use, but in words."""
    tx: Any = pdt_optax.pdt(INNER, exclude=labels, every=every, **SMALL)

    def use() -> None:
        state = tx.init(params)
        if every is None:
            tx.end_epoch(params, state)
        else:
            tx.update(jax.tree.map(jnp.zeros_like, params), state, params)

    check(ValueError, use, ("There is nothing to predict: `params` has no floating-point leaf", "Got"))


MASK_RULE = (
    "An acceptance rule must return a mask of its leaf's shape, bool or a floating-point weight in [0, 1]."
)


@pytest.mark.parametrize(
    ("returns", "value"),
    [
        (lambda step: jnp.ones(1, bool), "bool[1] for a leaf of shape [2]"),
        (lambda step: jnp.ones((), bool), "bool[] for a leaf of shape [2]"),
        (lambda step: jnp.ones(step.shape, jnp.int32), "int32[2] for a leaf of shape [2]"),
        (lambda step: jnp.ones(step.shape, jnp.complex64), "complex64[2] for a leaf of shape [2]"),
        (lambda step: True, "True"),
        (lambda step: None, "None"),
    ],
    ids=["shape", "scalar", "int", "complex", "a Python bool", "None"],
)
def test_a_rule_that_returns_no_mask(returns: Any, value: str) -> None:
    def my_rule(increments: Any, step: Any, differences: Any, reference: Any, horizon: int) -> Any:
        return returns(step)

    tx = pdt_optax.pdt(INNER, accept=my_rule, **SMALL)
    check(ValueError, lambda: tx.end_epoch(PARAMS, tx.init(PARAMS)), (MASK_RULE, "my_rule", value))


def test_snapshots_in_no_order() -> None:
    settings: Any = {"dynamics": pdt_optax.drift(), "accept": pdt_optax.agree(), "horizon": 1}
    call = lambda: pdt_optax.predict_and_mask(iter([PARAMS] * 3), PARAMS, **settings)  # noqa: E731 # pyright: ignore
    check(TypeError, call, ("`snapshots` must be a list or tuple of trees", "oldest to newest"))


NOT_THREE_NUMBERS: list[Any] = [{"c": jnp.ones(3)}, None, "x", jnp.ones(2), jnp.ones(3, jnp.int32)]


@pytest.mark.parametrize("other", NOT_THREE_NUMBERS, ids=str)
@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.parametrize("kept_out", [False, True])
def test_a_leaf_stays_what_it_was(other: Any, every: int | None, kept_out: bool) -> None:
    """Also one that is not predicted, where a guard must be able to bring it back."""
    weights: Any = {"a": jnp.ones(2), "b": jnp.ones(3)}
    settings: Any = {"guard": pdt_optax.rollback(), "exclude": lambda path: path == "b"} if kept_out else {}
    tx: Any = pdt_optax.pdt(optax.identity(), **SMALL, every=every, **settings)
    state = tx.init(weights)

    def call() -> None:
        if every is None:
            tx.end_epoch(weights | {"b": other}, state, value=1.0)
        else:
            tx.update(weights, state, weights | {"b": other}, value=1.0)

    if other is None or isinstance(other, dict):
        unknown = "" if other is None else " Unknown (1 of 2 leaves): 'b/c'."
        check(ValueError, call, ("`params` " + STRUCTURE_RULE, "Missing (1 of ", "leaves): 'b'." + unknown))
    else:
        got = str(getattr(other, "dtype", repr(other)))
        check(ValueError, call, (SHAPE_RULE, "Expected float32[3] at 'b', got " + got))


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_the_first_three_leaves_that_differ_are_named(count: int) -> None:
    predictor = pdt_optax.Predictor()
    held = {"w": jnp.ones(2)}
    history = predictor.init(held)
    unknown = {f"x{i}": jnp.ones(2) for i in range(count)}
    named = ", ".join(f"'x{i}'" for i in range(min(count, 3)))
    more = f" and {count - 3} more" if count > 3 else ""
    with pytest.raises(ValueError) as caught:
        predictor.end_epoch({**held, **unknown}, history)
    assert f"at `init`. Unknown ({count} of {count + 1} leaves): {named}{more}. Pass" in str(caught.value)
    history = predictor.init({**held, **unknown})
    with pytest.raises(ValueError) as caught:
        predictor.end_epoch(held, history)
    assert str(caught.value).endswith(f"at `init`. Missing ({count} of {count + 1} leaves): {named}{more}.")
