"""What can be read of a damaged outbox, taken over into a new one; what cannot, named.

Plain SQL by ranges of keys, halved around what cannot be read, so that one bad page costs the rows
that lie in it. Knows which rows belong together; never talks to a backend.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypedDict

import orjson

TABLES = ("facts", "sources", "uploads", "chunks")
BATCH_KEYS = 64
MAX_HALVINGS = 100_000
ROWS_A_PAGE = 200
"""No page holds more: a row of ours has more than 20 bytes."""
REASON = "the outbox's file was damaged, and a part of this upload cannot be read"


class Lost(TypedDict):
    """One upload that cannot be sent whole; `source` is empty where it is not known either."""

    upload_id: str
    source: str
    chunks: list[int]


class Rescue(TypedDict):
    """What came of a damaged file: rows taken over by table, and the uploads that were lost."""

    file: str
    rows: dict[str, int]
    lost: list[Lost]


def rescue(damaged: Path, into: sqlite3.Connection) -> Rescue:
    """Take over what can be read, in one transaction.

    An upload of which a part is lost becomes a dead letter, and its source counts as not read.
    """
    rows: dict[str, int] = {}
    unreadable: dict[str, int] = {}
    into.execute("BEGIN IMMEDIATE")
    with into, closing(sqlite3.connect(damaged, isolation_level=None)) as old:
        for table in TABLES:
            known = {row[1] for row in into.execute(f"PRAGMA table_info({table})")}
            rows[table], unreadable[table] = take_over(old, into, table, known)
        lost = name_lost(into)
        if unreadable["uploads"]:
            into.execute(
                "UPDATE sources SET upload_id = NULL, upload_key = NULL, stamp = NULL"
                " WHERE upload_id NOT IN (SELECT upload_id FROM uploads)"
            )
    return {"file": damaged.name, "rows": rows, "lost": lost}


def take_over(
    old: sqlite3.Connection, into: sqlite3.Connection, table: str, known: set[str]
) -> tuple[int, int]:
    """Copy a table's rows; how many, and how many ranges cannot be read."""
    names: list[str] = []
    with suppress(sqlite3.DatabaseError):
        names = [row[1] for row in old.execute(f"PRAGMA table_info({table})")]
    names = [name for name in names if name in known]
    if not names:
        return 0, 1
    columns = ", ".join(f'"{name}"' for name in names)
    places = ", ".join("?" * len(names))
    insert = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({places})"  # noqa: S608  # our own names
    select = f"SELECT {columns} FROM {table} WHERE rowid BETWEEN ? AND ? ORDER BY rowid"  # noqa: S608  # the same
    count = unreadable = 0
    for found in readable_rows(old, select, last_key(old, table)):
        if found is None:
            unreadable += 1
        else:
            into.executemany(insert, found)
            count += len(found)
    return count, unreadable


def last_key(old: sqlite3.Connection, table: str) -> int:
    """The last row's key, or one that hardly any is above."""
    try:
        row = old.execute(f"SELECT MAX(rowid) FROM {table}").fetchone()  # noqa: S608  # our own name
        return int(row[0] or 0)
    except sqlite3.DatabaseError:
        return int(old.execute("PRAGMA page_count").fetchone()[0]) * ROWS_A_PAGE


def readable_rows(old: sqlite3.Connection, select: str, last: int) -> Iterator[list[Any] | None]:
    """The rows up to a key, in order, halving ranges that cannot be read; None for one of those."""
    left = MAX_HALVINGS
    for begin in range(0, last + 1, BATCH_KEYS):
        ranges = [(begin, min(begin + BATCH_KEYS - 1, last))]
        while ranges:
            low, high = ranges.pop()
            try:
                yield old.execute(select, (low, high)).fetchall()
            except sqlite3.DatabaseError:
                left -= 1
                # Without a bound a file of which every page is bad would take hours to give up.
                if low == high or left < 0:
                    yield None
                else:
                    middle = (low + high) // 2
                    ranges += [(middle + 1, high), (low, middle)]


def name_lost(into: sqlite3.Connection) -> list[Lost]:
    """The uploads of which chunks, or the row itself, are not there; they end, or are refused."""
    there = defaultdict(set)
    for upload_id, seq in into.execute("SELECT upload_id, seq FROM chunks"):
        there[upload_id].add(seq)
    waiting = into.execute(
        "SELECT upload_id, source, chunks, state FROM uploads"
        " WHERE ended_at IS NULL OR state IN ('dead', 'held')"
    ).fetchall()
    lost: list[Lost] = []
    for upload_id, source, chunks, state in waiting:
        absent = [seq for seq in range(chunks) if seq not in there.get(upload_id, ())]
        if absent and state != "building":
            lost.append({"upload_id": upload_id, "source": source, "chunks": absent})
            answer = orjson.dumps({"reason": REASON, "damaged_chunks": absent}).decode()
            into.execute(
                "UPDATE uploads SET state = 'dead', answer = ?, ended_at = created_at"
                " WHERE upload_id = ?",
                (answer, upload_id),
            )
            forget_mark(into, upload_id)
    for upload_id in there.keys() - {row[0] for row in waiting}:
        known = into.execute("SELECT 1 FROM uploads WHERE upload_id = ?", (upload_id,)).fetchone()
        into.execute("DELETE FROM chunks WHERE upload_id = ?", (upload_id,))
        if known is None:
            lost.append({"upload_id": upload_id, "source": "", "chunks": []})
            forget_mark(into, upload_id)
    return lost


def forget_mark(into: sqlite3.Connection, upload_id: str) -> None:
    """The source of a lost upload counts as not read; an appended one waits for an operator."""
    into.execute(
        "UPDATE sources SET upload_id = NULL, upload_key = NULL, stamp = NULL, missing = 1"
        " WHERE upload_id = ? AND COALESCE(mode, 'replace') = 'replace'",
        (upload_id,),
    )
