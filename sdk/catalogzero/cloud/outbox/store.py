"""What the outbox holds, as statements: uploads, chunks, sources, facts, and who is at work.

Owns every statement, in the SQL that SQLite and PostgreSQL have in common. The file or the database
that it runs in is `outbox_file`'s or `outbox_database`'s. Knows no rule: what may be changed, and
when, is `outbox`'s.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from catalogzero.clock import Clock
from catalogzero.cloud.counters import OtherParams
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.looking import FILE_NAME
from catalogzero.cloud.outbox.outbox_database import OutboxDatabase
from catalogzero.cloud.outbox.outbox_file import OutboxFile
from catalogzero.cloud.outbox.rescue import Rescue
from catalogzero.cloud.outbox.schema import MIGRATIONS, SHARED_MIGRATIONS
from catalogzero.cloud.outbox.stored import (
    DAMAGED,
    OF_EACH_INSTANCE,
    PAUSED,
    UPLOADED,
    DamagedChunkError,
    Mark,
    MissingSource,
    OutboxTotals,
    Pause,
    SharedStore,
    Summary,
    Upload,
    UploadedTotals,
    as_text,
    from_text,
)
from catalogzero.errors import ConfigError, UnknownRunError, UnreachableError
from catalogzero.sql import (
    DAMAGE_FIX,
    DamagedFileError,
    is_damage,
    refuse_newer,
    version_in,
)
from catalogzero.sql.sqlite import explain
from catalogzero.wire.messages import JsonObject

T = TypeVar("T")

STORE_FAULTS = (sqlite3.Error, UnreachableError)
"""What is raised where the file's disk, or the database, is at fault: later it may go well."""
RESCUE_FIX = "start the handler: it takes over what can be read, and names what cannot"
LONG_QUEUE, TOTALS_S = 1_000, 1.0
"""Above this number of waiting uploads the figures are taken at most once in this time."""
BEHIND_A_DEAD_LETTER = (
    "EXISTS (SELECT 1 FROM uploads e JOIN sources s ON s.source_key = e.source_key"
    " WHERE e.source_key = u.source_key AND e.seal_order < u.seal_order AND e.state = 'dead'"
    " AND (e.source_seq >= s.full_seq OR u.source_seq < s.full_seq))"
)
BEHIND_ANOTHER = (
    "EXISTS (SELECT 1 FROM uploads e WHERE e.source_key = u.source_key"
    " AND e.seal_order < u.seal_order AND e.state IN ('sealed', 'completing'))"
)
"""Whether an upload `u` of a range waits for an earlier one of its source, refused or not."""
IN_ORDER = "COALESCE(seal_order, 9e18), number"


class OutboxStore:
    """The outbox of a handler: a file in its state folder, or a schema that instances share.

    What only reads may be called at any time; what writes belongs into `write`.

    Args:
        folder: The handler's state folder.
        clock: Names a damaged file that is quarantined, and dates uploads.
        shared: The database, where instances share it.
        read_only: Change nothing, neither file nor folder; another user's can be looked at.
        repair: See `OutboxFile`.

    Attributes:
        base: The file or the database.
        rescue: What came of a damaged file that was just found; None where the file was sound.
        lock: Held by whoever uses it.

    Raises:
        ConfigError: A newer release wrote it, or it is damaged; it is left untouched.
        UnreachableError: The database does not answer.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        shared: SharedStore | None = None,
        *,
        repair: bool = True,
        read_only: bool = False,
    ) -> None:
        self._clock = clock
        self._totals: OutboxTotals | None = None
        self._totals_until_s = 0.0
        self.rescue: Rescue | None = None
        self.base: OutboxFile | OutboxDatabase
        if shared is None:
            self.base = OutboxFile(folder, clock, repair=repair, read_only=read_only)
            self.rescue = self.base.rescue
        else:
            self.base = OutboxDatabase(shared, folder, read_only=read_only)
        base = self.base
        self.folder, self.handler_id, self.is_shared = base.folder, base.handler_id, base.is_shared
        self.lock, self.execute, self.change = base.lock, base.execute, base.change
        self.close, self.refuse_damaged, self.tidy = base.close, base.refuse_damaged, base.tidy
        self.drop_reserve = base.drop_reserve
        # The uploads of a JSON list of ids, each as what it was sealed again as at last.
        again = base.json_text("u.answer", "sealed_again_as")
        self._final_sql = (
            "WITH RECURSIVE own (upload_id, again) AS ("  # noqa: S608  # only constants
            f" SELECT u.upload_id, {again} FROM uploads u WHERE u.upload_id IN ({base.each})"
            f" UNION ALL SELECT u.upload_id, {again}"
            " FROM own JOIN uploads u ON u.upload_id = own.again),"
            " final AS (SELECT u.* FROM own JOIN uploads u ON u.upload_id = own.upload_id"
            " WHERE again IS NULL) "
        )

    def write(self, work: Callable[[], T], *, of_one: bool = False) -> T:
        """Run work in one write transaction.

        It is run again where one came to nothing for want of the database.

        Args:
            work: What is written.
            of_one: It changes one upload alone: whoever shares the store need not wait for it.
        """
        return self.base.write(work, of_one=of_one)

    # Any table

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
        return self.change(sql, [*changes.values(), *args])

    def delete(self, table: str, **where: Any) -> None:
        """Delete the rows that `find` would find; all of them without a condition."""
        found, args = condition(where)
        self.execute(f"DELETE FROM {table} WHERE {found}", args)  # noqa: S608  # our own names

    # Facts

    def fact(self, name: str) -> Any:
        """A remembered JSON value, or None."""
        rows = self.find("facts", "value", name=self._kept_as(name))
        return from_text(rows[0][0]) if rows else None

    def set_fact(self, name: str, value: Any) -> None:
        """Remember a JSON value under a name; None forgets it."""
        kept_as = self._kept_as(name)
        self.delete("facts", name=kept_as)
        if value is not None:
            self.insert("facts", name=kept_as, value=as_text(value))

    def _kept_as(self, name: str) -> str:
        """The name of a fact: what each instance knows of its own way has its instance's."""
        is_own = self.base.owner and name in OF_EACH_INSTANCE
        return f"{name}@{self.base.owner}" if is_own else name

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
        if found is None or not (self.folder / found["file"]).exists():
            return None
        return found

    # What is counted for all that share the store

    def book_pace(self, seconds: float) -> float:
        """Book seconds of the way to the backend; how many seconds until they begin."""
        sql = (
            "UPDATE pace SET free_at = GREATEST(free_at, clock_timestamp())"
            " + make_interval(secs => ?)"
            " RETURNING CAST(EXTRACT(EPOCH FROM free_at - clock_timestamp()) AS DOUBLE PRECISION)"
        )
        [(until_s,)] = self.execute(sql, [seconds])
        return max(float(until_s) - seconds, 0.0)

    def last_audited(self) -> tuple[int, int, int, bytes | None]:
        """The number of the audit log's newest line, of its pushes, its bytes, and the line."""
        sql = "SELECT number, pushes, total_bytes, line FROM audit ORDER BY number DESC LIMIT 1"
        for number, pushes, total_bytes, line in self.execute(sql):
            return number, pushes, total_bytes, bytes(line)
        return 0, 0, 0, None

    def audited(self, above: int, limit: int) -> list[tuple[int, bytes]]:
        """The audit log's lines above a number, in order, each with its own."""
        sql = "SELECT number, line FROM audit WHERE number > ? ORDER BY number LIMIT ?"
        return [(number, bytes(line)) for number, line in self.execute(sql, [above, limit])]

    def forget_audited(self, below_bytes: int) -> None:
        """Drop the lines with which the audit log had no more bytes than these."""
        self.execute("DELETE FROM audit WHERE total_bytes <= ?", [below_bytes])

    # Uploads

    def uploads(self, states: Sequence[str] = (), limit: int = 1_000) -> list[Upload]:
        """Uploads of some states (all when empty), newest first."""
        where, args = condition({"state": tuple(states)} if states else {})
        return self.uploads_where(f"{where} ORDER BY number DESC LIMIT ?", (*args, limit))

    def upload(self, upload_id: str) -> Upload:
        """One upload, by its id or the start of it.

        Raises:
            UnknownRunError: None, or several.
        """
        found = self.uploads_where("upload_id = ?", (upload_id,)) or self.uploads_where(
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
        return self.uploads_where(
            f"ended_at IS NULL AND upload_id NOT IN ({self.base.each})"  # only constants
            f" AND NOT (mode <> 'replace' AND state <> 'building' AND {BEHIND_A_DEAD_LETTER})"
            f" ORDER BY {IN_ORDER} LIMIT ?",
            (as_text(list(without)), limit),
        )

    def uploads_where(self, where: str, args: Sequence[Any]) -> list[Upload]:
        """The uploads `u` for which a condition holds, with what orders and limits them."""
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
            "SELECT EXISTS (SELECT 1 FROM chunks WHERE upload_id = ? AND acked = 0),"  # noqa: S608  # only constants
            f" u.mode <> 'replace' AND ({BEHIND_ANOTHER} OR {BEHIND_A_DEAD_LETTER})"
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
            "SELECT state, COUNT(*), CAST(SUM(records) AS BIGINT), CAST(SUM(bytes_sent) AS BIGINT)"
            " FROM final GROUP BY state",
            upload_ids,
        )
        jobs = "SELECT job_id FROM final WHERE job_id IS NOT NULL ORDER BY number DESC LIMIT 1"
        ids = "SELECT upload_id FROM final ORDER BY number LIMIT ?"
        dead = "SELECT answer FROM final WHERE state = 'dead' ORDER BY number LIMIT ?"
        return Summary(
            {row[0]: row[1] for row in states},
            sum(row[2] for row in states),
            sum(row[3] for row in states),
            next((row[0] for row in self._final(jobs, upload_ids)), None),
            [row[0] for row in self._final(ids, upload_ids, listed)],
            [from_text(row[0]) for row in self._final(dead, upload_ids, listed)],
        )

    def _final(self, select: str, upload_ids: Sequence[str], *args: Any) -> list[Any]:
        return self.execute(self._final_sql + select, (as_text(list(upload_ids)), *args))

    def held(self, upload_ids: Iterable[str]) -> dict[str, str]:
        """Those of some uploads whose sources are to be read again, each with its source_key."""
        return dict(
            self.execute(
                "SELECT upload_id, source_key FROM uploads WHERE state = 'held'"  # noqa: S608  # only constants
                f" AND upload_id IN ({self.base.each}) ORDER BY number",
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
        superseded = self.base.json_text("answer", "superseded")
        return self.execute(
            "SELECT upload_id, mode, \"full\", source_seq, base, after, until, state = 'dead'"  # noqa: S608  # only constants
            " FROM uploads WHERE source_key = ? AND (state IN ('sealed', 'completing')"
            f" OR state = 'dead' AND {superseded} IS NULL)"
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
            "SELECT COUNT(*) FILTER (WHERE ended_at IS NULL),"
            " CAST(COALESCE(SUM(records), 0) AS BIGINT), CAST(COALESCE(SUM(bytes), 0) AS BIGINT),"
            " COUNT(*) FILTER (WHERE state = 'dead'),"
            " MIN(CASE state WHEN 'held' THEN NULL ELSE created_at END),"
            " (SELECT COUNT(*) FROM sources WHERE missing = 1)"
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
        changed = self.change(
            "UPDATE uploads SET chunks = chunks + 1, records = records + ?, bytes = bytes + ?"
            " WHERE upload_id = ? AND state = 'building'",
            (chunk.records, size, upload_id),
        )
        if changed:
            about = {"upload_id": upload_id, "bytes": size, "crc": crc32(chunk.body)}
            self.insert("chunks", **about, **asdict(chunk))
        return changed == 1

    def unsent(self, upload_id: str, limit: int) -> list[int]:
        """The numbers of the first chunks that the backend has not acknowledged."""
        rows = self.execute(
            "SELECT seq FROM chunks WHERE upload_id = ? AND acked = 0 ORDER BY seq LIMIT ?",
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
        columns, handler_id = "crc, seq, records, body, coding, content_type", self.handler_id
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
            " ORDER BY u.number DESC LIMIT 1) FROM sources s WHERE missing = 1"
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
            " DO UPDATE SET high = CASE WHEN excluded.high > sources.high"
            " THEN excluded.high ELSE sources.high END",
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

    def copy_sources(self, other: OutboxStore) -> None:
        """Take over the sources of another outbox."""
        columns = ", ".join(SOURCE_COLUMNS)
        places = ", ".join("?" * len(SOURCE_COLUMNS))
        insert = f"INSERT INTO sources ({columns}) VALUES ({places})"  # noqa: S608  # our own columns
        for row in other.execute(f"SELECT {columns} FROM sources"):  # noqa: S608  # the same
            self.execute(insert, row)

    def copy_sources_of_file(self, other: Path) -> None:
        """Take over the sources of another outbox's file, which may be of an earlier version."""
        self.execute("ATTACH ? AS other", (str(other),))
        found = self.execute("SELECT name FROM pragma_table_info('sources', 'other')")
        columns = ", ".join(name for (name,) in found)
        self.execute(f"INSERT INTO sources ({columns}) SELECT {columns} FROM other.sources")  # noqa: S608  # our own columns
        self.execute("DETACH other")


_JSON_COLUMNS = ("params", "after", "until", "answer", "keyed")
SOURCE_COLUMNS = (
    *("source_key", "upload_id", "upload_key", "stamp", "watermark", "last_full", "high"),
    *("source", "params", "found_by", "mode", "bound", "source_seq", "base", "full_seq", "owed"),
    *("missing", "policy", "keyed", "recent"),
)


@contextmanager
def looked_at(
    folder: Path, clock: Clock, shared: SharedStore | None = None
) -> Iterator[OutboxStore | None]:
    """The outbox of a handler, which is not changed; None where it has none.

    Raises:
        ConfigError: The file or the database is damaged, or of another release.
        UnreachableError: The database does not answer.
        OSError: The folder cannot be read.
    """
    older = "is of an older release: the next start of its handler brings it forward"
    if shared is not None:
        with closing(OutboxStore(folder, clock, shared, read_only=True)) as store:
            if 0 < store.base.version < len(SHARED_MIGRATIONS):
                raise ConfigError(f"{store.base.label} {older}")
            yield store if store.base.version else None
        return
    path = folder / FILE_NAME
    if not path.exists():
        yield None
        return
    try:
        refuse_newer(path, found := version_in(path), len(MIGRATIONS))
        if 0 < found < len(MIGRATIONS):
            raise ConfigError(f"{path} {older}")
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
    tests, args = ["1 = 1"], list[Any]()
    for name, value in where.items():
        several = value if isinstance(value, tuple) else (value,) if value is not None else ()
        places = ", ".join("?" * len(several))
        tests.append(f'"{name}" ' + ("IS NULL" if value is None else f"IN ({places})"))
        args += several
    return " AND ".join(tests), args
