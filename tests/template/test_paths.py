"""The vendor's path and the client's, typed as their pages show them: from nothing to a row.

Afterwards every other command of the client's README is typed too, and the Dockerfile's
instructions are carried out in a folder: no engine is needed for that, and none is tested.
Both environments, the vendor's and the client's, have never seen catalogzero.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from catalogzero.entry.scaffold import template_folder
from catalogzero.testing import FaultyBackend
from catalogzero.testing.backend import API_KEY

from examples.quickstart.processes import free_ports
from tests.scheduler.processes import SchedulerProcess

CHECKOUT = template_folder().parent
CATALOGZERO = Path(sys.executable).parent / "catalogzero"
SAMPLE = "order_id,customer\n1, Ada\n2,Bo \n"
SETTINGS = ("PIP_CONFIG_FILE", "PIP_CERT", "SSL_CERT_FILE", "PIP_INDEX_URL", "HOME", "LANG")


class Typist:
    """Types commands in a folder, and counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.typed: list[str] = []
        self.started: list[subprocess.Popen[str]] = []
        self.environment = {k: os.environ[k] for k in SETTINGS if k in os.environ}
        self.environment |= {"PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"}
        self.environment |= {"XDG_STATE_HOME": str(folder / "state")}  # of this test alone

    def __call__(self, command: str) -> str:
        """Run a command to its end."""
        self.typed.append(command)
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def start(self, command: str, ready: Callable[[str], bool]) -> subprocess.Popen[str]:
        """Start a command that goes on, and wait until it says that it is ready."""
        self.typed.append(command)
        process = subprocess.Popen(
            shlex.split(command),
            cwd=self.folder,
            env={**self.environment, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout
        for line in process.stdout:
            if ready(line):
                self.started.append(process)
                return process
        raise AssertionError(f"{command} ended with {process.wait()}")

    def end(self) -> None:
        """Press Ctrl-C in everything that was started."""
        for process in self.started:
            process.send_signal(signal.SIGINT)
            process.communicate()
        self.started.clear()


def shown(page: Path) -> str:
    """The commands that a page shows."""
    return "\n".join(re.findall(r"^```console\n(.*?)^```", page.read_text(), re.DOTALL | re.M))


def commands(page: Path) -> list[str]:
    """The same, one by one; what is in quotes may go over several lines."""
    words = re.findall(r"(?:'[^']*'|[^'\n])+", shown(page))
    return [word for word in words if word.strip()]


def with_edits(text: str, edits: dict[str, str]) -> tuple[str, int]:
    """A text with some of its words replaced, and how many of its lines that changed."""
    changed = text
    for before, after in edits.items():
        assert before in changed
        changed = changed.replace(before, after)
    pairs = zip(text.splitlines(), changed.splitlines(), strict=True)
    return changed, sum(one != other for one, other in pairs)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_the_paths_of_vendor_and_client_lead_to_a_row_at_the_backend(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    async with FaultyBackend() as backend:
        try:
            await asyncio.to_thread(paths.vendor_s, backend.url)
            await asyncio.to_thread(paths.client_s)
            rows = backend.rows
            await asyncio.to_thread(paths.other_commands_of_the_readme)
            await asyncio.to_thread(paths.instructions_of_the_dockerfile)
        finally:
            paths.end()

    assert rows == [{"order_id": "1", "customer": "Ada"}, {"order_id": "2", "customer": "Bo"}]
    assert paths.typed <= 12
    assert paths.edited <= 20
    sys.stdout.write(f"{paths.typed} commands, {paths.edited} lines, {paths.seconds:.0f} s\n")


class Paths:
    """Both paths, in a folder each."""

    def __init__(self, folder: Path) -> None:
        self.vendor = Typist(folder)
        self.client = Typist(folder / "client")
        self.package = folder / "skylark-processor"
        self.begun_s = time.monotonic()
        self.edited = self.typed = 0
        self.seconds = 0.0
        self.port, self.zmq_port = free_ports(2)

    def vendor_s(self, endpoint: str) -> None:
        """From nothing to a catalog that is served."""
        answers = 'vendor_name="Skylark Analytics" product_name=Processor packaging=both'
        self.vendor(f"{CATALOGZERO} new --no-input {answers} endpoint={endpoint}")
        self.vendor.folder = self.package
        for command in commands(self.package / "DEVELOPMENT.md"):
            self.vendor(command.replace("/path/to/catalogzero", str(CHECKOUT)))
        self.vendor(".venv/bin/catalogzero catalog build dist --out site")
        serve = ".venv/bin/catalogzero catalog serve site --port 0"
        catalog = self.vendor.start(serve, lambda line: line.startswith("http"))
        self.client.environment["CATALOG"] = f"http://127.0.0.1:{port_of(catalog)}"

    def client_s(self) -> None:
        """From the catalog's address to a row at the backend."""
        self._configure()
        for command in self._readme()[:3]:
            self.client(command)
        params = json.dumps({"data_source": str(self.client.folder / "exports")})
        run = ".venv/bin/catalogzero run skylark_processor --once process_and_upload"
        self.client(f"{run} --params '{params}'")
        self.seconds = time.monotonic() - self.begun_s
        self.typed = len(self.vendor.typed) + len(self.client.typed)

    def _configure(self) -> None:
        """What the client has, and what it writes into the README's registry file."""
        folder = self.client.folder
        (folder / "exports").mkdir(parents=True)
        (folder / "exports" / "orders.csv").write_text(SAMPLE)
        (folder / "key").write_text(API_KEY)
        readme = (self.package / "README.md").read_text()
        (registry,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
        edits = {
            "/etc/skylark-processor/api_key": str(folder / "key"),
            "/data/exports": str(folder / "exports"),
            "port: 5555": f"port: {self.port}",
        }
        text, self.edited = with_edits(registry, edits)
        (folder / "handler_registry.yaml").write_text(text)

    def _readme(self) -> list[str]:
        """The commands of the client's README, with the client's own folder."""
        exports = str(self.client.folder / "exports")
        return [
            command.replace("/data/exports", exports)
            for command in commands(self.package / "README.md")
        ]

    def other_commands_of_the_readme(self) -> None:
        """Preview, run, call, schedule."""
        preview, run, call, schedule = self._readme()[3:]
        registry = self.client.folder / "handler_registry.yaml"
        scheduler_at = f"scheduler: tcp://127.0.0.1:{self.zmq_port}"
        registry.write_text(registry.read_text().replace("scheduler: none", scheduler_at))
        shutil.copy(self.package / "sample.csv", self.client.folder)
        assert "nothing was sent: 7 records" in self.client(preview)
        database = f"sqlite:///{self.client.folder / 'scheduler.db'}"
        with SchedulerProcess(database, zmq_port=self.zmq_port) as scheduler:
            self.client.start(run, lambda line: "serving" in line)
            scheduler.wait_for_handler("skylark_processor")
            assert json.loads(self.client(call))["status"] == "unchanged"
            told = self.client(schedule.replace("http://127.0.0.1:8888", scheduler.url))
            assert json.loads(told)["status"] == "success"
            self.client.end()

    def instructions_of_the_dockerfile(self) -> None:
        """COPY and RUN as they stand, below a folder; the process as the image would start it."""
        image = Typist(self.client.folder.parent / "image")
        image.environment |= {"CATALOG": self.client.environment["CATALOG"]}
        for folder in ("tmp/wheels", "shims"):
            (image.folder / folder).mkdir(parents=True)
        image("python3 -m venv venv")
        for name in ("useradd", "install"):  # they ask for root, and change the machine
            shim = image.folder / "shims" / name
            shim.write_text(f'#!/bin/sh\necho {name} "$@" >> {image.folder}/asked\n')
            shim.chmod(0o755)
        image.environment["PATH"] = f"{image.folder}/shims:{image.folder}/venv/bin:/usr/bin:/bin"
        told = dict(instructions(self.package / "deploy" / "Dockerfile"))
        source, target = told["COPY"].split()
        image(f"cp {self.package}/{source} {image.folder}{target}")
        image(told["RUN"].replace(target.rstrip("/"), f"{image.folder}{target.rstrip('/')}"))
        assert not (image.folder / "tmp" / "wheels").exists()
        uid = told["USER"]
        assert (image.folder / "asked").read_text().splitlines() == [
            f"useradd --uid {uid} --no-create-home handler",
            "install -d -o handler -m 0700 /state",
        ]
        command = [*json.loads(told["ENTRYPOINT"]), *json.loads(told["CMD"])]
        assert command[:3] == ["skylark-processor", "run", "--registry"]
        registry = self.client.folder / "handler_registry.yaml"
        image.start(
            shlex.join([f"{image.folder}/venv/bin/{command[0]}", *command[1:3], str(registry)]),
            lambda line: "serving" in line,
        )
        image.end()

    def end(self) -> None:
        """End what still runs."""
        for typist in (self.client, self.vendor):
            typist.end()


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments, continued lines as one."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line:
            name, _, arguments = line.partition(" ")
            yield name, arguments


def port_of(process: subprocess.Popen[str]) -> int:
    """The port that a process listens on."""
    (connection,) = psutil.Process(process.pid).net_connections("tcp")
    return int(connection.laddr.port)
