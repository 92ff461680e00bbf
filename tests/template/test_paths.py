"""The vendor's path and the client's, typed as their pages show them: from nothing to a row."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from catalogzero.entry.scaffold import template_folder
from catalogzero.testing import FaultyBackend
from catalogzero.testing.backend import API_KEY

CHECKOUT = template_folder().parent
CATALOGZERO = Path(sys.executable).parent / "catalogzero"
SAMPLE = "order_id,customer\n1, Ada\n2,Bo \n"
SETTINGS = ("PIP_CONFIG_FILE", "PIP_CERT", "SSL_CERT_FILE", "PIP_INDEX_URL", "HOME", "LANG")


class Typist:
    """Types commands in a folder, and counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.typed: list[str] = []
        self.environment = {k: os.environ[k] for k in SETTINGS if k in os.environ}
        self.environment |= {"PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"}

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
                return process
        raise AssertionError(f"{command} ended with {process.wait()}")


def shown(page: Path) -> str:
    """The commands that a page shows."""
    return "\n".join(re.findall(r"^```console\n(.*?)^```", page.read_text(), re.DOTALL | re.M))


def with_edits(text: str, edits: dict[str, str]) -> tuple[str, int]:
    """A text with some of its words replaced, and how many of its lines that changed."""
    changed = text
    for before, after in edits.items():
        assert before in changed
        changed = changed.replace(before, after)
    pairs = zip(text.splitlines(), changed.splitlines(), strict=True)
    return changed, sum(one != other for one, other in pairs)


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_the_paths_of_vendor_and_client_lead_to_a_row_at_the_backend(tmp_path: Path) -> None:
    async with FaultyBackend() as backend:
        typed, edited = await asyncio.to_thread(_walk, tmp_path, backend.url)
        rows = backend.rows

    assert rows == [{"order_id": "1", "customer": "Ada"}, {"order_id": "2", "customer": "Bo"}]
    assert typed <= 12
    assert edited <= 20


def _walk(folder: Path, endpoint: str) -> tuple[int, int]:
    """Walk both paths; how many commands were typed, and how many lines edited."""
    vendor = Typist(folder)
    answers = 'vendor_name="Skylark Analytics" product_name=Processor'
    vendor(f"{CATALOGZERO} new --no-input {answers} endpoint={endpoint}")
    vendor.folder = folder / "skylark-processor"
    pages = shown(vendor.folder / "DEVELOPMENT.md")
    for command in ("make test", "make build"):
        assert command in pages
    vendor(f"make setup CATALOGZERO={CHECKOUT}")
    vendor("make build")
    vendor(".venv/bin/catalogzero catalog build dist --out site")
    catalog = vendor.start(
        ".venv/bin/catalogzero catalog serve site --port 0", lambda line: line.startswith("http")
    )
    return _install(folder, vendor, catalog)


def _install(folder: Path, vendor: Typist, catalog: subprocess.Popen[str]) -> tuple[int, int]:
    """The client's half; the catalog's address is what `serve` printed."""
    readme = vendor.folder / "README.md"
    client = Typist(folder / "client")
    client.folder.mkdir()
    (client.folder / "data").mkdir()
    (client.folder / "data" / "orders.csv").write_text(SAMPLE)
    (client.folder / "key").write_text(API_KEY)
    port = _port_of(catalog)
    client.environment["CATALOG"] = f"http://127.0.0.1:{port}"
    (registry,) = re.findall(r"```yaml\n(.*?)```", readme.read_text(), re.DOTALL)
    edits = {
        "/etc/skylark-processor/api_key": str(client.folder / "key"),
        "/data/exports": str(client.folder / "data"),
        "port: 5555": "port: 0",
    }
    text, edited = with_edits(registry, edits)
    (client.folder / "handler_registry.yaml").write_text(text)
    try:
        for command in shown(readme).splitlines()[:2]:
            client(command)
        client(".venv/bin/skylark-processor check --registry handler_registry.yaml")
        params = f'{{"data_source": "{client.folder / "data"}"}}'
        client(
            ".venv/bin/catalogzero run skylark_processor "
            f"--once process_and_upload --params '{params}'"
        )
    finally:
        catalog.terminate()
        catalog.communicate()
    return len(vendor.typed) + len(client.typed), edited


def _port_of(catalog: subprocess.Popen[str]) -> int:
    """The port that a process listens on."""
    (connection,) = psutil.Process(catalog.pid).net_connections("tcp")
    return int(connection.laddr.port)
