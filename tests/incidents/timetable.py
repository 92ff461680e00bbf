"""A scheduler beside a plant's handler, in a process of its own, as an operator looks at it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import yaml

from examples.quickstart.processes import free_ports
from tests.incidents.plant import CommandEnd, Plant, Row, until


class Timetable:
    """`catalogzero scheduler` on a plant's machine, where the plant's handler registers.

    Attributes:
        url: Of its API.
        database: Its SQLite file.
        ports: Of the API, and of registration.
    """

    def __init__(self, plant: Plant) -> None:
        self._plant = plant
        self.ports = free_ports(2)
        self.url = f"http://127.0.0.1:{self.ports[0]}"
        self.database = plant.folder / "scheduler.db"
        document = yaml.safe_load(plant.registry.read_text())
        document["scheduler"] = f"tcp://127.0.0.1:{self.ports[1]}"
        plant.registry.write_text(yaml.safe_dump(document))

    def begin(self) -> subprocess.Popen[bytes]:
        """Start it, and wait for nothing."""
        ports = ("--port", str(self.ports[0]), "--zmq-port", str(self.ports[1]))
        database = ("--database", str(self.database), "--database-timeout-s", "1")
        return self._plant.begin("scheduler", "scheduler", *ports, *database)

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        self.begin()
        await until(self.answers, lambda: f"the scheduler answers: {self.log}")

    async def registered(self) -> None:
        """Wait until it knows the handler."""
        await until(lambda: self.get("/api/handlers")["handlers"], "the handler registers")

    async def stop(self) -> None:
        """End it as systemd does."""
        await asyncio.to_thread(self._plant.processes.stop, "scheduler")

    def answers(self) -> bool:
        """Whether it is there."""
        try:
            return httpx.get(f"{self.url}/api/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def log(self) -> str:
        """What it logged."""
        path = Path(self._plant.processes.logs) / "scheduler.log"
        return path.read_text() if path.exists() else ""

    def get(self, path: str) -> Any:
        """What its API answers."""
        return httpx.get(f"{self.url}{path}", timeout=20).json()

    def runs(self, job_id: str) -> list[Row]:
        """The executions of a schedule, newest first."""
        return list(self.get(f"/api/executions?job_id={job_id}&limit=100")["records"])

    async def command(self, *arguments: str) -> CommandEnd:
        """`catalogzero schedule …` at this scheduler."""
        return await self._plant.command("schedule", "--url", self.url, *arguments)

    async def add(self, job_id: str, every: str) -> None:
        """A schedule that uploads the data root."""
        params = json.dumps({"data_source": str(self._plant.data)})
        call = ("add", "site", "process_and_upload", "--every", every, "--job-id", job_id)
        end = await self.command(*call, "--params", params)
        assert end.code == 0, end.text

    async def status(self) -> CommandEnd:
        """`catalogzero status --json` with this scheduler in it."""
        return await self._plant.command("status", "--json", "--url", self.url)
