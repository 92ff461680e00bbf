"""A storm over instances of one processor that share a store: kills, cuts, answers that are lost.

What is read changes meanwhile, and each change is followed by a run of it at some instance, now and
then at two of them at once. At rest all is as if one instance had done it undisturbed.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import psycopg
from catalogzero.cloud.outbox.stored import EPOCH
from catalogzero.cloud.shared_audit import verify_shared_audit

from tests.chaos.replicas import Instance, Replicas
from tests.chaos.site import until
from tests.chaos.sources import Client
from tests.chaos.verdict import Record, Verdict, difference
from tests.scheduler.processes import cut_connections

FAULT_RATE, TWICE_RATE = 0.08, 0.3
LINGER_S = 0.2
DRIVERS, RACES = 6, 7
MANY = 10
"""From that many kills on, a storm ends by freezing instances."""
CUT_EACH_S, KILL_EACH_S, REPORT_EACH_S = (0.3, 1.5), (0.5, 1.5), 0.5
REST_S = 120.0
POINTS = [
    f"{step}:{when}"
    for step in ("seal_whole", "add", "seal", "completing", "done", "_append", "to_send", "_join")
    for when in ("before", "after")
]
GOOD = frozenset({"uploaded", "unchanged", "queued"})


class ReplicaStorm:
    """One storm.

    Args:
        client: What there is to send.
        folder: For everything.
        store: The PostgreSQL database of the outbox.
        kills: How many instances, or workers of them, are killed.
        rows: How much the client has.
        seed: Of all dice.
    """

    def __init__(
        self, client: type[Client], folder: Path, store: str, *, kills: int, rows: int, seed: int
    ) -> None:
        self._kills, self._seed = kills, seed
        self.dice = random.Random(seed)  # noqa: S311  # dice, to be repeated by their seed
        self.client = client(folder, rows, random.Random(seed + 1))  # noqa: S311  # the same
        self.site = Replicas(folder, store, self.client, LINGER_S)
        self.proxy = self.site.proxy(FAULT_RATE, random.Random(seed + 2))  # noqa: S311  # the same
        self.verdict = Verdict(self.site.database)
        self.changes: Counter[str] = Counter(dict.fromkeys(self.client.calls, 1))
        self.read: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.took_s = self.settled_s = 0.0
        self._is_over = False

    async def run(self) -> None:
        """The whole storm, until nothing is left to be sent."""
        begun_s = time.monotonic()
        for one in self.site.instances:
            await until(one.is_there, "an instance that answers")
        async with going_on(self.site.keep_up()):
            driving = [asyncio.create_task(self._drive(number)) for number in range(DRIVERS)]
            async with going_on(self._cut_connections(), self._report_health()):
                for _ in range(self._kills):
                    await asyncio.sleep(self.dice.uniform(*KILL_EACH_S))
                    await self._kill()
                if self._kills >= MANY:  # at last: what is killed later forgets what it knew
                    await self._freeze_all_but_one()
            self._is_over = True
            await asyncio.gather(*driving)
            stormed_s = time.monotonic()
            for call in self.client.calls[-RACES:]:
                await self._race(call)
            await self._of_each(self._read_what_changed)
            await self.proxy.calm()
            await until(self._is_sent, "an empty outbox", REST_S)
        self.settled_s = time.monotonic() - stormed_s
        self.took_s = time.monotonic() - begun_s

    # What is done to them

    async def _kill(self) -> None:
        """One kill: of a handler, of its worker, or of that at a commit."""
        one = self.dice.choice(self.site.instances)
        victim = self.dice.choice(("handler", "worker", "commit"))
        if victim == "commit":
            point = self.dice.choice(POINTS)
            one.die_at.write_text(point)
            with suppress(AssertionError):  # it does not come by there
                await until(lambda: not one.die_at.exists(), point, 5.0)
                self.done[f"kill at {point}"] += 1
                return
            one.die_at.unlink(missing_ok=True)
            victim = "worker"
        await until(lambda: one.kill(victim), f"a {victim} to kill")
        self.done[f"kill {victim}"] += 1

    async def _freeze_all_but_one(self) -> None:
        """Freeze them past their leases; the one that is killed then is the first to start.

        It takes an epoch, and the others go on with what they had in hand.
        """
        one, *others = self.site.instances
        for other in others:
            await self._have_sent(other)
        for other in others:
            other.freeze(signal.SIGSTOP)
        await until(lambda: self._at_work() == 1, "leases that have lapsed", REST_S)
        before = self._epoch()
        one.kill("handler")
        await until(lambda: self._epoch() > before, "another epoch", REST_S)
        for other in others:
            other.freeze(signal.SIGCONT)
        self.done["kill handler, the others frozen"] += 1

    async def _have_sent(self, instance: Instance) -> None:
        """Have an instance send something, so that it knows the epoch that is."""
        call, result = self.client.calls[0], dict[str, Any]()
        async with asyncio.timeout(REST_S):
            while result.get("status") != "uploaded":
                self._change(call)
                result = await self._read(call, instance)

    def _at_work(self) -> int:
        with closing(self.site.outbox()) as store:
            sql = "SELECT COUNT(*) FROM members WHERE until > clock_timestamp()"
            return int(store.execute(sql)[0][0])

    def _epoch(self) -> int:
        with closing(self.site.outbox()) as store:
            return int(store.fact(EPOCH) or 0)

    async def _cut_connections(self) -> None:
        """Cut every connection to the store, again and again."""
        while True:
            await asyncio.sleep(self.dice.uniform(*CUT_EACH_S))
            with suppress(psycopg.OperationalError):
                await asyncio.to_thread(cut_connections, self.site.store)
                self.done["cuts"] += 1

    async def _report_health(self) -> None:
        """Have some instance report its health, again and again."""
        while True:
            await asyncio.sleep(REPORT_EACH_S)
            await self.dice.choice(self.site.instances).call("health_report")

    # What they are called for

    async def _drive(self, number: int) -> None:
        """Change something, and have it read, until the storm is over; each driver its own."""
        calls = self.client.calls
        mine = calls[number % len(calls) :: DRIVERS]
        while not self._is_over:
            await self._change_and_read(self.dice.choice(mine))

    async def _change_and_read(self, call: str) -> None:
        """Change what a call reads; have it read, now and then also by one that reads before."""
        one, other = self.dice.sample(self.site.instances, 2)
        early = []
        if self.dice.random() < TWICE_RATE:
            early = [asyncio.create_task(self._read(call, other))]
            await asyncio.sleep(self.dice.uniform(0.0, LINGER_S))
        self._change(call)
        await asyncio.gather(self._read(call, one), *early)

    async def _race(self, call: str) -> None:
        """Hold one amid its run; another reads what has changed since, and is done before."""
        one, other = self.dice.sample(self.site.instances, 2)
        hold, held = (other.state / name for name in ("hold", "held"))
        held.unlink(missing_ok=True)
        hold.touch()
        self._change(call)
        early = asyncio.create_task(self._read(call, other))
        await until(lambda: held.exists() or early.done(), f"a run of {call} that is held")
        self._change(call)
        await self._read(call, one)
        hold.unlink()
        await early

    def _change(self, call: str) -> None:
        self.client.change_of(call)
        self.changes[call] += 1

    async def _read(self, call: str, instance: Instance) -> dict[str, Any]:
        """One run; what it has read is noted."""
        changes = self.changes[call]
        result = await instance.call("process_and_upload", data_source=call)
        status = str(result.get("status") or f"error: {result['error'][:60]}")
        if status == "failed":
            status += f": {result['error'][:120]}"
        self.done[f"run {status}"] += 1
        if status in GOOD:
            self.read[call] = max(self.read[call], changes)
        return result

    async def _read_what_changed(self, call: str) -> None:
        """Have read what was not since its last change."""
        async with asyncio.timeout(REST_S):
            while self.read[call] < self.changes[call]:
                await self._read(call, self.dice.choice(self.site.instances))

    async def _read_once_more(self, call: str) -> None:
        """A run where nothing has changed."""
        result = await self._read(call, self.dice.choice(self.site.instances))
        assert (result.get("status"), result.get("uploads")) == ("unchanged", 0), result

    async def _of_each(self, work: Callable[[str], Awaitable[None]]) -> None:
        """Do something for each call, for a few at once."""
        room = asyncio.Semaphore(DRIVERS)

        async def one(call: str) -> None:
            async with room:
                await work(call)

        async with asyncio.TaskGroup() as tasks:
            for call in self.client.calls:
                tasks.create_task(one(call))

    def _is_sent(self) -> bool:
        with closing(self.site.outbox()) as store:
            return store.totals().uploads == 0

    # What is there at rest

    async def check(self) -> None:
        """All is there, once and in order, and a further run finds nothing to do."""
        shown = self.client.shown(self.verdict.records())
        found = difference(self.client.rows(), shown)
        assert (found.lost, found.twice, self.verdict.partial()) == (0, 0, 0), self.table()
        before = self._figures()
        await self._of_each(self._read_once_more)
        after = self._figures()
        assert after == before, (before, after)
        assert before["open"] == before["dead"] == 0
        assert all(len(reports) == 1 for reports in self.proxy.reports.values())
        with closing(self.site.outbox()) as store:
            report = verify_shared_audit(store)
        assert report.broken_at is None, report

    def _figures(self) -> Counter[str]:
        """What is in the outbox, and what was asked of the backend to be made visible."""
        with closing(self.site.outbox()) as store:
            totals = store.totals()
            [(sealed,)] = store.execute("SELECT COALESCE(MAX(seal_order), 0) FROM uploads")
        asked = Counter(
            {
                name: count
                for name, count in self.proxy.answers.items()
                if name.startswith("complete")
            }
        )
        return asked + Counter(open=totals.uploads, dead=totals.dead, sealed=sealed)

    def in_order(self, source: str) -> list[str]:
        """The ids that are visible of a source, in the order of the backend."""
        found = [one for one in self.verdict.records() if one.source == source]
        return [str(one.row["id"]) for one in sorted(found, key=order_of)]

    def table(self) -> str:
        """What was done, and the seed that repeats it."""
        kills = sum(count for name, count in self.done.items() if name.startswith("kill"))
        lines = [
            f"seed {self._seed}: {kills} kills; {self.took_s:.0f} s, {self.settled_s:.0f} s of them"
            f" to settle; {len(self.proxy.reports)} health reports"
        ]
        for title, hits in (("", self.done), ("fault ", self.proxy.hits), ("", self.proxy.answers)):
            lines += [f"  {title}{name:<60} {count}" for name, count in sorted(hits.items())]
        return "\n".join(lines)


@asynccontextmanager
async def going_on(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """What goes on while it is open."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def order_of(record: Record) -> tuple[int, int, int]:
    """Where a record stands."""
    return record.order
