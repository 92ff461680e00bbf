"""The vendor's path and the client's, typed as their pages show them: from nothing to a row.

The client has the wheel alone, and reads its README there. Afterwards every other command of that
page is typed too, the commands of CI are, and the Dockerfile's instructions are carried out in a
folder: no engine is needed for that, and none is tested.
All environments have never seen catalogzero.
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
import zipfile
from collections.abc import Callable, Iterator
from email import message_from_bytes
from pathlib import Path

import psutil
import pytest
import yaml
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
            await asyncio.to_thread(paths.commands_of_ci)
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
        # pip keeps what it builds of a folder whose name has a hyphen, and would take it again.
        checkout = self.vendor.folder / "catalogzero"
        checkout.symlink_to(CHECKOUT)
        self.vendor.folder = self.package
        for command in commands(self.package / "DEVELOPMENT.md"):
            self.vendor(command.replace("/path/to/catalogzero", str(checkout)))
        self.vendor(".venv/bin/catalogzero catalog build dist --out site")
        serve = ".venv/bin/catalogzero catalog serve site --port 0"
        catalog = self.vendor.start(serve, lambda line: line.startswith("http"))
        self.client.environment["CATALOG"] = f"http://127.0.0.1:{port_of(catalog)}"

    def client_s(self) -> None:
        """From the catalog's address to a row at the backend."""
        folder = self.client.folder
        (folder / "exports").mkdir(parents=True)
        (folder / "exports" / "orders.csv").write_text(SAMPLE)
        (folder / "key").write_text(API_KEY)
        for command in self._readme()[:3]:
            self.client(command)
        self._configure()
        params = json.dumps({"data_source": str(self.client.folder / "exports")})
        run = ".venv/bin/catalogzero run skylark_processor --once process_and_upload"
        self.client(f"{run} --params '{params}'")
        self.seconds = time.monotonic() - self.begun_s
        self.typed = len(self.vendor.typed) + len(self.client.typed)

    def _configure(self) -> None:
        """What the client changes in the registry file that was written for it."""
        registry = self.client.folder / "handler_registry.yaml"
        edits = {
            "/etc/skylark-processor/api_key": str(self.client.folder / "key"),
            "port: 5001": f"port: {self.port}",
        }
        text, edited = with_edits(registry.read_text(), edits)
        registry.write_text(f"scheduler: none\n{text}")
        self.edited = edited + 1

    def _readme(self) -> list[str]:
        """The commands of the client's README, as its wheel has it, with the client's folders."""
        here = self.client.folder
        page = here / "README.md"
        page.write_text(self.readme())
        places = {
            "/data/exports": f"{here}/exports",
            "/opt/skylark-processor": ".venv",
            "/etc/skylark-processor": f"{here}",
            "/etc/systemd/system": f"{here}",
        }
        found = commands(page)
        for place, there in places.items():
            found = [command.replace(place, there) for command in found]
        return found

    def readme(self) -> str:
        """The client's page, from the wheel."""
        (wheel,) = (self.package / "dist").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            page = message_from_bytes(archive.read(name)).get_payload(decode=True)
        assert isinstance(page, bytes)
        return page.decode()

    def other_commands_of_the_readme(self) -> None:
        """Readme, check, preview, unit, run, call, schedule."""
        check, preview, run, unit, enable, call, schedule = self._readme()[3:]
        assert self.client(".venv/bin/skylark-processor readme").strip() == self.readme().strip()
        assert "✗" not in self.client(check)
        written = Path(self.client(unit).strip())
        assert enable == f"systemctl enable --now {written.stem}"
        registry = self.client.folder / "handler_registry.yaml"
        scheduler_at = f"scheduler: tcp://127.0.0.1:{self.zmq_port}"
        registry.write_text(registry.read_text().replace("scheduler: none", scheduler_at))
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
        image.environment |= {"CATALOG": self.client.environment["CATALOG"], "VERSION": "0.1.0"}
        (image.folder / "shims").mkdir(parents=True)
        image("python3 -m venv venv")
        for name in ("useradd", "install"):  # they ask for root, and change the machine
            shim = image.folder / "shims" / name
            shim.write_text(f'#!/bin/sh\necho {name} "$@" >> {image.folder}/asked\n')
            shim.chmod(0o755)
        image.environment["PATH"] = f"{image.folder}/shims:{image.folder}/venv/bin:/usr/bin:/bin"
        (shown,) = re.findall(r"```dockerfile\n(.*?)```", self.readme(), re.DOTALL)
        assert shown.strip() == (self.package / "deploy" / "Dockerfile").read_text().strip()
        told = dict(instructions(shown))
        image(told["RUN"])
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

    def commands_of_ci(self) -> None:
        """CI's environment and its wheel; `make lint test` was typed above."""
        ci = Typist(self.client.folder.parent / "ci")
        ci.environment |= {"CATALOG": self.client.environment["CATALOG"]}
        shutil.copytree(
            self.package, ci.folder, ignore=shutil.ignore_patterns(".venv", "dist", "site")
        )
        workflow = yaml.safe_load((ci.folder / ".github/workflows/ci.yml").read_text())
        for step in workflow["jobs"]["build"]["steps"]:
            if "run" in step:
                ci(step["run"].replace("python -m", "python3 -m"))
        (wheel,) = (ci.folder / "dist").glob("*.whl")
        assert wheel.name == "skylark_processor-0.1.0-py3-none-any.whl"

    def end(self) -> None:
        """End what still runs."""
        for typist in (self.client, self.vendor):
            typist.end()


def instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments, continued lines as one."""
    text = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line:
            name, _, arguments = line.partition(" ")
            yield name, arguments


def port_of(process: subprocess.Popen[str]) -> int:
    """The port that a process listens on."""
    (connection,) = psutil.Process(process.pid).net_connections("tcp")
    return int(connection.laddr.port)
