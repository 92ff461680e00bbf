"""What each connection of a socket holds of this process's memory, in bytes.

ZeroMQ limits the length of a frame, and hands over whole messages: a message of endless frames
would grow until the process ends. So the bytes that the kernel received for a connection (TCP_INFO)
are held against those that were handed over of it, and the bytes sent to it against those that its
peer took. Where the system does not count (other systems than Linux, socket files), only this
process's memory shows it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import psutil

from catalogzero.config.address import host_port

FRAME_BYTES = 42
"""At most what the protocol adds to a frame, CURVE included."""

HELD_BYTES = 64 << 20
"""What all connections of a socket may hold together."""

LOOKS_A_SECOND = 10
REST_LOOKS = LOOKS_A_SECOND
HAND_BACK_LOOKS = 5 * LOOKS_A_SECOND
SUDDEN_BYTES = 32 << 20
GROWN_BYTES = 256 << 20
_ACKED_AND_RECEIVED = struct.Struct("=120xQQ")  # tcpi_bytes_acked, tcpi_bytes_received

if sys.platform == "linux":
    import fcntl
    import termios

    def _counters(handle: socket.socket) -> tuple[int, int]:
        """Bytes that the peer has taken, and those that were read of what it sent."""
        info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED_AND_RECEIVED.size)
        acked, received = _ACKED_AND_RECEIVED.unpack(info)
        unread = fcntl.ioctl(handle, termios.FIONREAD, b"\0" * 4)
        return acked, received - int.from_bytes(unread, sys.byteorder)
else:

    def _counters(handle: socket.socket) -> tuple[int, int]:
        """Nothing is counted here."""
        raise OSError


@dataclass(slots=True, eq=False)
class Connection:
    """One connection; `handle` is a descriptor of our own, so that it cannot become another's.

    `handed` and `sent` are bytes that went to and came from whoever uses the socket, `read` what
    ZeroMQ had read at the last look, `before` at the one before. It `is_served` where a message
    of it was handed over since the last look.
    """

    handle: socket.socket
    peer: str
    handed: int = 0
    sent: int = 0
    acked: int = 0
    read: int = 0
    before: int = 0
    spoke: bool = False
    is_served: bool = False
    name: bytes = b""

    @property
    def ahead(self) -> int:
        """Bytes that came and are not handed over."""
        return max(0, self.read - self.handed)

    @property
    def held(self) -> int:
        """Bytes that wait in either direction."""
        return self.ahead + max(0, self.sent - self.acked)

    def look(self) -> None:
        """Read the kernel's counters.

        Raises:
            OSError: The system does not count, or the connection is gone.
        """
        self.before, self.is_served = self.read, False
        self.acked, self.read = _counters(self.handle)
        # The peer takes the protocol's own bytes too, which nobody counted as sent.
        self.sent = max(self.sent, self.acked)

    def settle(self) -> None:
        """After the socket was drained: what was handed over since the last look came after it."""
        if self.spoke:
            self.handed, self.spoke = max(self.handed, self.before), False
        with suppress(OSError):
            self.handed = min(self.handed, _counters(self.handle)[1])


def hand_back_memory() -> None:
    """Give freed memory back to the system, where the platform can; blocks for a moment."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another libc has no such call
            ctypes.CDLL(None).malloc_trim(0)


class MemoryWatch:
    """Calls back whenever this process's memory has grown by `SUDDEN_BYTES`, on one event loop.

    Each callback learns whether it has grown by `GROWN_BYTES` since that was last so. Those of
    servers are called every second too: memory that was freed before may hold much unseen. What
    is free again a little after it grew is given back to the system, which else happens by chance.

    It looks while bytes come or go, and `REST_LOOKS` more: who is not called costs nothing.
    """

    _of_loops: ClassVar[dict[asyncio.AbstractEventLoop, MemoryWatch]] = {}

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = psutil.Process()
        self._callbacks: dict[Callable[[bool], None], bool] = {}
        self._stirred: set[socket.socket] = set()
        self._ticks = self._hand_back_at = self._rest_at = 0
        self._timer: asyncio.TimerHandle | None = None
        self._floor = self._seen = self._process.memory_info().rss

    @classmethod
    def here(cls) -> MemoryWatch:
        """The one of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in cls._of_loops:
            cls._of_loops[loop] = cls()
        return cls._of_loops[loop]

    def add(self, callback: Callable[[bool], None], *, every_second: bool) -> None:
        """Call this one too."""
        self._callbacks[callback] = every_second
        self.stir()

    def remove(self, callback: Callable[[bool], None]) -> None:
        """Call it no longer."""
        self._callbacks.pop(callback, None)
        if not self._callbacks:
            self._of_loops.pop(self._loop, None)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def watch(self, handle: socket.socket) -> None:
        """Look whenever bytes come over this connection."""
        with suppress(NotImplementedError):  # the loop has no such watch: then it never rests
            self._loop.add_reader(handle, self._came, handle)
            return
        self._rest_at = sys.maxsize

    def unwatch(self, handle: socket.socket) -> None:
        """Before its end."""
        self._stirred.discard(handle)
        with suppress(NotImplementedError):
            self._loop.remove_reader(handle)

    def stir(self) -> None:
        """Look for a while: something comes or goes."""
        self._rest_at = max(self._rest_at, self._ticks + REST_LOOKS)
        if self._timer is None:
            self._timer = self._loop.call_later(1 / LOOKS_A_SECOND, self._look)

    def _came(self, handle: socket.socket) -> None:
        # Who reads the connection is another: its bytes are to be heard of once, not until then.
        self._loop.remove_reader(handle)
        self._stirred.add(handle)
        self.stir()

    def _look(self) -> None:
        rss = self._process.memory_info().rss
        self._floor, self._seen = min(self._floor, rss), min(self._seen, rss)
        self._ticks += 1
        jumped, grown = rss - self._seen > SUDDEN_BYTES, False
        if self._ticks == self._hand_back_at:
            self._loop.run_in_executor(None, hand_back_memory)
        if jumped:
            if self._hand_back_at <= self._ticks:
                self._hand_back_at = self._ticks + HAND_BACK_LOOKS
            grown = rss - self._floor > GROWN_BYTES
            self._floor, self._seen = rss if grown else self._floor, rss
        self._timer = None
        if self._ticks < max(self._rest_at, self._hand_back_at):
            self._timer = self._loop.call_later(1 / LOOKS_A_SECOND, self._look)
        if self._ticks % REST_LOOKS == 0 or self._timer is None:
            for handle in self._stirred:
                self.watch(handle)
            self._stirred.clear()
        for callback, every_second in [*self._callbacks.items()]:
            if jumped or (every_second and self._ticks % LOOKS_A_SECOND == 0):
                callback(grown)


class Traffic:
    """The connections of one socket, by descriptor.

    Args:
        limit_bytes: How far a peer may be ahead.
        memory: Learns that bytes come or go.
        counts: Whether to use the kernel's counters where there are some.

    Attributes:
        port: The TCP port of this side or the other, by which a connection is known as one of the
            socket's; None where there is none.
    """

    def __init__(self, limit_bytes: int, memory: MemoryWatch, *, counts: bool = True) -> None:
        self._limit_bytes, self._memory = limit_bytes, memory
        self._counts = counts
        self.port: int | None = None
        self._turns = 0
        self._connections: dict[int, Connection] = {}
        self._by_name: dict[bytes, Connection] = {}

    def opened(self, fd: int) -> None:
        """A connection has come."""
        self.closed(fd)
        try:
            number = os.dup(fd)
        except OSError:  # gone already, or no descriptor is left
            return
        # The event comes late: by now the number may be another file's or another socket's.
        try:
            handle = socket.socket(fileno=number)
        except OSError:
            os.close(number)
            return
        try:
            own, name = handle.getsockname(), handle.getpeername()
        except OSError:
            handle.close()
            return
        # By now the descriptor may be a connection of another socket of this process.
        if isinstance(name, tuple) and self.port not in (None, own[1], name[1]):
            handle.close()
            return
        peer = host_port(*name[:2]) if isinstance(name, tuple) else "a local process"
        self._connections[fd] = Connection(handle, peer)
        self._memory.watch(handle)

    def closed(self, fd: int) -> Connection | None:
        """A connection is gone; gives it where this side ended it."""
        one = self._connections.pop(fd, None)
        if one is None:
            return None
        self._memory.unwatch(one.handle)
        if self._by_name.get(one.name) is one:
            del self._by_name[one.name]
        # Who ended it, ZeroMQ does not say; where the peer did, its end of the stream can be read.
        with one.handle:
            try:
                ended_there = one.handle.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                ended_there = False
            except OSError:
                ended_there = True
        return None if ended_there else one

    def taken(self, fd: int, name: bytes, size: int) -> None:
        """A whole message of the peer of that routing name was handed over."""
        self._turns += 1
        if one := self._connections.get(fd):
            one.handed += size
            one.spoke = one.is_served = True
            if one.name != name:
                one.name = name
                self._by_name[name] = one

    def sent(self, name: bytes, size: int) -> None:
        """A reply went to the peer of that routing name."""
        self._memory.stir()
        if one := self._by_name.get(name):
            one.sent += size

    def look(self) -> bool:
        """Read the counters of all connections; false where the system does not count."""
        self._turns = 0
        for one in [*self._connections.values()]:
            try:
                if not self._counts or one.handle.family == getattr(socket, "AF_UNIX", None):
                    return False
                one.look()
            except OSError:
                return False
        return True

    @property
    def all_had_turns(self) -> bool:
        """Whether everybody with a whole message was served since the last look.

        ZeroMQ serves them in turn: at least as many messages came as peers had sent something.
        """
        return self._turns >= sum(one.ahead > 0 for one in self._connections.values())

    def judge(self, *, drained: bool, grown: bool) -> list[Connection]:
        """After a look: shut down those who hold too much, and name them.

        Where others keep the socket from being `drained`, only those who had turns and no message.
        Where the process has `grown`, all together may hold no more than half of what one may.
        """
        cut = []
        allowed = self._limit_bytes // 2 if grown else HELD_BYTES
        for one in self._connections.values() if drained else ():
            one.settle()
        judged = [one for one in self._connections.values() if drained or not one.is_served]
        held = sum(one.held for one in judged)
        # Those who hold most go first, until the rest fits.
        for one in sorted(judged, key=lambda one: one.held, reverse=True):
            if one.ahead > self._limit_bytes or held > allowed:
                held -= one.held
                cut.append(one)
                with suppress(OSError):  # gone already
                    one.handle.shutdown(socket.SHUT_RDWR)
        return cut

    def close(self) -> None:
        """Let go of all."""
        for fd in [*self._connections]:
            self.closed(fd)
