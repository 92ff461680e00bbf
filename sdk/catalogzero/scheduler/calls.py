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
import math
import random
from asyncio import FIRST_COMPLETED
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from catalogzero.clock import Clock
from catalogzero.config.settings import RuntimeSettings
from catalogzero.errors import (
    BadParamsError,
    CallTimeoutError,
    CatalogZeroError,
    UnreachableError,
)
from catalogzero.scheduler.rows import Execution, Handler
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
ANSWERS_A_PLACE = 10
MAX_BOOT_ID_CHARS = 200


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How calls are made.

    Every handler is asked every `probe_every_s` whether it is there, and pinged every
    `ping_every_s` while a call waits on it; a call whose handler answers pings is sent again after
    `wait_s`, as only its reply may have been lost. One that was not heard of for `lost_after_s`, by
    any scheduler, is given up.
    """

    ping_timeout_s: float = 2.0
    ping_every_s: float = 10.0
    probe_every_s: float = 3.0
    wait_s: float = 60.0
    plain_timeout_s: float = 10.0
    retry_base_s: float = 1.0
    retry_max_s: float = 30.0
    lost_after_s: float = 86_400.0


class HandlerCaller(Protocol):
    """What is used of `catalogzero.wire.client.HandlerClient`."""

    max_call_bytes: int

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
        """See `HandlerClient.request`."""

    async def request_plain(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float = 30.0
    ) -> Reply:
        """See `HandlerClient.request_plain`."""

    def close(self) -> None:
        """See `HandlerClient.close`."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a ping says: which boot of the handler, and until which uptime a call may begin.

    A plain handler has no `boot_id`.
    """

    boot_id: str | None
    start_by_s: float = 0.0
    retry_safe: frozenset[str] = frozenset()


class Room:
    """Places for the executions that wait on one handler: as many as it runs and queues.

    Where others call it too it is `busy` before that: each such answer takes a place away, and
    some that are not give one back.
    """

    def __init__(self) -> None:
        self._most = self._limit = jobs_taken({})
        self._places = asyncio.Semaphore(self._limit)
        self._owed = self._answers = 0

    def allow(self, limit: int) -> None:
        """Have so many places from now on; those inside may stay."""
        self._most = limit
        self._resize(limit)

    def answered(self, *, busy: bool) -> None:
        """Learn from an answer whether there are too many places."""
        self._answers += not busy
        if busy:
            self._resize(max(1, self._limit - 1))
        elif self._limit < self._most and self._answers % ANSWERS_A_PLACE == 0:
            self._resize(self._limit + 1)

    def _resize(self, limit: int) -> None:
        self._owed += self._limit - limit
        self._limit = limit
        while self._owed < 0:
            self._owed += 1
            self._places.release()

    async def __aenter__(self) -> None:
        await self._places.acquire()
        while self._owed:
            self._owed -= 1
            await self._places.acquire()

    async def __aexit__(self, *_: object) -> None:
        if self._owed:
            self._owed -= 1
        else:
            self._places.release()


@dataclass(slots=True, eq=False)
class Link:
    """One handler's connection, and what is known of it.

    `away` says why it did not answer when it was asked last, at `checked_us`. `plain_calls` are in
    flight: a plain handler answers one at a time, and no ping meanwhile.
    """

    address: str
    caller: HandlerCaller
    room: Room
    ping_timeout_s: float
    checked: Callable[[Link, str | None], None]
    away: str | None
    checked_us: int | None = field(default=None, init=False)
    plain_calls: int = field(default=0, init=False)
    _boot_id: str | None = field(default=None, init=False)
    _retry_safe: frozenset[str] = field(default=frozenset(), init=False)
    _asking: asyncio.Task[Stamp] | None = field(default=None, init=False)

    async def ask(self) -> Stamp:
        """Ping the handler; those who ask before the ping leaves share it.

        Raises:
            CatalogZeroError: It did not answer, or not as a handler does.
        """
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="scheduler-ping")
            self._asking.add_done_callback(_retrieve)
        return await asyncio.shield(self._asking)

    async def check_params(self, method: str, params: Mapping[str, Any]) -> str | None:
        """Why nobody can know whether a method takes these params; None when it does.

        Raises:
            BadParamsError: It does not.
        """
        if self.away is not None:
            return f"the handler is away: {self.away}"
        try:
            if self._boot_id is None and (await self.ask()).boot_id is None:
                return "a plain handler does not say what it takes"
            asked = {"method": method, "params": params}
            send = self.caller.request
            (await send("check_params", asked, timeout_s=self.ping_timeout_s)).unwrap()
        except BadParamsError:
            raise
        except CatalogZeroError as error:
            return f"the handler does not say what it takes: {error}"
        return None

    async def _ask(self) -> Stamp:
        await asyncio.sleep(0)
        self._asking = None
        try:
            stamp = await self._stamp()
        except CatalogZeroError as error:
            self.checked(self, error.message)
            raise
        self.checked(self, None)
        return stamp

    async def _stamp(self) -> Stamp:
        answer = await self._ping()
        boot_id = answer.get("boot_id")
        if not isinstance(boot_id, str) or not 0 < len(boot_id) <= MAX_BOOT_ID_CHARS:
            self._boot_id = None
            return Stamp(None)
        if boot_id != self._boot_id:
            reply = await self.caller.request("describe", timeout_s=DESCRIBE_TIMEOUT_S)
            described = reply.unwrap()
            self._retry_safe = frozenset(retry_safe_methods(described))
            self.room.allow(jobs_taken(described))
            self._boot_id = boot_id
        return Stamp(boot_id, _start_by_s(answer), self._retry_safe)

    async def _ping(self) -> dict[str, Any]:
        """The answer to a ping; one without request_id until it is known to echo one."""
        send = self.caller.request_plain if self._boot_id is None else self.caller.request
        try:
            result = (await send("ping", timeout_s=self.ping_timeout_s)).unwrap()
        except CallTimeoutError:
            self._boot_id = None
            raise
        return result if isinstance(result, dict) else {}


@dataclass(slots=True, eq=False)
class Links:
    """The connections to handlers, by id; each follows its handler's address.

    `changed` is called with a handler's id and why it is away, or None once it is back.
    """

    find_handler: Callable[[str], Awaitable[Handler | None]]
    connect: Callable[[str, str], HandlerCaller]
    settings: CallSettings
    now_us: Callable[[], int]
    changed: Callable[[str, str | None], None] = lambda handler_id, why: None
    rooms: defaultdict[str, Room] = field(default_factory=lambda: defaultdict(Room), init=False)
    heard_us: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int), init=False)
    _links: dict[str, Link] = field(default_factory=dict, init=False)
    _sleepers: defaultdict[str, set[asyncio.Task[Any]]] = field(
        default_factory=lambda: defaultdict(set), init=False
    )

    async def get(self, handler_id: str) -> Link:
        """The connection to a handler.

        Raises:
            UnreachableError: No such handler ever registered.
        """
        handler = await self.find_handler(handler_id)
        if handler is None:
            raise UnreachableError(f"handler '{handler_id}' is not registered")
        self.heard(handler_id, handler.seen_us)
        link = self._links.get(handler_id)
        if link is None or link.address != handler.address:
            away = None if link is None else link.away
            self.drop(handler_id)
            caller, room = self.connect(handler_id, handler.address), self.rooms[handler_id]
            checked = partial(self._checked, handler_id)
            wait_s = self.settings.ping_timeout_s
            link = Link(handler.address, caller, room, wait_s, checked, away)
            self._links[handler_id] = link
        return link

    async def probe(self, handler_id: str) -> None:
        """Find out whether a handler is there."""
        with suppress(CatalogZeroError):
            link = await self.get(handler_id)
            if link.plain_calls:  # it cannot answer, and its connection lives
                link.checked_us = self.now_us()
            else:
                await link.ask()

    def known(self, handler_id: str) -> Link | None:
        """The connection to a handler, where there is one."""
        return self._links.get(handler_id)

    def drop(self, handler_id: str) -> None:
        """Disconnect from a handler: it moved, or was removed."""
        if link := self._links.pop(handler_id, None):
            link.caller.close()
            self.wake(handler_id)

    def keep(self, handler_ids: Iterable[str]) -> None:
        """Disconnect from all but these, and those amid a call that a cut would repeat."""
        for handler_id in self._links.keys() - set(handler_ids):
            if not self._links[handler_id].plain_calls:
                self.drop(handler_id)

    @contextmanager
    def interrupting(self, handler_id: str, sleeper: asyncio.Task[Any]) -> Iterator[None]:
        """Have a task cancelled should the handler go, come back or move meanwhile."""
        sleepers = self._sleepers[handler_id]
        sleepers.add(sleeper)
        try:
            yield
        finally:
            sleepers.discard(sleeper)

    def wake(self, handler_id: str) -> None:
        """Interrupt all who wait for a handler."""
        for sleeper in self._sleepers.pop(handler_id, ()):
            sleeper.cancel()

    def _checked(self, handler_id: str, link: Link, why: str | None) -> None:
        """Take in what came of asking a handler."""
        if self._links.get(handler_id) is not link:
            return
        was_away, link.away, link.checked_us = link.away, why, self.now_us()
        if why is None:
            self.heard(handler_id, link.checked_us)
        if (was_away is None) != (why is None):
            self.wake(handler_id)
            self.changed(handler_id, why)

    def heard(self, handler_id: str, us: int) -> None:
        """Note that a handler was there at that moment."""
        self.heard_us[handler_id] = max(self.heard_us[handler_id], us)

    def close(self) -> None:
        """Disconnect from all."""
        for handler_id in [*self._links]:
            self.drop(handler_id)


class Desk(Protocol):
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

    def __init__(self, desk: Desk, links: Links, settings: CallSettings) -> None:
        self._desk = desk
        self._links = links
        self._settings = settings

    async def drive(self, one: Execution) -> None:
        """Call until the execution is final and saved, or its lease is another's."""
        if one.boot_id is None and not await self._note_away(one):
            return
        async with self._place(one) as is_ours:
            ended = is_ours and await self._until_judged(one)
        if ended:
            await self._desk.save(one)

    @asynccontextmanager
    async def _place(self, one: Execution) -> AsyncIterator[bool]:
        """A place among those that wait on the handler; false once the lease is another's.

        Until there is one, the record says whether the handler is away.
        """
        room = self._links.rooms[one.handler_id]
        entering = asyncio.create_task(room.__aenter__(), name="scheduler-place")
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
                await room.__aexit__()

    async def _until_judged(self, one: Execution) -> bool:
        """Call until the handler has judged; false when there is nothing left to save."""
        while await self._begin(one):
            await self._drive_call(one)
            if one.is_final() or not await self._desk.holds(one):
                return one.is_final()
            if one.status == "retry" and not await self._desk.save(one):
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
        since_s, tries = self._desk.clock.monotonic(), 0
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
                await self._desk.save(one)
                return None
            if not await self._note(one, reason):
                return None
            await self._pause(one, tries)
            if not await self._desk.holds(one):
                return None

    async def _note_away(self, one: Execution) -> bool:
        """As `_note`, by what came of asking the handler last."""
        link = self._links.known(one.handler_id)
        return link is None or link.checked_us is None or await self._note(one, link.away)

    async def _note(self, one: Execution, reason: str | None) -> bool:
        """Have the record say why its handler is away; false when the lease is another's."""
        return not one.note_absence(reason) or await self._desk.save(one)

    def _away_too_long(self, one: Execution, since_s: float, reason: str) -> bool:
        """Decide on an execution that cannot be sent: missed when it surely never began."""
        age_us = self._desk.now_us() - one.waiting_since_us
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
        away_s = self._desk.clock.monotonic() - since_s
        heard_us = max(one.created_us, one.sent_us or 0, self._links.heard_us[one.handler_id])
        gone_s = max(away_s, (self._desk.now_us() - heard_us) / 1_000_000)
        limit_s = self._settings.lost_after_s
        return gone_s > limit_s and away_s > min(PATIENCE_S, limit_s)

    async def _keep(self, one: Execution, stamp: Stamp) -> bool:
        """Store the stamp of this n before its first call."""
        now_us = self._desk.now_us()
        if one.tick_us is not None and one.sent_us is None:
            one.late = one.late or now_us - one.created_us > seconds_us(LATE_AFTER_S)
        one.boot_id, one.start_by_s, one.sent_us = stamp.boot_id, stamp.start_by_s, now_us
        one.retry_safe = one.method in stamp.retry_safe
        return await self._desk.save(one)

    async def _drive_call(self, one: Execution) -> None:
        """Send the present call, again and again, until the handler has judged."""
        away_since_s: float | None = None
        while await self._desk.holds(one) and await self._note_away(one):
            left_s = self._left_s(one)
            wait_s = min(self._settings.wait_s, left_s)
            if left_s <= 0:
                await self._cancel(one)
                wait_s = self._settings.ping_timeout_s
            reply = await self._send(one, wait_s)
            if reply is not None and reply.code == "busy" and _goes_on(reply):
                await self._pause(one, 1)  # too many wait for its run already
                continue
            if reply is not None and reply.code != "timeout":
                self._links.rooms[one.handler_id].answered(busy=reply.code == "busy")
                judge(one, reply, over_time=left_s <= 0)
                return
            if reply is not None:
                away_since_s = None
                continue
            if not (one.waiting or await self._note_away(one)):
                return
            await self._pause(one, 1)
            away_since_s = away_since_s or self._desk.clock.monotonic()
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
            return _in_its_words(call.result()) if call.done() else None
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
            await self._desk.clock.sleep(self._settings.ping_every_s)
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
        return one.timeout_s - (self._desk.now_us() - one.sent_us) / 1_000_000

    async def _cancel(self, one: Execution) -> None:
        """Cancel the run at its handler; the next reply tells whether it was heard."""
        with suppress(UnreachableError, CallTimeoutError):
            link = await self._links.get(one.handler_id)
            asked = {"request_id": one.request_id}
            await link.caller.request("cancel", asked, timeout_s=self._settings.ping_timeout_s)

    async def _drive_plain(self, one: Execution) -> None:
        """Call a handler that knows no request_id: again only while it gave no reply."""
        while await self._desk.holds(one):
            try:
                await self._send_plain(one)
            except (UnreachableError, CallTimeoutError) as error:
                one.status, one.error = "error", error.message
                if one.attempt < one.max_attempts:
                    one.status, one.attempt = "retry", one.attempt + 1
            if not await self._desk.save(one) or one.is_final():
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
            reply = _in_its_words(await call)
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
        sleep = asyncio.create_task(self._desk.clock.sleep(delay_s), name="scheduler-pause")
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
        _send_anew(one)
        return
    if over_time and reply.code == "cancelled":
        one.status = "error"
        one.error = f"cancelled: it took longer than timeout_s ({one.timeout_s:g} s)"
        return
    may_repeat = bool(one.retry_safe) and one.attempt < one.max_attempts
    if may_repeat and may_get_better(reply):
        one.status, one.attempt = "retry", one.attempt + 1
        _send_anew(one)
    elif reply.code == "expired":
        one.status = "lost"
        one.error = f"the handler restarted or forgot: nobody can know the end ({reply.error})"
    else:
        one.status = "error"


def _goes_on(reply: Reply) -> bool:
    """Whether a refusal says that the run which was asked for is under way."""
    return isinstance(reply.details, dict) and reply.details.get("running") is True


def _in_its_words(reply: Reply) -> Reply:
    """A handler's refusal marked as its own words, as ScheduleZero does."""
    if reply.success or reply.code in ("bad_reply", "too_large"):
        return reply
    return replace(reply, error=f"Handler returned error: {reply.error}")


def retry_safe_methods(described: Any) -> list[str]:
    """The methods that a handler's `describe` marks as retry_safe."""
    methods = described.get("methods", []) if isinstance(described, dict) else []
    if isinstance(methods, dict):
        methods = [{"name": name, **about} for name, about in methods.items()]
    return [about["name"] for about in methods if about.get("retry_safe")]


def jobs_taken(described: Any) -> int:
    """How many jobs a handler runs and queues at once; `describe` leaves out the defaults."""
    told = described.get("runtime", {}) if isinstance(described, dict) else {}
    own = RuntimeSettings.model_fields
    names = ("max_concurrent_jobs", "max_queued_jobs")
    return min(sum(int(told.get(name, own[name].default)) for name in names), MAX_CALLS)


def _start_by_s(answer: Mapping[str, Any]) -> float:
    """The uptime past which a call must not begin: now, and as long as replies are remembered.

    Raises:
        UnreachableError: The answer tells no such times: no handler that keeps its promises.
    """
    try:
        start_by_s = float(answer["uptime_s"]) + float(answer["dedupe_window_s"])
    except (KeyError, TypeError, ValueError):
        start_by_s = math.nan
    if not math.isfinite(start_by_s):
        raise UnreachableError("its ping tells no uptime_s and dedupe_window_s")
    return start_by_s


def _send_anew(one: Execution) -> None:
    """The next n: it has no stamp yet, so the handler is pinged before it is sent."""
    one.n += 1
    one.boot_id = one.start_by_s = None


def _retrieve(task: asyncio.Task[Stamp]) -> None:
    """Look at a ping's failure also when nobody waits for it any more."""
    if not task.cancelled():
        task.exception()
