"""The scaled demo's processes: what runs on several hosts elsewhere, all on this machine.

Owns the database of the demo's own, the registry file, and how each process is started: two
backends and two schedulers on that database, three instances of one handler, two of a processor
that share their store there. All calls go through a NATS server that runs already.

Layer: edge.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import yaml

from examples.quickstart.flights import Count
from examples.quickstart.processes import DemoError, Processes, free_ports
from examples.quickstart.scheduler import Scheduler, answers
from examples.quickstart.vendor import COMMAND, ROOT

POSTGRESQL = os.environ.get(
    "CATALOGZERO_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/test"
).replace("+psycopg", "")
NATS = os.environ.get("CATALOGZERO_TEST_NATS", "nats://127.0.0.1:4222")
PAIR, INSTANCES = (1, 2), ("a", "b", "c")
PLACES, LEASE_S = 2, 3
SERVICES = [
    *(f"{kind}-{number}" for kind in ("backend", "scheduler") for number in PAIR),
    *(f"census-{name}" for name in INSTANCES),
    *(f"processor-{number}" for number in PAIR),
]

VISIBLE = """
SELECT count(*), coalesce(sum(CAST(CAST(payload AS json) ->> 'distance' AS bigint)), 0)
FROM visible_records
"""
COMPLETED = "SELECT count(*) FROM uploads WHERE job_id IS NOT NULL"
BYTES = "SELECT pg_total_relation_size('records')"


class ScaledScheduler(Scheduler):
    """One of the two schedulers, over HTTP."""

    def add(self, job_id: str, at: datetime, call: dict[str, Any]) -> None:
        """Have it make a call once, at a moment."""
        self._post(
            "schedule",
            {**call, "job_id": job_id, "trigger": {"type": "date", "run_date": at.isoformat()}},
        )

    def run(self, call: dict[str, Any]) -> None:
        """Have it make a call now, and wait for its result."""
        self._post("run_now", call)

    def records(self) -> list[dict[str, Any]]:
        """What ran of the schedules, the newest first."""
        found = self._get("executions", limit=1_000)["records"]
        return [one for one in found if not one["job_id"].startswith("immediate_")]

    def callable(self) -> set[str]:
        """The handlers that it reaches; of one with instances, `handler_id/instance_id`."""
        found = set()
        for one in self._get("handlers")["handlers"]:
            each = [(f"{one['id']}/{of['instance_id']}", of) for of in one["instances"]]
            found |= {name for name, of in each or [(one["id"], one)] if is_connected(of)}
        return found


def is_connected(shown: dict[str, Any]) -> bool:
    """Whether a handler, or an instance, answered when it was asked last."""
    return bool(shown["status"] == "Connected")


class ScaledSite:
    """All processes of the scaled demo, by their names in `SERVICES`."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self.processes = processes
        self.folder = folder
        self.data, self.notes = folder / "data", folder / "notes"
        self.database = ""
        own = uuid.uuid4().hex[:8]  # others may use the same NATS server
        self.census = f"census-{own}"
        self.processor = f"flights-{own}"
        ports = free_ports(6)
        self._backends, self._apis, self._registrations = ports[:2], ports[2:4], ports[4:]
        urls = [f"http://127.0.0.1:{port}" for port in self._apis]
        self.schedulers = [ScaledScheduler(url, self.data) for url in urls]

    def open(self, undo: ExitStack) -> None:
        """Look for both engines, and make the database.

        Raises:
            DemoError: One of them is not there; says how to start or to name it.
        """
        missing = [] if nats_answers() else [
            f"no NATS server answers at {NATS}: start `nats-server`, or name one in "
            "CATALOGZERO_TEST_NATS"
        ]  # fmt: skip
        try:
            self.database = undo.enter_context(own_database())
        except psycopg.Error as error:
            missing.append(
                f"no PostgreSQL on which a database can be made: {str(error).strip()}; start it, "
                "or name one in CATALOGZERO_TEST_POSTGRESQL (postgresql://user@host:5432/database)"
            )
        if missing:
            raise DemoError("; ".join(missing))

    def start_all(self) -> None:
        """Start everything, and wait until both schedulers reach all handlers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._registry().write_text(yaml.safe_dump(self._sections(), sort_keys=False))
        add = (COMMAND, "backend", "tenants", "add", "client", "--key-file", self._key_file())
        self.processes.run("backend-tenant", *add, cwd=ROOT, env=self._environment("backend"))
        for name in SERVICES[:4]:
            self.start(name)
        self.processes.wait_for(
            "both schedulers", lambda: all(one.is_up() for one in self.schedulers)
        )
        for name in SERVICES[4:]:
            self.start(name)
        wanted = {f"{self.census}/{name}" for name in INSTANCES}
        wanted |= {f"{self.processor}/{number}" for number in PAIR}
        self.processes.wait_for(
            "every handler at both schedulers",
            lambda: all(one.callable() == wanted for one in self.schedulers),
        )
        urls = [f"http://127.0.0.1:{port}/readyz" for port in self._backends]
        self.processes.wait_for("both backends", lambda: all(map(answers, urls)))

    def start(self, name: str) -> None:
        """Start one of `SERVICES`; after a kill too, as systemd does where it runs as a unit."""
        kind, _, which = name.partition("-")
        environment = self._environment(kind)
        if kind in ("backend", "scheduler"):
            number = int(which) - 1
            ports = (self._backends if kind == "backend" else self._apis)[number]
            command = [kind, *(["serve"] if kind == "backend" else []), "--port", str(ports)]
            if kind == "scheduler":
                command += ["--zmq-port", str(self._registrations[number])]
        else:
            # Half of them register with each scheduler; both find them in the database.
            second = which in ("b", "2")
            handler_id = self.census if kind == "census" else self.processor
            command = ["run", handler_id, "--registry", str(self._registry())]
            command += ["--scheduler", f"tcp://127.0.0.1:{self._registrations[second]}"]
            environment["CATALOGZERO_INSTANCE_ID"] = which
            if kind == "processor":  # each sends to the backend of its own side
                port = self._backends[int(which) - 1]
                environment["FILE_PROCESSOR_ENDPOINT"] = f"http://127.0.0.1:{port}/v1"
        self.processes.start(name, COMMAND, *command, cwd=ROOT, env=environment)

    def visible(self) -> Count:
        """Rows of completed uploads, and the sum of their `distance`, by SQL."""
        rows, distance = self._query(VISIBLE)
        return Count(rows, int(distance))

    def completed(self) -> int:
        """How many uploads were ever completed."""
        return int(self._query(COMPLETED)[0])

    def bytes_a_row(self) -> float:
        """What a row takes in PostgreSQL, with its indexes."""
        return round(int(self._query(BYTES)[0]) / self.visible().rows, 1)

    def _query(self, sql: str) -> tuple[Any, ...]:
        with psycopg.connect(self.database, autocommit=True) as connection:
            return connection.execute(sql.encode()).fetchone() or ()

    def _registry(self) -> Path:
        return self.folder / "handler_registry.yaml"

    def _key_file(self) -> Path:
        return self.folder / "api_key"

    def _environment(self, kind: str) -> dict[str, str]:
        """The variables of a process, by what it is."""
        match kind:
            case "backend":
                return {"CATALOGZERO_BACKEND_DATABASE": self.database}
            case "scheduler":
                lease = {"CATALOGZERO_SCHEDULER_LEASE_S": str(LEASE_S)}
                return {"CATALOGZERO_SCHEDULER_DATABASE": self.database, **lease}
        return {"CATALOGZERO_STATE_DIR": str(self.folder / "state")}

    def _sections(self) -> dict[str, Any]:
        """The registry file."""
        census = {
            "handler_id": self.census,
            "module_path": "examples.quickstart.census",
            "class_name": "FlightCensus",
            "transport": NATS,
            "max_concurrent_jobs": PLACES,
            "max_queued_jobs": 0,  # what has no place waits in the database
            "config": {"parts": str(self.data), "notes": str(self.notes)},
        }
        processor = {
            "handler_id": self.processor,
            "entry": "file-processor",
            "transport": NATS,
            "state": self.database,
            "installation_id": "client",
            "min_file_age_s": 0,
            "config": {
                "api_key_file": str(self._key_file()),
                "data_roots": [str(self.data / str(number)) for number in PAIR],
            },
        }
        return {"handlers": [census, processor]}


def nats_answers() -> bool:
    """Whether a NATS server is where one is to be."""
    host, _, port = NATS.rpartition("://")[2].rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), 3) as connection:
        connection.settimeout(3)
        return connection.recv(4) == b"INFO"
    return False


@contextmanager
def own_database() -> Iterator[str]:
    """The URL of a new database; it is dropped at the end."""
    name = f"catalogzero_demo_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(POSTGRESQL, autocommit=True, connect_timeout=3) as server:
        server.execute(f"CREATE DATABASE {name}")
    try:
        yield f"{POSTGRESQL.rpartition('/')[0]}/{name}"
    finally:
        with psycopg.connect(POSTGRESQL, autocommit=True, connect_timeout=3) as server:
            server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
