"""The vendor's SaaS side: the reference backend, and what stands in its own database.

Owns the folder `backend/`. The figures are read by SQL over the backend's database, opened
read-only, never through an answer of the backend.

Layer: edge.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from examples.quickstart.flights import Count
from examples.quickstart.processes import Processes
from examples.quickstart.vendor import COMMAND

VISIBLE = """
SELECT count(*), coalesce(sum(CAST(json_extract(payload, '$.distance') AS INTEGER)), 0)
FROM visible_records
"""
CLASSES = """
SELECT json_extract(payload, '$.delay_class'), count(*) FROM visible_records GROUP BY 1 ORDER BY 1
"""
OPEN_CHUNKS = """
SELECT count(*) FROM chunks JOIN uploads USING (upload_no) WHERE uploads.ended_at IS NULL
"""
COMPLETED = "SELECT count(*) FROM uploads WHERE job_id IS NOT NULL"
HEALTH = "SELECT health_report FROM installations WHERE installation_id = 'client-one'"


class Backend:
    """The reference backend on SQLite."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self.processes = processes
        self.folder = folder
        self.database = folder / "backend.db"

    def tenant(self, key_file: Path) -> None:
        """Make a tenant for the client; its API key goes into a file, and on no screen."""
        self.folder.mkdir(parents=True)
        self.processes.run(
            "backend-tenant",
            *(COMMAND, "backend", "tenants", "add", "client-one"),
            *("--database", self.database, "--key-file", key_file),
            cwd=self.folder,
        )

    def start(self, port: int) -> None:
        """Serve it on a loopback port."""
        serve = (COMMAND, "backend", "serve", "--port", str(port), "--database", self.database)
        self.processes.start("backend", *serve, cwd=self.folder)

    def visible(self) -> Count:
        """Rows of completed uploads, and the sum of their `distance`."""
        ((rows, distance),) = self._query(VISIBLE)
        return Count(rows, distance)

    def classes(self) -> dict[str, int]:
        """How many visible flights each delay class has."""
        return dict(self._query(CLASSES))

    def open_chunks(self) -> int:
        """Chunks of uploads that are not complete."""
        return int(self._query(OPEN_CHUNKS)[0][0])

    def completed(self) -> int:
        """How many uploads were ever completed."""
        return int(self._query(COMPLETED)[0][0])

    def health(self) -> dict[str, Any] | None:
        """The newest health report of the client's installation."""
        rows = self._query(HEALTH)
        return dict(json.loads(rows[0][0])) if rows and rows[0][0] else None

    def _query(self, sql: str) -> Sequence[Any]:
        uri = f"file:{self.database}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=30)) as connection:
            return connection.execute(sql).fetchall()
