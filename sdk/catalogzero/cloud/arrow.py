"""Arrow: files as pyarrow tables, the fast way (extra `parquet`).

Loaded only in the worker, and only where Arrow or Parquet is asked for.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from catalogzero.cloud.records import BadRecords, Dialect, ReadOptions, column_names, detect
from catalogzero.cloud.settings import Batch
from catalogzero.errors import FailedError

_BLOCK_BYTES = 1 << 19


def csv_tables(
    content: io.BufferedIOBase, name: str, options: ReadOptions, bad: BadRecords
) -> Iterator[Batch]:
    """The tables of a CSV file; every column is text, as in dict batches."""
    dialect = detect(content, name, options)
    head = content.peek(1 << 16)  # type: ignore[attr-defined]  # a BufferedReader or a GzipFile
    if not head:
        return
    lines = io.StringIO(head.decode(dialect.encoding, "replace"), newline="")
    columns = column_names(next(csv.reader(lines, delimiter=dialect.delimiter), []), name)
    failed: list[FailedError] = []
    try:
        for batch in _csv_reader(content, dialect, columns, _rule(name, bad, failed)):
            yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        if failed:
            raise failed[0] from error
        if "straddling" in str(error):
            raise FailedError(
                f"{name}: a row is longer than {_BLOCK_BYTES} bytes, the most that Arrow batches "
                'take: use batch_type = "dict"'
            ) from error
        if "Empty CSV file" not in str(error):
            raise FailedError(f"{name}: {error}") from error


def _csv_reader(
    content: io.BufferedIOBase, dialect: Dialect, columns: list[str], rule: Callable[[Any], str]
) -> Iterable[Any]:
    """pyarrow's streaming reader; it reads some 32 blocks ahead."""
    return pc.open_csv(  # type: ignore[no-any-return]  # pyarrow has no types
        content,
        pc.ReadOptions(
            use_threads=False,
            block_size=_BLOCK_BYTES,
            encoding=dialect.encoding.removesuffix("-sig"),
            column_names=columns,
            skip_rows=1,
        ),
        pc.ParseOptions(
            delimiter=dialect.delimiter, newlines_in_values=True, invalid_row_handler=rule
        ),
        pc.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        ),
    )


def _rule(name: str, bad: BadRecords, failed: list[FailedError]) -> Callable[[Any], str]:
    """What pyarrow asks about a malformed row; an error it would swallow goes to `failed`."""

    def malformed(row: Any) -> str:
        why = f"{row.actual_columns} fields, and the header has {row.expected_columns}"
        try:
            bad.take(name, row.number, why, row.text)
        except FailedError as error:
            failed.append(error)
            return "error"
        return "skip"

    return malformed


def parquet_batches(content: io.BufferedIOBase, name: str, options: ReadOptions) -> Iterator[Batch]:
    """The batches of a Parquet file: tables, or lists of dicts."""
    whole = getattr(getattr(content, "raw", None), "whole", None)
    if whole is None:
        raise FailedError(f"{name}: a Parquet file packs itself: take the .gz or .zst off")
    try:
        file = pq.ParquetFile(whole())
        for batch in file.iter_batches(batch_size=options.batch_rows):
            yield pa.Table.from_batches([batch]) if options.arrow else batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise FailedError(f"{name} is no readable Parquet file: {error}") from error


def tables_of(batches: Iterable[list[dict[str, Any]]]) -> Iterator[Batch]:
    """Tables of dict batches; each has the columns of its own rows."""
    for batch in batches:
        columns = dict.fromkeys(name for row in batch for name in row)
        yield pa.table({name: [row.get(name) for row in batch] for name in columns})
