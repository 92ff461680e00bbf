"""The connections to handlers: whether each is there, and how many executions may wait on it.

A handler is asked by a ping, which those who ask at once share. Handlers that know no boot_id are
plain ScheduleZero ones, which answer one call at a time, and no ping meanwhile.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
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
    UnreachableError,
)
from catalogzero.scheduler.models import Handler
from catalogzero.wire.messages import Reply, StartBy

DESCRIBE_TIMEOUT_S = 10.0
MAX_CALLS = 1_000
ANSWERS_A_SLOT = 10
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

    `away` says why it did not answer when it was asked last, at `checked_us`. `plain_calls` are in
    flight: a plain handler answers one at a time, and no ping meanwhile.
    """

    address: str
    caller: HandlerCaller
    slots: Slots
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
            self._asking.add_done_callback(retrieve_failure)
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
            self.slots.allow(jobs_taken(described))
            self._boot_id = boot_id
        return Stamp(boot_id, read_start_by_s(answer), self._retry_safe)

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
    slots_of: defaultdict[str, Slots] = field(
        default_factory=lambda: defaultdict(Slots), init=False
    )
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
            caller, slots = self.connect(handler_id, handler.address), self.slots_of[handler_id]
            checked = partial(self._checked, handler_id)
            wait_s = self.settings.ping_timeout_s
            link = Link(handler.address, caller, slots, wait_s, checked, away)
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


def retry_safe_methods(described: Any) -> list[str]:
    """The methods that a handler's `describe` marks as retry_safe."""
    methods = described.get("methods", []) if isinstance(described, dict) else []
    if isinstance(methods, dict):
        methods = [{"name": name, **about} for name, about in methods.items()]
    return [about["name"] for about in methods if about.get("retry_safe")]


def jobs_taken(described: Any) -> int:
    """How many jobs a handler runs and queues at once; `describe` leaves out the defaults."""
    settings = described.get("runtime", {}) if isinstance(described, dict) else {}
    own = RuntimeSettings.model_fields
    names = ("max_concurrent_jobs", "max_queued_jobs")
    return min(sum(int(settings.get(name, own[name].default)) for name in names), MAX_CALLS)


def read_start_by_s(answer: Mapping[str, Any]) -> float:
    """The uptime past which a call must not begin: now, and as long as replies are remembered.

    Raises:
        UnreachableError: The answer has no such times: the handler keeps no promise.
    """
    try:
        start_by_s = float(answer["uptime_s"]) + float(answer["dedupe_window_s"])
    except (KeyError, TypeError, ValueError):
        start_by_s = math.nan
    if not math.isfinite(start_by_s):
        raise UnreachableError("its ping has no uptime_s and dedupe_window_s")
    return start_by_s


def retrieve_failure(task: asyncio.Task[Stamp]) -> None:
    """Look at a ping's failure also when nobody waits for it any more."""
    if not task.cancelled():
        task.exception()
