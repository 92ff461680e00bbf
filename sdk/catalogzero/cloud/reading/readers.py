"""Readers: how the content of a CSV, JSON Lines or Parquet file becomes batches.

The rules are those of docs/reference/sources.md, the same for both kinds of batches. A value of a
CSV file is text, as it stands there. Never opens a file.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import chain, islice
from typing import Any

import orjson

from catalogzero.cloud.extras import is_installed, require_extra
from catalogzero.cloud.reading.csv_rows import CsvFile
from catalogzero.cloud.reading.records import BadRecords, Found, ReadOptions, empty
from catalogzero.cloud.reading.text import SAMPLE_BYTES, Text
from catalogzero.cloud.rows.values import Row
from catalogzero.errors import FailedError

_DIGITS = bytes.maketrans(b"123456789.E", b"000000000" + b"0e")
_LONG = (b"0" * 16, b"e000", b"e+000", b"e-000")
_LONG_NUMBER = re.compile(rb"[0-9.]{16}|[eE][-+]?[0-9]{3}")
_INT_DIGITS = 4_000
_WORTH_LOADING_BYTES = 16 << 20


def read_records(
    content: io.BufferedIOBase, found: Found, options: ReadOptions, bad: BadRecords
) -> Iterator[Any]:
    """The batches of a file's content; `found` has its name and kind, and gets the rest.

    Raises:
        FailedError: Malformed as a whole, or in one record where the rule is to fail.
    """
    if options.arrow or found.kind == "parquet":
        require_extra("parquet")
    if found.kind == "parquet":
        from catalogzero.cloud.reading.arrow import parquet_batches

        return parquet_batches(content, found, options)
    opened = open_text(content, found, options, bad)
    if isinstance(opened, CsvFile) and options.arrow:
        from catalogzero.cloud.reading.arrow import csv_tables

        return csv_tables(opened, options)
    parts = csv_rows(opened, options) if isinstance(opened, CsvFile) else json_rows(opened, bad)
    rows = chain.from_iterable(parts)
    batches = iter(lambda: list(islice(rows, options.batch_rows)), [])
    if options.arrow:
        from catalogzero.cloud.rows.tables import table_of_rows

        return map(table_of_rows, batches)
    return batches


def look(content: io.BufferedIOBase, found: Found, options: ReadOptions) -> None:
    """Look at the first 64 KiB of a text, as a reader does first; `found` gets what it is.

    Raises:
        FailedError: What a reader would refuse there, and the setting to write.
    """
    if found.kind != "parquet":
        open_text(content, found, replace(options, block_bytes=SAMPLE_BYTES), BadRecords("skip"))


def open_text(
    content: io.BufferedIOBase, found: Found, options: ReadOptions, bad: BadRecords
) -> CsvFile | Text:
    """A text, looked at: a CSV file behind its header, or JSON Lines from their first line on."""
    if found.kind == "csv":
        text = Text(content, found.source, options, b"\r\n")
        file = CsvFile(text, options, bad)
        found.encoding, found.delimiter = text.encoding, file.delimiter
        found.columns = len(file.columns)
        return file
    text = Text(content, found.source, options)
    found.encoding = text.encoding
    head = text.block(SAMPLE_BYTES)
    lines = [line for line in text.decoded(head)[0].split("\n") if line.strip()]
    if not (lines or options.allow_empty) and text.ended:
        raise empty(found.source, "it has no line")
    first = lines[0].lstrip()[0] if lines else ""
    if first == "[" or (first == "{" and lines[1:] and not any(map(is_object, lines[:2]))):
        raise FailedError(
            f"{found.source}, line 1: an array, or an object over several lines; JSON Lines are "
            "read, one object a line: write it so, as `jq -c '.[]'` does with an array"
        )
    text.put_back(head)
    return text


def csv_rows(file: CsvFile, options: ReadOptions) -> Iterator[Iterable[Row]]:
    """The rows of a CSV file, some at a time: by pyarrow, unless that is missing or not worth it.

    To load it takes as long as it saves over the csv module in some megabytes.
    """
    # Where it is None, the import is blocked.
    left = 0 if sys.modules.get("pyarrow") else _WORTH_LOADING_BYTES
    while left > 0 or not is_installed("parquet"):
        if not (block := file.text.block()):
            return
        left -= len(block)
        yield file.dicts(block)
    from catalogzero.cloud.reading.arrow import csv_dicts

    yield from csv_dicts(file, options)


def json_rows(text: Text, bad: BadRecords) -> Iterator[Iterable[Row]]:
    """The rows of JSON Lines: a block of them at once, one by one where that is not enough."""
    for block in iter(text.block, b""):
        lines = block.split(b"\n")
        if (rows := rows_at_once(block, lines)) is not None:
            text.line += len(lines) - 1
            yield rows
        else:
            text.decoded(block)
            yield rows_one_by_one(text, bad, lines)


def rows_at_once(block: bytes, lines: list[bytes]) -> list[Row] | None:
    """The rows of lines in which orjson loses nothing; None where it may.

    It loses digits of long numbers, and of two equal keys the first: with it goes a colon.
    """
    digits = block.translate(_DIGITS)
    # `\u003a` is a colon that is not written as one, and would upset the count.
    if b"\\u003" in block or any(long in digits for long in _LONG):
        return None
    try:
        rows = list(map(orjson.loads, filter(bytes.strip, lines)))
        whole = orjson.dumps(rows).count(b":") == block.count(b":")
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None
    return rows if whole and {*map(type, rows)} <= {dict} else None


def rows_one_by_one(text: Text, bad: BadRecords, lines: list[bytes]) -> Iterator[Row]:
    """The rows of lines, each with all its digits; what is malformed is a bad record."""
    for line in lines[:-1]:
        if line and not line.isspace():
            try:
                yield json_row(line)
            except UnicodeDecodeError:
                why = f"bytes that are not {text.encoding}"
                bad.take(text.name, text.line, why, line.decode("utf-8", "surrogateescape"))
            except (ValueError, ArithmeticError, RecursionError) as error:
                bad.take(text.name, text.line, f"not a JSON object: {error}", line.decode())
        text.line += 1


def json_row(line: bytes) -> Row:
    """The object of a line.

    Raises:
        ValueError: It is not a JSON object, a key stands twice in it, or it cannot be sent.
    """
    written, special = line.decode(), _LONG_NUMBER.search(line) or b"\\u003" in line
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if not special or "limit" in str(error):  # json's own limit is another in each Python
            raise
    else:
        try:
            again = orjson.dumps(row)
        except orjson.JSONEncodeError as error:
            raise ValueError("it is nested deeper than can be sent") from error
        packed = [text.replace(b", ", b",").replace(b": ", b":") for text in (again, line.strip())]
        # Of two equal keys orjson keeps the last, and with the other one a colon is lost.
        if again.count(b":") == line.count(b":") and (not special or packed[0] == packed[1]):
            return as_object(row)
    row = json.loads(
        written,
        parse_int=whole_number,
        parse_float=exact_number,
        parse_constant=refuse_constant,
        object_pairs_hook=unique_keys,
    )
    json.dumps(row, ensure_ascii=False, default=str).encode()  # no half of a surrogate pair
    return as_object(row)


def as_object(row: Any) -> Row:
    """A row that is an object."""
    if not isinstance(row, dict):
        raise ValueError(f"it is a {type(row).__name__}")
    return row


def is_object(line: str) -> bool:
    """Whether a line is a JSON object by itself."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def whole_number(digits: str) -> int | Decimal:
    """A whole number; Python's int reads no more than some thousand digits."""
    return int(digits) if len(digits) <= _INT_DIGITS else Decimal(digits)


def exact_number(digits: str) -> float | Decimal:
    """A float where it holds every digit."""
    exact, near = Decimal(digits), float(digits)
    return near if Decimal(repr(near)) == exact else exact


def refuse_constant(word: str) -> None:
    """Refuse NaN and infinities, which Python's own parser takes."""
    raise ValueError(f"{word} is not a number of JSON")


def unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    """An object in which each key stands once."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = sorted({key for key, count in Counter(k for k, _ in pairs).items() if count > 1})
        raise ValueError(f"{', '.join(map(repr, twice[:3]))} stands twice")
    return made
