"""`decompose`: modes of a known system, and PyDMD's of a real training, to 1e-9."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdt_optax
from tests.peers import DMD
from tests.training import epoch_weights

DRIFT: Any = pdt_optax.drift()


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(tree)])


@pytest.fixture(scope="module")
def run() -> list[Any]:
    """Six snapshots of a real training, in float64."""
    return [jax.tree.map(lambda x: np.asarray(x, np.float64), w) for w in epoch_weights()[4:10]]


@pytest.mark.parametrize("modes", ["exact", "projected"])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_pydmd_finds_the_same_modes(run: list[Any], rank: int, modes: Any) -> None:
    got = pdt_optax.decompose(run, dynamics=pdt_optax.dmd(rank=rank, modes=modes))
    data = np.stack([flat(w) for w in run], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyDMD says that the snapshots are nearly parallel
        want: Any = DMD(svd_rank=rank, exact=modes == "exact").fit(data)
    np.testing.assert_allclose(got.singular_values, np.linalg.svd(data[:, :-1])[1], rtol=1e-6)
    order = np.argsort(-abs(want.eigs), kind="stable")
    np.testing.assert_allclose(got.eigenvalues, want.eigs[order], rtol=0, atol=1e-9)
    ours, theirs = np.stack([flat(m) for m in got.modes], axis=1), want.modes[:, order]
    np.testing.assert_allclose(np.linalg.norm(ours, axis=0), 1, rtol=1e-12)
    theirs = theirs / np.linalg.norm(theirs, axis=0)
    alike = abs(np.sum(ours.conj() * theirs, axis=0))  # modes are told up to a phase
    np.testing.assert_allclose(alike, 1, rtol=0, atol=1e-9)
    newest = theirs @ np.linalg.lstsq(theirs, data[:, -1], rcond=None)[0]
    np.testing.assert_allclose(ours @ got.amplitudes, newest, rtol=0, atol=1e-9)
    error = np.linalg.norm(want.reconstructed_data - data) / np.linalg.norm(data - data[:, :1])
    np.testing.assert_allclose(got.reconstruction_error, error, rtol=1e-6)


def test_a_known_spectrum() -> None:
    """A decay, and a rotation that turns once in eight snapshots and grows by 1%."""
    angle, growth = 2 * np.pi / 8, 1.01
    turn = growth * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = [np.array([1.0, 1.0, 0.0])]
    for _ in range(6):
        w = points[-1]
        points.append(np.concatenate([[0.5 * w[0]], turn @ w[1:]]))
    run = [{"decays": p[:1], "turns": p[1:], "steps": np.array(3)} for p in points]
    modes = pdt_optax.decompose(run)
    np.testing.assert_allclose(modes.growth, [1.01, 1.01, 0.5], rtol=1e-9)
    np.testing.assert_allclose(modes.period, [8, 8, np.inf], rtol=1e-9)
    assert modes.reconstruction_error < 1e-9
    assert [set(m) for m in modes.modes] == [{"decays", "turns", "steps"}] * 3
    np.testing.assert_allclose(abs(modes.modes[2]["decays"]), 1, atol=1e-9)
    np.testing.assert_allclose(abs(modes.modes[0]["turns"]), np.sqrt(0.5), atol=1e-9)
    ahead = sum(
        a * e**2 * m["turns"]
        for a, e, m in zip(modes.amplitudes, modes.eigenvalues, modes.modes, strict=True)
    )
    np.testing.assert_allclose(ahead, turn @ turn @ points[-1][1:], atol=1e-9)


def test_two_snapshots_are_enough() -> None:
    got = pdt_optax.decompose([jnp.array([1.0, 2.0]), jnp.array([0.5, 1.0])], dynamics=pdt_optax.dmd(rank=1))
    np.testing.assert_allclose(got.eigenvalues, [0.5], rtol=1e-6)
    with pytest.raises(ValueError, match=r"`snapshots\[0\]` must have the leaves"):
        pdt_optax.decompose([{"v": jnp.ones(2)}, {"w": jnp.ones(2)}], dynamics=pdt_optax.dmd(rank=1))


def test_modes_have_the_type_of_the_weights() -> None:
    run = [{"w": jnp.array([0.5**t, 1.0], jnp.bfloat16), "b": jnp.array([2.0**-t])} for t in range(3)]
    modes = pdt_optax.decompose(run).modes
    assert {x.dtype for x in jax.tree.leaves(modes)} == {np.dtype("complex64")}


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (TypeError, lambda w: pdt_optax.decompose(w, dynamics=DRIFT), "must be `dmd"),
        (ValueError, lambda w: pdt_optax.decompose(w[:1]), "`window` must be at least 2"),
        (ValueError, lambda w: pdt_optax.decompose([w[0]] * 3), "must differ"),
        (ValueError, lambda w: pdt_optax.decompose([*w, {"w": w[0]["w"] * np.nan}]), "must be finite"),
        (ValueError, lambda w: pdt_optax.decompose([*w, {"w": np.ones(2)}]), "shape and dtype"),
    ],
)
def test_what_cannot_be_decomposed(error: Any, call: Any, message: str) -> None:
    run = [{"w": np.arange(3.0) * 0.5**t} for t in range(3)]
    with pytest.raises(error, match=message):
        call(run)
