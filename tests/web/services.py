"""The three services on real sockets, each given what it needs to be asked in one way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalogzero.backend import BackendSettings, create_app
from catalogzero.backend.server import serving
from catalogzero.backend.store import BackendDatabase
from catalogzero.backend.tenants import add_tenant
from catalogzero.clock import SystemClock
from catalogzero.config.logs import make_logger
from catalogzero.config.settings import Mask
from catalogzero.scheduler.server import SchedulerSettings, serve_scheduler
from catalogzero.web import ConnectionLimits
from conductorzero.dashboard import Dashboard
from conductorzero.fleet import Fleet
from conductorzero.peers import Directory
from conductorzero.settings import ConductorSettings
from conductorzero.watch import Watch

TOKEN = "the-token-of-the-tests"  # noqa: S105 - a test's own
NAMES = ("scheduler", "backend", "conductor")


@dataclass(frozen=True)
class Request:
    """A request that a service answers with a success, if whoever asks may ask."""

    method: str
    path: str
    body: Any = None
    key: str = TOKEN
    media_type: str = "application/json"

    @property
    def payload(self) -> bytes:
        """The body's bytes."""
        return b"" if self.body is None else json.dumps(self.body).encode()


@dataclass
class Service:
    """A running service: what of it needs the token, what takes JSON, where pages are.

    `reading` shows data without a token where the service is open.
    """

    name: str
    url: str
    guarded: Request
    reading: Request
    posting: Request
    page: str

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", int(self.url.rpartition(":")[2])

    async def ask(
        self,
        request: Request,
        headers: Mapping[str, str] | None = None,
        *,
        key: bytes | None = None,
    ) -> Answer:
        """Send a request with its key, or with `Authorization: key`."""
        shown = f"Bearer {request.key}".encode() if key is None else key
        named = {"Host": f"127.0.0.1:{self.place[1]}", **(headers or {})}
        lines = [f"{request.method} {request.path} HTTP/1.1".encode()]
        lines += [f"{name}: {value}".encode() for name, value in named.items()]
        lines += [b"Authorization: " + shown] if shown else []
        if request.body is not None:
            lines += [f"Content-Type: {request.media_type}".encode()]
            lines += [b"Content-Length: %d" % len(request.payload)]
        return await self.send(b"\r\n".join([*lines, b"Connection: close", b"", request.payload]))

    async def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a body, whatever it is, where the service takes JSON."""
        one = self.posting
        named = {
            "Host": "localhost",
            "Authorization": f"Bearer {one.key}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }
        told = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        head = f"{one.method} {one.path} HTTP/1.1\r\n{told}\r\n"
        return await self.send(head.encode() + body, to_the_end=False)

    async def send(self, raw: bytes, *, to_the_end: bool = True) -> Answer:
        """Send bytes, and read the answer, by default until the service closes."""
        reader, writer = await asyncio.open_connection(*self.place)
        try:
            writer.write(raw)
            return await read_answer(reader, to_the_end=to_the_end)
        finally:
            writer.close()

    def message(self, answer: Answer) -> str:
        """The sentence of an error, in the service's own form; fails for any other form."""
        told = json.loads(answer.body)
        if self.name == "backend":
            assert answer.headers["content-type"] == "application/problem+json"
            assert (told["status"], bool(told["type"]), bool(told["title"])) == (
                answer.status,
                True,
                True,
            )
            return str(told["detail"])
        assert answer.headers["content-type"] == "application/json"
        assert set(told) == {"error"}
        assert set(told["error"]) == {"code", "message"}
        if self.name == "scheduler":
            assert told["error"]["code"] == answer.status
        return str(told["error"]["message"])


@dataclass
class Answer:
    """What came back; header names in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


async def read_answer(reader: asyncio.StreamReader, *, to_the_end: bool = True) -> Answer:
    """Read one answer, and the connection's end."""
    async with asyncio.timeout(30):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *lines = head.rstrip().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if to_the_end:
            assert await reader.read() == b""
    return Answer(int(status.split()[1]), headers, body)


@asynccontextmanager
async def served(
    name: str,
    folder: Path,
    *,
    limits: ConnectionLimits | None = None,
    is_open: bool = False,
    **more: Any,
) -> AsyncIterator[Service]:
    """One of the services, with a token, or open to this machine; `more` are its own settings."""
    token_file = _token_in(folder)
    make = {"scheduler": _scheduler, "backend": _backend, "conductor": _conductor}[name]
    async with make(
        folder, None if is_open else token_file, limits or ConnectionLimits(), **more
    ) as service:
        yield service


def _token_in(folder: Path) -> Path:
    file = folder / "token"
    file.write_text(TOKEN + "\n")
    return file


@asynccontextmanager
async def _scheduler(
    folder: Path, token_file: Path | None, limits: ConnectionLimits, **more: Any
) -> AsyncIterator[Service]:
    database = f"sqlite:///{folder / 'scheduler.db'}"
    settings = SchedulerSettings(
        port=0, zmq_port=0, database=database, token_file=token_file, limits=limits, **more
    )
    async with serve_scheduler(settings) as server:
        reading = Request("GET", "/api/schedules")
        clear = Request("POST", "/api/executions/clear")
        post = Request("POST", "/api/run_now", {"handler_id": "x", "job_method": "y"})
        yield Service("scheduler", server.url, clear, reading, post, "/pages/schedules.js")


@asynccontextmanager
async def _backend(
    folder: Path, token_file: Path | None, limits: ConnectionLimits
) -> AsyncIterator[Service]:
    url = f"sqlite:///{folder / 'backend.db'}"
    database = BackendDatabase(url)
    at = "2026-01-01T00:00:00.000+00:00"
    key = database.write_now(lambda connection: add_tenant(connection, "tenant", at))
    database.close()
    app = create_app(BackendSettings(database=url, operator_token_file=token_file))
    async with serving(app, limits=limits, stop_s=1.0) as served_at:
        reading = Request("GET", "/metrics")
        post = Request("POST", "/v1", [{"a": 1}], key)
        yield Service("backend", served_at, reading, reading, post, "/fleet.js")


@asynccontextmanager
async def _conductor(
    folder: Path, token_file: Path | None, limits: ConnectionLimits
) -> AsyncIterator[Service]:
    log, clock = make_logger(mask=Mask()), SystemClock()
    settings = ConductorSettings(dashboard_port=0, token_file=folder / "token")
    watch = Watch(Directory([], []), Fleet(clock), clock, log, interval_s=5.0)
    dashboard = Dashboard(watch, clock, settings, folder, log, limits)
    await dashboard.start()
    signal = Request("POST", "/api/signal", {"action": "sleep", "handler_ids": []})
    fleet = Request("GET", "/api/fleet")
    try:
        yield Service("conductor", dashboard.url, signal, fleet, signal, "/static/fleet.js")
    finally:
        await dashboard.stop()
        watch.fleet.close()
