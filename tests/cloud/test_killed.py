"""A worker killed with -9 at each commit point of the outbox, and started again.

A large result has several chunks; several small ones are sealed in one transaction. Where the
outbox is in PostgreSQL, its connection is also cut at each commit: before the server has that, and
as its answer comes back.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.cloud.reference import ReferenceBackend
from tests.cloud.stores import stores
from tests.sql.tcp_proxy import TcpProxy

pytestmark = pytest.mark.timeout(280)

BOTH_STORES = True
LARGE = ("begin", "add", "seal", "acknowledge", "completing", "done")
SMALL = ("seal_whole", "completing", "done")
SHARED = ("_join", "started", "_append", "to_send", "remember", "leave")
"""What else a shared outbox writes in a run: the audit log's lines are `_append`'s."""


@asynccontextmanager
async def runs(
    folder: Path, url: str, database: str | None
) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Each call is one run in a process of its own; its exit status."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.cloud.engine_process", str(folder), url),
        *([database] if database else []),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    into, out = process.stdin, process.stdout
    assert into is not None
    assert out is not None

    async def run() -> int:
        into.write(b"\n")
        return int(await out.readline())

    yield run
    into.close()
    await process.wait()


class Files:
    """What the client has: files of a large result or of small ones, a few for each step."""

    def __init__(self, folder: Path) -> None:
        (folder / "state").mkdir()
        self._exports, self._order = folder / "exports", folder / "state" / "die_at"
        self._exports.mkdir()
        self.rows: dict[str, list[str]] = {}

    def add(self, step: str, when: str, *, files: int, rows: int) -> Path:
        """Add files, and order what is to come of their run at a step; the order's file."""
        for number in range(files):
            name = f"of-{step}-{rows}-{number}.csv"  # one that begins with `_` is left out
            self.rows[name] = [f"{name}-{n}" for n in range(rows)]
            (self._exports / name).write_text("\n".join(["id", *self.rows[name], ""]))
        self._order.write_text(f"{step}:{when}")
        return self._order

    def check(self, backend: ReferenceBackend) -> None:
        """Each file's rows are visible, and once."""
        for name, rows in self.rows.items():
            assert [row["id"] for row in backend.rows(f"exports/{name}")] == rows


def steps_of(*, shared: bool) -> list[tuple[int, int, str]]:
    """How many files of how many rows each step is tried with."""
    large = [(1, 150, step) for step in (*LARGE, *(SHARED if shared else ()))]
    return large + [(3, 5, step) for step in SMALL]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_worker_killed_at_any_commit_loses_and_doubles_nothing(
    tmp_path: Path, when: str, store_kind: str
) -> None:
    files, database = Files(tmp_path), stores.url_of(tmp_path / "state")
    async with ReferenceBackend() as backend, runs(tmp_path, backend.url, database) as run:
        for count, rows, step in steps_of(shared=store_kind == "postgresql"):
            order = files.add(step, when, files=count, rows=rows)
            assert (await run(), order.exists()) == (-signal.SIGKILL, False), step
        assert await run() == 0

    files.check(backend)


@pytest.mark.parametrize("is_answer", [False, True], ids=["request", "answer"])
async def test_a_commit_whose_connection_is_cut_costs_no_run_and_doubles_nothing(
    tmp_path: Path, is_answer: bool, store_kind: str
) -> None:
    """The request never arrives, or it does and is committed, and its answer is lost."""
    if store_kind == "file":
        pytest.skip("a file has no connection")
    files, database = Files(tmp_path), make_url(stores.url_of(tmp_path / "state") or "")
    cut, cuts = tmp_path / "state" / "cut", 0

    def lets_pass(_: bytes, is_client: bool) -> bool:
        nonlocal cuts
        if is_client == is_answer or not cut.exists():
            return True
        cut.unlink()
        cuts += 1
        return False

    with TcpProxy(database.host or "", database.port or 5432) as proxy:
        proxy.lets_pass = lets_pass
        behind = database.set(host="127.0.0.1", port=proxy.port)
        url = behind.render_as_string(hide_password=False)
        async with ReferenceBackend() as backend, runs(tmp_path, backend.url, url) as run:
            steps = steps_of(shared=True)
            for count, rows, step in steps:
                order = files.add(step, "cut", files=count, rows=rows)
                assert (await run(), order.exists(), cut.exists()) == (0, False, False), step

    assert cuts == len(steps)
    files.check(backend)
