"""A small world with faults: one handler as the wire protocol promises it, a network that loses,
delays and repeats, and two schedulers of which one may freeze past its lease.

It keeps the truth (what really started and ended) beside what the schedulers write down.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from catalogzero.clock import Clock
from catalogzero.errors import CallTimeoutError, UnreachableError
from catalogzero.scheduler.dispatch import Driver
from catalogzero.scheduler.links import CallSettings, Links
from catalogzero.scheduler.models import Execution, KnownHandler
from catalogzero.testing import ManualClock
from catalogzero.wire.messages import Reply, StartBy

WINDOW_S = 60.0
RUN_S = 8.0
SETTINGS = CallSettings(
    ping_timeout_s=2.0,
    ping_every_s=2.0,
    wait_s=5.0,
    retry_base_s=0.5,
    retry_max_s=2.0,
    lost_after_s=600.0,
    patience_s=60.0,
)


@dataclass
class Remembered:
    """What the handler knows of one request_id."""

    state: str
    reply: Reply | None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    forget_at_s: float = float("inf")


class World:
    """The handler, the network, the store's one row, and the truth.

    Args:
        seed: Of every fault and every outcome.
        retry_safe: Whether the one method is.
        faults: How many faults there may be, of any kind.
        timeout_s: The schedule's own.
        longest_s: Of a run.
    """

    def __init__(
        self,
        seed: int,
        *,
        retry_safe: bool,
        faults: int,
        timeout_s: float | None = None,
        longest_s: float = RUN_S,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - faults, no secrets
        self.clock = ManualClock()
        self.retry_safe = retry_safe
        self.faults = faults
        self.longest_s = longest_s
        self.silent = self.lose_next = False
        self.boot, self.booted_s = 1, 0.0
        self.memory: dict[str, Remembered] = {}
        self.starts, self.running, self.finished_ok = 0, 0, 0
        self.row = Execution("e", "job", "h", "m", {}, owner="A", timeout_s=timeout_s)
        self.broken: list[str] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.holders = {name: LeaseHolder(self, name) for name in "AB"}

    def fault(self, chance: float) -> bool:
        """Whether a fault happens now; each is one less to come."""
        if self.faults and self.random.random() < chance:
            self.faults -= 1
            return True
        return False

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Let something happen by itself."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    # --- the handler

    @property
    def uptime_s(self) -> float:
        """Of the present boot."""
        return self.clock.monotonic() - self.booted_s

    def restart(self) -> None:
        """Lose the memory and every run."""
        self.boot, self.booted_s = self.boot + 1, self.clock.monotonic()
        self.memory, self.running = {}, 0

    async def arrive(self, request_id: str, start_by: StartBy, timeout_s: float) -> Reply | None:
        """The handler takes a call; None when a restart lost it."""
        boot = self.boot
        self._forget()
        known = self.memory.get(request_id)
        if known is None:
            if start_by.boot_id != str(boot) or self.uptime_s > start_by.uptime_s:
                return Reply(success=False, error="too late", code="expired")
            if self.fault(0.1):
                busy = Reply(success=False, error="busy", code="busy", retryable=True)
                self.memory[request_id] = Remembered("refused", busy)
                return busy
            known = self.memory[request_id] = self._begin(request_id)
        if known.reply is None:
            try:
                await self._within(known.ended, timeout_s * 0.9)
            except TimeoutError:
                return Reply(success=False, error="still running", code="timeout")
        return known.reply if boot == self.boot else None

    def _begin(self, request_id: str) -> Remembered:
        self.starts += 1
        self.running += 1
        if self.row.is_final():
            self.broken.append("a run began for an execution that is final")
        known = Remembered("running", None)
        self.spawn(self._run(known, self.boot))
        return known

    async def _run(self, known: Remembered, boot: int) -> None:
        await self.clock.sleep(self.random.uniform(0.0, self.longest_s))
        if boot != self.boot or known.reply is not None:
            return
        if self.random.random() < 0.3:
            self._end(known, Reply(success=False, error="failed", code="failed"))
        else:
            self.finished_ok += 1
            self._end(known, Reply(success=True, result={"ok": True}))

    def _end(self, known: Remembered, reply: Reply) -> None:
        self.running -= 1
        known.reply = reply
        known.state, known.forget_at_s = "ended", self.clock.monotonic() + WINDOW_S
        known.ended.set()

    def cancel(self, request_id: str) -> Reply:
        """The handler cancels a run, if it knows it."""
        self._forget()
        known = self.memory.get(request_id)
        if known is None:
            return Reply(success=False, error="no such run", code="unknown_run")
        if known.reply is None:
            self._end(known, Reply(success=False, error="cancelled", code="cancelled"))
        return Reply(success=True, result={})

    def _forget(self) -> None:
        now_s = self.clock.monotonic()
        self.memory = {k: v for k, v in self.memory.items() if v.forget_at_s > now_s}

    async def _within(self, event: asyncio.Event, seconds: float) -> None:
        """Wait for an event, in the world's time."""
        waiting = self.spawn(event.wait())
        limit = self.spawn(self.clock.sleep(seconds))
        await asyncio.wait({waiting, limit}, return_when=asyncio.FIRST_COMPLETED)
        limit.cancel()
        if not waiting.done():
            waiting.cancel()
            raise TimeoutError


class LeaseHolder:
    """One scheduler: what it believes of its lease may be wrong, what it writes is checked."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.clock: Clock = world.clock
        self.frozen_until_s = 0.0
        self.task: asyncio.Task[None] | None = None

        async def find(handler_id: str) -> KnownHandler:
            return KnownHandler(handler_id, "tcp://world", ["m"], "online", 0)

        links = Links(find, lambda *_: Caller(world, self), SETTINGS, self.now_us)
        self.driver = Driver(self, links, SETTINGS)

    def take_over(self) -> None:
        """Begin to drive the row, under the next lease."""
        row = self.world.row
        row.owner, row.lease = self.name, row.lease + 1
        self.task = self.world.spawn(self.driver.drive(copy.copy(row)))

    async def thaw(self) -> None:
        """Stand still while frozen."""
        while (left_s := self.frozen_until_s - self.clock.monotonic()) > 0:
            await self.clock.sleep(left_s)

    def now_us(self) -> int:
        """See `calls.LeaseHolder`."""
        return round(self.clock.monotonic() * 1_000_000)

    async def holds(self, one: Execution) -> bool:
        """See `calls.LeaseHolder`; it freezes right after it looked, at the worst moment."""
        row = self.world.row
        mine = (row.owner, row.lease) == (one.owner, one.lease) and not row.is_final()
        await self.thaw()
        return mine

    async def divide(self, one: Execution) -> bool:
        """See `calls.LeaseHolder`; no run of this world is divided."""
        return False

    async def save(self, one: Execution) -> bool:
        """See `calls.LeaseHolder`: conditional on owner and lease."""
        await self.thaw()
        row = self.world.row
        if (row.owner, row.lease) != (one.owner, one.lease) or row.is_final():
            return False
        if one.status == "success" and not self.world.finished_ok:
            self.world.broken.append("success without a run that finished")
        if one.is_final() and self.world.running:
            self.world.broken.append(f"{one.status} while the run goes on")
        self.world.row = copy.copy(one)
        return True


class Caller:
    """The network between one scheduler and the handler."""

    def __init__(self, world: World, holder: LeaseHolder) -> None:
        self.world, self.holder = world, holder
        self.max_call_bytes = 1 << 20

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
        """See `HandlerClient.request`, with faults."""
        world = self.world
        await self.holder.thaw()
        if world.silent:
            await world.clock.sleep(timeout_s)
            raise UnreachableError("away")
        if method != "m":
            return await self._control(method, params or {}, timeout_s)
        assert request_id is not None
        assert start_by is not None
        if world.fault(0.05):
            await world.clock.sleep(timeout_s)
            raise UnreachableError("away")
        answer = asyncio.get_running_loop().create_future()
        copies = 2 if world.fault(0.1) else 1
        for number in range(copies):
            delay_s = world.random.uniform(0, 0.2)
            if number or world.fault(0.1):
                delay_s = world.random.uniform(0, 2 * WINDOW_S)
            world.spawn(self._deliver(request_id, start_by, timeout_s, delay_s, answer))
        limit = world.spawn(world.clock.sleep(timeout_s))
        await asyncio.wait({answer, limit}, return_when=asyncio.FIRST_COMPLETED)
        limit.cancel()
        await self.holder.thaw()
        if not answer.done():
            answer.cancel()
            raise CallTimeoutError("no reply")
        reply: Reply = answer.result()
        return reply

    async def request_plain(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float = 30.0
    ) -> Reply:
        """See `HandlerClient.request_plain`."""
        return await self.request(method, params, timeout_s=timeout_s)

    def close(self) -> None:
        """See `HandlerClient.close`."""

    async def _control(self, method: str, params: Mapping[str, Any], timeout_s: float) -> Reply:
        world = self.world
        if world.fault(0.05):
            await world.clock.sleep(timeout_s)
            raise CallTimeoutError("no reply to the ping")
        if method == "cancel":
            return world.cancel(params["request_id"])
        if method == "describe":
            about = {"name": "m", "retry_safe": world.retry_safe}
            return Reply(success=True, result={"methods": [about]})
        boot = {"boot_id": str(world.boot), "uptime_s": world.uptime_s}
        await self.holder.thaw()
        return Reply(success=True, result={**boot, "dedupe_window_s": WINDOW_S})

    async def _deliver(
        self,
        request_id: str,
        start_by: StartBy,
        timeout_s: float,
        delay_s: float,
        answer: asyncio.Future[Reply],
    ) -> None:
        """One copy of a call on its way, and its reply on the way back."""
        world = self.world
        await world.clock.sleep(delay_s)
        if world.lose_next or world.fault(0.1):
            world.lose_next = False
            return
        reply = await world.arrive(request_id, start_by, timeout_s)
        await world.clock.sleep(world.random.uniform(0, 0.2))
        if reply is not None and not world.fault(0.1) and not answer.done():
            answer.set_result(reply)
