"""A run that ended, as it is remembered: its reply's bytes and a few numbers.

Thousands of them are kept, so each is one small object: what is not asked for often is JSON text,
and what most runs lack stands together in a part that they have not.
"""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple, cast

import orjson

from catalogzero.config.logs import shown_value
from catalogzero.protocol.outcomes import OutcomeState, RunOutcomeWords
from catalogzero.runtime.control_answers import RunOutcome, RunRecord
from catalogzero.wire.messages import JsonObject, Reply, encode_reply

KEPT_ERROR_CHARS = 200
INDEX_BYTES = 2 * 60 + 8
"""Its places in two dicts, at their largest, and in a deque."""

_TIMES = struct.Struct("=5dI")


class RunState(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    WAKING = "waking"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"
    REFUSED = "refused"


class Times(NamedTuple):
    """The moments of a run: monotonic seconds, but for the first; NaN where there is none.

    `received_at_s` is Unix time, `start_by_s` the uptime by which it had to begin.
    """

    received_at_s: float
    received_s: float
    started_s: float = math.nan
    ended_s: float = math.nan
    start_by_s: float = math.nan

    def shown(self, at_s: float) -> str | None:
        """One of its monotonic moments as wall time, in ISO 8601."""
        if math.isnan(at_s):
            return None
        return datetime.fromtimestamp(self.received_at_s + at_s - self.received_s, UTC).isoformat()


class Extras(NamedTuple):
    """What most runs do not have; `progress` is JSON."""

    progress: bytes = b""
    error: str = ""
    code: str = ""
    traceback: str = ""


NO_EXTRAS = Extras()


@dataclass(slots=True, eq=False)
class EndedRun:
    """One execution of a job method whose outcome is known.

    Attributes:
        reply: As it went over the wire; empty once only the outcome is kept.
        params: Of its call, as JSON; empty where there were none, or only the outcome is kept.
        params_digest: Stands for them once only the outcome is kept.
    """

    run_id: str
    request_id: str | int | None
    method_name: str
    state: RunState
    reply: bytes
    params: bytes
    params_digest: bytes
    outcome_state: OutcomeState
    outcome_words: str
    outcome_rows: int | None
    extras: Extras
    numbers: bytes
    """Its times and its weight, packed: floats would be objects of 32 bytes each."""

    @property
    def times(self) -> Times:
        """Its moments."""
        return Times._make(_TIMES.unpack(self.numbers)[:-1])

    @property
    def ended_s(self) -> float:
        """When it ended, in monotonic seconds."""
        return float(_TIMES.unpack(self.numbers)[3])

    @property
    def weight_bytes(self) -> int:
        """What it held in memory when it was last weighed; what came to it since is less."""
        return int(_TIMES.unpack(self.numbers)[-1])

    @property
    def start_by_s(self) -> float | None:
        """The uptime by which it had to begin, where its call had such a bound."""
        start_by_s = self.times.start_by_s
        return None if math.isnan(start_by_s) else start_by_s

    @property
    def ended_at(self) -> str | None:
        """When it ended."""
        times = self.times
        return times.shown(times.ended_s)

    @property
    def came_to(self) -> RunOutcomeWords:
        """What it came to."""
        return {
            "state": self.outcome_state,
            "words": self.outcome_words,
            "rows": self.outcome_rows,
        }

    @came_to.setter
    def came_to(self, outcome: RunOutcomeWords) -> None:
        self.outcome_state, self.outcome_words = outcome["state"], outcome["words"]
        self.outcome_rows = outcome["rows"]

    @property
    def waits(self) -> bool:
        """Whether what it stored waits to be sent."""
        return self.outcome_state == "waiting"

    def describe(self) -> RunRecord:
        """The run in `list_runs`."""
        times, extras = self.times, self.extras
        shown: RunRecord = {
            "run_id": self.run_id,
            "request_id": self.request_id,
            "method": self.method_name,
            "status": str(self.state),
            "received_at": times.shown(times.received_s) or "",
            "started_at": times.shown(times.started_s),
            "ended_at": times.shown(times.ended_s),
            "outcome": self.came_to,
        }
        if extras.progress:
            shown["progress"] = orjson.loads(extras.progress)
        if extras.code:
            shown["error"], shown["code"] = extras.error, extras.code
        return shown

    def outcome(self) -> RunOutcome:
        """As `describe`, with params and result while they are kept."""
        shown = cast("RunOutcome", self.describe())
        if self.reply:
            shown["params"] = shown_params(self.params)
            if self.state is RunState.SUCCESS:
                shown["result"] = self.returned()
        if self.extras.traceback:
            shown["traceback"] = self.extras.traceback
        return shown

    def returned(self) -> Any:
        """The result of a run that succeeded, or the details of one that failed, while kept."""
        body = orjson.loads(self.reply) if self.reply else {}
        if "request_id" not in body:
            return body
        return body["result"] if self.state is RunState.SUCCESS else body.get("details")

    def answer(self) -> bytes:
        """The reply to a call that repeats it; without its result where that is gone."""
        if self.reply:
            return self.reply
        kept = Reply(
            success=self.state is RunState.SUCCESS,
            error=self.extras.error,
            code=self.extras.code,
            details={"result_kept": False},
            request_id=self.request_id,
            run_id=self.run_id,
        )
        return encode_reply(kept)

    def shrink(self, params_digest: bytes) -> None:
        """Keep no more than the outcome."""
        self.params_digest = params_digest
        self.reply = self.params = b""
        error, code = self.extras.error[:KEPT_ERROR_CHARS], self.extras.code
        self.extras = Extras(error=error, code=code) if code else NO_EXTRAS
        self.weigh(self.times)

    def weigh(self, times: Times) -> None:
        """Note its times, and the bytes that it holds: in itself, and where it is remembered."""
        extras = self.extras
        held: list[object] = [self.run_id, self.request_id, self.reply, self.params]
        if self.params_digest:
            held.append(self.params_digest)
        if extras is not NO_EXTRAS:
            held += [extras, extras.progress, extras.error, extras.traceback]
        if self.outcome_state != "done":  # whose words are a constant
            held += [self.outcome_words, self.outcome_rows]
        own = sum(map(sys.getsizeof, held)) + ROUNDING_BYTES * len(held)
        self.numbers = _TIMES.pack(*times, FIXED_BYTES + own)


ROUNDING_BYTES = 8
"""Python's allocator gives multiples of 16 bytes: half of one is lost on the average."""

FIXED_BYTES = INDEX_BYTES + EndedRun.__basicsize__ + 16 + 80
"""What each holds: the object with the collector's header, and its packed numbers."""


def shown_params(params: bytes) -> JsonObject:
    """The params of a call, from their JSON; what is secret by its name is masked."""
    given = orjson.loads(params) if params else {}
    return {name: shown_value(name, value) for name, value in given.items()}
