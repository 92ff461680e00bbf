"""A TCP proxy that a test can make fall silent, to cut, or to refuse.

Mute, it still accepts connections and takes their bytes, as TCP sees it, and passes nothing on, in
either direction. A connection that was open meanwhile stays mute for ever: what was swallowed is
gone.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

LINGER_0 = struct.pack("ii", 1, 0)


class _Pair:
    """A client's connection and the one to the server; `mute` swallows what comes."""

    def __init__(self, near: socket.socket, far: socket.socket | None, *, mute: bool) -> None:
        self.near, self.far, self.mute = near, far, mute

    def cut(self) -> None:
        """Reset both."""
        for end in (self.near, self.far):
            if end is not None:
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


class TcpProxy:
    """A context: listens on a port of its own (`port`), passes on to another.

    Args:
        host: Of the server.
        port: Of the server.
        address: Where it listens.

    Attributes:
        swallowed: How many bytes of clients were taken and never passed on.
        opened: How many connections were accepted.
        lets_pass: Asked of each piece, and whether the client sent it; where it says no, the
            connection is cut instead.
    """

    def __init__(self, host: str, port: int, address: str = "127.0.0.1") -> None:
        self._server, self._address = (host, port), address
        self.swallowed = self.opened = 0
        self.lets_pass: Callable[[bytes, bool], bool] = lambda data, is_client: True
        self._mute = False
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server((address, 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, args=(self._listener,))]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refuse()
        for thread in self._threads:
            thread.join()

    def mute(self) -> None:
        """Pass nothing on, of the connections there are and of those that come."""
        self._mute = True
        for pair in self._pairs:
            pair.mute = True

    def speak(self) -> None:
        """Pass on what new connections say."""
        self._mute = False

    def cut(self) -> None:
        """Reset every connection."""
        for pair in list(self._pairs):
            pair.cut()

    def refuse(self) -> None:
        """Reset every connection, and take none."""
        self.stop_listening()
        self.cut()

    def stop_listening(self) -> None:
        """Take no connection."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def listen(self) -> None:
        """Take connections again, at the same port."""
        self._listener = socket.create_server((self._address, self.port))
        self._start(self._accept, self._listener)

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                self.opened += 1
                far = None if self._mute else socket.create_connection(self._server)
                pair = _Pair(near, far, mute=self._mute)
                self._pairs.append(pair)
                self._start(self._pump, pair, near, far)
                if far is not None:
                    self._start(self._pump, pair, far, near)

    def _pump(self, pair: _Pair, source: socket.socket, target: socket.socket | None) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if pair.mute:
                    self.swallowed += len(data) * (source is pair.near)
                elif target is not None:
                    if not self.lets_pass(data, source is pair.near):
                        break
                    target.sendall(data)
        pair.cut()
