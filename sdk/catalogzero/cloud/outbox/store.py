"""The outbox: the durable local store of uploads that the backend has not yet completed.

One file (see `file`) in the handler's state folder, with the marks of what was sealed last,
so that a seal and its mark are one transaction. Every public method is one transaction
and may be called from any thread, beside other processes; what only reads is in
`contents`. Never talks to a backend.

States: building → sealed → completing → done, or superseded, held, dead, overtaken, abandoned.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zlib import crc32

from catalogzero.clock import Clock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.contents import DAMAGED, FIRST_SEQ, as_text, from_text
from catalogzero.cloud.outbox.file import transaction
from catalogzero.cloud.outbox.identity import OutboxIdentity
from catalogzero.errors import ConfigError, FailedError, SourceChangedError
from catalogzero.protocol.identities import digest_of


class UploadEndedError(FailedError):
    """The upload that a run was building has ended under it; `details` is the backend's answer."""


class Outbox(OutboxIdentity):
    """The store of uploads in one state folder.

    Args:
        folder: The handler's state folder.
        clock: For the times and the source numbers that it writes.
        max_bytes: New uploads are refused above this.
        repair: See `OutboxFile`.
    """

    def __init__(
        self, folder: Path, clock: Clock, *, max_bytes: int = 10 << 30, repair: bool = True
    ) -> None:
        super().__init__(folder, clock, repair=repair)
        self._max_bytes = max_bytes
        if self.rescue is not None:
            self.remember(DAMAGED, self.rescue)

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
            " created_at, base) VALUES (?, 'building', ?, ?, ?, ?, ?, ?,"
            " COALESCE((SELECT base FROM sources WHERE source_key = ?), 0))",
            (upload_id, source_key, source, mode, full, as_text(params), self._now(), source_key),
        )

    def add(self, upload_id: str, chunk: Chunk) -> None:
        """Store a chunk of an upload that is building; a full disk is the run's error."""
        size = len(chunk.body)
        with self.transaction():
            changed = self.change(
                "UPDATE uploads SET chunks = chunks + 1, records = records + ?, bytes = bytes + ?"
                " WHERE upload_id = ? AND state = 'building'",
                (chunk.records, size, upload_id),
            )
            if changed != 1:
                raise self._ended_error(upload_id)
            about = {"upload_id": upload_id, "bytes": size, "crc": crc32(chunk.body)}
            self.insert("chunks", **about, **asdict(chunk))

    @transaction
    def seal(
        self,
        upload_id: str,
        upload_key: str,
        *,
        stamp: Any = None,
        after: Any = None,
        until: Any = None,
        bound: dict[str, str] | None = None,
        watermark_of: str = "",
        found_by: str | None = None,
        policy: str | None = None,
    ) -> int:
        """Seal an upload and advance its source's mark, in one transaction.

        Args:
            upload_id: The upload that is building.
            upload_key: The identity of its content; in append it is made the range's own.
            stamp: See `Item.stamp`.
            after: In append the watermark that the range begins at, as `mark` gave it.
            until: In append the value that it ends at.
            bound: What the watermark's values are of.
            watermark_of: The same, as the backend compares it.
            found_by: The call that found the source, to know when it is gone.
            policy: The digest of the egress policy that its records left by.

        Returns:
            The source_seq given to it: above all known ones, and at least the clock.

        Raises:
            SourceChangedError: The source's position is no longer where the range began.
        """
        found = self.execute(
            'SELECT u.source_key, u."full", u.mode, u.source, u.params, s.watermark'
            " FROM uploads u LEFT JOIN sources s USING (source_key)"
            " WHERE u.upload_id = ? AND state = 'building'",
            (upload_id,),
        )
        if not found:
            raise self._ended_error(upload_id)
        key, full, mode, source, params, position = found[0]
        seq = self._next_seq(key)
        if mode == "append":
            if not full and from_text(position) != after:
                raise SourceChangedError(f"{source}: its position moved while it was read")
            until, upload_key = [until, seq], digest_of([upload_key, seq])
            after = None if full else after
        self._seal(
            upload_id,
            upload_key=upload_key,
            source_seq=seq,
            after=as_text(after),
            until=as_text(until),
            watermark_of=watermark_of,
        )
        for (held,) in self.execute(
            "SELECT upload_id FROM uploads WHERE source_key = ? AND state = 'held'", (key,)
        ):
            self._end(held, "superseded", answer={"read_again_as": upload_id})
        self.execute("INSERT OR IGNORE INTO sources (source_key) VALUES (?)", (key,))
        self._set_source(
            key,
            upload_id=upload_id,
            upload_key=upload_key,
            stamp=as_text(stamp),
            watermark=as_text(until),
            high=seq,
            source_seq=seq,
            base=seq,
            source=source,
            params=params,
            mode=mode,
            bound=as_text(bound),
            found_by=found_by,
            policy=policy,
            missing=0,
            **({"last_full": upload_id, "full_seq": seq, "owed": 0} if full else {}),
        )
        return seq

    @transaction
    def abandon(self, upload_id: str | None = None) -> int:
        """End an attempt that was not sealed, or all of them (after a crash); their chunks go.

        Returns:
            How many there were.
        """
        building = self.execute(
            "SELECT upload_id FROM uploads"
            " WHERE state = 'building' AND upload_id = COALESCE(?, upload_id)",
            (upload_id,),
        )
        for (one,) in building:
            self._end(one, "abandoned")
        return len(building)

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
        self._count_sent(upload_id, size)

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
    def done(
        self,
        upload_id: str,
        job_id: str | None,
        size: int = 0,
        *,
        same_key_seq: int | None = None,
        generation: str = "",
        number: Any = None,
    ) -> bool:
        """The backend has completed the upload: its chunks go, its row stays for a while.

        Args:
            upload_id: The upload.
            job_id: The backend's.
            size: Bytes that were sent for it.
            same_key_seq: The source's number there, where the content was visible already under
                another upload_id.
            generation: The backend's; an answer of another than the known one is none.
            number: That of the answer, where the backend numbers them.

        Returns:
            False where the answer is none.
        """
        if self.is_other(generation):
            return False
        if same_key_seq is not None:
            self.execute(
                "UPDATE sources SET source_seq = MAX(source_seq, ?) WHERE upload_id = ?",
                (same_key_seq, upload_id),
            )
        self._acknowledge(upload_id, number)
        self._end_overtaken(upload_id)
        self._end(upload_id, "done", job_id=job_id)
        self._count_sent(upload_id, size)
        return True

    @transaction
    def die(self, upload_id: str, answer: Any, generation: str = "") -> bool:
        """The backend refused the upload for good: a dead letter, kept with the answer.

        One that is still building is abandoned: its source's mark never advanced. False where the
        answer is of another generation than the known one: then it is none.
        """
        if self.is_other(generation):
            return False
        self._end_overtaken(upload_id)
        for (state,) in self.execute(
            "SELECT state FROM uploads WHERE upload_id = ? AND ended_at IS NULL", (upload_id,)
        ):
            self._end(upload_id, "abandoned" if state == "building" else "dead", answer=answer)
        return True

    @transaction
    def superseded(self, upload_id: str, answer: dict[str, Any], generation: str = "") -> bool:
        """The backend holds a newer state of the source; False where that is another generation's.

        While the source's mark is still this upload, the mark is cleared, and the bytes are kept
        unsent until a run has read the source again, or found it gone. An upload of a range sets
        the source's watermark to the backend's: the next run reads on from there. A `full` append
        is owed: the next run is one.
        """
        if self.is_other(generation):
            return False
        found = self.execute(
            'SELECT u.source_key, u.mode, u."full", s.upload_id, s.last_full FROM uploads u'
            " LEFT JOIN sources s USING (source_key)"
            " WHERE u.upload_id = ? AND u.state IN ('sealed', 'completing')",
            (upload_id,),
        )
        if not found:
            return True
        key, mode, full, marked, last_full = found[0]
        self._raise_high(key, answer.get("source_seq"))
        own = mode == "replace" and upload_id == marked
        self._put_off(upload_id, own=own, answer=answer)
        if own:
            self._clear(key)
        elif mode == "append" and not full:
            self._set_source(key, watermark=as_text(answer.get("watermark")), upload_id=None)
        elif mode == "append" and upload_id == last_full:
            self._set_source(key, owed=1)
        self._set_source(key, base=answer.get("source_seq", 0))
        return True

    @transaction
    def learn_highest(self, sources: dict[str, Any]) -> None:
        """Note the highest source_seq that the backend knows of each source."""
        self._forget_announced()
        for key, high in sources.items():
            self._raise_high(key, high)

    # What an operator does

    @transaction
    def retry(self, upload_id: str) -> bool:
        """Send a dead letter again, from its first chunk; False when it is none.

        It keeps its source_seq, but one that was superseded is sealed above what the backend has.
        """
        found = self.execute(
            "SELECT source_key, answer FROM uploads"
            " WHERE upload_id = ? AND state = 'dead' AND seal_order IS NOT NULL",
            (upload_id,),
        )
        if not found:
            return False
        key, answer = found[0]
        if (from_text(answer) or {}).get("superseded"):
            self._seal_again(upload_id, key, uuid.uuid4().hex)
            return True
        self._set_upload(upload_id, state="sealed", answer=None, ended_at=None)
        self.update("chunks", "upload_id", upload_id, acked=0)
        return True

    @transaction
    def purge(self, upload_id: str) -> int:
        """Give up an upload that is not sent, and take its mark back if it is still its own.

        In append the source's position goes back to where the range began.

        Returns:
            The rows given up; the source's next run reads them again where it still has them.
        """
        found = self.execute(
            'SELECT records, source_key, mode, after, "full", source_seq, base FROM uploads'
            " WHERE upload_id = ? AND state IN ('dead', 'held', 'sealed', 'completing')",
            (upload_id,),
        )
        if not found:
            return 0
        records, key, mode, after, full, seq, base = found[0]
        self._end(upload_id, "abandoned", answer={"purged": True})
        if mode == "append":
            self.execute(
                "UPDATE sources SET watermark = ?, upload_id = NULL,"
                " full_seq = CASE WHEN ? THEN 0 ELSE full_seq END"
                " WHERE source_key = ? AND source_seq >= ? AND full_seq <= ?",
                (after, full, key, seq, seq),
            )
        else:
            self.update(
                "sources", "upload_id", upload_id, upload_id=None, upload_key=None, stamp=None
            )
        for table in ("uploads", "sources"):  # what was sealed on it stands on what was before
            self.execute(
                f"UPDATE {table} SET base = ? WHERE source_key = ? AND base = ?",  # noqa: S608  # a table's name
                (base or 0, key, seq),
            )
        return int(records)

    @transaction
    def skip(self, upload_id: str) -> int:
        """Put an empty upload in the place of a refused range, so that those after it can go.

        Returns:
            The rows given up: no run reads them again.

        Raises:
            ConfigError: It is no dead letter of mode append.
        """
        found = self.execute(
            "SELECT records FROM uploads"
            " WHERE upload_id = ? AND state = 'dead' AND mode = 'append'",
            (upload_id,),
        )
        if not found:
            raise ConfigError(
                f"upload {upload_id} is no refused range: --skip is for dead letters of mode "
                "append, plain purge for all others"
            )
        records = found[0][0]
        new = uuid.uuid4().hex
        self.execute("DELETE FROM chunks WHERE upload_id = ?", (upload_id,))
        self._renew(upload_id, new)
        self._set_upload(new, chunks=0, records=0, bytes=0)
        self.update("sources", "upload_id", upload_id, upload_id=new)
        self._end(upload_id, "abandoned", answer={"skipped": records, "sealed_again_as": new})
        return int(records)

    def adopt_marks(self, other: Path) -> None:
        """Take over the marks of another outbox's file, for a preview of what is new."""
        self.execute("ATTACH ? AS other", (str(other),))
        found = self.execute("SELECT name FROM pragma_table_info('sources', 'other')")
        columns = ", ".join(name for (name,) in found)  # those of the version that wrote it
        self.execute(f"INSERT INTO sources ({columns}) SELECT {columns} FROM other.sources")  # noqa: S608  # our own columns
        self.execute("DETACH other")

    # Inside

    def _end_overtaken(self, upload_id: str) -> None:
        """A later content of the source was answered: its older dead letters end, their bytes go.

        The lines stay; in append each range stands for itself.
        """
        for dead, answer in self.execute(
            "SELECT d.upload_id, d.answer FROM uploads u JOIN uploads d USING (source_key)"
            " WHERE u.upload_id = ? AND u.mode = 'replace' AND d.mode = 'replace'"
            " AND u.ended_at IS NULL AND d.state = 'dead' AND d.source_seq < u.source_seq",
            (upload_id,),
        ):
            self._end(dead, "overtaken", answer={**(from_text(answer) or {}), "overtaken": True})

    def _next_seq(self, key: str) -> int:
        found = self.execute("SELECT high FROM sources WHERE source_key = ?", (key,))
        clock_ms = int(self._clock.now().timestamp() * 1000)
        return max((found[0][0] if found else 0) + 1, clock_ms, FIRST_SEQ)

    def _seal_again(self, old: str, key: str, new: str) -> None:
        """The same bytes under a new upload_id, above all that is known of the source."""
        seq = self._next_seq(key)
        self._renew(old, new)
        [(upload_key, base)] = self.execute(
            "SELECT u.upload_key, s.base FROM uploads u JOIN sources s USING (source_key)"
            " WHERE u.upload_id = ?",
            (new,),
        )
        self._seal(new, source_seq=seq, base=base)
        self.update("chunks", "upload_id", old, upload_id=new, acked=0)
        moved = {"high": seq, "base": seq, "source_seq": seq}
        self._set_source(key, **moved, upload_id=new, upload_key=upload_key, missing=0)
        self._end(old, "superseded", answer={"sealed_again_as": new})

    def _seal(self, upload_id: str, **columns: Any) -> None:
        """Seal an upload behind all that are sealed."""
        [(order,)] = self.execute("SELECT COALESCE(MAX(seal_order), 0) + 1 FROM uploads")
        self._set_upload(upload_id, state="sealed", seal_order=order, **columns)

    def _count_sent(self, upload_id: str, size: int) -> None:
        """Count bytes that left for an upload."""
        self.execute(
            "UPDATE uploads SET bytes_sent = bytes_sent + ? WHERE upload_id = ?", (size, upload_id)
        )

    def _renew(self, old: str, new: str) -> None:
        """Another upload like one, sealed in its place under an upload_id of its own."""
        self.execute(
            'INSERT INTO uploads (upload_id, state, source_key, source, mode, "full", params,'
            " upload_key, source_seq, after, until, chunks, records, bytes, seal_order,"
            " created_at, base, watermark_of)"
            " SELECT ?, 'sealed', source_key, source, mode, \"full\", params, upload_key,"
            " source_seq, after, until, chunks, records, bytes, seal_order, created_at, base,"
            " watermark_of FROM uploads WHERE upload_id = ?",
            (new, old),
        )

    def _ended_error(self, upload_id: str) -> UploadEndedError:
        """The error of an upload that ended under its run: refused by the backend, or purged."""
        found = self._uploads("upload_id = ?", (upload_id,))
        state, answer = (found[0].state, found[0].answer) if found else ("gone", None)
        return UploadEndedError(
            f"upload {upload_id} is {state} and takes no more: {answer}", details=answer
        )
