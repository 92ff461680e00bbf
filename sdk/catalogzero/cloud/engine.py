"""The worker's side of a `CloudProcessor`, put together: outbox, connection, sender, health, runs.

One engine lives in the worker process for as long as that does. Never imported by the handler's own
process.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from catalogzero.cloud.audit import AuditLog
from catalogzero.cloud.counters import ItemList, RunSummary
from catalogzero.cloud.egress import Throttle, egress_key, policy_digest
from catalogzero.cloud.outbox.membership import BEAT_S
from catalogzero.cloud.outbox.outbox import Outbox
from catalogzero.cloud.outbox.outbox_figures import outbox_figures
from catalogzero.cloud.outbox.store import STORE_FAULTS
from catalogzero.cloud.outbox.stored import CLOCK_SKEW, LOGGED, SharedStore
from catalogzero.cloud.pipeline import UploadRun
from catalogzero.cloud.reading.authors import RunAuthor
from catalogzero.cloud.replicas import root_faults
from catalogzero.cloud.sending.backend_client import BackendClient
from catalogzero.cloud.sending.health_reporter import (
    HealthReporter,
    health_reasons,
    host_facts,
)
from catalogzero.cloud.sending.sender import Sender
from catalogzero.cloud.settings import Params
from catalogzero.cloud.shared_audit import SharedAudit
from catalogzero.config.seldom import Seldom, Times
from catalogzero.errors import CatalogZeroError, FailedError, UnreachableError
from catalogzero.protocol.bodies import AS_JSON, Known, fitting
from catalogzero.protocol.deciding import Decision, Outcome, RequestKind, Verdict, decide
from catalogzero.protocol.identities import digest_of
from catalogzero.protocol.problems import Kind
from catalogzero.runtime.control_answers import SendingNow
from catalogzero.wire.messages import JsonObject, encode_json

_NOT_ANSWERED = "start not answered"
_RETRY_LOOK_S = 1.0
REPORTED_EACH_S = 0.05
"""What is pending is reported at most once in this time."""
_REFUSED = frozenset({301, 302, 303, 307, 308, 401, 407})
"""Answers to a start that say nothing of epochs: the key, the proxy or the address is at fault."""
_SHOWN = 20
_REPLY_BYTES = 2_000
"""What a reply has beside the names of items."""
_NAME_CHARS = 200
_START_BYTES = 128 << 20
_PAGE_BYTES, _SOURCE_BYTES = 1 << 16, 256
"""Limit of the sources in one start's answer, and what a page and a source count at least."""


class Engine:
    """What reads, stores and sends.

    Args:
        author: The class that processes; its settings, clock and log serve all that is here.
        report_status: Takes what is pending, after each change.

    Attributes:
        outbox: What is stored.
        backend: The way out.
        sender: What empties the outbox.
        health: What reports to the vendor.
    """

    def __init__(self, author: RunAuthor, report_status: Callable[[JsonObject], None]) -> None:
        self._author, self._report_status = author, report_status
        self._identity, self._clock, self._log = author.identity(), author.clock, author.log
        settings, runtime, folder = author.settings, author.runtime, author.state_dir
        shared = SharedStore.of(runtime, author.handler_id)
        self._key = egress_key(runtime.egress, folder)
        self.outbox = Outbox(folder, self._clock, shared, max_bytes=runtime.outbox_max_bytes)
        alike = {
            "installation_id": self._identity.installation_id,
            "egress.hash_key_file": digest_of([self._key.hex()]),
        }
        self._has_joined = not self.outbox.join(alike)
        if self.outbox.store.rescue is not None:
            self._log.error("the outbox was damaged", **self.outbox.store.rescue)
        limits = {"max_bytes": runtime.audit_max_bytes, "kept_files": runtime.audit_kept_files}
        self._audit = (
            SharedAudit(self.outbox, self._clock, **limits)
            if shared
            else AuditLog(folder, self._clock, self.outbox.store.drop_reserve, **limits)
        )
        self._keeping = ThreadPoolExecutor(1, "keeping")
        self.seldom = Seldom(self._clock, self.outbox.store.fact(LOGGED), self._keep)
        book = self.outbox.store.book_pace if shared else None
        pace = Throttle(runtime.egress.bytes_per_s, self._clock, book)
        self.backend = BackendClient(
            settings,
            runtime.egress,
            self._identity,
            self._audit,
            self._clock,
            self._log,
            self.seldom,
            pace,
        )
        self._start_due = asyncio.Event()
        self.sender = Sender(
            self.outbox,
            self.backend,
            self._log,
            self._changed,
            self._start_again,
            sealed_only=runtime.egress.strict,
        )
        self.health = HealthReporter(self.outbox, self.backend, self._log, self._start_again)
        self._runs, self._roots_agreed = 0, False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._change, self._looks, self._reported_look = asyncio.Event(), itertools.count(1), 0
        self._reported: JsonObject = {}

    def _keep(self, times: dict[str, Times]) -> None:
        """Keep, soon, what was logged of the way out: the next worker is not to begin again."""
        self._keeping.submit(self._keep_now, dict(times))

    def _keep_now(self, times: dict[str, Times]) -> None:
        """See `_keep`; in a thread of its own, as who logs is on the loop, and a store may wait."""
        with suppress(*STORE_FAULTS):
            self.outbox.remember(LOGGED, times)

    async def main(self) -> None:
        """Register, send, and push what waits, until cancelled."""
        self._loop = asyncio.get_running_loop()
        try:
            async with self.backend, asyncio.TaskGroup() as tasks:
                tasks.create_task(self.sender.run(), name="sender")
                tasks.create_task(self._keep_started(), name="start")
                tasks.create_task(self._push_health(), name="health")
                tasks.create_task(self._report_changes(), name="status")
                if self.outbox.membership is not None:
                    tasks.create_task(self._keep_membership(), name="membership")
        finally:
            with suppress(*STORE_FAULTS):
                await asyncio.to_thread(self.outbox.leave)

    def close(self) -> None:
        """Close what was opened; the process's end does it as well."""
        self._audit.close()
        self._keeping.shutdown()
        self.outbox.close()

    def run(
        self,
        data_source: str,
        params: Params,
        chunk_format: str,
        *,
        full: bool,
        progress: Callable[..., None],
        only: str | None = None,
    ) -> RunSummary:
        """One run of `process_and_upload`, in a thread; `only` names the one item that is read."""
        run = self._made_run(data_source, params, chunk_format, full, progress, only)
        self._runs += 1
        try:
            result = run()
            self._log_run(result)
            if result["status"] in {"uploaded", "unchanged"}:
                self.outbox.remember("last_success_at", result["timestamp"])
            return result
        except CatalogZeroError as error:
            self._log_run(error.details if isinstance(error.details, dict) else {})
            raise
        finally:
            self._runs -= 1
            self.sender.wake()
            with suppress(*STORE_FAULTS, RuntimeError):  # a loop that is closed reports no more
                if self._loop is not None:  # before the result: who has that asks for the figures
                    self._loop.call_soon_threadsafe(self._report, *self._status())

    def list_items(
        self, data_source: str, params: Params, progress: Callable[..., None]
    ) -> ItemList:
        """The items of a data_source, in a thread; what waits of those that are gone is over.

        Raises:
            BadParamsError: The data_source may not or cannot be read.
            FailedError: Another store has the installation, or other disks are read here.
            TooLargeError: One reply cannot name all of them.
        """
        run = self._made_run(data_source, params, "ndjson", False, progress, None)
        try:
            return run.list_items(self._author.runtime.max_message_bytes - _REPLY_BYTES)
        finally:
            run.seals.close()

    def _made_run(
        self,
        data_source: str,
        params: Params,
        chunk_format: str,
        full: bool,
        progress: Callable[..., None],
        only: str | None,
    ) -> UploadRun:
        """A run that is yet to read."""
        if moved := self.outbox.moved_text(self._identity.installation_id):
            raise FailedError(moved)
        self._refuse_other_disks()
        return UploadRun(
            author=self._author,
            identity=self._identity,
            outbox=self.outbox,
            wake=self.sender.wake,
            wait_ended=self.sender.wait_ended,
            key=self._key,
            folder=self._author.state_dir,
            progress=progress,
            data_source=data_source,
            params=params,
            chunk_format=chunk_format,
            full=full,
            only=only,
        )

    def _refuse_other_disks(self) -> None:
        """With a shared store: read nothing before it is known that all read the same disks.

        Raises:
            FailedError: They do not.
        """
        if self.outbox.membership is not None and not self._roots_agreed:
            if faults := root_faults(self.outbox, self._author.settings.data_roots):
                raise FailedError("\n".join(faults))
            self._roots_agreed = True

    def _log_run(self, result: Mapping[str, Any]) -> None:
        """Log what somebody should look at; keep for `check` what the egress policy met."""
        for failure in result.get("failures", ()):
            self._log.warning("item failed", **failure)
        if unmatched := result.get("unmatched_rules"):
            self._log.warning("egress rules matched no column", rules=unmatched)
        if "unmatched" in result:
            self.outbox.remember("egress_unmatched", unmatched)
        policy = policy_digest(self._author.runtime.egress)
        if self.outbox.store.fact("egress_policy") not in {None, policy}:
            sources = result.get("sources_under_other_policy", 0)
            self._log.warning("the egress policy changed", sources_under_other_policy=sources)
        self.outbox.remember("egress_policy", policy)

    async def send_now(self) -> SendingNow:
        """Try at once what waits for its next try, and say what that is."""
        totals = await asyncio.to_thread(self.outbox.store.totals)
        pause, fault = self.sender.pause_known, self.sender.fault
        self.sender.hurry()
        self.health.hurry()
        return {
            "uploads": totals.uploads,
            "records": totals.records,
            "paused": pause["reason"] if pause else None,
            "fault": fault["code"] if fault else None,
            "tried": pause is None or pause["next_try_at"] is not None,
        }

    async def report_health(self, metrics: JsonObject, about: JsonObject) -> JsonObject:
        """Push a health report made of the handler's metrics and what is known here."""
        sent = await self.health.report(metrics, about, self.sender)
        self._changed()
        return {"sent": sent, "next_interval_s": self.health.next_interval_s}

    async def _push_health(self) -> None:
        """Push the report that waits, whenever it is due."""
        while True:
            due_s = self.health.due_s()
            if due_s == 0.0:
                await self.health.push_waiting()
                self._changed()
            await self._clock.sleep(_RETRY_LOOK_S)

    async def _keep_started(self) -> None:
        """Take an epoch and compare: at first, and whenever something says that it is due."""
        was_moved = False
        while True:
            installation_id = self._identity.installation_id
            moved = await asyncio.to_thread(self.outbox.moved_text, installation_id)
            if moved:
                was_moved = True
                self.sender.hold()
                await self.sender.pause(moved, "installation_moved", probed=False)
                self._changed()
                await self._clock.sleep(_RETRY_LOOK_S)
                continue
            if was_moved:
                was_moved = self._has_joined = False
                self.sender.try_now()
            if self._has_joined or await self._start():
                if self._has_joined:
                    self._has_joined = False
                    await self.sender.go()
                self._changed()
                await self._start_due.wait()
                self._start_due.clear()
                self.sender.hold()

    async def _keep_membership(self) -> None:
        """Be at work on a store that others share."""
        while True:
            await self._clock.sleep(BEAT_S)
            with suppress(*STORE_FAULTS):  # who sends meets it
                installation_id = self._identity.installation_id
                if await asyncio.to_thread(self.outbox.beat, installation_id):
                    self._log.warning("the store's database is another one: comparing")
                    self._start_again()
                moved = await asyncio.to_thread(self.outbox.moved_text, installation_id)
                if moved and not self.sender.holds:
                    self._start_again()

    async def _start(self) -> bool:
        """One try to take the next epoch; False where another is to come."""
        said = await asyncio.to_thread(self.outbox.start)
        outcome = await self._ask("PUT", said)
        if outcome.type == Kind.GENERATION_CHANGED.uri:  # nothing of it is kept but by the answer
            said["generation"] = str(outcome.members.get("generation"))[:_NAME_CHARS]
            outcome = await self._ask("PUT", said)
        decision = decide(RequestKind.INSTALLATION, outcome, self._clock.now())
        answer = outcome.members
        if decision.verdict is Verdict.MOVED:  # nothing is read or sent until `adopt` or `new`
            since = str(answer.get("since") or "")[:_NAME_CHARS]
            moved = (self._identity.installation_id, since, said["epoch"])
            if await asyncio.to_thread(self.outbox.moved, *moved):
                fix = "catalogzero installation adopt, or new"
                self._log.error("installation moved", since=since, fix=fix)
            return False
        if decision.verdict is Verdict.DONE and "epoch" in answer:
            known = await self._whole(answer)
            if known is not None:
                about = (known, self._identity.installation_id, said["nonce"])
                cleared = await asyncio.to_thread(self.outbox.started, *about)
                if cleared:
                    shown = {"count": len(cleared), "source_keys": cleared[:_SHOWN]}
                    self._log.warning("sources are read again", **shown)
                self.seldom.over(_NOT_ANSWERED)
                await self.sender.go()
                return True
            text = "the backend's answer to the start is not whole, or larger than one may be"
            decision = Decision(Verdict.RETRY, text)
        # A 404 is a backend without epochs, which is sent to as ever. These are not: to send on
        # what a proxy or a refused key said would be to send beside a folder that took over.
        fenced = outcome.status in _REFUSED or (
            said["epoch"] and outcome.status == HTTPStatus.FORBIDDEN
        )
        if decision.verdict is Verdict.RETRY or (decision.verdict is Verdict.IGNORE and fenced):
            if decision.verdict is Verdict.IGNORE or outcome.blocked:
                await self.sender.pause(decision.reason, outcome.code)
            else:
                # Where nobody answers, that has a line of its own.
                if outcome.status and (times := self.seldom.is_due(_NOT_ANSWERED)):
                    self._log.warning(_NOT_ANSWERED, reason=decision.reason, failed_tries=times)
                await self.sender.failed_all(outcome.code, decision.retry_after_s)
            self._changed()
            await self.sender.rest()
            return False
        if decision.verdict is Verdict.DONE and isinstance(answer.get("sources"), dict):
            await asyncio.to_thread(self.outbox.learn_highest, answer["sources"])
        self.seldom.over(_NOT_ANSWERED)
        await self.sender.go()
        return True

    async def _whole(self, answer: JsonObject) -> Known | None:
        """The answer with its further pages.

        None where they are not of one generation, name no source that is new, or are too many.
        """
        known = page = fitting(Known, answer)
        if known is None or page is None:
            return None
        left = _START_BYTES
        while page.next is not None:
            outcome = await self._ask("GET", next=page.next)
            page = fitting(Known, outcome.body) if outcome.status == HTTPStatus.OK else None
            # Pages of two lives of the backend, compared as one, would clear marks for nothing.
            if page is None or (page.generation, page.epoch) != (known.generation, known.epoch):
                return None
            left -= max(outcome.size, _SOURCE_BYTES * len(page.states), _PAGE_BYTES)
            if left < 0 or not page.states.keys() - known.states.keys():
                return None
            known.states.update(page.states)
        return known

    def _start_again(self) -> None:
        """A start is due: another generation was seen, or another folder's epoch."""
        self.sender.hold()
        self._start_due.set()

    async def _ask(self, method: str, said: JsonObject | None = None, **query: str) -> Outcome:
        """One request about this installation; with a body, a start of it."""
        who = self._identity
        body = b""
        if said is not None:
            about = {
                "installation_id": who.installation_id,
                "entry": who.entry,
                "version": who.version,
                "sdk_version": who.sdk_version,
                "handler": who.handler_id,
                "host": host_facts(),
                "methods": sorted(type(self._author).callable_methods()),
            }
            body = encode_json({**about, **said})
        path = ("installations", quote(who.installation_id, safe=""))
        headers = AS_JSON if body else {}
        return await self.backend.push(
            RequestKind.INSTALLATION, method, path, body, headers, query=query or None
        )

    def _changed(self) -> None:
        """Something that the handler knows may have changed."""
        self._change.set()

    async def _report_changes(self) -> None:
        """Report what is pending, after each change.

        What comes within a moment is one report: it looks at the whole queue.
        """
        while True:
            await self._change.wait()
            self._change.clear()
            try:
                self._report(*await asyncio.to_thread(self._status))
            except UnreachableError as error:
                self._report(next(self._looks), {**self._reported, "reasons": [error.message]})
            except sqlite3.Error:  # who sends meets it
                pass
            await asyncio.sleep(REPORTED_EACH_S)

    def _report(self, number: int, status: JsonObject) -> None:
        """Report what is pending, unless that is known, or a later look was reported."""
        if number > self._reported_look and status != self._reported:
            self._reported = status
            self._report_status(status)
        self._reported_look = max(number, self._reported_look)

    def _status(self) -> tuple[int, JsonObject]:
        """What is pending, and the number of this look."""
        number = next(self._looks)
        figures = outbox_figures(
            self.outbox.store, self._clock, self.sender.pause_known, self.sender.fault
        )
        waits = [self.sender.next_due_s(), self.health.due_s()]
        due = [wait for wait in waits if wait is not None]
        return number, {
            "busy": bool(self._runs) or self.sender.busy,
            "next_due_s": min(due) if due else None,
            "outbox": figures,
            "reasons": health_reasons(self.outbox),
            "clock_skew_s": self.outbox.store.fact(CLOCK_SKEW),
        }
