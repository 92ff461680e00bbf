"""What carries messages between processes: one Protocol, so that no caller knows which it is.

A transport knows frames, addresses and keys, never what a message means. Its callbacks are called
on the event loop that `serve` or `connect` was called on, and must not raise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from catalogzero.config.address import Address
from catalogzero.errors import CatalogZeroError, UnreachableError

Envelope: TypeAlias = Sequence[bytes]
"""What a server needs to answer the peer that a message came from; its first part names that
peer, the rest is opaque to everyone else.
"""

OnReply: TypeAlias = Callable[[bytes | CatalogZeroError], None]
"""Called with each reply, and with an error once the connection has broken."""

OnAbsent: TypeAlias = Callable[[Sequence[bytes], UnreachableError], None]
"""Called with messages that were taken to be sent, and that nobody was there to receive: none of
them will be delivered. What else was sent over the connection gets no reply.
"""

Report: TypeAlias = Callable[[str, Mapping[str, object]], None]
"""Called with an event for the operator, and its fields:

- `client_key_refused`: `public_key` of a peer that may not call.
- `peer_cut`: `peer`, `held_bytes`, `max_frame_bytes` of one that was disconnected, as it sent too
  long a frame, an endless message or no protocol, did not read, or fell silent.
- `reply_dropped`: `reply_bytes` of a reply to a peer that does not read.
- `call_too_large`: `call_bytes` and `limit` of a message that was not handed over.
- `server_lost`: the `error` for which the NATS server is not connected; it is tried again.
- `server_refused`: the `error` for which a reply was not sent: it has no permission.
- `socket_reopened`: all were disconnected, as this process grew by `grown_bytes`.
- `socket_lost`: the `error` for which that failed; it is tried again.
"""


def ignore(event: str, fields: Mapping[str, object]) -> None:
    """A `Report` to nobody."""


class Server(Protocol):
    """Takes messages at one address, and answers the peers that sent them."""

    @property
    def max_message_bytes(self) -> int:
        """The longest message that it can take and send, once it is open."""

    async def open(self, address: Address) -> Address:
        """Listen, and return the address to call it at, with its port (a free one for 0).

        Raises:
            ConfigError: It cannot listen there; names the address and the fix.
        """

    async def probe(self, address: Address) -> None:
        """Find out whether it could listen there; no message is taken.

        Raises:
            ConfigError: As `open`.
        """

    def send(self, envelope: Envelope, payload: bytes) -> None:
        """Send a reply; one to a peer that is gone, or behind by too much, is dropped."""

    async def close(self, drain_s: float = 0.0) -> None:
        """Stop listening: the address is free when this returns.

        Args:
            drain_s: How long the last replies may take to leave; then they are dropped.
        """


class Peer(Protocol):
    """One connection to one server; nothing is queued while that is not there."""

    @property
    def fault(self) -> str:
        """Why there is no connection, as far as that is known; else empty."""

    def try_send(self, payload: bytes) -> bool:
        """Send now; false when the server is not connected or does not read.

        Raises:
            TooLargeError: The transport carries no message of that length.
        """

    def close(self) -> None:
        """Disconnect; what was not sent yet is dropped, and nothing is called any more."""

    async def wait_closed(self) -> None:
        """Wait until what the connection held is given back, after `close`."""


class Transport(Protocol):
    """Makes servers and peers, with the keys that it was made with."""

    def serve(
        self,
        on_message: Callable[[Envelope, bytes], None],
        *,
        max_message_bytes: int = 1 << 20,
        report: Report = ignore,
    ) -> Server:
        """A server, not yet bound.

        Args:
            on_message: Called with the envelope and the payload of each message; it may call
                `Server.send` at once.
            max_message_bytes: A message of up to twice that is handed over, so that it can be
                answered; a peer that sends a longer one is disconnected.
            report: Called with what an operator should know.
        """

    def connect(
        self,
        address: str,
        on_reply: OnReply,
        on_writable: Callable[[], None],
        on_absent: OnAbsent,
    ) -> Peer:
        """A connection to a server's address.

        Args:
            address: An address of this transport, as `config.address` writes it.
            on_reply: Called with the payload of each reply; with a CallTimeoutError, or a
                TooLargeError, once the connection has broken: what was sent over it gets no reply,
                and the peer may be closed.
            on_writable: Called whenever a message may be sent that could not be before.
            on_absent: Called with messages that cannot be delivered any more.

        Raises:
            ConfigError: The address is not one of this transport.
        """
