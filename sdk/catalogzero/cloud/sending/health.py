"""Health: what an installation reports to its vendor, from what really happened.

`HealthReporter` sends a report, and keeps the newest unsent one. Status is judged by uploads,
backlog, pauses and runs; never by being alive.
"""

from __future__ import annotations

import asyncio
import platform
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from structlog.typing import FilteringBoundLogger

from catalogzero.clock import Clock
from catalogzero.cloud.egress import AuditLog
from catalogzero.cloud.outbox.store import Outbox
from catalogzero.cloud.sending.client import BackendClient
from catalogzero.cloud.sending.sender import Backoff
from catalogzero.protocol.bodies import AS_JSON, HEALTH_SCHEMA
from catalogzero.protocol.deciding import RequestKind, Verdict, decide
from catalogzero.protocol.identities import Identity
from catalogzero.wire.messages import encode_json

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
OLD_BACKLOG_S = 3_600.0
SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 10.0, 86_400.0
"""What a backend may ask reports to come at."""
SKEW_S = 300.0
_FACT_REPORT = "health_report_2"
"""Not the name of earlier releases, whose waiting report may hold a message of an exception."""
_FACT_SEQ = "health_seq"
_FACT_SKEW = "clock_skew_s"
_FACT_SUCCESS = "last_success_at"


def outbox_figures(outbox: Outbox, clock: Clock, paused: str) -> dict[str, Any]:
    """The `outbox` of metrics and health reports."""
    totals = outbox.totals()
    age_s = 0.0
    if totals.oldest_at is not None:
        age_s = (clock.now() - datetime.fromisoformat(totals.oldest_at)).total_seconds()
    return {
        "uploads": totals.uploads,
        "records": totals.records,
        "bytes": totals.bytes,
        "oldest_age_s": round(max(age_s, 0.0), 3),
        "dead": totals.dead,
        "missing": totals.missing,
        "paused": paused or None,
    }


def outbox_reasons(outbox: Outbox) -> list[str]:
    """What a damaged file cost, and what the backend does not have until it is read again."""
    reasons = []
    if (damage := outbox.damage()) is not None:
        reasons.append(
            f"the outbox was damaged: {len(damage['lost'])} uploads in it cannot be read "
            f"(catalogzero check names them); it was set aside as {damage['file']}"
        )
    if keys := outbox.missing_sources():
        named = ", ".join(keys)
        reasons.append(f"not at the backend until they are read again, by source_key: {named}")
    return reasons


def judge(
    outbox: Mapping[str, Any],
    failure: Mapping[str, Any] | None,
    clock_skew_s: float | None,
    extra: list[str],
) -> tuple[str, list[str]]:
    """ok, degraded or failing, and why.

    Args:
        outbox: What `outbox_figures` gives.
        failure: What failed last in the handler: code, exception type, method, run_id, counts.
        clock_skew_s: This machine's clock against the backend's.
        extra: Reasons that only the worker knows, each making it degraded at least.
    """
    failing = []
    if outbox["paused"]:
        failing.append(f"sending is paused: {outbox['paused']}")
    if outbox["dead"]:
        failing.append(f"{outbox['dead']} uploads were refused (catalogzero outbox list)")
    if failure:
        failing.append(f"the last run failed: {_failure_text(failure)}")
    degraded = list(extra)
    if outbox["oldest_age_s"] > OLD_BACKLOG_S:
        degraded.append(f"the oldest upload waits for {outbox['oldest_age_s']:.0f} s")
    if clock_skew_s is not None and abs(clock_skew_s) > SKEW_S:
        degraded.append(f"the clock is {clock_skew_s:.0f} s off the backend's")
    return "failing" if failing else "degraded" if degraded else "ok", failing + degraded


class HealthReporter:
    """Makes and pushes health reports; one that did not arrive waits, until a newer one comes."""

    def __init__(
        self,
        outbox: Outbox,
        backend: BackendClient,
        identity: Identity,
        audit: AuditLog,
        clock: Clock,
        log: FilteringBoundLogger,
        on_generation: Callable[[], None] = lambda: None,
    ) -> None:
        self._outbox, self._backend, self._identity = outbox, backend, identity
        self._audit, self._clock, self._log = audit, clock, log
        self._on_generation = on_generation
        self._backoff = Backoff()
        self._turn = asyncio.Lock()
        outbox.remember("health_report", None)
        self.waiting = outbox.fact(_FACT_REPORT) is not None
        self.next_interval_s: float | None = None

    def due_s(self) -> float | None:
        """Seconds until the next try; None when no report waits."""
        if not self.waiting:
            return None
        return max(self._backoff.not_before - self._clock.monotonic(), 0.0)

    async def report(
        self,
        metrics: Mapping[str, Any],
        about: Mapping[str, Any],
        paused: str,
        extra: list[str],
    ) -> bool:
        """Make a report, push it; True when the backend has it, False when it waits."""
        body = await asyncio.to_thread(self._body, metrics, about, paused, extra)
        self.waiting = True
        await asyncio.to_thread(self._outbox.remember, _FACT_REPORT, body)
        self._backoff.succeeded()
        return await self.push_waiting()

    async def push_waiting(self) -> bool:
        """Push the report that waits, if one does."""
        async with self._turn:
            body = await asyncio.to_thread(self._outbox.fact, _FACT_REPORT)
            if body is None:
                self.waiting = False
                return True
            outcome = await self._backend.push(
                RequestKind.HEALTH, "POST", ("health",), encode_json(body), AS_JSON
            )
            decision = decide(RequestKind.HEALTH, outcome, self._clock.now())
            if decision.verdict is not Verdict.DONE:
                self._log.warning("health report not taken", reason=decision.reason)
            if decision.verdict is Verdict.RETRY:
                self._backoff.failed(self._clock.monotonic(), decision.retry_after_s)
                return False
            await asyncio.to_thread(self._forget, body)
            if decision.verdict is Verdict.DONE:
                await self._learn(outcome.members)
                if await asyncio.to_thread(self._outbox.is_other, outcome.generation):
                    self._on_generation()
            return decision.verdict is Verdict.DONE

    def _forget(self, body: Mapping[str, Any]) -> None:
        """Drop the report that was pushed, unless a newer one has come meanwhile."""
        waiting = self._outbox.fact(_FACT_REPORT)
        if waiting is not None and waiting["seq"] == body["seq"]:
            self._outbox.remember(_FACT_REPORT, None)
            self.waiting = False

    async def _learn(self, answer: Mapping[str, Any]) -> None:
        """Take what the backend says of its clock and of the next report."""
        interval = answer.get("next_interval_s")
        if isinstance(interval, int | float) and interval is not True and interval > 0:
            self.next_interval_s = min(max(interval, SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S)
        with suppress(ValueError, TypeError):  # it says no time, or one without a zone
            there = datetime.fromisoformat(str(answer.get("server_time")))
            skew = round((self._clock.now() - there).total_seconds(), 3)
            await asyncio.to_thread(self._outbox.remember, _FACT_SKEW, skew)

    def _body(
        self,
        metrics: Mapping[str, Any],
        about: Mapping[str, Any],
        paused: str,
        extra: list[str],
    ) -> dict[str, Any]:
        """The whole report."""
        figures = outbox_figures(self._outbox, self._clock, paused)
        skew = self._outbox.fact(_FACT_SKEW)
        failure, state = about.get("failure"), about.get("state", "active")
        status, reasons = judge(figures, failure, skew, extra)
        seq = (self._outbox.fact(_FACT_SEQ) or 0) + 1
        self._outbox.remember(_FACT_SEQ, seq)
        failed = metrics.get("failures_total", 0)
        known = {
            "handler_id": self._identity.handler_id,
            "entry": self._identity.entry,
            "version": self._identity.version,
            "sdk_version": self._identity.sdk_version,
            "timestamp": self._clock.now().isoformat(),
            "status": state,
        }
        return {
            "schema": HEALTH_SCHEMA,
            "client_id": self._identity.installation_id,
            "metrics": {**_numbers(metrics), **known, "outbox": figures, "last_error": failure},
            "seq": seq,
            "interval_s": about.get("interval_s"),
            **known,
            "host": host_facts(),
            "state": state,
            "status": status,
            "reasons": [*reasons, *about.get("notes", ())],
            "last_success_at": self._outbox.fact(_FACT_SUCCESS),
            "outbox": {**figures, "missing_sources": self._outbox.missing_named()},
            **self._outbox.witness(),
            "runs": {
                "ok": max(metrics.get("runs_total", 0) - failed, 0),
                "failed": failed,
                "running": metrics.get("in_flight", 0),
            },
            "clock_skew_s": skew,
            "audit_head": self._audit.head,
        }


def host_facts() -> dict[str, str]:
    """What a vendor may know of the machine."""
    return {
        "os": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "python": platform.python_version(),
    }


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that may leave: figures by plain names, as any text may hold a record's."""
    return {
        name: value
        for name, value in metrics.items()
        if _NAME.fullmatch(name) and (value is None or isinstance(value, int | float))
    }


def _failure_text(failure: Mapping[str, Any]) -> str:
    """What failed in a few words, none of them an exception's."""
    words = f"{failure['code']} ({failure['type'] or 'no exception'}) in {failure['method']}"
    words += f", run {failure['run_id']}" if "run_id" in failure else ""
    counted = {"failed", "items"} <= failure.keys()
    return words + (f", {failure['failed']} of {failure['items']} items" if counted else "")
