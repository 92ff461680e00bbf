"""Calling handlers: `HandlerClient` for one, `fan_out` for many.

One connection carries many calls at once. Nothing is queued for a peer that is not connected:
a call to it ends with `UnreachableError`, and never reaches it later.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any, Self

from catalogzero.clock import Clock, SystemClock
from catalogzero.errors import BadRequestError, CallTimeoutError, CatalogZeroError, UnreachableError
from catalogzero.wire.messages import Call, Reply, StartBy, decode_reply, encode_call
from catalogzero.wire.transport import Peer, Transport
from catalogzero.wire.zeromq import CurveClient, ZeroMQ

REPLY_MARGIN = 0.05
REPLY_MARGIN_MAX_S = 0.25


class HandlerClient:
    """One connection to one handler; many calls at once.

    An async context manager; made on the event loop that it is used on.

    Args:
        address: `tcp://host:port`.
        curve: This client's keys and the handler's public key; without them, plain.
        clock: Time, for tests.
        transport: What carries the calls; ZeroMQ with `curve` by default.

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
        self._calls: dict[str, asyncio.Future[Reply]] = {}
        self._plain: asyncio.Future[Reply] | None = None
        self._plain_turn = asyncio.Lock()
        self._unsent: dict[asyncio.Future[Reply], bytes] = {}
        self._peer = self._connect()
        self._closed = False

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
        for reply in (*self._calls.values(), *([self._plain] if self._plain else [])):
            if not reply.done():
                sent = reply not in self._unsent
                kind = CallTimeoutError if sent else UnreachableError
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
    ) -> Reply:
        """As `call`, but an error that the handler answers with is returned, not raised."""
        request_id = request_id or str(uuid.uuid4())
        if request_id in self._calls:
            raise BadRequestError(f"a call with request_id {request_id!r} is already under way")
        margin_s = min(REPLY_MARGIN_MAX_S, timeout_s * REPLY_MARGIN)
        frame = encode_call(Call(method, params or {}, request_id, timeout_s - margin_s, start_by))
        reply = asyncio.get_running_loop().create_future()
        self._calls[request_id] = reply
        try:
            return await self._exchange(frame, reply, timeout_s)
        finally:
            del self._calls[request_id]

    async def request_plain(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float = 30.0
    ) -> Reply:
        """Call without `request_id`, one at a time: for handlers that echo none.

        The reply's `result` is the whole dict. Such a call is at least once.

        Raises:
            UnreachableError: Nobody was there.
            CallTimeoutError: No reply in time; the connection is made anew, as a late reply
                could not be told from the next one.
        """
        async with self._plain_turn:
            self._plain = asyncio.get_running_loop().create_future()
            try:
                frame = encode_call(Call(method, params or {}))
                return await self._exchange(frame, self._plain, timeout_s)
            except (CallTimeoutError, asyncio.CancelledError):
                self._reconnect()
                raise
            finally:
                self._plain = None

    async def ping(self, *, timeout_s: float = 5.0) -> dict[str, Any]:
        """The handler's answer to `ping`."""
        result: dict[str, Any] = await self.call("ping", timeout_s=timeout_s)
        return result

    async def _exchange(
        self, frame: bytes, reply: asyncio.Future[Reply], timeout_s: float
    ) -> Reply:
        """Send a frame as soon as the peer is there, and wait for its reply."""
        if self._closed:
            raise UnreachableError("the client was closed")
        if self._unsent or not self._peer.try_send(frame):  # none goes before one that waits
            self._unsent[reply] = frame
        timer = self._clock.call_later(timeout_s, lambda: self._give_up(reply, timeout_s))
        try:
            return await reply
        finally:
            timer.cancel()
            self._unsent.pop(reply, None)

    def _give_up(self, reply: asyncio.Future[Reply], timeout_s: float) -> None:
        if reply.done():
            return
        if reply in self._unsent:
            message = f"no handler at {self.address} within {timeout_s:g} s: is it running?"
            reply.set_exception(UnreachableError(message))
        else:
            message = f"{self.address} did not reply within {timeout_s:g} s"
            reply.set_exception(CallTimeoutError(message))

    def _on_writable(self) -> None:
        for reply, frame in list(self._unsent.items()):
            if not reply.done() and not self._peer.try_send(frame):
                return
            self._unsent.pop(reply, None)

    def _on_reply(self, payload: bytes) -> None:
        try:
            reply = decode_reply(payload)
        except BadRequestError as error:
            reply = Reply(success=False, error=str(error), code="failed")
        waiting = self._plain if reply.request_id is None else self._calls.get(reply.request_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    def _connect(self) -> Peer:
        return self._transport.connect(self.address, self._on_reply, self._on_writable)

    def _reconnect(self) -> None:
        """A new connection; frames that were not sent yet go over it."""
        if not self._closed:
            self._peer.close()
            self._peer = self._connect()
            self._on_writable()


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
