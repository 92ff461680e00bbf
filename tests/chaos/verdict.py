"""What the backend shows, compared with what the client has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

PARTIAL = """
SELECT COUNT(*) FROM uploads u
LEFT JOIN (SELECT upload_no, COUNT(*) AS there FROM records GROUP BY upload_no) r
  ON r.upload_no = u.upload_no
WHERE u.visible AND u.records <> COALESCE(r.there, 0)
"""
BESIDE = """
SELECT COUNT(*) FROM (SELECT source_id FROM uploads WHERE visible AND mode = 'replace'
GROUP BY source_id HAVING COUNT(*) > 1) AS twice
"""
OPEN_CHUNKS = """
SELECT COUNT(*) FROM chunks c JOIN uploads u ON u.upload_no = c.upload_no WHERE u.state = 'open'
"""


class Record(NamedTuple):
    """A visible record; `order` is its source_seq, chunk and place in it."""

    stream: str
    source: str
    order: tuple[int, int, int]
    row: dict[str, Any]


@dataclass(slots=True)
class Difference:
    """Rows that the client has, that are not shown, and that are shown too often."""

    rows: int = 0
    lost: int = 0
    twice: int = 0


class Verdict:
    """Looks into the backend's database, beside the backend."""

    def __init__(self, database: str) -> None:
        self._engine = sa.create_engine(database, poolclass=sa.NullPool)
        self.is_sqlite = self._engine.dialect.name == "sqlite"

    def partial(self) -> int:
        """Visible uploads without all their rows, or beside another of a source that replaces."""
        return self._count(PARTIAL) + self._count(BESIDE)

    def open_chunks(self) -> int:
        """Chunks of uploads that are not completed."""
        return self._count(OPEN_CHUNKS)

    def open_uploads(self) -> int:
        """Uploads that are not completed."""
        return self._count("SELECT COUNT(*) FROM uploads WHERE state = 'open'")

    def completed_uploads(self) -> int:
        """Uploads that were ever completed."""
        return self._count("SELECT COUNT(*) FROM uploads WHERE job_id IS NOT NULL")

    def records(self, view: str = "visible_records") -> Iterator[Record]:
        """What a view shows."""
        columns = "stream, source, source_seq, seq, row_index, payload"
        with self._engine.connect() as db:
            for stream, source, *order, payload in db.execute(
                sa.text(f"SELECT {columns} FROM {view}")  # noqa: S608  # our own views
            ):
                number, seq, row = order
                yield Record(stream, source, (number, seq, row), json.loads(payload))

    def _count(self, question: str) -> int:
        with self._engine.connect() as db:
            return int(db.execute(sa.text(question)).scalar_one())


def difference(expected: dict[str, Counter[str]], shown: dict[str, Counter[str]]) -> Difference:
    """All that is visible against all that must be."""
    found = Difference()
    for source in expected.keys() | shown.keys():
        there, got = expected.get(source, Counter()), shown.get(source, Counter())
        found.rows += there.total()
        found.lost += (there - got).total()
        found.twice += (got - there).total()
    return found
