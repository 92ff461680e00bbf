"""The client's scheduler, spoken to over HTTP as an operator would.

Owns the request bodies; a ScheduleZero server takes the same ones, with `job_method` and
`job_params` as their keys.

Layer: edge.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from examples.quickstart.client import CONDUCTOR, HANDLER
from examples.quickstart.processes import DemoError

NIGHTLY = {"type": "cron", "hour": 2, "minute": 0}


class Scheduler:
    """What the demo asks of the scheduler at `url`; `data` is the client's data directory."""

    def __init__(self, url: str, data: Path) -> None:
        self.url = url
        self.data = data
        self._http = httpx.Client(base_url=url, timeout=120)

    def schedule_all(self) -> dict[str, str]:
        """The documentation's four schedules, as they stand there; next times by schedule."""
        upload = {"handler_id": HANDLER, "method_name": "process_and_upload"}
        health = {"handler_id": HANDLER, "method_name": "health_report"}
        collect = {"handler_id": CONDUCTOR, "method_name": "collect_metrics"}
        check = {"handler_id": CONDUCTOR, "method_name": "health_check"}
        self._post("schedule", {**upload, **self._params({}), "trigger": NIGHTLY})
        self._post("schedule", {**health, "trigger": _every(15)})
        self._post("schedule", {**collect, "trigger": _every(5), "job_id": "metrics_collection"})
        self._post("schedule", {**check, "trigger": _every(1), "job_id": "health_monitor"})
        schedules = self._get("schedules")["schedules"]
        return {schedule["id"]: schedule["next_fire_time"] for schedule in schedules}

    def upload(self, **params: Any) -> str:
        """Have it call process_and_upload once, now; the schedule's id."""
        now = {"type": "date", "run_date": datetime.now(UTC).isoformat()}
        call = {"handler_id": HANDLER, "method_name": "process_and_upload", "trigger": now}
        return str(self._post("schedule", {**call, **self._params(params)})["job_id"])

    def metrics(self) -> dict[str, Any]:
        """The handler's metrics, as the conductor collects them."""
        call = {"handler_id": CONDUCTOR, "method_name": "collect_metrics", "params": {}}
        return dict(self._post("run_now", call)["result"]["handlers"][HANDLER])

    def report_health(self) -> None:
        """Have the handler report its health to the backend, now."""
        self._post("run_now", {"handler_id": HANDLER, "method_name": "health_report"})

    def outcome(self, job_id: str) -> dict[str, Any] | None:
        """The ended execution of a schedule, if it has ended."""
        records = self._get("executions", job_id=job_id)["records"]
        return next((dict(r) for r in records if r["status"] not in ("running", "retry")), None)

    def last(self, handler_id: str, method: str) -> dict[str, Any] | None:
        """The newest execution of a method that went well."""
        query = {"handler_id": handler_id, "method_name": method, "status": "success"}
        records = self._get("executions", **query, limit=1)["records"]
        return dict(records[0]) if records else None

    def connected(self) -> bool:
        """Whether it reaches both handlers."""
        handlers = self._get("handlers")["handlers"]
        return {h["id"] for h in handlers if h["status"] == "Connected"} == {HANDLER, CONDUCTOR}

    def is_up(self) -> bool:
        """Whether it answers."""
        return answers(f"{self.url}/api/health")

    def _params(self, params: dict[str, Any]) -> dict[str, Any]:
        own = {"format": "parquet", **params}
        return {"params": {"data_source": str(self.data), "params": own}}

    def _get(self, path: str, **query: Any) -> dict[str, Any]:
        return _answer(self._http.get(f"/api/{path}", params=query))

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return _answer(self._http.post(f"/api/{path}", json=body))


def answers(url: str) -> bool:
    """Whether a good answer comes from there."""
    try:
        return httpx.get(url, timeout=2, follow_redirects=True).is_success
    except httpx.TransportError:
        return False


def _every(minutes: int) -> dict[str, Any]:
    return {"type": "interval", "minutes": minutes}


def _answer(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a good answer; any other stops the demo."""
    if response.is_success:
        return dict(response.json())
    raise DemoError(f"{response.request.url}: {response.status_code} {response.text[:500]}")
