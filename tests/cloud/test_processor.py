"""A served CloudProcessor against a real HTTP server: what arrives, and what is reported."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from catalogzero import CloudProcessor
from catalogzero.errors import ConfigError
from catalogzero.testing import serving

from tests.cloud.processors import Counter, Doubler, NoFigures, Plain, Total
from tests.cloud.reference import ReferenceBackend


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "exports"
    folder.mkdir()
    return folder


def settings(backend: ReferenceBackend, data: Path) -> dict[str, Any]:
    return {"endpoint": backend.url, "api_key": "test-key", "data_roots": [str(data)]}


def runtime(data: Path, **more: Any) -> dict[str, Any]:
    return {"state_dir": data.parent / "state", "min_file_age_s": 0, **more}


def write_csv(path: Path, count: int, start: int = 0) -> None:
    path.write_text("n,name\n" + "".join(f"{n},row {n}\n" for n in range(start, start + count)))


async def test_every_row_of_a_csv_file_arrives_processed(
    backend: ReferenceBackend, data: Path
) -> None:
    write_csv(data / "a.csv", 1000)
    async with serving(Doubler(**settings(backend, data)), **runtime(data)) as service:
        result = await service.client.call("process_and_upload", {"data_source": str(data)})

    assert (result["status"], result["records"]) == ("uploaded", 1000)
    assert [row["n"] for row in backend.rows("exports/a.csv")] == [2 * n for n in range(1000)]
    assert result["cloud_job_id"].startswith("job-")


async def test_a_run_reports_how_far_it_is(backend: ReferenceBackend, data: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write_csv(data / name, 1000)
    size = 2 * len("n,name\n" + "".join(f"{n},row {n}\n" for n in range(1000)))
    async with serving(Plain(**settings(backend, data)), **runtime(data)) as service:
        call = service.client.call
        await call("process_and_upload", {"data_source": str(data)}, request_id="first")
        first = (await call("get_run", {"request_id": "first"}))["progress"]
        await call("process_and_upload", {"data_source": str(data)}, request_id="again")
        again = (await call("get_run", {"request_id": "again"}))["progress"]

    whole = {"items": 2, "items_done": 2, "bytes_read": size, "bytes_total": size}
    assert first == {**whole, "rows_read": 2000, "records": 2000}
    assert again == {**whole, "rows_read": 0, "records": 0}


async def test_an_unchanged_file_is_not_sent_again_but_a_changed_one_replaces_its_rows(
    backend: ReferenceBackend, data: Path
) -> None:
    write_csv(data / "a.csv", 10)
    call = {"data_source": str(data / "a.csv")}
    async with serving(Doubler(**settings(backend, data)), **runtime(data)) as service:
        first = await service.client.call("process_and_upload", call)
        second = await service.client.call("process_and_upload", call, request_id="second")
        write_csv(data / "a.csv", 5, start=100)
        third = await service.client.call("process_and_upload", call, request_id="third")

    assert [first["status"], second["status"], third["status"]] == [
        "uploaded",
        "unchanged",
        "uploaded",
    ]
    assert second["skipped"] == 1
    assert [row["n"] for row in backend.rows()] == [200, 202, 204, 206, 208]


async def test_full_sends_all_again_and_doubles_nothing(
    backend: ReferenceBackend, data: Path
) -> None:
    write_csv(data / "a.csv", 10)
    call = {"data_source": str(data / "a.csv")}
    async with serving(Plain(**settings(backend, data)), **runtime(data)) as service:
        await service.client.call("process_and_upload", call)
        again = await service.client.call("process_and_upload", {**call, "params": {"full": True}})

    assert (again["status"], again["records"], len(backend.rows())) == ("uploaded", 10, 10)


async def test_an_own_read_appends_from_its_watermark(
    backend: ReferenceBackend, data: Path
) -> None:
    source = data / "count"
    async with serving(Counter(**settings(backend, data)), **runtime(data)) as service:
        for number, until in enumerate([3, 3, 7]):
            source.write_text(str(until))
            await service.client.call(
                "process_and_upload", {"data_source": str(source)}, request_id=str(number)
            )

    assert [row["n"] for row in backend.rows()] == [1, 2, 3, 4, 5, 6, 7]


async def test_an_aggregate_is_one_row_of_all_batches(
    backend: ReferenceBackend, data: Path
) -> None:
    write_csv(data / "a.csv", 25_000)
    async with serving(Total(**settings(backend, data)), **runtime(data)) as service:
        await service.client.call("process_and_upload", {"data_source": str(data)})

    assert backend.rows() == [{"total": sum(range(25_000))}]


async def test_a_run_is_queued_while_the_backend_is_away_and_sent_when_it_is_back(
    backend: ReferenceBackend, data: Path
) -> None:
    write_csv(data / "a.csv", 10)
    async with serving(
        Plain(**settings(backend, data)), **runtime(data, upload_wait_s=0)
    ) as service:
        await backend.__aexit__()
        result = await service.client.call("process_and_upload", {"data_source": str(data)})
    assert (result["status"], backend.rows()) == ("queued", [])

    async with (
        backend,
        serving(Plain(**settings(backend, data)), **runtime(data)) as service,
    ):
        await service.client.call("process_and_upload", {"data_source": str(data)})
        while not backend.rows():
            await service.client.call("health_report")
    assert len(backend.rows()) == 10


async def test_health_report_carries_the_seed_keys_and_the_true_status(
    backend: ReferenceBackend, data: Path
) -> None:
    write_csv(data / "a.csv", 10)
    async with serving(
        Plain(**settings(backend, data)), **runtime(data, installation_id="site-1")
    ) as service:
        await service.client.call("process_and_upload", {"data_source": str(data)})
        answer = await service.client.call("health_report")

    report = backend.reports[0]
    assert answer["status"] == "reported"
    assert (report["client_id"], report["status"], report["state"]) == ("site-1", "ok", "active")
    assert report["metrics"]["handler_id"] == "plain"
    assert report["outbox"]["uploads"] == 0
    assert "site-1" in backend.installations
    assert "test-key" not in str(backend.reports)


async def test_health_reports_calls_without_encryption_and_is_not_degraded_by_it(
    backend: ReferenceBackend, data: Path
) -> None:
    private = {"host": "0.0.0.0", "advertise_host": "127.0.0.1", "allow_plaintext": True}  # noqa: S104  # the case
    async with serving(Plain(**settings(backend, data)), **runtime(data, **private)) as service:
        await service.client.call("health_report")

    (reason,) = backend.reports[0]["reasons"]
    assert "without encryption" in reason
    assert backend.reports[0]["status"] == "ok"


async def test_reports_go_on_where_the_author_s_own_metrics_fail(
    backend: ReferenceBackend, data: Path
) -> None:
    async with serving(NoFigures(**settings(backend, data)), **runtime(data)) as service:
        answer = await service.client.call("health_report")

    assert answer["status"] == "reported"
    assert [report["state"] for report in backend.reports] == ["active", "stopping"]
    assert backend.reports[0]["metrics"]["handler_id"] == "no_figures"


async def test_a_handler_does_not_start_on_an_outbox_of_a_newer_release(
    backend: ReferenceBackend, data: Path
) -> None:
    state = runtime(data)["state_dir"] / "plain"
    state.mkdir(parents=True)
    with closing(sqlite3.connect(state / "outbox.sqlite")) as db:
        db.execute("PRAGMA user_version=99")
    before = (state / "outbox.sqlite").read_bytes()

    with pytest.raises(ConfigError, match=r"newer release \(schema 99.*install that release"):
        async with serving(Plain(**settings(backend, data)), **runtime(data)):
            pass

    assert (state / "outbox.sqlite").read_bytes() == before


@pytest.mark.parametrize(
    "source", ["/etc/passwd", "{root}/../outside.csv", "{root}-other/a.csv", "{root}/link.csv"]
)
async def test_what_lies_outside_the_data_roots_is_refused(
    backend: ReferenceBackend, data: Path, source: str
) -> None:
    outside, sibling = data.parent / "outside.csv", data.parent / "exports-other"
    sibling.mkdir()
    for path in (outside, sibling / "a.csv"):
        write_csv(path, 3)
    (data / "link.csv").symlink_to(outside)
    async with serving(Plain(**settings(backend, data)), **runtime(data)) as service:
        reply = await service.client.request(
            "process_and_upload", {"data_source": source.format(root=data)}
        )

    assert not reply.success
    assert "outside data_roots" in reply.error
    assert backend.rows() == []


def test_the_handlers_own_process_imports_neither_http_nor_data_libraries() -> None:
    code = (
        "import sys; import catalogzero; catalogzero.CloudProcessor;"
        "print([m for m in ('httpx', 'aiohttp', 'sqlalchemy', 'pyarrow', 'zstandard', 'tenacity',"
        " 'sqlite3') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"


def test_a_file_processor_without_data_roots_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="data_roots"):
        Plain(endpoint="https://example.invalid", api_key="k")
    assert issubclass(Plain, CloudProcessor)
