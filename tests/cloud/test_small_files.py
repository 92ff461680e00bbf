"""Many small files: what they cost together, and that each still stands for itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest
from aiohttp import web
from catalogzero import Batch, CloudProcessor, Params
from catalogzero.clock import SystemClock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.outbox import (
    Opening,
    Outbox,
    Sealing,
    UploadEndedError,
    WholeUpload,
)

from tests.cloud.processors import Plain
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until
from tests.cloud.stores import file_of

FILES = 200


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with closing(Outbox(tmp_path, SystemClock())) as made:
        yield made


def whole(name: str, base: int = 0) -> list[WholeUpload]:
    """An item of one upload."""
    opening = Opening(name, f"key {name}", name, "replace", full=False, params={}, base=base)
    chunk = Chunk(0, 1, b"{}\n", "identity", "application/x-ndjson")
    sealing = Sealing(upload_id=name, upload_key=f"content {name}")
    return [WholeUpload(opening=opening, chunks=[chunk], sealing=sealing)]


def commits_of(outbox: Outbox) -> list[str]:
    """Grows by each commit from now on."""
    seen: list[str] = []
    file_of(outbox).set_trace_callback(
        lambda statement: seen.append(statement) if statement == "COMMIT" else None
    )
    return seen


async def test_a_small_file_costs_two_requests_and_a_share_of_three_commits(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    requests: list[str] = []

    async def note(request: web.Request) -> None:
        requests.append(request.path)

    async with Site(backend.url, tmp_path, upload_form="chunked") as site:
        await site.run(site.write("first.csv", "n\n0\n"))
        backend.gate = note
        for number in range(FILES):
            site.write(f"small/{number}.csv", f"n\n{number}\n")
        commits = commits_of(site.outbox)
        result = await site.run(site.data / "small")

    assert (result["status"], result["uploads"]) == ("uploaded", FILES)
    assert len([path for path in requests if "/uploads/" in path]) == 2 * FILES
    # Its seal, that `complete` is posted, and its answer: at most one each, before any is shared.
    assert len(commits) < 3 * FILES


def test_calls_that_come_together_share_a_commit_and_a_fault_meets_its_own(outbox: Outbox) -> None:
    names = [f"u{number}" for number in range(8)]
    outbox.seal_whole([whole(name) for name in names])
    commits = commits_of(outbox)
    with ThreadPoolExecutor(10) as threads:
        with outbox.store.lock:
            ends = [threads.submit(outbox.acknowledge, name, 0, 3) for name in names]
            while len(outbox.commits._waiting) < len(names):
                threading.Event().wait(0.001)
        for end in ends:
            end.result()
        assert len(commits) == 1

        with outbox.store.lock:
            done = [threads.submit(outbox.done, name, "job") for name in names]
            unknown = threads.submit(outbox.seal, Sealing(upload_id="unknown", upload_key="key"))
            while len(outbox.commits._waiting) < len(names) + 1:
                threading.Event().wait(0.001)
        assert all(end.result() for end in done)
        with pytest.raises(UploadEndedError):
            unknown.result()

    assert {upload.state for upload in outbox.store.uploads()} == {"done"}


def test_items_are_sealed_in_one_commit_but_for_those_at_fault(outbox: Outbox) -> None:
    commits = commits_of(outbox)
    assert outbox.seal_whole([whole("a"), whole("b")]) == [None, None]
    assert len(commits) == 1

    first, at_fault, last = outbox.seal_whole([whole("c"), whole("d", base=7), whole("e")])
    assert (first, last) == (None, None)
    assert isinstance(at_fault, UploadEndedError)
    assert [upload.upload_id for upload in outbox.store.open_uploads()] == ["a", "b", "c", "e"]


class Held(Plain):
    """Waits over the file that is named so."""

    goes_on = threading.Event()

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        if self.run.item.name.endswith("b.csv"):
            assert self.goes_on.wait(30)
        yield from batches


async def test_a_small_file_leaves_while_the_next_one_is_still_read(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    Held.goes_on.clear()
    async with Site(backend.url, tmp_path, author=Held) as site:
        site.write("a.csv", "n\n1\n")
        site.write("b.csv", "n\n2\n")
        running = asyncio.create_task(site.run())
        await until(lambda: backend.rows("exports/a.csv"))
        assert backend.rows("exports/b.csv") == []
        Held.goes_on.set()
        result = await running

    assert (result["status"], result["uploads"]) == ("uploaded", 2)


class Compared(CloudProcessor):
    """Over one file, the first time, its source is compared with the backend while it is read."""

    outbox: Outbox
    attempts: ClassVar[list[int]] = []

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        yield from batches
        if self.run.item.name.endswith("b.csv"):
            self.attempts.append(self.run.attempt)
            for (key,) in self.outbox.store.find("sources", "source_key"):
                if len(self.attempts) == 1:
                    self.outbox.store.set_source(key, base=1)


async def test_only_the_file_that_cannot_be_sealed_is_read_again(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, author=Compared) as site:
        Compared.outbox = site.outbox
        site.write("b.csv", "n\n1\n")
        await site.run()
        Compared.attempts.clear()
        for number, name in enumerate(("a.csv", "b.csv", "c.csv")):
            site.write(name, f"n\n1{number}\n")
        result = await site.run()

    assert (result["status"], result["uploads"]) == ("uploaded", 3)
    assert Compared.attempts == [1, 2]
    assert sorted(row["n"] for row in backend.rows()) == ["10", "11", "12"]


async def test_as_many_uploads_are_completed_side_by_side_as_requests_may_be_under_way(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    under_way, release = set[str](), asyncio.Event()

    async def held(request: web.Request) -> None:
        if request.path.endswith("/complete"):
            under_way.add(request.path)
            await release.wait()

    async with Site(backend.url, tmp_path, upload_form="chunked") as site:
        await site.run(site.write("first.csv", "n\n0\n"))
        backend.gate = held
        for number in range(20):
            site.write(f"small/{number}.csv", f"n\n{number}\n")
        running = asyncio.create_task(site.run(site.data / "small"))
        await until(lambda: len(under_way) == 8)
        release.set()
        result = await running

    assert result["status"] == "uploaded"
