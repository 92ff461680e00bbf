"""Instances of one processor as processes, with one store in PostgreSQL; what dies comes again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import uuid
from collections import defaultdict
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import yaml
from catalogzero import CallTimeoutError, CatalogZeroError, HandlerClient
from catalogzero.clock import SystemClock
from catalogzero.cloud.outbox.store import OutboxStore
from catalogzero.cloud.outbox.stored import SharedStore

from examples.quickstart.processes import free_ports
from tests.chaos.proxy import FaultProxy, Request
from tests.chaos.site import LOOK_S
from tests.chaos.sources import Client

NAMES = ("a", "b", "c")
RESEND_S = 10.0


class HearingProxy(FaultProxy):
    """Also knows the health reports that arrived.

    Attributes:
        reports: By number, the different reports of it.
    """

    def __init__(self, port: int, backend_port: int, rate: float, dice: random.Random) -> None:
        super().__init__(port, backend_port, rate, dice)
        self.reports: dict[int, set[bytes]] = defaultdict(set)

    async def pass_on(self, request: Request) -> bytes:
        """See `FaultProxy.pass_on`."""
        if request.kind == "health":
            body = request.raw.partition(b"\r\n\r\n")[2]
            self.reports[json.loads(body)["seq"]].add(body)
        return await super().pass_on(request)


class Instance:
    """One instance: a handler that is started again whenever it has died.

    Args:
        name: Its instance_id.
        folder: Its own, with its state and what orders it to do something.
        section: Of the registry file.
    """

    def __init__(self, name: str, folder: Path, section: dict[str, Any]) -> None:
        self.name, self.state = name, folder / "state"
        self.state.mkdir(parents=True)
        (self.port,) = free_ports(1)
        self._registry, self._log = folder / "registry.yaml", folder / "log"
        own = {"instance_id": name, "port": self.port, "state_dir": str(self.state)}
        sections = [{**section, **own}]
        self._registry.write_text(yaml.safe_dump({"scheduler": "none", "handlers": sections}))
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start the handler."""
        command = [sys.executable, "-m", "catalogzero", "run", "h"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--registry", str(self._registry)], stdout=log, stderr=log
            )

    @property
    def runs(self) -> bool:
        """Whether the handler is there."""
        return self.process.poll() is None

    @property
    def die_at(self) -> Path:
        """The file that names a commit to die at."""
        return self.state / "die_at"

    @property
    def worker(self) -> int | None:
        """The process id of its worker."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return children[0].pid if children else None
        return None

    def kill(self, victim: str) -> bool:
        """Kill -9 the handler or its worker; False where it is not there."""
        pid = self.process.pid if victim == "handler" else self.worker
        if pid is None or not self.runs:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            if victim == "handler":
                self.process.wait()
            return True
        return False

    def freeze(self, how: signal.Signals) -> None:
        """Stop the handler and its worker, or have them go on."""
        for pid in (self.process.pid, self.worker):
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, how)

    @cached_property
    def client(self) -> HandlerClient:
        """A connection to it; made on the loop that uses it."""
        return HandlerClient(f"tcp://127.0.0.1:{self.port}")

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A call until it is answered; one whose handler dies of it has an `error`."""
        process, call = self.process, asyncio.create_task(self._answer(method, params))
        while not call.done():
            await asyncio.wait([call], timeout=LOOK_S)
            if process.poll() is not None:
                call.cancel()
        try:
            return await call
        except (CatalogZeroError, asyncio.CancelledError) as error:
            details = getattr(error, "details", None)
            if isinstance(details, dict) and "status" in details:
                return {"error": str(error), **details}
            return {"error": str(error) or "the handler died", "process": process}
        finally:
            call.cancel()

    async def _answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        request_id = uuid.uuid4().hex
        while True:
            with suppress(CallTimeoutError):
                answer = await self.client.call(
                    method, params, request_id=request_id, timeout_s=RESEND_S
                )
                return dict(answer)

    async def is_there(self) -> bool:
        """Whether it answers."""
        with suppress(CatalogZeroError):
            return bool(await self.client.call("ping", timeout_s=1.0))
        return False


class Replicas:
    """Instances, and the backend that they send to.

    Args:
        folder: For everything of theirs.
        store: The PostgreSQL database of their outbox.
        client: What they read.
        linger_s: How long each run takes at most between reading and storing.
    """

    def __init__(self, folder: Path, store: str, client: Client, linger_s: float) -> None:
        self.store, self._folder = store, folder
        self.database = f"sqlite:///{folder}/backend.db"
        self.proxy_port, self._backend_port = free_ports(2)
        tenant = self._command("backend", "tenants", "add", "t", "--json", *self._db())
        section = {
            "handler_id": "h",
            "module_path": "tests.chaos.processors",
            "class_name": client.author,
            "installation_id": "site",
            "state": store,
            "min_file_age_s": 0,
            "upload_wait_s": 2,
            "chunk_bytes": 4096,
            "config": {
                "endpoint": f"http://127.0.0.1:{self.proxy_port}/v1",
                "api_key": json.loads(tenant)["key"],
                **client.config,
            },
        }
        serve = ("backend", "serve", "--port", str(self._backend_port), *self._db())
        with (folder / "backend.log").open("ab") as log:
            self._backend = subprocess.Popen(
                [sys.executable, "-m", "catalogzero", *serve], stdout=log, stderr=log
            )
        self.instances = [Instance(name, folder / name, section) for name in NAMES]
        for one in self.instances:
            (one.state / "linger").write_text(str(linger_s))

    def proxy(self, rate: float, dice: random.Random) -> HearingProxy:
        """What stands before the backend."""
        return HearingProxy(self.proxy_port, self._backend_port, rate, dice)

    def outbox(self) -> OutboxStore:
        """The store, to look at; to be closed."""
        shared = SharedStore(self.store, "h", "")
        return OutboxStore(self._folder, SystemClock(), shared, read_only=True)

    async def keep_up(self) -> None:
        """Start what has died, until cancelled."""
        while True:
            for one in self.instances:
                if not one.runs:
                    one.start()
            await asyncio.sleep(LOOK_S)

    def stop(self) -> None:
        """The end of all."""
        for process in (self._backend, *(one.process for one in self.instances)):
            process.kill()
            process.wait()
        for one in self.instances:
            one.client.close()

    def _db(self) -> tuple[str, str]:
        return ("--database", self.database)

    def _command(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "catalogzero", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
