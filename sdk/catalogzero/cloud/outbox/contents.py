"""What the outbox holds, to look at: uploads, chunks, marks, figures, facts.

Reads the file that `file` keeps; nothing here changes an upload. Never talks to a backend.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import orjson

from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.file import OutboxFile, transaction
from catalogzero.cloud.outbox.rescue import Rescue
from catalogzero.errors import UnknownRunError
from catalogzero.sql import is_damage

OPEN_AT_ONCE = 200
DAMAGED = "damaged"
"""The fact that says what could not be read of a damaged file, and where that is."""
FIRST_SEQ = 10**12
"""No source_seq that is sealed here is below: a watermark of version 1 is not taken for a pair."""
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


class DamagedChunkError(Exception):
    """A chunk whose bytes cannot be read, or are not those that were stored."""

    def __init__(self, seq: int, why: str) -> None:
        super().__init__(f"chunk {seq} cannot be read from the outbox's file: {why}")


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
    watermark_of: str


@dataclass(frozen=True, slots=True)
class Mark:
    """What was sealed last of a source: the upload, its key, the item's stamp or watermark.

    `bound` says what the watermark's values are of, `owed` that the next run must be `full`, `dead`
    which refused upload stands between the source and what is visible.
    """

    upload_id: str | None = None
    upload_key: str | None = None
    stamp: Any = None
    watermark: Any = None
    mode: str | None = None
    bound: dict[str, str] | None = None
    owed: bool = False
    dead: str | None = None

    @property
    def value(self) -> Any:
        """The watermark's value: what the last rows had in its column."""
        return value_in(self.watermark)


@dataclass(frozen=True, slots=True)
class Totals:
    """The outbox in figures; `oldest_at` is when its oldest unfinished upload was made.

    `missing` are sources whose last upload the backend does not have, or no longer.
    """

    uploads: int
    records: int
    bytes: int
    dead: int
    oldest_at: str | None
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of some uploads; `upload_ids` and `refusals` (their answers) are the first."""

    states: Mapping[str, int]
    records: int
    bytes_sent: int
    job_id: str | None
    upload_ids: list[str]
    refusals: list[Any]


class OutboxContents(OutboxFile):
    """The outbox's file, read; see `OutboxFile` for what it takes and raises."""

    def mark(self, source_key: str) -> Mark:
        """What was sealed last of a source."""
        for row in self.execute(
            "SELECT upload_id, upload_key, stamp, watermark, mode, bound, owed,"
            " (SELECT d.upload_id FROM uploads d WHERE d.source_key = s.source_key"
            " AND d.state = 'dead' AND (d.upload_id = s.upload_id"
            " OR d.mode = 'append' AND d.source_seq >= s.full_seq) LIMIT 1)"
            " FROM sources s WHERE source_key = ?",
            (source_key,),
        ):
            stamp, watermark, bound = (from_text(row[index]) for index in (2, 3, 5))
            return Mark(row[0], row[1], stamp, watermark, row[4], bound, bool(row[6]), row[7])
        return Mark()

    def open_uploads(self, without: Iterable[str] = ()) -> list[Upload]:
        """The first uploads that are not ended, in order; of an appended source, those that may go.

        Args:
            without: Ids of uploads that are not asked for.
        """
        return self._uploads(
            "ended_at IS NULL AND upload_id NOT IN (SELECT value FROM json_each(?))"  # noqa: S608  # only constants
            f" AND NOT (mode = 'append' AND state <> 'building' AND {_BEHIND_A_DEAD_LETTER})"
            " ORDER BY COALESCE(seal_order, 9e18), number LIMIT ?",
            (orjson.dumps(list(without)).decode(), OPEN_AT_ONCE),
        )

    def may_complete(self, upload: Upload, *, chunks: bool = True) -> bool:
        """Whether a sealed upload may be completed now.

        All chunks must be acknowledged (unless `chunks` is false), and where it appends, every
        earlier upload of its source must have ended; a `full` one waits for no dead letter.
        """
        rows = self.execute(
            "SELECT EXISTS (SELECT 1 FROM chunks WHERE upload_id = ? AND NOT acked),"  # noqa: S608  # only constants
            " u.mode = 'append' AND (EXISTS (SELECT 1 FROM uploads e"
            " WHERE e.source_key = u.source_key AND e.seal_order < u.seal_order"
            f" AND e.state IN ('sealed', 'completing')) OR {_BEHIND_A_DEAD_LETTER})"
            " FROM uploads u WHERE upload_id = ? AND seal_order IS NOT NULL",
            (upload.upload_id, upload.upload_id),
        )
        return bool(rows) and not rows[0][1] and not (chunks and rows[0][0])

    def unsent(self, upload_id: str, limit: int) -> list[int]:
        """The numbers of the first chunks that the backend has not acknowledged."""
        rows = self.execute(
            "SELECT seq FROM chunks WHERE upload_id = ? AND NOT acked ORDER BY seq LIMIT ?",
            (upload_id, limit),
        )
        return [row[0] for row in rows]

    def chunk(self, upload_id: str, seq: int) -> Chunk | None:
        """A chunk with its body; None when its upload has ended meanwhile.

        Raises:
            DamagedChunkError: Its bytes are not those that were stored.
        """
        try:
            rows = self.execute(
                "SELECT crc, seq, records, body, coding, content_type FROM chunks"
                " WHERE upload_id = ? AND seq = ?",
                (upload_id, seq),
            )
        except sqlite3.DatabaseError as error:
            raise DamagedChunkError(seq, str(error)) if is_damage(error) else error from error
        if not rows:
            return None
        crc, chunk = rows[0][0], Chunk(*rows[0][1:])
        if crc is not None and crc != crc32(chunk.body):
            raise DamagedChunkError(seq, "its checksum differs")
        return chunk

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
        found = self._uploads("upload_id = ?", (upload_id,)) or self._uploads(
            "substr(upload_id, 1, ?) = ? LIMIT 2", (len(upload_id), upload_id)
        )
        if len(found) != 1:
            raise UnknownRunError(
                f"{'several uploads' if found else 'no upload'} in the outbox: {upload_id}"
            )
        return found[0]

    def newest(self) -> int:
        """The number of the newest upload; 0 where there is none."""
        return int(self.execute("SELECT COALESCE(MAX(number), 0) FROM uploads")[0][0])

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
        ids = self._final("SELECT upload_id FROM final ORDER BY number LIMIT ?", upload_ids, listed)
        refusals = self._final(
            "SELECT answer FROM final WHERE state = 'dead' ORDER BY number LIMIT ?",
            upload_ids,
            listed,
        )
        return Summary(
            {row[0]: row[1] for row in states},
            sum(row[2] for row in states),
            sum(row[3] for row in states),
            next((row[4] for row in states if row[4] is not None), None),
            [row[0] for row in ids],
            [from_text(row[0]) for row in refusals],
        )

    def under_other_policy(self, policy: str) -> int:
        """How many sources were last sent under another egress policy than this one."""
        sql = "SELECT COUNT(*) FROM sources WHERE upload_id IS NOT NULL AND policy <> ?"
        return int(self.execute(sql, (policy,))[0][0])

    def bodies(self, upload_id: str) -> Iterator[Chunk]:
        """The chunks of an upload, in order."""
        seqs = self.execute("SELECT seq FROM chunks WHERE upload_id = ? ORDER BY seq", (upload_id,))
        for (seq,) in seqs:
            chunk = self.chunk(upload_id, seq)
            if chunk is not None:
                yield chunk

    def totals(self) -> Totals:
        """The outbox in figures."""
        [row] = self.execute(
            "SELECT COALESCE(SUM(ended_at IS NULL), 0), COALESCE(SUM(records), 0),"
            " COALESCE(SUM(bytes), 0), COALESCE(SUM(state = 'dead'), 0),"
            " MIN(CASE state WHEN 'held' THEN NULL ELSE created_at END),"
            " (SELECT COUNT(*) FROM sources WHERE missing)"
            " FROM uploads WHERE ended_at IS NULL OR state IN ('dead', 'held')"
        )
        return Totals(*row)

    def held(self, upload_ids: Iterable[str]) -> dict[str, str]:
        """Those of some uploads whose sources are to be read again, each with its source_key."""
        return dict(
            self.execute(
                "SELECT upload_id, source_key FROM uploads WHERE state = 'held'"
                " AND upload_id IN (SELECT value FROM json_each(?)) ORDER BY number",
                (as_text(list(upload_ids)),),
            )
        )

    def missing_sources(self, limit: int = 20) -> list[str]:
        """The source_keys of sources whose last upload the backend does not have."""
        rows = self.execute(
            "SELECT source_key FROM sources WHERE missing ORDER BY source_key LIMIT ?", (limit,)
        )
        return [row[0] for row in rows]

    def missing_named(self, limit: int = 20) -> list[dict[str, Any]]:
        """The same, each with the name that `complete` told of its last upload, if it is known."""
        rows = self.execute(
            "SELECT source_key, (SELECT u.source FROM uploads u WHERE u.source_key = s.source_key"
            " ORDER BY u.number DESC LIMIT 1) FROM sources s WHERE missing"
            " ORDER BY source_key LIMIT ?",
            (limit,),
        )
        return [{"source_key": row[0], "source": row[1]} for row in rows]

    def also_under(self, found_by: str, params: Any, limit: int) -> list[dict[str, Any]]:
        """The sources of a call that are stored under other params as well, each with those."""
        rows = self.execute(
            "SELECT o.source, o.params FROM sources s JOIN sources o USING (source)"
            " WHERE s.found_by = ? AND s.params = ? AND o.params <> s.params"
            " AND COALESCE(o.upload_id, o.upload_key) IS NOT NULL ORDER BY 1, 2 LIMIT ?",
            (found_by, as_text(params), limit),
        )
        return [{"source": source, "params": from_text(others)} for source, others in rows]

    def damage(self) -> Rescue | None:
        """What a damaged file held that is lost; None where there is none, or no longer."""
        found: Rescue | None = self.fact(DAMAGED)
        if found is None or not self.path.with_name(found["file"]).exists():
            return None
        return found

    def fact(self, name: str) -> Any:
        """A remembered JSON value, or None."""
        rows = self.execute("SELECT value FROM facts WHERE name = ?", (name,))
        return from_text(rows[0][0]) if rows else None

    @transaction
    def remember(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name; None forgets it."""
        self._remember(name, value)

    def _remember(self, name: str, value: Any) -> None:
        if value is None:
            self.execute("DELETE FROM facts WHERE name = ?", (name,))
        else:
            self.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, as_text(value)))

    def _final(self, select: str, upload_ids: Sequence[str], *args: Any) -> list[Any]:
        return self.execute(_FINAL + select, (as_text(upload_ids), *args))

    def _uploads(self, where: str, args: Sequence[Any]) -> list[Upload]:
        names = ", ".join(f'u."{name}"' for name in Upload.__dataclass_fields__)
        rows = self.execute(f"SELECT {names} FROM uploads u WHERE {where}", args)  # noqa: S608  # only constants
        return [_upload(row) for row in rows]

    def _now(self) -> str:
        return self._clock.now().isoformat()


def _upload(row: Sequence[Any]) -> Upload:
    """The upload of a row of the table."""
    fields = dict(zip(Upload.__dataclass_fields__, row, strict=True))
    for name in ("params", "after", "until", "answer"):
        fields[name] = from_text(fields[name])
    return Upload(**{**fields, "full": bool(fields["full"])})


def value_in(watermark: Any) -> Any:
    """The value of a watermark, `[value, source_seq]`; one of version 1 is the value itself."""
    if isinstance(watermark, list) and len(watermark) == 2:
        value, seq = watermark
        if type(seq) is int and seq >= FIRST_SEQ:
            return value
    return watermark


def as_text(value: Any) -> str:
    """A JSON value as the file keeps it."""
    return orjson.dumps(value).decode()


def from_text(text: str | None) -> Any:
    """The JSON value of a text in the file."""
    return None if text is None else orjson.loads(text)
