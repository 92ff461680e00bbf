"""Schedulers and handlers as processes, which a test may stop, freeze and kill."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import psycopg

T = TypeVar("T")

CATALOGZERO = (sys.executable, "-m", "catalogzero")
POLL_S = 0.05
SECOND = timedelta(seconds=1)


class SchedulerProcess:
    """`catalogzero scheduler` on free ports.

    Args:
        database: Its URL.
        options: More of the command's options.
        port: Of the API; 0 is any free one.
        zmq_port: Where handlers register.
        catalogzero: The command itself.
    """

    def __init__(
        self,
        database: str,
        *options: str,
        port: int = 0,
        zmq_port: int = 0,
        catalogzero: tuple[str, ...] = CATALOGZERO,
    ) -> None:
        ports = ("--port", str(port), "--zmq-port", str(zmq_port))
        command = [*catalogzero, "scheduler", *ports, "--database", database, "--json", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"the scheduler ended with {self.process.wait()}"
        told = json.loads(line)
        self.url: str = told["url"]
        self.zmq_address: str = told["zmq_address"]
        self.api = httpx.Client(base_url=self.url, timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.api.close()

    def wait_for_handler(self, handler_id: str) -> None:
        """Wait until a handler has registered and answers."""

        def connected() -> bool:
            handlers = self.api.get("/api/handlers").json()["handlers"]
            return any(h["id"] == handler_id and h["status"] == "Connected" for h in handlers)

        until(connected)


@contextmanager
def handler_process(
    scheduler: str, folder: Path, port: int = 0, *options: str, within: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A chore (see `chore`) as a process, registered as `chore`; it notes its runs in `folder`.

    `within` is the command that runs it elsewhere, in its own process.
    """
    command = [
        *within,
        *(*CATALOGZERO, "run", "tests.scheduler.chore:Chore", "--handler-id", "chore"),
        *("--scheduler", scheduler, "--port", str(port), "--config", f"notes={folder / 'notes'}"),
        *("--set", f"state_dir={folder / 'state'}"),
        *options,
    ]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(look: Callable[[], T], timeout_s: float = 30.0) -> T:
    """Look again and again until what is seen is true."""
    never, deadline_s = threading.Event(), time.monotonic() + timeout_s
    while not (seen := look()):
        assert time.monotonic() < deadline_s, "it did not come true in time"
        never.wait(POLL_S)
    return seen


def executions(api: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    """Every record of a query, newest first, page after page."""
    records: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = api.get("/api/executions", params={"limit": 1_000, **query} | _at(cursor)).json()
        records += page["records"]
        cursor = page["cursor"]
        if cursor is None:
            return records


def cut_connections(database: str) -> None:
    """End every connection to a PostgreSQL database but this one."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def check_grid(records: list[dict[str, Any]]) -> None:
    """Every second from the first to the last is in one row, and in one only."""
    seconds: Counter[datetime] = Counter()
    for record in records:
        span = record.get("ticks", {"first": record["scheduled_at"], "count": 1})
        first = datetime.fromisoformat(span["first"])
        seconds.update(first + number * SECOND for number in range(span["count"]))
    assert set(seconds.values()) == {1}
    assert len(seconds) == (max(seconds) - min(seconds)) // SECOND + 1


def _at(cursor: str | None) -> dict[str, str]:
    return {} if cursor is None else {"cursor": cursor}
