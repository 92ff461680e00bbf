"""A storm: real processes, real kills, and the count of rows at the end.

    python -m tests.chaos.storm --kills 200 --rows 1000000 --seed 7 [--database postgresql://…]

Handler, worker and backend are killed with -9 while runs are under way: at each commit point of
the outbox and of the backend, then at random moments, behind a proxy that faults a part of all
requests. Each kill comes in a scene (see `scenes`). At the end, what the backend shows must be
what the client has, row by row; after each scene, nothing may be shown in part. The seed gives the
order of scenes and deaths, and the proxy's dice.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from catalogzero import CatalogZeroError
from catalogzero.clock import SystemClock
from catalogzero.cloud.outbox.outbox import Outbox
from catalogzero.cloud.outbox.store import OutboxStore
from catalogzero.cloud.outbox.stored import MOVED

from tests.chaos.proxy import FaultProxy
from tests.chaos.range_scenes import RANGE_EVENTS, RANGE_SCENES
from tests.chaos.scenes import EVENTS, POINTS, SCENES
from tests.chaos.site import LOOK_S, Site, until
from tests.chaos.sources import Client, Sources, files_of
from tests.chaos.verdict import Verdict, difference

ClientT = TypeVar("ClientT", bound=Client)
Found = TypeVar("Found")

ALL_SCENES, ALL_EVENTS = {**SCENES, **RANGE_SCENES}, {**EVENTS, **RANGE_EVENTS}
VICTIMS = ("worker", "handler", "backend")
COMMIT_POINTS = [f"{step}:{when}" for step in POINTS for when in ("before", "after")]
FAULT_RATE = 0.2
MOST_REQUESTS = 15
MANY = 100
MORE_PLAYS = 3
REST_S = 600.0
ROW_BYTES, CHUNKS_A_FILE, MIN_CHUNK_BYTES = 30, 4, 16_384


@dataclass
class Report:
    """What a storm did, and what was left."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    events: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    lost: int = 0
    twice: int = 0
    partial: int = 0
    took_s: float = 0.0

    def landed(self) -> int:
        """Kills that landed inside a run."""
        return self.kills.total() - self.outside

    def table(self) -> str:
        """The table of hits, and the seed that repeats the run."""
        lines = [
            f"seed {self.seed}: {self.kills.total()} kills, {self.landed()} of them inside a run;"
            f" {self.rows} rows; {self.took_s:.0f} s"
        ]
        kinds = {
            "kill": self.kills,
            "event": self.events,
            "fault": self.faults,
            "answer": self.answers,
        }
        for title, hits in kinds.items():
            lines += [f"  {title:<7} {name:<42} {count}" for name, count in sorted(hits.items())]
        lines.append(f"  lost {self.lost}, twice {self.twice}, shown in part {self.partial}")
        return "\n".join(lines)


class Storm(Generic[ClientT]):
    """One storm in a folder of its own.

    Args:
        client: What there is to send.
        folder: For everything: data, state, database, logs.
        kills: How many kills must land inside a run.
        rows: How much the client has.
        seed: Of all dice.
        database: The backend's; by default an SQLite file.
        points: The commit points to kill at.
        scenes: The scenes that happen, each once at least.
        deaths: In each scene without a commit point.
        mutant: A fault built in (see `processors`, `backend_process`), to prove the storm.
    """

    def __init__(
        self,
        client: type[ClientT],
        folder: Path,
        *,
        kills: int,
        rows: int,
        seed: int,
        database: str | None = None,
        points: Sequence[str] = COMMIT_POINTS,
        scenes: Sequence[str] = tuple(SCENES),
        deaths: int = 3,
        mutant: str = "",
    ) -> None:
        self._deaths_each = deaths if kills < MANY else 6
        self.kills, self.rows, self.points, self.scenes = kills, rows, list(points), list(scenes)
        self.dice = random.Random(seed)  # noqa: S311  # dice, to be repeated by their seed
        url = database or f"sqlite:///{folder}/backend.db"
        chunk_bytes = max(rows * ROW_BYTES // files_of(rows) // CHUNKS_A_FILE, MIN_CHUNK_BYTES)
        self.sources = client(folder, rows, random.Random(seed + 1))  # noqa: S311  # the same
        self.site = Site(folder, url, self.sources, chunk_bytes, mutant)
        ports = self.site.proxy_port, self.site.backend_port
        self.proxy = FaultProxy(*ports, FAULT_RATE, random.Random(seed + 2))  # noqa: S311  # the same
        self.verdict = Verdict(url)
        self.report = Report(seed, faults=self.proxy.hits, answers=self.proxy.answers)
        self._running = 0
        self._diary = folder / "diary.txt"

    async def run(self) -> Report:
        """The whole storm, to the count at the end."""
        begun = time.monotonic()
        self.site.start()
        keeping = asyncio.create_task(self.site.keep_up())
        try:
            async with self.proxy:
                await until(self.site.answers, "a handler that answers")
                for scene, deaths in self._plan():
                    await self._play(scene, deaths)
                while self.report.landed() < self.kills:
                    await self._play(*self._plan()[0])
                await self._rest()
            shown = self.sources.shown(self.verdict.records())
            found = difference(self.sources.rows(), shown)
            report = self.report
            report.rows, report.lost, report.twice = found.rows, found.lost, found.twice
        finally:
            self.report.took_s = time.monotonic() - begun
            keeping.cancel()
            self.site.stop()
        return self.report

    def _plan(self) -> list[tuple[str, list[str]]]:
        """Each scene with deaths at the commit points that it comes by, else at random moments."""
        plan: dict[str, list[str]] = {scene: [] for scene in self.scenes}
        for point in self.points:
            plan[POINTS.get(point.partition(":")[0], self.scenes[0])].append(point)
        for deaths in plan.values():
            if self.kills and not deaths:
                deaths += self.dice.sample(VICTIMS * 2, self._deaths_each)
        return self.dice.sample(list(plan.items()), len(plan))

    async def _play(self, scene: str, deaths: list[str]) -> None:
        """A scene until every death has come: those at commit points in it, others also after."""
        begun, dying = time.monotonic(), asyncio.create_task(self._deaths(deaths))
        again = scene if deaths and deaths[0] not in VICTIMS else "new_rows"
        try:
            await ALL_SCENES[scene](self)
            async with asyncio.timeout(REST_S):
                for play in itertools.count():
                    missed = self.events_of(scene) - self.report.events.keys()
                    if dying.done() and (not missed or play >= 3 * len(deaths) + MORE_PLAYS):
                        break
                    await ALL_SCENES[scene if missed else again](self)
            await dying
        except TimeoutError:
            raise AssertionError(f"it never came to all of {deaths} in {scene}") from None
        finally:
            dying.cancel()
            self.proxy.meddling = None
            for order in self.site.die_at.values():
                order.unlink(missing_ok=True)
        self.report.partial += await asyncio.to_thread(self.verdict.partial)
        with self._diary.open("a") as diary:
            diary.write(f"{time.monotonic() - begun:6.1f} s  {scene}, {deaths}\n")

    async def _deaths(self, deaths: Sequence[str]) -> None:
        """One death after the other: at a commit point, or of a victim after some requests."""
        for death in deaths:
            who, _, point = death.partition(" ")
            if point:
                await self._death_at(who, point)
            else:
                await self._death_of(who)
            self.report.kills[death] += 1
            self.report.outside += not self._running

    async def _death_at(self, who: str, point: str) -> None:
        self.site.die_at[who].write_text(point)
        await until(lambda: not self.site.die_at[who].exists(), point, REST_S)

    async def _death_of(self, victim: str) -> None:
        enough = self.proxy.hits.total() + self.dice.randint(1, MOST_REQUESTS)
        await until(
            lambda: self._running and self.proxy.hits.total() >= enough and self.site.kill(victim),
            victim,
            REST_S,
        )

    # What scenes are made of

    async def run_all(self) -> None:
        """A run of each source, to a result."""
        self._running += 1
        try:
            for source in self.sources.calls:
                await self.site.run_to_end(source)
        finally:
            self._running -= 1

    async def run_until(self, condition: Callable[[], object], what: str) -> None:
        """Runs until a condition holds: what a start puts off, the next run reads again."""

        async def holds() -> object:
            await self.run_all()
            return condition()

        await until(holds, what)

    @asynccontextmanager
    async def held_run(self, source: str) -> AsyncIterator[None]:
        """A run that waits in its middle for what happens here; then it goes to its end."""
        hold, held = self.site.state / "hold", self.site.state / "held"
        held.unlink(missing_ok=True)
        hold.touch()
        self._running += 1
        run = asyncio.create_task(self.site.run_to_end(source))
        try:
            await until(lambda: held.exists() or run.done(), "a run in its middle")
            yield
        finally:
            hold.unlink(missing_ok=True)
            await run
            self._running -= 1

    async def all_sent(self) -> None:
        """Wait until nothing is left to send."""
        await until(lambda: not self._outbox_figures()[0], "an empty outbox")

    def dead_letters(self) -> dict[str, str]:
        """The sources of dead letters by upload_id, as the outbox's file says."""
        return self._outbox_figures()[1]

    def is_moved(self) -> bool:
        """Whether the folder knows that another one took its installation over."""
        return self.fact(MOVED) is not None

    def fact(self, name: str) -> Any:
        """What the outbox remembers; None where it cannot be read now."""
        return self._looked_up(lambda store: store.fact(name), None)

    async def loaded(self, runs: asyncio.Task[None]) -> None:
        """Wait until the backend has requests of these runs, or they are through."""
        await until(lambda: self.proxy.under_way or runs.done(), "requests under way")

    def refusals(self) -> int:
        """How often the backend answered with a fault of its own."""
        return sum(n for answer, n in self.proxy.answers.items() if " 5" in answer)

    def events_of(self, scene: str) -> set[str]:
        """What a scene must have seen to happen."""
        return ALL_EVENTS.get(scene, set())

    def happened(self, event: str) -> None:
        """Note that a scene's event came to be."""
        self.report.events[event] += 1

    def _outbox_figures(self) -> tuple[int, dict[str, str], int]:
        """How many uploads wait, the dead letters, and how many sources are to be read again."""

        def figures(store: OutboxStore) -> tuple[int, dict[str, str], int]:
            dead = {one.upload_id: one.source for one in store.uploads(["dead"])}
            return store.totals().uploads, dead, store.totals().missing

        none: dict[str, str] = {}
        return self._looked_up(figures, (1, none, 0))

    def _looked_up(self, look: Callable[[OutboxStore], Found], otherwise: Found) -> Found:
        """What is found in the outbox; `otherwise` where it cannot be read now."""
        with suppress(CatalogZeroError, sqlite3.Error):
            if self.site.outbox_path().exists():
                outbox = Outbox(self.site.outbox_path().parent, SystemClock(), repair=False)
                try:
                    return look(outbox.store)
                finally:
                    outbox.close()
        return otherwise

    async def _rest(self) -> None:
        """No more faults: a restart, then runs until all is sent."""
        self.site.restart_backend()
        self.site.kill("handler")
        await self.proxy.calm()
        async with asyncio.timeout(REST_S):
            while True:
                results = [await self.site.run_to_end(s) for s in self.sources.calls]
                waiting, dead, missing = self._outbox_figures()
                if dead:
                    await self.site.outbox("retry")
                if {r["status"] for r in results} == {"unchanged"} and not (
                    waiting or dead or missing
                ):
                    return
                await asyncio.sleep(LOOK_S * 10)


def main() -> int:
    """Run one storm by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--database")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    storm = Storm(
        Sources,
        folder,
        kills=given.kills,
        rows=given.rows,
        seed=given.seed,
        database=given.database,
    )
    try:
        report = asyncio.run(storm.run())
    finally:
        sys.stdout.write(f"{storm.report.table()}\n  files in {folder}\n")
    return 1 if report.lost or report.twice or report.partial else 0


if __name__ == "__main__":
    sys.exit(main())
