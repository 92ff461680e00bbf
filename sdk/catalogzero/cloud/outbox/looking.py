"""Looking at an outbox's file without opening it as an outbox: light, and changing nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from catalogzero.errors import CatalogZeroError
from catalogzero.runtime.control_answers import UploadRecord
from catalogzero.sql import open_to_read

FILE_NAME = "outbox.sqlite"


def uploads_of(folder: Path, upload_ids: Sequence[str]) -> list[UploadRecord]:
    """What became of these uploads, in their order; without those that are not known any more."""
    places = ", ".join("?" * len(upload_ids))
    sql = (
        "SELECT upload_id, state, records, bytes, CASE state WHEN 'done' THEN ended_at END,"  # noqa: S608  # only marks
        " json_extract(answer, '$.reason') FROM uploads"
        f" WHERE upload_id IN ({places}) ORDER BY number"
    )
    try:
        with closing(open_to_read(folder / FILE_NAME)) as db:
            rows = db.execute(sql, upload_ids).fetchall()
    except (CatalogZeroError, sqlite3.Error):  # no file any more, or a damaged one
        return []
    return [
        {
            "upload_id": row[0],
            "state": row[1],
            "records": row[2],
            "bytes": row[3],
            "completed_at": row[4],
            "reason": row[5],
        }
        for row in rows
    ]
