"""What follows the run: learning-rate-aware drift, acceleration schedules, the guard."""

import itertools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pdt_optax
from pdt_optax.schedule import Pace
from tests.states import WINDOWED, windowed

SETTINGS: Any = {**WINDOWED, "window": 3, "horizon": 4, "accept": pdt_optax.everything()}
# The default, at the clock of the above but for its interval of 0.
DEFAULT: Any = {**pdt_optax.presets.recommended, "deliver": "gradual", "horizon": 4, "start": 3}


def start() -> dict[str, jax.Array]:
    return {"w": jnp.linspace(-1.0, 2.0, 6), "frozen": jnp.ones(2)}


def train(tx: Any, params: Any, state: Any, **extra: Any) -> tuple[Any, Any]:
    """One step on 0.5 |p|^2: an epoch."""
    updates, state = tx.update(params, state, params, **extra)
    return optax.apply_updates(params, updates), state


# --- drift per unit of learning rate ----------------------------------------------------------------------


@pytest.mark.parametrize(("fit", "epoch"), [("current", 5), ("past", 5), ("current", 17), ("past", 18)])
def test_rate_aware_drift_is_velocity_per_rate_times_the_coming_rates(fit, epoch):
    steps, epochs = 10, 20
    schedule = optax.cosine_decay_schedule(0.3, steps * epochs)
    rng = np.random.default_rng(0)
    points = np.cumsum(rng.normal(size=(5, 7)), axis=0)
    got = pdt_optax.predict_and_mask(
        [jnp.asarray(w, jnp.float32) for w in points[:-1]],
        jnp.asarray(points[-1], jnp.float32),
        dynamics=pdt_optax.drift(fit=fit, learning_rate=schedule, steps_per_epoch=steps),
        accept=pdt_optax.everything(),
        horizon=4,
        step=epoch,
    )
    seen = points[1:] if fit == "current" else points[:-1]
    last = epoch if fit == "current" else epoch - 1

    def rate(e: int) -> float:
        return 0.15 * (1 + math.cos(math.pi * min((e + 0.5) / epochs, 1)))

    past = sum(rate(e) for e in (last - 2, last - 1, last))
    coming = sum(rate(last + k) for k in range(1, 5) if last + k < epochs)
    expected = seen[-1] + (seen[-1] - seen[0]) / past * coming
    np.testing.assert_allclose(np.asarray(got.params), expected, rtol=1e-5, atol=1e-5)


def test_what_drift_says_of_itself():
    forecast = pdt_optax.drift()(jnp.eye(4), 2, size=9, epsilon=1e-7, epoch=jnp.array(5))
    assert forecast.eigenvalues.dtype == jnp.complex64
    np.testing.assert_array_equal(forecast.eigenvalues, [1, 0, 0])
    np.testing.assert_array_equal(forecast.singular_values, [0] * 3)
    assert (int(forecast.rank), forecast.rank.dtype) == (1, jnp.int32)


@pytest.mark.parametrize(
    ("rate", "increment"),
    [(lambda count: 2.0 - 2.0 * (count > 0), 0), (lambda count: 0.5 * (count > 30), 0.5)],
)
def test_drift_by_rates_that_were_zero_is_finite(rate, increment):
    """Before the first epoch the rate is the first; where nothing moved, nothing is divided by it."""
    drift = pdt_optax.drift(learning_rate=rate, steps_per_epoch=10)
    assert float(drift._rates(jnp.array([-2]), jnp.float32)[0]) == rate(0)
    forecast = drift(jnp.eye(3), 1, size=9, epsilon=1e-7, epoch=jnp.array(2))
    np.testing.assert_array_equal(forecast.increments, [[0, increment, increment]])


def test_a_schedule_is_asked_at_whole_steps() -> None:
    def rate(count: Any) -> Any:
        assert count.dtype == jnp.int32
        return jnp.where(count == 7, 1.0, 2.0)  # 1.5 epochs of five steps, rounded down

    drift = pdt_optax.drift(learning_rate=rate, steps_per_epoch=5)
    forecast = drift(jnp.eye(3), 1, size=3, epsilon=1e-7, epoch=jnp.int32(0))
    np.testing.assert_allclose(forecast.increments, [[0, 0.25, 0.25]])  # 1 / (2 + 2)


def test_rate_aware_drift_does_not_jump_past_the_end_of_the_schedule():
    points = [jnp.arange(3.0) * k for k in range(4)]
    drift = pdt_optax.drift(learning_rate=optax.linear_schedule(1.0, 0.0, 10), steps_per_epoch=1)
    got = pdt_optax.predict_and_mask(
        points[:-1], points[-1], dynamics=drift, accept=pdt_optax.everything(), horizon=3, step=10
    )
    np.testing.assert_allclose(np.asarray(got.params), points[-1], rtol=1e-6)


# --- schedules --------------------------------------------------------------------------------------------


def next_in_the_released_code(horizon: int, interval: int, values: list[float]) -> tuple[int, int]:
    """The rule in plain Python: `values` are the epochs' so far, the newest last."""
    last, before, before_that = values[-1], values[-2], values[-3]
    if last > before and last > before_that:
        if horizon > 4:
            return horizon - 2, interval
        if horizon == 4:
            return horizon - 1, interval + 1
        return horizon, interval + 2
    if last > before:
        return (horizon - 1, interval) if horizon > 3 else (horizon, interval + 1)
    return horizon, interval


def next_of_adaptive(horizon: int, interval: int, value: float, before: float) -> tuple[int, int]:
    """After a jump, with 5 for `longest_horizon`."""
    if value <= before:
        return min(horizon + 1, 5), interval
    return max(horizon // 2, 1), interval + (horizon == 1)


def test_schedules_do_in_every_case_what_they_say():
    """`next` as it is, at each horizon and each order of three values, equal ones included."""
    released, adaptive = pdt_optax.released_schedule(), pdt_optax.adaptive(longest_horizon=5)
    fixed = pdt_optax.fixed()
    values = itertools.product((1.0, 2.0, 3.0), repeat=3)
    for horizon, (value, before, before_that) in itertools.product(range(1, 7), values):
        pace = (
            pdt_optax.fixed(horizon=horizon, interval=7)
            .start()
            ._replace(value_before=jnp.float32(before), value_before_that=jnp.float32(before_that))
        )

        def following(
            schedule: Any, jumped: bool, pace: Pace = pace, value: float = value
        ) -> tuple[int, int]:
            new = schedule.next(pace, jnp.float32(value), jnp.array(jumped))
            assert new.horizon_now.dtype == new.interval_now.dtype == jnp.int32
            assert new[2:] == pace[2:]
            return int(new.horizon_now), int(new.interval_now)

        assert following(fixed, True) == following(adaptive, False) == (horizon, 7)
        assert following(released, False) == next_in_the_released_code(
            horizon, 7, [before_that, before, value]
        )
        if horizon <= 5:
            assert following(adaptive, True) == next_of_adaptive(horizon, 7, value, before)


def test_a_jump_after_no_known_value_is_not_judged():
    pace = pdt_optax.fixed(horizon=3).start()
    for value in (1.0, float(np.finfo(np.float32).max), math.inf):
        new = pdt_optax.adaptive().next(pace, jnp.float32(value), jnp.array(True))
        assert (int(new.horizon_now), int(new.interval_now)) == (3, 1)


@pytest.mark.parametrize(
    ("horizon", "interval", "after"), [(1, 0, (1, 1)), (2, 1, (1, 2)), (3, 2, (1, 4)), (5, 3, (2, 6))]
)
def test_a_failed_jump_halves_the_horizon_and_doubles_the_interval(horizon, interval, after):
    pace = pdt_optax.fixed(horizon=horizon, interval=interval).start()
    new = pdt_optax.rollback().after(pace)
    assert (int(new.horizon_now), int(new.interval_now)) == after
    assert new[2:] == pace[2:]


def test_a_pace_starts_as_given_and_knows_no_value():
    pace = pdt_optax.fixed(horizon=3, interval=4).start()
    assert [x.dtype for x in pace] == [jnp.int32, jnp.int32, jnp.float32, jnp.float32]
    np.testing.assert_array_equal([float(x) for x in pace], [3, 4, *[np.finfo(np.float32).max] * 2])
    assert not any(x.weak_type for x in pace)  # or a user's step would compile twice
    assert (
        pdt_optax.adaptive(longest_horizon=3).longest
        == pdt_optax.adaptive(longest_horizon=1).longest + 2
        == 3
    )
    assert pdt_optax.fixed(horizon=4).longest == pdt_optax.released_schedule(horizon=4).longest == 4


def epochs(tx: Any, values: Any, every: int | None) -> Any:
    """Trains an epoch for each value, and yields the state and the report after it."""
    params = start()
    state = tx.init(params)
    for value in values:
        params, state = train(tx, params, state, value=value)
        report = state.last_report
        if every is None:
            params, state, report = tx.end_epoch(params, state)
        yield state, report


@pytest.mark.parametrize("every", [None, 1])
def test_released_schedule_follows_the_losses(every):
    values = [5, 4, 3, 4.5, 2, 2.5, 3.5, 1, 2, 1.5, 1.75, 1.2, 3, 4, 5, 0.5]
    tx: Any = pdt_optax.pdt(
        optax.sgd(0.01), **(SETTINGS | {"horizon": 9}), schedule=pdt_optax.released_schedule(), every=every
    )
    horizon, interval, plain, made = 9, 1, 0, 0
    for t, (state, report) in enumerate(epochs(tx, values, every)):
        if t >= 2:
            horizon, interval = next_in_the_released_code(horizon, interval, values[: t + 1])
        elif t == 1:
            horizon, interval = next_in_the_released_code(horizon, interval, [math.inf, *values[:2]])
        assert (int(state.history.clock.pace.horizon_now), int(state.history.clock.pace.interval_now)) == (
            horizon,
            interval,
        ), t
        due = t >= 3 and (made == 0 or plain >= interval)
        assert bool(report.predicted) == due, t
        assert int(report.horizon) == (horizon if due else 0)
        plain, made = (0, made + 1) if due else (plain + 1, made)
    assert horizon == 3  # every branch was on the way
    assert made >= 2


@pytest.mark.parametrize("every", [None, 1])
def test_adaptive_schedule_looks_further_after_good_jumps_and_less_far_after_bad_ones(every):
    # Predictions at the ends of epochs 3, 5, ...: the epochs 4, 6, ... are judged.
    values = [9, 8, 7, 6, 5, 4, 4, 3, 3.5, 3, 4, 3, 3.5, 3, 2, 1, 0.5]
    tx: Any = pdt_optax.pdt(
        optax.sgd(0.01),
        **(SETTINGS | {"horizon": 2}),
        schedule=pdt_optax.adaptive(longest_horizon=3),
        every=every,
    )
    seen = []
    for t, (state, report) in enumerate(epochs(tx, values, every)):
        if report.predicted:
            seen.append((t, int(report.horizon), int(state.history.clock.pace.interval_now)))
    assert seen == [
        (3, 2, 1),
        (5, 3, 1),  # 5 <= 6: further
        (7, 3, 1),  # 4 <= 4: no further than the longest
        (9, 1, 1),  # 3.5 > 3: half as far
        (12, 1, 2),  # 4 > 3: less often
        (15, 2, 2),  # 3 <= 3.5: further again
    ]


def test_a_shorter_horizon_is_what_a_wrapper_with_that_horizon_does():
    """The jump, Eq. 7 included, at a horizon that the schedule has brought down from 5 to 3."""
    values = [3.0, 2.0, 1.0, 4.0]  # rises above both at the end of epoch 3: 5 - 2
    settings = SETTINGS | {"accept": pdt_optax.bounded_rule(), "dynamics": pdt_optax.dmd(rank=2)}
    adaptive: Any = pdt_optax.pdt(
        optax.sgd(0.1), **(settings | {"horizon": 5}), schedule=pdt_optax.released_schedule()
    )
    shorter: Any = pdt_optax.pdt(optax.sgd(0.1), **(settings | {"horizon": 3}))
    results = []
    for tx in (adaptive, shorter):
        params: Any = start()
        state, report = tx.init(params), None
        for value in values:
            params, state = train(tx, params, state)
            params, state, report = tx.end_epoch(params, state, value=value)
        assert report is not None
        assert report.predicted
        assert report.horizon == 3
        assert report.accepted_share > 0.3
        results.append((params, report.accepted_share))
    chex.assert_trees_all_equal(*results)


# --- the guard --------------------------------------------------------------------------------------------


def guarded(**changes: Any) -> Any:
    return pdt_optax.pdt(
        optax.adam(0.1),
        **(SETTINGS | {"guard": pdt_optax.rollback(tolerance=0.5)} | changes),
        exclude=lambda path: path == "frozen",
    )


def plain_epochs(count: int, **settings: Any) -> tuple[Any, Any]:
    """Parameters and state of a wrapper that has not jumped after `count` epochs."""
    tx: Any = guarded(**settings | {"guard": None, "start": 100})
    params = start()
    state = tx.init(params)
    for _ in range(count):
        params, state = train(tx, params, state)
        params, state, _ = tx.end_epoch(params, state)
    return params, state


@pytest.mark.parametrize(
    ("before", "worst"),
    [
        (4.0, 6.0),
        (0.5, 0.75),
        (-4.0, -2.0),
    ],
    ids=lambda x: str(x),
)
def test_an_epoch_may_be_worse_by_the_tolerance_and_no_more(before, worst):
    guard = pdt_optax.rollback(tolerance=0.5)
    for value, failed in (
        (worst, False),
        (np.nextafter(np.float32(worst), np.float32(9)), True),
        (-9, False),
    ):
        assert bool(guard.failed(jnp.float32(value), jnp.float32(before))) == failed
    strict = pdt_optax.rollback(tolerance=0)
    assert not strict.failed(jnp.float32(before), jnp.float32(before))
    assert all(strict.failed(jnp.float32(value), jnp.float32(before)) for value in (-math.inf, math.nan))


@pytest.mark.parametrize(
    ("failing", "donate", "settings"),
    [
        (1.6, False, {}),
        (1.6, True, {}),
        (math.nan, True, {}),
        (math.inf, False, {}),
        (1.6, True, DEFAULT),
        (math.nan, False, DEFAULT),
        (1.6, True, DEFAULT | {"deliver": "jump"}),
        (math.nan, False, {"own_motion": True}),
        (1.6, True, {"own_motion": True, "deliver": "gradual"}),
    ],
    ids=str,
)
def test_a_failed_jump_is_taken_back_to_the_last_bit(failing, donate, settings):
    tx = guarded(**settings)
    params = start()
    state = tx.init(params)
    interval = int(state.history.clock.pace.interval_now)
    for value in (1.0, 1.0, 1.0, 1.0):
        params, state = train(tx, params, state)
        params, state, report = tx.end_epoch(params, state, value=value, donate=donate)
    assert report.predicted
    expected, expected_state = plain_epochs(4, **settings)

    params, state = train(tx, params, state)  # moves `frozen` and the optimizer's state too
    trained, _ = train(guarded(**settings), expected, expected_state)
    assert not np.allclose(params["w"], trained["w"], rtol=0, atol=0.05)
    params, state, report = tx.end_epoch(params, state, value=failing, donate=donate)
    assert report.rolled_back
    assert not report.predicted
    np.testing.assert_array_equal(report.mean_value, np.float32(failing))
    chex.assert_trees_all_equal(params, expected)
    chex.assert_trees_all_equal(state.inner_state, expected_state.inner_state)
    chex.assert_trees_all_equal(state.history.motion, expected_state.history.motion)
    # Snapshots that were moved along come back to within the rounding of the way.
    same = chex.assert_trees_all_close if settings.get("own_motion") else chex.assert_trees_all_equal
    same(state.history.snapshots, expected_state.history.snapshots)
    assert state.history.clock.snapshots_seen == expected_state.history.clock.snapshots_seen
    pace = int(state.history.clock.pace.horizon_now), int(state.history.clock.pace.interval_now)
    assert pace == (2, max(2 * interval, 1))

    # Training goes on: so many plain epochs with the one before, then a prediction half as long. No jump, no judgement.
    for predicted in (False, True)[1 - interval :]:
        params, state = train(tx, params, state)
        params, state, report = tx.end_epoch(params, state, value=failing, donate=donate)
        assert report.predicted == predicted
        assert not report.rolled_back
    assert report.horizon == 2


@pytest.mark.parametrize("value", [0.9, 1.49])
def test_a_jump_within_the_tolerance_stays(value):
    tx = guarded()
    params = start()
    state = tx.init(params)
    for v in (1.0, 1.0, 1.0, 1.0, value):
        params, state = train(tx, params, state)
        before = params
        params, state, report = tx.end_epoch(params, state, value=v)
    assert not report.rolled_back
    chex.assert_trees_all_equal(params, before)
    # And once it has been judged, a later rise is the optimizer's own affair.
    params, state = train(tx, params, state)
    params, state, report = tx.end_epoch(params, state, value=9.0)
    assert report.predicted
    assert not report.rolled_back


@pytest.mark.parametrize("dry_run", [False, True])
def test_where_no_weight_jumped_there_is_nothing_to_take_back(dry_run):
    tx = guarded(dry_run=dry_run)
    params = start()
    state = tx.init(params)
    for epoch, value in enumerate((math.nan, 1.0, 9.0, 99.0, 999.0) if dry_run else (math.nan, 1.0, 9.0)):
        params, state = train(tx, params, state)
        params, state, report = tx.end_epoch(params, state, value=value)
        assert report.predicted == (epoch == 3)
        assert not report.rolled_back


def test_numbers_of_numpy_make_the_same_schedule() -> None:
    """And the same checksum, by which a state knows its schedule."""
    schedule = pdt_optax.fixed(horizon=np.int64(3), interval=np.int64(2))  # pyright: ignore[reportArgumentType]
    assert [type(schedule.horizon), type(schedule.interval)] == [int, int]
    other = pdt_optax.Predictor(schedule=pdt_optax.fixed(horizon=3, interval=2))
    assert pdt_optax.Predictor(schedule=schedule).checksums == other.checksums


def test_after_a_jump_taken_back_a_prediction_looks_half_as_far() -> None:
    """Of weights that move by one an epoch it is as many steps long as its horizon."""
    settings: Any = {**WINDOWED, "horizon": 4, "interval": 0, "accept": pdt_optax.everything()}
    predictor = pdt_optax.Predictor(**settings, guard=pdt_optax.rollback())
    w, opt_state = jnp.zeros(2), {}
    history, jumps = predictor.init(w, opt_state=opt_state), []
    for _ in range(12):
        before = w + 1
        w, history, report = predictor.end_epoch(
            before, history, opt_state=opt_state, value=9.0 if len(jumps) == 1 else 1.0
        )
        if report.predicted:
            jumps.append((int(report.horizon), float(jnp.round(w - before, 4)[0])))
        if report.rolled_back:
            assert len(jumps) == 1
    assert jumps[:2] == [(4, 4.0), (2, 2.0)]


@pytest.mark.parametrize("dynamics", [pdt_optax.slow_drift(), pdt_optax.drift()], ids=str)
def test_a_state_goes_on_under_another_schedule(dynamics: Any) -> None:
    """Its pace is then that of the new one, from its start."""
    settings: Any = {"dynamics": dynamics, "start": 5}
    before = pdt_optax.Predictor(**settings, horizon=2, interval=4)
    after = pdt_optax.Predictor(**settings, horizon=3, interval=0)
    w = jnp.array([4.0, -3.0])
    history, told = before.init(w), []
    for epoch in range(9):
        w, history, report = (before if epoch < 7 else after).end_epoch(0.9 * w, history)
        told.append(int(report.horizon))
    assert told == [0, 0, 0, 0, 0, 2, 0, 3, 3]


def test_a_horizon_of_one_is_not_halved():
    tx = guarded(horizon=1)
    params = start()
    state = tx.init(params)
    for value in (1.0, 1.0, 1.0, 1.0, 9.0):
        params, state = train(tx, params, state)
        params, state, report = tx.end_epoch(params, state, value=value)
    assert report.rolled_back
    assert (int(state.history.clock.pace.horizon_now), int(state.history.clock.pace.interval_now)) == (1, 2)


def test_the_guard_copies_what_it_may_bring_back():
    tx = guarded()
    state: Any = tx.init(start())
    for kept, live in zip(
        jax.tree.leaves(state.history.backup.optimizer_before),
        jax.tree.leaves(state.inner_state),
        strict=True,
    ):
        assert kept.unsafe_buffer_pointer() != live.unsafe_buffer_pointer()


def test_what_is_no_array_in_an_optimizers_state_stays_so():
    init: Any = lambda params: {"name": "mine"}  # noqa: E731
    inner = optax.GradientTransformation(init, optax.identity().update)
    tx: Any = pdt_optax.pdt(inner, guard=pdt_optax.rollback())
    assert tx.init(start()).history.backup.optimizer_before == ("mine",)


@pytest.mark.parametrize(
    "settings", [{}, DEFAULT, DEFAULT | {"deliver": "jump"}], ids=["windowed", "gradual", "jump"]
)
def test_the_guard_inside_update_takes_back_within_an_ulp(settings):
    tx = guarded(every=1, **settings)
    params = start()
    state = tx.init(params)
    for value in (1.0, 1.0, 1.0, 1.0, 9.0):
        params, state = train(tx, params, state, value=value)
    assert state.last_report.rolled_back
    expected, expected_state = plain_epochs(4, **settings)
    chex.assert_trees_all_close(params, expected, rtol=3e-7, atol=3e-7)
    chex.assert_trees_all_equal(state.inner_state, expected_state.inner_state)
    chex.assert_trees_all_equal(state.history.snapshots[-1]["w"], params["w"])
    # The next update brings the weights back to the last bit, and is none of the optimizer's. Then it may jump.
    params, state = train(tx, params, state, value=1.0)
    chex.assert_trees_all_equal(state.inner_state, expected_state.inner_state)
    if settings.get("deliver") != "jump":
        chex.assert_trees_all_equal(params, expected)


def test_a_rule_made_to_fail_ends_where_the_optimizer_does():
    def loss_of(params: Any) -> float:
        return 0.5 * sum(float(jnp.sum(w**2)) for w in params.values()) + 1.0

    def final(make: Any = windowed, **settings: Any) -> float:
        tx: Any = make(optax.sgd(0.3), **settings)
        params: Any = start()
        state = tx.init(params)
        for _ in range(30):
            before = loss_of(params)
            params, state = train(tx, params, state)
            # What is delivered by the epoch's one update shows in the weights that it made.
            loss = before if make is windowed else loss_of(params)
            params, state, _ = tx.end_epoch(params, state, value=loss)
        return loss_of(params)

    ruinous = {"accept": pdt_optax.everything(), "horizon": 20}
    baseline = final(start=1000)
    assert not final(**ruinous) < 1.05 * baseline
    assert final(**ruinous, guard=pdt_optax.rollback(tolerance=0.1)) < 1.05 * baseline
    for deliver in ("gradual", "jump"):
        default = {"make": pdt_optax.pdt, "horizon": 200, "deliver": deliver}
        assert not final(**default) < 1.05 * baseline
        assert final(**default, guard=pdt_optax.rollback(tolerance=0.1)) < 1.05 * baseline


# --- errors -----------------------------------------------------------------------------------------------


def test_values_that_never_come_are_an_error():
    needs: list[dict[str, Any]] = [
        {"guard": pdt_optax.rollback()},
        {"schedule": pdt_optax.released_schedule()},
        {"schedule": pdt_optax.adaptive()},
    ]
    for settings in needs:
        tx: Any = pdt_optax.pdt(optax.sgd(0.1), **settings)
        params = start()
        with pytest.raises(ValueError, match=r"none came: pass the training loss, tx\.end_epoch"):
            tx.end_epoch(params, tx.init(params))
        inside: Any = pdt_optax.pdt(optax.sgd(0.1), every=2, **settings)
        with pytest.raises(ValueError, match=r"none came: pass the training loss, tx\.update"):
            inside.update(params, inside.init(params), params)


untyped: Any = pdt_optax  # what a type checker would already refuse


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ValueError, lambda: pdt_optax.rollback(-0.1), "`tolerance` must be a number >= 0.*-0.1"),
        (ValueError, lambda: pdt_optax.rollback(math.nan), "`tolerance` must be a number >= 0.*nan"),
        (ValueError, lambda: untyped.rollback(True), "`tolerance` must be a number >= 0.*True"),
        (ValueError, lambda: untyped.rollback("0.5"), "`tolerance` must be a number >= 0.*'0.5'"),
        (TypeError, lambda: untyped.pdt(optax.sgd(0.1), guard=0.5), "`guard` must be None or .*0.5"),
        (TypeError, lambda: untyped.pdt(optax.sgd(0.1), schedule=pdt_optax.fixed), "`schedule` must be"),
        (
            ValueError,
            lambda: pdt_optax.adaptive(longest_horizon=0),
            r"`longest_horizon` must be a whole number >= 1: a prediction looks at least one snapshot ahead\. .*0",
        ),
        (
            ValueError,
            lambda: pdt_optax.pdt(optax.sgd(0.1), horizon=6, schedule=pdt_optax.adaptive()),
            "`horizon` starts an adaptive schedule.*horizon=6, longest_horizon=5",
        ),
        (ValueError, lambda: pdt_optax.drift(steps_per_epoch=3), "`steps_per_epoch` with it"),
        (ValueError, lambda: pdt_optax.drift(learning_rate=abs), "`steps_per_epoch` with it"),
        (
            ValueError,
            lambda: untyped.drift(learning_rate=0.1, steps_per_epoch=3),
            "must be a schedule.*0.1",
        ),
        (ValueError, lambda: pdt_optax.drift(learning_rate=abs, steps_per_epoch=0), "whole number >= 1.*0"),
    ],
)
def test_bad_input(error, make, message):
    with pytest.raises(error, match=message):
        make()
