"""Whose outbox this is, and whether what it believes is what the backend has.

Owns the folder's epoch and the generation it knows, and the one transaction that compares its marks
and unsent uploads with what the backend told. Knows neither requests nor runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

from catalogzero.cloud.outbox.contents import OutboxContents, as_text, from_text
from catalogzero.cloud.outbox.file import transaction
from catalogzero.protocol.bodies import Known, SourceState

EPOCH, GENERATION, NONCE, MOVED = "epoch", "generation", "nonce", "moved"
INSTALLATION, LAST_NONCE = "installation_id", "last_nonce"
ACKNOWLEDGED = "acknowledged"
"""The names of facts. `moved` says whose installation another folder took over, and since when."""
GONE = "the backend has a newer state of the source, and the source is gone"
KEPT_ENDED = 1_000


class OutboxIdentity(OutboxContents):
    """The outbox as one of possibly several folders of an installation."""

    _kept_from: int | None = None
    """The number of the first upload of the run that is under way: its rows stay."""

    @transaction
    def start(self) -> dict[str, Any]:
        """What a start says of this folder: its epoch, and a nonce that lasts until an answer.

        It is for the generation that is known here: one of before a restore that comes late takes
        no epoch. The nonce of the last answered start goes along: where the backend's newest start
        was that one, come again on its way, nobody else took the folder's place.
        """
        nonce = self.fact(NONCE)
        if nonce is None:
            nonce = uuid.uuid4().hex
            self._remember(NONCE, nonce)
        last = self.fact(LAST_NONCE) or ""
        known = {"epoch": self.fact(EPOCH) or 0, "generation": self.fact(GENERATION) or ""}
        return {**known, "nonce": nonce, "last_nonce": last}

    @transaction
    def started(self, known: Known, installation_id: str) -> list[str]:
        """Keep what a start was answered, and compare what is here with it, in one transaction.

        Returns:
            The source_keys whose marks were cleared: their sources are read again.
        """
        self._remember(EPOCH, known.epoch)
        self._remember(GENERATION, known.generation)
        self._remember(INSTALLATION, installation_id)
        last = known.acknowledged
        self._remember(ACKNOWLEDGED, None if last is None else last.model_dump())
        self._remember(LAST_NONCE, self.fact(NONCE))
        self._remember(NONCE, None)
        self._forget_announced()
        here = self.execute(
            "SELECT source_key FROM sources UNION SELECT source_key FROM uploads"
            " WHERE ended_at IS NULL"
        )
        keys = [row[0] for row in here]
        for key in known.states.keys() - set(keys):
            # known there alone: another folder's source, or one that was lost here
            shown = known.states[key]
            numbers = {
                "high": shown.source_seq,
                "base": shown.source_seq,
                "full_seq": shown.full_seq,
            }
            watermark = as_text(shown.watermark)
            self.insert("sources", source_key=key, watermark=watermark, mode=shown.mode, **numbers)
        return [key for key in keys if self._compare(key, known.states.get(key) or SourceState())]

    @transaction
    def adopt(self) -> None:
        """Take the installation over at the next start, as an empty folder would.

        A nonce without an answer stays: its start may still arrive.
        """
        for name in (MOVED, EPOCH) if self.fact(MOVED) is None else (MOVED, EPOCH, NONCE):
            self._remember(name, None)

    @transaction
    def forget_all(self, installation_id: str) -> None:
        """Drop every upload and mark; a handler that runs as that installation stays paused."""
        self._remember(MOVED, {"installation_id": installation_id, "since": self._now()})
        for table in ("chunks", "uploads", "sources"):
            self.execute(f"DELETE FROM {table}")  # noqa: S608  # a table's name
        for name in (EPOCH, GENERATION, NONCE, LAST_NONCE, ACKNOWLEDGED):
            self._remember(name, None)

    def moved_text(self, installation_id: str) -> str:
        """What an operator is to know and do where another folder took an installation over."""
        moved = self.fact(MOVED)
        if moved is None or moved.get("installation_id") != installation_id:
            return ""
        return (
            f"another state folder took this installation over ({moved.get('since') or 'no date'}):"
            " `catalogzero installation adopt` takes it back, `catalogzero installation new` makes "
            "this folder one of its own"
        )

    def waiting(self, found_by: str, params: Any) -> set[str]:
        """The source_keys of a call's sources whose content waits for them to be read again."""
        rows = self.execute(
            "SELECT u.source_key FROM uploads u JOIN sources s USING (source_key)"
            " WHERE u.state = 'held' AND s.found_by = ? AND s.params = ?",
            (found_by, as_text(params)),
        )
        return {row[0] for row in rows}

    @transaction
    def gone(self, source_keys: Collection[str]) -> None:
        """A run did not come by these sources: the content that waits is a dead letter each."""
        for key in source_keys:
            for upload_id, answer in self.execute(
                "SELECT upload_id, answer FROM uploads WHERE state = 'held' AND source_key = ?",
                (key,),
            ):
                said = {"reason": f"superseded: {GONE}", "superseded": True}
                answer = as_text({**(from_text(answer) or {}), **said})
                self._set_upload(upload_id, state="dead", answer=answer)

    def witness(self) -> dict[str, Any]:
        """What this folder holds for acknowledged, as `complete` and health tell it.

        A backend that lost it was restored, and answers with another generation.
        """
        last = self.fact(ACKNOWLEDGED)
        return {} if last is None else {"generation": self.fact(GENERATION), "acknowledged": last}

    def is_other(self, generation: str) -> bool:
        """Whether an answer is of another life of the backend than the one that is known."""
        return bool(generation) and self.fact(GENERATION) not in (None, generation)

    # Inside: each in the transaction of its caller

    def _forget_announced(self) -> None:
        """Drop the sources that are known by what a backend told alone: each start tells all."""
        self.execute(
            "DELETE FROM sources WHERE source IS NULL AND COALESCE(upload_id, upload_key) IS NULL"
            " AND source_key NOT IN (SELECT source_key FROM uploads)"
        )

    def _compare(self, key: str, shown: SourceState) -> bool:
        """Compare one source; whether its mark was cleared."""
        self.execute("INSERT OR IGNORE INTO sources (source_key) VALUES (?)", (key,))
        [row] = self.execute(
            "SELECT upload_id, source_seq, watermark, mode, full_seq,"
            " COALESCE(upload_id, upload_key) IS NOT NULL FROM sources WHERE source_key = ?",
            (key,),
        )
        marked, seq, watermark, mode, full_seq, has_mark = row
        uploads = self.execute(
            "SELECT upload_id, mode, \"full\", source_seq, base, after, until, state = 'dead'"
            " FROM uploads WHERE source_key = ? AND (state IN ('sealed', 'completing')"
            " OR state = 'dead' AND json_extract(answer, '$.superseded') IS NULL)"
            " ORDER BY seal_order",
            (key,),
        )
        other_mode = None not in (shown.mode, mode) and shown.mode != mode
        lost_full = full_seq > shown.full_seq and not any(one[2] for one in uploads)
        lost_full = lost_full and not shown.removed  # dropped on purpose
        chains = not lost_full and shown.mode != "replace"
        at, position, mine = shown.source_seq, shown.watermark, seq == shown.source_seq
        for upload_id, its_mode, full, its_seq, base, after, until, dead in uploads:
            if its_mode == "append":
                stays = full or (from_text(after) == position and chains)
            else:
                stays = shown.removed or base is None or at in (base, its_seq)
            if stays:
                at, position = its_seq, from_text(until)
                mine = mine or upload_id == marked
            elif not dead:
                self._put_off(upload_id, own=its_mode == "replace" and upload_id == marked)
        cleared = False
        if (mode or shown.mode) == "append":
            changed = lost_full or position != from_text(watermark)
            cleared = bool(changed and has_mark and shown.source_seq < seq)
            self._set_source(
                key,
                watermark=as_text(position),
                full_seq=shown.full_seq if lost_full or mode is None else full_seq,
                mode=mode or shown.mode,
                upload_id=None if changed else marked,
            )
        elif has_mark and not mine and not shown.removed:
            cleared = True
            self._clear(key)
        self.execute(
            "UPDATE sources SET base = ?, high = MAX(high, ?), owed = owed OR ?,"
            " missing = missing OR ? WHERE source_key = ?",
            (at, shown.source_seq, other_mode or lost_full, cleared, key),
        )
        for upload_id, base in self.execute(
            "SELECT upload_id, base FROM uploads WHERE source_key = ? AND state = 'building'",
            (key,),
        ):
            if base not in {shown.source_seq, at}:  # it began on another standing: made again
                self._end(upload_id, "abandoned", answer={"compared": True})
        return cleared

    def _put_off(self, upload_id: str, *, own: bool, answer: Any = None) -> None:
        """End an upload that came too late; the newest content of its source is kept, unsent."""
        if not own:
            self._end(upload_id, "superseded", answer=answer)
            return
        self._set_upload(upload_id, state="held", answer=as_text(answer), ended_at=self._now())

    def _set_source(self, key: str, **columns: Any) -> None:
        self.update("sources", "source_key", key, **columns)

    def _set_upload(self, upload_id: str, **columns: Any) -> None:
        self.update("uploads", "upload_id", upload_id, **columns)

    def _clear(self, key: str) -> None:
        """Take a mark back: the next run reads the source, whatever it reads."""
        self._set_source(key, upload_id=None, upload_key=None, stamp=None, missing=1)

    def _acknowledge(self, upload_id: str, number: Any) -> None:
        """Note the number that an answer gave, unless a greater one is known."""
        last = self.fact(ACKNOWLEDGED) or {"number": 0}
        if type(number) is int and last["number"] < number < 1 << 62:
            self._remember(ACKNOWLEDGED, {"number": number, "upload_id": upload_id})

    def _raise_high(self, key: str, high: Any) -> None:
        """Note that a source_seq is taken."""
        if isinstance(high, int) and 0 <= high < 1 << 62:
            self.execute(
                "INSERT INTO sources (source_key, high) VALUES (?, ?) ON CONFLICT (source_key)"
                " DO UPDATE SET high = MAX(high, excluded.high)",
                (key, high),
            )

    def _end(
        self,
        upload_id: str,
        state: str,
        *,
        job_id: str | None = None,
        answer: Any = None,
    ) -> None:
        """End an upload; its chunks go, but for those of a dead letter."""
        self.execute(
            "UPDATE uploads SET state = ?, job_id = ?, answer = ?, ended_at = ?"
            " WHERE upload_id = ? AND (ended_at IS NULL OR state IN ('dead', 'held'))",
            (state, job_id, as_text(answer), self._now(), upload_id),
        )
        if state != "dead":
            self.execute("DELETE FROM chunks WHERE upload_id = ?", (upload_id,))
        self._forget_old()

    def _forget_old(self) -> None:
        """Drop the oldest ended uploads' rows."""
        self.execute(
            "DELETE FROM uploads WHERE state IN ('done', 'superseded', 'abandoned', 'overtaken')"
            " AND number <= MIN((SELECT MAX(number) FROM uploads) - ?, ?)",
            (KEPT_ENDED, (self._kept_from or 1 << 62) - 1),
        )
