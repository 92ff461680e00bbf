"""ZMTP by hand, over TCP or a socket file: what a peer may send that no ZeroMQ library sends."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

from catalogzero.config.address import Address

READY = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"
MORE, LAST, LONG_LAST = b"\1", b"\0", b"\2"
EMPTY_FRAMES = b"\1\0" * 30_000


class Zmtp:
    """One connection past its handshake, which a test writes bytes to."""

    def __init__(self, address: str) -> None:
        at = Address.parse(address)
        if at.path:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(at.path)
        else:
            self.socket = socket.create_connection((at.host, at.port))
        self.socket.settimeout(20)
        greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + b"\0" * 48
        try:
            self.socket.sendall(greeting + b"\4" + bytes([len(READY)]) + READY)
            self.read(64)
            self.read(self.read(2)[1])
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def read(self, size: int) -> bytes:
        """Exactly that number of bytes."""
        data = b""
        while len(data) < size:
            data += (got := self.socket.recv(size - len(data)))
            if not got:
                raise ConnectionError("the other end closed")
        return data

    def call(self, body: bytes) -> None:
        """One call: a frame of any length."""
        self.socket.sendall(LONG_LAST + len(body).to_bytes(8, "big") + body)

    def flood(self, most_bytes: int) -> int:
        """Frames of one endless message until the other end closes; how many bytes went."""
        sent = 0
        try:
            while sent < most_bytes:
                self.socket.sendall(EMPTY_FRAMES)
                sent += len(EMPTY_FRAMES)
        except (ConnectionError, TimeoutError):
            return sent
        return sent

    def is_closed(self) -> bool:
        """Wait for the other end to close; false when it goes on."""
        try:
            while self.socket.recv(1 << 20):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True
