"""Standard output and error of a command: nothing that is written there obeys a stranger."""

from __future__ import annotations

import io
import re
import sys

from catalogzero.config.printing import printable

COLOURS = re.compile(r"(\x1b\[[0-9;]*m)")


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
