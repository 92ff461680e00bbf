"""The outbox: the durable local store of uploads that the backend has not yet completed.

One file (see `outbox_file`) in the handler's state folder, with the marks of what was sealed last,
so that a seal and its mark are one transaction. Every public method is one transaction
and may be called from any thread, beside other processes; what only reads is in
`outbox_contents`. Never talks to a backend.

States: building → sealed → completing → done, or superseded, dead, abandoned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from catalogzero.clock import Clock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox_contents import OutboxContents, as_text
from catalogzero.cloud.outbox_file import transaction, transaction_without_reserve
from catalogzero.errors import FailedError

KEPT_ENDED = 1_000


class UploadEndedError(FailedError):
    """The upload that a run was building has ended under it; `details` is the backend's answer."""


class Outbox(OutboxContents):
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
        self._kept_from: int | None = None

    # What a run does

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """While it is open, the rows of uploads that were begun in it stay, however many."""
        self._kept_from = self.newest() + 1
        try:
            yield
        finally:
            self._kept_from = None

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
            (upload_id, source_key, source, mode, full, as_text(params), self._now()),
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
        changed = self.change(
            "UPDATE uploads SET chunks = chunks + 1, records = records + ?, bytes = bytes + ?"
            " WHERE upload_id = ? AND state = 'building'",
            (chunk.records, size, upload_id),
        )
        if changed != 1:
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
        policy: str | None = None,
    ) -> int:
        """Seal an upload and advance its source's mark, in one transaction.

        Args:
            upload_id: An upload that is building.
            upload_key: The identity of its content.
            stamp: What stays equal while its source is unchanged.
            after: The watermark that its range begins at.
            until: The watermark that its range ends at.
            policy: The digest of the egress policy that its records left by.

        Returns:
            The source_seq given to it: above all known ones, and at least the clock.
        """
        found = self.execute(
            "SELECT source_key, \"full\" FROM uploads WHERE upload_id = ? AND state = 'building'",
            (upload_id,),
        )
        if not found:
            raise self._ended_error(upload_id)
        key, full = found[0]
        seq = self._next_seq(key)
        self.execute(
            "UPDATE uploads SET state = 'sealed', upload_key = ?, source_seq = ?, after = ?,"
            " until = ?, seal_order = (SELECT COALESCE(MAX(seal_order), 0) + 1 FROM uploads)"
            " WHERE upload_id = ?",
            (upload_key, seq, as_text(after), as_text(until), upload_id),
        )
        marked = (upload_id, upload_key, as_text(stamp), as_text(until))
        self._advance(key, *marked, upload_id if full else None, seq, policy)
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
        changed = self.change(
            "UPDATE uploads SET state = 'abandoned', ended_at = ?"  # noqa: S608  # the same
            f" WHERE state = 'building'{which}",
            (self._now(), *args),
        )
        self._forget_old()
        return changed

    @transaction
    def restamp(self, source_key: str, upload_key: str, stamp: Any) -> None:
        """Note a new stamp for content that turned out to be unchanged."""
        self.execute(
            "UPDATE sources SET stamp = ? WHERE source_key = ? AND upload_key = ?",
            (as_text(stamp), source_key, upload_key),
        )

    # What the sender does

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
        changed = self.change(
            "UPDATE uploads SET state = 'completing'"
            " WHERE upload_id = ? AND state IN ('sealed', 'completing')",
            (upload_id,),
        )
        return changed == 1

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
            (as_text(answer), self._now(), upload_id),
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
        found = self.execute(
            'SELECT u.source_key, u.mode, u."full", s.upload_id, s.last_full FROM uploads u'
            " LEFT JOIN sources s USING (source_key)"
            " WHERE u.upload_id = ? AND u.state IN ('sealed', 'completing')",
            (upload_id,),
        )
        if not found:
            return None
        key, mode, full, marked, last_full = found[0]
        if mode == "append" and not full:
            self._end(upload_id, "superseded", answer=answer)
            self.execute(
                "UPDATE sources SET watermark = ?, upload_id = NULL WHERE source_key = ?",
                (as_text(answer.get("watermark")), key),
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

    @transaction
    def retry(self, upload_id: str) -> bool:
        """Send a dead letter again, from its first chunk; False when it is none."""
        changed = self.change(
            "UPDATE uploads SET state = 'sealed', answer = NULL, ended_at = NULL"
            " WHERE upload_id = ? AND state = 'dead' AND seal_order IS NOT NULL",
            (upload_id,),
        )
        if changed:
            self.execute("UPDATE chunks SET acked = 0 WHERE upload_id = ?", (upload_id,))
        return changed == 1

    @transaction
    def purge(self, upload_id: str) -> int:
        """Give up a dead letter or a sealed upload, and take its mark back if it is still its own.

        Returns:
            The rows given up; the source's next run reads them again where it still has them.
        """
        found = self.execute(
            "SELECT records, source_key, mode, after, until FROM uploads"
            " WHERE upload_id = ? AND state IN ('dead', 'sealed', 'completing')",
            (upload_id,),
        )
        if not found:
            return 0
        records, key, mode, after, until = found[0]
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
        found = self.execute("SELECT name FROM pragma_table_info('sources', 'other')")
        columns = ", ".join(name for (name,) in found)  # those of an earlier schema, maybe
        self.execute(f"INSERT INTO sources ({columns}) SELECT {columns} FROM other.sources")  # noqa: S608  # names of columns
        self.execute("DETACH other")

    # Inside

    def _advance(self, key: str, *mark: Any) -> None:
        """Set a source's mark; inside the transaction that seals."""
        self.execute(
            "INSERT INTO sources (source_key, upload_id, upload_key, stamp, watermark,"
            " last_full, high, policy) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (source_key) DO UPDATE SET upload_id = excluded.upload_id,"
            " upload_key = excluded.upload_key, stamp = excluded.stamp,"
            " watermark = excluded.watermark, high = excluded.high, policy = excluded.policy,"
            " last_full = COALESCE(excluded.last_full, last_full)",
            (key, *mark),
        )

    def _next_seq(self, key: str) -> int:
        found = self.execute("SELECT high FROM sources WHERE source_key = ?", (key,))
        clock_ms = int(self._clock.now().timestamp() * 1000)
        return max((found[0][0] if found else 0) + 1, clock_ms)

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
            (state, job_id, as_text(answer), self._now(), upload_id),
        )
        self.execute("DELETE FROM chunks WHERE upload_id = ?", (upload_id,))
        self._forget_old()

    def _forget_old(self) -> None:
        """Drop the oldest ended uploads' rows."""
        self.execute(
            "DELETE FROM uploads WHERE state IN ('done', 'superseded', 'abandoned') AND number <="
            " MIN((SELECT MAX(number) FROM uploads) - ?, ?)",
            (KEPT_ENDED, (self._kept_from or 1 << 62) - 1),
        )

    def _ended_error(self, upload_id: str) -> UploadEndedError:
        """The error of an upload that ended under its run: refused by the backend, or purged."""
        found = self._uploads("upload_id = ?", (upload_id,))
        state, answer = (found[0].state, found[0].answer) if found else ("gone", None)
        return UploadEndedError(
            f"upload {upload_id} is {state} and takes no more: {answer}", details=answer
        )
