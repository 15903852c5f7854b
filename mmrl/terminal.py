"""Text for people and for programs: wrapped to the width of a terminal, one row a line everywhere else."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_line(console: Console, text: str) -> None:
    """One line as it is: never wrapped by us, no markup, no colours."""
    console.print(Text(text), soft_wrap=True)


def show_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Columns side by side. On a terminal cells are wrapped to its width; in a pipe a row is a line, whatever its length."""
    cells = [[str(value).replace("\n", "\\n") for value in row] for row in rows]
    if console.is_terminal:
        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
        for heading in headings:
            table.add_column(heading, overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        return
    if title:
        show_line(console, title)
    lines = [list(headings), *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        show_line(console, "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
