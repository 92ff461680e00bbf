"""Health: what an installation reports to its vendor, from what really happened.

`HealthReporter` sends a report, and keeps the newest unsent one; `runtime.health` judges.
"""

from __future__ import annotations

import asyncio
import platform
import re
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from structlog.typing import FilteringBoundLogger

from catalogzero.cloud.outbox.outbox import Outbox
from catalogzero.cloud.outbox.outbox_figures import outbox_figures
from catalogzero.cloud.outbox.outbox_file import is_disk_full
from catalogzero.cloud.outbox.stored import CLOCK_SKEW, HEALTH_FAULT, HEALTH_REPORT
from catalogzero.cloud.sending.backend_client import BackendClient
from catalogzero.cloud.sending.retry_timer import RetryTimer
from catalogzero.cloud.sending.sender import Sender
from catalogzero.protocol.bodies import AS_JSON, HEALTH_SCHEMA
from catalogzero.protocol.deciding import RequestKind, Verdict, decide
from catalogzero.runtime.health import judge_health
from catalogzero.wire.messages import JsonObject, encode_json

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 10.0, 86_400.0
"""What a backend may ask reports to come at."""
_FACT_SEQ = "health_seq"


def health_reasons(outbox: Outbox) -> list[str]:
    """What a damaged file cost, what the backend does not have, and whether it hears of health."""
    reasons = []
    if (fault := outbox.store.fact(HEALTH_FAULT)) is not None:
        reasons.append(f"the last health report was not delivered: {fault}")
    if (damage := outbox.store.damage()) is not None:
        reasons.append(
            f"the outbox was damaged: {len(damage['lost'])} uploads in it cannot be read "
            f"(catalogzero check names them); it was quarantined as {damage['file']}"
        )
    if missing := outbox.store.missing_sources():
        named = ", ".join(source["source_key"] for source in missing)
        reasons.append(f"not at the backend until they are read again, by source_key: {named}")
    return reasons


class HealthReporter:
    """Makes and pushes health reports; one that did not arrive waits, until a newer one comes.

    Args:
        outbox: What is reported of, and where the report waits.
        backend: The open connection to the backend.
        log: Logs reports that the backend did not take.
        on_generation: Called where the backend is another one than the known: it was restored.

    Attributes:
        waiting: Whether a report waits.
        next_interval_s: When the backend wants the next report; None where it does not say.
    """

    def __init__(
        self,
        outbox: Outbox,
        backend: BackendClient,
        log: FilteringBoundLogger,
        on_generation: Callable[[], None],
    ) -> None:
        self._outbox, self._backend, self._log = outbox, backend, log
        self._clock, self._on_generation = backend.clock, on_generation
        self._backoff = RetryTimer()
        self._turn = asyncio.Lock()
        self._seq = 0
        self._not_kept: JsonObject | None = None
        outbox.remember("health_report", None)
        self.waiting = outbox.store.fact(HEALTH_REPORT) is not None
        self.next_interval_s: float | None = None

    def due_s(self) -> float | None:
        """Seconds until the next try; None when no report waits."""
        if not self.waiting:
            return None
        return max(self._backoff.not_before - self._clock.monotonic(), 0.0)

    def hurry(self) -> None:
        """Push the report that waits, if one does, at the next look."""
        self._backoff.not_before = 0.0

    async def report(
        self,
        metrics: JsonObject,
        about: JsonObject,
        sender: Sender,
    ) -> bool:
        """Make a report, push it; True when the backend has it, False when it waits."""
        body = await asyncio.to_thread(self.made, metrics, about, sender)
        self.waiting = True
        kept = await asyncio.to_thread(self.keep, HEALTH_REPORT, body)
        self._not_kept = None if kept else body
        self._backoff.succeeded()
        return await self.push_waiting()

    async def push_waiting(self) -> bool:
        """Push the report that waits, if one does."""
        outbox, to_thread = self._outbox, asyncio.to_thread
        async with self._turn:
            body = self._not_kept or await to_thread(outbox.store.fact, HEALTH_REPORT)
            if body is None:
                self.waiting = False
                return True
            kind, text = RequestKind.HEALTH, encode_json(body)
            outcome = await self._backend.push(kind, "POST", ("health",), text, AS_JSON)
            decision = decide(kind, outcome, self._clock.now())
            is_taken = decision.verdict is Verdict.DONE
            fault = None if is_taken else outcome.code
            if fault != await to_thread(outbox.store.fact, HEALTH_FAULT):
                await to_thread(self.keep, HEALTH_FAULT, fault)
            seldom = self._backend.seldom
            if is_taken and (times := seldom.over("health not delivered")):
                self._log.info("health delivered again", failed_tries=times)
            elif not is_taken and (times := seldom.is_due("health not delivered")):
                about = {"reason": decision.reason, "failed_tries": times}
                self._log.warning("health not delivered", **about)
            if decision.verdict is Verdict.RETRY:
                self._backoff.failed(self._clock.monotonic(), decision.retry_after_s)
                return False
            await to_thread(self.forget, body["seq"])
            if decision.verdict is not Verdict.DONE:
                return False
            interval = outcome.members.get("next_interval_s")
            if isinstance(interval, int | float) and interval is not True and interval > 0:
                self.next_interval_s = min(max(interval, SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S)
            with suppress(ValueError, TypeError):  # it says no time, or one without a zone
                there = datetime.fromisoformat(str(outcome.members.get("server_time")))
                skew = round((self._clock.now() - there).total_seconds(), 3)
                await to_thread(self.keep, CLOCK_SKEW, skew)
            if await to_thread(outbox.is_other, outcome.generation):
                self._on_generation()
            return True

    def forget(self, seq: int) -> None:
        """Drop the report of this number, unless a newer one has come meanwhile."""
        waiting = self._not_kept or self._outbox.store.fact(HEALTH_REPORT)
        if waiting is not None and waiting["seq"] == seq:
            self.keep(HEALTH_REPORT, None)
            self._not_kept, self.waiting = None, False

    def keep(self, name: str, value: Any) -> bool:
        """Remember a fact where the disk has room: a report that it is full has to leave, too."""
        try:
            self._outbox.remember(name, value)
        except sqlite3.OperationalError as error:
            if not is_disk_full(error):
                raise
            return False
        return True

    def made(self, metrics: JsonObject, about: JsonObject, sender: Sender) -> JsonObject:
        """The next report, as docs/reference describes it; it takes the next `seq`."""
        outbox, who = self._outbox, self._backend.identity
        figures = outbox_figures(outbox.store, self._clock, sender.pause_known, sender.fault)
        figures["paused"] = figures["paused_code"]  # its reason may hold what the backend said
        skew = outbox.store.fact(CLOCK_SKEW)
        failure, state = about.get("failure"), about.get("state", "active")
        health = judge_health(figures, failure, skew, health_reasons(outbox))
        try:
            self._seq = outbox.next_number(_FACT_SEQ, above=self._seq)
        except sqlite3.OperationalError as error:
            if not is_disk_full(error):
                raise
            self._seq = max(outbox.store.fact(_FACT_SEQ) or 0, self._seq) + 1
        failed = metrics.get("failures_total", 0)
        known = {
            "handler_id": who.handler_id,
            "entry": who.entry,
            "version": who.version,
            "sdk_version": who.sdk_version,
            "timestamp": self._clock.now().isoformat(),
            "status": state,
        }
        # Figures by plain names alone may leave: any text may hold what a record holds.
        numbers = {
            name: value
            for name, value in metrics.items()
            if _NAME.fullmatch(name) and (value is None or isinstance(value, int | float))
        }
        return {
            "schema": HEALTH_SCHEMA,
            "client_id": who.installation_id,
            "metrics": {**numbers, **known, "outbox": figures, "last_error": failure},
            "seq": self._seq,
            "interval_s": about.get("interval_s"),
            **known,
            "host": host_facts(),
            "state": state,
            "status": health["status"],
            "reasons": [*health["reasons"], *about.get("notes", ())],
            "labels": about.get("labels", {}),
            "last_success_at": outbox.store.fact("last_success_at"),
            "outbox": {**figures, "missing_sources": outbox.store.missing_sources()},
            **outbox.witness(),
            "runs": {
                "ok": max(metrics.get("runs_total", 0) - failed, 0),
                "failed": failed,
                "running": about.get("running", 0),
            },
            "clock_skew_s": skew,
            "last_successful_run": about.get("last_successful_run"),
            "last_failed_run": about.get("last_failed_run"),
            "audit_head": self._backend.audit.head,
        }


def host_facts() -> dict[str, str]:
    """What a vendor may know of the machine."""
    return {
        "os": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "python": platform.python_version(),
    }
