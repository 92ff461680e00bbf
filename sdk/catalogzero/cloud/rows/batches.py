"""Batches: what `process` and `read` may yield, in one of two kinds: rows or a table.

Lists of dicts need no pyarrow; frames are taken by the Arrow PyCapsule interface.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeIs

from catalogzero.cloud.extras import require_extra
from catalogzero.cloud.rows.values import Row
from catalogzero.cloud.settings import ArrowStream, Batch
from catalogzero.errors import FailedError

if TYPE_CHECKING:
    import pyarrow as pa

    from catalogzero.cloud.rows.tables import Part

_SLICE_ROWS = 8_192


def is_frame(batch: object) -> TypeIs[ArrowStream]:
    """Whether a batch is a frame of pyarrow, pandas, Polars, DuckDB or their like."""
    return hasattr(batch, "__arrow_c_stream__")


def parts_of(batch: Any) -> Iterator[Part]:
    """A batch as tables, or as lists of dicts; a stream is read on as it is asked for.

    Raises:
        FailedError: It is neither a frame nor a list of dicts, or two columns have one name.
    """
    if is_frame(batch):
        yield from tables_in(batch)
        return
    if isinstance(batch, Mapping | str | bytes) or not isinstance(batch, Iterable):
        raise FailedError(
            "process yields batches: lists of dicts, or frames of pyarrow, pandas, Polars or "
            f"DuckDB; this is a {type(batch).__name__}"
        )
    rows = batch if isinstance(batch, list) else list(batch)
    for start in range(0, len(rows), _SLICE_ROWS):
        # A slice is a plain list, also of a class that counts who goes through it.
        is_small = type(rows) is list and len(rows) <= _SLICE_ROWS
        part = rows if is_small else rows[start : start + _SLICE_ROWS]
        if (kinds := set(map(type, part))) == {dict}:
            yield part
            continue
        for kind in kinds:
            if not issubclass(kind, Mapping):
                raise FailedError(f"a record is a dict, and this is a {kind.__name__}")
        yield list(map(dict, part))


def rows_of(batch: Batch) -> Iterator[Row]:
    """The rows of a batch as dicts; a value that Python has no room for as its text.

    Raises:
        FailedError: See `parts_of`.
    """
    return chain.from_iterable(lists_of(batch))


def lists_of(batch: Batch, *, texts: bool = False) -> Iterator[list[Row]]:
    """The rows of a batch, as lists of dicts.

    Args:
        batch: Of any kind.
        texts: Times of a frame as the texts that they become in NDJSON and CSV.
    """
    for part in parts_of(batch):
        if isinstance(part, list):
            yield part
        else:
            from catalogzero.cloud.rows.tables import rows_in

            yield from rows_in(part, texts=texts)


def row_count(batch: Any) -> int:
    """How many rows a batch has; 0 of a stream, which says it only at its end."""
    for name in ("num_rows", "height"):
        if isinstance(count := getattr(batch, name, None), int):
            return count
    return len(batch) if hasattr(batch, "__len__") else 0


def mixed_cell(frame: Any) -> str:
    """Row and column of pandas' first value that does not fit those before it; empty without."""
    import pyarrow as pa

    def fails(values: list[Any]) -> bool:
        try:
            pa.array(values)
        except (pa.ArrowException, OverflowError):
            return True
        return False

    for name in frame.columns:
        values = list(frame[name])
        if fails(values):
            row = bisect_left(range(1, len(values)), True, key=lambda n: fails(values[:n])) + 1
            kind = type(values[row - 1]).__name__
            return f"row {row}, column {name}: a {kind} does not fit the values before it"
    return ""


def whole_table(frame: Any) -> pa.Table:
    """A frame as one table of plain types."""
    import pyarrow as pa

    return pa.concat_tables(list(tables_in(frame)))


def tables_in(frame: Any) -> Iterator[pa.Table]:
    """The tables of a frame, one for each piece of a stream."""
    require_extra("parquet")
    import pyarrow as pa

    from catalogzero.cloud.rows.tables import table_of

    if isinstance(frame, pa.Table | pa.RecordBatch):
        yield table_of(frame)
        return
    index = hasattr(frame, "reset_index")  # pandas may add its index to the columns
    try:
        if type(frame).__module__.partition(".")[0] == "pandas":
            # As its stream does, without the index, and without threads: they cost more than they
            # save in a batch.
            found = pa.Table.from_pandas(frame, preserve_index=False, nthreads=1)
            reader = found.to_reader()
        else:
            reader = pa.RecordBatchReader.from_stream(frame)
    except (pa.ArrowException, TypeError) as error:
        kind, place = type(frame).__name__, mixed_cell(frame) if index else ""
        raise FailedError(
            f"process yields frames, and this {kind} is not one: {place or error}"
        ) from error
    with reader as pieces:
        for piece in pieces:
            table = pa.Table.from_batches([piece], pieces.schema)
            yield table_of(table.select(list(map(str, frame.columns))) if index else table)
