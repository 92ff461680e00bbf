"""The runs that a handler remembers: those in progress, and the outcomes of those that ended.

It answers "was this call seen before?", within bounds of time, number and bytes. It starts
nothing and sends nothing. Times are monotonic seconds, shown times aware UTC.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypedDict, cast

import orjson

from catalogzero.clock import Clock
from catalogzero.config.logs import shown_value
from catalogzero.errors import BadParamsError, BadRequestError, CatalogZeroError, UnknownRunError
from catalogzero.protocol.outcomes import RunOutcomeWords, outcome_of
from catalogzero.runtime.control_answers import RunOutcome, RunRecord
from catalogzero.runtime.methods import Method
from catalogzero.wire.messages import (
    Call,
    Reply,
    decode_call,
    encode_json,
    encode_reply,
    error_reply,
)

MAX_RUNS = 10_000
MAX_BYTES = 16 << 20
MAX_OUTCOME_BYTES = 64 << 20
KEPT_ERROR_CHARS = 200
RUN_BYTES = 1_000
NOTHING: Mapping[str, Any] = {}


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


class RunIds(TypedDict):
    """What names a run in log lines and replies; `request_id` is its caller's."""

    run_id: str
    request_id: str | int | None


@dataclass(slots=True, eq=False)
class Run:
    """One execution of a job method."""

    run_id: str
    call: Call
    method: Method
    kwargs: Mapping[str, Any]
    received_s: float
    received_at: datetime
    call_frame: bytes
    """The call as it came: a method may change the params that it is given."""

    state: RunState = RunState.QUEUED
    started_s: float | None = None
    ended_s: float | None = None
    progress: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    task: asyncio.Task[None] | None = None
    cancelled_by: str | None = None
    frame: bytes = b""
    """The reply as it went over the wire; empty once only the outcome is kept."""

    error: str = ""
    error_type: str | None = None
    traceback: str = ""
    code: str = ""
    came_to: RunOutcomeWords | None = None
    """What it came to, once it has ended."""

    params_digest: bytes = b""
    """Stands for the params once only the outcome is kept."""

    @property
    def ended(self) -> bool:
        """Whether the outcome is known."""
        return self.ended_s is not None

    @property
    def waits(self) -> bool:
        """Whether it ended, and what it stored waits to be sent."""
        return self.came_to is not None and self.came_to["state"] == "waiting"

    def ids(self) -> RunIds:
        """What a log line of this run carries."""
        return {"run_id": self.run_id, "request_id": self.call.request_id}

    def note_progress(self, fields: Mapping[str, Any]) -> None:
        """Take in what the method reports; later fields win. After its end, nothing."""
        if self.ended:
            return
        self.progress = {**self.progress, **fields}

    def describe(self) -> RunRecord:
        """The run in `list_runs`."""
        shown: RunRecord = {
            "run_id": self.run_id,
            "request_id": self.call.request_id,
            "method": self.method.name,
            "status": str(self.state),
            "received_at": self.received_at.isoformat(),
            "started_at": self._shown(self.started_s),
            "ended_at": self.ended_at,
            "outcome": self.came_to or outcome_of(str(self.state)),
        }
        if self.progress:
            shown["progress"] = dict(self.progress)
        if self.code:
            shown["error"], shown["code"] = self.error, self.code
        return shown

    def _shown(self, at_s: float | None) -> str | None:
        """A monotonic moment of this run as a wall time."""
        if at_s is None:
            return None
        return (self.received_at + timedelta(seconds=at_s - self.received_s)).isoformat()

    @property
    def ended_at(self) -> str | None:
        """When it ended."""
        return self._shown(self.ended_s)

    @property
    def began_at(self) -> str:
        """When it began; when it was received where it has not yet."""
        return self._shown(self.started_s) or self.received_at.isoformat()

    def outcome(self) -> RunOutcome:
        """As `describe`, with params and result while they are kept."""
        shown = cast("RunOutcome", self.describe())
        if self.call_frame:
            params = decode_call(self.call_frame).params
            shown["params"] = {name: shown_value(name, value) for name, value in params.items()}
        if self.state is RunState.SUCCESS and self.frame:
            shown["result"] = self.returned()
        if self.traceback:
            shown["traceback"] = self.traceback
        return shown

    def returned(self) -> Any:
        """The result of a run that succeeded, or the details of one that failed, while kept."""
        body = orjson.loads(self.frame) if self.frame else {}
        if "request_id" not in body:
            return body
        return body["result"] if self.state is RunState.SUCCESS else body.get("details")


current_run: ContextVar[Run | None] = ContextVar("current_run", default=None)
"""The run that the running task or thread belongs to."""


class Runs:
    """Remembers runs by run_id and by request_id.

    Args:
        window_s: Seconds that an ended run answers a repeated call.
        started_s: When this boot began, on the clock: uptimes count from it.
        clock: The clock that `uptime_s` is on too.
        max_bytes: What the runs that are kept whole may hold.
        max_outcome_bytes: What the outcomes of further ones may.

    Attributes:
        forgotten_s: The latest uptime by which a call could still begin whose outcome had to be
            forgotten for want of room: an unknown call up to it may be one that ran.
    """

    def __init__(
        self,
        *,
        window_s: float,
        started_s: float,
        clock: Clock,
        max_bytes: int = MAX_BYTES,
        max_outcome_bytes: int = MAX_OUTCOME_BYTES,
    ) -> None:
        self._max_bytes, self._max_outcome_bytes = max_bytes, max_outcome_bytes
        self._started_s = started_s
        self._window_s = window_s
        self._clock = clock
        self._by_run: dict[str, Run] = {}
        self._by_request: dict[str | int | None, Run] = {}
        self._full: deque[Run] = deque()
        self._outcomes: deque[Run] = deque()  # each ended before any of `_full`
        self._bytes = self._outcome_bytes = 0
        self.forgotten_s = -math.inf
        self._numbers = itertools.count(1)

    def new_id(self, boot_id: str) -> str:
        """A run_id: unique within this boot by number, between boots by its prefix."""
        return f"{boot_id[:8]}-{next(self._numbers)}"

    def known(self, call: Call) -> Run | None:
        """The run that a call repeats.

        Raises:
            BadRequestError: The request_id was used for another method or other params.
        """
        run = self._by_request.get(call.request_id)
        if run is None or self._is_past(run):
            return None
        params_digest = run.params_digest or digest_of_params(decode_call(run.call_frame))
        if run.call.method != call.method or params_digest != digest_of_params(call):
            raise BadRequestError(
                f"request_id {call.request_id!r} was used for another call: use a new one"
            )
        return run

    def add(self, run: Run) -> None:
        """Remember a run that was accepted."""
        self._by_run[run.run_id] = run
        if run.call.request_id is not None:
            self._by_request[run.call.request_id] = run

    def refuse(self, run: Run, error: CatalogZeroError) -> None:
        """Remember that a call was refused, so that its id never begins."""
        self.add(run)
        reply = error_reply(error, run.call)
        self.end(run, RunState.REFUSED, reply, encode_reply(reply))

    def end(self, run: Run, state: RunState, reply: Reply, frame: bytes) -> None:
        """Note the outcome of a run, and forget what is over the bounds.

        A refusal is kept only where the call had a `start_by`: any other may come again.
        """
        run.state, run.frame = state, frame
        run.error, run.code = reply.error, reply.code
        returned = reply.result if reply.success else reply.details
        run.came_to = outcome_of(str(state), returned, reply.error)
        run.ended_s = self._clock.monotonic()
        # A run that ended is kept for long, and its params stand in `call_frame` already.
        run.kwargs = run.call.params = NOTHING
        run.task = None
        if state is RunState.REFUSED and run.call.start_by is None:
            self._by_request.pop(run.call.request_id, None)
        self._full.append(run)
        self._bytes += weight_of(run)
        self.expire()

    def find(self, run_id: str | None, request_id: str | int | None) -> Run:
        """The run of either id.

        Raises:
            BadParamsError: Neither is named.
            UnknownRunError: It never was, or is forgotten.
        """
        if not run_id and request_id in (None, ""):
            raise BadParamsError("name the run: its `run_id` or its `request_id`")
        run = self._by_run.get(run_id or "") or self._by_request.get(request_id)
        if run is None:
            raise UnknownRunError(f"no run {run_id or request_id!r:.200} is known here")
        return run

    def newest(self, limit: int, status: str | None, method: str | None) -> list[Run]:
        """The last runs, newest first."""
        chosen = (
            run
            for run in reversed(self._by_run.values())
            if status in (None, str(run.state)) and method in (None, run.method.name)
        )
        return list(itertools.islice(chosen, limit))

    def newest_first(self) -> Iterator[Run]:
        """Every run that is remembered."""
        return reversed(self._by_run.values())

    def expire(self) -> None:
        """Forget what is past the window, or over the bounds of number and bytes."""
        while self._full and (
            self._is_past(self._full[0])
            or len(self._full) > MAX_RUNS
            or self._bytes > self._max_bytes
        ):
            self._shrink(self._full.popleft())
        while self._outcomes and (
            self._is_past(self._outcomes[0]) or self._outcome_bytes > self._max_outcome_bytes
        ):
            run = self._outcomes.popleft()
            self._outcome_bytes -= weight_of(run)
            self._forget(run)
            if run.call.start_by is not None and not self._is_past(run):
                # A copy of the call may come until then; from now on it would look like a new one.
                may_come_s = run.received_s - self._started_s + self._window_s
                begins_by_s = min(run.call.start_by.uptime_s, may_come_s)
                self.forgotten_s = max(self.forgotten_s, begins_by_s)

    def _is_past(self, run: Run) -> bool:
        """Whether a run ended before the window."""
        return run.ended_s is not None and self._clock.monotonic() - run.ended_s >= self._window_s

    def _shrink(self, run: Run) -> None:
        """Keep no more than the outcome, and that only for a call with `start_by`."""
        self._bytes -= weight_of(run)
        if run.call.start_by is None or self._is_past(run):
            self._forget(run)
            return
        run.params_digest = digest_of_params(decode_call(run.call_frame))
        run.frame = run.call_frame = b""
        run.progress, run.error = NOTHING, run.error[:KEPT_ERROR_CHARS]
        run.traceback = ""
        self._outcome_bytes += weight_of(run)
        self._outcomes.append(run)

    def _forget(self, run: Run) -> None:
        del self._by_run[run.run_id]
        if self._by_request.get(run.call.request_id) is run:
            del self._by_request[run.call.request_id]


def outcome_frame(run: Run) -> bytes:
    """The reply to a call that repeats an ended run; without its result where that is gone."""
    if run.frame:
        return run.frame
    kept = Reply(
        success=run.state is RunState.SUCCESS,
        error=run.error,
        code=run.code,
        details={"result_kept": False},
        request_id=run.call.request_id,
        run_id=run.run_id,
    )
    return encode_reply(kept)


def digest_of_params(call: Call) -> bytes:
    """What stands for the params of a call, in whatever order their names came.

    Raises:
        BadRequestError: They have no JSON form.
    """
    try:
        params = encode_json(call.params, sort_keys=True)
    except TypeError as error:
        raise BadRequestError(f"params: {error}") from None
    return hashlib.sha256(params).digest()


def weight_of(run: Run) -> int:
    """Bytes that a remembered run holds, roughly."""
    progress = len(encode_json(run.progress)) if run.progress else 0
    texts = len(run.error) + len(run.traceback)
    return RUN_BYTES + len(run.frame) + len(run.call_frame) + texts + progress
