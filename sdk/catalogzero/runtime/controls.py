"""Answers control calls, whatever jobs are running: at once, or by a task.

They are never counted as activity, and wake nothing. A method that is marked with `@control`,
here or in `Handler`, is one; what it answers is typed in `control_answers`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from catalogzero.errors import BusyError, CallTimeoutError, CatalogZeroError, FailedError, text_of
from catalogzero.protocol.outcomes import outcome_of
from catalogzero.runtime.control_answers import (
    BootFields,
    Cancellation,
    HandlerStatus,
    Pong,
    RunFound,
    RunList,
    UploadRecord,
)
from catalogzero.runtime.ended_runs import EndedRun
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.idle import SleepState
from catalogzero.runtime.jobs import Boot, Jobs
from catalogzero.runtime.methods import Method, control, control_methods
from catalogzero.runtime.resources import is_stop
from catalogzero.runtime.runs import AnyRun, Run, Runs
from catalogzero.runtime.sleep import Sleeper
from catalogzero.wire.messages import Call, JsonObject, Reply, encode_within, error_reply
from catalogzero.wire.transport import Envelope
from catalogzero.wire.waiting import MAX_WAITING, Waiter, Waiting

MAX_LISTED_RUNS = 1_000
SHOWN_STATE = {SleepState.FALLING: "idle", SleepState.WAKING: "active"}


class Controls:
    """The control methods of one handler.

    Args:
        handler: Answers `ping`, `get_metrics` and `describe`.
        jobs: Are checked, cancelled, drained.
        runs: Are listed.
        sleeper: Puts the handler to sleep, and wakes it.
        boot: This life of the handler.
        waiting: Those who called, by peer.

    Attributes:
        methods: By name, each with the object that has it. Where a class written for ScheduleZero
            has a method of that name, that is called.
    """

    def __init__(
        self,
        handler: Handler,
        jobs: Jobs,
        runs: Runs,
        sleeper: Sleeper,
        boot: Boot,
        waiting: Waiting,
    ) -> None:
        self._handler, self._runtime, self._clock = handler, handler.runtime, handler.clock
        self._jobs, self._runs, self._sleeper = jobs, runs, sleeper
        self._boot, self._waiting = boot, waiting
        self._tasks: set[asyncio.Task[None]] = set()
        self.methods = {
            name: (owner, Method(name, function))
            for owner in (handler, self)
            for name, function in control_methods(type(owner)).items()
            if name not in handler.callable_methods()
        }
        self._pings_itself = type(handler).ping is not Handler.ping

    def accept(self, call: Call, envelope: Envelope) -> None:
        """Take a control call; what needs no waiting is answered here and now.

        Raises:
            CatalogZeroError: Why it is not taken.
        """
        if call.method == "ping" and not call.params and not self._pings_itself:
            name, boot = self._handler.handler_id, self.boot_fields
            pong: Pong = {"status": "ok", "handler": name, "message": "pong", **boot}
            self._waiting.send(envelope, self._frame(call, Reply(True, pong)))
            return
        owner, method = self.methods[call.method]
        kwargs = method.bind(call.params)
        if not method.is_async:
            reply = Reply(True, method.function(owner, **kwargs))
            self._waiting.send(envelope, self._frame(call, reply))
            return
        waiter = self._waiting.enter(envelope[0], envelope)
        if waiter is None:
            raise BusyError(f"{MAX_WAITING} control calls of this peer are in progress")
        work = method.function(owner, **kwargs)
        task = asyncio.create_task(self._answer(waiter, call, work), name=call.method)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Only then: one that was answered early still holds what it is about.
        task.add_done_callback(lambda task: self._waiting.leave(waiter))

    async def close(self) -> None:
        """Give up what is being answered."""
        while self._tasks:  # one that comes meanwhile too
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    async def _answer(self, waiter: Waiter, call: Call, work: Awaitable[Any]) -> None:
        """Reply when a control method is done, or say at `timeout_s` that it goes on."""
        wait_s = call.timeout_s
        if wait_s is None and call.request_id is None:
            wait_s = self._runtime.early_reply_s

        def early() -> bytes:
            error = CallTimeoutError("the wait ended; it goes on", details={"running": True})
            return self._frame(call, error_reply(error))

        if wait_s is not None:
            self._waiting.answer_after(waiter, wait_s, early)
        try:
            result = await work
            if call.method in ("ping", "describe") and isinstance(result, dict):  # an author's own
                result = {**result, **self.boot_fields}
            reply = Reply(True, result)
        except CatalogZeroError as error:
            reply = error_reply(error)
        except BaseException as error:
            if is_stop(error):
                raise
            reply = error_reply(FailedError(self._handler.mask(text_of(error))))
        self._waiting.answer(waiter, self._frame(call, reply))

    def _frame(self, call: Call, reply: Reply) -> bytes:
        reply.request_id = call.request_id
        return encode_within(self._boot.max_message_bytes, call.method, reply)[1]

    @property
    def boot_fields(self) -> BootFields:
        """What says which start of the handler answered."""
        return {
            "boot_id": self._boot.boot_id,
            "uptime_s": self._clock.monotonic() - self._boot.started_s,
            "dedupe_window_s": self._runtime.dedupe_window_s,
            "max_message_bytes": self._boot.max_message_bytes,
            "state": self.status,
        }

    @property
    def status(self) -> str:
        """Active, idle, sleeping or draining."""
        state = self._sleeper.state
        return "draining" if self._jobs.draining else SHOWN_STATE.get(state, str(state))

    @control("check_params")
    def check_params(self, method: str, params: JsonObject) -> JsonObject:
        """Whether a method would take these params; `bad_params` where it would not."""
        if method not in self.methods:
            self._jobs.check_params(method, params)
        return {"method": method}

    @control("list_runs")
    async def list_runs(
        self, limit: int = 50, status: str | None = None, method: str | None = None
    ) -> RunList:
        """The last runs, newest first."""
        runs = self._runs.newest(max(0, min(limit, MAX_LISTED_RUNS)), status, method)
        await self._look_at_uploads([run for run in runs if not isinstance(run, Run) and run.waits])
        return {"runs": [run.describe() for run in runs], **self.boot_fields}

    @control("get_run")
    async def get_run(
        self, run_id: str | None = None, request_id: str | int | None = None
    ) -> RunFound:
        """One run, with its result while it is kept, and what became of its uploads."""
        run = self._runs.find(run_id, request_id)
        uploads = await self._look_at_uploads([run])
        found: RunFound = {**run.outcome(), **self.boot_fields}
        if uploads is not None:
            found["uploads"] = uploads
        return found

    async def _look_at_uploads(self, runs: list[AnyRun]) -> list[UploadRecord] | None:
        """What became of the uploads of these runs; None where they have none.

        A run whose uploads have all arrived waits no more.
        """
        ended = [run for run in runs if isinstance(run, EndedRun)]
        if not ended:
            return None

        def look() -> tuple[list[tuple[EndedRun, Any]], list[UploadRecord]]:
            results = [(run, run.returned()) for run in ended]
            made = [(run, result) for run, result in results if upload_ids_in(result)]
            ids = [one for _, result in made for one in upload_ids_in(result)]
            return made, self._handler._uploads_of(ids) if ids else []

        made, uploads = await asyncio.to_thread(look)
        arrived = {one["upload_id"] for one in uploads if one["state"] == "done"}
        for run, result in made:
            if run.waits and arrived.issuperset(upload_ids_in(result)):
                run.came_to = outcome_of(str(run.state), {**result, "status": "uploaded"})
        return uploads if made else None

    @control("cancel")
    def cancel(
        self, run_id: str | None = None, request_id: str | int | None = None
    ) -> Cancellation:
        """Stop a run; one that ended is left as it is."""
        run = self._runs.find(run_id, request_id)
        self._jobs.cancel(run)
        goes_on = isinstance(run, Run) and not run.ended
        return {"run_id": run.run_id, "status": str(run.state), "cancelling": goes_on}

    @control("sleep")
    async def sleep(self) -> HandlerStatus:
        """Fall asleep now."""
        await self._sleeper.sleep()
        return {"status": self.status}

    @control("wake")
    async def wake(self) -> HandlerStatus:
        """Be awake."""
        await self._sleeper.wake()
        return {"status": self.status}

    @control("drain")
    async def drain(self) -> HandlerStatus:
        """Take no new jobs, and wait for those accepted."""
        await self._jobs.drain()
        return {"status": self.status}

    @control("resume")
    def resume(self) -> HandlerStatus:
        """Take jobs again."""
        self._jobs.resume()
        return {"status": self.status}


def upload_ids_in(result: Any) -> list[str]:
    """The ids of the uploads that a run made, as its result has them."""
    ids = result.get("upload_ids") if isinstance(result, dict) else None
    return [one for one in ids if isinstance(one, str)] if isinstance(ids, list) else []
