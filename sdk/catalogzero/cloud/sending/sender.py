"""The sender: takes what the outbox holds to the backend, for as long as it takes.

Runs on the worker's event loop beside the runs that fill the outbox. Only the answer to `complete`
ends a sealed upload; `deciding.decide` says what each answer means. Never reads a source, never
changes a record.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from structlog.typing import FilteringBoundLogger
from tenacity import RetryCallState, Retrying, wait_random_exponential

from catalogzero.clock import Clock
from catalogzero.cloud.encoding import Chunk, json_array
from catalogzero.cloud.outbox.contents import DamagedChunkError, Upload
from catalogzero.cloud.outbox.store import Outbox
from catalogzero.cloud.sending.client import BackendClient
from catalogzero.cloud.settings import CloudSettings
from catalogzero.protocol.bodies import (
    AS_JSON,
    CONTENT_TYPES,
    EPOCH,
    INSTALLATION,
    Done,
    Superseded,
    content_digest,
    fitting,
)
from catalogzero.protocol.codings import CODINGS, recode
from catalogzero.protocol.deciding import Decision, Outcome, RequestKind, Verdict, decide
from catalogzero.protocol.identities import Identity
from catalogzero.protocol.problems import Kind
from catalogzero.wire.messages import encode_json

PAUSED_PROBE_S = 300.0
KEY_LOOK_S = 2.0
POLL_S = 5.0
KEPT_ANSWER_BYTES = 16_384
"""Of what a backend said to an upload that it refused."""
_BACKOFF = wait_random_exponential(multiplier=1.0, max=300.0)


@dataclass(slots=True)
class Backoff:
    """When to try again: jittered exponential, or as the backend asked.

    `relapses` are successes that the backend took back: they count as attempts until the end.
    """

    attempts: int = 0
    not_before: float = 0.0
    relapses: int = 0

    def failed(self, now: float, retry_after_s: float | None = None) -> None:
        """Put the next try off; several that fail at once count as one."""
        if now < self.not_before and not retry_after_s:
            return
        self.attempts += 1
        state = RetryCallState(Retrying(), None, (), {})
        state.attempt_number = min(self.attempts, 32)
        self.not_before = now + max(_BACKOFF(state), retry_after_s or 0.0)

    def relapsed(self, now: float) -> None:
        """What was there is to be sent again: each time that follows waits longer."""
        self.relapses += 1
        self.attempts = max(self.attempts, self.relapses - 1)
        self.failed(now)

    def succeeded(self) -> None:
        """The next try may be at once."""
        self.attempts, self.not_before = self.relapses, 0.0


class Sender:
    """Sends the uploads of one outbox.

    Args:
        outbox: What to send; other threads may fill it.
        backend: The open door to the backend.
        settings: Concurrency and the upload form.
        identity: What `complete` says of the sender.
        clock: For every wait.
        log: Where pauses, dead letters and faults are told.
        on_change: Called on the loop after each change that the outside may want to know of.
        on_start_due: Called where the backend is another one than the known (it was restored), or
            knows a later start than this folder's: the next start says what to do.
        sealed_only: Send nothing of an upload before it is sealed.

    Attributes:
        epoch: The folder's epoch, once a start was answered; None where the backend has none.
        holds: Whether nothing may be sent, as no start was answered.
        paused: Why sending is paused, for people on this machine; empty while it goes on.
        paused_code: The same as it may be reported to a vendor, without any text.
        fault_code: What failed last on the way, in the same form; empty after a success.
    """

    def __init__(
        self,
        outbox: Outbox,
        backend: BackendClient,
        settings: CloudSettings,
        identity: Identity,
        clock: Clock,
        log: FilteringBoundLogger,
        on_change: Callable[[], None] = lambda: None,
        *,
        on_start_due: Callable[[], None],
        sealed_only: bool = False,
    ) -> None:
        self._outbox, self._backend, self._settings = outbox, backend, settings
        self._identity, self._clock, self._log, self._on_change = identity, clock, log, on_change
        self._on_start_due, self._sealed_only = on_start_due, sealed_only
        self.epoch: int | None = None
        self.holds = True
        self.paused = self.paused_code = self.fault_code = ""
        self._form = self._known_form()
        self._coding = CODINGS[0]
        self._all = Backoff()
        self._each: dict[str, Backoff] = {}
        self._late: dict[str, Backoff] = {}
        self._resent: Counter[tuple[str, int]] = Counter()
        self._flying: dict[tuple[str, int | None], asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._changed = threading.Condition()
        self._waiting_work = False

    # What the outside may ask

    def wake(self) -> None:
        """Look at the outbox now; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    def wait_ended(self, upload_ids: Sequence[str], timeout_s: float) -> None:
        """Wait, in a thread, until the uploads have ended, a pause begins, or the time is up."""
        deadline = self._clock.monotonic() + timeout_s
        waited_for = deque(upload_ids)
        with self._changed:
            while waited_for and not self.paused:
                if not self._outbox.is_open(waited_for[0]):
                    waited_for.popleft()
                    continue
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return
                self._changed.wait(min(left, POLL_S))

    @property
    def busy(self) -> bool:
        """Whether requests are under way, or could be at once."""
        return bool(self._flying) or (self._waiting_work and self.next_due_s() == 0.0)

    def next_due_s(self) -> float | None:
        """Seconds until the next try; None when nothing waits."""
        if not self._waiting_work:
            return None
        waits = [each.not_before for each in self._each.values() if each.not_before]
        due = max(min(waits, default=0.0), self._all.not_before)
        return max(due - self._clock.monotonic(), 0.0)

    # The start

    def hold(self) -> None:
        """Begin no request until `go`."""
        self.holds = True

    async def go(self, epoch: int | None) -> None:
        """A start was answered: send, with the folder's epoch where the backend knows epochs."""
        self.epoch, self.holds = epoch, False
        self._all.succeeded()
        self.fault_code = ""
        await self._unpause()
        self.wake()

    def try_now(self) -> None:
        """An operator has ended a pause: what is tried next waits for nothing of before."""
        self._all.succeeded()

    async def rest(self) -> None:
        """Wait until a start may be tried again: after the backoff, or with another key."""
        while (left := self._all.not_before - self._clock.monotonic()) > 0:
            await self._clock.sleep(min(left, KEY_LOOK_S))
            if self.paused and self._backend.key.changed():
                self._all.succeeded()

    # The loop

    async def run(self) -> None:
        """Send until cancelled; what is under way then is given up, and sent again later."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._outbox.remember, "paused", None)
        tidy = True
        try:
            while True:
                self._wake.clear()
                await self._round()
                self._on_change()
                if not self._waiting_work and not tidy:
                    await asyncio.to_thread(self._outbox.tidy)
                tidy = not self._waiting_work
                await self._rest()
        finally:
            for task in list(self._flying.values()):
                task.cancel()
            await asyncio.gather(*self._flying.values(), return_exceptions=True)

    async def _rest(self) -> None:
        """Wait for work, for the next try, or for another key."""
        due = self.next_due_s()
        wait_s = POLL_S if due is None or self._flying else min(max(due, 0.05), POLL_S)
        if self.paused:
            wait_s = min(wait_s, KEY_LOOK_S)
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            if self.paused and self._backend.key.changed():
                self._all.succeeded()

    async def _round(self) -> None:
        """Start what may be started now."""
        try:
            now = self._clock.monotonic()
            resting = {key for key, own in self._each.items() if now < own.not_before}
            uploads = await asyncio.to_thread(self._outbox.open_uploads, resting)
            kept = resting.union(upload.upload_id for upload in uploads)
            self._each = {key: own for key, own in self._each.items() if key in kept}
            self._resent = Counter({one: n for one, n in self._resent.items() if one[0] in kept})
            self._waiting_work = bool(resting) or any(self._has_work(one) for one in uploads)
            if self.holds:
                return
            for upload in uploads:
                if self._free_slots() <= 0:
                    return
                own = self._each.get(upload.upload_id) or self._late_one(upload)
                due = now >= max(own.not_before, self._all.not_before)
                if due and self._has_work(upload):
                    await self._start(upload)
        except sqlite3.Error as error:
            self._log.warning("the outbox cannot be read", error=str(error))
            self.failed_all("the outbox cannot be read")

    def _late_one(self, upload: Upload) -> Backoff:
        """The backoff of an upload without one: its source's, where that was superseded before."""
        late = self._late.get(upload.source_key)
        if late is None:
            return Backoff()
        return self._each.setdefault(upload.upload_id, Backoff(not_before=late.not_before))

    def _has_work(self, upload: Upload) -> bool:
        """Whether something of an upload can be sent: a simple one is sent whole, once sealed."""
        whole = self._sealed_only or self._form == "simple"
        return upload.state != "building" or (not whole and upload.chunks > 0)

    def _free_slots(self) -> int:
        """How many more requests may start: one at a time until it is known that they succeed."""
        careful = self.paused or self._all.attempts or self._form == "unknown"
        return (1 if careful else self._settings.upload_concurrency) - len(self._flying)

    async def _start(self, upload: Upload) -> None:
        """Start the next requests of one upload."""
        key = upload.upload_id
        if self._form == "simple":
            if (key, None) not in self._flying and await self._may_complete(upload, chunks=False):
                self._fly(key, None, self._send_whole(upload))
            return
        free = self._free_slots()
        unsent = await asyncio.to_thread(self._outbox.unsent, key, free + len(self._flying))
        for seq in [seq for seq in unsent if (key, seq) not in self._flying][:free]:
            self._fly(key, seq, self._send_chunk(upload, seq))
        alone = not unsent and not any(flying == key for flying, _ in self._flying)
        if alone and upload.state != "building" and await self._may_complete(upload):
            self._fly(key, None, self._complete(upload))

    async def _may_complete(self, upload: Upload, *, chunks: bool = True) -> bool:
        return await asyncio.to_thread(self._outbox.may_complete, upload, chunks=chunks)

    def _fly(self, key: str, seq: int | None, work: Coroutine[Any, Any, None]) -> None:
        """Run one request as a task that reports back when it ends."""
        task = asyncio.create_task(self._guarded(key, work), name=f"send {key} {seq}")
        self._flying[key, seq] = task
        task.add_done_callback(lambda _: self._landed(key, seq))

    def _landed(self, key: str, seq: int | None) -> None:
        self._flying.pop((key, seq), None)
        self._wake.set()
        with self._changed:
            self._changed.notify_all()
        self._on_change()

    async def _guarded(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        """One request; a fault of this side, such as a full disk, is met as one of that side."""
        try:
            await work
        except DamagedChunkError as error:
            await asyncio.to_thread(self._outbox.die, key, {"reason": str(error)})
            self._log.error("upload damaged", upload_id=key, reason=str(error))
        except Exception as error:  # noqa: BLE001  # the sender outlives every fault
            self._log.warning("sending failed", upload_id=key, error=str(error), exc_info=True)
            self._failed(key, Outcome(fault=type(error).__name__))

    # The requests

    async def _send_chunk(self, upload: Upload, seq: int) -> None:
        chunk = await asyncio.to_thread(self._outbox.chunk, upload.upload_id, seq)
        if chunk is None:
            return
        body, coding = chunk.body, chunk.coding
        if coding not in ("identity", self._coding):  # this backend takes another one
            coding = self._coding
            body = await asyncio.to_thread(recode, body, chunk.coding, coding)
        path, headers = chunk_request(upload.upload_id, chunk, body, coding)
        body_key = upload.upload_id, seq
        about = {"upload_id": upload.upload_id, "seq": seq, "records": chunk.records}
        outcome = await self._backend.push(
            RequestKind.CHUNK, "PUT", path, body, headers, about=about
        )
        decision = decide(
            RequestKind.CHUNK,
            outcome,
            self._clock.now(),
            probing=self._form == "unknown",
            coding=coding,
            resent=self._resent[body_key],
        )
        if decision.verdict is Verdict.RETRY and outcome.type == Kind.DIGEST_MISMATCH.uri:
            self._resent[body_key] += 1
        else:
            self._resent.pop(body_key, None)
        if decision.verdict is Verdict.OTHER_CODING:
            self._coding = CODINGS[CODINGS.index(coding) + 1]
            self._log.warning("coding refused", coding=coding, reason=decision.reason)
            return
        await self._act(upload, decision, outcome, seq=seq, size=len(body))

    async def _complete(self, upload: Upload) -> None:
        if not await asyncio.to_thread(self._outbox.completing, upload.upload_id):
            return
        said = await asyncio.to_thread(self._outbox.witness)
        body = encode_json({**complete_body(upload, self._identity, self.epoch), **said})
        path = ("uploads", upload.upload_id, "complete")
        about = {"upload_id": upload.upload_id}
        outcome = await self._backend.push(
            RequestKind.COMPLETE, "POST", path, body, AS_JSON, about=about
        )
        decision = decide(RequestKind.COMPLETE, outcome, self._clock.now())
        await self._act(upload, decision, outcome, size=len(body))

    async def _send_whole(self, upload: Upload) -> None:
        """The simple form: one plain JSON array."""
        refusal = simple_refusal(upload, await asyncio.to_thread(self._types, upload.upload_id))
        if refusal:
            await self._dead(upload, refusal, Outcome())
            return
        bodies = await asyncio.to_thread(lambda: list(self._outbox.bodies(upload.upload_id)))
        body, headers = whole_request(upload, bodies, self._identity, self.epoch)
        about = {"upload_id": upload.upload_id, "records": upload.records}
        outcome = await self._backend.push(
            RequestKind.SIMPLE, "POST", (), body, headers, about=about
        )
        if self._settings.upload_form == "auto" and outcome.status in {404, 405, 501}:
            self._learn_form("unknown")
        decision = decide(RequestKind.SIMPLE, outcome, self._clock.now())
        await self._act(upload, decision, outcome, size=len(body))

    def _types(self, upload_id: str) -> set[str]:
        return {chunk.content_type for chunk in self._outbox.bodies(upload_id)}

    # What the answers mean

    async def _act(
        self,
        upload: Upload,
        decision: Decision,
        outcome: Outcome,
        *,
        seq: int | None = None,
        size: int = 0,
    ) -> None:
        """Do what a decision says."""
        key, verdict = upload.upload_id, decision.verdict
        if verdict is Verdict.RETRY:
            self._failed(key, outcome, decision.retry_after_s)
        elif verdict is Verdict.MOVED:
            self._start_due(key)
        elif verdict is Verdict.PAUSE:
            await self.pause(decision.reason, outcome.code)
        elif verdict is Verdict.DEAD:
            await self._dead(upload, decision.reason, outcome)
        elif verdict is Verdict.OTHER_FORM:
            self._learn_form("simple")
        else:
            noted = await asyncio.to_thread(
                note_answer,
                self._outbox,
                key,
                verdict,
                outcome.members,
                seq,
                size,
                generation=outcome.generation,
            )
            await self._went_well(key, chunked=seq is not None)
            if not noted:
                self._start_due(key)
            elif verdict is Verdict.SEND_MISSING:
                self._relapsed(key)
            elif verdict is Verdict.SUPERSEDED:
                self._was_late(upload.source_key)
            elif verdict is Verdict.DONE:
                self._late.pop(upload.source_key, None)

    def _was_late(self, source_key: str) -> None:
        """Note that a source was superseded: the first time it may be sent again at once."""
        if source_key in self._late:
            self._late[source_key].relapsed(self._clock.monotonic())
        else:
            self._late[source_key] = Backoff()

    def _start_due(self, key: str) -> None:
        """Have a start answered before this upload is tried again, which may change nothing."""
        self._relapsed(key)
        self._on_start_due()

    def _relapsed(self, key: str) -> None:
        self._each.setdefault(key, Backoff()).relapsed(self._clock.monotonic())

    async def _dead(self, upload: Upload, reason: str, outcome: Outcome) -> None:
        said = outcome.body if outcome.size <= KEPT_ANSWER_BYTES else outcome.text
        answer = {"reason": reason, "status": outcome.status, "body": said}
        generation = outcome.generation
        if not await asyncio.to_thread(self._outbox.die, upload.upload_id, answer, generation):
            self._start_due(upload.upload_id)
            return
        self._log.error("upload refused", upload_id=upload.upload_id, reason=reason)

    def _failed(self, key: str, outcome: Outcome, retry_after_s: float | None = None) -> None:
        """Put an upload off; and all of them, where the fault is not its own."""
        now = self._clock.monotonic()
        self._each.setdefault(key, Backoff()).failed(now, retry_after_s)
        if outcome.status is None or outcome.status in {429, 503} or retry_after_s:
            self.failed_all(outcome.code, retry_after_s)
        self.fault_code = outcome.code

    def failed_all(self, code: str, retry_after_s: float | None = None) -> None:
        """Put everything off, as nothing can be sent now; `code` as in `fault_code`."""
        self._all.failed(self._clock.monotonic(), retry_after_s)
        self.fault_code = code

    async def pause(self, reason: str, code: str) -> None:
        """Stop sending, but for a try now and then or when the key changes."""
        if self.paused != reason:
            self._log.error("sending is paused", reason=reason)
            self.paused, self.paused_code = reason, code
            await asyncio.to_thread(self._outbox.remember, "paused", reason)
        self._all.attempts += 1
        self._all.not_before = self._clock.monotonic() + PAUSED_PROBE_S

    async def _went_well(self, key: str, *, chunked: bool) -> None:
        """The backend took something: no pause, no waits, and its form is known."""
        self._all.succeeded()
        if key in self._each:
            self._each[key].succeeded()
        self.fault_code = ""
        if chunked and self._form == "unknown":
            self._learn_form("chunked")
        await self._unpause()

    async def _unpause(self) -> None:
        if self.paused:
            self._log.info("sending goes on")
            self.paused = self.paused_code = ""
            await asyncio.to_thread(self._outbox.remember, "paused", None)

    def _known_form(self) -> str:
        """The form that is set, or that this endpoint is known to take."""
        if self._settings.upload_form != "auto":
            return self._settings.upload_form
        known = self._outbox.fact("form") or {}
        return str(known.get(self._settings.endpoint, "unknown"))

    def _learn_form(self, form: str) -> None:
        self._form = form
        self._outbox.remember("form", {self._settings.endpoint: form})


def note_answer(
    outbox: Outbox,
    upload_id: str,
    verdict: Verdict,
    said: dict[str, Any],
    seq: int | None = None,
    size: int = 0,
    *,
    generation: str = "",
) -> bool:
    """Write into the outbox what an answer means; `seq` is that of a chunk, `size` what left.

    Of what the backend said, only what has the protocol's form and bounds gets there.

    Returns:
        False where the answer is of another `generation` than the known one: it ends nothing.
    """
    if verdict is Verdict.STORED:
        outbox.acknowledge(upload_id, seq, size)
    elif verdict is Verdict.COMPLETE_NOW:
        outbox.acknowledge(upload_id, None)
    elif verdict is Verdict.SEND_MISSING:
        outbox.missing(upload_id, said["missing"])
    elif verdict is Verdict.SUPERSEDED:
        answer = Superseded.model_validate(said).model_dump()
        return outbox.superseded(upload_id, answer, generation)
    elif verdict is Verdict.DONE:
        done = fitting(Done, said)
        if done is None:
            return outbox.done(upload_id, None, size, generation=generation)
        return outbox.done(
            upload_id,
            str(done.job_id),
            size,
            same_key_seq=done.source_seq if done.by == "upload_key" else None,
            generation=generation,
            number=done.number,
        )
    return True


def chunk_request(
    upload_id: str, chunk: Chunk, body: bytes, coding: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Path and headers of a chunk's PUT."""
    headers = {"Content-Type": chunk.content_type, "Content-Digest": content_digest(body)}
    if coding != "identity":
        headers["Content-Encoding"] = coding
    return ("uploads", upload_id, "chunks", str(chunk.seq)), headers


def whole_request(
    upload: Upload, chunks: Sequence[Chunk], identity: Identity, epoch: int | None = None
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the simple form's POST."""
    body = json_array([recode(chunk.body, chunk.coding, "identity") for chunk in chunks])
    headers = {**AS_JSON, "Idempotency-Key": f"{upload.upload_key}-{upload.source_seq}"}
    if epoch is not None:
        headers |= {INSTALLATION: quote(identity.installation_id, safe=""), EPOCH: str(epoch)}
    return body, headers


def complete_body(upload: Upload, identity: Identity, epoch: int | None = None) -> dict[str, Any]:
    """What `complete` says of a sealed upload, from a folder of this epoch."""
    body = {
        "upload_key": upload.upload_key,
        "source_key": upload.source_key,
        "source_seq": upload.source_seq,
        "mode": upload.mode,
        "full": upload.full,
        "chunks": upload.chunks,
        "records": upload.records,
        "stream": identity.stream,
        "source": upload.source,
        "params": upload.params,
        "entry": identity.entry,
        "version": identity.version,
        "installation_id": identity.installation_id,
    }
    if upload.mode == "append":
        body.update(after=upload.after, until=upload.until)
        if upload.watermark_of:
            body["watermark_of"] = upload.watermark_of
    if epoch is not None:
        body["installation_epoch"] = epoch
    return body


def simple_refusal(upload: Upload, content_types: set[str]) -> str:
    """Why an upload cannot be sent in the simple form, with the fix; empty when it can."""
    if content_types - {CONTENT_TYPES["ndjson"]}:
        return "the backend takes the simple form alone, one JSON array: use format ndjson"
    if upload.chunks > 1:
        return (
            f"the backend takes the simple form alone, and this result has {upload.chunks} chunks: "
            "raise chunk_bytes, split the source, or give the backend the chunked protocol"
        )
    return ""
