"""The outbox: the durable local store of uploads that the backend has not yet completed.

Owns the rules by which uploads come, go and are numbered, and by which what is here is compared
with what the backend reports. The statements are `store`'s, and who of several is at work
`membership`'s; the marks of what was sealed last lie there too, so that a seal and its mark are one
transaction. Never talks to a backend.

States: building → sealed → completing → done, or superseded, held, dead, overtaken, abandoned.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from functools import partial, wraps
from itertools import chain
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from catalogzero.clock import Clock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.membership import Membership
from catalogzero.cloud.outbox.shared_commits import SharedCommits
from catalogzero.cloud.outbox.store import STORE_FAULTS, OutboxStore
from catalogzero.cloud.outbox.stored import (
    ACKNOWLEDGED,
    DAMAGED,
    EPOCH,
    FIRST_SEQ,
    GENERATION,
    INSTALLATION,
    LAST_NONCE,
    MOVED,
    NONCE,
    UPLOADED,
    SharedStore,
    Upload,
    UploadedTotals,
    as_text,
    from_text,
)
from catalogzero.errors import ConfigError, FailedError, SourceChangedError, UnknownCommitError
from catalogzero.protocol.bodies import Known, SourceState
from catalogzero.protocol.identities import Keyed, digest_of
from catalogzero.wire.messages import JsonObject

T = TypeVar("T")
P = ParamSpec("P")

GONE = "the backend has a newer state of the source, and the source is gone"
_NO_NUMBER = 1 << 62
"""Above the number of any upload, and of any source_seq that is believed."""


class UploadEndedError(FailedError):
    """The upload that a run was building has ended under it; `details` is the backend's answer."""


def transaction(
    method: Callable[Concatenate[Outbox, P], T],
) -> Callable[Concatenate[Outbox, P], T]:
    """Run a method in a write transaction: see `SharedCommits`."""

    @wraps(method)
    def run(self: Outbox, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.commits.run(partial(method, self, *args, **kwargs))

    return run


@dataclass(frozen=True, slots=True)
class Opening:
    """What an upload is begun as.

    Attributes:
        upload_id: Its id.
        source_key: The source at the backend.
        source: The source's name, as it leaves.
        mode: How it changes what its source had.
        full: Whether it takes the place of all that its source had.
        params: The call's, as they leave.
        stream: What its records are named at the backend; None: the handler's own stream.
        keyed: In merge, the key.
        base: Of what is replaced whole, where its source stood before it was read, as
            `Mark.base`; None of a range, which says by its `after` what it goes on from.
    """

    upload_id: str
    source_key: str
    source: str
    mode: str
    _: KW_ONLY
    full: bool
    params: Any
    stream: str | None = None
    keyed: Keyed | None = None
    base: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealing:
    """The seal of one upload, with what its source's mark becomes.

    Attributes:
        upload_id: The upload that is building.
        upload_key: The identity of its content; of a range it is made the range's own.
        stamp: See `Item.stamp`.
        after: Of a range the watermark that it begins at, as `mark` gave it.
        until: Of a range the value that it ends at.
        bound: What the watermark's values are of.
        watermark_of: The same, as the backend compares it.
        found_by: The call that found the source, to know when it is gone.
        policy: The digest of the egress policy that its records left by.
        recent: In merge, the digests of the rows that were read last.
    """

    upload_id: str
    upload_key: str
    stamp: Any = None
    after: Any = None
    until: Any = None
    bound: dict[str, str] | None = None
    watermark_of: str = ""
    found_by: str | None = None
    policy: str | None = None
    recent: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeUpload:
    """An upload with all that it holds, to be sealed as it is begun."""

    opening: Opening
    chunks: Sequence[Chunk]
    sealing: Sealing


class Outbox:
    """The outbox in one state folder, or in a database that instances share.

    Every public method is atomic, on the disk when it returns, and may be called from any thread,
    beside other processes that have the same outbox open; calls that come together share a commit.

    Args:
        folder: The handler's state folder.
        clock: For the times and the source numbers that it writes.
        shared: The database, where instances share it.
        max_bytes: New uploads are refused above this.
        kept_ended: Rows of ended uploads that are kept to look at.
        repair: See `OutboxStore`.

    Attributes:
        store: To look at it; what changes it is here.
        commits: Its transactions.
        membership: This process among those that share it; None where it is alone.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        shared: SharedStore | None = None,
        *,
        max_bytes: int = 10 << 30,
        kept_ended: int = 1_000,
        repair: bool = True,
    ) -> None:
        self.store = OutboxStore(folder, clock, shared, repair=repair)
        self.membership = None if shared is None else Membership(self.store, shared.instance_id)
        self._beats, self._timeline, self._has_left = 1, "", False
        self.commits = SharedCommits(self.store)
        self._clock, self._max_bytes, self._kept_ended = clock, max_bytes, kept_ended
        self._kept_from, self._runs_from = _NO_NUMBER, list[int]()
        if self.store.rescue is not None:
            self.remember(DAMAGED, self.store.rescue)

    def close(self) -> None:
        """Close the file or the connection."""
        self.store.close()

    @transaction
    def remember(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name; None forgets it."""
        self.store.set_fact(name, value)

    @transaction
    def next_number(self, name: str, above: int = 0) -> int:
        """The next of numbers that are counted under a name; none is given twice."""
        number = max(self.store.fact(name) or 0, above) + 1
        self.store.set_fact(name, number)
        return number

    # What a run does

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """While it is open, the rows of uploads that were begun in it stay, however many."""
        first = self.store.newest() + 1
        self._runs_from.append(first)
        self._keep_their_rows()
        try:
            yield
        finally:
            self._runs_from.remove(first)
            with suppress(*STORE_FAULTS):  # the next run says it again
                self._keep_their_rows()

    def _keep_their_rows(self) -> None:
        """See `keeping`: of all runs under way; whoever shares the outbox keeps them, too."""
        with self.store.lock:
            self._kept_from = min(self._runs_from, default=_NO_NUMBER)
            if self.membership is not None:
                keep = partial(self.membership.keep_from, self._kept_from)
                self.store.write(keep, of_one=True)

    def refuse_when_full(self) -> None:
        """Raise `FailedError` when the outbox holds `outbox_max_bytes` or more."""
        held = self.store.totals().bytes
        if held >= self._max_bytes:
            raise FailedError(
                f"the outbox holds {held} bytes, and outbox_max_bytes is {self._max_bytes}: "
                "nothing was read; see `catalogzero outbox list` for why it does not empty"
            )

    @transaction
    def agree_on_roots(self, tokens: Mapping[str, str]) -> dict[str, str]:
        """Keep the tokens of data roots that were not known; where one differs, none is kept.

        Args:
            tokens: That of each root, by the name that its sources have; empty: it has none.

        Returns:
            The token that is known, of each root that has another one.
        """
        fact = "root_tokens"
        known = self.store.fact(fact) or {}
        others = {
            name: known[name] for name, token in tokens.items() if known.get(name, token) != token
        }
        unknown = {name: token for name, token in tokens.items() if token and name not in known}
        if unknown and not others:
            self.store.set_fact(fact, {**known, **unknown})
        return others

    @transaction
    def begin(self, opening: Opening) -> None:
        """Open an upload in state building: its chunks may be sent, none is visible before a seal.

        Raises:
            UploadEndedError: Its source no longer stands where it did before it was read.
        """
        self._begin(opening)

    def _begin(self, opening: Opening) -> None:
        """See `begin`; in the transaction of its caller."""
        found = self.store.find("sources", "base", source_key=opening.source_key)
        base = found[0][0] if found else 0
        if opening.base not in (None, base):
            # What was read before a compare would pass for read after it.
            text = f"{opening.source}: the source was compared with the backend while it was read"
            raise UploadEndedError(text, details={"compared": True})
        self.store.insert(
            "uploads",
            state="building",
            created_at=self.store.now(),
            base=base,
            upload_id=opening.upload_id,
            source_key=opening.source_key,
            source=opening.source,
            mode=opening.mode,
            full=int(opening.full),
            params=as_text(opening.params),
            stream=opening.stream,
            keyed=as_text(opening.keyed),
            **({"builder": self.membership.member} if self.membership else {}),
        )

    def add(self, upload_id: str, chunk: Chunk) -> None:
        """Store a chunk of an upload that is building; a full disk is the run's error.

        Raises:
            UploadEndedError: It has ended.
        """

        def work() -> None:
            if not self.store.add_chunk(upload_id, chunk):
                raise self._ended_error(upload_id)

        # Not `@transaction`: the reserve is for ending uploads, a chunk would use it up.
        self.store.write(work, of_one=True)

    @transaction
    def seal(self, *sealings: Sealing) -> list[int]:
        """Seal uploads and advance their sources' marks, all in one transaction.

        Returns:
            The source_seq given to each: above all known ones, and at least the clock.

        Raises:
            SourceChangedError: A source no longer stands where it did before it was read.
            UploadEndedError: One has ended.
        """
        return [self._seal(sealing) for sealing in sealings]

    def _seal(self, sealing: Sealing) -> int:
        """See `seal`; in the transaction of its caller."""
        upload_id, upload_key, after = sealing.upload_id, sealing.upload_key, sealing.after
        until = sealing.until
        store = self.store
        columns = 'source_key, "full", mode, source, params, keyed, base'
        found = store.find("uploads", columns, upload_id=upload_id, state="building")
        if not found:
            raise self._ended_error(upload_id)
        key, full, mode, source, params, keyed, base = found[0]
        seq = self._next_seq(key)
        [(position, stands)] = store.find("sources", "watermark, base", source_key=key) or [
            (None, 0)
        ]
        if base != stands and (full or mode == "replace"):
            # What another run sealed since is newer than what this one read.
            raise SourceChangedError(f"{source}: another run sealed it while it was read")
        if mode != "replace":
            # Another run, a late answer or a purge may have moved the position since the read
            # began: a range sealed on it would leave a hole, or send rows twice.
            if not full and from_text(position) != after:
                raise SourceChangedError(f"{source}: its position moved while it was read")
            # Watermark values alone are no key: a second update within one of them is another
            # content, and would be taken for a duplicate.
            until, upload_key = [until, seq], digest_of([upload_key, seq])
            after = None if full else after
        store.seal_upload(
            upload_id,
            upload_key=upload_key,
            source_seq=seq,
            after=as_text(after),
            until=as_text(until),
            watermark_of=sealing.watermark_of,
        )
        for (held,) in store.find("uploads", "upload_id", source_key=key, state="held"):
            self._end(held, "superseded", answer={"read_again_as": upload_id})
        store.know_source(key)
        store.set_source(
            key,
            upload_id=upload_id,
            upload_key=upload_key,
            stamp=as_text(sealing.stamp),
            watermark=as_text(until),
            recent=sealing.recent,
            keyed=keyed,
            high=seq,
            source_seq=seq,
            base=seq,
            source=source,
            params=params,
            mode=mode,
            bound=as_text(sealing.bound),
            found_by=sealing.found_by,
            policy=sealing.policy,
            missing=0,
            **({"last_full": upload_id, "full_seq": seq, "owed": 0} if full else {}),
        )
        return seq

    def seal_whole(self, items: Sequence[Sequence[WholeUpload]]) -> list[Exception | None]:
        """Begin, fill and seal the uploads of several items, all in one transaction.

        Where that fails, each item has one of its own: only those at fault are not sealed. A full
        disk is the item's error, as in `add`.

        Returns:
            What each item failed of; None where it is sealed.
        """

        def work() -> None:
            for upload in chain.from_iterable(items):
                self._begin(upload.opening)
                for chunk in upload.chunks:
                    self.store.add_chunk(upload.opening.upload_id, chunk)
                self._seal(upload.sealing)

        try:
            self.store.write(work)
        except UnknownCommitError as error:  # it may be there: not again
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001  # the item's
            if len(items) == 1:
                return [error]
        else:
            return [None] * len(items)
        return [error for item in items for error in self.seal_whole([item])]

    @transaction
    def abandon(self, upload_id: str | None = None) -> int:
        """End an attempt that was not sealed, or all that nobody goes on with; their chunks go.

        Returns:
            How many there were.
        """
        return self._abandon(upload_id)

    def _abandon(self, upload_id: str | None = None) -> int:
        """See `abandon`; in the transaction of its caller."""
        if self.membership is not None and upload_id is None:
            found = self.membership.lapsed()
        else:
            one = {} if upload_id is None else {"upload_id": upload_id}
            rows = self.store.find("uploads", "upload_id", state="building", **one)
            found = [row[0] for row in rows]
        for building in found:
            answer = {"lapsed": True} if upload_id is None else None
            self._end(building, "abandoned", answer=answer)
        return len(found)

    @transaction
    def restamp(self, source_key: str, upload_key: str, stamp: Any) -> None:
        """Note a new stamp for content that turned out to be unchanged."""
        mark = {"source_key": source_key, "upload_key": upload_key}
        self.store.update("sources", mark, stamp=as_text(stamp))

    @transaction
    def nothing_new(self, source_key: str, after: Any) -> None:
        """Note that a source has nothing behind its position; nothing is missing if it is there."""
        if self.store.mark(source_key).watermark == after:
            self.store.set_source(source_key, missing=0)

    @transaction
    def gone(self, source_keys: Collection[str]) -> None:
        """A run did not come by these sources: the content that waits is a dead letter each."""
        for key in source_keys:
            found = self.store.find("uploads", "upload_id, answer", source_key=key, state="held")
            for upload_id, answer in found:
                said = {"reason": f"superseded: {GONE}", "superseded": True}
                answer = as_text({**(from_text(answer) or {}), **said})
                self.store.set_upload(upload_id, state="dead", answer=answer)

    # What the sender does

    def to_send(self, without: Iterable[str], limit: int, *, take: bool) -> list[Upload]:
        """The first uploads that are not ended, in order, that this process may send.

        Args:
            without: Ids of uploads that are not asked for.
            limit: How many, at most.
            take: Where others share the outbox: take what nobody has.
        """
        membership, without = self.membership, list(without)
        if membership is None:
            return self.store.open_uploads(without, limit)
        if take:
            self.store.write(partial(membership.take, without, limit), of_one=True)
        return membership.taken(without, limit)

    def release(self, keep: Iterable[str]) -> None:
        """Where others share the outbox: let them send what this process has, but for some."""
        if self.membership is not None:
            self.store.write(partial(self.membership.release, list(keep)), of_one=True)

    def epoch(self) -> int | None:
        """The installation's epoch, as the outbox has it now; None where the backend has none."""
        epoch: int | None = self.store.fact(EPOCH)
        return epoch

    @transaction
    def acknowledge(self, upload_id: str, seq: int | None, size: int = 0) -> None:
        """Note that a chunk, or with None every chunk, needs no further sending."""
        one = {} if seq is None else {"seq": seq}
        self.store.update("chunks", {"upload_id": upload_id, **one}, acked=1)
        self.store.count_sent(upload_id, size)

    @transaction
    def completing(
        self, upload_id: str, acknowledged: int | None = None, size: int = 0
    ) -> JsonObject | None:
        """Note that `complete` is about to be posted; None when the upload is no longer sealed.

        Args:
            upload_id: The upload.
            acknowledged: A chunk that needs no further sending, where it is its last.
            size: Bytes that were sent of it.

        Returns:
            What of `witness` it is to carry, and the epoch as `installation_epoch`.
        """
        sealed = {"upload_id": upload_id, "state": ("sealed", "completing")}
        if self.store.update("uploads", sealed, state="completing") != 1:
            return None
        if acknowledged is not None:
            self.store.update("chunks", {"upload_id": upload_id, "seq": acknowledged}, acked=1)
            self.store.count_sent(upload_id, size)
        epoch = self.epoch()
        return self.witness() | ({} if epoch is None else {"installation_epoch": epoch})

    @transaction
    def missing(self, upload_id: str, seqs: Sequence[int]) -> None:
        """Send these chunks again: the backend does not have them."""
        for seq in seqs:
            self.store.update("chunks", {"upload_id": upload_id, "seq": seq}, acked=0)
        completing = {"upload_id": upload_id, "state": "completing"}
        self.store.update("uploads", completing, state="sealed")

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
            generation: The backend's; an answer of another than the known one is ignored.
            number: That of the answer, where the backend numbers them.

        Returns:
            False where the answer is ignored.
        """
        if self.is_other(generation):
            return False
        if same_key_seq is not None:
            for (seq,) in self.store.find("sources", "source_seq", upload_id=upload_id):
                higher = max(seq, same_key_seq)
                self.store.update("sources", {"upload_id": upload_id}, source_seq=higher)
        last = self.store.fact(ACKNOWLEDGED) or {"number": 0}
        if type(number) is int and last["number"] < number < _NO_NUMBER:
            self.store.set_fact(ACKNOWLEDGED, {"number": number, "upload_id": upload_id})
        for (records,) in self.store.find("uploads", "records", upload_id=upload_id, ended_at=None):
            before, at = self.store.uploaded(), self.store.now()
            after: UploadedTotals = {
                "uploads": before["uploads"] + 1,
                "records": before["records"] + records,
                "at": at,
            }
            self.store.set_fact(UPLOADED, after)
        self._end_overtaken(upload_id)
        self._end(upload_id, "done", job_id=job_id)
        self.store.count_sent(upload_id, size)
        return True

    @transaction
    def die(self, upload_id: str, answer: Any, generation: str = "") -> bool:
        """The backend refused the upload for good: a dead letter, kept with the answer.

        One that is still building is abandoned: its source's mark never advanced. False where the
        answer is of another generation than the known one: then it is ignored.
        """
        if self.is_other(generation):
            return False
        self._end_overtaken(upload_id)
        for (state,) in self.store.find("uploads", "state", upload_id=upload_id, ended_at=None):
            self._end(upload_id, "abandoned" if state == "building" else "dead", answer=answer)
        return True

    @transaction
    def superseded(self, upload_id: str, answer: JsonObject, generation: str = "") -> bool:
        """The backend holds a newer state of the source; False where that is another generation's.

        While the source's mark is still this upload, the mark is cleared, and the bytes are kept
        unsent until a run has read the source again, or found it gone. An upload of a range sets
        the source's watermark to the backend's: the next run reads on from there. A `full` append
        is owed: the next run is one.
        """
        if self.is_other(generation):
            return False
        store = self.store
        sealed = {"upload_id": upload_id, "state": ("sealed", "completing")}
        found = store.find("uploads", 'source_key, mode, "full"', **sealed)
        if not found:
            return True
        key, mode, full = found[0]
        store.know_source(key)  # a damaged file may have lost it
        [(marked, last_full)] = store.find("sources", "upload_id, last_full", source_key=key)
        self._raise_high(key, answer.get("source_seq"))
        own = mode == "replace" and upload_id == marked
        self._end(upload_id, "held" if own else "superseded", answer=answer)
        if own:
            self._clear(key)
        elif mode != "replace" and not full:
            position = as_text(answer.get("watermark"))
            store.set_source(key, watermark=position, recent=None, upload_id=None)
        elif mode != "replace" and upload_id == last_full:
            store.set_source(key, owed=1)
        store.set_source(key, base=answer.get("source_seq", 0))
        return True

    def is_other(self, generation: str) -> bool:
        """Whether an answer is of another life of the backend than the one that is known."""
        return bool(generation) and self.store.fact(GENERATION) not in (None, generation)

    def witness(self) -> JsonObject:
        """What this folder holds for acknowledged, as `complete` and health report it.

        A backend that lost it was restored, and answers with another generation.
        """
        last = self.store.fact(ACKNOWLEDGED)
        if last is None:
            return {}
        return {"generation": self.store.fact(GENERATION), "acknowledged": last}

    # What an operator does

    @transaction
    def retry(self, upload_id: str) -> bool:
        """Send a dead letter again, from its first chunk; False when it is not a dead letter.

        It keeps its source_seq, but one that was superseded is sealed above what the backend has.
        """
        store = self.store
        columns = "source_key, upload_key, seal_order, answer"
        found = store.find("uploads", columns, upload_id=upload_id, state="dead")
        if not found or found[0][2] is None:
            return False
        key, upload_key, _, answer = found[0]
        store.update("chunks", {"upload_id": upload_id}, acked=0)
        if not (from_text(answer) or {}).get("superseded"):
            store.set_upload(upload_id, state="sealed", answer=None, ended_at=None)
            return True
        new, seq = uuid.uuid4().hex, self._next_seq(key)
        store.copy_upload(upload_id, new)
        [(base,)] = store.find("sources", "base", source_key=key)
        store.seal_upload(new, source_seq=seq, base=base)
        store.update("chunks", {"upload_id": upload_id}, upload_id=new)
        moved = {"high": seq, "base": seq, "source_seq": seq, "missing": 0}
        store.set_source(key, **moved, upload_id=new, upload_key=upload_key)
        self._end(upload_id, "superseded", answer={"sealed_again_as": new})
        return True

    @transaction
    def purge(self, upload_id: str) -> int:
        """Give up an upload that is not sent, and take its mark back if it is still its own.

        In append the source's position goes back to where the range began.

        Returns:
            The rows given up; the source's next run reads them again where it still has them.
        """
        store = self.store
        columns = 'records, source_key, mode, after, "full", source_seq, base'
        unsent = {"upload_id": upload_id, "state": ("dead", "held", "sealed", "completing")}
        found = store.find("uploads", columns, **unsent)
        if not found:
            return 0
        records, key, mode, after, full, seq, base = found[0]
        self._end(upload_id, "abandoned", answer={"purged": True})
        if mode != "replace":
            for last, full_seq in store.find("sources", "source_seq, full_seq", source_key=key):
                if full_seq <= seq <= last:
                    full_seq = 0 if full else full_seq
                    back = {"watermark": after, "recent": None, "full_seq": full_seq}
                    store.set_source(key, **back, upload_id=None)
        else:
            mark = {"upload_id": upload_id}
            store.update("sources", mark, upload_id=None, upload_key=None, stamp=None)
        for table in ("uploads", "sources"):  # what was sealed on it stands on what was before
            store.update(table, {"source_key": key, "base": seq}, base=base or 0)
        return int(records)

    @transaction
    def skip(self, upload_id: str) -> int:
        """Put an empty upload in the place of a refused range, so that those after it can go.

        Returns:
            The rows given up: no run reads them again.

        Raises:
            ConfigError: It is no dead letter of mode append or merge.
        """
        store = self.store
        ranged = {"state": "dead", "mode": ("append", "merge")}
        found = store.find("uploads", "records", upload_id=upload_id, **ranged)
        if not found:
            raise ConfigError(
                f"upload {upload_id} is no refused range: --skip is for dead letters of mode "
                "append and merge, plain purge for all others"
            )
        records, new = int(found[0][0]), uuid.uuid4().hex
        store.delete("chunks", upload_id=upload_id)
        store.copy_upload(upload_id, new)
        store.set_upload(new, chunks=0, records=0, bytes=0)
        store.update("sources", {"upload_id": upload_id}, upload_id=new)
        self._end(upload_id, "abandoned", answer={"skipped": records, "sealed_again_as": new})
        return records

    @transaction
    def adopt(self) -> None:
        """Take the installation over at the next start, as an empty folder would.

        A nonce without an answer stays: its start may still arrive.
        """
        was_moved = self.store.fact(MOVED) is not None
        for name in (MOVED, EPOCH, NONCE) if was_moved else (MOVED, EPOCH):
            self.store.set_fact(name, None)

    @transaction
    def forget_all(self, installation_id: str) -> None:
        """Drop every upload and mark; a handler that runs as that installation stays paused."""
        moved = {"installation_id": installation_id, "since": self.store.now()}
        self.store.set_fact(MOVED, moved)
        for table in ("chunks", "uploads", "sources"):
            self.store.delete(table)
        for name in (EPOCH, GENERATION, NONCE, LAST_NONCE, ACKNOWLEDGED):
            self.store.set_fact(name, None)

    # The start: one folder of possibly several, and whether it agrees with the backend

    def join(self, alike: Mapping[str, str] | None = None) -> bool:
        """Be at work on this outbox; what nobody goes on with is abandoned.

        Args:
            alike: What all that are at work on it must have in common, by the setting's name.

        Returns:
            Whether a start is due: it is not where others are at work, which have had theirs.

        Raises:
            ConfigError: Others are at work that differ.
        """
        is_first, self._timeline = self.commits.run(partial(self._join, alike or {}))
        self._beats = 1
        return is_first

    def _join(self, alike: Mapping[str, str]) -> tuple[bool, str]:
        """See `join`; in the transaction of its caller."""
        if self.membership is None:
            self._abandon()
            return True, ""
        self._has_left = False
        others = self.membership.join(alike)
        self._abandon()
        # The first may have been killed before its start was answered: whoever joins owes it.
        is_owed = self.store.fact(EPOCH) is None or self.store.fact(NONCE) is not None
        is_first = not others or is_owed
        if is_first:
            self._nonce()
        return is_first, self.membership.timeline()

    @transaction
    def leave(self) -> None:
        """Be at work no longer."""
        self._has_left = True
        if self.membership is not None:
            self.membership.leave()

    def beat(self, installation_id: str) -> bool:
        """Be at work for a lease more; end what killed instances were building.

        A store that does not know this process, as it was put back from an older copy, stays as it
        is until an operator adopts it.

        Returns:
            Whether a start is due: the database is another one since the last time, which may lack
            what it had.
        """
        if self.membership is None:
            return False
        before = self._timeline
        self._beats, self._timeline = self.commits.run(
            partial(self._beat, self.membership, self._beats + 1, installation_id)
        )
        return self._beats > 1 and self._timeline != before

    def _beat(self, membership: Membership, beat: int, installation_id: str) -> tuple[int, str]:
        """See `beat`; in the transaction of its caller."""
        if self._has_left:  # it came late: a store that does not know it is as it should be
            return 0, self._timeline
        if not membership.renew(beat):
            if self.store.fact(MOVED) is None:
                moved = {"installation_id": installation_id, "since": self.store.now()}
                self.store.set_fact(MOVED, {**moved, "put_back": True})
            membership.rejoin()
            beat = 1
        self._abandon()
        return beat, membership.timeline()

    @transaction
    def start(self) -> JsonObject:
        """What a start says of this folder: its epoch, and a nonce that lasts until an answer.

        It is for the generation that is known here: one of before a restore that comes late takes
        no epoch. The nonce of the last answered start goes along: where the backend's newest start
        was that one, come again on its way, nobody else took the folder's place.
        """
        fact = self.store.fact
        return {
            "epoch": fact(EPOCH) or 0,
            "generation": fact(GENERATION) or "",
            "nonce": self._nonce(),
            "last_nonce": fact(LAST_NONCE) or "",
        }

    def _nonce(self) -> str:
        """That of the start that is due; in the transaction of its caller.

        Kept before it is asked with: where the answer is lost, the next start shows by it that the
        epoch it meets at the backend is this folder's own.
        """
        nonce: str | None = self.store.fact(NONCE)
        if nonce is None:
            nonce = uuid.uuid4().hex
            self.store.set_fact(NONCE, nonce)
        return nonce

    @transaction
    def moved(self, installation_id: str, since: str, epoch: int) -> bool:
        """A start with this epoch was refused: another store took the installation over.

        Returns:
            False where another start of this store was answered meanwhile: then it says nothing.
        """
        if (self.store.fact(EPOCH) or 0) != epoch:
            return False
        moved = {"installation_id": installation_id, "since": since}
        self.store.set_fact(MOVED, moved)
        return True

    @transaction
    def started(self, known: Known, installation_id: str, nonce: str) -> list[str]:
        """Keep what a start was answered, and compare what is here with it, in one transaction.

        Args:
            known: The answer.
            installation_id: Whose start it was.
            nonce: What the start said.

        Returns:
            The source_keys whose marks were cleared: their sources are read again.
        """
        store, last = self.store, known.acknowledged
        if known.epoch < (store.fact(EPOCH) or 0):  # a later start of this store was answered
            return []
        # With the compare in one transaction: a generation that were kept first would pass for
        # compared after a crash between the two, and what was lost would never be missed.
        facts: dict[str, object] = {
            EPOCH: known.epoch,
            GENERATION: known.generation,
            INSTALLATION: installation_id,
            ACKNOWLEDGED: None if last is None else last.model_dump(),
            LAST_NONCE: nonce,
            NONCE: None,
        }
        for name, value in facts.items():
            store.set_fact(name, value)
        store.forget_announced()
        keys = store.known_sources()
        for key in known.states.keys() - set(keys):
            # known there alone: another folder's source, or one that was lost here
            shown = known.states[key]
            store.insert(
                "sources",
                source_key=key,
                watermark=as_text(shown.watermark),
                mode=shown.mode,
                high=shown.source_seq,
                base=shown.source_seq,
                full_seq=shown.full_seq,
            )
        return [key for key in keys if self._compare(key, known.states.get(key) or SourceState())]

    @transaction
    def learn_highest(self, sources: Mapping[str, object]) -> None:
        """Note the highest source_seq that the backend knows of each source."""
        self.store.forget_announced()
        for key, high in sources.items():
            self._raise_high(key, high)

    def moved_text(self, installation_id: str) -> str:
        """What an operator is to know and do where another folder took an installation over."""
        moved = self.store.fact(MOVED)
        if moved is None or moved.get("installation_id") != installation_id:
            return ""
        handler = shlex.quote(self.store.handler_id)
        if moved.get("put_back"):
            return (
                f"the store does not know this instance any more ({moved['since']}): it was put "
                "back from an older copy, or two processes have one instance_id: see that each "
                f"has its own, then `catalogzero installation adopt {handler}` goes on, and "
                "compares what is here with what the backend has"
            )
        return (
            f"another state folder took this installation over ({moved.get('since') or 'no date'}):"
            f" `catalogzero installation adopt {handler}` takes it back, `catalogzero installation "
            f"new {handler}` makes this folder one of its own"
        )

    # Inside: each in the transaction of its caller

    def _compare(self, key: str, shown: SourceState) -> bool:
        """Compare one source; whether its mark was cleared."""
        store = self.store
        store.know_source(key)
        columns = "upload_id, source_seq, watermark, mode, full_seq, upload_key"
        [(marked, seq, watermark, mode, full_seq, content)] = store.find(
            "sources", columns, source_key=key
        )
        has_mark = (marked or content) is not None
        uploads = store.comparable(key)
        lost_full = full_seq > shown.full_seq and not any(one[2] for one in uploads)
        lost_full = lost_full and not shown.removed  # dropped on purpose
        chains = not lost_full and shown.mode != "replace"
        at, position, mine = shown.source_seq, shown.watermark, seq == shown.source_seq
        for upload_id, its_mode, full, its_seq, base, after, until, dead in uploads:
            if its_mode != "replace":
                stays = full or (from_text(after) == position and chains)
            else:  # sealed on what is there, or there itself, as its answer was lost
                stays = shown.removed or base is None or at in (base, its_seq)
            if stays:
                at, position = its_seq, from_text(until)
                mine = mine or upload_id == marked
            elif not dead:
                own = its_mode == "replace" and upload_id == marked
                self._end(upload_id, "held" if own else "superseded")
        cleared = False
        if (mode or shown.mode) not in (None, "replace"):
            changed = lost_full or position != from_text(watermark)
            cleared = bool(changed and has_mark and shown.source_seq < seq)
            store.set_source(
                key,
                watermark=as_text(position),
                full_seq=shown.full_seq if lost_full or mode is None else full_seq,
                mode=mode or shown.mode,
                upload_id=None if changed else marked,
                **({"recent": None} if changed else {}),
            )
        elif has_mark and not mine and not shown.removed:
            cleared = True
            self._clear(key)
        store.know_source(key, shown.source_seq)
        other_mode = None not in (shown.mode, mode) and shown.mode != mode
        owed, missing = {"owed": 1}, {"missing": 1}
        also = {**(owed if other_mode or lost_full else {}), **(missing if cleared else {})}
        store.set_source(key, base=at, **also)
        building = store.find("uploads", "upload_id, base", source_key=key, state="building")
        for upload_id, base in building:
            if base not in {shown.source_seq, at}:  # it began on another standing: made again
                self._end(upload_id, "abandoned", answer={"compared": True})
        return cleared

    def _clear(self, key: str) -> None:
        """Take a mark back: the next run reads the source, whatever it reads."""
        self.store.set_source(key, upload_id=None, upload_key=None, stamp=None, missing=1)

    def _raise_high(self, key: str, high: object) -> None:
        """Note that a source_seq is taken."""
        if isinstance(high, int) and 0 <= high < _NO_NUMBER:
            self.store.know_source(key, high)

    def _next_seq(self, key: str) -> int:
        """The number of what is sealed now: the clock alone may be behind what is known."""
        found = self.store.find("sources", "high", source_key=key)
        clock_ms = int(self._clock.now().timestamp() * 1000)
        return max((found[0][0] if found else 0) + 1, clock_ms, FIRST_SEQ)

    def _end_overtaken(self, upload_id: str) -> None:
        """A later content of the source was answered: its older dead letters end, their bytes go.

        The lines stay; in append each range stands for itself.
        """
        for dead, answer in self.store.older_dead_letters(upload_id):
            self._end(dead, "overtaken", answer={**(from_text(answer) or {}), "overtaken": True})

    def _end(
        self, upload_id: str, state: str, *, job_id: str | None = None, answer: Any = None
    ) -> None:
        """End an upload; rows of the oldest that ended go, but for those of runs under way."""
        self.store.end_upload(upload_id, state, job_id=job_id, answer=answer)
        below = self.membership.kept_from() if self.membership else self._kept_from
        self.store.forget_ended(self._kept_ended, below)

    def _ended_error(self, upload_id: str) -> UploadEndedError:
        """The error of an upload that ended under its run: refused by the backend, or purged."""
        found = self.store.find("uploads", "state, answer", upload_id=upload_id)
        state, answer = found[0] if found else ("gone", None)
        answer = from_text(answer)
        return UploadEndedError(
            f"upload {upload_id} is {state} and takes no more: {answer}", details=answer
        )
