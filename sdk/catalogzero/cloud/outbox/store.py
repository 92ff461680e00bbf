"""The outbox's file: opened, checked, and written in transactions that survive a full disk.

Owns every statement, the outbox's own settings of SQLite, what becomes of a damaged file, and the
reserve. Knows no rule: what may be changed, and when, is `outbox`'s.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

from catalogzero.clock import Clock
from catalogzero.cloud.counters import OtherParams
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.rescue import Rescue, rescue
from catalogzero.cloud.outbox.schema import MIGRATIONS
from catalogzero.cloud.outbox.stored import (
    DAMAGED,
    PAUSED,
    UPLOADED,
    DamagedChunkError,
    Mark,
    MissingSource,
    OutboxTotals,
    Pause,
    Summary,
    Upload,
    UploadedTotals,
    as_text,
    from_text,
)
from catalogzero.config.state_folder import create_private
from catalogzero.errors import ConfigError, UnknownRunError
from catalogzero.sql import (
    DAMAGE_FIX,
    DamagedFileError,
    is_damage,
    open_file,
    open_to_read,
    quarantine,
    refuse_newer,
    version_in,
)
from catalogzero.sql.sqlite import explain
from catalogzero.wire.messages import JsonObject

RESCUE_FIX = "start the handler: it takes over what can be read, and names what cannot"
RESERVE_BYTES = 1 << 20
_FREE_PAGES = 2_048
_CHECKPOINT_PAGES = 1_000
LONG_QUEUE, TOTALS_S = 1_000, 1.0
"""Above this number of waiting uploads the figures are taken at most once in this time."""
_BEHIND_A_DEAD_LETTER = (
    "EXISTS (SELECT 1 FROM uploads e JOIN sources s USING (source_key)"
    " WHERE e.source_key = u.source_key AND e.seal_order < u.seal_order AND e.state = 'dead'"
    " AND (e.source_seq >= s.full_seq OR u.source_seq < s.full_seq))"
)
_FINAL = (
    "WITH RECURSIVE own (upload_id, again) AS ("
    " SELECT u.upload_id, json_extract(u.answer, '$.sealed_again_as')"
    " FROM json_each(?) JOIN uploads u ON u.upload_id = value"
    " UNION ALL SELECT u.upload_id, json_extract(u.answer, '$.sealed_again_as')"
    " FROM own JOIN uploads u ON u.upload_id = own.again),"
    " final AS (SELECT u.* FROM own JOIN uploads u USING (upload_id) WHERE again IS NULL) "
)
"""The uploads of a JSON list of ids, each as what it was sealed again as at last."""


class OutboxStore:
    """The SQLite file (WAL, `synchronous=FULL`) `outbox.sqlite` in a state folder.

    What only reads may be called at any time; what writes belongs into a `transaction`.

    Args:
        folder: The handler's state folder.
        clock: Names a damaged file that is quarantined, and dates uploads.
        read_only: Change nothing, neither file nor folder; another user's can be looked at.
        repair: Quarantine a damaged file, and take over what can be read of it; else damage is an
            error.

    Attributes:
        rescue: What came of a damaged file that was just found; None where the file was sound.
        lock: Held by whoever uses the file.

    Raises:
        ConfigError: The file was written by a newer release, or is damaged; it is left untouched.
    """

    def __init__(
        self, folder: Path, clock: Clock, *, repair: bool = True, read_only: bool = False
    ) -> None:
        self.path = folder / "outbox.sqlite"
        self.rescue: Rescue | None = None
        self._reserve = folder / "outbox.reserve"
        self.lock = threading.RLock()
        self._clock = clock
        self._totals: OutboxTotals | None = None
        self._totals_until_s = 0.0
        if read_only:
            self._db = open_to_read(self.path)
            return
        opened = partial(
            open_file,
            self.path,
            MIGRATIONS,
            pragmas=("synchronous=FULL", "secure_delete=FAST"),
            first_pragmas=("auto_vacuum=INCREMENTAL",),
            thorough=True,
        )
        try:
            self._db = opened()
        except DamagedFileError:
            if not repair:
                raise
            stamp = clock.now().strftime("%Y%m%dT%H%M%S%f")
            quarantined = folder / f"outbox.damaged-{stamp}.sqlite"
            quarantine(self.path, quarantined)
            self._db = opened()
            self.rescue = rescue(quarantined, self._db)
        self._keep_reserve()

    def close(self) -> None:
        """Close the file."""
        with self.lock:
            self._db.close()

    def refuse_damaged(self) -> None:
        """Look through the whole file.

        Raises:
            DamagedFileError: A page of it is damaged.
        """
        [(found,)] = self.execute("PRAGMA quick_check(1)")
        if found != "ok":
            raise explain(self.path, sqlite3.DatabaseError(found))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done meanwhile is one write transaction; a full disk is its caller's error."""
        with self.lock:
            # IMMEDIATE: a transaction that reads first and then writes beside another process would
            # be refused at its first write, and SQLite's busy timeout does not help there.
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self.execute("ROLLBACK")
                raise

    def drop_reserve(self) -> bool:
        """Give the reserve's space back to the disk; False without a reserve."""
        with self.lock, suppress(FileNotFoundError):
            self._reserve.unlink()
            self.execute("PRAGMA wal_autocheckpoint=0")  # else a checkpoint takes the room
            return True
        return False

    def tidy(self) -> None:
        """Give free space back to the disk, and make the reserve again; a full disk is no error."""
        with self.lock, suppress(sqlite3.OperationalError):
            self.execute(f"PRAGMA incremental_vacuum({_FREE_PAGES})")
            self.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._keep_reserve()

    def _keep_reserve(self) -> None:
        """Make the reserve file unless it exists or the disk is full."""
        if not self._reserve.exists():
            try:
                create_private(self._reserve)
                self._reserve.write_bytes(b"\0" * RESERVE_BYTES)
                self.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
            except OSError:
                self._reserve.unlink(missing_ok=True)

    # Any table

    def execute(self, sql: str, args: Sequence[Any] = ()) -> list[Any]:
        """Run one statement; its rows, all fetched before another thread may run one.

        Since Python 3.12 threads share a cached statement: a cursor that left the lock would
        answer what another thread asks.
        """
        with self.lock:
            return self._db.execute(sql, args).fetchall()

    def find(self, table: str, columns: str, **where: Any) -> list[Any]:
        """Columns of the rows in which each column named has the value, or one of a tuple's."""
        found, args = condition(where)
        return self.execute(f"SELECT {columns} FROM {table} WHERE {found}", args)  # noqa: S608  # our own names

    def insert(self, table: str, **columns: Any) -> None:
        """Put a row into a table."""
        names = ", ".join(f'"{name}"' for name in columns)
        places = ", ".join("?" * len(columns))
        sql = f"INSERT INTO {table} ({names}) VALUES ({places})"  # noqa: S608  # our own names
        self.execute(sql, list(columns.values()))

    def update(self, table: str, where: JsonObject, **changes: Any) -> int:
        """Set columns of the rows that `find` would find; how many there are."""
        changed = ", ".join(f'"{name}" = ?' for name in changes)
        found, args = condition(where)
        sql = f"UPDATE {table} SET {changed} WHERE {found}"  # noqa: S608  # our own names
        with self.lock:
            return self._db.execute(sql, [*changes.values(), *args]).rowcount

    def delete(self, table: str, **where: Any) -> None:
        """Delete the rows that `find` would find; all of them without a condition."""
        found, args = condition(where)
        self.execute(f"DELETE FROM {table} WHERE {found}", args)  # noqa: S608  # our own names

    # Facts

    def fact(self, name: str) -> Any:
        """A remembered JSON value, or None."""
        rows = self.find("facts", "value", name=name)
        return from_text(rows[0][0]) if rows else None

    def set_fact(self, name: str, value: Any) -> None:
        """Remember a JSON value under a name; None forgets it."""
        self.delete("facts", name=name)
        if value is not None:
            self.insert("facts", name=name, value=as_text(value))

    def pause(self) -> Pause | None:
        """Why nothing is sent, if that is so: of a handler that has ended, as it ended."""
        found = self.fact(PAUSED)
        if isinstance(found, str):  # as earlier releases kept it
            return {"reason": found, "code": "paused", "since": self.now(), "next_try_at": None}
        pause: Pause | None = found
        return pause

    def uploaded(self) -> UploadedTotals:
        """What the backend has acknowledged since the file was made."""
        found: UploadedTotals | None = self.fact(UPLOADED)
        return found or {"uploads": 0, "records": 0, "at": None}

    def damage(self) -> Rescue | None:
        """What a damaged file held that is lost; None once that file is removed."""
        found: Rescue | None = self.fact(DAMAGED)
        if found is None or not self.path.with_name(found["file"]).exists():
            return None
        return found

    # Uploads

    def uploads(self, states: Sequence[str] = (), limit: int = 1_000) -> list[Upload]:
        """Uploads of some states (all when empty), newest first."""
        where, args = condition({"state": tuple(states)} if states else {})
        return self._uploads(f"{where} ORDER BY number DESC LIMIT ?", (*args, limit))

    def upload(self, upload_id: str) -> Upload:
        """One upload, by its id or the start of it.

        Raises:
            UnknownRunError: None, or several.
        """
        found = self._uploads("upload_id = ?", (upload_id,)) or self._uploads(
            "substr(upload_id, 1, ?) = ? LIMIT 2", (len(upload_id), upload_id)
        )
        if len(found) != 1:
            raise UnknownRunError(
                f"{'several uploads' if found else 'no upload'} in the outbox: {upload_id}"
            )
        return found[0]

    def open_uploads(self, without: Iterable[str] = (), limit: int = 200) -> list[Upload]:
        """The first uploads that are not ended, in order; of an appended source, those that may go.

        Args:
            without: Ids of uploads that are not asked for.
            limit: How many, at most.
        """
        return self._uploads(
            "ended_at IS NULL AND upload_id NOT IN (SELECT value FROM json_each(?))"  # noqa: S608  # only constants
            f" AND NOT (mode <> 'replace' AND state <> 'building' AND {_BEHIND_A_DEAD_LETTER})"
            " ORDER BY COALESCE(seal_order, 9e18), number LIMIT ?",
            (as_text(list(without)), limit),
        )

    def _uploads(self, where: str, args: Sequence[Any]) -> list[Upload]:
        names = ", ".join(f'u."{name}"' for name in Upload.__dataclass_fields__)
        found = []
        for row in self.execute(f"SELECT {names} FROM uploads u WHERE {where}", args):  # noqa: S608  # only constants
            fields = dict(zip(Upload.__dataclass_fields__, row, strict=True))
            values = {name: from_text(fields[name]) for name in _JSON_COLUMNS}
            found.append(Upload(**{**fields, **values, "full": bool(fields["full"])}))
        return found

    def may_complete(self, upload: Upload, *, chunks: bool = True) -> bool:
        """Whether a sealed upload may be completed now.

        All chunks must be acknowledged (unless `chunks` is false), and where it appends, every
        earlier upload of its source must have ended; a `full` one waits for no dead letter.
        """
        rows = self.execute(
            "SELECT EXISTS (SELECT 1 FROM chunks WHERE upload_id = ? AND NOT acked),"  # noqa: S608  # only constants
            " u.mode <> 'replace' AND (EXISTS (SELECT 1 FROM uploads e"
            " WHERE e.source_key = u.source_key AND e.seal_order < u.seal_order"
            f" AND e.state IN ('sealed', 'completing')) OR {_BEHIND_A_DEAD_LETTER})"
            " FROM uploads u WHERE upload_id = ? AND seal_order IS NOT NULL",
            (upload.upload_id, upload.upload_id),
        )
        return bool(rows) and not rows[0][1] and not (chunks and rows[0][0])

    def is_open(self, upload_id: str) -> bool:
        """Whether an upload, or what it was sealed again as, has not ended."""
        return bool(self._final("SELECT 1 FROM final WHERE ended_at IS NULL", [upload_id]))

    def summary(self, upload_ids: Sequence[str], listed: int) -> Summary:
        """What became of uploads, each as what it was sealed again as; `listed` ids and answers."""
        states = self._final(
            "SELECT state, COUNT(*), SUM(records), SUM(bytes_sent), job_id,"
            " MAX(CASE WHEN job_id IS NOT NULL THEN number END) FROM final GROUP BY state",
            upload_ids,
        )
        ids = "SELECT upload_id FROM final ORDER BY number LIMIT ?"
        dead = "SELECT answer FROM final WHERE state = 'dead' ORDER BY number LIMIT ?"
        return Summary(
            {row[0]: row[1] for row in states},
            sum(row[2] for row in states),
            sum(row[3] for row in states),
            next((row[4] for row in states if row[4] is not None), None),
            [row[0] for row in self._final(ids, upload_ids, listed)],
            [from_text(row[0]) for row in self._final(dead, upload_ids, listed)],
        )

    def _final(self, select: str, upload_ids: Sequence[str], *args: Any) -> list[Any]:
        return self.execute(_FINAL + select, (as_text(upload_ids), *args))

    def held(self, upload_ids: Iterable[str]) -> dict[str, str]:
        """Those of some uploads whose sources are to be read again, each with its source_key."""
        return dict(
            self.execute(
                "SELECT upload_id, source_key FROM uploads WHERE state = 'held'"
                " AND upload_id IN (SELECT value FROM json_each(?)) ORDER BY number",
                (as_text(list(upload_ids)),),
            )
        )

    def older_dead_letters(self, upload_id: str) -> list[tuple[str, str | None]]:
        """Dead letters of an open upload's source that it replaces, each with its answer."""
        return self.execute(
            "SELECT d.upload_id, d.answer FROM uploads u JOIN uploads d USING (source_key)"
            " WHERE u.upload_id = ? AND u.mode = 'replace' AND d.mode = 'replace'"
            " AND u.ended_at IS NULL AND d.state = 'dead' AND d.source_seq < u.source_seq",
            (upload_id,),
        )

    def comparable(self, source_key: str) -> list[Any]:
        """A source's uploads that the backend may have, in sealing order, as rows."""
        return self.execute(
            "SELECT upload_id, mode, \"full\", source_seq, base, after, until, state = 'dead'"
            " FROM uploads WHERE source_key = ? AND (state IN ('sealed', 'completing')"
            " OR state = 'dead' AND json_extract(answer, '$.superseded') IS NULL)"
            " ORDER BY seal_order",
            (source_key,),
        )

    def totals(self) -> OutboxTotals:
        """The outbox in figures; of a long queue they are as of a second ago at most.

        They take a look at each upload that waits: asked at each change, that of 100,000 would be
        most of the work of sending them.
        """
        now_s = self._clock.monotonic()
        if self._totals is not None and now_s < self._totals_until_s:
            return self._totals
        [row] = self.execute(
            "SELECT COALESCE(SUM(ended_at IS NULL), 0), COALESCE(SUM(records), 0),"
            " COALESCE(SUM(bytes), 0), COALESCE(SUM(state = 'dead'), 0),"
            " MIN(CASE state WHEN 'held' THEN NULL ELSE created_at END),"
            " (SELECT COUNT(*) FROM sources WHERE missing)"
            " FROM uploads WHERE ended_at IS NULL OR state IN ('dead', 'held')"
        )
        self._totals = OutboxTotals(*row)
        self._totals_until_s = now_s + (TOTALS_S if self._totals.uploads > LONG_QUEUE else 0.0)
        return self._totals

    def newest(self) -> int:
        """The number of the newest upload; 0 without any."""
        return int(self.execute("SELECT COALESCE(MAX(number), 0) FROM uploads")[0][0])

    def copy_upload(self, old: str, new: str) -> None:
        """Another upload like one, sealed in its place under an upload_id of its own."""
        copied = (
            'source_key, source, mode, "full", params, upload_key, source_seq, after, until,'
            " chunks, records, bytes, seal_order, created_at, base, watermark_of, stream, keyed"
        )
        self.execute(
            f"INSERT INTO uploads (upload_id, state, {copied})"  # noqa: S608  # only constants
            f" SELECT ?, 'sealed', {copied} FROM uploads WHERE upload_id = ?",
            (new, old),
        )

    def set_upload(self, upload_id: str, **columns: Any) -> None:
        """Set columns of an upload."""
        self.update("uploads", {"upload_id": upload_id}, **columns)

    def seal_upload(self, upload_id: str, **columns: Any) -> None:
        """Make an upload the last that is sealed."""
        [(order,)] = self.execute("SELECT COALESCE(MAX(seal_order), 0) + 1 FROM uploads")
        self.set_upload(upload_id, state="sealed", seal_order=order, **columns)

    def count_sent(self, upload_id: str, size: int) -> None:
        """Count bytes that left for an upload."""
        sql = "UPDATE uploads SET bytes_sent = bytes_sent + ? WHERE upload_id = ?"
        self.execute(sql, (size, upload_id))

    def end_upload(
        self, upload_id: str, state: str, *, job_id: str | None = None, answer: Any = None
    ) -> None:
        """End an upload that is open, dead or held; its chunks go, unless it is so now."""
        self.execute(
            "UPDATE uploads SET state = ?, job_id = ?, answer = ?, ended_at = ?"
            " WHERE upload_id = ? AND (ended_at IS NULL OR state IN ('dead', 'held'))",
            (state, job_id, as_text(answer), self.now(), upload_id),
        )
        if state not in {"dead", "held"}:
            self.delete("chunks", upload_id=upload_id)

    def forget_ended(self, kept: int, below: int) -> None:
        """Drop the rows of ended uploads with a number below one, but for the newest `kept`."""
        self.execute(
            "DELETE FROM uploads"
            " WHERE state IN ('done', 'superseded', 'abandoned', 'overtaken')"
            " AND number <= (SELECT MAX(number) FROM uploads) - ? AND number < ?",
            (kept, below),
        )

    def now(self) -> str:
        """The time as the file keeps it."""
        return self._clock.now().isoformat()

    # Chunks

    def add_chunk(self, upload_id: str, chunk: Chunk) -> bool:
        """Keep a chunk of an upload that is building; False where it is not."""
        size = len(chunk.body)
        with self.lock:
            changed = self._db.execute(
                "UPDATE uploads SET chunks = chunks + 1, records = records + ?, bytes = bytes + ?"
                " WHERE upload_id = ? AND state = 'building'",
                (chunk.records, size, upload_id),
            ).rowcount
        if changed:
            about = {"upload_id": upload_id, "bytes": size, "crc": crc32(chunk.body)}
            self.insert("chunks", **about, **asdict(chunk))
        return changed == 1

    def unsent(self, upload_id: str, limit: int) -> list[int]:
        """The numbers of the first chunks that the backend has not acknowledged."""
        rows = self.execute(
            "SELECT seq FROM chunks WHERE upload_id = ? AND NOT acked ORDER BY seq LIMIT ?",
            (upload_id, limit),
        )
        return [row[0] for row in rows]

    def next_chunk(self, upload_id: str) -> Chunk | None:
        """The first chunk that the backend has not acknowledged; raises as `chunk` does."""
        seqs = self.unsent(upload_id, 1)
        return self.chunk(upload_id, seqs[0]) if seqs else None

    def chunk(self, upload_id: str, seq: int) -> Chunk | None:
        """A chunk with its body; None when its upload has ended meanwhile.

        Raises:
            DamagedChunkError: Its bytes are not those that were stored.
        """
        columns, handler_id = "crc, seq, records, body, coding, content_type", self.path.parent.name
        try:
            rows = self.find("chunks", columns, upload_id=upload_id, seq=seq)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            raise DamagedChunkError(handler_id, upload_id, seq, str(error)) from error
        if not rows:
            return None
        crc, chunk = rows[0][0], Chunk(*rows[0][1:])
        if crc is not None and crc != crc32(chunk.body):  # version 1 kept none
            raise DamagedChunkError(handler_id, upload_id, seq, "its checksum differs")
        return chunk

    def bodies(self, upload_id: str) -> Iterator[Chunk]:
        """The chunks of an upload, in order."""
        for (seq,) in sorted(self.find("chunks", "seq", upload_id=upload_id)):
            chunk = self.chunk(upload_id, seq)
            if chunk is not None:
                yield chunk

    # Sources

    def mark(self, source_key: str) -> Mark:
        """What was sealed last of a source."""
        for row in self.execute(
            "SELECT upload_id, upload_key, stamp, watermark, mode, bound, owed,"
            " (SELECT d.upload_id FROM uploads d WHERE d.source_key = s.source_key"
            " AND d.state = 'dead' AND (d.upload_id = s.upload_id"
            " OR d.mode <> 'replace' AND d.source_seq >= s.full_seq) LIMIT 1)"
            " , keyed, recent, missing, base FROM sources s WHERE source_key = ?",
            (source_key,),
        ):
            stamp, watermark, bound, keyed = (from_text(row[index]) for index in (2, 3, 5, 8))
            return Mark(
                upload_id=row[0],
                upload_key=row[1],
                stamp=stamp,
                watermark=watermark,
                mode=row[4],
                bound=bound,
                owed=bool(row[6]),
                dead=row[7],
                keyed=keyed,
                recent=row[9],
                missing=bool(row[10]),
                base=row[11],
            )
        return Mark()

    def missing_sources(self, limit: int = 20) -> list[MissingSource]:
        """Sources whose last upload the backend does not have, or no longer."""
        rows = self.execute(
            "SELECT source_key, (SELECT u.source FROM uploads u WHERE u.source_key = s.source_key"
            " ORDER BY u.number DESC LIMIT 1) FROM sources s WHERE missing"
            " ORDER BY source_key LIMIT ?",
            (limit,),
        )
        return [{"source_key": row[0], "source": row[1]} for row in rows]

    def under_other_policy(self, policy: str) -> int:
        """How many sources were last sent under another egress policy than this one."""
        sql = "SELECT COUNT(*) FROM sources WHERE upload_id IS NOT NULL AND policy <> ?"
        return int(self.execute(sql, (policy,))[0][0])

    def also_under(self, found_by: str, params: Any, limit: int) -> list[OtherParams]:
        """The sources of a call that are stored under other params as well, each with those."""
        rows = self.execute(
            "SELECT o.source, o.params FROM sources s JOIN sources o USING (source)"
            " WHERE s.found_by = ? AND s.params = ? AND o.params <> s.params"
            " AND COALESCE(o.upload_id, o.upload_key) IS NOT NULL ORDER BY 1, 2 LIMIT ?",
            (found_by, as_text(params), limit),
        )
        return [{"source": source, "params": from_text(others)} for source, others in rows]

    def waiting(self, found_by: str, params: Any) -> set[str]:
        """The source_keys of a call's sources whose content waits for them to be read again."""
        rows = self.execute(
            "SELECT u.source_key FROM uploads u JOIN sources s USING (source_key)"
            " WHERE u.state = 'held' AND s.found_by = ? AND s.params = ?",
            (found_by, as_text(params)),
        )
        return {row[0] for row in rows}

    def known_sources(self) -> list[str]:
        """The source_keys of all sources that have a mark or an upload that is open."""
        rows = self.execute(
            "SELECT source_key FROM sources UNION SELECT source_key FROM uploads"
            " WHERE ended_at IS NULL"
        )
        return [row[0] for row in rows]

    def know_source(self, source_key: str, high: int = 0) -> None:
        """Have a row for a source, in which `high` is at least this."""
        self.execute(
            "INSERT INTO sources (source_key, high) VALUES (?, ?) ON CONFLICT (source_key)"
            " DO UPDATE SET high = MAX(high, excluded.high)",
            (source_key, high),
        )

    def set_source(self, source_key: str, **columns: Any) -> None:
        """Set columns of a source."""
        self.update("sources", {"source_key": source_key}, **columns)

    def forget_announced(self) -> None:
        """Drop the sources that are known from a backend's report alone."""
        self.execute(
            "DELETE FROM sources WHERE source IS NULL AND COALESCE(upload_id, upload_key) IS NULL"
            " AND source_key NOT IN (SELECT source_key FROM uploads)"
        )

    def copy_sources(self, other: Path) -> None:
        """Take over the sources of another outbox's file, which may be of an earlier version."""
        self.execute("ATTACH ? AS other", (str(other),))
        found = self.execute("SELECT name FROM pragma_table_info('sources', 'other')")
        columns = ", ".join(name for (name,) in found)
        self.execute(f"INSERT INTO sources ({columns}) SELECT {columns} FROM other.sources")  # noqa: S608  # our own columns
        self.execute("DETACH other")


_JSON_COLUMNS = ("params", "after", "until", "answer", "keyed")


@contextmanager
def looked_at(folder: Path, clock: Clock) -> Iterator[OutboxStore | None]:
    """The outbox of a state folder, which is not changed; None where it has none.

    Raises:
        ConfigError: The file is damaged, or of another release.
        OSError: The folder cannot be read.
    """
    path = folder / "outbox.sqlite"
    if not path.exists():
        yield None
        return
    try:
        refuse_newer(path, found := version_in(path), len(MIGRATIONS))
        if 0 < found < len(MIGRATIONS):
            text = "is of an older release: the next start of its handler brings it forward"
            raise ConfigError(f"{path} {text}")
        with closing(OutboxStore(folder, clock, repair=False, read_only=True)) as store:
            yield store
    except (sqlite3.Error, DamagedFileError) as error:
        known = error if isinstance(error, DamagedFileError) else explain(path, error)
        if isinstance(known, DamagedFileError):
            # To move it away would lose what can be read of it.
            known = DamagedFileError(known.message.replace(DAMAGE_FIX, RESCUE_FIX))
        raise known from None


def condition(where: JsonObject) -> tuple[str, list[Any]]:
    """A condition, and its arguments: each column equals its value, or one of a tuple's."""
    tests, args = ["1"], list[Any]()
    for name, value in where.items():
        several = value if isinstance(value, tuple) else (value,) if value is not None else ()
        places = ", ".join("?" * len(several))
        tests.append(f'"{name}" ' + ("IS NULL" if value is None else f"IN ({places})"))
        args += several
    return " AND ".join(tests), args


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk has no room, or that a file may not grow."""
    code = getattr(error, "sqlite_errorname", "")
    return code == "SQLITE_FULL" or str(code).startswith("SQLITE_IOERR_WRITE")
