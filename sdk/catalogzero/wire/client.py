"""Calling handlers: `HandlerClient` for one, `fan_out` for many.

One connection carries many calls at once. Nothing is queued for a peer that is not connected:
a call to it ends with `UnreachableError`, and never reaches it later.

A plain handler, as ScheduleZero's are, echoes no `request_id`: a ping before the first call over
a connection shows it. It is called one call at a time, and a reply is that of the call in flight,
whatever it holds. When a call to it ends without a reply, the connection is closed, so that a late
reply can never be the next call's.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

from catalogzero.clock import Clock, SystemClock
from catalogzero.errors import (
    BadRequestError,
    CallTimeoutError,
    CatalogZeroError,
    TooLargeError,
    UnreachableError,
)
from catalogzero.wire.messages import (
    MAX_CALL_BYTES,
    Call,
    Reply,
    StartBy,
    decode_plain_reply,
    decode_reply,
    encode_call,
    error_reply,
    plain_result,
)
from catalogzero.wire.transport import Peer, Transport
from catalogzero.wire.zeromq import CurveClient, ZeroMQ

REPLY_MARGIN = 0.05
REPLY_MARGIN_MAX_S = 0.25


class HandlerClient:
    """One connection to one handler; many calls at once, to a plain one each in its turn.

    An async context manager; made on the event loop that it is used on.

    Args:
        address: `tcp://host:port`, or `ipc:///folder/name.sock` on this machine.
        curve: This client's keys and the handler's public key; without them, plain.
        clock: Time, for tests.
        transport: What carries the calls; ZeroMQ with `curve` by default.

    Attributes:
        max_call_bytes: The longest call that the handler takes, as its last greeting said.

    Raises:
        ConfigError: The address has no such form.
    """

    def __init__(
        self,
        address: str,
        *,
        curve: CurveClient | None = None,
        clock: Clock | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.address = address
        self._transport = transport or ZeroMQ(client_keys=curve)
        self._clock = clock or SystemClock()
        self._echoes: bool | None = None
        self._greeting = asyncio.Lock()
        self._greeters = 0
        self.max_call_bytes = MAX_CALL_BYTES
        self._calls: dict[str | int | None, asyncio.Future[Reply]] = {}
        self._unsent: dict[asyncio.Future[Reply], bytes] = {}
        self._sent: set[asyncio.Future[Reply]] = set()
        self._beside: HandlerClient | None = None
        self._peer = self._connect()
        self._closed = False

    @property
    def is_plain(self) -> bool:
        """Whether the handler has shown that it echoes no `request_id`."""
        return self._echoes is False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; calls that wait end with `CallTimeoutError`, unsent ones unreachable."""
        if self._closed:
            return
        self._closed = True
        self._peer.close()
        if self._beside is not None:
            self._beside.close()
        for reply in (*self._sent, *self._unsent):
            if not reply.done():
                kind = CallTimeoutError if reply in self._sent else UnreachableError
                reply.set_exception(kind("the client was closed before a reply came"))

    async def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 30.0,
        request_id: str | None = None,
        start_by: StartBy | None = None,
    ) -> Any:
        """Call a method and return its result.

        Args:
            method: A job or control method.
            params: JSON object; `{}` by default.
            timeout_s: Seconds from now to the reply, connecting included.
            request_id: Makes the call repeatable without a second run; a new UUID by default.
            start_by: The moment past which the handler must not begin it.

        Raises:
            UnreachableError: Nobody was there; the call was never sent.
            CallTimeoutError: It was sent, and no reply came in time; a run may go on.
            TooLargeError: It is longer than the handler takes; it was not sent.
            CatalogZeroError: The error that the handler answered with (see `errors`).
        """
        reply = await self.request(
            method, params, timeout_s=timeout_s, request_id=request_id, start_by=start_by
        )
        return reply.unwrap()

    async def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 30.0,
        request_id: str | None = None,
        start_by: StartBy | None = None,
        attempts_left: int | None = None,
    ) -> Reply:
        """As `call`, but an error that the handler answers with is returned, not raised.

        A plain handler is called at least once, whatever `request_id` and `start_by` say.
        `attempts_left` is how often the caller makes the call anew should a `retry_safe` method
        fail: until then the handler counts no run, and no failure.
        """
        request_id = request_id or str(uuid.uuid4())
        ends_s = self._clock.monotonic() + timeout_s
        while True:
            left_s = max(0.0, ends_s - self._clock.monotonic())
            if self._echoes is None or self._greeters:
                left_s = await self._greet(left_s)
            if self.is_plain:
                reply = await self._request_flat(method, params, left_s)
                reply.result = plain_result(reply.result)
                return reply
            margin_s = min(REPLY_MARGIN_MAX_S, left_s * REPLY_MARGIN)
            waits_s = left_s - margin_s
            call = Call(method, params or {}, request_id, waits_s, start_by, attempts_left)
            with suppress(_NotSentError):
                return await self._request_by_id(request_id, encode_call(call), left_s)

    async def request_plain(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float = 30.0
    ) -> Reply:
        """Call without `request_id`, one at a time, whatever the handler's kind.

        The reply's `result` is all of it, any JSON; what is not JSON is an error of the code
        `bad_reply`. Such a call is at least once.

        Raises:
            UnreachableError: Nobody was there.
            CallTimeoutError: No reply in time, or the connection broke.
        """
        if not self._echoes and not self._greeters:
            reply = await self._request_flat(method, params, timeout_s)
        else:
            if self._beside is None:  # its end without a reply must cut no other call
                transport = self._transport
                self._beside = HandlerClient(self.address, clock=self._clock, transport=transport)
            reply = await self._beside.request_plain(method, params, timeout_s=timeout_s)
        if method == "ping":
            self._note_limit(reply)
        return reply

    async def ping(self, *, timeout_s: float = 5.0) -> dict[str, Any]:
        """The handler's answer to `ping`."""
        result = await self.call("ping", timeout_s=timeout_s)
        return result if isinstance(result, dict) else {"result": result}

    async def _greet(self, timeout_s: float) -> float:
        """Learn by a ping whether the handler echoes a `request_id`, and how long a call may be.

        Those who call meanwhile wait for the same ping, and keep their order. Returns how much of
        `timeout_s` is left.

        Raises:
            UnreachableError: It was not answered in time: the call was not sent.
        """
        began_s = self._clock.monotonic()
        self._greeters += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._greeting.acquire()
            try:
                while self._echoes is None:
                    left_s = timeout_s - (self._clock.monotonic() - began_s)
                    if left_s <= 0:
                        raise TimeoutError
                    with suppress(CallTimeoutError):  # perhaps it restarted just now
                        await self._ping_first(left_s)
            finally:
                self._greeting.release()
        except TimeoutError:
            message = f"{self.address} did not answer a ping within {timeout_s:g} s"
            raise UnreachableError(f"{message}: the call was not sent") from None
        finally:
            self._greeters -= 1
        return max(0.0, timeout_s - (self._clock.monotonic() - began_s))

    async def _ping_first(self, timeout_s: float) -> None:
        asked = str(uuid.uuid4())
        frame = encode_call(Call("ping", {}, asked, timeout_s))
        pong = await self._request_by_id(asked, frame, timeout_s)
        self._echoes = pong.request_id == asked
        self._note_limit(pong)

    def _note_limit(self, pong: Reply) -> None:
        answer = pong.result if isinstance(pong.result, dict) else {}
        limit = answer.get("max_message_bytes")
        self.max_call_bytes = limit if isinstance(limit, int) else MAX_CALL_BYTES

    async def _request_flat(
        self, method: str, params: Mapping[str, Any] | None, timeout_s: float
    ) -> Reply:
        """A call whose reply is known by being the only one in flight."""
        frame = encode_call(Call(method, params or {}))
        return await self._exchange(frame, asyncio.get_running_loop().create_future(), timeout_s)

    async def _request_by_id(self, request_id: str, frame: bytes, timeout_s: float) -> Reply:
        """A call whose reply is found by its `request_id`."""
        if request_id in self._calls:
            raise BadRequestError(f"a call with request_id {request_id!r} is already under way")
        if len(frame) > self.max_call_bytes:
            most = f"{self.max_call_bytes:,} bytes"
            raise TooLargeError(f"{self.address} takes calls of at most {most}")
        waiting = asyncio.get_running_loop().create_future()
        self._calls[request_id] = waiting
        try:
            return await self._exchange(frame, waiting, timeout_s)
        finally:
            del self._calls[request_id]

    async def _exchange(
        self, frame: bytes, reply: asyncio.Future[Reply], timeout_s: float
    ) -> Reply:
        """Send a frame as soon as the peer is there, and wait for its reply."""
        if self._closed:
            raise UnreachableError("the client was closed")
        if self._unsent or not self._try_send(reply, frame):  # none goes before one that waits
            self._unsent[reply] = frame
        timer = self._clock.call_later(timeout_s, lambda: self._give_up(reply, timeout_s))
        try:
            return await reply
        finally:
            timer.cancel()
            self._unsent.pop(reply, None)
            if reply in self._sent:
                self._settle(reply)

    def _try_send(self, reply: asyncio.Future[Reply], frame: bytes) -> bool:
        """Send a call; false while the handler does not take it, or while another call waits for
        a reply that only its turn could tell from this one's.
        """
        if (self._sent and not self._echoes) or not self._peer.try_send(frame):
            return False
        self._sent.add(reply)
        return True

    def _settle(self, reply: asyncio.Future[Reply]) -> None:
        """Note the end of a call that was sent, and that of its connection where a late reply
        could be taken for another's.
        """
        self._sent.discard(reply)
        if self._echoes:
            return
        if reply.cancelled() or reply.exception() is not None:
            self._reconnect()
        else:
            self._on_writable()

    def _give_up(self, reply: asyncio.Future[Reply], timeout_s: float) -> None:
        if reply.done():
            return
        if reply in self._unsent:
            message = f"no handler at {self.address} within {timeout_s:g} s: is it running?"
            if self._sent:
                message = f"{self.address} was busy with another call for {timeout_s:g} s"
            reply.set_exception(UnreachableError(message))
        else:
            message = f"{self.address} did not reply within {timeout_s:g} s"
            reply.set_exception(CallTimeoutError(message))

    def _on_writable(self) -> None:
        for reply, frame in list(self._unsent.items()):
            if not reply.done() and not self._try_send(reply, frame):
                return
            self._unsent.pop(reply, None)

    def _on_reply(self, payload: bytes | CatalogZeroError) -> None:
        if isinstance(payload, CatalogZeroError):
            self._reconnect(payload)
            return
        reply = None
        with suppress(BadRequestError):
            reply = None if self.is_plain else decode_reply(payload)
        waiting = None if reply is None else self._calls.get(reply.request_id)
        if waiting is None and not self._echoes:
            waiting, reply = next(iter(self._sent), None), decode_plain_reply(payload)
        if reply is not None and waiting is not None and not waiting.done():
            waiting.set_result(reply)

    def _connect(self) -> Peer:
        return self._transport.connect(self.address, self._on_reply, self._on_writable)

    def _reconnect(self, error: CatalogZeroError | None = None) -> None:
        """A new connection, perhaps to another kind of handler: what was sent gets no reply."""
        lost, self._sent = self._sent, set()
        by_id, self._echoes = self._echoes, None
        if self._closed:
            return
        self._peer.close()
        self._peer = self._connect()
        for reply in lost:
            if isinstance(error, TooLargeError) and not reply.done():
                reply.set_result(error_reply(error))
            elif error is not None and not reply.done():
                reply.set_exception(error)
        for reply in self._unsent if by_id else ():
            if not reply.done():
                reply.set_exception(_NotSentError)
        self._on_writable()


class _NotSentError(Exception):
    """The connection broke before a call was sent over it."""


async def fan_out(
    clients: Mapping[str, HandlerClient],
    method: str,
    params: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = 5.0,
) -> dict[str, Reply | CatalogZeroError]:
    """Call one method of many handlers at once.

    A dead peer costs one timeout, not its turn; `timeout_s` counts from here for all.

    Returns:
        For each key of `clients`, in its order, the reply, or the error why there is none.
    """
    began_s = next((c._clock.monotonic() for c in clients.values()), 0.0)

    async def ask(client: HandlerClient) -> Reply | CatalogZeroError:
        left_s = timeout_s - (client._clock.monotonic() - began_s)
        try:
            return await client.request(method, params, timeout_s=max(0.0, left_s))
        except CatalogZeroError as error:
            return error

    replies = await asyncio.gather(*(ask(client) for client in clients.values()))
    return dict(zip(clients, replies, strict=True))
