"""Deleting the rows of uploads, as many as fit into one transaction.

Owns how much that is; whose rows may go is decided by whoever calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from catalogzero.backend.schema import chunks, record_keys, records

HEALTH_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class StepSize:
    """How much one transaction looks at and deletes at most, but one chunk at least."""

    uploads: int = 500
    chunks: int = 1_000
    records: int = 10_000
    sources: int = 100


STEP = StepSize()


def delete_some(connection: sa.Connection, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    """Delete rows of a table, `HEALTH_BATCH` at most; how many they were."""
    key = sa.tuple_(*table.primary_key.columns)
    some = sa.select(*table.primary_key.columns).where(which).limit(HEALTH_BATCH)
    return connection.execute(sa.delete(table).where(key.in_(some))).rowcount


class Cleared(NamedTuple):
    """What one step deleted: `whole` are the uploads of which nothing is left to delete."""

    whole: list[int]
    chunks: int
    records: int


def clear(
    connection: sa.Connection,
    victims: Sequence[int],
    which: sa.ColumnElement[bool] | None = None,
    size: StepSize = STEP,
) -> Cleared:
    """Delete chunks of these uploads with their rows, in order, as many as fit into one step.

    Args:
        connection: Of a transaction that holds the uploads.
        victims: The uploads' numbers.
        which: Only these chunks.
        size: How many fit.
    """
    if not victims:
        return Cleared([], 0, 0)
    due = connection.execute(
        sa.select(chunks.c.upload_no, chunks.c.seq, chunks.c.records)
        .where(chunks.c.upload_no.in_(victims), sa.true() if which is None else which)
        .order_by(chunks.c.upload_no, chunks.c.seq)
        # one more than fits: whether anything is left then
        .limit(size.chunks + 1)
    ).all()
    taken, rows = 0, 0
    for row in due[: size.chunks]:
        if taken and rows + row.records > size.records:
            break
        taken, rows = taken + 1, rows + row.records
    ranges = ranges_of(due[:taken])
    for table in (records, record_keys, chunks) if ranges else ():
        between = table.c.seq.between(sa.bindparam("first"), sa.bindparam("last"))
        one = sa.and_(table.c.upload_no == sa.bindparam("number"), between)
        connection.execute(sa.delete(table).where(one), ranges)
    left = due[taken].upload_no if taken < len(due) else None
    whole = [number for number in victims if left is None or number < left]
    return Cleared(whole, taken, rows)


def ranges_of(found: Sequence[Any]) -> list[dict[str, int]]:
    """The chunks as ranges without a gap, in the order that they have."""
    ranges: list[dict[str, int]] = []
    for row in found:
        last = ranges[-1] if ranges else None
        if last and (last["number"], last["last"]) == (row.upload_no, row.seq - 1):
            last["last"] = row.seq
        else:
            ranges.append({"number": row.upload_no, "first": row.seq, "last": row.seq})
    return ranges
