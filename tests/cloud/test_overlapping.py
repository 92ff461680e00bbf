"""The stages of a run beside each other: in order, bounded, and ended with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from catalogzero import Batch, FailedError, Params, RunCancelledError
from catalogzero.cloud.encoding import encoder_for
from catalogzero.cloud.item_pass import CHUNKS_WAITING
from catalogzero.cloud.reading.ahead import BATCHES_AHEAD, read_ahead
from catalogzero.cloud.reading.records import BadRecords, ReadOptions
from catalogzero.cloud.reading.sources import FileItem

from tests.cloud.processors import ArrowPlain, Plain
from tests.cloud.site import Site

ROWS, CHUNK_BYTES = 60_000, 20_000
"""More than a block of text, so that it is read ahead; many chunks."""


class Eventful(ArrowPlain):
    """Something happens at the second batch, or another batch is yielded in place of the first."""

    happens: Callable[[], object]
    first: Batch | None = None
    taken = 0

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        for self.taken, batch in enumerate(batches, 1):
            if self.taken == 2:
                self.happens()
            yield batch if self.taken > 1 or self.first is None else self.first


class EventfulGroup(Eventful):
    """The same, in one upload of all files."""

    unit = "run"


class Counting(ArrowPlain):
    """Yields many batches of a chunk each, and counts those that are not stored yet."""

    stored: Callable[[], int]
    most = 0

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        for yielded in range(100):
            self.most = max(self.most, yielded - self.stored())
            yield pa.table({"n": list(range(CHUNK_BYTES // 8))})


def site_of(author: type[Plain], folder: Path, bad_line: int = 0) -> Site:
    """A site that cannot send, with a file of `ROWS` rows; what is stored stays there."""
    runtime = {"upload_wait_s": 0, "chunk_bytes": CHUNK_BYTES}
    site = Site("http://127.0.0.1:1/v1", folder, author=author, runtime=runtime)
    lines = ["n,text", *(f"{n},row {n * 7919 % ROWS} of many" for n in range(ROWS))]
    lines[bad_line] += ",more" if bad_line else ""
    site.write("big.csv", "\n".join([*lines, ""]))
    return site


def own_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("catalogzero-")]


@pytest.mark.parametrize(
    ("author", "chunk_format"),
    [(Plain, "ndjson"), (Plain, "csv"), (ArrowPlain, "ndjson"), (ArrowPlain, "parquet")],
)
async def test_what_is_stored_is_what_one_thread_would_make(
    tmp_path: Path, author: type[Plain], chunk_format: str
) -> None:
    async with site_of(author, tmp_path) as site:
        result = await site.run(chunk_format=chunk_format)
        stored = list(site.outbox.store.bodies(result["upload_ids"][0]))
        threads = own_threads()

    options = ReadOptions(arrow=author is ArrowPlain)
    item = FileItem(str(site.data), "big.csv", "exports/big.csv", options)
    encoder = encoder_for(chunk_format, CHUNK_BYTES)
    with item.open(None, BadRecords("fail")) as reading:
        wanted = [encode() for batch in reading.batches() for encode in encoder.add(batch)]
    assert stored == [*wanted, *(encode() for encode in encoder.finish())]
    assert len(stored) > 10
    assert threads == []


async def test_an_sqlite_database_in_memory_is_read_ahead_too(tmp_path: Path) -> None:
    numbers = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT n FROM t"
    sources = {"numbers": {"url": "sqlite://", "query": f"{numbers} LIMIT 25000"}}
    runtime = {"upload_wait_s": 0}
    async with Site("http://127.0.0.1:1/v1", tmp_path, runtime=runtime, sources=sources) as site:
        assert (await site.run("sql:numbers"))["records"] == 25_000


def test_batches_come_in_order_and_an_error_in_its_place() -> None:
    def batches() -> Iterator[int]:
        yield from range(1, 10)
        raise FailedError("at the tenth")

    with ExitStack() as stack:
        ahead = read_ahead(batches(), BATCHES_AHEAD, stack)

        assert [next(ahead) for _ in range(9)] == list(range(1, 10))
        with pytest.raises(FailedError, match="at the tenth"):
            next(ahead)


def test_no_more_is_read_ahead_than_was_asked_for() -> None:
    taken, most = 0, 0

    def batches() -> Iterator[int]:
        nonlocal most
        for number in range(1, 2_000):
            most = max(most, number - taken)
            yield number

    with ExitStack() as stack:
        for taken in read_ahead(batches(), BATCHES_AHEAD, stack):  # noqa: B007  # counts
            pass

    assert most <= BATCHES_AHEAD + 1  # and the one that is handed over


async def test_no_more_chunks_wait_than_there_is_work_for(tmp_path: Path) -> None:
    async with site_of(Counting, tmp_path) as site:
        store = site.outbox.store
        site.author.stored = lambda: sum(one.chunks for one in store.uploads(("building",)))  # type: ignore[attr-defined]
        await site.run(chunk_format="parquet")

    # Beside those that wait: one that is gathered, and one that waits for a place.
    assert 0 < site.author.most <= CHUNKS_WAITING + 2  # type: ignore[attr-defined]


def fail() -> None:
    raise ValueError("process failed")


@pytest.mark.parametrize("author", [Eventful, EventfulGroup])
@pytest.mark.parametrize(
    ("stage", "why"),
    [
        ("read", "line 40001: 3 fields"),
        ("process", "process failed"),
        ("encode", "Unhandled type for Arrow to Parquet"),
        ("store", "the disk is full"),
    ],
)
async def test_an_error_in_any_stage_leaves_no_thread_and_no_open_upload(
    tmp_path: Path, author: type[Eventful], stage: str, why: str
) -> None:
    async with site_of(author, tmp_path, 40_000 if stage == "read" else 0) as site:
        store = site.outbox.store
        made: Any = site.author
        made.happens = fail if stage in {"process", "encode"} else lambda: None
        if stage == "encode":  # which comes before what `process` raises at the next batch
            kinds, places = pa.array([0, 1] * 2_000, pa.int8()), pa.array([0] * 4_000, pa.int32())
            parts = [pa.array([1]), pa.array(["a"])]
            made.first = pa.table({"n": pa.UnionArray.from_dense(kinds, places, parts)})
        if stage == "store":
            [[pages]] = store.execute("PRAGMA page_count")
            made.happens = lambda: store.execute(f"PRAGMA max_page_count={pages + 40}")
        with pytest.raises(FailedError, match=why):
            await site.run(chunk_format="parquet")
        threads, open_uploads = own_threads(), store.uploads(("building", "sealed"))

    assert (threads, open_uploads) == ([], [])


async def test_a_run_that_is_cancelled_stops_at_its_next_batch(tmp_path: Path) -> None:
    async with site_of(Eventful, tmp_path) as site:
        made: Any = site.author
        made.happens = lambda: setattr(made, "_is_cancelled", lambda: True)
        with pytest.raises(RunCancelledError):
            await site.run(chunk_format="parquet")
        threads, open_uploads = own_threads(), site.outbox.store.uploads(("building", "sealed"))

    assert (made.taken, threads, open_uploads) == (2, [], [])
