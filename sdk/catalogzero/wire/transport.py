"""What carries messages between processes: one Protocol, so that no caller knows which it is.

A transport knows frames, addresses and keys, never what a message means. Its callbacks are called
on the event loop that `serve` or `connect` was called on, and must not raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

Envelope: TypeAlias = Sequence[bytes]
"""What a server needs to answer the peer that a message came from; opaque to everyone else."""

OnReply: TypeAlias = Callable[[bytes | None], None]
"""Called with each reply, and with None once the connection has broken."""


class Server(Protocol):
    """Takes messages at one address, and answers the peers that sent them."""

    def bind(self, host: str, port: int) -> int:
        """Listen, and return the port (a free one for 0).

        Raises:
            ConfigError: The address cannot be bound; names it and the fix.
        """

    def send(self, envelope: Envelope, payload: bytes) -> None:
        """Send a reply; one to a peer that is gone or does not read is dropped."""

    def close(self) -> None:
        """Stop listening: the address is free when this returns; what was not sent is dropped."""


class Peer(Protocol):
    """One connection to one server; nothing is queued while that is not there."""

    def try_send(self, payload: bytes) -> bool:
        """Send now; false when the server is not connected or does not read."""

    def close(self) -> None:
        """Disconnect; what was not sent yet is dropped."""


class Transport(Protocol):
    """Makes servers and peers, with the keys that it was made with."""

    def serve(
        self,
        on_message: Callable[[Envelope, bytes], None],
        *,
        max_message_bytes: int = 1 << 20,
        on_refused: Callable[[str], None] = lambda key: None,
    ) -> Server:
        """A server, not yet bound.

        Args:
            on_message: Called with the envelope and the payload of each message; it may call
                `Server.send` at once.
            max_message_bytes: A peer that sends a longer message is disconnected.
            on_refused: Called with the public key of each peer that may not call.
        """

    def connect(self, address: str, on_reply: OnReply, on_writable: Callable[[], None]) -> Peer:
        """A connection to a server's address.

        Args:
            address: Such as `tcp://host:port`.
            on_reply: Called with the payload of each reply; with None once the connection has
                broken: what was sent over it gets no reply, and the peer may be closed.
            on_writable: Called whenever a message may be sent that could not be before.

        Raises:
            ConfigError: The address is not one of this transport.
        """
