"""Encoding: records to chunks, and what of them may leave.

A chunk holds whole records, at least one, and closes at `chunk_bytes` of encoded text before
compression, so that a backend can bound what it unpacks. What one value becomes stands in `values`.
The client's egress policy is applied to each batch just before. Never reads a source, never sends.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import orjson

from catalogzero.cloud.egress import loose
from catalogzero.cloud.extras import require_extra
from catalogzero.cloud.rows.batches import (
    is_frame,
    lists_of,
    parts_of,
    rows_of,
    whole_table,
)
from catalogzero.cloud.rows.streams import Stream
from catalogzero.cloud.rows.values import (
    Refuse,
    Row,
    UnfitError,
    csv_header,
    csv_lines,
    fail,
    json_lines,
)
from catalogzero.cloud.settings import Batch
from catalogzero.config.settings import EgressPolicy
from catalogzero.errors import BadParamsError, FailedError
from catalogzero.protocol.bodies import CONTENT_TYPES
from catalogzero.protocol.codings import CODINGS, encoded

if TYPE_CHECKING:
    import pyarrow as pa

    from catalogzero.cloud.rows.tables import Part

_PLANS, _NAMED = 1_000, 20
HOW_TO_DECLARE = (
    "the columns are those of the first record; declare them in the class: "
    "`schema = …`, a pyarrow schema or a pydantic model"
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The encoded bytes of some records: the unit of transfer."""

    seq: int
    records: int
    body: bytes
    coding: str
    content_type: str


Encode: TypeAlias = Callable[[], Chunk]
"""Encodes the records of one chunk, in any thread: it depends on those before it for nothing."""


class ChunkEncoder(ABC):
    """Turns batches into chunks: gathers what it is given until a chunk is full.

    Args:
        chunk_bytes: When a chunk closes.
        refuse: Takes each record that the format cannot hold.
    """

    coding: ClassVar[str]
    content_type: ClassVar[str]

    def __init__(self, chunk_bytes: int, refuse: Refuse = fail) -> None:
        self._limit, self._refuse = chunk_bytes, refuse
        self._gathered: list[Any] = []
        self._size = self._seq = 0
        self._next = 1

    def add(self, batch: Batch, start: int | None = None) -> Iterator[Encode]:
        """Take a batch; yield what encodes each chunk that it completes.

        Args:
            batch: Of any kind.
            start: The number of its first row; one above the last where it is None.
        """
        self._next = self._next if start is None else start
        for part in self._parts_of(batch):
            first, self._next = self._next, self._next + len(part)
            yield from self._take(part, first)

    def finish(self) -> Iterator[Encode]:
        """Yield what encodes the records that are left; nothing when there is no record."""
        if self._gathered:
            yield self._chunk()

    @abstractmethod
    def _parts_of(self, batch: Batch) -> Iterator[Any]:
        """A batch in the form that `_take` takes."""

    @abstractmethod
    def _take(self, part: Any, first: int) -> Iterator[Encode]:
        """Gather rows, the first of which has the number `first`; yield what is full."""

    @abstractmethod
    def _body(self, gathered: list[Any]) -> tuple[int, bytes]:
        """How many records were gathered, and the body of their chunk; called in any thread."""

    def _encoded(self, seq: int, gathered: list[Any]) -> Chunk:
        return Chunk(seq, *self._body(gathered), self.coding, self.content_type)

    def _chunk(self) -> Encode:
        """Close the chunk of what is gathered so far."""
        encode = partial(self._encoded, self._seq, self._gathered)
        self._seq, self._size, self._gathered = self._seq + 1, 0, []
        return encode


def encoder_for(chunk_format: str, chunk_bytes: int, refuse: Refuse = fail) -> ChunkEncoder:
    """The encoder of a chunk format.

    Args:
        chunk_format: ndjson, json (the same), csv or parquet.
        chunk_bytes: When a chunk closes.
        refuse: Takes each record that the format cannot hold.

    Raises:
        BadParamsError: No such format.
    """
    json = {"ndjson": JsonEncoder, "json": JsonEncoder}
    kinds = {**json, "csv": CsvEncoder, "parquet": ParquetEncoder}
    if chunk_format not in kinds:
        raise BadParamsError(
            f"format {chunk_format!r} is not one of ndjson, json, csv, parquet",
            details=[{"field": "format", "message": "one of ndjson, json, csv, parquet"}],
        )
    return kinds[chunk_format](chunk_bytes, refuse)


class JsonEncoder(ChunkEncoder):
    """Chunks of JSON Lines: UTF-8, every digit of a number, bytes as base64."""

    coding, content_type = CODINGS[0], CONTENT_TYPES["ndjson"]
    _header = b""

    def _lines(self, rows: list[Row]) -> bytes:
        """The encoded records; raises `UnfitError` where one of the rows cannot be."""
        return json_lines(rows)

    def _parts_of(self, batch: Batch) -> Iterator[list[Row]]:
        return lists_of(batch, texts=True)

    def _take(self, part: list[Row], first: int) -> Iterator[Encode]:
        try:
            lines = self._lines(part)
        except UnfitError:
            lines = b"".join(self._fitting(part, first))
        start = 0
        while self._size + len(lines) - start >= self._limit:
            end = self._end_of_record(lines, start, start + self._limit - self._size - 1)
            self._gathered.append(lines[start:end])
            yield self._chunk()
            start = end
        if start < len(lines):
            self._gathered.append(lines[start:])
            self._size += len(lines) - start

    def _fitting(self, part: list[Row], first: int) -> Iterator[bytes]:
        """The records of a part one by one; those that cannot be encoded are refused."""
        for number, row in enumerate(part, first):
            try:
                yield self._lines([row])
            except UnfitError as error:
                self._refuse(number, error, row)

    def _end_of_record(self, lines: bytes, start: int, at: int) -> int:
        """Where the record ends that the byte `at` is part of; a record begins at `start`."""
        return lines.find(b"\n", at) + 1

    def _count(self, lines: bytes) -> int:
        """How many records some lines are."""
        return lines.count(b"\n")

    def _body(self, gathered: list[Any]) -> tuple[int, bytes]:
        lines = b"".join(gathered)
        return self._count(lines), encoded(self._header + lines, self.coding)


class CsvEncoder(JsonEncoder):
    """CSV with a header in each chunk; the first record's columns are those of the upload."""

    content_type = CONTENT_TYPES["csv"]
    _columns: list[str] | None = None

    def _lines(self, rows: list[Row]) -> bytes:
        if self._columns is None:
            columns = list(rows[0])
            self._header, self._columns = csv_header(columns), columns
        if extra := sorted(map(str, set(chain.from_iterable(rows)).difference(self._columns))):
            raise UnfitError(f"the upload has no such column: {HOW_TO_DECLARE}", extra[0])
        return csv_lines(self._columns, rows)

    def _end_of_record(self, lines: bytes, start: int, at: int) -> int:
        end, quotes = lines.find(b"\n", at) + 1, 0
        # A line end is that of a record where all quotes before it are closed.
        while (quotes := quotes + lines.count(b'"', start, end)) % 2:
            start, end = end, lines.find(b"\n", end) + 1
        return end

    def _count(self, lines: bytes) -> int:
        return b"".join(lines.split(b'"')[::2]).count(b"\n")


class ParquetEncoder(ChunkEncoder):
    """Chunks that are Parquet files of their own, all of one schema (see `tables.Tables`).

    Which columns have a dictionary is what makes the first chunk smallest, and holds for all.
    """

    coding, content_type = "identity", CONTENT_TYPES["parquet"]

    def __init__(self, chunk_bytes: int, refuse: Refuse = fail) -> None:
        require_extra("parquet")
        from catalogzero.cloud.rows.tables import Tables

        super().__init__(chunk_bytes, refuse)
        self._fitting = Tables(None, refuse, chunk_bytes)
        self._sample: pa.Table | None = None
        self._dictionary: list[str] = []
        self._choosing = threading.Lock()

    def finish(self) -> Iterator[Encode]:
        """See `ChunkEncoder.finish`."""
        for _, table in self._fitting.finish():
            yield from self._gather(table)
        yield from super().finish()

    def _parts_of(self, batch: Batch) -> Iterator[Part]:
        return parts_of(batch)

    def _take(self, part: Part, first: int) -> Iterator[Encode]:
        for _, table in self._fitting.add(part, first):
            yield from self._gather(table)

    def _gather(self, table: pa.Table) -> Iterator[Encode]:
        """Gather a table, in slices that are none far above the limit."""
        # A table of any size comes as one: cut so that a chunk is about as large as the limit.
        rows = max(1, int(table.num_rows * self._limit / max(table.nbytes, 1)))
        for start in range(0, table.num_rows, rows):
            part = table.slice(start, rows)
            self._gathered.append(part)
            self._size += part.nbytes
            if self._size >= self._limit:
                yield self._chunk()

    def _chunk(self) -> Encode:
        import pyarrow as pa

        if self._seq == 0:
            self._sample = pa.concat_tables(self._gathered)
        return super()._chunk()

    def _body(self, gathered: list[Any]) -> tuple[int, bytes]:
        import pyarrow as pa

        with self._choosing:  # from the same sample, whichever thread comes first
            if self._sample is not None:
                self._dictionary = columns_with_dictionary(self._sample)
                self._sample = None
        table = pa.concat_tables(gathered)
        return table.num_rows, parquet_file(table, self._dictionary)


def parquet_file(table: pa.Table, dictionary: bool | list[str]) -> bytes:
    """A table as a Parquet file.

    Args:
        table: Of any columns.
        dictionary: The paths of the columns whose values are written once each, in a dictionary;
            or whether all of them are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=dictionary)
    return cast("bytes", sink.getvalue().to_pybytes())


def columns_with_dictionary(sample: pa.Table) -> list[str]:
    """The paths of the columns that take fewer bytes with a dictionary than without."""
    with_one, without = (column_sizes(parquet_file(sample, every)) for every in (True, False))
    return [path for path, size in with_one.items() if size < without[path]]


def column_sizes(file: bytes) -> Counter[str]:
    """How many bytes of a Parquet file each column takes, by its path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found, sizes = pq.read_metadata(pa.BufferReader(file)), Counter[str]()
    for group in map(found.row_group, range(found.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            sizes[column.path_in_schema] += column.total_compressed_size
    return sizes


def json_array(bodies: Iterable[bytes]) -> bytes:
    """One JSON array of chunks of JSON Lines: the body of the simple form."""
    lines = [line for body in bodies for line in body.split(b"\n") if line]
    return b"[" + b",".join(lines) + b"]"


class ColumnFilter:
    """Drops, keeps and hashes columns as the client's egress policy says.

    Rules name top-level columns. `drop` and `hash` match whatever looks like the name (see
    `loose`), `keep` the exact name; what is hashed is kept. A hash is HMAC-SHA256 in hex of the
    value's text, keyed with the client's own key, so that equal values stay equal and cannot be
    looked up by the vendor; null stays null.
    """

    def __init__(self, policy: EgressPolicy, key: bytes) -> None:
        self._key, self._keep = key, None if policy.keep is None else set(policy.keep)
        self._drop, self._hash = set(map(loose, policy.drop)), set(map(loose, policy.hash))
        self._plans: dict[tuple[Any, ...], list[tuple[Any, str, bool]]] = {}
        self._found: dict[str, set[str]] = {"drop": set(), "keep": set(), "hash": set()}
        self._names = set[str]()
        self._any_row = self._any_column = False
        named = {"drop": policy.drop, "keep": policy.keep or (), "hash": policy.hash}
        self.rules = [(kind, name) for kind, names in named.items() for name in names]
        self.active = bool(self._hash or self._drop or self._keep is not None)

    def __call__(self, batch: Any) -> Any:
        """The batch as it may leave."""
        if not self.active:
            return batch
        if is_frame(batch):
            return self._table(whole_table(batch))
        return [row for rows in lists_of(batch) for row in self._rows(rows)]

    @property
    def any_seen(self) -> bool:
        """Whether any column was seen."""
        return bool(self._names)

    def begin(self) -> None:
        """Forget which columns the last item had; what the rules matched is remembered."""
        self._plans.clear()
        self._any_row = self._any_column = False

    def refuse_empty(self, name: str) -> None:
        """Raise `FailedError` when an item had records, and `keep` left none of their columns."""
        if self._keep is not None and self._any_row and not self._any_column:
            raise FailedError(
                f"{name}: egress.keep leaves no column of it: write the names exactly as they are "
                f"({', '.join(sorted(self._names)[:_NAMED])})"
            )

    def matched(self) -> list[str]:
        """The rules that matched a column so far, as `drop: email`."""
        return [
            f"{kind}: {name}"
            for kind, name in self.rules
            if (name if kind == "keep" else loose(name)) in self._found[kind]
        ]

    def in_clear(self, column: str) -> bool:
        """Whether a column may leave as it is."""
        name = loose(column)
        kept = self._keep is None or column in self._keep
        return kept and name not in self._drop and name not in self._hash

    def key_fault(self, stream: Stream) -> tuple[str, str] | None:
        """Why the key of a stream cannot leave, and the fix; None where it can."""
        for column in stream.key:
            name = loose(column)
            is_kept = self._keep is None or column in self._keep or name in self._hash
            if not is_kept or name in self._drop:
                found = f"the egress policy keeps back {column!r}, of the key of {stream.name!r}"
                return found, "let the column leave, or hash it"
        if stream.tombstone is not None and not self.in_clear(stream.tombstone):
            found = f"the egress policy keeps back or hashes {stream.tombstone!r}, the tombstone of"
            return f"{found} {stream.name!r}", "let the column leave as it is"
        return None

    def hash_of(self, value: Any) -> str | None:
        """The keyed hash of one value."""
        if value is None:
            return None
        # Any text has a hash, also one that no format could hold.
        text = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()

    def _plan(self, keys: tuple[Any, ...]) -> list[tuple[Any, str, bool]]:
        """What leaves of records with these keys: key, name, whether it is hashed."""
        plan = self._plans.get(keys)
        if plan is None:
            plan = [
                (place, name, loose(name) in self._hash)
                for place, name in enumerate(map(key_name, keys))
                if loose(name) not in self._drop
                and (self._keep is None or name in self._keep or loose(name) in self._hash)
            ]
            if len(self._plans) == _PLANS:
                self._plans.clear()
            self._plans[keys] = plan
            names = set(map(key_name, keys))
            looks = set(map(loose, names))
            self._found["keep"] |= names & (self._keep or set())
            self._found["drop"] |= looks & self._drop
            self._found["hash"] |= looks & self._hash
            self._names |= names if len(self._names) < _NAMED else set()
            self._any_row, self._any_column = True, self._any_column or bool(plan)
        return plan

    def _rows(self, rows: list[Row]) -> Iterable[Row]:
        """Rows as they may leave: column by column where all have the same keys in one order."""
        keys, *others = set(map(tuple, rows))
        # Keys of other kinds may be equal and have two names: 1 and True.
        plan = self._plan(keys) if not others and {*map(type, keys)} == {str} else []
        if not plan:
            return map(self._row, rows)
        columns: list[Iterable[Any]] = []
        for place, _, hashed in plan:
            values = map(itemgetter(keys[place]), rows)
            columns.append(map(self.hash_of, values) if hashed else values)
        names = [name for _, name, _ in plan]
        return map(dict, map(zip, repeat(names), zip(*columns, strict=True)))

    def _row(self, row: Mapping[Any, Any]) -> Row:
        keys = tuple(row)
        return {
            name: self.hash_of(row[keys[place]]) if hashed else row[keys[place]]
            for place, name, hashed in self._plan(keys)
        }

    def _table(self, table: pa.Table) -> pa.Table:
        """A table of the columns alone: metadata may hold anything, and does not leave."""
        import pyarrow as pa

        arrays, fields = [], []
        for place, name, hashed in self._plan(tuple(table.column_names)):
            array, field = table.column(place), table.schema.field(place).remove_metadata()
            if hashed:
                texts = [self.hash_of(row[name]) for row in rows_of(pa.table({name: array}))]
                array, field = pa.array(texts, pa.string()), pa.field(name, pa.string())
            arrays.append(array)
            fields.append(field)
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def key_name(key: Any) -> str:
    """The name under which a key of a record leaves."""
    if type(key) is str:
        return key
    return str(next(iter(orjson.loads(orjson.dumps({key: None}, option=orjson.OPT_NON_STR_KEYS)))))
