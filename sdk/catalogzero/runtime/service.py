"""Runs a handler on a transport: dispatch, control methods, registration, drain.

A call's way is one direction: socket, decode, control or job, and for a job `jobs`. Control
calls are answered whatever jobs are running, never counted as activity, never waking.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, Self

from pydantic import ValidationError

from catalogzero.clock import Clock
from catalogzero.config import key_files, sd_notify
from catalogzero.config.address import Address
from catalogzero.config.logs import take_logs
from catalogzero.config.renewal import Renewed
from catalogzero.config.settings import RuntimeSettings, config_error, faults_error
from catalogzero.config.state_folder import keep_private, locked, read_by_others
from catalogzero.errors import (
    BadRequestError,
    CatalogZeroError,
    ConfigError,
    FailedError,
    TooLargeError,
)
from catalogzero.runtime.control_answers import HealthJudgement, OutboxFigures, Vitals
from catalogzero.runtime.controls import Controls
from catalogzero.runtime.handler import Handler, Hosted, entry_of
from catalogzero.runtime.health import SECOND_HOST, disk_free_bytes, judge_health
from catalogzero.runtime.jobs import Boot, Jobs
from catalogzero.runtime.last_boot import begin_boot, read_last_boot, write_last_boot
from catalogzero.runtime.registration import Registration
from catalogzero.runtime.runs import Runs
from catalogzero.runtime.sleep import Sleeper
from catalogzero.runtime.worker import WorkerPort
from catalogzero.runtime.worker_child import spec_of
from catalogzero.wire.carriers import transport_for
from catalogzero.wire.keys import CurveClient, CurveServer, public_key, server_keys_in
from catalogzero.wire.messages import Call, decode_call, encode_reply, error_reply
from catalogzero.wire.reporting import Reporter
from catalogzero.wire.transport import Envelope, Transport
from catalogzero.wire.waiting import Waiting

FAREWELL_S = 0.2


class Service:
    """One handler, served. Made and used on one event loop; see `serve`.

    Attributes:
        handler: The handler that is served.
        address: Where to call it, as `config.address` writes it.
        port: The bound port; 0 where there is none.
        farewell_s: How long the socket stays open after the last reply.
        replaced: Set once its worker is of another release: it takes no more jobs.
    """

    def __init__(self, handler: Handler, transport: Transport | None = None) -> None:
        runtime = handler.runtime
        self.handler = handler
        self.address = ""
        self.port = 0
        self.farewell_s = 0.0
        self.replaced = asyncio.Event()
        self._clock = handler.clock
        self._boot = Boot(uuid.uuid4().hex, self._clock.monotonic(), runtime.max_message_bytes)
        self._runs = Runs(
            window_s=runtime.dedupe_window_s, started_s=self._boot.started_s, clock=self._clock
        )
        self._sleeper = Sleeper(handler, self._on_asleep)
        transport = transport or transport_for(
            runtime.address, server_keys=curve_server(runtime), nats=runtime.nats
        )
        self._wire = Reporter(handler.log, self._clock)
        self._server = transport.serve(
            self._on_message,
            max_message_bytes=runtime.max_message_bytes,
            report=self._wire,
        )
        waiting = Waiting(self._server.send, self._clock)
        self._jobs = Jobs(handler, self._runs, self._sleeper, self._boot, waiting)
        self._controls = Controls(
            handler, self._jobs, self._runs, self._sleeper, self._boot, waiting
        )
        self._registration: Registration | None = None
        handler._vitals = self._vitals
        handler._last_failure = lambda: self._jobs.last_failure or self._sleeper.hook_failure
        handler._is_registered = lambda: (
            self._registration is not None and self._registration.registered.is_set()
        )

    async def __aenter__(self) -> Self:
        handler, runtime = self.handler, self.handler.runtime
        async with AsyncExitStack() as undo:
            undo.callback(self._leave_word)
            # Undone from the last to the first: runs are cancelled while they can still be
            # answered, and the socket goes last.
            undo.push_async_callback(self._close_server)
            undo.push_async_callback(self._controls.close)
            listens = runtime.address.called(handler.handler_id, self._boot.boot_id)
            bound = await self._server.open(listens)
            self.port = 0 if bound.is_nats else bound.port
            self._boot.max_message_bytes = self._server.max_message_bytes
            self._jobs.last_boot = read_last_boot(handler.state_dir)
            begin_boot(handler.state_dir, self._boot.boot_id)
            if runtime.advertise_host and self.port:
                bound = Address(runtime.advertise_host, bound.port)
            self.address = str(bound)
            handler.worker = WorkerPort(lambda: spec_of(handler), self._clock, handler.log)
            if any(one.options.isolate for one in handler.callable_methods().values()):
                entry_of(type(handler))  # remembered as it is now: workers are held to it
            handler.worker.on_replaced = self._on_replaced
            undo.push_async_callback(handler.worker.close)
            if handler._worker_wanted():
                await handler.worker.start()
            undo.push_async_callback(self._close_resources)
            undo.push_async_callback(handler._on_stop)
            undo.push_async_callback(self._jobs.close)
            await handler._on_start()
            self._sleeper.arm()
            if runtime.registers:
                curve = curve_to_scheduler(runtime)
                boot_id = self._boot.boot_id
                # Behind a NATS server each start has an address of its own, as each port is one.
                own = str(listens) if bound.is_nats else self.address
                self._registration = Registration(handler, own, boot_id, curve)
                undo.push_async_callback(self._registration.close)
                self._registration.start()
            # Only now: a start that failed half way is undone here.
            self._undo = undo.pop_all()
        if self._jobs.last_boot.was_killed:
            fix = "the runs that it had begun are lost, and their callers hear of it: see its unit"
            handler.log.warning("killed_before_this_start", fix=fix)
        if runtime.exposed:
            fix = f"set `{runtime.encrypted_by}` unless the network is private"
            host = runtime.address.host
            handler.log.warning("served_without_encryption", host=host, fix=fix)
        handler.log.info("serving", address=self.address)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._undo.aclose()

    async def registered(self) -> None:
        """Wait until the scheduler has accepted the registration."""
        if self._registration is not None:
            await self._registration.registered.wait()

    async def _close_resources(self) -> None:
        """Close resources, unless a method still works with them."""
        at_work = self._jobs.in_flight
        if at_work:
            fix = "have long methods look at self.cancelled, or write @job(isolate=True)"
            self.handler.log.warning("resources_left_open", running=at_work, fix=fix)
        await self._sleeper.close(resources=not at_work)

    def _on_replaced(self) -> None:
        self._jobs.go_down()
        self.replaced.set()

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

    def _leave_word(self) -> None:
        """For the next boot: what this one began, now that nothing more can come."""
        if not self.address:
            return  # it never served, and the word of the boot before is still there
        boot, runs = self._boot, self._runs
        ended_s = max(self._clock.monotonic() - boot.started_s, runs.forgotten_s)
        write_last_boot(self.handler.state_dir, boot.boot_id, ended_s, runs.newest_first())

    async def _close_server(self) -> None:
        """Close the socket; at a process's end, after a moment for the last replies."""
        await self._server.close(self.farewell_s)

    # --- dispatch -----------------------------------------------------------------------

    def _on_message(self, envelope: Envelope, frame: bytes) -> None:
        """Answer one frame: at once, or by a task."""
        call: Call | None = None
        try:
            call = decode_call(frame)
            limit = self._boot.max_message_bytes
            if len(frame) > limit:
                self._wire("call_too_large", {"call_bytes": len(frame), "limit": limit})
                raise TooLargeError(f"the call has {len(frame)} bytes, the limit is {limit}")
            if call.method in self._controls.methods:
                self._controls.accept(call, envelope)
            else:
                self._jobs.accept(call, envelope)
        except CatalogZeroError as error:
            if not isinstance(error, BadRequestError) or call:
                self.handler.log.debug("refused", code=error.code, error=error.message)
            self._server.send(envelope, encode_reply(error_reply(error, call)))
        except Exception as error:  # a fault of ours must not stop the service
            self.handler.log.exception("dispatch_failed")
            failed = FailedError(f"the handler could not take this call: {type(error).__name__}")
            self._server.send(envelope, encode_reply(error_reply(failed, call)))

    def _vitals(self) -> Vitals:
        """What metrics have beside the process's own figures."""
        worker, jobs, outbox = self.handler.worker, self._jobs, self._outbox_figures()
        vitals: Vitals = {
            "uptime_seconds": round(self._clock.monotonic() - self._boot.started_s, 3),
            "status": self._controls.status,
            "in_flight": jobs.in_flight,
            "queued": jobs.queued,
            "runs_total": jobs.runs_total,
            "failures_total": jobs.failures_total,
            "last_error": jobs.last_error or self._sleeper.hook_error or None,
            "last_successful_run": jobs.last_successful_run,
            "last_failed_run": jobs.last_failed_run,
            "health": self._health(outbox),
            "labels": self.handler.runtime.labels,
            "idle_s": round(self._sleeper.idle_s, 3),
            "wakes_total": self._sleeper.wakes_total,
            "worker_memory_mb": worker.memory_mb,
            "peers_cut_total": self._wire.times["peer_cut"],
            "replies_dropped_total": self._wire.times["reply_dropped"],
        }
        if outbox is not None or "outbox" in worker.status:
            vitals["outbox"] = outbox or worker.status["outbox"]
        return vitals

    def _outbox_figures(self) -> OutboxFigures | None:
        """What the worker reported last of its outbox, with what has changed by itself since."""
        said: OutboxFigures | None = self.handler.worker.status.get("outbox")
        if said is None or not OutboxFigures.__required_keys__ <= said.keys():
            return None  # none, or one of an author's own
        oldest, age_s = said["oldest_at"], 0.0
        if oldest is not None:
            age_s = (self._clock.now() - datetime.fromisoformat(oldest)).total_seconds()
        free = disk_free_bytes(self.handler.state_dir)
        return {**said, "oldest_age_s": round(max(age_s, 0.0), 3), "disk_free_bytes": free}

    def _health(self, outbox: OutboxFigures | None) -> HealthJudgement:
        """How this handler does, by what is known in its own process."""
        worker, failure = self.handler.worker, self.handler._last_failure()
        skew, extra = worker.status.get("clock_skew_s"), [*worker.status.get("reasons", ())]
        if self._registration is not None and self._registration.is_refused:
            extra.append(SECOND_HOST)
        return judge_health(outbox, failure, skew, extra)

    def _on_asleep(self) -> None:
        """Let go of what the runtime itself holds."""
        self._runs.expire()
        self._jobs.release_threads()


@asynccontextmanager
async def serve(
    handler: Handler | Hosted,
    *,
    clock: Clock | None = None,
    transport: Transport | str | None = None,
    **runtime: Any,
) -> AsyncIterator[Service]:
    """Serve a handler on the running loop.

    Args:
        handler: What to serve.
        clock: Time; the machine's by default.
        transport: The runtime setting of that name; or what carries the calls itself.
        runtime: Runtime settings by name; those given here win over the handler's own.

    Raises:
        ConfigError: The address is taken or not allowed, or the state folder is in use.
    """
    handler = handler._as_handler()
    if isinstance(transport, str):
        runtime["transport"], transport = transport, None
    try:
        given = handler.runtime.model_dump(exclude_unset=True)
        settings = RuntimeSettings(**{**given, **runtime})
    except ValidationError as error:
        raise config_error(error, where="runtime settings", model=RuntimeSettings) from None
    handler_id = settings.handler_id or handler.handler_id
    handler._attach(runtime=settings, handler_id=handler_id, clock=clock)
    check_exposure(settings)
    if faults := handler._state_faults():
        raise faults_error(f"section of {handler_id}", faults)
    for path in filter(key_files.read_by_others, handler._key_files):
        handler.log.warning("key_readable_by_others", path=str(path), fix="chmod 600 it")
    for path in handler._key_files:
        if not os.access(path, os.R_OK):
            fix = "let this user read it, or have systemd hand it over (`catalogzero systemd`)"
            handler.log.error("key_not_readable", path=str(path), fix=fix)
    with locked(handler.state_dir):
        if wide := read_by_others(handler.state_dir):
            fix = f"chmod -R go-rwx {shlex.quote(str(handler.state_dir))}"
            handler.log.warning("state_readable_by_others", path=str(wide[0]), fix=fix)
        async with Service(handler, transport) as service:
            yield service


async def serve_until_signal(handler: Handler) -> bool:
    """Serve until SIGTERM or SIGINT, then drain and close; a second signal does not wait.

    Returns whether it ended by itself, to be started again with the release that is installed now.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    take_logs(handler.log, type(handler).__module__)

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(on_signal))
    return await serve_until(
        handler, stop, hurry, on_ready=lambda one: sd_notify.ready(one.address)
    )


async def serve_until(
    handler: Handler,
    stop: asyncio.Event,
    hurry: asyncio.Event,
    *,
    on_ready: Callable[[Service], None] = lambda service: None,
) -> bool:
    """Serve until `stop`, then drain and close; `hurry` ends the draining.

    Returns whether it ended by itself, as another release of its package was installed.
    """
    keep_private()
    async with serve(handler) as service:
        service.farewell_s = FAREWELL_S
        on_ready(service)
        ends = [asyncio.create_task(one.wait()) for one in (stop, service.replaced)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
            await asyncio.wait([end])
        sd_notify.notify("STOPPING=1")
        handler.log.info("draining")
        retiring = asyncio.create_task(service.retire())
        hurrying = asyncio.create_task(hurry.wait())
        await asyncio.wait({retiring, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        for task in (retiring, hurrying):
            task.cancel()
            await asyncio.wait([task])
    return service.replaced.is_set() and not stop.is_set()


def check_exposure(runtime: RuntimeSettings) -> None:
    """Refuse an address that others can reach, unless that is meant.

    Raises:
        ConfigError: With the fix.
    """
    if not runtime.exposed or runtime.allow_plaintext:
        return
    if runtime.address.is_nats:
        raise ConfigError(
            f"the NATS server {runtime.transport} is on another machine, and nothing is encrypted: "
            "write it as tls://, or set `nats.key_file`, or `allow_plaintext: true` on a private "
            "network"
        )
    raise ConfigError(
        f"host {runtime.host!r} can be reached from other machines, and no keys are set: set "
        "`curve` (make keys with `catalogzero keys new`), or `allow_plaintext: true` on a "
        "private network, or bind 127.0.0.1"
    )


def curve_server(runtime: RuntimeSettings) -> Renewed[CurveServer] | None:
    """The keys that it serves with, as its files are renewed; `None` where it serves without.

    Raises:
        ConfigError: A key file cannot be read.
    """
    if runtime.curve is None:
        return None
    return server_keys_in(runtime.curve.key_file, runtime.curve.clients_file)


def curve_to_scheduler(runtime: RuntimeSettings) -> Renewed[CurveClient] | None:
    """The keys that it registers with, as its file is renewed; `None` where it does without."""
    if runtime.curve is None or runtime.curve.scheduler_key is None:
        return None
    server = public_key(runtime.curve.scheduler_key)
    return CurveClient.renewed(runtime.curve.key_file, server)
