"""Readers: how the bytes of a CSV, JSON Lines or Parquet file become batches.

A value of a CSV file is text, as it stands there. Never opens a file.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from catalogzero.cloud.records import (
    SAMPLE_BYTES,
    BadRecords,
    ReadOptions,
    column_names,
    detect,
    kind_of,
    require_extra,
)
from catalogzero.cloud.settings import Batch
from catalogzero.errors import FailedError

_MAX_FIELD_CHARS = 1 << 24
_MAX_LINE_BYTES = 1 << 26


def read_records(
    content: io.BufferedIOBase, name: str, options: ReadOptions, bad: BadRecords
) -> Iterator[Batch]:
    """The batches of a file's content.

    Raises:
        FailedError: Malformed as a whole, or in one record where the rule is to fail.
    """
    kind = kind_of(name)
    if options.arrow or kind == "parquet":
        require_extra("parquet")
    if kind == "csv" and options.arrow:
        from catalogzero.cloud.arrow import csv_tables

        return csv_tables(content, name, options, bad)
    if kind == "parquet":
        from catalogzero.cloud.arrow import parquet_batches

        return parquet_batches(content, name, options)
    rows = _csv_rows if kind == "csv" else _json_rows
    batches = _batched(rows(content, name, options, bad), options.batch_rows)
    if not options.arrow:
        return batches
    from catalogzero.cloud.arrow import tables_of

    return tables_of(batches)


def _batched(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of at most `size` rows."""
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _json_rows(
    content: io.BufferedIOBase, name: str, options: ReadOptions, bad: BadRecords
) -> Iterator[dict[str, Any]]:
    """One object a line; empty lines are passed over."""
    number = 0
    while line := content.readline(_MAX_LINE_BYTES):
        number += 1
        text = line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else line.strip()
        if not text:
            continue
        try:
            row = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            bad.take(name, number, f"no JSON: {error}", text.decode("utf-8", "replace"))
            continue
        if isinstance(row, dict):
            yield row
        else:
            bad.take(name, number, "no JSON object", text.decode("utf-8", "replace"))


def _csv_rows(
    content: io.BufferedIOBase, name: str, options: ReadOptions, bad: BadRecords
) -> Iterator[dict[str, Any]]:
    """One dict a row, all values text, named by the first line."""
    dialect = detect(content, name, options)
    checked = _Checked(content, dialect.encoding)
    text = io.TextIOWrapper(
        io.BufferedReader(checked, SAMPLE_BYTES),
        encoding=dialect.encoding,
        errors="surrogateescape",
        newline="",
    )
    csv.field_size_limit(_MAX_FIELD_CHARS)
    reader = csv.reader(text, delimiter=dialect.delimiter, strict=True)
    try:
        columns = column_names(next(reader, []), name)
    except csv.Error as error:
        raise FailedError(f"{name}, line 1: {error}") from error
    width = len(columns)
    while True:
        try:
            for row in reader:
                if len(row) == width and (checked.valid or _is_text(row)):
                    yield dict(zip(columns, row, strict=True))
                elif row:
                    bad.take(name, reader.line_num, _fault(row, width, dialect.encoding), repr(row))
        except csv.Error as error:
            bad.take(name, reader.line_num, str(error), "")
            continue
        return


class _Checked(io.RawIOBase):
    """Passes bytes on, and notices the first that are not valid in their encoding."""

    def __init__(self, content: io.BufferedIOBase, encoding: str) -> None:
        self._content, self.valid = content, True
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read, and look."""
        count = self._content.readinto1(buffer)
        if self.valid:
            try:
                self._decoder.decode(bytes(memoryview(buffer)[:count]), final=not count)
            except UnicodeDecodeError:
                self.valid = False
        return count


def _is_text(row: list[str]) -> bool:
    """Whether each cell is text in the file's encoding, without escaped bytes."""
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return False
    return True


def _fault(row: list[str], width: int, encoding: str) -> str:
    """Why a row is malformed."""
    if len(row) != width:
        return f"{len(row)} fields, and the header has {width}"
    return f"bytes that are not {encoding}"
