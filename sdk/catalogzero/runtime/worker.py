"""The worker: a child process that isolated jobs and the sender run in.

A plain subprocess that speaks JSON lines over its pipes, no pickle. It builds the handler's
class from the same settings. The handler starts it on demand, keeps it while it is busy, and
ends it when asleep; it never outlives its handler, even one killed with -9.

Lines to the child: the spec first, then `{"id", "method", "params", "run": {…}?}`, and
`{"id", "cancel"}` for a run that is to stop.
Lines from it: `{"id", "result"}`, `{"id", "error", "code", "details", "type",
"traceback"}`,
`{"id", "progress"}`, `{"status"}`; and `{"replaced"}` from one whose package is another release.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson

from catalogzero.backoff import Backoff
from catalogzero.clock import Clock, Timer
from catalogzero.config.logs import Logger
from catalogzero.config.seldom import Seldom
from catalogzero.errors import DrainingError, FailedError, error_for_code
from catalogzero.runtime.metrics import memory_mb_of
from catalogzero.wire.messages import JsonObject, encode_json

MAX_LINE_BYTES = 64 << 20
END_GRACE_S = 5.0
LAST_LINES_S = 1.0
CANCEL_GRACE_S = 2.0
REST_DUE_S = 60.0
RESTART_BACKOFF = Backoff(1.0, 60.0, jitter=(1.0, 1.0))

Progress = Callable[[JsonObject], None]


class PackageReplacedError(DrainingError):
    """Another release was installed under the handler: the run never began, its next start may."""


class EndProtocol(SubprocessStreamProtocol):
    """Notes when the process ended; `Process.wait` also waits for all who hold its pipes."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit, loop)
        self.ended = asyncio.Event()

    def process_exited(self) -> None:
        self.ended.set()
        super().process_exited()


ENDED = "the worker process was ended, as a run in it was cancelled: call again"


class WorkerPort:
    """The handler's end of its worker.

    Args:
        spec: Gives the first line: what the child builds (see `worker_child.Spec`).
        clock: Time, injected.
        log: The handler's logger.
        end_grace_s: How long a child that was asked to end may take before it is killed.

    Attributes:
        status: The child's last report, kept after the child has gone.
        on_replaced: Called once a child is of another release than this process.
    """

    def __init__(
        self,
        spec: Callable[[], JsonObject],
        clock: Clock,
        log: Logger,
        *,
        end_grace_s: float = END_GRACE_S,
    ) -> None:
        self._end_grace_s = end_grace_s
        self.status: JsonObject = {}
        self.on_replaced: Callable[[], None] = lambda: None
        self._replaced = ""
        self._spec = spec
        self._clock = clock
        self._log, self._seldom = log, Seldom(clock)
        self._numbers = itertools.count(1)
        self._pending: dict[int, tuple[asyncio.Future[Any], Progress | None]] = {}
        self._process: Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._resting = False
        self._ending = False
        self._killed = False
        self._closed = False
        self._restarts = 0
        self._due: Timer | None = None
        self._startups: set[asyncio.Task[None]] = set()
        self._end_of_it = asyncio.Event()
        self._pipes: asyncio.SubprocessTransport | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._process.pid if self._process else None

    @property
    def memory_mb(self) -> float:
        """The child's resident memory; 0 without a child."""
        return (memory_mb_of(self.pid) if self.pid else None) or 0.0

    async def call(self, method: str, /, **params: Any) -> Any:
        """Run a method of the child's instance, beside whatever else it does.

        Params and result are JSON. The method need not be callable over the wire.

        Raises:
            FailedError: The method raised, or the worker process ended first.
            CatalogZeroError: What the method raised on purpose.
        """
        return await self.run(method, params)

    async def run(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        run: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
    ) -> Any:
        """As `call`, for a run of the handler: its ids go along, its progress comes back.

        One that is cancelled is asked to stop, and its process is killed where it does not.
        """
        await self.start()
        if self._replaced:
            raise PackageReplacedError(self._replaced)
        process = self._process
        if process is None or process.stdin is None:
            raise FailedError("the handler is stopping: its worker takes no more work")
        number = next(self._numbers)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[number] = reply, on_progress
        try:
            line = encode_json({"id": number, "method": method, "params": params, "run": run})
            process.stdin.write(line + b"\n")
            await asyncio.wait([reply])
            return reply.result()
        except asyncio.CancelledError:
            if run is not None:
                process.stdin.write(encode_json({"id": number, "cancel": True}) + b"\n")
                await asyncio.wait([reply], timeout=CANCEL_GRACE_S)
                if not reply.done():
                    self.kill()
            raise
        finally:
            if not reply.cancel():
                reply.exception()  # of a run that was cancelled nobody asks for it
            self._pending.pop(number, None)
            self._end_if_done()

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[WorkerPort]:
        """A child of its own for one run, so that its end or its kill meets no other run.

        It does not do the class's own work (`_worker_main`): that belongs to the first child.
        """
        own = WorkerPort(lambda: {**self._spec(), "dedicated": True}, self._clock, self._log)
        own.on_replaced = self.on_replaced
        try:
            yield own
        finally:
            await own.close()

    async def start(self) -> None:
        """Start the child, if there is none.

        Raises:
            FailedError: The system does not let us, or the child cannot be sent what to build.
        """
        async with self._starting:
            # One that was asked to end may still hold files and locks that the next one needs.
            if self._ending and self._reader is not None:
                await asyncio.wait([self._reader], timeout=self._end_grace_s)
                self.kill()
                await asyncio.wait([self._reader])
            if self._process is not None or self._closed or self._replaced:
                return
            self._cancel_due()
            command = (sys.executable, "-P", "-m", "catalogzero.runtime.worker_child")
            loop = asyncio.get_running_loop()
            try:
                first_line = encode_json(self._spec()) + b"\n"
                self._pipes, end = await loop.subprocess_exec(
                    lambda: EndProtocol(MAX_LINE_BYTES, loop),
                    *command,
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=None,
                )
            except TypeError as error:
                message = "the worker process makes its own handler, from the same arguments"
                raise FailedError(f"{message}: {error}") from None
            except OSError as error:
                raise FailedError(f"the worker process cannot be started: {error}") from None
            self._end_of_it, self._ending = end.ended, False
            self._process = process = Process(self._pipes, end, loop)
            if process.stdin is not None:
                process.stdin.write(first_line)
            if self.status.get("next_due_s") is not None:
                self.status = {**self.status, "next_due_s": 0.0}  # until it says otherwise
            self._reader = asyncio.create_task(self._read(process), name="worker-reader")

    def kill(self) -> None:
        """Stop the child at once: every call to it fails, the next one starts a new child."""
        if self._process is not None:
            self._ending = self._killed = True
            kill_process(self._process)

    def rest(self) -> None:
        """The handler sleeps: end the child as soon as nothing needs it."""
        self._resting = True
        self._end_if_done()

    def work(self) -> None:
        """The handler is awake: keep the child."""
        self._resting = False

    async def close(self) -> None:
        """End the child for good, and wait for its end."""
        self._closed = True
        self._cancel_due()
        for startup in list(self._startups):
            startup.cancel()
            await asyncio.wait([startup])
        async with self._starting:  # a start under way is waited for, and ended with the rest
            if self._process is not None:
                await self._end(self._process)
            if self._reader is not None:
                await self._reader

    async def _end(self, process: Process) -> None:
        """Closing its input asks the child to end; what does not is killed."""
        self._ask_to_end(process)
        try:
            await asyncio.wait_for(self._end_of_it.wait(), self._end_grace_s)
        except TimeoutError:
            kill_process(process)
            await self._end_of_it.wait()

    def _ask_to_end(self, process: Process) -> None:
        self._ending = True
        if process.stdin is not None:
            process.stdin.close()

    async def _read(self, process: Process) -> None:
        """Take in the child's lines until it ends; a process that it left may hold its pipes."""

        async def take_lines() -> None:
            with suppress(ValueError, OSError):  # a line past the limit, a broken pipe
                while process.stdout is not None and (line := await process.stdout.readline()):
                    self._take(orjson.loads(line))

        lines = asyncio.create_task(take_lines(), name="worker-lines")
        ended = asyncio.create_task(self._end_of_it.wait(), name="worker-end")
        await asyncio.wait([lines, ended], return_when=asyncio.FIRST_COMPLETED)
        # Its last lines are in the pipe, whose end may never come where it left a child behind.
        await asyncio.wait([lines], timeout=LAST_LINES_S)
        lines.cancel()
        await asyncio.wait([ended], timeout=self._end_grace_s)
        kill_process(process)
        await ended
        if self._pipes is not None:
            self._pipes.close()
        self._gone(process.returncode or 0)

    def _note_replaced(self, what: str) -> None:
        """The child is of another release: nothing runs in it, and nothing in a further one."""
        self._replaced = f"{what}: the handler ends, call again when it is back"
        for reply, _ in self._pending.values():
            if not reply.done():
                reply.set_exception(PackageReplacedError(self._replaced))
        self._log.warning("package_replaced", change=what)
        self.on_replaced()

    def _take(self, line: JsonObject) -> None:
        if "replaced" in line:
            self._note_replaced(line["replaced"])
            return
        if "status" in line:
            self.status = line["status"]
            self._restarts = 0
            self._end_if_done()
            return
        reply, on_progress = self._pending.get(line["id"], (None, None))
        if "progress" in line:
            if on_progress:
                on_progress(line["progress"])
        elif reply is not None and not reply.done():
            if "result" in line:
                reply.set_result(line["result"])
            else:
                error = error_for_code(line["code"], line["error"], line["details"])
                error.cause_type, error.cause_traceback = line["type"], line["traceback"]
                reply.set_exception(error)

    def _gone(self, status: int) -> None:
        """The child ended: what waited for it fails, and it comes back if it is needed."""
        asked, killed = self._ending, self._killed
        self._process, self._ending, self._killed = None, False, False
        why = ENDED if killed else why_gone(status)
        for reply, _ in self._pending.values():
            if not reply.done():
                reply.set_exception(FailedError(why))
        if self._closed or self._replaced:
            return
        if not asked:
            self._log.warning("worker_died", reason=why_gone(status), exit_status=status)
        elif not killed and (times := self._seldom.is_due("worker_ended")):
            self._log.info("worker_ended", reason="nothing is left to do for it", times=times)
        self._come_back(asked=asked and not killed)

    def _come_back(self, *, asked: bool) -> None:
        """Start the child again when its last report said that something comes due."""
        due_s = self.status.get("next_due_s")
        # One that died with work to do comes back later each time, or it would spin.
        if not asked and (self.status.get("busy") or due_s is not None):
            self._restarts += 1
            due_s = max(due_s or 0.0, RESTART_BACKOFF.delay_s(self._restarts))
        if due_s is not None:
            self._cancel_due()
            self._due = self._clock.call_later(due_s, self._start_soon)

    def _start_soon(self) -> None:
        async def start() -> None:
            try:
                await self.start()
            except FailedError as error:
                self._log.error("worker_not_started", error=error.message)
                self._come_back(asked=False)

        self._due = None
        startup = asyncio.create_task(start(), name="worker-start")
        self._startups.add(startup)
        startup.add_done_callback(self._startups.discard)

    def _cancel_due(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _end_if_done(self) -> None:
        """While the handler sleeps: end a child that has nothing to do for a minute."""
        if not self._resting or self._process is None or self._pending:
            return
        due_s = self.status.get("next_due_s")
        if self.status.get("busy") or (due_s is not None and due_s <= REST_DUE_S):
            return
        self._ask_to_end(self._process)


def kill_process(process: Process) -> None:
    """Kill a child; `process.kill` may reap one that is dead, and asyncio would miss its end."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def why_gone(status: int) -> str:
    """The sentence for a child that ended under its run."""
    if status == -signal.SIGKILL:
        return (
            "the worker was killed by the kernel (signal 9); likely out of memory: raise the "
            "unit's MemoryMax=, or lower `max_concurrent_jobs` or `chunk_bytes`"
        )
    if status < 0:
        return f"the worker process died of signal {-status}"
    return f"the worker process ended with exit status {status}"
