"""The connections to all peers: one each, kept open, asked all at once.

Owns the clients. A question to a dead peer costs its own wait and nobody else's, and is
never delivered later. `response_time_ms` is measured here, by the asker.

Layer: catalog entry, imports public names of catalogzero only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from catalogzero import (
    CallTimeoutError,
    CatalogZeroError,
    ConfigError,
    CurveClient,
    HandlerClient,
    StartBy,
    UnreachableError,
)

from conductorzero.peers import Peer

TIMEOUT = "Timeout"
FILES_PER_CONNECTION = 6
FILES_BESIDE = 512


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one question to one handler.

    `replied` is true for an error reply too: somebody is there. `error` is None on success.
    """

    handler_id: str
    replied: bool
    result: Any = None
    error: str | None = None
    code: str = ""
    run_id: str | None = None
    response_time_ms: float | None = None


class Clock(Protocol):
    """What the conductor needs of a handler's clock."""

    def now(self) -> datetime:
        """The wall clock: aware UTC."""

    def monotonic(self) -> float:
        """Seconds that never go backward."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        """Call `callback` on the running event loop after so many seconds."""

    async def sleep(self, delay_s: float) -> None:
        """Wait without holding up the loop."""


class Fleet:
    """Asks handlers over connections that stay open.

    Args:
        clock: What response times are read from, and what ends a wait.
        curve: The keys to reach a handler with, by its id; without them the wire is plain.
    """

    def __init__(self, clock: Clock, curve: Mapping[str, CurveClient] | None = None) -> None:
        self._clock = clock
        self._curve = curve or {}
        self._clients: dict[str, HandlerClient | ConfigError] = {}
        self._addresses: dict[str, str] = {}

    @property
    def handler_ids(self) -> list[str]:
        """The ids of all peers, in the order of their sources."""
        return list(self._clients)

    def connect(self, peers: Mapping[str, Peer]) -> None:
        """Hold a connection to exactly these peers: open what is new, close what is gone."""
        wanted = {handler_id: peer.address for handler_id, peer in peers.items()}
        if wanted == self._addresses:
            return
        for handler_id, address in list(self._addresses.items()):
            if wanted.get(handler_id) != address:
                self._close(handler_id)
        allow_connections(len(wanted))
        for handler_id, address in wanted.items():
            if handler_id not in self._clients:
                self._clients[handler_id] = self._open(handler_id, address)
                self._addresses[handler_id] = address

    def close(self) -> None:
        """Close every connection."""
        for handler_id in list(self._clients):
            self._close(handler_id)

    async def ask(
        self,
        handler_id: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float,
        request_id: str | None = None,
        start_by: StartBy | None = None,
    ) -> Answer:
        """Ask one handler; never raises for what the peer does or fails to do."""
        client = self._clients.get(handler_id)
        if client is None:
            text = f"Unknown handler: {handler_id}"
            return Answer(handler_id, replied=False, error=text, code="unknown_handler")
        if isinstance(client, ConfigError):
            return Answer(handler_id, replied=False, error=str(client), code="unreachable")
        began_s = self._clock.monotonic()
        try:
            reply = await client.request(
                method, params, timeout_s=timeout_s, request_id=request_id, start_by=start_by
            )
        except (UnreachableError, CallTimeoutError) as error:
            return Answer(handler_id, replied=False, error=TIMEOUT, code=error.code)
        except CatalogZeroError as error:
            return Answer(handler_id, replied=True, error=error.message, code=error.code)
        took_ms = (self._clock.monotonic() - began_s) * 1_000
        return Answer(
            handler_id,
            replied=True,
            result=reply.result,
            error=None if reply.success else reply.error,
            code=reply.code,
            run_id=reply.run_id,
            response_time_ms=round(took_ms, 3),
        )

    async def ask_all(
        self, handler_ids: Iterable[str], method: str, *, timeout_s: float
    ) -> dict[str, Answer]:
        """Ask these handlers at once; the answers by id, in the order asked.

        `timeout_s` counts from here for all: telling a thousand takes its time too.
        """
        ends_s = self._clock.monotonic() + timeout_s

        async def ask(handler_id: str) -> Answer:
            left_s = max(0.0, ends_s - self._clock.monotonic())
            return await self.ask(handler_id, method, timeout_s=left_s)

        answers = await asyncio.gather(*(ask(one) for one in handler_ids))
        return {answer.handler_id: answer for answer in answers}

    def _open(self, handler_id: str, address: str) -> HandlerClient | ConfigError:
        """A connection; or, for an address that is none, what is wrong with it."""
        try:
            return HandlerClient(address, curve=self._curve.get(handler_id), clock=self._clock)
        except ConfigError as error:
            return error

    def _close(self, handler_id: str) -> None:
        """Close and forget one connection."""
        self._addresses.pop(handler_id, None)
        client = self._clients.pop(handler_id)
        if isinstance(client, HandlerClient):
            client.close()


def allow_connections(number: int) -> None:
    """Raise this process's own limit of open files, where so many connections would pass it.

    A connection takes five or six descriptors, and ZeroMQ ends the process when there is none
    left. The hard limit stays; systems without limits have none to raise.
    """
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_BESIDE + FILES_PER_CONNECTION * number
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
