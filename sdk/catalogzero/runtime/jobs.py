"""Runs jobs: accepts calls, keeps their order and bounds, and answers those who wait.

The order in which a call is judged is that of the wire protocol (design §4): what is
remembered, then `start_by`, then the parameters, then room.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from catalogzero.config.logs import run_ids
from catalogzero.errors import (
    BadParamsError,
    BusyError,
    CallTimeoutError,
    CatalogZeroError,
    DrainingError,
    ExpiredError,
    RunCancelledError,
    RunError,
    UnknownMethodError,
    failure_of,
    traceback_of,
    type_of,
)
from catalogzero.protocol.outcomes import RunOutcomeWords
from catalogzero.runtime.control_answers import FailedRun, Failure, SuccessfulRun
from catalogzero.runtime.ended_runs import EndedRun, RunState
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.last_boot import LastBoot
from catalogzero.runtime.methods import Method, RunPlace, call_plain
from catalogzero.runtime.resources import is_stop
from catalogzero.runtime.runs import AnyRun, Run, Runs, current_run
from catalogzero.runtime.sleep import Sleeper
from catalogzero.runtime.worker import PackageReplacedError, WorkerPort
from catalogzero.wire.messages import (
    MAX_ERROR_CHARS,
    Call,
    JsonObject,
    Reply,
    encode_json,
    encode_reply,
    encode_within,
    error_reply,
    may_get_better,
    utf8,
)
from catalogzero.wire.transport import Envelope
from catalogzero.wire.waiting import MAX_WAITING, Waiting

CLOSE_GRACE_S = 5.0
STILL_WORKS_S = 2.0
"""After this a plain method that was cancelled, and works on, is named in the log."""
_COUNTS: tuple[Literal["failed"], Literal["items"]] = ("failed", "items")
_LOGGED_COUNTS = (
    *("records", "uploads", "files_read", "skipped", "bad_records", "left_out"),
    *("items", "failed"),
)
"""What the line of a run says of its result: counts alone."""
FAILURES = {
    "cancelled": RunState.CANCELLED,
    "wake_failed": RunState.REFUSED,
    "draining": RunState.REFUSED,
}


@dataclass(slots=True)
class Boot:
    """One life of a handler: what `start_by` is held against, and what its transport takes."""

    boot_id: str
    started_s: float
    max_message_bytes: int


class Jobs:
    """The jobs of one handler.

    Args:
        handler: Whose methods are run.
        runs: What is remembered.
        sleeper: Wakes the handler before a job that is not quiet.
        boot: This life of the handler.
        waiting: Those who called, by run.

    Attributes:
        draining: Whether new jobs are refused.
        last_boot: What the boot before left, where it ended in order.
        runs_total: Runs that ended since the start; all attempts of an execution are one.
        failures_total: Those of them that failed.
        last_error: Of the last that failed.
        last_failure: The same without any text, until a run succeeds: any but a quiet one, or
            one of the method that failed.
        last_successful_run: The last that succeeded, but for quiet ones.
        last_failed_run: The last that failed, whatever has succeeded since.
    """

    def __init__(
        self, handler: Handler, runs: Runs, sleeper: Sleeper, boot: Boot, waiting: Waiting
    ) -> None:
        self._handler = handler
        self._methods = handler.callable_methods()
        self._runtime = handler.runtime
        self._clock = handler.clock
        self._runs = runs
        self._sleeper = sleeper
        self._boot = boot
        self._waiting = waiting
        self._running: set[Run] = set()
        self._queue: deque[Run] = deque()
        self._in_group: Counter[str] = Counter()
        self._threads: ThreadPoolExecutor | None = None
        self._all_ended = asyncio.Event()
        self._all_ended.set()
        self.last_boot = LastBoot()
        self.draining = False
        self._going_down = False
        self.runs_total = 0
        self.failures_total = 0
        self.last_error: str | None = None
        self.last_failure: Failure | None = None
        self.last_successful_run: SuccessfulRun | None = None
        self.last_failed_run: FailedRun | None = None

    @property
    def in_flight(self) -> int:
        """Runs in progress."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Runs that wait for a place."""
        return len(self._queue)

    def accept(self, call: Call, envelope: Envelope) -> None:
        """Take a job call: its reply is sent when it ends.

        Raises:
            CatalogZeroError: Why it is not taken; nothing was begun.
        """
        method = self._method(call.method)
        known = self._runs.known(call)
        if known is not None:
            self._join(known, call, envelope)
            return
        if reply := self.last_boot.reply_to(call):
            self._waiting.send(envelope, reply)
            return
        self._check_start_by(call)
        run = Run(
            run_id=self._runs.new_id(self._boot.boot_id),
            call=call,
            method=method,
            kwargs=method.bind(call.params),
            received_s=self._clock.monotonic(),
            received_at=self._clock.now(),
            params=encode_json(call.params) if call.params else b"",
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

    def cancel(self, run: AnyRun, by: str = "cancel") -> None:
        """Stop a run; one that ended, or is being stopped already, is left as it is."""
        if isinstance(run, EndedRun) or run.ended or (run.cancelled_by and by != "stop"):
            return
        run.cancelled_by = run.cancelled_by or by
        if run in self._queue:
            self._queue.remove(run)
            self._end(run, error_reply(cancellation_of(run), run.call, run_id=run.run_id))
        elif run.task is not None and run.state is not RunState.QUEUED:
            # Not before its first step, which looks at `cancelled_by`: a task that is cancelled
            # before that never runs, and nobody would be answered.
            run.state = RunState.CANCELLING if run.state is RunState.RUNNING else run.state
            run.task.cancel()

    async def drain(self, *, for_good: bool = False) -> None:
        """Take no new jobs, and wait for those accepted to end; `for_good`: without a way back."""
        self.draining = True
        self._going_down = self._going_down or for_good
        await self._all_ended.wait()

    def go_down(self) -> None:
        """Take no new jobs, without a way back."""
        self.draining = self._going_down = True

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
        if self.last_boot.never_began(call):
            raise DrainingError("the handler was restarted before this call began: call again")
        if call.start_by.boot_id != self._boot.boot_id:
            raise ExpiredError("the handler was restarted since this call was made")
        # By uptime, as the clocks of two machines differ and are set.
        if self._clock.monotonic() - self._boot.started_s > call.start_by.uptime_s:
            raise ExpiredError("this call came past its start_by")
        if call.start_by.uptime_s <= self._runs.forgotten_s:
            raise ExpiredError("too many ran since to know whether this call did")

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
            match run.method.place:
                case RunPlace.LOOP:
                    result = await run.method.function(self._handler, **run.kwargs)
                case RunPlace.THREAD:
                    thread = self._threaded(run)
                    result = await self._end_of(thread, run)
                    if inspect.isawaitable(result):  # a decorator may hide that a method is async
                        result = await result
                case RunPlace.WORKER:
                    result = await self._isolated(run)
            reply = reply_of_result(run, result, self._duration_ms(run))
        except BaseException as error:
            # A loop that is closed amid a run closes its coroutine: there is nobody to answer.
            if isinstance(error, GeneratorExit) and is_stop(error):
                raise
            reply = self._failure(run, cancellation_of(run) if is_stopped(run, error) else error)
        finally:
            if timer:
                timer.cancel()
            current_run.reset(token)
            run_ids.reset(ids_token)
        self._end(run, reply)
        # At shutdown a thread's run was answered before it ended.
        if thread is not None and not thread.done():
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

    async def _end_of(self, thread: asyncio.Future[Any], run: Run) -> Any:
        """What a plain method returns; of one that is to stop, its end is waited for.

        A thread cannot be stopped: it sees `self.cancelled`, and `report_progress` raises. Before
        it has ended nobody is answered, but at shutdown: its work would go on unseen.
        """
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            if run.cancelled_by in (None, "stop"):
                raise
            ended, _ = await asyncio.wait([thread], timeout=STILL_WORKS_S)
            if not ended:
                fix = "have it look at self.cancelled, or write @job(isolate=True): that stops it"
                self._handler.log.warning("cancelled_run_still_works", fix=fix)
                await asyncio.wait([thread])
            raise

    async def _isolated(self, run: Run) -> Any:
        """A method in a worker; a quiet one, which runs beside others, in one of its own."""
        worker = self._handler.worker
        place: AbstractAsyncContextManager[WorkerPort] = nullcontext(worker)
        if run.method.options.quiet:
            place = worker.dedicated()
        async with place as own:
            name, params = run.method.name, run.call.params
            return await own.run(name, params, run=run.ids(), on_progress=run.note_progress)

    def _failure(self, run: Run, error: BaseException) -> Reply:
        """The reply to a run that raised; only errors about the run keep their code."""
        run.error_type = type_of(error)
        run.traceback = self._handler.mask(utf8(traceback_of(error)))
        is_ours = RunError if run.state is not RunState.WAKING else CatalogZeroError
        if not isinstance(error, is_ours | PackageReplacedError):
            failed = failure_of(error)
            if isinstance(error, CatalogZeroError):
                failed.details = error.details
            error = failed
        error.message = self._handler.mask(error.message)[:MAX_ERROR_CHARS]
        return self._error_reply(run, error)

    def _end(self, run: Run, reply: Reply) -> None:
        """Note the outcome and answer everybody who waits."""
        limit = self._boot.max_message_bytes
        reply, frame = encode_within(limit, run.method.name, reply)
        state = RunState.SUCCESS if reply.success else FAILURES.get(reply.code, RunState.ERROR)
        kept = self._runs.end(run, state, reply, frame)
        is_attempt = comes_again(run, reply)
        self.runs_total += not is_attempt
        ended: SuccessfulRun = {
            "run_id": run.run_id,
            "method": run.method.name,
            "ended_at": kept.ended_at or "",
        }
        if reply.success:
            if not run.method.options.quiet:
                self.last_successful_run = ended
            # A health report is a quiet run too: its success says nothing of the jobs before it.
            failed = self.last_failure and self.last_failure["method"]
            if not run.method.options.quiet or failed == run.method.name:
                self.last_failure = None
        elif not is_attempt:
            self.failures_total += 1
            self.last_error = reply.error
            if run.traceback:  # an author's exception may quote a row: the run's record has it
                self.last_error = f"{run.error_type} in {run.method.name}, run {run.run_id}"
            details = reply.details if isinstance(reply.details, dict) else {}
            failure: Failure = {
                "code": reply.code,
                "type": run.error_type,
                "method": run.method.name,
                "run_id": run.run_id,
            }
            for name in _COUNTS:
                if type(details.get(name)) is int:
                    failure[name] = details[name]
            self.last_failure = failure
            self.last_failed_run = {**ended, "code": reply.code, "type": run.error_type}
        self._log_end(run, reply, kept.came_to)
        self._waiting.answer_all(run.run_id, frame)
        if not run.method.options.quiet:
            self._sleeper.job_ended()
        if run not in self._running:
            self._note_empty()

    def _log_end(self, run: Run, reply: Reply, outcome: RunOutcomeWords) -> None:
        """One line on a run that ended; a quiet one that went well needs none."""
        log = self._handler.log
        about = {
            **run.ids(),
            "method": run.method.name,
            "duration_s": round(self._clock.monotonic() - run.received_s, 3),
        }
        returned = reply.result if reply.success else reply.details
        said = returned if isinstance(returned, dict) else {}
        about |= {name: said[name] for name in _LOGGED_COUNTS if said.get(name)}
        if not reply.success:
            more = {"exception": run.traceback} if run.traceback else {}
            log.warning("run_failed", **about, code=reply.code, error=reply.error, **more)
        else:
            write = log.debug if run.method.options.quiet else log.info
            write("run_ended", **about, outcome=outcome["state"], words=outcome["words"])

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

    def _join(self, run: AnyRun, call: Call, envelope: Envelope) -> None:
        """Answer a caller at the run's end, or earlier as the protocol says."""
        if isinstance(run, EndedRun):
            self._waiting.send(envelope, run.answer())
            return
        details: JsonObject = {"running": True, "run_id": run.run_id}
        waiter = self._waiting.enter(run.run_id, envelope)
        if waiter is None:
            raise BusyError(f"{MAX_WAITING} callers wait for this run already", details=details)
        is_flat = call.request_id is None
        wait_s = self._runtime.early_reply_s if is_flat else call.timeout_s
        if wait_s is None:
            return

        def early() -> bytes:
            """The run goes on: a flat caller learns its run_id, another that its wait is over."""
            self._waiting.leave(waiter)
            if is_flat:
                result = {"status": "running", "run_id": run.run_id, "started_at": run.began_at}
                return encode_reply(Reply(success=True, result=result))
            error = CallTimeoutError("the wait ended; the run goes on", details=details)
            return encode_reply(self._error_reply(run, error))

        self._waiting.answer_after(waiter, wait_s, early)


def reply_of_result(run: Run, result: Any, duration_ms: float) -> Reply:
    """The reply to a run that returned; `success: false` in its dict is a failure."""
    reply = Reply(True, result, duration_ms=duration_ms, **run.ids())
    if isinstance(result, dict) and result.get("success") is False:
        reply.success, reply.result, reply.details = False, None, result
        reply.error = str(result.get("error") or f"{run.method.name} reported a failure")
        reply.code = "failed"
    return reply


def comes_again(run: Run, reply: Reply) -> bool:
    """Whether the caller makes the call again: this was an attempt, and not yet the run."""
    left = run.call.attempts_left
    if reply.success or left is None:
        return False
    again = left > 0 and run.method.options.retry_safe and may_get_better(reply)
    return run.state is RunState.REFUSED or again


def is_stopped(run: Run, error: BaseException) -> bool:
    """Whether it was stopped by us, and not by a cancellation of the author's own."""
    asked = run.cancelled_by is not None or is_stop(error)
    return isinstance(error, asyncio.CancelledError) and asked


def cancellation_of(run: Run) -> RunCancelledError:
    """The error of a run that was stopped, and by what."""
    by = run.cancelled_by or "stop"
    reasons = {"cancel": "by a call", "timeout_s": "by its time limit", "stop": "at shutdown"}
    return RunCancelledError(f"the run was cancelled {reasons[by]}", details={"by": by})
