"""How the services end, and what an application of the edge does with its own faults."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from catalogzero.config.logs import make_logger
from catalogzero.config.settings import Mask
from catalogzero.errors import ConfigError
from catalogzero.web import HttpError, edge_application, json_response, listening

from examples.quickstart.processes import free_ports
from tests.web.services import Request, Service, served

CATALOGZERO = (sys.executable, "-m", "catalogzero")
PLACE = "127.0.0.1"


@contextmanager
def process(*command: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A process that writes to pipes, killed at the end."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **more}
    one = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield one
    finally:
        one.kill()
        one.communicate()


def announced(one: subprocess.Popen[str]) -> str:
    """The URL in the line that says where a service listens."""
    assert one.stdout is not None
    line = one.stdout.readline()
    assert line, one.stderr and one.stderr.read()
    return str(json.loads(line)["url"])


@contextmanager
def service_process(name: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """One of the services as its command starts it, and its URL."""
    commands = {
        "scheduler": ("scheduler", "--zmq-port", "0", "--database", f"sqlite:///{folder}/s.db"),
        "backend": ("backend", "serve", "--database", f"{folder}/b.db"),
    }
    if name != "conductor":
        with process(*CATALOGZERO, *commands[name], "--port", "0", "--json") as one:
            yield one, announced(one)
        return
    (port,) = free_ports(1)
    settings = ("--config", f"dashboard_port={port}", "--config", "handler_registry={}")
    state = ("--set", f"state_dir={folder}", "--port", "0")
    command = ("run", "conductorzero:ConductorZero", *settings, *state)
    with process(*CATALOGZERO, *command) as one:
        assert one.stderr is not None
        while "dashboard_ready" not in (line := one.stderr.readline()):
            assert line, "the conductor ended"
        yield one, f"http://{PLACE}:{port}"


@pytest.mark.parametrize("name", ["scheduler", "backend", "conductor"])
def test_a_signal_ends_a_service_whatever_is_connected(name: str, tmp_path: Path) -> None:
    with service_process(name, tmp_path) as (one, url):
        place = PLACE, int(url.rpartition(":")[2])
        begun = (
            b"",
            b"GET / HTTP/1.1\r\nHost: local",
            b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST /api/run_now HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 9\r\n\r\n{",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200,
        )
        held = [socket.create_connection(place) for _ in begun]
        for connection, raw in zip(held, begun, strict=True):
            connection.sendall(raw)
        assert held[2].recv(1)

        one.send_signal(signal.SIGTERM)
        told = one.communicate(timeout=100)[1]

        for connection in held:
            connection.close()
    assert one.returncode == 0, told
    assert "Traceback" not in told


STUCK = {
    "a blocked event loop": "threading.Event().wait()",
    "a thread": "await asyncio.to_thread(threading.Event().wait)",
    "a task that will not be cancelled": (
        "while True:\n            with suppress(asyncio.CancelledError):\n"
        "                await asyncio.Event().wait()"
    ),
}
SCRIPT = """
import asyncio, json, structlog, threading
from contextlib import suppress
from aiohttp import web
from catalogzero.web import edge_application, listening, stop_signal

async def main():
    async def stuck(request):
        print("stuck", flush=True)
        {stuck}

    app = edge_application(lambda error: web.Response(), structlog.get_logger())
    app.router.add_get("/", stuck)
    with stop_signal(1.0) as stop:
        async with listening(app, "127.0.0.1", 0, stop_s=0.1) as url:
            print(json.dumps({{"url": url}}), flush=True)
            await stop.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("how", STUCK)
def test_what_hangs_is_ended_with_the_process(how: str) -> None:
    with process(sys.executable, "-c", SCRIPT.format(stuck=STUCK[how])) as one:
        place = PLACE, int(announced(one).rpartition(":")[2])
        with socket.create_connection(place) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one.stdout is not None
            assert one.stdout.readline() == "stuck\n"

            one.send_signal(signal.SIGTERM)
            told = one.communicate(timeout=100)[1]

    assert one.returncode == 1
    assert "not ended 1 s after the signal" in told


def _in_plain_words(error: HttpError) -> web.Response:
    return json_response({"why": error.message}, error.status)


async def test_a_fault_is_one_line_in_the_log_and_a_bare_500(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def fail(request: web.Request) -> web.Response:
        raise RuntimeError("a secret of the inside")

    async def fail_late(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"a beginning")
        raise RuntimeError("a secret of the inside")

    async def no_answer(request: web.Request) -> web.Response:
        return None  # type: ignore[return-value]

    app = edge_application(_in_plain_words, make_logger(mask=Mask(), log_format="json"))
    app.add_routes([web.get("/", fail), web.get("/late", fail_late), web.get("/none", no_answer)])
    async with listening(app, PLACE, 0) as url:
        root = Request("GET", "/")
        one = Service("plain", url, root, root, root, "/")
        answer = await one.ask(one.reading)
        told = capfd.readouterr().err
        with pytest.raises(asyncio.IncompleteReadError):
            await _whole_answer(one, "/late")
        told_late = capfd.readouterr().err
        none = await one.ask(Request("GET", "/none"))

    assert (answer.status, none.status) == (500, 500)
    assert json.loads(answer.body) == {"why": "Internal error: see the service's log."}
    for lines in (told, told_late):
        (line,) = lines.splitlines()
        assert json.loads(line)["event"] == "request_failed"
        assert "a secret of the inside" in json.loads(line)["exception"]


async def _whole_answer(one: Service, path: str) -> None:
    """Read an answer in chunks to its last chunk."""
    reader, writer = await asyncio.open_connection(*one.place)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    try:
        async with asyncio.timeout(30):
            await reader.readuntil(b"0\r\n\r\n")
    finally:
        writer.close()


async def test_an_address_is_announced_as_browsers_take_it() -> None:
    app = edge_application(_in_plain_words, make_logger(mask=Mask()))
    async with listening(app, "::1", 0) as url:
        port = int(url.rpartition(":")[2])

    assert url == f"http://[::1]:{port}"
    assert port > 0


@pytest.mark.parametrize(
    ("host", "reason"),
    [(PLACE, "something listens there already"), ("192.0.2.1", "annot assign"), ("no host", "")],
)
async def test_an_address_that_cannot_be_had_is_a_sentence(host: str, reason: str) -> None:
    log = make_logger(mask=Mask())
    with socket.create_server((PLACE, 0)) as taken:
        port = taken.getsockname()[1]
        app = edge_application(_in_plain_words, log)

        with pytest.raises(ConfigError, match=f"cannot listen on {host}:{port}: .*{reason}.*port"):
            async with listening(app, host, port):
                pass


@pytest.fixture(scope="module")
def validate() -> Callable[[Any], None]:
    """The validator, imported where it is used alone: it builds its grammars for seconds."""
    from openapi_spec_validator import validate

    return validate


@pytest.mark.parametrize("name", ["scheduler", "backend"])
async def test_the_openapi_document_is_valid(
    name: str, tmp_path: Path, validate: Callable[[Any], None]
) -> None:
    paths = {"scheduler": "/api/openapi.json", "backend": "/v1/openapi.json"}
    async with served(name, tmp_path) as one:
        answer = await one.ask(Request("GET", paths[name]))

    document = json.loads(answer.body)
    validate(document)
    assert document["openapi"].startswith("3.1")
    assert "#/$defs" not in answer.body.decode()


async def test_a_document_with_a_mistake_is_not_valid(
    tmp_path: Path, validate: Callable[[Any], None]
) -> None:
    async with served("scheduler", tmp_path) as one:
        document = json.loads((await one.ask(Request("GET", "/api/openapi.json"))).body)
    del document["paths"]["/api/schedules/{job_id}"]["delete"]["parameters"]

    with pytest.raises(Exception, match="job_id"):
        validate(document)
