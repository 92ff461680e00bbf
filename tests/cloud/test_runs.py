"""What one run makes of its items: skipped, malformed, changed, grouped, in several formats."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from catalogzero import BadParamsError, Batch, FailedError, Params, SourceChangedError

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


@pytest.mark.parametrize("rule", ["skip", "set_aside"])
async def test_malformed_rows_are_counted_in_the_result(
    backend: ReferenceBackend, tmp_path: Path, rule: str
) -> None:
    async with Site(backend.url, tmp_path, on_bad_record=rule) as site:
        site.write("a.csv", "n,name\n1,one\n2\n")
        result = await site.run()
        aside = list((site.author.state_dir / "bad_records").glob("*"))

    assert (result["records"], result["bad_records"]) == (1, 1)
    assert len(aside) == (1 if rule == "set_aside" else 0)


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
