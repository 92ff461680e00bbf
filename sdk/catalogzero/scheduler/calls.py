"""One execution, from its first call to its end: what to send, and what each answer means.

The handler alone judges whether a run began. Before the first call of each n it is pinged, and
its boot_id and the uptime past which the call must not begin are stored under the lease. A lost
reply, a timeout or a takeover sends the same call again, unchanged. n grows when the handler said
that the run never began, and, for retry_safe methods only, when it failed in a way that may get
better, or is `expired`. So a method that is not retry_safe starts at most once. During a long run
the handler is pinged, once for all that wait on it; the call goes out again when it does not
answer, or has restarted. While the handler is away the record says so; its return wakes all that
wait for it.

Handlers that know no boot_id are plain ScheduleZero ones: called at least once. A reply ends that.
"""

from __future__ import annotations

import asyncio
import random
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Protocol

from catalogzero.clock import Clock
from catalogzero.errors import (
    CallTimeoutError,
    CatalogZeroError,
    UnreachableError,
)
from catalogzero.scheduler.links import CallSettings, Link, Links, Stamp
from catalogzero.scheduler.models import Execution
from catalogzero.scheduler.ticks import LATE_AFTER_S, seconds_us
from catalogzero.wire.messages import (
    Reply,
    StartBy,
    may_get_better,
    plain_result,
)

NEVER_BEGAN = frozenset({"busy", "draining", "wake_failed"})
DESCRIBE_TIMEOUT_S = 10.0
PATIENCE_S = 600.0
MAX_CALLS = 1_000
ANSWERS_A_SLOT = 10
MAX_BOOT_ID_CHARS = 200


class LeaseHolder(Protocol):
    """What an execution needs of the runner that holds its lease."""

    clock: Clock

    def now_us(self) -> int:
        """The database's time, as well as it is known."""

    async def save(self, one: Execution) -> bool:
        """Write it down; false when the lease is another's."""

    async def holds(self, one: Execution) -> bool:
        """Whether the lease is still this runner's."""


class Driver:
    """Brings executions to their end."""

    def __init__(self, holder: LeaseHolder, links: Links, settings: CallSettings) -> None:
        self._holder = holder
        self._links = links
        self._settings = settings

    async def drive(self, one: Execution) -> None:
        """Call until the execution is final and saved, or its lease is another's."""
        if one.boot_id is None and not await self._note_away(one):
            return
        async with self._slot(one) as is_ours:
            ended = is_ours and await self._until_judged(one)
        if ended:
            await self._holder.save(one)

    @asynccontextmanager
    async def _slot(self, one: Execution) -> AsyncIterator[bool]:
        """A slot among those that wait on the handler; false once the lease is another's.

        Until there is one, the record says whether the handler is away.
        """
        slots = self._links.slots_of[one.handler_id]
        entering = asyncio.create_task(slots.__aenter__(), name="scheduler-slot")
        try:
            await asyncio.sleep(0)
            is_ours = True
            while is_ours and not entering.done():
                was_waiting, is_ours = one.waiting, await self._note_away(one)
                if is_ours and one.waiting == was_waiting:
                    change = asyncio.create_task(asyncio.Event().wait(), name="scheduler-change")
                    with self._links.interrupting(one.handler_id, change):
                        await asyncio.wait({entering, change}, return_when=FIRST_COMPLETED)
                    change.cancel()
            yield is_ours
        finally:
            entering.cancel()
            await asyncio.wait({entering})
            if not entering.cancelled():
                await slots.__aexit__()

    async def _until_judged(self, one: Execution) -> bool:
        """Call until the handler has judged; false when there is nothing left to save."""
        while await self._begin(one):
            await self._drive_call(one)
            if one.is_final() or not await self._holder.holds(one):
                return one.is_final()
            if one.status == "retry" and not await self._holder.save(one):
                return False
            if one.boot_id is None:
                await self._pause(one, one.n - 1)
        return False

    async def _begin(self, one: Execution) -> bool:
        """Stamp a call that has no stamp yet; false when there is no such call to make."""
        if one.boot_id is not None:
            return True
        stamp = await self._ask(one)
        if stamp is None or not await self._keep(one, stamp):
            return False
        if stamp.boot_id is None:
            await self._drive_plain(one)
        return stamp.boot_id is not None

    async def _ask(self, one: Execution) -> Stamp | None:
        """The handler's stamp; None once it has been away for too long, which is saved."""
        since_s, tries = self._holder.clock.monotonic(), 0
        while True:
            try:
                link = await self._links.get(one.handler_id)
                stamp = await link.ask()
            except CatalogZeroError as error:
                reason = error.message
            else:
                return stamp if await self._note(one, None) else None
            tries += 1
            if self._away_too_long(one, since_s, reason):
                await self._holder.save(one)
                return None
            if not await self._note(one, reason):
                return None
            await self._pause(one, tries)
            if not await self._holder.holds(one):
                return None

    async def _note_away(self, one: Execution) -> bool:
        """As `_note`, by what came of asking the handler last."""
        link = self._links.known(one.handler_id)
        return link is None or link.checked_us is None or await self._note(one, link.away)

    async def _note(self, one: Execution, reason: str | None) -> bool:
        """Have the record say why its handler is away; false when the lease is another's."""
        return not one.note_absence(reason) or await self._holder.save(one)

    def _away_too_long(self, one: Execution, since_s: float, reason: str) -> bool:
        """Decide on an execution that cannot be sent: missed when it surely never began."""
        age_us = self._holder.now_us() - one.waiting_since_us
        first = one.n == 1 and one.sent_us is None
        grace_s = one.misfire_grace_s
        if first and grace_s is not None and age_us > seconds_us(grace_s):
            one.status, one.error = "missed", f"the handler was not there in time: {reason}"
        elif self._is_given_up(one, since_s):
            one.status = "missed" if first else "lost"
            one.error = f"the handler stayed away: {reason}"
        return one.is_final()

    def _is_given_up(self, one: Execution, since_s: float) -> bool:
        """Whether its handler stayed away for too long, partly under an earlier owner perhaps.

        A clock that leaps makes it look so: it always gets this scheduler's own patience.
        """
        away_s = self._holder.clock.monotonic() - since_s
        heard_us = max(one.created_us, one.sent_us or 0, self._links.heard_us[one.handler_id])
        gone_s = max(away_s, (self._holder.now_us() - heard_us) / 1_000_000)
        limit_s = self._settings.lost_after_s
        return gone_s > limit_s and away_s > min(PATIENCE_S, limit_s)

    async def _keep(self, one: Execution, stamp: Stamp) -> bool:
        """Store the stamp of this n before its first call."""
        now_us = self._holder.now_us()
        if one.tick_us is not None and one.sent_us is None:
            one.late = one.late or now_us - one.created_us > seconds_us(LATE_AFTER_S)
        one.boot_id, one.start_by_s, one.sent_us = stamp.boot_id, stamp.start_by_s, now_us
        one.retry_safe = one.method in stamp.retry_safe
        return await self._holder.save(one)

    async def _drive_call(self, one: Execution) -> None:
        """Send the present call, again and again, until the handler has judged."""
        away_since_s: float | None = None
        while await self._holder.holds(one) and await self._note_away(one):
            left_s = self._left_s(one)
            wait_s = min(self._settings.wait_s, left_s)
            if left_s <= 0:
                await self._cancel(one)
                wait_s = self._settings.ping_timeout_s
            reply = await self._send(one, wait_s)
            if reply is not None and reply.code == "busy" and goes_on(reply):
                await self._pause(one, 1)  # too many wait for its run already
                continue
            if reply is not None and reply.code != "timeout":
                self._links.slots_of[one.handler_id].answered(busy=reply.code == "busy")
                judge(one, reply, over_time=left_s <= 0)
                return
            if reply is not None:
                away_since_s = None
                continue
            if not (one.waiting or await self._note_away(one)):
                return
            await self._pause(one, 1)
            away_since_s = away_since_s or self._holder.clock.monotonic()
            if self._is_given_up(one, away_since_s):
                one.status, one.error = "lost", "the handler stayed away: nobody can know the end"
                return

    async def _send(self, one: Execution, wait_s: float) -> Reply | None:
        """One call; None when there was no reply, or its handler was not seen to live."""
        assert one.boot_id is not None  # noqa: S101 - drive stamps before it sends
        start_by = StartBy(one.boot_id, one.start_by_s or 0.0)
        try:
            link = await self._links.get(one.handler_id)
        except UnreachableError:
            return None
        request = link.caller.request(
            one.method,
            one.params,
            timeout_s=wait_s,
            request_id=one.request_id,
            start_by=start_by,
            attempts_left=max(0, one.max_attempts - one.attempt),
        )
        call = asyncio.create_task(request, name="scheduler-call")
        watch = asyncio.create_task(self._watch(link, one), name="scheduler-watch")
        try:
            with self._links.interrupting(one.handler_id, watch):
                await asyncio.wait({call, watch}, return_when=FIRST_COMPLETED)
            return in_its_words(call.result()) if call.done() else None
        except (UnreachableError, CallTimeoutError):
            return None
        except CatalogZeroError as error:  # it is too large for the handler
            return Reply(success=False, error=error.message, code=error.code)
        finally:
            call.cancel()
            watch.cancel()
            await asyncio.gather(call, watch, return_exceptions=True)

    async def _watch(self, link: Link, one: Execution) -> None:
        """Ping a handler until it does not answer, or is not the boot that was called."""
        while link.checked_us is None or one.waiting == (link.away is not None):
            await self._holder.clock.sleep(self._settings.ping_every_s)
            try:
                stamp = await link.ask()
            except CatalogZeroError:
                return
            if stamp.boot_id != one.boot_id:
                return

    def _left_s(self, one: Execution) -> float:
        """Seconds until the schedule's own timeout_s is over."""
        if one.timeout_s is None or one.sent_us is None:
            return float("inf")
        return one.timeout_s - (self._holder.now_us() - one.sent_us) / 1_000_000

    async def _cancel(self, one: Execution) -> None:
        """Cancel the run at its handler; the next reply shows whether that was heard."""
        with suppress(UnreachableError, CallTimeoutError):
            link = await self._links.get(one.handler_id)
            asked = {"request_id": one.request_id}
            await link.caller.request("cancel", asked, timeout_s=self._settings.ping_timeout_s)

    async def _drive_plain(self, one: Execution) -> None:
        """Call a handler that knows no request_id: again only while it gave no reply."""
        while await self._holder.holds(one):
            try:
                await self._send_plain(one)
            except (UnreachableError, CallTimeoutError) as error:
                one.status, one.error = "error", error.message
                if one.attempt < one.max_attempts:
                    one.status, one.attempt = "retry", one.attempt + 1
            if not await self._holder.save(one) or one.is_final():
                return
            await self._pause(one, one.attempt - 1)
            if await self._ask(one) is None:
                return

    async def _send_plain(self, one: Execution) -> None:
        """One call without request_id; its reply, whatever it is, is the end."""
        timeout_s = one.timeout_s or self._settings.plain_timeout_s
        link = await self._links.get(one.handler_id)
        link.plain_calls += 1
        try:
            call = link.caller.request_plain(one.method, one.params, timeout_s=timeout_s)
            reply = in_its_words(await call)
        finally:
            link.plain_calls -= 1
        one.status, one.error = ("success", None) if reply.success else ("error", reply.error)
        one.result = plain_result(reply.result)

    async def _pause(self, one: Execution, tries: int) -> None:
        """Wait before the next try: exponential, jittered, bounded; less when its handler comes."""
        link = self._links.known(one.handler_id)
        if one.waiting and link is not None and link.checked_us and link.away is None:
            return  # it came back just now
        settings = self._settings
        delay_s = min(settings.retry_max_s, settings.retry_base_s * 2 ** min(tries - 1, 16))
        delay_s *= random.uniform(0.5, 1.5)  # noqa: S311 - no secret
        sleep = asyncio.create_task(self._holder.clock.sleep(delay_s), name="scheduler-pause")
        try:
            with self._links.interrupting(one.handler_id, sleep):
                await asyncio.wait({sleep})
        finally:
            sleep.cancel()
            await asyncio.gather(sleep, return_exceptions=True)


def judge(one: Execution, reply: Reply, *, over_time: bool = False) -> None:
    """What the handler's answer makes of an execution; n grows where the call may be made anew.

    Args:
        one: The execution that the answer is for.
        reply: The handler's judgement: not a lost reply, and no `timeout` of the wait.
        over_time: Its run was cancelled as it took longer than the schedule's timeout_s.
    """
    one.note_absence(None)
    if reply.success:
        one.status, one.result, one.error = "success", reply.result, None
        return
    one.error = reply.error
    if reply.code in NEVER_BEGAN:
        begin_anew(one)
        return
    if over_time and reply.code == "cancelled":
        one.status = "error"
        one.error = f"cancelled: it took longer than timeout_s ({one.timeout_s:g} s)"
        return
    may_repeat = bool(one.retry_safe) and one.attempt < one.max_attempts
    if may_repeat and may_get_better(reply):
        one.status, one.attempt = "retry", one.attempt + 1
        begin_anew(one)
    elif reply.code == "expired":
        one.status = "lost"
        one.error = f"the handler restarted or forgot: nobody can know the end ({reply.error})"
    else:
        one.status = "error"


def goes_on(reply: Reply) -> bool:
    """Whether a refusal says that the run which was asked for is under way."""
    return isinstance(reply.details, dict) and reply.details.get("running") is True


def in_its_words(reply: Reply) -> Reply:
    """A handler's refusal marked as its own words, as ScheduleZero does."""
    if reply.success or reply.code in ("bad_reply", "too_large"):
        return reply
    return replace(reply, error=f"Handler returned error: {reply.error}")


def begin_anew(one: Execution) -> None:
    """The next n: it has no stamp yet, so the handler is pinged before it is sent."""
    one.n += 1
    one.boot_id = one.start_by_s = None
