"""The worker's side of a `CloudProcessor`, put together: outbox, door, sender, health, runs.

One engine lives in the worker process for as long as that does. Never imported by the handler's own
process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from structlog.typing import FilteringBoundLogger

from catalogzero.clock import Clock
from catalogzero.cloud.authors import Author
from catalogzero.cloud.egress import AuditLog, egress_key, policy_digest
from catalogzero.cloud.encoding import ColumnFilter
from catalogzero.cloud.health import HealthPost, host_facts, outbox_figures
from catalogzero.cloud.outbox import Outbox
from catalogzero.cloud.pipeline import UploadRun, Ways
from catalogzero.cloud.push import Pusher
from catalogzero.cloud.sender import Backoff, Sender
from catalogzero.cloud.settings import CloudSettings, Params
from catalogzero.config.settings import RuntimeSettings
from catalogzero.errors import CatalogZeroError
from catalogzero.protocol.bodies import AS_JSON
from catalogzero.protocol.deciding import Asked, Verdict, decide
from catalogzero.protocol.identities import Identity
from catalogzero.wire.messages import encode_json

_RETRY_LOOK_S = 1.0


class Engine:
    """What reads, stores and sends.

    Args:
        author: The class that processes.
        settings: The entry's settings.
        runtime: The runtime's.
        identity: Who sends.
        methods: The names of the handler's methods, for its registration.
        folder: The handler's state folder.
        clock: For every wait and time.
        log: For faults, pauses and dead letters.
        report_status: Takes what is pending, after each change.
    """

    def __init__(
        self,
        author: Author,
        settings: CloudSettings,
        runtime: RuntimeSettings,
        identity: Identity,
        *,
        methods: list[str],
        folder: Path,
        clock: Clock,
        log: FilteringBoundLogger,
        report_status: Callable[[dict[str, Any]], None],
    ) -> None:
        self._author, self._settings, self._runtime = author, settings, runtime
        self._identity, self._methods, self._folder = identity, methods, folder
        self._clock, self._log, self._report_status = clock, log, report_status
        self._outbox = Outbox(folder, clock, max_bytes=runtime.outbox_max_bytes)
        self._outbox.abandon()
        self._key = egress_key(runtime.egress, folder)
        self._audit = AuditLog(folder, clock, self._outbox.drop_reserve)
        self._pusher = Pusher(settings, runtime.egress, identity, self._audit, clock)
        self._sender = Sender(
            self._outbox,
            self._pusher,
            settings,
            identity,
            clock,
            log,
            self._changed,
            sealed_only=runtime.egress.strict,
        )
        self._health = HealthPost(self._outbox, self._pusher, identity, self._audit, clock, log)
        self._runs = 0
        self._told: dict[str, Any] = {}

    async def main(self) -> None:
        """Register, send, and push what waits, until cancelled."""
        async with self._pusher, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sender.run(), name="sender")
            tasks.create_task(self._register(), name="register")
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
        ways = Ways(
            author=self._author,
            settings=self._settings,
            runtime=self._runtime,
            identity=self._identity,
            outbox=self._outbox,
            sender=self._sender,
            columns=ColumnFilter(self._runtime.egress, self._key),
            names_key=self._key if self._runtime.egress.hash_sources else None,
            folder=self._folder,
            clock=self._clock,
            progress=progress,
        )
        self._runs += 1
        try:
            result = UploadRun(ways, data_source, params, chunk_format, full=full)()
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
        policy = policy_digest(self._runtime.egress)
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
        if self._outbox.set_aside is not None:
            extra.append("the outbox was damaged and set aside")
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

    async def _register(self) -> None:
        """`PUT installations`, until the backend has taken it or has no such thing."""
        backoff, body = Backoff(), self._installation()
        while True:
            path = ("installations", self._identity.installation_id)
            outcome = await self._pusher.push(
                Asked.INSTALLATION, "PUT", path, encode_json(body), AS_JSON
            )
            decision = decide(Asked.INSTALLATION, outcome, self._clock.now())
            if decision.verdict is not Verdict.RETRY:
                break
            self._log.warning("registration not taken", reason=decision.reason)
            backoff.failed(self._clock.monotonic(), decision.retry_after_s)
            await self._clock.sleep(max(backoff.not_before - self._clock.monotonic(), 0.0))
        sources = outcome.members.get("sources")
        if decision.verdict is Verdict.DONE and isinstance(sources, dict):
            await asyncio.to_thread(self._outbox.learn_highest, sources)

    def _installation(self) -> dict[str, Any]:
        """What the backend is told of this installation."""
        return {
            "installation_id": self._identity.installation_id,
            "entry": self._identity.entry,
            "version": self._identity.version,
            "sdk_version": self._identity.sdk_version,
            "handler": self._identity.handler_id,
            "host": host_facts(),
            "methods": self._methods,
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
        if status != self._told:
            self._told = status
            self._report_status(status)
