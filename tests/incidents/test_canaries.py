"""Secrets show nowhere; a client's rows only where they belong, in files of its own user alone."""

from __future__ import annotations

import asyncio
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from examples.quickstart.processes import free_ports
from tests.cloud.reference import ReferenceBackend
from tests.incidents.plant import KEY, NOBODY, Plant, until

DSN_PASSWORD = "canary-dsn-4b7e"  # noqa: S105 - a test's own
ROW = "canary-row-9d21"
PAGES = ("/api/fleet", "/api/events", "/metrics", "/handlers/site", "/")
"""Of the conductor; what `/api/handlers/site` adds is the handler's run records."""
BACKEND_PAGES = ("/", "/fleet.json", "/metrics", "/installation.json?tenant=t&id=site")
"""Of the backend; the last holds the whole health report."""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of this machine may enter and list, on the way to it too."""
    with tempfile.TemporaryDirectory(prefix="plant-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


async def everything_printed(plant: Plant) -> dict[str, str]:
    """What each command prints of the handler, and the bundle's files."""
    forms = {
        "status": ("status",),
        "status --json": ("status", "--json"),
        "check": ("check", "site"),
        "check --json": ("check", "site", "--json"),
        "outbox list": ("outbox", "list", "site", "--all", "--json"),
        "metrics": ("metrics", "site"),
        "describe": ("describe", "site"),
        "bundle": ("bundle", "site", "--out", "support.zip", "--log", "logs/handler.log"),
    }
    ends = [await plant.command(*arguments) for arguments in forms.values()]
    printed = {name: end.text for name, end in zip(forms, ends, strict=True)}
    with zipfile.ZipFile(plant.folder / "support.zip") as archive:
        for name in archive.namelist():
            printed[f"bundle {name}"] = archive.read(name).decode("utf-8", "replace")
    return printed


async def everything_served(plant: Plant) -> dict[str, str]:
    """The conductor's pages and answers, once it has asked the handler."""
    async with plant.conductor() as conductor:
        await conductor.site()
        served = {path: await conductor.read(path) for path in PAGES}
    log = plant.processes.logs / "conductor.log"
    return {**served, "conductor's log": log.read_text(errors="replace")}


def holding(texts: dict[str, str], *canaries: str) -> list[str]:
    """The names of the texts that hold one of the canaries."""
    return [name for name, text in texts.items() if any(one in text for one in canaries)]


async def test_secrets_show_nowhere(backend: ReferenceBackend, tmp_path: Path) -> None:
    dsn = f"postgresql://shop:{DSN_PASSWORD}@127.0.0.1:1/orders"
    source = {"url": dsn, "query": "SELECT n FROM orders"}
    config = {"sources": {"orders": source}}
    async with Plant(tmp_path, backend.url, config=config) as plant:
        plant.write("a.csv", [{"n": 1, "name": "one"}])
        await plant.start()
        await plant.run()
        failed = await plant.refused("sql:orders")
        echoed = await plant.refused(KEY)
        # A backend that says a key back, in an answer that is kept.
        backend.fault = lambda request: web.json_response(
            {"title": "refused", "detail": request.headers["Authorization"]}, status=422
        )
        refused = await plant.refused(full=True)
        backend.fault = lambda request: None
        await plant.health(backend)
        texts = {**await everything_printed(plant), **await everything_served(plant)}
        texts |= {"failed": str(failed), "echoed": str(echoed), "refused": str(refused)}
        texts["log"] = (plant.processes.logs / "handler.log").read_text()
        texts["commands"] = str([line.read_text() for line in command_lines(plant)])
        for path in plant.state.rglob("*"):
            texts[f"state {path.name}"] = path.read_bytes().decode("latin-1")
        texts |= {f"body {n}": str(body) for n, (_, _, body) in enumerate(backend.bodies)}

    assert "Bearer **********" in refused.message
    assert holding(texts, KEY, DSN_PASSWORD) == []


def command_lines(plant: Plant) -> list[Path]:
    """The command lines of the handler and its worker, as every user can read them."""
    pid = plant.handler.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{one}/cmdline") for one in (str(pid), *children)]


@pytest.mark.skipif(os.geteuid() != 0, reason="looks as another user")
async def test_rows_stay_in_private_files_on_this_machine(open_folder: Path) -> None:
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    config = {"on_bad_record": "quarantine"}
    async with Plant(open_folder, f"{url}/v1", class_name="Quoting", config=config) as plant:
        database = ("--database", str(open_folder / "backend.sqlite"))
        added = await plant.command("backend", "tenants", "add", "t", "--json", *database)
        plant.set_key(added.json["key"])
        serve = ("backend", "serve", "--port", str(port), *database)
        plant.begin("backend", *serve)
        await plant.start()
        plant.write("a.csv", [{"n": 1, "name": f"{ROW}-sent"}])
        (plant.data / "b.csv").write_text(f"n,name\n2,{ROW}-sent\n3,{ROW}-malformed,x\n")
        await until(lambda: is_listening(url), "the backend answers")
        assert (await plant.run())["bad_records"] == 1
        plant.write("c.csv", [{"n": 4, "name": f"{ROW}-unpriced"}])
        failed = await plant.refused()
        await plant.client.call("health_report", timeout_s=60)
        texts = {path: await read(url + path) for path in BACKEND_PAGES}
        await asyncio.to_thread(plant.processes.stop, "backend")
        (plant.data / "c.csv").unlink()
        plant.write("d.csv", [{"n": 5, "name": f"{ROW}-waiting"}])
        assert (await plant.run())["status"] == "queued"
        texts |= {**await everything_printed(plant), **await everything_served(plant)}
        texts["backend's log"] = (plant.processes.logs / "backend.log").read_text()
        texts["health"] = str((await plant.metrics())["health"])
        kept = {
            path.name: path.read_bytes().decode("latin-1")
            for path in plant.state.rglob("*")
            if path.is_file()
        }
        readable = await readable_by_another(plant)
        plant.state.parent.chmod(0o755)  # as a careless hand leaves them
        plant.state.chmod(0o755)
        still_readable = await readable_by_another(plant)

    assert "unpriced" in failed.message
    [bad_records] = holding(kept, f"{ROW}-malformed")
    assert {*holding(kept, ROW)} <= {"outbox.sqlite", "outbox.sqlite-wal", bad_records}
    assert Path(bad_records).suffix == ".jsonl"
    assert bad_records != "audit.jsonl"
    assert "the last run failed" in texts[BACKEND_PAGES[-1]]
    assert holding(texts, ROW) == []
    assert readable == []
    assert still_readable == []


async def readable_by_another(plant: Plant) -> list[str]:
    """The private files that another user can read all the same, and the folders of rows."""
    files = [path for path in plant.state.rglob("*") if path.is_file()]
    folders = [plant.state / "bad_records"]
    commands = [("cat", path) for path in (plant.key_file, plant.registry, *files)]
    readable = []
    for program, place in (*commands, *(("ls", folder) for folder in folders)):
        end = await plant.shell(program, str(place), user=NOBODY)
        if end.code == 0:
            readable.append(str(place))
        else:
            assert "Permission denied" in end.err
    return readable


async def read(url: str) -> str:
    """The text at an address."""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200, f"{url}: {answer.status}"
        return await answer.text()


async def is_listening(url: str) -> bool:
    """Whether somebody answers there."""
    try:
        return bool(await read(url))
    except aiohttp.ClientError:
        return False
