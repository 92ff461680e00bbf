"""A newcomer's way, a client's and a vendor's: what a page prints, typed where only Python is."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from examples.quickstart.processes import Processes, free_ports
from tests.cloud.reference import ReferenceBackend
from tests.core.support import until
from tests.house.test_how_tos import blocks

pytestmark = pytest.mark.timeout(500)
ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("catalogzero")
KEPT = ("LANG", "PATH", "TMPDIR")
"""All that a newcomer's shell has of this one; no path of the source, no setting of pip."""


class Shell:
    """A terminal in a folder: commands one after another, those with `&` beside them.

    Args:
        folder: Where it stands.
        environment: Its variables.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.beside: list[asyncio.subprocess.Process] = []

    async def type(self, command: str) -> str:
        """Type a command, and wait for its end; one that goes on beside, until it says a line."""
        goes_on = command.endswith(" &")
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euc", f"exec {command.removesuffix(' &')}" if goes_on else command),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self.environment,
            cwd=self.folder,
        )
        assert process.stdout is not None
        if goes_on:
            self.beside.append(process)
            async with asyncio.timeout(60):
                return (await process.stdout.readline()).decode()
        out, _ = await process.communicate()
        assert process.returncode == 0, f"{command}\n{out.decode()}"
        return out.decode()

    async def close(self) -> None:
        """End what goes on beside."""
        for process in self.beside:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.communicate()


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vendor's catalog as a vendor makes it, with every dependency."""
    folder = tmp_path_factory.mktemp("newcomer")
    python = ".".join(map(str, sys.version_info[:2]))
    with Processes(folder / "logs") as processes:
        entry = ROOT / "catalog/file-processor"
        processes.run("build", COMMAND, "build", entry, "--out", "dist", cwd=folder)
        wheels = [*(folder / "dist").glob("*.whl")]
        where = ("--out", folder / "site", "--python", python)
        processes.run("catalog", COMMAND, "catalog", "build", *wheels, *where, cwd=folder)
    return folder / "site"


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    own = {name: os.environ[name] for name in KEPT if name in os.environ}
    made = Shell(tmp_path, {**own, "HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull})
    yield made
    await made.close()


async def test_eight_commands_lead_from_an_empty_machine_to_a_scheduled_upload(
    catalog: Path, shell: Shell
) -> None:
    (block,) = blocks("first-upload.md")
    commands = block.strip().splitlines()
    (index_port,) = free_ports(1)
    data = shell.folder / "exports" / "orders.csv"
    data.parent.mkdir()
    data.write_text("order,amount\n1,10\n2,20\n")
    os.utime(data, (1, 1))

    assert len(commands) <= 8
    async with ReferenceBackend() as backend:
        await shell.type(f"{COMMAND} catalog serve {catalog} --port {index_port} &")
        shell.environment |= {
            "CATALOG": f"http://127.0.0.1:{index_port}",
            "ENDPOINT": backend.url,
            "API_KEY": "test-key",
        }
        said = [await shell.type(command) for command in commands]
        await until(backend.rows, within_s=60)
        await until(lambda: shell.type(f"{commands[-1]} --json | grep uploaded || true"))

    assert backend.rows() == [{"order": "1", "amount": "10"}, {"order": "2", "amount": "20"}]
    assert "Not ready yet" not in said[3]
    where = await shell.type(
        ".venv/bin/python -c 'import catalogzero; print(catalogzero.__file__)'"
    )
    assert where.startswith(str(shell.folder))


async def test_eight_commands_lead_a_vendor_from_nothing_to_the_first_row(shell: Shell) -> None:
    (block,) = blocks("first-processor.md")
    process, test = blocks("first-processor.md", "python")
    commands = block.strip().splitlines()
    (port,) = free_ports(1)
    (shell.folder / "exports").mkdir()
    (shell.folder / "exports" / "may.csv").write_text("order_id,amount\n1,120.00\n2,9.50\n")
    os.utime(shell.folder / "exports" / "may.csv", (1, 1))
    with Processes(shell.folder / "logs") as processes:
        build = ("hatchling", "build", "-t", "wheel", "-d", shell.folder / "dist")
        processes.run("build", sys.executable, "-m", *build, cwd=ROOT)
    (wheel,) = (shell.folder / "dist").glob("*.whl")
    # The other packages come from the index that pip is set up with, and are kept where it keeps.
    shell.environment = {
        **{name: text for name, text in os.environ.items() if name.startswith("PIP_")},
        **{name: text for name, text in shell.environment.items() if name != "PIP_CONFIG_FILE"},
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip")),
        "PIP_NO_COMPILE": "1",  # of much that is never imported here
        "SDK": wheel.as_uri(),
        "ENDPOINT": f"http://127.0.0.1:{port}/v1",
        "CATALOGZERO_BACKEND_PORT": str(port),
        "CATALOGZERO_BACKEND_DATABASE": str(shell.folder / "backend.sqlite"),
    }

    assert len(commands) <= 8
    for command in commands[:4]:
        await shell.type(command)
    package = shell.folder / "acme-orders"
    rewrite(package / "src/acme_orders/handler.py", "    def process", process)
    rewrite(package / "tests/test_process.py", "def test_", test)
    said = [await shell.type(command) for command in commands[4:]]

    assert "failed" not in said[0]
    assert '"uploaded"' in said[-1]
    with closing(sqlite3.connect(shell.folder / "backend.sqlite")) as database:
        (row,) = database.execute("SELECT payload FROM visible_records")
    assert row == ('{"order_id":"1","amount":"120.00"}',)


def rewrite(path: Path, begin: str, text: str) -> None:
    """Write something in the place of all from a line on that begins so, as an author would."""
    head, mark, _ = path.read_text().partition(f"\n{begin}")
    assert mark
    path.write_text(f"{head}\n{text}")
