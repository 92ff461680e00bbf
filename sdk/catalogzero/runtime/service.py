"""Runs a handler on a transport: dispatch, control methods, registration, drain.

A call's way is one direction: socket, decode, control or job, and for a job `jobs`. Control
calls are answered whatever jobs are running, never counted as activity, never waking.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

from pydantic import ValidationError

from catalogzero.clock import Clock
from catalogzero.config import key_files
from catalogzero.config.address import Address
from catalogzero.config.logs import forward_logging
from catalogzero.config.settings import RuntimeSettings, config_error
from catalogzero.config.state_folder import keep_private, locked, read_by_others
from catalogzero.errors import (
    BadRequestError,
    BusyError,
    CallTimeoutError,
    CatalogZeroError,
    ConfigError,
    FailedError,
    TooLargeError,
    text_of,
)
from catalogzero.runtime.handler import Handler, Hosted, as_handler
from catalogzero.runtime.idle import State
from catalogzero.runtime.jobs import Boot, Jobs
from catalogzero.runtime.methods import CONTROL_METHODS, EXTENSIBLE_METHODS, Method
from catalogzero.runtime.registration import Registration
from catalogzero.runtime.resources import told_to_stop
from catalogzero.runtime.runs import Runs
from catalogzero.runtime.sleep import Sleeper
from catalogzero.runtime.worker import WorkerPort
from catalogzero.runtime.worker_child import spec_of
from catalogzero.wire.messages import Call, Reply, decode_call, encode_reply, error_reply
from catalogzero.wire.reporting import Reporter
from catalogzero.wire.transport import MAX_IN_PROGRESS, Envelope, InProgress, Transport
from catalogzero.wire.zeromq import (
    CurveClient,
    CurveKeys,
    CurveServer,
    ZeroMQ,
    public_key,
    read_client_keys,
)

MAX_LISTED_RUNS = 1_000
FAREWELL_S = 0.2
SHOWN_STATE = {State.FALLING: "idle", State.WAKING: "active"}


class Service:
    """One handler, served. Made and used on one event loop; see `serve`.

    Attributes:
        handler: The handler that is served.
        address: Where to call it: `tcp://host:port`, or `ipc:///folder/name.sock`.
        port: The bound port; 0 for a socket file.
        farewell_s: How long the socket stays open after the last reply.
    """

    def __init__(self, handler: Handler, transport: Transport | None = None) -> None:
        runtime = handler.runtime
        self.handler = handler
        self.address = ""
        self.port = 0
        self.farewell_s = 0.0
        self._clock = handler.clock
        self._boot = Boot(uuid.uuid4().hex, self._clock.monotonic())
        self._runs = Runs(
            window_s=runtime.dedupe_window_s, started_s=self._boot.started_s, clock=self._clock
        )
        self._sleeper = Sleeper(handler, self._on_asleep)
        transport = transport or ZeroMQ(server_keys=curve_server(runtime))
        self._wire = Reporter(handler.log, self._clock)
        self._server = transport.serve(
            self._on_message,
            max_message_bytes=runtime.max_message_bytes,
            report=self._wire,
        )
        self._jobs = Jobs(handler, self._runs, self._sleeper, self._boot, self._server.send)
        self._controls = _control_methods(handler)
        self._plain_ping = type(handler).ping is Handler.ping
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_progress = InProgress()
        self._registration: Registration | None = None
        handler._vitals = self._vitals
        handler._last_failure = self._last_failure
        handler._is_registered = self._is_registered

    async def __aenter__(self) -> Self:
        handler, runtime = self.handler, self.handler.runtime
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._close_server)
            undo.push_async_callback(self._stop_controls)
            bound = self._server.bind(runtime.address)
            self.port = bound.port
            if runtime.advertise_host and not bound.path:
                bound = Address(runtime.advertise_host, bound.port)
            self.address = str(bound)
            handler.worker = WorkerPort(lambda: spec_of(handler), self._clock, handler.log)
            undo.push_async_callback(handler.worker.close)
            if handler._worker_wanted():
                await handler.worker.start()
            undo.push_async_callback(self._sleeper.close)
            undo.push_async_callback(handler._on_stop)
            undo.push_async_callback(self._jobs.close)
            await handler._on_start()
            self._sleeper.arm()
            if runtime.registers:
                curve = curve_to_scheduler(runtime)
                self._registration = Registration(handler, self.address, curve)
                undo.push_async_callback(self._registration.close)
                self._registration.start()
            self._undo = undo.pop_all()
        if runtime.exposed:
            fix = "set `curve` unless the network is private"
            handler.log.warning("served_without_encryption", host=runtime.host, fix=fix)
        handler.log.info("serving", address=self.address)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._undo.aclose()

    async def registered(self) -> None:
        """Wait until the scheduler has accepted the registration."""
        if self._registration is not None:
            await self._registration.registered.wait()

    def _is_registered(self) -> bool:
        return self._registration is not None and self._registration.registered.is_set()

    async def retire(self) -> None:
        """Go offline at the scheduler, take no new jobs, and wait for those accepted.

        It waits at most `drain_timeout_s`; what still runs then is cancelled by the close.
        """
        if self._registration is not None:
            await self._registration.close()
        try:
            async with asyncio.timeout(self.handler.runtime.drain_timeout_s):
                await self._jobs.drain(for_good=True)
        except TimeoutError:
            self.handler.log.warning("drain_timed_out", in_flight=self._jobs.in_flight)

    async def _close_server(self) -> None:
        """Close the socket; at a process's end, after a moment for the last replies.

        ZeroMQ has no flush, and LINGER 0 drops what its own thread has not written yet.
        """
        if self.farewell_s:
            await asyncio.sleep(self.farewell_s)
        self._server.close()

    # --- dispatch -----------------------------------------------------------------------

    def _on_message(self, envelope: Envelope, frame: bytes) -> None:
        """Answer one frame: at once, or by a task."""
        call: Call | None = None
        try:
            call = decode_call(frame)
            limit = self.handler.runtime.max_message_bytes
            if len(frame) > limit:
                self._wire("call_too_large", {"call_bytes": len(frame), "limit": limit})
                raise TooLargeError(f"the call has {len(frame)} bytes, the limit is {limit}")
            if call.method in self._controls:
                self._control(call, envelope)
            else:
                self._jobs.accept(call, envelope, frame)
        except CatalogZeroError as error:
            if not isinstance(error, BadRequestError) or call:
                self.handler.log.debug("refused", code=error.code, error=error.message)
            self._server.send(envelope, encode_reply(error_reply(error, call)))
        except Exception as error:  # a fault of ours must not stop the service
            self.handler.log.exception("dispatch_failed")
            failed = FailedError(f"the handler could not take this call: {type(error).__name__}")
            self._server.send(envelope, encode_reply(error_reply(failed, call)))

    def _control(self, call: Call, envelope: Envelope) -> None:
        """A control call: what needs no waiting is answered here and now."""
        method = self._controls[call.method]
        if call.method == "ping" and self._plain_ping and not call.params:
            pong = {"status": "ok", "handler": self.handler.handler_id, "message": "pong"}
            self._reply(envelope, call, Reply(True, {**pong, **self._identity()}))
            return
        kwargs = method.bind(call.params)
        if method.is_async and not self._in_progress.enter(envelope):
            raise BusyError(f"{MAX_IN_PROGRESS} control calls of this peer are in progress")
        owner = self.handler if call.method in (*EXTENSIBLE_METHODS, "report_metrics") else self
        result = method.function(owner, **kwargs)
        if not method.is_async:
            self._reply(envelope, call, Reply(True, result))
            return
        task = asyncio.create_task(self._answer(envelope, call, result), name=call.method)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda task: self._in_progress.leave(envelope))

    async def _answer(self, envelope: Envelope, call: Call, work: Awaitable[Any]) -> None:
        """Reply when a control method is done, or say at `timeout_s` that it goes on."""
        wait_s = call.timeout_s
        if wait_s is None and call.request_id is None:
            wait_s = self.handler.runtime.early_reply_s
        answered, timer = False, None

        def wait_over() -> None:
            nonlocal answered
            answered = True
            error = CallTimeoutError("the wait ended; it goes on", details={"running": True})
            self._reply(envelope, call, error_reply(error))

        if wait_s is not None:
            timer = self._clock.call_later(wait_s, wait_over)
        try:
            result = await work
            if call.method in ("ping", "describe") and isinstance(result, dict):  # an author's own
                result = {**result, **self._identity()}
            reply = Reply(True, result)
        except CatalogZeroError as error:
            reply = error_reply(error)
        except BaseException as error:
            if told_to_stop(error):
                raise
            reply = error_reply(FailedError(self.handler.mask(text_of(error))))
        finally:
            if timer:
                timer.cancel()
        if not answered:
            self._reply(envelope, call, reply)

    def _reply(self, envelope: Envelope, call: Call, reply: Reply) -> None:
        """Send the reply to a control call."""
        reply.request_id = call.request_id
        try:
            frame = encode_reply(reply)
        except TypeError as error:
            fault: CatalogZeroError = FailedError(f"{call.method} returned no JSON: {error}")
            frame = encode_reply(error_reply(fault, call))
        limit = self.handler.runtime.max_message_bytes
        if len(frame) > limit:
            fault = TooLargeError(f"the reply has {len(frame)} bytes, the limit is {limit}")
            frame = encode_reply(error_reply(fault, call))
        self._server.send(envelope, frame)

    # --- control methods ----------------------------------------------------------------

    def check_params(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Whether a job method would take these params; `bad_params` where it would not."""
        self._jobs.check_params(method, params)
        return {"method": method}

    def list_runs(
        self, limit: int = 50, status: str | None = None, method: str | None = None
    ) -> dict[str, Any]:
        """The last runs, newest first."""
        runs = self._runs.newest(max(0, min(limit, MAX_LISTED_RUNS)), status, method)
        return {"runs": [run.describe() for run in runs], **self._identity()}

    def get_run(
        self, run_id: str | None = None, request_id: str | int | None = None
    ) -> dict[str, Any]:
        """One run, with its result while it is kept."""
        return {**self._runs.find(run_id, request_id).outcome(), **self._identity()}

    def cancel(
        self, run_id: str | None = None, request_id: str | int | None = None
    ) -> dict[str, Any]:
        """Stop a run; tells its status at that moment."""
        run = self._runs.find(run_id, request_id)
        self._jobs.cancel(run)
        return {"run_id": run.run_id, "status": str(run.state), "cancelling": not run.ended}

    async def sleep(self) -> dict[str, Any]:
        """Fall asleep now."""
        await self._sleeper.sleep()
        return {"status": self._status()}

    async def wake(self) -> dict[str, Any]:
        """Be awake."""
        await self._sleeper.wake()
        return {"status": self._status()}

    async def drain(self) -> dict[str, Any]:
        """Take no new jobs, and wait for those accepted."""
        await self._jobs.drain()
        return {"status": self._status()}

    def resume(self) -> dict[str, Any]:
        """Take jobs again."""
        self._jobs.resume()
        return {"status": self._status()}

    # --- what is told -------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {
            "boot_id": self._boot.boot_id,
            "uptime_s": self._clock.monotonic() - self._boot.started_s,
            "dedupe_window_s": self.handler.runtime.dedupe_window_s,
            "max_message_bytes": self.handler.runtime.max_message_bytes,
        }

    def _status(self) -> str:
        if self._jobs.draining:
            return "draining"
        return SHOWN_STATE.get(self._sleeper.state, str(self._sleeper.state))

    def _last_failure(self) -> dict[str, Any] | None:
        """What failed last, without any text."""
        return self._jobs.last_failure or self._sleeper.hook_failure

    def _vitals(self) -> dict[str, Any]:
        """What metrics tell beside the process's own figures."""
        worker, jobs = self.handler.worker, self._jobs
        fields = {
            "uptime_seconds": round(self._clock.monotonic() - self._boot.started_s, 3),
            "status": self._status(),
            "in_flight": jobs.in_flight,
            "queued": jobs.queued,
            "runs_total": jobs.runs_total,
            "failures_total": jobs.failures_total,
            "last_error": jobs.last_error or self._sleeper.hook_error or None,
            "idle_s": round(self._sleeper.idle_s, 3),
            "wakes_total": self._sleeper.wakes_total,
            "worker_memory_mb": worker.memory_mb,
            "peers_cut_total": self._wire.times["peer_cut"],
            "replies_dropped_total": self._wire.times["reply_dropped"],
        }
        return (
            {**fields, "outbox": worker.status["outbox"]} if "outbox" in worker.status else fields
        )

    def _on_asleep(self) -> None:
        """Let go of what the runtime itself holds."""
        self._runs.expire()
        self._jobs.release_threads()

    async def _stop_controls(self) -> None:
        while self._tasks:  # one that comes meanwhile too
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)


def _control_methods(handler: Handler) -> dict[str, Method]:
    """The control methods, each bound and validated as a job's are.

    In a compat class the author's method of the same name wins.
    """
    cls = type(handler)
    functions = {name: getattr(cls, name) for name in EXTENSIBLE_METHODS}
    functions["report_metrics"] = cls.get_metrics
    functions |= {name: getattr(Service, name) for name in CONTROL_METHODS - functions.keys()}
    own = cls.callable_methods()
    return {name: Method(name, f) for name, f in functions.items() if name not in own}


@asynccontextmanager
async def serve(
    handler: Handler | Hosted,
    *,
    clock: Clock | None = None,
    transport: Transport | None = None,
    **runtime: Any,
) -> AsyncIterator[Service]:
    """Serve a handler on the running loop.

    Args:
        handler: What to serve.
        clock: Time; the machine's by default.
        transport: What carries its calls; ZeroMQ by default, with the keys that `curve` names.
        runtime: Runtime settings by name; those given here win over the handler's own.

    Raises:
        ConfigError: The address is taken or not allowed, or the state folder is in use.
    """
    handler = as_handler(handler)
    try:
        given = handler.runtime.model_dump(exclude_unset=True)
        settings = RuntimeSettings(**{**given, **runtime})
    except ValidationError as error:
        raise config_error(error, where="runtime settings") from None
    handler_id = settings.handler_id or handler.handler_id
    handler._attach(runtime=settings, handler_id=handler_id, clock=clock)
    check_exposure(settings)
    for path in filter(key_files.read_by_others, handler._key_files):
        handler.log.warning("key_readable_by_others", path=str(path), fix="chmod 600 it")
    with locked(handler.state_dir):
        if wide := read_by_others(handler.state_dir):
            fix = f"chmod -R go-rwx {shlex.quote(str(handler.state_dir))}"
            handler.log.warning("state_readable_by_others", path=str(wide[0]), fix=fix)
        async with Service(handler, transport) as service:
            yield service


async def serve_until_signal(handler: Handler) -> None:
    """Serve until SIGTERM or SIGINT, then drain and close; a second signal does not wait."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    forward_logging(handler.log)

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(on_signal))
    await serve_until(handler, stop, hurry)


async def serve_until(
    handler: Handler,
    stop: asyncio.Event,
    hurry: asyncio.Event,
    *,
    on_ready: Callable[[Service], None] = lambda service: None,
) -> None:
    """Serve until `stop`, then drain and close; `hurry` ends the draining."""
    keep_private()
    async with serve(handler) as service:
        service.farewell_s = FAREWELL_S
        on_ready(service)
        await stop.wait()
        handler.log.info("draining")
        retiring = asyncio.create_task(service.retire())
        hurrying = asyncio.create_task(hurry.wait())
        await asyncio.wait({retiring, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        for task in (retiring, hurrying):
            task.cancel()
            await asyncio.wait([task])


def check_exposure(runtime: RuntimeSettings) -> None:
    """Refuse an address that others can reach, unless that is meant.

    Raises:
        ConfigError: With the fix.
    """
    if runtime.exposed and not runtime.allow_plaintext:
        raise ConfigError(
            f"host {runtime.host!r} can be reached from other machines, and no keys are set: set "
            "`curve` (make keys with `catalogzero keys new`), or `allow_plaintext: true` on a "
            "private network, or bind 127.0.0.1"
        )


def curve_server(runtime: RuntimeSettings) -> CurveServer | None:
    """The keys that it serves with; `None` where it serves without.

    Raises:
        ConfigError: A key file cannot be read.
    """
    if runtime.curve is None:
        return None
    clients = read_client_keys(runtime.curve.clients_file)
    return CurveServer(CurveKeys.read(runtime.curve.key_file), clients)


def curve_to_scheduler(runtime: RuntimeSettings) -> CurveClient | None:
    """The keys that it registers with; `None` where it does without."""
    if runtime.curve is None or runtime.curve.scheduler_key is None:
        return None
    server = public_key(runtime.curve.scheduler_key)
    return CurveClient(CurveKeys.read(runtime.curve.key_file), server)
