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
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from catalogzero.config.logs import run_ids
from catalogzero.errors import (
    BadParamsError,
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
    failure_of,
    type_of,
)
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.methods import CONTROL_METHODS, Method, call_plain
from catalogzero.runtime.resources import told_to_stop
from catalogzero.runtime.runs import Run, Runs, RunState, Waiter, current_run, outcome_frame
from catalogzero.runtime.sleep import Sleeper
from catalogzero.runtime.worker import WorkerPort
from catalogzero.wire.messages import Call, Reply, encode_reply, error_reply, may_get_better
from catalogzero.wire.transport import Envelope

CLOSE_GRACE_S = 5.0
MAX_ERROR_CHARS = 10_000
MAX_WAITERS = 64
_COUNTS = ("failed", "items")
FAILURES = {"cancelled": RunState.CANCELLED, "wake_failed": RunState.REFUSED}

Send = Callable[[Envelope, bytes], None]


@dataclass(slots=True)
class Boot:
    """One life of a handler: what `start_by` is held against."""

    boot_id: str
    started_s: float


class Jobs:
    """The jobs of one handler.

    Args:
        handler: Whose methods are run.
        runs: What is remembered.
        sleeper: Wakes the handler before a job that is not quiet.
        boot: This life of the handler.
        send: Sends a reply to an envelope.

    Attributes:
        draining: Whether new jobs are refused.
        runs_total: Runs that ended since the start; all attempts of an execution are one.
        failures_total: Those of them that failed.
        last_error: Of the last that failed.
        last_failure: The same without any text: code, type, method, run_id, and counts of items.
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
        self._running: set[Run] = set()
        self._queue: deque[Run] = deque()
        self._in_group: Counter[str] = Counter()
        self._threads: ThreadPoolExecutor | None = None
        self._all_ended = asyncio.Event()
        self._all_ended.set()
        self.draining = False
        self._going_down = False
        self.runs_total = 0
        self.failures_total = 0
        self.last_error: str | None = None
        self.last_failure: dict[str, Any] | None = None

    @property
    def in_flight(self) -> int:
        """Runs in progress."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Runs that wait for a place."""
        return len(self._queue)

    def accept(self, call: Call, envelope: Envelope, frame: bytes) -> None:
        """Take a job call: its reply is sent when it ends.

        Raises:
            CatalogZeroError: Why it is not taken; nothing was begun.
        """
        method = self._method(call.method)
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
            self._queue.append(run)

    def check_params(self, name: str, params: Mapping[str, Any]) -> None:
        """Look whether a method would take these params; nothing is run.

        Raises:
            BadParamsError: It would not, or there is no such method.
        """
        if name in CONTROL_METHODS.difference(self._methods):
            return
        try:
            self._method(name).bind(params)
        except UnknownMethodError as error:
            faults = [{"field": "method", "message": error.message}]
            raise BadParamsError(error.message, details=faults) from None

    def _method(self, name: str) -> Method:
        method = self._methods.get(name)
        if method is None:
            known = ", ".join(sorted(self._methods)) or "none"
            raise UnknownMethodError(f"no method {name[:100]!r} here; job methods: {known}")
        return method

    def cancel(self, run: Run, by: str = "cancel") -> None:
        """Stop a run; one that ended is left as it is."""
        if run.ended or run.cancelled_by:
            return
        run.cancelled_by = by
        if run in self._queue:
            self._queue.remove(run)
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
        tasks = [run.task for run in self._running if run.task]
        for run in [*self._queue, *self._running]:
            self.cancel(run, by="stop")
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_GRACE_S)
        self.release_threads()

    def release_threads(self) -> None:
        """Let go of idle threads; those at work finish."""
        if self._threads is not None and not self._running:
            self._threads.shutdown(wait=False)
            self._threads = None

    # --- before a run -------------------------------------------------------------------

    def _check_start_by(self, call: Call) -> None:
        if call.start_by is None:
            return
        if call.start_by.boot_id != self._boot.boot_id:
            raise ExpiredError("the handler was restarted since this call was made")
        if self._clock.monotonic() - self._boot.started_s > call.start_by.uptime_s:
            raise ExpiredError("this call came past its start_by")
        if call.start_by.uptime_s <= self._runs.forgotten_s:
            raise ExpiredError("so many ran since that nobody knows whether this call did")

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
        """Whether a run may begin now: a free place, and room in its method's concurrency group."""
        if len(self._running) >= self._runtime.max_concurrent_jobs:
            return False
        group, limit = run.method.group
        return limit is None or self._in_group[group] < limit

    def _begin(self, run: Run) -> None:
        self._running.add(run)
        self._in_group[run.method.group[0]] += 1
        run.task = asyncio.create_task(self._execute(run), name=run.run_id)

    # --- a run --------------------------------------------------------------------------

    async def _execute(self, run: Run) -> None:
        """One run from its place to its reply."""
        token, ids_token = current_run.set(run), run_ids.set(run.ids())
        thread: asyncio.Future[Any] | None = None
        options = run.method.options
        limit_s, timer = options.timeout_s, None
        try:
            if run.cancelled_by:
                raise asyncio.CancelledError
            if not options.quiet and not self._sleeper.awake:
                run.state = RunState.WAKING
                await self._sleeper.wake()
            run.state, run.started_s = RunState.RUNNING, self._clock.monotonic()
            if limit_s is not None:
                timer = self._clock.call_later(limit_s, lambda: self.cancel(run, by="timeout_s"))
            if options.isolate:
                result = await self._isolated(run)
            elif run.method.is_async:
                result = await run.method.function(self._handler, **run.kwargs)
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
        if thread is not None and not thread.done():  # it goes on after its run was cancelled
            await asyncio.wait([thread])
            if not thread.cancelled():
                thread.exception()
        self._leave(run)

    def _threaded(self, run: Run) -> asyncio.Future[Any]:
        """A plain method in a thread, with the run's context."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._runtime.max_concurrent_jobs, "job")
        work = partial(call_plain, run.method.function, self._handler, **run.kwargs)
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(self._threads, context.run, work)

    async def _isolated(self, run: Run) -> Any:
        """A method in a worker; a quiet one, which runs beside others, in one of its own."""
        worker = self._handler.worker
        place: AbstractAsyncContextManager[WorkerPort] = nullcontext(worker)
        if run.method.options.quiet:
            place = worker.dedicated()
        async with place as own:
            name, params = run.method.name, run.call.params
            try:
                return await own.run(name, params, run=run.ids(), on_progress=run.note_progress)
            except asyncio.CancelledError:
                own.kill()  # so that it really stops
                raise

    def _failure(self, run: Run, error: BaseException) -> Reply:
        """The reply to a run that raised; only errors about the run keep their code."""
        run.error_type = type_of(error)
        is_ours = RunError if run.state is not RunState.WAKING else CatalogZeroError
        if not isinstance(error, is_ours):
            failed = failure_of(error)
            fault: BaseException | None = error
            if isinstance(error, CatalogZeroError):  # raised on purpose: its sentence says it all
                failed.details, fault = error.details, None
            ids = {**run.ids(), "method": run.method.name}
            self._handler.log.warning("run_failed", **ids, error=failed.message, exc_info=fault)
            error = failed
        error.message = self._handler.mask(error.message)[:MAX_ERROR_CHARS]
        return self._error_reply(run, error)

    def _end(self, run: Run, reply: Reply) -> None:
        """Note the outcome and answer everybody who waits."""
        reply, frame = self._encode(run, reply)
        state = RunState.SUCCESS if reply.success else FAILURES.get(reply.code, RunState.ERROR)
        self._runs.end(run, state, reply, frame)
        comes_again = _comes_again(run, reply)
        self.runs_total += not comes_again
        if not reply.success and not comes_again:
            self.failures_total += 1
            self.last_error = reply.error
            details = reply.details if isinstance(reply.details, dict) else {}
            self.last_failure = {
                "code": reply.code,
                "type": run.error_type,
                "method": run.method.name,
                "run_id": run.run_id,
                **{name: details[name] for name in _COUNTS if type(details.get(name)) is int},
            }
        self._handler.log.debug("run_ended", status=run.state, run_id=run.run_id)
        for waiter in run.waiters:
            self._answer(waiter, frame)
        run.waiters = ()
        if not run.method.options.quiet:
            self._sleeper.job_ended()
        if run not in self._running:
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
            reply = self._error_reply(run, fault)
        reply.details = None
        return reply, encode_reply(reply)

    def _error_reply(self, run: Run, error: CatalogZeroError) -> Reply:
        return error_reply(error, run.call, run_id=run.run_id, duration_ms=self._duration_ms(run))

    def _leave(self, run: Run) -> None:
        """Give the place to the next runs that may begin."""
        self._running.discard(run)
        self._in_group[run.method.group[0]] -= 1
        for waiting in list(self._queue):
            if len(self._running) >= self._runtime.max_concurrent_jobs:
                break
            if self._has_place(waiting):
                self._queue.remove(waiting)
                self._begin(waiting)
        self._note_empty()

    def _note_empty(self) -> None:
        if not self._running and not self._queue:
            self._all_ended.set()

    def _duration_ms(self, run: Run) -> float:
        return round((self._clock.monotonic() - run.received_s) * 1000, 3)

    # --- those who wait -----------------------------------------------------------------

    def _join(self, run: Run, call: Call, envelope: Envelope) -> None:
        """Answer a caller at the run's end, or earlier as the protocol says."""
        if run.ended:
            self._send(envelope, outcome_frame(run))
            return
        if len(run.waiters) >= MAX_WAITERS:
            details = {"running": True, "run_id": run.run_id}
            raise BusyError(f"{MAX_WAITERS} callers wait for this run already", details=details)
        waiter = Waiter(envelope)
        run.waiters = (*run.waiters, waiter)
        flat = call.request_id is None
        wait_s = self._runtime.early_reply_s if flat else call.timeout_s
        if wait_s is not None:
            waiter.timer = self._clock.call_later(
                wait_s, lambda: self._answer_early(run, waiter, flat=flat)
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
        details = {"running": True, "run_id": run.run_id}
        error = CallTimeoutError("the wait ended; the run goes on", details=details)
        self._answer(waiter, encode_reply(self._error_reply(run, error)))

    def _answer(self, waiter: Waiter, frame: bytes) -> None:
        if waiter.timer:
            waiter.timer.cancel()
        self._send(waiter.envelope, frame)


def _success(run: Run, result: Any, duration_ms: float) -> Reply:
    """The reply to a run that returned; `success: false` in its dict is a failure."""
    reply = Reply(True, result, duration_ms=duration_ms, **run.ids())
    if isinstance(result, dict) and result.get("success") is False:
        reply.success, reply.result, reply.details = False, None, result
        reply.error = str(result.get("error") or f"{run.method.name} reported a failure")
        reply.code = "failed"
    return reply


def _comes_again(run: Run, reply: Reply) -> bool:
    """Whether the caller makes the call anew: this was an attempt, and not yet the run."""
    left = run.call.attempts_left
    if reply.success or left is None:
        return False
    again = left > 0 and run.method.options.retry_safe and may_get_better(reply)
    return run.state is RunState.REFUSED or again


def _is_stopped(run: Run, error: BaseException) -> bool:
    """Whether it was stopped by us, and not by a cancellation of the author's own."""
    asked = run.cancelled_by is not None or told_to_stop(error)
    return isinstance(error, asyncio.CancelledError) and asked


def _cancelled(run: Run) -> RunCancelledError:
    by = run.cancelled_by or "stop"
    reasons = {"cancel": "by a call", "timeout_s": "by its time limit", "stop": "at shutdown"}
    return RunCancelledError(f"the run was cancelled {reasons[by]}", details={"by": by})
