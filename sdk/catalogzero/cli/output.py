"""What commands share: two parameters, and how they print.

They print tables on a terminal, plain text in a pipe, JSON for scripts.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from catalogzero.config.logs import printable
from catalogzero.wire.messages import encode_json

COLOURS = re.compile(r"(\x1b\[[0-9;]*m)")
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
PackageFolder = Annotated[
    Path, typer.Argument(help="The package's folder.", exists=True, file_okay=False)
]


class Console(io.TextIOWrapper):
    """Standard output or error of a command: whatever is written is escaped (see `printable`).

    On a terminal colours pass: they are what we write ourselves.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=True,
            write_through=True,
        )

    def write(self, text: str) -> int:
        """Write a text, escaped."""
        parts = COLOURS.split(text) if self.isatty() else [text]
        return super().write("".join(p if COLOURS.fullmatch(p) else printable(p) for p in parts))

    def close(self) -> None:
        """Leave the stream below open: it is the process's."""
        self.flush()


def escape_output() -> None:
    """Let whatever this process prints from now on be escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = Console(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = Console(sys.stderr)


def _cell(value: Any) -> str:
    """A value as one line."""
    return printable(str(value), one_line=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(encode_json(value).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table with lines and colour on a terminal, columns of plain text in a pipe."""
    texts = [["" if cell is None else _cell(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        widths = [max(map(len, cells)) for cells in zip(columns, *texts, strict=True)]
        for row in (columns, *texts):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            typer.echo(line.rstrip())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")  # a path or an id that is cut is of no use
    for row in texts:
        table.add_row(*row)
    Console(markup=False, emoji=False, highlight=False).print(table)


def print_fields(fields: dict[str, Any]) -> None:
    """One `name  value` line for each field."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        shown = _cell(value) if isinstance(value, str) else encode_json(value).decode()
        typer.echo(f"{name:<{width}}  {shown}")


def print_answer(answer: dict[str, Any], *, json: bool) -> None:
    """One answer, as JSON or as lines."""
    (print_json if json else print_fields)(answer)


def print_rows(
    answer: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, json: bool
) -> None:
    """One answer as JSON, or the rows made of it as a table."""
    if json:
        print_json(answer)
    else:
        print_table(columns, rows)
