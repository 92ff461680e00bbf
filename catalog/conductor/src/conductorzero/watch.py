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
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from catalogzero import CatalogZeroError
from catalogzero.sql import NewerSchemaError

from conductorzero.board import Board, Event
from conductorzero.fleet import Answer, Clock, Fleet
from conductorzero.history import MINUTE_S, Bucket, History
from conductorzero.peers import Directory

UNWRITTEN_KEPT = 10_000
T = TypeVar("T")
Methods = dict[str, tuple[str, dict[str, bool]]]
"""What was described of each handler: its boot, and its methods with whether retry_safe."""


class Watch:
    """Looks at the fleet at set times, and tells whoever listens.

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
        problems = list(self.directory.problems)
        for problem in problems:
            if problem not in self._unlisted:
                self._log.warning("peers_unreadable", problem=problem)
        self._unlisted = problems
        self.fleet.connect(peers)
        events = self.board.set_peers(peers.values(), self._clock.now())
        if events:
            self._log.info("handlers_changed", changes=len(events), handlers=len(peers))
            self._note(events)
            self._report()

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
        timeout_s = self._period_s * 0.9
        ids = self.fleet.handler_ids
        pongs, metrics = await asyncio.gather(
            self.fleet.ask_all(ids, "ping", timeout_s=timeout_s),
            self.fleet.ask_all(ids, "get_metrics", timeout_s=timeout_s),
        )
        self.round_s = self._clock.monotonic() - began_s
        self.looked_at = self._clock.now()
        self.saw(pongs.values(), metrics.values())
        await self.write()

    def saw(self, pongs: Iterable[Answer] = (), metrics: Iterable[Answer] = ()) -> None:
        """Keep these answers, from a round or from a job's own questions."""
        now = self._clock.now()
        events: list[Event] = []
        for answer in metrics:  # before the pongs: they know the state, a pong only that it lives
            events += self.board.saw_metrics(answer, now)
            if isinstance(answer.result, dict):
                self._bucket(answer.handler_id).add_metrics(answer.result)
        for answer in pongs:
            events += self.board.saw_ping(answer, now)
            self._bucket(answer.handler_id).add_ping(answer.response_time_ms)
        self._note(events)
        self._report()

    async def write(self, *, everything: bool = False) -> None:
        """Store the minute that is over (or `everything` so far) in the history."""
        minute = self._this_minute()
        begun, self._minute = minute if self._minute is None else self._minute, minute
        if self.history is None or (begun == minute and not everything):
            return
        buckets, self._buckets = self._buckets, {}
        events, self.unwritten = self.unwritten, []
        try:
            await asyncio.to_thread(self.history.write, begun, buckets, events)
        except (sqlite3.Error, CatalogZeroError) as error:
            self.unwritten = (events + self.unwritten)[-UNWRITTEN_KEPT:]
            self._log.warning("history_not_written", error=str(error))
            self.unstored = f"{self.history.path}: the history cannot be written: {error}"
        else:
            self.unstored = _set_aside(self.history)

    async def series(self, handler_id: str, since_s: int) -> list[tuple[int, Bucket]]:
        """A handler's stored and unwritten samples from `since_s` on, oldest first."""
        stored = await self._read(lambda history: history.buckets(handler_id, since_s))
        current = self._buckets.get(handler_id)
        if current is not None:
            stored.append((self._minute or self._this_minute(), current))
        return stored

    async def events(self, handler_id: str | None, limit: int) -> list[dict[str, Any]]:
        """The last events, newest first, whether they are stored yet or not."""
        stored = await self._read(lambda history: history.events(handler_id, limit))
        unwritten = [
            event.as_json()
            for event in reversed(self.unwritten)
            if handler_id in (None, event.handler_id)
        ]
        return (unwritten + stored)[:limit]

    async def open_history(self, path: Path, *, keep_days: float, max_rows: int) -> None:
        """Keep a history from now on; without one where the file cannot be opened.

        Raises:
            NewerSchemaError: A newer release wrote the file.
        """
        opening = partial(History, path, keep_days=keep_days, max_rows=max_rows)
        try:
            history = self.history = await asyncio.to_thread(opening)
        except NewerSchemaError:
            raise
        except CatalogZeroError as error:
            self.unstored = f"no history is kept until a restart: {error}"
        else:
            self.unstored = _set_aside(history)
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

    def _bucket(self, handler_id: str) -> Bucket:
        """The bucket of the current minute."""
        return self._buckets.setdefault(handler_id, Bucket())

    def _note(self, events: list[Event]) -> None:
        """Log these events, and keep them for the history."""
        for event in events:
            self._level(event)(
                f"handler_{event.kind}",
                handler=event.handler_id,
                text=event.text,
                state=event.state,
            )
        self.unwritten = (self.unwritten + events)[-UNWRITTEN_KEPT:]

    def _level(self, event: Event) -> Any:
        """How loud an event is: what every start brings is told in detail to no one."""
        if event.kind == "failure" or (event.kind == "state" and event.state == "unreachable"):
            return self._log.warning
        at_first = event.kind == "joined" or event.text.startswith("unknown ")
        return self._log.debug if at_first else self._log.info

    def _report(self) -> None:
        """Call whoever listens."""
        for callback in list(self._listeners):
            callback()


def _set_aside(history: History) -> str:
    """That a damaged file was moved away, as a sentence; empty where none was."""
    if history.set_aside is None:
        return ""
    return f"{history.path}: it was damaged, and begun anew; the old one is {history.set_aside}"
