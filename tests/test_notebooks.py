"""Every notebook runs from top to bottom."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert [path.stem[3:] for path in NOTEBOOKS] == ["quickstart", "dynamics", "rules", "results", "scale"]


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
