"""The scheduler as a whole: store, runner, registrar and API, started and stopped together."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from catalogzero.clock import Clock
from catalogzero.config import sd_notify
from catalogzero.config.address import Address, is_loopback
from catalogzero.config.logs import make_logger
from catalogzero.config.renewal import Renewed, current
from catalogzero.config.settings import Mask, NatsSettings, default_database
from catalogzero.errors import ConfigError
from catalogzero.scheduler.answers import Config
from catalogzero.scheduler.api import Api
from catalogzero.scheduler.links import HandlerCaller
from catalogzero.scheduler.registrar import Registrar
from catalogzero.scheduler.runner import Runner, RunnerSettings
from catalogzero.scheduler.store import ANSWER_S, Store
from catalogzero.version import __version__
from catalogzero.web import ConnectionLimits, Guard, listening, stop_signal, token_in
from catalogzero.wire.carriers import transport_for
from catalogzero.wire.client import HandlerClient
from catalogzero.wire.keys import CurveClient, CurveKeys, CurveServerSource

STOP_WITHIN_S = 30.0
ORIGIN = re.compile(r"https?://(\[[0-9a-f:]+\]|[^\s/*?#@:\[\]]+)(:[0-9]+)?")
TAKEN = "port {port} on {host} cannot be had ({reason}): set another --port"


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Where the scheduler listens, and what it works on.

    `hosts` are the names beside loopback under which it answers without a token; `origins` those
    of other sites whose pages may ask with the token, from browsers. `allow_plaintext`
    lets registration listen beyond loopback without `curve` keys. `server_keys` are the public
    keys of handlers by their ids: these are called over CURVE alone, with the pair `client_keys`,
    whoever registers under their names. `nats` is how the NATS server is reached, behind which
    handlers are called that registered so.
    """

    host: str = "127.0.0.1"
    port: int = 8888
    zmq_host: str = "127.0.0.1"
    zmq_port: int = 4242
    database: str | None = None
    database_timeout_s: float = ANSWER_S
    token_file: Path | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    allow_plaintext: bool = False
    curve: CurveServerSource | None = None
    client_keys: CurveKeys | Callable[[], CurveKeys] | None = None
    server_keys: Mapping[str, bytes] | Callable[[], Mapping[str, bytes]] = field(
        default_factory=dict
    )
    nats: NatsSettings = field(default_factory=NatsSettings)
    runner: RunnerSettings = field(default_factory=RunnerSettings)


@dataclass(frozen=True, slots=True)
class SchedulerServer:
    """A running scheduler: `url` of its API, `zmq_address` where handlers register."""

    url: str
    zmq_address: str
    database: str
    runner: Runner


@asynccontextmanager
async def serve_scheduler(
    settings: SchedulerSettings,
    *,
    log: FilteringBoundLogger | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[SchedulerServer]:
    """Run a scheduler while the context lasts.

    Args:
        settings: Addresses and database; port 0 is any free one.
        log: Where it reports what happens; standard error by default.
        clock: Monotonic time and sleep.

    Raises:
        ConfigError: An address or the database is not available; names the fix.
        UnreachableError: The database does not answer.
    """
    token = api_token(settings)
    zmq = registrar_address(settings)
    connect = connector(settings)
    log = log or make_logger(mask=Mask())
    database = settings.database or f"sqlite:///{default_database('scheduler.db')}"
    async with AsyncExitStack() as undo:
        store = await asyncio.to_thread(Store, database, answer_s=settings.database_timeout_s)
        undo.push_async_callback(asyncio.to_thread, store.close)
        runner = await undo.enter_async_context(Runner(store, connect, log, settings.runner, clock))
        registrar = Registrar(runner, log, curve=settings.curve)
        undo.push_async_callback(registrar.close)
        try:
            zmq_address = str(registrar.bind(zmq))
        except ConfigError as error:
            raise type(error)(f"--zmq-host, --zmq-port: {error}") from None
        config = Config(
            instance_name="catalogzero scheduler",
            description="Speaks ScheduleZero's protocols.",
            admin_contact="N/A",
            version=__version__,
            database=store.label,
            lease_s=settings.runner.lease_s,
            retention_days=settings.runner.retention_days,
            max_executions=settings.runner.max_executions,
            host=settings.host,
            port=settings.port,
            zmq_address=zmq_address,
        )
        guard = Guard(
            token,
            hosts=settings.hosts,
            origins=settings.origins,
            by_address=not is_loopback(settings.host),
            missing="A Bearer token is required: the scheduler's token_file.",
        )
        served = Api(runner, log, config, guard).application()
        url = await undo.enter_async_context(
            listening(served, settings.host, settings.port, limits=settings.limits, taken=TAKEN)
        )
        config["port"] = int(url.rpartition(":")[2])  # known only now where any was asked for
        yield SchedulerServer(url, zmq_address, store.label, runner)


async def run_scheduler(
    settings: SchedulerSettings,
    announce: Callable[[SchedulerServer], None],
    *,
    stop_within_s: float = STOP_WITHIN_S,
) -> None:
    """Run a scheduler until SIGINT or SIGTERM, or until it cannot go on.

    Args:
        settings: See `serve_scheduler`.
        announce: Called once it listens.
        stop_within_s: After the signal; what hangs then is ended with the process.
    """
    with stop_signal(stop_within_s) as stop:
        async with serve_scheduler(settings) as server:
            announce(server)
            sd_notify.ready(server.url)
            stopped = asyncio.create_task(stop.wait(), name="scheduler-stop")
            failed = asyncio.create_task(server.runner.failure(), name="scheduler-failure")
            await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
            sd_notify.notify("STOPPING=1")
            stopped.cancel()
            if failed.done():
                failed.result()
            failed.cancel()
            await asyncio.wait({stopped, failed})


def api_token(settings: SchedulerSettings) -> Renewed[str] | None:
    """The API's token, as its file is renewed; None on loopback, where none is needed."""
    for origin in settings.origins:
        if not ORIGIN.fullmatch(origin):
            raise ConfigError(f"--allow-origin {origin}: write it as https://portal.example")
    if settings.origins and settings.token_file is None:
        raise ConfigError("--allow-origin lets other sites' pages ask: name a --token-file too")
    if settings.token_file is None and not is_loopback(settings.host):
        raise ConfigError(f"--host {settings.host} is not loopback: name a --token-file too")
    return token_in(settings.token_file) if settings.token_file else None


def registrar_address(settings: SchedulerSettings) -> Address:
    """Where handlers register: beyond loopback with keys, or where plain text is allowed by name.

    A socket file has no port: `zmq_port` is left aside.
    """
    zmq = Address.of(settings.zmq_host, settings.zmq_port)
    if not (zmq.is_local or settings.curve or settings.allow_plaintext):
        raise ConfigError(
            f"--zmq-host {settings.zmq_host} is not loopback: name a --curve-key-file and a "
            "--curve-clients-file, or --allow-plaintext on a private network"
        )
    return zmq


def connector(settings: SchedulerSettings) -> Callable[[str, str], HandlerCaller]:
    """What connects to a handler: with keys where the handler's own is known."""
    pair, known = settings.client_keys, settings.server_keys
    if pair is None and current(known):
        raise ConfigError("--server-keys-file needs --curve-key-file: the scheduler's own pair")

    def connect(handler_id: str, address: str) -> HandlerCaller:
        """Keys that are renewed are taken with the next connection."""
        parsed = Address.parse(address)
        if parsed.is_nats:
            return HandlerClient(address, transport=transport_for(parsed, nats=settings.nats))
        first = current(known).get(handler_id)
        if first is None or pair is None:
            return HandlerClient(address)

        def keys() -> CurveClient:
            return CurveClient(current(pair), current(known).get(handler_id, first))

        return HandlerClient(address, curve=keys)

    return connect
