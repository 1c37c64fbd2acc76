"""What a view comes to, as one Markdown file; and all of them on one static page. No server, nothing from elsewhere."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.command import RefusedError
from experiments.views import report
from experiments.views.view import Finds, Shown, View

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
section { border-top: 1px solid #8886; margin-top: 2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
tr.paper td { background: #8882; font-style: italic; }
img { max-width: 100%; background: white; } figure { margin: 1rem 0; } figcaption { font-size: .85rem; }
.summary td, .summary th { white-space: normal; text-align: left; vertical-align: top; }
code { background: #8882; padding: .1rem .3rem; } .claim { font-style: italic; }
"""


def write_view(view: View, finds: Finds, folder: Path, scale: str, status: str) -> Shown:
    """Draws a view into its folder: its pictures, and all else in table.md."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    shown = view.render(view.name, finds, folder)
    parts = [f"# {view.title}", f"> {view.claim}", f"`{view.command(scale)}`: {status}{_made(finds)}"]
    parts += [view.note] * bool(view.note)
    parts += ["\n".join(f"- {verdict}" for verdict in shown.verdicts)] * bool(shown.verdicts)
    parts += [f"![{caption}]({file})" for file, caption in shown.pictures.items()]
    for title, lines in shown.tables.items():
        parts += [f"## {title}"] * bool(title) + [report.markdown(lines).strip()]
    (folder / "table.md").write_text("\n\n".join(parts) + "\n")
    return shown


def _made(finds: Finds) -> str:
    """Where and when the runs were trained."""
    made = [run.about["made"] for found in finds.values() for run in found.runs if "made" in run.about]
    if not made:
        return ""
    days = sorted({of["date"] for of in made})
    machines = sorted({f"{of['machine']}, Python {of['python']}, jax {of['jax']}" for of in made})
    return f", trained {' to '.join(dict.fromkeys((days[0], days[-1])))} on {'; '.join(machines)}"


def parts(out: Path, folders: Mapping[str, str]) -> dict[str, list[str]]:
    """The paragraphs of what views wrote into their folders, by name, in their order.

    Raises:
      RefusedError: if a file is not what a view writes.
    """
    found = {}
    for name, folder in folders.items():
        path = out / folder / "table.md"
        if path.exists():
            try:
                text = path.read_text()
            except ValueError as e:
                text = str(e)
            found[name] = text.strip().split("\n\n")
            if not re.match(r"# .+\n\n> .+\n\n`.+`: ", text):
                raise RefusedError(f"{path} is not what a view writes: remove it, and draw {name} again.")
    return found


def verdicts(paragraphs: Sequence[str]) -> list[str]:
    """What a view found, of its paragraphs."""
    listed = next((p for p in paragraphs if p.startswith("- ")), "")
    return [line.removeprefix("- ") for line in listed.splitlines()]


def claims_table(out: Path, folders: Mapping[str, str], link: str) -> str:
    """What the paper says and what was found, as Markdown; `link` leads to `out`."""
    lines = [
        (
            f"[{name}]({link}/{folders[name]}/table.md)",
            paragraphs[1].removeprefix("> "),
            "<br>".join(verdicts(paragraphs)),
        )
        for name, paragraphs in parts(out, folders).items()
    ]
    return report.markdown([("", "the paper says", "found"), *lines])


def write_index(out: Path, folders: Mapping[str, str], into: str, title: str, about: str) -> None:
    """Puts together what views wrote into their folders, as INTO/index.html."""
    written = parts(out, folders)
    lines = "".join(_line(name, paragraphs) for name, paragraphs in written.items())
    body = "".join(
        f'<section id="{name}">{"".join(_html(name, paragraphs, folders[name].removeprefix(into).strip("/")))}</section>\n'
        for name, paragraphs in written.items()
    )
    title = html.escape(title)
    (out / into / "index.html").write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body><h1>{title}</h1>'
        f"<p>{_marked(about)}</p>\n<table class=summary><tr><th><th>the claim<th>found{lines}</table>\n{body}</body></html>\n"
    )


def _line(name: str, paragraphs: Sequence[str]) -> str:
    """A line of the summary."""
    found = "<br>".join(map(html.escape, verdicts(paragraphs)))
    title, claim = (html.escape(paragraphs[i][2:]) for i in (0, 1))
    return f'<tr><td><a href="#{name}">{name}: {title}</a><td>{claim}<td>{found}'


def _html(name: str, paragraphs: Sequence[str], folder: str) -> Iterator[str]:
    """As much of Markdown as `write_view` writes."""
    for text in paragraphs:
        said = html.escape(text, quote=True)
        if text.startswith("## "):
            yield f"<h3>{said[3:]}</h3>"
        elif text.startswith("# "):
            yield f"<h2>{name}: {said[2:]}</h2>"
        elif text.startswith("> "):
            yield f'<p class="claim">{html.escape(text[2:])}</p>'
        elif text.startswith("- "):
            yield f"<ul>{''.join(f'<li>{html.escape(v)}</li>' for v in verdicts([text]))}</ul>"
        elif text.startswith("| "):
            yield _table(text.splitlines())
        elif picture := re.fullmatch(r"!\[(.*)\]\((.*)\)", said, re.DOTALL):
            caption, file = picture.groups()
            yield (
                f'<figure><img src="{f"{folder}/" if folder else ""}{file}" alt="{caption}" loading="lazy">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
        else:
            yield f"<p>{_marked(text)}</p>"


def _table(lines: Sequence[str]) -> str:
    header, _, *rest = ([cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in lines)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    rows = "".join(
        f"<tr{' class=paper' if 'paper' in line[1:2] else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in line)
        + "</tr>"
        for line in rest
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _marked(text: str) -> str:
    """Emphasis and code alone."""
    text = html.escape(text)
    for mark, tag in (("`", "code"), ("*", "em")):
        pieces = text.split(mark)
        text = "".join(f"<{tag}>{piece}</{tag}>" if i % 2 else piece for i, piece in enumerate(pieces))
    return text
