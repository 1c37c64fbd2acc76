"""How the window is kept, and what a boundary makes of memory and of many small leaves."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pdt_optax
from benchmarks.lowered import lower
from pdt_optax import _predict
from pdt_optax._saved import predictor_of
from pdt_optax._window import Storage
from pdt_optax.accept import random_subset
from tests.states import WINDOWED, windowed
from tests.test_wrapper import make_params, run, step

SETTINGS: dict[str, Any] = {**WINDOWED, "window": 4, "start": 4, "horizon": 2}


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


def test_differences_are_rounded_and_the_newest_snapshot_is_whole() -> None:
    history = run(pdt_optax.pdt(optax.sgd(0.1), snapshot_dtype="bfloat16", **SETTINGS), 9)
    for epoch in history:
        *older, newest = epoch.state.history.snapshots
        assert {x.dtype for x in jax.tree.leaves(older)} == {jnp.dtype(jnp.bfloat16)}
        chex.assert_trees_all_equal(newest, epoch.params)
        before = epoch.before.history.snapshots[-1]
        expected = jax.tree.map(lambda n, b: (n - b).astype(jnp.bfloat16), newest, before)
        chex.assert_trees_all_equal(older[-1], expected)


@pytest.mark.parametrize("value", [None, 0.0, 1.0])
@pytest.mark.parametrize(
    "settings",
    [WINDOWED, {**WINDOWED, "snapshot_dtype": "bfloat16"}, {}, {"dynamics": pdt_optax.drift()}],
    ids=["whole", "bfloat16", "default", "own motion"],
)
def test_the_newest_snapshot_is_the_weights_whatever_the_value(settings: Any, value: float | None) -> None:
    """Its copy is written under a condition on the value, the differences or the mean, that always holds."""
    tx: Any = pdt_optax.pdt(optax.identity(), **settings)
    params = jnp.zeros(3)
    state = tx.init(params)
    for _ in range(2):
        params, state, _ = tx.end_epoch(params + jnp.array([0.0, 1.0, 2.0]), state, value=value)
        np.testing.assert_array_equal(pdt_optax.snapshots(tx, state)[-1], params)


@pytest.mark.parametrize("kept", [{}, {"snapshot_dtype": "bfloat16"}, {"snapshot_device": "host"}], ids=str)
def test_snapshots_are_the_weights_of_the_last_epochs(kept: dict[str, str]) -> None:
    tx = pdt_optax.pdt(optax.sgd(0.1), **kept, **SETTINGS)
    history = run(tx, 6)
    found = pdt_optax.snapshots(tx, history[-1].state)
    for i, (snapshot, epoch) in enumerate(zip(found, history[-4:], strict=True)):
        # The rounding of three differences at most; the newest is whole.
        rtol = 0 if i == 3 or "snapshot_dtype" not in kept else 1e-3
        jax.tree.map(lambda x, y, r=rtol: np.testing.assert_allclose(x, y, rtol=r), snapshot, epoch.params)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(found)} == {jnp.ones(1).sharding.memory_kind}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("length", [2, 3, 5])
def test_a_window_in_every_step_is_what_a_plain_list_is(dtype: str | None, length: int) -> None:
    storage = Storage(dtype)
    # Multiples of 1/8 below 2^8: bfloat16 holds them and their differences.
    values = iter(np.random.default_rng(0).integers(-64, 64, (8, 2, 3)) / np.float32(8))

    def column() -> list[jax.Array]:
        return [jnp.asarray(x) for x in next(values)]

    newest = column()
    window: Any = storage.start(newest, length)
    assert [len(x) for x in window] == [2] * length
    plain = [newest] * length
    for i in range(5):
        if i == 2:
            newest = column()
            window, plain = storage.replace_newest(window, newest), [*plain[:-1], newest]
        if i == 1:
            back = [jnp.full((2, 3), -0.5), jnp.full((2, 3), 1.5)]
            plain = [[x + y for x, y in zip(c, back, strict=True)] for c in plain]
            window = storage.moved_to(window, plain[-1])
        newest = column()
        if i == 3:  # along with what was added to the weights
            shift = [jnp.full((2, 3), 0.5), jnp.full((2, 3), -0.25)]
            plain = [[x + y for x, y in zip(c, shift, strict=True)] for c in plain]
            window, plain = storage.push(window, newest, shift), [*plain[1:], newest]
        else:
            window, plain = storage.push(window, newest), [*plain[1:], newest]
        chex.assert_trees_all_equal(list(storage.whole(window)), plain)
        spent, kept = storage.split(window)
        assert storage.join(spent, kept) == window
        assert (spent[0], spent[-1]) == (window[0], window[0] if dtype is None else window[-1])
        assert storage.pushed(window) == window[length - (1 if dtype is None else 2) :]


@pytest.mark.parametrize(
    ("settings", "guard"),
    [
        (WINDOWED, None),
        (WINDOWED, pdt_optax.rollback()),
        ({}, None),
        ({}, pdt_optax.rollback()),
        ({"deliver": "jump"}, None),
        ({"dynamics": pdt_optax.drift()}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("donate", [False, True])
def test_what_is_donated_is_gone(settings: Any, guard: Any, donate: bool) -> None:
    tx: Any = pdt_optax.pdt(optax.sgd(0.1), guard=guard, **settings)
    params = make_params()
    state = tx.init(params)
    oldest = jax.tree.leaves((state.history.snapshots[0], state.history.motion, state.history.delivery))
    tx.end_epoch(params, state, value=1.0, donate=donate)
    assert {x.is_deleted() for x in (*jax.tree.leaves(params), *oldest)} == {donate}


def test_snapshots_have_the_types_of_the_weights() -> None:
    tx: Any = windowed(optax.sgd(0.1), window=2, snapshot_dtype="bfloat16")
    params = {"half": jnp.ones(2, jnp.float16), "whole": jnp.ones(2)}
    _, state, _ = tx.end_epoch(jax.tree.map(lambda x: 2 * x, params), tx.init(params))
    for snapshot, value in zip(pdt_optax.snapshots(tx, state), (1, 2), strict=True):
        assert snapshot["half"].dtype == jnp.float16
        assert snapshot["whole"].dtype == jnp.float32
        np.testing.assert_array_equal(snapshot["half"], value)


@pytest.mark.parametrize("every", [None, 1])
def test_a_prediction_is_made_from_the_rounded_differences(every: int | None) -> None:
    """Drift where signs agree, written out in float64 from what the state holds."""
    tx = pdt_optax.pdt(optax.sgd(0.1), snapshot_dtype="bfloat16", every=every, **SETTINGS)
    plain = optax.sgd(0.1)
    params: Any = make_params()
    state: Any = tx.init(params)
    jumps = 0
    for i in range(9):
        before, start = state, params
        params, state = step(tx, params, state, i)
        trained, _ = step(plain, start, plain.init(start), i)
        if every is None:
            params, state, report = tx.end_epoch(params, state)
        else:
            report = state.last_report
        if not report.predicted:
            continue
        jumps += 1
        for old, w, new, *differences in zip(
            leaves(before.history.snapshots[-1]),
            leaves(trained),
            leaves(params),
            *map(leaves, before.history.snapshots[1:-1]),
            strict=True,
        ):
            velocity = (sum(differences) + (w - old)) / (len(differences) + 1)
            agrees = np.sign(velocity) == np.sign(w - old)
            # float32 weights of up to 1: a few ulp.
            np.testing.assert_allclose(new, np.where(agrees, w + 2 * velocity, w), rtol=0, atol=5e-7)
    assert jumps == 3


def test_a_bfloat16_window_is_3_copies_instead_of_5() -> None:
    params = {"w": jnp.ones(1000)}

    def size(dtype: str | None) -> int:
        state: Any = windowed(optax.sgd(0.1), snapshot_dtype=dtype).init(params)
        return sum(x.nbytes for x in jax.tree.leaves(state.history.snapshots))

    assert (size(None), size("bfloat16")) == (20_000, 12_000)


@pytest.mark.parametrize(
    ("dtype", "guard", "own"),
    [(None, pdt_optax.rollback(), {}), ("bfloat16", None, {}), (None, None, {"own_motion": True})],
    ids=["guard", "bfloat16", "own motion"],
)
def test_host_memory_changes_no_bit(dtype: str | None, guard: Any, own: Any) -> None:
    def train(device: str | None) -> list[Any]:
        kept = {"snapshot_dtype": dtype, "snapshot_device": device, "guard": guard}
        tx = pdt_optax.pdt(optax.sgd(0.1), **SETTINGS | kept | own)
        params, history = make_params(), []
        state: Any = tx.init(params)
        for i in range(9):
            params, state = step(tx, params, state, i)
            loss = 100.0 if i == 5 else 1.0  # the epoch after the first jump
            params, state, report = tx.end_epoch(params, state, value=loss)
            history.append((params, state, report))
        return history

    here, there = train(None), train("host")
    for a, b in zip(here, there, strict=True):
        chex.assert_trees_all_equal(a, b)
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(there[-1][1].history.snapshots)}
    assert kinds == {jax.device_put(jnp.ones(2), jax.memory.Space.Host).sharding.memory_kind}
    assert kinds != {jnp.ones(2).sharding.memory_kind}
    assert any(bool(report.predicted) for _, _, report in here)
    assert any(bool(report.rolled_back) for _, _, report in here) == (guard is not None)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("drift", {}),
        ("drift", {"snapshot_dtype": "bfloat16"}),
        ("released", {"snapshot_dtype": "bfloat16"}),
        ("paper", {}),
        ("drift", {"own_motion": True}),
        ("recommended", {}),
    ],
    ids=str,
)
def test_a_boundary_allocates_no_more_than_its_mask(name: str, settings: Any) -> None:
    """XLA's own account of a donated boundary of 4 M weights: a byte a weight, and what is small."""
    size = 2**22
    tx = pdt_optax.pdt(optax.identity(), **{**pdt_optax.presets.named(name), **settings})
    params = {"w": jax.ShapeDtypeStruct((size,), jnp.float32)}
    memory = lower(predictor_of(tx), params).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= pdt_optax.memory(tx, params).boundary + 2**18
    # The weights and the oldest snapshot; of a running model the mean, too; with own motion the whole window.
    arrays = 3 if name == "recommended" else 6 if "own_motion" in settings else 2
    assert memory.alias_size_in_bytes >= arrays * 4 * size


@pytest.mark.parametrize("make", [windowed, pdt_optax.pdt])
def test_copies_of_small_leaves_are_counted(make: Any) -> None:
    """Thirty vectors that are predicted together: XLA's account of their boundary is what `memory` says."""
    params = {f"w{i}": jax.ShapeDtypeStruct((40_000,), jnp.float32) for i in range(30)}
    tx = make(optax.identity())
    told = pdt_optax.memory(tx, params).boundary
    memory = lower(predictor_of(tx), params).compile().memory_analysis()
    assert 0.7 * told < memory.temp_size_in_bytes < told + 2**18


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1048, 2096 + 4, 5240, False, 0, 262)),
        ({"snapshot_dtype": "bfloat16", "accept": pdt_optax.shrink()}, (1048, 2100, 3144, False, 0, 1048)),
        ({"snapshot_device": "host"}, (1048, 2100, 5240, True, 0, 262 + 5240)),
        ({"guard": pdt_optax.rollback()}, (1048, 2100, 5240, False, 1048 + 2100 + 1, 262)),
        ({"exclude": lambda path: "bias" in path}, (1048, 2100, 5200, False, 0, 260)),
    ],
)
def test_memory_is_told_before_anything_is_allocated(settings: dict[str, Any], expected: Any) -> None:
    params = {
        "kernel": jax.ShapeDtypeStruct((26, 10), jnp.float32),
        "bias": jax.ShapeDtypeStruct((2,), jnp.float32),
    }
    got = pdt_optax.memory(windowed(optax.adam(1e-3), **settings), params)
    assert got == expected
    host = got.snapshots if got.snapshots_on_host else 0
    assert got.host == host
    whole = got.params + got.optimizer + got.snapshots + got.backup + got.boundary
    assert got.device == whole - host
    # What it says is what `init` then makes.
    real: Any = windowed(optax.adam(1e-3), **settings).init(
        jax.tree.map(lambda x: jnp.zeros(x.shape), params)
    )
    assert sum(x.nbytes for x in jax.tree.leaves(real.history.snapshots)) == got.snapshots
    assert sum(x.nbytes for x in jax.tree.leaves(real.history.backup)) == got.backup


@pytest.mark.parametrize("deliver", ["gradual", "jump"])
def test_memory_tells_the_mean_and_what_is_delivered(deliver: Any) -> None:
    tx: Any = pdt_optax.pdt(optax.adam(1e-3), deliver=deliver)
    params = {"w": jnp.zeros((300, 100))}
    got = pdt_optax.memory(tx, params)
    held = sum(x.nbytes for x in jax.tree.leaves((params, tx.init(params))))
    assert held - 200 < got.device - got.boundary <= held  # but for the clock


@pytest.mark.parametrize(
    ("accept", "leaves", "boundary"),
    [
        (pdt_optax.everything(), 1, 0),
        (pdt_optax.everything(), 2, 2 * 3 * 8),  # alike, they are laid together: weights, snapshot and mean
        (pdt_optax.agree(), 1, 262 + 1048),  # a mask, and the mean, which that is computed from once more
        (pdt_optax.agree(), 3, 266 + 1064 + 3 * 3 * 8),
    ],
)
def test_memory_at_a_boundary_of_the_default(accept: Any, leaves: int, boundary: int) -> None:
    bias = jax.ShapeDtypeStruct((2,), jnp.float32)
    params = {"kernel": jax.ShapeDtypeStruct((26, 10), jnp.float32), **{f"b{i}": bias for i in range(leaves)}}
    assert pdt_optax.memory(pdt_optax.pdt(optax.adam(1e-3), accept=accept), params).boundary == boundary


@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize(
    ("settings", "windows"), [({}, (1, 4)), ({}, (4, 1)), (WINDOWED, (5, 3)), (WINDOWED, (2, 4))], ids=str
)
def test_a_resized_state_is_like_one_of_that_window(settings: Any, windows: Any, abstract: bool) -> None:
    params = {"w": jnp.ones((3, 2))}
    old, new = (
        pdt_optax.pdt(optax.adam(0.1), **{**settings, "window": x, "start": 5, "every": 2}) for x in windows
    )
    state = jax.eval_shape(old.init, params) if abstract else old.init(params)
    got: Any = pdt_optax.resize_window(state, windows[1])
    expected = new.init(params)
    chex.assert_trees_all_equal_structs(got, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    spectra = got.last_report.singular_values, got.last_report.eigenvalues
    assert all(isinstance(x, jax.ShapeDtypeStruct) == abstract for x in spectra)


@pytest.mark.parametrize("guard", [None, pdt_optax.rollback()])
def test_memory_beside_an_optimizer(guard: Any) -> None:
    """A `Predictor` holds what `pdt` holds that jumps, around the optimizer; without one, what it holds alone."""
    params = {"w": jax.ShapeDtypeStruct((26, 10), jnp.float32)}
    beside = pdt_optax.Predictor(guard=guard)
    wrapped = pdt_optax.pdt(optax.adam(1e-3), guard=guard, deliver="jump")
    assert pdt_optax.memory(beside, params, optimizer=optax.adam(1e-3)) == pdt_optax.memory(wrapped, params)
    assert pdt_optax.memory(beside, params).optimizer == 0


def test_memory_is_printed_as_a_table() -> None:
    """Nothing where there is nothing; units from a thousand on."""
    told = pdt_optax.Memory(999, 1000, 1_000_000, False, 0, 1_000_000_000)
    assert str(told).splitlines() == [
        "parameters                   999 B",
        "optimizer                     1 kB",
        "snapshots                     1 MB",
        "at a prediction               1 GB",
        "at most, on the devices       1 GB",
    ]
    told = pdt_optax.Memory(1, 0, 999_000, True, 12_345, 999_000_000)
    assert str(told).splitlines() == [
        "parameters                     1 B",
        "snapshots on the host       999 kB",
        "backup                     12.3 kB",
        "at a prediction             999 MB",
        "at most, on the devices     999 MB",
    ]


@pytest.mark.parametrize("accept", [pdt_optax.shrink(), random_subset(0.5)])
def test_small_leaves_that_are_alike_are_computed_together(accept: Any) -> None:
    """And give what each of them gives alone, to the last bit but one: quick compilation vectorises them differently."""
    shapes = [(3,), (2, 2), (3,), (70_000,), (), (3,), (2, 2), ()]
    rng = np.random.default_rng(0)
    *snapshots, params = ([jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes] for _ in range(5))
    assert sorted(map(len, _predict.stacks(params, together=True))) == [1, 2, 2, 3]
    settings: Any = {"dynamics": pdt_optax.drift(), "accept": accept, "horizon": 3}
    together = pdt_optax.predict_and_mask(snapshots, params, **settings)
    alone = _predict.predict(tuple(snapshots), params, 0, **settings, together=False)
    assert 0.05 < float(alone.accepted_share) < 0.9
    chex.assert_trees_all_close(together.mask, alone.mask, rtol=2.0**-22)
    chex.assert_trees_all_close(together.params, alone.params, rtol=2.0**-22)
    np.testing.assert_allclose(together.accepted_share_per_leaf, alone.accepted_share_per_leaf, rtol=2.0**-22)


@pytest.mark.parametrize("make", [windowed, pdt_optax.pdt])
def test_a_small_leaf_costs_no_kernel_of_the_prediction(make: Any) -> None:
    """Only slices and copies: twice the leaves mean no more reductions."""

    def reductions(leaves: int) -> int:
        params = {f"w{i}": jax.ShapeDtypeStruct((64,), jnp.float32) for i in range(leaves)}
        tx = make(optax.identity())
        return lower(predictor_of(tx), params).compile().as_text().count(" reduce(")

    assert 0 < reductions(40) <= reductions(20)


def computations(text: str) -> tuple[str, dict[str, str]]:
    """The name of an HLO module's entry, and the text of each of its computations."""
    parts = {m[2]: m[0] for m in re.finditer(r"^(ENTRY )?%([\w.-]+) [^\n]*\{\n.*?^\}", text, re.M | re.S)}
    entry = re.search(r"^ENTRY %([\w.-]+)", text, re.M)
    assert entry is not None
    return entry[1], parts


@pytest.mark.parametrize(
    ("in_scan", "settings"),
    [(False, WINDOWED), (True, WINDOWED), (False, {}), (True, {}), (True, {"deliver": "jump"})],
    ids=["windowed", "windowed in scan", "gradual", "gradual in scan", "jump in scan"],
)
def test_an_ordinary_step_copies_no_snapshot(in_scan: bool, settings: Any) -> None:
    """With `every`, copies stand only inside the loop that an ordinary step does not enter."""
    size = 4096
    tx = pdt_optax.pdt(optax.adamw(1e-3), every=5, **settings)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.tree.map(lambda w: 0.5 * w, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def steps(carry: Any) -> Any:
        return jax.lax.scan(step, carry, None, length=7)[0] if in_scan else step(carry, None)[0]

    params = {"w": jnp.ones(size)}
    compiled = jax.jit(steps, donate_argnums=0).lower((params, tx.init(params))).compile()
    entry, parts = computations(str(compiled.as_text()))
    copy, loop = rf"f32\[{size}\]\S* copy\(", r" while\(.*body=%([\w.-]+)"
    path = entry
    assert not re.search(copy, parts[path])
    if in_scan:
        (path,) = re.findall(loop, parts[path])
        assert not re.search(copy, parts[path])
    (boundary,) = re.findall(loop, parts[path])
    assert boundary not in (entry, path)
    if "deliver" not in settings or settings is WINDOWED:  # a jump of a running mean needs none even there
        assert any(re.search(copy, part) for name, part in parts.items() if name not in (entry, path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"snapshot_dtype": "float8"},
            r"`snapshot_dtype` must be None.*\"bfloat16\".*Got snapshot_dtype='fl",
        ),
        (
            {"snapshot_device": "disk"},
            r"`snapshot_device` must be None.*\"host\".*Got snapshot_device='disk'",
        ),
        ({"snapshot_device": "host", "every": 5}, r"`snapshot_device` needs the `end_epoch` form.*every=5"),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        windowed(optax.sgd(0.1), **settings)
