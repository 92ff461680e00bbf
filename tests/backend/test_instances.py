"""Two instances on one database, and clients that keep sending through what happens to them."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from catalogzero.backend.store import BackendDatabase
from sqlalchemy import make_url

from tests.backend.peer import postgresql_url
from tests.backend.test_command import run, served
from tests.backend.test_restore import Site, site, visible
from tests.cloud.site import until
from tests.sql.tcp_proxy import TcpProxy

pytestmark = pytest.mark.postgresql
FILES = 4


@pytest.fixture
def url() -> Iterator[str]:
    """A schema of PostgreSQL."""
    yield from postgresql_url()


class Instances:
    """Backends behind one address: each connection goes to the next of them that takes it."""

    def __init__(self, database: str, life: ExitStack) -> None:
        self._database, self._life = database, life
        self._processes: list[Any] = []
        self._ports: list[int] = []
        self._turn = itertools.count()
        self.used: set[int] = set()

    def start(self) -> None:
        """One more, at a port of its own."""
        process, told = self._life.enter_context(served("--database", self._database))
        self._processes.append(process)
        self._ports.append(int(told["endpoint"].rsplit(":", 1)[1].partition("/")[0]))

    def end(self, how: signal.Signals) -> None:
        """End the oldest."""
        self._ports.pop(0)
        process = self._processes.pop(0)
        process.send_signal(how)
        process.wait(30)

    @asynccontextmanager
    async def front(self) -> AsyncIterator[str]:
        """The address of all."""
        pumps: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ports = list(self._ports)
            port = ports[next(self._turn) % len(ports)]
            try:
                behind = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                writer.close()
                return
            self.used.add(port)
            for source, target in ((reader, behind[1]), (behind[0], writer)):
                task = asyncio.create_task(_pump(source, target))
                pumps.add(task)
                task.add_done_callback(pumps.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            server.close()
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    except ConnectionError:
        pass
    finally:
        target.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", ["none", "rolling restart", "kill -9", "mute database", "limit"])
async def test_each_row_is_seen_once_through(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("CATALOGZERO_BACKEND_ACCESS_LOG", "false")
    monkeypatch.setenv("CATALOGZERO_BACKEND_DATABASE_TIMEOUT_S", "3")
    server = make_url(url)
    with ExitStack() as life:
        proxy = life.enter_context(TcpProxy(str(server.host), server.port or 5432))
        behind = server.set(host="127.0.0.1", port=proxy.port)
        database = life.enter_context(closing(BackendDatabase(url)))
        key = run("tenants", "add", "acme", "--database", url).stdout.strip()
        if fault == "limit":
            run("tenants", "limit", "acme", "--requests-per-s", "4", "--database", url)
        instances = Instances(behind.render_as_string(hide_password=False), life)
        instances.start()
        instances.start()

        async def happen() -> None:
            if fault in ("rolling restart", "kill -9"):
                for _ in range(2):
                    await asyncio.to_thread(instances.start)
                    how = signal.SIGKILL if fault == "kill -9" else signal.SIGTERM
                    await asyncio.to_thread(instances.end, how)
            elif fault == "mute database":
                proxy.mute()
                swallowed = proxy.swallowed
                await until(lambda: proxy.swallowed > swallowed)
                proxy.speak()

        async def work(one: Site, first: int) -> None:
            for number in range(first, first + FILES):
                one.write(f"{number}.csv")
                await one.run()

        async with (
            instances.front() as endpoint,
            site("one", tmp_path, endpoint, key) as one,
            site("two", tmp_path, endpoint, key) as two,
        ):
            await asyncio.gather(work(one, 0), work(two, 0))
            await asyncio.gather(work(one, FILES), work(two, FILES), happen())
            expected = one.names | two.names
            while visible(database) != expected:
                await asyncio.gather(one.run(), two.run())

        assert len(expected) == 4 * FILES
        assert len(instances.used) >= 2
