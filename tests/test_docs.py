"""What the documentation says is so: its Python runs, and the errors that it quotes are those of the library."""

import ast
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import pdt_optax
from pdt_optax import plot

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["does-it-help", "index", "recipes"])
def test_python_blocks_run(page: str) -> None:
    namespace: dict[str, object] = {}
    blocks = BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text())
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


def test_the_readmes_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands, and with the optimizer alone; the losses that it states are of a CPU, and rounding moves them a little."""
    page = (ROOT / "README.md").read_text()
    (block,) = BLOCK.findall(page)
    assert len([line for line in block.splitlines() if line]) <= 15
    stated = re.search(r"a loss of (0\.\d+) after 15 epochs, where Adam alone ends at (0\.\d+),", page)
    assert stated
    alone = re.sub(r"pdt_optax\.pdt\((.*)\)", r"\1", block)
    alone = re.sub(r".*end_epoch.*\n", "", alone).replace(", persistence {report.persistence:.2f}", "")
    for code, loss in ((block, stated[1]), (alone, stated[2])):
        exec(compile(code, "README", "exec"), {})
        last = capsys.readouterr().out.splitlines()[-1]
        found = re.search(r"loss (0\.\d+)", last)
        assert found
        assert float(found[1]) == pytest.approx(float(loss), rel=0.15)


@pytest.mark.slow
def test_the_readmes_rate_is_adams_best_of_six(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = BLOCK.findall((ROOT / "README.md").read_text())

    def ends(rate: float) -> float:
        code = block.replace("schedule(0.016,", f"schedule({rate},").replace(
            "adam(rate))", "adam(rate), dry_run=True)"
        )
        exec(compile(code, "README", "exec"), {})
        return float(capsys.readouterr().out.splitlines()[-1].split("loss ")[1].split(",")[0])

    rates = [0.016 * 2.0**power for power in range(-4, 2)]
    losses = [ends(rate) for rate in rates]
    assert len(set(losses)) == 6
    assert losses.index(min(losses)) == rates.index(0.016)


def messages() -> str:
    """All strings in the library's source, placeholders left out."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "pdt_optax").rglob("*.py"))
    found = []
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant):
            found.append(str(node.value))
    return "\n".join(found)


def test_quoted_errors_are_the_librarys() -> None:
    quoted = re.findall(r"^### \"(.*)\"$", (ROOT / "docs" / "faq.md").read_text(), re.MULTILINE)
    assert len(quoted) > 10
    known = messages()
    # Python's own, of what is not ours.
    assert [text for text in quoted if text not in known] == [
        "'GradientTransformationExtraArgs' object has no attribute 'end_epoch'"
    ]


WITHOUT_EXAMPLE = {
    "PDT",
    "Backup",
    "Clock",
    "Delivery",
    "Epoch",
    "Guard",
    "History",
    "Modes",
    "Motion",
    "Pace",
    "Dynamics",
    "Forecast",
    "Memory",
    "PDTReport",
    "PDTState",
    "Prediction",
    "Rule",
    "presets",
}


def test_every_public_function_and_every_picture_has_an_example() -> None:
    public = {name: getattr(pdt_optax, name) for name in {*pdt_optax.__all__} - WITHOUT_EXAMPLE}
    pictures = {name: getattr(plot, name) for name in plot.__all__ if name.islower()}
    assert len(public) > 20
    assert len(pictures) > 5
    shown = {name for name, it in (public | pictures).items() if "Example:\n" in it.__doc__}
    assert shown == {*public, *pictures}


def test_every_public_name_is_in_the_reference() -> None:
    named = set(re.findall(r"^::: pdt_optax\.(\w+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    assert named == {*pdt_optax.__all__, "plot", "inspect"}


def test_a_snapshots_path_names_what_exists() -> None:
    """The five lines of CONTRIBUTING: every name in them is a function, method or class of the library."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    path = text[text.index("### A snapshot's path") : text.index("## House rules")]
    assert re.findall(r"^(\d)\. ", path, re.MULTILINE) == list("12345")
    known = {
        node.name
        for file in (ROOT / "pdt_optax").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    named = [name for quoted in re.findall(r"`([\w.]+)`", path) for name in quoted.split(".")]
    assert len(named) > 15
    assert [n for n in named if n not in {*known, "params", "update", "_boundary"}] == []


def test_the_tree_of_the_experiments_names_what_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tree = text[text.index("\nexperiments/\n") + 1 :].split("```")[0]
    folders, named = {-1: ROOT}, set()
    for indent, name, said in re.findall(r"^( *)(\S+) *(.*)$", tree, re.MULTILINE):
        depth = len(indent) // 4
        folders[depth] = folders[depth - 1] / name
        named.add(folders[depth])
        assert said or depth == 0, name
    assert [path for path in named if not path.exists()] == []
    modules = {path for path in (ROOT / "experiments").rglob("*.py") if path.name != "__init__.py"}
    assert modules - named == set()


def test_links_lead_from_pypi_into_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where the address is not known, the README stays as it is. `hatch_build.py` needs hatchling, of the group `test`."""
    links = runpy.run_path(str(ROOT / "hatch_build.py"))["Links"]
    readme = (ROOT / "README.md").read_text()
    for repository in ("", "https://example.org/owner/name"):
        monkeypatch.setenv("REPOSITORY", repository)
        metadata: dict[str, Any] = {}
        links(str(ROOT), {}).update(metadata)
        targets = re.findall(r"\]\(([^()#]+)\)", metadata["readme"]["text"])
        assert len(targets) > 15
        assert all(target.startswith("https://") for target in targets) == bool(repository)
        assert ("Issues" in metadata["urls"]) == bool(repository)
        if not repository:
            assert metadata["readme"]["text"] == readme
            assert [t for t in targets if "://" not in t and not (ROOT / t).exists()] == []


def test_the_readme_is_short_and_says_when_nothing_is_predicted() -> None:
    prose = re.sub(r"^```.*?^```", "", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(prose.split()) <= 600
    assert "Nothing is predicted in the first five epochs" in " ".join(prose.split())


def test_every_page_of_the_site_is_once_in_its_navigation() -> None:
    pages = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    notebooks = [f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert sorted(pages) == sorted([path.name for path in (ROOT / "docs").glob("*.md")] + notebooks)


def test_the_citation_is_that_of_the_readme() -> None:
    cited, readme = (ROOT / "CITATION.cff").read_text(), (ROOT / "README.md").read_text()
    url = re.search(r"url += \{(.*)\}", readme)
    assert url
    assert f"url: {url[1]}" in cited
    families = re.findall(r"family-names: (\w+)", cited)
    assert len(families) == 6
    authors = re.search(r"author += \{(.*)\}", readme)
    assert authors
    assert [a.split(",")[0].replace("{\\'c}", "ć") for a in authors[1].split(" and ")] == families
