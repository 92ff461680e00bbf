"""Partitioned runs: the items listed once, a run for each over the instances, and one sum."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from catalogzero import Handler, PermanentError, job
from catalogzero.scheduler.history import History, Purged
from catalogzero.scheduler.models import Execution
from catalogzero.scheduler.partitions import HELD_PARTS, MAX_ITEMS, read_items
from catalogzero.scheduler.server import SchedulerServer
from catalogzero.scheduler.store import Store
from catalogzero.testing import serving

from tests.core.nats_servers import need_nats
from tests.core.support import finished
from tests.scheduler import processes
from tests.scheduler.processes import SchedulerProcess, handler_process
from tests.scheduler.simulation import SetClock, end, make_schedule
from tests.scheduler.toys import ToySettings, executions, until

FAR = {"type": "cron", "year": 2090}
LEASE_S = 10.0
MakeStore = Callable[..., Store]


class Shelf(Handler):
    """Has items, and notes which of them it worked on."""

    settings_model = ToySettings

    def __init__(self, names: list[str], **config: Any) -> None:
        super().__init__(**config)
        self.names, self.failing = names, set[str]()
        self.lists, self.worked = 0, list[str]()
        self.going, self.listing = asyncio.Event(), asyncio.Event()
        self.going.set()
        self.listing.set()

    @job(retry_safe=True)
    async def list_items(self, data_source: str) -> dict[str, Any]:
        """Every item of the shelf, once `listing` is set."""
        self.lists += 1
        await self.listing.wait()
        return {"items": [{"name": name} for name in self.names], "left_out": 2}

    @job(retry_safe=True)
    async def work(
        self, data_source: str, item: dict[str, str], note: str | None = None
    ) -> dict[str, Any]:
        """One item, once `going` is set."""
        name = item["name"]
        self.worked.append(name)
        await self.going.wait()
        if name in self.failing:
            raise PermanentError(f"{name} is torn")
        came_to = {"records": 3, "uploads": 1, "bytes_sent": 10, "files": [name]}
        return {"status": "uploaded" if name > "b" else "unchanged", **came_to}

    async def plain(self) -> dict[str, Any]:
        """One method beside them."""
        return {}


class Library:
    """Shelves that are instances of one handler, and its schedules."""

    def __init__(self, scheduler: SchedulerServer, api: httpx.AsyncClient) -> None:
        self.name, self.api, self.scheduler = f"shelf-{uuid.uuid4().hex[:8]}", api, scheduler
        self.names = [f"{letter}.csv" for letter in "abcdefghij"]
        self.shelves: list[Shelf] = []

    @asynccontextmanager
    async def shelf(self, instance_id: str | None = None, **runtime: Any) -> AsyncIterator[Shelf]:
        """One of them, once the scheduler finds it there."""
        one = Shelf(self.names)
        self.shelves.append(one)
        given = {"handler_id": self.name, "scheduler": self.scheduler.zmq_address, **runtime}
        async with serving(one, instance_id=instance_id, **given) as served:
            await served.service.registered()
            callee = (self.name, instance_id or "")

            async def is_there() -> bool:
                link = self.scheduler.runner.links.of(callee)
                return link is not None and link.checked_us is not None and link.away is None

            await until(is_there)
            yield one

    def body(self, **more: Any) -> dict[str, Any]:
        """The body of a partitioned schedule."""
        call = {"handler_id": self.name, "job_method": "work", "partition": True}
        params = {"data_source": "/shelf", "note": "x"}
        return {**call, "job_params": params, "trigger": FAR, "job_id": "nightly", **more}

    async def begin(self, **more: Any) -> str:
        """Add the schedule, and run it by hand; the run's id."""
        added = await self.api.post("/api/schedule", json=self.body(**more))
        assert added.status_code == 201, added.text
        return await self.begin_again()

    async def begin_again(self) -> str:
        """Run it by hand; the run's id."""
        answer = await self.api.post("/api/schedules/nightly/run")
        assert answer.status_code == 202, answer.text
        return str(answer.json()["execution_id"])

    async def record(self, execution_id: str) -> dict[str, Any]:
        """A run's record."""
        record: dict[str, Any] = (await self.api.get(f"/api/executions/{execution_id}")).json()
        return record

    async def over(self, execution_id: str, timeout_s: float = 20.0) -> dict[str, Any]:
        """A run's record, once it has ended."""

        async def look() -> dict[str, Any] | None:
            record = await self.record(execution_id)
            return record if record["completed_at"] else None

        return await until(look, timeout_s)

    async def children(self, execution_id: str, **more: Any) -> list[dict[str, Any]]:
        """The runs of a run's items, in their order."""
        return [*reversed(await executions(self.api, parent=execution_id, limit=1_000, **more))]

    def worked(self) -> Counter[str]:
        """How often each item was worked on."""
        return Counter(name for one in self.shelves for name in one.worked)


@pytest.fixture
def library(scheduler: SchedulerServer, api: httpx.AsyncClient) -> Library:
    return Library(scheduler, api)


# --- over instances


@pytest.mark.parametrize("carrier", ["zeromq", "nats"])
async def test_each_item_runs_once_over_three_instances_and_the_run_sums_up(
    library: Library, carrier: str
) -> None:
    transport = "zeromq" if carrier == "zeromq" else need_nats()
    async with AsyncExitStack() as undo:
        for name in "abc":
            runtime = {"transport": transport, "max_concurrent_jobs": 2}
            await undo.enter_async_context(library.shelf(name, **runtime))
        for one in library.shelves:
            one.going.clear()
        execution_id = await library.begin()

        async def at_work() -> bool:
            return len(library.worked()) == 6

        await until(at_work)
        going = await library.record(execution_id)
        for one in library.shelves:
            one.going.set()
        record = await library.over(execution_id)
        children = await library.children(execution_id)
        listed = await executions(library.api)
        child = await library.record(children[0]["execution_id"])
        view = await library.api.get(f"/api/executions/{children[0]['execution_id']}/handler")

    assert sum(one.lists for one in library.shelves) == 1
    assert library.worked() == dict.fromkeys(library.names, 1)
    assert min(len(one.worked) for one in library.shelves) >= 2
    assert (going["status"], going["parts"]) == (
        "running",
        {"items": 10, "ended": 0, "failed": 0},
    )
    assert going["outcome"]["words"] == "running: 0 of 10 items"
    assert record["status"] == "success"
    assert record["result"] == {
        **{"status": "uploaded", "items": 10, "ended": {"success": 10}, "success": True},
        **{"records": 30, "uploads": 10, "bytes_sent": 100, "left_out": 2},
    }
    assert record["outcome"]["words"] == "uploaded 30 rows, 2 files left out"
    assert record["parts"] == {"items": 10, "ended": 10, "failed": 0}
    assert [one["execution_id"] for one in listed] == [execution_id]
    assert [one["item"]["name"] for one in children] == library.names
    assert {one["parent_id"] for one in children} == {execution_id}
    assert {one["instance_id"] for one in children} == {"a", "b", "c"}
    assert {one["job_id"] for one in children} == {"nightly"}
    assert (child["params"], child["parts"]) == ({"data_source": "/shelf", "note": "x"}, None)
    assert len(child["neighbours"]) == 10
    assert view.json()["known"]


async def test_a_run_goes_on_without_a_place_or_load_at_an_instance(library: Library) -> None:
    async with library.shelf("a", max_concurrent_jobs=1) as shelf:
        shelf.going.clear()
        execution_id = await library.begin()

        async def at_work() -> bool:
            return len(shelf.worked) == 1

        await until(at_work)
        handlers = (await library.api.get("/api/handlers")).json()["handlers"]
        (loads,) = [one["instances"] for one in handlers if one["id"] == library.name]
        shelf.going.set()
        await library.over(execution_id)
        stats = (await library.api.get("/api/executions/stats")).json()

    assert loads[0]["load"] <= len(library.names)
    assert stats["by_status"] == {"success": 11}


async def test_what_fails_is_named_and_the_others_are_kept(library: Library) -> None:
    async with library.shelf() as shelf:
        shelf.failing = {"c.csv", "e.csv"}
        execution_id = await library.begin()
        record = await library.over(execution_id)
        failed = await library.children(execution_id, status="error")
        errors = (await library.api.get("/api/executions/errors")).json()["errors"]
        shown = await executions(library.api, show="failed")
        overview = (await library.api.get("/api/overview")).json()

    first = "c.csv: Handler returned error: c.csv is torn"
    assert (record["status"], record["error"]) == (
        "error",
        f"2 of 10 items failed; the first: {first}",
    )
    assert record["parts"] == {"items": 10, "ended": 10, "failed": 2}
    assert [one["item"]["name"] for one in failed] == ["c.csv", "e.csv"]
    assert [one["execution_id"] for one in errors] == [execution_id]
    assert [one["execution_id"] for one in shown] == [execution_id]
    assert (overview["outcomes"]["runs"], overview["outcomes"]["states"]) == (1, {"failed": 1})
    assert len(overview["schedules"][0]["recent"]) == 1


async def test_a_run_without_items_ends_well(library: Library) -> None:
    library.names = []
    async with library.shelf():
        record = await library.over(await library.begin())

    assert record["result"] == {"items": 0, "ended": {}, "left_out": 2, "success": True}
    assert record["parts"] == {"items": 0, "ended": 0, "failed": 0}


@pytest.mark.timeout(240)
async def test_five_thousand_items_are_listed_and_run(library: Library) -> None:
    library.names = [f"exports/2026/orders-{number:05}.csv" for number in range(5_000)]
    async with library.shelf("a", max_concurrent_jobs=8), library.shelf("b"):
        execution_id = await library.begin()
        record = await library.over(execution_id, 200)
        page = (await library.api.get("/api/executions", params={"parent": execution_id})).json()

    assert (record["status"], record["result"]["records"]) == ("success", 15_000)
    assert library.worked() == dict.fromkeys(library.names, 1)
    assert (page["count"], page["cursor"] is not None) == (100, True)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ({"items": 3}, "returned no"),
        (["a"], "returned no"),
        ({"items": ["a"]}, "without a name"),
        ({"items": [{"name": 1}]}, "without a name"),
        ({"items": [{"name": "a"}, {"name": "a"}]}, "twice: a"),
        ({"items": [{"name": "x" * 1_000}]}, "more than 1,000 bytes"),
        ({"items": [{"name": str(n)} for n in range(MAX_ITEMS + 1)]}, "at most 10,000: divide"),
    ],
)
def test_a_list_that_is_none_is_refused(result: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_items(result)


async def test_a_list_that_is_refused_ends_the_run(library: Library) -> None:
    library.names = ["a", "a"]
    async with library.shelf():
        record = await library.over(await library.begin())
        too_long = ["x" * 100 + str(number) for number in range(11_000)]
        library.shelves[0].names = too_long
        other = await library.over(await library.begin_again())

    assert (record["status"], record["error"]) == (
        "error",
        "the handler's list_items names an item twice: a",
    )
    assert record["parts"] == {"items": None, "ended": 0, "failed": 0}
    assert "the reply has" in other["error"]


async def test_a_handler_without_a_list_is_refused_a_partition(library: Library) -> None:
    other = f"lone-{uuid.uuid4().hex[:8]}"
    address = library.scheduler.zmq_address
    async with serving(Lone(), handler_id=other, scheduler=address) as served:
        await served.service.registered()
        body = library.body(handler_id=other)
        refused = await library.api.post("/api/schedule", json=body)

    assert refused.status_code == 400
    assert "has no method 'list_items': leave `partition` out" in refused.text


class Lone(Handler):
    """Lists nothing."""

    settings_model = ToySettings

    async def work(self, data_source: str, note: str) -> dict[str, Any]:
        """Nothing."""
        return {}


# --- its end before its time


async def test_a_cancelled_run_ends_what_is_at_work_and_begins_no_more(library: Library) -> None:
    async with library.shelf(max_concurrent_jobs=2, max_queued_jobs=0) as shelf:
        shelf.going.clear()
        execution_id = await library.begin()

        async def at_work() -> bool:
            return len(shelf.worked) == 2

        await until(at_work)
        url = ("--url", str(library.api.base_url))
        said = await asyncio.to_thread(finished, "schedule", "cancel", execution_id, *url)
        record = await library.over(execution_id)
        children = await library.children(execution_id)
        again = await library.api.post(f"/api/executions/{execution_id}/cancel")

    assert said.returncode == 0
    assert (record["status"], record["error"]) == (
        "error",
        "cancelled by hand: 0 of 10 items had ended well",
    )
    assert Counter(one["status"] for one in children) == {"error": 2, "skipped": 8}
    assert {one["error"] for one in children} == {"cancelled by hand"}
    assert len(shelf.worked) == 2
    assert again.status_code == 409


async def test_a_run_is_cancelled_while_it_is_listed(library: Library) -> None:
    async with library.shelf() as shelf:
        shelf.listing.clear()
        execution_id = await library.begin()

        async def listing() -> bool:
            return shelf.lists == 1

        await until(listing)
        await library.api.post(f"/api/executions/{execution_id}/cancel")
        record = await library.over(execution_id)

    assert (record["status"], record["error"]) == ("error", "cancelled by hand")
    assert shelf.worked == []


async def test_timeout_s_is_of_the_whole(library: Library) -> None:
    async with library.shelf(max_concurrent_jobs=1, max_queued_jobs=0) as shelf:
        shelf.going.clear()
        record = await library.over(await library.begin(timeout_s=1.0))
        children = await library.children(record["execution_id"])

    assert record["error"] == (
        "cancelled: it took longer than timeout_s (1 s): 0 of 10 items had ended well"
    )
    counts = Counter(one["status"] for one in children)
    assert (counts.total(), counts["error"] + counts["skipped"]) == (10, 10)
    assert counts["error"] <= 2
    assert len(shelf.worked) == counts["error"]


@pytest.mark.parametrize("overlap", ["skip", "queue"])
async def test_a_run_overlaps_until_its_last_item_ended(library: Library, overlap: str) -> None:
    trigger = {"type": "interval", "seconds": 1}
    async with library.shelf() as shelf:
        shelf.going.clear()
        body = library.body(trigger=trigger, overlap=overlap, max_runs=2)
        assert (await library.api.post("/api/schedule", json=body)).status_code == 201
        beside = "skipped" if overlap == "skip" else "queued"

        async def besides() -> list[dict[str, Any]]:
            return await executions(library.api, status=beside)

        await until(besides)
        (running,) = await executions(library.api, status="running")
        shelf.going.set()
        first = await library.over(running["execution_id"])

        async def both() -> bool:
            return len(await executions(library.api, status="success")) == 2

        await until(both)

    assert first["parts"]["ended"] == 10
    assert library.worked() == dict.fromkeys(library.names, 2)


# --- what the store keeps


def listed(store: Store, names: str) -> Execution:
    """A run that was listed, divided into items of these names."""
    (parent,) = store.claim("A", LEASE_S).started
    parent.result = {"items": []}
    assert store.divide(parent, [{"name": name} for name in names])
    return parent


def test_two_schedulers_write_the_children_of_a_run_once(
    make_store: MakeStore,
) -> None:
    clock = SetClock()
    one, other = make_store(clock=clock), make_store(clock=clock)
    one.add_schedule(make_schedule(job_id="j", partition=True))
    (parent,) = one.claim("A", LEASE_S).started
    clock.forward(LEASE_S + 1)
    (taken,) = other.renew("B", LEASE_S).taken
    for each in (parent, taken):
        each.result = {"items": []}
    items = [{"name": name} for name in "ab"]
    late, first, again = (
        one.divide(parent, items),
        other.divide(taken, items),
        other.divide(taken, items),
    )
    records, _ = History(one).newest({"parent": parent.execution_id}, 10)

    assert (parent.partition, taken.partition) == (True, True)
    assert (late, first, again) == (False, True, False)
    assert [record["item"] for record in records] == [{"name": "b"}, {"name": "a"}]


def test_children_are_shared_by_schedulers_and_the_end_is_found_by_any(
    make_store: MakeStore,
) -> None:
    clock = SetClock()
    one, other = make_store(clock=clock), make_store(clock=clock)
    one.add_schedule(make_schedule({"type": "interval", "hours": 1}, job_id="j", partition=True))
    parent = listed(one, "abc")
    first = one.claim("A", LEASE_S, parts={"h": HELD_PARTS - 2}).started
    second = other.claim("B", LEASE_S).started
    for store, children in ((one, first), (other, second)):
        for child in children:
            assert end(store, child)
    clock.forward(1_000)
    taken = one.renew("A", LEASE_S).taken
    found = other.claim("C", LEASE_S)
    after = one.claim("A", LEASE_S)

    names = [[child.item for child in children] for children in (first, second)]
    assert names == [[{"name": "a"}, {"name": "b"}], [{"name": "c"}]]
    assert taken == []
    assert [each.execution_id for each in found.ended] == [parent.execution_id]
    assert (found.ended[0].status, found.ended[0].result["items"]) == ("success", 3)
    assert (after.ended, after.queued) == ([], False)


def test_children_are_forgotten_with_their_run_a_few_at_a_time(make_store: MakeStore) -> None:
    clock = SetClock()
    store = make_store(clock=clock)
    store.add_schedule(make_schedule({"type": "interval", "hours": 1}, job_id="j", partition=True))
    names = [chr(0x4E00 + number) for number in range(2_100)]
    listed(store, "".join(names))
    while children := store.claim("A", LEASE_S).started:
        for child in children:
            child.status = "success"
        assert all(store.save(children))
    history = History(store)
    clock.forward(2_000)
    kept = history.purge(retention_days=1, max_executions=100_000)
    clock.forward(86_400)
    gone = [history.purge(retention_days=1, max_executions=100_000).too_old for _ in range(4)]
    stats = history.stats()

    assert kept == Purged(0, 0)
    assert gone == [2_000, 100, 1, 0]
    assert (stats["total_executions"], stats["lifetime_executions"]) == (0, 2_101)


# --- schedulers that are killed


@pytest.mark.timeout(120)
@pytest.mark.parametrize("held", ["hold", "part"])
def test_a_scheduler_is_killed_before_the_list_is_written_or_after(
    database: str, tmp_path: Path, held: str
) -> None:
    with ExitStack() as undo:
        first = undo.enter_context(SchedulerProcess(database, "--lease-s", "2"))
        undo.enter_context(handler_process(first.zmq_address, tmp_path))
        first.wait_for_handler("chore")
        call = {"handler_id": "chore", "job_method": "part", "job_params": {"data_source": held}}
        body = {**call, "partition": True, "wait": False}
        answer = first.api.post("/api/run_now", json=body)
        assert answer.status_code == 202, answer.text
        execution_id = answer.json()["execution_id"]
        notes = tmp_path / "notes"
        processes.until(lambda: notes.exists() and notes.read_text())
        first.kill()
        notes.with_suffix(".go").touch()
        second = undo.enter_context(SchedulerProcess(database, "--lease-s", "2"))
        path = f"/api/executions/{execution_id}"
        processes.until(lambda: second.api.get(path).json()["completed_at"], 60)
        record = second.api.get(path).json()
        children = processes.executions(second.api, parent=execution_id)
        began = Counter(line.split()[2] for line in notes.read_text().splitlines())

    assert (record["status"], record["result"]["items"]) == ("success", 6)
    assert sorted(one["item"]["name"] for one in children) == [*"abcdef"]
    assert {one["status"] for one in children} == {"success"}
    of_each = {name: count for name, count in began.items() if name != "list"}
    assert of_each == dict.fromkeys("abcdef", 2)


@pytest.mark.timeout(120)
def test_two_schedulers_share_the_items_and_one_is_killed(postgresql: str, tmp_path: Path) -> None:
    with ExitStack() as undo:
        first = undo.enter_context(SchedulerProcess(postgresql, "--lease-s", "2"))
        second = undo.enter_context(SchedulerProcess(postgresql, "--lease-s", "2"))
        undo.enter_context(handler_process(first.zmq_address, tmp_path))
        for one in (first, second):
            one.wait_for_handler("chore")
        call = {"handler_id": "chore", "job_method": "part", "job_params": {"data_source": "part"}}
        answer = first.api.post("/api/run_now", json={**call, "partition": True, "wait": False})
        execution_id = answer.json()["execution_id"]
        notes = tmp_path / "notes"
        processes.until(lambda: notes.exists() and notes.read_text())
        first.kill()
        notes.with_suffix(".go").touch()
        path = f"/api/executions/{execution_id}"
        processes.until(lambda: second.api.get(path).json()["completed_at"], 60)
        record = second.api.get(path).json()
        noted = Counter(line.split()[2] for line in notes.read_text().splitlines())

    assert (record["status"], record["result"]["items"]) == ("success", 6)
    assert noted == dict.fromkeys("abcdef", 2)
