"""Signals to handlers, and jobs for whichever handler is free.

`dispatch` promises: one `request_id` whatever it takes; a handler that said it has not begun is
passed over for the next; one that dies after it accepted is followed by another only where
the method is retry_safe, else the outcome is `lost`, as nobody can know any more.

Layer: catalog entry, imports public names of catalogzero only.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from catalogzero import StartBy

from conductorzero.board import number
from conductorzero.fleet import Answer
from conductorzero.watch import Watch

Action = Literal["sleep", "wake", "drain", "resume"]

SIGNAL_TIMEOUT_S = 30.0
LOOK_AFTER_S = 5.0
SILENCES_ALLOWED = 3
NEVER_SENT = frozenset({"unreachable", "unknown_handler"})
NOT_BEGUN = NEVER_SENT | {"busy", "draining", "wake_failed", "expired"}


async def signal(
    watch: Watch, at: datetime, action: str, handler_ids: list[str] | None
) -> dict[str, Any]:
    """Send a control call to these handlers (to all, for None), and tell each one's answer."""
    ids = watch.fleet.handler_ids if handler_ids is None else list(dict.fromkeys(handler_ids))
    silent = watch.silent()
    reply = await asyncio.gather(
        watch.fleet.ask_all(
            [one for one in ids if one not in silent], action, timeout_s=SIGNAL_TIMEOUT_S
        ),
        watch.fleet.ask_all([one for one in ids if one in silent], action, timeout_s=LOOK_AFTER_S),
    )
    answers = {one: (reply[0] | reply[1])[one] for one in ids}
    metrics = await watch.fleet.ask_all(
        [key for key, answer in answers.items() if answer.replied],
        "get_metrics",
        timeout_s=LOOK_AFTER_S,
    )
    watch.saw(metrics=metrics.values())
    succeeded = sum(answer.error is None for answer in answers.values())
    return {
        "action": action,
        "handlers": {key: _shown(answer) for key, answer in answers.items()},
        "summary": {
            "total": len(ids),
            "succeeded": succeeded,
            "failed": len(ids) - succeeded,
        },
        "timestamp": at.isoformat(),
    }


async def dispatch(
    watch: Watch,
    method: str,
    params: dict[str, Any],
    among: list[str] | None,
    *,
    timeout_s: float,
) -> dict[str, Any]:
    """Run `method` on the least loaded of the handlers that have it; see the module."""
    return await _Dispatch(watch, method, params, among, timeout_s).run()


@dataclass(slots=True)
class _Candidate:
    """A handler that has the method, and how much it has to do."""

    handler_id: str
    load: float
    response_time_ms: float
    start_by: StartBy
    retry_safe: bool


@dataclass(slots=True)
class _Dispatch:
    """One dispatch: its id, and whom it has tried."""

    watch: Watch
    method: str
    params: dict[str, Any]
    among: list[str] | None
    timeout_s: float
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    tried: list[dict[str, Any]] = field(default_factory=list)

    async def run(self) -> dict[str, Any]:
        """Try the candidates, least loaded first, until one has begun.

        Those that were silent of late are asked only where nobody else has the method.
        """
        everybody, among = self.watch.fleet.handler_ids, self.among
        ids = everybody if among is None else list(dict.fromkeys(among))
        silent = self.watch.silent()
        rest = [one for one in ids if one in silent]
        candidates = await self._candidates([one for one in ids if one not in silent])
        if not candidates:
            candidates = await self._candidates(rest)
        elif among is not None:
            for handler_id in rest:
                self._note(handler_id, "unreachable")
        lost: Answer | None = None
        for candidate in candidates:
            answer = await self._call(candidate)
            outcome = _outcome_of(answer)
            self._note(candidate.handler_id, outcome)
            if outcome == "success":
                return self._outcome("success", answer, result=answer.result)
            if outcome == "error" or (outcome == "lost" and not candidate.retry_safe):
                return self._outcome(outcome, answer)
            lost = answer if outcome == "lost" else lost
        return self._nobody() if lost is None else self._outcome("lost", lost)

    async def _candidates(self, handler_ids: list[str]) -> list[_Candidate]:
        """The handlers that have the method and answer, least loaded first."""
        pongs, metrics = await asyncio.gather(
            self.watch.fleet.ask_all(handler_ids, "ping", timeout_s=self.timeout_s),
            self.watch.fleet.ask_all(handler_ids, "get_metrics", timeout_s=self.timeout_s),
        )
        flags = await self._flags(pongs)
        found = []
        for handler_id, answer in pongs.items():
            if handler_id not in flags:
                if self.among is not None:
                    self._note(handler_id, answer.code or "unknown_method")
                continue
            figures, pong = metrics[handler_id].result, answer.result
            found.append(
                _Candidate(
                    handler_id,
                    load=_load_of(figures),
                    response_time_ms=answer.response_time_ms or float("inf"),
                    start_by=StartBy(pong["boot_id"], pong["uptime_s"] + pong["dedupe_window_s"]),
                    retry_safe=flags[handler_id],
                )
            )
        return sorted(found, key=lambda one: (one.load, one.response_time_ms))

    async def _flags(self, pongs: dict[str, Answer]) -> dict[str, bool]:
        """Who has the method, and whether it is retry_safe there; each boot is asked once."""
        boots = {key: boot for key, answer in pongs.items() if (boot := _boot_of(answer))}
        wanted = [key for key, boot in boots.items() if self._known(key, boot) is None]
        reply = await self.watch.fleet.ask_all(wanted, "describe", timeout_s=self.timeout_s)
        for handler_id, answer in reply.items():
            if answer.error is None:
                self.watch.methods[handler_id] = boots[handler_id], _methods_of(answer.result)
        methods = {key: self._known(key, boot) or {} for key, boot in boots.items()}
        return {key: one[self.method] for key, one in methods.items() if self.method in one}

    def _known(self, handler_id: str, boot_id: str) -> dict[str, bool] | None:
        """The methods that this boot of a handler described; None before it was asked."""
        boot, methods = self.watch.methods.get(handler_id, ("", {}))
        return methods if boot == boot_id else None

    async def _call(self, candidate: _Candidate) -> Answer:
        """Call one handler until its run has ended, or is lost.

        The call is repeated while it works: the same id gets the same run's reply, and
        `start_by` keeps a handler that was started anew from beginning it a second time.
        """
        sent, silences = False, 0
        while silences < SILENCES_ALLOWED:
            answer = await self.watch.fleet.ask(
                candidate.handler_id,
                self.method,
                self.params,
                timeout_s=LOOK_AFTER_S,
                request_id=self.request_id,
                start_by=candidate.start_by,
            )
            if answer.code == "expired" and sent:
                return self._lost(candidate, "it was started anew, and does not know the run")
            if answer.replied and answer.code != "timeout":
                return answer
            if answer.code in NEVER_SENT and not sent:
                return answer
            sent, silences = True, 0 if answer.replied else silences + 1
        return self._lost(candidate, "it died, or cannot be reached any more")

    def _lost(self, candidate: _Candidate, why: str) -> Answer:
        """The answer that stands for a run whose end nobody can know."""
        error = f"{candidate.handler_id} accepted {self.method} and was lost: {why}"
        return Answer(candidate.handler_id, replied=False, error=error, code="lost")

    def _note(self, handler_id: str, outcome: str) -> None:
        """Keep what came of one handler."""
        self.tried.append({"handler_id": handler_id, "outcome": outcome})

    def _outcome(self, status: str, answer: Answer, **more: Any) -> dict[str, Any]:
        """The result of the dispatch; `success` is false unless the run succeeded."""
        body = {
            "success": status == "success",
            "status": status,
            "handler_id": answer.handler_id,
            "request_id": self.request_id,
            "run_id": answer.run_id,
            "tried": self.tried,
            **more,
        }
        return body if answer.error is None else {**body, "error": answer.error}

    def _nobody(self) -> dict[str, Any]:
        """The result where no handler could begin."""
        text = ", ".join(f"{one['handler_id']} ({one['outcome']})" for one in self.tried)
        error = f"no handler could run {self.method}: {text or 'none is known'}"
        return self._outcome("refused", Answer("", replied=False, error=error))


def _outcome_of(answer: Answer) -> str:
    """What came of one handler: success, error, lost, or why it has not begun."""
    if answer.error is None:
        return "success"
    return answer.code if answer.code in NOT_BEGUN or answer.code == "lost" else "error"


def _boot_of(pong: Answer) -> str | None:
    """The boot that a pong tells of; None for silence, and for a handler that knows no boots."""
    answer = pong.result if isinstance(pong.result, dict) else {}
    times = (number(answer.get("uptime_s")), number(answer.get("dedupe_window_s")))
    boot_id = answer.get("boot_id")
    return boot_id if isinstance(boot_id, str) and None not in times else None


def _load_of(metrics: Any) -> float:
    """How much a handler has to do: what runs, and what waits."""
    shown = metrics if isinstance(metrics, dict) else {}
    return sum(number(shown.get(name)) or 0 for name in ("in_flight", "queued"))


def _methods_of(description: Any) -> dict[str, bool]:
    """The methods that `describe` lists: name and whether it is retry_safe."""
    methods = description.get("methods") if isinstance(description, dict) else None
    named = [one for one in methods or [] if isinstance(one, dict) and "name" in one]
    return {str(one["name"]): bool(one.get("retry_safe")) for one in named}


def _shown(answer: Answer) -> dict[str, Any]:
    """One handler's answer to a signal."""
    if answer.error is not None:
        return {"ok": False, "error": answer.error, "code": answer.code}
    status = answer.result.get("status") if isinstance(answer.result, dict) else None
    return {"ok": True, "status": status}
