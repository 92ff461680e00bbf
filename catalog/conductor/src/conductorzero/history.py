"""What was: response times, availability, memory and processor use over time, in SQLite.

Samples are gathered in memory and written once a minute, one row a handler; rows older than
a day are merged into hours, and hours past `keep_days` are dropped, so that the file stays
bounded. Response times are kept as counts on a logarithmic scale (5 % wide), so that the
percentiles of any stretch of time are exact to that width.

Owns `history.sqlite3` in the state folder. A disk that is full costs samples, never the fleet;
a file that is damaged is quarantined, and a new one begun.

Layer: catalog entry, imports public names of catalogzero only.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from catalogzero.sql import DamagedFileError, is_damage, open_file, quarantine

from conductorzero.board import Event
from conductorzero.fleet import JsonObject, number, part

MINUTE_S = 60
HOUR_S = 3_600
DAY_S = 86_400
SCALE = 1.05
FLOOR_MS = 0.01
EVENTS_KEPT = 20_000
MERGED_AT_ONCE = 10_000
WHOLE_FLEET = ""
"""Stands for all handlers together where an id is asked for."""

_SCHEMA = """
CREATE TABLE handler (id INTEGER PRIMARY KEY, handler_id TEXT NOT NULL UNIQUE);
CREATE TABLE sample (
    handler INTEGER NOT NULL REFERENCES handler (id),
    at INTEGER NOT NULL,             -- seconds since 1970, start of the step
    step_s INTEGER NOT NULL,
    asked INTEGER NOT NULL,
    alive INTEGER NOT NULL,
    latency TEXT NOT NULL,           -- {bin: count}
    figures INTEGER NOT NULL,        -- samples of memory and processor
    memory_mb REAL NOT NULL,         -- sums over `figures`
    cpu_percent REAL NOT NULL,
    in_flight_max INTEGER NOT NULL,
    PRIMARY KEY (handler, at)
) WITHOUT ROWID;
CREATE INDEX sample_step ON sample (step_s, at);
CREATE TABLE event (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, handler_id TEXT NOT NULL,
    kind TEXT NOT NULL, text TEXT NOT NULL, state TEXT NOT NULL
);
CREATE INDEX event_handler ON event (handler_id, id);
"""
_DELIVERY = """
ALTER TABLE sample ADD COLUMN delivered INTEGER NOT NULL DEFAULT 0;  -- rows
ALTER TABLE sample ADD COLUMN uploads_waiting_max INTEGER NOT NULL DEFAULT 0;
ALTER TABLE handler ADD COLUMN uploaded_records_total INTEGER;       -- as last seen
"""
STEPS = (_SCHEMA, _DELIVERY)
"""What brings a file from each schema version to the next; append only."""


@dataclass(slots=True)
class Bucket:
    """What was seen of one handler in one stretch of time; buckets can be added up."""

    asked: int = 0
    alive: int = 0
    latency: Counter[int] = field(default_factory=Counter)
    figures: int = 0
    memory_mb: float = 0.0
    cpu_percent: float = 0.0
    in_flight_max: int = 0
    delivered: int = 0
    uploads_waiting_max: int = 0

    def add_ping(self, response_time_ms: float | None) -> None:
        """Count one question; None is no answer."""
        self.asked += 1
        if response_time_ms is not None:
            self.alive += 1
            self.latency[bin_of(response_time_ms)] += 1

    def add_metrics(self, metrics: JsonObject) -> None:
        """Count one set of figures."""
        memory_mb = number(metrics.get("memory_mb"))
        cpu_percent = number(metrics.get("cpu_percent"))
        if memory_mb is not None and cpu_percent is not None:
            self.figures += 1
            self.memory_mb += memory_mb + (number(metrics.get("worker_memory_mb")) or 0)
            self.cpu_percent += cpu_percent
        in_flight = number(metrics.get("in_flight")) or 0
        self.in_flight_max = max(self.in_flight_max, int(in_flight))
        uploads = number(part(metrics, "outbox").get("uploads")) or 0
        self.uploads_waiting_max = max(self.uploads_waiting_max, int(uploads))

    def merge(self, other: Bucket) -> None:
        """Add another stretch to this one."""
        self.latency.update(other.latency)
        self.in_flight_max = max(self.in_flight_max, other.in_flight_max)
        self.uploads_waiting_max = max(self.uploads_waiting_max, other.uploads_waiting_max)
        for name in ("asked", "alive", "figures", "memory_mb", "cpu_percent", "delivered"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def percentile_ms(self, share: float) -> float | None:
        """The response time that this share of answers did not exceed; None without answers."""
        wanted, seen = share * self.latency.total(), 0
        for slot in sorted(self.latency):
            seen += self.latency[slot]
            if seen >= wanted:
                return round(ms_of(slot), 3)
        return None

    @classmethod
    def of(cls, columns: Sequence[Any]) -> Self:
        """The bucket in the last columns of a sample's row."""
        asked, alive, latency, *figures = columns
        counts = Counter({int(number): count for number, count in json.loads(latency).items()})
        return cls(asked, alive, counts, *figures)

    def columns(self) -> list[Any]:
        """The same as columns."""
        latency = json.dumps({str(number): n for number, n in sorted(self.latency.items())})
        row = [getattr(self, one.name) for one in fields(self)]
        return [latency if value is self.latency else value for value in row]

    def as_json(self) -> JsonObject:
        """The figures as charts show them; None where nothing was measured."""
        means = max(self.figures, 1)
        return {
            "asked": self.asked,
            "availability": self.alive / self.asked if self.asked else None,
            "p50_ms": self.percentile_ms(0.50),
            "p95_ms": self.percentile_ms(0.95),
            "memory_mb": round(self.memory_mb / means, 2) if self.figures else None,
            "cpu_percent": round(self.cpu_percent / means, 2) if self.figures else None,
            "in_flight_max": self.in_flight_max if self.figures else None,
            "delivered": self.delivered if self.figures else None,
            "uploads_waiting_max": self.uploads_waiting_max if self.figures else None,
        }


def bin_of(response_time_ms: float) -> int:
    """The number of the bin that holds this response time."""
    return math.ceil(math.log(max(response_time_ms, FLOOR_MS) / FLOOR_MS, SCALE) - 1e-9)


def ms_of(number: int) -> float:
    """The middle of a bin, in milliseconds."""
    return FLOOR_MS * SCALE ** (number - 0.5) if number else FLOOR_MS


class History:
    """The file. Its methods block for milliseconds: call them in a thread, from any.

    Args:
        path: The SQLite file; made when absent.
        keep_days: Days after which samples go.
        max_rows: Rows of samples kept at most; the oldest go first.

    `quarantined` names where a damaged file was moved to; None while none was.

    Raises:
        NewerSchemaError: A newer release wrote the file; it is not touched.
        ConfigError: It cannot be opened, or written: no rights, or a full disk.
        LockedFileError: Another process holds it.
    """

    def __init__(self, path: Path, *, keep_days: float = 30.0, max_rows: int = 1_000_000) -> None:
        self.path = path
        self.quarantined: Path | None = None
        self._keep_s = keep_days * DAY_S
        self._max_rows = max_rows
        self._lock = threading.Lock()
        self._ids: dict[str, int] = {}
        try:
            self._open()
        except DamagedFileError:
            self._begin_new()

    @property
    def damage(self) -> str:
        """That a damaged file was moved away, as a sentence; empty where none was."""
        if self.quarantined is None:
            return ""
        return (
            f"{self.path}: it was damaged, and a new one begun; the old one is {self.quarantined}"
        )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def write(
        self,
        at_s: int,
        buckets: Mapping[str, Bucket],
        events: Iterable[Event],
        totals: Mapping[str, int] | None = None,
    ) -> None:
        """Store the minute that began at `at_s`, with the events since the last one.

        Args:
            at_s: The start of the minute.
            buckets: What was seen in it, by handler.
            events: Those since the last write.
            totals: Rows that each handler has delivered in its life, as last seen.

        Raises:
            sqlite3.Error: The disk is full, or the file is damaged; nothing of it was stored.
                After damage the next write goes to a new file.
        """
        with self._lock:
            try:
                with self._db:  # all or nothing
                    self._db.execute("BEGIN IMMEDIATE")
                    for handler_id, bucket in buckets.items():
                        self._add(self._id_of(handler_id), at_s, MINUTE_S, bucket)
                    self._db.executemany(
                        "UPDATE handler SET uploaded_records_total = ? WHERE handler_id = ?",
                        [(total, handler_id) for handler_id, total in (totals or {}).items()],
                    )
                    self._db.executemany(
                        "INSERT INTO event (at, handler_id, kind, text, state)"
                        " VALUES (?, ?, ?, ?, ?)",
                        [(e.at.isoformat(), e.handler_id, e.kind, e.text, e.state) for e in events],
                    )
                    self._bound(at_s)
            except sqlite3.DatabaseError as error:
                # Numbers that were given in what was undone are free again.
                self._ids.clear()
                if is_damage(error):
                    self._db.close()
                    self._begin_new()
                raise

    def buckets(self, handler_id: str, since_s: int) -> list[tuple[int, Bucket]]:
        """What is stored of one handler from `since_s` on, oldest first."""
        query = (
            "SELECT sample.* FROM sample JOIN handler ON handler.id = sample.handler"
            " WHERE handler_id = ? AND at >= ? ORDER BY at"
        )
        with self._lock:
            rows = self._db.execute(query, (handler_id, since_s)).fetchall()
        return [(at, Bucket.of(columns)) for _, at, _, *columns in rows]

    def totals(self) -> dict[str, int]:
        """The rows that each handler had delivered in its life when it was last seen."""
        query = (
            "SELECT handler_id, uploaded_records_total FROM handler"
            " WHERE uploaded_records_total IS NOT NULL"
        )
        with self._lock:
            return dict(self._db.execute(query).fetchall())

    def events(self, handler_id: str | None, limit: int) -> list[JsonObject]:
        """The last stored events, newest first; those of a handler with those of its instances."""
        query = (
            "SELECT id AS seq, at, handler_id, kind, text, state FROM event"
            " WHERE handler_id = COALESCE(:id, handler_id)"
            " OR substr(handler_id, 1, length(:id) + 1) = :id || '/' ORDER BY id DESC LIMIT :limit"
        )
        with self._lock:
            found = self._db.execute(query, {"id": handler_id, "limit": limit})
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found]

    def rows(self) -> int:
        """How many rows of samples are stored."""
        with self._lock:
            return self._count()

    def _open(self) -> None:
        """Open the file, or make a new one."""
        pragmas = ("synchronous=NORMAL",)
        self._db = open_file(self.path, STEPS, pragmas=pragmas, writer="conductorzero")

    def _begin_new(self) -> None:
        """Move the damaged file aside, over one that was before, and open a new one."""
        self.quarantined = self.path.with_name(self.path.name + ".damaged")
        quarantine(self.path, self.quarantined)
        self._open()

    def _id_of(self, handler_id: str) -> int:
        """The number of a handler in this file."""
        if handler_id not in self._ids:
            self._db.execute("INSERT OR IGNORE INTO handler (handler_id) VALUES (?)", (handler_id,))
            found = self._db.execute("SELECT id FROM handler WHERE handler_id = ?", (handler_id,))
            self._ids[handler_id] = int(found.fetchone()[0])
        return self._ids[handler_id]

    def _add(self, handler: int, at_s: int, step_s: int, bucket: Bucket) -> None:
        """Store a bucket, added to what its step already holds."""
        query = "SELECT * FROM sample WHERE handler = ? AND at = ?"
        found = self._db.execute(query, (handler, at_s)).fetchone()
        total = Bucket.of(found[3:]) if found else Bucket()
        total.merge(bucket)
        row = [handler, at_s, step_s, *total.columns()]
        places = ", ".join("?" * len(row))
        self._db.execute(f"INSERT OR REPLACE INTO sample VALUES ({places})", row)  # noqa: S608

    def _bound(self, now_s: int) -> None:
        """Merge what is older than a day into hours; drop what is past the bounds.

        Where there are too many rows, minutes are merged earlier before hours are dropped.
        """
        self._merge_minutes((now_s - DAY_S) // HOUR_S * HOUR_S)
        # Both steps by name: the index begins with them.
        self._db.execute(
            "DELETE FROM sample WHERE step_s IN (?, ?) AND at < ?",
            (MINUTE_S, HOUR_S, now_s - self._keep_s),
        )
        self._db.execute(
            "DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?", (EVENTS_KEPT,)
        )
        if self._count() > self._max_rows:
            self._merge_minutes(now_s // HOUR_S * HOUR_S)
        if (excess := self._count() - self._max_rows) > 0:
            self._db.execute(
                "DELETE FROM sample WHERE (handler, at) IN"
                " (SELECT handler, at FROM sample ORDER BY step_s DESC, at LIMIT ?)",
                (excess,),
            )

    def _count(self) -> int:
        """How many rows of samples there are; for who has the lock."""
        with closing(self._db.execute("SELECT count(*) FROM sample")) as counted:
            return int(counted.fetchone()[0])

    def _merge_minutes(self, before_s: int) -> None:
        """Merge the oldest minutes before this moment into their hours, some at a time."""
        query = "SELECT * FROM sample WHERE step_s = ? AND at < ? ORDER BY at LIMIT ?"
        rows = self._db.execute(query, (MINUTE_S, before_s, MERGED_AT_ONCE)).fetchall()
        self._db.executemany(
            # First of all: the minute with which an hour begins has the hour's own key.
            "DELETE FROM sample WHERE handler = ? AND at = ?",
            [row[:2] for row in rows],
        )
        hours: dict[tuple[int, int], Bucket] = {}
        for handler, at_s, _, *columns in rows:
            hour = hours.setdefault((handler, at_s // HOUR_S * HOUR_S), Bucket())
            hour.merge(Bucket.of(columns))
        for (handler, at_s), bucket in hours.items():
            self._add(handler, at_s, HOUR_S, bucket)
