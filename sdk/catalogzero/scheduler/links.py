"""The connections to handlers: whether each is there, and how many executions may wait on it.

A handler is asked by a ping, which those who ask at once share. Handlers that know no boot_id are
plain ScheduleZero ones, which answer one call at a time, and no ping meanwhile.

Of a handler with instances each has a connection of its own, and what is called at one stays with
it: only the next run is for any of them.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from catalogzero.config.settings import RuntimeSettings
from catalogzero.errors import (
    BadParamsError,
    CallTimeoutError,
    CatalogZeroError,
    PermanentError,
    RetryLaterError,
    UnreachableError,
)
from catalogzero.scheduler.models import KnownHandler, KnownInstance
from catalogzero.wire.calls import KnownBoot, Stamp
from catalogzero.wire.messages import JsonObject, Reply, StartBy

DESCRIBE_TIMEOUT_S = 10.0
MAX_CALLS = 1_000
ANSWERS_A_SLOT = 10

Callee = tuple[str, str]
"""A handler_id, and one of its instances; empty for a handler that is alone."""


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How calls are made.

    Every handler is asked every `probe_every_s` whether it is there, and pinged every
    `ping_every_s` while a call waits on it; a call whose handler answers pings is sent again after
    `wait_s`, as only its reply may have been lost. One that was not heard of for `lost_after_s`, by
    any scheduler, is given up, but never before this one waited for it for `patience_s`. What may
    run twice leaves an instance that did not answer for `replica_lost_s` for another one.
    """

    ping_timeout_s: float = 2.0
    ping_every_s: float = 10.0
    probe_every_s: float = 3.0
    wait_s: float = 60.0
    plain_timeout_s: float = 10.0
    retry_base_s: float = 1.0
    retry_max_s: float = 30.0
    lost_after_s: float = 86_400.0
    patience_s: float = 600.0
    replica_lost_s: float = 10.0


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


class Slots:
    """Slots for the executions that wait on one handler: as many as it runs and queues.

    Where others call it too it is `busy` before that: each such answer takes a slot away, and
    some that are not give one back.
    """

    def __init__(self) -> None:
        self._most = self._limit = jobs_taken({})
        self._free = asyncio.Semaphore(self._limit)
        self._owed = self._answers = 0

    def allow(self, limit: int) -> None:
        """Have this many slots from now on; those inside may stay."""
        if limit != self._most:
            self._most = limit
            self._resize(limit)

    def answered(self, *, busy: bool) -> None:
        """Learn from an answer whether there are too many slots."""
        self._answers += not busy
        if busy:
            self._resize(max(1, self._limit - 1))
        elif self._limit < self._most and self._answers % ANSWERS_A_SLOT == 0:
            self._resize(self._limit + 1)

    def _resize(self, limit: int) -> None:
        self._owed += self._limit - limit
        self._limit = limit
        while self._owed < 0:
            self._owed += 1
            self._free.release()

    async def __aenter__(self) -> None:
        await self._free.acquire()
        # There are too many: the slot that was got pays that debt, and the next one is waited for.
        while self._owed:
            self._owed -= 1
            await self._free.acquire()

    async def __aexit__(self, *_: object) -> None:
        if self._owed:
            self._owed -= 1
        else:
            self._free.release()


@dataclass(slots=True, eq=False)
class Link:
    """One handler's connection, and what is known of it.

    `away` says why it did not answer when it was asked last, at `checked_us`; its `state` is what
    it said last. It runs and queues as many jobs as it `takes`. `plain_calls` are in flight: a
    plain handler answers one at a time, and no ping meanwhile.
    """

    address: str
    caller: HandlerCaller
    ping_timeout_s: float
    checked: Callable[[Link, str | None], None]
    away: str | None
    checked_us: int | None = field(default=None, init=False)
    state: str | None = field(default=None, init=False)
    takes: int = field(default_factory=lambda: jobs_taken({}), init=False)
    plain_calls: int = field(default=0, init=False)
    _boot: KnownBoot = field(default_factory=KnownBoot, init=False)
    _asking: asyncio.Task[Stamp] | None = field(default=None, init=False)

    async def ask(self) -> Stamp:
        """Ping the handler; those who ask before the ping leaves share it.

        Raises:
            CatalogZeroError: It did not answer, or not as a handler does.
        """
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="scheduler-ping")
            self._asking.add_done_callback(retrieve_failure)
        return await asyncio.shield(self._asking)

    @contextmanager
    def calling_plain(self) -> Iterator[None]:
        """A call to a plain handler goes on: it answers no ping meanwhile."""
        self.plain_calls += 1
        try:
            yield
        finally:
            self.plain_calls -= 1

    async def check_params(self, method: str, params: Mapping[str, Any]) -> str | None:
        """Why nobody can know whether a method takes these params; None when it does.

        Raises:
            BadParamsError: It does not.
        """
        if self.away is not None:
            return f"the handler is away: {self.away}"
        try:
            if self._boot.boot_id is None and (await self.ask()).boot_id is None:
                return "a plain handler does not say what it takes"
            asked = {"method": method, "params": params}
            send = self.caller.request
            (await send("check_params", asked, timeout_s=self.ping_timeout_s)).unwrap()
        except BadParamsError:
            raise
        except CatalogZeroError as error:
            return f"the handler does not say what it takes: {error}"
        return None

    @property
    def not_partitioned(self) -> str | None:
        """Why its runs cannot be partitioned, as far as it describes that."""
        described = self._boot.described
        said = described.get("not_partitioned") if isinstance(described, dict) else None
        return said if isinstance(said, str) else None

    async def find_run(self, request_id: str, *, timeout_s: float) -> JsonObject:
        """What the handler knows of the run of a call: the answer to its `get_run`.

        Raises:
            UnreachableError: It is away.
            CatalogZeroError: It does not know that run, or did not answer.
        """
        if self.away is not None:
            raise UnreachableError(self.away)
        if self._boot.boot_id is None and (await self.ask()).boot_id is None:
            raise PermanentError("a plain handler keeps no runs")
        asked = {"request_id": request_id}
        found = (await self.caller.request("get_run", asked, timeout_s=timeout_s)).unwrap()
        return found if isinstance(found, dict) else {}

    async def is_held(self, handler_id: str, boot_id: str) -> bool:
        """Whether another start of the handler is there, and keeps its place.

        Args:
            handler_id: Its name: another handler may have got its port.
            boot_id: The start that would take the place.
        """
        try:
            stamp = await self.ask()
        except UnreachableError:
            return False
        except (CallTimeoutError, RetryLaterError):
            # Its connection lives, and with it what it runs: an author's code may block its loop.
            # A plain handler answers no ping during a call, and keeps no place.
            return not self.plain_calls
        except CatalogZeroError:
            return False
        about = self._boot.described if isinstance(self._boot.described, dict) else {}
        is_other = about.get("handler_id", handler_id) != handler_id
        return stamp.boot_id not in (None, boot_id) and not is_other

    async def _ask(self) -> Stamp:
        # All who ask in this turn of the loop share the ping; one that asks later must not: the
        # answer would be older than its question.
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
        known = self._boot.boot_id
        try:
            stamp = await self._boot.stamp(self._ask_for)
        # It may be another handler now, a plain one, which echoes no request_id.
        except CallTimeoutError:
            self._boot = KnownBoot()
            raise
        if stamp.boot_id not in (None, known):
            self.takes = jobs_taken(self._boot.described)
        return stamp

    async def _ask_for(self, method: str) -> Any:
        """The answer to `ping` or `describe`; a ping has no request_id until one was echoed."""
        if method == "describe":
            return (await self.caller.request(method, timeout_s=DESCRIBE_TIMEOUT_S)).unwrap()
        send = self.caller.request_plain if self._boot.boot_id is None else self.caller.request
        pong = (await send(method, timeout_s=self.ping_timeout_s)).unwrap()
        self.state = pong.get("state") if isinstance(pong, dict) else None
        return pong


@dataclass(slots=True, eq=False)
class Links:
    """The connections to handlers, by id and instance; each follows its handler's address.

    `known` are those that were asked for, `load` counts the executions that this scheduler calls
    each for. `changed` is called with a callee and why it is away, or None once it is back.
    """

    find_handler: Callable[[str], Awaitable[KnownHandler | None]]
    connect: Callable[[str, str], HandlerCaller]
    settings: CallSettings
    now_us: Callable[[], int]
    changed: Callable[[Callee, str | None], None] = lambda callee, why: None
    slots_of: defaultdict[str, Slots] = field(
        default_factory=lambda: defaultdict(Slots), init=False
    )
    heard_us: defaultdict[Callee, int] = field(default_factory=lambda: defaultdict(int), init=False)
    known: dict[str, dict[str, Link]] = field(default_factory=dict, init=False)
    load: Counter[Callee] = field(default_factory=Counter, init=False)
    _sleepers: defaultdict[Callee, set[asyncio.Task[Any]]] = field(
        default_factory=lambda: defaultdict(set), init=False
    )

    async def get(self, handler_id: str, instance_id: str = "") -> Link:
        """The connection to a handler, or to one of its instances.

        Raises:
            UnreachableError: No such one is registered.
        """
        handler = await self._registered(handler_id)
        found = handler.at(instance_id)
        if found is None:
            named = f"'{instance_id}' of handler '{handler_id}'"
            raise UnreachableError(f"the instance {named} is not registered")
        return self.to(found)

    async def choose(self, handler_id: str) -> tuple[str, Link]:
        """The instance for the next run, and the connection to it.

        One that has a free place, is awake, and has the least to do; if it can be, one that is
        there. A handler that is alone is its own choice.

        Raises:
            UnreachableError: No such handler is registered.
        """
        handler = await self._registered(handler_id)
        if not handler.instances:
            return "", self.to(handler)

        def rank(one: KnownInstance) -> tuple[bool, bool, bool, float, str]:
            link = self.to(one)
            load = one.load + self.load[handler_id, one.instance_id]
            takes_none = one.status == "offline" or link.state == "draining"
            each = load / max(one.places, 1)
            is_asleep = link.state == "sleeping"
            return link.away is not None or takes_none, each >= 1, is_asleep, each, one.instance_id

        best = min(handler.instances, key=rank)
        return best.instance_id, self.to(best)

    async def _registered(self, handler_id: str) -> KnownHandler:
        handler = await self.find_handler(handler_id)
        if handler is None:
            raise UnreachableError(f"handler '{handler_id}' is not registered")
        return handler

    def to(self, one: KnownHandler | KnownInstance) -> Link:
        """The connection to a handler where it is known to be."""
        handler_id, instance_id = callee = one.handler_id, one.instance_id
        self.heard(callee, one.seen_us)
        link = self.of(callee)
        if link is None or link.address != one.address:
            # What is known of it stays true at a new address until it is asked there.
            away = None if link is None else link.away
            self.drop(callee)
            link = Link(
                one.address,
                self.connect(handler_id, one.address),
                self.settings.ping_timeout_s,
                partial(self._checked, callee),
                away,
            )
            self.known.setdefault(handler_id, {})[instance_id] = link
        return link

    def of(self, callee: Callee) -> Link | None:
        """The connection to a callee, if it was asked for."""
        return self.known.get(callee[0], {}).get(callee[1])

    def absence(self, callee: Callee) -> tuple[bool, str | None]:
        """Whether a callee was asked yet, and why it is away, if it is.

        Without an instance it is that of them all: one that is there is enough.
        """
        links = self.known.get(callee[0], {})
        mine = [link for name, link in links.items() if callee[1] in ("", name)]
        asked = [link for link in mine if link.checked_us is not None]
        if not asked or any(link.away is None for link in asked):
            return bool(asked), None
        return True, asked[0].away

    async def probe(self, handler_id: str) -> None:
        """Find out whether a handler is there, and each of its instances that is online."""

        async def ask(one: KnownHandler | KnownInstance) -> None:
            link = self.to(one)
            if link.plain_calls:  # it cannot answer, and its connection lives
                link.checked_us = self.now_us()
                return
            with suppress(CatalogZeroError):
                await link.ask()

        with suppress(CatalogZeroError):
            handler = await self._registered(handler_id)
            online: list[KnownHandler | KnownInstance] = [
                one for one in handler.instances if one.status != "offline"
            ]
            await asyncio.gather(*map(ask, online or [handler]))

    def drop(self, callee: Callee) -> None:
        """Disconnect from a handler or an instance: it moved, or was removed."""
        links = self.known.get(callee[0], {})
        if link := links.pop(callee[1], None):
            link.caller.close()
            self.wake(callee)
        if not links:
            self.known.pop(callee[0], None)

    def keep(self, handlers: Iterable[KnownHandler]) -> None:
        """Disconnect from all but these, and those amid a call that a cut would repeat."""
        kept = {
            (one.handler_id, instance_id)
            for one in handlers
            for instance_id in [each.instance_id for each in one.instances] or [""]
        }
        for handler_id, links in [*self.known.items()]:
            for instance_id, link in [*links.items()]:
                if (handler_id, instance_id) not in kept and not link.plain_calls:
                    self.drop((handler_id, instance_id))

    @contextmanager
    def interrupting(self, callee: Callee, sleeper: asyncio.Task[Any]) -> Iterator[None]:
        """Have a task cancelled should the handler go, come back or move meanwhile."""
        sleepers = self._sleepers[callee]
        sleepers.add(sleeper)
        try:
            yield
        finally:
            sleepers.discard(sleeper)

    def wake(self, callee: Callee) -> None:
        """Interrupt all who wait for a callee, and those who wait for any of its handler."""
        for woken in {callee, (callee[0], "")}:
            for sleeper in self._sleepers.pop(woken, ()):
                sleeper.cancel()

    def _checked(self, callee: Callee, link: Link, why: str | None) -> None:
        """Take in what came of asking a handler."""
        if self.of(callee) is not link:
            return
        was_away, link.away, link.checked_us = link.away, why, self.now_us()
        if why is None:
            self.heard(callee, link.checked_us)
        there = [one.takes for one in self.known[callee[0]].values() if one.away is None]
        if there:
            self.slots_of[callee[0]].allow(min(sum(there), MAX_CALLS))
        if (was_away is None) != (why is None):
            self.wake(callee)
            self.changed(callee, why)

    def heard(self, callee: Callee, us: int) -> None:
        """Note that a handler was there at that moment."""
        for heard in {callee, (callee[0], "")}:
            self.heard_us[heard] = max(self.heard_us[heard], us)

    def close(self) -> None:
        """Disconnect from all."""
        for handler_id, links in [*self.known.items()]:
            for instance_id in [*links]:
                self.drop((handler_id, instance_id))


def jobs_taken(described: Any) -> int:
    """How many jobs a handler runs and queues at once; `describe` leaves out the defaults."""
    settings = described.get("runtime", {}) if isinstance(described, dict) else {}
    own = RuntimeSettings.model_fields
    names = ("max_concurrent_jobs", "max_queued_jobs")
    return min(sum(int(settings.get(name, own[name].default)) for name in names), MAX_CALLS)


def retrieve_failure(task: asyncio.Task[Stamp]) -> None:
    """Look at a ping's failure also when nobody waits for it any more."""
    if not task.cancelled():
        task.exception()
