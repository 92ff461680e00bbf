"""Keeps a handler registered with a scheduler: ours, or an unmodified ScheduleZero server.

It registers at start, then reports `online` as a heartbeat; a scheduler that answers that it does
not know the handler (it was restarted) gets a new registration, and no other does, as one drops
the server's connection. It tries for ever, and never stands in the way of calls.

A handler_id is that of one host: while another answers under it, our scheduler refuses this one,
and takes it once the other is gone. The same holds for an instance_id among the instances of a
handler_id. What uploads from a state folder of its own has no second instance; from a store that is
shared (`state`) it has as many as any other. That all name one store is nothing that a scheduler
could know: one database has many spellings, and one spelling may be many databases. The epoch
decides it: of two stores of one installation the later takes it, and the other is paused.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from catalogzero.backoff import Backoff
from catalogzero.config.seldom import Seldom
from catalogzero.config.settings import DEFAULT_SCHEDULER
from catalogzero.errors import CatalogZeroError, HandlerIdTakenError, RetryLaterError
from catalogzero.runtime.handler import Handler
from catalogzero.wire.client import HandlerClient
from catalogzero.wire.keys import CurveClientSource
from catalogzero.wire.messages import JsonObject

if TYPE_CHECKING:
    from tenacity import RetryCallState  # imported when a registration begins

REPLY_TIMEOUT_S = 15.0  # above the 10 s for which a ScheduleZero server's loop can freeze
HEARTBEAT_S = 10.0
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 10.0
GOODBYE_TIMEOUT_S = 2.0


class Registration:
    """One handler's registration.

    Args:
        handler: Its name, methods, clock and log are used, and its scheduler's ZeroMQ address.
        address: Where the handler can be called.
        boot_id: Of this start of it.
        curve: The handler's pair and the scheduler's public key; without them, plain.

    Attributes:
        registered: Set while the scheduler knows the handler.
        is_refused: Whether another host answers under its handler_id.
    """

    def __init__(
        self, handler: Handler, address: str, boot_id: str, curve: CurveClientSource | None
    ) -> None:
        runtime = handler.runtime
        self._scheduler = runtime.scheduler
        self._named: JsonObject = {"handler_id": handler.handler_id, "address": address}
        more: JsonObject = {"methods": handler._offered_methods(), "boot_id": boot_id}
        if runtime.instance_id and not handler._keeps_its_own():
            self._named["instance_id"] = runtime.instance_id
            more["places"] = runtime.max_concurrent_jobs
        self._params = self._named | more
        self._fix = second_host_fix(handler)
        self._clock, self._log, self._seldom = handler.clock, handler.log, Seldom(handler.clock)
        self._client = HandlerClient(self._scheduler, curve=curve, clock=handler.clock)
        self._task: asyncio.Task[None] | None = None
        self.registered = asyncio.Event()
        self.is_refused = False

    def start(self) -> None:
        """Begin to register."""
        self._task = asyncio.create_task(self._keep(), name="registration")

    async def close(self) -> None:
        """Report once that the handler goes offline, and stop."""
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        try:
            await asyncio.wait([task])
            if self.registered.is_set():
                await self._report("offline", timeout_s=GOODBYE_TIMEOUT_S)
        except CatalogZeroError as error:
            self._log.debug("goodbye_failed", error=str(error))
        finally:
            self._client.close()

    async def _keep(self) -> None:
        async def register() -> None:
            send = self._client.request_plain
            reply = await send("register", self._params, timeout_s=REPLY_TIMEOUT_S)
            self.is_refused = reply.code == HandlerIdTakenError.code
            if self.is_refused:
                raise HandlerIdTakenError(reply.error)
            if not reply.success:
                raise RetryLaterError(f"registration refused: {reply.error}")

        while True:
            await self._retrying(register)
            self._seldom.over("scheduler_away")
            self._seldom.over("registration_refused")
            self._log.info("registered", scheduler=self._scheduler)
            self.registered.set()
            # A scheduler that was restarted has to be asked: it does not look for its handlers.
            while await self._retrying(self._report):
                await self._clock.sleep(HEARTBEAT_S)
            self.registered.clear()
            self._log.info("scheduler_forgot_us", scheduler=self._scheduler)

    async def _retrying(self, ask: Any) -> Any:
        """Ask until there is an answer, with jittered backoff."""
        from tenacity import AsyncRetrying, retry_if_exception_type

        attempts = AsyncRetrying(
            retry=retry_if_exception_type(Exception),
            wait=Backoff(RETRY_FIRST_S, RETRY_MAX_S, min_s=0.1),
            sleep=self._clock.sleep,
            before_sleep=self._log_failure,
        )
        return await attempts(ask)

    def _log_failure(self, state: RetryCallState) -> None:
        """Say that nobody is there, at first and then now and again, until somebody is.

        Nobody asked for the default scheduler: there is no warning of that one.
        """
        error = state.outcome.exception() if state.outcome else None
        about = {"scheduler": self._scheduler, "error": str(error)}
        if isinstance(error, HandlerIdTakenError):
            if times := self._seldom.is_due("registration_refused"):
                self._log.error("registration_refused", **about, fix=self._fix, times=times)
            return
        times = self._seldom.is_due("scheduler_away")
        if times and self._scheduler != DEFAULT_SCHEDULER:
            self._log.warning("scheduler_away", **about, times=times)

    async def _report(self, status: str = "online", timeout_s: float = REPLY_TIMEOUT_S) -> bool:
        """Report the status; false where the scheduler does not know the handler."""
        params = {**self._named, "status": status}
        reply = await self._client.request_plain("report_status", params, timeout_s=timeout_s)
        return reply.success


def second_host_fix(handler: Handler) -> str:
    """What to do about another host that answers under a handler's handler_id."""
    if handler._keeps_its_own():
        return (
            "two state folders of one installation would overwrite each other's rows: stop the "
            "other host, or give this one a `handler_id` and an `installation_id` of its own, or "
            "give both the same `state` (postgresql://…) and an `instance_id` each"
        )
    if handler.runtime.state is not None:
        own = "`instance_id` of its own, beside the same `state`"
        return f"stop the other host, or give each of them an {own}"
    own = "an `instance_id`" if handler.runtime.instance_id else "a `handler_id`"
    return f"stop the other host, or give this one {own} of its own"
