"""Where a service listens, how much a client may hold of it, and how its process ends.

Owns the listening socket, the bounds on each connection, and the signals. A connection must bring
a whole request head in its time, never idles for ever, and is cut when its reader stands still.
What aiohttp answers by itself, as to a head that it cannot read, has the service's own form.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

from aiohttp import http, http_exceptions, web

from catalogzero.config.address import host_port, listener_at
from catalogzero.errors import AddressUnavailableError, ConfigError
from catalogzero.web.edge import HEADERS, SHAPE, HttpError, Shape
from catalogzero.web.request_reading import BODY_S, BODY_TIMEOUT_S

TAKEN = "cannot listen on {host}:{port}: {reason}; name another --port"
MAY_COME = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How much clients may hold of a service; times are seconds."""

    connections: int = 1_000
    """At once; further ones are answered 503. Never more than three quarters of what the process
    may have open."""
    head_s: float = 15.0
    """From the connection to the end of its first request's headers."""
    idle_s: float = 75.0
    """From an answer to the end of the next request's headers; longer than a proxy keeps one."""
    body_s: float = BODY_TIMEOUT_S
    """For which a body may take to arrive."""
    send_s: float = 60.0
    """For which an answer may wait for its reader."""
    head_bytes: int = 8190
    """In the request line, and in each header."""
    headers: int = 64
    """Of one request."""


@asynccontextmanager
async def listening(
    app: web.Application,
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    limits: ConnectionLimits | None = None,
    decompress: bool = True,
    stop_s: float = 2.0,
    taken: str = TAKEN,
) -> AsyncIterator[str]:
    """Serve an application while the block runs; gives its URL.

    Args:
        app: Made by `edge_application`, or one that mounts such a one.
        host: Address or name; an IPv6 address without brackets.
        port: 0 takes a free one.
        tls: Serves https.
        limits: On connections; `ConnectionLimits()` by default.
        decompress: The server undoes gzip and deflate; bodies are read as sent otherwise.
        stop_s: At the end, how long requests may go on before they are cancelled; those that do
            not end then are left after as long again.
        taken: The error where the address cannot be had, with `{host}`, `{port}` and `{reason}`.

    Raises:
        ConfigError: The address cannot be had.
    """
    limits = limits or ConnectionLimits()
    app[BODY_S] = limits.body_s
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=stop_s)
    try:
        await runner.setup()
        server = cast(web.Server, runner.server)
        connect = _OpenConnections(server, limits, app.get(SHAPE, _plain), decompress=decompress)
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(connect, host, port, ssl=tls, backlog=128)
        except (OSError, UnicodeError) as error:
            message = taken.format(host=host, port=port, reason=_reason(error, port))
            may_come = error.errno in MAY_COME if isinstance(error, OSError) else False
            raise (AddressUnavailableError if may_come else ConfigError)(message) from None
        with closing(listener):
            bound = listener.sockets[0].getsockname()[1]
            yield f"{'https' if tls else 'http'}://{host_port(host, bound)}"
    finally:
        await runner.cleanup()


@contextmanager
def stop_signal(within_s: float) -> Iterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set; the process ends within `within_s` of the first.

    What hangs then, a thread or a blocked event loop, is ended with the process and exit code 1.
    A signal after the block ends the process at once.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    # a thread, as the event loop may be what hangs
    end = threading.Timer(within_s, _end_now, [within_s])
    end.daemon = True

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if not end.is_alive() and not end.finished.is_set():
            end.start()
        loop.call_soon_threadsafe(stop.set)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_now(within_s: float) -> None:
    """End a process that does not end by itself."""
    sys.stderr.write(f"catalogzero: not ended {within_s:g} s after the signal: ended now\n")
    sys.stderr.flush()
    os._exit(1)


class _OpenConnections:
    """Makes the protocol of each connection, and counts them."""

    def __init__(
        self, server: web.Server, limits: ConnectionLimits, shape: Shape, *, decompress: bool
    ) -> None:
        self.server, self.limits, self.shape = server, limits, shape
        self.most = min(limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 // 4)
        self._options: dict[str, Any] = {
            "loop": asyncio.get_running_loop(),
            "access_log": None,
            "logger": LOG,
            "keepalive_timeout": limits.idle_s,
            "max_line_size": limits.head_bytes,
            "max_field_size": limits.head_bytes,
            "max_headers": limits.headers,
            "auto_decompress": decompress,
        }
        make_request = server.request_factory

        def first_of(message: Any, payload: Any, protocol: Any, *more: Any) -> web.BaseRequest:
            protocol.head_came()
            return make_request(message, payload, protocol, *more)

        server.request_factory = first_of

    def __call__(self) -> _HttpConnection:
        return _HttpConnection(self, self._options)


class _HttpConnection(web.RequestHandler):
    """A connection within its bounds."""

    def __init__(self, owner: _OpenConnections, options: dict[str, Any]) -> None:
        super().__init__(owner.server, **options)
        self._owner = owner
        self._head: asyncio.TimerHandle | None = None
        self._send: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many."""
        real = cast(asyncio.Transport, transport)
        if len(self._owner.server.connections) >= self._owner.most:
            real.write(FULL)
            real.close()
            return
        self._head = asyncio.get_running_loop().call_later(self._owner.limits.head_s, real.abort)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the timers too."""
        self.head_came()
        _cancel(self._send)
        super().connection_lost(exc)

    def head_came(self) -> None:
        """A request's head is whole: from here aiohttp's own idle time counts."""
        _cancel(self._head)

    def pause_writing(self) -> None:
        """The reader stands still: give it its time."""
        super().pause_writing()
        if self.transport is not None:
            send_s, loop = self._owner.limits.send_s, asyncio.get_running_loop()
            self._send = loop.call_later(send_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        _cancel(self._send)
        super().resume_writing()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp could not read, or what went wrong outside of the middlewares."""
        has_gone = isinstance(exc, ConnectionError)  # the client, in mid-body or mid-answer
        if status >= 500 and not has_gone:
            self.log_exception("Error outside of the application", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun: only its end can show the fault")
        answer = self._owner.shape(refusal_of(status, exc))
        answer.headers.update(HEADERS)
        answer.force_close()
        return answer


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def refusal_of(status: int, error: BaseException | None) -> HttpError:
    """The error for what aiohttp refused."""
    if status >= 500:
        return HttpError(status, "Internal error: see the service's log.")
    if isinstance(error, http_exceptions.LineTooLong):
        return HttpError(431, "The request line or a header is too long.")
    if isinstance(error, http_exceptions.ContentEncodingError):
        return HttpError(415, "This Content-Encoding is not supported.")
    return HttpError(400, "The HTTP request is malformed.")


def _plain(error: HttpError) -> web.Response:
    """The form of errors where the application has none."""
    return web.Response(status=error.status, text=f"{error.message}\n", headers=error.headers)


def is_fault(record: logging.LogRecord) -> bool:
    """Whether it is the service's own: what clients send would be a traceback for each."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, http.HttpProcessingError | web.RequestPayloadError)


LOG = logging.getLogger("catalogzero.web")
"""Where aiohttp reports faults that no middleware sees."""

LOG.addFilter(is_fault)


def _reason(error: OSError | UnicodeError, port: int) -> str:
    """Why an address cannot be had."""
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"something listens there already{listener_at(port)}"
    return os.strerror(number) if number and number > 0 else str(error)
