"""`Predictor`: beside any optimizer it does what `pdt` does around one."""

import dataclasses
import functools
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import pdt_optax
from benchmarks.lowered import lower
from pdt_optax import presets
from pdt_optax._compiled import end_apart
from tests.states import WINDOWED

SMALL: dict[str, Any] = {**WINDOWED, "window": 3, "horizon": 2}
OPTIMIZER = optax.adam(0.05)
TARGET = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)


def make_params() -> dict[str, Any]:
    return {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3), "steps": jnp.array(0)}


def loss(params: Any) -> jax.Array:
    return jnp.mean((jnp.tanh(params["w"] + params["b"]) - TARGET) ** 2)


def step_of(tx: Any) -> Any:
    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(loss, allow_int=True)(params)
        grads = jax.tree.map(
            lambda g, p: jnp.zeros_like(p) if g.dtype == jax.dtypes.float0 else g, grads, params
        )
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def beside(epochs: int, spoil: int | None = None, donate: bool = False, **settings: Any) -> list[Any]:
    predictor = pdt_optax.Predictor(**settings)
    guarded = predictor.guard is not None
    params, step, out, value = make_params(), step_of(OPTIMIZER), [], None
    opt_state = OPTIMIZER.init(params)
    history = predictor.init(params, opt_state if guarded else None)
    for epoch in range(epochs):
        for _ in range(3):
            params, opt_state, value = step(params, opt_state)
        value = 100.0 if epoch == spoil else value
        params, history, report = predictor.end_epoch(
            params, history, opt_state=opt_state if guarded else None, value=value, donate=donate
        )
        opt_state = history.opt_state if guarded else opt_state
        out.append(jax.tree.map(np.asarray, (params, opt_state, leaves_kept(history), report)))
    return out


def leaves_kept(history: pdt_optax.History) -> pdt_optax.History:
    """Around an optimizer the backup holds the leaves of its state alone."""
    if history.backup is None:
        return history
    leaves = tuple(jax.tree.leaves(history.backup.optimizer_before))
    return history._replace(backup=history.backup._replace(optimizer_before=leaves))


def around(epochs: int, spoil: int | None = None, donate: bool = False, **settings: Any) -> list[Any]:
    tx = pdt_optax.pdt(OPTIMIZER, **settings)
    params, step, out, value = make_params(), step_of(tx), [], None
    state: Any = tx.init(params)
    for epoch in range(epochs):
        for _ in range(3):
            params, state, value = step(params, state)
        value = 100.0 if epoch == spoil else value
        params, state, report = tx.end_epoch(params, state, value=value, donate=donate)
        out.append(jax.tree.map(np.asarray, (params, state.inner_state, state.history, report)))
    return out


SETTINGS: dict[str, dict[str, Any]] = {
    # What is delivered in parts has no `Predictor` that is like it.
    **{name: {**presets.named(name), "deliver": "jump"} for name in presets.names()},
    "bfloat16": {**WINDOWED, "snapshot_dtype": "bfloat16"},
    "adaptive": {**WINDOWED, "schedule": pdt_optax.adaptive(horizon=2)},
    "guarded": {**WINDOWED, "guard": pdt_optax.rollback()},
    "own motion": {"dynamics": pdt_optax.drift(), "deliver": "jump"},
    "default, adaptive": {"schedule": pdt_optax.adaptive(horizon=2), "deliver": "jump"},
    "default, guarded": {"guard": pdt_optax.rollback(), "deliver": "jump"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_beside_an_optimizer_and_around_it_are_the_same(name: str) -> None:
    """To the last bit: weights, optimizer, snapshots, clock, report; an epoch under the guard is taken back.

    Beside an optimizer its updates are not seen.
    """
    spoil = 6 if "guarded" in name else None
    got, want = (f(10, spoil, donate=True, **SETTINGS[name]) for f in (beside, around))
    assert {(int(a[3].update_count), int(b[3].update_count)) for a, b in zip(got, want, strict=True)} == {
        (0, 3)
    }
    want = [(*rest, report._replace(update_count=got[0][3].update_count)) for *rest, report in want]
    chex.assert_trees_all_equal(got, want)
    assert sum(bool(report.predicted) for *_, report in got) >= 2
    assert sum(bool(report.rolled_back) for *_, report in got) == ("guarded" in name)


@pytest.mark.parametrize(
    ("run", "settings"),
    [(beside, WINDOWED), (beside, {}), (around, {"deliver": "gradual"})],
    ids=["windowed", "default", "gradual"],
)
def test_a_rollback_brings_back_the_optimizer(run: Any, settings: Any) -> None:
    """To what the last epoch before the jump left; without the guard, the run is another."""
    guarded = run(7, spoil=6, guard=pdt_optax.rollback(), **settings)
    params, opt_state, history, report = guarded[6]
    assert guarded[5][3].predicted
    assert report.rolled_back
    # Five epochs and the sixth without its jump: the optimizer alone.
    alone, state, step = make_params(), OPTIMIZER.init(make_params()), step_of(OPTIMIZER)
    for _ in range(18):
        alone, state, _ = step(alone, state)
    chex.assert_trees_all_equal(params, alone)
    chex.assert_trees_all_equal(opt_state, state)
    chex.assert_trees_all_equal(history.opt_state, tuple(jax.tree.leaves(state)))


def test_the_state_to_go_on_with_may_be_donated() -> None:
    predictor = pdt_optax.Predictor(guard=pdt_optax.rollback(), **SMALL)
    params = make_params()
    history = predictor.init(params, OPTIMIZER.init(params))
    take = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    for _ in range(2):
        params, history, _ = predictor.end_epoch(
            params, history, opt_state=take(history.opt_state), value=1.0
        )
    assert float(optax.tree.get(history.opt_state, "count")) == 2


def test_settings_are_a_value() -> None:
    """Frozen, hashable, equal where they mean the same, and checked again when they are replaced."""
    predictor = pdt_optax.Predictor(horizon=3, exclude={"b": True, "w": False, "steps": False})
    assert predictor.schedule == pdt_optax.fixed(horizon=3, interval=0)
    alike = pdt_optax.Predictor(
        schedule=pdt_optax.fixed(horizon=3, interval=0), exclude={"b": True, "w": False, "steps": False}
    )
    assert predictor == alike
    assert hash(predictor) == hash(alike)
    assert predictor != pdt_optax.Predictor(horizon=3)
    assert dataclasses.replace(predictor, window=4, start=4).schedule.horizon == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        predictor.window = 4  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="`window` must be a whole number >= 1"):
        dataclasses.replace(predictor, window=0)
    with pytest.raises(ValueError, match="`window` must be a whole number >= 2"):
        dataclasses.replace(predictor, dynamics=pdt_optax.drift())
    assert pdt_optax.leaf_paths(predictor.init(make_params())) == ["w"]
    assert pdt_optax.Predictor() == pdt_optax.Predictor(**presets.recommended)
    usual = pdt_optax.Predictor(dynamics=pdt_optax.drift())  # own motion apart, that of its preset
    assert dataclasses.replace(usual, own_motion=False, deliver="jump") == pdt_optax.Predictor(
        **presets.drift
    )


@pytest.mark.parametrize("settings", [SMALL, {}], ids=["windowed", "default"])
def test_equal_predictors_share_compiled_code(settings: Any) -> None:
    compiled: Any = end_apart
    history, sizes = pdt_optax.Predictor(**settings).init(make_params()), []
    for _ in range(3):
        predictor = pdt_optax.Predictor(**settings, exclude=lambda path: False)
        _, history, _ = predictor.end_epoch(make_params(), history)
        sizes.append(compiled._cache_size())
    assert len(set(sizes)) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [(SMALL, [False] * 3 + [True, False] * 2 + [True]), ({}, [False] * 5 + [True] * 3)],
    ids=["windowed", "default"],
)
def test_epochs_in_a_scan(settings: Any, expected: list[bool]) -> None:
    """Scans over epochs and over steps, one program, are a Python loop."""
    predictor, step = pdt_optax.Predictor(**settings), step_of(OPTIMIZER)

    def epoch(carry: Any, _: Any) -> Any:
        params, state, history = carry

        def body(carry: Any, _: Any) -> Any:
            params, state, value = step(*carry)
            return (params, state), value

        (params, state), values = jax.lax.scan(body, (params, state), length=3)
        params, history, report = predictor.end_epoch(params, history, value=values[-1])
        return (params, state, history), report

    params = make_params()
    carry = (params, OPTIMIZER.init(params), predictor.init(params))
    (params, _, history), reports = jax.jit(lambda c: jax.lax.scan(epoch, c, length=8))(carry)
    *_, (want, _, wanted_history, _) = beside(8, **settings)
    chex.assert_trees_all_close(params, want, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal(history.clock.predictions_made, wanted_history.clock.predictions_made)
    assert reports.predicted.tolist() == expected


class Mlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first, self.norm = nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(nnx.relu(self.norm(self.first(x))))


X = jax.random.normal(jax.random.key(0), (32, 4))


@nnx.jit
def nnx_step(model: Mlp, optimizer: nnx.Optimizer) -> jax.Array:
    value, grads = nnx.value_and_grad(lambda m: jnp.mean((m(X) - X[:, :2] ** 2) ** 2))(model)
    optimizer.update(model, grads)
    return value


def nnx_run(form: str, guard: Any, settings: Any) -> Any:
    """Six epochs; the weights at the end, and the share of the last jump."""
    model, settings = Mlp(nnx.Rngs(0)), {**settings, "guard": guard}
    tx, predictor = pdt_optax.pdt(OPTIMIZER, **settings), pdt_optax.Predictor(**settings)
    optimizer: Any = nnx.Optimizer(model, OPTIMIZER if form == "beside" else tx, wrt=nnx.Param)
    history: Any = predictor.init(nnx.state(model, nnx.Param), optimizer.opt_state if guard else None)

    def end(model: Any, optimizer: Any, value: Any) -> Any:
        params = nnx.state(model, nnx.Param)
        params, optimizer.opt_state, report = tx.end_epoch(params, optimizer.opt_state, value=value)
        nnx.update(model, params)
        return report

    for _ in range(6):
        value = nnx_step(model, optimizer)
        value = nnx_step(model, optimizer)
        if form == "beside":
            params, history, report = predictor.end_epoch(
                nnx.state(model, nnx.Param),
                history,
                value=value,
                opt_state=optimizer.opt_state if guard else None,
            )
            nnx.update(model, params)
            if guard:
                optimizer.opt_state = history.opt_state
        else:
            report = (nnx.jit(end) if form == "in nnx.jit" else end)(model, optimizer, value)
    (share,) = jax.tree.leaves(report.accepted_share)  # pyright: ignore[reportPossiblyUnboundVariable]
    return jax.tree.map(np.asarray, nnx.as_pure(nnx.state(model, nnx.Param))), float(share)


@pytest.mark.parametrize("settings", [SMALL, {"start": 2, "deliver": "jump"}], ids=["windowed", "default"])
@pytest.mark.parametrize("guard", [None, pdt_optax.rollback(tolerance=9.0)], ids=["no guard", "guard"])
def test_nnx_is_taken_as_it_is(guard: Any, settings: Any) -> None:
    """A model's state and an optimizer's, Variables and all: beside, eagerly, inside `nnx.jit`."""
    want, share = nnx_run("beside", guard, settings)
    assert share > 0.5
    for form in ("around", "in nnx.jit"):
        got, other = nnx_run(form, guard, settings)
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
        assert other == share


def test_nnx_is_taken_as_it_is_by_the_default() -> None:
    """Also what it keeps of the motion, and delivers in parts."""
    want, share = nnx_run("around", None, {"start": 2})
    got, other = nnx_run("in nnx.jit", None, {"start": 2})
    for weights in (got, want):  # its gradient is rounding: a batch norm follows
        del weights["first"]["bias"]
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)
    assert other == share == 1
    plain, _ = nnx_run("around", None, {"start": 2, "dry_run": True})
    assert float(jnp.abs(want["first"]["kernel"] - plain["first"]["kernel"]).max()) > 1e-3


def test_equinox_is_taken_as_it_is() -> None:
    model = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    predictor = pdt_optax.Predictor(**SMALL)
    history = predictor.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(4):
        model = jax.tree.map(lambda x: 0.9 * x if eqx.is_inexact_array(x) else x, model)
        params, history, report = predictor.end_epoch(eqx.filter(model, eqx.is_inexact_array), history)
        model = eqx.combine(params, model)
    assert report.predicted  # pyright: ignore[reportPossiblyUnboundVariable]
    assert model(jnp.ones(4)).shape == (2,)


def test_what_was_seen_belongs_to_the_state() -> None:
    """A `value` that another state saw disarms nothing; one that this state saw is enough."""
    tx = pdt_optax.pdt(OPTIMIZER, guard=pdt_optax.rollback(), **SMALL)
    params = make_params()
    grads, fresh = jax.tree.map(jnp.zeros_like, params), tx.init(params)
    _, seen = tx.update(grads, fresh, params, value=1.0)
    tx.end_epoch(params, seen)
    with pytest.raises(ValueError, match="none came: pass the training loss"):
        tx.end_epoch(params, fresh)
    _, ended, report = tx.end_epoch(params, seen)
    assert not report.value_missing
    with pytest.raises(ValueError, match="none came"):
        tx.end_epoch(params, ended)


def test_under_jit_the_report_says_that_no_value_came() -> None:
    """And the guard, which cannot judge, takes nothing back."""
    tx = pdt_optax.pdt(OPTIMIZER, guard=pdt_optax.rollback(), **SMALL)
    end = jax.jit(functools.partial(tx.end_epoch))
    params, told = make_params(), []
    state = tx.init(params)
    for epoch in range(5):
        if epoch < 4:
            _, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params, value=1.0)
        params = {**params, "w": params["w"] + 1}
        params, state, report = end(params, state)
        told.append((bool(report.predicted), bool(report.value_missing), bool(report.rolled_back)))
    assert told == [(False, False, False)] * 3 + [(True, False, False), (False, True, False)]


def test_a_window_kept_otherwise_is_refused() -> None:
    history = pdt_optax.Predictor(**SMALL).init(make_params())
    with pytest.raises(ValueError, match=r"`snapshot_dtype` differs.*bfloat16.*float32"):
        pdt_optax.Predictor(**SMALL, snapshot_dtype="bfloat16").end_epoch(make_params(), history)


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (TypeError, lambda p, h: p.end_epoch(make_params(), (h,)), "`history` must be what.*Got tuple"),
        (
            ValueError,
            lambda p, h: p.init(make_params(), opt_state={}),
            r"belongs to the guard.* leave it out: predictor\.init\(params, opt_state=opt_state\)\. Got guard=None",
        ),
        (
            ValueError,
            lambda p, h: dataclasses.replace(p, guard=pdt_optax.rollback()).init(make_params()),
            "belongs to the guard.*opt_state=None",
        ),
        (
            ValueError,
            lambda p, h: p.end_epoch(make_params(), h, opt_state={}),
            r"leave it out: predictor\.end_epoch\(params, history, opt_state=opt_state\)\. Got guard=None",
        ),
        (
            TypeError,
            lambda p, h: p.end_epoch(TrainState.create(apply_fn=None, params={}, tx=OPTIMIZER), h),
            r"params, opt_state, report = predictor\.end_epoch\(state\.params, history\); state = ",
        ),
        (ValueError, lambda p, h: h.opt_state, "exists only with a guard"),
        (
            ValueError,
            lambda p, h: dataclasses.replace(p, schedule=pdt_optax.adaptive()).end_epoch(make_params(), h),
            r"^The schedule or the guard judges epochs by their values, and none came: pass the training loss, predictor.end_epoch\(params, history, value=loss\)",
        ),
        (
            ValueError,
            lambda p, h: p.end_epoch({"w": jnp.zeros((4, 3)), "c": jnp.zeros(3)}, h),
            r"Missing \(1 of 2 leaves\): 'b'. Unknown \(1 of 2 leaves\): 'c'.",
        ),
    ],
)
def test_wrong_uses(error: Any, call: Any, message: str) -> None:
    predictor = pdt_optax.Predictor(**SMALL)
    with pytest.raises(error, match=message):
        call(predictor, predictor.init(make_params()))


def test_a_bare_array_has_no_path() -> None:
    predictor = pdt_optax.Predictor(**SMALL)
    with pytest.raises(ValueError, match=r"Missing \(1 of 1 leaves\): the root\. Unknown .*: 'w'\."):
        predictor.end_epoch({"w": jnp.ones(3)}, predictor.init(jnp.ones(3)))


def test_a_state_says_its_version_by_a_shape_and_whether_a_guard_made_it() -> None:
    predictor, params = pdt_optax.Predictor(**SMALL), make_params()
    history = predictor.init(params)
    assert (history.version.shape, history.version.dtype) == ((5,), jnp.int8)
    guarded = dataclasses.replace(predictor, guard=pdt_optax.rollback())
    with pytest.raises(ValueError, match="Expected the state of a guard; got that of no guard"):
        guarded.end_epoch(params, history, opt_state=OPTIMIZER.init(params), value=1.0)


def test_the_guards_state_must_be_the_one_that_was_kept() -> None:
    predictor = pdt_optax.Predictor(guard=pdt_optax.rollback(), **SMALL)
    params = make_params()
    history = predictor.init(params, OPTIMIZER.init(params))
    with pytest.raises(ValueError, match="`opt_state` must have the leaves that it had at `init`"):
        predictor.end_epoch(params, history, opt_state=optax.sgd(0.1).init(params), value=1.0)


@pytest.mark.parametrize(
    "settings",
    [WINDOWED, {**WINDOWED, "snapshot_dtype": "bfloat16"}, {}],
    ids=["float32", "bfloat16", "default"],
)
def test_the_newest_snapshot_is_written_by_a_select_that_xla_keeps(settings: Any) -> None:
    """Its condition reads a counter, so it cannot be folded into a copy, for which the CPU has one thread."""
    params = {"w": jnp.zeros(100_003)}
    text = lower(pdt_optax.Predictor(**settings), params).compile().as_text()
    assert "f32[100003]{0} copy(" not in text
    assert "select(" in text
