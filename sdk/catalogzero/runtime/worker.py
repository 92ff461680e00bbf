"""The worker: a child process that isolated jobs and the sender run in.

A plain subprocess that speaks JSON lines over its pipes, no pickle. It builds the handler's
class from the same settings. The handler starts it on demand, keeps it while it is busy, and
ends it when asleep; it never outlives its handler, even one killed with -9.

Lines to the child: the spec first, then `{"id", "method", "params", "run": {…}?}`.
Lines from it: `{"id", "result"}`, `{"id", "error", "code", "details", "type"}`,
`{"id", "progress"}`, `{"status"}`.
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

from catalogzero.clock import Clock, Timer
from catalogzero.config.logs import Logger
from catalogzero.errors import FailedError, error_for_code
from catalogzero.runtime.metrics import memory_mb_of
from catalogzero.wire.messages import encode_json

MAX_LINE_BYTES = 64 << 20
END_GRACE_S = 5.0
LAST_LINES_S = 1.0
REST_DUE_S = 60.0
RESTART_FIRST_S = 1.0
RESTART_MAX_S = 60.0

Progress = Callable[[dict[str, Any]], None]


class _End(SubprocessStreamProtocol):
    """Tells when the process ended; `Process.wait` also waits for all who hold its pipes."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit, loop)
        self.ended = asyncio.Event()

    def process_exited(self) -> None:
        self.ended.set()
        super().process_exited()


class WorkerPort:
    """The handler's end of its worker.

    Args:
        spec: Gives the first line: what the child builds (see `worker_child.Spec`).
        clock: Time, injected.
        log: The handler's logger.

    Attributes:
        status: The child's last report, kept after the child has gone.
    """

    def __init__(self, spec: Callable[[], dict[str, Any]], clock: Clock, log: Logger) -> None:
        self.status: dict[str, Any] = {}
        self._spec = spec
        self._clock = clock
        self._log = log
        self._numbers = itertools.count(1)
        self._pending: dict[int, tuple[asyncio.Future[Any], Progress | None]] = {}
        self._process: Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._resting = False
        self._ending = False
        self._killed = False
        self._closed = False
        self._restart_s = RESTART_FIRST_S
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
        """As `call`, for a run of the handler: its ids go along, its progress comes back."""
        await self.start()
        process = self._process
        if process is None or process.stdin is None:
            raise FailedError("the handler is stopping: its worker takes no more work")
        number = next(self._numbers)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[number] = reply, on_progress
        try:
            line = encode_json({"id": number, "method": method, "params": params, "run": run})
            process.stdin.write(line + b"\n")
            return await reply
        finally:
            self._pending.pop(number, None)
            self._end_if_done()

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[WorkerPort]:
        """A child of its own for one run, so that its end or its kill meets no other run.

        It does not do the class's own work (`_worker_main`): that belongs to the first child.
        """
        own = WorkerPort(lambda: {**self._spec(), "dedicated": True}, self._clock, self._log)
        try:
            yield own
        finally:
            await own.close()

    async def start(self) -> None:
        """Start the child, if there is none.

        Raises:
            FailedError: The system does not let us, or the child cannot be told what to build.
        """
        async with self._starting:
            if self._ending and self._reader is not None:
                await asyncio.wait([self._reader], timeout=END_GRACE_S)
                self.kill()
                await asyncio.wait([self._reader])
            if self._process is not None or self._closed:
                return
            self._cancel_due()
            self._process, self._ending = await self._spawn(), False
            if self.status.get("next_due_s") is not None:
                self.status = {**self.status, "next_due_s": 0.0}  # until it says otherwise
            self._reader = asyncio.create_task(self._read(self._process), name="worker-reader")

    async def _spawn(self) -> Process:
        command = (sys.executable, "-P", "-m", "catalogzero.runtime.worker_child")
        loop = asyncio.get_running_loop()
        try:
            first_line = encode_json(self._spec()) + b"\n"
            transport, end = await loop.subprocess_exec(
                lambda: _End(MAX_LINE_BYTES, loop), *command, stdin=PIPE, stdout=PIPE, stderr=None
            )
        except TypeError as error:
            message = "the worker process makes its own handler, from the same arguments"
            raise FailedError(f"{message}: {error}") from None
        except OSError as error:
            raise FailedError(f"the worker process cannot be started: {error}") from None
        self._end_of_it, self._pipes = end.ended, transport
        process = Process(transport, end, loop)
        if process.stdin is not None:
            process.stdin.write(first_line)
        return process

    def kill(self) -> None:
        """Stop the child at once: every call to it fails, the next one starts a new child."""
        if self._process is not None:
            self._ending = self._killed = True
            _kill(self._process)

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
            await asyncio.wait_for(self._end_of_it.wait(), END_GRACE_S)
        except TimeoutError:
            _kill(process)
            await self._end_of_it.wait()

    def _ask_to_end(self, process: Process) -> None:
        self._ending = True
        if process.stdin is not None:
            process.stdin.close()

    async def _read(self, process: Process) -> None:
        """Take in the child's lines until it ends; a process that it left may hold its pipes."""
        lines = asyncio.create_task(self._take_lines(process), name="worker-lines")
        ended = asyncio.create_task(self._end_of_it.wait(), name="worker-end")
        await asyncio.wait([lines, ended], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([lines], timeout=LAST_LINES_S)
        lines.cancel()
        await asyncio.wait([ended], timeout=END_GRACE_S)
        _kill(process)
        await ended
        if self._pipes is not None:
            self._pipes.close()
        self._gone(process.returncode or 0)

    async def _take_lines(self, process: Process) -> None:
        lines = process.stdout
        with suppress(ValueError, OSError):  # a line past the limit, a broken pipe
            while lines is not None and (line := await lines.readline()):
                self._take(orjson.loads(line))

    def _take(self, line: dict[str, Any]) -> None:
        if "status" in line:
            self.status = line["status"]
            self._restart_s = RESTART_FIRST_S
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
                error.cause_type = line["type"]
                reply.set_exception(error)

    def _gone(self, status: int) -> None:
        """The child ended: what waited for it fails, and it comes back if it is needed."""
        asked, killed = self._ending, self._killed
        self._process, self._ending, self._killed = None, False, False
        for reply, _ in self._pending.values():
            if not reply.done():
                reply.set_exception(FailedError(_why_gone(status)))
        if self._closed:
            return
        if not asked:
            self._log.warning("worker_died", exit_status=status)
        self._come_back(asked=asked and not killed)

    def _come_back(self, *, asked: bool) -> None:
        """Start the child again when its last report said that something comes due."""
        due_s = self.status.get("next_due_s")
        if not asked and (self.status.get("busy") or due_s is not None):
            due_s = max(due_s or 0.0, self._restart_s)
            self._restart_s = min(RESTART_MAX_S, 2 * self._restart_s)
        if due_s is not None:
            self._cancel_due()
            self._due = self._clock.call_later(due_s, self._start_soon)

    def _start_soon(self) -> None:
        self._due = None
        startup = asyncio.create_task(self._start_again(), name="worker-start")
        self._startups.add(startup)
        startup.add_done_callback(self._startups.discard)

    async def _start_again(self) -> None:
        try:
            await self.start()
        except FailedError as error:
            self._log.error("worker_not_started", error=error.message)
            self._come_back(asked=False)

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


def _kill(process: Process) -> None:
    """Kill a child; `process.kill` may reap one that is dead, and asyncio would miss its end."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _why_gone(status: int) -> str:
    """The sentence for a child that ended under its run."""
    if status == -signal.SIGKILL:
        return "the worker process was killed (signal 9): cancelled, or out of memory"
    if status < 0:
        return f"the worker process died of signal {-status}"
    return f"the worker process ended with exit status {status}"
