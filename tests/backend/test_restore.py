"""A database that was put back from a backup, and clients that send again what it lacks."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from catalogzero.backend import BackendSettings, create_app
from catalogzero.backend.generations import renew
from catalogzero.backend.server import serving as served_backend
from catalogzero.backend.store import BackendDatabase
from catalogzero.backend.tenants import add_tenant
from catalogzero.testing import serving

from tests.backend.peer import AT, Answer, Peer, postgresql_url
from tests.cloud.processors import Doubler

GENERATION = "Catalogzero-Generation"


async def acknowledged(peer: Peer, upload: str, installation: str, **said: Any) -> Answer:
    """Complete an upload without rows, of a source of its own."""
    about = {"source_key": upload, "upload_key": upload, "installation_id": installation}
    return await peer.complete(upload, chunks=0, records=0, **about, **said)


async def report(peer: Peer, installation: str, generation: str, number: int, upload: str) -> str:
    """Report health with what is held for acknowledged; the generation that is answered."""
    held = {"number": number, "upload_id": upload}
    body = {"client_id": installation, "generation": generation, "acknowledged": held}
    answer = await peer.ask("POST", "/v1/health", json=body)
    assert answer.status == 200
    return str(answer.headers[GENERATION])


async def test_numbers_rise_with_each_answer_that_says_it_is_there(peer: Peer) -> None:
    answers = [
        await acknowledged(peer, upload, installation)
        for upload, installation in (("a", "one"), ("b", "one"), ("a", "one"), ("c", "two"))
    ]
    start = {"epoch": 0, "nonce": "n", "entry": "e"}
    told = (await peer.ask("PUT", "/v1/installations/one", json=start)).json["acknowledged"]

    assert [answer.json["number"] for answer in answers] == [1, 2, 3, 1]
    assert told == {"number": 3, "upload_id": "a"}


@pytest.mark.parametrize(
    ("number", "upload", "lost"),
    [
        (2, "b", False),
        (1, "a", False),
        (3, "c", True),
        (2, "c", True),
        (1, "c", True),
    ],
)
async def test_what_is_acknowledged_and_not_here_begins_a_generation_of_that_installation(
    peer: Peer, number: int, upload: str, lost: bool
) -> None:
    first = await acknowledged(peer, "a", "one")
    before = first.headers[GENERATION]
    await acknowledged(peer, "b", "one")
    await acknowledged(peer, "o", "other")

    after = await report(peer, "one", before, number, upload)
    again = await report(peer, "one", before, number, upload)
    late = await acknowledged(
        peer, "d", "one", generation=before, acknowledged={"number": number, "upload_id": upload}
    )
    other = await report(peer, "other", before, 1, "o")

    assert (after != before) == lost
    assert again == late.headers[GENERATION] == after
    assert other == before


async def test_a_complete_reports_it_before_it_takes_the_number(peer: Peer) -> None:
    before = (await acknowledged(peer, "a", "one")).headers[GENERATION]
    held = {"number": 2, "upload_id": "lost"}

    answer = await acknowledged(peer, "b", "one", generation=before, acknowledged=held)

    assert answer.json["number"] == 2
    assert answer.headers[GENERATION] != before


@pytest.fixture
def url() -> Iterator[str]:
    """A schema of PostgreSQL, where the server's tools can back it up."""
    if shutil.which("pg_dump") is None or shutil.which("pg_restore") is None:
        pytest.skip("there is no pg_dump: apt-get install postgresql-client")
    yield from postgresql_url()


async def run(*command: str) -> None:
    """Run a tool of PostgreSQL's."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stderr=pipe)
    async with asyncio.timeout(60):
        _, told = await process.communicate()
    assert process.returncode == 0, told.decode()


class Site:
    """A client's folder and its handler."""

    def __init__(self, service: Any, folder: Path) -> None:
        self.service, self.folder = service, folder

    def write(self, name: str) -> None:
        """A file with one row that distinguishes it from all others."""
        (self.folder / name).write_text(f"n,name\n2,{self.folder.name}-{name}\n")

    async def run(self) -> None:
        """What a schedule does: a run, and a health report."""
        call = {"data_source": str(self.folder)}
        await self.service.client.call("process_and_upload", call)
        await self.service.client.call("health_report")

    @property
    def names(self) -> set[str]:
        return {f"{self.folder.name}-{path.name}" for path in self.folder.iterdir()}


@asynccontextmanager
async def site(name: str, home: Path, endpoint: str, key: str) -> AsyncIterator[Site]:
    folder = home / name
    folder.mkdir()
    config: dict[str, Any] = {"endpoint": endpoint, "api_key": key, "data_roots": [str(folder)]}
    state: dict[str, Any] = {"state_dir": home / f"{name}-state", "min_file_age_s": 0}
    async with serving(Doubler(**config), **state, installation_id=name) as service:
        yield Site(service, folder)


@pytest.mark.postgresql
@pytest.mark.timeout(240)
@pytest.mark.parametrize("command", [True, False], ids=["restored", "nobody says so"])
async def test_clients_send_again_what_an_hour_old_backup_lacks(
    url: str, tmp_path: Path, command: bool
) -> None:
    database = BackendDatabase(url)
    key = database.write_now(lambda connection: add_tenant(connection, "acme", AT))
    schema = url.partition("%3D")[2]
    server = url.partition("?")[0]
    backup = str(tmp_path / "backup")
    settings = BackendSettings(database=url, max_requests_per_s=50, access_log=False)
    async with AsyncExitStack() as life:
        backend = await life.enter_async_context(AsyncExitStack())
        at = await backend.enter_async_context(served_backend(create_app(settings)))
        port = int(at.rpartition(":")[2])
        sites = [
            await life.enter_async_context(site(name, tmp_path, f"{at}/v1", key))
            for name in ("one", "two")
        ]

        async def work(first: int, count: int) -> None:
            for number in range(first, first + count):
                for one in sites:
                    one.write(f"{number}.csv")
                    await one.run()

        await work(0, 1)
        dump = ("pg_dump", "-Fc", "-n", schema, "-f", backup, server)
        await asyncio.gather(run(*dump), work(1, 2))
        await work(3, 1)
        sites[1].write("gone.csv")
        await sites[1].run()
        (sites[1].folder / "gone.csv").unlink()
        everything = visible(database)

        await backend.aclose()
        loading = asyncio.create_task(work(4, 1))  # nobody answers, and they go on
        execute(database, f"DROP SCHEMA {schema} CASCADE")
        database.close()
        await run("pg_restore", "-d", server, backup)
        database = BackendDatabase(url)
        life.callback(database.close)
        if command:
            database.write_now(renew)
        lost = everything - visible(database)
        again = served_backend(create_app(settings), port=port)
        await life.enter_async_context(again)
        await loading
        expected = sites[0].names | sites[1].names
        async with asyncio.timeout(150):
            while not visible(database) >= expected:
                await asyncio.gather(*(one.run() for one in sites))
        healed = own_generations(database)
        await asyncio.gather(*(one.run() for one in sites))
        at_rest = own_generations(database)

        async with aiohttp.ClientSession() as session:
            place = f"{at}/installation.json?tenant=acme&id=two"
            async with session.get(place) as answer:
                detail = await answer.json()
            async with session.get(f"{at}/fleet.json?sort=-waiting") as answer:
                rows = {
                    row["installation_id"]: row for row in (await answer.json())["installations"]
                }

    assert "two-gone.csv" in lost
    assert at_rest == healed
    assert all(healed.values()) is not command
    assert detail["row"]["missing"] == 1
    assert len(detail["missing_sources"]) == 1
    assert "gone.csv" in detail["missing_sources"][0]
    assert rows["one"]["missing"] == 0


def execute(database: BackendDatabase, statement: str) -> None:
    database.write_now(lambda connection: connection.exec_driver_sql(statement))


def visible(database: BackendDatabase) -> set[str]:
    """What can be seen, and nothing of it twice."""
    rows = database.read_now(
        lambda at: at.exec_driver_sql("SELECT payload::json ->> 'name' FROM visible_records").all()
    )
    names = [str(row[0]) for row in rows]
    assert len(names) == len(set(names))
    return set(names)


def own_generations(database: BackendDatabase) -> dict[str, str]:
    """The generation that each installation was given for itself."""
    rows = database.read_now(
        lambda at: at.exec_driver_sql("SELECT installation_id, generation FROM installations").all()
    )
    return {row[0]: row[1] for row in rows}
