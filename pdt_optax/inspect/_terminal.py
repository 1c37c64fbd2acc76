"""A report on the terminal."""

import io
from typing import TYPE_CHECKING

try:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ImportError as e:
    raise ImportError(
        "The tables of a report need rich: pip install 'pdt-optax[inspect]', in a checkout '.[inspect]'."
    ) from e

from pdt_optax.inspect._tables import tables

if TYPE_CHECKING:
    from pdt_optax.inspect._report import Report


def show(report: "Report", console: Console | None = None) -> None:
    """Prints it."""
    console = Console() if console is None else console
    console.print(Text(f"{report.source}: {report.span}"))
    for note in report.notes:
        console.print(Text(note, style="yellow"))
    for table in tables(report):
        console.print(Text(f"\n{table.title}", style="bold"))
        console.print(Text(table.reading, style="dim"))
        drawn = Table(box=box.SIMPLE_HEAD)
        head, *rows = table.rows
        for i, name in enumerate(head):
            side = "left" if i == 0 or name == "mostly in" else "right"
            drawn.add_column(name, justify=side, min_width=max(map(len, name.split())))
        for row in rows:
            drawn.add_row(*row)
        console.print(drawn)
    console.print(Text(f"{report.verdict}", style="bold"))
    console.print(Text(report.advice))


def text(report: "Report") -> str:
    """The same as plain text of 100 columns."""
    written = io.StringIO()
    show(
        report, Console(file=written, width=100, force_terminal=False, force_jupyter=False, color_system=None)
    )
    return written.getvalue().rstrip()
