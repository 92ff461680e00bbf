"""Watches of a socket: its file descriptor, and the connections that its monitor reports.

The descriptor is edge-triggered: whoever sends or stops short of draining has it looked at again.
"""

from __future__ import annotations

import asyncio
import select
import socket as sockets
import threading
from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

from catalogzero.wire.traffic import Connection, MemoryWatch, Traffic

UNDRAINED_S = 0.1


class ConnectionWatch:
    """Watches the connections of a socket: shuts down those that hold too much of the memory.

    Args:
        socket: The socket, not yet bound or connected.
        limit_bytes: How far a peer may be ahead.
        drain: Has the socket drained; then `drained` is to be called.
        on_cut: Called with a connection that is ended here.
        counts: As for `Traffic`.
        every_second: Whether to look at them every second too, not only when this process grows.
        on_grown: Called where nothing is counted, and the memory has grown.

    Attributes:
        last: The last event of the socket's monitor.
        was_refused: Whether the peer refused the keys of the last handshake that failed.
    """

    EVENTS = (
        zmq.Event.ACCEPTED
        | zmq.Event.CONNECTED
        | zmq.Event.DISCONNECTED
        | zmq.Event.CONNECT_RETRIED
        | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
        | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
        | zmq.Event.HANDSHAKE_FAILED_AUTH
    )

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        limit_bytes: int,
        drain: Callable[[], None],
        on_cut: Callable[[Connection], None] = lambda one: None,
        *,
        counts: bool = True,
        every_second: bool = False,
        on_grown: Callable[[], None] = lambda: None,
    ) -> None:
        self._socket, self._drain = socket, drain
        self._on_cut, self._on_grown = on_cut, on_grown
        self._judging: asyncio.TimerHandle | None = None
        self._grown = False
        self._failed_handshakes = 0
        self.last: int | None = None
        self.was_refused = False
        self._monitor = socket.get_monitor_socket(self.EVENTS, f"inproc://catalogzero-{id(self)}")
        self._memory = MemoryWatch.here()
        self.traffic = Traffic(limit_bytes, self._memory, counts=counts)
        self._watch = DescriptorWatch(self._monitor, self.take_events)
        self._memory.add(self._look, every_second=every_second)

    def take_events(self) -> bool:
        """Learn of connections that came and went."""
        opened = set()
        while int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            message = recv_monitor_message(self._monitor)
            event, fd = message["event"], message["value"]
            if event in (zmq.Event.ACCEPTED, zmq.Event.CONNECTED):
                self.traffic.opened(fd)
                opened.add(fd)
            elif event == zmq.Event.DISCONNECTED:
                ended_here = self.traffic.closed(fd)
                if self._failed_handshakes:
                    self._failed_handshakes -= 1
                elif ended_here and fd not in opened:  # else the number may be another's already
                    self._on_cut(ended_here)
            elif event != zmq.Event.CONNECT_RETRIED:
                self._failed_handshakes += 1
                self.was_refused = event == zmq.Event.HANDSHAKE_FAILED_AUTH
                continue
            self.last = event
        return False

    def drained(self) -> None:
        """The socket was drained: what came of a connection before the look is handed over."""
        if self._judging is not None:
            self._judging.cancel()
            self._judge(drained=True)

    def _judge(self, *, drained: bool = False) -> None:
        if not drained and not self.traffic.all_had_turns:
            self._judging = asyncio.get_running_loop().call_later(UNDRAINED_S, self._judge)
            return
        grown, self._grown, self._judging = self._grown, False, None
        for one in self.traffic.judge(drained=drained, grown=grown):
            self._on_cut(one)

    def close(self) -> None:
        """Watch no longer."""
        self._memory.remove(self._look)
        if self._judging is not None:
            self._judging.cancel()
        self._watch.close()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self.traffic.close()

    def _look(self, grown: bool) -> None:
        """This process grew: see who holds how much, and judge once the socket was drained."""
        self._grown = self._grown or grown
        if self._judging is not None:
            return
        self.take_events()
        if self.traffic.look():  # others may keep the socket from being drained: each has its turns
            self._judging = asyncio.get_running_loop().call_later(UNDRAINED_S, self._judge)
            self._drain()
        elif self._grown:
            self._grown = False
            self._on_grown()


class DescriptorWatch:
    """Calls `drain` on the loop when a socket may have something, until it says false."""

    def __init__(self, socket: zmq.Socket[bytes], drain: Callable[[], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self._drain = drain
        self._scheduled = False
        self._closed = False
        fd = int(socket.getsockopt(zmq.FD))
        try:
            self._loop.add_reader(fd, self._ready)
            self._stop: Callable[[], object] = lambda: self._loop.remove_reader(fd)
        except NotImplementedError:
            self._stop = DescriptorThread(self._loop, fd, self._ready).close
        self.look_again()

    def look_again(self) -> None:
        """Drain soon, whatever the descriptor says: its edge may have been consumed."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._again)

    def close(self) -> None:
        """Watch no longer."""
        self._closed = True
        self._stop()

    def _again(self) -> None:
        self._scheduled = False
        self._ready()

    def _ready(self) -> None:
        if not self._closed and self._drain() and not self._closed:
            self.look_again()


class DescriptorThread:
    """Replaces `add_reader` on loops that have none (Windows' proactor loop)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, ready: Callable[[], None]) -> None:
        self._loop, self._fd, self._ready = loop, fd, ready
        self._wake, self._woken = sockets.socketpair()
        self._seen = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="catalogzero-zmq", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended = True
        self._seen.set()
        self._wake.send(b"x")
        self._thread.join()
        self._wake.close()
        self._woken.close()

    def _run(self) -> None:
        while not self._ended:
            watched: list[int | sockets.socket] = [self._fd, self._woken]
            readable, _, _ = select.select(watched, [], [])
            if self._fd in readable and not self._ended:
                self._seen.clear()
                self._loop.call_soon_threadsafe(self._on_loop)
                self._seen.wait()

    def _on_loop(self) -> None:
        self._ready()
        self._seen.set()
