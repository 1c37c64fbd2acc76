"""Writes the figures and tables that README.md and docs/*.md take from the committed records.

python docs/figures.py            # writes those that are out of date
python docs/figures.py --check    # names them and writes nothing; exit code 1 if there are any

A figure stands between two comments, which no reader of the page sees, as in
`<!--huge.peak-->13.6<!--/-->`; the comments of a table stand on lines of their
own. Each figure has an owner: `benchmarks/stated.py` computes those of
benchmarks/results, `experiments/views/stated.py` those of experiments/results. A
figure that has no owner, or that no page takes, is refused.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import benchmarks.stated
import experiments.views.stated
from experiments import command

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

BEGIN = r"<!--([a-z][\w.-]*)-->"
END = "<!--/-->"
FIGURE = re.compile(rf"{BEGIN}((?:(?!<!--).)*){END}", re.DOTALL)


def owned() -> dict[str, str]:
    """All figures by name, each from its owner."""
    return {**benchmarks.stated.figures(), **experiments.views.stated.figures()}


def names(page: str) -> list[str]:
    """The figures that a page takes.

    Raises:
      RefusedError: if a comment lacks its other one.
    """
    begun, ended = re.findall(BEGIN, page), [name for name, _ in FIGURE.findall(page)]
    if begun != ended or len(begun) != page.count(END):
        raise command.RefusedError(f"A figure must stand between `<!--NAME-->` and `{END}`. Got {begun}.")
    return begun


def filled(page: str, figures: Mapping[str, str]) -> str:
    """The page with each figure as its owner states it.

    Raises:
      RefusedError: if a comment lacks its other one, or begins a line of text, where it would end the paragraph.
    """
    names(page)

    def fill(found: re.Match[str]) -> str:
        name, value = found[1], figures[found[1]].strip()
        before = page[page.rfind("\n", 0, found.start()) + 1 : found.start()]
        if "\n" in value:
            # In a list a table is indented as its comments are.
            value = "\n\n" + "\n".join(before + line for line in value.split("\n")) + f"\n\n{before}"
        elif not before.strip(" -*>"):
            raise command.RefusedError(
                f"No figure may begin a line, where a comment ends a paragraph. Got {name}."
            )
        return f"<!--{name}-->{value}{END}"

    return FIGURE.sub(fill, page)


def outdated(page: str, figures: Mapping[str, str]) -> list[str]:
    """The figures of a page that are not as their owners state them."""
    pairs = zip(FIGURE.findall(page), FIGURE.findall(filled(page, figures)), strict=True)
    return [name for (name, text), (_, stated) in pairs if text != stated]


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    parser = command.Parser("docs.figures", __doc__)
    parser.prog = "python docs/figures.py"
    parser.add_argument("--check", action="store_true", help="name what is out of date, and write nothing")
    args = parser.parse_args(argv)
    figures, pages = owned(), {path: path.read_text() for path in PAGES}
    taken = {name for page in pages.values() for name in names(page)}
    if taken != figures.keys():
        unknown, unused = sorted(taken - figures.keys()), sorted(figures.keys() - taken)
        raise command.RefusedError(
            f"Each figure must have an owner, and a page that takes it. Got {unknown} without an owner, and no page for {unused}."
        )
    old = {path: found for path, page in pages.items() if (found := outdated(page, figures))}
    for path, found in old.items():
        print(f"{path.relative_to(ROOT)}: {', '.join(found)}")
        if not args.check:
            path.write_text(filled(pages[path], figures))
    if old and args.check:
        print("They are out of date: `python docs/figures.py` writes them.")
    return int(args.check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
