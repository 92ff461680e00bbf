"""One execution, from its first call to its end: what to send, and what each answer means.

The handler alone judges whether a run began. Before the first call of each n it is pinged, and
its boot_id and the uptime past which the call must not begin are stored under the lease. A lost
reply, a timeout or a takeover sends the same call again, unchanged. n grows when the handler said
that the run never began, and, for retry_safe methods only, when it failed in a way that may get
better, or is `expired`. So a method that is not retry_safe starts at most once. During a long run
the handler is pinged, once for all that wait on it; the call goes out again when it does not
answer, or has restarted. While the handler is away the record says so; its return wakes all that
wait for it.

A run that is stopped ends where it has not begun; else its handler is asked to cancel it.

Of a handler with instances one is asked for the stamp, and called until it has judged. Should it
stay silent, what may run twice goes to another one as the next attempt; anything else waits.

Handlers that know no boot_id are plain ScheduleZero ones: called at least once. A reply ends that.
"""

from __future__ import annotations

import asyncio
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Protocol

from catalogzero.backoff import Backoff
from catalogzero.clock import Clock
from catalogzero.errors import CallTimeoutError, CatalogZeroError, UnreachableError
from catalogzero.scheduler.links import Callee, CallSettings, Link, Links
from catalogzero.scheduler.models import Execution
from catalogzero.scheduler.ticks import LATE_AFTER_S, seconds_us
from catalogzero.wire.calls import CallVerdict, Stamp
from catalogzero.wire.messages import Reply, plain_result


class LeaseHolder(Protocol):
    """What an execution needs of the runner that holds its lease."""

    clock: Clock

    def now_us(self) -> int:
        """The database's time, as well as it is known."""

    async def save(self, one: Execution) -> bool:
        """Write it down; false when the lease is another's."""

    async def holds(self, one: Execution) -> bool:
        """Whether the lease is still this runner's."""

    async def divide(self, one: Execution) -> bool:
        """Divide a run whose items were listed; false where that failed, and it has ended."""


class Driver:
    """Brings executions to their end."""

    def __init__(self, holder: LeaseHolder, links: Links, settings: CallSettings) -> None:
        self._holder = holder
        self._links = links
        self._settings = settings
        self._placed: dict[str, Callee] = {}
        self._backoff = Backoff(settings.retry_base_s, settings.retry_max_s, jitter=(0.5, 1.5))

    async def drive(self, one: Execution) -> None:
        """Call until the execution is final and saved, or its lease is another's."""
        if one.boot_id is None and not await self._note_away(one):
            return
        self._place(one, callee_of(one)[1])
        try:
            async with self._slot(one) as is_ours:
                ended = is_ours and await self._until_judged(one)
        finally:
            self._place(one, "")
        if ended:
            await self._save_end(one)

    async def _save_end(self, one: Execution) -> bool:
        """Save what was judged; a run whose items were listed is divided instead, and is no more
        this runner's.
        """
        if one.partition and one.status == "success" and await self._holder.divide(one):
            return False
        return await self._holder.save(one)

    @asynccontextmanager
    async def _slot(self, one: Execution) -> AsyncIterator[bool]:
        """A slot among those that wait on the handler; false once the lease is another's.

        Until there is one, the record says whether the handler is away.
        """
        slots = self._links.slots_of[one.handler_id]
        entering = asyncio.create_task(slots.__aenter__(), name="scheduler-slot")
        try:
            # A free slot is taken in this turn of the loop: then the record need not say anything.
            await asyncio.sleep(0)
            is_ours = True
            while is_ours and not entering.done() and one.stopped is None:
                was_waiting, is_ours = one.waiting, await self._note_away(one)
                if is_ours and one.waiting == was_waiting:
                    change = asyncio.create_task(asyncio.Event().wait(), name="scheduler-change")
                    with self._links.interrupting(callee_of(one), change):
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
        while one.boot_id is not None or await self._stamp(one):
            await self._drive_call(one)
            if one.is_final() or not await self._holder.holds(one):
                return one.is_final()
            if one.status == "retry" and not await self._holder.save(one):
                return False
            if one.boot_id is None:
                await self._pause(one, one.n - 1)
        return False

    async def _stamp(self, one: Execution) -> bool:
        """Stamp a call, and store that before it is sent; false when there is no such call.

        A plain handler has no stamp to give: it is called here, to the end.
        """
        stamp = await self._ask(one)
        if stamp is None:
            return False
        now_us = self._holder.now_us()
        if one.tick_us is not None and one.sent_us is None:
            one.late = one.late or now_us - one.created_us > seconds_us(LATE_AFTER_S)
        one.take(stamp, one.called[0])
        one.sent_us = now_us
        # Whoever takes over must know of the call before the handler can: it sends the same again.
        if not await self._holder.save(one):
            return False
        if one.boot_id is None:
            await self._drive_plain(one)
        return one.boot_id is not None

    async def _ask(self, one: Execution) -> Stamp | None:
        """The handler's stamp; None once it has been away for too long, which is saved."""
        since_s, tries = self._holder.clock.monotonic(), 0
        while True:
            if one.stopped is not None:
                one.status, one.error = "error" if one.sent_us else "skipped", one.stopped
                await self._holder.save(one)
                return None
            instance_id = ""
            try:
                instance_id, link = await self._links.choose(one.handler_id)
                # At once: those who choose while this one asks must see that it will be called.
                self._place(one, instance_id)
                stamp = await link.ask()
            except CatalogZeroError as error:
                reason = error.message
                if instance_id and self._links.absence((one.handler_id, "")) == (True, None):
                    continue  # another instance is there
            else:
                one.instance_id = instance_id or None
                return stamp if await self._note(one, None) else None
            tries += 1
            # Of a call that was sent once, nobody can say that it never began.
            never_sent = one.n == 1 and one.sent_us is None
            grace_s, age_us = one.misfire_grace_s, self._holder.now_us() - one.waiting_since_us
            if never_sent and grace_s is not None and age_us > seconds_us(grace_s):
                one.status, one.error = "missed", f"the handler was not there in time: {reason}"
            elif self._is_given_up(one, since_s):
                one.status = "missed" if never_sent else "lost"
                one.error = f"the handler stayed away: {reason}"
            if one.is_final():
                await self._holder.save(one)
                return None
            if not await self._note(one, reason):
                return None
            await self._pause(one, tries)
            if not await self._holder.holds(one):
                return None

    def _place(self, one: Execution, instance_id: str) -> None:
        """Count it as load of an instance, and of no other."""
        if (old := self._placed.pop(one.execution_id, None)) is not None:
            self._links.load[old] -= 1
        if instance_id:
            self._placed[one.execution_id] = one.handler_id, instance_id
            self._links.load[one.handler_id, instance_id] += 1

    async def _note_away(self, one: Execution) -> bool:
        """As `_note`, by what came of asking the handler last."""
        was_asked, why = self._links.absence(callee_of(one))
        return not was_asked or await self._note(one, why)

    async def _note(self, one: Execution, reason: str | None) -> bool:
        """Have the record say why its handler is away; false when the lease is another's."""
        return not one.note_absence(reason) or await self._holder.save(one)

    def _is_given_up(self, one: Execution, since_s: float) -> bool:
        """Whether its handler stayed away for too long, partly under an earlier owner perhaps.

        A clock that leaps makes it look so: it always gets this scheduler's own patience.
        """
        away_s = self._holder.clock.monotonic() - since_s
        heard_us = max(one.created_us, one.sent_us or 0, self._links.heard_us[callee_of(one)])
        gone_s = max(away_s, (self._holder.now_us() - heard_us) / 1_000_000)
        limit_s = self._settings.lost_after_s
        return gone_s > limit_s and away_s > min(self._settings.patience_s, limit_s)

    async def _drive_call(self, one: Execution) -> None:
        """Send the present call, again and again, until the handler has judged."""
        away_since_s: float | None = None
        while await self._holder.holds(one) and await self._note_away(one):
            left_s = float("inf")
            if one.timeout_s is not None and one.sent_us is not None:
                left_s = one.timeout_s - (self._holder.now_us() - one.sent_us) / 1_000_000
            if one.stopped is not None:
                left_s = 0.0
            wait_s = min(self._settings.wait_s, left_s)
            if left_s <= 0:
                wait_s, asked = self._settings.ping_timeout_s, {"request_id": one.request_id}
                with suppress(
                    UnreachableError, CallTimeoutError
                ):  # the next reply shows its effect
                    link = await self._links.get(*callee_of(one))
                    await link.caller.request("cancel", asked, timeout_s=wait_s)
            reply = await self._send(one, wait_s)
            if reply is not None:
                if judge(one, reply, over_time=left_s <= 0) is not CallVerdict.PENDING:
                    self._links.slots_of[one.handler_id].answered(busy=reply.code == "busy")
                    return
                away_since_s = None
                if reply.code == "busy":  # too many wait for its run already
                    await self._pause(one, 1)
                continue
            if not (one.waiting or await self._note_away(one)):
                return
            await self._pause(one, 1)
            away_since_s = away_since_s or self._holder.clock.monotonic()
            if self._goes_elsewhere(one, away_since_s):
                return
            if self._is_given_up(one, away_since_s):
                one.status, one.error = "lost", "the handler stayed away: nobody can know the end"
                return

    def _goes_elsewhere(self, one: Execution, since_s: float) -> bool:
        """Whether it leaves its instance, which stays silent, for another one that is there.

        What that instance still does of it may go on beside the next attempt.
        """
        silent = self._links.absence(callee_of(one))[1]
        away_s = self._holder.clock.monotonic() - since_s
        if one.instance_id is None or silent is None or away_s < self._settings.replica_lost_s:
            return False
        if self._links.absence((one.handler_id, ""))[1] is not None or not one.leave():
            return False
        one.note_absence(None)
        one.status = "retry"
        one.error = f"the instance '{one.instance_id}' stayed away: {silent}"
        return True

    async def _send(self, one: Execution, wait_s: float) -> Reply | None:
        """One call; None when there was no reply, or its handler was not seen to live."""
        try:
            link = await self._links.get(*callee_of(one))
        except UnreachableError:
            return None
        request = link.caller.request(
            *one.called,
            timeout_s=wait_s,
            request_id=one.request_id,
            start_by=one.start_by,
            attempts_left=one.attempts_left,
        )
        call = asyncio.create_task(request, name="scheduler-call")
        watch = asyncio.create_task(self._watch(link, one), name="scheduler-watch")
        try:
            with self._links.interrupting(callee_of(one), watch):
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

    async def _drive_plain(self, one: Execution) -> None:
        """Call a handler that knows no request_id: again only while it gave no reply."""
        timeout_s = one.timeout_s or self._settings.plain_timeout_s
        while await self._holder.holds(one):
            try:
                link = await self._links.get(one.handler_id)
                with link.calling_plain():
                    call = link.caller.request_plain(*one.called, timeout_s=timeout_s)
                    reply = in_its_words(await call)
            except (UnreachableError, CallTimeoutError) as error:
                one.status, one.error = one.judge_plain(None).value, error.message
            else:
                one.status, one.error = one.judge_plain(reply).value, reply.error or None
                one.result = plain_result(reply.result)
            if not await self._save_end(one) or one.is_final():
                return
            await self._pause(one, one.attempt - 1)
            if await self._ask(one) is None:
                return

    async def _pause(self, one: Execution, tries: int) -> None:
        """Wait before the next try: exponential, jittered, bounded; less when its handler comes."""
        if one.waiting and self._links.absence(callee_of(one)) == (True, None):
            return  # it came back just now
        pause = self._holder.clock.sleep(self._backoff.delay_s(tries))
        sleep = asyncio.create_task(pause, name="scheduler-pause")
        try:
            with self._links.interrupting(callee_of(one), sleep):
                await asyncio.wait({sleep})
        finally:
            sleep.cancel()
            await asyncio.gather(sleep, return_exceptions=True)


def callee_of(one: Execution) -> Callee:
    """Where an execution is called; the handler as a whole until it has a stamp."""
    return one.handler_id, (one.boot_id and one.instance_id) or ""


def judge(one: Execution, reply: Reply, *, over_time: bool = False) -> CallVerdict:
    """Record what the handler's answer makes of an execution (see `PendingCall.judge`).

    Args:
        one: The execution that the answer is for; a reply that its run goes on changes nothing.
        reply: The handler's answer.
        over_time: Its run was cancelled as it took longer than the schedule's timeout_s.
    """
    judgement = one.judge(reply, over_time=over_time)
    if judgement is CallVerdict.PENDING:
        return judgement
    one.note_absence(None)
    one.error = reply.error
    if judgement is CallVerdict.SUCCESS:
        one.result, one.error = reply.result, None
    elif judgement is CallVerdict.LOST:
        one.error = f"the handler restarted or forgot: nobody can know the end ({reply.error})"
    elif over_time and reply.code == "cancelled" and judgement is CallVerdict.ERROR:
        long = f"cancelled: it took longer than timeout_s ({one.timeout_s or 0.0:g} s)"
        one.error = one.stopped or long
    if judgement is not CallVerdict.REFUSED:  # that one stays as it is: it waits for its turn
        one.status = judgement.value
    return judgement


def in_its_words(reply: Reply) -> Reply:
    """A handler's refusal marked as its own words, as ScheduleZero does."""
    if reply.success or reply.code in ("bad_reply", "too_large"):
        return reply
    return replace(reply, error=f"Handler returned error: {reply.error}")
