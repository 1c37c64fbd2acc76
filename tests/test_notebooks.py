"""Every notebook runs from top to bottom."""

import base64
import re
import runpy
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert [path.stem[3:] for path in NOTEBOOKS] == [
        "quickstart",
        "dynamics",
        "rules",
        "results",
        "scale",
        "your_run",
    ]


def timeout(cell):
    """Seconds. nbclient may overlook a widget's reply until the time is up, and then goes on."""
    return 30 if "interact(" in cell.source else 300


@pytest.mark.parametrize(
    "path",
    [NOTEBOOKS[0], *(pytest.param(path, marks=pytest.mark.slow) for path in NOTEBOOKS[1:])],
    ids=lambda path: path.name,
)
@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout_func=timeout, kernel_name="python3").execute()
    # Committed with the outputs that a run makes, pictures included.
    committed = nbformat.read(path, as_version=4)
    for now, before in zip(notebook.cells, committed.cells, strict=True):
        if now.cell_type == "code":
            kinds = [
                [o.output_type for o in cell.outputs if o.output_type != "stream"] for cell in (now, before)
            ]
            assert kinds[0] == kinds[1], now.source


def test_the_site_shows_the_saved_state_of_the_sliders():
    """Controls at rest, with their values, and the picture: of the committed notebook, without a kernel."""
    pytest.importorskip("griffe", reason="the hooks of the site need what builds it")
    hooks = runpy.run_path(str(NOTEBOOKS[0].parents[1] / "docs" / "hooks.py"))
    shown = hooks["with_saved_widgets"](nbformat.read(NOTEBOOKS[1], as_version=4))
    outputs = [output for cell in shown.cells for output in cell.get("outputs", [])]
    assert not any(hooks["WIDGET_VIEW"] in output.get("data", {}) for output in outputs)
    (saved,) = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert re.findall(r"<p>(\w+)", saved) == ["epoch", "window", "horizon", "model", "rank", "rule", "leaf"]
    assert 'disabled min="10" max="39" value="20"> 20' in saved
    (picture,) = re.findall(r"data:image/png;base64,([\w+/=\n]+)", saved)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
