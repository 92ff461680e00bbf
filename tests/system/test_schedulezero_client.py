"""A client that knows ScheduleZero's HTTP API alone works the same on our scheduler.

The server is ours, as a process; where SCHEDULEZERO_HTTP and SCHEDULEZERO_ZMQ are set (`make
interop`), the same client code talks to the server that listens there.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from catalogzero import Handler
from catalogzero.testing import serving

from tests.scheduler.processes import SchedulerProcess
from tests.scheduler.toys import until

REAL = os.environ.get("SCHEDULEZERO_HTTP")
pytestmark = [pytest.mark.timeout(120)]


class Worksite(Handler):
    """What the client has done for it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    async def add(self, left: int, right: int) -> dict[str, Any]:
        """A sum, with its summary."""
        self.calls.append(left)
        return {"sum": left + right, "summary": {"total": 1}}

    async def words(self) -> list[str]:
        """A result that is no object."""
        return ["one", "two"]

    async def fail(self) -> None:
        """Fail."""
        raise ValueError("no such table")


@dataclass
class Client:
    """A client as ScheduleZero's documentation has it: plain HTTP, its own names of fields."""

    api: httpx.AsyncClient
    handler_id: str
    worksite: Worksite

    async def post(self, path: str, method: str, **body: Any) -> httpx.Response:
        """POST a call."""
        call = {"handler_id": self.handler_id, "job_method": method, "job_params": {}}
        return await self.api.post(f"/api/{path}", json={**call, **body})

    async def get(self, path: str, **query: Any) -> dict[str, Any]:
        """GET an object."""
        told: dict[str, Any] = (await self.api.get(f"/api/{path}", params=query)).json()
        return told

    async def records(self, status: str | None = None) -> list[dict[str, Any]]:
        """The handler's executions, newest first."""
        query = {"handler_id": self.handler_id} | ({"status": status} if status else {})
        records: list[dict[str, Any]] = (await self.get("executions", **query))["records"]
        return records


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of HTTP and registration."""
    if REAL:
        yield REAL.rstrip("/"), os.environ["SCHEDULEZERO_ZMQ"]
        return
    database = tmp_path_factory.mktemp("scheduler") / "scheduler.db"
    with SchedulerProcess(f"sqlite:///{database}") as scheduler:
        yield scheduler.url, scheduler.zmq_address


@pytest.fixture
async def client(server: tuple[str, str], tmp_path: Path) -> AsyncIterator[Client]:
    """A client, and a handler that the server knows."""
    handler_id, worksite = f"site-{uuid.uuid4().hex[:8]}", Worksite()
    async with (
        httpx.AsyncClient(base_url=server[0], timeout=60) as api,
        serving(worksite, handler_id=handler_id, scheduler=server[1], state_dir=tmp_path),
    ):
        made = Client(api, handler_id, worksite)

        async def known() -> bool:
            listed = (await made.get("handlers"))["handlers"]
            return any(one["id"] == handler_id for one in listed)

        await until(known)
        yield made


async def test_run_now_answers_the_reply_and_records_it(client: Client) -> None:
    answer = await client.post("run_now", "add", job_params={"left": 2, "right": 40})
    (record,) = await client.records()

    assert answer.status_code == 200
    told = answer.json()
    assert told["status"] == "success"
    assert told["message"] == f"Job executed on handler '{client.handler_id}'"
    assert told["result"] == {"success": True, "sum": 42, "summary": {"total": 1}}
    assert record["result"] == told["result"]
    assert (record["status"], record["method_name"]) == ("success", "add")
    assert (record["attempt_number"], record["max_attempts"]) == (1, 3)
    assert record["params_summary"] == "left=2, right=40"
    assert record["duration_ms"] >= 0
    times = [datetime.fromisoformat(record[name]) for name in ("started_at", "completed_at")]
    assert times == sorted(times)


async def test_a_result_that_is_no_object_is_under_its_key(client: Client) -> None:
    answer = await client.post("run_now", "words")

    assert answer.json()["result"] == {"success": True, "result": ["one", "two"]}


async def test_a_failure_is_an_error_everywhere(client: Client) -> None:
    answer = await client.post("run_now", "fail")
    records = await client.records(status="error")
    errors = (await client.get("executions/errors", limit=500))["errors"]

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == 500
    assert "Failed to execute job" in answer.json()["error"]["message"]
    assert "no such table" in records[0]["error"]
    assert any(one["handler_id"] == client.handler_id for one in errors)


@pytest.mark.parametrize("trigger", ["interval", "date"])
async def test_a_schedule_fires_is_listed_and_is_recorded(client: Client, trigger: str) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    triggers = {
        "interval": {"type": "interval", "hours": 1},
        "date": {"type": "date", "run_date": soon},
    }
    job_id = f"job-{uuid.uuid4().hex[:8]}"
    params = {"left": 1, "right": 2}
    body = {"trigger": triggers[trigger], "job_id": job_id, "job_params": params}
    answer = await client.post("schedule", "add", **body)
    records = await until(lambda: client.records(status="success"))

    assert (answer.status_code, answer.json()["job_id"]) == (201, job_id)
    assert [one["job_id"] for one in records] == [job_id]
    assert records[0]["result"]["summary"]["total"] == 1
    assert client.worksite.calls == [1]


async def test_a_schedule_is_listed_with_its_call_and_removed(client: Client) -> None:
    job_id = f"job-{uuid.uuid4().hex[:8]}"
    body = {"trigger": {"type": "cron", "hour": 2}, "job_id": job_id}
    assert (await client.post("schedule", "words", **body)).status_code == 201
    listed = (await client.get("schedules"))["schedules"]
    removed = await client.api.delete(f"/api/schedules/{job_id}")
    left = (await client.get("schedules"))["schedules"]

    (mine,) = [one for one in listed if one["id"] == job_id]
    assert mine["args"] == [client.handler_id, "words", {}, job_id]
    assert datetime.fromisoformat(mine["next_fire_time"]) > datetime.now(UTC)
    assert mine["trigger"]
    assert removed.json()["schedule_id"] == job_id
    assert job_id not in [one["id"] for one in left]


@pytest.mark.parametrize(
    ("path", "change", "status", "message"),
    [
        ("run_now", {"handler_id": "nobody"}, 404, "Handler 'nobody' not registered."),
        ("run_now", {"job_method": "dig"}, 400, "Method 'dig' not exposed by handler"),
        ("run_now", {"job_params": [1]}, 400, "'job_params' must be"),
        ("schedule", {}, 400, "Missing required field: 'trigger'"),
        ("schedule", {"trigger": {"type": "weekly"}}, 400, "Unsupported trigger type: 'weekly'"),
    ],
)
async def test_a_wrong_request_is_answered_with_its_fault(
    client: Client, path: str, change: dict[str, Any], status: int, message: str
) -> None:
    answer = await client.post(path, "words", **change)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == status
    assert message in answer.json()["error"]["message"]


async def test_health_statistics_and_handlers_have_the_keys_of_the_document(
    client: Client,
) -> None:
    await client.post("run_now", "words")
    stats = await client.get("executions/stats")
    (mine,) = [
        one for one in (await client.get("handlers"))["handlers"] if one["id"] == client.handler_id
    ]

    assert (await client.get("health"))["status"] == "ok"
    assert {"total_executions", "success_count", "error_count", "success_rate"} <= stats.keys()
    assert {"address", "methods", "status"} <= mine.keys()
    assert "add" in mine["methods"]
