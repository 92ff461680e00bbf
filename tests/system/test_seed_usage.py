"""The requests of examples/seed_usage, sent as they stand, to the scheduler of ours."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.quickstart.processes import Processes, free_ports

ROOT = Path(__file__).parents[2]
SEED = ROOT / "examples/seed_usage"
CATALOGZERO = Path(sys.executable).with_name("catalogzero")
pytestmark = pytest.mark.timeout(180)


@dataclass
class House:
    """A client's folder with a scheduler and two handlers, and the vendor's backend."""

    folder: Path
    processes: Processes
    scheduler: str

    def run(self, example: str, *runner: str) -> str:
        """Run an example with this house's own ports and paths; what it prints."""
        text = (SEED / example).read_text()
        text = text.replace("http://localhost:8888", self.scheduler)
        script = self.folder / example
        script.write_text(text.replace("/data/exports", str(self.folder / "exports")))
        return self.processes.run(script.stem, *runner, script, cwd=self.folder)

    def get(self, path: str, **query: Any) -> Any:
        """GET from the scheduler; nothing while it does not answer."""
        try:
            return httpx.get(f"{self.scheduler}/api/{path}", params=query, timeout=30).json()
        except httpx.TransportError:
            return {}

    def connected(self) -> bool:
        """Whether the scheduler reaches both handlers."""
        handlers = self.get("handlers").get("handlers", [])
        return [h["status"] for h in handlers] == ["Connected", "Connected"]

    def newest(self, method: str) -> dict[str, Any] | None:
        """The newest good execution of a method."""
        records = self.get("executions", method_name=method, status="success")["records"]
        return records[0] if records else None

    def first_success(self, job_id: str) -> bool:
        """Whether a job has succeeded."""
        return bool(self.get("executions", job_id=job_id, status="success")["count"])

    def run_now(self, handler_id: str, method: str, **params: Any) -> Any:
        """Run a method at once; its result."""
        call = {"handler_id": handler_id, "method_name": method, "params": params}
        answer = httpx.post(f"{self.scheduler}/api/run_now", json=call, timeout=60)
        return answer.json()["result"]


@contextmanager
def house(folder: Path) -> Iterator[House]:
    """Everything that the examples speak to, on free ports."""
    http, zmq, backend, processor, conductor = free_ports(5)
    (folder / "exports").mkdir()
    (folder / "exports/orders.csv").write_text("order,amount\n1,20\n2,22\n")
    registration = f"tcp://127.0.0.1:{zmq}"
    env = {
        "CATALOGZERO_SCHEDULER": registration,
        "CATALOGZERO_STATE_DIR": str(folder / "state"),
        "CATALOGZERO_SETTLE_S": "0",
        "PYTHONPATH": str(SEED),
    }
    with Processes(folder / "logs") as processes:
        start = partial(processes.start, cwd=folder, env=env)
        database = ("--database", f"{folder}/backend.db")
        key_file = folder / "key"
        tenant = (CATALOGZERO, "backend", "tenants", "add", "client", "--key-file", key_file)
        processes.run("tenant", *tenant, *database, cwd=folder)
        start("backend", CATALOGZERO, "backend", "serve", "--port", str(backend), *database)
        ports = ("--port", str(http), "--zmq-port", str(zmq))
        start(
            "scheduler",
            CATALOGZERO,
            "scheduler",
            *ports,
            "--database",
            f"sqlite:///{folder}/jobs.db",
        )
        registry = folder / "handler_registry.yaml"
        registry.write_text(
            (SEED / "handler_registry.yaml")
            .read_text()
            .replace("5555", str(processor))
            .replace("client_api_key_here", key_file.read_text().strip())
            .replace("https://api.yourcompany.com/v1/process", f"http://127.0.0.1:{backend}/v1")
            .replace("/data/exports", str(folder / "exports"))
        )
        start("processor", CATALOGZERO, "run", "cloud_processor", "--registry", registry)
        peers = json.dumps({"cloud_processor": processor})
        config = ("--config", f"handler_registry={peers}", "--config", "dashboard_port=0")
        where = ("--handler-id", "conductor", "--port", str(conductor))
        start("conductor", CATALOGZERO, "run", "conductorzero:ConductorZero", *where, *config)
        made = House(folder, processes, f"http://127.0.0.1:{http}")
        processes.wait_for("both handlers", made.connected)
        yield made


def assert_metrics_alone_are_the_newest_record(client: House) -> None:
    """Schedule the first of the three jobs alone, and read what it collected, as the page does."""
    lines = (SEED / "schedule_metrics.py").read_text().partition("# Health check")[0]
    (client.folder / "first.py").write_text(
        lines.replace("http://localhost:8888", client.scheduler)
    )
    client.processes.run("first", sys.executable, client.folder / "first.py", cwd=client.folder)
    collected = partial(client.first_success, "metrics_collection")
    client.processes.wait_for("the first success", collected)

    (record,) = client.get("executions", handler_id="conductor", limit=1)["records"]
    assert record["result"]["summary"]["total_memory_mb"] > 1
    assert "Alive handlers: 1" in client.run("query_results.py", sys.executable)
    gone = httpx.delete(f"{client.scheduler}/api/schedules/metrics_collection", timeout=30)
    assert gone.status_code == 200


@pytest.mark.skipif(not shutil.which("curl"), reason="one of the requests is curl's")
def test_the_requests_work_as_they_stand(tmp_path: Path) -> None:
    with house(tmp_path) as client:
        assert_metrics_alone_are_the_newest_record(client)
        client.run("schedule_metrics.py", sys.executable)
        client.run("schedule_upload.sh", "sh")

        for method in ("collect_metrics", "health_check", "get_system_metrics"):
            record = client.processes.wait_for(method, partial(client.newest, method))
            assert record["handler_id"] == "conductor"
        schedules = {s["id"]: s for s in client.get("schedules")["schedules"]}
        nightly = next(s for name, s in schedules.items() if "process_and_upload" in name)
        due = datetime.fromisoformat(nightly["next_fire_time"]).astimezone()
        assert {"metrics_collection", "health_monitor", "system_metrics"} < set(schedules)
        assert (due.hour, due.minute) == (2, 0)

        jobs = {"metrics_collection": "handlers", "health_monitor": "handlers"}
        for job_id, key in {**jobs, "system_metrics": "memory"}.items():
            (record,) = client.get("executions", job_id=job_id, limit=1)["records"]
            assert (record["handler_id"], record["job_id"]) == ("conductor", job_id)
            assert key in record["result"]
        (record,) = client.get("executions", job_id="metrics_collection", limit=1)["records"]
        assert record["result"]["summary"]["alive_handlers"] == 1

        exports = str(tmp_path / "exports")
        result = client.run_now("cloud_processor", "process_and_upload", data_source=exports)
        assert (result["status"], result["records"]) == ("uploaded", 2)

        client.run_now("conductor", "collect_metrics")
        said = client.run("query_results.py", sys.executable)
        assert "Alive handlers: 1" in said


def test_the_registry_section_is_the_documented_one_with_one_line_more() -> None:
    lines = (SEED / "handler_registry.yaml").read_text().splitlines()

    assert [line for line in lines if "data_roots" in line] == ["      data_roots: [/data/exports]"]
    assert len(lines) == 9
