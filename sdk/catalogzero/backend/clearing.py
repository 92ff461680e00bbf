"""Deleting the rows of uploads, as many as fit into one transaction.

Owns how much that is; whose rows may go is decided by whoever calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    bindparam,
    delete,
    select,
    true,
    tuple_,
)

from catalogzero.backend.schema import chunks, records

UPLOADS_A_STEP, CHUNKS_A_STEP, RECORDS_A_STEP = 500, 1_000, 10_000
"""How much one transaction looks at and deletes at most, but one chunk at least."""
HEALTH_BATCH = 5_000


def delete_some(connection: Connection, table: Table, which: ColumnElement[bool]) -> int:
    """Delete rows of a table, `HEALTH_BATCH` at most; how many they were."""
    key = tuple_(*table.primary_key.columns)
    some = select(*table.primary_key.columns).where(which).limit(HEALTH_BATCH)
    return connection.execute(delete(table).where(key.in_(some))).rowcount


class Cleared(NamedTuple):
    """What one step deleted: `whole` are the uploads of which nothing is left to delete."""

    whole: list[int]
    chunks: int
    records: int


def clear(
    connection: Connection, victims: Sequence[int], which: ColumnElement[bool] | None = None
) -> Cleared:
    """Delete chunks of these uploads with their rows, in order, as many as fit into one step.

    Args:
        connection: Of a transaction that holds the uploads.
        victims: The uploads' numbers.
        which: Only these chunks.
    """
    if not victims:
        return Cleared([], 0, 0)
    due = connection.execute(
        select(chunks.c.upload_no, chunks.c.seq, chunks.c.records)
        .where(chunks.c.upload_no.in_(victims), true() if which is None else which)
        .order_by(chunks.c.upload_no, chunks.c.seq)
        .limit(CHUNKS_A_STEP + 1)
    ).all()
    taken, size = 0, 0
    for row in due[:CHUNKS_A_STEP]:
        if taken and size + row.records > RECORDS_A_STEP:
            break
        taken, size = taken + 1, size + row.records
    ranges = _ranges(due[:taken])
    for table in (records, chunks) if ranges else ():
        between = table.c.seq.between(bindparam("first"), bindparam("last"))
        one = and_(table.c.upload_no == bindparam("number"), between)
        connection.execute(delete(table).where(one), ranges)
    left = due[taken].upload_no if taken < len(due) else None
    whole = [number for number in victims if left is None or number < left]
    return Cleared(whole, taken, size)


def _ranges(found: Sequence[Any]) -> list[dict[str, int]]:
    """The chunks as ranges without a gap, in the order that they have."""
    ranges: list[dict[str, int]] = []
    for row in found:
        last = ranges[-1] if ranges else None
        if last and (last["number"], last["last"]) == (row.upload_no, row.seq - 1):
            last["last"] = row.seq
        else:
            ranges.append({"number": row.upload_no, "first": row.seq, "last": row.seq})
    return ranges
