"""A transport inside one event loop: what is sent arrives with the loop's next turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from catalogzero.config.address import Address
from catalogzero.wire.transport import Envelope, OnAbsent, OnReply


class LoopTransport:
    """Servers by their addresses, and the peers that are connected to them."""

    def __init__(self) -> None:
        self.servers: dict[str, LoopServer] = {}
        self.peers: list[LoopPeer] = []

    def serve(
        self,
        on_message: Callable[[Envelope, bytes], None],
        *,
        max_message_bytes: int = 1 << 20,
        report: Any = None,
    ) -> LoopServer:
        return LoopServer(self, on_message, max_message_bytes)

    def connect(
        self,
        address: str,
        on_reply: OnReply,
        on_writable: Callable[[], None],
        on_absent: OnAbsent,
    ) -> LoopPeer:
        peer = LoopPeer(self, address, on_reply, on_writable)
        self.peers.append(peer)
        return peer


class LoopServer:
    """One server of a `LoopTransport`."""

    def __init__(
        self,
        transport: LoopTransport,
        on_message: Callable[[Envelope, bytes], None],
        max_message_bytes: int,
    ) -> None:
        self.max_message_bytes = max_message_bytes
        self._transport, self._on_message, self._address = transport, on_message, ""

    async def open(self, address: Address) -> Address:
        self._address = str(address)
        self._transport.servers[self._address] = self
        for peer in self._transport.peers:
            if peer.address == self._address:
                asyncio.get_running_loop().call_soon(peer.on_writable)
        return address

    async def probe(self, address: Address) -> None:
        """Any address is good."""

    def take(self, peer: int, payload: bytes) -> None:
        if self._address and len(payload) <= 2 * self.max_message_bytes:
            self._on_message([b"%d" % peer], payload)

    def send(self, envelope: Envelope, payload: bytes) -> None:
        if not self._address:
            return
        peer = self._transport.peers[int(envelope[0])]
        asyncio.get_running_loop().call_soon(peer.hear, payload)

    async def close(self, drain_s: float = 0.0) -> None:
        self._transport.servers.pop(self._address, None)
        self._address = ""


class LoopPeer:
    """One connection of a `LoopTransport`."""

    fault = ""

    def __init__(
        self,
        transport: LoopTransport,
        address: str,
        on_reply: OnReply,
        on_writable: Callable[[], None],
    ) -> None:
        self.address, self.on_writable = address, on_writable
        self._transport, self._on_reply = transport, on_reply
        self._number, self._closed = len(transport.peers), False

    def try_send(self, payload: bytes) -> bool:
        server = self._transport.servers.get(self.address)
        if server is not None:
            asyncio.get_running_loop().call_soon(server.take, self._number, payload)
        return server is not None

    def hear(self, payload: bytes) -> None:
        if not self._closed:
            self._on_reply(payload)

    def close(self) -> None:
        self._closed = True

    async def wait_closed(self) -> None:
        """Nothing is held."""
