"""ZeroMQ sockets on the running event loop: the one module that imports zmq.

Plain sockets watched with `loop.add_reader` and drained in the callback, which measured three
times the throughput of `zmq.asyncio` (docs/performance.md). The socket's file descriptor is
edge-triggered: it is looked at again after every send, or a message would wait for ever.

It knows frames and keys, never what they mean. Every socket closes with LINGER 0.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket as sockets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from catalogzero.config.address import Address, host_port
from catalogzero.config.key_files import read_key
from catalogzero.config.settings import MAX_MESSAGE_BYTES
from catalogzero.errors import CallTimeoutError, ConfigError, TooLargeError
from catalogzero.wire.traffic import (
    FRAME_BYTES,
    GROWN_BYTES,
    Connection,
    MemoryWatch,
    Traffic,
)
from catalogzero.wire.transport import Envelope, OnReply, Report, ignore

MAX_SOCKETS = 16_384
MAX_ENVELOPE_FRAMES = 8
DRAIN_MESSAGES = 256
HIGH_WATER_MESSAGES = 10_000
MIB = 1 << 20
PIPE_BYTES = 32 * MIB
LATE_BYTES = 16 * MIB
"""Of the replies that wait for one peer: in ZeroMQ's own queue, and beside it."""

LATE_REPLY_BYTES = 500
"""What a waiting reply costs beside its payload."""

UNDRAINED_S = 0.1
REOPEN_S = 1.0
HANDSHAKE_TIMEOUT_MS = 5_000
RECONNECT_MS = 50
RECONNECT_MAX_MS = 2_000
HEARTBEAT_MS = 15_000
BREAK_S = 0.2
SEND = int(zmq.NOBLOCK)
SEND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
"""As numbers: combining flags takes longer than sending."""
ZAP_DOMAIN = b"catalogzero"

_shared: tuple[int, zmq.Context[zmq.Socket[bytes]]] | None = None


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A CURVE key pair, each key 40 characters of z85 (RFC 32)."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """A fresh pair."""
        return cls(*zmq.curve_keypair())

    @classmethod
    def read(cls, path: Path) -> Self:
        """The pair in a file of two lines, `public: …` and `secret: …`.

        Raises:
            ConfigError: No such file, or not a key pair.
        """
        try:
            lines = read_key(path).splitlines()
            pairs = dict(line.split(": ", 1) for line in lines if ": " in line)
            return cls(_key(pairs["public"]), _key(pairs["secret"]))
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: no key pair ({error}); `catalogzero keys new`") from None


@dataclass(frozen=True, slots=True)
class CurveServer:
    """The server's pair and the public keys that may call it."""

    keys: CurveKeys
    clients: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class CurveClient:
    """The client's pair and the server's public key."""

    keys: CurveKeys
    server: bytes


def public_key(text: str) -> bytes:
    """A public key as it is written.

    Raises:
        ConfigError: It is none.
    """
    try:
        return _key(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no public key of 40 characters") from None


def read_client_keys(path: Path) -> frozenset[bytes]:
    """The public keys in a file, one a line; `#` begins a comment.

    Raises:
        ConfigError: No such file, or a line that is no key; names the line.
    """
    keys = set()
    for place, text in _key_lines(path, "the allowed client keys"):
        try:
            keys.add(_key(text.removeprefix("public: ")))
        except ValueError:
            raise ConfigError(f"{place}: not a public key of 40 characters") from None
    return frozenset(keys)


def read_server_keys(path: Path) -> dict[str, bytes]:
    """The public keys of handlers in a file of lines `handler_id: key`; `#` begins a comment.

    Raises:
        ConfigError: No such file, or a line that is not of that form; names the line.
    """
    keys = {}
    for place, text in _key_lines(path, "the handlers' keys"):
        handler_id, _, key = text.partition(": ")
        try:
            keys[handler_id] = _key(key)
        except ValueError:
            message = f"{place}: not `handler_id: public key of 40 characters`"
            raise ConfigError(message) from None
    return keys


def _key_lines(path: Path, what: str) -> Iterator[tuple[str, str]]:
    """Each line of a file of keys that is not a comment: where it is, and its text."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {what} cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        text = line.split(" #")[0].strip()
        if text and not text.startswith("#"):
            yield f"{path}:{number}", text


@dataclass(frozen=True, slots=True)
class ZeroMQ:
    """The transport over ZeroMQ: ROUTER servers and DEALER peers, with CURVE where keys are given.

    `server_keys` are those that `serve` uses, `client_keys` those of `connect`; without them the
    wire is plain. A connection over which a reply of more than `MAX_MESSAGE_BYTES` comes is cut.
    `counts` is whether the kernel's counters tell who holds how much memory (see `traffic`).
    """

    server_keys: CurveServer | None = None
    client_keys: CurveClient | None = None
    counts: bool = True

    def serve(
        self,
        on_message: Callable[[Envelope, bytes], None],
        *,
        max_message_bytes: int = 1 << 20,
        report: Report = ignore,
    ) -> RouterServer:
        """See `Transport.serve`; made and used on one event loop."""
        return RouterServer(
            on_message, max_message_bytes, self.server_keys, report, counts=self.counts
        )

    def connect(
        self, address: str, on_reply: OnReply, on_writable: Callable[[], None]
    ) -> DealerPeer:
        """See `Transport.connect`; made and used on one event loop."""
        return DealerPeer(address, on_reply, on_writable, curve=self.client_keys)


class RouterServer:
    """A bound ROUTER socket: hands over each message, sends each reply, within bounds of memory.

    Args:
        on_message: Called on the loop with (envelope frames, payload) of each message; it may
            call `send` at once. It must not raise.
        max_message_bytes: A frame of up to twice that is handed over, so that it can be answered;
            a peer that sends a longer one is disconnected.
        curve: Keys; without them the wire is plain.
        report: Called on the loop with what an operator should know (see `transport.Report`).
        counts: As for `ZeroMQ`.
    """

    def __init__(
        self,
        on_message: Callable[[Envelope, bytes], None],
        max_message_bytes: int = 1 << 20,
        curve: CurveServer | None = None,
        report: Report = ignore,
        *,
        counts: bool = True,
    ) -> None:
        self._on_message, self._report = on_message, report
        self._max_frame_bytes = 2 * max_message_bytes
        self._high_water = max(2, PIPE_BYTES // max_message_bytes)
        self._curve = curve
        self._counts = counts
        self._bound: Address | None = None
        self._burst = 1
        self._reset()

    def _reset(self) -> None:
        """What is known of one time of being open."""
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._gate: _Gate | None = None
        self._watch: _Watch | None = None
        self._socket_file: Path | None = None
        self._parts: list[bytes] = []
        self._part_bytes = self._part_frames = self._source_fd = 0
        self._late: dict[bytes, _Late] = {}

    def bind(self, address: Address) -> Address:
        """Listen, and return the address with its port (a free one for 0); on the loop.

        Raises:
            ConfigError: The address cannot be bound; names it and the fix.
        """
        context = zmq.Context()  # of its own: only its end waits until the address is free
        self._context = context
        self._socket = context.socket(zmq.ROUTER)
        _configure(self._socket, self._max_frame_bytes, self._high_water)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # says when it drops a reply
        self._socket.setsockopt(zmq.IPV6, 1 if ":" in address.host else 0)
        self._connections = _Connections(
            self._socket, self._max_frame_bytes + MIB, self._look_again, self._on_cut
        )
        self._connections.start(counts=self._counts, every_second=True, on_grown=self._reopen)
        try:
            if self._curve:
                self._gate = _Gate(context, self._curve.clients, self._report)
                self._socket.curve_server = True
                self._socket.curve_secretkey = self._curve.keys.secret
                self._socket.curve_publickey = self._curve.keys.public
                self._socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
                self._socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            if address.path:
                self._socket_file = _bind_socket_file(self._socket, address)
            else:
                name = (
                    "127.0.0.1" if address.host == "localhost" else address.host
                )  # binds no names
                self._socket.bind(f"tcp://{host_port(name, address.port or '*')}")
        except zmq.ZMQError as error:
            self._release()
            raise ConfigError(_bind_fault(address, error)) from None
        except ConfigError:
            self._release()
            raise
        self._watch = _Watch(self._socket, self._drain)
        if not address.path:
            endpoint = bytes(self._socket.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")
            address = Address(address.host, int(endpoint.rpartition(":")[2]))
            self._connections.traffic.port = address.port
        self._bound = address
        return address

    def send(self, envelope: Envelope, payload: bytes) -> None:
        """Send a reply, later where its peer does not read now.

        One to a peer that is gone, or behind by too much, is dropped.
        """
        if self._watch is None:
            return
        self._connections.traffic.sent(envelope[0], len(payload))
        late = self._late.get(envelope[0])
        if late is None and not self._try_send(envelope, payload):
            late = self._late[envelope[0]] = _Late()
        if late is not None and not late.take(envelope, payload):
            self._connections.traffic.sent(envelope[0], -len(payload))
            self._report("reply_dropped", {"reply_bytes": len(payload)})
        self._watch.look_again()

    def close(self) -> None:
        """Stop listening: the address is free when this returns; what was not sent is dropped."""
        self._bound = None
        self._release()

    def _release(self) -> None:
        if self._context is None:
            return
        if self._watch:
            self._watch.close()
        self._connections.close()
        self._socket.close(linger=0)
        if self._gate:
            self._gate.close()
        self._context.term()
        if self._socket_file is not None:
            self._socket_file.unlink(missing_ok=True)
        self._reset()

    def _reopen(self) -> None:
        """Let go of all that the connections hold; those who called connect again by themselves."""
        address = self._bound
        if address is None:
            return
        self._report("socket_reopened", {"grown_bytes": GROWN_BYTES})
        self._release()
        try:
            self.bind(address)
        except ConfigError as error:
            self._report("socket_lost", {"error": error.message})
            asyncio.get_running_loop().call_later(REOPEN_S, self._reopen)

    def _on_cut(self, one: Connection) -> None:
        fields = {
            "peer": one.peer,
            "held_bytes": one.held,
            "max_frame_bytes": self._max_frame_bytes,
        }
        self._report("peer_cut", fields)

    def _look_again(self) -> None:
        if self._watch:
            self._watch.look_again()

    def _try_send(self, envelope: Envelope, payload: bytes) -> bool:
        """Send now; false where the peer does not read."""
        try:
            for part in envelope:
                self._socket.send(part, SEND_MORE)
            self._socket.send(payload, SEND)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            return error.errno == zmq.EHOSTUNREACH  # gone: nobody is there to read it
        return True

    def _drain(self) -> bool:
        """Take as many messages as came last time; what they ask for begins before more is taken.

        A lone call's job need not wait until the socket has said that there is no other.
        """
        self._connections.take_events()
        for taken in range(self._burst):
            try:
                is_whole = self._receive()
            except zmq.Again:
                self._burst = max(taken, 1)
                self._send_late()
                self._connections.drained()
                return False
            if not is_whole:
                return True
            parts, self._parts = self._parts, []
            if 2 <= self._part_frames <= MAX_ENVELOPE_FRAMES:
                self._on_message(parts[:-1], parts[-1])
            if self._watch is None:  # it was closed meanwhile
                return False
        self._burst = min(2 * self._burst, DRAIN_MESSAGES)
        return True

    def _receive(self) -> bool:
        """Take one message into `_parts`, or the next frames of one that has too many.

        Raises:
            zmq.Again: There is none.
        """
        if not self._parts:
            first = self._socket.recv(zmq.NOBLOCK, copy=False)
            self._source_fd = int(first.get(zmq.SRCFD))
            self._parts.append(first.bytes)
            self._part_bytes, self._part_frames = 0, 1
        for _ in range(DRAIN_MESSAGES):
            if not self._socket.getsockopt(zmq.RCVMORE):
                traffic = self._connections.traffic
                size = self._part_bytes + self._part_frames * FRAME_BYTES
                traffic.taken(self._source_fd, self._parts[0], size)
                return True
            frame = self._socket.recv(zmq.NOBLOCK)
            self._part_bytes += len(frame)
            self._part_frames += 1
            if self._part_frames <= MAX_ENVELOPE_FRAMES:
                self._parts.append(frame)
        return False

    def _send_late(self) -> None:
        """Send what waited, as far as its peers read again."""
        for name, late in [*self._late.items()]:
            while late.replies and self._try_send(*late.replies[0]):
                late.drop_first()
            if not late.replies:
                del self._late[name]


class _Late:
    """Replies that wait for one peer to read."""

    def __init__(self) -> None:
        self.replies: deque[tuple[Envelope, bytes]] = deque()
        self._bytes = 0

    def take(self, envelope: Envelope, payload: bytes) -> bool:
        """Keep a reply; false where too much waits."""
        size = len(payload) + LATE_REPLY_BYTES
        if self._bytes + size > LATE_BYTES:
            return False
        self._bytes += size
        self.replies.append((envelope, payload))
        return True

    def drop_first(self) -> None:
        """The first one is sent."""
        self._bytes -= len(self.replies.popleft()[1]) + LATE_REPLY_BYTES


class DealerPeer:
    """A connected DEALER socket: one peer, nothing queued while it is not there.

    Args:
        address: `tcp://host:port`, or `ipc:///folder/name.sock`.
        on_reply: Called on the loop with the payload of each reply, and with an error once the
            connection has broken (then `close` it). It must not raise.
        on_writable: Called on the loop whenever a message may be sent that could not before.
        curve: Keys; without them the wire is plain.
    """

    def __init__(
        self,
        address: str,
        on_reply: OnReply,
        on_writable: Callable[[], None],
        *,
        curve: CurveClient | None = None,
    ) -> None:
        self._on_reply, self._on_writable = on_reply, on_writable
        self._address = Address.parse(address)
        self._socket = _context().socket(zmq.DEALER)
        _configure(self._socket, MAX_MESSAGE_BYTES, HIGH_WATER_MESSAGES)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # only a finished connection has a queue
        self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)  # a dead connection is noticed
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 2 * HEARTBEAT_MS)
        if curve:
            self._use(curve)
        self._blocked = False
        self._connected = False
        self._unanswered = 0
        self._breaking: asyncio.TimerHandle | None = None
        self._connections = _Connections(
            self._socket, 2 * MAX_MESSAGE_BYTES, self._look_again, lambda one: None
        )
        self._connections.start(counts=True, every_second=False, on_grown=lambda: None)
        self._connections.traffic.port = self._address.port or None
        try:
            self._socket.connect(str(self._address))
        except zmq.ZMQError as error:
            self._connections.close()
            self._socket.close(linger=0)
            raise ConfigError(f"{address!r} is not an address: {error}") from error
        self._watch = _Watch(self._socket, self._drain)

    def _use(self, curve: CurveClient) -> None:
        """Encrypt with these keys."""
        try:
            self._socket.curve_publickey = curve.keys.public
            self._socket.curve_secretkey = curve.keys.secret
            self._socket.curve_serverkey = curve.server
        except (zmq.ZMQError, ValueError) as error:
            self._socket.close(linger=0)
            message = "the handler's public key is invalid: take the `public` line of its key file"
            raise ConfigError(message) from error

    def try_send(self, payload: bytes) -> bool:
        """Send now; false when the peer is not connected or does not read."""
        try:
            self._socket.send_multipart((b"", payload), zmq.NOBLOCK)
        except zmq.Again:
            self._blocked = True
            self._watch.look_again()
            return False
        self._connected = True
        self._unanswered += 1
        self._watch.look_again()
        return True

    def close(self) -> None:
        """Disconnect; what was not sent yet is dropped."""
        self._watch.close()
        if self._breaking is not None:
            self._breaking.cancel()
        self._connections.close()
        self._socket.close(linger=0)

    def _look_again(self) -> None:
        self._watch.look_again()

    def _drain(self) -> bool:
        for _ in range(DRAIN_MESSAGES):
            try:
                last = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            fd, size = int(last.get(zmq.SRCFD)), len(last) + FRAME_BYTES
            while last.more:
                last = self._socket.recv(zmq.NOBLOCK, copy=False)
                size += len(last) + FRAME_BYTES
            self._connections.traffic.taken(fd, b"", size)
            self._unanswered = max(0, self._unanswered - 1)
            self._on_reply(last.bytes)
        else:
            return True
        self._connections.drained()
        events = int(self._socket.getsockopt(zmq.EVENTS))
        if self._blocked and events & zmq.POLLOUT:
            self._blocked = False
            self._on_writable()
            return True
        is_full = self._unanswered >= HIGH_WATER_MESSAGES
        if self._connected and not is_full and not events & (zmq.POLLIN | zmq.POLLOUT):
            self._connected = False
            self._connections.take_events()
            delay_s = BREAK_S if self._connections.last == zmq.Event.DISCONNECTED else 0
            self._breaking = asyncio.get_running_loop().call_later(delay_s, self._report_break)
            return False
        return bool(events & zmq.POLLIN)

    def _report_break(self) -> None:
        """Report that the connection broke; ZeroMQ would not connect again by itself after a reply
        that was too long, and says at once, after any other break, that it does.
        """
        self._connections.take_events()
        if self._connections.last == zmq.Event.DISCONNECTED:
            message = f"{self._address} replied more than {MAX_MESSAGE_BYTES:,} bytes"
            self._on_reply(TooLargeError(message))
        else:
            message = f"the connection to {self._address} broke before a reply came"
            self._on_reply(CallTimeoutError(message))


class _Connections:
    """Watches the connections of a socket: shuts down those that hold too much of the memory.

    Args:
        socket: The socket, not yet bound or connected.
        limit_bytes: How far a peer may be ahead.
        drain: Has the socket drained; then `drained` is to be called.
        on_cut: Called with a connection that is ended here.

    Attributes:
        last: The last event of the socket's monitor.
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
        on_cut: Callable[[Connection], None],
    ) -> None:
        self._socket, self._drain, self._on_cut = socket, drain, on_cut
        self._limit_bytes = limit_bytes
        self._judging: asyncio.TimerHandle | None = None
        self._grown = False
        self._failed_handshakes = 0
        self.last: int | None = None
        self._monitor = socket.get_monitor_socket(self.EVENTS, f"inproc://catalogzero-{id(self)}")

    def start(self, *, counts: bool, every_second: bool, on_grown: Callable[[], None]) -> None:
        """Begin; the connections are looked at when this process grows, perhaps every second too.

        `on_grown` is called where nothing is counted, and the memory has grown.
        """
        self.traffic = Traffic(self._limit_bytes, counts=counts)
        self._on_grown = on_grown
        self._watch = _Watch(self._monitor, self.take_events)
        self._memory = MemoryWatch.here()
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


class _Watch:
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
            self._stop = _WatchThread(self._loop, fd, self._ready).close
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


class _WatchThread:
    """Stands in for `add_reader` on loops that have none (Windows' proactor loop)."""

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


class _Gate:
    """Answers ZAP (RFC 27): a CURVE key that is not listed gets nothing."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        allowed: frozenset[bytes],
        report: Report,
    ) -> None:
        self._allowed, self._report = allowed, report
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind("inproc://zeromq.zap.01")
        self._watch = _Watch(self._socket, self._drain)

    def close(self) -> None:
        """Answer no longer."""
        self._watch.close()
        self._socket.close(linger=0)

    def _drain(self) -> bool:
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        asked = len(frames) == 7 and frames[2] == ZAP_DOMAIN and frames[5] == b"CURVE"
        key = z85.encode(frames[6]) if asked else b""
        known = key in self._allowed
        verdict = (b"200", b"OK") if known else (b"400", b"this key is not allowed")
        if not known:
            self._report("client_key_refused", {"public_key": key.decode()})
        self._socket.send_multipart([b"1.0", frames[1], *verdict, b"", b""])
        return True


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """The process's own context; a forked child makes its own."""
    global _shared
    if _shared is None or _shared[0] != os.getpid() or _shared[1].closed:
        context = zmq.Context[zmq.Socket[bytes]]()
        context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        _shared = os.getpid(), context
    return _shared[1]


def _configure(socket: zmq.Socket[bytes], max_frame_bytes: int, high_water: int) -> None:
    """What both ends have in common; `high_water` messages wait in each direction."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
    socket.setsockopt(zmq.SNDHWM, high_water)
    socket.setsockopt(zmq.RCVHWM, high_water)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)


def _key(text: str) -> bytes:
    """A z85 key of 40 characters."""
    key = text.strip().encode("ascii")
    if len(key) != 40:
        raise ValueError("a key has 40 characters")
    z85.decode(key)
    return key


def _bind_socket_file(socket: zmq.Socket[bytes], address: Address) -> Path:
    """Bind a socket file of mode 0660, with the group of its folder where this user may give it.

    A file that nobody listens at is what a process left that was killed: it is replaced.

    Raises:
        ConfigError: Somebody listens there, or the file is none of a socket.
    """
    path = Path(address.path)
    try:
        if path.exists() and not path.is_socket():
            raise ConfigError(f"{path} is not a socket: set another `host`")
        with sockets.socket(sockets.AF_UNIX) as probe:
            probe.setblocking(False)
            if probe.connect_ex(address.path) in (0, errno.EAGAIN, errno.EACCES):
                message = "is taken: stop what listens there, or set another `host`"
                raise ConfigError(f"{address} {message}")
        before = os.umask(0o117)
        try:
            socket.bind(str(address))
        finally:
            os.umask(before)
        with suppress(PermissionError):  # no member of that group: it keeps its own
            os.chown(path, -1, path.parent.stat().st_gid)
    except (OSError, AttributeError) as error:
        raise ConfigError(f"cannot listen at {address}: {error}") from None
    return path


def _bind_fault(address: Address, error: zmq.ZMQError) -> str:
    """The sentence for an address that cannot be bound."""
    host, port = address.host, address.port
    if address.path:
        return f"cannot listen at {address}: {error}: make its folder, for this user to write"
    if error.errno == zmq.EADDRINUSE:
        return f"port {port} on {host} is taken: stop what listens there, or set another `port`"
    if error.errno in (errno.ENODEV, zmq.EADDRNOTAVAIL):
        return f"{host!r} is no address of this machine: set `host` to one that is"
    return f"cannot listen on {host}:{port}: {error}"
