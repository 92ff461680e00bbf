"""Looking at an outbox without opening it as an outbox: light, and changing nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from catalogzero.cloud.outbox.stored import SharedStore, from_text
from catalogzero.errors import CatalogZeroError
from catalogzero.runtime.control_answers import UploadRecord
from catalogzero.sql import open_to_read

FILE_NAME = "outbox.sqlite"


def uploads_of(
    folder: Path, upload_ids: Sequence[str], shared: SharedStore | None = None
) -> list[UploadRecord]:
    """What became of these uploads, in their order; without those that are not known any more."""
    places = ", ".join("?" * len(upload_ids))
    sql = (
        "SELECT upload_id, state, records, bytes, CASE state WHEN 'done' THEN ended_at END,"  # noqa: S608  # only marks
        f" answer FROM uploads WHERE upload_id IN ({places}) ORDER BY number"
    )
    try:
        rows = rows_of_file(folder, sql, upload_ids) if shared is None else None
        if shared is not None:
            from catalogzero.cloud.outbox.outbox_database import OutboxDatabase

            with closing(OutboxDatabase(shared, folder, read_only=True)) as database:
                rows = database.execute(sql, upload_ids)
    except (CatalogZeroError, sqlite3.Error):  # no file any more, or a damaged one
        return []
    return [
        {
            "upload_id": row[0],
            "state": row[1],
            "records": row[2],
            "bytes": row[3],
            "completed_at": row[4],
            "reason": (from_text(row[5]) or {}).get("reason"),
        }
        for row in rows or ()
    ]


def rows_of_file(folder: Path, sql: str, args: Sequence[str]) -> list[Any]:
    """The rows that the file in a state folder has."""
    with closing(open_to_read(folder / FILE_NAME)) as db:
        return db.execute(sql, args).fetchall()
