"""The client's side: an environment of its own, the registry file, the handler and the conductor.

Owns the folder `client/`. What is installed there comes from the vendor's index and from nothing
else: pip reads no configuration and no environment, and knows one index.

Layer: edge.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from examples.quickstart.processes import Processes
from examples.quickstart.vendor import COMMAND, PACKAGE

HANDLER = "cloud_processor"
CONDUCTOR = "conductor"
IDLE_AFTER_S = 2.0
SLEEP_AFTER_S = 4.0


@dataclass(frozen=True)
class Ports:
    """The loopback ports of one run."""

    index: int
    backend: int
    http: int
    registration: int
    handler: int
    conductor: int
    dashboard: int

    @property
    def endpoint(self) -> str:
        """The backend's base URL, as the client configures it."""
        return f"http://127.0.0.1:{self.backend}/v1"

    @property
    def scheduler(self) -> str:
        """The scheduler's HTTP."""
        return f"http://127.0.0.1:{self.http}"

    @property
    def board(self) -> str:
        """The conductor's dashboard."""
        return f"http://127.0.0.1:{self.dashboard}"


class Client:
    """A client of Skylark Analytics, on its own machine's folder."""

    def __init__(self, processes: Processes, folder: Path, ports: Ports) -> None:
        self.processes = processes
        self.folder = folder
        self.ports = ports
        self.data = folder / "data"
        self.key_file = folder / "api_key"
        self.registry = folder / "handler_registry.yaml"
        self.python = folder / "venv/bin/python"
        self.catalogzero = folder / "venv/bin/catalogzero"

    def install(self, index_url: str) -> list[str]:
        """A fresh environment with the entry and the conductor; what pip put there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        venv = self.folder / "venv"
        self.processes.run("client-venv", sys.executable, "-m", "venv", venv, cwd=self.folder)
        pip = (self.python, "-m", "pip", "--isolated", "--disable-pip-version-check")
        install = ("install", "--quiet", "--no-cache-dir", "--index-url", index_url)
        alone = {"PIP_CONFIG_FILE": os.devnull}
        self.processes.run(
            "client-pip", *pip, *install, PACKAGE, "conductorzero", cwd=self.folder, env=alone
        )
        listed = self.processes.run(
            "client-pip", *pip, "list", "--format", "freeze", cwd=self.folder, env=alone
        )
        return listed.split()

    def configure(self) -> None:
        """Write handler_registry.yaml."""
        self.registry.write_text(yaml.safe_dump(self._registry(), sort_keys=False))

    def start_scheduler(self) -> None:
        """The scheduler of the client's house; a ScheduleZero server can stand in its place."""
        ports = ("--port", str(self.ports.http), "--zmq-port", str(self.ports.registration))
        database = f"sqlite:///{self.folder / 'scheduler.db'}"
        self.processes.start(
            "scheduler", COMMAND, "scheduler", *ports, "--database", database, cwd=self.folder
        )

    def start(self, handler_id: str) -> psutil.Process:
        """Serve one handler of the registry file."""
        process = self.processes.start(
            handler_id,
            *(self.catalogzero, "run", handler_id, "--registry", self.registry),
            cwd=self.folder,
            env={"CATALOGZERO_STATE_DIR": str(self.folder / "state")},
        )
        return psutil.Process(process.pid)

    def _registry(self) -> dict[str, object]:
        processor = {
            "handler_id": HANDLER,
            "module_path": "skylark_processor.handler",
            "class_name": "SkylarkProcessor",
            "port": self.ports.handler,
            "installation_id": "client-one",
            "idle_after_s": IDLE_AFTER_S,
            "sleep_after_s": SLEEP_AFTER_S,
            "config": {
                "endpoint": self.ports.endpoint,
                "api_key_file": str(self.key_file),
                "data_roots": [str(self.data)],
            },
        }
        conductor = {
            "handler_id": CONDUCTOR,
            "module_path": "conductorzero",
            "class_name": "ConductorZero",
            "port": self.ports.conductor,
            "config": {
                "handler_registry": {HANDLER: self.ports.handler},
                "dashboard_port": self.ports.dashboard,
            },
        }
        scheduler = f"tcp://127.0.0.1:{self.ports.registration}"
        return {"scheduler": scheduler, "handlers": [processor, conductor]}
