"""One static page of all views: what each wrote into its folder, put together. No server, nothing from elsewhere."""

import html
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments import report
from experiments.command import RefusedError
from experiments.paper.claims import RULE_OF_JUDGEMENT, Finds
from experiments.paper.figures import Shown
from experiments.paper.views import View

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


def write_view(view: View, finds: Finds, folder: Path, command: str, status: str, reduced: str) -> Shown:
    """Draws a view into its folder, with its tables as table.md and what the page needs as view.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    shown = view.render(view.name, finds, folder)
    parts = [f"# {view.title}\n", f"> {view.claim}\n", f"`{command}`\n"]
    parts += [f"{view.note}\n"] if view.note else []
    parts += [f"- {verdict}" for verdict in shown.verdicts] + [""] * bool(shown.verdicts)
    for title, lines in shown.tables.items():
        parts += [f"## {title}\n"] * bool(title) + [report.markdown(lines)]
    (folder / "table.md").write_text("\n".join(parts))
    about = {
        "title": view.title,
        "claim": view.claim,
        "note": view.note,
        "command": command,
        "recorded": status,
        "reduced": reduced,
        "commit": commit(),
        "machine": machine(),
        "verdicts": list(shown.verdicts),
        "tables": {title: [list(line) for line in lines] for title, lines in shown.tables.items()},
        "pictures": dict(shown.pictures),
    }
    (folder / "view.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return shown


def commit() -> str:
    """The commit of the checkout, with a mark if it was changed; "unknown" outside of one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", ":!../results")
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Processor or accelerators, and versions."""
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    if jax.default_backend() == "cpu":
        count, models = os.cpu_count(), Path("/proc/cpuinfo")
        found = re.search(r"model name\s*: (.*)", models.read_text()) if models.exists() else None
        kind = found[1] if found else platform.processor() or "CPU"
    return f"{count} x {kind}, Python {platform.python_version()}, jax {jax.__version__}"


def claims_table(folder: Path, names: Sequence[str]) -> str:
    """What the paper says and what was found, as Markdown."""
    written = {n: json.loads(p.read_text()) for n in names if (p := folder / n / "view.json").exists()}
    lines = [(n, about["claim"], "<br>".join(about["verdicts"])) for n, about in written.items()]
    return report.markdown([("", "the paper says", "found"), *lines])


def write_index(folder: Path, names: Sequence[str], scale: str) -> None:
    """Puts together what the views wrote, in the order of `names`."""
    lines, body = "", ""
    for name in names:
        path = folder / name / "view.json"
        if path.exists():
            try:
                about = json.loads(path.read_text())
                lines += _line(name, about)
                body += _section(name, about)
            except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as e:
                raise RefusedError(
                    f"{path} is not what a view writes ({e!r}): remove it, and draw {name} again."
                ) from None
    title = f"Predictive Differential Training: the paper's tables and figures, scale {scale}"
    (folder / "index.html").write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body><h1>{title}</h1>'
        f"<p>The paper's numbers stand beside ours. Its baseline's time is its whole run; ours is its own first "
        f"crossing. {_markdown(RULE_OF_JUDGEMENT)}</p>\n<table class=summary><tr><th><th>the paper says<th>found{lines}</table>\n{body}</body></html>\n"
    )


def _line(name: str, about: dict) -> str:
    """A line of the summary."""
    found = "<br>".join(map(html.escape, about["verdicts"]))
    title, claim = html.escape(about["title"]), html.escape(about["claim"])
    return f'<tr><td><a href="#{name}">{name}: {title}</a><td>{claim}<td>{found}'


def _section(name: str, about: dict) -> str:
    parts = [f'<section id="{name}"><h2>{name}: {html.escape(about["title"])}</h2>']
    parts.append(f'<p class="claim">{html.escape(about["claim"])}</p>')
    if about["verdicts"]:
        parts.append("<ul>" + "".join(f"<li>{html.escape(v)}</li>" for v in about["verdicts"]) + "</ul>")
    for file, caption in about["pictures"].items():
        said = html.escape(caption, quote=True)
        parts.append(
            f'<figure><img src="{name}/{html.escape(file, quote=True)}" alt="{said}" loading="lazy"><figcaption>{said}</figcaption></figure>'
        )
    for title, lines in about["tables"].items():
        parts.append((f"<h3>{html.escape(title)}</h3>" if title else "") + _table(lines))
    notes = " ".join(filter(None, (about["note"], f"Reduced: {about['reduced']}" * bool(about["reduced"]))))
    parts.append(f"<p>{html.escape(notes)}</p>" if notes else "")
    told = {n: html.escape(about[n]) for n in ("command", "recorded", "commit", "machine")}
    parts.append(
        "<p><code>{command}</code>: {recorded}; drawn at commit {commit} on {machine}</p>".format(**told)
    )
    return "".join(parts) + "</section>\n"


def _table(lines: Sequence[Sequence[str]]) -> str:
    header, *rest = lines
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    rows = "".join(
        f"<tr{' class=paper' if 'paper' in line[1:2] else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in line)
        + "</tr>"
        for line in rest
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _markdown(text: str) -> str:
    """Emphasis alone."""
    pieces = html.escape(text).split("*")
    return "".join(f"<em>{piece}</em>" if i % 2 else piece for i, piece in enumerate(pieces))
