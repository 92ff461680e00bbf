"""The outbox: the durable local store of uploads that the backend has not yet completed.

One file (see `outbox_file`) in the handler's state folder, with the marks of what was sealed last,
so that a seal and its mark are one transaction. Every public method is one transaction
and may be called from any thread, beside other processes. Never talks to a backend.

States: building → sealed → completing → done, or superseded, dead, abandoned.

Layer: core.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from catalogzero.clock import Clock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox_file import OutboxFile, transaction, transaction_without_reserve
from catalogzero.errors import FailedError, UnknownRunError

KEPT_ENDED = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One upload, as the outbox knows it; `after`, `until`, `params`, `answer` are JSON values."""

    number: int
    upload_id: str
    state: str
    source_key: str
    source: str
    mode: str
    full: bool
    params: Any
    upload_key: str | None
    source_seq: int | None
    after: Any
    until: Any
    chunks: int
    records: int
    bytes: int
    bytes_sent: int
    seal_order: int | None
    created_at: str
    ended_at: str | None
    job_id: str | None
    answer: Any

    def as_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Mark:
    """What was sealed last of a source: the upload, its key, the item's stamp or watermark."""

    upload_id: str | None = None
    upload_key: str | None = None
    stamp: Any = None
    watermark: Any = None


@dataclass(frozen=True, slots=True)
class Totals:
    """The outbox in figures; `oldest_at` is when its oldest unfinished upload was made."""

    uploads: int
    records: int
    bytes: int
    dead: int
    oldest_at: str | None


class UploadEndedError(FailedError):
    """The upload that a run was building has ended under it; `details` is the backend's answer."""


class Outbox(OutboxFile):
    """The store of uploads in one state folder.

    Args:
        folder: The handler's state folder.
        clock: For the times and the source numbers that it writes.
        max_bytes: New uploads are refused above this.
        mend: See `OutboxFile`.
    """

    def __init__(
        self, folder: Path, clock: Clock, *, max_bytes: int = 10 << 30, mend: bool = True
    ) -> None:
        super().__init__(folder, clock, mend=mend)
        self._max_bytes = max_bytes

    # What a run does

    def refuse_when_full(self) -> None:
        """Raise `FailedError` when the outbox holds `outbox_max_bytes` or more."""
        held = self.totals().bytes
        if held >= self._max_bytes:
            raise FailedError(
                f"the outbox holds {held} bytes, and outbox_max_bytes is {self._max_bytes}: "
                "nothing was read; see `catalogzero outbox list` for why it does not empty"
            )

    @transaction
    def begin(
        self, upload_id: str, source_key: str, source: str, mode: str, *, full: bool, params: Any
    ) -> None:
        """Open an upload in state building."""
        self.execute(
            'INSERT INTO uploads (upload_id, state, source_key, source, mode, "full", params,'
            " created_at) VALUES (?, 'building', ?, ?, ?, ?, ?, ?)",
            (upload_id, source_key, source, mode, full, _text(params), self._now()),
        )

    @transaction_without_reserve
    def add(self, upload_id: str, chunk: Chunk) -> None:
        """Store a chunk of an upload that is building."""
        size = len(chunk.body)
        self.execute(
            "INSERT INTO chunks (upload_id, seq, records, content_type, coding, bytes, body)"
            " SELECT upload_id, ?, ?, ?, ?, ?, ? FROM uploads"
            " WHERE upload_id = ? AND state = 'building'",
            (
                chunk.seq,
                chunk.records,
                chunk.content_type,
                chunk.coding,
                size,
                chunk.body,
                upload_id,
            ),
        )
        done = self.execute(
            "UPDATE uploads SET chunks = chunks + 1, records = records + ?, bytes = bytes + ?"
            " WHERE upload_id = ? AND state = 'building'",
            (chunk.records, size, upload_id),
        )
        if done.rowcount != 1:
            raise self._ended_error(upload_id)

    @transaction
    def seal(
        self,
        upload_id: str,
        upload_key: str,
        *,
        stamp: Any = None,
        after: Any = None,
        until: Any = None,
    ) -> int:
        """Seal an upload and advance its source's mark, in one transaction.

        Returns:
            The source_seq given to it: above all known ones, and at least the clock.
        """
        row = self.execute(
            "SELECT source_key, \"full\" FROM uploads WHERE upload_id = ? AND state = 'building'",
            (upload_id,),
        ).fetchone()
        if row is None:
            raise self._ended_error(upload_id)
        key, full = row
        seq = self._next_seq(key)
        self.execute(
            "UPDATE uploads SET state = 'sealed', upload_key = ?, source_seq = ?, after = ?,"
            " until = ?, seal_order = (SELECT COALESCE(MAX(seal_order), 0) + 1 FROM uploads)"
            " WHERE upload_id = ?",
            (upload_key, seq, _text(after), _text(until), upload_id),
        )
        marked = (upload_id, upload_key, _text(stamp), _text(until))
        self._advance(key, *marked, upload_id if full else None, seq)
        return seq

    @transaction
    def abandon(self, upload_id: str | None = None) -> int:
        """End an attempt that was not sealed, or all of them (after a crash); their chunks go.

        Returns:
            How many there were.
        """
        which = "" if upload_id is None else " AND upload_id = ?"
        args = () if upload_id is None else (upload_id,)
        self.execute(
            "DELETE FROM chunks WHERE upload_id IN"  # noqa: S608  # no value is written into it
            f" (SELECT upload_id FROM uploads WHERE state = 'building'{which})",
            args,
        )
        done = self.execute(
            "UPDATE uploads SET state = 'abandoned', ended_at = ?"  # noqa: S608  # the same
            f" WHERE state = 'building'{which}",
            (self._now(), *args),
        )
        self._forget_old()
        return done.rowcount

    def mark(self, source_key: str) -> Mark:
        """What was sealed last of a source."""
        row = self._read(
            "SELECT upload_id, upload_key, stamp, watermark FROM sources WHERE source_key = ?",
            (source_key,),
        ).fetchone()
        if row is None:
            return Mark()
        return Mark(row[0], row[1], _value(row[2]), _value(row[3]))

    @transaction
    def restamp(self, source_key: str, upload_key: str, stamp: Any) -> None:
        """Note a new stamp for content that turned out to be unchanged."""
        self.execute(
            "UPDATE sources SET stamp = ? WHERE source_key = ? AND upload_key = ?",
            (_text(stamp), source_key, upload_key),
        )

    # What the sender does

    def open_uploads(self, limit: int = 200) -> list[Upload]:
        """The uploads that are not ended, in order; of an appended source, those that may go."""
        return self._uploads(
            "ended_at IS NULL AND NOT (mode = 'append' AND state <> 'building' AND EXISTS ("
            " SELECT 1 FROM uploads e WHERE e.source_key = u.source_key"
            " AND e.seal_order < u.seal_order AND e.state = 'dead'))"
            " ORDER BY COALESCE(seal_order, 9e18), number LIMIT ?",
            (limit,),
        )

    def may_complete(self, upload: Upload, *, chunks: bool = True) -> bool:
        """Whether a sealed upload may be completed now.

        All chunks must be acknowledged (unless `chunks` is false), and where it appends, every
        earlier upload of its source must have ended.
        """
        row = self._read(
            "SELECT EXISTS (SELECT 1 FROM chunks WHERE upload_id = ? AND NOT acked),"
            " EXISTS (SELECT 1 FROM uploads WHERE source_key = ? AND seal_order < ?"
            " AND state IN ('sealed', 'completing', 'dead'))",
            (upload.upload_id, upload.source_key, upload.seal_order),
        ).fetchone()
        held = upload.mode == "append" and row[1]
        return upload.seal_order is not None and not held and not (chunks and row[0])

    def unsent(self, upload_id: str, limit: int) -> list[int]:
        """The numbers of the first chunks that the backend has not acknowledged."""
        rows = self._read(
            "SELECT seq FROM chunks WHERE upload_id = ? AND NOT acked ORDER BY seq LIMIT ?",
            (upload_id, limit),
        )
        return [row[0] for row in rows]

    def chunk(self, upload_id: str, seq: int) -> Chunk | None:
        """A chunk with its body; None when its upload has ended meanwhile."""
        row = self._read(
            "SELECT seq, records, body, coding, content_type FROM chunks"
            " WHERE upload_id = ? AND seq = ?",
            (upload_id, seq),
        ).fetchone()
        return None if row is None else Chunk(*row)

    @transaction
    def acknowledge(self, upload_id: str, seq: int | None, size: int = 0) -> None:
        """Note that a chunk, or with None every chunk, needs no further sending."""
        self.execute(
            "UPDATE chunks SET acked = 1 WHERE upload_id = ? AND seq = COALESCE(?, seq)",
            (upload_id, seq),
        )
        self.execute(
            "UPDATE uploads SET bytes_sent = bytes_sent + ? WHERE upload_id = ?",
            (size, upload_id),
        )

    @transaction
    def completing(self, upload_id: str) -> bool:
        """Note that `complete` is about to be posted; False when the upload is no longer sealed."""
        done = self.execute(
            "UPDATE uploads SET state = 'completing'"
            " WHERE upload_id = ? AND state IN ('sealed', 'completing')",
            (upload_id,),
        )
        return done.rowcount == 1

    @transaction
    def missing(self, upload_id: str, seqs: Sequence[int]) -> None:
        """Send these chunks again: the backend does not have them."""
        self._db.executemany(
            "UPDATE chunks SET acked = 0 WHERE upload_id = ? AND seq = ?",
            [(upload_id, seq) for seq in seqs],
        )
        self.execute(
            "UPDATE uploads SET state = 'sealed' WHERE upload_id = ? AND state = 'completing'",
            (upload_id,),
        )

    @transaction
    def done(self, upload_id: str, job_id: str | None, size: int = 0) -> None:
        """The backend has completed the upload: its chunks go, its row stays for a while."""
        self._end(upload_id, "done", job_id=job_id)
        self.execute(
            "UPDATE uploads SET bytes_sent = bytes_sent + ? WHERE upload_id = ?",
            (size, upload_id),
        )

    @transaction
    def die(self, upload_id: str, answer: Any) -> None:
        """The backend refused the upload for good: a dead letter, kept with the answer.

        One that is still building is abandoned: its source's mark never advanced.
        """
        self.execute(
            "UPDATE uploads SET answer = ?, ended_at = ?,"
            " state = CASE state WHEN 'building' THEN 'abandoned' ELSE 'dead' END"
            " WHERE upload_id = ? AND ended_at IS NULL",
            (_text(answer), self._now(), upload_id),
        )
        self.execute(
            "DELETE FROM chunks WHERE upload_id IN (SELECT upload_id FROM uploads"
            " WHERE upload_id = ? AND state = 'abandoned')",
            (upload_id,),
        )

    @transaction
    def superseded(self, upload_id: str, answer: dict[str, Any], new_id: str) -> str | None:
        """The backend holds a newer state of the source.

        While the source's mark (in append: its newest full upload) is still this one, the same
        bytes are sealed again under `new_id`, above the number that was answered. An upload of a
        range sets the source's watermark to the backend's: the next run reads on from there.

        Returns:
            `new_id` when it was sealed again, else None.
        """
        row = self.execute(
            'SELECT u.source_key, u.mode, u."full", s.upload_id, s.last_full FROM uploads u'
            " LEFT JOIN sources s USING (source_key)"
            " WHERE u.upload_id = ? AND u.state IN ('sealed', 'completing')",
            (upload_id,),
        ).fetchone()
        if row is None:
            return None
        key, mode, full, marked, last_full = row
        if mode == "append" and not full:
            self._end(upload_id, "superseded", answer=answer)
            self.execute(
                "UPDATE sources SET watermark = ?, upload_id = NULL WHERE source_key = ?",
                (_text(answer.get("watermark")), key),
            )
            return None
        if upload_id != (last_full if mode == "append" else marked):
            self._end(upload_id, "superseded", answer=answer)
            return None
        self._raise_high(key, answer.get("source_seq"))
        self._seal_again(upload_id, key, new_id)
        return new_id

    @transaction
    def learn_highest(self, sources: dict[str, Any]) -> None:
        """Note the highest source_seq that the backend knows of each source."""
        for key, high in sources.items():
            self._raise_high(key, high)

    # What an operator does

    def uploads(self, states: Sequence[str] = (), limit: int = 1_000) -> list[Upload]:
        """Uploads of some states (all when empty), newest first."""
        places = ", ".join("?" * len(states))
        where = f"state IN ({places})" if states else "1"
        return self._uploads(f"{where} ORDER BY number DESC LIMIT ?", (*states, limit))

    def upload(self, upload_id: str) -> Upload:
        """One upload, by its id or the start of it.

        Raises:
            UnknownRunError: None, or several.
        """
        found = self._uploads("substr(upload_id, 1, ?) = ? LIMIT 2", (len(upload_id), upload_id))
        if len(found) != 1:
            raise UnknownRunError(
                f"{'several uploads' if found else 'no upload'} in the outbox: {upload_id}"
            )
        return found[0]

    def bodies(self, upload_id: str) -> Iterator[Chunk]:
        """The chunks of an upload, in order."""
        seqs = self._read("SELECT seq FROM chunks WHERE upload_id = ? ORDER BY seq", (upload_id,))
        for (seq,) in seqs.fetchall():
            chunk = self.chunk(upload_id, seq)
            if chunk is not None:
                yield chunk

    @transaction
    def retry(self, upload_id: str) -> bool:
        """Send a dead letter again, from its first chunk; False when it is none."""
        done = self.execute(
            "UPDATE uploads SET state = 'sealed', answer = NULL, ended_at = NULL"
            " WHERE upload_id = ? AND state = 'dead' AND seal_order IS NOT NULL",
            (upload_id,),
        )
        if done.rowcount:
            self.execute("UPDATE chunks SET acked = 0 WHERE upload_id = ?", (upload_id,))
        return done.rowcount == 1

    @transaction
    def purge(self, upload_id: str) -> int:
        """Give up a dead letter or a sealed upload, and take its mark back if it is still its own.

        Returns:
            The rows given up; the source's next run reads them again where it still has them.
        """
        row = self.execute(
            "SELECT records, source_key, mode, after, until FROM uploads"
            " WHERE upload_id = ? AND state IN ('dead', 'sealed', 'completing')",
            (upload_id,),
        ).fetchone()
        if row is None:
            return 0
        records, key, mode, after, until = row
        self._end(upload_id, "abandoned", answer={"purged": True})
        if mode == "append":
            self.execute(
                "UPDATE sources SET watermark = ?, upload_id = NULL"
                " WHERE source_key = ? AND watermark = ?",
                (after, key, until),
            )
        else:
            self.execute(
                "UPDATE sources SET upload_id = NULL, upload_key = NULL, stamp = NULL"
                " WHERE source_key = ? AND upload_id = ?",
                (key, upload_id),
            )
        return int(records)

    def adopt_marks(self, other: Path) -> None:
        """Take over the marks of another outbox's file, for a preview of what is new."""
        self.execute("ATTACH ? AS other", (str(other),))
        self.execute("INSERT INTO sources SELECT * FROM other.sources")
        self.execute("DETACH other")

    # Figures and facts

    def totals(self) -> Totals:
        """The outbox in figures."""
        row = self._read(
            "SELECT COUNT(*), COALESCE(SUM(records), 0), COALESCE(SUM(bytes), 0),"
            " COALESCE(SUM(state = 'dead'), 0), MIN(created_at)"
            " FROM uploads WHERE ended_at IS NULL OR state = 'dead'"
        ).fetchone()
        return Totals(row[0] - row[3], row[1], row[2], row[3], row[4])

    def fact(self, name: str) -> Any:
        """A remembered JSON value, or None."""
        row = self._read("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else _value(row[0])

    @transaction
    def remember(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name; None forgets it."""
        if value is None:
            self.execute("DELETE FROM facts WHERE name = ?", (name,))
        else:
            self.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, _text(value)))

    # Inside

    def _read(self, sql: str, args: Sequence[Any] = ()) -> sqlite3.Cursor:
        with self.lock:
            return self.execute(sql, args)

    def _uploads(self, where: str, args: Sequence[Any]) -> list[Upload]:
        names = ", ".join(f'u."{name}"' for name in Upload.__dataclass_fields__)
        with self.lock:
            rows = self.execute(f"SELECT {names} FROM uploads u WHERE {where}", args).fetchall()  # noqa: S608  # only constants
        return [_upload(row) for row in rows]

    def _advance(self, key: str, *mark: Any) -> None:
        """Set a source's mark; inside the transaction that seals."""
        self.execute(
            "INSERT INTO sources (source_key, upload_id, upload_key, stamp, watermark,"
            " last_full, high) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (source_key) DO UPDATE SET upload_id = excluded.upload_id,"
            " upload_key = excluded.upload_key, stamp = excluded.stamp,"
            " watermark = excluded.watermark, high = excluded.high,"
            " last_full = COALESCE(excluded.last_full, last_full)",
            (key, *mark),
        )

    def _next_seq(self, key: str) -> int:
        row = self.execute("SELECT high FROM sources WHERE source_key = ?", (key,)).fetchone()
        clock_ms = int(self._clock.now().timestamp() * 1000)
        return max((row[0] if row else 0) + 1, clock_ms)

    def _raise_high(self, key: str, high: Any) -> None:
        """Note that a source_seq is taken."""
        if isinstance(high, int) and 0 <= high < 1 << 62:
            self.execute(
                "INSERT INTO sources (source_key, high) VALUES (?, ?) ON CONFLICT (source_key)"
                " DO UPDATE SET high = MAX(high, excluded.high)",
                (key, high),
            )

    def _seal_again(self, old: str, key: str, new: str) -> None:
        """The same bytes under a new upload_id and a higher source_seq."""
        seq = self._next_seq(key)
        self.execute(
            'INSERT INTO uploads (upload_id, state, source_key, source, mode, "full", params,'
            " upload_key, source_seq, after, until, chunks, records, bytes, seal_order, created_at)"
            " SELECT ?, 'sealed', source_key, source, mode, \"full\", params, upload_key, ?, after,"
            " until, chunks, records, bytes, seal_order, created_at"
            " FROM uploads WHERE upload_id = ?",
            (new, seq, old),
        )
        self.execute("UPDATE chunks SET upload_id = ?, acked = 0 WHERE upload_id = ?", (new, old))
        self.execute(
            "UPDATE sources SET high = ?,"
            " upload_id = CASE WHEN upload_id = ? THEN ? ELSE upload_id END,"
            " last_full = CASE WHEN last_full = ? THEN ? ELSE last_full END WHERE source_key = ?",
            (seq, old, new, old, new, key),
        )
        self._end(old, "superseded", answer={"sealed_again_as": new})

    def _end(
        self,
        upload_id: str,
        state: str,
        *,
        job_id: str | None = None,
        answer: Any = None,
    ) -> None:
        """End an upload and drop its chunks."""
        self.execute(
            "UPDATE uploads SET state = ?, job_id = ?, answer = ?, ended_at = ?"
            " WHERE upload_id = ? AND (ended_at IS NULL OR state = 'dead')",
            (state, job_id, _text(answer), self._now(), upload_id),
        )
        self.execute("DELETE FROM chunks WHERE upload_id = ?", (upload_id,))
        self._forget_old()

    def _forget_old(self) -> None:
        """Drop the oldest ended uploads' rows."""
        self.execute(
            "DELETE FROM uploads WHERE state IN ('done', 'superseded', 'abandoned') AND number <="
            " (SELECT MAX(number) FROM uploads) - ?",
            (KEPT_ENDED,),
        )

    def _ended_error(self, upload_id: str) -> UploadEndedError:
        """The error of an upload that ended under its run: refused by the backend, or purged."""
        found = self._uploads("upload_id = ?", (upload_id,))
        state, answer = (found[0].state, found[0].answer) if found else ("gone", None)
        return UploadEndedError(
            f"upload {upload_id} is {state} and takes no more: {answer}", details=answer
        )

    def _now(self) -> str:
        return self._clock.now().isoformat()


def _upload(row: Sequence[Any]) -> Upload:
    """The upload of a row of the table."""
    fields = dict(zip(Upload.__dataclass_fields__, row, strict=True))
    for name in ("params", "after", "until", "answer"):
        fields[name] = _value(fields[name])
    return Upload(**{**fields, "full": bool(fields["full"])})


def _text(value: Any) -> str:
    return orjson.dumps(value).decode()


def _value(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)
