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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from catalogzero.backoff import Backoff
from catalogzero.clock import Clock, SystemClock
from catalogzero.config.address import Address
from catalogzero.errors import (
    BadRequestError,
    CallTimeoutError,
    CatalogZeroError,
    TooLargeError,
    UnreachableError,
)
from catalogzero.wire.calls import CallVerdict, KnownBoot, PendingCall, Stamp, described_methods
from catalogzero.wire.carriers import transport_for
from catalogzero.wire.keys import CurveClientSource
from catalogzero.wire.messages import (
    MAX_CALL_BYTES,
    Call,
    JsonObject,
    Reply,
    StartBy,
    decode_plain_reply,
    decode_reply,
    encode_call,
    error_reply,
    plain_result,
)
from catalogzero.wire.transport import Peer, Transport

REPLY_MARGIN = 0.05
REPLY_MARGIN_MAX_S = 0.25
PING_TIMEOUT_S = 5.0
SEND_AGAIN_S = 5.0
"""How long one send of `run` waits for its reply: a restart is found within that time."""

RUN_BACKOFF = Backoff(0.1, 2.0, jitter=(0.5, 1.5))


class HandlerClient:
    """One connection to one handler; many calls at once, to a plain one each in its turn.

    An async context manager; made on the event loop that it is used on.

    Args:
        address: `tcp://host:port`, or `ipc:///folder/name.sock` on this machine.
        curve: This client's keys and the handler's public key, or what gives those of now;
            without them, plain.
        clock: Time, for tests.
        transport: What carries the calls; by default that of the address, with `curve`.

    Attributes:
        max_call_bytes: The longest call that the handler takes, as its last greeting said.

    Raises:
        ConfigError: The address has no such form.
    """

    def __init__(
        self,
        address: str,
        *,
        curve: CurveClientSource | None = None,
        clock: Clock | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.address = address
        self._transport = transport or transport_for(Address.parse(address), client_keys=curve)
        self._clock = clock or SystemClock()
        self._echoes: bool | None = None
        self._greeting = asyncio.Lock()
        self._greeters = 0
        self.max_call_bytes = MAX_CALL_BYTES
        self._calls: dict[str | int | None, asyncio.Future[Reply]] = {}
        self._unsent: dict[asyncio.Future[Reply], bytes] = {}
        self._sent: dict[asyncio.Future[Reply], bytes] = {}
        self._beside: HandlerClient | None = None
        self._peer = self._former = self._connect()
        self._closed = False
        self._boot = KnownBoot()

    @property
    def is_plain(self) -> bool:
        """Whether the handler has shown that it echoes no `request_id`."""
        return self._echoes is False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()
        await self._former.wait_closed()
        await self._peer.wait_closed()
        if self._beside is not None:
            await self._beside.__aexit__()

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
        `attempts_left` is how often the caller repeats the call should a `retry_safe` method
        fail: until then the handler counts no run, and no failure.
        """
        request_id = request_id or str(uuid.uuid4())
        ends_s = self._clock.monotonic() + timeout_s
        while True:
            left_s = max(0.0, ends_s - self._clock.monotonic())
            if self._echoes is None or self._greeters:
                left_s = await self._greet(left_s)
            if self.is_plain:
                reply = await self._exchange(encode_call(Call(method, params or {})), left_s)
                reply.result = plain_result(reply.result)
                return reply
            margin_s = min(REPLY_MARGIN_MAX_S, left_s * REPLY_MARGIN)
            waits_s = left_s - margin_s
            call = Call(method, params or {}, request_id, waits_s, start_by, attempts_left)
            # The connection broke before it was sent: the next one may lead to another kind of
            # handler, which has to be greeted first.
            with suppress(_NotSentError):
                return await self._exchange(encode_call(call), left_s, request_id)

    async def run(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 3_600.0,
        on_send: Callable[[str], None] = lambda request_id: None,
        on_wait: Callable[[str], None] = lambda why: None,
    ) -> Reply:
        """Call a method until the handler has judged, through lost replies and restarts.

        An absent handler and one that drains are waited for; any other answer is returned. One
        that restarted and does not know the run ends this at once, with the code `expired`. The
        call to a plain handler, and that of a method which `describe` does not list (a control
        method), is sent once: nothing there would know it again.

        Args:
            method: A job method.
            params: JSON object; `{}` by default.
            timeout_s: Seconds from now to the reply, all waits included.
            on_send: Called with the `request_id` of each send.
            on_wait: Called with the reason of each wait for the handler.

        Raises:
            UnreachableError: Nobody was there in time; the call was never sent.
            CallTimeoutError: It was sent, and there is no judgement in time; its run may go on.
            TooLargeError: It is longer than the handler takes.
        """
        first_id, ends_s = str(uuid.uuid4()), self._clock.monotonic() + timeout_s
        call, tries, refusal = PendingCall(), 0, None
        is_sent = False
        while True:
            left_s = ends_s - self._clock.monotonic()
            if left_s <= 0 and refusal is not None:
                return refusal
            if left_s <= 0 and is_sent:
                raise CallTimeoutError(f"{method} did not end within {timeout_s:g} s: it may go on")
            try:
                if call.start_by is None:
                    stamp = await self._stamp(method, max(0.0, left_s))
                    if stamp is None:
                        left_s = max(0.0, ends_s - self._clock.monotonic())
                        break
                    call.take(stamp, method)
                    left_s = ends_s - self._clock.monotonic()
                request_id = f"{first_id}.{call.n}"
                on_send(request_id)
                reply = await self.request(
                    method,
                    params,
                    timeout_s=max(0.0, min(left_s, SEND_AGAIN_S)),
                    request_id=request_id,
                    start_by=call.start_by,
                )
            except (UnreachableError, CallTimeoutError) as error:
                # Before the first send nothing can have begun: the end of the wait is its error.
                timed_out = isinstance(error, CallTimeoutError) and call.start_by is not None
                is_sent, why = is_sent or timed_out, error.message
                if not is_sent and refusal is None and ends_s <= self._clock.monotonic():
                    raise
            else:
                match call.judge(reply):
                    case CallVerdict.PENDING:
                        is_sent, refusal, why = True, None, reply.error
                        if reply.code == "timeout":
                            tries = 0
                            continue
                    case CallVerdict.REFUSED if reply.code == "draining":
                        is_sent, refusal, why = False, reply, reply.error
                    case CallVerdict.LOST:
                        lost = "the handler restarted, and does not know how the run ended"
                        return replace(reply, error=f"{lost}: look before you call it again")
                    case _:
                        return reply
            on_wait(why)
            tries += 1
            left_s = max(0.0, ends_s - self._clock.monotonic())
            await self._clock.sleep(min(left_s, RUN_BACKOFF.delay_s(tries)))
        return await self.request(method, params, timeout_s=left_s)

    async def _stamp(self, method: str, timeout_s: float) -> Stamp | None:
        """The handler's stamp; None for a plain one, and where a call may not be sent twice."""

        async def ask(asked: str) -> Any:
            reply = await self.request(asked, timeout_s=min(PING_TIMEOUT_S, timeout_s))
            return reply.unwrap()

        stamp = await self._boot.stamp(ask)
        return stamp if method in described_methods(self._boot.described) else None

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
            reply = await self._exchange(encode_call(Call(method, params or {})), timeout_s)
        else:
            if self._beside is None:  # its end without a reply must cut no other call
                transport = self._transport
                self._beside = HandlerClient(self.address, clock=self._clock, transport=transport)
            reply = await self._beside.request_plain(method, params, timeout_s=timeout_s)
        if method == "ping":
            self._note_limit(reply)
        return reply

    async def ping(self, *, timeout_s: float = 5.0) -> JsonObject:
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
        began_s, was_sent = self._clock.monotonic(), False
        self._greeters += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._greeting.acquire()
            try:
                while self._echoes is None:
                    left_s = timeout_s - (self._clock.monotonic() - began_s)
                    if left_s <= 0:
                        raise TimeoutError
                    asked = str(uuid.uuid4())
                    frame = encode_call(Call("ping", {}, asked, left_s))
                    try:
                        pong = await self._exchange(frame, left_s, asked)
                    except CallTimeoutError:  # perhaps it restarted just now
                        was_sent = True
                        continue
                    except UnreachableError:
                        if was_sent:  # somebody was there: what is left of the time says little
                            raise TimeoutError from None
                        raise
                    self._echoes = pong.request_id == asked
                    self._note_limit(pong)
            finally:
                self._greeting.release()
        except TimeoutError:
            message = f"{self.address} did not answer a ping within {round(timeout_s, 2):g} s"
            raise UnreachableError(f"{message}: the call was not sent") from None
        finally:
            self._greeters -= 1
        return max(0.0, timeout_s - (self._clock.monotonic() - began_s))

    def _note_limit(self, pong: Reply) -> None:
        answer = pong.result if isinstance(pong.result, dict) else {}
        limit = answer.get("max_message_bytes")
        self.max_call_bytes = limit if isinstance(limit, int) else MAX_CALL_BYTES

    async def _exchange(
        self, frame: bytes, timeout_s: float, request_id: str | None = None
    ) -> Reply:
        """Send a frame as soon as the peer is there, and wait for its reply.

        That is found by its `request_id`; without one, by being the only one in flight.
        """
        if request_id in self._calls:
            raise BadRequestError(f"a call with request_id {request_id!r} is already under way")
        if request_id is not None and len(frame) > self.max_call_bytes:
            most = f"{self.max_call_bytes:,} bytes"
            raise TooLargeError(f"{self.address} takes calls of at most {most}")
        if self._closed:
            raise UnreachableError("the client was closed")
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if request_id is not None:
            self._calls[request_id] = reply
        timer = self._clock.call_later(timeout_s, lambda: self._give_up(reply, timeout_s))
        try:
            # None goes before one that waits: a caller's calls arrive in their order.
            if self._unsent or not self._try_send(reply, frame):
                self._unsent[reply] = frame
            return await reply
        finally:
            timer.cancel()
            self._calls.pop(request_id, None)
            self._unsent.pop(reply, None)
            was_sent = reply in self._sent
            self._sent.pop(reply, None)
            if was_sent and not self._echoes:
                if reply.cancelled() or reply.exception() is not None:
                    # Its reply may still come, and would be taken for the next call's.
                    self._reconnect()
                else:
                    self._on_writable()

    def _try_send(self, reply: asyncio.Future[Reply], frame: bytes) -> bool:
        """Send a call; false while the handler does not take it, or while another call waits for
        a reply that only its turn could distinguish from this one's.
        """
        if self._sent and not self._echoes:
            return False
        try:
            if not self._peer.try_send(frame):
                return False
        except TooLargeError as error:
            reply.set_exception(error)
        else:
            self._sent[reply] = frame
        return True

    def _give_up(self, reply: asyncio.Future[Reply], timeout_s: float) -> None:
        if reply.done():
            return
        waited = f"{round(timeout_s, 2):g} s"
        if reply in self._unsent:
            why = self._peer.fault or "is it running?"
            message = f"no handler at {self.address} within {waited}: {why}"
            if self._sent:
                message = f"{self.address} was busy with another call for {waited}"
            reply.set_exception(UnreachableError(message))
        else:
            message = f"{self.address} did not reply within {waited}"
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
        # A plain handler's reply carries no id: it is that of the one call in flight.
        if waiting is None and not self._echoes:
            waiting, reply = next(iter(self._sent), None), decode_plain_reply(payload)
        if reply is not None and waiting is not None and not waiting.done():
            waiting.set_result(reply)

    def _on_absent(self, frames: Sequence[bytes], error: UnreachableError) -> None:
        """End the calls that nobody was there to receive: they were never delivered."""
        for reply, frame in [*self._sent.items()]:
            if any(frame is one for one in frames):
                del self._sent[reply]
                if not reply.done():
                    # Who is there by now has to be greeted first.
                    reply.set_exception(_NotSentError() if self._echoes else error)
        if self._echoes is None:
            self._on_writable()
        else:
            self._reconnect(CallTimeoutError(f"{self.address} went away before a reply came"))

    def _connect(self) -> Peer:
        connect = self._transport.connect
        return connect(self.address, self._on_reply, self._on_writable, self._on_absent)

    def _reconnect(self, error: CatalogZeroError | None = None) -> None:
        """A new connection, perhaps to another kind of handler: what was sent gets no reply."""
        lost, self._sent = self._sent, {}
        by_id, self._echoes = self._echoes, None
        if self._closed:
            return
        self._peer.close()
        self._former, self._peer = self._peer, self._connect()
        for reply in lost:
            if isinstance(error, TooLargeError) and not reply.done():
                reply.set_result(error_reply(error))
            elif error is not None and not reply.done():
                reply.set_exception(error)
        # Their frames carry an id, which whoever is there now may not echo.
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
