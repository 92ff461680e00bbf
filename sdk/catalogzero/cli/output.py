"""What commands share: some parameters, and how they print.

They print tables on a terminal, plain text in a pipe, JSON for scripts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from catalogzero.config.printing import printable
from catalogzero.wire.messages import JsonObject, encode_json

LEAST_WIDTH = 10
"""Of a column that is folded; ids are never."""
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
PackageFolder = Annotated[
    Path, typer.Argument(help="The package's folder.", exists=True, file_okay=False)
]


def print_json(value: Any) -> None:
    """One JSON document on standard output; of a dataclass, too."""
    typer.echo(encode_json(value).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table with lines and colour on a terminal, columns of plain text in a pipe."""
    texts = [
        ["" if cell is None else printable(str(cell), one_line=True) for cell in row]
        for row in rows
    ]
    if not sys.stdout.isatty():
        widths = [max(map(len, cells)) for cells in zip(columns, *texts, strict=True)]
        for row in (columns, *texts):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            typer.echo(line.rstrip())
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False)
    cells = list(zip(columns, *texts, strict=True))
    longest = [max(map(len, column)) for column in cells]
    ids = [column == "id" or column.endswith("_id") for column in columns]
    least = [
        width if is_id else min(width, LEAST_WIDTH)
        for width, is_id in zip(longest, ids, strict=True)
    ]
    if sum(least) + 3 * len(columns) + 1 > console.width:
        # Too narrow for columns: an id over two lines is of no use, nor is a path that is cut.
        width = max(map(len, columns))
        for row in texts:
            for column, cell in zip(columns, row, strict=True):
                typer.echo(f"{column:<{width}}  {cell}".rstrip())
            typer.echo()
        return
    table = Table(header_style="bold")
    for column, is_id in zip(columns, ids, strict=True):
        table.add_column(column, overflow="fold", no_wrap=is_id)
    for row in texts:
        table.add_row(*row)
    console.print(table)


def print_fields(fields: JsonObject) -> None:
    """One `name  value` line for each field."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        is_text = isinstance(value, str)
        shown = printable(value, one_line=True) if is_text else encode_json(value).decode()
        typer.echo(f"{name:<{width}}  {shown}")


def print_answer(answer: JsonObject, text: str | None = None, *, json: bool) -> None:
    """One answer as JSON, else as the text made of it; as lines where there is no such text."""
    if json:
        print_json(answer)
    elif text is None:
        print_fields(answer)
    else:
        typer.echo(text)


def print_rows(
    answer: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, json: bool
) -> None:
    """One answer as JSON, or the rows made of it as a table."""
    if json:
        print_json(answer)
    else:
        print_table(columns, rows)
