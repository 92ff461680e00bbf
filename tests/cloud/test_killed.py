"""A worker killed with -9 at each commit point of the outbox, and started again.

A large result has several chunks; several small ones are sealed in one transaction.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cloud.reference import ReferenceBackend

LARGE = ("begin", "add", "seal", "acknowledge", "completing", "done")
SMALL = ("seal_whole", "completing", "done")


@asynccontextmanager
async def runs(folder: Path, url: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Each call is one run in a process of its own; its exit status."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.cloud.engine_process", str(folder), url),
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


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_worker_killed_at_any_commit_loses_and_doubles_nothing(
    tmp_path: Path, when: str
) -> None:
    exports, state = tmp_path / "exports", tmp_path / "state"
    exports.mkdir()
    state.mkdir()
    expected: dict[str, list[str]] = {}
    async with ReferenceBackend() as backend, runs(tmp_path, backend.url) as run:
        for files, many, steps in ((1, 150, LARGE), (3, 5, SMALL)):
            for step in steps:
                for number in range(files):
                    name = f"{step}-{many}-{number}.csv"
                    expected[name] = [f"{name}-{n}" for n in range(many)]
                    (exports / name).write_text("\n".join(["id", *expected[name], ""]))
                (state / "die_at").write_text(f"{step}:{when}")
                assert (await run(), (state / "die_at").exists()) == (-signal.SIGKILL, False)
        assert await run() == 0

    for name, rows in expected.items():
        assert [row["id"] for row in backend.rows(f"exports/{name}")] == rows
