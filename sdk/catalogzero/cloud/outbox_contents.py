"""What the outbox holds, to look at: uploads, chunks, marks, figures, facts.

Reads the file that `outbox_file` keeps; nothing here changes an upload. Never talks to a backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox_file import OutboxFile, transaction
from catalogzero.errors import UnknownRunError

OPEN_AT_ONCE = 200
_FINAL = (
    "WITH RECURSIVE own (upload_id, again) AS ("
    " SELECT u.upload_id, json_extract(u.answer, '$.sealed_again_as')"
    " FROM json_each(?) JOIN uploads u ON u.upload_id = value"
    " UNION ALL SELECT u.upload_id, json_extract(u.answer, '$.sealed_again_as')"
    " FROM own JOIN uploads u ON u.upload_id = own.again),"
    " final AS (SELECT u.* FROM own JOIN uploads u USING (upload_id) WHERE again IS NULL) "
)
"""The uploads of a JSON list of ids, each as what it was sealed again as at last."""


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
            "SELECT upload_id, upload_key, stamp, watermark FROM sources WHERE source_key = ?",
            (source_key,),
        ):
            return Mark(row[0], row[1], from_text(row[2]), from_text(row[3]))
        return Mark()

    def open_uploads(self, without: Iterable[str] = ()) -> list[Upload]:
        """The first uploads that are not ended, in order; of an appended source, those that may go.

        Args:
            without: Ids of uploads that are not asked for.
        """
        return self._uploads(
            "ended_at IS NULL AND upload_id NOT IN (SELECT value FROM json_each(?))"
            " AND NOT (mode = 'append' AND state <> 'building' AND EXISTS ("
            " SELECT 1 FROM uploads e WHERE e.source_key = u.source_key"
            " AND e.seal_order < u.seal_order AND e.state = 'dead'))"
            " ORDER BY COALESCE(seal_order, 9e18), number LIMIT ?",
            (orjson.dumps(list(without)).decode(), OPEN_AT_ONCE),
        )

    def may_complete(self, upload: Upload, *, chunks: bool = True) -> bool:
        """Whether a sealed upload may be completed now.

        All chunks must be acknowledged (unless `chunks` is false), and where it appends, every
        earlier upload of its source must have ended.
        """
        [row] = self.execute(
            "SELECT EXISTS (SELECT 1 FROM chunks WHERE upload_id = ? AND NOT acked),"
            " EXISTS (SELECT 1 FROM uploads WHERE source_key = ? AND seal_order < ?"
            " AND state IN ('sealed', 'completing', 'dead'))",
            (upload.upload_id, upload.source_key, upload.seal_order),
        )
        held = upload.mode == "append" and row[1]
        return upload.seal_order is not None and not held and not (chunks and row[0])

    def unsent(self, upload_id: str, limit: int) -> list[int]:
        """The numbers of the first chunks that the backend has not acknowledged."""
        rows = self.execute(
            "SELECT seq FROM chunks WHERE upload_id = ? AND NOT acked ORDER BY seq LIMIT ?",
            (upload_id, limit),
        )
        return [row[0] for row in rows]

    def chunk(self, upload_id: str, seq: int) -> Chunk | None:
        """A chunk with its body; None when its upload has ended meanwhile."""
        rows = self.execute(
            "SELECT seq, records, body, coding, content_type FROM chunks"
            " WHERE upload_id = ? AND seq = ?",
            (upload_id, seq),
        )
        return Chunk(*rows[0]) if rows else None

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

    def refusal(self, source_key: str, mark: Mark) -> Upload | None:
        """The dead letter because of which a source's mark is not at the backend."""
        found = self._uploads(
            "state = 'dead' AND source_key = ? AND (upload_id = ? OR mode = 'append')"
            " ORDER BY number LIMIT 1",
            (source_key, mark.upload_id),
        )
        return found[0] if found else None

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
            "SELECT COUNT(*), COALESCE(SUM(records), 0), COALESCE(SUM(bytes), 0),"
            " COALESCE(SUM(state = 'dead'), 0), MIN(created_at)"
            " FROM uploads WHERE ended_at IS NULL OR state = 'dead'"
        )
        return Totals(row[0] - row[3], row[1], row[2], row[3], row[4])

    def fact(self, name: str) -> Any:
        """A remembered JSON value, or None."""
        rows = self.execute("SELECT value FROM facts WHERE name = ?", (name,))
        return from_text(rows[0][0]) if rows else None

    @transaction
    def remember(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name; None forgets it."""
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


def as_text(value: Any) -> str:
    """A JSON value as the file keeps it."""
    return orjson.dumps(value).decode()


def from_text(text: str | None) -> Any:
    """The JSON value of a text in the file."""
    return None if text is None else orjson.loads(text)
