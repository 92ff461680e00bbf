"""The three services that use a database over the network, each as a process that can be asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import psycopg
from catalogzero import Batch, CloudProcessor, HandlerClient, Params

from examples.quickstart.processes import free_ports
from tests.backend.test_command import run, served
from tests.scheduler.processes import CATALOGZERO, SchedulerProcess

ANSWERED, AWAY = "answered", "away"
TIMEOUT_S = 1.0


class Service(Protocol):
    """A service on a database."""

    process: subprocess.Popen[Any]

    async def ask(self) -> str:
        """Let it use its database: `ANSWERED`, or `AWAY` in the service's own words."""


class BackendService:
    """`catalogzero backend serve`, asked to write."""

    def __init__(self, process: subprocess.Popen[str], endpoint: str, key: str) -> None:
        self.process = process
        self._url, self._key = f"{endpoint}/installations/site-1", key

    async def ask(self) -> str:
        """See `Service.ask`."""
        headers = {"Authorization": f"Bearer {self._key}"}
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            answer = await client.put(self._url, json={"entry": "skylark"}, headers=headers)
        if answer.status_code in (200, 201):
            return ANSWERED
        assert (answer.status_code, answer.json()["type"]) == (
            503,
            "urn:catalogzero:problem:unavailable",
        )
        return AWAY


class SchedulerService:
    """`catalogzero scheduler`, asked to write and to read."""

    def __init__(self, scheduler: SchedulerProcess) -> None:
        self.process, self._url = scheduler.process, scheduler.url

    async def ask(self) -> str:
        """See `Service.ask`."""
        async with httpx.AsyncClient(base_url=self._url, timeout=60, trust_env=False) as client:
            written = await client.delete("/api/schedules/nothing")
            read = await client.get("/api/schedules")
        if (written.status_code, read.status_code) == (404, 200):
            return ANSWERED
        for answer in (written, read):
            if answer.status_code not in (404, 200):
                assert answer.status_code == answer.json()["error"]["code"] == 503
        return AWAY


class Rows(CloudProcessor):
    """Passes rows on."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        yield from batches


class SourceService:
    """A handler whose query reads the database, asked to run it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self._address = process, f"tcp://127.0.0.1:{port}"

    async def ask(self) -> str:
        """See `Service.ask`."""
        asked = {"data_source": "sql:orders", "params": {"full": True}}
        async with HandlerClient(self._address) as client:
            reply = await client.request("process_and_upload", asked, timeout_s=60)
        if not reply.success:
            assert "sql:orders: " in str(reply.error), reply
            return AWAY
        assert reply.result["records"] == 3
        return ANSWERED


@contextmanager
def backend(behind: str, straight: str, folder: Path) -> Iterator[Service]:
    """A backend with one tenant."""
    key = run("tenants", "add", "skylark", "--database", straight).stdout.strip()
    os.environ["CATALOGZERO_BACKEND_DATABASE_TIMEOUT_S"] = str(TIMEOUT_S)
    try:
        with served("--database", behind) as (process, announced):
            yield BackendService(process, announced["endpoint"], key)
    finally:
        del os.environ["CATALOGZERO_BACKEND_DATABASE_TIMEOUT_S"]


@contextmanager
def scheduler(behind: str, straight: str, folder: Path) -> Iterator[Service]:
    """A scheduler without schedules."""
    with SchedulerProcess(behind, "--database-timeout-s", str(TIMEOUT_S)) as process:
        yield SchedulerService(process)


@contextmanager
def source(behind: str, straight: str, folder: Path) -> Iterator[Service]:
    """A handler with a query of three rows, and a backend on SQLite that takes them."""
    with psycopg.connect(straight) as connection:
        connection.execute("CREATE TABLE orders AS SELECT generate_series(1, 3) AS id")
    database = str(folder / "backend.db")
    key_file, (port,) = folder / "key", free_ports(1)
    run("tenants", "add", "skylark", "--database", database, "--key-file", str(key_file))
    query = {"query": "SELECT id FROM orders", "url": behind, "answer_timeout_s": TIMEOUT_S}
    with ExitStack() as undo:
        _, announced = undo.enter_context(served("--database", database))
        config = {"endpoint": announced["endpoint"], "api_key_file": str(key_file)}
        handler = {
            **{"handler_id": "rows", "module_path": "tests.sql.services", "class_name": "Rows"},
            **{"port": port, "state_dir": str(folder / "state"), "drain_timeout_s": 1},
            "config": {**config, "sources": {"orders": query}},
        }
        registry = folder / "handler_registry.yaml"
        registry.write_text(json.dumps({"scheduler": "none", "handlers": [handler]}))
        command = [*CATALOGZERO, "run", "rows", "--registry", str(registry)]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=sys.stderr)
        undo.callback(process.wait)
        undo.callback(process.kill)
        yield SourceService(process, port)


SERVICES: dict[str, Callable[[str, str, Path], Any]] = {
    "backend": backend,
    "scheduler": scheduler,
    "source": source,
}
