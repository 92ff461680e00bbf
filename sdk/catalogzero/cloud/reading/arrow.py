"""Arrow: files as pyarrow tables, the fast way (extra `parquet`).

A CSV file is cut into blocks at the borders of its records. What pyarrow reads as the csv module
does, it gets as whole blocks; the rest is read row by row. Loaded only in the worker, and only
where Arrow or Parquet is asked for.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from catalogzero.cloud.reading.csv_rows import CELL_CHARS, CsvFile
from catalogzero.cloud.reading.records import Found, ReadOptions, refuse_names
from catalogzero.cloud.reading.text import line_ends
from catalogzero.cloud.rows.tables import rows_in, table_of
from catalogzero.cloud.rows.values import Row
from catalogzero.cloud.settings import Batch
from catalogzero.errors import FailedError

_BLOCKS = 4


def csv_tables(file: CsvFile, options: ReadOptions) -> Iterator[Batch]:
    """The tables of a CSV file, of a block each; every column is text, as in dict batches."""
    for table in parsed_blocks(file, options):
        if isinstance(table, bytes):
            columns = list(zip(*file.rows(table), strict=True)) or [()] * len(file.columns)
            arrays = [pa.array(column, pa.string()) for column in columns]
            table = pa.table(arrays, names=file.columns)
        yield table


def csv_dicts(file: CsvFile, options: ReadOptions) -> Iterator[Iterable[Row]]:
    """The rows of what is left of a CSV file, some at a time."""
    for table in parsed_blocks(file, options):
        if isinstance(table, bytes):
            yield file.dicts(table)
        else:
            yield from rows_in(table)


def parsed_blocks(file: CsvFile, options: ReadOptions) -> Iterator[pa.Table | bytes]:
    """The blocks of a CSV file: each as a table, or as it is, for `rows` to read before the next.

    They hold whole lines; what is left of one behind its last whole record begins the next.
    """
    text, mark = file.text, re.escape(file.delimiter.encode())
    # Possessive (`*+`): by trying again it would take time quadratic in the block.
    regular = re.compile(
        rb'(?:[^"]*+(?<![^%b\r\n])"[^"]*+"(?:"[^"]*+")*+(?=[%b\r\n]))*+[^"]*+' % (mark, mark)
    )
    for block in iter(partial(text.block, _BLOCKS * options.block_bytes), b""):
        border = record_border(block, regular)
        table = parsed_table(file, block[:border]) if border else None
        if table is None:
            yield block
            continue
        text.line += line_ends(block[:border])
        if border < len(block):
            text.put_back(block[border:])
        yield table


def record_border(block: bytes, regular: re.Pattern[bytes]) -> int:
    """How far a block holds whole records, each of whose quotes opens a cell or closes it."""
    if b'"' not in block:
        return len(block)
    end = at = regular.match(block).end()  # type: ignore[union-attr]  # it matches nothing, too
    if end == len(block):
        return end
    line_end, quotes = (b"\n" if b"\n" in block else b"\r"), 0
    while (found := block.rfind(line_end, 0, at)) >= 0:
        quotes += block.count(b'"', found, at)
        if quotes % 2 == 0:  # up to `end` all are regular, so this line end is in none of them
            return found + 1
        at = found
    return 0


def parsed_table(file: CsvFile, lines: bytes) -> pa.Table | None:
    """The table of regular lines; None where pyarrow refuses them, or reads otherwise than csv."""
    columns, delimiter = file.columns, file.delimiter
    # A cell may be too long, which is for `rows` to refuse; and pyarrow would take a mark off
    # the start of each block, where the csv module keeps it.
    if len(lines) > CELL_CHARS or not delimiter.isascii() or lines.startswith(codecs.BOM_UTF8):
        return None
    read = pc.ReadOptions(column_names=columns, block_size=len(lines) + 1)
    form = pc.ParseOptions(
        delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=len(columns) > 1
    )
    convert = pc.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
    )
    try:
        return pc.read_csv(pa.BufferReader(lines), read, form, convert)
    except pa.ArrowInvalid:
        return None


def parquet_batches(content: Any, found: Found, options: ReadOptions) -> Iterator[Batch]:
    """The batches of a Parquet file: tables, or lists of dicts."""
    name, whole = found.source, getattr(getattr(content, "raw", None), "whole", None)
    if whole is None:
        raise FailedError(f"{name}: a Parquet file packs itself: take the .gz or .zst off")
    try:
        file = pq.ParquetFile(whole(), coerce_int96_timestamp_unit="us")
        found.columns = len(file.schema_arrow)
        refuse_fields_twice(pa.struct(file.schema_arrow), name)
        for batch in file.iter_batches(batch_size=options.batch_rows):
            table = table_of(batch, name)
            yield table if options.arrow else [row for rows in rows_in(table) for row in rows]
    except (pa.ArrowInvalid, OSError) as error:
        raise FailedError(f"{name} is not a readable Parquet file: {error}") from error


def refuse_fields_twice(kind: pa.DataType, where: str) -> None:
    """Refuse two fields of one name, at any depth."""
    fields = [kind.field(number) for number in range(kind.num_fields)]
    if pa.types.is_struct(kind):
        refuse_names([field.name for field in fields], where)
    for field in fields:
        refuse_fields_twice(field.type, f"{where}, in {field.name!r}")
