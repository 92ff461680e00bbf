"""The watch over the fleet: asks everybody again and again, and keeps board and history.

Owns the one timer. Twice an interval every peer is pinged and asked for its metrics, all at
once, so that a death shows within the interval. Asking is no activity for the handlers.

Layer: catalog entry, imports public names of catalogzero only.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TypeVar

from catalogzero import CatalogZeroError
from catalogzero.sql import NewerSchemaError

from conductorzero.board import RUNS_SHOWN, Board, Event
from conductorzero.fleet import Answer, Clock, Fleet, JsonObject, number, part
from conductorzero.history import MINUTE_S, WHOLE_FLEET, Bucket, History
from conductorzero.peers import Directory

UNWRITTEN_KEPT = 10_000
RUNS_ASKED_AT_ONCE = 100
MOST_ROWS = 10**15
T = TypeVar("T")
Methods = dict[str, tuple[str | None, dict[str, bool]]]
"""What was described of each handler: its boot, and its methods with whether retry_safe."""


class Watch:
    """Looks at the fleet at set times, and notifies whoever listens.

    Args:
        log: A structlog logger; each change of a handler's state is one line.
    """

    def __init__(
        self, directory: Directory, fleet: Fleet, clock: Clock, log: Any, *, interval_s: float
    ) -> None:
        self.directory = directory
        self.fleet = fleet
        self.board = Board()
        self.methods: Methods = {}
        self.history: History | None = None
        self.round_s: float | None = None
        self.looked_at: datetime | None = None
        self.unstored = ""
        self._unlisted: list[str] = []
        self._clock = clock
        self._log = log
        self._period_s = interval_s / 2
        self._listeners: set[Callable[[], None]] = set()
        self._buckets: dict[str, Bucket] = {}
        self.unwritten: list[Event] = []
        self._minute: int | None = None
        self._totals: dict[str, int] = {}

    @property
    def problems(self) -> list[str]:
        """What keeps it from seeing all, a sentence each: lists, and the history."""
        return [*self._unlisted, *([self.unstored] if self.unstored else [])]

    def silent(self) -> set[str]:
        """Who did not answer the last round; nobody where none was made lately."""
        if self.looked_at is None:
            return set()
        rows = self.board.rows.items()
        return {handler_id for handler_id, row in rows if row.state == "unreachable"}

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each change; returns what ends it."""
        self._listeners.add(callback)
        return lambda: self._listeners.discard(callback)

    async def refresh(self) -> None:
        """Read the lists of handlers again, and hold a connection to each of them."""
        peers = await self.directory.refresh()
        for problem in self.directory.problems:
            if problem not in self._unlisted:
                self._log.warning("peers_unreadable", problem=problem)
        self._unlisted = self.directory.problems
        self.fleet.connect(peers)
        events = self.board.set_peers(peers.values(), self._clock.now())
        if events:
            self._log.info("handlers_changed", changes=len(events), handlers=len(peers))
            self._note(events)

    async def run(self) -> None:
        """Look at the fleet for ever, every half interval; ends by cancellation."""
        while True:
            began_s = self._clock.monotonic()
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - a fault of one round must not end the watch
                self._log.exception("round_failed")
            took_s = self._clock.monotonic() - began_s
            await self._clock.sleep(max(self._period_s - took_s, self._period_s * 0.1))

    async def look(self) -> None:
        """One round: read the lists, ask everybody, keep what they said."""
        await self.refresh()
        began_s = self._clock.monotonic()
        # A round ends before the next begins, and two of them fit in the interval that is
        # promised.
        timeout_s = self._period_s * 0.9
        ids = self.fleet.handler_ids
        pongs, metrics = await asyncio.gather(
            self.fleet.ask_all(ids, "ping", timeout_s=timeout_s),
            self.fleet.ask_all(ids, "get_metrics", timeout_s=timeout_s),
        )
        self.round_s = self._clock.monotonic() - began_s
        self.looked_at = self._clock.now()
        self.saw(pongs.values(), metrics.values())
        self._bucket(WHOLE_FLEET).add_metrics(self.board.as_one())
        if ran := self.board.runs_wanted(RUNS_ASKED_AT_ONCE):
            asked = {"limit": RUNS_SHOWN}
            runs = await self.fleet.ask_all(ran, "list_runs", asked, timeout_s=timeout_s)
            self.saw(runs=runs.values())
        await self.write()

    def saw(
        self,
        pongs: Iterable[Answer] = (),
        metrics: Iterable[Answer] = (),
        runs: Iterable[Answer] = (),
    ) -> None:
        """Keep these answers, from a round or from a job's own questions."""
        now = self._clock.now()
        events: list[Event] = []
        for answer in metrics:  # before the pongs: they know the state, a pong only that it lives
            events += self.board.saw_metrics(answer, now)
            if isinstance(answer.result, dict):
                self._bucket(answer.handler_id).add_metrics(answer.result)
                self._count_delivered(answer.handler_id, answer.result)
        for answer in pongs:
            events += self.board.saw_ping(answer, now)
            self._bucket(answer.handler_id).add_ping(answer.response_time_ms)
        for answer in runs:
            self.board.saw_runs(answer)
        self._note(events)

    async def write(self, *, everything: bool = False) -> None:
        """Store the minute that is over (or `everything` so far) in the history."""
        minute = self._this_minute()
        begun, self._minute = minute if self._minute is None else self._minute, minute
        if self.history is None or (begun == minute and not everything):
            return
        # Taken out before the thread begins: what is seen meanwhile belongs to the next minute.
        buckets, self._buckets = self._buckets, {}
        events, self.unwritten = self.unwritten, []
        try:
            totals = {**self._totals}
            await asyncio.to_thread(self.history.write, begun, buckets, events, totals)
        except (sqlite3.Error, CatalogZeroError) as error:
            # The samples of that minute are given up, the events are not: they are few, and asked
            # for.
            self.unwritten = (events + self.unwritten)[-UNWRITTEN_KEPT:]
            self._log.warning("history_not_written", error=str(error))
            self.unstored = f"{self.history.path}: the history cannot be written: {error}"
        else:
            self.unstored = self.history.damage

    async def series(self, handler_id: str, since_s: int) -> list[tuple[int, Bucket]]:
        """A handler's stored and unwritten samples from `since_s` on, oldest first."""
        stored = await self._read(lambda history: history.buckets(handler_id, since_s))
        current = self._buckets.get(handler_id)
        if current is not None:
            stored.append((self._minute or self._this_minute(), current))
        return stored

    async def events(self, handler_id: str | None, limit: int) -> list[JsonObject]:
        """The last events, newest first, whether they are stored yet or not.

        Those of a handler are those of its instances, too.
        """
        stored = await self._read(lambda history: history.events(handler_id, limit))
        instance_of = f"{handler_id}/"
        events = [
            one
            for one in self.unwritten[::-1]
            if handler_id in (None, one.handler_id) or one.handler_id.startswith(instance_of)
        ]
        return ([event.as_json() for event in events] + stored)[:limit]

    async def open_history(self, opening: Callable[[], History]) -> None:
        """Keep a history from now on; without one where the file cannot be opened.

        Raises:
            NewerSchemaError: A newer release wrote the file.
        """
        try:
            self.history = await asyncio.to_thread(opening)
            self._totals = dict(await self._read(lambda history: [*history.totals().items()]))
            self.unstored = self.history.damage
        except NewerSchemaError:
            raise
        except CatalogZeroError as error:
            self.unstored = f"no history is kept until a restart: {error}"
        if self.unstored:
            self._log.warning("history_not_opened", problem=self.unstored)

    async def _read(self, query: Callable[[History], list[T]]) -> list[T]:
        """What is stored; nothing where there is no history, or it cannot be read."""
        if self.history is None:
            return []
        try:
            return await asyncio.to_thread(query, self.history)
        except sqlite3.Error as error:
            self._log.warning("history_not_read", error=str(error))
            return []

    def _this_minute(self) -> int:
        """The start of the current minute, in seconds since 1970."""
        return int(self._clock.now().timestamp()) // MINUTE_S * MINUTE_S

    def _count_delivered(self, handler_id: str, metrics: JsonObject) -> None:
        """Count the rows that the backend took since the handler was last seen."""
        total = number(part(metrics, "outbox").get("uploaded_records_total"))
        if total is None or not 0 <= total < MOST_ROWS:
            return
        before, self._totals[handler_id] = self._totals.get(handler_id), int(total)
        # One that is seen for the first time delivered at an unknown time; one that has fewer
        # than before began a new outbox.
        delivered = 0 if before is None else int(total) - (before if total >= before else 0)
        for key in (handler_id, WHOLE_FLEET):
            self._bucket(key).delivered += delivered

    def _bucket(self, handler_id: str) -> Bucket:
        """The bucket of the current minute."""
        return self._buckets.setdefault(handler_id, Bucket())

    def _note(self, events: list[Event]) -> None:
        """Log these events, keep them for the history, and notify whoever listens."""
        for event in events:
            log = self._log.info
            if event.kind in ("failure", "trouble") or (
                event.kind == "state" and event.state == "unreachable"
            ):
                log = self._log.warning
            elif event.kind == "joined" or event.text.startswith("unknown "):
                log = self._log.debug  # what every start brings is worth no one's attention
            shown = {"handler": event.handler_id, "text": event.text, "state": event.state}
            log(f"handler_{event.kind}", **shown)
        self.unwritten = (self.unwritten + events)[-UNWRITTEN_KEPT:]
        for callback in list(self._listeners):
            callback()
