"""CSV: the header of a file, its delimiter, and its rows by the csv module's own rules.

A row's end is that of Python's csv module, read with forbearance; a row that the module refuses
when it is strict, that is ragged or that cannot be decoded is a malformed record.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import repeat

from catalogzero.cloud.reading.records import (
    BadRecords,
    ReadOptions,
    empty,
    refuse_names,
    suffix_of,
)
from catalogzero.cloud.reading.text import SAMPLE_BYTES, Text, line_ends
from catalogzero.cloud.rows.values import Row, is_valid
from catalogzero.errors import FailedError

CELL_CHARS = 1 << 24
_HEADER_BYTES = 1 << 20
_DELIMITERS = (",", ";", "\t", "|")


class CsvFile:
    """A CSV file, whose header is read.

    Args:
        text: Its text.
        options: How it is read.
        bad: Meets its malformed records.

    Attributes:
        text: What is still to be read.
        delimiter: As set, as the name says, or the one that fits the first rows.
        columns: The names of its header; none where an empty file is allowed.

    Raises:
        FailedError: No header or a malformed one, no one delimiter, or an invalid encoding.
    """

    def __init__(self, text: Text, options: ReadOptions, bad: BadRecords) -> None:
        # It is one for the whole process, and never set to anything else.
        csv.field_size_limit(CELL_CHARS)
        self.text, self._bad = text, bad
        self.delimiter = options.delimiter or ("\t" if suffix_of(text.name) == ".tsv" else "")
        header = self._header(find=not self.delimiter)
        if not (header or options.allow_empty):
            raise empty(text.name, "it has not even a header")
        self.columns = [name.strip("\ufeff").strip().strip("\ufeff") for name in header]
        refuse_names(self.columns, f"{text.name}, line {text.line - 1}")

    def dicts(self, block: bytes) -> Iterator[Row]:
        """The rows of a block by the names of the columns; see `rows`, which they come from.

        A block that is whole and without a bad record is read at once.
        """
        body, valid = self.text.decoded(block)
        reader = csv.reader(io.StringIO(body, newline=""), delimiter=self.delimiter, strict=True)
        rows: Iterable[list[str]]
        try:
            rows = list(filter(None, reader) if len(self.columns) > 1 else reader)
            is_plain = valid and {*map(len, rows)} <= {len(self.columns)}
        except csv.Error:
            is_plain = False
        if is_plain:
            self.text.line += reader.line_num
        else:
            rows = self.rows(block)
        return map(dict, map(zip, repeat(self.columns), rows))

    def rows(self, block: bytes) -> Iterator[list[str]]:
        """The rows of a block; one that is still open at its end goes back to the text.

        Raises:
            FailedError: A quote is never closed, a cell is too long, or a bad record is to fail.
        """
        body, valid = self.text.decoded(block)
        lines, width, first = io.StringIO(body, newline=""), len(self.columns), self.text.line
        start, tell, encoding = 0, lines.tell, self.text.encoding
        while True:
            # After an error a reader is of no use: another begins behind the bad record.
            reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
            try:
                for row in reader:
                    if len(row) == width and (valid or is_valid("".join(row))):
                        yield row
                    elif row:
                        raw = body[start : tell()]
                        line = first + reader.line_num - line_ends(raw)
                        why = f"{len(row)} fields, and the header has {width}"
                        why = why if len(row) != width else f"bytes that are not {encoding}"
                        self._bad.take(self.text.name, line, why, raw.rstrip("\r\n"))
                    elif width == 1:
                        yield [""]
                    start = tell()
                first += reader.line_num
                break
            except csv.Error as error:
                first += reader.line_num - line_ends(body[start : tell()])
                end = self._end_of_record(body, start, first, str(error))
                if end is None:
                    # The record goes on in the next block, which begins with it.
                    self.text.put_back(body[start:].encode("utf-8", "surrogateescape"))
                    break
                raw, start = body[start:end], end
                lines.seek(end)
                why = "text after a closing quote"
                self._bad.take(self.text.name, first, why, raw.rstrip("\r\n"))
                first += line_ends(raw)
        self.text.line = first

    def _header(self, *, find: bool) -> list[str]:
        """The cells of the first line that is not blank; none where there is no such line."""
        text, name = self.text, self.text.name
        while head := text.block(SAMPLE_BYTES if find else None, _HEADER_BYTES):
            body, _ = text.decoded(head)
            begin = len(body) - len(body.lstrip("\r\n"))
            text.line += line_ends(body[:begin])
            if begin == len(body):
                continue
            if find:
                self.delimiter = delimiter_of(body[begin:], name)
            end = self._end_of_record(body, begin, text.line, "")
            size = len(body[begin:end].encode("utf-8", "surrogateescape"))
            if size > _HEADER_BYTES:
                raise FailedError(f"{name}, line {text.line}: the header is longer than 1 MiB")
            if end is None:
                text.put_back(head[begin:])
                continue
            try:
                lines = io.StringIO(body[begin:end], newline="")
                cells = next(csv.reader(lines, delimiter=self.delimiter, strict=True))
            except csv.Error as error:
                why = "text after a closing quote in the header"
                raise FailedError(f"{name}, line {text.line}: {why}") from error
            if not is_valid("".join(cells)):
                raise FailedError(f"{name}, line {text.line}: the header is not {text.encoding}")
            text.line += line_ends(body[begin:end])
            text.put_back(head[begin + size :])
            return cells
        return []

    def _end_of_record(self, body: str, start: int, line: int, error: str) -> int | None:
        """Where a record ends; None of one that is open as far as the text was read."""
        cells, record = patterns(self.delimiter)
        found = record.match(body, start)
        too_long = "field limit" in error
        if not too_long and (found or not self.text.ended):
            return found and found.end()
        at = cells.match(body, start).end()  # type: ignore[union-attr]  # it matches nothing, too
        if body[at : at + 1] == '"':
            line += line_ends(body[start:at])
        why = (
            f"a cell that begins here is longer than {CELL_CHARS >> 20} MiB; is a quote not closed?"
            if too_long
            else "a quote is opened here and never closed, so that it takes in all lines below: "
            "close it, or double it where it belongs to the text"
        )
        raise FailedError(f"{self.text.name}, line {line}: {why}")


@lru_cache(maxsize=8)
def patterns(delimiter: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Closed cells with what ends each, as many as there are; and one whole record."""
    mark = re.escape(delimiter)
    cell = rf'(?:"[^"]*+(?:""[^"]*+)*+"|(?!"))[^{mark}\r\n]*+'
    end = r"(?:\r\n?|\n)"
    return re.compile(f"(?:{cell}(?:{mark}|{end}))*"), re.compile(f"(?:{cell}{mark})*{cell}{end}")


def delimiter_of(sample: str, name: str) -> str:
    """The one delimiter with which header and rows have as many fields.

    Where no other occurs, rows that have fewer or more are left to be malformed records.
    """
    widths: dict[str, list[int]] = {}
    for mark in filter(sample.__contains__, _DELIMITERS):
        rows = csv.reader(io.StringIO(sample, newline=""), delimiter=mark)
        found = [len(row) for row in rows if row]
        cells = patterns(mark)[0].match(sample)
        if len(found) > 1 and cells and cells.end() < len(sample):
            found.pop()  # it is not whole in the sample
        if max(found) > 1:
            widths[mark] = found
    if not widths:
        return ","
    fitting = [mark for mark, found in widths.items() if len(set(found)) == 1]
    if len(fitting) != 1 and len(widths) == 1:
        fitting = [mark for mark, found in widths.items() if found[0] > 1]
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(
        f"{mark!r} gives {found[0]} in the header and {min(found)} to {max(found)} in all"
        for mark, found in widths.items()
    )
    raise FailedError(
        f"{name}: no one delimiter fits (fields a row: {shown}); set `delimiter` in the handler's "
        "config (for a file of one column, to a character that stands nowhere in it)"
    )
