"""Every example learns, predicts and donates, as its docstring says."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def test_there_is_one_for_each_library():
    assert [path.stem for path in EXAMPLES] == [
        "equinox_digits",
        "linen_digits",
        "nnx_digits",
        "pmap_digits",
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_learns_and_predicts(path):
    history = runpy.run_path(str(path))["main"](epochs=8)
    assert history[-1].loss < 0.3 * history[0].loss
    assert history[-1].accuracy > 0.85
    jumped = [epoch.accepted_share > 0 for epoch in history]
    # The default: five epochs of burn-in, then every epoch.
    assert jumped == [False] * 5 + [True] * 3


ON_TWO_DEVICES = """
import json, runpy, jax
jax.config.update("jax_num_cpu_devices", 2)
assert jax.local_device_count() == 2
print(json.dumps(runpy.run_path("examples/pmap_digits.py")["main"](epochs=8)))
"""


def test_pmap_on_two_devices_is_as_on_one():
    root = EXAMPLES[0].parents[1]
    command = [sys.executable, "-c", ON_TWO_DEVICES]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    two = json.loads(done.stdout.splitlines()[-1])
    one = runpy.run_path(str(root / "examples" / "pmap_digits.py"))["main"](epochs=8)
    assert [epoch[0] for epoch in two] == pytest.approx([epoch.loss for epoch in one], rel=1e-3)
    assert [epoch[2] for epoch in two] == pytest.approx([epoch.accepted_share for epoch in one], abs=1e-3)
