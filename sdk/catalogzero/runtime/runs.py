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
from datetime import datetime
from typing import Any, TypedDict, cast

import orjson

from catalogzero.clock import Clock
from catalogzero.errors import BadParamsError, BadRequestError, CatalogZeroError, UnknownRunError
from catalogzero.protocol.outcomes import outcome_of
from catalogzero.runtime.control_answers import RunOutcome, RunRecord
from catalogzero.runtime.ended_runs import (
    NO_EXTRAS,
    EndedRun,
    Extras,
    RunState,
    Times,
    shown_params,
)
from catalogzero.runtime.methods import Method
from catalogzero.wire.messages import Call, Reply, encode_json, encode_reply, error_reply

MAX_RUNS = 10_000
MAX_BYTES = 16 << 20
MAX_OUTCOME_BYTES = 64 << 20
NOTHING: Mapping[str, Any] = {}


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
    params: bytes
    """Those of the call, as JSON, as they came: a method may change what it is given."""

    state: RunState = RunState.QUEUED
    started_s: float | None = None
    progress: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    task: asyncio.Task[None] | None = None
    cancelled_by: str | None = None
    error_type: str | None = None
    traceback: str = ""
    kept: EndedRun | None = None
    """What is remembered of it, once it has ended."""

    @property
    def ended(self) -> bool:
        """Whether the outcome is known."""
        return self.kept is not None

    @property
    def request_id(self) -> str | int | None:
        """Its caller's."""
        return self.call.request_id

    @property
    def method_name(self) -> str:
        """Of the method that it runs."""
        return self.method.name

    @property
    def times(self) -> Times:
        """Its moments until now."""
        return self._times(math.nan)

    def _times(self, ended_s: float) -> Times:
        start_by = self.call.start_by
        return Times(
            self.received_at.timestamp(),
            self.received_s,
            math.nan if self.started_s is None else self.started_s,
            ended_s,
            math.nan if start_by is None else start_by.uptime_s,
        )

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
        if self.kept is not None:
            return self.kept.describe()
        times = self.times
        shown: RunRecord = {
            "run_id": self.run_id,
            "request_id": self.request_id,
            "method": self.method_name,
            "status": str(self.state),
            "received_at": self.received_at.isoformat(),
            "started_at": times.shown(times.started_s),
            "ended_at": None,
            "outcome": outcome_of(str(self.state)),
        }
        if self.progress:
            shown["progress"] = dict(self.progress)
        return shown

    @property
    def began_at(self) -> str:
        """When it began; when it was received where it has not yet."""
        times = self.times
        return times.shown(times.started_s) or self.received_at.isoformat()

    def outcome(self) -> RunOutcome:
        """As `describe`, with its params; once it has ended, as `EndedRun.outcome`."""
        if self.kept is not None:
            return self.kept.outcome()
        shown = cast("RunOutcome", self.describe())
        shown["params"] = shown_params(self.params)
        return shown

    def end(self, state: RunState, reply: Reply, frame: bytes, ended_s: float) -> EndedRun:
        """Note its outcome; `frame` is the reply as it goes over the wire."""
        returned = reply.result if reply.success else reply.details
        came_to = outcome_of(str(state), returned, reply.error)
        extras = NO_EXTRAS
        if self.progress or reply.code:
            progress = encode_json(self.progress) if self.progress else b""
            extras = Extras(progress, reply.error, reply.code, self.traceback)
        self.state = state
        self.kept = EndedRun(
            run_id=self.run_id,
            request_id=self.request_id,
            method_name=self.method_name,
            state=state,
            reply=frame,
            params=self.params,
            params_digest=b"",
            outcome_state=came_to["state"],
            outcome_words=came_to["words"],
            outcome_rows=came_to["rows"],
            extras=extras,
            numbers=b"",
        )
        self.kept.weigh(self._times(ended_s))
        return self.kept


AnyRun = Run | EndedRun
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
        self._by_run: dict[str, AnyRun] = {}
        self._by_request: dict[str | int | None, AnyRun] = {}
        self._full: deque[EndedRun] = deque()
        self._outcomes: deque[EndedRun] = deque()  # each ended before any of `_full`
        self._bytes = self._outcome_bytes = 0
        self.forgotten_s = -math.inf
        self._numbers = itertools.count(1)

    def new_id(self, boot_id: str) -> str:
        """A run_id: unique within this boot by number, between boots by its prefix."""
        return f"{boot_id[:8]}-{next(self._numbers)}"

    def known(self, call: Call) -> AnyRun | None:
        """The run that a call repeats.

        Raises:
            BadRequestError: The request_id was used for another method or other params.
        """
        run = self._by_request.get(call.request_id)
        if run is None or (isinstance(run, EndedRun) and self._is_past(run)):
            return None
        if run.method_name != call.method or digest_of(run) != digest_of_params(call.params):
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

    def end(self, run: Run, state: RunState, reply: Reply, frame: bytes) -> EndedRun:
        """Note the outcome of a run, and forget what is over the bounds.

        A refusal is kept only where the call had a `start_by`: any other may come again.
        """
        kept = run.end(state, reply, frame, self._clock.monotonic())
        self._by_run[run.run_id] = kept
        if run.request_id is not None:
            self._by_request[run.request_id] = kept
        if state is RunState.REFUSED and run.call.start_by is None:
            self._by_request.pop(run.request_id, None)
        self._full.append(kept)
        self._bytes += kept.weight_bytes
        self.expire()
        return kept

    def find(self, run_id: str | None, request_id: str | int | None) -> AnyRun:
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

    def newest(self, limit: int, status: str | None, method: str | None) -> list[AnyRun]:
        """The last runs, newest first."""
        chosen = (
            run
            for run in reversed(self._by_run.values())
            if status in (None, str(run.state)) and method in (None, run.method_name)
        )
        return list(itertools.islice(chosen, limit))

    def newest_first(self) -> Iterator[AnyRun]:
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
            self._outcome_bytes -= run.weight_bytes
            self._forget(run)
            if run.start_by_s is not None and not self._is_past(run):
                # A copy of the call may come until then; from now on it would look like a new one.
                may_come_s = run.times.received_s - self._started_s + self._window_s
                self.forgotten_s = max(self.forgotten_s, min(run.start_by_s, may_come_s))

    def _is_past(self, run: EndedRun) -> bool:
        """Whether a run ended before the window."""
        return self._clock.monotonic() - run.ended_s >= self._window_s

    def _shrink(self, run: EndedRun) -> None:
        """Keep no more than the outcome, and that only for a call with `start_by`."""
        self._bytes -= run.weight_bytes
        if run.start_by_s is None or self._is_past(run):
            self._forget(run)
            return
        run.shrink(digest_of(run))
        self._outcome_bytes += run.weight_bytes
        self._outcomes.append(run)

    def _forget(self, run: EndedRun) -> None:
        del self._by_run[run.run_id]
        if self._by_request.get(run.request_id) is run:
            del self._by_request[run.request_id]


def digest_of(run: AnyRun) -> bytes:
    """What stands for the params of a run, see `digest_of_params`."""
    if isinstance(run, EndedRun) and run.params_digest:
        return run.params_digest
    return digest_of_params(orjson.loads(run.params) if run.params else NOTHING)


def digest_of_params(params: Mapping[str, Any]) -> bytes:
    """What stands for the params of a call, in whatever order their names came.

    Raises:
        BadRequestError: They have no JSON form.
    """
    try:
        text = encode_json(params, sort_keys=True)
    except TypeError as error:
        raise BadRequestError(f"params: {error}") from None
    return hashlib.sha256(text).digest()
