"""Server-sent events: one snapshot of the fleet, then what changes, as it changes.

Owns the subscribers. A slow reader gets fewer and larger changes, never a growing queue: each
asks the board for what changed since it last wrote. Events: `snapshot`, `change`; a comment
line every few seconds keeps the connection known to be alive.

Layer: catalog entry, imports nothing of catalogzero.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

from aiohttp import web

from conductorzero.fleet import JsonObject
from conductorzero.watch import Watch

HEARTBEAT_S = 5.0
EVENTS_SHOWN = 30


class Stream:
    """Writes the board's changes to whoever listens.

    Args:
        about: What each message says of the fleet beside its rows.
    """

    def __init__(self, watch: Watch, about: Callable[[], JsonObject]) -> None:
        self._watch = watch
        self._about = about
        self._wakers: set[asyncio.Event] = set()
        self._closed = False
        self._stop_listening = watch.listen(self._changed)

    def close(self) -> None:
        """End all streams; their readers come back when there is a server again."""
        self._closed = True
        self._stop_listening()
        self._changed()

    def snapshot(self, *, trails: bool) -> JsonObject:
        """The whole fleet."""
        board = self._watch.board
        return {
            **self._about(),
            "handlers": [row.as_json(trails=trails) for row in board.rows.values()],
            "events": [event.as_json() for event in board.events_after(0, EVENTS_SHOWN)],
        }

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """GET /api/stream."""
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        await response.prepare(request)
        woken = asyncio.Event()
        self._wakers.add(woken)
        try:
            with contextlib.suppress(ConnectionError):
                await self.write_changes(response, woken)
        finally:
            self._wakers.discard(woken)
        return response

    async def write_changes(self, response: web.StreamResponse, woken: asyncio.Event) -> None:
        """The snapshot, then each change, until the reader or the server goes."""
        board = self._watch.board
        seen, members, seq = board.version, board.members_version, board.last_seq
        # The versions were noted before: a change during the write comes again, and none is
        # missed.
        await send(response, "snapshot", self.snapshot(trails=True))
        while not self._closed:
            try:
                await asyncio.wait_for(woken.wait(), HEARTBEAT_S)
            except TimeoutError:
                await response.write(b": still here\n\n")
                continue
            # Before the board is read: what changes from here on wakes it again.
            woken.clear()
            change = {
                **self._about(),
                "handlers": [row.as_json(seen=seen) for row in board.changed_since(seen)],
                "events": [event.as_json() for event in board.events_after(seq)],
            }
            if board.members_version != members:
                change["members"] = list(board.rows)
            seen, members, seq = board.version, board.members_version, board.last_seq
            await send(response, "change", change)

    def _changed(self) -> None:
        """Wake every writer."""
        for woken in self._wakers:
            woken.set()


async def send(response: web.StreamResponse, event: str, data: JsonObject) -> None:
    """Write one event."""
    text = json.dumps(data, separators=(",", ":"))
    await response.write(f"event: {event}\ndata: {text}\n\n".encode())
