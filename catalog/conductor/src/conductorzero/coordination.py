"""Signals to handlers, and jobs for whichever handler is free.

A handler_id stands for all instances of that handler, `handler_id/instance_id` for one of them.

`dispatch` promises: one `request_id` whatever it takes; a handler that said it has not begun is
passed over for the next; one that dies after it accepted is followed by another only where
the method is retry_safe, else the outcome is `lost`, as nobody can know any more.

Layer: catalog entry, imports public names of catalogzero only.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypedDict

from catalogzero import CallVerdict, PendingCall, Stamp, UnreachableError

from conductorzero.fleet import Answer, JsonObject, load_of
from conductorzero.watch import Watch

Action = Literal["sleep", "wake", "drain", "resume"]

SIGNAL_TIMEOUT_S = 30.0
LOOK_AFTER_S = 5.0
SILENCES_ALLOWED = 3
NEVER_SENT = frozenset({"unreachable", "unknown_handler"})
NOT_BEGUN = NEVER_SENT | {"busy", "draining", "wake_failed", "expired"}


async def signal(
    watch: Watch, at: datetime, action: str, handler_ids: list[str] | None
) -> JsonObject:
    """Send a control call to these handlers (to all, for None), and return each one's answer.

    Of a handler with instances each instance's own: what one of them did says nothing of another.
    """
    ids = watch.fleet.named(handler_ids)
    silent = watch.silent()
    heard = [one for one in ids if one not in silent]
    # Going to sleep may take long; one that was silent keeps nobody waiting for that.
    answers, others = await asyncio.gather(
        watch.fleet.ask_all(heard, action, timeout_s=SIGNAL_TIMEOUT_S),
        watch.fleet.ask_all([*silent.intersection(ids)], action, timeout_s=LOOK_AFTER_S),
    )
    answers |= others
    replied = [one for one in ids if answers[one].replied]
    metrics = await watch.fleet.ask_all(replied, "get_metrics", timeout_s=LOOK_AFTER_S)
    watch.saw(metrics=metrics.values())
    shown: dict[str, JsonObject] = {}
    for answer in map(answers.__getitem__, ids):
        status = answer.result.get("status") if isinstance(answer.result, dict) else None
        failed = {"ok": False, "error": answer.error, "code": answer.code}
        shown[answer.handler_id] = {"ok": True, "status": status} if answer.success else failed
    succeeded = sum(answer.success for answer in answers.values())
    return {
        "action": action,
        "handlers": shown,
        "summary": {"total": len(ids), "succeeded": succeeded, "failed": len(ids) - succeeded},
        "timestamp": at.isoformat(),
    }


class Candidate(NamedTuple):
    """A handler that has the method, and how much it has to do; the first in order is taken.

    Of instances those that have a free place, and are awake, come first, as at a scheduler; `load`
    is that of each of its places.
    """

    full: bool
    asleep: bool
    load: float
    response_time_ms: float
    handler_id: str
    stamp: Stamp
    retry_safe: bool


class Tried(TypedDict):
    """What came of one handler: success, error, lost, or why it has not begun."""

    handler_id: str
    outcome: str


@dataclass(slots=True)
class Dispatch:
    """One run of `method` on the least loaded of the handlers that have it; see the module.

    Args:
        watch: Knows the handlers.
        method: A job method.
        params: Its parameters.
        among: Whom to choose from; None for all.
        timeout_s: How long a handler may take to say whether it has the method.
        look_after_s: How long one call waits before the run is asked after again.
        silences_allowed: The run is lost after this many calls in a row without a reply.
    """

    watch: Watch
    method: str
    params: JsonObject
    among: list[str] | None
    timeout_s: float
    look_after_s: float = LOOK_AFTER_S
    silences_allowed: int = SILENCES_ALLOWED
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()), init=False)
    tried: list[Tried] = field(default_factory=list, init=False)

    async def run(self) -> JsonObject:
        """Try the candidates, least loaded first, until one has begun.

        Those that were silent of late are asked only where nobody else has the method.
        """
        among, silent = self.among, self.watch.silent()
        ids = self.watch.fleet.named(among)
        rest = [one for one in ids if one in silent]
        candidates = await self.candidates([one for one in ids if one not in silent])
        if not candidates:
            candidates = await self.candidates(rest)
        elif among is not None:
            self.tried += [Tried(handler_id=one, outcome="unreachable") for one in rest]
        lost: Answer | None = None
        for candidate in sorted(candidates, key=lambda one: one[:4]):
            answer = await self.call(candidate)
            has_not_begun = answer.code in NOT_BEGUN or answer.code == "lost"
            outcome = "success" if answer.success else answer.code if has_not_begun else "error"
            self.tried.append({"handler_id": candidate.handler_id, "outcome": outcome})
            if outcome == "success":
                return {**self.result("success", answer), "result": answer.result}
            if outcome == "error" or (outcome == "lost" and not candidate.retry_safe):
                return self.result(outcome, answer)
            lost = answer if outcome == "lost" else lost
        if lost is not None:
            return self.result("lost", lost)
        text = ", ".join(f"{one['handler_id']} ({one['outcome']})" for one in self.tried)
        error = f"no handler could run {self.method}: {text or 'none is known'}"
        return self.result("refused", Answer(success=False, handler_id="", error=error))

    async def candidates(self, handler_ids: list[str]) -> list[Candidate]:
        """Those of these handlers that answer, and have the method."""
        fleet, timeout_s = self.watch.fleet, self.timeout_s
        pongs, metrics = await asyncio.gather(
            fleet.ask_all(handler_ids, "ping", timeout_s=timeout_s),
            fleet.ask_all(handler_ids, "get_metrics", timeout_s=timeout_s),
        )
        stamps = {key: stamp for key, pong in pongs.items() if (stamp := stamp_of(pong))}
        methods = await self.described(stamps)
        found = []
        for handler_id, pong in pongs.items():
            if self.method in methods.get(handler_id, ()):
                ranked = self.rank(handler_id, metrics[handler_id].result)
                took_ms = pong.response_time_ms or float("inf")
                is_retry_safe = methods[handler_id][self.method]
                stamp = stamps[handler_id]
                found.append(Candidate(*ranked, took_ms, handler_id, stamp, is_retry_safe))
            elif self.among is not None:
                outcome = pong.code or "unknown_method"
                self.tried.append({"handler_id": handler_id, "outcome": outcome})
        return found

    def rank(self, handler_id: str, metrics: Any) -> tuple[bool, bool, float]:
        """The first fields of a `Candidate`, by what it answered to `get_metrics`."""
        peer, load = self.watch.fleet.peer(handler_id), load_of(metrics)
        if peer is None or not peer.instance_id:
            return False, False, load
        asleep = isinstance(metrics, dict) and metrics.get("status") == "sleeping"
        each = load / (peer.places or 1)
        return peer.places is not None and each >= 1, asleep, each

    async def described(self, stamps: dict[str, Stamp]) -> dict[str, dict[str, bool]]:
        """The methods of these handlers, and whether each is retry_safe.

        Each boot is asked once: a handler that restarted may be another release.
        """
        known = self.watch.methods

        def is_known(handler_id: str) -> bool:
            return handler_id in known and known[handler_id][0] == stamps[handler_id].boot_id

        unknown = [handler_id for handler_id in stamps if not is_known(handler_id)]
        replies = await self.watch.fleet.ask_all(unknown, "describe", timeout_s=self.timeout_s)
        for handler_id, answer in replies.items():
            if answer.success:
                known[handler_id] = stamps[handler_id].boot_id, methods_of(answer.result)
        return {handler_id: known[handler_id][1] for handler_id in stamps if is_known(handler_id)}

    async def call(self, candidate: Candidate) -> Answer:
        """Call one handler until its run has ended, or is lost.

        The call is repeated while it works: the same id gets the same run's reply, and
        `start_by` keeps a handler that restarted from beginning it a second time.
        """
        call, sends, silences = PendingCall(), 0, 0
        call.take(candidate.stamp, self.method)
        why = "it died, or cannot be reached any more"
        while silences < self.silences_allowed:
            answer = await self.watch.fleet.ask(
                candidate.handler_id,
                self.method,
                self.params,
                timeout_s=self.look_after_s,
                request_id=self.request_id,
                start_by=call.start_by,
            )
            sends += 1
            if not answer.replied:
                # Unreachable is proof that nothing began only before anything was sent.
                if answer.code in NEVER_SENT and sends == 1:
                    return answer
                silences += 1
                continue
            silences = 0
            verdict = call.judge(answer)
            # A connection delivers a call at most once: the only one sent is no run in progress
            # when its answer is `expired`, so the next handler may take it.
            if verdict is CallVerdict.LOST and sends > 1:
                why = "it restarted, and does not know the run"
                break
            if verdict is not CallVerdict.PENDING:
                return answer
            if answer.code == "busy":  # too many wait for this run: make room before the next look
                await asyncio.sleep(self.look_after_s)
        error = f"{candidate.handler_id} accepted {self.method} and was lost: {why}"
        return Answer(success=False, handler_id=candidate.handler_id, error=error, code="lost")

    def result(self, status: str, answer: Answer) -> JsonObject:
        """The result of the dispatch; `success` is false unless the run succeeded."""
        body = {
            "success": status == "success",
            "status": status,
            "handler_id": answer.handler_id,
            "request_id": self.request_id,
            "run_id": answer.run_id,
            "tried": self.tried,
        }
        return body if answer.success else {**body, "error": answer.error}


def stamp_of(pong: Answer) -> Stamp | None:
    """The stamp of a pong; None for silence, and for a handler that knows no boots."""
    try:
        stamp = Stamp.read(pong.result)
    except UnreachableError:
        return None
    return stamp if stamp.boot_id else None


def methods_of(description: Any) -> dict[str, bool]:
    """The methods that `describe` lists: name and whether it is retry_safe."""
    methods = description.get("methods") if isinstance(description, dict) else None
    named: Iterable[Any] = (one for one in methods or () if isinstance(one, dict) and "name" in one)
    return {str(one["name"]): bool(one.get("retry_safe")) for one in named}
