"""What happens to a site in a storm: each scene makes one thing happen, and sees that it did.

A death can come at any moment of a scene; what was killed is started again meanwhile.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalogzero.cloud.outbox.stored import EPOCH

from tests.chaos.proxy import Request
from tests.chaos.site import until
from tests.chaos.sources import ORDERS, Sources

if TYPE_CHECKING:
    from tests.chaos.storm import Storm

Scene = Callable[["Storm[Any]"], Awaitable[None]]
REFUSED = b"HTTP/1.1 422 Refused\r\nContent-Length: 0\r\n\r\n"
FAULTY = b"HTTP/1.1 500 Fault\r\nContent-Length: 0\r\n\r\n"


async def new_rows(storm: Storm[Any]) -> None:
    """The client has more, or another content."""
    storm.sources.change()
    await storm.run_all()


async def same_content_again(storm: Storm[Sources]) -> None:
    """A file is exported again, as it was."""
    storm.sources.touch(storm.sources.some())
    await storm.run_all()
    storm.happened("same content exported again")


async def back_and_forth(storm: Storm[Sources]) -> None:
    """Content A, then B, then A again."""
    name = storm.sources.some()
    for change in (storm.sources.renew, storm.sources.renew, storm.sources.take_back):
        change(name)
        await storm.run_all()
    storm.happened("content A, B, A")


async def growth_while_read(storm: Storm[Sources]) -> None:
    """A file and the table grow in the middle of the run that reads them."""
    name = storm.sources.some()
    storm.sources.renew(name)
    (storm.site.state / "grow").write_text(str(storm.sources.path(name)))
    await storm.run_all()
    if "grown" in storm.sources.path(name).read_text():
        storm.happened("file grew while read")
    storm.sources.add_orders()
    async with storm.held_run(ORDERS):
        storm.sources.add_orders()
    storm.happened("table grew while read")
    await storm.run_all()


async def clock_jump(storm: Storm[Any]) -> None:
    """The client's clock jumps, forward or back."""
    offset_s = storm.dice.randint(-7_200, 7_200)
    (storm.site.state / "clock_offset").write_text(str(offset_s))
    storm.happened("clock jumped")
    await new_rows(storm)


async def full_again(storm: Storm[Sources]) -> None:
    """`full: true` in both modes."""
    before = storm.proxy.answers.copy()
    for mode, source in (("replace", str(storm.sources.exports)), ("append", ORDERS)):
        answer = f"complete {mode} full 201"
        for _ in range(5):
            await storm.site.run_to_end(source, full=True)
            if storm.proxy.answers[answer] > before[answer]:
                storm.happened(f"full: true, {mode}")
                break


async def state_folder_lost(storm: Storm[Any]) -> None:
    """The folder goes while sealed uploads are under way; what they sent arrives later."""
    under_way: list[Request] = []

    async def swallow(request: Request) -> bytes | None:
        if request.kind != "complete":
            return None
        under_way.append(request)
        return b""

    storm.proxy.meddling = swallow
    await new_rows(storm)
    await storm.run_until(lambda: under_way, "an upload under way")
    storm.site.lose_state_folder()
    storm.proxy.meddling = None
    await storm.run_all()
    for request in under_way[:20]:
        await storm.proxy.pass_on(request)
    storm.happened("state folder lost")
    await storm.run_all()


async def folder_lost_at_rest(storm: Storm[Any]) -> None:
    """The folder goes while nothing is under way, and the sources stay as they are."""
    await storm.run_all()
    storm.site.lose_state_folder()
    await storm.run_all()
    storm.happened("state folder lost at rest")


async def late_older_version(storm: Storm[Sources]) -> None:
    """A newer version of a file is completed while the older one still tries."""
    name = storm.sources.some()
    older: list[Request] = []
    newer_is_there = asyncio.Event()

    async def overtake(request: Request) -> bytes | None:
        if request.kind != "complete" or request.body["source"] != f"exports/{name}":
            return None
        if newer_is_there.is_set():
            return None
        first = older[0].body["source_seq"] if older else request.body["source_seq"]
        if request.body["source_seq"] <= first:
            older.append(request)
            return FAULTY
        answer = await storm.proxy.pass_on(request)
        if b" 201 " in answer[:20] or b" 200 " in answer[:20]:
            newer_is_there.set()
        return answer

    storm.proxy.meddling = overtake
    storm.sources.renew(name)
    await storm.run_until(lambda: older, "the older version under way")
    storm.sources.renew(name)
    await storm.run_until(newer_is_there.is_set, "the newer version completed")
    answer = await storm.proxy.pass_on(older[0])
    if b'"superseded"' in answer:
        storm.happened("late older version")
    storm.proxy.meddling = None
    await storm.run_all()


async def long_outage(storm: Storm[Any]) -> None:
    """The backend is away for longer than it keeps the chunks of uploads not completed."""
    site, proxy = storm.site, storm.proxy

    async def no_complete(request: Request) -> bytes | None:
        return FAULTY if request.kind == "complete" else None

    async def away(_: Request) -> bytes | None:
        return b""

    proxy.meddling = no_complete
    await new_rows(storm)
    await until(storm.verdict.open_chunks, "chunks of an upload that is not completed")
    proxy.meddling = away
    site.restart_backend(open_upload_ttl_s=0.001, housekeeping_interval_s=0.05)
    await until(lambda: not storm.verdict.open_uploads(), "uploads that go after a while")
    storm.happened("outage longer than chunks are kept")
    site.restart_backend()
    proxy.meddling = None
    site.kill("worker")  # a new one does not wait as long as one that saw the whole outage
    await storm.run_all()
    await storm.all_sent()


async def refused_and_purged(storm: Storm[Sources]) -> None:
    """Dead letters of both modes are purged while a later run of their sources is under way."""
    name = storm.sources.some()
    refused = {f"exports/{name}", ORDERS}

    async def refuse(request: Request) -> bytes | None:
        if request.kind == "complete" and request.body["source"] in refused:
            return REFUSED
        return None

    storm.proxy.meddling = refuse
    storm.sources.renew(name)
    storm.sources.add_orders()
    await storm.run_until(lambda: len(storm.dead_letters()) >= len(refused), "dead letters")
    storm.proxy.meddling = None
    storm.sources.renew(name)
    storm.sources.add_orders()
    for source in (str(storm.sources.exports), ORDERS):
        async with storm.held_run(source):
            for upload_id, its_source in storm.dead_letters().items():
                if (its_source == ORDERS) != (source == ORDERS):
                    continue
                try:
                    await storm.site.outbox("purge", upload_id, "--yes")
                    storm.happened("dead letter purged in a later run")
                except AssertionError:
                    assert upload_id not in storm.dead_letters()  # overtaken meanwhile
    await storm.run_all()


async def full_disks(storm: Storm[Sources]) -> None:
    """The worker's disk is full, then the backend's."""
    site = storm.site
    for _ in range(5):
        if site.no_room("worker"):
            storm.sources.renew(storm.sources.some())
            result = await site.run(str(storm.sources.exports))
            site.room_again("worker")
            if "disk" in result.get("error", ""):
                storm.happened("full disk at the client")
                break
    if storm.verdict.is_sqlite and site.no_room("backend"):
        before = storm.refusals()
        storm.sources.renew(storm.sources.some())
        await site.run(str(storm.sources.exports))
        if storm.refusals() > before:
            storm.happened("full disk at the backend")
        site.room_again("backend")
    await storm.run_all()


async def old_host_back(storm: Storm[Any]) -> None:
    """Another machine with an empty folder takes over; then the old one comes back."""
    await storm.run_all()
    old = storm.site.copy_state_folder()
    storm.site.lose_state_folder()
    await new_rows(storm)
    await back_again(storm, old, "old host was refused")


async def snapshot_put_back(storm: Storm[Any]) -> None:
    """The state folder is put back from a snapshot."""
    await storm.run_all()
    snapshot = storm.site.copy_state_folder()
    await new_rows(storm)
    await back_again(storm, snapshot, "snapshot was refused")


async def cloned_machine(storm: Storm[Any]) -> None:
    """A clone goes on as if it were the machine, and then so does the machine."""
    await storm.run_all()
    clone = storm.site.copy_state_folder()
    machine = storm.site.put_state_folder(clone)
    await new_rows(storm)
    await back_again(storm, machine, "cloned machine was refused")


async def back_again(storm: Storm[Any], folder: Path, event: str) -> None:
    """An older folder comes back: it sends nothing until it is adopted.

    One that was copied amid a start that was not answered may be taken for the one that asked.
    """
    await storm.all_sent()
    storm.sources.change()
    storm.site.put_state_folder(folder)
    before = storm.fact(EPOCH)
    await until(
        lambda: storm.is_moved() or storm.fact(EPOCH) not in (None, before), "an answered start"
    )
    if storm.is_moved():
        await storm.site.installation("adopt")
        storm.happened(event)
        await storm.run_until(lambda: storm.fact(EPOCH) is not None, "an adopted start")
    await storm.run_all()


async def backend_restored_twice(storm: Storm[Any]) -> None:
    """The backend is put back to an earlier day, twice, in the middle of runs."""
    await storm.run_all()
    await storm.all_sent()
    backup = await asyncio.to_thread(storm.site.back_up_backend)
    for _ in range(2):
        await new_rows(storm)
        storm.sources.change()
        runs = asyncio.create_task(storm.run_all())
        await storm.loaded(runs)
        await asyncio.to_thread(storm.site.restore_backend, backup)
        await runs
    await storm.run_all()
    storm.happened("backend restored twice")


async def start_unanswered(storm: Storm[Any]) -> None:
    """The answer to a start is lost, and who asked is killed before it asks again."""
    lost: list[Request] = []

    async def swallow(request: Request) -> bytes | None:
        if request.kind != "register" or lost:
            return None
        answer = await storm.proxy.pass_on(request)
        if b" 20" not in answer[:13]:
            return answer
        lost.append(request)
        storm.site.kill("worker")
        return b""

    storm.proxy.meddling = swallow
    storm.site.kill("worker")
    await new_rows(storm)
    await until(lambda: lost, "a start whose answer was lost")
    storm.proxy.meddling = None
    await new_rows(storm)
    if not storm.is_moved():
        storm.happened("answer to a start lost")


SCENES: dict[str, Scene] = {
    scene.__name__: scene
    for scene in (
        new_rows,
        same_content_again,
        back_and_forth,
        growth_while_read,
        clock_jump,
        full_again,
        state_folder_lost,
        folder_lost_at_rest,
        late_older_version,
        long_outage,
        refused_and_purged,
        full_disks,
        old_host_back,
        snapshot_put_back,
        cloned_machine,
        backend_restored_twice,
        start_unanswered,
    )
}

EVENTS: dict[str, set[str]] = {
    "same_content_again": {"same content exported again"},
    "back_and_forth": {"content A, B, A"},
    "growth_while_read": {"file grew while read", "table grew while read"},
    "clock_jump": {"clock jumped"},
    "full_again": {"full: true, replace", "full: true, append"},
    "state_folder_lost": {"state folder lost"},
    "folder_lost_at_rest": {"state folder lost at rest"},
    "late_older_version": {"late older version"},
    "long_outage": {"outage longer than chunks are kept"},
    "refused_and_purged": {"dead letter purged in a later run"},
    "full_disks": {"full disk at the client"},
    "old_host_back": {"old host was refused"},
    "snapshot_put_back": {"snapshot was refused"},
    "cloned_machine": {"cloned machine was refused"},
    "backend_restored_twice": {"backend restored twice"},
    "start_unanswered": {"answer to a start lost"},
}
"""What each scene must have seen to happen, once at least in a storm."""

POINTS: dict[str, str] = {
    "outbox begin": "new_rows",
    "outbox add": "new_rows",
    "backend put_chunk": "new_rows",
    "outbox acknowledge": "new_rows",
    "outbox seal": "new_rows",
    "outbox seal_whole": "new_rows",
    "outbox completing": "new_rows",
    "backend complete": "new_rows",
    "outbox done": "new_rows",
    "backend clear_hidden": "new_rows",
    "outbox abandon": "folder_lost_at_rest",
    "outbox remember": "folder_lost_at_rest",
    "backend register": "folder_lost_at_rest",
    "outbox start": "folder_lost_at_rest",
    "outbox started": "folder_lost_at_rest",
    "outbox restamp": "same_content_again",
    "outbox superseded": "late_older_version",
    "backend collect_unfinished": "long_outage",
    "outbox missing": "long_outage",
    "outbox die": "refused_and_purged",
}
"""Each commit point of outbox and backend, in the order of a scene that comes by it."""


def dead_of(listing: str) -> list[str]:
    """The dead letters in what `catalogzero outbox list --json` says."""
    return [u["upload_id"] for u in json.loads(listing)["uploads"] if u["state"] == "dead"]
