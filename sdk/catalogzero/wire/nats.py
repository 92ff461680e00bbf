"""Calls through a NATS server, each handler a micro service of it; only this module imports nats.

A handler listens at one subject for all of its name, `catalogzero.group.HANDLER_ID`, where the
server hands each message to one of them, and at one of its own,
`catalogzero.instance.HANDLER_ID.INSTANCE`. A caller begins at the group's subject: the reply names
the instance that gave it, and whatever follows over that connection goes to this one alone, as over
a connection of ZeroMQ.

A connection of nats-py ends with its first break, and a fresh one is made, for ever: so nothing
that was not sent over the old one can leave a buffer later.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import nats.micro
import nkeys
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import Request

from catalogzero.backoff import Backoff
from catalogzero.config.address import Address, host_port
from catalogzero.config.key_files import read_key
from catalogzero.errors import (
    AddressUnavailableError,
    CallTimeoutError,
    ConfigError,
    TooLargeError,
    UnreachableError,
)
from catalogzero.version import __version__
from catalogzero.wire.transport import Envelope, OnAbsent, OnReply, Report, ignore

CONNECT_S = 5.0
CLOSE_S = 2.0
RECONNECT = Backoff(0.1, 2.0, jitter=(0.5, 1.0))
HEARTBEAT_S = 15
BEAT_S = 5.0
"""Between two looks whether the instance that owes a reply is still there."""

MAX_UNANSWERED = 10_000
MAX_OUTGOING_BYTES = 32 << 20
MESSAGE_COSTS_BYTES = 500
HEADER_BYTES = 256
INSTANCE = "Catalogzero-Instance"
BEAT = "beat"
NO_RESPONDERS = "503"
_SEED = re.compile(r"^(?:-+BEGIN USER NKEY SEED-+\s+)?(S[A-Z2-7]{57})$", re.MULTILINE)

# What a try to connect, or a connection, may end with.
FAULTS = (OSError, errors.Error, TimeoutError, ConfigError)


@dataclass(frozen=True, slots=True)
class Nats:
    """The transport through a NATS server.

    `key_file` is an NKEY seed or a credentials file, read with each connection; `ca_file` holds
    the CA of the server's certificate, the system's by default. With a `tls://` address or a
    `ca_file` nothing is sent to a server that offers no TLS.
    """

    key_file: Path | None = None
    ca_file: Path | None = None

    def serve(
        self,
        on_message: Callable[[Envelope, bytes], None],
        *,
        max_message_bytes: int = 1 << 20,
        report: Report = ignore,
    ) -> NatsServer:
        """See `Transport.serve`; made and used on one event loop.

        A message of more than twice `max_message_bytes` is dropped.
        """
        return NatsServer(self, on_message, max_message_bytes, report)

    def connect(
        self,
        address: str,
        on_reply: OnReply,
        on_writable: Callable[[], None],
        on_absent: OnAbsent,
    ) -> NatsPeer:
        """See `Transport.connect`; made and used on one event loop."""
        return NatsPeer(self, Address.parse(address), on_reply, on_writable, on_absent)

    async def open(self, connection: NatsConnection, address: Address, **callbacks: Any) -> None:
        """Connect to the server of an address.

        Raises:
            ConfigError: A file cannot be read, or holds no key.
            Exception: One of `FAULTS`.
        """
        options: dict[str, Any] = {}
        if self.key_file is not None:
            options = key_options(self.key_file)
        if self.ca_file is not None or address.scheme == "tls":
            connection.demands_tls = True
            options["tls"] = ssl.create_default_context(cafile=self.ca_file)
        await connection.connect(
            f"{address.scheme}://{host_port(address.host, address.port)}",
            allow_reconnect=False,
            # Another number would have it try again by itself, past the time that it has.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            ping_interval=HEARTBEAT_S,
            name=f"catalogzero {address.handler_id}",
            **options,
            **callbacks,
        )


def key_options(path: Path) -> dict[str, Any]:
    """How nats-py is given a key; the inbox is named after it, so that others may not read there.

    Raises:
        ConfigError: The file cannot be read, may be written by others, or holds no key.
    """
    try:
        text = read_key(path)
        found = _SEED.search(text)
        if found is None:
            raise ValueError("no NKEY seed")
        public: str = nkeys.from_seed(bytearray(found[1].encode())).public_key.decode()
    except (OSError, ValueError, nkeys.NkeysError) as error:
        reason = getattr(error, "strerror", None) or "it holds no NKEY seed and no credentials"
        raise ConfigError(f"{path}: {reason}: see `nats.key_file`") from None
    kind = "user_credentials" if "BEGIN NATS USER JWT" in text else "nkeys_seed"
    return {kind: str(path), "inbox_prefix": f"_INBOX.{public}"}


class NatsConnection(Client):
    """A connection of nats-py that gives its credentials to no server without TLS, if so asked."""

    demands_tls = False

    def _connect_command(self) -> bytes:
        # nats-py takes what the server offers, whatever the scheme of its address.
        if self.demands_tls and not self._server_info.get("tls_required"):
            raise errors.Error("it offers no TLS")
        return super()._connect_command()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish."""

    subject: str
    payload: bytes
    reply: str = ""
    headers: dict[str, str] | None = None


class NatsLink:
    """Keeps a connection to a NATS server for ever, and publishes over it in order.

    Args:
        nats: Its keys.
        address: Of the server.
        subscribe: Called with each new connection.
        on_up: Called whenever more can be sent.
        on_down: Called after a break with what was not published, and whether there was a
            connection; also after each try that failed.
        on_refused: Called with the server's word for a message that may not be published.

    Attributes:
        fault: Why there is no connection; empty where there is one.
    """

    def __init__(
        self,
        nats: Nats,
        address: Address,
        subscribe: Callable[[NatsConnection], Awaitable[None]],
        on_up: Callable[[], None],
        on_down: Callable[[Sequence[Outgoing], bool], None],
        on_refused: Callable[[str], None],
    ) -> None:
        self._nats, self._address, self._subscribe = nats, address, subscribe
        self._on_up, self._on_down, self._on_refused = on_up, on_down, on_refused
        self._outgoing: deque[Outgoing] = deque()
        self._held_bytes = 0
        self._connection: NatsConnection | None = None
        self._is_up = self._was_full = False
        self._said = ""
        self._wake, self._all_sent = asyncio.Event(), asyncio.Event()
        self._all_sent.set()
        self._task: asyncio.Task[None] | None = None
        self.fault = ""

    @property
    def is_up(self) -> bool:
        """Whether it is connected."""
        return self._connection is not None and self._connection.is_connected

    @property
    def max_payload(self) -> int:
        """The longest message that the server takes; of the connection that is there."""
        return self._connection.max_payload if self._connection is not None else 0

    async def open(self) -> None:
        """Connect, and keep connected.

        Raises:
            ConfigError: The first try failed.
        """
        try:
            connection = await self._connect()
        except FAULTS as error:
            if isinstance(error, ConfigError):
                raise
            fault = self._fault_of(error)
            may_come = isinstance(error, OSError | TimeoutError | errors.NoServersError)
            is_private = isinstance(error, ssl.SSLError)
            kind = AddressUnavailableError if may_come and not is_private else ConfigError
            raise kind(fault) from None
        self.start(connection)
        # A task that is cancelled before its first step would close nothing.
        await asyncio.sleep(0)

    def start(self, connection: NatsConnection | None = None) -> None:
        """Keep connected, from now on."""
        self._task = asyncio.create_task(self._keep(connection), name="nats")

    def put(self, message: Outgoing) -> bool:
        """Publish as soon as the event loop goes on; false where it is not connected, or full.

        Raises:
            TooLargeError: The server takes no message of that length.
        """
        if not self.is_up:
            return False
        size = len(message.payload)
        if size > self.max_payload:
            limit = f"{self.max_payload:,} bytes, the max_payload of the NATS server"
            raise TooLargeError(f"{self._address} takes messages of at most {limit}")
        if self._held_bytes > MAX_OUTGOING_BYTES:
            self._was_full = True
            return False
        self._held_bytes += size + MESSAGE_COSTS_BYTES
        self._outgoing.append(message)
        self._all_sent.clear()
        self._wake.set()
        return True

    async def flush(self) -> None:
        """Wait until the server has all that was put."""
        await self._all_sent.wait()
        if self._connection is not None:
            await self._flush(self._connection)

    def close(self) -> None:
        """Begin to disconnect; nothing more is published, and nothing called."""
        self._on_up, self._on_down = (lambda: None), (lambda unsent, was_up: None)
        self._on_refused = lambda said: None
        self._outgoing.clear()
        if self._task is not None:
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Wait until it is disconnected."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _keep(self, connection: NatsConnection | None) -> None:
        tries = 0
        while True:
            try:
                if connection is None:
                    connection = await self._connect()
                tries, self.fault = 0, ""
                await self._carry(connection)
                self.fault = f"the connection to the NATS server {self.server} broke"
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
                self.fault = self._fault_of(error)
            finally:
                if connection is not None:
                    await end(connection)
            connection = None
            self._go_down()
            tries += 1
            await asyncio.sleep(RECONNECT.delay_s(tries))

    async def _connect(self) -> NatsConnection:
        """A connection that has subscribed."""
        connection, self._said = NatsConnection(), ""
        try:
            async with asyncio.timeout(CONNECT_S):
                callbacks = {"error_cb": self._hear_fault, "closed_cb": self._hear_end}
                await self._nats.open(connection, self._address, **callbacks)
                # A call may come, and be answered, before this goes on.
                self._connection = connection
                await self._subscribe(connection)
                await self._flush(connection)
                if self._said:
                    raise ConfigError(f"the NATS server {self.server} refuses: {self._said}")
        except BaseException as error:
            self._connection = None
            await end(connection)
            # Where nothing came of it, nats-py may know why.
            if isinstance(error, TimeoutError | errors.NoServersError) and connection.last_error:
                raise connection.last_error from None
            raise
        self._is_up = True
        return connection

    async def _carry(self, connection: NatsConnection) -> None:
        """Publish what is put, until the connection breaks."""
        self._on_up()
        while connection.is_connected:
            while self._outgoing:
                message = self._outgoing[0]
                with suppress(errors.BadSubjectError):  # a peer's own, where nobody can be
                    await connection.publish(
                        message.subject, message.payload, message.reply, message.headers
                    )
                if not self._outgoing:
                    return  # closed meanwhile
                self._outgoing.popleft()
                self._held_bytes -= len(message.payload) + MESSAGE_COSTS_BYTES
            self._all_sent.set()
            if self._was_full:
                self._was_full = False
                self._on_up()
                continue
            self._wake.clear()
            await self._wake.wait()

    def _go_down(self) -> None:
        unsent, was_up = [*self._outgoing], self._is_up
        self._outgoing.clear()
        self._all_sent.set()
        self._held_bytes, self._is_up, self._connection = 0, False, None
        self._on_down(unsent, was_up)

    async def _flush(self, connection: NatsConnection) -> None:
        # nats-py writes its PING past what its own task has still to write: the second one cannot
        # be answered before all of that has been.
        await connection.flush()
        await connection.flush()

    async def _hear_fault(self, error: Exception) -> None:
        """Note what the server does not permit; any other fault ends the connection anyway."""
        if "permissions violation" in str(error):
            self._said = str(error).removeprefix("nats: ")
            if self._is_up:
                self._on_refused(self._said)

    async def _hear_end(self) -> None:
        self._wake.set()

    @property
    def server(self) -> str:
        """The address of the NATS server."""
        return f"{self._address.scheme}://{host_port(self._address.host, self._address.port)}"

    def _fault_of(self, error: BaseException) -> str:
        """The sentence for a connection that cannot be made."""
        text = str(error).removeprefix("nats: ").strip("'")
        if isinstance(error, ConfigError):
            return text
        if isinstance(error, ssl.SSLError):
            reason = getattr(error, "verify_message", "") or error.reason
            return f"no TLS with {self.server} ({reason}): name its CA in `nats.ca_file`"
        if "authorization" in text.lower():
            fix = "name credentials that it knows in `nats.key_file`"
            return f"the NATS server {self.server} refuses this process: {fix}"
        if isinstance(error, errors.NoServersError | TimeoutError | OSError):
            return f"no NATS server answers at {self.server}: start it, or correct its address"
        return f"no connection to the NATS server {self.server}: {text}"


async def end(connection: NatsConnection) -> None:
    """Close a connection of nats-py, in whatever state it is."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await connection.close()
    except (*FAULTS, AssertionError):
        pass  # it is of no use any more, or has not begun


class NatsServer:
    """A handler as a micro service: hands over each message, and sends each reply.

    Args:
        nats: Its keys.
        on_message: See `Transport.serve`.
        max_message_bytes: See `Nats.serve`.
        report: Called with what an operator should know.
    """

    def __init__(
        self,
        nats: Nats,
        on_message: Callable[[Envelope, bytes], None],
        max_message_bytes: int,
        report: Report,
    ) -> None:
        self._nats, self._on_message, self._report = nats, on_message, report
        self._own_limit = max_message_bytes
        self.max_message_bytes = max_message_bytes
        self._link: NatsLink | None = None
        self._address = Address()

    async def open(self, address: Address) -> Address:
        """See `Server.open`; the address names the instance, and the one returned the group."""
        self._address = address
        self._link = link = NatsLink(
            self._nats, address, self._subscribe, lambda: None, self._down, self._refused
        )
        try:
            await link.open()
        except ConfigError:
            self._link = None
            raise
        self.max_message_bytes = min(self._own_limit, link.max_payload)
        server = Address.nats_server(link.server)
        return server.called(address.handler_id)

    async def probe(self, address: Address) -> None:
        """See `Server.probe`: it connects, and subscribes to nothing."""

        async def subscribe(connection: NatsConnection) -> None:
            """To nothing: a call that came would be lost."""

        link = NatsLink(
            self._nats, address, subscribe, lambda: None, lambda unsent, up: None, lambda said: None
        )
        await link.open()
        link.close()
        await link.wait_closed()

    def send(self, envelope: Envelope, payload: bytes) -> None:
        """Send a reply; one for which there is no connection, or no room, is dropped."""
        if self._link is None or not self._link.is_up:
            return
        headers = None
        if len(envelope) > 2 and len(payload) + HEADER_BYTES <= self._link.max_payload:
            headers = {INSTANCE: self._address.instance}
        try:
            is_sent = self._link.put(Outgoing(envelope[1].decode(), payload, headers=headers))
        except TooLargeError:
            is_sent = False
        if not is_sent:
            self._report("reply_dropped", {"reply_bytes": len(payload)})

    async def close(self, drain_s: float = 0.0) -> None:
        """See `Server.close`."""
        link, self._link = self._link, None
        if link is None:
            return
        if drain_s:
            try:
                async with asyncio.timeout(drain_s):
                    await link.flush()
            except FAULTS:
                pass  # what the server has not by now is dropped
        link.close()
        await link.wait_closed()

    async def _subscribe(self, connection: NatsConnection) -> None:
        at = self._address
        service = await nats.micro.add_service(
            connection,
            name=at.handler_id.replace(".", "_"),
            version=__version__,
            description="a handler of catalogzero",
            metadata={"handler_id": at.handler_id, "instance": at.instance},
        )
        await service.add_endpoint(name="group", subject=group_of(at), handler=self._take_any)
        await service.add_endpoint(name="instance", subject=instance_of(at), handler=self._take)

    async def _take(self, request: Request) -> None:
        """Hand over a call to this instance; nats-py waits for the end of this, so it is short."""
        self._hand_over(request)

    async def _take_any(self, request: Request) -> None:
        """Hand over a call to the group; its reply names the instance."""
        self._hand_over(request, INSTANCE.encode())

    def _hand_over(self, request: Request, *marks: bytes) -> None:
        reply, payload = request._msg.reply, request.data
        if not reply or not payload or self._link is None:
            return  # nobody waits; or a look whether this instance is still there
        if len(payload) > 2 * self.max_message_bytes:
            sizes = {"call_bytes": len(payload), "limit": self.max_message_bytes}
            self._report("call_too_large", sizes)
            return
        peer = reply.rpartition(".")[0]
        self._on_message([peer.encode(), reply.encode(), *marks], payload)

    def _down(self, unsent: Sequence[Outgoing], was_up: bool) -> None:
        if self._link is not None:
            self._report("server_lost", {"error": self._link.fault})

    def _refused(self, said: str) -> None:
        self._report("server_refused", {"error": said})


class NatsPeer:
    """A connection to a handler through a NATS server, which says at once where nobody is there.

    Args:
        nats: Its keys.
        address: Of a handler, or of one instance.
        on_reply: See `Transport.connect`.
        on_writable: The same.
        on_absent: The same.
    """

    def __init__(
        self,
        nats: Nats,
        address: Address,
        on_reply: OnReply,
        on_writable: Callable[[], None],
        on_absent: OnAbsent,
    ) -> None:
        self._address = address
        self._on_reply, self._on_writable, self._on_absent = on_reply, on_writable, on_absent
        self._group = group_of(address)
        self._instance = self._fixed = instance_of(address) if address.instance else ""
        self._awaited: dict[str, bytes] = {}
        self._numbers, self._inbox = count(), ""
        self._is_closed = self._is_full = self._has_heard = False
        self._beating: asyncio.TimerHandle | None = None
        self._link = NatsLink(nats, address, self._subscribe, self._up, self._down, self._refused)
        self._link.start()

    @property
    def fault(self) -> str:
        """See `Peer.fault`."""
        return self._link.fault

    def try_send(self, payload: bytes) -> bool:
        """See `Peer.try_send`."""
        if len(self._awaited) >= MAX_UNANSWERED:
            self._is_full = True
            return False
        token = str(next(self._numbers))
        to = self._instance or self._group
        if not self._link.put(Outgoing(to, payload, f"{self._inbox}.{token}")):
            return False
        self._awaited[token] = payload
        return True

    def close(self) -> None:
        """See `Peer.close`."""
        self._is_closed = True
        self._awaited.clear()
        if self._beating is not None:
            self._beating.cancel()
        self._link.close()
        if (task := self._link._task) is not None:
            _ending.add(task)
            task.add_done_callback(_ending.discard)

    async def wait_closed(self) -> None:
        """See `Peer.wait_closed`."""
        await self._link.wait_closed()

    async def _subscribe(self, connection: NatsConnection) -> None:
        self._inbox, self._has_heard = connection.new_inbox(), False
        await connection.subscribe(f"{self._inbox}.*", cb=self._take)

    async def _take(self, message: Msg) -> None:
        """Take a reply, or the server's word that nobody was there."""
        token = message.subject.rpartition(".")[2]
        headers: Mapping[str, str] = message.headers or {}
        nobody = headers.get("Status") == NO_RESPONDERS and not message.data
        if token == BEAT and nobody and self._awaited:
            self._lost()
        payload = self._awaited.pop(token, None)
        if payload is None:
            return
        self._has_heard = True
        if nobody:
            self._undelivered([payload], "nobody takes calls there: is the handler running?")
            return
        if not self._instance and INSTANCE in headers:
            with suppress(ConfigError):  # no name: whoever sent it is no handler of ours
                named = self._address.called(self._address.handler_id, headers[INSTANCE])
                self._instance = instance_of(named)
        self._on_reply(message.data)
        if self._is_full and not self._is_closed:
            self._is_full = False
            self._on_writable()

    def _up(self) -> None:
        if self._beating is None:
            self._beating = asyncio.get_running_loop().call_later(BEAT_S, self._beat)
        self._on_writable()

    def _beat(self) -> None:
        """Ask the server, by an empty message, whether who owes a reply is still there."""
        if self._awaited and self._instance:
            self._link.put(Outgoing(self._instance, b"", f"{self._inbox}.{BEAT}"))
        self._beating = asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def _down(self, unsent: Sequence[Outgoing], was_up: bool) -> None:
        tokens = [one.reply.rpartition(".")[2] for one in unsent]
        undelivered = [self._awaited.pop(one) for one in tokens if one in self._awaited]
        self._awaited.clear()
        self._instance = self._fixed
        if undelivered:
            self._undelivered(undelivered, self._link.fault)
        if was_up and not self._is_closed:
            self._lost()

    def _refused(self, said: str) -> None:
        """Give up what the server does not let this client send."""
        payloads = [*self._awaited.values()]
        if not payloads:
            return
        if self._has_heard:  # others were answered: these may have been received as well
            self._on_reply(CallTimeoutError(f"{self._address}: the NATS server refuses: {said}"))
        else:
            self._awaited.clear()
            self._undelivered(payloads, f"the NATS server refuses: {said}")

    def _undelivered(self, payloads: Sequence[bytes], why: str) -> None:
        self._on_absent(payloads, UnreachableError(f"{self._address}: {why}"))

    def _lost(self) -> None:
        message = f"the connection to {self._address} broke before a reply came"
        self._on_reply(CallTimeoutError(message))


_ending: set[asyncio.Task[None]] = set()
"""Closed links that still give back what they hold: the event loop keeps no task by itself."""


def group_of(address: Address) -> str:
    """The subject at which any handler of a name takes calls."""
    return f"catalogzero.group.{address.handler_id}"


def instance_of(address: Address) -> str:
    """The subject at which one instance of a handler takes calls."""
    return f"catalogzero.instance.{address.handler_id}.{address.instance}"
