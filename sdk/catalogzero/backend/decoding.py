"""From a request's body to records: digest, decompression, parsing, each within its limit.

Owns what turns bytes into `Records`; it stores nothing. Every function here is plain CPU work that
the service runs in threads. A record is kept as the JSON text of one object, as it came.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, time
from itertools import chain, zip_longest
from typing import Any

import orjson

from catalogzero.protocol.bodies import CSV, NDJSON, PARQUET
from catalogzero.protocol.codings import (
    CODINGS,
    MAX_RATIO,
    Bounds,
    OverBoundsError,
    UnpackError,
    decoded,
)
from catalogzero.protocol.problems import Kind, ProblemError

MAX_FIELD_CHARS = 16 << 20
BYTE_ORDER_MARK = "\ufeff".encode()
BETWEEN_ITEMS = re.compile(r"[\s,]*")
CELL = re.compile(rb'(?:^|,)("[^"]*+(?:""[^"]*+)*+"|[^,\r\n]*+)')
EXACT = json.JSONDecoder(parse_int=str.encode, parse_float=str.encode)
"""Reads a number as the bytes of its text: no digit is lost, and 1, 1.0, true and "1" differ."""
PARQUET_BATCH_ROWS = 1024
PORTION_BYTES, PORTION_ROWS = 1 << 20, 5_000
LIGHT_BYTES = 1 << 16
"""A record of up to this many bytes takes no memory to speak of, whatever is in it."""
TOO_HEAVY = "too many values, or too long a text, for the memory that a body may take"
BODY_BOUNDS = Bounds(max_frames=10_000, max_ratio=MAX_RATIO, max_window_bytes=8 << 20)
"""Of packed bodies, beside a setting's bytes; the window is the content coding's (RFC 9659)."""


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """How much one chunk may hold."""

    decoded_bytes: int
    records: int


@dataclass(frozen=True, slots=True)
class Records:
    """The records of one chunk: the JSON text of each in UTF-8, and a digest over them all."""

    payloads: list[bytes]
    digest: str


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """The body without its `Content-Encoding`, at most `limit` bytes.

    Raises:
        ProblemError: An unknown coding, a broken stream, or one that asks for too much.
    """
    if coding not in ("", *CODINGS):
        known = ", ".join(CODINGS)
        fault = f"Content-Encoding is one of {known}"
        raise ProblemError(Kind.UNSUPPORTED, fault, headers={"Accept-Encoding": known})
    try:
        plain = decoded(body, coding or "identity", replace(BODY_BOUNDS, max_bytes=limit))
    except OverBoundsError as error:
        raise ProblemError(Kind.TOO_LARGE, str(error)) from None
    except UnpackError as error:
        raise ProblemError(Kind.UNDECODABLE, str(error)) from None
    if len(plain) > limit:
        raise ProblemError(Kind.TOO_LARGE, f"more than {limit} bytes once decompressed")
    return plain


def parse(decoded: bytes, media_type: str, limits: ChunkLimits) -> Records:
    """The records in a decompressed body of one of the three formats.

    Raises:
        ProblemError: Another format, or records that cannot be read; the line is named.
    """
    if media_type not in FORMATS:
        known = ", ".join(FORMATS)
        fault = f"Content-Type is one of {known}"
        raise ProblemError(Kind.UNSUPPORTED, fault, headers={"Accept": known})
    return seal(list(FORMATS[media_type](decoded, limits)), limits)


def parse_array(decoded: bytes, limits: ChunkLimits) -> Records:
    """The records of the simple form: one JSON array of objects.

    Raises:
        ProblemError: Not that.
    """
    if weight_of(decoded) > 2 * limits.decoded_bytes:
        raise ProblemError(Kind.TOO_LARGE, f"{TOO_HEAVY}: send it in chunks")
    try:
        values = orjson.loads(decoded)
    except orjson.JSONDecodeError as error:
        raise ProblemError(Kind.INVALID_REQUEST, f"the body is no JSON: {error}") from None
    if not isinstance(values, list):
        raise ProblemError(Kind.INVALID_REQUEST, "the body is one JSON array of objects")
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise ProblemError(Kind.REFUSED_RECORDS, f"item {index} is no JSON object")
    # only to see that they are objects: their memory goes before the texts are cut out
    del values
    try:
        return seal(list(items_of(decoded)), limits)
    except RecursionError:
        raise ProblemError(Kind.REFUSED_RECORDS, "a record is nested too deeply") from None


def seal(payloads: list[bytes], limits: ChunkLimits) -> Records:
    """The records with their digest, if there are not too many."""
    if len(payloads) > limits.records:
        raise too_many(limits)
    digest, between = hashlib.sha256(), b""
    for _, some in portions(payloads):
        digest.update(between + b"\n".join(some))
        between = b"\n"
    return Records(payloads, digest.hexdigest())


def portions(payloads: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Some records after the other, each time of `PORTION_BYTES` or one; where each begins."""
    start, size = 0, 0
    for index, payload in enumerate(payloads):
        if index > start and (size + len(payload) > PORTION_BYTES or index - start == PORTION_ROWS):
            yield start, payloads[start:index]
            start, size = index, 0
        size += len(payload)
    if payloads:
        yield start, payloads[start:]


def same_records(left: Iterable[str], right: Iterable[bytes]) -> bool:
    """Whether two lists of JSON texts hold the same records, whatever their spacing and order.

    Numbers are compared as they are written; records that nest too deeply for it are not the same.
    """
    pairs = zip_longest(left, (payload.decode() for payload in right), fillvalue="null")
    try:
        return all(a == b or EXACT.decode(a) == EXACT.decode(b) for a, b in pairs)
    except RecursionError:
        return False


def items_of(array: bytes) -> Iterator[bytes]:
    """The text of each item of a JSON array, which was found valid."""
    text = array.decode("latin-1")  # a character is a byte, and all that divides items is ASCII
    at = text.index("[") + 1
    while text[at := BETWEEN_ITEMS.match(text, at).end()] != "]":  # type: ignore[union-attr]
        end = EXACT.raw_decode(text, at)[1]
        yield array[at:end].replace(b"\n", b" ")
        at = end


def lines_of(body: bytes) -> io.BytesIO:
    """The body's lines, without a byte order mark."""
    lines = io.BytesIO(body)
    lines.seek(len(BYTE_ORDER_MARK) if body.startswith(BYTE_ORDER_MARK) else 0)
    return lines


def weight_of(text: bytes) -> int:
    """At least the bytes that a text may take as objects of Python: an empty one takes 64."""
    objects = 230 * text.count(b"{") + 64 * (text.count(b"[") + text.count(b","))
    return objects + len(text) * (1 if text.isascii() else 4) + text.count(b"\\")


def too_many(limits: ChunkLimits) -> ProblemError:
    """The refusal of more records than a chunk may have."""
    return ProblemError(Kind.TOO_LARGE, f"more than {limits.records} records in one chunk")


def refused(number: int, why: str) -> ProblemError:
    """The refusal of a record."""
    return ProblemError(Kind.REFUSED_RECORDS, f"record {number} {why}")


def text_of(record: bytes, number: int) -> str:
    """A record, or a part of it, as text; refused where it is no UTF-8."""
    try:
        return record.decode()
    except UnicodeDecodeError as error:
        raise refused(number, f"is not UTF-8 at byte {error.start}") from None


def _ndjson(body: bytes, limits: ChunkLimits) -> list[bytes]:
    """One JSON object a line; empty lines are passed over."""
    payloads: list[bytes] = []
    loads = orjson.loads
    for line in lines_of(body):
        if line.isspace():
            continue
        number = len(payloads) + 1
        if number > limits.records:
            raise too_many(limits)
        payload = line.removesuffix(b"\n")
        if len(payload) > LIGHT_BYTES and weight_of(payload) > limits.decoded_bytes:
            # once it is read it would take more memory than a whole body may have
            raise ProblemError(Kind.TOO_LARGE, f"record {number}: {TOO_HEAVY}")
        try:
            if type(loads(payload)) is not dict:
                raise refused(number, "is no JSON object")
        except orjson.JSONDecodeError as error:
            text_of(payload, number)
            raise refused(number, f"is no JSON: {error.msg}") from None
        payloads.append(payload)
    return payloads


def _csv(body: bytes, limits: ChunkLimits) -> Iterator[bytes]:
    """Rows under a header; every value is a string, or null where a cell is empty."""
    csv.field_size_limit(MAX_FIELD_CHARS)
    lines = _Lines(body, limits)
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        refuse_twice(header)
        lines.end_row()
        for row in reader:
            raw = lines.end_row()
            if not row:
                continue
            number = lines.rows
            if len(row) != len(header):
                raise refused(number, "has not as many fields as the header")
            if number > limits.records:
                raise too_many(limits)
            lines.rows += 1
            values: list[str | None] = [*row]
            # csv reads an empty cell and a quoted empty text alike: the line has the difference
            if "" in row:
                cells = zip(CELL.finditer(b"".join(raw)), row, strict=True)
                values = [value if cell[1] else None for cell, value in cells]
            yield orjson.dumps(dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise ProblemError(
            Kind.REFUSED_RECORDS, f"line {reader.line_num} is no CSV: {error}"
        ) from None


class _Lines:
    """The lines of a CSV body as text, as long as those of one row are not too much together."""

    def __init__(self, body: bytes, limits: ChunkLimits) -> None:
        parts = (line.splitlines(keepends=True) for line in lines_of(body))
        self._lines, self._limits = chain.from_iterable(parts), limits
        self._row: list[bytes] = []
        self._size = self._weight = 0
        self.rows = 1

    def end_row(self) -> list[bytes]:
        """The next line begins another row; the lines of this one."""
        row, self._row, self._size, self._weight = self._row, [], 0, 0
        return row

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._row.append(line)
        self._size += len(line)
        if self._size > LIGHT_BYTES:
            self._weight += 64 + weight_of(line)
            if self._weight > self._limits.decoded_bytes:
                raise ProblemError(Kind.TOO_LARGE, f"record {self.rows}: {TOO_HEAVY}")
        return text_of(line, self.rows)


def _parquet(decoded: bytes, limits: ChunkLimits) -> Iterator[bytes]:
    """The rows of a Parquet file; bytes as base64, times as ISO 8601, decimals as strings."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ProblemError(
            Kind.UNSUPPORTED, "Parquet is not read here: its operator adds the extra `parquet`"
        ) from None
    size = count = 0
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(decoded))
        refuse_twice(file.schema_arrow.names)
        # looked at before it is read: a row group is unpacked as a whole
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        if max((group.total_byte_size for group in groups), default=0) > limits.decoded_bytes:
            raise ProblemError(Kind.TOO_LARGE, "the Parquet file has a row group that is too large")
        for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            size += batch.nbytes
            count += batch.num_rows
            if size > limits.decoded_bytes or count > limits.records:
                raise ProblemError(Kind.TOO_LARGE, "the Parquet file holds too much")
            for row in batch.to_pylist():
                yield orjson.dumps(row, default=plain_value, option=orjson.OPT_NON_STR_KEYS)
    except (pyarrow.ArrowException, OSError, TypeError, UnicodeError) as error:
        raise ProblemError(
            Kind.REFUSED_RECORDS, f"no readable Parquet file: {type(error).__name__}"
        ) from None


def refuse_twice(columns: list[str]) -> None:
    """Refuse columns of which two have one name: one of them would be lost."""
    if len(set(columns)) != len(columns):
        raise ProblemError(Kind.REFUSED_RECORDS, "two columns have one name")


def plain_value(value: Any) -> Any:
    """JSON's own kind for a value out of a Parquet file."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, date | time) else str(value)


FORMATS: dict[str, Callable[[bytes, ChunkLimits], Iterable[bytes]]] = {
    NDJSON: _ndjson,
    PARQUET: _parquet,
    CSV: _csv,
}
