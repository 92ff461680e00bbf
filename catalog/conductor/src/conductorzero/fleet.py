"""The connections to all peers: one each, kept open, asked all at once.

Owns the clients. Where it takes a handler_id, an instance is `handler_id/instance_id`. A question
to a dead peer costs its own wait and nobody else's, and is never delivered later.
`response_time_ms` is measured here, by the asker.

Layer: catalog entry, imports public names of catalogzero only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Protocol, TypeAlias

from catalogzero import (
    Address,
    CallTimeoutError,
    CatalogZeroError,
    ConfigError,
    CurveClient,
    HandlerClient,
    NatsSettings,
    Reply,
    StartBy,
    UnreachableError,
    transport_for,
)

from conductorzero.peers import Peer, is_behind_nats

TIMEOUT = "Timeout"
NOT_SENT = "the call was not sent"
TEXT_CHARS = 300
BEYOND_MEASURE = 1e18
FILES_PER_CONNECTION = 6
FILES_BESIDE = 512


JsonObject: TypeAlias = dict[str, Any]
"""A JSON object: what a handler says of itself, or what a job method returns."""


@dataclass(slots=True, kw_only=True)
class Answer(Reply):
    """What came of one question to one handler: its reply, or what stands for its silence.

    `replied` is true for an error reply too: somebody is there.
    """

    handler_id: str
    replied: bool = True
    response_time_ms: float | None = None


class Clock(Protocol):
    """What the conductor needs of a handler's clock."""

    def now(self) -> datetime:
        """The wall clock: aware UTC."""

    def monotonic(self) -> float:
        """Seconds that never go backward."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        """Call `callback` on the running event loop after that many seconds."""

    async def sleep(self, delay_s: float) -> None:
        """Wait without holding up the loop."""


class Fleet:
    """Asks handlers over connections that stay open.

    Args:
        clock: What response times are read from, and what ends a wait.
        curve: The keys to reach a handler with, by its id, or an instance's; without them the wire
            is plain.
        nats: The keys for NATS servers.
    """

    def __init__(
        self,
        clock: Clock,
        curve: Mapping[str, Callable[[], CurveClient]] | None = None,
        nats: NatsSettings | None = None,
    ) -> None:
        self._clock = clock
        self._curve = curve or {}
        self._nats = nats
        self._clients: dict[str, tuple[Peer, HandlerClient | ConfigError]] = {}

    @property
    def handler_ids(self) -> list[str]:
        """The ids of all peers, in the order of their sources."""
        return list(self._clients)

    def named(self, handler_ids: Iterable[str] | None) -> list[str]:
        """Whom these ids mean, each once: of a handler with instances all, for None everybody.

        An unknown id stays as it is.
        """
        if handler_ids is None:
            return self.handler_ids
        instances: dict[str, list[str]] = {}
        for key, (peer, _) in self._clients.items():
            instances.setdefault(peer.handler_id, []).append(key)
        each = ([one] if one in self._clients else instances.get(one, [one]) for one in handler_ids)
        return list(dict.fromkeys(key for keys in each for key in keys))

    def peer(self, handler_id: str) -> Peer | None:
        """The peer of an id; None for an unknown one, and for a handler with instances."""
        known = self._clients.get(handler_id)
        return None if known is None else known[0]

    def connect(self, peers: Mapping[str, Peer]) -> None:
        """Hold a connection to exactly these peers: open what is new, close what is gone."""
        for handler_id, (known, client) in list(self._clients.items()):
            if handler_id in peers and peers[handler_id].address == known.address:
                self._clients[handler_id] = peers[handler_id], client
                continue
            del self._clients[handler_id]
            if isinstance(client, HandlerClient):
                client.close()
        # Before the first socket of many: ZeroMQ ends the process when it gets no descriptor.
        if peers.keys() != self._clients.keys():
            allow_connections(len(peers))
        for handler_id, peer in peers.items():
            if handler_id not in self._clients:
                self._clients[handler_id] = peer, self._open(peer)

    def close(self) -> None:
        """Close every connection."""
        self.connect({})

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

        def failed(error: str, code: str, *, replied: bool = False) -> Answer:
            return Answer(
                success=False, error=error, code=code, handler_id=handler_id, replied=replied
            )

        if handler_id not in self._clients:
            return failed(f"Unknown handler: {handler_id}", "unknown_handler")
        peer, client = self._clients[handler_id]
        if isinstance(client, ConfigError):
            return failed(str(client), "unreachable")
        began_s = self._clock.monotonic()
        try:
            reply = await client.request(
                method, params, timeout_s=timeout_s, request_id=request_id, start_by=start_by
            )
        except (UnreachableError, CallTimeoutError) as error:
            return failed(why_silent(peer, error), error.code)
        except CatalogZeroError as error:
            return failed(error.message, error.code, replied=True)
        took_ms = (self._clock.monotonic() - began_s) * 1_000
        said = {one.name: getattr(reply, one.name) for one in fields(reply)}
        return Answer(handler_id=handler_id, response_time_ms=round(took_ms, 3), **said)

    async def ask_all(
        self,
        handler_ids: Iterable[str],
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float,
    ) -> dict[str, Answer]:
        """Ask these handlers at once; the answers by id, in the order asked.

        `timeout_s` counts from here for all: calling a thousand takes its time too.
        """
        ends_s = self._clock.monotonic() + timeout_s

        async def ask(handler_id: str) -> Answer:
            # Each begins when the loop comes to it, which is late for the last of a thousand.
            left_s = max(0.0, ends_s - self._clock.monotonic())
            return await self.ask(handler_id, method, params, timeout_s=left_s)

        answers = await asyncio.gather(*(ask(one) for one in handler_ids))
        return {answer.handler_id: answer for answer in answers}

    def _open(self, peer: Peer) -> HandlerClient | ConfigError:
        """A connection; or, for an invalid address, what is wrong with it."""
        curve = self._curve.get(peer.key) or self._curve.get(peer.handler_id)
        try:
            carrier = transport_for(Address.parse(peer.address), client_keys=curve, nats=self._nats)
            return HandlerClient(peer.address, clock=self._clock, transport=carrier)
        except ConfigError as error:
            return error


def why_silent(peer: Peer, error: CatalogZeroError) -> str:
    """Why no reply came: of a NATS server what it says of it, such as that a key is refused."""
    said = error.message.partition(": ")[2] if is_behind_nats(peer.address) else ""
    return TIMEOUT if said in ("", NOT_SENT) else said


def part(metrics: JsonObject, name: str) -> JsonObject:
    """An object in what a handler says; an empty one where there is no such object."""
    value = metrics.get(name)
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A figure, or None for an invalid one: of another type, not finite, or beyond all measure."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < BEYOND_MEASURE else None  # false for NaN too


def short(value: Any) -> str | None:
    """A text, bounded; an error may come as a string or as an object."""
    if isinstance(value, dict):
        value = value.get("error") or value.get("message") or str(value)
    return None if value in (None, "") else str(value)[:TEXT_CHARS]


def load_of(metrics: Any) -> float:
    """How much a handler has to do: what runs, and what waits."""
    shown = metrics if isinstance(metrics, dict) else {}
    return sum(number(shown.get(name)) or 0 for name in ("in_flight", "queued"))


def allow_connections(number: int) -> None:
    """Raise this process's own limit of open files, where that many connections would pass it.

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
