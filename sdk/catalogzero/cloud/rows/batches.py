"""Batches: what `process` and `read` may yield, in one of two kinds: rows or a table.

Lists of dicts need no pyarrow; frames are taken by the Arrow PyCapsule interface.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from catalogzero.cloud.extras import require_extra
from catalogzero.cloud.settings import Batch
from catalogzero.errors import FailedError

if TYPE_CHECKING:
    import pyarrow as pa

    from catalogzero.cloud.rows.tables import Part

_SLICE_ROWS = 8_192


def is_frame(batch: Batch) -> bool:
    """Whether a batch is a frame of pyarrow, pandas, Polars, DuckDB or their like."""
    return hasattr(batch, "__arrow_c_stream__")


def parts_of(batch: Batch) -> Iterator[Part]:
    """A batch as tables, or as lists of dicts; a stream is read on as it is asked for.

    Raises:
        FailedError: It is neither a frame nor a list of dicts, or two columns have one name.
    """
    if is_frame(batch):
        yield from _tables_in(batch)
        return
    if isinstance(batch, Mapping | str | bytes) or not isinstance(batch, Iterable):
        raise FailedError(
            "process yields batches: lists of dicts, or frames of pyarrow, pandas, Polars or "
            f"DuckDB; this is a {type(batch).__name__}"
        )
    rows = batch if isinstance(batch, list) else list(batch)
    for start in range(0, len(rows), _SLICE_ROWS):
        part = rows if len(rows) <= _SLICE_ROWS else rows[start : start + _SLICE_ROWS]
        yield part if set(map(type, part)) == {dict} else [_as_dict(row) for row in part]


def rows_of(batch: Batch) -> Iterator[dict[str, Any]]:
    """The rows of a batch as dicts; a value that Python has no room for as its text.

    Raises:
        FailedError: See `parts_of`.
    """
    return chain.from_iterable(lists_of(batch))


def lists_of(batch: Batch, *, texts: bool = False) -> Iterator[list[dict[str, Any]]]:
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


def row_count(batch: Batch) -> int:
    """How many rows a batch has; 0 of a stream, which says it only at its end."""
    for name in ("num_rows", "height"):
        if isinstance(count := getattr(batch, name, None), int):
            return count
    return len(batch) if hasattr(batch, "__len__") else 0


def whole_table(frame: Any) -> pa.Table:
    """A frame as one table of plain types."""
    import pyarrow as pa

    return pa.concat_tables(list(_tables_in(frame)))


def _tables_in(frame: Any) -> Iterator[pa.Table]:
    """The tables of a frame, one for each piece of a stream."""
    require_extra("parquet")
    import pyarrow as pa

    from catalogzero.cloud.rows.tables import table_of

    if isinstance(frame, pa.Table | pa.RecordBatch):
        yield table_of(frame)
        return
    index = hasattr(frame, "reset_index")  # pandas may add its index to the columns
    try:
        reader = pa.RecordBatchReader.from_stream(frame)
    except (pa.ArrowException, TypeError) as error:
        kind = type(frame).__name__
        raise FailedError(f"process yields frames, and this {kind} is none: {error}") from error
    with reader as pieces:
        for piece in pieces:
            table = pa.Table.from_batches([piece], pieces.schema)
            yield table_of(table.select(list(map(str, frame.columns))) if index else table)


def _as_dict(row: Any) -> dict[str, Any]:
    """A row as a dict.

    Raises:
        FailedError: It is none.
    """
    if not isinstance(row, Mapping):
        raise FailedError(f"a record is a dict, and this is a {type(row).__name__}")
    return row if isinstance(row, dict) else dict(row)
