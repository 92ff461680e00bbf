"""Upgrade and rollback of an installed entry: what waits in its outbox is sent all the same.

Real wheels of two releases of an entry and of the SDK, a real catalog, pip in an environment of
the client's, the real backend. The newer SDK is this one with one migration more.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from catalogzero.entry.index import publish
from catalogzero.entry.wheels import read_wheel

from examples.quickstart.processes import Processes, free_ports
from tests.entry.environments import borrowing_environment
from tests.entry.wheels import LOCK

pytestmark = [pytest.mark.xdist_group("upgrade"), pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
CATALOGZERO = Path(sys.executable).parent / "catalogzero"
NEWER_SDK = {
    "pyproject.toml": ('version = "0.1.0"', 'version = "0.2.0"'),
    "sdk/catalogzero/cloud/outbox/schema.py": (
        "MIGRATIONS = (_SCHEMA, _IDENTITY, _STREAMS)",
        "MIGRATIONS = (_SCHEMA, _IDENTITY, _STREAMS, "
        '"ALTER TABLE uploads ADD COLUMN reported TEXT")',
    ),
}
VERSION = ('version = "0.1.0"', 'version = "0.2.0"')
OLDER_ENTRY = {"pyproject.toml": ("[parquet]>=0.1,<1", "[parquet]>=0.1,<0.2")}
NEWER_ENTRY = {
    "pyproject.toml": ("[parquet]>=0.1,<1", "[parquet]>=0.2,<1"),
    "src/file_processor/catalogzero.toml": VERSION,
}
VISIBLE = "SELECT json_extract(payload, '$.n') FROM visible_records ORDER BY 1"


def build(source: Path, folder: Path, changes: Mapping[str, tuple[str, str]]) -> None:
    """Build a wheel of a changed copy of a package into a folder."""
    copy = folder.parent / f"source-{len(list(folder.parent.iterdir()))}"
    skipped = shutil.ignore_patterns(".*", "__pycache__", "build", "node_modules", "tests")
    shutil.copytree(source, copy, ignore=skipped)
    for name, (before, after) in changes.items():
        text = (copy / name).read_text()
        assert before in text
        (copy / name).write_text(text.replace(before, after))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=copy,
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog with two releases of file-processor, each with an SDK of its own."""
    site = tmp_path_factory.mktemp("upgrade") / "site"
    (site / "files").mkdir(parents=True)
    for changes in ({}, NEWER_SDK):
        build(ROOT, site / "files", changes)
    for changes in (OLDER_ENTRY, NEWER_ENTRY):
        build(ROOT / "catalog" / "file-processor", site / "files", changes)
    (site / "requirements").mkdir()
    for version in ("0.1.0", "0.2.0"):  # what they need beside each other is borrowed
        lock = site / "requirements" / f"file-processor-{version}-{LOCK}.txt"
        wheels = [read_wheel(path) for path in site.glob(f"files/*-{version}-*.whl")]
        lock.write_text(
            "".join(f"{one.name}=={version} --hash=sha256:{one.sha256}\n" for one in wheels)
        )
    publish(site, {})
    return site


class Client:
    """A client's machine: an environment, a registry file, data, and a folder of state."""

    def __init__(self, folder: Path, catalog: Path, processes: Processes) -> None:
        self.folder = folder
        self.catalog = catalog
        self.processes = processes
        self.python = borrowing_environment(folder / "venv")
        self.command = self.python.with_name("catalogzero")
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(folder),
            "CATALOGZERO_STATE_DIR": str(folder / "state"),
        }
        (folder / "data").mkdir(parents=True)

    def configure(self, endpoint: str) -> None:
        """Write the registry file."""
        config = {
            "endpoint": endpoint,
            "api_key_file": str(self.folder / "key"),
            "data_roots": [str(self.folder / "data")],
        }
        section = {"handler_id": "files", "entry": "file-processor", "port": 0, "config": config}
        document = {"scheduler": "none", "handlers": [section]}
        (self.folder / "handler_registry.yaml").write_text(yaml.safe_dump(document))

    def change(self, verb: str, *options: str) -> str:
        """Install or upgrade the entry from the catalog, with `catalogzero catalog`."""
        where = (f"--catalog={self.catalog}", f"--python={self.python}")
        return self.processes.run(
            f"catalog-{verb}",
            *(str(CATALOGZERO), "catalog", verb, "file-processor", *where, *options),
            cwd=self.folder,
            env=self.environment,
        )

    def upload(self, name: str, *numbers: int) -> subprocess.CompletedProcess[str]:
        """Write a file and upload it, in a process of the installed release."""
        path = self.folder / "data" / name
        path.write_text("".join(f"{line}\n" for line in ("n", *numbers)))
        params = json.dumps({"data_source": str(path), "params": {}})
        command = [str(self.command), "run", "files", "--set", "min_file_age_s=0"]
        return subprocess.run(
            [*command, "--once", "process_and_upload", "--params", params],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def outbox(self) -> Path:
        """The outbox's file."""
        return self.folder / "state" / "files" / "outbox.sqlite"

    def schema(self) -> int:
        """The schema version of the outbox."""
        with closing(sqlite3.connect(self.outbox)) as db:
            return int(db.execute("PRAGMA user_version").fetchone()[0])


def status(done: subprocess.CompletedProcess[str]) -> str:
    """The status of an upload that succeeded."""
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["status"])


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path / "logs") as started:
        yield started


@pytest.fixture
def client(tmp_path: Path, site: Path, processes: Processes) -> Client:
    return Client(tmp_path / "client", site, processes)


def test_upgrade_and_rollback_lose_nothing_that_waits_in_the_outbox(
    tmp_path: Path, client: Client, processes: Processes
) -> None:
    (port,) = free_ports(1)
    client.configure(f"http://127.0.0.1:{port}/v1")
    database = tmp_path / "backend.db"
    tenant = (CATALOGZERO, "backend", "tenants", "add", "client", "--database", database)
    processes.run("tenant", *tenant, "--key-file", client.folder / "key", cwd=tmp_path)

    client.change("install", "--version", "0.1.0")
    assert status(client.upload("one.csv", 1, 2)) == "queued"
    older = client.schema()

    told = client.change("upgrade")
    assert "catalogzero 0.1.0 -> 0.2.0" in told
    assert "file-processor 0.1.0 -> 0.2.0" in told
    assert status(client.upload("two.csv", 3)) == "queued"
    assert client.schema() == older + 1

    client.change("upgrade", "--version", "0.1.0")
    before = hashlib.sha256(client.outbox.read_bytes()).hexdigest()
    refused = client.upload("three.csv", 4)
    assert refused.returncode == 3, refused.stdout
    assert f"newer release (schema {older + 1}, this one knows {older})" in refused.stderr
    assert "install that release again" in refused.stderr
    assert hashlib.sha256(client.outbox.read_bytes()).hexdigest() == before

    client.change("upgrade")
    serve = (CATALOGZERO, "backend", "serve", "--port", str(port), "--database", database)
    processes.start("backend", *serve, cwd=tmp_path)
    processes.wait_for("the backend", lambda: _answers(port))
    assert status(client.upload("three.csv", 4)) == "uploaded"
    processes.start(
        "handler", client.command, "run", "files", cwd=client.folder, env=client.environment
    )
    processes.wait_for("all rows", lambda: len(visible(database)) >= 4)

    assert visible(database) == ["1", "2", "3", "4"]


def _answers(port: int) -> bool:
    """Whether somebody listens on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def visible(database: Path) -> list[str]:
    """The `n` of each row that the backend shows, read from its own database."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        return [str(n) for (n,) in db.execute(VISIBLE)]
