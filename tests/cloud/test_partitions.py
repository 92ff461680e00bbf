"""A processor that reads its items one by one: the same as if it read them all in one run."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from catalogzero import CloudProcessor
from catalogzero.cloud.reading.records import ReadOptions
from catalogzero.cloud.reading.sources import Roots
from catalogzero.errors import BadParamsError, PermanentError
from catalogzero.scheduler.server import SchedulerSettings, serve_scheduler
from catalogzero.testing import serving

from tests.cloud.processors import Counter, Doubler, Plain, Total
from tests.cloud.reference import ReferenceBackend
from tests.scheduler.conftest import QUICK
from tests.scheduler.toys import until

OPTIONS = ReadOptions()
SUMMED = ("status", "records", "skipped", "bad_records", "files_read", "left_out", "uploads")


class Sum(Total):
    """All items of a run are one."""

    unit = "run"


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "exports"
    (folder / "deep").mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.csv").write_text(f"n,name\n{number},a\n{number + 10},b\n")
    (folder / "deep" / "x.jsonl").write_text('{"n": 7, "name": "x"}\n')
    (folder / "notes.pdf").write_text("no data")
    return folder


def served(author: type[CloudProcessor], url: str, data: Path, **runtime: Any) -> Any:
    """The processor, served from a state folder beside its data."""
    one = author(endpoint=url, api_key="test-key", data_roots=[str(data)])
    given = {"min_file_age_s": 0, "state_dir": data.parent / "state", **runtime}
    return serving(one, **{"installation_id": "site", **given})


async def in_parts(call: Any, data_source: str, name: str) -> list[dict[str, Any]]:
    """The result of a run for each item."""
    source = {"data_source": data_source}
    listed = await call("list_items", source, request_id=f"{name} list")
    return [
        await call("process_and_upload", {**source, "item": item}, request_id=f"{name} {number}")
        for number, item in enumerate(listed["items"])
    ]


async def test_after_runs_of_each_item_a_whole_run_finds_nothing_new_and_the_same_after_it(
    backend: ReferenceBackend, data: Path
) -> None:
    source = {"data_source": str(data)}
    async with served(Doubler, backend.url, data) as service:
        call = service.client.call
        listed = await call("list_items", source, request_id="list")
        first = await in_parts(call, str(data), "first")
        whole = await call("process_and_upload", source, request_id="whole")
        (data / "3.csv").write_text("n,name\n1,c\n")
        changed = await call("process_and_upload", source, request_id="changed")
        again = await in_parts(call, str(data), "again")

    names = [item["name"] for item in listed["items"]]
    assert names == [*(f"exports/{number}.csv" for number in range(5)), "exports/deep/x.jsonl"]
    assert (listed["left_out"], listed["left_out_files"]) == (1, ["notes.pdf"])
    assert [one["status"] for one in first] == ["uploaded"] * 6
    assert sum(one["records"] for one in first) == 11
    assert (whole["status"], whole["skipped"], whole["uploads"]) == ("unchanged", 6, 0)
    assert (changed["status"], changed["skipped"], changed["uploads"]) == ("uploaded", 5, 1)
    assert [one["status"] for one in again] == ["unchanged"] * 6


async def test_a_schedule_with_a_partition_sums_up_to_what_a_whole_run_says(
    backend: ReferenceBackend, data: Path, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    given = SchedulerSettings(port=0, zmq_port=0, database=database, runner=QUICK)
    results = []
    for partition in (False, True):
        state = tmp_path / f"state-{partition}"
        async with serve_scheduler(given) as scheduler:
            address = scheduler.zmq_address
            runtime = {"handler_id": "acme", "scheduler": address, "state_dir": state}
            runtime["installation_id"] = f"site-{partition}"
            async with (
                served(Doubler, backend.url, data, **runtime) as service,
                httpx.AsyncClient(base_url=scheduler.url, timeout=60) as api,
            ):
                await service.service.registered()
                body = {
                    **{"handler_id": "acme", "job_method": "process_and_upload"},
                    **{"job_params": {"data_source": str(data)}, "partition": partition},
                }
                answer = await api.post("/api/run_now", json=body)
                assert answer.status_code == 200, answer.text
                results.append(answer.json()["result"])

    whole, divided = results
    assert {name: divided[name] for name in SUMMED} == {name: whole[name] for name in SUMMED}
    assert (divided["items"], divided["ended"]) == (6, {"success": 6})
    assert not {"files", "upload_ids", "left_out_files"} & divided.keys()


@pytest.mark.parametrize(
    ("author", "why"), [(Sum, 'unit = "run"'), (Counter, "its own `read`"), (Plain, "strict")]
)
async def test_what_judges_all_items_as_one_is_refused_a_partition(
    backend: ReferenceBackend, data: Path, tmp_path: Path, author: type[CloudProcessor], why: str
) -> None:
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    given = SchedulerSettings(port=0, zmq_port=0, database=database, runner=QUICK)
    egress = {"egress": {"drop": ["name"], "strict": True}} if author is Plain else {}
    async with serve_scheduler(given) as scheduler:
        runtime = {"handler_id": "acme", "scheduler": scheduler.zmq_address, **egress}
        async with (
            served(author, backend.url, data, **runtime) as one,
            httpx.AsyncClient(base_url=scheduler.url, timeout=60) as api,
        ):
            await one.service.registered()
            source = {"data_source": str(data)}
            with pytest.raises(PermanentError, match=why):
                await one.client.call("list_items", source)
            given_item = {**source, "item": {"name": "exports/1.csv"}}
            with pytest.raises(PermanentError, match=why):
                await one.client.call("process_and_upload", given_item)
            call = {"handler_id": "acme", "job_method": "process_and_upload"}
            trigger = {"type": "interval", "hours": 1}
            body = {**call, "job_params": source, "partition": True, "trigger": trigger}

            async def refused() -> httpx.Response | None:
                answer = await api.post("/api/schedule", json=body)
                return answer if answer.status_code == 400 else None

            answer = await until(refused)

    assert why in answer.json()["error"]["message"]
    assert "cannot be partitioned" in answer.text


async def test_an_item_that_is_gone_fails_by_its_name(
    backend: ReferenceBackend, data: Path
) -> None:
    async with served(Plain, backend.url, data) as service:
        given = {"data_source": str(data), "item": {"name": "exports/9.csv"}}
        with pytest.raises(PermanentError, match=r"'exports/9.csv': it was removed or renamed"):
            await service.client.call("process_and_upload", given)
        with pytest.raises(PermanentError, match="item is"):
            await service.client.call("process_and_upload", {**given, "item": {"nome": "x"}})


async def test_names_that_one_reply_cannot_hold_are_refused_with_what_to_do(
    backend: ReferenceBackend, data: Path
) -> None:
    async with served(Plain, backend.url, data, max_message_bytes=2_100) as service:
        reply = await service.client.request("list_items", {"data_source": str(data)})

    assert not reply.success
    assert "raise max_message_bytes, or divide the folder" in reply.error


# --- an item by its name


def link_to_a_file(data: Path) -> None:
    (data / "deep" / "link.csv").symlink_to(data / "1.csv")
    elsewhere = data / ".hidden"
    elsewhere.mkdir()
    (elsewhere / "real.csv").write_text("n\n1\n")
    (data / "shown.csv").symlink_to(elsewhere / "real.csv")


def a_link_out(data: Path) -> None:
    (data.parent / "out.csv").write_text("n\n1\n")
    (data / "out.csv").symlink_to(data.parent / "out.csv")


@pytest.mark.parametrize("source", ["", "deep", "*.csv", "**/*", "d*/*.jsonl", "2.csv"])
@pytest.mark.parametrize("prepare", [lambda data: None, link_to_a_file, a_link_out])
def test_every_item_of_a_listing_is_found_by_its_name(
    data: Path, source: str, prepare: Callable[[Path], None]
) -> None:
    prepare(data)
    roots, data_source = Roots([data]), str(data / source)
    listed = [*roots.items(data_source, OPTIONS)]

    assert listed
    for one in listed:
        found = roots.item(data_source, one.name, OPTIONS)
        assert (type(found), found.name, found.root, found.relative) == (
            *(type(one), one.name),
            *(one.root, one.relative),
        )


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("deep", "exports/1.csv"),
        ("", "exports/notes.pdf"),
        ("", "exports/../secret.csv"),
        ("", "exports/.hidden.csv"),
        ("", "exports/deep"),
        ("*.csv", "exports/deep/x.jsonl"),
        ("*.csv", "exports/.hidden.csv"),
        ("[12].csv", "exports/3.csv"),
        ("2.csv", "exports/3.csv"),
    ],
)
def test_a_name_that_no_listing_gives_is_refused(data: Path, source: str, name: str) -> None:
    (data / ".hidden.csv").write_text("n\n1\n")
    (data.parent / "secret.csv").write_text("n\n1\n")
    with pytest.raises(BadParamsError, match="has no item"):
        Roots([data]).item(str(data / source), name, OPTIONS)


async def test_the_list_ends_what_waits_of_sources_that_are_gone_and_an_item_does_not(
    backend: ReferenceBackend, data: Path
) -> None:
    source = {"data_source": str(data)}
    async with served(Plain, backend.url, data) as service:
        await in_parts(service.client.call, str(data), "first")
        (path,) = (data.parent / "state").rglob("outbox.sqlite")
        with closing(sqlite3.connect(path)) as outbox:

            def states() -> dict[str, str]:
                asked = "SELECT s.source, u.state FROM uploads u JOIN sources s USING (source_key)"
                return dict(outbox.execute(asked))

            outbox.execute("UPDATE uploads SET state = 'held'")
            outbox.commit()
            (data / "1.csv").unlink()
            given = {**source, "item": {"name": "exports/0.csv"}}
            await service.client.call("process_and_upload", given, request_id="item")
            after_item = states()
            await service.client.call("list_items", source, request_id="list again")
            after_list = states()

    assert (after_item["exports/1.csv"], after_item["exports/2.csv"]) == ("held", "held")
    assert (after_list["exports/1.csv"], after_list["exports/2.csv"]) == ("dead", "held")
