"""What one run makes of its items: skipped, malformed, changed, grouped, in several formats."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from catalogzero import (
    BadParamsError,
    Batch,
    CloudProcessor,
    FailedError,
    Params,
    Rows,
    SourceChangedError,
)
from catalogzero.clock import SystemClock
from catalogzero.cloud.outbox.outbox import Opening, Outbox, Sealing
from catalogzero.testing import serving

from tests.cloud.processors import ArrowPlain, Plain, Total
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site

CSV = "n,name\n1,one\n2,two\n"


class TotalOfAll(Total):
    """One row of all files."""

    unit = "run"


class Meddler(Plain):
    """Writes to the file that it reads, the first times."""

    left = 0

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        for batch in batches:
            if type(self).left:
                type(self).left -= 1
                with Path(params["file"]).open("a") as file:
                    file.write("9,nine\n")
            yield batch


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


async def test_all_items_of_a_run_can_be_one_upload(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, author=TotalOfAll) as site:
        for number in range(3):
            site.write(f"{number}.csv", f"n\n{number}\n")
        first, second = await site.run(), await site.run()
        site.write("1.csv", "n\n10\n")
        third = await site.run()

    assert [first["status"], second["status"], third["status"]] == [
        "uploaded",
        "unchanged",
        "uploaded",
    ]
    assert backend.rows() == [{"total": 12}]


async def test_a_file_that_changed_while_read_is_read_again(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    Meddler.left = 2
    async with Site(backend.url, tmp_path, author=Meddler) as site:
        path = site.write("a.csv", CSV)
        result = await site.run(params={"file": str(path)})

    assert result["status"] == "uploaded"
    assert [row["n"] for row in backend.rows()] == ["1", "2", "9", "9"]


async def test_a_file_that_keeps_changing_fails_the_run_and_sends_nothing(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    Meddler.left = 3
    async with Site(backend.url, tmp_path, author=Meddler) as site:
        path = site.write("a.csv", CSV)
        with pytest.raises(SourceChangedError, match="changed while it was read"):
            await site.run(params={"file": str(path)})

    assert backend.rows() == []


async def test_one_malformed_file_does_not_hold_back_the_others(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", "n,name\n1\n")
        site.write("b.csv", CSV)
        with pytest.raises(FailedError, match=r"1 of 2 items failed .*exports/a\.csv, line 2"):
            await site.run()
        site.write("a.csv", CSV)
        again = await site.run()

    assert (again["status"], again["skipped"]) == ("uploaded", 1)
    assert len(backend.rows()) == 4


class Prices(CloudProcessor):
    """Fails in the way that a price says."""

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Batch]:
        for batch in batches:
            yield [{"price": self.price(row["price"])} for row in batch]

    def price(self, text: str) -> float:
        if text == "huge":
            raise MemoryError
        if text == "stop":
            raise KeyboardInterrupt
        return float(text)


class PricesOfAll(Prices):
    """All files as one."""

    unit = "run"


@pytest.mark.parametrize(("bad", "kind"), [("n/a", "ValueError"), ("huge", "MemoryError")])
async def test_what_process_raises_over_one_file_fails_that_file_alone_by_its_row(
    backend: ReferenceBackend, tmp_path: Path, bad: str, kind: str
) -> None:
    async with Site(backend.url, tmp_path, author=Prices) as site:
        for number in range(25):
            price = "1" if number in {0, 24} else bad
            site.write(f"{number:02}.csv", f"price\n1\n{price}\n1\n")
        with pytest.raises(FailedError) as caught:
            await site.run()

    details = caught.value.details
    assert "23 of 25 items failed" in caught.value.message
    assert f"exports/01.csv, row 2: {kind}" in caught.value.message
    assert (details["failed"], len(details["failures"])) == (23, 20)
    first = details["failures"][0]
    assert (first["source"], first["row"], first["type"]) == ("exports/01.csv", 2, kind)
    assert "Traceback" not in str(details)
    assert (details["records"], details["uploads"], len(details["upload_ids"])) == (6, 2, 2)
    assert details["bytes_sent"] > 0
    assert len(backend.rows()) == 6
    assert (caught.value.code, caught.value.retryable) == ("failed", False)


async def test_an_interrupt_is_no_item_s_failure(backend: ReferenceBackend, tmp_path: Path) -> None:
    async with Site(backend.url, tmp_path, author=Prices) as site:
        site.write("a.csv", "price\nstop\n")
        with pytest.raises(KeyboardInterrupt):
            site.engine.run(str(site.data), {}, "ndjson", full=False, progress=lambda **_: None)
        uploads = site.outbox.store.uploads()

    assert uploads == []


async def test_one_bad_item_fails_a_run_that_is_one_upload_and_is_named(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, author=PricesOfAll) as site:
        site.write("a.csv", "price\n1\n2\n")
        site.write("b.csv", "price\n1\nn/a\n")
        with pytest.raises(FailedError, match=r"^exports/b\.csv, row 2: ValueError"):
            await site.run()

    assert backend.rows() == []


async def test_what_a_folder_holds_and_may_not_be_read_fails_alone(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    (tmp_path / "outside.csv").write_text(CSV)
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        (site.data / "link.csv").symlink_to(tmp_path / "outside.csv")
        (site.data / "gone.csv").symlink_to(site.data / "nowhere.csv")
        site.write(os.fsdecode(b"caf\xe9.csv"), CSV)
        with pytest.raises(FailedError, match=r"3 of 4 items failed") as caught:
            await site.run()

    told = caught.value.message
    assert "link.csv" in told
    assert "outside data_roots" in told
    assert r"exports/caf\udce9.csv: the file's name is not UTF-8: rename it" in told
    assert len(backend.rows()) == 2


async def test_a_result_of_many_uploads_lists_the_first_and_counts_all(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    data = tmp_path / "exports"
    data.mkdir()
    for number in range(60):
        (data / f"{number}.csv").write_text(f"n\n{number}\n")
    processor = Plain(endpoint=backend.url, api_key="test-key", data_roots=[data])
    runtime: dict[str, Any] = {
        "state_dir": tmp_path / "state",
        "min_file_age_s": 0,
        "upload_wait_s": 300,
    }
    async with serving(processor, **runtime, max_message_bytes=4096) as service:
        result = await service.client.call(
            "process_and_upload", {"data_source": str(data)}, timeout_s=300
        )

    assert (result["status"], result["records"]) == ("uploaded", 60)
    assert (result["uploads"], len(result["upload_ids"])) == (60, 20)
    assert len(backend.rows()) == 60


def test_a_run_knows_its_uploads_however_many_ended_meanwhile(tmp_path: Path) -> None:
    with closing(Outbox(tmp_path, SystemClock(), kept_ended=5)) as outbox:

        def upload(upload_id: str) -> str:
            outbox.begin(
                Opening(upload_id, upload_id, f"{upload_id}.csv", "replace", full=False, params={})
            )
            outbox.seal(Sealing(upload_id=upload_id, upload_key=f"key of {upload_id}"))
            outbox.done(upload_id, "job")
            return upload_id

        with outbox.keeping():
            of_a_run = [upload(str(number)) for number in range(25)]
            found = outbox.store.summary(of_a_run, listed=20)
        upload("last")
        kept = len(outbox.store.uploads())

    assert (found.states, len(found.upload_ids)) == ({"done": 25}, 20)
    assert kept <= 6


class Choosy(CloudProcessor):
    """Sets rows aside whose `n` is not a number."""

    swallows = False

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Batch]:
        for batch in batches:
            kept = []
            for row in batch:
                if row["n"].isdigit():
                    kept.append(row)
                    continue
                try:
                    self.reject(row, "n is no number")
                except FailedError:
                    if not self.swallows:
                        raise
            yield kept


class Careless(Choosy):
    """The same, and goes on whatever `reject` says."""

    swallows = True


@pytest.mark.parametrize("rule", ["skip", "quarantine"])
async def test_process_sets_rows_aside_itself(
    backend: ReferenceBackend, tmp_path: Path, rule: str
) -> None:
    async with Site(backend.url, tmp_path, author=Choosy, on_bad_record=rule) as site:
        site.write("a.csv", "n,name\n1,one\nx,two\n3,three\n")
        result = await site.run()
        aside = list((site.author.state_dir / "bad_records").glob("*"))

    assert (result["status"], result["records"], result["bad_records"]) == ("uploaded", 2, 1)
    assert [row["n"] for row in backend.rows()] == ["1", "3"]
    if rule == "quarantine":
        [entry] = [json.loads(line) for line in aside[0].read_text().splitlines()]
        assert entry["source"] == "exports/a.csv, row 2"
        assert json.loads(entry["record"]) == {"n": "x", "name": "two"}


@pytest.mark.parametrize("author", [Choosy, Careless])
async def test_a_rejected_row_fails_its_file_where_the_rule_is_to_fail(
    backend: ReferenceBackend, tmp_path: Path, author: type[Choosy]
) -> None:
    async with Site(backend.url, tmp_path, author=author) as site:
        site.write("a.csv", "n,name\n1,one\nx,two\n")
        site.write("b.csv", CSV)
        with pytest.raises(FailedError, match=r"exports/a\.csv, row 2: n is no number; fix"):
            await site.run()

    assert len(backend.rows()) == 2
    with pytest.raises(FailedError, match="no run is under way"):
        site.author.reject({}, "no good")


@pytest.mark.parametrize("rule", ["skip", "quarantine"])
async def test_malformed_rows_are_counted_in_the_result(
    backend: ReferenceBackend, tmp_path: Path, rule: str
) -> None:
    async with Site(backend.url, tmp_path, on_bad_record=rule) as site:
        site.write("a.csv", "n,name\n1,one\n2\n")
        result = await site.run()
        aside = list((site.author.state_dir / "bad_records").glob("*"))

    assert (result["records"], result["bad_records"]) == (1, 1)
    assert len(aside) == (1 if rule == "quarantine" else 0)


@pytest.mark.parametrize("author", [Plain, ArrowPlain])
@pytest.mark.parametrize("chunk_format", ["csv", "parquet"])
async def test_chunks_can_be_csv_or_parquet(
    backend: ReferenceBackend, tmp_path: Path, author: type[Plain], chunk_format: str
) -> None:
    async with Site(backend.url, tmp_path, author=author) as site:
        site.write("a.csv", CSV)
        result = await site.run(chunk_format=chunk_format)

    [row] = backend.rows()
    assert result["records"] == 2
    if chunk_format == "csv":
        assert row["bytes"] == CSV.encode()
    else:
        (tmp_path / "a.parquet").write_bytes(row["bytes"])
        rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
        assert rows == [{"n": "1", "name": "one"}, {"n": "2", "name": "two"}]


async def test_a_touched_file_with_the_same_content_is_unchanged(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        await site.run()
        site.write("a.csv", CSV)
        assert (await site.run())["status"] == "unchanged"

    assert len([path for _, path, _ in backend.bodies if "/chunks/" in path]) == 1


async def test_an_empty_file_empties_its_source(backend: ReferenceBackend, tmp_path: Path) -> None:
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        await site.run()
        site.write("a.csv", "n,name\n")
        result = await site.run()

    assert (result["status"], result["records"], backend.rows()) == ("uploaded", 0, [])


async def test_an_unknown_format_is_refused_before_anything_is_read(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        with pytest.raises(BadParamsError, match="xlsx"):
            await site.run(chunk_format="xlsx")


async def test_the_result_says_what_each_file_was_read_as_and_what_was_left_out(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        for number in range(25):
            site.write(f"{number:02}.csv", "n;m\n1;2\n3;4\n")
        site.write("notes.md", "no data")
        result = await site.run()

    assert result["files"][0] == {
        "source": "exports/00.csv",
        "kind": "csv",
        "encoding": "utf-8",
        "delimiter": ";",
        "columns": 2,
        "rows": 2,
    }
    assert (len(result["files"]), result["files_read"]) == (20, 25)
    assert (result["left_out"], result["left_out_files"]) == (1, ["notes.md"])


async def test_an_empty_file_leaves_what_is_visible_unless_that_is_allowed(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        path = site.write("a.csv", CSV)
        await site.run()
        path.write_bytes(b"")
        with pytest.raises(FailedError, match=r"exports/a\.csv is empty"):
            await site.run()
    assert len(backend.rows()) == 2
    async with Site(backend.url, tmp_path, allow_empty=True) as site:
        result = await site.run()

    assert (result["status"], backend.rows()) == ("uploaded", [])
