"""Encoding: records to chunks, and what of them may leave.

A chunk holds whole records, at least one, and closes at `chunk_bytes` of encoded text before
compression, so that a backend can bound what it unpacks. The client's egress policy is applied to
each batch just before. Never reads a source, never sends.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import orjson

from catalogzero.cloud.records import require_extra
from catalogzero.cloud.settings import Batch
from catalogzero.config.settings import EgressPolicy
from catalogzero.errors import BadParamsError, FailedError
from catalogzero.protocol.bodies import CONTENT_TYPES
from catalogzero.protocol.codings import CODINGS, encoded

if TYPE_CHECKING:
    import pyarrow as pa

_SLICE_ROWS = 8_192
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE


@dataclass(frozen=True, slots=True)
class Chunk:
    """The encoded bytes of some records: the unit of transfer."""

    seq: int
    records: int
    body: bytes
    coding: str
    content_type: str


class ChunkEncoder(Protocol):
    """Turns batches into chunks."""

    def add(self, batch: Batch) -> Iterator[Chunk]:
        """Take a batch; yield the chunks that it completes."""

    def finish(self) -> Iterator[Chunk]:
        """Yield what is left; nothing when there is no record."""


def encoder_for(chunk_format: str, chunk_bytes: int) -> ChunkEncoder:
    """The encoder of a chunk format.

    Raises:
        BadParamsError: No such format.
    """
    if chunk_format == "parquet":
        return ParquetEncoder(chunk_bytes)
    if chunk_format == "csv":
        return TextEncoder(chunk_bytes, CsvLines(), "csv")
    if chunk_format in {"ndjson", "json"}:
        return TextEncoder(chunk_bytes, JsonLines(), "ndjson")
    raise BadParamsError(
        f"format {chunk_format!r} is not one of ndjson, json, csv, parquet",
        details=[{"field": "format", "message": "one of ndjson, json, csv, parquet"}],
    )


class Lines(Protocol):
    """Turns rows into lines of text, a line a record."""

    def header(self) -> bytes:
        """What each chunk begins with."""

    def lines(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
        """One encoded record each."""


class JsonLines:
    """JSON Lines: UTF-8, decimals with all their digits, NaN as null, bytes as base64."""

    def header(self) -> bytes:
        """JSON Lines have none."""
        return b""

    def lines(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
        """See `Lines.lines`."""
        for row in rows:
            yield orjson.dumps(row, default=_json_value, option=_OPTIONS)


class CsvLines:
    """CSV with a header in each chunk; the first record's columns are those of the upload."""

    def __init__(self) -> None:
        self._columns: list[str] | None = None
        self._text = io.StringIO()
        self._writer = csv.writer(self._text, lineterminator="\n")

    def header(self) -> bytes:
        """The line of column names."""
        return self._line(self._columns or [])

    def lines(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
        """See `Lines.lines`; raises `FailedError` for a record with other columns."""
        for row in rows:
            if self._columns is None:
                self._columns = list(row)
            if row.keys() - set(self._columns):
                extra = ", ".join(sorted(row.keys() - set(self._columns)))
                raise FailedError(
                    f"a CSV upload has the columns of its first record, and {extra} came later: "
                    "give every record the same keys, or use format ndjson"
                )
            yield self._line([_csv_value(row.get(name)) for name in self._columns])

    def _line(self, cells: Sequence[Any]) -> bytes:
        self._text.seek(0)
        self._text.truncate()
        self._writer.writerow(cells)
        return self._text.getvalue().encode()


class TextEncoder:
    """Chunks of lines, compressed with zstd as they grow."""

    def __init__(self, chunk_bytes: int, lines: Lines, chunk_format: str) -> None:
        self._limit, self._lines, self._type = chunk_bytes, lines, CONTENT_TYPES[chunk_format]
        self._parts: list[bytes] = []
        self._size = self._seq = 0

    def add(self, batch: Batch) -> Iterator[Chunk]:
        """See `ChunkEncoder.add`."""
        parts, size, limit = self._parts, self._size, self._limit
        for line in self._lines.lines(rows_of(batch)):
            parts.append(line)
            size += len(line)
            if size >= limit:
                self._parts = parts
                yield self._chunk()
                parts, size = [], 0
        self._parts, self._size = parts, size

    def finish(self) -> Iterator[Chunk]:
        """See `ChunkEncoder.finish`."""
        if self._parts:
            yield self._chunk()
            self._parts = []

    def _chunk(self) -> Chunk:
        """The chunk of the lines gathered so far."""
        raw = self._lines.header() + b"".join(self._parts)
        coding = CODINGS[0]
        chunk = Chunk(self._seq, len(self._parts), encoded(raw, coding), coding, self._type)
        self._seq += 1
        return chunk


class ParquetEncoder:
    """Chunks that are Parquet files of their own; the first batch's schema is the upload's."""

    def __init__(self, chunk_bytes: int) -> None:
        require_extra("parquet")
        self._limit = chunk_bytes
        self._schema: pa.Schema | None = None
        self._tables: list[pa.Table] = []
        self._size = self._seq = 0

    def add(self, batch: Batch) -> Iterator[Chunk]:
        """See `ChunkEncoder.add`."""
        for part in self._slices(batch):
            self._tables.append(part)
            self._size += part.nbytes
            if self._size >= self._limit:
                yield self._chunk()

    def finish(self) -> Iterator[Chunk]:
        """See `ChunkEncoder.finish`."""
        if self._tables:
            yield self._chunk()

    def _slices(self, batch: Batch) -> Iterator[pa.Table]:
        """The batch as tables of the upload's schema, none far above the limit."""
        import pyarrow as pa

        table = batch if isinstance(batch, pa.Table) else self._table_of(list(rows_of(batch)))
        if table.num_rows == 0:
            return
        if self._schema is None:
            self._schema = table.schema
        try:
            table = table.cast(self._schema) if table.schema != self._schema else table
        except (pa.ArrowInvalid, ValueError) as error:
            raise FailedError(
                f"a Parquet upload has the columns and types of its first batch: {error}"
            ) from error
        rows = max(1, int(table.num_rows * self._limit / max(table.nbytes, 1)))
        for start in range(0, table.num_rows, rows):
            yield table.slice(start, rows)

    def _table_of(self, rows: list[dict[str, Any]]) -> pa.Table:
        """The table of some rows."""
        import pyarrow as pa

        return pa.Table.from_pylist(rows, schema=self._schema)

    def _chunk(self) -> Chunk:
        """The Parquet file of the tables gathered so far."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink, table = pa.BufferOutputStream(), pa.concat_tables(self._tables)
        pq.write_table(table, sink, compression="zstd")
        chunk = Chunk(
            self._seq,
            table.num_rows,
            sink.getvalue().to_pybytes(),
            "identity",
            CONTENT_TYPES["parquet"],
        )
        self._seq, self._size, self._tables = self._seq + 1, 0, []
        return chunk


def rows_of(batch: Batch) -> Iterator[dict[str, Any]]:
    """The rows of a batch as dicts.

    Raises:
        FailedError: `process` yielded neither a list of dicts nor an Arrow table.
    """
    if hasattr(batch, "to_batches"):
        for part in batch.to_batches(max_chunksize=_SLICE_ROWS):
            yield from part.to_pylist()
        return
    if isinstance(batch, Mapping | str | bytes) or not isinstance(batch, Iterable):
        raise FailedError(
            f"process yields batches, lists of dicts, and this is a {type(batch).__name__}"
        )
    for row in batch:
        if not isinstance(row, Mapping):
            raise FailedError(f"a record is a dict, and this is a {type(row).__name__}")
        yield row if isinstance(row, dict) else dict(row)


def json_array(bodies: Iterable[bytes]) -> bytes:
    """One JSON array of chunks of JSON Lines: the body of the simple form."""
    lines = [line for body in bodies for line in body.split(b"\n") if line]
    return b"[" + b",".join(lines) + b"]"


class ColumnFilter:
    """Drops, keeps and hashes columns as the client's egress policy says.

    A hash is HMAC-SHA256 in hex of the value's text, keyed with the client's own key, so that equal
    values stay equal and cannot be looked up by the vendor; null stays null.
    """

    def __init__(self, policy: EgressPolicy, key: bytes) -> None:
        self._policy, self._key = policy, key
        self._hashed, self._dropped = set(policy.hash), set(policy.drop)
        self._kept = None if policy.keep is None else set(policy.keep) | self._hashed
        self.active = bool(self._hashed or self._dropped or self._kept is not None)

    def __call__(self, batch: Batch) -> Batch:
        """The batch as it may leave."""
        if not self.active:
            return batch
        if hasattr(batch, "to_batches"):
            return self._table(batch)
        return [self._row(row) for row in rows_of(batch)]

    def allows(self, column: str) -> bool:
        """Whether a column may leave, hashed or not."""
        return column not in self._dropped and (self._kept is None or column in self._kept)

    def hash_of(self, value: Any) -> str | None:
        """The keyed hash of one value."""
        if value is None:
            return None
        text = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: self.hash_of(value) if name in self._hashed else value
            for name, value in row.items()
            if self.allows(name)
        }

    def _table(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        table = table.select([name for name in table.column_names if self.allows(name)])
        for name in self._hashed & set(table.column_names):
            values = [self.hash_of(value) for value in table.column(name).to_pylist()]
            index = table.column_names.index(name)
            table = table.set_column(index, name, pa.array(values, pa.string()))
        return table


def _json_value(value: Any) -> Any:
    """JSON's own kind for a value of a record that orjson does not know."""
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value)) if value.is_finite() else None
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode("ascii")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a {type(value).__name__} has no JSON form: convert it in `process`")


def _csv_value(value: Any) -> Any:
    """The text of a cell: ISO 8601 for times, nothing for null and NaN, JSON for what nests."""
    if isinstance(value, str | int | Decimal | UUID) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return orjson.dumps(value, default=_json_value, option=orjson.OPT_NON_STR_KEYS).decode()
