"""What the site needs beyond its pages: notebooks, the repository's own files, equations, examples."""

import html
import re
from html import escape, unescape
from pathlib import Path
from typing import Any

import griffe
import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
# What pages link to outside docs/; in the site it lies under repository/.
LINKED = (
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "SECURITY.md",
    "examples/*.py",
    "experiments/results",
    "benchmarks/results",
)


# Defaults that the library has as a name, as a reader wants to see them.
DEFAULTS = {
    "_USUAL": "of the preset",
    "_EXACT": 'dmd(rank=None, modes="exact")',
    "recommended['dynamics']": "slow_drift()",
}


def on_config(config: Any) -> Any:
    """Puts the version behind the site's name."""
    version = re.search(r'^__version__ = "(.*)"$', (ROOT / "pdt_optax/__init__.py").read_text(), re.MULTILINE)
    assert version
    config.site_name += f" {version[1]}"
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the notebooks, rendered with their committed outputs, and the files that pages link to."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        resources = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
        body, resources = MarkdownExporter().from_notebook_node(
            with_saved_widgets(nbformat.read(path, 4)), resources
        )
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=body))
        for name, picture in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    for pattern in LINKED:
        for path in ROOT.glob(pattern if "." in pattern or pattern.isupper() else f"{pattern}/**/*"):
            if path.is_file() and path.suffix in (".cff", ".md", ".html", ".png", ".json", ".py", ""):
                uri = f"repository/{path.relative_to(ROOT)}"
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


def with_saved_widgets(notebook: Any) -> Any:
    """The notebook with each widget as it was saved: its controls, at rest, and the picture below them."""
    models = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for output in (
        o for cell in notebook.cells for o in cell.get("outputs", []) if WIDGET_VIEW in o.get("data", {})
    ):
        children = models[output.data[WIDGET_VIEW]["model_id"]]["state"]["children"]
        parts = [_saved(models[child.removeprefix("IPY_MODEL_")]["state"]) for child in children]
        output.data = nbformat.from_dict({"text/html": f"<div>{''.join(parts)}</div>"})
    return notebook


def _saved(state: Any) -> str:
    """A control or an output as HTML that no script moves."""
    if "outputs" in state:
        pictures = [o["data"]["image/png"] for o in state["outputs"] if "image/png" in o.get("data", {})]
        return "".join(
            f'<p><img alt="the picture" src="data:image/png;base64,{p.strip()}"></p>' for p in pictures
        )
    name = html.escape(state["description"])
    if "_options_labels" in state:
        value = html.escape(state["_options_labels"][state["index"]])
        return f"<p>{name}: <select disabled><option>{value}</option></select></p>"
    of = " ".join(f'{key}="{state[key]}"' for key in ("min", "max", "value"))
    return f'<p>{name}: <input type="range" disabled {of}> {state["value"]}</p>'


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Follows links that leave docs/ into the copy of the repository, and from there back."""
    if page.file.src_uri.startswith("notebooks/"):
        return re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", markdown.replace("](../docs/", "](../"))
    if not page.file.src_uri.startswith("repository/"):
        markdown = re.sub(r"\]\(\.\./notebooks/(\w+)\.ipynb\)", r"](notebooks/\1.md)", markdown)

        def link(found: re.Match[str]) -> str:
            text, target = found.groups()
            # A folder has no page to lead to.
            return text[1:-1] if (ROOT / target).is_dir() else f"{text}(repository/{target})"

        return re.sub(r"(\[[^\[\]]*\])\(\.\./([^)]*)\)", link, markdown)
    return re.sub(r"\]\((\.\./)*docs/", lambda m: f"]({'../' * page.file.src_uri.count('/')}", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Equations as MathML, which browsers draw without a script; defaults that can be read."""
    html = re.sub(r"(default:\s*)<code>(.*?)</code>", _default, html)
    html = re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: _mathml(m[1], "inline"), html, flags=re.S
    )
    return re.sub(
        r'<div class="arithmatex">\\\[(.*?)\\\]</div>', lambda m: _mathml(m[1], "block"), html, flags=re.S
    )


def _default(found: re.Match[str]) -> str:
    name = unescape(re.sub(r"<[^>]+>", "", found[2]))
    return f"{found[1]}<code>{escape(DEFAULTS[name])}</code>" if name in DEFAULTS else found[0]


def _mathml(latex: str, display: Any) -> str:
    latex = latex.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return convert(latex, display=display)


class Examples(griffe.Extension):
    """Reads "Example:" as the section that griffe calls "Examples:"."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object with a docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
