"""The processes of a storm: a handler with its worker, a backend; what dies is started again."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
import yaml
from catalogzero import CallTimeoutError, CatalogZeroError, HandlerClient

from examples.quickstart.processes import free_ports
from tests.chaos.sources import Client

LOOK_S = 0.02
PATIENCE_S = 120.0
RESEND_S = 10.0
FEW_BYTES = 1 << 13
UNLIMITED = resource.RLIM_INFINITY


class Site:
    """Handler and backend of one storm.

    Args:
        folder: Where state, logs and the registry file are.
        database: The backend's, as a URL.
        client: What it has.
        chunk_bytes: The handler's setting.
        mutant: The fault that is built into one of them.
    """

    def __init__(
        self, folder: Path, database: str, client: Client, chunk_bytes: int, mutant: str
    ) -> None:
        self._folder, self._database, self._mutant = folder, database, mutant
        self.state = folder / "state"
        self.state.mkdir()
        (folder / "logs").mkdir()
        self.proxy_port, self.backend_port, self._handler_port = free_ports(3)
        self.die_at = {"outbox": self.state / "die_at", "backend": folder / "backend_die_at"}
        self._registry = folder / "handler_registry.yaml"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._backend_settings: dict[str, str] = {}
        self._down: set[str] = set()
        self._logs = 0
        self._write_registry(client, chunk_bytes)

    def _write_registry(self, client: Client, chunk_bytes: int) -> None:
        """The client's file; the installation's id stands in it, so that a lost folder keeps it."""
        added = self._command("backend", "tenants", "add", "t", "--json", *self._db())
        handler = {
            "handler_id": "h",
            "module_path": "tests.chaos.processors",
            "class_name": client.author,
            "port": self._handler_port,
            "installation_id": "site",
            "state_dir": str(self.state),
            "min_file_age_s": 0,
            "chunk_bytes": chunk_bytes,
            "upload_wait_s": 2,
            "config": {
                "endpoint": f"http://127.0.0.1:{self.proxy_port}/v1",
                "api_key": json.loads(added)["key"],
                **client.config,
            },
        }
        self._registry.write_text(yaml.safe_dump({"scheduler": "none", "handlers": [handler]}))

    def outbox_path(self, suffix: str = "") -> Path:
        """The outbox's file, or one beside it."""
        return self.state / f"h/outbox.sqlite{suffix}"

    @cached_property
    def client(self) -> HandlerClient:
        """A connection to the handler; made on the loop that uses it."""
        return HandlerClient(f"tcp://127.0.0.1:{self._handler_port}")

    # ServingThread and death

    async def keep_up(self) -> None:
        """Start what has died, until cancelled."""
        while True:
            self.start()
            await asyncio.sleep(LOOK_S)

    def start(self) -> None:
        """Start what does not run."""
        if "backend" not in self._down and not self._runs("backend"):
            serve = ("backend", "serve", "--port", str(self.backend_port), *self._db())
            self._start("backend", "tests.chaos.backend_process", *serve)
        if "handler" not in self._down and not self._runs("handler"):
            named = ("h", "--registry", str(self._registry))
            self._start("handler", "catalogzero", "run", *named)

    def kill(self, victim: str) -> bool:
        """Kill -9 the handler, its worker or the backend; False when there is none."""
        pid = self.pid(victim)
        with suppress(ProcessLookupError):
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                if victim in self._processes:
                    self._processes[victim].wait()
                return True
        return False

    def pid(self, victim: str) -> int | None:
        """The process id of the handler, its worker or the backend."""
        if victim != "worker":
            return self._processes[victim].pid if self._runs(victim) else None
        with suppress(psutil.NoSuchProcess, KeyError):
            children = psutil.Process(self._processes["handler"].pid).children()
            return children[0].pid if children else None
        return None

    def stop(self) -> None:
        """The end of all."""
        for name in ("handler", "backend"):
            self.kill(name)
        self.client.close()

    def restart_backend(self, **settings: object) -> None:
        """Kill the backend; it comes back with these settings."""
        self._backend_settings = {
            f"CATALOGZERO_BACKEND_{name.upper()}": str(value) for name, value in settings.items()
        }
        self.kill("backend")

    def lose_state_folder(self) -> None:
        """Kill the handler, and remove what it kept before it is back."""
        with self.stopped("handler"):
            shutil.rmtree(self.state / "h", ignore_errors=True)

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """While it is open the handler with its worker, or the backend, is killed and stays so."""
        self._down.add(name)
        try:
            worker = self.pid("worker") if name == "handler" else None
            self.kill(name)
            while worker is not None and psutil.pid_exists(worker):
                time.sleep(LOOK_S)  # nothing else runs here meanwhile
            yield
        finally:
            self._down.discard(name)

    def copy_state_folder(self) -> Path:
        """What a snapshot, or a clone of the machine, has of the state folder now."""
        copy = self._folder / f"copy-{uuid.uuid4().hex[:8]}"
        with self.stopped("handler"):
            shutil.copytree(self.state / "h", copy)
        return copy

    def put_state_folder(self, folder: Path) -> Path:
        """The handler goes on with another folder, as on another machine; the one it had."""
        aside = self._folder / f"aside-{uuid.uuid4().hex[:8]}"
        with self.stopped("handler"):
            (self.state / "h").rename(aside)
            folder.rename(self.state / "h")
        return aside

    async def installation(self, verb: str) -> None:
        """What `catalogzero installation` does, beside the handler."""
        command = ("installation", verb, "h", "--registry", str(self._registry))
        await asyncio.to_thread(self._command, *command)

    def back_up_backend(self) -> str:
        """A backup of the backend's database: its name."""
        name = f"backup_{uuid.uuid4().hex[:8]}"
        with self.stopped("backend"):
            self._copy_database(self._database_name, name)
        return name

    def restore_backend(self, backup: str) -> None:
        """Put a backup in the place of the backend's database, and say so as its operator does."""
        with self.stopped("backend"):
            self._copy_database(backup, self._database_name)
            self._command("backend", "restored", *self._db())

    @property
    def _database_name(self) -> str:
        return str(sa.engine.make_url(self._database).database)

    def _copy_database(self, source: str, target: str) -> None:
        """Make a database as another one, or in its place; nobody may be connected to it."""
        url = sa.engine.make_url(self._database)
        if url.get_backend_name() == "sqlite":
            paths = [
                Path(name) if "/" in name else self._folder / name for name in (source, target)
            ]
            for suffix in ("", "-wal", "-shm"):
                Path(f"{paths[1]}{suffix}").unlink(missing_ok=True)
                if Path(f"{paths[0]}{suffix}").exists():
                    shutil.copy(f"{paths[0]}{suffix}", f"{paths[1]}{suffix}")
            return
        admin = sa.create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as db:
            for name in (source, target):
                ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :n"
                db.execute(sa.text(ended), {"n": name})
            db.execute(sa.text(f"DROP DATABASE IF EXISTS {target} WITH (FORCE)"))
            db.execute(sa.text(f"CREATE DATABASE {target} TEMPLATE {source}"))
        admin.dispose()

    def no_room(self, victim: str) -> bool:
        """From now on no file of the process may grow much: to it, the disk is full."""
        pid = self.pid(victim)
        if pid is None:
            return False
        wal = (
            self.state / "h/outbox.sqlite-wal"
            if victim == "worker"
            else self._folder / "backend.db-wal"
        )
        logs = (self._folder / "logs").glob("*.log")
        sizes = [path.stat().st_size for path in (wal, *logs) if path.exists()]
        return self._limit(pid, max(sizes) + FEW_BYTES)

    def room_again(self, victim: str) -> None:
        """The disk has room."""
        pid = self.pid(victim)
        if pid is not None:
            self._limit(pid, UNLIMITED)

    def _limit(self, pid: int, size: int) -> bool:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, UNLIMITED))
            return True
        return False

    # What is done with them

    async def answers(self) -> bool:
        """Whether the handler is there."""
        with suppress(CatalogZeroError):
            return bool(await self.client.call("ping", timeout_s=1.0))
        return False

    async def run(self, data_source: str, *, full: bool = False) -> dict[str, Any]:
        """One run; without a status where it failed, or where somebody died of it."""
        body = {"data_source": data_source, "params": {"full": full}}
        call = asyncio.create_task(self._answer(body))
        handler = self._processes["handler"]
        while not call.done():
            await asyncio.wait([call], timeout=LOOK_S)
            if handler.poll() is not None:
                call.cancel()
        try:
            return await call
        except (CatalogZeroError, asyncio.CancelledError) as error:
            details = getattr(error, "details", None)
            if isinstance(details, dict) and details.get("status") == "rejected":
                return details
            return {"error": str(error) or "the handler died"}
        finally:
            call.cancel()

    async def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The result of a run; a call that was lost with a handler's end is sent again."""
        request_id = uuid.uuid4().hex
        while True:
            with suppress(CallTimeoutError):
                answer = await self.client.call(
                    "process_and_upload", body, request_id=request_id, timeout_s=RESEND_S
                )
                return dict(answer)

    async def run_to_end(self, data_source: str, *, full: bool = False) -> dict[str, Any]:
        """Runs until one has a result."""
        result: dict[str, Any] = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    result = await self.run(data_source, full=full)
                    if "status" in result:
                        return result
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise AssertionError(f"no run of {data_source} has a result: {result}") from None

    async def outbox(self, *arguments: str) -> str:
        """What `catalogzero outbox` says, run beside the handler."""
        verb, *more = arguments
        command = ("outbox", verb, "h", *more, "--registry", str(self._registry))
        return await asyncio.to_thread(self._command, *command)

    def _command(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "catalogzero", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def _db(self) -> tuple[str, str]:
        return ("--database", self._database)

    def _runs(self, name: str) -> bool:
        return name in self._processes and self._processes[name].poll() is None

    def _start(self, name: str, module: str, *arguments: str) -> None:
        self._logs += 1
        added = {"CHAOS_MUTANT": self._mutant, "CHAOS_DIE_AT": str(self.die_at["backend"])}
        added |= {"CATALOGZERO_BACKEND_HOUSEKEEPING_INTERVAL_S": "1"}
        with (self._folder / "logs" / f"{self._logs:04}-{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **added, **self._backend_settings},
            )


async def until(
    condition: Callable[[], object | Awaitable[object]], what: str, wait_s: float = PATIENCE_S
) -> None:
    """Wait for a condition."""
    try:
        async with asyncio.timeout(wait_s):
            while True:
                found = condition()
                if await found if isinstance(found, Awaitable) else found:
                    return
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise AssertionError(f"it never came to this: {what}") from None
