"""Every example learns, predicts and donates, as its docstring says."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def test_there_is_one_for_each_library():
    assert [path.stem for path in EXAMPLES] == ["equinox_digits", "linen_digits", "nnx_digits"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_learns_and_predicts(path):
    history = runpy.run_path(str(path))["main"](epochs=8)
    assert history[-1].loss < 0.3 * history[0].loss
    assert history[-1].accuracy > 0.85
    jumped = [epoch.accepted_share > 0 for epoch in history]
    # The default: five epochs of burn-in, then every epoch.
    assert jumped == [False] * 5 + [True] * 3
