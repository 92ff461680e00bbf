"""From a request's body to records: digest, decompression, parsing, each within its limit.

Owns what turns bytes into `Records`; it stores nothing. Every function here is plain CPU work that
the service runs in threads. A record is kept as the JSON text of one object, as it came.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
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
PARQUET_BATCH_ROWS = 1024
BODY_BOUNDS = Bounds(max_frames=10_000, max_ratio=MAX_RATIO, max_window_bytes=8 << 20)
"""Of packed bodies, beside a setting's bytes; the window is the content coding's (RFC 9659)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one chunk may hold."""

    decoded_bytes: int
    records: int


@dataclass(frozen=True, slots=True)
class Records:
    """The records of one chunk: the JSON text of each, and a digest over them all."""

    payloads: list[str]
    digest: str


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """The body without its `Content-Encoding`, at most `limit` bytes.

    Raises:
        ProblemError: An unknown coding, a broken stream, or one that asks for too much.
    """
    if coding not in ("", *CODINGS):
        raise ProblemError(
            Kind.UNSUPPORTED,
            f"Content-Encoding is one of {', '.join(CODINGS)}",
            headers={"Accept-Encoding": ", ".join(CODINGS)},
        )
    try:
        plain = decoded(body, coding or "identity", replace(BODY_BOUNDS, max_bytes=limit))
    except OverBoundsError as error:
        raise ProblemError(Kind.TOO_LARGE, str(error)) from None
    except UnpackError as error:
        raise ProblemError(Kind.UNDECODABLE, str(error)) from None
    if len(plain) > limit:
        raise ProblemError(Kind.TOO_LARGE, f"more than {limit} bytes once decompressed")
    return plain


def parse(decoded: bytes, media_type: str, limits: Limits) -> Records:
    """The records in a decompressed body of one of the three formats.

    Raises:
        ProblemError: Another format, or records that cannot be read; the line is named.
    """
    if media_type == NDJSON:
        payloads = _ndjson(_text(decoded))
    elif media_type == CSV:
        payloads = list(_csv(_text(decoded), limits))
    elif media_type == PARQUET:
        payloads = list(_parquet(decoded, limits))
    else:
        raise ProblemError(
            Kind.UNSUPPORTED,
            f"Content-Type is one of {NDJSON}, {PARQUET}, {CSV}",
            headers={"Accept": f"{NDJSON}, {PARQUET}, {CSV}"},
        )
    return seal(payloads, limits)


def parse_array(decoded: bytes, limits: Limits) -> Records:
    """The records of the simple form: one JSON array of objects.

    Raises:
        ProblemError: Not that.
    """
    try:
        values = orjson.loads(decoded)
    except orjson.JSONDecodeError as error:
        raise ProblemError(Kind.INVALID_REQUEST, f"the body is no JSON: {error}") from None
    if not isinstance(values, list):
        raise ProblemError(Kind.INVALID_REQUEST, "the body is one JSON array of objects")
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise ProblemError(Kind.REFUSED_RECORDS, f"item {index} is no JSON object")
    return seal([orjson.dumps(value).decode() for value in values], limits)


def seal(payloads: list[str], limits: Limits) -> Records:
    """The records with their digest, if there are not too many."""
    if len(payloads) > limits.records:
        raise ProblemError(Kind.TOO_LARGE, f"more than {limits.records} records in one chunk")
    return Records(payloads, hashlib.sha256("\n".join(payloads).encode()).hexdigest())


def same_records(left: Iterable[str], right: Iterable[str]) -> bool:
    """Whether two lists of JSON texts hold equal values, however they are spelled."""
    return [orjson.loads(text) for text in left] == [orjson.loads(text) for text in right]


def _text(decoded: bytes) -> str:
    """The body as text."""
    try:
        return decoded.decode()
    except UnicodeDecodeError as error:
        raise ProblemError(
            Kind.REFUSED_RECORDS, f"the body is not UTF-8 at byte {error.start}"
        ) from None


def _ndjson(text: str) -> list[str]:
    """One JSON object a line; empty lines are passed over."""
    payloads = [line for line in text.split("\n") if line and not line.isspace()]
    loads = orjson.loads
    try:
        for number, line in enumerate(payloads, 1):
            if type(loads(line)) is not dict:
                raise ProblemError(Kind.REFUSED_RECORDS, f"record {number} is no JSON object")
    except orjson.JSONDecodeError as error:
        raise ProblemError(
            Kind.REFUSED_RECORDS, f"record {number} is no JSON: {error.msg}"
        ) from None
    return payloads


def _csv(text: str, limits: Limits) -> Iterator[str]:
    """Rows under a header; every value is a string."""
    csv.field_size_limit(MAX_FIELD_CHARS)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        for number, row in enumerate(filter(None, reader), 1):
            if len(row) != len(header):
                raise ProblemError(
                    Kind.REFUSED_RECORDS, f"record {number} has not as many fields as the header"
                )
            if number > limits.records:
                raise ProblemError(Kind.TOO_LARGE, f"more than {limits.records} records")
            yield orjson.dumps(dict(zip(header, row, strict=True))).decode()
    except csv.Error as error:
        raise ProblemError(
            Kind.REFUSED_RECORDS, f"line {reader.line_num} is no CSV: {error}"
        ) from None


def _parquet(decoded: bytes, limits: Limits) -> Iterator[str]:
    """The rows of a Parquet file; bytes as base64, times as ISO 8601, decimals as strings."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ProblemError(
            Kind.UNSUPPORTED, "Parquet is not read here: install catalogzero[parquet]"
        ) from None
    size = count = 0
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(decoded))
        for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            size += batch.nbytes
            count += batch.num_rows
            if size > limits.decoded_bytes or count > limits.records:
                raise ProblemError(Kind.TOO_LARGE, "the Parquet file holds too much")
            for row in batch.to_pylist():
                yield orjson.dumps(row, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()
    except (pyarrow.ArrowException, OSError, TypeError, UnicodeError) as error:
        raise ProblemError(
            Kind.REFUSED_RECORDS, f"no readable Parquet file: {type(error).__name__}"
        ) from None


def _plain(value: Any) -> Any:
    """JSON's own kind for a value out of a Parquet file."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return str(value)
