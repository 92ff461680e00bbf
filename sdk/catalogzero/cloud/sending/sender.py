"""The sender: takes what the outbox holds to the backend, for as long as it takes.

Runs on the worker's event loop beside the runs that fill the outbox. Only the answer to `complete`
ends a sealed upload; `deciding.decide` says what each answer means. Never reads a source, never
changes a record.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Container, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from structlog.typing import FilteringBoundLogger

from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.outbox import Outbox
from catalogzero.cloud.outbox.outbox_file import is_disk_full
from catalogzero.cloud.outbox.store import STORE_FAULTS
from catalogzero.cloud.outbox.stored import (
    FAULT,
    PAUSED,
    DamagedChunkError,
    Fault,
    Pause,
    Upload,
)
from catalogzero.cloud.sending.backend_client import BackendClient
from catalogzero.cloud.sending.noted_answers import note_answer
from catalogzero.cloud.sending.retry_timer import RetryTimer
from catalogzero.cloud.sending.upload_requests import (
    chunk_request,
    complete_body,
    simple_refusal,
    whole_request,
)
from catalogzero.protocol.bodies import AS_JSON
from catalogzero.protocol.codings import CODINGS, recode
from catalogzero.protocol.deciding import Decision, Outcome, RequestKind, Verdict, decide
from catalogzero.protocol.problems import Kind
from catalogzero.wire.messages import encode_json

PAUSED_PROBE_S = 300.0
KEY_LOOK_S = 2.0
POLL_S, SHARED_POLL_S = 5.0, 0.5
"""How long a wait goes on without a look at the outbox: one that others share, they may empty."""
DISK_FULL = "disk_full"
_RETRIED, _PAUSED = "upload retried", "sending is paused"
_FAILED, _NOT_READ = "sending failed", "the outbox cannot be read"
LOOKED_AT = 200
"""Uploads that are looked at for one that can go, at most."""
KEPT_ANSWER_BYTES = 16_384
"""Of what a backend said to an upload that it refused."""


class Sender:
    """Sends the uploads of one outbox.

    Args:
        outbox: What to send; other threads may fill it.
        backend: The open connection to the backend.
        log: Logs pauses, dead letters and faults.
        on_change: Called on the loop after each change that the outside may want to know of.
        on_start_due: Called where the backend is another one than the known (it was restored), or
            knows a later start than this folder's: the next start says what to do.
        sealed_only: Send nothing of an upload before it is sealed.

    Attributes:
        holds: Whether nothing may be sent, as no start was answered.
        paused: Whether sending is paused.
        pause_known: Why, for people on this machine and as a word; what an earlier process of this
            folder left is known until a try says otherwise.
        fault: What failed last on the way, in the same way; None after a success.
        all: When anything may be tried again.
        each: The same of uploads that failed, by upload_id.
        late: The same of sources whose last upload was superseded, by source_key.
        resent: How often chunks were sent again as they arrived damaged, by upload_id and number.
    """

    def __init__(
        self,
        outbox: Outbox,
        backend: BackendClient,
        log: FilteringBoundLogger,
        on_change: Callable[[], None],
        on_start_due: Callable[[], None],
        *,
        sealed_only: bool = False,
    ) -> None:
        self._outbox, self._backend, self._log = outbox, backend, log
        self._clock, self._settings = backend.clock, backend.settings
        self._on_change, self._on_start_due = on_change, on_start_due
        self._sealed_only = sealed_only
        self.holds = True
        self.paused = False
        self.pause_known = outbox.store.pause()
        self.fault: Fault | None = outbox.store.fact(FAULT)
        self._form: str = self._settings.upload_form
        if self._form == "auto":
            known = outbox.store.fact("form") or {}
            self._form = str(known.get(self._settings.endpoint, "unknown"))
        self._coding = CODINGS[0]
        self.all = RetryTimer()
        self.each: dict[str, RetryTimer] = {}
        self.late: dict[str, RetryTimer] = {}
        self.resent: Counter[tuple[str, int]] = Counter()
        self._flying: dict[tuple[str, int | None], asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._changed, self._changes = threading.Condition(), 0
        self._waiting_work = False
        self._next: list[Upload] = []

    # What the outside may ask

    def wake(self) -> None:
        """Look at the outbox now; from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nothing is sent any more
                self._loop.call_soon_threadsafe(self._wake.set)

    def wait_ended(self, upload_ids: Sequence[str], timeout_s: float) -> None:
        """Wait, in a thread, until the uploads have ended, a pause begins, or the time is up."""
        deadline = self._clock.monotonic() + timeout_s
        poll_s = SHARED_POLL_S if self._outbox.store.is_shared else POLL_S
        waited_for = deque(upload_ids)
        while waited_for and not self.paused:
            changes = self._changes
            # Not under the lock, which the loop takes: a database may be slow, or away.
            if not self._outbox.store.is_open(waited_for[0]):
                waited_for.popleft()
                continue
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return
            with self._changed:
                # Never for longer: another process (`outbox purge`) may end an upload, too.
                self._changed.wait_for(partial(self._is_later, changes), min(left, poll_s))

    def _is_later(self, changes: int) -> bool:
        """Whether more has changed than these."""
        return self._changes != changes

    @property
    def is_flying(self) -> bool:
        """Whether requests are under way."""
        return bool(self._flying)

    @property
    def busy(self) -> bool:
        """Whether requests are under way, or could be at once."""
        return self.is_flying or (self._waiting_work and self.next_due_s() == 0.0)

    def next_due_s(self) -> float | None:
        """Seconds until the next try; None when nothing waits."""
        if not self._waiting_work:
            return None
        # A copy, as it is asked from other threads too, and a dict that changes cannot be read on.
        waits = [each.not_before for each in [*self.each.values()] if each.not_before]
        due = max(min(waits, default=0.0), self.all.not_before)
        return max(due - self._clock.monotonic(), 0.0)

    # The start

    def hold(self) -> None:
        """Begin no request until `go`."""
        self.holds = True

    async def go(self) -> None:
        """A start was answered: send."""
        self.holds = False
        await self.went_well()
        self.wake()

    def try_now(self) -> None:
        """An operator has ended a pause: what is tried next waits for nothing of before."""
        self.all.succeeded()

    def hurry(self) -> None:
        """Try now what waits for its next try, also in a pause; what fails again waits longer."""
        for timer in (self.all, *self.each.values(), *self.late.values()):
            timer.not_before = 0.0
        self.wake()

    async def rest(self) -> None:
        """Wait until a start may be tried again: after the backoff, or with another key."""
        while (left := self.all.not_before - self._clock.monotonic()) > 0:
            await self._clock.sleep(min(left, KEY_LOOK_S))
            self.try_another_key()

    def try_another_key(self) -> None:
        """End the wait of a pause where the API key, or a certificate, is another one by now."""
        if self.paused and self._backend.credentials_changed():
            self.all.succeeded()

    # The loop

    async def run(self) -> None:
        """Send until cancelled; what is under way then is given up, and sent again later."""
        self._loop = asyncio.get_running_loop()
        tidy = True
        try:
            while True:
                # Cleared before the look: what is added during it wakes the next one.
                self._wake.clear()
                await self._round()
                self._on_change()
                if not self._waiting_work and not tidy:
                    await asyncio.to_thread(self._outbox.store.tidy)
                tidy = not self._waiting_work
                due = self.next_due_s()
                wait_s = POLL_S if due is None or self._flying else min(max(due, 0.05), POLL_S)
                try:
                    async with asyncio.timeout(min(wait_s, KEY_LOOK_S) if self.paused else wait_s):
                        await self._wake.wait()
                except TimeoutError:
                    self.try_another_key()
        finally:
            for task in list(self._flying.values()):
                task.cancel()
            await asyncio.gather(*self._flying.values(), return_exceptions=True)

    async def _round(self) -> None:
        """Start what may be started now."""
        try:
            now = self._clock.monotonic()
            next_ones, self._next = self._next, []
            if not self.holds and not self._is_careful and await self._start_due(next_ones, now):
                return
            resting = {key for key, own in self.each.items() if now < own.not_before}
            passed = resting | {key for key, seq in self._flying if seq is None}
            self._waiting_work = bool(passed)
            look = 4 * self._settings.upload_concurrency
            for _ in range(1 + LOOKED_AT // look):
                take = not self.holds and now >= self.all.not_before
                uploads = await asyncio.to_thread(self._outbox.to_send, passed, look, take=take)
                ready = [upload for upload in uploads if self.has_work(upload)]
                self._waiting_work = self._waiting_work or bool(ready)
                if await self._start_due([] if self.holds else ready, now):
                    return
                passed.update(upload.upload_id for upload in uploads)
                if len(uploads) < look:
                    self._forget(passed)
                    return
        except STORE_FAULTS as error:
            if times := self._backend.seldom.is_due(_NOT_READ):
                self._log.warning(_NOT_READ, error=str(error), failed_tries=times)
            await self.failed_all("outbox_not_readable")

    async def _start_due(self, uploads: Sequence[Upload], now: float) -> bool:
        """Start uploads whose next try is not later; whether some are left for want of room.

        Small ones that are left come next, without another look at the outbox.
        """
        for number, upload in enumerate(uploads):
            if self.free_slots() <= 0:
                self._next = [left for left in uploads[number:] if is_small(left)]
                return True
            late = self.late.get(upload.source_key)
            if late is not None:
                self.each.setdefault(upload.upload_id, RetryTimer(not_before=late.not_before))
            own = self.each.get(upload.upload_id, self.all)
            if now >= max(own.not_before, self.all.not_before):
                await self._start(upload)
        return False

    def _forget(self, waiting: Container[str]) -> None:
        """Drop what is known of uploads that no longer wait."""
        self.each = {key: own for key, own in self.each.items() if key in waiting}
        self.resent = Counter({one: n for one, n in self.resent.items() if one[0] in waiting})

    def has_work(self, upload: Upload) -> bool:
        """Whether something of an upload can be sent: a simple one is sent whole, once sealed."""
        whole = self._sealed_only or self._form == "simple"
        return upload.state != "building" or (not whole and upload.chunks > 0)

    def free_slots(self) -> int:
        """How many more requests may start: one at a time until it is known that they succeed."""
        most = 1 if self._is_careful else self._settings.upload_concurrency
        return most - len(self._flying)

    @property
    def _is_careful(self) -> bool:
        """Whether it is not known that requests succeed."""
        return bool(self.paused or self.all.attempts or self._form == "unknown")

    async def _start(self, upload: Upload) -> None:
        """Start the next requests of one upload."""
        key, store = upload.upload_id, self._outbox.store
        if self._form == "simple":
            alone = (key, None) not in self._flying
            if alone and await asyncio.to_thread(store.may_complete, upload, chunks=False):
                self._fly(key, None, self._send_whole(upload))
            return
        if is_small(upload) and not self._is_careful:
            if not any(flying == key for flying, _ in self._flying):
                self._fly(key, None, self._send_small(upload))
            return
        free = self.free_slots()
        unsent = await asyncio.to_thread(store.unsent, key, free + len(self._flying))
        for seq in [seq for seq in unsent if (key, seq) not in self._flying][:free]:
            self._fly(key, seq, self._send_chunk(upload, seq))
        # Never beside a chunk of its own: `complete` would find that one missing.
        alone = not unsent and not any(flying == key for flying, _ in self._flying)
        alone = alone and upload.state != "building"
        if alone and await asyncio.to_thread(store.may_complete, upload):
            self._fly(key, None, self._complete(upload))

    def _fly(self, key: str, seq: int | None, work: Coroutine[Any, Any, None]) -> None:
        """Run one request as a task that reports back when it ends.

        A fault of this side, such as a full disk, is met as one of that side.
        """

        async def guarded() -> None:
            try:
                await work
            except DamagedChunkError as error:
                await asyncio.to_thread(self._outbox.die, key, {"reason": str(error)})
                self._log.error("upload damaged", upload_id=key, reason=str(error))
            except Exception as error:  # noqa: BLE001  # the sender outlives every fault
                full = is_disk_full(error)
                if times := self._backend.seldom.is_due(_FAILED):
                    about = {"upload_id": key, "error": str(error), "failed_tries": times}
                    self._log.warning(_FAILED, **about, exc_info=not full)
                await self._failed(key, Outcome(fault=DISK_FULL if full else type(error).__name__))

        def landed(_: asyncio.Task[None]) -> None:
            self._flying.pop((key, seq), None)
            self._wake.set()
            with self._changed:
                self._changes += 1
                self._changed.notify_all()
            self._on_change()

        task = asyncio.create_task(guarded(), name=f"send {key} {seq}")
        self._flying[key, seq] = task
        task.add_done_callback(landed)

    # The requests

    async def _send_chunk(self, upload: Upload, seq: int) -> None:
        chunk = await asyncio.to_thread(self._outbox.store.chunk, upload.upload_id, seq)
        if chunk is not None:
            decision, outcome, size = await self._put(upload, chunk)
            await self._act(upload, decision, outcome, seq=seq, size=size)

    async def _put(self, upload: Upload, chunk: Chunk) -> tuple[Decision, Outcome, int]:
        """Send a chunk; what its answer means, and how many bytes left."""
        body, coding = chunk.body, chunk.coding
        if coding not in ("identity", self._coding):  # this backend takes another one
            coding = self._coding
            body = await asyncio.to_thread(recode, body, chunk.coding, coding)
        path, headers = chunk_request(upload.upload_id, chunk, body, coding)
        about = {"upload_id": upload.upload_id, "seq": chunk.seq, "records": chunk.records}
        kind, body_key = RequestKind.CHUNK, (upload.upload_id, chunk.seq)
        outcome = await self._backend.push(kind, "PUT", path, body, headers, about=about)
        decision = decide(
            kind,
            outcome,
            self._clock.now(),
            probing=self._form == "unknown",
            coding=coding,
            resent=self.resent[body_key],
        )
        if decision.verdict is Verdict.RETRY and outcome.type == Kind.DIGEST_MISMATCH.uri:
            self.resent[body_key] += 1
        else:
            self.resent.pop(body_key, None)
        if decision.verdict is Verdict.OTHER_CODING:
            self._coding = CODINGS[CODINGS.index(coding) + 1]
            self._log.warning("coding refused", coding=coding, reason=decision.reason)
        return decision, outcome, len(body)

    async def _send_small(self, upload: Upload) -> None:
        """An upload of one chunk, or of none: PUT and `complete`, one after the other."""
        chunk = await asyncio.to_thread(self._outbox.store.next_chunk, upload.upload_id)
        if chunk is None:
            await self._complete(upload)
            return
        decision, outcome, size = await self._put(upload, chunk)
        goes_on = not self.holds and not self._is_careful  # as it was when this began
        if decision.verdict is Verdict.STORED and goes_on:
            await self._complete(upload, chunk.seq, size)
        else:
            await self._act(upload, decision, outcome, seq=chunk.seq, size=size)

    async def _complete(
        self, upload: Upload, acknowledged: int | None = None, sent: int = 0
    ) -> None:
        """Post `complete`, and note with it that its last chunk was taken, where that is new."""
        key = upload.upload_id
        witness = await asyncio.to_thread(self._outbox.completing, key, acknowledged, sent)
        if witness is None:  # an operator purged the upload since it was listed
            return
        body = encode_json({**complete_body(upload, self._backend.identity), **witness})
        path, about = ("uploads", key, "complete"), {"upload_id": key}
        kind = RequestKind.COMPLETE
        outcome = await self._backend.push(kind, "POST", path, body, AS_JSON, about=about)
        decision = decide(kind, outcome, self._clock.now())
        epoch = witness.get("installation_epoch")
        await self._act(upload, decision, outcome, size=len(body), epoch=epoch)

    async def _send_whole(self, upload: Upload) -> None:
        """The simple form: one plain JSON array."""

        def refusal() -> str:
            # Chunk by chunk: a result that this form cannot take may be larger than memory.
            bodies = self._outbox.store.bodies(upload.upload_id)
            types = {chunk.content_type for chunk in bodies}
            return simple_refusal(upload, types, self._backend.identity.stream)

        if why := await asyncio.to_thread(refusal):
            await self._dead(upload, why, Outcome())
            return
        bodies = await asyncio.to_thread(lambda: [*self._outbox.store.bodies(upload.upload_id)])
        epoch = await asyncio.to_thread(self._outbox.epoch)
        body, headers = whole_request(upload, bodies, self._backend.identity, epoch)
        about = {"upload_id": upload.upload_id, "records": upload.records}
        kind = RequestKind.SIMPLE
        outcome = await self._backend.push(kind, "POST", (), body, headers, about=about)
        if self._settings.upload_form == "auto" and outcome.status in {404, 405, 501}:
            await self.learn_form("unknown")
        decision = decide(kind, outcome, self._clock.now())
        await self._act(upload, decision, outcome, size=len(body), epoch=epoch)

    # What the answers mean

    async def _act(
        self,
        upload: Upload,
        decision: Decision,
        outcome: Outcome,
        *,
        seq: int | None = None,
        size: int = 0,
        epoch: int | None = None,
    ) -> None:
        """Do what a decision says; `epoch` is the one that was sent."""
        key, verdict = upload.upload_id, decision.verdict
        if verdict is Verdict.RETRY:
            await self._failed(key, outcome, decision.retry_after_s)
            if outcome.status is not None and (times := self._backend.seldom.is_due(_RETRIED)):
                at = self.next_try_at()
                about = {"upload_id": key, "reason": decision.reason, "next_try_at": at}
                self._log.warning(_RETRIED, **about, failed_tries=times)
        elif verdict is Verdict.OTHER_CODING:
            pass  # the next try takes it
        elif verdict is Verdict.MOVED:
            if epoch is None or epoch == await asyncio.to_thread(self._outbox.epoch):
                self._call_for_start(key)
            else:  # a later start of this outbox was answered meanwhile: the next try has its epoch
                self.each.setdefault(key, RetryTimer()).relapsed(self._clock.monotonic())
        elif verdict is Verdict.PAUSE:
            await self.pause(decision.reason, outcome.code)
        elif verdict is Verdict.DEAD:
            await self._dead(upload, decision.reason, outcome)
        elif verdict is Verdict.OTHER_FORM:
            await self.learn_form("simple")
        else:
            said, generation = outcome.members, outcome.generation
            noted = await asyncio.to_thread(
                note_answer, self._outbox, key, verdict, said, seq, size, generation=generation
            )
            if key in self.each:
                self.each[key].succeeded()
            if seq is not None and self._form == "unknown":
                await self.learn_form("chunked")
            await self.went_well()
            now = self._clock.monotonic()
            if not noted:
                self._call_for_start(key)
            elif verdict is Verdict.SEND_MISSING:
                self.each.setdefault(key, RetryTimer()).relapsed(now)
            elif verdict is Verdict.DONE:
                self.late.pop(upload.source_key, None)
                self._log.info(
                    "upload completed",
                    upload_id=key,
                    source=upload.source,
                    records=upload.records,
                    bytes=upload.bytes,
                )
            elif verdict is Verdict.SUPERSEDED and upload.source_key in self.late:
                self.late[upload.source_key].relapsed(now)
            elif verdict is Verdict.SUPERSEDED:  # the first time it may be sent again at once
                self.late[upload.source_key] = RetryTimer()

    def _call_for_start(self, key: str) -> None:
        """Have a start answered before this upload is tried again, which may change nothing."""
        self.each.setdefault(key, RetryTimer()).relapsed(self._clock.monotonic())
        self._on_start_due()

    async def _dead(self, upload: Upload, reason: str, outcome: Outcome) -> None:
        said = outcome.body if outcome.size <= KEPT_ANSWER_BYTES else outcome.text
        answer = {"reason": reason, "status": outcome.status, "body": said}
        generation = outcome.generation
        if not await asyncio.to_thread(self._outbox.die, upload.upload_id, answer, generation):
            self._call_for_start(upload.upload_id)
            return
        self._log.error(
            "upload refused",
            upload_id=upload.upload_id,
            source=upload.source,
            records=upload.records,
            reason=reason,
            fix="see catalogzero outbox show, then outbox retry or purge",
        )

    async def _failed(self, key: str, outcome: Outcome, retry_after_s: float | None = None) -> None:
        """Put an upload off; and all of them, where the fault is not its own."""
        now = self._clock.monotonic()
        self.each.setdefault(key, RetryTimer()).failed(now, retry_after_s)
        if outcome.status is None or outcome.status in {429, 503} or retry_after_s:
            self.all.failed(now, retry_after_s)
        await self._note_fault(outcome.code)
        with suppress(*STORE_FAULTS):  # their way may be another one
            flying = {flying for flying, _ in self._flying} - {key}
            await asyncio.to_thread(self._outbox.release, flying)

    async def failed_all(self, code: str, retry_after_s: float | None = None) -> None:
        """Put everything off, as nothing can be sent now; `code` as in `fault`."""
        self.all.failed(self._clock.monotonic(), retry_after_s)
        await self._note_fault(code)

    async def pause(self, reason: str, code: str, *, probed: bool = True) -> None:
        """Stop sending, but for a try now and then or when the key changes.

        Where it is not `probed`, nothing is tried before an operator has acted.
        """
        self.paused = True
        self.all.attempts += 1
        self.all.not_before = self._clock.monotonic() + PAUSED_PROBE_S
        before = self.pause_known
        goes_on = before is not None and before["code"] == code
        pause: Pause = {
            "reason": reason,
            "code": code,
            "since": before["since"] if before and goes_on else self._outbox.store.now(),
            "next_try_at": self.next_try_at() if probed else None,
        }
        seldom = self._backend.seldom
        if before is not None and before["reason"] != reason:
            seldom.over(_PAUSED)
        if times := seldom.is_due(_PAUSED):
            shown = {"since": pause["since"], "next_try_at": pause["next_try_at"]}
            self._log.error(_PAUSED, reason=reason, **shown, failed_tries=times)
        if pause != before:
            self.pause_known = pause
            await self._keep(PAUSED, pause)
        if probed:
            await self._note_fault(code)

    async def went_well(self) -> None:
        """The backend took something: no pause and no wait goes on."""
        self.all.succeeded()
        self.paused = False
        some_fail = any(own.attempts for own in self.each.values())
        if not some_fail and (times := self._backend.seldom.over(_RETRIED)):
            self._log.info("uploads arrive again", failed_tries=times)
        if self.fault is not None:
            self.fault = None
            await self._keep(FAULT, None)
        if self.pause_known is not None:
            self._backend.seldom.over(_PAUSED)
            self._log.info("sending goes on", paused_since=self.pause_known["since"])
            self.pause_known = None
            await self._keep(PAUSED, None)

    def next_try_at(self) -> str:
        """When the next try is, of what failed."""
        now = self._clock.monotonic()
        waits = [own.not_before for own in self.each.values() if own.not_before > now]
        left_s = max(min(waits, default=0.0), self.all.not_before) - now
        return (self._clock.now() + timedelta(seconds=max(left_s, 0.0))).isoformat()

    async def _note_fault(self, code: str) -> None:
        """Keep, in the outbox too, what the last try failed of."""
        same = self.fault is not None and self.fault["code"] == code
        since = self.fault["since"] if self.fault and same else self._outbox.store.now()
        self.fault = {"code": code, "since": since, "next_try_at": self.next_try_at()}
        await self._keep(FAULT, self.fault)

    async def _keep(self, name: str, value: Any) -> None:
        """Keep a fact for whoever looks; a fault of the disk is met where something is sent."""
        with suppress(*STORE_FAULTS):
            await asyncio.to_thread(self._outbox.remember, name, value)

    async def learn_form(self, form: str) -> None:
        """Keep, in the outbox too, the form of uploads that this endpoint takes."""
        self._form = form
        await self._keep("form", {self._settings.endpoint: form})


def is_small(upload: Upload) -> bool:
    """Whether an upload is sealed, has one chunk at most, and need not wait for another."""
    return upload.chunks <= 1 and upload.state != "building" and upload.mode == "replace"
