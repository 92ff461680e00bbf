"""Arrow tables: from frames and rows, to rows, and one schema for all of an upload.

A value is never cut, rounded or turned into another kind to fit a column: it is refused. Needs the
extra `parquet`. Loaded only in the worker, and only where Arrow or Parquet is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from operator import itemgetter
from typing import Any, TypeAlias, cast

import pyarrow as pa
import pyarrow.compute as pc

from catalogzero.cloud.rows.kinds import (
    array_of,
    is_number,
    joined,
    kind_of,
    offset_text,
    only_finer,
    plain_type,
)
from catalogzero.cloud.rows.values import (
    NOT_UTF8,
    NanoDatetime,
    NanoTime,
    NanoTimedelta,
    Refuse,
    Row,
    UnfitError,
    fail,
    is_valid,
    nano,
    refuse_twice,
    seconds_text,
    text_of,
)
from catalogzero.errors import FailedError

Part: TypeAlias = pa.Table | list[Row]
"""Some rows of a batch: a table of plain types, or a list of dicts."""

Columns: TypeAlias = dict[str, Any]
"""The same rows by columns: an array of a table, or a list of values."""

Numbered: TypeAlias = tuple[int, pa.Table]
"""A table, and the number of its first row."""

HOW_TO_DECLARE = (
    "columns and types are those of the first chunk; declare them in the class: "
    "`schema = …`, a pyarrow schema or a pydantic model"
)
_SLICE_ROWS = 8_192
_SAMPLE_ROWS = 64
_DIGITS = {"s": ".000000", "ms": "000", "us": "", "ns": ""}
_UNFIT = (UnfitError, pa.ArrowException, OverflowError, TypeError, ValueError)


def table_of(frame: Any, source: str = "a table that process yields") -> pa.Table:
    """A frame of pyarrow, pandas, Polars or DuckDB as a table of plain types.

    Dictionaries become their values, views and large types the ordinary ones.

    Raises:
        FailedError: Two columns have one name.
    """
    table = frame if isinstance(frame, pa.Table) else pa.table(frame)
    refuse_twice(table.column_names, source)
    columns = [plain_column(column) for column in table.columns]
    fields = [
        pa.field(field.name, column.type, field.nullable)
        for field, column in zip(table.schema, columns, strict=True)
    ]
    return pa.table(columns, pa.schema(fields)) if fields else table


def table_of_rows(rows: list[Row], refuse: Refuse | None = None) -> pa.Table:
    """Rows as a table of their own columns and types.

    Args:
        rows: They may lack each other's keys.
        refuse: Takes each row that does not fit the others.

    Raises:
        FailedError: One does not fit, and there is no `refuse`.
    """
    return Tables(None, refuse or fail, 0).whole(rows, 1)


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column in its plain type."""
    if pa.types.is_run_end_encoded(column.type):
        parts = [pc.run_end_decode(part) for part in column.chunks]
        column = pa.chunked_array(parts, column.type.value_type)
    if column.type == pa.month_day_nano_interval():
        return pa.chunked_array([[text_of(value) for value in column.to_pylist()]], pa.string())
    wanted = plain_type(column.type)
    if pa.types.is_dictionary(column.type):
        # Arrow's own cast takes no dictionary of views, which Polars' categories are.
        parts = [part.dictionary.cast(wanted).take(part.indices) for part in column.chunks]
        return pa.chunked_array(parts, wanted)
    if wanted == column.type:
        return column
    try:
        return column.cast(wanted)
    except pa.ArrowNotImplementedError:  # such a dictionary in a nest
        return pa.chunked_array([array_of(values_of(column, texts=False), wanted)])


def rows_in(table: pa.Table, *, texts: bool = False) -> Iterator[list[Row]]:
    """A table's rows as lists of dicts.

    Args:
        table: Of plain types; see `table_of`.
        texts: Times as the texts that they become in NDJSON and CSV.
    """
    names = table.column_names
    for start in range(0, table.num_rows, _SLICE_ROWS):
        part = table.slice(start, _SLICE_ROWS)
        part = with_texts(part) if texts else part
        if all(is_python(field.type) for field in part.schema):
            yield part.to_pylist()
            continue
        columns = [values_of(column, texts=texts) for column in part.columns]
        yield [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def with_texts(table: pa.Table) -> pa.Table:
    """A table whose times are texts; but for a column that holds some that have none."""
    for number, field in enumerate(table.schema):
        if pa.types.is_temporal(field.type):
            texts = time_texts(table.column(number))
            # An array holds no errors: such a column stays, and goes value by value.
            if not any(isinstance(text, UnfitError) for text in texts):
                table = table.set_column(number, field.name, pa.array(texts, pa.string()))
    return table


def is_python(kind: pa.DataType) -> bool:
    """Whether pyarrow's own Python values of a type are those that we give."""
    types = pa.types
    if types.is_temporal(kind) or types.is_map(kind):
        return False
    children = [kind.field(n).type for n in range(kind.num_fields)]
    return types.is_union(kind) or all(map(is_python, children))


def values_of(column: pa.ChunkedArray, *, texts: bool) -> list[Any]:
    """A column's values: Python's, or texts where Python has no room for them."""
    kind = column.type
    if is_python(kind):
        return cast("list[Any]", column.to_pylist())
    if pa.types.is_nested(kind):
        return nested_values(column, texts=texts)
    if texts:
        return time_texts(column)
    if getattr(kind, "unit", "") == "ns":
        return nano_values(column)
    try:
        return cast("list[Any]", column.to_pylist())
    except (OverflowError, ValueError):
        return [_value_or_text(column.slice(n, 1)) for n in range(len(column))]


def _value_or_text(cell: pa.ChunkedArray) -> Any:
    """One time as Python's value, or as its text where it is out of Python's range."""
    try:
        return cell[0].as_py()
    except (OverflowError, ValueError):
        return time_texts(cell)[0]


def nano_values(column: pa.ChunkedArray) -> list[Any]:
    """Times, moments or durations that count nanoseconds."""
    kind = column.type
    counts = column.cast(pa.int64()).to_pylist()
    made = NanoTimedelta if pa.types.is_duration(kind) else NanoTime
    if not pa.types.is_timestamp(kind):
        return [None if count is None else nano(count, made) for count in counts]
    micros = pa.timestamp("us", kind.tz)
    # Rounded down first: a cast would cut towards zero, which is up before 1970.
    moments = pc.floor_temporal(column, unit="microsecond").cast(micros, safe=False).to_pylist()
    values = [
        None if at is None else NanoDatetime.combine(at.date(), at.timetz()) for at in moments
    ]
    for value, count in zip(values, counts, strict=True):
        if value is not None:
            value.nanosecond = count % 1000
    return values


def nested_values(column: pa.ChunkedArray, *, texts: bool) -> list[Any]:
    """Lists, structs and maps, their parts by the same rules."""
    found: list[Any] = []
    for part in column.chunks:
        kind, valid = part.type, part.is_valid().to_pylist()
        if pa.types.is_struct(kind):
            names = [field.name for field in kind]
            refuse_twice(names, "a struct")
            # `flatten` takes the slice and the nulls of the struct along; `field` does not.
            fields = [values_of(pa.chunked_array([child]), texts=texts) for child in part.flatten()]
            rows = [dict(zip(names, row, strict=True)) for row in zip(*fields, strict=True)]
            # Without fields there is nothing to zip, and still a value for each row.
            rows = rows or [{} for _ in valid]
        else:
            rows = list_values(part, texts=texts)
        found += [row if real else None for row, real in zip(rows, valid, strict=True)]
    return found


def list_values(part: pa.Array, *, texts: bool) -> list[Any]:
    """The lists of an array of lists, or the mappings of one of maps."""
    # A slice keeps all of its child array: only what its own offsets span belongs to it.
    offsets = part.offsets.to_pylist()
    first, last = offsets[0], offsets[-1]
    if pa.types.is_map(part.type):
        keys = values_of(pa.chunked_array([part.keys.slice(first, last - first)]), texts=texts)
        items = values_of(pa.chunked_array([part.items.slice(first, last - first)]), texts=texts)
        pairs = list(zip(keys, items, strict=True))
        return [mapping_of(pairs[a - first : b - first]) for a, b in pairwise(offsets)]
    values = values_of(pa.chunked_array([part.values.slice(first, last - first)]), texts=texts)
    return [values[a - first : b - first] for a, b in pairwise(offsets)]


def mapping_of(pairs: list[tuple[Any, Any]]) -> Any:
    """A map as a dict; as its pairs where a key stands twice."""
    made = dict(pairs)
    return made if len(made) == len(pairs) else [list(pair) for pair in pairs]


def time_texts(column: pa.ChunkedArray) -> list[Any]:
    """ISO 8601 of times, at whatever year; digits as `moment_text` and `duration_text` write."""
    kind, types = column.type, pa.types
    if types.is_duration(kind):
        counts, digits = column.cast(pa.int64()).to_pylist(), 9 if kind.unit == "ns" else 6
        factor = {"s": 10**6, "ms": 10**3}.get(kind.unit, 1)
        return [None if n is None else seconds_text(n * factor, digits) for n in counts]
    zone = getattr(kind, "tz", None)
    local = local_clocks(column) if zone else column
    texts: list[str | None] = local.cast(pa.string()).to_pylist()
    if types.is_date(kind):
        return [iso_time(text, "") for text in texts]
    if not zone:
        return [iso_time(text, _DIGITS[kind.unit]) for text in texts]
    # Arrow names no offsets: each is the local time less UTC.
    utc = column.cast(pa.timestamp(kind.unit))
    shifts = pc.subtract(local, utc).cast(pa.duration("s"), safe=False).cast(pa.int64()).to_pylist()
    ends = {n: f"{_DIGITS[kind.unit]}{offset_text(n)}" for n in set(shifts) if n is not None}
    pairs = zip(texts, shifts, strict=True)
    return [iso_time(text, "" if shift is None else ends[shift]) for text, shift in pairs]


def local_clocks(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column's moments as the clocks of its zone show them.

    Raises:
        FailedError: This machine does not know the zone.
    """
    try:
        return pc.local_timestamp(column)
    except pa.ArrowInvalid as error:
        raise FailedError(
            f"time zone {column.type.tz!r} is not known on this machine: install the system's "
            "tzdata, or convert the column"
        ) from error


def iso_time(text: str | None, ending: str) -> Any:
    """Arrow's text of a time as ISO 8601; what Arrow has no text for refuses itself later."""
    if text is None or text[0] != "<":
        return text and text.replace(" ", "T", 1) + ending
    return UnfitError("it is a time that no calendar reaches")


class Tables:
    """Batches as tables of one schema: the declared one, or that of the first chunk.

    Args:
        schema: What the class declares; without it, what comes first is held back until
            `first_bytes` of it are there, and columns and types are taken from that.
        refuse: Takes each record that does not fit.
        first_bytes: About so much is looked at before the schema is fixed.
    """

    def __init__(self, schema: pa.Schema | None, refuse: Refuse, first_bytes: int) -> None:
        self._schema, self._refuse, self._first_bytes = schema, refuse, first_bytes
        self._hint = f"; {HOW_TO_DECLARE}" if schema is None else ""
        self._held: list[tuple[int, Part, Columns]] = []
        self._held_bytes = 0.0

    def add(self, part: Part, start: int) -> Iterator[Numbered]:
        """Take rows, the first of which has the number `start`; yield what fits."""
        if self._schema is not None:
            yield from self._fitting(part, start)
            return
        self._held.append((start, part, columns_of(part)))
        self._held_bytes += size_of(part)
        if self._held_bytes >= self._first_bytes:
            yield from self.finish()

    def whole(self, rows: Part, start: int) -> pa.Table:
        """What fits of some rows, as one table."""
        made = [table for _, table in self.add(rows, start)]
        return pa.concat_tables(made) if made else cast("pa.Schema", self._schema).empty_table()

    def finish(self) -> Iterator[Numbered]:
        """Yield what is held back."""
        if self._held:
            self._schema = schema_of([(part, columns) for _, part, columns in self._held])
        for start, part, columns in self._held:
            yield from self._fitting(part, start, columns)
        self._held = []

    def _fitting(
        self, part: Part, start: int, columns: Columns | None = None
    ) -> Iterator[Numbered]:
        """The rows that fit the schema, found by halving; the others are refused."""
        try:
            yield start, self._made(len(part), columns or columns_of(part))
            return
        except _UNFIT as error:
            if len(part) == 1:
                why = error if isinstance(error, UnfitError) else UnfitError(_words(error))
                row = part.to_pylist()[0] if isinstance(part, pa.Table) else part[0]
                self._refuse(start, UnfitError(f"{why}{self._hint}", why.column), row)
                return
        # For one bad record among n it takes 2 log n tables; row by row it would take n.
        half = len(part) // 2
        yield from self._fitting(part[:half], start)
        yield from self._fitting(part[half:], start + half)

    def _made(self, count: int, columns: Columns) -> pa.Table:
        """A table of the schema, with this many rows.

        Raises:
            UnfitError: Of the first column that does not fit; others of `_UNFIT` likewise.
        """
        schema = cast("pa.Schema", self._schema)
        if extra := sorted(map(str, columns.keys() - set(schema.names))):
            raise UnfitError("the schema has no such column", extra[0])
        arrays = []
        for field in schema:
            try:
                values = columns.get(field.name)
                if values is None:
                    made = pa.nulls(count, field.type)
                else:
                    make = array_of if isinstance(values, list) else cast_column
                    made = make(values, field.type)
                if not field.nullable and made.null_count:
                    raise UnfitError("it is missing, and may not be null")
            except _UNFIT as error:
                raise UnfitError(_words(error), field.name) from error
            arrays.append(made)
        return pa.table(arrays, schema) if arrays else schema.empty_table()


def schema_of(parts: Sequence[tuple[Part, Columns]]) -> pa.Schema:
    """Columns and types of some parts; what a column's first types share is its own."""
    schemas = [part.schema for part, _ in parts if isinstance(part, pa.Table)]
    if len(schemas) == len(parts) and all(schemas[0].equals(one) for one in schemas):
        return schemas[0]
    found: dict[str, pa.DataType] = {}
    for _, columns in parts:
        for key, values in columns.items():
            name, kind = str(key), kind_of(values) if isinstance(values, list) else values.type
            if not is_valid(name):  # no schema holds it: its row is refused
                continue
            found[name] = joined(found.get(name, pa.null()), kind) or found[name]
    return pa.schema(list(found.items()))


def _words(error: BaseException) -> str:
    """Why a value does not fit, without the value itself where pyarrow says it."""
    if isinstance(error, UnfitError):
        return str(error)
    if isinstance(error, UnicodeError):
        return NOT_UTF8
    return "its value is out of the type's range, or has more digits than the type"


def size_of(rows: Part) -> float:
    """About how many bytes some rows are; of dicts, by the length of a few of them."""
    if isinstance(rows, pa.Table):
        return float(rows.nbytes)
    sample = rows[:: max(1, len(rows) // _SAMPLE_ROWS)]
    return sum(len(repr(row)) for row in sample) * len(rows) / max(1, len(sample))


def columns_of(rows: Part) -> Columns:
    """The columns of some rows, in the order in which they first come."""
    if isinstance(rows, pa.Table):
        return dict(zip(rows.column_names, rows.columns, strict=True))
    shapes = dict.fromkeys(map(tuple, rows))
    if len(shapes) == 1:
        [names] = shapes
        return {name: list(map(itemgetter(name), rows)) for name in names}
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(chain(*shapes))}


def cast_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column as another type that holds its values as they are.

    Raises:
        UnfitError: There is no such way between the two types.
    """
    if column.type == kind:
        return column
    if pa.types.is_string(kind) and pa.types.is_temporal(column.type):
        return pa.chunked_array([time_texts(column)], pa.string())
    if pa.types.is_null(kind) and column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column))])
    shared = joined(column.type, kind)
    narrower = is_number(column.type) and is_number(kind) and shared is not None
    if shared != kind and not narrower and not only_finer(column.type, kind):
        raise UnfitError(f"it is {column.type}, and the schema says {kind}")
    return column.cast(kind)
