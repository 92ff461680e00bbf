"""The worker's side of a `CloudProcessor`, put together: outbox, door, sender, health, runs.

One engine lives in the worker process for as long as that does. Never imported by the handler's own
process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from catalogzero.cloud.egress import AuditLog, egress_key, policy_digest
from catalogzero.cloud.encoding import ColumnFilter
from catalogzero.cloud.outbox.identity import MOVED
from catalogzero.cloud.outbox.store import Outbox
from catalogzero.cloud.pipeline import UploadRun
from catalogzero.cloud.reading.authors import Author
from catalogzero.cloud.sending.client import BackendClient
from catalogzero.cloud.sending.health import (
    HealthReporter,
    host_facts,
    outbox_figures,
    outbox_reasons,
)
from catalogzero.cloud.sending.sender import Sender
from catalogzero.cloud.settings import Params
from catalogzero.errors import CatalogZeroError, FailedError
from catalogzero.protocol.bodies import AS_JSON, Known, fitting
from catalogzero.protocol.deciding import Decision, Outcome, RequestKind, Verdict, decide
from catalogzero.protocol.problems import Kind
from catalogzero.wire.messages import encode_json

_RETRY_LOOK_S = 1.0
_REFUSED = frozenset({301, 302, 303, 307, 308, 401, 407})
"""Answers to a start that say nothing of epochs: the key, the proxy or the address is at fault."""
_SHOWN = 20
_NAME_CHARS = 200
_START_BYTES = 128 << 20
_PAGE_BYTES, _SOURCE_BYTES = 1 << 16, 256
"""What a backend may tell of sources in one start, and what a page and a source count at least."""


class Engine:
    """What reads, stores and sends.

    Args:
        author: The class that processes; its settings, clock and log serve all that is here.
        report_status: Takes what is pending, after each change.
    """

    def __init__(self, author: Author, report_status: Callable[[dict[str, Any]], None]) -> None:
        self._author, self._report_status = author, report_status
        self._identity, self._clock, self._log = author.identity(), author.clock, author.log
        settings, runtime, folder = author.settings, author.runtime, author.state_dir
        self._outbox = Outbox(folder, self._clock, max_bytes=runtime.outbox_max_bytes)
        self._outbox.abandon()
        if self._outbox.rescue is not None:
            self._log.error("the outbox was damaged", **self._outbox.rescue)
        self._key = egress_key(runtime.egress, folder)
        self._audit = AuditLog(folder, self._clock, self._outbox.drop_reserve)
        self._backend = BackendClient(
            settings, runtime.egress, self._identity, self._audit, self._clock
        )
        self._start_due = asyncio.Event()
        self._sender = Sender(
            self._outbox,
            self._backend,
            settings,
            self._identity,
            self._clock,
            self._log,
            self._changed,
            on_start_due=self._start_again,
            sealed_only=runtime.egress.strict,
        )
        self._health = HealthReporter(
            self._outbox,
            self._backend,
            self._identity,
            self._audit,
            self._clock,
            self._log,
            self._start_again,
        )
        self._runs = 0
        self._reported: dict[str, Any] = {}

    async def main(self) -> None:
        """Register, send, and push what waits, until cancelled."""
        async with self._backend, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sender.run(), name="sender")
            tasks.create_task(self._keep_started(), name="start")
            tasks.create_task(self._push_health(), name="health")

    def close(self) -> None:
        """Close the files; the process's end does it as well."""
        self._outbox.close()
        self._audit.close()

    def run(
        self,
        data_source: str,
        params: Params,
        chunk_format: str,
        *,
        full: bool,
        progress: Callable[..., None],
    ) -> dict[str, Any]:
        """One run of `process_and_upload`, in a thread."""
        if moved := self._outbox.moved_text(self._identity.installation_id):
            raise FailedError(moved)
        policy = self._author.runtime.egress
        run = UploadRun(
            author=self._author,
            identity=self._identity,
            outbox=self._outbox,
            wake=self._sender.wake,
            wait_ended=self._sender.wait_ended,
            columns=ColumnFilter(policy, self._key),
            names_key=self._key if policy.hash_sources else None,
            folder=self._author.state_dir,
            progress=progress,
            data_source=data_source,
            params=params,
            chunk_format=chunk_format,
            full=full,
        )
        self._runs += 1
        try:
            result = run()
            self._log_run(result)
            if result["status"] in {"uploaded", "unchanged"}:
                self._outbox.remember("last_success_at", result["timestamp"])
            return result
        except CatalogZeroError as error:
            self._log_run(error.details if isinstance(error.details, dict) else {})
            raise
        finally:
            self._runs -= 1
            self._sender.wake()

    def _log_run(self, result: Mapping[str, Any]) -> None:
        """Log what somebody should look at; keep for `check` what the egress policy met."""
        for failure in result.get("failures", ()):
            self._log.warning("item failed", **failure)
        if unmatched := result.get("unmatched_rules"):
            self._log.warning("egress rules matched no column", rules=unmatched)
        if "unmatched" in result:
            self._outbox.remember("egress_unmatched", unmatched)
        policy = policy_digest(self._author.runtime.egress)
        if self._outbox.fact("egress_policy") not in {None, policy}:
            sources = result.get("sources_under_other_policy", 0)
            self._log.warning("the egress policy changed", sources_under_other_policy=sources)
        self._outbox.remember("egress_policy", policy)

    async def report_health(
        self, metrics: Mapping[str, Any], about: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Push a health report made of the handler's metrics and what is known here."""
        extra = [f"the backend cannot be reached: {self._sender.fault_code}"]
        extra = extra if self._sender.fault_code and not self._sender.paused else []
        extra += await asyncio.to_thread(outbox_reasons, self._outbox)
        sent = await self._health.report(metrics, about, self._sender.paused_code, extra)
        self._changed()
        return {"sent": sent, "next_interval_s": self._health.next_interval_s}

    async def _push_health(self) -> None:
        """Push the report that waits, whenever it is due."""
        while True:
            due_s = self._health.due_s()
            if due_s == 0.0:
                await self._health.push_waiting()
                self._changed()
            await self._clock.sleep(_RETRY_LOOK_S)

    async def _keep_started(self) -> None:
        """Take an epoch and compare: at first, and whenever something says that it is due."""
        was_moved = False
        while True:
            installation_id = self._identity.installation_id
            moved = await asyncio.to_thread(self._outbox.moved_text, installation_id)
            if moved:
                was_moved = True
                self._sender.hold()
                await self._sender.pause(moved, "installation moved")
                self._changed()
                await self._clock.sleep(_RETRY_LOOK_S)
                continue
            if was_moved:
                was_moved = False
                self._sender.try_now()
            if await self._start():
                self._changed()
                await self._start_due.wait()
                self._start_due.clear()
                self._sender.hold()

    async def _start(self) -> bool:
        """One try to take the next epoch; False where another is to come."""
        said = await asyncio.to_thread(self._outbox.start)
        here = self._installation()
        outcome = await self._ask("PUT", encode_json({**here, **said}))
        if outcome.type == Kind.GENERATION_CHANGED.uri:  # nothing of it is kept but by the answer
            said["generation"] = str(outcome.members.get("generation"))[:_NAME_CHARS]
            outcome = await self._ask("PUT", encode_json({**here, **said}))
        decision = decide(RequestKind.INSTALLATION, outcome, self._clock.now())
        answer = outcome.members
        if decision.verdict is Verdict.MOVED:  # nothing is read or sent until `adopt` or `new`
            since = str(answer.get("since") or "")[:_NAME_CHARS]
            moved = {"installation_id": self._identity.installation_id, "since": since}
            await asyncio.to_thread(self._outbox.remember, MOVED, moved)
            self._log.error("installation moved", since=since)
            return False
        if decision.verdict is Verdict.DONE and "epoch" in answer:
            known = await self._whole(answer)
            if known is not None:
                cleared = await asyncio.to_thread(
                    self._outbox.started, known, self._identity.installation_id
                )
                if cleared:
                    about = {"count": len(cleared), "source_keys": cleared[:_SHOWN]}
                    self._log.warning("sources are read again", **about)
                await self._sender.go(known.epoch)
                return True
            text = "the backend's answer to the start is not whole, or beyond what one may tell"
            decision = Decision(Verdict.RETRY, text)
        fenced = outcome.status in _REFUSED or (
            said["epoch"] and outcome.status == HTTPStatus.FORBIDDEN
        )
        if decision.verdict is Verdict.RETRY or (decision.verdict is Verdict.IGNORE and fenced):
            if decision.verdict is Verdict.IGNORE or outcome.blocked:
                await self._sender.pause(decision.reason, outcome.code)
            else:
                self._log.warning("start not answered", reason=decision.reason)
                self._sender.failed_all(outcome.code, decision.retry_after_s)
            self._changed()
            await self._sender.rest()
            return False
        if decision.verdict is Verdict.DONE and isinstance(answer.get("sources"), dict):
            await asyncio.to_thread(self._outbox.learn_highest, answer["sources"])
        await self._sender.go(said["epoch"] or None)
        return True

    async def _whole(self, answer: dict[str, Any]) -> Known | None:
        """The answer with its further pages.

        None where they are not of one generation, name no source that is new, or are too many.
        """
        known = page = fitting(Known, answer)
        if known is None or page is None:
            return None
        left = _START_BYTES
        while page.next is not None:
            outcome = await self._ask("GET", b"", next=page.next)
            page = fitting(Known, outcome.body) if outcome.status == HTTPStatus.OK else None
            if page is None or (page.generation, page.epoch) != (known.generation, known.epoch):
                return None
            left -= max(outcome.size, _SOURCE_BYTES * len(page.states), _PAGE_BYTES)
            if left < 0 or not page.states.keys() - known.states.keys():
                return None
            known.states.update(page.states)
        return known

    def _start_again(self) -> None:
        """A start is due: another generation was seen, or another folder's epoch."""
        self._sender.hold()
        self._start_due.set()

    async def _ask(self, method: str, body: bytes, **query: str) -> Outcome:
        """One request about this installation."""
        path = ("installations", quote(self._identity.installation_id, safe=""))
        headers = AS_JSON if body else {}
        return await self._backend.push(
            RequestKind.INSTALLATION, method, path, body, headers, query=query or None
        )

    def _installation(self) -> dict[str, Any]:
        """What the backend is told of this installation."""
        return {
            "installation_id": self._identity.installation_id,
            "entry": self._identity.entry,
            "version": self._identity.version,
            "sdk_version": self._identity.sdk_version,
            "handler": self._identity.handler_id,
            "host": host_facts(),
            "methods": sorted(type(self._author).callable_methods()),
        }

    def _changed(self) -> None:
        """Tell the handler what is pending, where it differs from what was told."""
        figures = outbox_figures(self._outbox, self._clock, self._sender.paused)
        waits = [self._sender.next_due_s(), self._health.due_s()]
        due = [wait for wait in waits if wait is not None]
        status = {
            "busy": bool(self._runs) or self._sender.busy,
            "next_due_s": min(due) if due else None,
            "outbox": figures,
        }
        if status != self._reported:
            self._reported = status
            self._report_status(status)
