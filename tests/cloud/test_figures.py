"""What metrics, health and the records of runs say of the way to the backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from catalogzero.cloud.settings import Batch, Params
from catalogzero.config.settings import RuntimeSettings
from catalogzero.errors import CatalogZeroError
from catalogzero.runtime.control_answers import Failure, OutboxFigures
from catalogzero.runtime.health import judge_health
from catalogzero.testing import ManualClock, serving
from pydantic import ValidationError

from tests.cloud.processors import Plain
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


class Faulty(Plain):
    """Its `process` raises where a row says so."""

    def process(self, batches: Iterable[Any], params: Params) -> Iterator[Batch]:
        for batch in batches:
            if any(row["n"] == "bad" for row in batch):
                raise ValueError("cannot take bad with test-key")
            yield batch


def processor(backend: ReferenceBackend, data: Path) -> Faulty:
    return Faulty(endpoint=backend.url, api_key="test-key", data_roots=[data])


async def test_metrics_name_the_last_upload_the_totals_and_the_last_runs(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    good, bad = tmp_path / "a.csv", tmp_path / "b.csv"
    good.write_text("n\n1\n2\n")
    bad.write_text("n\nbad\n")
    runtime: dict[str, Any] = {"min_file_age_s": 0, "labels": {"site": "berlin"}}
    async with serving(processor(backend, tmp_path), **runtime) as service:
        call = service.client.call
        before = await call("get_metrics")
        done = await call("process_and_upload", {"data_source": str(good)})
        with pytest.raises(CatalogZeroError):
            await call("process_and_upload", {"data_source": str(bad)})
        await until(lambda: len(backend.visible) == 1)
        metrics = await call("get_metrics")
        runs = (await call("list_runs"))["runs"]
        await call("health_report")

    outbox, failed = metrics["outbox"], metrics["last_failed_run"]
    assert (outbox["uploaded_total"], outbox["uploaded_records_total"]) == (1, 2)
    assert outbox["last_upload_at"] >= done["timestamp"][:19]
    assert outbox["disk_free_bytes"] > 0
    assert (before["last_successful_run"], before["last_failed_run"]) == (None, None)
    assert before["health"] == {"status": "ok", "reasons": []}
    assert metrics["last_successful_run"]["method"] == "process_and_upload"
    assert failed["run_id"] == runs[0]["run_id"]
    assert (failed["code"], failed["type"]) == ("failed", "ValueError")
    assert metrics["health"]["status"] == "failing"
    assert failed["run_id"] in metrics["health"]["reasons"][0]
    assert [run["outcome"]["state"] for run in runs] == ["failed", "uploaded"]
    assert metrics["labels"] == {"site": "berlin"}
    report = backend.reports[-1]
    assert report["labels"] == {"site": "berlin"}
    assert report["last_failed_run"] == failed
    assert report["status"] == "failing"


async def test_a_run_has_its_uploads_and_a_failed_one_the_traceback_of_its_author(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    good, bad = tmp_path / "a.csv", tmp_path / "b.csv"
    good.write_text("n\n1\n2\n")
    bad.write_text("n\nbad\n")
    async with serving(processor(backend, tmp_path), min_file_age_s=0) as service:
        request = service.client.request
        done = await request("process_and_upload", {"data_source": str(good)}, timeout_s=30)
        failed = await request("process_and_upload", {"data_source": str(bad)}, timeout_s=30)
        first = await service.client.call("get_run", {"run_id": done.run_id})
        second = await service.client.call("get_run", {"run_id": failed.run_id})

    [upload] = first["uploads"]
    assert upload["upload_id"] == done.result["upload_ids"][0]
    assert (upload["state"], upload["records"], upload["reason"]) == ("done", 2, None)
    assert upload["completed_at"]
    assert "traceback" not in first
    assert 'test_figures.py", line' in second["traceback"]
    assert "ValueError: cannot take bad with **********" in second["traceback"]
    assert "catalogzero/cloud/pipeline.py" not in second["traceback"]


async def test_a_fault_is_named_with_its_next_try_and_gone_once_it_goes_well(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    backend.fault = lambda request: web.Response(status=500)
    runtime = {"upload_wait_s": 0}
    async with Site(backend.url, tmp_path, runtime=runtime) as site:
        site.write("a.csv", "n\n1\n")
        await site.run()
        await until(lambda: site.status.get("outbox", {}).get("fault"))
        broken = site.status
        backend.fault = lambda request: None
        await until(lambda: len(backend.visible) == 1)
        await until(lambda: not site.status["outbox"]["uploads"])
        well = site.status

    outbox = broken["outbox"]
    assert (outbox["fault"], outbox["paused"]) == ("http_500", None)
    assert outbox["fault_since"] <= outbox["next_try_at"]
    assert (well["outbox"]["fault"], well["outbox"]["next_try_at"]) == (None, None)


async def test_a_pause_keeps_its_reason_its_beginning_and_its_next_try_over_a_restart(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    backend.fault = lambda request: web.Response(status=401)
    clock = ManualClock()
    runtime = {"upload_wait_s": 0}
    found = []
    for _ in range(2):
        async with Site(backend.url, tmp_path, clock=clock, runtime=runtime) as site:
            await until(lambda: site.status.get("outbox", {}).get("paused"))
            await until(lambda: site.engine.sender.paused)
            found.append((site.status["outbox"], site.outbox.store.pause()))
        await clock.advance(60)

    (first, kept), (second, _) = found
    assert "401" in first["paused"]
    assert first["paused_code"] == "http_401"
    assert kept == {
        "reason": first["paused"],
        "code": "http_401",
        "since": first["paused_since"],
        "next_try_at": first["next_try_at"],
    }
    assert second["paused_since"] == first["paused_since"]


def test_labels_are_read_from_the_environment_and_are_plain_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CATALOGZERO_LABELS", "site=berlin, line=4")
    assert RuntimeSettings().labels == {"site": "berlin", "line": "4"}
    monkeypatch.setenv("CATALOGZERO_LABELS", '{"site": "berlin"}')
    assert RuntimeSettings().labels == {"site": "berlin"}
    for wrong in ("berlin", "Site=x", '["site"]', '{"site": 4'):
        monkeypatch.setenv("CATALOGZERO_LABELS", wrong)
        with pytest.raises(ValidationError):
            RuntimeSettings()


WELL: OutboxFigures = {
    "uploads": 1,
    "records": 1,
    "bytes": 1,
    "oldest_at": "2026-01-01T00:00:00+00:00",
    "oldest_age_s": 60.0,
    "dead": 0,
    "missing": 0,
    "paused": None,
    "paused_code": None,
    "paused_since": None,
    "next_try_at": None,
    "fault": None,
    "fault_since": None,
    "last_upload_at": None,
    "uploaded_total": 0,
    "uploaded_records_total": 0,
    "disk_free_bytes": 1 << 40,
}


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({}, "ok", ""),
        ({"paused": "403 no"}, "failing", "sending is paused: 403 no"),
        ({"dead": 3}, "failing", "3 uploads were refused"),
        ({"oldest_age_s": 93_600.0}, "degraded", "the oldest upload waits for 93600 s"),
        ({"fault": "http_500"}, "degraded", "http_500"),
        ({"disk_free_bytes": 100 << 20}, "degraded", "nearly full: 100 MiB are free"),
    ],
)
def test_health_is_judged_by_what_arrives(more: Any, status: str, words: str) -> None:
    found = judge_health({**WELL, **more}, None)
    assert found["status"] == status
    assert words in "; ".join(found["reasons"])


def test_health_of_a_handler_without_an_outbox_is_that_of_its_last_run() -> None:
    failure: Failure = {"code": "failed", "type": "ValueError", "method": "greet"}
    assert judge_health(None, None)["status"] == "ok"
    assert judge_health(None, failure)["status"] == "failing"
