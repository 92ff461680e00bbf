"""ZeroMQ sockets on the running event loop; only it, `keys` and `watching` import zmq.

Plain sockets watched with `loop.add_reader` and drained in the callback, which measured three
times the throughput of `zmq.asyncio` (docs/performance.md). The socket's file descriptor is
edge-triggered: it is looked at again after every send, or a message would wait for ever.

It knows frames and keys, never what they mean. Every socket closes with LINGER 0.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket as sockets
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from catalogzero.config.address import Address, host_port, listener_at
from catalogzero.config.renewal import current
from catalogzero.config.settings import MAX_MESSAGE_BYTES
from catalogzero.errors import (
    AddressUnavailableError,
    CallTimeoutError,
    ConfigError,
    TooLargeError,
)
from catalogzero.wire.keys import CurveClient, CurveClientSource, CurveKeys, CurveServerSource
from catalogzero.wire.traffic import FRAME_BYTES, GROWN_BYTES, Connection
from catalogzero.wire.transport import Envelope, OnAbsent, OnReply, Report, ignore
from catalogzero.wire.watching import ConnectionWatch, DescriptorWatch

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

REOPEN_S = 1.0
KEYS_LOOK_S = 2.0
"""Between two looks at the server's own key file."""
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
class ZeroMQ:
    """The transport over ZeroMQ: ROUTER servers and DEALER peers, with CURVE where keys are given.

    `server_keys` are those that `serve` uses, `client_keys` those of `connect`; without them the
    wire is plain. A connection over which a reply of more than `MAX_MESSAGE_BYTES` comes is cut.
    `counts` is whether the kernel's counters show who holds how much memory (see `traffic`).
    """

    server_keys: CurveServerSource | None = None
    client_keys: CurveClientSource | None = None
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
        self,
        address: str,
        on_reply: OnReply,
        on_writable: Callable[[], None],
        on_absent: OnAbsent,
    ) -> DealerPeer:
        """See `Transport.connect`; made and used on one event loop.

        `on_absent` is never called: only a connection that is there takes a message.
        """
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
        curve: CurveServerSource | None = None,
        report: Report = ignore,
        *,
        counts: bool = True,
    ) -> None:
        self._on_message, self._report = on_message, report
        self.max_message_bytes = max_message_bytes
        self._max_frame_bytes = 2 * max_message_bytes
        # ZeroMQ bounds its queues by messages, whatever their length.
        self._high_water = max(2, PIPE_BYTES // max_message_bytes)
        self._curve = curve
        self._keys_look: asyncio.TimerHandle | None = None
        self._counts = counts
        self._bound: Address | None = None
        self._burst = 1
        self._reset()

    def _reset(self) -> None:
        """What is known of one time of being open."""
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._gate: KeyGate | None = None
        self._watch: DescriptorWatch | None = None
        self._socket_file: Path | None = None
        self._parts: list[bytes] = []
        self._part_bytes = self._part_frames = self._source_fd = 0
        self._late: dict[bytes, LateReplies] = {}

    async def open(self, address: Address) -> Address:
        """See `Server.open`."""
        return self.bind(address)

    async def probe(self, address: Address) -> None:
        """See `Server.probe`: only binding shows it."""
        self.bind(address)
        self.unbind()

    def bind(self, address: Address) -> Address:
        """Listen, and return the address with its port (a free one for 0); on the loop.

        Raises:
            ConfigError: The address cannot be bound; names it and the fix.
        """
        # A context of its own: only the end of one waits until the address is free again.
        context = zmq.Context()
        self._context = context
        self._socket = context.socket(zmq.ROUTER)
        configure(self._socket, self._max_frame_bytes, self._high_water)
        # Without it ZeroMQ drops a reply to a peer that does not read, and says nothing.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.IPV6, 1 if ":" in address.host else 0)
        self._connections = ConnectionWatch(
            self._socket,
            self._max_frame_bytes + MIB,
            self._look_again,
            self._on_cut,
            counts=self._counts,
            every_second=True,
            on_grown=self._reopen,
        )
        try:
            if self._curve:
                curve = current(self._curve)
                self._gate = KeyGate(context, self._curve, self._report)
                self._socket.curve_server = True
                self._socket.curve_secretkey = curve.keys.secret
                self._socket.curve_publickey = curve.keys.public
                self._look_at_keys(curve.keys)
                self._socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
                self._socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            if address.path:
                self._socket_file = bind_socket_file(self._socket, address)
            else:
                # ZeroMQ takes a name for that of a network interface.
                name = "127.0.0.1" if address.host == "localhost" else address.host
                self._socket.bind(f"tcp://{host_port(name, address.port or '*')}")
        except zmq.ZMQError as error:
            self._release()
            may_come = error.errno in (zmq.EADDRINUSE, zmq.EADDRNOTAVAIL)
            kind = AddressUnavailableError if may_come else ConfigError
            raise kind(bind_fault(address, error)) from None
        except ConfigError:
            self._release()
            raise
        self._watch = DescriptorWatch(self._socket, self._drain)
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
            late = self._late[envelope[0]] = LateReplies()
        if late is not None and not late.take(envelope, payload):
            self._connections.traffic.sent(envelope[0], -len(payload))
            self._report("reply_dropped", {"reply_bytes": len(payload)})
        self._watch.look_again()

    async def close(self, drain_s: float = 0.0) -> None:
        """See `Server.close`. ZeroMQ has no flush: its own thread gets that time to write."""
        if drain_s:
            await asyncio.sleep(drain_s)
        self.unbind()

    def unbind(self) -> None:
        """Stop listening: the address is free when this returns; what was not sent is dropped."""
        self._bound = None
        self._release()

    def _release(self) -> None:
        if self._context is None:
            return
        if self._watch:
            self._watch.close()
        if self._keys_look is not None:
            self._keys_look.cancel()
        self._connections.close()
        self._socket.close(linger=0)
        if self._gate:
            self._gate.close()
        self._context.term()
        if self._socket_file is not None:
            self._socket_file.unlink(missing_ok=True)
        self._reset()

    def _look_at_keys(self, known: CurveKeys) -> None:
        """Open again where the server's own pair is another one by now; then look again.

        ZeroMQ gives each connection the pair that was set before the socket was bound.
        """
        assert self._curve is not None  # noqa: S101 - as bound with keys
        if self._bound is not None and current(self._curve).keys != known:
            self._report("keys_renewed", {"public_key": current(self._curve).keys.public.decode()})
            self._open_again()
            return
        loop = asyncio.get_running_loop()
        self._keys_look = loop.call_later(KEYS_LOOK_S, self._look_at_keys, known)

    def _reopen(self) -> None:
        """Let go of all that the connections hold; those who called connect again by themselves."""
        if self._bound is not None:
            self._report("socket_reopened", {"grown_bytes": GROWN_BYTES})
            self._open_again()

    def _open_again(self) -> None:
        """Close, and listen again at the same address."""
        address = self._bound
        if address is None:
            return
        self._release()
        try:
            self.bind(address)
        except ConfigError as error:
            self._report("socket_lost", {"error": error.message})
            asyncio.get_running_loop().call_later(REOPEN_S, self._open_again)

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
            # The message may have made its handler close this server.
            if self._watch is None:
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
            self._source_fd = source_fd(first)
            self._parts.append(first.bytes)
            self._part_bytes, self._part_frames = 0, 1
        # A message of endless frames must not hold the loop: the next turn goes on with it.
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


class LateReplies:
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

    Attributes:
        fault: Empty: ZeroMQ does not say why there is no connection.

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
        curve: CurveClientSource | None = None,
    ) -> None:
        self.fault = ""
        self._on_reply, self._on_writable = on_reply, on_writable
        self._address = Address.parse(address)
        self._socket = process_context().socket(zmq.DEALER)
        configure(self._socket, MAX_MESSAGE_BYTES, HIGH_WATER_MESSAGES)
        # Only a connection that is there has a queue: nothing is kept for an absent peer.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        # A peer that vanished without a word (power, cable) would else never be noticed.
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 2 * HEARTBEAT_MS)
        self._curve = curve
        self._keys = current(curve) if curve else None
        if self._keys:
            self._use(self._keys)
        self._blocked = False
        self._connected = False
        self._unanswered = 0
        self._breaking: asyncio.TimerHandle | None = None
        self._connections = ConnectionWatch(
            self._socket, 2 * MAX_MESSAGE_BYTES, lambda: self._watch.look_again()
        )
        self._connections.traffic.port = self._address.port or None
        try:
            self._socket.connect(str(self._address))
        except zmq.ZMQError as error:
            self._connections.close()
            self._socket.close(linger=0)
            raise ConfigError(f"{address!r} is not an address: {error}") from error
        self._watch = DescriptorWatch(self._socket, self._drain)

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
            self._take_new_keys()
            self._watch.look_again()
            return False
        self._connected = True
        self._unanswered += 1
        self._watch.look_again()
        return True

    def _take_new_keys(self) -> None:
        """Where there is no connection: connect with the keys of now, if those are others.

        Also where the last were refused: the peer may take them by now, and ZeroMQ does not ask.
        """
        if self._curve is None or self._unanswered:
            return
        keys, watch = current(self._curve), self._connections
        watch.take_events()
        if keys != self._keys or watch.was_refused:
            self._keys, watch.was_refused = keys, False
            self._use(keys)  # of the connections that are made from now on
            with suppress(zmq.ZMQError):
                self._socket.disconnect(str(self._address))
            self._socket.connect(str(self._address))

    def close(self) -> None:
        """Disconnect; what was not sent yet is dropped."""
        self._watch.close()
        if self._breaking is not None:
            self._breaking.cancel()
        self._connections.close()
        self._socket.close(linger=0)

    async def wait_closed(self) -> None:
        """See `Peer.wait_closed`; `close` has given everything back."""

    def _drain(self) -> bool:
        for _ in range(DRAIN_MESSAGES):
            try:
                last = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            fd, size = source_fd(last), len(last) + FRAME_BYTES
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
        # Neither to be read nor written, and not for being full: the connection is gone.
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


class KeyGate:
    """Answers ZAP (RFC 27): a CURVE key that is not listed gets nothing."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: CurveServerSource,
        report: Report,
    ) -> None:
        self._keys, self._report = keys, report
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind("inproc://zeromq.zap.01")
        self._watch = DescriptorWatch(self._socket, self._drain)

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
        known = key in current(self._keys).clients
        verdict = (b"200", b"OK") if known else (b"400", b"this key is not allowed")
        if not known:
            self._report("client_key_refused", {"public_key": key.decode()})
        self._socket.send_multipart([b"1.0", frames[1], *verdict, b"", b""])
        return True


def source_fd(frame: zmq.Frame) -> int:
    """The descriptor that a frame came by; -1 where ZeroMQ does not know it."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:  # of a peer that speaks ZMTP 2 or older: its frames carry no properties
        return -1


def process_context() -> zmq.Context[zmq.Socket[bytes]]:
    """The process's own context; a forked child makes its own."""
    global _shared
    if _shared is None or _shared[0] != os.getpid() or _shared[1].closed:
        context = zmq.Context[zmq.Socket[bytes]]()
        context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        _shared = os.getpid(), context
    return _shared[1]


def configure(socket: zmq.Socket[bytes], max_frame_bytes: int, high_water: int) -> None:
    """What both ends have in common; `high_water` messages wait in each direction."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
    socket.setsockopt(zmq.SNDHWM, high_water)
    socket.setsockopt(zmq.RCVHWM, high_water)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)


def bind_socket_file(socket: zmq.Socket[bytes], address: Address) -> Path:
    """Bind a socket file of mode 0660, with the group of its folder where this user may give it.

    A file that nobody listens at is what a process left that was killed: it is replaced.

    Raises:
        ConfigError: Somebody listens there, or the file is not a socket's.
    """
    path = Path(address.path)
    try:
        if path.exists() and not path.is_socket():
            raise ConfigError(f"{path} is not a socket: set another `host`")
        with sockets.socket(sockets.AF_UNIX) as probe:
            probe.setblocking(False)
            if probe.connect_ex(address.path) in (0, errno.EAGAIN, errno.EACCES):
                message = "is taken: stop what listens there, or set another `host`"
                raise AddressUnavailableError(f"{address} {message}")
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


def bind_fault(address: Address, error: zmq.ZMQError) -> str:
    """The sentence for an address that cannot be bound."""
    host, port = address.host, address.port
    if address.path:
        return f"cannot listen at {address}: {error}: make its folder, for this user to write"
    if error.errno == zmq.EADDRINUSE:
        taken = f"port {port} on {host} is taken{listener_at(port)}"
        return f"{taken}: stop what listens there, or set another `port`"
    if error.errno in (errno.ENODEV, zmq.EADDRNOTAVAIL):
        return f"{host!r} is no address of this machine: set `host` to one that is"
    return f"cannot listen on {host}:{port}: {error}"
