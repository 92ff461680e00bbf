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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import zmq
from zmq.utils import z85

from catalogzero.config.settings import host_port
from catalogzero.errors import ConfigError
from catalogzero.wire.transport import Envelope, OnReply

MAX_SOCKETS = 16_384
MAX_ENVELOPE_FRAMES = 8
DRAIN_MESSAGES = 256
HIGH_WATER_MESSAGES = 10_000
MAX_REPLY_BYTES = 16 << 20
HANDSHAKE_TIMEOUT_MS = 5_000
RECONNECT_MS = 50
RECONNECT_MAX_MS = 2_000
HEARTBEAT_MS = 15_000
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
            lines = path.read_text("ascii").splitlines()
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
    wire is plain. A connection over which a reply of more than `max_reply_bytes` comes is cut.
    """

    server_keys: CurveServer | None = None
    client_keys: CurveClient | None = None
    max_reply_bytes: int = MAX_REPLY_BYTES

    def serve(
        self,
        on_message: Callable[[Envelope, bytes], None],
        *,
        max_message_bytes: int = 1 << 20,
        on_refused: Callable[[str], None] = lambda key: None,
    ) -> RouterServer:
        """See `Transport.serve`; made and used on one event loop."""
        return RouterServer(on_message, max_message_bytes, self.server_keys, on_refused)

    def connect(
        self, address: str, on_reply: OnReply, on_writable: Callable[[], None]
    ) -> DealerPeer:
        """See `Transport.connect`; made and used on one event loop."""
        keys, limit = self.client_keys, self.max_reply_bytes
        return DealerPeer(address, on_reply, on_writable, curve=keys, max_message_bytes=limit)


class RouterServer:
    """A bound ROUTER socket: hands over each message, sends each reply.

    Args:
        on_message: Called on the loop with (envelope frames, payload) of each message; it may
            call `send` at once. It must not raise.
        max_message_bytes: A peer that sends a longer frame is disconnected.
        curve: Keys; without them the wire is plain.
        on_refused: Called on the loop with the public key of each client that is not allowed.
    """

    def __init__(
        self,
        on_message: Callable[[Envelope, bytes], None],
        max_message_bytes: int = 1 << 20,
        curve: CurveServer | None = None,
        on_refused: Callable[[str], None] = lambda key: None,
    ) -> None:
        self._on_message = on_message
        self._context = zmq.Context()  # of its own: only its end waits until the port is free
        self._gate = _Gate(self._context, curve.clients, on_refused) if curve else None
        self._socket = self._context.socket(zmq.ROUTER)
        _configure(self._socket, max_message_bytes)
        if curve:
            self._socket.curve_server = True
            self._socket.curve_secretkey = curve.keys.secret
            self._socket.curve_publickey = curve.keys.public
            self._socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
            self._socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._watch: _Watch | None = None
        self._burst = 1

    def bind(self, host: str, port: int) -> int:
        """Listen, and return the port (a free one for 0); must be called on the loop.

        Raises:
            ConfigError: The address cannot be bound; names it and the mend.
        """
        try:
            self._socket.setsockopt(zmq.IPV6, 1 if ":" in host else 0)
            name = "127.0.0.1" if host == "localhost" else host  # a socket binds no names
            self._socket.bind(f"tcp://{host_port(name, port or '*')}")
        except zmq.ZMQError as error:
            raise ConfigError(_bind_fault(host, port, error)) from None
        self._watch = _Watch(self._socket, self._drain)
        endpoint = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        return int(bytes(endpoint).decode().rstrip("\0").rpartition(":")[2])

    def send(self, envelope: Envelope, payload: bytes) -> None:
        """Send a reply; one to a peer that is gone or does not read is dropped."""
        if self._watch is None or self._socket.closed:
            return
        try:
            for part in envelope:
                self._socket.send(part, SEND_MORE)
            self._socket.send(payload, SEND)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
        self._watch.look_again()

    def close(self) -> None:
        """Stop listening: the port is free when this returns; what was not sent is dropped."""
        if self._watch:
            self._watch.close()
            self._watch = None
        self._socket.close(linger=0)
        if self._gate:
            self._gate.close()
        self._context.term()

    def _drain(self) -> bool:
        """Take as many messages as came last time; what they ask for begins before more is taken.

        A lone call's job need not wait until the socket has said that there is no other.
        """
        for taken in range(self._burst):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                self._burst = max(taken, 1)
                return False
            if 2 <= len(frames) <= MAX_ENVELOPE_FRAMES:
                self._on_message(frames[:-1], frames[-1])
        self._burst = min(2 * self._burst, DRAIN_MESSAGES)
        return True


class DealerPeer:
    """A connected DEALER socket: one peer, nothing queued while it is not there.

    Args:
        address: `tcp://host:port`.
        on_reply: Called on the loop with the payload of each reply, and with None once the
            connection has broken (then `close` it). It must not raise.
        on_writable: Called on the loop whenever a message may be sent that could not before.
        curve: Keys; without them the wire is plain.
        max_message_bytes: A longer reply ends the connection before it is read.
    """

    def __init__(
        self,
        address: str,
        on_reply: OnReply,
        on_writable: Callable[[], None],
        *,
        curve: CurveClient | None = None,
        max_message_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        self._on_reply, self._on_writable = on_reply, on_writable
        self._socket = _context().socket(zmq.DEALER)
        _configure(self._socket, max_message_bytes)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # only a finished connection has a queue
        self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)  # a dead connection is noticed
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 2 * HEARTBEAT_MS)
        if curve:
            self._use(curve)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            raise ConfigError(f"{address!r} is no address such as tcp://host:port") from error
        self._blocked = False
        self._connected = False
        self._unanswered = 0
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
        self._socket.close(linger=0)

    def _drain(self) -> bool:
        for _ in range(DRAIN_MESSAGES):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._unanswered = max(0, self._unanswered - 1)
            self._on_reply(frames[-1])
        else:
            return True
        events = int(self._socket.getsockopt(zmq.EVENTS))
        if self._blocked and events & zmq.POLLOUT:
            self._blocked = False
            self._on_writable()
            return True
        is_full = self._unanswered >= HIGH_WATER_MESSAGES
        if self._connected and not is_full and not events & (zmq.POLLIN | zmq.POLLOUT):
            self._on_reply(None)  # of what was too long, ZeroMQ itself would not connect again
            return False
        return bool(events & zmq.POLLIN)


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
        on_refused: Callable[[str], None],
    ) -> None:
        self._allowed, self._on_refused = allowed, on_refused
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
            self._on_refused(key.decode())
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


def _configure(socket: zmq.Socket[bytes], max_message_bytes: int) -> None:
    """What both ends have in common."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MESSAGES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)


def _key(text: str) -> bytes:
    """A z85 key of 40 characters."""
    key = text.strip().encode("ascii")
    if len(key) != 40:
        raise ValueError("a key has 40 characters")
    z85.decode(key)
    return key


def _bind_fault(host: str, port: int, error: zmq.ZMQError) -> str:
    """The sentence for an address that cannot be bound."""
    if error.errno == zmq.EADDRINUSE:
        return f"port {port} on {host} is taken: stop what listens there, or set another `port`"
    if error.errno in (errno.ENODEV, zmq.EADDRNOTAVAIL):
        return f"{host!r} is no address of this machine: set `host` to one that is"
    return f"cannot listen on {host}:{port}: {error}"
