"""State that is backed up while it is used, and put back: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from catalogzero import HandlerClient

from tests.core.support import finished, running, served_address, until

pytestmark = pytest.mark.timeout(180)

REGISTRY = """
scheduler: none
handlers:
  - handler_id: uploader
    module_path: sql_processor.handler
    class_name: SqlProcessor
    min_file_age_s: 0
    upload_wait_s: 90
    audit_max_bytes: 2048
    config:
      endpoint: {url}/v1
      data_roots: [{data}]
      sources:
        orders:
          url_file: {folder}/url
          query: SELECT n, name FROM orders
          watermark: n
"""


class Machine:
    """A client's machine with one handler, beside a backend, all as processes."""

    def __init__(self, folder: Path, url: str, key: str) -> None:
        self.folder, self.url = folder, url
        self.data = folder / "data"
        self.data.mkdir()
        self.orders = folder / "orders.db"
        self.environment = {
            "CATALOGZERO_STATE_DIR": str(folder / "state"),
            "CATALOGZERO_LOG_FORMAT": "json",
            "SQL_PROCESSOR_API_KEY": key,
        }
        (folder / "url").touch(mode=0o600)
        (folder / "url").write_text(f"sqlite:///{self.orders}")
        registry = REGISTRY.format(url=url, data=self.data, folder=folder)
        (folder / "handler_registry.yaml").write_text(registry)
        with closing(sqlite3.connect(self.orders)) as db:
            db.execute("CREATE TABLE orders (n INTEGER PRIMARY KEY, name TEXT)")
        self.order(50)

    def order(self, count: int) -> None:
        """More rows in the client's table."""
        with closing(sqlite3.connect(self.orders)) as db, db:
            db.executemany("INSERT INTO orders (name) VALUES (?)", [("x",)] * count)

    def write(self, name: str, *values: int) -> None:
        """A file with these rows."""
        (self.data / name).write_text("n\n" + "".join(f"{value}\n" for value in values))

    def state(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`catalogzero state …` on it."""
        return finished("state", *words, cwd=self.folder, **self.environment)

    @asynccontextmanager
    async def handler(self) -> AsyncIterator[HandlerClient]:
        """Its handler, while it runs."""
        with running("run", "uploader", cwd=self.folder, **self.environment) as process:
            address = await asyncio.to_thread(served_address, process)
            async with HandlerClient(address) as client:
                yield client

    async def upload_all(self, client: HandlerClient) -> list[str]:
        """A run over the files, and one over the table; what came of them."""
        calls = [{"data_source": str(self.data)}, {"data_source": "sql:orders"}]
        return [
            (await client.call("process_and_upload", call, timeout_s=120))["status"]
            for call in calls
        ]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine, and a real backend that knows it."""
    database = str(tmp_path / "backend.db")
    added = finished("backend", "tenants", "add", "acme", "--database", database, "--json")
    key = json.loads(added.stdout)["key"]
    with running("backend", "serve", "--port", "0", "--json", "--database", database) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        client = tmp_path / "client"
        client.mkdir()
        yield Machine(client, url, key)


def visible(machine: Machine) -> Counter[tuple[str, int]]:
    """The rows that the backend shows, by source and number."""
    with closing(sqlite3.connect(machine.folder.parent / "backend.db")) as db:
        rows = db.execute("SELECT source, payload FROM visible_records").fetchall()
    return Counter((source.rpartition("/")[2], int(json.loads(row)["n"])) for source, row in rows)


def wanted(machine: Machine) -> Counter[tuple[str, int]]:
    """The rows that are to be shown: each once."""
    found: list[tuple[str, int]] = []
    for path in machine.data.iterdir():
        found += [(path.name, int(n)) for n in path.read_text().split()[1:]]
    with closing(sqlite3.connect(machine.orders)) as db:
        found += [("sql:orders", n) for (n,) in db.execute("SELECT n FROM orders")]
    return Counter(found)


async def test_a_folder_backed_up_under_load_and_put_back_sends_every_row_once(
    machine: Machine,
) -> None:
    out = machine.folder / "state.tar.gz"
    for number in range(6):
        machine.write(f"{number}.csv", *range(number, number + 5))

    async with machine.handler() as client:
        load = asyncio.create_task(machine.upload_all(client))
        saved = await asyncio.to_thread(machine.state, "backup", "uploader", "--out", str(out))
        assert saved.returncode == 0, saved.stderr
        await load
        for number in range(3, 8):  # changed since, new since
            machine.write(f"{number}.csv", *range(number, number + 7))
        machine.order(30)
        await machine.upload_all(client)
        before = visible(machine)
        assert before == wanted(machine)
        in_use = await asyncio.to_thread(machine.state, "restore", str(out), "--force")
    # Started once more since the backup: the backend knows a later start than the folder.
    async with machine.handler() as client:
        await client.call("ping")
        await machine.upload_all(client)
    not_empty = machine.state("restore", str(out))
    machine.write("3.csv", 1, 2, 3)
    machine.order(10)
    put_back = machine.state("restore", str(out), "--force", "--json")
    async with machine.handler() as client:
        statuses = await machine.upload_all(client)
        again = await machine.upload_all(client)
    audit = finished(
        "outbox", "audit", "uploader", "--json", cwd=machine.folder, **machine.environment
    )

    assert (in_use.returncode, "is in use" in in_use.stderr) == (3, True)
    assert (not_empty.returncode, "--force moves" in not_empty.stderr) == (3, True)
    assert put_back.returncode == 0, put_back.stderr
    aside = Path(json.loads(put_back.stdout)["restored"][0]["moved_aside"])
    assert (aside / "outbox.sqlite").exists()
    assert statuses == ["uploaded", "uploaded"]
    assert again == ["unchanged", "unchanged"]
    assert visible(machine) == wanted(machine)
    assert (audit.returncode, json.loads(audit.stdout)["broken_at"]) == (0, None)
    modes = {path.stat().st_mode & 0o077 for path in [out, *aside.parent.rglob("*")]}
    assert modes == {0}


async def test_rows_that_waited_at_the_backup_and_were_sent_since_come_once(
    machine: Machine,
) -> None:
    out = machine.folder / "state.tar"
    registry = machine.folder / "handler_registry.yaml"
    text = registry.read_text()
    machine.write("a.csv", 1, 2, 3)
    away = text.replace(machine.url, "http://127.0.0.1:9")
    registry.write_text(away.replace("upload_wait_s: 90", "upload_wait_s: 0"))
    async with machine.handler() as client:
        call = {"data_source": str(machine.data)}
        run = await client.call("process_and_upload", call, timeout_s=60)
        assert run["status"] == "queued"
        await asyncio.to_thread(machine.state, "backup", "--out", str(out))
    registry.write_text(text)
    async with machine.handler():
        await until(lambda: visible(machine) == Counter({("a.csv", n): 1 for n in (1, 2, 3)}))
    (machine.data / "a.csv").unlink()  # what was in the outbox alone

    assert machine.state("restore", str(out), "--force").returncode == 0
    async with machine.handler() as client:
        empty = {"uploads": 0, "dead": 0}

        async def is_sent() -> bool:
            figures = (await client.call("get_metrics")).get("outbox") or {}
            return {name: figures.get(name) for name in empty} == empty

        await until(is_sent)

    assert visible(machine) == Counter({("a.csv", n): 1 for n in (1, 2, 3)})


def test_an_archive_that_was_changed_or_is_of_no_use_changes_nothing(tmp_path: Path) -> None:
    environment = {"CATALOGZERO_STATE_DIR": str(tmp_path / "state")}
    out, database = tmp_path / "state.tar", tmp_path / "state" / "scheduler.db"
    with scheduler(environment):
        assert backed_up(out, environment) == 0
        # One that exists is not overwritten.
        assert backed_up(out, environment) == 3
    content = out.read_bytes()
    before = database.read_bytes()
    for damaged in (
        content[:3_000],
        content.replace(b"scheduler_", b"scheduled_"),
        b"",
        b"x" * 999,
    ):
        (tmp_path / "damaged.tar").write_bytes(damaged)
        words = ("state", "restore", str(tmp_path / "damaged.tar"), "--force")
        done = finished(*words, cwd=None, **environment)
        assert (done.returncode, "or damaged: " in done.stderr) == (3, True), done.stderr

    assert database.read_bytes() == before
    assert sorted(path.name for path in database.parent.iterdir()) == ["scheduler.db"]


def backed_up(out: Path, environment: dict[str, str]) -> int:
    """The exit code of a backup of what is there."""
    return finished("state", "backup", "--out", str(out), cwd=None, **environment).returncode


@contextmanager
def scheduler(environment: dict[str, str], *words: str) -> Iterator[dict[str, Any]]:
    """A scheduler process; what it says of where it listens."""
    ports = ("--port", "0", "--zmq-port", "0", "--json")
    with running("scheduler", *ports, *words, cwd=None, **environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        yield json.loads(line)
        process.terminate()
        process.wait(30)


def test_a_damaged_database_of_the_scheduler_is_named_and_the_commands_go_on(
    tmp_path: Path,
) -> None:
    environment = {"CATALOGZERO_STATE_DIR": str(tmp_path / "state")}
    out, database = tmp_path / "state.tar", tmp_path / "state" / "scheduler.db"
    start = ("scheduler", "--port", "0", "--zmq-port", "0")
    with scheduler(environment) as said:
        assert said["database"] == f"sqlite:///{database}"
        assert backed_up(out, environment) == 0
        refused = finished("state", "restore", str(out), "--force", cwd=None, **environment)
        assert (refused.returncode, "is in use" in refused.stderr) == (3, True)
    page = database.read_bytes()
    damaged = page[:8192] + b"\xff" * 4096 + page[12288:]
    database.write_bytes(damaged)

    done = finished(*start, cwd=None, **environment)

    assert done.returncode == 3
    assert f"cannot open the database {database}: a page of it is damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert database.read_bytes() == damaged
    printed = done.stderr.split("`")[1::2]
    restore, begin = printed[0], printed[1]
    assert (
        finished(*restore.replace("FILE", str(out)).split()[1:], cwd=None, **environment).returncode
        == 0
    )
    with scheduler(environment):
        pass
    database.write_bytes(damaged)
    subprocess.run(["sh", "-c", begin], check=True)
    with scheduler(environment):
        pass
    assert (tmp_path / "state" / "damaged" / "scheduler.db").read_bytes() == damaged


def test_a_locked_database_of_the_scheduler_is_unreachable(tmp_path: Path) -> None:
    environment = {"CATALOGZERO_STATE_DIR": str(tmp_path / "state")}
    database = tmp_path / "state" / "scheduler.db"
    with scheduler(environment):
        pass
    with closing(sqlite3.connect(database, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        words = ("scheduler", "--port", "0", "--zmq-port", "0", "--database-timeout-s", "0.5")
        done = finished(*words, cwd=None, **environment)

    assert done.returncode == 4
    assert (
        f"cannot open the database {database}: database is locked: another process" in done.stderr
    )


@pytest.mark.parametrize("service", ["scheduler", "backend"])
def test_a_database_at_the_former_place_is_used_on_with_a_warning(
    service: str, tmp_path: Path
) -> None:
    former = {"CATALOGZERO_STATE_DIR": "", "STATE_DIRECTORY": str(tmp_path / "former")}
    present = {**former, "CATALOGZERO_STATE_DIR": str(tmp_path / "present")}
    words = ["backend", "tenants", "list"] if service == "backend" else ["schedule", "list"]
    path = tmp_path / "former" / f"{service}.db"
    with ExitStack() as stack:
        if service == "scheduler":
            stack.enter_context(scheduler(former))
        else:
            assert finished("backend", "tenants", "add", "acme", cwd=None, **former).returncode == 0
    assert path.exists()

    if service == "scheduler":
        with scheduler(present) as said:
            assert said["database"] == f"sqlite:///{path}"
    else:
        found = finished(*words, cwd=None, **present)
        assert ("acme" in found.stdout, str(path) in found.stderr) == (True, True)
    path.rename(tmp_path / f"{service}.db")
    if service == "scheduler":
        with scheduler(present):
            pass
    else:
        assert "acme" not in finished(*words, cwd=None, **present).stdout
    assert (tmp_path / "present" / f"{service}.db").exists()
    assert os.listdir(tmp_path / "former") == []
