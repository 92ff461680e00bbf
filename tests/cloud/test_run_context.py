"""What `process` and `read` know of their run, and report to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from catalogzero import (
    Batch,
    CloudProcessor,
    FailedError,
    Params,
    Rows,
    RunCancelledError,
    RunContext,
)
from catalogzero.testing import serving

from tests.cloud.processors import Counter, Plain
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


class Watcher(Plain):
    """Keeps what it knows of each run."""

    stream = "watched"
    seen: ClassVar[list[RunContext]] = []

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        self.seen.append(self.run)
        yield from batches


class GroupWatcher(Watcher):
    """The same at each batch of all items together."""

    unit = "run"

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        for batch in batches:
            self.seen.append(self.run)
            yield batch


class ReadWatcher(Counter):
    """The same in an own `read`."""

    seen: ClassVar[list[RunContext]] = []

    def read(
        self, data_source: str, params: Params, after: int | None = None
    ) -> Generator[Batch, None, int]:
        self.seen.append(self.run)
        return (yield from super().read(data_source, params, after))


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    Watcher.seen.clear()
    ReadWatcher.seen.clear()


async def test_process_knows_its_file(backend: ReferenceBackend, tmp_path: Path) -> None:
    async with Site(backend.url, tmp_path, author=Watcher) as site:
        path = site.write("eu/a.csv", "n\n1\n")
        await site.run()
        await site.run(full=True)

    first, again = Watcher.seen
    modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    assert (first.item.name, first.item.stream) == ("exports/eu/a.csv", "watched")
    assert (first.item.path, first.item.size, first.item.modified) == (path, 4, modified)
    assert (first.attempt, first.full, first.since) == (1, False, None)
    assert again.full


async def test_a_run_of_all_files_knows_the_one_at_hand(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, author=GroupWatcher) as site:
        for name in ("a.csv", "b.csv"):
            site.write(name, "n\n1\n")
        await site.run()

    assert [one.item.name for one in Watcher.seen] == ["exports/a.csv", "exports/b.csv"]
    assert [one.item.path for one in Watcher.seen] == [site.data / "a.csv", site.data / "b.csv"]


async def test_an_own_read_knows_from_where_on_it_reads(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    source = tmp_path / "count"
    async with Site(backend.url, tmp_path, author=ReadWatcher) as site:
        for until_ in (2, 5):
            source.write_text(str(until_))
            await site.run(source)

    assert [one.since for one in ReadWatcher.seen] == [None, 2]
    assert [one.item.path for one in ReadWatcher.seen] == [None, None]


class Restless(Watcher):
    """Its file changes while it is read, the first time."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        self.seen.append(self.run)
        for batch in batches:
            if self.run.attempt == 1 and self.run.item.path:
                self.run.item.path.write_text("n\n1\n2\n")
            yield batch


async def test_a_second_attempt_is_known_as_one(backend: ReferenceBackend, tmp_path: Path) -> None:
    async with Site(backend.url, tmp_path, author=Restless) as site:
        site.write("a.csv", "n\n1\n")
        await site.run()

    assert [one.attempt for one in Watcher.seen] == [1, 2]
    assert [one.item.size for one in Watcher.seen] == [4, 6]
    assert [row["n"] for row in backend.rows()] == ["1", "2"]


class Meeting(Plain):
    """Two runs of it are under way at once; each rejects its own rows."""

    both = threading.Barrier(2, timeout=30)

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Batch]:  # type: ignore[override]
        for batch in batches:
            self.both.wait()
            name = self.run.item.name
            for row in batch:
                if row["n"] == "bad":
                    self.reject(row, "is bad")
            self.both.wait()
            assert self.run.item.name == name
            yield [{**row, "file": name} for row in batch if row["n"] != "bad"]


async def test_runs_at_once_have_each_a_context_of_their_own(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, author=Meeting, on_bad_record="skip") as site:
        one = site.write("one.csv", "n\n1\nbad\n")
        two = site.write("two.csv", "n\n2\nbad\nbad\n")
        results = await asyncio.gather(site.run(one), site.run(two))

    assert [result["bad_records"] for result in results] == [1, 2]
    assert sorted((row["n"], row["file"]) for row in backend.rows()) == [
        ("1", "exports/one.csv"),
        ("2", "exports/two.csv"),
    ]


class Slow(CloudProcessor):
    """Reads a source of its own, and goes on once what it did was reported."""

    def read(self, data_source: str, params: Params, after: Any = None) -> Iterator[Batch]:
        yield [{"n": n} for n in range(10)]
        self.progress(rows=20, of=50)
        self.wait_for(rows=20, of=50, rows_read=10)
        yield [{"n": 10}]

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Batch]:
        for batch in batches:
            for number, row in enumerate(batch):
                if number == 4:
                    self.wait_for(rows_read=5)
                yield [row]

    reports: ClassVar[list[dict[str, Any]]] = []
    reported = threading.Condition()

    @classmethod
    def take(cls, **fields: Any) -> None:
        with cls.reported:
            cls.reports.append(fields)
            cls.reported.notify_all()

    def wait_for(self, **fields: Any) -> None:
        """Until a report says so."""

        def is_there() -> bool:
            return any(fields.items() <= report.items() for report in self.reports)

        with self.reported:
            assert self.reported.wait_for(is_there, timeout=30), (fields, self.reports)


async def test_progress_rises_within_a_batch_and_by_what_an_own_read_says(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    Slow.reports.clear()
    async with Site(backend.url, tmp_path, author=Slow) as site:
        await asyncio.to_thread(
            site.engine.run, "mine", {}, "ndjson", full=False, progress=Slow.take
        )

    assert Slow.reports[-1]["rows_read"] == 11
    rows = [report["rows_read"] for report in Slow.reports]
    assert rows == sorted(rows)


async def test_outside_of_a_run_there_is_no_context() -> None:
    made = Plain(endpoint="https://api.acme.example", api_key="k", data_roots=["/data"])

    for ask in (lambda: made.run, lambda: made.progress(rows=1), lambda: made.reject({}, "bad")):
        with pytest.raises(FailedError, match="no run is under way"):
            ask()
    assert not made.cancelled


class Endless(CloudProcessor):
    """Reads until it is to stop, and leaves word of that."""

    def read(self, data_source: str, params: Params, after: Any = None) -> Iterator[Batch]:
        Path(data_source, "begun").touch()
        never = threading.Event()
        while not self.cancelled:
            never.wait(0.01)
        Path(data_source, "seen").touch()
        yield [{"n": 1}]

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        yield from batches


async def test_a_cancelled_run_can_end_by_itself_and_its_worker_goes_on(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    made = Endless(endpoint=backend.url, api_key="test-key")
    async with serving(made, state_dir=tmp_path / "state", log_level="error") as at:
        call = {"data_source": str(tmp_path)}
        run = asyncio.create_task(
            at.client.call("process_and_upload", call, request_id="one", timeout_s=60)
        )
        await until(lambda: (tmp_path / "begun").exists())
        worker = at.handler.worker.pid
        await at.client.call("cancel", {"request_id": "one"})
        with pytest.raises(RunCancelledError):
            await run

        assert (tmp_path / "seen").exists()
        assert at.handler.worker.pid == worker
    assert backend.rows() == []
