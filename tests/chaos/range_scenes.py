"""Scenes of what goes on where the last run ended: streams with checkpoints, rows with a key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.chaos.proxy import Request
from tests.chaos.scenes import REFUSED, Scene, new_rows
from tests.chaos.sources import Accounts, Lines

if TYPE_CHECKING:
    from tests.chaos.storm import Storm


async def killed_behind_a_checkpoint(storm: Storm[Lines]) -> None:
    """The worker dies as it has sealed a part; the next run goes on behind that."""
    await storm.run_all()
    before = read_from(storm)
    (storm.site.state / "die_at").write_text("seal:after")
    await new_rows(storm)
    begun = read_from(storm)[len(before) :]
    if len(set(begun)) > 1:
        storm.happened("a run went on behind a checkpoint")


async def streams_apart(storm: Storm[Lines]) -> None:
    """The folder goes while one stream is there and the other is not: they are read apart."""
    swallowed: list[Request] = []
    is_ahead = asyncio.Event()

    async def hold_back_even(request: Request) -> bytes | None:
        if request.kind != "complete":
            return None
        if request.body["stream"] == "even":
            swallowed.append(request)
            return b""
        answer = await storm.proxy.pass_on(request)
        if b" 201 " in answer[:20]:
            is_ahead.set()
        return answer

    await storm.run_all()
    await storm.all_sent()
    storm.proxy.meddling = hold_back_even
    await new_rows(storm)
    await storm.run_until(is_ahead.is_set, "one stream ahead of the other")
    storm.site.lose_state_folder()
    storm.proxy.meddling = None
    before = len(read_from(storm))
    await storm.run_all()
    if len(set(read_from(storm)[before:])) > 1:
        storm.happened("streams were read from two positions")
    for request in swallowed[:20]:
        await storm.proxy.pass_on(request)
    await storm.run_all()


async def range_refused(storm: Storm[Any]) -> None:
    """A range of one stream is refused, and purged while a later run is under way."""

    async def refuse(request: Request) -> bytes | None:
        if request.kind == "complete" and request.body["stream"] in ("even", "accounts"):
            return REFUSED
        return None

    storm.proxy.meddling = refuse
    storm.sources.change()
    await storm.run_until(storm.dead_letters, "a dead letter")
    storm.proxy.meddling = None
    storm.sources.change()
    async with storm.held_run(storm.sources.calls[0]):
        for upload_id in storm.dead_letters():
            await storm.site.outbox("purge", upload_id, "--yes")
            storm.happened("a refused range was purged in a later run")
    await storm.run_all()


async def late_while_read(storm: Storm[Accounts]) -> None:
    """Rows come late, and others change, in the middle of the run that reads them."""
    storm.sources.change()
    async with storm.held_run(storm.sources.calls[0]):
        storm.sources.change()
    storm.happened("rows came late while read")
    await storm.run_all()


async def back_within_a_tick(storm: Storm[Accounts]) -> None:
    """A row changes and changes back while its watermark stays."""
    for balance in (-1, -2, -1):
        storm.sources.set_balance(balance)
        await storm.run_all()
    await storm.all_sent()
    shown = await asyncio.to_thread(lambda: storm.sources.shown(storm.verdict.records()))
    assert shown == storm.sources.rows()  # what changes next would have it read again
    storm.happened("a row went back within a tick")


async def full_of_keys(storm: Storm[Accounts]) -> None:
    """`full: true` in mode merge."""
    await storm.site.run_to_end(storm.sources.calls[0], full=True)
    if storm.proxy.answers["complete merge full 201"]:
        storm.happened("full: true, merge")


def read_from(storm: Storm[Lines]) -> list[int]:
    """Where each read began, until now."""
    path = storm.site.state / "read_from"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


RANGE_SCENES: dict[str, Scene] = {
    scene.__name__: scene
    for scene in (
        killed_behind_a_checkpoint,
        streams_apart,
        range_refused,
        late_while_read,
        back_within_a_tick,
        full_of_keys,
    )
}
OF_STREAMS = ("new_rows", "range_refused", "killed_behind_a_checkpoint", "streams_apart")
OF_KEYS = ("new_rows", "range_refused", "late_while_read", "back_within_a_tick", "full_of_keys")
RANGE_EVENTS: dict[str, set[str]] = {
    "killed_behind_a_checkpoint": {"a run went on behind a checkpoint"},
    "streams_apart": {"streams were read from two positions"},
    "range_refused": {"a refused range was purged in a later run"},
    "late_while_read": {"rows came late while read"},
    "back_within_a_tick": {"a row went back within a tick"},
    "full_of_keys": {"full: true, merge"},
}
"""What each of them must have seen to happen, as `EVENTS` of the other scenes."""
