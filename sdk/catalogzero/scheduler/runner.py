"""The scheduler at work: it claims what is due, keeps its leases, and has each execution driven.

Five tasks, each owned and awaited: claims, heartbeats (with takeovers), saving (one transaction
for all that wait to be written), retention, probes of handlers. The store is called in threads,
its writes in one, in order. While the database is away, everything waits and is tried again; what
was decided on a lease that has ended by then is not written.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ParamSpec, Self, TypeVar

import orjson
from structlog.typing import FilteringBoundLogger
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from catalogzero.backoff import Backoff
from catalogzero.clock import Clock, SystemClock
from catalogzero.protocol.outcomes import outcome_of
from catalogzero.scheduler.answers import ClockStep, ExecutionRecord
from catalogzero.scheduler.dispatch import Driver, callee_of
from catalogzero.scheduler.history import History, flat_result
from catalogzero.scheduler.links import Callee, CallSettings, HandlerCaller, Links
from catalogzero.scheduler.models import Execution, KnownHandler, LostRaceError
from catalogzero.scheduler.partitions import read_items
from catalogzero.scheduler.store import Store
from catalogzero.scheduler.ticks import seconds_us
from catalogzero.sql.engines import DATABASE_AWAY
from catalogzero.wire.messages import encode_json

P = ParamSpec("P")
T = TypeVar("T")

TRY_AGAIN = (*DATABASE_AWAY, LostRaceError)
SAVE_LIMIT = 500
FRESH_S = 4.0
PROBE_SLOTS = 30


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """How the scheduler works.

    `lease_s` is how long a frozen or killed scheduler holds up its executions; `poll_s` is how
    often the store is looked at when nothing is known to be due. Executions older than
    `retention_days`, or more than `max_executions`, are forgotten every `retention_every_s`.
    """

    lease_s: float = 15.0
    poll_s: float = 2.0
    retention_days: float = 30.0
    max_executions: int = 100_000
    retention_every_s: float = 600.0
    calls: CallSettings = field(default_factory=CallSettings)


class Runner:
    """One scheduler on a store; several may share one.

    Args:
        store: Handlers, schedules and executions.
        connect: Makes the caller for a handler, by its id and address.
        log: Where it reports what happens.
        settings: Lengths of leases and waits.
        clock: Monotonic time and sleep; the times in the store are the database's.
    """

    def __init__(
        self,
        store: Store,
        connect: Callable[[str, str], HandlerCaller],
        log: FilteringBoundLogger,
        settings: RunnerSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.store = store
        self.history = History(store)
        self.settings = settings or RunnerSettings()
        self.clock = clock or SystemClock()
        self.owner = str(uuid.uuid4())
        self._log = log
        calls = self.settings.calls
        self.links = Links(self._find_handler, connect, calls, self.now_us, self._log_absence)
        self._driver = Driver(self, self.links, self.settings.calls)
        self._mine: dict[str, tuple[Execution, asyncio.Task[None]]] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._unsaved: list[tuple[Execution, asyncio.Future[bool]]] = []
        self._found: dict[str, tuple[asyncio.Future[KnownHandler | None], float]] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._handlers_seen = 0
        self._wake, self._to_save = asyncio.Event(), asyncio.Event()
        self._waiting = False
        self._time = (0, 0.0)
        self._stepped_s = self.clock.monotonic()
        self.clock_step: ClockStep | None = None
        self._lease_ends_s = 0.0
        self._renewing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._sync(await self.write(self._now))
        await self._renew()
        loops = (
            *(self._claim_loop, self._renew_loop, self._save_loop),
            *(self._retention_loop, self._probe_loop),
        )
        self._tasks = [asyncio.create_task(loop(), name=loop.__name__) for loop in loops]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.store.end_within()
        tasks: list[asyncio.Future[Any]] = [*self._tasks, *self._probes.values()]
        tasks += [task for _, task in self._mine.values()]
        tasks += [looking for looking, _ in self._found.values()]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self.links.close()
        # Another scheduler takes over at once what is given back, instead of after the leases end.
        with suppress(*TRY_AGAIN):
            await self.write(self.store.release, self.owner)
        for task in self._tasks:
            if not task.cancelled():
                self._raise_error_of(task)

    async def failure(self) -> None:
        """Wait until one of the tasks fails, and raise its error: the rest cannot work alone."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            self._raise_error_of(task)

    def _raise_error_of(self, task: asyncio.Task[None]) -> None:
        """Raise what a task ended with; of a damaged file, what to do about it."""
        if (error := task.exception()) is not None:
            raise self.store.damage(error) or error

    async def write(self, method: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Call a method of the store that writes, in the one thread for that."""
        return await self.store.in_writer(partial(method, *args, **named))

    async def read(self, method: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Call a method of the store that only reads."""
        return await self.store.in_reader(partial(method, *args, **named))

    def wake(self) -> None:
        """Look at the store now: something was added."""
        self._wake.set()

    def handler_seen(self, handler_id: str, instance_id: str = "") -> None:
        """Look its address up again, and whether it is there: it registered, or was removed."""
        self._handlers_seen += 1
        self._found.pop(handler_id, None)
        # After that: who wakes looks the handler up, and must not find the old address.
        self.links.wake((handler_id, instance_id))
        if probe := self._probes.pop(handler_id, None):
            probe.cancel()  # it may ask at the old address
        self._probe(handler_id)

    async def run_now(self, one: Execution, key: str | None, digest: str) -> str:
        """Begin an execution at once, and return its id, or that of the same key's earlier one.

        Raises:
            ValueError: The key was used for another request.
        """
        one.owner = self.owner
        earlier = await self.write(self.store.run_now, one, self.settings.lease_s, key, digest)
        if earlier is not None:
            return earlier
        self._start(one)
        return one.execution_id

    async def finished(self, execution_id: str) -> ExecutionRecord | None:
        """An execution's record, once it is final, whichever scheduler runs it; None if cleared.

        Where it is this one, the result is whole, which the store cuts.
        """
        mine = self._mine.get(execution_id)
        ended = self._ended.setdefault(execution_id, asyncio.Event())
        try:
            while True:
                record = await self.read(self.history.find, execution_id)
                if record is None or record["completed_at"] is not None:
                    if mine and record and mine[0].status == record["status"] == "success":
                        with suppress(TypeError):  # nested too deeply to be written
                            whole = encode_json(flat_result(mine[0].result))
                            record["result"] = orjson.Fragment(whole)
                    return record
                # Another scheduler's execution sets no event here: its end shows at the next look.
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), self.settings.poll_s)
        finally:
            self._ended.pop(execution_id, None)

    # --- what an execution needs (see `calls.LeaseHolder`)

    def now_us(self) -> int:
        """The database's time, as well as it is known."""
        then_us, then_s = self._time
        return then_us + round((self.clock.monotonic() - then_s) * 1_000_000)

    async def save(self, one: Execution) -> bool:
        """Write an execution down; false when the lease is another's."""
        saved: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._unsaved.append((one, saved))
        self._to_save.set()
        return await saved

    async def holds(self, one: Execution) -> bool:
        """Whether the lease is still this runner's; asks the store when it may have ended."""
        while self.clock.monotonic() >= self._lease_ends_s:
            async with self._renewing:
                if self.clock.monotonic() >= self._lease_ends_s:
                    await self._renew()
        mine = self._mine.get(one.execution_id)
        return mine is not None and mine[0] is one

    async def divide(self, one: Execution) -> bool:
        """Divide a run whose items were listed; false where that failed, and it has ended."""
        try:
            items = read_items(one.result)
        except ValueError as error:
            one.status, one.error, one.result = "error", str(error), None
            return False
        if await self._persist(self.store.divide, one, items):
            self._log.info("run_divided", execution_id=one.execution_id, items=len(items))
        one.status = "running"
        self.wake()
        return True

    async def stop(self, execution_id: str) -> bool:
        """Have an open run end before its time; false where there is none."""
        found = await self.write(self.store.stop, execution_id)
        if found:
            await self._renew()
            self.wake()
        return found

    # --- the five tasks

    async def _claim_loop(self) -> None:
        while True:
            # Before the look: what is added during it wakes the next one.
            self._wake.clear()
            held = Counter(one.handler_id for one, _ in self._mine.values() if one.parent_id)
            claim = await self._persist(
                partial(self.store.claim, self.owner, self.settings.lease_s, parts=held)
            )
            self._sync(claim.now_us)
            if claim.step is not None:
                self._note_step(claim.step)
            self._waiting = claim.queued
            for job_id, fault in claim.faults.items():
                self._log.warning("schedule_stands_still", job_id=job_id, error=fault)
            for one in claim.started:
                self._start(one)
            self._note_stopped(claim.stopped)
            for one in claim.ended:
                self._log_end(one)
                self._note_ended(one)
            delay_s = self.settings.poll_s
            if claim.next_due_us is not None:
                delay_s = min(delay_s, (claim.next_due_us - self.now_us()) / 1_000_000)
            if delay_s > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), delay_s)

    async def _renew_loop(self) -> None:
        while True:
            await self.clock.sleep(self.settings.lease_s / 3)
            await self._renew()

    async def _save_loop(self) -> None:
        while True:
            await self._to_save.wait()
            # Whatever came while the last transaction ran is written by the next one, together.
            batch, self._unsaved = self._unsaved[:SAVE_LIMIT], self._unsaved[SAVE_LIMIT:]
            if not self._unsaved:
                self._to_save.clear()
            kept = await self._persist(self.store.save, [one for one, _ in batch])
            for (_, saved), was_kept in zip(batch, kept, strict=True):
                # Whoever waited may have been cancelled meanwhile; the row is written all the same.
                if not saved.done():
                    saved.set_result(was_kept)

    async def _retention_loop(self) -> None:
        days, most = self.settings.retention_days, self.settings.max_executions
        every_s = self.settings.retention_every_s
        while True:
            await self.clock.sleep(every_s)
            gone = Counter[str]()
            # After a step the clock may well be set right again: what is old by it is spared.
            while self.clock.monotonic() - self._stepped_s >= every_s:
                some = asdict(await self._persist(self.history.purge, days, most))
                if not any(some.values()):
                    break
                gone.update(some)
            if self.clock.monotonic() - self._stepped_s >= every_s:
                silent_s = self.settings.calls.lost_after_s
                await self._persist(self.store.forget_instances, silent_s)
            if gone:
                bounds = {"retention_days": days, "max_executions": most}
                self._log.info("executions_purged", **gone, **bounds)

    async def _probe_loop(self) -> None:
        """Ask every handler whether it is there, spread over `probe_every_s`."""
        known: list[KnownHandler] = []
        while True:
            seen, now_s = self._handlers_seen, self.clock.monotonic()
            with suppress(*TRY_AGAIN):
                known = await self.read(self.store.list_handlers)
                self.links.keep(known)
            slots = max(1, min(len(known), PROBE_SLOTS))
            for slot in range(slots):
                for one in known[slot::slots]:
                    # None moved since it was read. The load of instances is not that of others.
                    if seen == self._handlers_seen and not one.instances:
                        found = asyncio.get_running_loop().create_future()
                        found.set_result(one)
                        self._found[one.handler_id] = found, now_s
                    self._probe(one.handler_id)
                # A slot at a time: thousands of handlers are not asked in one burst.
                await self.clock.sleep(self.settings.calls.probe_every_s / slots)

    def _probe(self, handler_id: str) -> None:
        """Ask a handler whether it is there, unless that is being asked."""

        def forget(probe: asyncio.Task[None]) -> None:
            if self._probes.get(handler_id) is probe:
                del self._probes[handler_id]

        if handler_id not in self._probes:
            probe = asyncio.create_task(self.links.probe(handler_id), name="scheduler-probe")
            self._probes[handler_id] = probe
            probe.add_done_callback(forget)

    def _log_absence(self, callee: Callee, why: str | None) -> None:
        """Log that a handler or an instance is away, or is back."""
        named = {"handler_id": callee[0]} | ({"instance_id": callee[1]} if callee[1] else {})
        if why is None:
            self._log.info("handler_back", **named)
        else:
            self._log.warning("handler_away", **named, error=why)

    async def _renew(self) -> None:
        """Renew the leases; drop executions that are another's now, start those taken over."""
        began_s = self.clock.monotonic()
        leases = await self._persist(self.store.renew, self.owner, self.settings.lease_s)
        # From before the question on: the database may have counted from then.
        self._lease_ends_s = max(self._lease_ends_s, began_s + self.settings.lease_s)
        for execution_id, (one, task) in list(self._mine.items()):
            # The number too: another may have had it meanwhile, and lost it to this one again.
            if (execution_id, one.lease) not in leases.held:
                task.cancel()
        self._note_stopped(leases.stopped)
        # Ours by the store, and unknown here: the answer to its claim was lost after the commit.
        strays = {id_ for id_, _ in leases.held} - self._mine.keys()
        if strays:
            for one in await self.read(self.store.load, self.owner, strays):
                self._start(one)
        for one in leases.taken:
            self._log.info("execution_taken_over", execution_id=one.execution_id, lease=one.lease)
            self._start(one)

    def _note_stopped(self, why: Mapping[str, str]) -> None:
        """Have what is driven here end, where it or the run that it is a part of is stopped."""
        woken = set()
        for one, _ in self._mine.values():
            found = why.get(one.execution_id) or why.get(one.parent_id or "")
            if found is not None and one.stopped is None:
                one.stopped = found
                woken.add(callee_of(one))
        for callee in woken:
            self.links.wake(callee)

    def _log_end(self, one: Execution) -> None:
        """One line on an execution that ended; a report of health that arrived needs none."""
        outcome = outcome_of(one.status, one.result, one.error)
        about = {
            "execution_id": one.execution_id,
            "job_id": one.job_id,
            "handler_id": one.handler_id,
            "method": one.method,
            "outcome": outcome["state"],
            "words": outcome["words"],
        }
        if one.item is not None:
            about |= {"item": str(one.item["name"]), "parent_id": str(one.parent_id)}
        if one.status != "success":
            self._log.warning("execution_ended", **about, status=one.status)
        elif outcome["state"] == "reported":
            self._log.debug("execution_ended", **about)
        else:
            self._log.info("execution_ended", **about)

    def _note_step(self, step: ClockStep) -> None:
        """Log and show a step of the clock; what is running is no older or younger by that."""
        self.clock_step = step
        self._log.warning("clock_stepped", **step)
        self._stepped_s = self.clock.monotonic()
        for one, _ in self._mine.values():
            step_us = seconds_us(step["step_s"] or 0)
            one.created_us += step_us
            one.waiting_since_us += step_us
            one.started_us = one.started_us and one.started_us + step_us
            one.sent_us = one.sent_us and one.sent_us + step_us

    def _start(self, one: Execution) -> None:
        """Drive an execution to its end, in a task of its own."""
        now_us = self.now_us()
        # By the clock as it is now: one that was ahead when it was written must not delay the end.
        one.created_us = min(one.created_us, now_us)
        one.waiting_since_us = min(one.tick_us or one.created_us, now_us)
        one.started_us = one.started_us and min(one.started_us, now_us)
        one.sent_us = one.sent_us and min(one.sent_us, now_us)
        if one.execution_id not in self._mine:
            task = asyncio.create_task(self._run(one), name=f"execution-{one.execution_id}")
            self._mine[one.execution_id] = one, task

    async def _run(self, one: Execution) -> None:
        try:
            await self._driver.drive(one)
            if one.is_final():
                self._log_end(one)
        except Exception:  # noqa: BLE001 - the outermost frame of an execution
            self._log.exception("execution_failed_inside", execution_id=one.execution_id)
            one.status, one.error = "error", "the scheduler failed on it: see its log"
            await self.save(one)
        finally:
            self._mine.pop(one.execution_id, None)
            self._note_ended(one)
            # A run that is queued behind this one can begin now, not only at the next look.
            if self._waiting:
                self.wake()

    def _note_ended(self, one: Execution) -> None:
        """Wake those who wait for its end."""
        if ended := self._ended.get(one.execution_id):
            ended.set()

    async def _find_handler(self, handler_id: str) -> KnownHandler | None:
        """A handler, as the store has it; looked up again after a little: it may have moved.

        Those who ask meanwhile share the look.
        """
        known, now_s = self._found.get(handler_id), self.clock.monotonic()
        if known is None or now_s - known[1] >= FRESH_S:
            find = partial(self.store.find_handler, handler_id, apart_from=self.owner)
            look = self._retrying(self.store.in_reader, find)
            known = asyncio.create_task(look, name="scheduler-find-handler"), now_s
            self._found[handler_id] = known
        # Shielded: one that gives up must not cancel the look that others share.
        return await asyncio.shield(known[0])

    async def _persist(self, method: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Write, again and again while the database is away."""
        return await self._retrying(self.store.in_writer, partial(method, *args, **named))

    async def _retrying(
        self, run: Callable[[Callable[[], T]], Awaitable[T]], call: Callable[[], T]
    ) -> T:
        """Run a call of the store in a thread, again and again while the database is away."""

        def log_away(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            why = str(getattr(error, "orig", error)).strip()
            self._log.warning("database_away", error=why, attempt=state.attempt_number)

        attempts = AsyncRetrying(
            retry=retry_if_exception_type(TRY_AGAIN),
            wait=Backoff(0.1, 5.0),
            sleep=self.clock.sleep,
            before_sleep=log_away,
        )
        return await attempts(run, call)

    def _now(self) -> int:
        with self.store.reading() as c:
            return self.store.now_us(c)

    def _sync(self, now_us: int) -> None:
        """Note the database's time."""
        self._time = now_us, self.clock.monotonic()
