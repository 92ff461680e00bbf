"""Runs jobs: accepts calls, keeps their order and bounds, and answers those who wait.

The order in which a call is judged is that of the wire protocol (design §4): what is
remembered, then `start_by`, then the parameters, then room.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from catalogzero.config.logs import run_ids
from catalogzero.errors import (
    BusyError,
    CallTimeoutError,
    CatalogZeroError,
    DrainingError,
    ExpiredError,
    FailedError,
    RunCancelledError,
    RunError,
    TooLargeError,
    UnknownMethodError,
    text_of,
    type_of,
)
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.methods import Method, call_plain
from catalogzero.runtime.resources import told_to_stop
from catalogzero.runtime.runs import Run, Runs, RunState, Waiter, current_run, outcome_frame
from catalogzero.runtime.sleep import Sleeper
from catalogzero.runtime.worker import WorkerPort
from catalogzero.wire.messages import Call, Reply, encode_reply, error_reply
from catalogzero.wire.transport import Envelope

CLOSE_GRACE_S = 5.0
MAX_ERROR_CHARS = 10_000
_COUNTS = ("failed", "items")

Send = Callable[[Envelope, bytes], None]


@dataclass(slots=True)
class Boot:
    """One life of a handler: what `start_by` is held against."""

    boot_id: str
    started_s: float


@dataclass(slots=True)
class Tally:
    """What metrics tell of runs."""

    runs_total: int = 0
    failures_total: int = 0
    last_error: str | None = None
    last_failure: dict[str, Any] | None = None
    """The same without any text: code, type, method, run_id, and the counts of items."""


@dataclass(slots=True)
class _Room:
    """Who runs and who waits."""

    running: set[Run] = field(default_factory=set)
    queue: deque[Run] = field(default_factory=deque)
    lanes: Counter[str] = field(default_factory=Counter)


class Jobs:
    """The jobs of one handler.

    Args:
        handler: Whose methods are run.
        runs: What is remembered.
        sleeper: Wakes the handler before a job that is not quiet.
        boot: This life of the handler.
        send: Sends a reply to an envelope.
    """

    def __init__(
        self, handler: Handler, runs: Runs, sleeper: Sleeper, boot: Boot, send: Send
    ) -> None:
        self._handler = handler
        self._methods = handler.callable_methods()
        self._runtime = handler.runtime
        self._clock = handler.clock
        self._runs = runs
        self._sleeper = sleeper
        self._boot = boot
        self._send = send
        self._room = _Room()
        self._threads: ThreadPoolExecutor | None = None
        self._all_ended = asyncio.Event()
        self._all_ended.set()
        self.draining = False
        self._going_down = False
        self.tally = Tally()

    @property
    def in_flight(self) -> int:
        """Runs in progress."""
        return len(self._room.running)

    @property
    def queued(self) -> int:
        """Runs that wait for a place."""
        return len(self._room.queue)

    def accept(self, call: Call, envelope: Envelope, frame: bytes) -> None:
        """Take a job call: its reply is sent when it ends.

        Raises:
            CatalogZeroError: Why it is not taken; nothing was begun.
        """
        method = self._methods.get(call.method)
        if method is None:
            raise UnknownMethodError(_unknown(call.method, self._methods))
        if call.request_id is not None:
            known = self._runs.known(call)
            if known is not None:
                self._join(known, call, envelope)
                return
        self._check_start_by(call)
        run = Run(
            run_id=self._runs.new_id(self._boot.boot_id),
            call=call,
            method=method,
            kwargs=method.bind(call.params),
            received_s=self._clock.monotonic(),
            received_at=self._clock.now(),
            call_frame=frame,
        )
        self._check_room(run)
        self._runs.add(run)
        self._all_ended.clear()
        if not method.options.quiet:
            self._sleeper.job_came()
        self._join(run, call, envelope)
        if self._has_place(run):
            self._begin(run)
        else:
            self._room.queue.append(run)

    def cancel(self, run: Run, by: str = "cancel") -> None:
        """Stop a run; one that ended is left as it is."""
        if run.ended or run.cancelled_by:
            return
        run.cancelled_by = by
        if run in self._room.queue:
            self._room.queue.remove(run)
            self._end(run, error_reply(_cancelled(run), run.call, run_id=run.run_id))
        elif run.task is not None and run.state is not RunState.QUEUED:
            run.task.cancel()  # before its first step it would never see it

    async def drain(self, *, for_good: bool = False) -> None:
        """Take no new jobs, and wait for those accepted to end; `for_good`: without a way back."""
        self.draining = True
        self._going_down = self._going_down or for_good
        await self._all_ended.wait()

    def resume(self) -> None:
        """Take jobs again.

        Raises:
            DrainingError: The handler goes down.
        """
        if self._going_down:
            raise DrainingError("the handler is going down: it cannot take jobs again")
        self.draining = False

    async def close(self) -> None:
        """Cancel what still runs, and give it a moment; a thread that goes on is left."""
        self.draining = self._going_down = True
        tasks = [run.task for run in self._room.running if run.task]
        for run in [*self._room.queue, *self._room.running]:
            self.cancel(run, by="stop")
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_GRACE_S)
        self.release_threads()

    def release_threads(self) -> None:
        """Let go of idle threads; those at work finish."""
        if self._threads is not None and not self._room.running:
            self._threads.shutdown(wait=False)
            self._threads = None

    # --- before a run -------------------------------------------------------------------

    def _check_start_by(self, call: Call) -> None:
        if call.start_by is None:
            return
        uptime_s = self._clock.monotonic() - self._boot.started_s
        if call.start_by.boot_id != self._boot.boot_id:
            raise ExpiredError("the handler was restarted since this call was made")
        if uptime_s > call.start_by.uptime_s:
            raise ExpiredError("this call came past its start_by")

    def _check_room(self, run: Run) -> None:
        """Refuse when there is no room; a call with `start_by` is remembered as refused."""
        refusal: CatalogZeroError | None = None
        if self.draining:
            refusal = DrainingError("the handler is going down: call again when it is back")
        elif not self._has_place(run) and self.queued >= self._runtime.max_queued_jobs:
            refusal = BusyError(f"{self.in_flight} jobs run and {self.queued} wait: call again")
        if refusal is not None:
            if run.call.start_by is not None:
                self._runs.refuse(run, refusal)
            raise refusal

    def _has_place(self, run: Run) -> bool:
        """Whether a run may begin now: a free place, and room in its method's lane."""
        if len(self._room.running) >= self._runtime.max_concurrent_jobs:
            return False
        lane, limit = run.method.lane
        return limit is None or self._room.lanes[lane] < limit

    def _begin(self, run: Run) -> None:
        self._room.running.add(run)
        lane, limit = run.method.lane
        if limit is not None:
            self._room.lanes[lane] += 1
        run.task = asyncio.create_task(self._execute(run), name=run.run_id)

    # --- a run --------------------------------------------------------------------------

    async def _execute(self, run: Run) -> None:
        """One run from its place to its reply."""
        token, ids_token = current_run.set(run), run_ids.set(run.ids())
        thread: asyncio.Future[Any] | None = None
        limit = run.method.options.timeout_s
        timer = None
        try:
            if run.cancelled_by:
                raise asyncio.CancelledError
            if not run.method.options.quiet and not self._sleeper.awake:
                run.state = RunState.WAKING
                await self._sleeper.wake()
            run.state, run.started_s = RunState.RUNNING, self._clock.monotonic()
            if limit is not None:
                timer = self._clock.call_later(limit, lambda: self.cancel(run, by="timeout_s"))
            if run.method.is_async and not run.method.options.isolate:
                result = await run.method.function(self._handler, **run.kwargs)
            elif run.method.options.isolate:
                result = await self._isolated(run)
            else:
                thread = self._threaded(run)
                result = await asyncio.shield(thread)
                if inspect.isawaitable(result):  # a decorator may hide that a method is async
                    result = await result
            reply = _success(run, result, self._duration_ms(run))
        except BaseException as error:
            if isinstance(error, GeneratorExit) and told_to_stop(error):
                raise
            reply = self._failure(run, _cancelled(run) if _is_stopped(run, error) else error)
        finally:
            if timer:
                timer.cancel()
            current_run.reset(token)
            run_ids.reset(ids_token)
        self._end(run, reply)
        if thread is not None and not thread.done():
            await _outlive(thread)
        self._leave(run)

    def _threaded(self, run: Run) -> asyncio.Future[Any]:
        """A plain method in a thread, with the run's context."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(
                self._runtime.max_concurrent_jobs, thread_name_prefix="job"
            )
        context = contextvars.copy_context()
        function, kwargs = run.method.function, run.kwargs
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(
            self._threads, lambda: context.run(call_plain, function, self._handler, **kwargs)
        )

    async def _isolated(self, run: Run) -> Any:
        """A method in a worker; a quiet one, which runs beside others, in one of its own."""
        worker = self._handler.worker
        if not run.method.options.quiet:
            return await _run_in(worker, run)
        async with worker.apart() as own:
            return await _run_in(own, run)

    def _failure(self, run: Run, error: BaseException) -> Reply:
        """The reply to a run that raised; only errors about the run keep their code."""
        run.error_type = type_of(error)
        known = isinstance(error, RunError) or (
            isinstance(error, CatalogZeroError) and run.state is RunState.WAKING
        )
        if not (known and isinstance(error, CatalogZeroError)):
            told = FailedError(text_of(error))
            fault: BaseException | None = error
            if isinstance(error, CatalogZeroError):  # raised on purpose: its sentence says it all
                told.details, fault = error.details, None
            self._handler.log.warning("run_failed", **_ids(run), error=told.message, exc_info=fault)
            error = told
        error.message = self._handler.mask(error.message)[:MAX_ERROR_CHARS]
        return error_reply(error, run.call, run_id=run.run_id, duration_ms=self._duration_ms(run))

    def _end(self, run: Run, reply: Reply) -> None:
        """Note the outcome and answer everybody who waits."""
        reply, frame = self._encode(run, reply)
        state = RunState.SUCCESS if reply.success else RunState.ERROR
        if reply.code == RunCancelledError.code:
            state = RunState.CANCELLED
        elif reply.code == "wake_failed":
            state = RunState.REFUSED
        self._runs.end(run, state, reply, frame)
        self._count(run, reply)
        for waiter in run.waiters:
            self._answer(waiter, frame)
        run.waiters = ()
        if not run.method.options.quiet:
            self._sleeper.job_ended()
        if run not in self._room.running:
            self._note_empty()

    def _encode(self, run: Run, reply: Reply) -> tuple[Reply, bytes]:
        """The frame of a reply; what cannot be sent becomes an error that says so."""
        limit = self._runtime.max_message_bytes
        try:
            frame = encode_reply(reply)
        except TypeError as error:
            fault: CatalogZeroError = FailedError(f"{run.method.name} returned no JSON: {error}")
        else:
            if len(frame) <= limit:
                return reply, frame
            fault = TooLargeError(f"the reply has {len(frame)} bytes, the limit is {limit}")
        if reply.success:
            reply = error_reply(
                fault, run.call, run_id=run.run_id, duration_ms=self._duration_ms(run)
            )
        reply.details = None
        return reply, encode_reply(reply)

    def _count(self, run: Run, reply: Reply) -> None:
        self.tally.runs_total += 1
        if not reply.success:
            self.tally.failures_total += 1
            self.tally.last_error = reply.error
            details = reply.details if isinstance(reply.details, dict) else {}
            self.tally.last_failure = {
                "code": reply.code,
                "type": run.error_type,
                "method": run.method.name,
                "run_id": run.run_id,
                **{name: details[name] for name in _COUNTS if type(details.get(name)) is int},
            }
        self._handler.log.debug("run_ended", status=run.state, run_id=run.run_id)

    def _leave(self, run: Run) -> None:
        """Give the place to the next run that may begin."""
        self._room.running.discard(run)
        lane, limit = run.method.lane
        if limit is not None:
            self._room.lanes[lane] -= 1
        if self._room.queue:
            self._advance()
        self._note_empty()

    def _advance(self) -> None:
        for run in list(self._room.queue):
            if len(self._room.running) >= self._runtime.max_concurrent_jobs:
                return
            if self._has_place(run):
                self._room.queue.remove(run)
                self._begin(run)

    def _note_empty(self) -> None:
        if not self._room.running and not self._room.queue:
            self._all_ended.set()

    def _duration_ms(self, run: Run) -> float:
        return round((self._clock.monotonic() - run.received_s) * 1000, 3)

    # --- those who wait -----------------------------------------------------------------

    def _join(self, run: Run, call: Call, envelope: Envelope) -> None:
        """Answer a caller at the run's end, or earlier as the protocol says."""
        if run.ended:
            self._send(envelope, outcome_frame(run))
            return
        waiter = Waiter(envelope)
        run.waiters = (*run.waiters, waiter)
        if call.request_id is None:
            wait_s: float | None = self._runtime.early_reply_s
        else:
            wait_s = call.timeout_s
        if wait_s is not None:
            waiter.timer = self._clock.call_later(
                wait_s, lambda: self._answer_early(run, waiter, flat=call.request_id is None)
            )

    def _answer_early(self, run: Run, waiter: Waiter, *, flat: bool) -> None:
        """The run goes on: tell a flat caller that it does, another that its wait is over."""
        if waiter not in run.waiters:
            return
        run.waiters = tuple(other for other in run.waiters if other is not waiter)
        if flat:
            result = {"status": "running", "run_id": run.run_id, "started_at": run.began_at}
            self._answer(waiter, encode_reply(Reply(success=True, result=result)))
            return
        error = CallTimeoutError(
            "the wait ended; the run goes on", details={"running": True, "run_id": run.run_id}
        )
        reply = error_reply(error, run.call, run_id=run.run_id, duration_ms=self._duration_ms(run))
        self._answer(waiter, encode_reply(reply))

    def _answer(self, waiter: Waiter, frame: bytes) -> None:
        if waiter.timer:
            waiter.timer.cancel()
        self._send(waiter.envelope, frame)


async def _run_in(worker: WorkerPort, run: Run) -> Any:
    """One run in a worker; cancelling it kills the worker, so that it really stops."""

    def on_progress(fields: dict[str, Any]) -> None:
        run.progress = {**run.progress, **fields}

    try:
        return await worker.run(
            run.method.name, run.call.params, run=run.ids(), on_progress=on_progress
        )
    except asyncio.CancelledError:
        worker.kill()
        raise


def _success(run: Run, result: Any, duration_ms: float) -> Reply:
    """The reply to a run that returned; `success: false` in its dict is a failure."""
    reply = Reply(True, result)
    if isinstance(result, dict) and result.get("success") is False:
        error = str(result.get("error") or f"{run.method.name} reported a failure")
        reply = Reply(False, error=error, code="failed", details=result)
    reply.request_id, reply.run_id = run.call.request_id, run.run_id
    reply.duration_ms = duration_ms
    return reply


def _is_stopped(run: Run, error: BaseException) -> bool:
    """Whether it was stopped by us, and not by a cancellation of the author's own."""
    asked = run.cancelled_by is not None or told_to_stop(error)
    return isinstance(error, asyncio.CancelledError) and asked


def _cancelled(run: Run) -> RunCancelledError:
    by = run.cancelled_by or "stop"
    reasons = {"cancel": "by a call", "timeout_s": "by its time limit", "stop": "at shutdown"}
    return RunCancelledError(f"the run was cancelled {reasons[by]}", details={"by": by})


def _ids(run: Run) -> dict[str, Any]:
    return {"run_id": run.run_id, "request_id": run.call.request_id, "method": run.method.name}


def _unknown(name: str, methods: Mapping[str, Method]) -> str:
    known = ", ".join(sorted(methods)) or "none"
    return f"no method {name[:100]!r} here; job methods: {known}"


async def _outlive(thread: asyncio.Future[Any]) -> None:
    """Keep the place of a thread that goes on after its run was cancelled."""
    while not thread.done():
        await asyncio.wait([thread])
    if not thread.cancelled():
        thread.exception()
